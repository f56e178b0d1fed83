"""EfficientDet: the neighbourhood of compound scaling (Tan, Pang & Le, CVPR 2020, section 4 and table 1).

Input size, backbone, BiFPN's channels and layers, the head's depth and the levels are scaled together in the paper, by one number.
Here they may move one by one as well: the published models are the diagonal of this space.
"""

from dataclasses import dataclass

from fastnas.blueprint import Bifpn, Blueprint, EffdetHead, EfficientNet
from fastnas.errors import InputError
from fastnas.spaces.factored import Axis, FactoredSpace
from fastnas.spaces.rules import OPERATIONS, PROBABILITY, STRICT, check, check_choices


@dataclass(frozen=True)
class CompoundRules:
    """The choices, from small to large, and how mutations move. p_compound: of moving all of them one step at once."""

    inputs: tuple[int, ...] = (512, 640, 768, 896, 1024, 1280, 1408, 1536)  # side of the square image
    variants: tuple[str, ...] = ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7")
    channels: tuple[int, ...] = (64, 88, 112, 160, 224, 288, 384)
    layers: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    repeats: tuple[int, ...] = (3, 4, 5)
    levels: tuple[str, ...] = ("3-7", "3-8")
    p_compound: float = 0.2
    p_cross: float = 0.2
    operations: int = 1

    __pydantic_config__ = STRICT

    def __post_init__(self):
        check(self, p_compound=PROBABILITY, p_cross=PROBABILITY, operations=OPERATIONS)
        check_choices(self, "inputs", "variants", "channels", "layers", "repeats", "levels")


def efficientdet_space(ancestor: Blueprint, rules: CompoundRules) -> FactoredSpace:
    """All that the rules combine; whatever else a blueprint has is the ancestor's. Raises InputError."""
    wanted = (EfficientNet, Bifpn, EffdetHead)
    if tuple(map(type, (ancestor.backbone, ancestor.neck, ancestor.head))) != wanted:
        raise InputError(f"the ancestor {ancestor.text} is no EfficientDet (HEIGHTxWIDTH/efficientnet:.../bifpn:.../effdet:...)")
    axes = (
        Axis("input", "", tuple((side, side) for side in rules.inputs)),
        Axis("backbone", "variant", rules.variants),
        Axis("neck", "channels", rules.channels),
        Axis("neck", "levels", rules.levels),
        Axis("neck", "repeats", rules.layers),
        Axis("head", "repeats", rules.repeats),
    )
    return FactoredSpace("efficientdet", ancestor, axes, _remembered, rules.p_compound, rules.p_cross, rules.operations)


def _remembered(values: tuple) -> tuple:
    """Of (input, variant, channels, levels, layers, repeats): the first layer of the BiFPN is the last to see the backbone."""
    return values if len(values) < 4 else (values[0], *values[2:4])
