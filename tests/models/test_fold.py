"""The deployed form of a detector computes what the trainable one does, and leaves it alone."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastnas.blueprint import parse
from fastnas.export.check import check_images, compare, reference
from fastnas.models.fold import fold_batch_norms, folded
from fastnas.models.layers import BatchNormAct, Conv2d, SameConv2d, StandardizedConv2d
from fastnas.models.pixels import scale_and_shift
from fastnas.ops import WSConv2d
from tests.export.conftest import trained

TWO = "96x128/bottleneck:1-2-2,base=8,norm={}/fpn:16/rpn:40,scale=4/rcnn:32,detections=20/classes:3"
TEXTS = {
    "two-stage": TWO.format("bn"),
    "group norm": TWO.format("gn"),
    "standardised": "96x128/xbottleneck:1-2-2,base=32,norm=gnws/fpn:16/rpn:40,scale=4/rcnn:32,detections=20/classes:3",
    "norms in the neck": "96x128/basic:1-2-2,base=8,stem=3x3/fpn:16,norm=bn/rpn:40,scale=4/rcnn:32,detections=20/classes:3",
    "cascade": "96x128/basic:1-2-2,base=8/fpn:16/rpn:40,scale=4/cascade:2,hidden=32,detections=20/classes:3",
    "guided": "96x128/basic:1-2-1,base=8,stem=3x3/fpn:16/garpn:40,scale=8/rcnn:16,detections=20,quality=high/classes:3",
    "c4": "75x101/basic:11-21-21-21,base=64/none:4/rpn:20,scale=2,sizes=3/c4:14,detections=20/classes:3",
    "mobilenet": "75x101/mobilenetv2:0.25,levels=1-5/fpn:8/effdet:1,detections=20/classes:2",
    "parallel": "64x64/basic:1-2-1,base=8,parallel=0-2-1,tied=no/fpn:8/rpn:10/rcnn:8,detections=20/classes:2",
    "tied": "64x64/basic:1-2-1,base=8,parallel=0-2-1,tied=yes/fpn:8/rpn:10/rcnn:8,detections=20/classes:2",
    "efficientdet": "97x131/efficientnet:0.25x0.4/bifpn:16,repeats=2/effdet:2,detections=20/classes:3",
    "symmetric": "64x80/efficientnet:0.25x0.4,padding=symmetric/bifpn:16,repeats=1,levels=3-6/effdet:1,detections=20/classes:3",
    "retinanet": "64x96/basic:1-2-1,base=16/fpn:16,levels=3-5,extra=conv-p/retinanet:1,norm=bn,detections=20/classes:3",
}

def norms(module: nn.Module) -> set[str]:
    """Names of the batch norms."""
    return {name for name, child in module.named_modules() if isinstance(child, nn.BatchNorm2d)}


def normalized(images: Tensor) -> Tensor:
    scale, shift = map(torch.from_numpy, scale_and_shift())
    return images.float() * scale + shift


def error(maps: dict[str, np.ndarray], exact: dict[str, Tensor]) -> float:
    """The largest of a map, as a share of its largest value."""
    return max((np.abs(maps[name] - value.numpy()).max() / value.abs().max()).item() for name, value in exact.items())


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_it_detects_the_same(text):
    detector, images = trained(text).train(), check_images(parse(text), 2)
    before = copy.deepcopy(detector.state_dict())
    deployed = folded(detector)
    assert all(norm.startswith(("head.classes.norms", "head.boxes.norms")) for norm in norms(deployed)), "one for each level"
    assert not any(isinstance(layer, WSConv2d) for layer in deployed.modules())
    assert not any(module.training for module in deployed.modules())
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    assert all(module.training for module in detector.modules()) and all(p.requires_grad for p in detector.parameters())
    with torch.no_grad():
        exact = copy.deepcopy(detector).eval().double().dense(normalized(images).double())
    (maps, found), expected = reference(deployed, images, list(exact)), reference(detector.eval(), images, list(exact))
    assert error(maps, exact) < max(3 * error(expected[0], exact), 2e-6)
    check = compare(expected, maps, found, "fp32", kept=20)
    assert check.matched == check.detections > 0
    after = detector.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not {tensor.data_ptr() for tensor in deployed.state_dict().values()} & {t.data_ptr() for t in after.values()}


def test_what_is_trained_later_does_not_reach_it():
    text = TEXTS["two-stage"]
    detector, images = trained(text), normalized(check_images(parse(text), 2))
    deployed = folded(detector)
    expected = deployed.dense(images)
    sum(value.square().mean() for value in detector.train().dense(images).values()).backward()
    assert all(p.grad is not None for name, p in detector.named_parameters() if name.startswith("backbone."))
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter += 1
    assert all(torch.equal(value, expected[name]) for name, value in deployed.dense(images).items())


class Pair(nn.Module):
    def __init__(self, conv: nn.Conv2d, norm: nn.Module):
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x):
        return self.norm(self.conv(x))


def statistics(norm: nn.BatchNorm2d, deviation: float = 1.0) -> nn.BatchNorm2d:
    """Those of large means, which cancel."""
    for tensor, spread in ((norm.running_mean, 3.0), (norm.weight, 1.0), (norm.bias, 1.0)):
        if tensor is not None:
            nn.init.normal_(tensor, std=spread)
    nn.init.uniform_(norm.running_var, 0.2 * deviation**2, deviation**2)
    return norm.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_weights_are_rounded_once(dtype, affine, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, groups=2, bias=bias, dtype=dtype).to(memory_format=torch.channels_last)
    norm = statistics(nn.BatchNorm2d(8, eps=1e-3, affine=affine, dtype=dtype), deviation=1e-2)
    result = folded(Pair(conv, norm)).conv
    scale = (norm.weight.double() if affine else 1) / (norm.running_var.double() + norm.eps).sqrt()
    shift = (conv.bias.double() if bias else 0) - norm.running_mean.double()
    weight, shift = conv.weight.double() * scale[:, None, None, None], shift * scale + (norm.bias.double() if affine else 0)
    assert torch.equal(result.weight, weight.to(dtype)) and torch.equal(result.bias, shift.to(dtype))
    assert result.weight.stride() == conv.weight.stride() and result.groups == 2


def test_a_convolution_that_several_blocks_share_is_folded_for_each():
    torch.manual_seed(0)
    shared = Conv2d(4, 4, 3, padding=1, bias=False)
    nn.init.normal_(shared.weight)
    pairs = nn.Sequential(*(Pair(shared, statistics(BatchNormAct(4, "relu"))) for _ in range(2)), shared).eval()
    x, kept = torch.randn(1, 4, 6, 6), shared.weight.clone()
    with torch.no_grad():
        expected = pairs(x.clone())
        torch.testing.assert_close(folded(pairs)(x.clone()), expected, atol=1e-4, rtol=1e-4)
        inside = fold_batch_norms(pairs)
        torch.testing.assert_close(inside(x), expected, atol=1e-4, rtol=1e-4)
    assert not norms(inside) and inside[2] is shared and torch.equal(shared.weight, kept)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("conv", "norm", "folds"),
    [
        (SameConv2d(4, 4, 3, 2), nn.BatchNorm2d(4), True),
        (StandardizedConv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), True),
        (Doubled(4, 4, 3), nn.BatchNorm2d(4), False),
        (nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), False),
        (nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), False),
    ],
    ids=["same", "standardised", "its own forward", "no statistics", "group norm"],
)
def test_what_folds(conv, norm, folds):
    torch.manual_seed(0)
    nn.init.normal_(conv.weight)
    pair = Pair(conv, statistics(norm) if getattr(norm, "running_var", None) is not None else norm).eval()
    x = torch.randn(2, 4, 9, 9)
    deployed = folded(pair)
    with torch.no_grad():
        torch.testing.assert_close(deployed(x), pair(x), atol=1e-5, rtol=1e-5)
    assert isinstance(deployed.norm, nn.Identity) == folds


def test_under_autocast_no_weight_is_converted():
    """Of convolutions and linear layers; all others stay in float32, as in training."""
    text = TEXTS["standardised"]
    detector, images = trained(text), normalized(check_images(parse(text), 2))
    deployed = folded(detector, torch.bfloat16)
    types = {layer.weight.dtype for layer in deployed.modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    assert types == {torch.bfloat16}
    assert {layer.weight.dtype for layer in deployed.modules() if isinstance(layer, nn.GroupNorm)} <= {torch.float32}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, expected = deployed.dense(images), detector.dense(images)
    for name, value in expected.items():
        assert ours[name].dtype == value.dtype
        assert (ours[name] - value).abs().max() < 2**-5 * value.abs().max(), name
