"""Checking: does the derivative an op claims agree with the change of its value, and where do two results differ?"""

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


def assert_close(got: Any, expected: Any, tolerance: float = 1e-6, name: str = "y") -> None:
    """Compare two arrays or tensors; AssertionError names the first element that is wrong, and what was expected.

    An error of `tolerance` times the largest number expected is allowed, or of `tolerance` if that is below 1. Shapes
    must agree, NaN agrees with NaN only.
    """
    got, expected = (x.data if isinstance(x, Tensor) else x for x in (got, expected))
    assert got is not None, f"{name} is None, expected numbers"
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype.kind in "fiub", f"{name} is of type {got.dtype}, expected numbers"
    assert got.shape == expected.shape, f"{name} has shape {got.shape}, expected {expected.shape}"
    finite = np.abs(expected[np.isfinite(expected)])
    with np.errstate(invalid="ignore"):
        right = np.abs(got - expected) <= tolerance * np.max(finite, initial=1.0)
    wrong = np.argwhere(~(right | (got == expected) | (np.isnan(got) & np.isnan(expected))))
    if len(wrong):
        index = tuple(int(k) for k in wrong[0])
        where = f"{name}[{', '.join(map(str, index))}]" if index else name
        more = f" ({len(wrong)} of {got.size} elements are wrong)" if got.size > 1 else ""
        raise AssertionError(f"{where}: expected {expected[index]:.6g}, got {got[index]:.6g}{more}")
