"""Blocks and whole networks as ONNX (batch 1, NCHW, float32, static shapes). Imports numpy and onnx, never torch.

    block_model(spec, input_shapes)    one block with random weights, to be timed
    network_model(network)             a whole detector: random weights, or a trained module's state dict
    block_inputs, network_inputs       arrays to time them with
    in_precision(model, precision)     the model in fp16 or int8, where it is deployed so
"""

from fastnas.models.onnx.build import EMITTERS, block_inputs, block_model, network_inputs, network_model
from fastnas.models.onnx.precision import in_precision

__all__ = ["EMITTERS", "block_inputs", "block_model", "in_precision", "network_inputs", "network_model"]
