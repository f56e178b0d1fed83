"""Blocks and whole networks as ONNX (batch 1, NCHW, float32, static shapes). Imports numpy and onnx, never torch.

    block_model(spec, input_shapes)    one block with random weights, to be timed
    network_model(network)             a whole detector: random weights, or a trained module's state dict
    deployed_model(network, weights)   a trained detector that takes pixels, for one image or several, to be exported
    block_inputs, network_inputs       arrays to time them with
    in_precision(model, precision)     the model in fp16 or int8, where it is deployed so
"""

from fastnas.models.onnx.build import EMITTERS, block_inputs, block_model, network_inputs, network_model
from fastnas.models.onnx.deploy import deployed_model, map_outputs, raw_outputs
from fastnas.models.onnx.precision import in_precision

__all__ = [
    "EMITTERS", "block_inputs", "block_model", "deployed_model", "in_precision", "map_outputs", "network_inputs", "network_model",
    "raw_outputs",
]  # fmt: skip
