"""What happens to an image before the backbone sees it: the same in training, evaluation, prediction and exported files.

An image is RGB, 8 bits a channel, scaled to exactly the blueprint's input size (bilinear with antialias, width and height
independently: `fastnas.data.images.decode_rgb`), and then normalized: (pixel / 255 - MEAN) / STD. Imports no torch.
"""

import numpy as np

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, so that pretrained backbones fit
STD = (0.229, 0.224, 0.225)


def scale_and_shift() -> tuple[np.ndarray, np.ndarray]:
    """float32 (3, 1, 1) each: normalized = pixel (0 to 255) x scale + shift."""
    mean, std = np.array(MEAN), np.array(STD)
    return (1 / (255 * std)).astype(np.float32).reshape(3, 1, 1), (-mean / std).astype(np.float32).reshape(3, 1, 1)
