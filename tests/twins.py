"""Our Faster R-CNN and torchvision's with the same weights, to compare what they compute."""

import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from fastnas.blueprint import PRESETS
from fastnas.models import build


def as_torchvision(name: str) -> str:
    """Our parameter name -> torchvision's, for a ResNet-50 Faster R-CNN with FPN."""
    if name.startswith("backbone.stem."):
        return f"backbone.body.{name.removeprefix('backbone.stem.').replace('norm', 'bn')}"
    if name.startswith("backbone.stage"):
        _, stage, block, rest = name.split(".", 3)
        rest = rest.replace("downsample.conv", "downsample.0").replace("downsample.norm", "downsample.1").replace("norm", "bn")
        return f"backbone.body.layer{stage[5:]}.{int(block[5:]) - 1}.{rest}"
    if name.startswith("neck.p"):
        _, level, part, leaf = name.split(".")
        return f"backbone.fpn.{'inner' if part == 'lateral' else 'layer'}_blocks.{int(level[1:]) - 2}.0.{leaf}"
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
