"""Blueprint -> detector."""

from fastnas.blueprint import Blueprint, expand
from fastnas.models.detector import Detector
from fastnas.models.one_stage import OneStageDetector
from fastnas.models.two_stage import TwoStageDetector


def build(blueprint: Blueprint) -> Detector:
    """The detector of a blueprint with fresh weights (use `torch.device("meta")` as context for none)."""
    form = OneStageDetector if blueprint.rpn is None else TwoStageDetector
    return form(expand(blueprint))
