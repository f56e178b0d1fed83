"""A search whose ancestor starts from weights: only the ancestor does, and only with its own backbone."""

import pytest
import torch

from fastnas.blueprint import parse
from fastnas.errors import InputError
from fastnas.models import build
from fastnas.models.weights import load_weights, save_state
from fastnas.search import run
from fastnas.search.study import Study
from fastnas.train.config import TrainConfig
from fastnas.train.evaluator import Evaluator, Job
from tests.search.fakes import ANCESTOR, config, drive


@pytest.fixture
def backbone(tmp_path):
    torch.manual_seed(0)
    blueprint = parse(ANCESTOR)
    state = {name: tensor for name, tensor in build(blueprint).state_dict().items() if name.startswith("backbone.")}
    save_state(tmp_path / "backbone.safetensors", state, blueprint, [])
    return tmp_path / "backbone.safetensors"


def test_the_ancestor_alone_starts_from_them(tmp_path, backbone):
    settings = config(candidates=4, init=str(backbone))
    with Study.create(tmp_path / "s", "spnas", settings.model_dump(mode="json")) as study:
        _, evaluator = drive(study, settings)
    search = [job for job in evaluator.jobs if job.phase == "search"]
    assert search[0].init == backbone and search[0].origin is None
    assert all(job.init is None and job.origin for job in evaluator.jobs if job is not search[0])


def test_it_is_evaluated_with_them(tmp_path, backbone, shapes):
    from fastnas.data.pair import open_pair

    train, val = open_pair(shapes, (64, 80))
    evaluator = Evaluator(train, val, TrainConfig())
    evaluator.evaluate(Job(parse(ANCESTOR), tmp_path, "w.safetensors", "search", 0, seed=5, init=backbone))
    own, given = load_weights(tmp_path / "w.safetensors")[2], load_weights(backbone)[2]
    assert all(torch.equal(own[name], tensor) for name, tensor in given.items())


def test_weights_of_another_backbone_are_refused_before_anything_is_written(tmp_path, backbone, shapes):
    other = ANCESTOR.replace("1-2-1", "1-2-2")
    for init, says in ((backbone, "does not hold the backbone"), (tmp_path / "none", "no weights file")):
        changes = (f"init={init}", f"data.root={shapes}", f"ancestor={other}", f"table={tmp_path / 't.db'}")
        with pytest.raises(InputError, match=says):
            run("spnas", tmp_path / "s", None, changes)
    assert [path.name for path in tmp_path.iterdir()] == [backbone.name]
