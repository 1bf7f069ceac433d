"""Where numbers start: the default random generator and the initial weights of layers.

Every random choice of minidl comes from a `numpy.random.Generator`, given as `rng` or the default one kept here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_default = np.random.default_rng()


def manual_seed(seed: int) -> np.random.Generator:
    """Start the default generator anew from `seed`; returns it."""
    global _default
    _default = np.random.default_rng(seed)
    return _default


def default_rng() -> np.random.Generator:
    """The generator used wherever no `rng` is given."""
    return _default


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of a weight (out, in, *kernel): in·|kernel|, out·|kernel|; ValueError below two dimensions."""
    if len(shape) < 2:
        raise ValueError(f"a weight of shape {shape} has no fan-in: at least two dimensions are needed")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def uniform(shape: tuple[int, ...], bound: float, rng: np.random.Generator | None = None) -> np.ndarray[Any, Any]:
    """Numbers from the uniform distribution on [-bound, bound), float32."""
    return (rng or _default).uniform(-bound, bound, shape).astype(np.float32)


def normal(shape: tuple[int, ...], std: float, rng: np.random.Generator | None = None) -> np.ndarray[Any, Any]:
    """Numbers from the normal distribution with mean 0 and standard deviation `std`, float32."""
    return (rng or _default).normal(0.0, std, shape).astype(np.float32)


def default_uniform(
    shape: tuple[int, ...], fan_in: int, rng: np.random.Generator | None = None
) -> np.ndarray[Any, Any]:
    """torch's default for linear and convolutional layers: uniform with bound 1/√fan_in, for weights and biases."""
    return uniform(shape, 1 / math.sqrt(fan_in) if fan_in else 0.0, rng)


def xavier_uniform(
    shape: tuple[int, ...], gain: float = 1.0, rng: np.random.Generator | None = None
) -> np.ndarray[Any, Any]:
    """Uniform with variance 2·gain²/(fan_in + fan_out), for tanh. Glorot & Bengio 2010, eq. 16."""
    return uniform(shape, gain * math.sqrt(6 / sum(fans(shape))), rng)


def kaiming_normal(shape: tuple[int, ...], rng: np.random.Generator | None = None) -> np.ndarray[Any, Any]:
    """Normal with variance 2/fan_in, for ReLU. He et al. 2015, eq. 10."""
    return normal(shape, math.sqrt(2 / fans(shape)[0]), rng)
