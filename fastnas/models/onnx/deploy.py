"""A trained detector as it is deployed: pixels in, for one image or several; the blocks are those that are timed.

Blocks whose outputs hold one entry an image (maps) run on all images together; the others (proposals, regions, suppression) work on
one image and are repeated for each: written out where the number of images is fixed, in a Loop where it is not. Their weights are
stored once.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from fastnas.blueprint import blocks as b
from fastnas.blueprint.wiring import DETECTIONS, IMAGE, Block, Network, Use
from fastnas.errors import InputError
from fastnas.models.onnx.build import emit, output_dtypes
from fastnas.models.onnx.graph import Graph
from fastnas.models.onnx.weights import StateWeights
from fastnas.models.pixels import scale_and_shift

BATCH = "batch"  # name of a number of images that is known when the network runs
Step = tuple[Block, Use]


def deployed_model(
    network: Network, weights: Mapping[str, np.ndarray], outputs: Sequence[str] = DETECTIONS, batch: int | None = 1,
    static: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """Input `image`: float32 (N, 3, H, W), RGB, 0 to 255; it is normalized inside. Outputs: the values of these names, image first.

    A value of (R, 4) for one image comes as (N, R, 4); `boxes` (N, D, 4) in input pixels, `scores` (N, D) and `labels` (N, D), of
    which rows with score 0 are no detections. batch: number of images N, None: any. static: see `Graph`.
    Raises InputError: weights of another blueprint; any number of images in a static graph, but some block works on one.
    """
    graph, source = Graph(static, batch), StateWeights(weights)
    size = BATCH if batch is None else batch
    image = graph.input(IMAGE, (size, *network.shapes[IMAGE][1:]))
    scale, shift = scale_and_shift()
    values = {IMAGE: graph.add("Add", graph.add("Mul", image, graph.constant(scale)), graph.constant(shift))}
    together, alone = _divide(network, outputs)
    if batch is None and static and alone:
        other = " or leave the suppression out" if alone == [network.steps[-1]] else ""
        raise InputError(f"TensorRT does not repeat {alone[0][0].name} for any number of images: give the number{other}")
    for block, use in together:
        values.update(zip(use.outputs, emit(graph, source, block, use, [values[name] for name in use.inputs]), strict=True))
    dtypes = {name: dtype for block, use in (*together, *alone) for name, dtype in _dtypes(block, use)}
    behind = [name for name in outputs if name not in values]

    def of_image(index: str) -> list[tuple[str, b.Shape, np.dtype]]:
        """Values of the image at `index` (1,)."""
        own: dict[str, str] = {}
        for block, use in alone:
            for name in use.inputs:
                if name not in own:
                    own[name] = values[name] if batch == 1 else _at(graph, values[name], index)
            own.update(zip(use.outputs, emit(graph, source, block, use, [own[name] for name in use.inputs]), strict=True))
        return [(own[name], network.shapes[name], dtypes[name]) for name in behind]

    images = graph.add("Slice", graph.add("Shape", image), *map(graph.integers, (0, 1))) if batch is None else batch
    stacked = dict(zip(behind, graph.each_image(images, of_image) if behind else (), strict=True))
    shapes = {name: network.shapes[name][1:] if name in values else network.shapes[name] for name in outputs}
    return graph.model([(values.get(name) or stacked[name], name, (size, *shapes[name]), dtypes[name]) for name in outputs])


def raw_outputs(network: Network) -> tuple[str, ...]:
    """What the final suppression reads: the outputs of a detector that is exported without it."""
    return network.steps[-1][1].inputs


def map_outputs(network: Network) -> tuple[str, ...]:
    """What the first block that works on one image reads of those that take several."""
    together, alone = _divide(network, DETECTIONS)
    made = {name for _, use in together for name in use.outputs}
    return tuple(name for name in alone[0][1].inputs if name in made)


def _divide(network: Network, outputs: Sequence[str]) -> tuple[list[Step], list[Step]]:
    """Steps until all `outputs` are made: those that run on several images at once, and those that work on one."""
    together, alone, made, several = [], [], set(), {IMAGE}
    for block, use in network.steps:
        if made.issuperset(outputs):
            break
        made.update(use.outputs)
        if several.issuperset(use.inputs) and _takes_images(block, use):
            several.update(use.outputs)
            together.append((block, use))
        else:
            alone.append((block, use))
    return together, alone


def _takes_images(block: Block, use: Use) -> bool:
    """Whether a use whose inputs hold several images has outputs that do, by the block's own arithmetic."""
    sizes = [block.spec.outputs(tuple((images, *shape[1:]) for shape in use.input_shapes)) for images in (2, 3)]
    return all(shape[0] == images for images, shapes in zip((2, 3), sizes, strict=True) for shape in shapes)


def _dtypes(block: Block, use: Use) -> Iterator[tuple[str, np.dtype]]:
    return zip(use.outputs, output_dtypes(block.spec, len(use.outputs)), strict=True)


def _at(graph: Graph, value: str, index: str) -> str:
    """The image at `index` (1,) of a value that holds several."""
    return graph.add("Slice", value, index, graph.add("Add", index, graph.integers(1)), graph.integers(0))
