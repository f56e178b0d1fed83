"""Serial backbone: a chain of residual blocks (SP-NAS serial net; ResNet and ResNeXt are codes of it)."""

from dataclasses import dataclass

from fastnas.blueprint.check import integer, one_of, string
from fastnas.blueprint.code import BlueprintError, positions, validate_code
from fastnas.blueprint.operators import Layers, Operators
from fastnas.blueprint.spec import Shapes, Spec, conv_params, half
from fastnas.blueprint.wiring import IMAGE, Wiring, stage_block_name

BLOCK_KINDS = ("basic", "bottleneck", "resnext32x4d")
STEMS = ("7x7", "3x3")
NORMS = ("bn", "gn")


@dataclass(frozen=True)
class SerialBackbone:
    """Levels C2, C3, ... are the outputs of its stages (stride 4, 8, ...)."""

    block: str  # basic | bottleneck | resnext32x4d
    code: str  # e.g. 11-21-21-21, see code.py
    base: int = 64  # planes before the first doubling = channels of the stem
    stem: str = "7x7"  # 7x7: 7x7/2 + max-pool/2 (ResNet); 3x3: two 3x3/2 convolutions (SP-NAS)
    norm: str = "bn"  # bn | gn

    def __post_init__(self):
        one_of("backbone block", self.block, BLOCK_KINDS)
        validate_code(string("backbone code", self.code))
        integer("backbone base", self.base, 8, 512)
        one_of("backbone stem", self.stem, STEMS)
        one_of("backbone norm", self.norm, NORMS)
        step = 16 if self.block == "resnext32x4d" else 8
        if self.base % step:
            raise BlueprintError(f"backbone base {self.base} is not a multiple of {step} ({self.block} blocks need that)")
        if self.base << self.code.count("2") > 8192:
            raise BlueprintError(f"{self.base} channels doubled {self.code.count('2')} times exceed 8192", self.code)

    @property
    def stages(self) -> int:
        return self.code.count("-") + 1

    @property
    def expansion(self) -> int:
        return 1 if self.block == "basic" else 4

    @property
    def maps(self) -> range:
        return range(2, self.stages + 2)

    def wire(self, wiring: Wiring, last: int) -> dict[int, str]:
        value = wiring.add("backbone.stem", Stem(self.stem, self.base, self.norm), [IMAGE])
        channels, maps = self.base, {}
        for at in positions(self.code):
            if at.stage + 2 > last:
                break
            spec = Residual(self.block, channels, self.base << at.doublings, at.stride, self.norm)
            value = wiring.add(stage_block_name(at.stage, at.index), spec, [value])
            channels, maps[at.stage + 2] = spec.out_channels, value
        return maps


@dataclass(frozen=True)
class Stem(Spec):
    """`7x7`: conv 7x7/2, norm, ReLU, max-pool 3x3/2 (ResNet). `3x3`: twice conv 3x3/2, norm, ReLU (SP-NAS). Stride 4 in all."""

    op = "stem"
    kind: str
    channels: int
    norm: str

    def params(self) -> int:
        if self.kind == "7x7":
            return conv_params(3, self.channels, 7) + 2 * self.channels
        middle = self.channels // 2
        return conv_params(3, middle, 3) + 2 * middle + conv_params(middle, self.channels, 3) + 2 * self.channels

    def macs(self, inputs: Shapes) -> int:
        h, w = half(inputs[0][2]), half(inputs[0][3])
        if self.kind == "7x7":
            return conv_params(3, self.channels, 7) * h * w
        middle = self.channels // 2
        return conv_params(3, middle, 3) * h * w + conv_params(middle, self.channels, 3) * half(h) * half(w)

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.channels, half(half(h)), half(half(w))),)

    def operators(self, inputs: Shapes) -> Operators:
        layers = Layers()
        if self.kind == "7x7":
            layers.max_pool(3, layers.normed(self.norm, self.channels, 7, inputs[0], stride=2, activation="relu"))
        else:
            x = layers.normed(self.norm, self.channels // 2, 3, inputs[0], stride=2, activation="relu")
            layers.normed(self.norm, self.channels, 3, x, stride=2, activation="relu")
        return layers.done()


@dataclass(frozen=True)
class Residual(Spec):
    """Residual block (He et al. 2016; ResNeXt: Xie et al. 2017); stride on the 3x3; 1x1 projection where the shape changes."""

    op = "residual"
    kind: str
    in_channels: int
    planes: int
    stride: int
    norm: str

    @property
    def out_channels(self) -> int:
        return self.planes if self.kind == "basic" else 4 * self.planes

    @property
    def groups(self) -> int:
        return 32 if self.kind == "resnext32x4d" else 1

    @property
    def width(self) -> int:
        """Channels inside the block; ResNeXt 32x4d: floor(planes x 4 / 64) x 32."""
        return self.planes * 4 // 64 * 32 if self.kind == "resnext32x4d" else self.planes

    @property
    def projects(self) -> bool:
        return self.stride != 1 or self.in_channels != self.out_channels

    def convs(self) -> list[tuple[int, int, int, int, bool]]:
        """(in channels, out channels, kernel, groups, at the output's resolution?) of every convolution; the projection is last."""
        cin, width, cout = self.in_channels, self.width, self.out_channels
        if self.kind == "basic":
            chain = [(cin, width, 3, 1, True), (width, cout, 3, 1, True)]
        else:
            chain = [(cin, width, 1, 1, False), (width, width, 3, self.groups, True), (width, cout, 1, 1, True)]
        return chain + [(cin, cout, 1, 1, True)] * self.projects

    def params(self) -> int:
        return sum(conv_params(cin, cout, kernel, groups) + 2 * cout for cin, cout, kernel, groups, _ in self.convs())

    def macs(self, inputs: Shapes) -> int:
        _, _, h, w = inputs[0]
        _, _, oh, ow = self.outputs(inputs)[0]
        pixels = {False: h * w, True: oh * ow}
        return sum(conv_params(cin, cout, kernel, groups) * pixels[small] for cin, cout, kernel, groups, small in self.convs())

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.out_channels, half(h), half(w)) if self.stride == 2 else (n, self.out_channels, h, w),)

    def operators(self, inputs: Shapes) -> Operators:
        layers, x = Layers(), inputs[0]
        *chain, (_, out, kernel, _, _) = self.convs()[:-1] if self.projects else self.convs()
        shortcut = layers.normed(self.norm, self.out_channels, 1, x, stride=self.stride) if self.projects else x
        for _, width, size, groups, small in chain:
            stride = self.stride if small and x[2:] == inputs[0][2:] else 1  # the first at the output's resolution
            x = layers.normed(self.norm, width, size, x, stride=stride, groups=groups, activation="relu")
        layers.normed(self.norm, out, kernel, x, shortcut, activation="relu")
        return layers.done()
