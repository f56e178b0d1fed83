"""Blocks priced as the sum of their operators, where a table holds single layers instead of blocks.

    measured      the table has an entry for this very layer
    interpolated  a convolution between those of the table (`grid.py`); its interval comes from the grid's cross-validation
    modelled      everything else, by the bytes-and-operations model fitted to the table's convolutions (`roofline.py`)

What is modelled, and how far off it may be (relative, 90 %):
- convolutions that the grid does not reach, other kernels, linear layers as the 1x1 convolution over as many pixels: the model's
  own error on the convolutions that it was fitted to;
- grouped convolutions: halfway (geometric mean) between the dense and the depthwise model, never less far off than either;
- pooling, upsampling, group norm, fusion and other passes over memory: the depthwise model;
- RoIAlign, proposal selection, suppression: the depthwise model, a start for every kernel; nothing like it is in the table, so
  the interval reaches from nothing to twice.
Entries that were imported do not tell activations apart: those of the blocks are taken to be free.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from fastnas.blueprint.blocks import Shapes, Spec
from fastnas.blueprint.operators import Conv, Linear, Operator, Pass
from fastnas.errors import InputError
from fastnas.latency.convolutions import IMAGE, Convolutions, grid_ratio, is_depthwise
from fastnas.latency.estimate import QUANTILE, Estimate, interpolated, modelled, summed
from fastnas.latency.grid import Grid
from fastnas.latency.roofline import FEWEST, Roofline, bytes_of, fit
from fastnas.latency.table import Environment, LatencyTable
from fastnas.latency.timing import Timing

GUESS = 1.0  # how far off a model may be that was fitted to nothing of its kind


class OperatorPrices:
    """Prices layers and blocks with one environment's operator entries. What it reads, it reads when first asked."""

    def __init__(self, table: LatencyTable, row: Environment, description: Mapping):
        self._table, self._row, self._description = table, row, description
        self._imported = "imported" in description
        self._grids: dict[tuple, Grid | None] = {}
        self._known: dict[tuple[Spec, Shapes], Timing] = {}

    def block(self, spec: Spec, inputs: Shapes) -> Estimate:
        """The sum of a block's layers. Raises InputError naming what can be priced in no way."""
        return summed([self.layer(operator, shapes) for operator, shapes in spec.operators(inputs)])

    def layer(self, operator: Operator, inputs: Shapes) -> Timing:
        """One operator. Raises InputError where nothing in the table is like it."""
        pair = operator, inputs
        if pair not in self._known:
            self._known[pair] = self._price(operator, inputs)
        return self._known[pair]

    def _price(self, operator: Operator, inputs: Shapes) -> Timing:
        found = self._table.get(self._row, operator.key(inputs))
        if isinstance(operator, Conv):
            if self._imported and operator.activation:
                return self._price(replace(operator, activation=""), inputs)
            return found or self._conv(operator, inputs)
        if isinstance(operator, Linear):
            rows, conv = inputs[0][0], Conv(operator.in_features, operator.out_features, 1)
            return found or _no_kin(self._conv(conv, ((1, operator.in_features, rows, 1),)), self._model(False).error)
        model = self._model(True)
        ms = self._modelled(model, operator, inputs, chain=0)
        return found or modelled(ms, model.error if isinstance(operator, Pass) else GUESS)

    def _conv(self, conv: Conv, inputs: Shapes) -> Timing:
        depthwise = is_depthwise(conv.groups, conv.in_channels, conv.out_channels)
        if conv.groups > 1 and not depthwise:
            models = [self._model(False), self._model(True)]
            slow, fast = (self._modelled(model, conv, inputs) for model in models)
            ms = math.sqrt(slow * fast)
            return modelled(ms, max(slow / ms, fast / ms) - 1 + max(model.error for model in models))
        model = self._model(depthwise)
        ms = self._modelled(model, conv, inputs)
        grid = self._grid((depthwise, conv.kernel, conv.stride, len(inputs) > 1, conv.in_channels < IMAGE and not depthwise))
        if grid is None:
            return modelled(ms, model.error)
        n, cin, h, w = inputs[0]
        between = grid(float(grid_ratio(cin, conv.out_channels)), conv.out_channels, math.sqrt(n * h * w))
        ms, error = ms * between.ratio, grid.error(between.axes)
        if not between.inside:
            return modelled(ms, model.error)
        return interpolated(ms, model.error if error is None else error)

    def _modelled(self, model: Roofline, operator: Operator, inputs: Shapes, chain: int | None = None) -> float:
        if chain is None:
            chain = operator.in_channels // operator.groups * operator.kernel**2
        return model(chain, operator.operations(inputs), operator.traffic(inputs) * self._bytes, operator.launches(inputs))

    def _grid(self, family: tuple) -> Grid | None:
        """The grid of (depthwise, kernel, stride, fused sum, image); None: the table has none."""
        if family not in self._grids:
            found = self.convs.select(family)
            if len(found.ms):
                modelled_ms = self._model(family[0])(*found.features(self._bytes))
                self._grids[family] = Grid(found.points(), found.ms, modelled_ms)
            else:
                self._grids[family] = None
        return self._grids[family]

    def _model(self, depthwise: bool) -> Roofline:
        found = self.models[depthwise]
        if found is None:
            kind = "depthwise" if depthwise else "dense"
            raise InputError(f"it holds fewer than {FEWEST} {kind} convolutions of one map, too few to price others by")
        return found

    @cached_property
    def _bytes(self) -> int:
        return bytes_of(self._description["precision"])

    @cached_property
    def models(self) -> dict[bool, Roofline | None]:
        """The models by whether they are of depthwise convolutions."""
        parts = {depthwise: self.convs.of_kind(depthwise) for depthwise in (False, True)}
        return {depthwise: fit(*part.features(self._bytes), part.ms) for depthwise, part in parts.items()}

    @cached_property
    def convs(self) -> Convolutions:
        """All convolutions of one map that the environment holds."""
        return Convolutions.read(self._table, self._row)


def _no_kin(found: Timing, doubt: float) -> Estimate:
    """What stands for a layer that the table does not hold, however it was found."""
    return modelled(found.median_ms, max(doubt, found.doubt if isinstance(found, Estimate) else 0.0, QUANTILE * found.spread))
