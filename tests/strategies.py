"""Hypothesis strategies shared by the tests: codes and blueprints of every kind, small enough to build."""

from hypothesis import strategies as st

from fastnas.blueprint import Blueprint, Fpn, RoiHead, Rpn, SerialBackbone


@st.composite
def codes(draw, max_stages: int = 5, max_blocks: int = 3, max_doublings: int = 4) -> str:
    stages = draw(st.lists(st.text("12", min_size=1, max_size=max_blocks), min_size=1, max_size=max_stages))
    code = "-".join(stages)
    while code.count("2") > max_doublings:
        code = code.replace("2", "1", 1)
    return code


@st.composite
def blueprints(draw) -> Blueprint:
    block = draw(st.sampled_from(["basic", "bottleneck", "resnext32x4d"]))
    base = draw(st.sampled_from([16, 32] if block == "resnext32x4d" else [8, 16, 24]))
    stem, norm = draw(st.sampled_from(["7x7", "3x3"])), draw(st.sampled_from(["bn", "gn"]))
    backbone = SerialBackbone(block, draw(codes()), base, stem, norm)
    sides = st.integers(33, 150)
    return Blueprint(
        (draw(sides), draw(sides)),
        backbone,
        Fpn(draw(st.sampled_from([8, 16, 40]))),
        Rpn(draw(st.integers(1, 50)), draw(st.integers(1, 16)), draw(st.integers(1, 100))),
        RoiHead(draw(st.sampled_from([8, 32])), draw(st.integers(1, 100))),
        classes=draw(st.integers(1, 20)),
    )
