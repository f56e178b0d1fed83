"""roi_align and multiscale_roi_align against torchvision's and against the slow reference."""

import pytest
import torch
import torchvision

from fastnas import ops
from fastnas.errors import InputError
from tests.ops import reference

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def features(*shape: int, seed: int = 0, layout=torch.contiguous_format, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).contiguous(memory_format=layout)


def random_boxes(count: int, images: int, extent: float, seed: int = 1) -> torch.Tensor:
    """[K, 5] in float64, some reaching out of the image, in no order of images."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator, dtype=torch.float64) * extent - extent / 8
    sizes = torch.rand(count, 2, generator=generator, dtype=torch.float64) * extent
    image = torch.randint(0, images, (count, 1), generator=generator)
    return torch.cat([image.double(), corners, corners + sizes], 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3, 17, 64])
def test_forward_and_backward_equal_torchvision(channels, sampling_ratio, aligned, layout):
    ours = features(2, channels, 13, 19, layout=layout).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    boxes = random_boxes(12, 2, 40)
    out = ops.roi_align(ours, boxes, (5, 3), 0.5, sampling_ratio, aligned)
    expected = torchvision.ops.roi_align(theirs, boxes, (5, 3), 0.5, sampling_ratio, aligned)
    torch.testing.assert_close(out, expected)
    gradient = features(*expected.shape, seed=3, layout=layout)
    out.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_equals_the_reference():
    maps, boxes = features(2, 3, 9, 8), random_boxes(6, 2, 30)
    for sampling_ratio, aligned in [(2, False), (0, True)]:
        expected = reference.roi_align(maps, boxes, (3, 2), 0.3, sampling_ratio, aligned)
        torch.testing.assert_close(ops.roi_align(maps, boxes, (3, 2), 0.3, sampling_ratio, aligned), expected)


def test_a_linear_ramp_is_averaged_exactly():
    # Bilinear samples of a plane lie on the plane, so a bin's average is the plane at the bin's centre.
    ys, xs = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    plane = (2 * ys - 3 * xs)[None, None].double()
    box = torch.tensor([[0, 4.0, 3.0, 20.0, 15.0]], dtype=torch.float64)
    out = ops.roi_align(plane, box, (3, 4), sampling_ratio=2)
    centre_y = 3 + (torch.arange(3, dtype=torch.float64) + 0.5) * 4
    centre_x = 4 + (torch.arange(4, dtype=torch.float64) + 0.5) * 4
    torch.testing.assert_close(out[0, 0], 2 * centre_y[:, None] - 3 * centre_x[None])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_narrow_types_sum_in_fp32(dtype, tolerance, layout):
    maps = features(2, 40, 25, 31, layout=layout, dtype=dtype).requires_grad_()
    wide = maps.detach().double().requires_grad_()
    boxes = random_boxes(30, 2, 3000)  # at 2048 and above fp16 holds even numbers only: boxes are not rounded to it
    out = ops.roi_align(maps, boxes.float(), 7, 0.01, 2, True)
    expected = torchvision.ops.roi_align(wide, boxes, 7, 0.01, 2, True)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    gradient = features(*expected.shape, seed=4, dtype=dtype)
    out.backward(gradient)
    expected.backward(gradient.double())
    assert maps.grad.dtype == dtype
    torch.testing.assert_close(maps.grad.double(), wide.grad, rtol=tolerance, atol=5 * tolerance)


def test_16_bit_conversions_are_exact_for_every_value():
    # One cell per value and a box over one cell: the average of equal samples is the value itself.
    for dtype in (torch.float16, torch.bfloat16):
        values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        maps = values.reshape(1, -1, 1, 1).contiguous(memory_format=torch.channels_last)
        out = ops.roi_align(maps, torch.tensor([[0.0, 0, 0, 1, 1]]), 1, sampling_ratio=1).flatten()
        torch.testing.assert_close(out, values, rtol=0, atol=0, equal_nan=True)


def test_narrowing_rounds_as_torch_does():
    # The mean of two neighbours of 16 bits is often a tie; averaging weights of one half are exact in fp32.
    for dtype in (torch.float16, torch.bfloat16):
        left = torch.arange(-(2**15), 2**15, 7, dtype=torch.int32).to(torch.int16).view(dtype)
        left = left[left.float().abs() < 60000]
        right = (left.view(torch.int16) ^ 1).view(dtype)
        maps = torch.stack([left, right], 1).reshape(1, -1, 1, 2)
        out = ops.roi_align(maps, torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]]), 1, sampling_ratio=1).flatten()
        expected = (left.float() * 0.5 + right.float() * 0.5).to(dtype)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_keep_the_layout(layout):
    maps = features(2, 8, 10, 12, layout=layout).requires_grad_()
    out = ops.roi_align(maps, random_boxes(5, 2, 10), 3)
    assert out.is_contiguous(memory_format=layout)
    out.sum().backward()
    assert maps.grad.is_contiguous(memory_format=layout)


def test_views_are_read_where_they_lie():
    base = features(2, 30, 20, 24, layout=torch.channels_last)
    view = base[:, 5:25, 2:-3, ::2]
    boxes = random_boxes(8, 2, 15)
    torch.testing.assert_close(
        ops.roi_align(view, boxes, 4, sampling_ratio=2),
        torchvision.ops.roi_align(view.contiguous(), boxes, 4, sampling_ratio=2),
    )


def test_list_of_boxes_per_image():
    maps = features(3, 4, 10, 10, dtype=torch.float32)
    per_image = [torch.tensor([[0.0, 0, 5, 5], [1, 1, 9, 9]]), torch.zeros(0, 4), torch.tensor([[2.0, 2, 4, 8]])]
    torch.testing.assert_close(ops.roi_align(maps, per_image, 2), torchvision.ops.roi_align(maps, per_image, 2))


def test_no_boxes_and_no_images():
    maps = features(2, 4, 10, 10).requires_grad_()
    out = ops.roi_align(maps, torch.zeros(0, 5), 7)
    assert out.shape == (0, 4, 7, 7)
    out.sum().backward()
    assert torch.equal(maps.grad, torch.zeros_like(maps))
    assert ops.roi_align(torch.zeros(0, 4, 10, 10), torch.zeros(0, 5), 7).shape == (0, 4, 7, 7)


def test_boxes_that_are_not_numbers_or_enormous_give_finite_results():
    maps = features(1, 4, 10, 10, dtype=torch.float32, layout=torch.channels_last).requires_grad_()
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor(
        [[0, nan, 0, 5, 5], [0, 0, 0, inf, inf], [0, -inf, 0, 5, 5], [0, 0, 0, 1e30, 1e30], [0, 1e9, 1e9, 2e9, 2e9],
         [0, 5, 5, 1, 1], [0, -1e7, -1e7, 1e7, 1e7]]
    )
    for sampling_ratio in (-1, 2):
        for aligned in (False, True):
            out = ops.roi_align(maps, boxes, 3, 1.0, sampling_ratio, aligned)
            assert torch.isfinite(out).all()
            out.sum().backward()
    assert torch.isfinite(maps.grad).all()


def test_a_bad_number_in_a_far_cell_stays_there():
    maps = torch.ones(1, 3, 8, 8)
    maps[0, :, 0, 0] = float("inf")
    assert ops.roi_align(maps, torch.tensor([[0, 4.0, 4, 30, 30]]), 2).isfinite().all()


def test_gradcheck():
    maps = [features(2, 2, 6, 5, seed=1).requires_grad_(), features(2, 2, 3, 3, seed=2).requires_grad_()]
    boxes = random_boxes(4, 2, 400)
    assert torch.autograd.gradcheck(lambda *levels: ops.multiscale_roi_align(levels, boxes, 2, [64, 128]), maps)
    for aligned in (False, True):
        assert torch.autograd.gradcheck(lambda x, a=aligned: ops.roi_align(x, boxes, (2, 3), 0.02, 0, a), maps[:1])


def test_backward_gives_the_same_bits_for_any_number_of_threads():
    maps = features(3, 72, 30, 30, layout=torch.channels_last, dtype=torch.float32).requires_grad_()
    boxes = random_boxes(60, 3, 30).float()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = ops.roi_align(maps, boxes, 7, sampling_ratio=2)
            results.append((out, *torch.autograd.grad(out.square().sum(), maps)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ----------------------------------------------------------------------------------------------------------------------
# Pyramids


def pyramid(layout, dtype=torch.float64) -> list[torch.Tensor]:
    maps = [features(2, 20, 64 // s, 96 // s, seed=s, layout=layout, dtype=dtype) for s in (1, 2, 4, 8)]
    return [level.requires_grad_() for level in maps]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pyramid_equals_torchvision(layout):
    ours = pyramid(layout)
    theirs = [level.detach().clone().requires_grad_() for level in ours]
    generator = torch.Generator().manual_seed(5)
    corners = torch.rand(80, 2, generator=generator, dtype=torch.float64) * 200
    sides = 2 ** (torch.rand(80, 2, generator=generator, dtype=torch.float64) * 8 + 2)
    exact = torch.tensor([[0.0, 0, 112, 112], [3, 5, 227, 229], [0, 0, 448, 448]])  # on the borders of levels
    boxes = torch.cat([torch.cat([corners, corners + sides], 1), exact.double()])
    image = torch.arange(83) % 2
    rows = torch.cat([image[:, None].double(), boxes], 1)

    pool = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    by_image = [boxes[image == i] for i in range(2)]
    expected = pool({str(i): level for i, level in enumerate(theirs)}, by_image, [(256, 384)] * 2)
    order = torch.cat([torch.where(image == i)[0] for i in range(2)])
    out = ops.multiscale_roi_align(ours, rows, 7, [4, 8, 16, 32])
    torch.testing.assert_close(out[order], expected)

    gradient = features(83, 20, 7, 7, seed=6)
    out.backward(gradient)
    expected.backward(gradient[order])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_pyramid_equals_the_reference():
    maps = [features(1, 2, 16, 16), features(1, 2, 8, 8, seed=1)]
    boxes = torch.tensor([[0.0, 0, 0, 20, 30], [0, 5, 5, 120, 200], [0, 1, 1, 250, 250], [0, 9, 9, 9, 9]])
    torch.testing.assert_close(
        ops.multiscale_roi_align(maps, boxes, 2, [16, 32]), reference.multiscale_roi_align(maps, boxes, 2, [16, 32])
    )


def test_levels_of_boxes_can_be_read_off():
    maps = [torch.full((1, 1, 64, 64), float(level)) for level in range(4)]
    sides = torch.tensor([0.0, 1, 55, 56, 111, 112, 223, 224, 447, 448, 10_000])
    boxes = torch.stack([torch.zeros(11), torch.zeros(11), torch.zeros(11), sides, sides], 1)
    out = ops.multiscale_roi_align(maps, boxes, 1, [4, 8, 16, 32], sampling_ratio=1)
    # A huge box samples outside the maps, where there is nothing, so only the others show their level.
    assert out[:10].flatten().tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3]
    shifted = ops.multiscale_roi_align(maps, boxes, 1, [4, 8, 16, 32], 1, canonical_size=112)
    assert shifted[:8].flatten().tolist() == [0, 0, 0, 1, 1, 2, 2, 3]


def test_under_autocast_types_stay_as_they_are():
    convolution = torch.nn.Conv2d(3, 8, 3, padding=1)
    image = torch.randn(1, 3, 32, 32)
    boxes = torch.tensor([[0, 1.25, 2.5, 30.75, 29.125]])
    with torch.autocast("cpu", torch.bfloat16):
        level = convolution(image)
        pooled = ops.multiscale_roi_align([level, level.float()[..., ::2, ::2]], boxes, 7, [1, 2])
    assert level.dtype == pooled.dtype == torch.bfloat16
    pooled.float().sum().backward()
    assert convolution.weight.grad.isfinite().all() and convolution.weight.grad.abs().sum() > 0


def test_inference_and_detached_boxes():
    maps = features(1, 4, 8, 8).requires_grad_()
    boxes = torch.tensor([[0, 1.0, 1, 6, 6]], dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        assert not ops.roi_align(maps, boxes, 2).requires_grad
    (gradient,) = torch.autograd.grad(ops.roi_align(maps, boxes, 2).sum(), boxes, allow_unused=True)
    assert gradient is None


def test_bad_arguments_name_the_argument():
    maps = features(2, 4, 8, 8, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="row 1 is for image 2, expected 0 to 1"):
        ops.roi_align(maps, torch.tensor([[0.0, 0, 0, 1, 1], [2.0, 0, 0, 1, 1]]), 7)
    with pytest.raises(RuntimeError, match=r"boxes: expected \[K, 5\]"):
        ops.roi_align(maps, torch.zeros(3, 4), 7)
    with pytest.raises(RuntimeError, match="features: expected .N, C, H, W."):
        ops.roi_align(maps[0], torch.zeros(3, 5), 7)
    with pytest.raises(RuntimeError, match="features: expected 2 levels"):
        ops.multiscale_roi_align([maps], torch.zeros(3, 5), 7, [4, 8])
    with pytest.raises(RuntimeError, match="features: every level needs the same"):
        ops.multiscale_roi_align([maps, maps[:, :2]], torch.zeros(3, 5), 7, [4, 8])
    with pytest.raises(InputError, match="powers of two"):
        ops.multiscale_roi_align([maps, maps], torch.zeros(3, 5), 7, [4, 16])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    maps = [level.detach() for level in pyramid(layout, torch.float32)]
    boxes = random_boxes(9, 2, 200).float()
    pooling = ([1 / 4, 1 / 8, 1 / 16, 1 / 32], 2, False, 224.0, 4.0)
    torch.library.opcheck(torch.ops.fastnas.roi_align.default, (maps, boxes, 7, 7, *pooling))
    flags = [layout == torch.channels_last] * 4
    sizes = [list(side) for side in zip(*(level.shape[2:] for level in maps), strict=True)]
    gradient = features(9, 20, 7, 7, dtype=torch.float32, layout=layout)
    torch.library.opcheck(torch.ops.fastnas.roi_align_backward.default, (gradient, boxes, 2, *sizes, flags, *pooling, False))


@pytest.mark.slow
def test_compiles_whole():
    maps = pyramid(torch.channels_last, torch.float32)
    boxes = random_boxes(9, 2, 200).float()

    def loss(levels, rows):
        return ops.multiscale_roi_align(levels, rows, 7, [4, 8, 16, 32]).square().sum()

    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(maps, boxes), loss(maps, boxes))
