"""A trained detector as it is deployed: pixels in, for one image or several; the blocks are those that are timed.

Blocks whose outputs hold one entry an image (maps) run on all images together; the others (proposals, regions, suppression) work on
one image and are repeated for each. Their weights are stored once.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from fastnas.blueprint.wiring import DETECTIONS, IMAGE, Block, Network, Use
from fastnas.errors import InputError
from fastnas.models.onnx.build import emit, output_dtypes
from fastnas.models.onnx.graph import Graph
from fastnas.models.onnx.weights import StateWeights
from fastnas.models.pixels import scale_and_shift

BATCH = "batch"  # name of a number of images that is known when the network runs


def deployed_model(
    network: Network, weights: Mapping[str, np.ndarray], outputs: Sequence[str] = DETECTIONS, batch: int | None = 1,
    static: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """Input `image`: float32 (N, 3, H, W), RGB, 0 to 255; it is normalized inside. Outputs: the values of these names, image first.

    A value of (R, 4) for one image comes as (N, R, 4); `boxes` (N, D, 4) in input pixels, `scores` (N, D) and `labels` (N, D), of
    which rows with score 0 are no detections. batch: number of images N, None: any. static: see `Graph`.
    Raises InputError: any number of images, but some block works on one; weights of another blueprint.
    """
    graph, source = Graph(static, batch), StateWeights(weights)
    size = BATCH if batch is None else batch
    image = graph.input(IMAGE, (size, *network.shapes[IMAGE][1:]))
    scale, shift = scale_and_shift()
    normalized = graph.add("Add", graph.add("Mul", image, graph.constant(scale)), graph.constant(shift))
    together, alone = {IMAGE: normalized}, [{} for _ in range(batch or 0)]
    dtypes: dict[str, np.dtype] = {}
    for block, use in network.steps:
        if set(outputs) <= dtypes.keys():
            break
        dtypes.update(zip(use.outputs, output_dtypes(block.spec, len(use.outputs)), strict=True))
        if takes_images(block, use, together):
            together.update(zip(use.outputs, emit(graph, source, block, use, [together[name] for name in use.inputs]), strict=True))
            continue
        if batch is None:
            other = " or leave the suppression out" if (block, use) == network.steps[-1] else ""
            raise InputError(f"any number of images is not possible, for {block.name} works on one: give the number{other}")
        for index, own in enumerate(alone):
            inputs = [own.get(name) or _one(graph, own, together[name], name, index) for name in use.inputs]
            own.update(zip(use.outputs, emit(graph, source, block, use, inputs), strict=True))
    given = []
    for name in outputs:
        whole, shape = together.get(name), network.shapes[name]
        shape = (size, *shape[1:]) if whole else (size, *shape)
        given.append((whole or _stacked(graph, [own[name] for own in alone]), name, shape, dtypes[name]))
    return graph.model(given)


def raw_outputs(network: Network) -> tuple[str, ...]:
    """What the final suppression reads: the outputs of a detector that is exported without it."""
    return network.steps[-1][1].inputs


def map_outputs(network: Network) -> tuple[str, ...]:
    """What the first block that works on one image reads of those that take several."""
    together = {IMAGE}
    for block, use in network.steps:
        if not takes_images(block, use, together):
            return tuple(name for name in use.inputs if name in together)
        together.update(use.outputs)
    return network.steps[-1][1].outputs


def takes_images(block: Block, use: Use, together) -> bool:
    """Whether a use runs on several images at once: its inputs hold them, and so do its outputs, by the block's own arithmetic."""
    if not all(name in together for name in use.inputs):
        return False
    sizes = [block.spec.outputs(tuple((images, *shape[1:]) for shape in use.input_shapes)) for images in (2, 3)]
    return all(shape[0] == images for images, shapes in zip((2, 3), sizes, strict=True) for shape in shapes)


def _one(graph: Graph, own: dict[str, str], value: str, name: str, index: int) -> str:
    """One image of a value that holds several."""
    if graph.batch != 1:
        value = graph.add("Slice", value, graph.integers(index), graph.integers(index + 1), graph.integers(0))
    own[name] = value
    return value


def _stacked(graph: Graph, values: list[str]) -> str:
    rows = [graph.add("Unsqueeze", value, graph.integers(0)) for value in values]
    return graph.add("Concat", *rows, axis=0) if len(rows) > 1 else rows[0]
