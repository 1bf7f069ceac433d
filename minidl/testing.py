"""Checking gradients: does the derivative an op claims agree with the change of its value?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .tensor import Tensor


def gradcheck(
    function: Callable[..., Tensor],
    inputs: Sequence[Any],
    *,
    eps: float = 1e-6,
    tolerance: float = 1e-6,
    rng: np.random.Generator | None = None,
) -> float:
    """Compare the gradients of `function(*inputs)` with differences of its value; returns the relative error.

    A random weight v for each output makes a scalar ⟨v, f(x)⟩; a random direction u for all inputs together gives
    its slope: (⟨v, f(x + εu)⟩ − ⟨v, f(x − εu)⟩)/2ε must equal Σ ⟨∂/∂x, u⟩. Two evaluations check any number of
    elements. Inputs are float64 arrays, away from kinks. AssertionError if the relative error exceeds `tolerance`,
    TypeError for inputs that are not float64.
    """
    rng = rng or np.random.default_rng(0)
    arrays = [np.asarray(x.data if isinstance(x, Tensor) else x) for x in inputs]
    if any(a.dtype != np.float64 for a in arrays):
        raise TypeError(f"gradcheck needs float64 inputs, not {', '.join(str(a.dtype) for a in arrays)}")
    directions = [rng.standard_normal(a.shape) for a in arrays]

    tensors = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    y = function(*tensors)
    v = rng.standard_normal(y.shape)
    y.backward(v)
    zeros = [np.zeros_like(a) for a in arrays]
    gradients = [z if t.grad is None else t.grad for t, z in zip(tensors, zeros, strict=True)]
    claimed = sum(float((g * u).sum()) for g, u in zip(gradients, directions, strict=True))

    def value(step: float) -> float:
        moved = (Tensor(a + step * u) for a, u in zip(arrays, directions, strict=True))
        return float((function(*moved).data * v).sum())

    measured = (value(eps) - value(-eps)) / (2 * eps)
    scale = max(abs(claimed), abs(measured), 1e-3 * float(np.abs(v).sum()))
    error = abs(claimed - measured) / scale
    assert error <= tolerance, f"gradient says {claimed:.12g}, differences say {measured:.12g}: error {error:.2g}"
    return error
