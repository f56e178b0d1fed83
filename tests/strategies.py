"""Hypothesis strategies shared by the tests: codes and blueprints of every kind, small enough to build."""

from hypothesis import strategies as st

from fastnas.blueprint import (
    Bifpn,
    Blueprint,
    C4Head,
    CascadeHead,
    EffdetHead,
    EfficientNet,
    Fpn,
    GuidedRpn,
    MobileNetV2,
    NoNeck,
    RetinaHead,
    RoiHead,
    Rpn,
    SerialBackbone,
)

SUPPRESSIONS = ["hard", "linear", "gaussian"]


@st.composite
def codes(draw, max_stages: int = 5, max_blocks: int = 3, max_doublings: int = 4) -> str:
    stages = draw(st.lists(st.text("12", min_size=1, max_size=max_blocks), min_size=1, max_size=max_stages))
    code = "-".join(stages)
    while code.count("2") > max_doublings:
        code = code.replace("2", "1", 1)
    return code


@st.composite
def serial_backbones(draw) -> SerialBackbone:
    block = draw(st.sampled_from(["basic", "bottleneck", "resnext32x4d", "xbottleneck"]))
    code = draw(codes())
    copies = st.lists(st.integers(0, 2).map(str), min_size=code.count("-") + 1, max_size=code.count("-") + 1)
    return SerialBackbone(
        block,
        code,
        draw(st.sampled_from([16, 32] if block == "resnext32x4d" else [8, 16, 24])),
        draw(st.sampled_from(["7x7", "3x3"])),
        draw(st.sampled_from(["bn", "gn", "gnws"])),
        draw(st.just("") | copies.map("-".join)),
        draw(st.sampled_from(["yes", "no"])),
        draw(st.sampled_from(["no", "yes"])),
    )


@st.composite
def efficientnets(draw) -> EfficientNet:
    first = draw(st.integers(1, 5))
    levels = f"{first}-{draw(st.integers(first, 5))}"
    variant = draw(st.sampled_from(["b0", "0.3x0.4", "0.25x1.1", "0.55x0.2"]))
    return EfficientNet(variant, levels, draw(st.sampled_from(["same", "symmetric"])), draw(st.sampled_from(["tf", "torch"])))


@st.composite
def mobilenets(draw) -> MobileNetV2:
    first = draw(st.integers(1, 5))
    return MobileNetV2(draw(st.sampled_from(["1", "0.25", "0.35"])), f"{first}-{draw(st.integers(first, 5))}")


@st.composite
def fpns(draw, maps: range) -> Fpn:
    first = draw(st.sampled_from(maps))
    return Fpn(
        draw(st.sampled_from([8, 16, 40])),
        draw(st.just("auto") | st.integers(first, min(first + 4, 9)).map(lambda last: f"{first}-{last}")),
        draw(st.sampled_from(["pool", "conv-p", "conv-c"])),
        draw(st.sampled_from(["none", "bn", "gn", "gnws"])),
    )


@st.composite
def bifpns(draw, maps: range) -> Bifpn:
    first = draw(st.sampled_from(maps))
    return Bifpn(
        draw(st.sampled_from([8, 16, 40])),  # 40 = C3 of b0: an edge that needs no projection
        draw(st.integers(1, 3)),
        f"{first}-{draw(st.integers(first + 1, min(first + 4, 9)))}",
        draw(st.sampled_from(["fast", "softmax", "sum"])),
        draw(st.sampled_from(["same", "symmetric"])),
        draw(st.sampled_from(["yes", "no"])),
    )


@st.composite
def effdet_heads(draw) -> EffdetHead:
    repeats = draw(st.integers(0, 3))
    return EffdetHead(
        repeats,
        draw(st.sampled_from([0, 8, 24])) if repeats else 0,
        draw(st.integers(1, 6)),
        draw(st.integers(1, 4)),
        draw(st.sampled_from(["yes", "no"])),
        draw(st.integers(1, 300)),
        draw(st.integers(1, 100)),
        draw(st.sampled_from(SUPPRESSIONS)),
    )


@st.composite
def c4s(draw, backbone) -> tuple[NoNeck, Rpn | GuidedRpn, C4Head]:
    """Of a backbone that goes on behind level 2."""
    level = draw(st.integers(max(2, backbone.maps[0]), backbone.maps[-1] - 1))
    options = st.integers(1, 100), st.sampled_from(SUPPRESSIONS), st.sampled_from(["standard", "high"])
    return NoNeck(level), draw(proposers()), draw(st.builds(C4Head, st.integers(1, 9), *options))


@st.composite
def retina_heads(draw) -> RetinaHead:
    return RetinaHead(
        draw(st.integers(0, 3)),
        draw(st.sampled_from(["none", "bn", "gn", "gnws"])),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 4)),
        draw(st.sampled_from(["yes", "no"])),
        draw(st.integers(1, 300)),
        draw(st.integers(1, 100)),
        draw(st.sampled_from(SUPPRESSIONS)),
    )


@st.composite
def region_heads(draw) -> RoiHead | CascadeHead:
    options = st.sampled_from([8, 32]), st.integers(1, 100), st.sampled_from(SUPPRESSIONS), st.sampled_from(["standard", "high"])
    return draw(st.builds(RoiHead, *options) | st.builds(CascadeHead, st.integers(2, 4), *options))


@st.composite
def proposers(draw) -> Rpn | GuidedRpn:
    options = st.integers(1, 50), st.integers(1, 16), st.integers(1, 100)
    return draw(st.builds(Rpn, *options, st.integers(1, 3)) | st.builds(GuidedRpn, *options))


@st.composite
def blueprints(draw) -> Blueprint:
    """Any backbone with any neck, any head with the proposals it needs."""
    backbone = draw(serial_backbones() | efficientnets() | mobilenets())
    neck = fpns(backbone.maps) | bifpns(backbone.maps) | st.sampled_from(backbone.maps).map(NoNeck)
    behind = st.tuples(neck, proposers(), region_heads()) | st.tuples(neck, st.none(), effdet_heads() | retina_heads())
    cuts = len(backbone.maps) > 1 and backbone.maps[-1] > 2
    neck, rpn, head = draw(behind | c4s(backbone) if cuts else behind)
    sides = st.integers(33, 150)
    return Blueprint((draw(sides), draw(sides)), backbone, neck, rpn, head, classes=draw(st.integers(1, 20)))
