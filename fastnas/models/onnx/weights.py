"""Where the weights of an ONNX network come from: drawn at random (to time a block) or a trained module's state dict."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import numpy as np

from fastnas.errors import InputError

EPS = 1e-5  # of norm layers, where nothing else is said
TF_EPS = 1e-3  # of batch norms of EfficientDet and of an EfficientNet with norm=tf
_POOL = 1 << 18


class Weights(Protocol):
    """`layer` and `norm` are full names such as `backbone.stage1.block1.conv1`. All arrays are float32.

    A weight may come with fewer rows (output channels) than its shape says: they repeat.
    """

    def dense(self, layer: str, shape: tuple[int, ...], gain: float = 1.0) -> np.ndarray: ...

    def bias(self, layer: str, size: int) -> np.ndarray: ...

    def folded(
        self, layer: str, norm: str, shape: tuple[int, ...], gain: float = 1.0, eps: float = EPS, bias: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of a convolution (with a bias of its own?) with the batch norm that follows it folded in."""
        ...

    def affine(self, norm: str, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift of a group norm."""
        ...

    def vector(self, name: str, size: int) -> np.ndarray:
        """A parameter that belongs to no layer, such as the weights of a fusion."""
        ...


@lru_cache(maxsize=4)
def normal_pool(seed: int) -> np.ndarray:
    """Standard normal numbers that all random weights and inputs reuse: drawing fresh ones costs more than timing a block."""
    pool = np.random.default_rng(seed).standard_normal(_POOL, np.float32)
    pool[np.abs(pool) < 1e-6] = 1e-6  # a product of tiny numbers would be denormal, which is slow on many CPUs
    pool.flags.writeable = False
    return pool


def normal(shape: tuple[int, ...], scale: float, seed: int = 0) -> np.ndarray:
    """Normal numbers of standard deviation `scale`; the pool repeats in large arrays."""
    count = int(np.prod(shape))
    pool = normal_pool(seed) * np.float32(scale)
    if count > _POOL:
        pool = np.frombuffer(pool.tobytes() * -(-count // _POOL), np.float32)
    return pool[:count].reshape(shape)


class RandomWeights:
    """He initialisation (He et al. 2015), so that activations keep their size through any depth. Names are ignored.

    Large weights repeat rows: writing out 50 MB for a linear layer takes longer than timing it.
    """

    def __init__(self, seed: int = 0):
        self._seed = seed

    def dense(self, layer, shape, gain=1.0):
        fan_in = int(np.prod(shape[1:]))
        rows = min(shape[0], max(1, _POOL // fan_in))
        return normal((rows, *shape[1:]), gain * (2 / fan_in) ** 0.5, self._seed)

    def bias(self, layer, size):
        return normal((size,), 0.1, self._seed)

    def folded(self, layer, norm, shape, gain=1.0, eps=EPS, bias=False):
        return self.dense(layer, shape, gain), self.bias(layer, shape[0])

    def affine(self, norm, size):
        return np.ones(size, np.float32), self.bias(norm, size)

    def vector(self, name, size):
        return np.ones(size, np.float32)


class StateWeights:
    """A module's state dict as numpy arrays: `<block>.conv1.weight`, `<block>.norm1.running_var`, `head.box.fc6.bias`, ..."""

    def __init__(self, state: Mapping[str, np.ndarray]):
        self._state = state

    def dense(self, layer, shape, gain=1.0):
        return self._get(f"{layer}.weight", shape)

    def bias(self, layer, size):
        return self._get(f"{layer}.bias", (size,))

    def folded(self, layer, norm, shape, gain=1.0, eps=EPS, bias=False):
        channels, weight = shape[:1], self.dense(layer, shape)
        mean, variance = self._get(f"{norm}.running_mean", channels), self._get(f"{norm}.running_var", channels)
        gamma, beta = self.affine(norm, shape[0])
        scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + eps)
        folded = weight * scale.reshape(-1, *[1] * (len(shape) - 1))
        own = self.bias(layer, shape[0]) if bias else 0
        return folded.astype(np.float32), (beta + (own - mean) * scale).astype(np.float32)

    def affine(self, norm, size):
        return self._get(f"{norm}.weight", (size,)), self._get(f"{norm}.bias", (size,))

    def vector(self, name, size):
        return self._get(name, (size,))

    def _get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self._state:
            raise InputError(f"the weights hold no {name!r}: they belong to another blueprint")
        array = np.asarray(self._state[name], np.float32)
        if array.shape != tuple(shape):
            raise InputError(f"{name!r} has shape {list(array.shape)}, the blueprint needs {list(shape)}")
        return array
