"""Our detectors and those of torchvision and effdet with the same weights, to compare what they compute."""

import re

import torch
import torch.nn as nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn

from fastnas.blueprint import PRESETS
from fastnas.models import build
from fastnas.models.convert import convert

RETINANET = {"head.classes.": "classification_head.", "head.boxes.": "regression_head."}


def as_torchvision(name: str, finest: int = 2) -> str:
    """Our parameter name -> torchvision's, for a ResNet-50 Faster R-CNN or RetinaNet with an FPN from level `finest`."""
    if name.startswith("backbone.stem."):
        return f"backbone.body.{name.removeprefix('backbone.stem.').replace('norm', 'bn')}"
    if name.startswith("backbone.stage"):
        _, stage, block, rest = name.split(".", 3)
        rest = rest.replace("downsample.conv", "downsample.0").replace("downsample.norm", "downsample.1").replace("norm", "bn")
        return f"backbone.body.layer{stage[5:]}.{int(block[5:]) - 1}.{rest}"
    if name.startswith("neck.p"):
        _, level, part, leaf = name.split(".")
        if finest == 3 and int(level[1:]) > 5:
            return f"backbone.fpn.extra_blocks.{level}.{leaf}"
        return f"backbone.fpn.{'inner' if part == 'lateral' else 'layer'}_blocks.{int(level[1:]) - finest}.0.{leaf}"
    for ours, theirs in RETINANET.items():
        if name.startswith(ours):
            last = "cls_logits" if "classes" in ours else "bbox_reg"
            rest = re.sub(r"convs\.(\d+)", r"conv.\1.0", name.removeprefix(ours)).replace("predictor", last)
            return f"head.{theirs}{rest}"
    if name.startswith("rpn.head.conv."):
        return name.replace("rpn.head.conv.", "rpn.head.conv.0.0.")
    if name.startswith("head.box.fc"):
        return name.replace("head.box.", "roi_heads.box_head.")
    return name.replace("head.box.", "roi_heads.box_predictor.") if name.startswith("head.") else name


def faster_rcnn_twins():
    """Ours and torchvision's Faster R-CNN R50-FPN with the same weights, at 192x256."""
    torch.manual_seed(0)
    peer = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=192, max_size=256)
    for module in peer.modules():  # statistics of real activations, so that nothing saturates
        if hasattr(module, "running_var"):
            module.momentum = None
    with torch.no_grad():
        peer.backbone.train()(torch.randn(2, 3, 192, 256))
    torch.nn.init.normal_(peer.roi_heads.box_predictor.cls_score.weight, std=0.05)
    torch.nn.init.normal_(peer.roi_heads.box_predictor.bbox_pred.weight, std=0.02)
    torch.nn.init.normal_(peer.rpn.head.cls_logits.weight, std=0.02)
    ours = build(PRESETS["fasterrcnn-r50-fpn"].replace(input=(192, 256)))
    theirs = peer.state_dict()
    ours.load_state_dict({name: theirs.get(as_torchvision(name), torch.zeros((), dtype=torch.int64)) for name in ours.state_dict()})
    return ours, peer


def retinanet_twins():
    """Ours and torchvision's RetinaNet R50-FPN with the same weights, at 192x256. Output 0, the background, is never high."""
    torch.manual_seed(0)
    peer = retinanet_resnet50_fpn(weights=None, weights_backbone=None, min_size=192, max_size=256)
    for module in peer.modules():
        if hasattr(module, "running_var"):
            module.momentum = None
    mean, std = (torch.tensor(values)[:, None, None] for values in (peer.transform.image_mean, peer.transform.image_std))
    images = (torch.rand(2, 3, 192, 256) - mean) / std  # as the tests' own, or activations grow from layer to layer
    with torch.no_grad():
        peer.backbone.train()(images)
    for head in (peer.head.classification_head, peer.head.regression_head):
        for layer in head.conv:
            torch.nn.init.kaiming_normal_(layer[0].weight)
    classes, boxes = peer.head.classification_head.cls_logits, peer.head.regression_head.bbox_reg
    torch.nn.init.zeros_(classes.bias)
    with torch.no_grad():
        outputs = peer.head(list(peer.backbone.eval()(images).values()))
        classes.weight *= 1.2 / outputs["cls_logits"].std()
        boxes.weight *= 0.2 / outputs["bbox_regression"].std()
        classes.bias -= 5
        classes.bias[::91] = -100
    ours = build(PRESETS["retinanet-r50-fpn"].replace(input=(192, 256)))
    theirs, batches = peer.state_dict(), torch.zeros((), dtype=torch.int64)
    ours.load_state_dict({name: theirs.get(as_torchvision(name, 3), batches) for name in ours.state_dict()})
    return ours, peer


def efficientdet_twins(name: str, size: tuple[int, int], classes: int = 90):
    """Ours and effdet's EfficientDet with the same weights. name: effdet's, e.g. tf_efficientdet_d0."""
    import effdet

    torch.manual_seed(0)
    config = effdet.get_efficientdet_config(name)
    config.image_size, config.num_classes = size, classes
    peer = effdet.EfficientDet(config, pretrained_backbone=False)
    calibrate(peer, size)
    published = PRESETS[name.removeprefix("tf_").replace("_", "-")]
    ours = build(published.replace(input=size, classes=classes))
    done = convert(peer.state_dict(), ours)
    assert not (done.left or done.unused)
    ours.load_state_dict(done.state)
    return ours.eval(), peer.eval()


@torch.no_grad()
def calibrate(model: nn.Module, size: tuple[int, int]) -> None:
    """Statistics of real activations, so that nothing saturates; fusion weights and predictors that differ from one another."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)
    for key, parameter in model.named_parameters():
        if "edge_weights" in key:
            nn.init.uniform_(parameter, -0.2, 1.5)
        if "predict.conv_pw.weight" in key:
            parameter *= 4
    model.train()(torch.randn(2, 3, *size))
    model.eval()
