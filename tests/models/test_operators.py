"""Single layers: the ONNX form and the module of every operator of every block do the same work."""

import numpy as np
import onnxruntime
import pytest
import torch

from fastnas.blueprint import expand, operators, parse
from fastnas.models.blocks import build_block
from fastnas.models.onnx import block_inputs, block_model

NETWORKS = [
    "96x96/basic:1-2-1,base=16/fpn:16/rpn:20,topk=50/rcnn:16/classes:3",
    "64x96/bottleneck:1-2,base=16,stem=3x3,norm=gn/fpn:16/rpn:20,topk=50/rcnn:16/classes:3",
    "64x64/resnext32x4d:1-2,base=16,stem=3x3/fpn:16/rpn:20,topk=50/rcnn:16/classes:3",
    "96x96/efficientnet:0.35x0.4,padding=symmetric/bifpn:24,levels=3-6,repeats=2,padding=symmetric/effdet:1/classes:3",
]


def layers():
    pairs = [pair for text in NETWORKS for priced in expand(parse(text)).prices() for pair in priced[0].operators(priced[1])]
    return [pair for pair in dict.fromkeys(pairs) if type(pair[0]) in (operators.Conv, operators.Linear, operators.Pass)]


def test_every_kind_of_layer_comes_up():
    found = layers()
    assert {spec.kind for spec, _ in found if isinstance(spec, operators.Pass)} == set(operators.PASSES)
    assert {spec.activation for spec, _ in found if isinstance(spec, operators.Conv)} == {"", "relu", "silu", "sigmoid"}
    assert len(found) > 100


def test_module_and_onnx_agree():
    for spec, shapes in layers():
        module, inputs = build_block(spec).eval(), block_inputs(spec, shapes)
        state = {f"block.{name}": value.numpy() for name, value in module.state_dict().items()}
        model = block_model(spec, shapes, weights=state)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        [found] = session.run(None, inputs)
        with torch.no_grad():
            expected = module(*map(torch.from_numpy, map(np.array, inputs.values()))).numpy()
        assert found.shape == spec.outputs(shapes)[0], spec
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4, err_msg=str(spec))


@pytest.mark.parametrize("text", NETWORKS)
def test_the_layers_of_a_block_have_its_macs(text):
    for spec, shapes in expand(parse(text)).prices():
        assert sum(layer.macs(inputs) for layer, inputs in spec.operators(shapes)) == spec.macs(shapes)
