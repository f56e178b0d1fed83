"""nms and batched_nms against torchvision's and against the slow reference."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas import ops
from tests.ops import reference
from tests.ops.nms_problems import KINDS, class_by_class, clustered, gpu, integral, poisoned_memory, uniform  # noqa: F401

THRESHOLDS = [0.0, 0.3, 0.5, 0.7, 1.0]


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 129, 700, 2000])
@pytest.mark.parametrize("make", [uniform, clustered, integral])
def test_same_indices_as_torchvision(make, count, threshold):
    boxes, scores = make(count, seed=count)
    for dtype in (torch.float32, torch.float64):
        expected = torchvision.ops.nms(boxes.to(dtype), scores.to(dtype), threshold)
        assert torch.equal(ops.nms(boxes.to(dtype), scores.to(dtype), threshold), expected)


def test_quotient_on_the_threshold_is_rounded_as_torchvision_rounds_it():
    # 3 of 10 cells: the fp32 quotient 0.3f is above 0.3, so the box goes; in fp64 it is not above, so it stays.
    boxes = torch.tensor([[0.0, 0, 7, 1], [4.0, 0, 10, 1]])
    scores = torch.tensor([1.0, 0.5])
    assert ops.nms(boxes, scores, 0.3).tolist() == torchvision.ops.nms(boxes, scores, 0.3).tolist() == [0]
    assert ops.nms(boxes.double(), scores.double(), 0.3).tolist() == [0, 1]
    half = torch.tensor([[0.0, 0, 2, 1], [0.0, 0, 1, 1]])
    assert ops.nms(half, scores, 0.5).tolist() == [0, 1]  # strictly greater


box_numbers = st.tuples(*[st.integers(0, 10)] * 2, *[st.integers(0, 6)] * 2)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(box_numbers, st.integers(0, 3), st.integers(-1, 1)), max_size=80),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)
def test_properties_with_ties_clusters_and_empty_boxes(rows, scale, threshold):
    boxes = torch.tensor([[x, y, x + w, y + h] for (x, y, w, h), _, _ in rows], dtype=torch.float32).reshape(-1, 4)
    boxes = boxes * scale  # powers of two and small integers: fp32 is exact, so the float64 reference must agree
    scores = torch.tensor([score for _, score, _ in rows], dtype=torch.float32)
    idxs = torch.tensor([index for _, _, index in rows], dtype=torch.int64)

    kept = ops.nms(boxes, scores, threshold)
    assert torch.equal(kept, torchvision.ops.nms(boxes, scores, threshold))
    assert kept.tolist() == reference.nms(boxes, scores, threshold)
    assert ops.nms(boxes[kept], scores[kept], threshold).tolist() == list(range(len(kept)))  # nothing more goes
    assert ops.batched_nms(boxes, scores, idxs, threshold).tolist() == reference.batched_nms(
        boxes, scores, idxs, threshold
    )


@pytest.mark.parametrize("make", [uniform, clustered, integral])
@pytest.mark.parametrize("classes", [1, 3, 80])
def test_batched_equals_class_by_class(make, classes):
    boxes, scores = make(1500, seed=classes)
    idxs = torch.randint(0, classes, (1500,), generator=torch.Generator().manual_seed(0)) * 1000 - 7
    expected = class_by_class(torchvision.ops.nms, boxes, scores, idxs, 0.4)
    assert torch.equal(ops.batched_nms(boxes, scores, idxs, 0.4), expected)
    assert torch.equal(ops.batched_nms(boxes, scores, idxs.int(), 0.4), expected)


def test_batched_does_not_shift_coordinates():
    # Shifting class 1000 by 1000 * 4096 would round these coordinates to halves and merge what does not overlap enough.
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.2, 0.2, 1.2, 1.2], [4000.0, 4000, 4095, 4095]])
    kept = ops.batched_nms(boxes, torch.tensor([3.0, 2, 1]), torch.tensor([1000, 1000, 0]), 0.5)
    assert kept.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_boxes_are_computed_in_fp32(dtype):
    boxes, scores = (tensor.to(dtype) for tensor in uniform(500, seed=1))
    expected = torchvision.ops.nms(boxes.float(), scores.float(), 0.5)
    assert torch.equal(ops.nms(boxes, scores, 0.5), expected)
    assert torch.equal(ops.nms(boxes.float(), scores, 0.5), expected)  # types may differ


def test_layout_of_the_arguments_does_not_matter():
    boxes, scores = uniform(300, seed=2)
    expected = ops.nms(boxes, scores, 0.5)
    wide = torch.zeros(300, 9)
    wide[:, 2:6] = boxes
    assert torch.equal(ops.nms(wide[:, 2:6], torch.stack([scores, scores], 1)[:, 1], 0.5), expected)
    assert torch.equal(ops.nms(boxes.t().contiguous().t(), scores, 0.5), expected)


def test_not_numbers():
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor(
        [[0.0, 0, 4, 4], [nan, 0, 4, 4], [0, 0, 4, 4], [0, 0, inf, inf], [0, 0, nan, nan], [3, 3, 1, 1]]
    )
    scores = torch.tensor([0.1, 0.2, nan, -inf, inf, 0.0])
    assert torch.equal(ops.nms(boxes, scores, 0.5), torchvision.ops.nms(boxes, scores, 0.5))


def test_number_of_threads_does_not_matter():
    boxes, scores = uniform(40_000, seed=3)  # enough for the tail to be shared out
    boxes *= 30
    boxes[:, 2:] = boxes[:, :2] + 40
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ops.nms(boxes, scores, 0.6)
        torch.set_num_threads(4)
        assert torch.equal(ops.nms(boxes, scores, 0.6), alone)
    finally:
        torch.set_num_threads(before)


def test_poisoned_memory_is_overwritten(poisoned_memory):  # noqa: F811
    boxes, scores = uniform(500, seed=6)
    idxs = torch.arange(500) % 5
    assert torch.equal(ops.nms(boxes, scores, 0.5), torchvision.ops.nms(boxes, scores, 0.5))
    assert torch.equal(ops.batched_nms(boxes, scores, idxs, 0.5), class_by_class(torchvision.ops.nms, boxes, scores, idxs, 0.5))


def test_twice_gives_the_same_and_leaves_the_arguments_alone():
    boxes, scores = integral(900, seed=7)
    copies = boxes.clone(), scores.clone()
    assert torch.equal(ops.nms(boxes, scores, 0.4), ops.nms(boxes, scores, 0.4))
    assert torch.equal(boxes, copies[0]) and torch.equal(scores, copies[1])


bad_arguments = [
    ((0, 3), (4,), None, torch.float32, r"boxes: expected \[N, 4\], got \[0, 3\]"),
    ((4,), (4,), None, torch.float32, r"boxes: expected \[N, 4\], got \[4\]"),
    ((4, 4), (3,), None, torch.float32, r"scores: expected \[4\], one for each box, got \[3\]"),
    ((4, 4), (4, 1), None, torch.float32, r"scores: expected \[4\], one for each box, got \[4, 1\]"),
    ((4, 4), (4,), (5,), torch.float32, r"idxs: expected \[4\], one for each box, got \[5\]"),
    ((4, 4), (4,), None, torch.int64, "boxes: expected fp32, fp64, fp16 or bf16, got int64"),
]


@pytest.mark.parametrize("boxes, scores, idxs, dtype, message", bad_arguments)
def test_bad_arguments_name_the_argument(boxes, scores, idxs, dtype, message):
    boxes, scores = torch.zeros(boxes, dtype=dtype), torch.zeros(scores)
    idxs = torch.zeros(idxs or scores.shape, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=message):
        ops.batched_nms(boxes, scores, idxs, 0.5)
    if "idxs" not in message:
        with pytest.raises(RuntimeError, match=message):
            ops.nms(boxes, scores, 0.5)


def test_bad_types_are_named():
    boxes, scores = uniform(4, seed=4)
    with pytest.raises(RuntimeError, match="scores: expected fp32, fp64, fp16 or bf16, got int32"):
        ops.nms(boxes, scores.int(), 0.5)
    with pytest.raises(RuntimeError, match="idxs: expected an integer type such as int64, got fp32"):
        ops.batched_nms(boxes, scores, scores, 0.5)


def test_opcheck():
    boxes, scores = uniform(50, seed=5)
    idxs = torch.arange(50) % 3
    for count in (50, 0):
        torch.library.opcheck(torch.ops.fastnas.nms.default, (boxes[:count], scores[:count], 0.5))
        torch.library.opcheck(torch.ops.fastnas.batched_nms.default, (boxes[:count], scores[:count], idxs[:count], 0.5))


def test_compiled_without_a_graph_break():
    def detect(boxes, scores, idxs):
        kept = ops.batched_nms(boxes * 2, scores, idxs, 0.5)
        return boxes[kept] + 1, ops.nms(boxes, scores, 0.5).sum()

    compiled = torch.compile(detect, fullgraph=True, backend="aot_eager")
    for count in (40, 90):
        arguments = *uniform(count, seed=count), torch.arange(count) % 3
        for ours, expected in zip(compiled(*arguments), detect(*arguments), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000, 2048, 2049, 5000])
def test_cuda_gives_the_indices_of_the_cpu(gpu, make, count):  # noqa: F811
    boxes, scores = make(count, seed=count)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        here, there = boxes.to(dtype), boxes.to(gpu, dtype)
        for threshold in (0.0, 0.5):
            assert torch.equal(ops.nms(there, scores.to(gpu), threshold).cpu(), ops.nms(here, scores, threshold))
        for classes in (1, 5, 300):
            idxs = torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(1)) * 1000 - 7
            batched = ops.batched_nms(there, scores.to(gpu), idxs.to(gpu), 0.5)
            assert torch.equal(batched.cpu(), ops.batched_nms(here, scores, idxs, 0.5))


@pytest.mark.cuda
@pytest.mark.parametrize("classes", [1, 80])
def test_cuda_many_boxes(gpu, classes):  # noqa: F811
    boxes, scores = uniform(100_000, seed=8)
    boxes *= 30
    idxs = torch.randint(0, classes, (100_000,), generator=torch.Generator().manual_seed(2))
    batched = ops.batched_nms(boxes.to(gpu), scores.to(gpu), idxs.to(gpu), 0.3)
    assert torch.equal(batched.cpu(), ops.batched_nms(boxes, scores, idxs, 0.3))


@pytest.mark.cuda
def test_cuda_repeats_itself(gpu):  # noqa: F811
    # Which tiles still wait when another is decided differs from run to run; the result must not.
    boxes, scores = (tensor.to(gpu) for tensor in uniform(20_000, seed=9))
    boxes *= 20
    expected = ops.nms(boxes, scores, 0.4)
    for _ in range(50):
        assert torch.equal(ops.nms(boxes, scores, 0.4), expected)


@pytest.mark.cuda
def test_cuda_refuses_tensors_of_two_devices(gpu):  # noqa: F811
    boxes, scores = uniform(4, seed=4)
    with pytest.raises(RuntimeError, match="scores: expected on the device of the boxes"):
        ops.nms(boxes.to(gpu), scores, 0.5)
    with pytest.raises(RuntimeError, match="scores: expected on the device of the boxes"):
        ops.nms(boxes, scores.to(gpu), 0.5)
