"""Specs and expanded networks -> ONNX models. A new kind of block registers its emitter in EMITTERS."""

from collections.abc import Mapping

import numpy as np
import onnx

from fastnas.blueprint import blocks as b
from fastnas.blueprint import operators as o
from fastnas.blueprint.wiring import DETECTIONS, IMAGE, Block, Network, Use
from fastnas.models.onnx import boxes, efficientdet, guided, layers, mobile, one_stage, operators, synthetic
from fastnas.models.onnx.graph import Graph
from fastnas.models.onnx.weights import RandomWeights, StateWeights, Weights, normal

EMITTERS = {
    b.Stem: layers.emit_stem,
    b.Residual: layers.emit_residual,
    b.Connector: layers.emit_connector,
    b.SiluStem: mobile.emit_stem,
    b.MobileBlock: mobile.emit_inverted_bottleneck,
    b.Relu6Stem: mobile.emit_stem,
    b.InvertedResidual: mobile.emit_inverted_bottleneck,
    b.FpnLevel: layers.emit_fpn_level,
    b.MaxPoolLevel: layers.emit_max_pool_level,
    b.ConvLevel: layers.emit_conv_level,
    b.CoarserLevel: efficientdet.emit_coarser_level,
    b.FusionNode: efficientdet.emit_fusion_node,
    b.ConvTower: layers.emit_conv_tower,
    b.HeadTower: efficientdet.emit_head_tower,
    b.RpnHead: layers.emit_rpn_head,
    b.BoxHead: layers.emit_box_head,
    b.RegionPredictor: layers.emit_region_predictor,
    b.Proposals: boxes.emit_proposals,
    b.GuidedHead: guided.emit_guided_head,
    b.GuidedProposals: guided.emit_guided_proposals,
    b.Refine: boxes.emit_refine,
    b.RoiPool: boxes.emit_roi_pool,
    b.Detections: boxes.emit_detections,
    b.AnchorDetections: one_stage.emit_anchor_detections,
    b.RetinaDetections: one_stage.emit_anchor_detections,
    o.Conv: operators.emit_conv,
    o.Linear: operators.emit_linear,
    o.Pass: operators.emit_pass,
}


def block_model(
    spec: b.Spec, input_shapes: b.Shapes, seed: int = 0, weights: Mapping[str, np.ndarray] | None = None, static: bool = False
) -> onnx.ModelProto:
    """One block at these input shapes as it is deployed. Inputs `in0`, `in1`, ..., outputs `out0`, ...

    weights: state dict of a network in which this block is called `block` (default: random numbers from `seed`).
    static: see `Graph`.
    """
    graph = Graph(static)
    inputs = [graph.input(f"in{index}", shape) for index, shape in enumerate(input_shapes)]
    results = EMITTERS[type(spec)](graph, _source(weights, seed), "block", spec, inputs, input_shapes)
    shapes = spec.outputs(input_shapes)
    rows = zip(results, shapes, output_dtypes(spec, len(shapes)), strict=True)
    return graph.model([(value, f"out{index}", shape, dtype) for index, (value, shape, dtype) in enumerate(rows)])


def block_inputs(spec: b.Spec, input_shapes: b.Shapes) -> dict[str, np.ndarray]:
    """What to run `block_model` with when it is timed; see `synthetic`."""
    return {f"in{index}": array for index, array in enumerate(synthetic.block_inputs(spec, input_shapes))}


def network_model(
    network: Network, weights: Mapping[str, np.ndarray] | None = None, synthetic_scores: bool = False, static: bool = False
) -> onnx.ModelProto:
    """The whole detector: input `image` (1, 3, H, W) as the backbone takes it, outputs `boxes`, `scores`, `labels`.

    weights: state dict of the torch module of the same blueprint as numpy arrays (default: random numbers).
    synthetic_scores: the blocks whose time depends on the data read the fixed synthetic scene from further inputs (see
    `network_inputs`); the values they would have read become outputs, so that no engine drops the work behind them.
    static: see `Graph`.
    Raises InputError where the weights belong to another blueprint.
    """
    graph, source = Graph(static), _source(weights)
    values = {IMAGE: graph.input(IMAGE, network.shapes[IMAGE])}
    outputs, dtypes = list(DETECTIONS), {}
    for block, use in network.steps:
        inputs = [values[name] for name in use.inputs]
        for index, name in replaced_inputs(block, use).items() if synthetic_scores else ():
            inputs[index] = graph.input(name, use.input_shapes[index])
            if use.inputs[index] not in outputs:
                outputs.append(use.inputs[index])
        values.update(zip(use.outputs, emit(graph, source, block, use, inputs), strict=True))
        dtypes.update(zip(use.outputs, output_dtypes(block.spec, len(use.outputs)), strict=True))
    return graph.model([(values[name], name, network.shapes[name], dtypes[name]) for name in outputs])


def emit(graph: Graph, weights: Weights, block: Block, use: Use, inputs: list[str]) -> list[str]:
    """Adds one use of a block that reads these values; returns the names of its outputs."""
    own = (use.index,) if block.spec.per_use else ()
    return EMITTERS[type(block.spec)](graph, weights, block.name, block.spec, inputs, use.input_shapes, *own)


def network_inputs(network: Network) -> dict[str, np.ndarray]:
    """What to run `network_model(network, synthetic_scores=True)` with: a noise image and the scene."""
    arrays = {IMAGE: normal(network.shapes[IMAGE], 1.0)}
    for block, use in network.steps:
        if replaced := replaced_inputs(block, use):
            scene = synthetic.block_inputs(block.spec, use.input_shapes)
            arrays.update({name: scene[index] for index, name in replaced.items()})
    return arrays


def output_dtypes(spec: b.Spec, outputs: int) -> tuple[np.dtype, ...]:
    """Of each output of a block: float32, except the labels."""
    if isinstance(spec, b.SUPPRESSIONS):
        return np.dtype(np.float32), np.dtype(np.float32), np.dtype(np.int64)
    return (np.dtype(np.float32),) * outputs


def _source(weights: Mapping[str, np.ndarray] | None, seed: int = 0) -> Weights:
    return RandomWeights(seed) if weights is None else StateWeights(weights)


def replaced_inputs(block: Block, use: Use) -> dict[int, str]:
    """Which inputs of a use are read from the scene when a whole network is timed, and the names of those values."""
    return {index: f"synthetic.{block.name}.{index}" for index in synthetic.replaced(block.spec, len(use.inputs))}
