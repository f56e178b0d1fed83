"""What roi_align promises beside its numbers: any shape, layout and type, no unwritten memory, modules, tracing."""

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from fastnas import ops
from fastnas.errors import InputError
from tests.ops import reference

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
STRIDES = [4, 8, 16]


def boxes_on_a_grid(count: int, images: int, seed: int) -> torch.Tensor:
    """[K, 5]; coordinates are multiples of 1/8, so that fp32 and fp64 agree on the number of adaptive samples."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(-16, 80, (count, 4), generator=generator).double() / 8
    return torch.cat([torch.randint(0, images, (count, 1), generator=generator).double(), corners], 1)


@given(
    batch=st.integers(1, 2),
    channels=st.sampled_from([1, 2, 7, 16, 33]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    count=st.integers(0, 4),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    scale=st.sampled_from([0.5, 1.0]),
    sampling_ratio=st.sampled_from([-1, 1, 2, 3]),
    aligned=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_equals_the_reference(
    batch, channels, height, width, count, size, scale, sampling_ratio, aligned, dtype, channels_last, seed
):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    boxes = boxes_on_a_grid(count, batch, seed)
    ours, wide = maps.clone().requires_grad_(), maps.double().requires_grad_()
    out = ops.roi_align(ours, boxes, size, scale, sampling_ratio, aligned)
    expected = reference.roi_align(wide, boxes, size, scale, sampling_ratio, aligned)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    assert out.dtype == dtype and out.shape == expected.shape
    torch.testing.assert_close(out.double(), expected, **tolerance)
    gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(dtype)
    out.backward(gradient)
    if expected.requires_grad:  # else no box has a sample on the map
        expected.backward(gradient.double())
        torch.testing.assert_close(ours.grad.double(), wide.grad, **tolerance)
    else:
        assert not ours.grad.any()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_number_of_a_result_is_written(channels_last, dtype):
    # Under deterministic algorithms torch fills new memory with NaN, so whatever is not written shows.
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = torch.randn(2, 19, 12, 14).to(dtype).contiguous(memory_format=layout).requires_grad_()
    boxes = torch.tensor([[0, 1.0, 1, 9, 9], [1, 500, 500, 900, 900], [0, 3, 3, 3, 3]])  # the second lies outside
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all(), "this torch does not fill new memory: the test would see nothing"
        for sampling_ratio in (0, 2):
            out = ops.roi_align(maps, boxes, 5, 0.5, sampling_ratio, True)
            (gradient,) = torch.autograd.grad(out.float().sum(), maps)
            assert out.isfinite().all() and gradient.isfinite().all()
            assert not out[1].any()
    finally:
        torch.use_deterministic_algorithms(False)


def test_gradients_arrive_in_any_layout():
    maps = torch.randn(2, 8, 12, 14, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    boxes = boxes_on_a_grid(6, 2, 3)
    out = ops.roi_align(maps, boxes, (3, 5), 1.0, 2)
    dense = torch.randn(6, 8, 3, 5, dtype=torch.float64)
    (expected,) = torch.autograd.grad(out, maps, dense, retain_graph=True)
    padded = torch.zeros(6, 9, 4, 7, dtype=torch.float64)
    padded[:, 1:, 1:, 1:6] = dense
    for gradient in (
        dense.contiguous(memory_format=torch.channels_last),
        dense.transpose(0, 3).contiguous().transpose(0, 3),
        padded[:, 1:, 1:, 1:6],
        padded.contiguous(memory_format=torch.channels_last)[:, 1:, 1:, 1:6],
    ):
        torch.testing.assert_close(torch.autograd.grad(out, maps, gradient, retain_graph=True)[0], expected)
    ones = torch.ones(1, 1, 1, 1, dtype=torch.float64).expand(6, 8, 3, 5)
    (of_ones,) = torch.autograd.grad(out, maps, ones, retain_graph=True)
    torch.testing.assert_close(of_ones, torch.autograd.grad(out, maps, ones.contiguous())[0])


def test_deterministic_algorithms_give_the_same_bits_twice():
    maps = [torch.randn(2, 24, 60 // s, 80 // s).requires_grad_() for s in (1, 2, 4)]
    boxes = boxes_on_a_grid(40, 2, 5).float() * torch.tensor([1.0, 20, 20, 20, 20])
    torch.use_deterministic_algorithms(True)
    try:
        results = [
            torch.autograd.grad(ops.multiscale_roi_align(maps, boxes, 7, STRIDES).square().sum(), maps) for _ in range(2)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_types_of_features_and_boxes_are_independent():
    maps = torch.randn(1, 8, 20, 20)
    boxes = torch.tensor([[0, 1.5, 2.25, 9.75, 12.5]])
    expected = ops.roi_align(maps, boxes, 3, sampling_ratio=2)
    for features_type in (torch.bfloat16, torch.float16, torch.float64):
        for boxes_type in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            out = ops.roi_align(maps.to(features_type), boxes.to(boxes_type), 3, sampling_ratio=2)
            assert out.dtype == features_type
            torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)


def test_modules_are_the_functions_and_take_torchvisions_arguments():
    maps, boxes = torch.randn(2, 4, 16, 16), boxes_on_a_grid(5, 2, 1).float()
    for arguments in ((7, 0.5, 2), ((3, 5), 0.5, -1, True)):
        ours, theirs = ops.RoIAlign(*arguments), torchvision.ops.RoIAlign(*arguments)
        torch.testing.assert_close(ours(maps, boxes), theirs(maps, boxes))
        lists = [boxes[boxes[:, 0] == i, 1:] for i in range(2)]
        torch.testing.assert_close(ours(maps, lists), theirs(maps, lists))
    named = ops.RoIAlign(output_size=2, spatial_scale=1.0, sampling_ratio=1, aligned=True)
    assert "output_size=2" in repr(named) and "aligned=True" in repr(named)
    levels = [torch.randn(2, 4, 32 // s, 32 // s) for s in (1, 2, 4)]
    module = ops.MultiscaleRoIAlign((3, 4), STRIDES, sampling_ratio=1)
    expected = ops.multiscale_roi_align(levels, boxes, (3, 4), STRIDES, sampling_ratio=1)
    assert torch.equal(module(levels, boxes), expected) and expected.shape == (5, 4, 3, 4)
    assert "strides=(4, 8, 16)" in repr(module)


def test_lists_of_boxes_that_cannot_be_meant_are_refused():
    maps = torch.randn(2, 4, 8, 8)
    with pytest.raises(InputError, match=r"boxes: expected one \[L, 4\] per image, got \[\[2, 5\]\]"):
        ops.roi_align(maps, [torch.zeros(2, 5)], 7)
    with pytest.raises(RuntimeError, match="row 2 is for image 2"):
        ops.roi_align(maps, [torch.zeros(1, 4)] * 3, 7)
    assert ops.roi_align(maps[:0], [], 7).shape == (0, 4, 7, 7)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"output_size": (1, 2, 3)}, r"output_size: expected one number or \(height, width\), got \(1, 2, 3\)"),
        ({"output_size": 2.5}, "output_size: .* got 2.5"),
        ({"strides": (4.0, 8.0)}, "strides: expected powers of two"),
        ({"strides": (4, 4)}, "strides: expected powers of two"),
        ({"canonical_size": 0}, "canonical_size: .* got 0"),
        ({"canonical_size": float("nan")}, "canonical_size: .* got nan"),
    ],
)
def test_what_is_no_pyramid_and_no_size_is_named(wrong, message):
    arguments = {"output_size": 7, "strides": (4, 8), **wrong}
    with pytest.raises(InputError, match=message):
        ops.multiscale_roi_align([torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4)], torch.zeros(2, 5), **arguments)


class _Head(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = ops.MultiscaleRoIAlign(3, STRIDES)

    def forward(self, fine: torch.Tensor, middle: torch.Tensor, coarse: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        return self.pool([fine, middle, coarse], boxes).mean((2, 3))


def head_inputs(count: int) -> tuple[torch.Tensor, ...]:
    levels = [torch.randn(2, 4, 32 // s, 32 // s).contiguous(memory_format=torch.channels_last) for s in (1, 2, 4)]
    return *levels, boxes_on_a_grid(count, 2, count).float()


@pytest.mark.slow
def test_exports_with_any_number_of_boxes():
    shapes = {"fine": None, "middle": None, "coarse": None, "boxes": {0: torch.export.Dim("count")}}
    program = torch.export.export(_Head(), head_inputs(5), dynamic_shapes=shapes)
    inputs = head_inputs(9)
    torch.testing.assert_close(program.module()(*inputs), _Head()(*inputs))


@pytest.mark.slow
def test_compiles_whole_with_its_gradient_for_any_number_of_boxes():
    compiled = torch.compile(_Head(), fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (5, 9):
        *levels, boxes = head_inputs(count)
        levels = [level.requires_grad_() for level in levels]
        results = [torch.autograd.grad(head(*levels, boxes).square().sum(), levels) for head in (compiled, _Head())]
        torch.testing.assert_close(*results)


def test_opcheck_with_gradient_and_list_layouts():
    maps = torch.randn(2, 4, 9, 9).contiguous(memory_format=torch.channels_last)
    pooling = ([0.5], 0, True, 1.0, 0.0)
    torch.library.opcheck(torch.ops.fastnas.roi_align.default, ([maps], boxes_on_a_grid(0, 2, 1).float(), 2, 3, *pooling))
    gradient = torch.randn(3, 4, 2, 3, dtype=torch.bfloat16)
    boxes = boxes_on_a_grid(3, 2, 1)
    for deterministic in (False, True):
        arguments = (gradient, boxes, 2, [9], [9], [False], *pooling, deterministic)
        torch.library.opcheck(torch.ops.fastnas.roi_align_backward.default, arguments)
