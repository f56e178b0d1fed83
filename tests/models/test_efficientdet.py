"""EfficientDet: the same maps, anchors and detections as effdet's with the same weights; speed of building."""

import dataclasses
import time

import effdet
import numpy as np
import pytest
import torch

from fastnas.blueprint import PRESETS, parse
from fastnas.blueprint.parts.effdet import ASPECTS
from fastnas.models import build
from fastnas.models.anchors import cell_anchors
from fastnas.models.convert import convert
from tests.twins import calibrate, efficientdet_twins


def compare_maps(ours, peer, images):
    """In float64, where only a difference in meaning is larger than rounding, unless the images are float32.

    Rounding is that of a map's largest values (of the deepest networks here 1e5 and more): a small one is a difference of such.
    """
    ours, peer = ours.to(images.dtype), peer.to(images.dtype)
    rtol, least = (1e-4, 5e-4) if images.dtype == torch.float32 else (1e-9, 1e-9)
    with torch.no_grad():
        classes, boxes = peer(images)
        own_classes, own_boxes = ours.maps(ours.dense(images))
    for own, other in zip([*own_classes, *own_boxes], [*classes, *boxes], strict=True):
        assert own.shape == other.shape and other.std() > 0.05, "the test compares too little"
        atol = least if images.dtype == torch.float32 else max(least, 1e-12 * float(other.abs().max()))
        torch.testing.assert_close(own, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tf_efficientdet_d0", (512, 512)),
        ("tf_efficientdet_d0", (97, 131)),
        ("tf_efficientdet_d1", (128, 200)),
        pytest.param("tf_efficientdet_d4", (192, 128), marks=pytest.mark.slow),
        pytest.param("tf_efficientdet_d6", (128, 128), marks=pytest.mark.slow),
        pytest.param("tf_efficientdet_d7x", (256, 256), marks=pytest.mark.slow),
    ],
)
def test_maps_of_every_level_equal_effdet(name, size):
    large = max(size) > 300
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float32 if large else torch.float64)
    compare_maps(*efficientdet_twins(name, size), images)


def test_the_plain_form_equals_effdets_own_models():
    """Symmetric padding, no bias before batch norm, the backbone's batch norm as PyTorch's."""
    size = (97, 130)
    config = effdet.get_efficientdet_config("efficientdet_d0")
    config.image_size = size
    torch.manual_seed(0)
    peer = effdet.EfficientDet(config, pretrained_backbone=False)
    calibrate(peer, size)
    text = "97x130/efficientnet:b0,padding=symmetric,norm=torch/bifpn:64,padding=symmetric,bias=no/effdet:3,bias=no/classes:90"
    ours = build(parse(text)).eval()
    done = convert(peer.state_dict(), ours)
    assert not (done.left or done.unused)
    ours.load_state_dict(done.state)
    compare_maps(ours, peer, torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


@pytest.mark.parametrize("size", [(128, 128), (97, 131), (511, 513)])
@pytest.mark.parametrize("scale", [3, 4])
def test_anchors_equal_effdet(size, scale):
    from effdet.anchors import Anchors

    aspects = effdet.get_efficientdet_config("tf_efficientdet_d0").aspect_ratios
    assert ASPECTS == tuple(map(tuple, aspects))
    peer = Anchors(3, 7, 3, aspects, scale, size).boxes.numpy()[:, [1, 0, 3, 2]]
    maps = [(-(-size[0] // 2**level), -(-size[1] // 2**level)) for level in range(3, 8)]
    ours = [cell_anchors(size, hw, scale, 3, ASPECTS) for hw in maps]
    assert all(level.dtype == np.float32 for level in ours)
    np.testing.assert_allclose(np.concatenate(ours), peer, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("suppression", ["hard", "gaussian"])
def test_detections_equal_effdet(suppression):
    size, classes = (128, 192), 7
    ours, peer = efficientdet_twins("tf_efficientdet_d0", size, classes)
    towers, nets = (ours.blocks[name] for name in ("head.classes", "head.boxes")), (peer.class_net, peer.box_net)
    for tower, net, gain in zip(towers, nets, (0.1, 0.01), strict=True):  # scores that differ, most boxes inside
        tower.pointwise[-1].weight.data *= gain
        net.predict.conv_pw.weight.data *= gain
    bench = effdet.DetBenchPredict(peer)
    bench.soft_nms = suppression == "gaussian"
    ours.suppression = dataclasses.replace(ours.suppression, suppression=suppression)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        info = {"img_scale": torch.ones(2), "img_size": torch.tensor([size[::-1]] * 2).float()}
        expected = bench(images, info)
        found = ours(images)
    for own, other in zip(found, expected, strict=True):
        other = other[(other[:, 2:4] - other[:, :2] >= 1e-2).all(1)]  # effdet keeps boxes of which nothing is in the image
        count = len(other)
        assert 80 < count <= len(own["scores"]) and len(set(own["labels"].tolist())) > 3
        torch.testing.assert_close(own["scores"][:count], other[:, 4], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own["boxes"][:count], other[:, :4], rtol=1e-3, atol=2e-2)
        assert torch.equal(own["labels"][:count], other[:, 5].long())


def test_another_number_of_classes_is_reported_not_copied():
    _, peer = efficientdet_twins("tf_efficientdet_d0", (64, 64), 5)
    with torch.device("meta"):
        ours = build(PRESETS["efficientdet-d0"].replace(input=(64, 64), classes=6))
    wrapped = {f"model.{name}": tensor for name, tensor in peer.state_dict().items()} | {"model.extra": torch.zeros(1)}
    done = convert(wrapped, ours)
    assert list(done.left) == ["head.classes.pointwise.3.weight", "head.classes.pointwise.3.bias"]
    assert done.left["head.classes.pointwise.3.bias"] == "shape [54], in the checkpoint [45] (class_net.predict.conv_pw.bias)"
    assert done.unused == ["extra"]
    assert len(done.state) + 2 == len(ours.state_dict())


def test_other_forms_of_the_same_weights_are_read():
    """As saved by a training bench in DistributedDataParallel, with the head's norms by level first."""
    ours, peer = efficientdet_twins("tf_efficientdet_d0", (64, 64), 5)
    peer.toggle_head_bn_level_first()
    wrapped = {f"module.{name}": tensor for name, tensor in effdet.DetBenchTrain(peer).state_dict().items()}
    done = convert(wrapped, ours)
    assert not (done.left or done.unused)
    assert all(torch.equal(done.state[name], tensor) for name, tensor in ours.state_dict().items())


def test_a_backbone_alone_is_copied():
    _, peer = efficientdet_twins("tf_efficientdet_d0", (64, 64))
    ours = build(PRESETS["efficientdet-d0"].replace(input=(64, 64)))
    done = convert(peer.backbone.state_dict(), ours)
    assert not done.unused and all(name.startswith("backbone.") for name in done.state)
    assert not any(name.startswith("backbone.") for name in done.left)


@pytest.mark.parametrize(("name", "milliseconds"), [("d0", 50), ("d7x", 300)])
def test_building_without_weights_is_fast(name, milliseconds):
    best = float("inf")
    for _ in range(7):
        start = time.process_time()  # the machine may be busy
        with torch.device("meta"):
            build(PRESETS[f"efficientdet-{name}"])
        best = min(best, time.process_time() - start)
    assert best * 1e3 < milliseconds


def test_one_stage_detectors_run_at_any_size_and_with_any_neck():
    texts = [
        "75x101/efficientnet:0.25x0.4/bifpn:16/effdet:1,topk=50/classes:3",
        "64x64/basic:1-2-1,base=8,stem=3x3/fpn:16/effdet:2,channels=8/classes:1",
        "33x40/efficientnet:0.25x0.4,levels=4-5/bifpn:8,levels=4-8,method=softmax/effdet:0,octaves=1/classes:2",
    ]
    for text in texts:
        torch.manual_seed(0)
        blueprint = parse(text)
        found = build(blueprint).eval()(torch.randn(2, 3, *blueprint.input))
        assert len(found) == 2
        for image in found:
            boxes = image["boxes"]
            assert 0 < len(boxes) <= 100 and torch.isfinite(boxes).all()
            assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= blueprint.input[1]).all()
            assert (boxes[:, 3] <= blueprint.input[0]).all()
            assert set(image["labels"].tolist()) <= set(range(1, blueprint.classes + 1))
            assert (image["scores"].diff() <= 0).all()


def test_a_batch_of_no_images_gives_nothing():
    detector = build(parse("64x64/efficientnet:0.25x0.4/bifpn:16/effdet:1/classes:3")).eval()
    assert detector(torch.zeros(0, 3, 64, 64)) == []


def test_every_class_starts_unlikely():
    detector = build(PRESETS["efficientdet-d0"].replace(input=(64, 64)))
    bias = detector.blocks["head.classes"].pointwise[-1].bias
    torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.01))
    assert not detector.blocks["head.boxes"].pointwise[-1].bias.any()


def test_a_tower_at_one_level_computes_the_same():
    tower = build(PRESETS["efficientdet-d0"].replace(input=(64, 64))).eval().blocks["head.boxes"]
    for level, norm in enumerate(tower.norms[1]):
        torch.nn.init.constant_(norm.weight, 0.5 + level)
    x = torch.randn(1, 64, 8, 8)
    outputs = [tower.at(level)(x) for level in range(5)]
    assert all(torch.equal(output, tower(x, level)) for level, output in enumerate(outputs))
    assert not torch.equal(outputs[0], outputs[4])


def test_scores_below_the_floor_are_no_detections():
    detector = build(PRESETS["efficientdet-d0"].replace(input=(64, 64), classes=2)).eval()
    torch.nn.init.constant_(detector.blocks["head.classes"].pointwise[-1].bias, -50.0)
    (found,) = detector(torch.randn(1, 3, 64, 64))
    assert len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) == 0
