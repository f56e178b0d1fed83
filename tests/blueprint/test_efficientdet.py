"""EfficientDet's presets: parameters to the last digit of the published counts, and the scaling rules of its parts."""

import dataclasses

import pytest

from fastnas.blueprint import PRESETS, BlueprintError, EfficientNet, expand, parse
from fastnas.blueprint import blocks as b

# The authors' unit test pins the parameters of D0 to D7 (90 classes, biases before batch norm kept); D7x and the plain form are
# from an independent count that reproduces those. GMACs are of the convolutions alone, from the same count.
PUBLISHED = {
    "d0": (3_880_067, 3_877_763, 2.492, (3_595_388, 196_281, 69_354, 19_044)),
    "d1": (6_625_898, 6_622_026, 6.003, (6_101_024, 390_972, 101_394, 32_508)),
    "d2": (8_097_039, 8_091_215, 10.832, (7_202_562, 708_159, 136_890, 49_428)),
    "d3": (12_032_296, 12_022_376, 24.569, (10_103_336, 1_559_474, 247_050, 122_436)),
    "d4": (20_723_675, 20_707_995, 54.584, (16_742_216, 3_349_829, 402_890, 228_740)),
    "d5": (33_653_315, 33_633_155, 134.134, (27_288_112, 5_405_893, 591_498, 367_812)),
    "d6": (51_871_782, 51_841_062, 224.121, (39_403_992, 10_583_808, 1_090_986, 792_996)),
    "d7": (51_871_782, 51_841_062, 322.732, (39_403_992, 10_583_808, 1_090_986, 792_996)),
    "d7x": (77_147_166, 77_110_302, 407.628, (62_143_440, 13_112_064, 1_094_826, 796_836)),
}
ANCHORS = {"d0": 49_104, "d1": 76_725, "d2": 110_484, "d3": 150_381, "d4": 196_416, "d5": 306_900, "d7": 441_936, "d7x": 442_260}


def plain(blueprint):
    """Without the biases before batch norm, which have no effect."""
    neck, head = (dataclasses.replace(part, bias="no") for part in (blueprint.neck, blueprint.head))
    return blueprint.replace(neck=neck, head=head)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name):
    params, without_bias, gmacs, by_part = PUBLISHED[name]
    blueprint = PRESETS[f"efficientdet-{name}"]
    network = expand(blueprint)
    assert network.params == params and expand(plain(blueprint)).params == without_bias
    assert network.macs / 1e9 == pytest.approx(gmacs, abs=6e-4)
    prefixes = ("backbone.", "neck.", "head.classes", "head.boxes")
    assert by_part == tuple(sum(block.params for block in network.blocks if block.name.startswith(p)) for p in prefixes)


@pytest.mark.parametrize(("classes", "params"), [(80, 3_871_913), (20, 3_836_813), (1, 3_825_698)])
def test_parameters_with_other_classes(classes, params):
    assert expand(plain(PRESETS["efficientdet-d0"]).replace(classes=classes)).params == params


@pytest.mark.parametrize("name", ANCHORS)
def test_number_of_anchors(name):
    network = expand(PRESETS[f"efficientdet-{name}"])
    boxes = next(block for block in network.blocks if block.name == "head.boxes")
    assert sum(c // 4 * h * w for use in boxes.uses for _, c, h, w in use.output_shapes) == ANCHORS[name]


def test_the_wiring_of_one_layer_is_the_published_one():
    network = expand(parse("128x128/efficientnet:b0/bifpn:64,repeats=1/effdet:1/classes:1"))
    inputs = {block.name: block.uses[0].inputs for block in network.blocks if block.name.startswith("neck.layer1.")}
    c3, c4, c5 = (f"backbone.stage{stage}" for stage in ("3.block2", "5.block3", "7.block1"))
    node = "neck.layer1.{}".format
    assert inputs == {
        node("td6"): ("neck.p6", "neck.p7"),
        node("td5"): (c5, node("td6")),
        node("td4"): (c4, node("td5")),
        node("out3"): (c3, node("td4")),
        node("out4"): (c4, node("td4"), node("out3")),
        node("out5"): (c5, node("td5"), node("out4")),
        node("out6"): ("neck.p6", node("td6"), node("out5")),
        node("out7"): ("neck.p7", node("out6")),
    }


def test_towers_count_norms_once_a_level():
    spec = b.HeadTower("boxes", 64, 64, 3, 36, levels=5, bias="yes")
    assert spec.params() - dataclasses.replace(spec, levels=4).params() == 3 * 2 * 64
    assert spec.macs(((1, 64, 8, 8),)) == dataclasses.replace(spec, levels=4).macs(((1, 64, 8, 8),))


@pytest.mark.parametrize(
    ("variant", "c3", "c4", "c5", "params"),
    [
        ("b0", 40, 112, 320, 3_595_388), ("b1", 40, 112, 320, 6_101_024), ("b2", 48, 120, 352, 7_202_562),
        ("b3", 48, 136, 384, 10_103_336), ("b4", 56, 160, 448, 16_742_216), ("b5", 64, 176, 512, 27_288_112),
        ("b6", 72, 200, 576, 39_403_992), ("b7", 80, 224, 640, 62_143_440), ("1.1x1.2", 48, 120, 352, 7_202_562),
    ],
)  # fmt: skip
def test_backbones_scale_as_published(variant, c3, c4, c5, params):
    blueprint = PRESETS["efficientdet-d0"].replace(backbone=EfficientNet(variant))
    network = expand(blueprint)
    blocks = [block for block in network.blocks if block.name.startswith("backbone.")]
    assert sum(block.params for block in blocks) == params
    widths = {block.uses[0].output_shapes[0][2]: block.uses[0].output_shapes[0][1] for block in blocks}
    assert (widths[64], widths[32], widths[16]) == (c3, c4, c5)


def test_a_backbone_ends_with_its_last_level():
    network = expand(parse("64x64/efficientnet:b0,levels=2-4/bifpn:16,levels=2-5/effdet:1/classes:1"))
    assert [block.name for block in network.blocks if block.name.startswith("backbone.")][-1] == "backbone.stage5.block3"


@pytest.mark.parametrize("levels", ["0-5", "3-6", "5-3", "3", "33-5", 35, None])
def test_levels_must_be_a_range(levels):
    with pytest.raises(BlueprintError, match="efficientnet levels must be"):
        EfficientNet("b0", levels)
