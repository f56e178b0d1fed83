"""soft_nms against the float64 loop of the reference, effdet's, and its own promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas import ops
from fastnas.errors import InputError
from tests.ops import reference
from tests.ops.nms_problems import KINDS, clustered, extreme, gpu, poisoned_memory, uniform  # noqa: F401

METHODS = ["linear", "gaussian"]


@settings(max_examples=150)
@given(
    count=st.integers(0, 80), seed=st.integers(0, 999), method=st.sampled_from(METHODS), kind=st.sampled_from([uniform, clustered]),
    threshold=st.sampled_from([0.0, 0.3, 0.6]), sigma=st.sampled_from([0.1, 0.5, 2.0]), least=st.sampled_from([0.001, 0.2, 0.0]),
    classes=st.integers(0, 3), most=st.sampled_from([None, 0, 1, 17]),
)  # fmt: skip
def test_same_as_the_reference(count, seed, method, kind, threshold, sigma, least, classes, most):
    boxes, scores = (tensor.double() for tensor in kind(count, seed))
    idxs = torch.arange(count) * 7 % classes if classes else None
    indices, rescored = ops.soft_nms(boxes, scores, method, threshold, sigma, least, most, idxs)
    expected, expected_scores = reference.soft_nms(boxes, scores, method, threshold, sigma, least, most, idxs)
    assert indices.tolist() == expected
    torch.testing.assert_close(rescored.tolist(), expected_scores, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_ties_go_to_the_lowest_index(method):
    # A quarter and a half are exact, so the equal scores stay equal and the order is told by the index alone.
    boxes = torch.tensor([[0.0, 0, 4, 4], [8, 8, 12, 12], [0, 0, 4, 2], [8, 8, 12, 10], [20, 20, 21, 21]])
    indices, rescored = ops.soft_nms(boxes, torch.ones(5), method, 0.3, 0.5, 0.0)
    assert indices.tolist() == [0, 1, 4, 2, 3]
    assert rescored[3] == rescored[4] and rescored[:3].tolist() == [1, 1, 1]


def test_many_ties():
    """Widths of 1, 2 and 4 in the same corners: overlaps, decays and scores are exact, and many scores tie again and again."""
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        cells, widths, eighths = (torch.randint(0, most, (60,), generator=generator) for most in (12, 3, 9))
        left = 100.0 * cells
        boxes = torch.stack([left, torch.zeros(60), left + 2.0**widths, torch.ones(60)], 1)
        indices, rescored = ops.soft_nms(boxes, eighths / 8, "linear", 0.3, 0.5, 0.01)
        expected, expected_scores = reference.soft_nms(boxes, eighths / 8, "linear", 0.3, 0.5, 0.01, None, None)
        assert indices.tolist() == expected and rescored.tolist() == expected_scores


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [uniform, clustered])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 700])
def test_same_as_effdet(count, kind, method):
    soft_nms = pytest.importorskip("effdet.soft_nms", reason="the peer, effdet, is not installed").soft_nms
    boxes, scores = kind(count, seed=count)
    scores += 0.001  # effdet returns the best box even where it is not above the threshold
    indices, rescored = ops.soft_nms(boxes, scores, method, 0.3, 0.5, 0.001)
    expected, expected_scores = soft_nms(boxes, scores, method == "gaussian", 0.5, 0.3, 0.001)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(rescored, expected_scores, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_classes_are_chosen_as_if_in_one_run(method):
    boxes, scores = clustered(400, seed=1)
    idxs = torch.arange(400) % 7 - 3
    indices, rescored = ops.soft_nms(boxes, scores, method, idxs=idxs.to(torch.int16), max_output=200)
    far_apart = boxes.double() + 1e4 * idxs[:, None]
    expected, expected_scores = ops.soft_nms(far_apart, scores.double(), method, max_output=200)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(rescored.double(), expected_scores, rtol=1e-5, atol=0)
    assert (rescored[1:] <= rescored[:-1]).all()


def test_linear_with_a_threshold_of_one_only_sorts():
    boxes, scores = uniform(300, seed=2)
    indices, rescored = ops.soft_nms(boxes, scores, "linear", 1.0, score_threshold=0.5)
    assert torch.equal(rescored, scores[scores > 0.5].sort(descending=True).values)
    assert torch.equal(scores[indices], rescored)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_that_are_none(method):
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor([[0.0, 0, 4, 4], [nan, 0, 4, 4], [0, 0, inf, inf], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 4, 4]])
    indices, rescored = ops.soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, nan]), method)
    assert indices.tolist() == [0, 1, 2, 3, 4]  # none overlaps another; the score that is none is out
    assert torch.equal(rescored, torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]))
    indices, rescored = ops.soft_nms(boxes[[0, 0, 0]], torch.tensor([inf, inf, -inf]), "linear", score_threshold=-5)
    assert indices.tolist() == [0] and rescored.tolist() == [inf]  # inf * 0 is a NaN, and out
    for seed in range(50):
        boxes, scores = extreme(40, seed)
        indices, rescored = ops.soft_nms(boxes, scores, method)
        assert len(indices.unique()) == len(indices) and not rescored.isnan().any() and (rescored > 0.001).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_is_computed_in_fp32(dtype):
    boxes, scores = (tensor.to(dtype) for tensor in uniform(300, seed=3))
    indices, rescored = ops.soft_nms(boxes, scores, "gaussian")
    expected, expected_scores = ops.soft_nms(boxes.float(), scores.float(), "gaussian")
    assert rescored.dtype == dtype and torch.equal(indices, expected) and torch.equal(rescored, expected_scores.to(dtype))
    assert ops.soft_nms(boxes.float(), scores, "gaussian")[1].dtype == dtype
    wide = torch.zeros(300, 9, dtype=dtype)
    wide[:, 2:6] = boxes
    assert torch.equal(ops.soft_nms(wide[:, 2:6], torch.stack([scores, scores], 1)[:, 1], "gaussian")[0], expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("classes", [0, 3])
def test_derivative_by_the_scores(method, classes):
    boxes, scores = clustered(40, seed=4)
    scores = scores.double().requires_grad_()
    idxs = torch.arange(40) % classes if classes else None

    def rescored(values):
        return ops.soft_nms(boxes.double(), values, method, score_threshold=0.05, idxs=idxs)[1]

    assert torch.autograd.gradcheck(rescored, scores)
    with torch.no_grad():
        assert torch.equal(rescored(scores), rescored(scores.clone().requires_grad_()))


def test_derivative_in_fp32_is_of_the_same_value():
    boxes, scores = uniform(200, seed=5)
    indices, rescored = ops.soft_nms(boxes.requires_grad_(), scores.requires_grad_(), "gaussian")
    with torch.no_grad():
        assert torch.equal(ops.soft_nms(boxes, scores, "gaussian")[1], rescored)
    (gradient,) = torch.autograd.grad(rescored.sum(), scores)
    factors = (rescored / scores[indices]).detach()
    torch.testing.assert_close(gradient[indices], factors)
    assert gradient.count_nonzero() == len(indices) and boxes.grad is None


def test_poisoned_memory_is_overwritten(poisoned_memory):  # noqa: F811
    boxes, scores = uniform(100, seed=6)
    indices, rescored = ops.soft_nms(boxes, scores, "linear", 0.3, 0.5, 0.1)
    expected, expected_scores = reference.soft_nms(boxes, scores, "linear", 0.3, 0.5, 0.1, None, None)
    assert indices.tolist() == expected
    torch.testing.assert_close(rescored.tolist(), expected_scores, rtol=1e-5, atol=1e-6)


def test_bad_arguments_name_the_argument():
    boxes, scores = uniform(5, seed=7)
    with pytest.raises(InputError, match="method is 'hard', expected \"linear\" or \"gaussian\""):
        ops.soft_nms(boxes, scores, "hard")
    for bad, message in [
        ((boxes[:, :3], scores), r"boxes: expected \[N, 4\], got \[5, 3\]"),
        ((boxes, scores[:4]), r"scores: expected \[5\], one for each box, got \[4\]"),
        ((boxes, scores, "gaussian", 0.3, 0.0), "sigma: expected a number above 0, got 0"),
        ((boxes, scores, "linear", 0.3, 0.5, 0.1, -1), "max_output: expected 0 or more, got -1"),
        ((boxes, scores, "linear", 0.3, 0.5, 0.1, None, scores), "idxs: expected an integer type such as int64, got fp32"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.soft_nms(*bad)


def test_opcheck():
    boxes, scores = uniform(30, seed=8)
    operator = torch.ops.fastnas.soft_nms.default
    torch.library.opcheck(operator, (boxes, scores, True, 0.3, 0.5, 0.01, 10, torch.arange(30) % 3))
    torch.library.opcheck(operator, (boxes.double(), scores.half(), False, 0.3, 0.5, 0.01, 2**40))
    torch.library.opcheck(operator, (boxes[:0], scores[:0], False, 0.3, 0.5, 0.01, 5))


def test_compiled_without_a_graph_break():
    def rescore(boxes, scores):
        indices, rescored = ops.soft_nms(boxes * 2, scores, "gaussian", score_threshold=0.1)
        return boxes[indices] + 1, rescored * 2

    compiled = torch.compile(rescore, fullgraph=True, backend="aot_eager")
    for count in (40, 90):
        boxes, scores = uniform(count, seed=count)
        for ours, expected in zip(compiled(boxes, scores), rescore(boxes, scores), strict=True):
            assert torch.equal(ours, expected)
    scores.requires_grad_()
    (ours,) = torch.autograd.grad(compiled(boxes, scores)[1].sum(), scores)
    (expected,) = torch.autograd.grad(rescore(boxes, scores)[1].sum(), scores)
    assert torch.equal(ours, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 31, 33, 1000, 2500, 9000])  # the last does not fit in shared memory
def test_cuda_gives_the_result_of_the_cpu(gpu, count, kind, method):  # noqa: F811
    boxes, scores = kind(count, seed=count)
    idxs = torch.arange(count) * 7 % 5
    for classes in (None, idxs):
        arguments = method, 0.3, 0.5, 0.01, 700
        indices, rescored = ops.soft_nms(boxes, scores, *arguments, classes)
        there = None if classes is None else classes.to(gpu)
        result = ops.soft_nms(boxes.to(gpu), scores.to(gpu), *arguments, there)
        assert torch.equal(result[0].cpu(), indices)  # the same arithmetic, rounded alike: no tolerance
        assert torch.equal(result[1].cpu(), rescored)


@pytest.mark.cuda
def test_cuda_16_bit_and_derivative(gpu):  # noqa: F811
    boxes, scores = uniform(300, seed=9)
    here = ops.soft_nms(boxes.bfloat16(), scores.bfloat16())
    there = ops.soft_nms(boxes.bfloat16().to(gpu), scores.bfloat16().to(gpu))
    assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(there, here, strict=True))
    gradients = []
    for device in ("cpu", gpu):
        leaf = scores.to(device).requires_grad_()
        gradients.append(torch.autograd.grad(ops.soft_nms(boxes.to(device), leaf)[1].sum(), leaf)[0].cpu())
    assert torch.equal(*gradients)
    with pytest.raises(RuntimeError, match="boxes: expected fp32, fp16 or bf16 on the GPU, got fp64"):
        ops.soft_nms(boxes.to(gpu).double(), scores.to(gpu))
