"""Weights files: what was saved comes back, and a file that does not describe itself is refused by name."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from fastnas.blueprint import parse
from fastnas.errors import InputError
from fastnas.models.weights import load_weights, save_weights

TEXT = "64x64/basic:1-1/fpn:16/rpn:10/rcnn:32/classes:2"
GOOD = {"format": "fastnas", "blueprint": TEXT, "classes": json.dumps(["cat", "dog"])}


def test_weights_come_back_with_blueprint_and_classes(tmp_path):
    model = nn.Linear(3, 2)
    save_weights(tmp_path / "w.safetensors", model, parse(TEXT), ["cat", "dog"])
    blueprint, classes, state = load_weights(tmp_path / "w.safetensors")
    assert blueprint == parse(TEXT) and classes == ["cat", "dog"]
    assert torch.equal(state["weight"], model.weight) and torch.equal(state["bias"], model.bias)


@pytest.mark.parametrize(
    "change",
    [
        {"format": None}, {"format": "other"}, {"blueprint": None}, {"blueprint": "nonsense"}, {"classes": None},
        {"classes": "["}, {"classes": "3"}, {"classes": '{"a": 1}'}, {"classes": '["a", 2]'}, {"classes": "[" * 100_000},
    ],
)  # fmt: skip
def test_a_wrong_description_names_the_file(tmp_path, change):
    metadata = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    (tmp_path / "w.safetensors").write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, metadata))
    with pytest.raises(InputError, match="w.safetensors") as caught:
        load_weights(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


def test_missing_and_cut_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no weights file"):
        load_weights(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(safetensors.torch.save({"a": torch.zeros(9)}, GOOD)[:-4])
    with pytest.raises(InputError, match="cannot read the weights"):
        load_weights(tmp_path / "w.safetensors")
