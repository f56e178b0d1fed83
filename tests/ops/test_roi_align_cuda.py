"""roi_align on the GPU against the CPU kernels, which are held against the reference elsewhere."""

import pytest
import torch

from fastnas import ops

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]

STRIDES = [4, 8, 16, 32]
TOLERANCE = {torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def pyramid(channels: int = 32, dtype=torch.float32, layout=torch.channels_last, images: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(images, channels, 256 // stride, 384 // stride) for stride in STRIDES]
    return [torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout) for shape in shapes]


def boxes_of(count: int, images: int = 2, seed: int = 1) -> torch.Tensor:
    """[K, 5] on the CPU: sides from 8 to 256 pixels, some reaching out of the image."""
    generator = torch.Generator().manual_seed(seed)
    sides = 8 * 32 ** torch.rand(count, 2, generator=generator)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([384.0, 256.0]) - sides / 2
    return torch.cat([torch.randint(0, images, (count, 1), generator=generator).float(), corners, corners + sides], 1)


def results(maps, boxes, pool, device, gradient=None, deterministic=False):
    """Output and gradients of `pool(maps, boxes)` on a device, brought back to the CPU."""
    maps = [level.to(device).requires_grad_() for level in maps]
    torch.use_deterministic_algorithms(deterministic)
    try:
        out = pool(maps, boxes.to(device))
        gradients = torch.autograd.grad(out, maps, torch.ones_like(out) if gradient is None else gradient.to(device))
    finally:
        torch.use_deterministic_algorithms(False)
    return out, gradients


def compare(maps, boxes, pool, seed: int = 2) -> None:
    dtype = maps[0].dtype
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    shape = pool(maps, boxes).shape
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    expected, expected_gradients = results(maps, boxes, pool, "cpu", gradient)
    for deterministic in (False, True):
        out, gradients = results(maps, boxes, pool, "cuda", gradient, deterministic)
        assert out.stride() == expected.stride()
        torch.testing.assert_close(out.cpu(), expected, **tolerance)
        for mine, other in zip(gradients, expected_gradients, strict=True):
            assert mine.stride() == other.stride()
            torch.testing.assert_close(mine.cpu(), other, **tolerance)


def multiscale(maps, boxes, **options):
    return ops.multiscale_roi_align(maps, boxes, 7, STRIDES, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("channels", [1, 3, 24, 64, 264])
def test_pyramid_equals_the_cpu(channels, dtype, layout):
    compare(pyramid(channels, dtype, layout), boxes_of(80), multiscale)


@pytest.mark.parametrize("count", [1, 2, 600, 3000])
def test_few_and_many_boxes(count):
    compare(pyramid(16), boxes_of(count), multiscale)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, (3, 14), (130, 130)])
def test_single_map_equals_the_cpu(size, sampling_ratio, aligned):
    maps = [level[:, :, :50, :70] for level in pyramid(8)[:1]]
    boxes = boxes_of(12)
    compare(maps, boxes, lambda m, b: ops.roi_align(m[0], b, size, 0.25, sampling_ratio, aligned))


def test_adaptive_samples_of_boxes_larger_than_the_list_of_cells():
    boxes = torch.tensor([[0, 0.0, 0, 380, 250], [1, -50, -50, 500, 300], [1, 10, 10, 20, 20]])
    compare(pyramid(8)[:1], boxes, lambda m, b: ops.roi_align(m[0], b, 2, 0.25, 0, True))


def test_views_and_addresses_that_are_not_multiples_of_16_bytes():
    boxes = boxes_of(20)
    for dtype in TOLERANCE:
        base = pyramid(35, dtype)[0]
        for view in (base[:, 1:33], base[:, 3:11, 2:-3, ::2], base[:, :8]):
            moved = base.cuda().as_strided(view.shape, view.stride(), view.storage_offset())
            got = ops.roi_align(moved, boxes.cuda(), 5, 0.25, 2).cpu()
            tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
            torch.testing.assert_close(got, ops.roi_align(view, boxes, 5, 0.25, 2), **tolerance)


def test_gradients_arrive_in_any_layout():
    maps = [level.cuda().requires_grad_() for level in pyramid(16)]
    out = multiscale(maps, boxes_of(30).cuda())
    dense = torch.randn(out.shape, device="cuda")
    expected = torch.autograd.grad(out, maps, dense.contiguous(memory_format=torch.channels_last), retain_graph=True)
    padded = torch.zeros(30, 17, 8, 9, device="cuda")
    padded[:, 1:, 1:, 1:8] = dense
    last = padded.contiguous(memory_format=torch.channels_last)[:, 1:, 1:, 1:8]  # channels innermost, but not aligned
    for gradient in (dense, padded[:, 1:, 1:, 1:8], last):
        for mine, other in zip(torch.autograd.grad(out, maps, gradient, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    ones = torch.ones(1, 1, 1, 1, device="cuda").expand_as(dense)
    for mine, other in zip(
        torch.autograd.grad(out, maps, ones, retain_graph=True), torch.autograd.grad(out, maps, ones.contiguous()), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_deterministic_gradients_have_the_same_bits_twice(dtype):
    crowd = boxes_of(900)
    crowd[:600, 1:] = crowd[:1, 1:] + torch.rand(600, 4, generator=torch.Generator().manual_seed(3))
    first = results(pyramid(64, dtype), crowd, multiscale, "cuda", deterministic=True)
    second = results(pyramid(64, dtype), crowd, multiscale, "cuda", deterministic=True)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_box_for_an_image_that_is_not_there_pools_zeros_and_gets_no_gradient(deterministic):
    boxes = boxes_of(12)
    bad = torch.tensor([3, 4, 5, 6])
    boxes[bad, 0] = torch.tensor([2.0, -1.0, float("nan"), 1e9])
    good = torch.tensor([k for k in range(12) if k not in bad.tolist()])
    out, gradients = results(pyramid(), boxes, multiscale, "cuda", deterministic=deterministic)
    expected, expected_gradients = results(pyramid(), boxes[good], multiscale, "cuda", deterministic=deterministic)
    assert not out[bad.cuda()].any()
    assert torch.equal(out[good.cuda()], expected)
    for mine, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_boxes_that_are_not_numbers_or_enormous_give_what_the_cpu_gives():
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor(
        [[0, nan, 0, 5, 5], [0, 0, 0, inf, inf], [0, -inf, 0, 5, 5], [0, 0, 0, 1e30, 1e30], [0, 1e9, 1e9, 2e9, 2e9],
         [0, 5, 5, 1, 1], [0, -1e7, -1e7, 1e7, 1e7], [1, 0, 0, 0, 0]]
    )
    for sampling_ratio in (-1, 2):
        for aligned in (False, True):
            compare(pyramid(8), boxes, lambda m, b, s=sampling_ratio, a=aligned: multiscale(m, b, sampling_ratio=s, aligned=a))


def test_no_boxes_and_no_images():
    maps = [level.cuda().requires_grad_() for level in pyramid(8)]
    out = multiscale(maps, torch.zeros(0, 5, device="cuda"))
    assert out.shape == (0, 8, 7, 7)
    for deterministic in (False, True):
        _, gradients = results(pyramid(8), torch.zeros(0, 5), multiscale, "cuda", deterministic=deterministic)
        assert not any(gradient.any() for gradient in gradients)
    nothing = torch.zeros(0, 8, 10, 10, device="cuda")
    assert ops.roi_align(nothing, torch.zeros(0, 5, device="cuda"), 7).shape == (0, 8, 7, 7)
    outside = ops.roi_align(nothing, torch.zeros(3, 5, device="cuda"), 7)
    assert outside.shape == (3, 8, 7, 7) and not outside.any()


def test_every_number_of_a_result_is_written():
    # Under deterministic algorithms torch fills new memory with NaN, so whatever is not written shows.
    for channels in (5, 64):
        for dtype in TOLERANCE:
            out, gradients = results(pyramid(channels, dtype), boxes_of(10), multiscale, "cuda", deterministic=True)
            assert out.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)


def test_features_of_fp64_are_refused():
    with pytest.raises(RuntimeError, match="features: expected fp32, fp16 or bf16 on the GPU, got fp64"):
        ops.roi_align(torch.zeros(1, 4, 8, 8, device="cuda", dtype=torch.float64), torch.zeros(1, 5, device="cuda"), 7)
    with pytest.raises(RuntimeError, match="boxes: expected on the device of the features"):
        torch.ops.fastnas.roi_align.default(
            [torch.zeros(1, 4, 8, 8, device="cuda")], torch.zeros(1, 5), 7, 7, [1.0], 2, False, 1.0, 0.0
        )


def test_nothing_waits_for_the_device():
    maps, boxes = [level.cuda().requires_grad_() for level in pyramid(16)], boxes_of(20).cuda()
    per_image = [boxes[:10, 1:], boxes[10:, 1:]]
    multiscale(maps, boxes).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        multiscale(maps, boxes).sum().backward()
        ops.roi_align(maps[0], per_image, 7, 0.25, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("deterministic", [False, True])
def test_both_passes_can_be_captured_in_a_graph(deterministic):
    maps, boxes = [level.cuda() for level in pyramid(16, torch.bfloat16)], boxes_of(40).cuda()
    heights, widths = [level.size(2) for level in maps], [level.size(3) for level in maps]
    pooling = ([1.0 / stride for stride in STRIDES], 2, False, 224.0, 4.0)

    def both():
        out = torch.ops.fastnas.roi_align.default(maps, boxes, 7, 7, *pooling)
        return out, torch.ops.fastnas.roi_align_backward.default(
            out, boxes, 2, heights, widths, [True] * 4, *pooling, deterministic
        )

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, gradients = both()
    boxes.copy_(boxes_of(40, seed=9))  # a replay reads the boxes of now
    graph.replay()
    expected, expected_gradients = both()
    assert torch.equal(out, expected)
    for mine, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-2)


def test_opcheck():
    maps, boxes = [level.cuda() for level in pyramid(8)], boxes_of(9).cuda()
    pooling = ([1.0 / stride for stride in STRIDES], 2, False, 224.0, 4.0)
    torch.library.opcheck(torch.ops.fastnas.roi_align.default, (maps, boxes, 7, 7, *pooling))
    gradient = torch.randn(9, 8, 7, 7, device="cuda")
    sizes = [[level.size(axis) for level in maps] for axis in (2, 3)]
    arguments = (gradient, boxes, 2, *sizes, [True] * 4, *pooling, True)
    torch.library.opcheck(torch.ops.fastnas.roi_align_backward.default, arguments)
