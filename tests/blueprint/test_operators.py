"""The operators of blocks, against the blocks' own counts and the modules that are built from the same specs."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings

from fastnas.blueprint import PRESETS, expand
from fastnas.blueprint.blocks import MobileBlock, Residual, Spec
from fastnas.blueprint.operators import PASSES, Conv, Linear, Operator, Pass
from fastnas.errors import InputError
from fastnas.models.blocks import build_block
from tests.strategies import blueprints


@given(blueprints())
def test_operators_do_the_work_of_their_block_and_end_in_its_output(blueprint):
    for block, use in expand(blueprint).steps:
        operators = block.spec.operators(use.input_shapes)
        assert sum(op.macs(inputs) for op, inputs in operators) == block.spec.macs(use.input_shapes)
        made = [shape for op, inputs in operators for shape in op.outputs(inputs)]
        known = {*use.input_shapes, *made}
        assert all(shape in known for _, inputs in operators for shape in inputs), "an operator reads what nobody made"
        assert set(use.output_shapes) <= set(made)
        for op, inputs in operators:
            assert isinstance(op, Operator) and op.operators(inputs) == ((op, inputs),)
            assert op.traffic(inputs) > 0 and op.operations(inputs) >= 0 and op.launches(inputs) > 0
            assert not isinstance(op, Pass) or op.kind in PASSES
            for added in inputs[1:] if isinstance(op, Conv) else ():
                assert added == op.outputs(inputs)[0], "a sum behind a convolution is over equal shapes"


@given(blueprints())
@settings(max_examples=15)
def test_operators_hold_the_weights_of_the_module(blueprint):
    for block in expand(blueprint).blocks:
        with torch.device("meta"):
            module = build_block(block.spec)
        built = sum(p.numel() for p in module.parameters() if p.ndim > 1) if module else 0
        operators = [op for op, _ in block.spec.operators(block.uses[0].input_shapes)]
        if operators == [block.spec]:
            continue  # no sum of layers
        layers = [op for op in operators if isinstance(op, Conv | Linear)]
        biases = sum(op.out_channels if isinstance(op, Conv) else op.out_features for op in layers)
        assert sum(op.params() for op in layers) - biases == built, block.name


def test_a_projecting_bottleneck():
    operators = Residual("bottleneck", 256, 128, 2, "bn").operators(((1, 256, 56, 56),))
    assert operators == (
        (Conv(256, 512, 1, 2), ((1, 256, 56, 56),)),
        (Conv(256, 128, 1, 1, 1, "relu"), ((1, 256, 56, 56),)),
        (Conv(128, 128, 3, 2, 1, "relu"), ((1, 128, 56, 56),)),
        (Conv(128, 512, 1, 1, 1, "relu"), ((1, 128, 28, 28), (1, 512, 28, 28))),
    )


def test_a_group_norm_is_a_layer_of_its_own():
    operators = Residual("basic", 16, 16, 1, "gn").operators(((1, 16, 8, 8),))
    assert [op.op if isinstance(op, Conv) else op.kind for op, _ in operators] == ["conv", "group-norm"] * 2
    assert operators[-1][1] == ((1, 16, 8, 8), (1, 16, 8, 8))


def test_the_smallest_sizes_stride_once():
    # At 1x1 a stride changes no size: it must still be in exactly one convolution.
    operators = Residual("basic", 8, 16, 2, "bn").operators(((1, 8, 1, 1),))
    assert [op.stride for op, _ in operators] == [2, 2, 1]


def test_a_mobile_block_without_expansion_adds_its_input():
    operators = MobileBlock(16, 16, 1, 3, 1, "same", "tf").operators(((1, 16, 10, 12),))
    assert operators[0][0] == Conv(16, 16, 3, 1, 16, "silu")
    assert operators[-1] == (Conv(16, 16, 1), ((1, 16, 10, 12), (1, 16, 10, 12)))


def test_a_kind_that_does_not_say_its_operators_is_refused_by_name():
    @dataclass(frozen=True)
    class Unknown(Spec):
        op = "unheard-of"

    with pytest.raises(InputError, match="unheard-of"):
        Unknown().operators(((1, 3, 8, 8),))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_block_of_every_preset_says_its_operators(name):
    for spec, shapes in expand(PRESETS[name]).prices():
        assert spec.operators(shapes)
