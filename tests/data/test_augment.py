"""Random changes: boxes follow the pixels, identities, determinism, bad settings."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.data.augment import DRAWS, MIN_AREA_LEFT, PADDING, Augment, apply_to_boxes, apply_to_image
from fastnas.errors import InputError

SIZE = (60, 90)
draw = st.floats(0, 1, exclude_max=True)
everything = st.lists(draw, min_size=DRAWS, max_size=DRAWS)


def changed(augment: Augment, draws: list[float], image: np.ndarray, boxes: np.ndarray):
    plan = augment.plan(draws, SIZE)
    out = torch.empty((*SIZE, 3), dtype=torch.uint8)
    before = image.copy()
    apply_to_image(plan, torch.from_numpy(image), out)
    assert np.array_equal(image, before)  # the cache stays as it is
    return out.numpy(), *apply_to_boxes(plan, boxes, SIZE)


@settings(max_examples=150, deadline=None)
@given(draws=everything, x=st.integers(0, 80), y=st.integers(0, 50), w=st.integers(6, 40), h=st.integers(6, 40))
def test_bright_pixels_stay_inside_the_box(draws: list[float], x: int, y: int, w: int, h: int):
    x2, y2 = min(x + w, SIZE[1]), min(y + h, SIZE[0])
    image = np.zeros((*SIZE, 3), np.uint8)
    image[y:y2, x:x2] = 255
    augment = Augment(0.5, 0.5, 0.0, (0.6, 1.6))
    pixels, boxes, left = changed(augment, draws, image, np.array([[x, y, x2, y2]], np.float32))
    rows, columns = np.nonzero(pixels[..., 1] > 150)
    if left[0] == 0:
        assert len(rows) <= max(*SIZE)  # at most the blur of an edge
        return
    x1, y1, x2, y2 = boxes[0]
    assert 0 <= x1 < x2 <= SIZE[1] and 0 <= y1 < y2 <= SIZE[0] and left[0] <= 1.0001
    inside = (columns + 0.5 >= x1 - 0.75) & (columns + 0.5 <= x2 + 0.75)
    assert (inside & (rows + 0.5 >= y1 - 0.75) & (rows + 0.5 <= y2 + 0.75)).all()
    if min(x2 - x1, y2 - y1) > 4:  # and they fill it
        assert columns.min() <= x1 + 1.5 and columns.max() + 1 >= x2 - 1.5
        assert rows.min() <= y1 + 1.5 and rows.max() + 1 >= y2 - 1.5


@pytest.mark.parametrize("keys", [{"horizontal_flip": 1.0}, {"vertical_flip": 1.0, "horizontal_flip": 0.0}])
def test_flipping_twice_is_the_identity(keys: dict[str, float]):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    corners = rng.uniform(0, 30, (5, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 30, (5, 2))]).astype(np.float32)
    augment = Augment(**keys)
    once, moved, _ = changed(augment, [0.5] * DRAWS, image, boxes)
    twice, back, left = changed(augment, [0.5] * DRAWS, once, moved)
    axis = 1 if keys["horizontal_flip"] else 0
    assert np.array_equal(once, np.flip(image, axis)) and np.array_equal(twice, image)
    assert np.abs(back - boxes).max() < 1e-4 and np.allclose(left, 1)


def test_nothing_asked_nothing_changed():
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    boxes = np.array([[1, 2, 30, 40]], np.float32)
    pixels, same, left = changed(Augment(0.0), [0.3] * DRAWS, image, boxes)
    assert np.array_equal(pixels, image) and np.array_equal(same, boxes) and left.tolist() == [1]


def test_zoom_about_a_point_of_the_image():
    augment = Augment(0.0, zoom=(0.5, 2.0))
    image = np.full((*SIZE, 3), 255, np.uint8)
    boxes = np.array([[0, 0, 90, 60], [80, 50, 90, 60], [0, 0, 20, 60]], np.float32)
    pixels, moved, left = changed(augment, [0.0, 0.5, 0.5] + [0.5] * 5, image, boxes)  # half the size, centred
    assert moved[0].tolist() == [22, 15, 67, 45] and left.tolist() == [1, 1, 1]
    assert (pixels[15:45, 22:67] == 255).all() and (pixels[:15] == PADDING).all() and (pixels[:, 67:] == PADDING).all()
    _, moved, left = changed(augment, [0.9999999, 0.0, 0.0] + [0.5] * 5, image, boxes)  # double, about the corner
    assert moved[0].tolist() == [0, 0, 90, 60] and left[0] == 0.25
    assert left[1] == 0 and left[2] == 0.5 and MIN_AREA_LEFT > left[0]


def test_color_is_the_formula():
    rng = np.random.default_rng(1)
    image = rng.integers(40, 200, (*SIZE, 3)).astype(np.uint8)
    plan = Augment(0.0, color=0.4).plan([0, 0, 0, 0.9, 0.2, 0.7, 0.9, 0.9], SIZE)
    assert (plan.brightness, plan.contrast, plan.saturation) == pytest.approx((1.32, 0.76, 1.16))
    out = torch.empty((*SIZE, 3), dtype=torch.uint8)
    apply_to_image(plan, torch.from_numpy(image), out)
    luma = np.array([0.299, 0.587, 0.114])
    grey, mean = (image @ luma)[..., None], image[::8, ::8].mean((0, 1)) @ luma
    expected = 1.32 * (0.76 * (1.16 * image + (1 - 1.16) * grey) + (1 - 0.76) * mean)
    assert np.abs(out.numpy() - np.clip(expected, 0, 255)).max() <= 1


@settings(max_examples=100, deadline=None)
@given(draws=everything)
def test_same_numbers_same_image(draws: list[float]):
    image = np.random.default_rng(2).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    augment = Augment(0.5, 0.5, 1.0, (0.3, 3.0))
    one, other = (changed(augment, draws, image, np.zeros((0, 4), np.float32)) for _ in range(2))
    assert np.array_equal(one[0], other[0]) and one[1].shape == (0, 4) and one[2].shape == (0,)


@pytest.mark.parametrize(
    "keys", [{"horizontal_flip": 1.1}, {"vertical_flip": -1}, {"color": 2}, {"zoom": (1.3, 0.7)}, {"zoom": (0.0, 1.0)}]
)
def test_bad_settings(keys: dict):
    with pytest.raises(InputError, match="augment .* choose"):
        Augment(**keys)
