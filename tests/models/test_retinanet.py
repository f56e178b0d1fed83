"""RetinaNet: anchors and detections as torchvision's with the same weights."""

import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen

from fastnas.blueprint import PRESETS, expand
from fastnas.blueprint import blocks as b
from fastnas.models.anchors import head_anchors


@pytest.mark.parametrize("size", [(192, 256), (97, 131)])
def test_anchors_equal_torchvision(size):
    spec = expand(PRESETS["retinanet-r50-fpn"].replace(input=size)).spec(b.RetinaDetections)
    maps = [(-(-size[0] // 2**level), -(-size[1] // 2**level)) for level in range(3, 8)]
    images = ImageList(torch.zeros(1, 3, *size), [size])
    (peer,) = _default_anchorgen()(images, [torch.zeros(1, 1, *hw) for hw in maps])
    assert np.array_equal(np.concatenate(head_anchors(spec, maps)), peer.numpy())


def test_detections_equal_torchvision(retinanet_twins):
    ours, peer = (model.eval() for model in retinanet_twins)
    image = torch.rand(2, 3, 192, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = peer(list(image))
        mean, std = torch.tensor(peer.transform.image_mean), torch.tensor(peer.transform.image_std)
        found = ours((image - mean[:, None, None]) / std[:, None, None])
    for own, other in zip(found, expected, strict=True):
        assert len(set(other["labels"].tolist())) > 10 and other["scores"].std() > 0.01, "the test compares too little"
        torch.testing.assert_close(own["scores"], other["scores"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(own["boxes"], other["boxes"], rtol=1e-3, atol=1e-2)
        assert torch.equal(own["labels"], other["labels"])
