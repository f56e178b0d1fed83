"""Anchors are torchvision's."""

import numpy as np
import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from fastnas.models.anchors import level_anchors

RATIOS = (0.5, 1.0, 2.0)


@pytest.mark.parametrize("size", [(240, 320), (97, 131), (800, 1333)])
@pytest.mark.parametrize(("scale", "sizes"), [(3, 1), (8, 1), (2, 5)])
def test_equal_to_torchvision(size, scale, sizes):
    strides = (4, 8, 16, 32, 64)
    maps = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]
    generator = AnchorGenerator([[scale * stride * 2**i for i in range(sizes)] for stride in strides], (RATIOS,) * len(strides))
    image = ImageList(torch.zeros(1, 3, *size), [size])
    expected = generator(image, [torch.zeros(1, 1, *hw) for hw in maps])[0].numpy()
    ours = [level_anchors(size, hw, stride, scale, RATIOS, sizes=sizes) for hw, stride in zip(maps, strides, strict=True)]
    assert all(level.dtype == np.float32 for level in ours)
    np.testing.assert_array_equal(np.concatenate(ours), expected)
