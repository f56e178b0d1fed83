"""Standardised weights that are made once and used many times: the scope `with standardized(model):`.

A standardised weight depends on the weight alone, so all forward passes between two steps of the optimiser can share it:
micro-batches, recomputation under activation checkpoints, batches of an evaluation. Sharing one node of autograd's graph
among several backward passes would need retain_graph, and a checkpoint would run through it once per segment. So inside the
scope every layer gets its standardised weight as a leaf: backward passes end there and their gradients add up (fp32 from the
second on), and the end of the scope takes them through the standardisation, once, in one call.

Nothing is shared outside a scope, because torch cannot tell of every write (`weight.data.add_()`, numpy, a replayed CUDA graph).
Inside, each use compares the weight with what it was: the same tensor, at the same address, of the same version. The fused
optimisers of torch write without counting (seen in 2.14), so a scope counts for them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from fastnas.errors import FastnasError
from fastnas.ops._library import require_library
from fastnas.ops.standardize_weight import CONVENTIONS, standardize_weight, standardize_weights_backward


class Stamp(NamedTuple):
    """What a tensor was when it was read."""

    tensor: Tensor
    version: int
    address: int
    memory: Tensor  # an alias keeps the memory taken, so that no later tensor can lie at the same address

    @classmethod
    def of(cls, tensor: Tensor) -> "Stamp | None":
        """None for a tensor whose changes cannot be seen: made in inference mode, it has no version."""
        if tensor.is_inference():
            return None
        return cls(tensor, tensor._version, tensor.data_ptr(), tensor.detach())

    def holds(self, tensor: Tensor) -> bool:
        return tensor is self.tensor and tensor._version == self.version and tensor.data_ptr() == self.address


class Collector:
    """The gradient of one standardised weight, summed over the backward passes of a scope."""

    def __init__(self) -> None:
        self.grad: Tensor | None = None
        self.closed = False

    def __call__(self, value: Tensor) -> None:
        """Hook of the leaf. It must not hold the leaf, which would keep both until the garbage collection."""
        if self.closed:
            raise FastnasError("standardized: backward() after the end of the scope; call it inside `with standardized(model):`")
        grad, value.grad = value.grad, None
        # Micro-batches add up in fp32, as they would in the gradient of the weight.
        self.grad = grad if self.grad is None else self.grad.to(torch.promote_types(grad.dtype, torch.float32)).add_(grad)


class Held:
    """The standardised weight of one layer in a scope."""

    def __init__(self, layer: "Standardizing", value: Tensor, differentiable: bool):
        self.value = value
        self.stamps = [Stamp.of(tensor) for tensor in layer.sources()]
        self.collector = Collector()
        if differentiable and any(tensor.requires_grad for tensor in layer.sources()):
            value.requires_grad_()
            value.register_post_accumulate_grad_hook(self.collector)

    def is_fresh(self, layer: "Standardizing") -> bool:
        sources = layer.sources()
        return len(sources) == len(self.stamps) and all(
            stamp is not None and stamp.holds(tensor) for stamp, tensor in zip(self.stamps, sources, strict=True)
        )

    def has_changed(self, layer: "Standardizing") -> bool:
        """The layer has the same tensors but with other values; False also where others took their place."""
        pairs = zip(self.stamps, layer.sources(), strict=False)
        return any(stamp is not None and stamp.tensor is tensor and not stamp.holds(tensor) for stamp, tensor in pairs)


class Standardizing(nn.Module):
    """Base of a layer with standardised weights: `weight`, `gain` (or None), `scale`, `eps`, `convention`."""

    weight: Tensor
    gain: Tensor | None
    scale: float
    eps: float | None
    convention: str
    _held: Held | None = None  # set by `standardized`; never copied or pickled

    def sources(self) -> list[Tensor]:
        """The tensors that the standardised weight is made of."""
        return [self.weight] if self.gain is None else [self.weight, self.gain]

    def standardized_weight(self, dtype: torch.dtype | None = None, channels_last: bool | None = None) -> Tensor:
        """[O, I, kh, kw], from the scope around if there is one and the weight is still what it was, else made now."""
        held = None if torch.compiler.is_compiling() or torch.jit.is_tracing() else self._held
        if held is not None and self._serves(held):
            value = held.value if dtype is None else held.value.to(dtype)
            if channels_last is None:
                return value
            return value.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        return standardize_weight(
            self.weight, self.gain, self.eps, self.convention, dtype, scale=self.scale, channels_last=channels_last
        )

    def _serves(self, held: Held) -> bool:
        if not held.is_fresh(self):
            if held.collector.grad is not None and held.has_changed(self):
                raise FastnasError(
                    "standardized: a weight changed while gradients wait for the end of the scope;"
                    " leave `with standardized(model):` before the step of the optimiser"
                )
            return False
        if torch.is_grad_enabled():
            # A leaf made without gradients would lose this pass's; one made in inference mode cannot be kept for it.
            if held.value.is_inference() or (not held.value.requires_grad and any(t.requires_grad for t in self.sources())):
                return False
        # A graph that is replayed after the scope would read memory that is gone.
        return not (held.value.is_cuda and torch.cuda.is_current_stream_capturing())

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_held"}


@contextmanager
def standardized(model: nn.Module, dtype: torch.dtype | None = None, channels_last: bool = True) -> Iterator[None]:
    """Inside, every `WSConv2d` (and `WSConvGN`) of the model uses a standardised weight that is made here, all in one call.

        with standardized(model):
            for batch in micro_batches:
                loss(model(batch)).backward()      # gradients of the standardised weights add up
        optimizer.step()                           # the weights' gradients are there: one more call made them

    Gradients reach `weight.grad` when the scope ends, so clip and step after it, use `backward()` rather than
    `torch.autograd.grad`, and leave DistributedDataParallel, which waits for them earlier, outside. An exception ends the scope
    without gradients. For evaluation enter it under `torch.no_grad()`.

    A weight that is changed inside (in place, by any optimiser, `load_state_dict`, `.to()` or `weight.data = ...`) is
    standardised anew by each forward pass; when gradients have been collected for its old value, that is an error. Writes that
    torch does not count (`weight.data.add_()`, through numpy, by a replayed CUDA graph) must not happen inside. Compiled models
    standardise as part of their graph and take nothing from the scope.

    Args:
        model: the layers are collected now, shared ones once.
        dtype: of the standardised weights; None: autocast's where it is on, else each weight's. A layer whose input has another
            type converts.
        channels_last: their layout; a layer with a contiguous input converts.

    Raises:
        FastnasError: a weight was changed before its gradient could be made.
    """
    require_library()
    differentiable = torch.is_grad_enabled()
    batches = [Batch(layers, dtype, channels_last, differentiable) for layers in _alike(model, dtype)]
    outer = [(layer, layer._held) for batch in batches for layer in batch.layers]
    for batch in batches:
        for layer, held in zip(batch.layers, batch.held, strict=True):
            layer._held = held
    counting = register_optimizer_step_post_hook(_count_step)
    try:
        yield
        for batch in batches:
            batch.backward()
    finally:
        counting.remove()
        for layer, held in outer:
            layer._held.collector.closed = True
            layer._held = held


def _count_step(optimiser: Optimizer, args: tuple, kwargs: dict) -> None:
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if not parameter.is_inference():
                torch.autograd.graph.increment_version(parameter)


def _alike(model: nn.Module, dtype: torch.dtype | None) -> list[list[Standardizing]]:
    """The layers of the model that can share a call."""
    groups: dict[tuple, list[Standardizing]] = {}
    for layer in model.modules():
        if isinstance(layer, Standardizing):
            weight = layer.weight
            key = (layer.convention, layer.eps, weight.device, weight.dtype, layer.gain is None)
            groups.setdefault(key, []).append(layer)
    return list(groups.values())


class Batch:
    """Layers that share a call, forward and backward."""

    def __init__(self, layers: list[Standardizing], dtype: torch.dtype | None, channels_last: bool, differentiable: bool):
        self.layers = layers
        self.weights = [layer.weight for layer in layers]
        self.gains = [layer.gain for layer in layers if layer.gain is not None]
        self.scales = [layer.scale for layer in layers]
        first = layers[0]
        unbiased, default_eps = CONVENTIONS[first.convention]
        eps = default_eps if first.eps is None else first.eps
        kind = first.weight.device.type
        if dtype is None:
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else first.weight.dtype
        with torch.no_grad():
            values, self.stats = torch.ops.fastnas.standardize_weights.default(
                self.weights, self.gains, self.scales, [channels_last] * len(layers), eps, unbiased, dtype
            )
        self.held = [Held(layer, value, differentiable) for layer, value in zip(layers, values, strict=True)]

    def backward(self) -> None:
        """Takes the gradients that were collected through the standardisation and adds them to the weights'."""
        wanted = [i for i, held in enumerate(self.held) if held.collector.grad is not None]
        if not wanted:
            return
        if not all(self.held[i].is_fresh(self.layers[i]) for i in wanted):
            raise FastnasError(
                "standardized: a weight changed before the gradient of its standardised form was taken;"
                " step the optimiser after `with standardized(model):`"
            )
        grads = [held.collector.grad for held in self.held]
        if len({grads[i].dtype for i in wanted}) > 1:  # some layers took part in one micro-batch only
            grads = [None if grad is None else grad.float() for grad in grads]
        with torch.no_grad():
            of_weights, of_gains = standardize_weights_backward(
                grads, self.weights, self.gains, self.scales, self.stats, wanted
            )
        pairs = list(zip([self.weights[i] for i in wanted], of_weights, strict=True))
        if self.gains:
            pairs += zip([self.gains[i] for i in wanted], of_gains, strict=True)
        pairs = [(tensor, grad) for tensor, grad in pairs if tensor.requires_grad]
        # Through autograd, so that hooks of the parameters and weights that are themselves computed work.
        torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])
