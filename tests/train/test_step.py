"""What happens around every training step: clipping, the guard on gradients, augmentation, memory format."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastnas.blueprint import parse
from fastnas.data.dataset import get_data
from fastnas.models import build
from fastnas.ops import WSConv2d
from fastnas.train import loop
from fastnas.train.config import Augmentation, TrainConfig
from fastnas.train.evaluate import detect, normalize
from fastnas.train.loop import Diverged, train

BLUEPRINT = parse("64x80/basic:1-2,base=8,stem=3x3/fpn:16/rpn:20,scale=4,topk=50/rcnn:16/classes:3")
STEP = 1 / 3  # epochs: 24 images in batches of 8


@pytest.fixture(scope="module")
def data(shapes):
    return get_data(shapes, "train", (64, 80))


def fresh():
    torch.manual_seed(0)
    return build(BLUEPRINT)


def gradient_norms(data, monkeypatch, clip):
    """Norm of all gradients at every step of the optimizer."""
    norms, make = [], loop.make_optimizer

    def watched(detector, config):
        optimizer = make(detector, config)

        def note(*_):
            norms.append(torch.stack([p.grad.norm() for p in detector.parameters() if p.grad is not None]).norm().item())

        optimizer.register_step_pre_hook(note)
        return optimizer

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_optimizer", watched)
        train(fresh(), data, TrainConfig(clip=clip), 2 * STEP, 0)
    return norms


def test_gradients_are_clipped_to_the_norm_of_the_config(data, monkeypatch):
    free, clipped = (gradient_norms(data, monkeypatch, clip) for clip in (1e9, 0.05))
    assert len(free) == len(clipped) == 2
    assert min(free) > 0.1, "nothing to clip: the test compares nothing"
    assert clipped == pytest.approx([0.05] * 2, rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_ends_training_before_the_step(data, value):
    detector = fresh()
    weight = detector.get_submodule("backbone.stem").conv1.weight
    weight.register_hook(lambda gradient: gradient * 0 + value)
    with pytest.raises(Diverged, match="gradient norm is (nan|inf) at epoch 0.00"):
        train(detector, data, TrainConfig(), STEP, 0)
    assert all(torch.isfinite(p).all() for p in detector.parameters())


def recorded_steps(data, monkeypatch, config, epochs):
    """(images, targets, are all convolution weights channels-last?) of every step."""
    steps, real = [], loop.detection_losses

    def spy(detector, images, targets, *rest):
        weights = [p for p in detector.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
        assert weights
        steps.append((images, targets, all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)))
        return real(detector, images, targets, *rest)

    monkeypatch.setattr(loop, "detection_losses", spy)
    train(fresh(), data, config, epochs, 0)
    return steps


def test_images_and_boxes_are_changed_as_the_config_says(data, monkeypatch):
    steps = recorded_steps(data, monkeypatch, TrainConfig(augment=Augmentation(horizontal_flip=1.0)), 1)
    plain = [pair for batch in data.batches(8) for pair in zip(normalize(batch.images), batch.targets, strict=True)]
    seen = [pair for images, targets, _ in steps for pair in zip(images, targets, strict=True)]
    assert len(seen) == len(plain) == 24
    for image, target in seen:
        (original,) = [t for i, t in plain if torch.equal(i.flip(2), image)]
        x1, y1, x2, y2 = original.boxes.T
        torch.testing.assert_close(target.boxes, torch.stack([80 - x2, y1, 80 - x1, y2], 1))


def test_images_and_weights_are_channels_last(data, monkeypatch):
    ((images, _, weights_are),) = recorded_steps(data, monkeypatch, TrainConfig(), STEP)
    assert weights_are and images.is_contiguous(memory_format=torch.channels_last)
    rows = torch.zeros(2, 3, 64, 80, dtype=torch.uint8)
    assert normalize(rows).is_contiguous(memory_format=torch.channels_last), "whatever the layout of the images"


def test_weights_are_standardised_once_a_step_and_once_an_evaluation(data, monkeypatch):
    """In a step in one call for all layers of the model: a layer that did it for itself would be counted."""
    torch.manual_seed(0)
    detector = build(parse(BLUEPRINT.text.replace("base=8", "base=8,norm=gnws")))
    layers = sum(isinstance(module, WSConv2d) for module in detector.modules())
    assert layers > 3, "nothing to standardise: the test compares nothing"
    calls = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), options=None):
            if "standardize_weights" in operator.name():
                calls.append((operator.name().removeprefix("fastnas::standardize_weights"), len(arguments[0])))
            return operator(*arguments, **(options or {}))

    with Watch():
        averaged = train(detector, data, TrainConfig(), 2 * STEP, 0)
        assert calls == [("", layers), ("_backward", layers)] * 2
        calls.clear()
        detect(averaged, data, batch_size=8)
    assert calls == [("", 1)] * layers, "each when its weight is fixed, none for a batch of images"
