"""Serial backbone: a chain of residual blocks (SP-NAS serial net; ResNet and ResNeXt are codes of it), and its parallel form."""

from dataclasses import dataclass
from itertools import groupby

from fastnas.blueprint.check import YES_NO, integer, one_of, string
from fastnas.blueprint.code import BlueprintError, positions, validate_code
from fastnas.blueprint.operators import Layers, Operators
from fastnas.blueprint.parts.parallel import Connector, copies_of, wire_stage
from fastnas.blueprint.spec import Shapes, Spec, added, conv_params, half
from fastnas.blueprint.wiring import IMAGE, Wiring, stage_block_name

BLOCK_KINDS = ("basic", "bottleneck", "resnext32x4d", "xbottleneck")
STEMS = ("7x7", "3x3")
NORMS = ("bn", "gn", "gnws")


@dataclass(frozen=True)
class SerialBackbone:
    """Levels C2, C3, ... are the outputs of its stages (stride 4, 8, ...).

    `parallel` without a copy is the serial backbone, and is written so: "" and yes.
    """

    block: str  # basic | bottleneck | resnext32x4d | xbottleneck (of SM-NAS)
    code: str  # e.g. 11-21-21-21, see code.py
    base: int = 64  # planes before the first doubling = channels of the stem
    stem: str = "7x7"  # 7x7: 7x7/2 + max-pool/2 (ResNet); 3x3: two 3x3/2 convolutions (SP-NAS)
    norm: str = "bn"  # bn | gn | gnws (GroupNorm behind standardised weights)
    parallel: str = ""  # copies of every stage, e.g. 0-0-2-1, see parallel.py
    tied: str = "yes"  # yes: copies are further uses of the stage's blocks; no: they have weights of their own
    c1: str = "no"  # yes: the stem's map of stride 2 is a level too

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
        one_of("backbone tied", self.tied, YES_NO)
        one_of("backbone c1", self.c1, YES_NO)
        if not any(copies_of(self.code, string("backbone parallel", self.parallel))):
            object.__setattr__(self, "parallel", "")
            object.__setattr__(self, "tied", "yes")

    @property
    def stages(self) -> int:
        return self.code.count("-") + 1

    @property
    def expansion(self) -> int:
        return 1 if self.block == "basic" else 4

    @property
    def maps(self) -> range:
        return range(1 if self.c1 == "yes" else 2, self.stages + 2)

    def wire(self, wiring: Wiring, last: int) -> dict[int, str]:
        maps: dict[int, str] = {}
        stem, outputs = Stem(self.stem, self.base, self.norm, self.c1 == "yes"), ("backbone.stem", "backbone.stem.c1")
        value = wiring.add("backbone.stem", stem, [IMAGE], outputs[: 1 + stem.taps])
        if stem.taps:
            maps[1] = outputs[1]
        return maps | self._wire_stages(wiring, value, range(max(0, last - 1)))

    def wire_rest(self, wiring: Wiring, level: int, value: str) -> str:
        """Copies of the first stage behind the level go on from its own input."""
        return self._wire_stages(wiring, value, range(level - 1, self.stages))[self.maps[-1]]

    def _wire_stages(self, wiring: Wiring, value: str, wanted: range) -> dict[int, str]:
        """Values by level of these stages (from 0), `value` being the input of the first."""
        stages, maps = self._stages(), {}
        copies, branches = [*copies_of(self.code, self.parallel), 0], {}
        for stage in wanted:
            passes = _Passes(wiring, stage, stages[stage], self.tied == "yes")
            value, branches = wire_stage(passes, value, branches, copies[stage], copies[stage + 1])
            maps[stage + 2] = value
        return maps

    def _stages(self) -> list[list["Residual"]]:
        """The specs of every stage's blocks."""
        channels, stages = self.base, []
        base = self.base if self.block == "xbottleneck" or self.norm == "gnws" else 0
        for _, blocks in groupby(positions(self.code), key=lambda at: at.stage):
            stages.append([])
            for at in blocks:
                spec = Residual(self.block, channels, self.base << at.doublings, at.stride, self.norm, base)
                stages[-1].append(spec)
                channels = spec.out_channels
        return stages


class _Passes:
    """Passes through one stage: of the backbone's own blocks and of copies, and what connects them."""

    def __init__(self, wiring: Wiring, stage: int, specs: list["Residual"], tied: bool):
        self._wiring, self._stage, self._specs, self._tied = wiring, stage, specs, tied

    def run(self, value: str, copy: int | None) -> str:
        for index, spec in enumerate(self._specs):
            name = stage_block_name(self._stage, index, None if self._tied else copy)
            value = self._wiring.add(name, spec, [value], (f"{name}.copy{copy}",) if self._tied and copy else None)
        return value

    def connect(self, value: str, output: str, copy: int) -> str:
        first, last = self._specs[0], self._specs[-1]
        spec = Connector(last.out_channels, first.in_channels, first.norm, first.base // 2)
        name = f"backbone.stage{self._stage + 1}.{'' if self._tied else f'copy{copy}.'}connector"
        return self._wiring.add(name, spec, [value, output], (f"{name}.sum{copy}" if self._tied else name,))


@dataclass(frozen=True)
class Stem(Spec):
    """`7x7`: conv 7x7/2, norm, ReLU, max-pool 3x3/2 (ResNet). `3x3`: twice conv 3x3/2, norm, ReLU (SP-NAS). Stride 4 in all.

    Outputs: the map, and that behind the first convolution (stride 2) if `taps`.
    """

    op = "stem"
    kind: str
    channels: int
    norm: str
    taps: bool = added(False)

    @property
    def first(self) -> int:
        """Channels behind the first convolution."""
        return self.channels if self.kind == "7x7" else self.channels // 2

    def params(self) -> int:
        if self.kind == "7x7":
            return conv_params(3, self.channels, 7) + 2 * self.channels
        middle = self.first
        return conv_params(3, middle, 3) + 2 * middle + conv_params(middle, self.channels, 3) + 2 * self.channels

    def macs(self, inputs: Shapes) -> int:
        h, w = half(inputs[0][2]), half(inputs[0][3])
        if self.kind == "7x7":
            return conv_params(3, self.channels, 7) * h * w
        middle = self.first
        return conv_params(3, middle, 3) * h * w + conv_params(middle, self.channels, 3) * half(h) * half(w)

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        h, w = half(h), half(w)
        return (n, self.channels, half(h), half(w)), *[(n, self.first, h, w)] * self.taps

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
    """Residual block (He et al. 2016; ResNeXt: Xie et al. 2017); stride on the 3x3; 1x1 projection where the shape changes.

    xbottleneck (SM-NAS): base / 2 groups of base width 4, so twice as wide inside as its planes.
    """

    op = "residual"
    kind: str
    in_channels: int
    planes: int
    stride: int
    norm: str
    base: int = added(0)  # of the backbone, where groups depend on it: xbottleneck, gnws

    @property
    def out_channels(self) -> int:
        return self.planes if self.kind == "basic" else 4 * self.planes

    @property
    def groups(self) -> int:
        """Of the 3x3 convolution."""
        return {"resnext32x4d": 32, "xbottleneck": self.base // 2}.get(self.kind, 1)

    @property
    def width(self) -> int:
        """Channels inside the block; ResNeXt 32x4d: floor(planes x 4 / 64) x 32."""
        return {"resnext32x4d": self.planes * 4 // 64 * 32, "xbottleneck": 2 * self.planes}.get(self.kind, self.planes)

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
        n, _, h, w = inputs[0]
        _, _, oh, ow = self.outputs(inputs)[0]
        pixels = {False: n * h * w, True: n * oh * ow}
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
