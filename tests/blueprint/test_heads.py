"""Heads and proposals: parameters against counts of others, the published numbers of their stages, and what may be written."""

import pytest

from fastnas.blueprint import PRESETS, BlueprintError, CascadeHead, GuidedRpn, RetinaHead, RoiHead, expand, parse
from fastnas.blueprint import blocks as b


@pytest.mark.parametrize(("stages", "params"), [(2, 55_411_961), (3, 69_394_766), (4, 83_377_571)])
def test_parameters_of_cascades(stages, params):
    """From an independent count: ResNet-50 with FPN, 80 classes, every weight trainable."""
    blueprint = PRESETS["cascade-r50-fpn"]
    assert expand(blueprint.replace(head=CascadeHead(stages))).params == params


def test_guided_anchoring_counts_what_mmdetection_has():
    assert b.GuidedHead(256).params() == 1_182_104 and b.RpnHead(256, 3).params() == 593_935
    plain = PRESETS["cascade-r50-fpn"]
    guided = plain.replace(rpn=GuidedRpn())
    assert expand(guided).params - expand(plain).params == 1_182_104 - 593_935


def test_retinanet_counts_what_torchvision_has():
    # torchvision's retinanet_resnet50_fpn with 91 outputs and trainable batch norm
    assert expand(PRESETS["retinanet-r50-fpn"]).params == 34_068_119
    coco = PRESETS["retinanet-r50-fpn"].replace(head=RetinaHead(4), classes=80)
    assert expand(coco).params == 33_839_924, "as published for 80 classes"


def test_batch_norms_of_a_tower_are_counted_once_a_level():
    params = [b.ConvTower("boxes", 64, 2, 36, 5, norm).params() for norm in ("none", "gn", "bn")]
    assert params[1] - params[0] == 2 * 64 and params[2] - params[1] == 2 * 2 * 64 * 4


def test_stages_of_a_cascade_are_the_published_ones():
    stages = CascadeHead(4).training
    assert [stage.iou for stage in stages] == [0.5, 0.6, 0.7, 0.75]
    deviations = [(round(1 / x, 6), round(1 / size, 6)) for x, size in (stage.weights for stage in stages)]
    assert deviations == [(0.1, 0.2), (0.05, 0.1), (0.033, 0.067), (0.025, 0.05)]
    assert [stage.loss for stage in stages] == [1, 0.5, 0.25, 0.125]
    tight = CascadeHead(3, quality="high").training
    assert [stage.iou for stage in tight] == [0.6, 0.7, 0.75]
    assert tight[0].weights == pytest.approx((1 / 0.075, 1 / 0.15))
    assert RoiHead(quality="high").training[0].weights == (20, 10)


def test_every_stage_is_wired_to_the_boxes_of_the_one_before():
    network = expand(parse("64x64/basic:1-1/fpn:16/rpn:10/cascade:3,hidden=32/classes:2"))
    inputs = {block.name: block.uses[0].inputs for block in network.blocks}
    assert [inputs[f"head.stage{stage}.pool"][-1] for stage in (1, 2, 3)] == [
        "proposals", "head.stage1.refine", "head.stage2.refine",
    ]  # fmt: skip
    assert inputs["head.stage2.refine"] == ("head.stage1.refine", "head.stage2.deltas")
    logits = tuple(f"head.stage{stage}.logits" for stage in (1, 2, 3))
    assert inputs["head.detections"] == ("head.stage2.refine", *logits, "head.stage3.deltas")
    refine = network.spec(b.Refine)
    assert refine.input == (64, 64) and refine.weights == (10, 5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rpn:10/cascade:1", "from 2 to 4"),
        ("rpn:10/cascade:5", "from 2 to 4"),
        ("rpn:10/cascade:3,suppression=soft", "»s«oft"),
        ("rpn:10/rcnn:16,quality=low", "»l«ow"),
        ("cascade:3", "works on proposals"),
    ],
)
def test_errors_say_what_is_wrong(text, says):
    with pytest.raises(BlueprintError) as caught:
        parse(f"64x64/basic:1-1/fpn:16/{text}/classes:2")
    assert says in str(caught.value) and "\n" not in str(caught.value)
