"""Training of one candidate: it learns, it stops at NaN, it repeats, and its parts do what their formulas say."""

import json

import pytest
import torch

from fastnas.blueprint import Lineage, parse
from fastnas.data.dataset import get_data
from fastnas.models import build
from fastnas.models.weights import load_weights
from fastnas.train.config import TrainConfig
from fastnas.train.ema import Ema
from fastnas.train.evaluator import Evaluator, Job
from fastnas.train.loop import Diverged, make_optimizer, schedule, train
from fastnas.train.precision import autocast, bf16_pays

BLUEPRINT = parse("64x80/basic:1-2,base=8,stem=3x3/fpn:16/rpn:20,scale=4,topk=50/rcnn:16/classes:3")
CONFIG = TrainConfig(batch_size=8, lr=3e-3)


@pytest.fixture(scope="module")
def data(shapes):
    return get_data(shapes, "train", (64, 80)), get_data(shapes, "val", (64, 80))


def fresh(seed=0):
    torch.manual_seed(seed)
    return build(BLUEPRINT)


def test_the_loss_falls_and_is_logged(data):
    lines = []
    averaged = train(fresh(), data[0], CONFIG, 8, 0, lines.append)
    assert lines[-1]["epoch"] == 8 and lines[-1]["lr"] < CONFIG.lr / 5
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[-1]["loss"] == pytest.approx(sum(lines[-1]["losses"].values()))
    assert not averaged.training and not any(p.requires_grad for p in averaged.parameters())


def test_the_same_seed_gives_the_same_weights(data):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, two, other = (train(fresh(), data[0], CONFIG, 1, seed).state_dict() for seed in (3, 3, 4))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_divergence_is_recorded_and_leaves_no_weights(data, tmp_path):
    config = CONFIG.model_copy(update={"lr": 1e12, "clip": 1e12, "warmup": 0.0})  # past the bounds of a config file
    with pytest.raises(Diverged, match="epoch"):
        train(fresh(), data[0], config, 4, 0)
    outcome = Evaluator(*data, config).evaluate(Job(BLUEPRINT, tmp_path, "weights.safetensors", "search", 4, 0))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert outcome.error and lines[-1]["error"] == outcome.error
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_job_writes_weights_that_name_their_blueprint_and_a_child_starts_from_them(data, tmp_path):
    evaluator = Evaluator(*data, CONFIG)
    shares = []
    first = evaluator.evaluate(Job(BLUEPRINT, tmp_path, "weights.safetensors", "search", 1, 0), shares.append)
    assert shares[-1] == 1 and not first.error and 0 <= first.metrics["ap"] <= 1
    blueprint, classes, state = load_weights(tmp_path / "weights.safetensors")
    assert blueprint == BLUEPRINT and len(classes) == 3 and set(state) == set(fresh().state_dict())
    (tmp_path / "final").mkdir()
    own = {name: name for name in fresh().blocks}
    job = Job(BLUEPRINT, tmp_path / "final", "w.safetensors", "final", 0, 0, tmp_path / "weights.safetensors", Lineage(0, (), own))
    again = evaluator.evaluate(job)
    assert again.metrics == pytest.approx(first.metrics, abs=1e-9), "zero epochs keep the weights, pycocotools agrees"


def test_metrics_of_another_phase_are_kept(data, tmp_path):
    from fastnas.train.evaluator import write_metrics

    file = tmp_path / "metrics.jsonl"
    write_metrics(file, "search", [{"phase": "search", "epoch": 1}])
    write_metrics(file, "final", [{"phase": "final", "epoch": 1}, {"phase": "final", "epoch": 2}])
    write_metrics(file, "final", [{"phase": "final", "epoch": 3}])
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"phase": "search", "epoch": 1},
        {"phase": "final", "epoch": 3},
    ]


def test_schedule_warms_up_and_follows_a_cosine():
    rates = [schedule(step, 100, 0.1, 0.01) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == 1 and rates[55] == pytest.approx(0.505) and rates[99] < 0.012
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_norms_and_biases_are_not_decayed():
    detector = fresh()
    decayed, plain = make_optimizer(detector, CONFIG).param_groups
    assert all(p.ndim > 1 for p in decayed["params"]) and plain["weight_decay"] == 0
    assert len(decayed["params"]) + len(plain["params"]) == len(list(detector.parameters()))


def test_ema_follows_its_formula():
    model = torch.nn.BatchNorm1d(2)
    ema, expected = Ema(model, 0.9), model.weight.detach().clone().double()
    for step in range(1, 200):
        with torch.no_grad():
            model.weight.fill_(step)
        model.num_batches_tracked += 1
        ema.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(ema.model.weight.double(), expected, rtol=1e-5, atol=0)
    assert ema.model.num_batches_tracked == 199


def test_bf16_is_used_where_the_processor_has_it():
    weight = torch.nn.Linear(8, 8)
    with autocast("auto"):
        assert weight(torch.ones(1, 8)).dtype == (torch.bfloat16 if bf16_pays() else torch.float32)
    with autocast("fp32"):
        assert weight(torch.ones(1, 8)).dtype == torch.float32
    with autocast("bf16"):
        assert weight(torch.ones(1, 8)).dtype == torch.bfloat16
