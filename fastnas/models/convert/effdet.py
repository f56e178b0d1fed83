"""The `effdet` package's EfficientDet, and timm's EfficientNet, which is its backbone and comes alone too.

`tf_efficientdet_d0` ... `d7x` have biases and padding as TensorFlow; `efficientdet_d0` ... have neither, which their names tell.
"""

from dataclasses import replace

from fastnas.blueprint import PRESETS, Blueprint, EffdetHead, EfficientNet, Network, expand
from fastnas.blueprint import blocks as spec
from fastnas.blueprint.wiring import Block
from fastnas.errors import InputError
from fastnas.models.convert.format import Format, Source, count, place, split

# A layer of ours -> theirs, in blocks with and without an expansion.
_EXPANDING = {
    "conv1": "conv_pw", "norm1": "bn1", "conv2": "conv_dw", "norm2": "bn2", "conv3": "conv_pwl", "norm3": "bn3",
    "squeeze": "se.conv_reduce", "excite": "se.conv_expand",
}  # fmt: skip
_PLAIN = {
    "conv2": "conv_dw", "norm2": "bn1", "conv3": "conv_pw", "norm3": "bn2",
    "squeeze": "se.conv_reduce", "excite": "se.conv_expand",
}  # fmt: skip


def effdet_names(network: Network, block: Block, key: str) -> list[str]:
    """See `Format.names`."""
    layer, leaf = split(key)
    match block.spec:
        case spec.SiluStem():
            own = "conv_stem" if layer == "conv1" else "bn1"
            return [f"{prefix}{own}.{leaf}" for prefix in ("backbone.", "")]
        case spec.MobileBlock():
            own = (_EXPANDING if block.spec.expansion != 1 else _PLAIN)[layer]
            stage, index = place(block)
            return [f"{prefix}blocks.{stage}.{index}.{own}.{leaf}" for prefix in ("backbone.", "")]
        case spec.CoarserLevel():
            return [f"fpn.resample.{_inputs(network).index(block.name)}.{_edge(layer)}.{leaf}"]
        case spec.FusionNode():
            return [_node(network, block, layer, leaf)]
        case spec.HeadTower():
            return _tower(block, layer, leaf)
    return []


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


def effdet_blueprint(source: Source) -> Blueprint:
    """The published detector of these widths and depths, for as many classes as there are. Raises InputError: none, or two."""
    if "class_net.predict.conv_pw.weight" not in source:
        raise InputError("an EfficientNet without a detector does not tell how it pads: name its blueprint (--blueprint)")
    biased = "fpn.cell.0.fnode.0.after_combine.conv.conv_pw.bias" in source
    classes = len(source["class_net.predict.conv_pw.weight"]) // 9  # nine anchors
    form = {"bias": "yes" if biased else "no"}
    padding = {"padding": "same" if biased else "symmetric"}
    fits = []
    for name, preset in PRESETS.items():
        if _published(preset) and _sizes(preset) == _told_sizes(source):
            backbone = replace(preset.backbone, **padding, norm="tf" if biased else "torch")
            neck, head = replace(preset.neck, **padding, **form), replace(preset.head, **form)
            fits.append((name, preset.replace(backbone=backbone, neck=neck, head=head, classes=classes)))
    if len(fits) != 1:
        which = " and ".join(name for name, _ in fits) or "no published EfficientDet"
        raise InputError(f"the checkpoint has the shape of {which}: name its blueprint (--blueprint)")
    return fits[0][1]


def _published(preset: Blueprint) -> bool:
    return isinstance(preset.backbone, EfficientNet) and isinstance(preset.head, EffdetHead)


def _sizes(preset: Blueprint) -> tuple:
    """What tells one published detector from another: blocks, channels, layers, head layers, levels, weights of a fusion."""
    network = expand(preset)
    blocks = sum(isinstance(block.spec, spec.MobileBlock) for block in network.blocks)
    levels = len(preset.neck.levels_over(preset.backbone.maps))
    return blocks, preset.neck.channels, preset.neck.repeats, preset.head.repeats, levels, preset.neck.method != "sum"


def _told_sizes(source: Source) -> tuple:
    stages = range(count(source, "backbone.blocks.{}.0.conv_dw.weight"))
    nodes = count(source, "fpn.cell.0.fnode.{}.after_combine.conv.conv_pw.weight")
    return (
        sum(count(source, f"backbone.blocks.{stage}.{{}}.conv_dw.weight") for stage in stages),
        source["fpn.cell.0.fnode.0.after_combine.conv.conv_pw.weight"].shape[0],
        count(source, "fpn.cell.{}.fnode.0.after_combine.conv.conv_pw.weight"),
        count(source, "class_net.conv_rep.{}.conv_pw.weight"),
        nodes // 2 + 1,
        "fpn.cell.0.fnode.0.combine.edge_weights" in source,
    )


MARK = "blocks.0.0.se.conv_reduce.weight"
EFFDET = Format("effdet EfficientDet", (f"backbone.{MARK}",), effdet_names, effdet_blueprint)
TIMM_EFFICIENTNET = Format("timm EfficientNet", (MARK,), effdet_names, effdet_blueprint)
