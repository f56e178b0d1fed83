"""State dicts of the `effdet` package's EfficientDet (with timm's EfficientNet as backbone) -> state dicts of our detectors.

Works for its `tf_efficientdet_d0` ... `d7x` (biases and padding as TensorFlow has them) and its own `efficientdet_d0` ...
(neither). A state dict of timm's EfficientNet alone fills the backbone. Nothing is guessed from shapes: every tensor has one name.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fastnas.blueprint import Network
from fastnas.blueprint import blocks as spec
from fastnas.blueprint.wiring import Block
from fastnas.models.detector import Detector

# A layer of ours -> theirs, in blocks with and without an expansion.
_EXPANDING = {
    "conv1": "conv_pw", "norm1": "bn1", "conv2": "conv_dw", "norm2": "bn2", "conv3": "conv_pwl", "norm3": "bn3",
    "squeeze": "se.conv_reduce", "excite": "se.conv_expand",
}  # fmt: skip
_PLAIN = {
    "conv2": "conv_dw", "norm2": "bn1", "conv3": "conv_pw", "norm3": "bn2",
    "squeeze": "se.conv_reduce", "excite": "se.conv_expand",
}  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """state: what can be loaded (`load_state_dict(state, strict=False)`), under our names.

    missing: our tensors that the source does not have; unused: the source's tensors that fit nowhere; mismatched: "ours: shape,
    theirs: shape" of those that are there but differ in shape (other classes, anchors, widths).
    """

    state: dict[str, Tensor]
    missing: list[str]
    unused: list[str]
    mismatched: list[str]


def convert_effdet(source: Mapping[str, Tensor], detector: Detector) -> Converted:
    """Renames the tensors of `source` for `detector` (which may be on the meta device); copies and changes nothing."""
    source = _without_wrapper(source)
    state, missing, mismatched, used = {}, [], [], set()
    network, modules = detector.network, detector.blocks
    blocks = {block.name: block for block in network.blocks if block.name in modules}
    for block, key, tensor in ((block, *item) for name, block in blocks.items() for item in modules[name].state_dict().items()):
        name = f"{block.name}.{key}"
        found = next((theirs for theirs in effdet_names(network, block, key) if theirs in source), None)
        if found is None:
            missing.append(name)
            continue
        used.add(found)
        if source[found].shape == tensor.shape:
            state[name] = source[found]
        else:
            mismatched.append(f"{name}: {list(tensor.shape)}, {found}: {list(source[found].shape)}")
    return Converted(state, missing, [name for name in source if name not in used], mismatched)


def effdet_names(network: Network, block: Block, key: str) -> list[str]:
    """Names under which effdet keeps tensor `key` of a block: one, two where versions differ, none where it has no such block."""
    layer, _, leaf = key.rpartition(".")
    match block.spec:
        case spec.SiluStem():
            own = "conv_stem" if layer == "conv1" else "bn1"
            return [f"{prefix}{own}.{leaf}" for prefix in ("backbone.", "")]
        case spec.MobileBlock():
            own = (_EXPANDING if block.spec.expansion != 1 else _PLAIN)[layer]
            stage, index = (int(part[5:]) - 1 for part in block.name.split(".")[1:])  # stage1.block1
            return [f"{prefix}blocks.{stage}.{index}.{own}.{leaf}" for prefix in ("backbone.", "")]
        case spec.CoarserLevel():
            return [f"fpn.resample.{_inputs(network).index(block.name)}.{_edge(layer)}.{leaf}"]
        case spec.FusionNode():
            return [_node(network, block, layer, leaf)]
        case spec.HeadTower():
            return _tower(block, layer, leaf)
    return []


def _without_wrapper(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that a training bench or DistributedDataParallel puts before every name, and without a bench's anchors."""
    source = {name: tensor for name, tensor in source.items() if not name.endswith("anchors.boxes")}
    for prefix in ("module.", "model."):
        if source and all(name.startswith(prefix) for name in source):
            source = {name.removeprefix(prefix): tensor for name, tensor in source.items()}
    return source


def _edge(layer: str) -> str:
    """`edge.conv` or `edge0.norm` -> `conv.conv`, `conv.bn`."""
    return "conv.conv" if layer.endswith(".conv") else "conv.bn"


def _inputs(network: Network) -> list[str]:
    """Values that the first BiFPN layer reads, from the finest level; effdet numbers them from 0."""
    blueprint = network.blueprint
    levels = blueprint.neck.levels_over(blueprint.backbone.maps)
    nodes = {block.name: block.uses[0].inputs for block in network.blocks if block.name.startswith("neck.layer1.")}
    first, last = levels[0], levels[-1]
    own = {level: nodes[f"neck.layer1.{'out' if level == first else 'td'}{level}"][0] for level in levels if level != last}
    return [*own.values(), nodes[f"neck.layer1.out{last}"][0]]


def _node(network: Network, block: Block, layer: str, leaf: str) -> str:
    prefix = block.name.rpartition(".")[0]  # neck.layer1
    names = [other.name for other in network.blocks if other.name.rpartition(".")[0] == prefix]
    node = f"fpn.cell.{int(prefix.removeprefix('neck.layer')) - 1}.fnode.{names.index(block.name)}"
    if layer.startswith("edge"):  # only in the first layer, whose ids are the levels, then the nodes in order
        value = block.uses[0].inputs[int(layer[4:].split(".")[0])]
        return f"{node}.combine.resample.{[*_inputs(network), *names].index(value)}.{_edge(layer)}.{leaf}"
    if not layer:
        return f"{node}.combine.edge_weights"
    own = {"depthwise": "conv_dw", "conv": "conv_pw", "norm": "bn"}[layer]
    return f"{node}.after_combine.conv.{own}.{leaf}"


def _tower(block: Block, layer: str, leaf: str) -> list[str]:
    net = "class_net" if block.spec.predicts == "classes" else "box_net"
    kind, index, *level = layer.split(".")
    if kind == "norms":  # by layer first, or by level first in models made for TorchScript
        return [f"{net}.bn_rep.{index}.{level[0]}.bn.{leaf}", f"{net}.bn_rep.{level[0]}.{index}.{leaf}"]
    own = "conv_dw" if kind == "depthwise" else "conv_pw"
    place = "predict" if int(index) == block.spec.repeats else f"conv_rep.{index}"
    return [f"{net}.{place}.{own}.{leaf}"]
