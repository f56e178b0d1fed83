"""nms_padded: the kept boxes of nms and batched_nms image by image, in results of fixed size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas import ops
from tests.ops.nms_problems import KINDS, gpu, integral, padded, poisoned_memory, uniform  # noqa: F401


def image_by_image(boxes, scores, threshold, most, idxs, least):
    """[images, most] and [images] from batched_nms of the boxes above the score, cut."""
    indices, counts = [], []
    for image in range(len(boxes)):
        above = torch.where(scores[image] > least)[0] if least is not None else torch.arange(len(boxes[image]))
        classes = idxs[image][above] if idxs is not None else torch.zeros(len(above), dtype=torch.int64)
        kept = above[ops.batched_nms(boxes[image][above], scores[image][above], classes, threshold)]
        indices.append(padded(kept, most))
        counts.append(min(len(kept), most))
    return torch.stack(indices), torch.tensor(counts)


def batch(images: int, count: int, seed: int, kind=integral):
    boxes, scores = kind(images * count, seed)
    return boxes.reshape(images, count, 4), scores.reshape(images, count)


@settings(max_examples=80)
@given(
    images=st.integers(1, 4), count=st.integers(0, 90), most=st.integers(0, 100), classes=st.integers(0, 5),
    seed=st.integers(0, 99), threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    least=st.sampled_from([None, 0.0, 2.0, 9.0]), kind=st.sampled_from(KINDS),
)  # fmt: skip
def test_same_as_image_by_image(images, count, most, classes, seed, threshold, least, kind):
    boxes, scores = batch(images, count, seed, kind)
    idxs = torch.arange(images * count).reshape(images, count) * 7 % classes if classes else None
    indices, counts = ops.nms_padded(boxes, scores, threshold, most, idxs, least)
    expected, expected_counts = image_by_image(boxes, scores, threshold, most, idxs, least)
    assert indices.dtype == counts.dtype == torch.int64
    assert torch.equal(indices, expected) and torch.equal(counts, expected_counts)
    alone = ops.nms_padded(boxes[0], scores[0], threshold, most, None if idxs is None else idxs[0], score_threshold=least)
    assert torch.equal(alone[0], expected[0]) and alone[1].shape == () and alone[1] == expected_counts[0]


def test_one_class_ends_early_with_the_best():
    boxes, scores = uniform(5000, seed=1)
    for most in (1, 64, 65, 300, 5000):
        assert torch.equal(ops.nms_padded(boxes, scores, 0.5, most)[0], padded(ops.nms(boxes, scores, 0.5), most))


def test_no_images():
    indices, counts = ops.nms_padded(torch.zeros(0, 5, 4), torch.zeros(0, 5), 0.5, 3)
    assert indices.shape == (0, 3) and counts.shape == (0,)


def test_score_threshold_is_strict_and_drops_nan():
    boxes = torch.tensor([[0.0, 0, 1, 1], [2, 0, 3, 1], [4, 0, 5, 1], [6, 0, 7, 1]])
    scores = torch.tensor([0.3, 0.5, float("nan"), 0.6])
    assert ops.nms_padded(boxes, scores, 0.5, 4, score_threshold=0.3)[0].tolist() == [3, 1, -1, -1]
    assert ops.nms_padded(boxes, scores, 0.5, 4)[0].tolist() == [2, 3, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_and_layouts(dtype):
    boxes, scores = batch(3, 200, seed=2)
    expected = ops.nms_padded(boxes, scores, 0.5, 50)
    wide = torch.zeros(200, 3, 6, dtype=dtype)
    wide[..., 1:5] = boxes.transpose(0, 1)
    strided = wide.transpose(0, 1)[..., 1:5], scores.to(dtype).t().contiguous().t()
    for ours, theirs in zip(ops.nms_padded(*strided, 0.5, 50), expected, strict=True):
        assert torch.equal(ours, theirs)  # small integers and a half: exact in every type


def test_number_of_threads_does_not_matter():
    boxes, scores = batch(8, 4000, seed=3, kind=uniform)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(ops.nms_padded(boxes, scores, 0.5, 1000))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_poisoned_memory_is_overwritten(poisoned_memory):  # noqa: F811
    boxes, scores = batch(2, 100, seed=4)
    indices, counts = ops.nms_padded(boxes, scores, 0.2, 150)
    expected, expected_counts = image_by_image(boxes, scores, 0.2, 150, None, None)
    assert torch.equal(indices, expected) and torch.equal(counts, expected_counts)
    empty, none = ops.nms_padded(boxes[:, :0], scores[:, :0], 0.2, 3)
    assert empty.tolist() == [[-1] * 3] * 2 and none.tolist() == [0, 0]


def test_bad_arguments_name_the_argument():
    boxes, scores = batch(2, 5, seed=5)
    for bad, message in [
        ((boxes[None], scores[None], 0.5, 3), r"boxes: expected \[N, 4\] or \[images, N, 4\], got \[1, 2, 5, 4\]"),
        ((boxes, scores[0], 0.5, 3), r"scores: expected \[2, 5\], one for each box, got \[5\]"),
        ((boxes, scores, 0.5, 3, scores.long()[:1]), r"idxs: expected \[2, 5\], one for each box, got \[1, 5\]"),
        ((boxes, scores, 0.5, -1), "max_output: expected 0 or more, got -1"),
        ((boxes.int(), scores, 0.5, 3), "boxes: expected fp32, fp64, fp16 or bf16, got int32"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.nms_padded(*bad)


class Detect(torch.nn.Module):
    def forward(self, boxes, scores, idxs):
        indices, counts = ops.nms_padded(boxes * 2, scores, 0.5, 20, idxs, 0.1)
        best = boxes.gather(1, indices.clamp(min=0)[..., None].expand(-1, -1, 4))
        return torch.where(indices[..., None] >= 0, best, 0.0), counts


def test_compiled_and_exported_with_static_shapes():
    boxes, scores = batch(2, 60, seed=6)
    arguments = boxes, scores, torch.arange(120).reshape(2, 60) % 3
    expected = Detect()(*arguments)
    compiled = torch.compile(Detect(), fullgraph=True, dynamic=False, backend="aot_eager")
    exported = torch.export.export(Detect(), arguments)
    for run in (compiled, exported.module()):
        for ours, theirs in zip(run(*arguments), expected, strict=True):
            assert torch.equal(ours, theirs)
    values = [node.meta["val"] for node in exported.graph.nodes if "nms_padded" in str(node.target)]
    assert [tuple(value.shape) for value in values[0]] == [(2, 20), (2,)]  # numbers, not symbols


def test_opcheck():
    boxes, scores = batch(2, 30, seed=7)
    idxs = torch.arange(60).reshape(2, 30) % 3
    operator = torch.ops.fastnas.nms_padded.default
    torch.library.opcheck(operator, (boxes, scores, 0.5, 10, idxs, 0.5))
    torch.library.opcheck(operator, (boxes[0], scores[0], 0.5, 40))
    torch.library.opcheck(operator, (boxes.requires_grad_(), scores.requires_grad_(), 0.5, 10))


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 64, 100, 2048, 3000])
def test_cuda_gives_the_result_of_the_cpu(gpu, kind, count):  # noqa: F811
    boxes, scores = batch(3, count, count, kind)
    idxs = torch.arange(3 * count).reshape(3, count) * 7 % 11
    for classes in (None, idxs):
        for least in (None, 0.3):
            for most in (0, 1, 77, count + 5):
                expected = ops.nms_padded(boxes, scores, 0.4, most, classes, least)
                there = None if classes is None else classes.to(gpu)
                result = ops.nms_padded(boxes.to(gpu), scores.to(gpu), 0.4, most, there, least)
                assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(result, expected, strict=True))


@pytest.mark.cuda
@pytest.mark.parametrize("count", [500, 5000])  # sorted by ours, sorted by torch
def test_cuda_graph(gpu, count):  # noqa: F811
    boxes, scores = (tensor.to(gpu) for tensor in batch(2, count, seed=8, kind=uniform))
    idxs = torch.arange(2 * count, device=gpu).reshape(2, count) % 5
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        ops.nms_padded(boxes, scores, 0.5, 100, idxs, 0.2)  # warm-up
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = ops.nms_padded(boxes, scores, 0.5, 100, idxs, 0.2)
    for seed in (9, 10):
        new_boxes, new_scores = batch(2, count, seed, uniform)
        boxes.copy_(new_boxes)
        scores.copy_(new_scores)
        graph.replay()
        expected = ops.nms_padded(new_boxes, new_scores, 0.5, 100, idxs.cpu(), 0.2)
        assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(results, expected, strict=True))


@pytest.mark.cuda
def test_cuda_does_not_wait_for_the_gpu(gpu):  # noqa: F811
    boxes, scores = (tensor.to(gpu) for tensor in batch(2, 3000, seed=11))
    idxs = scores.long()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.nms_padded(boxes, scores, 0.5, 100, idxs, 0.2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
