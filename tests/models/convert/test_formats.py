"""Checkpoints of every format compute in our modules what they compute in the program that made them."""

import effdet
import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from fastnas.blueprint import PRESETS, Blueprint, parse
from fastnas.errors import InputError
from fastnas.models import build
from fastnas.models.convert import FORMATS, convert, find_format
from fastnas.models.convert.torchvision_resnet import told_backbone
from fastnas.models.pixels import MEAN, STD
from tests.twins import calibrate

SIZE = (64, 96)


def made(model: nn.Module) -> nn.Module:
    """With statistics of real activations, and an eps that would be seen if it were another."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
    calibrate(model, SIZE)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var *= 1e-3
            module.weight.data *= 1e-3**0.5
    return model


def converted(source, blueprint: Blueprint) -> nn.Module:
    detector = build(blueprint)
    done = convert(source, detector).check_backbone()
    detector.load_state_dict(done.state, strict=False)
    return detector.eval()


@torch.no_grad()
def backbone_maps(detector, images) -> list[torch.Tensor]:
    values = {"image": images}
    steps = [step for step in detector.network.steps if step[0].name.startswith("backbone.")]
    detector._run(steps, values)
    stages = {block.name.split(".")[1]: values[use.outputs[0]] for block, use in steps}
    return [value for stage, value in stages.items() if stage != "stem"]


def close(ours, theirs):
    assert theirs.std() > 1e-3, "the test compares too little"
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (torchvision.models.resnet18, "basic:11-21-21-21"),
        (lambda: timm.create_model("resnet18"), "basic:11-21-21-21"),
        (lambda: ResNet(Bottleneck, [1, 2, 1, 1]), "bottleneck:1-21-2-2"),
        (lambda: ResNet(Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4), "resnext32x4d:1-2-2-2"),
        pytest.param(torchvision.models.resnet34, "basic:111-2111-211111-211", marks=pytest.mark.slow),
        pytest.param(torchvision.models.resnet50, "bottleneck:111-2111-211111-211", marks=pytest.mark.slow),
        pytest.param(torchvision.models.resnet101, f"bottleneck:111-2111-2{'1' * 22}-211", marks=pytest.mark.slow),
        pytest.param(torchvision.models.resnext50_32x4d, "resnext32x4d:111-2111-211111-211", marks=pytest.mark.slow),
    ],
)
def test_resnets(make, kind):
    torch.manual_seed(0)
    peer = made(make())
    blueprint = find_format(peer.state_dict()).blueprint(peer.state_dict())
    assert blueprint.text.split("/")[1] == kind
    ours, images = converted(peer.state_dict(), blueprint.replace(input=SIZE)), torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        x = (peer.maxpool(peer.relu(peer.bn1(peer.conv1(images)))) if hasattr(peer, "relu")
             else peer.maxpool(peer.act1(peer.bn1(peer.conv1(images)))))  # fmt: skip
        for ours_map, layer in zip(backbone_maps(ours, images), (peer.layer1, peer.layer2, peer.layer3, peer.layer4), strict=True):
            x = layer(x)
            close(ours_map, x)


@pytest.mark.parametrize("variant", ["b0", pytest.param("b5", marks=pytest.mark.slow)])
def test_torchvisions_efficientnets(variant):
    torch.manual_seed(0)
    peer = made(getattr(torchvision.models, f"efficientnet_{variant}")())
    blueprint = find_format(peer.state_dict()).blueprint(peer.state_dict())
    assert blueprint.backbone.variant == variant and blueprint.backbone.padding == "symmetric"
    ours, images = converted(peer.state_dict(), blueprint.replace(input=SIZE)), torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        x = peer.features[0](images)
        for ours_map, stage in zip(backbone_maps(ours, images), peer.features[1:8], strict=True):
            x = stage(x)
            close(ours_map, x)


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("tf_efficientnet_b0", "b0"), ("efficientnet_b0", "b0,padding=symmetric,norm=torch")],
)
def test_timms_efficientnets_need_a_blueprint(name, backbone):
    torch.manual_seed(0)
    peer = made(timm.create_model(name))
    with pytest.raises(InputError, match="how it pads: name its blueprint"):
        find_format(peer.state_dict()).blueprint(peer.state_dict())
    ours = converted(peer.state_dict(), parse(f"64x96/efficientnet:{backbone}/bifpn:64/effdet:3/classes:3"))
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        x = peer.bn1(peer.conv_stem(images))
        for ours_map, stage in zip(backbone_maps(ours, images), peer.blocks, strict=True):
            x = stage(x)
            close(ours_map, x)


def faster_rcnn(norm=nn.BatchNorm2d) -> FasterRCNN:
    torch.manual_seed(0)
    body = ResNet(Bottleneck, [1, 1, 1, 1], norm_layer=norm)
    if norm is nn.BatchNorm2d:
        made(body)
    peer = FasterRCNN(_resnet_fpn_extractor(body, 5), num_classes=5, min_size=64, max_size=96)
    for name, layer in peer.named_modules():  # scores that differ, boxes that move
        if name.endswith(("cls_score", "bbox_pred", "cls_logits")):
            nn.init.normal_(layer.weight, std=0.05 if name.endswith("cls_score") else 0.02)
    return peer.eval()


@torch.no_grad()
def test_faster_rcnn_detects_the_same():
    peer = faster_rcnn()
    blueprint = find_format(peer.state_dict()).blueprint(peer.state_dict())
    assert blueprint.text == "800x1333/bottleneck:1-2-2-2/fpn:256/rpn:1000/rcnn:1024/classes:4"
    done = convert(peer.state_dict(), ours := build(blueprint.replace(input=SIZE)).eval())
    assert done.complete and not done.unused and not done.rescaled
    ours.load_state_dict(done.state)
    images = torch.rand(2, 3, *SIZE)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    found = ours((images - mean) / std)
    for own, other in zip(found, peer(list(images)), strict=True):
        assert len(other["scores"]) > 20
        torch.testing.assert_close(own["scores"], other["scores"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(own["boxes"], other["boxes"], rtol=1e-3, atol=1e-2)
        assert torch.equal(own["labels"], other["labels"])


@torch.no_grad()
def test_retinanet_computes_the_same_maps():
    """What is selected from them is compared in test_retinanet."""
    torch.manual_seed(0)
    body = made(ResNet(BasicBlock, [1, 1, 1, 1]))
    pyramid = _resnet_fpn_extractor(body, 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    peer = RetinaNet(pyramid, num_classes=4).eval()
    heads = peer.head.classification_head, peer.head.regression_head
    for layer in (*heads[0].conv, *heads[1].conv):
        nn.init.kaiming_normal_(layer[0].weight)
    for layer in (heads[0].cls_logits, heads[1].bbox_reg):  # so that the coarsest level differs from the bias
        nn.init.normal_(layer.weight, std=1.0)
    blueprint = find_format(peer.state_dict()).blueprint(peer.state_dict())
    assert blueprint.text == "800x1333/basic:1-2-2-2/fpn:256,levels=3-7,extra=conv-p/retinanet:4,background=yes/classes:3"
    done = convert(peer.state_dict(), ours := build(blueprint.replace(input=SIZE)).eval())
    assert done.complete and not done.unused and not done.rescaled
    ours.load_state_dict(done.state)
    images = torch.randn(1, 3, *SIZE)
    values = ours.dense(images)
    for level, feature in enumerate(peer.backbone(images).values(), 3):
        close(values[f"neck.p{level}"], feature)
        close(values[f"head.classes{level}"], heads[0].cls_logits(heads[0].conv(feature)))
        close(values[f"head.boxes{level}"], heads[1].bbox_reg(heads[1].conv(feature)))


@torch.no_grad()
def test_files_from_before_torchvision_0_13():
    """Other names, frozen batch norms, and an eps of 0: what its published COCO weights are."""
    peer = faster_rcnn(FrozenBatchNorm2d)
    overwrite_eps(peer, 0.0)
    for module in peer.modules():
        if isinstance(module, FrozenBatchNorm2d):  # variances that an eps of 1e-5 would change a lot
            module.running_var.uniform_(5e-7, 2e-5)
            module.weight.fill_(2e-3)
    old = {
        name.replace("blocks.0.0.", "blocks.0.").replace("blocks.1.0.", "blocks.1.").replace("blocks.2.0.", "blocks.2.")
        .replace("blocks.3.0.", "blocks.3.").replace("head.conv.0.0.", "head.conv."): tensor
        for name, tensor in peer.state_dict().items()
    }  # fmt: skip
    assert "backbone.fpn.inner_blocks.2.weight" in old and "rpn.head.conv.weight" in old
    blueprint = find_format(old).blueprint(old).replace(input=SIZE)
    done = convert(old, ours := build(blueprint).eval())
    assert done.complete and not done.unused and done.rescaled == 17
    ours.load_state_dict(done.state)
    images = torch.randn(1, 3, *SIZE)
    for name, value in peer.backbone(images).items():
        level = 6 if name == "pool" else int(name) + 2
        close(ours.dense(images)[f"neck.p{level}"], value)
    plain = convert(old, ours, eps=1e-5)
    assert not plain.rescaled, "what --norm-eps is for"


@pytest.mark.parametrize("name", [f"efficientdet-{size}" for size in ("d0", "d4", "d6", "d7x")])
def test_published_efficientdets_are_told(name):
    preset = PRESETS[name]
    with torch.device("meta"):
        config = effdet.get_efficientdet_config(f"tf_{name.replace('-', '_')}")
        config.num_classes = 7
        source = effdet.EfficientDet(config, pretrained_backbone=False).state_dict()
    if name == "efficientdet-d6":
        with pytest.raises(InputError, match="efficientdet-d6 and efficientdet-d7: name its blueprint"):
            find_format(source).blueprint(source)
    else:
        assert find_format(source).blueprint(source) == preset.replace(classes=7)


def test_effdets_own_models_pad_symmetrically():
    with torch.device("meta"):
        source = effdet.EfficientDet(effdet.get_efficientdet_config("efficientdet_d1"), pretrained_backbone=False).state_dict()
    told = find_format(source).blueprint(source)
    text = "640x640/efficientnet:b1,padding=symmetric,norm=torch/bifpn:88,repeats=4,padding=symmetric,bias=no/effdet:3,bias=no"
    assert told.text == f"{text}/classes:90"


def test_resnets_that_have_no_code_are_refused():
    with torch.device("meta"):
        wide, many = torchvision.models.wide_resnet50_2().state_dict(), torchvision.models.resnext101_64x4d().state_dict()
        with pytest.raises(InputError, match="64 groups"):
            told_backbone(many)
        detector = build(parse(find_format(wide).blueprint(wide).text))
    with pytest.raises(InputError, match="only 110 of the 318 tensors of the backbone"):
        convert(wide, detector).check_backbone()


def test_a_file_of_another_program_names_the_formats():
    with pytest.raises(InputError, match=r"tensors named a.weight, ... belong to no format") as caught:
        find_format({"a.weight": torch.zeros(1)})
    assert all(known.name in str(caught.value) for known in FORMATS)


def test_basic_blocks_are_told_from_bottlenecks():
    with torch.device("meta"):
        source = ResNet(BasicBlock, [1, 1, 3, 1]).state_dict()
    assert told_backbone(source).code == "1-2-211-2" and told_backbone(source).block == "basic"
