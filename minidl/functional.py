"""Every differentiable operation: its value and, beside it, one gradient function per input. Simplest first.

`@op` turns such a plain function on arrays into one on tensors (tensor.py). Names, keywords, defaults and results are
torch's. Notation: g = ∂L/∂y; sizes N images, C channels in, O channels out, H W height and width in, OH OW out, KH KW
of the kernel. Options that speak of the two image axes take a number or a pair (h, w).
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import init
from .arrays import to_host
from .backends import get_backend
from .backends.numpy_backend import Windows, check_classes, pool_output_size
from .tensor import Array, Tensor, adding, op

Pair = int | tuple[int, int]


def _once(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """`function`, which remembers its last result: for what the gradients of several inputs share."""
    last: list[Any] = [None, None]

    def call(g: Array) -> Any:
        if last[0] is not g:
            last[:] = g, function(g)
        return last[1]

    return call


# === arithmetic: broadcast as in NumPy ===============================================================================


def _fold(g: Array, x: Any) -> Array:
    """Undo broadcasting: sum g over the axes along which x was repeated, in x's dtype (a number needs nothing)."""
    if not hasattr(x, "shape"):
        return g
    if g.shape != x.shape:
        extra = g.ndim - x.ndim
        repeated = [extra + k for k, n in enumerate(x.shape) if n == 1 and g.shape[extra + k] != 1]
        g = g.sum(axis=(*range(extra), *repeated)).reshape(x.shape)
    return g if g.dtype == x.dtype else g.astype(x.dtype)


@op
def add(backend: Any, x: Array, y: Array) -> Any:
    """x + y."""
    return x + y, lambda g: _fold(g, x), lambda g: _fold(g, y)


@op
def sub(backend: Any, x: Array, y: Array) -> Any:
    """x − y."""
    return x - y, lambda g: _fold(g, x), lambda g: _fold(-g, y)


@op
def mul(backend: Any, x: Array, y: Array) -> Any:
    """x · y."""
    return x * y, lambda g: _fold(g * y, x), lambda g: _fold(g * x, y)


@op
def div(backend: Any, x: Array, y: Array) -> Any:
    """x / y."""
    return backend.xp.true_divide(x, y), lambda g: _fold(g / y, x), lambda g: _fold(-g * x / (y * y), y)


@op
def neg(backend: Any, x: Array) -> Any:
    """−x."""
    return -x, lambda g: -g


@op
def pow(backend: Any, x: Array, y: Array) -> Any:
    """x to the power y.   ∂/∂x = y·x^(y−1), 0 where y = 0;   ∂/∂y = x^y·log x, 0 where x = 0 and y ≥ 0."""
    xp = backend.xp
    z = x**y

    def grad_x(g: Array) -> Array:
        if not hasattr(y, "shape"):
            return g * 0 if y == 0 else g * (y * x ** (y - 1))
        one_less = xp.where(y == 0, 1, y - 1)  # keeps 0^(0−1) = inf out of 0·inf
        return _fold(g * y * x**one_less, x)

    def grad_y(g: Array) -> Array:
        zero = (x == 0) & (y >= 0)
        return _fold(xp.where(zero, 0, g * z * xp.log(xp.where(zero, 1, x))), y)

    return z, grad_x, grad_y


def _won(xp: Any, g: Array, lost: Array, tie: Array) -> Array:
    """g, half of it in a tie, 0 where lost; chosen, not multiplied: 0·∞ would be NaN."""
    return xp.where(lost, 0, xp.where(tie, 0.5 * g, g))


@op
def maximum(backend: Any, x: Array, y: Array) -> Any:
    """The larger of each pair; a tie shares its gradient, half each."""
    xp = backend.xp
    # fmt: off
    return (xp.maximum(x, y), lambda g: _fold(_won(xp, g, x < y, x == y), x),
            lambda g: _fold(_won(xp, g, y < x, x == y), y))
    # fmt: on


@op
def minimum(backend: Any, x: Array, y: Array) -> Any:
    """The smaller of each pair; a tie shares its gradient, half each."""
    xp = backend.xp
    # fmt: off
    return (xp.minimum(x, y), lambda g: _fold(_won(xp, g, x > y, x == y), x),
            lambda g: _fold(_won(xp, g, y > x, x == y), y))
    # fmt: on


# --- comparison: boolean tensors, no gradient


@op
def lt(backend: Any, x: Array, y: Array) -> Any:
    """x < y."""
    return x < y, None, None


@op
def le(backend: Any, x: Array, y: Array) -> Any:
    """x ≤ y."""
    return x <= y, None, None


@op
def gt(backend: Any, x: Array, y: Array) -> Any:
    """x > y."""
    return x > y, None, None


@op
def ge(backend: Any, x: Array, y: Array) -> Any:
    """x ≥ y."""
    return x >= y, None, None


@op
def eq(backend: Any, x: Array, y: Array) -> Any:
    """x = y, element by element."""
    return backend.xp.equal(x, y), None, None


@op
def ne(backend: Any, x: Array, y: Array) -> Any:
    """x ≠ y, element by element."""
    return backend.xp.not_equal(x, y), None, None


# === functions of one element ========================================================================================


def _check_floating(name: str, x: Array) -> None:
    if x.dtype.kind != "f":
        raise TypeError(f"{name} needs floating-point data, not {x.dtype}: use x.astype('float32')")


def _real(x: Array) -> Array:
    """Integers as float32: NumPy makes half precision of 8 bits, and −1 of an unsigned one is 255."""
    return x if getattr(x, "dtype", np.dtype(float)).kind == "f" else x.astype(np.float32)


@op
def exp(backend: Any, x: Array) -> Any:
    """y = eˣ,  ∂L/∂x = g·y."""
    y = backend.xp.exp(_real(x))
    return y, lambda g: g * y


@op
def log(backend: Any, x: Array) -> Any:
    """Natural logarithm,  ∂L/∂x = g/x."""
    return backend.xp.log(_real(x)), lambda g: g / x


@op
def sqrt(backend: Any, x: Array) -> Any:
    """y = √x,  ∂L/∂x = g/(2y)."""
    y = backend.xp.sqrt(_real(x))
    return y, lambda g: g / (2 * y)


@op
def abs(backend: Any, x: Array) -> Any:
    """|x|,  ∂L/∂x = g·sign x, 0 at 0."""
    return backend.xp.abs(x), lambda g: g * backend.xp.sign(x)


@op
def tanh(backend: Any, x: Array) -> Any:
    """y = tanh x,  ∂L/∂x = g·(1 − y²)."""
    y = backend.xp.tanh(_real(x))
    return y, lambda g: backend.activation_grad(g, y, "tanh")


@op
def sigmoid(backend: Any, x: Array) -> Any:
    """y = 1/(1 + e⁻ˣ) = (1 + tanh(x/2))/2, which cannot overflow;  ∂L/∂x = g·y·(1 − y)."""
    xp, x = backend.xp, _real(x)
    e = xp.exp(-xp.abs(x))  # at most 1
    y = xp.where(x >= 0, 1 / (1 + e), e / (1 + e))
    return y, lambda g: g * y * (1 - y)


def _passed(xp: Any, g: Array, mask: Array) -> Array:
    """g where the mask holds, else 0. A product is fastest, but not where g is infinite: 0·∞ is NaN."""
    share = g * mask
    return share if xp.isfinite(share.sum()) else xp.where(mask, g, 0)


@op
def relu(backend: Any, x: Array) -> Any:
    """max(x, 0); the gradient at 0 is 0. NaN stays NaN."""
    y = backend.relu(x)
    return y, lambda g: backend.activation_grad(g, y, "relu")


@op
def leaky_relu(backend: Any, x: Array, negative_slope: float = 0.01) -> Any:
    """x where x > 0, else negative_slope·x."""
    xp = backend.xp
    return xp.where(x > 0, x, x * negative_slope), lambda g: xp.where(x > 0, g, g * negative_slope)


@op
def gelu(backend: Any, x: Array, approximate: str = "none") -> Any:
    """x·Φ(x) with the normal distribution Φ(x) = (1 + erf(x/√2))/2. Hendrycks & Gimpel 2016, eq. 2.

    approximate="tanh" takes Φ(x) ≈ (1 + tanh(√(2/π)(x + 0.044715 x³)))/2, faster: NumPy has no erf, so that one is
    evaluated element by element. ValueError for another `approximate`.
    """
    xp = backend.xp
    _check_floating("gelu", x)
    if approximate == "none":
        erf = np.vectorize(math.erf, otypes=[x.dtype])
        cdf = 0.5 * (1 + xp.asarray(erf(to_host(x) * math.sqrt(0.5)))) if x.size else x
        return x * cdf, lambda g: g * (cdf + x * xp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi)))
    if approximate == "tanh":
        a, b = math.sqrt(2 / math.pi), 0.044715
        t = xp.tanh(a * (x + b * x * x * x))
        return 0.5 * x * (1 + t), lambda g: 0.5 * g * (1 + t + x * (1 - t * t) * (a * (1 + 3 * b * x * x)))
    raise ValueError(f"gelu: approximate is 'none' or 'tanh', not {approximate!r}")


@op
def softplus(backend: Any, x: Array, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """log(1 + e^(βx))/β, and x itself where βx > threshold;  ∂L/∂x = g·sigmoid(βx), there g."""
    xp, x = backend.xp, _real(x)
    linear = x * beta > threshold
    z = xp.exp(-xp.abs(x * beta))
    y = xp.where(linear, x, (xp.maximum(x * beta, 0) + xp.log1p(z)) / beta)
    return y, lambda g: xp.where(linear, g, g * xp.where(x * beta >= 0, 1 / (1 + z), z / (1 + z)))


@op
def clip(backend: Any, x: Array, min: Any = None, max: Any = None) -> Any:
    """x limited to [min, max]; the gradient passes where x lies inside, ends included."""
    if min is None and max is None:
        raise ValueError("clip: give min, max or both")
    inside = (True if min is None else x >= min) & (True if max is None else x <= max)
    return backend.xp.clip(x, min, max), lambda g: _passed(backend.xp, g, inside)


clamp = clip


@op
def astype(backend: Any, x: Array, dtype: Any) -> Any:
    """x in another dtype; the gradient comes back in x's."""
    y = x.astype(dtype)
    return y, (lambda g: g.astype(x.dtype)) if y.dtype.kind == "f" else None


@op
def where(backend: Any, condition: Array, x: Array, y: Array) -> Any:
    """x where the condition holds, else y."""
    xp = backend.xp
    # fmt: off
    return (xp.where(condition, x, y), None,
            lambda g: _fold(xp.where(condition, g, 0), x), lambda g: _fold(xp.where(condition, 0, g), y))
    # fmt: on


# === sums and extremes ===============================================================================================


def _axes(x: Array, dim: Any) -> tuple[int, ...]:
    """`dim` (None for all, a number, or several) as axes counted from the front; IndexError if there is none such."""
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int | np.integer) else dim
    for d in dims:
        if not -x.ndim <= d < x.ndim:
            raise IndexError(f"dimension {d} of a tensor with {x.ndim} dimensions")
    return tuple(d % x.ndim for d in dims)


def _kept(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a reduction that keeps the reduced axes with size 1."""
    return tuple(1 if k in axes else n for k, n in enumerate(shape))


@op
def sum(backend: Any, x: Array, dim: Any = None, keepdim: bool = False) -> Any:
    """Σ x along `dim` (all by default);  every element gets the gradient of the sum it went into."""
    axes = _axes(x, dim)
    spread = backend.xp.broadcast_to
    return x.sum(axis=axes, keepdims=keepdim), lambda g: spread(g.reshape(_kept(x.shape, axes)), x.shape)


@op
def mean(backend: Any, x: Array, dim: Any = None, keepdim: bool = False) -> Any:
    """Σ x / count along `dim` (all by default). TypeError for integers, whose mean is no integer."""
    _check_floating("mean", x)
    axes = _axes(x, dim)
    count = math.prod(x.shape[k] for k in axes)
    spread = backend.xp.broadcast_to
    return x.mean(axis=axes, keepdims=keepdim), lambda g: spread(g.reshape(_kept(x.shape, axes)) / count, x.shape)


@op
def var(backend: Any, x: Array, dim: Any = None, *, correction: int = 1, keepdim: bool = False) -> Any:
    """Σ (x − mean)² / (count − correction);  ∂L/∂x = g·2(x − mean)/(count − correction)."""
    axes = _axes(x, dim)
    degrees = math.prod(x.shape[k] for k in axes) - correction
    centred = x - x.mean(axis=axes, keepdims=True)
    if degrees <= 0:
        degrees = math.nan  # torch's answer for the variance of one number
    y = (centred * centred).sum(axis=axes, keepdims=keepdim) / degrees
    return y, lambda g: g.reshape(_kept(x.shape, axes)) * centred * (2 / degrees)


def _extreme(x: Array, y: Array, axes: tuple[int, ...]) -> Any:
    """The gradient function of an extreme y of x along axes: ties share it equally."""

    def grad(g: Array) -> Array:
        shape = _kept(x.shape, axes)
        ties = x == y.reshape(shape)
        return g.reshape(shape) * ties / ties.sum(axis=axes, keepdims=True).astype(x.dtype)

    return grad


@op
def amax(backend: Any, x: Array, dim: Any = None, keepdim: bool = False) -> Any:
    """Largest value along `dim`; ties share the gradient equally."""
    axes = _axes(x, dim)
    y = backend.xp.asarray(x.max(axis=axes, keepdims=keepdim))
    return y, _extreme(x, y, axes)


@op
def amin(backend: Any, x: Array, dim: Any = None, keepdim: bool = False) -> Any:
    """Smallest value along `dim`; ties share the gradient equally."""
    axes = _axes(x, dim)
    y = backend.xp.asarray(x.min(axis=axes, keepdims=keepdim))
    return y, _extreme(x, y, axes)


@op
def argmax(backend: Any, x: Array, dim: int | None = None, keepdim: bool = False) -> Any:
    """Where the largest value stands, the first of several."""
    return x.argmax(axis=dim, keepdims=keepdim), None


@op
def argmin(backend: Any, x: Array, dim: int | None = None, keepdim: bool = False) -> Any:
    """Where the smallest value stands, the first of several."""
    return x.argmin(axis=dim, keepdims=keepdim), None


@op
def take_along_dim(backend: Any, x: Array, index: Array, dim: int) -> Any:
    """y[.., k, ..] = x[.., index[.., k, ..], ..] along `dim`."""
    xp = backend.xp

    def grad(g: Array) -> Array:
        out = xp.zeros_like(x)
        grid = [xp.arange(n).reshape([-1 if k == d else 1 for d in range(x.ndim)]) for k, n in enumerate(x.shape)]
        grid[dim] = index
        xp.add.at(out, tuple(grid), g)
        return out

    return xp.take_along_axis(x, index, axis=dim), grad, None


class Extreme(NamedTuple):
    """What max and min along one dimension return."""

    values: Tensor
    indices: Tensor


def max(
    x: Tensor, dim: int | None = None, keepdim: bool = False, *, axis: int | None = None, keepdims: bool = False
) -> Any:
    """The largest element (ties share the gradient), or (values, indices) along `dim` (the first of several)."""
    return _select(amax, argmax, x, dim if axis is None else axis, keepdim or keepdims)


def min(
    x: Tensor, dim: int | None = None, keepdim: bool = False, *, axis: int | None = None, keepdims: bool = False
) -> Any:
    """The smallest element (ties share the gradient), or (values, indices) along `dim` (the first of several)."""
    return _select(amin, argmin, x, dim if axis is None else axis, keepdim or keepdims)


def _select(value: Any, index: Any, x: Tensor, dim: int | None, keepdim: bool) -> Any:
    if dim is None:
        return value(x)
    if not isinstance(dim, int | np.integer):
        raise TypeError(f"dim is one whole number, not {type(dim).__name__}: see amax, amin, maximum and minimum")
    dim = _axes(x, dim)[0]
    indices = index(x, dim, True)
    values = take_along_dim(x, indices, dim)
    return Extreme(values, indices) if keepdim else Extreme(squeeze(values, dim), squeeze(indices, dim))


# === shape: the same numbers, elsewhere ==============================================================================


@op
def reshape(backend: Any, x: Array, shape: tuple[int, ...]) -> Any:
    """The elements in the same order under another shape; one size may be −1."""
    return backend.reshape(x, shape), lambda g: backend.reshape(g, x.shape)


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions start_dim to end_dim as one."""
    start, end = (_axes(x, (start_dim, end_dim))) if x.ndim else (0, 0)
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))


def squeeze(x: Tensor, dim: Any = None) -> Tensor:
    """Without the dimensions of size 1 (all, or those named)."""
    axes = _axes(x, dim)
    return reshape(x, tuple(n for k, n in enumerate(x.shape) if not (k in axes and n == 1)))


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """With a new dimension of size 1 at `dim`."""
    at = dim + x.ndim + 1 if dim < 0 else dim
    if not 0 <= at <= x.ndim:
        raise IndexError(f"unsqueeze: no place for a dimension {dim} in a tensor with {x.ndim} dimensions")
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


@op
def permute(backend: Any, x: Array, dims: Sequence[int]) -> Any:
    """The dimensions in another order: y.shape[k] = x.shape[dims[k]]."""
    return x.transpose(dims), lambda g: g.transpose(np.argsort([d % x.ndim for d in dims]).tolist())


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Dimensions dim0 and dim1 exchanged."""
    dims = list(range(x.ndim))
    a, b = _axes(x, (dim0, dim1))
    dims[a], dims[b] = b, a
    return permute(x, dims)


@op
def _getitem(backend: Any, x: Array, index: tuple[Any, ...]) -> Any:
    xp = backend.xp

    def grad(g: Array) -> Array:
        out = xp.zeros_like(x)
        if any((hasattr(i, "dtype") and i.dtype.kind != "b") or isinstance(i, list) for i in index):
            xp.add.at(out, index, g)  # an element may be taken more than once
        else:
            out[index] = g
        return out

    return x[index], grad


def getitem(x: Tensor, index: Any) -> Tensor:
    """x[index] with numbers, slices, None, `...`, integer and boolean arrays, as in NumPy."""
    each = index if isinstance(index, tuple) else (index,)
    arrays = (i.data if isinstance(i, Tensor) else i for i in each)
    parts = tuple(get_backend().xp.asarray(i) if isinstance(i, np.ndarray) else i for i in arrays)
    return _getitem(x, parts)


@op
def _concatenate(backend: Any, *xs: Array, dim: int) -> Any:
    axis = _axes(xs[0], dim)[0]
    ends = np.cumsum([x.shape[axis] for x in xs])
    before = (slice(None),) * axis

    def part(size: int, end: int, dtype: Any) -> Any:  # of the arrays themselves none is kept
        return lambda g: g[(*before, slice(end - size, end))].astype(dtype, copy=False)

    return backend.concatenate(xs, axis), *(part(x.shape[axis], end, x.dtype) for x, end in zip(xs, ends, strict=True))


def concatenate(tensors: Sequence[Tensor], dim: int = 0, axis: int | None = None) -> Tensor:
    """The tensors one after another along `dim`; their other sizes must agree."""
    if not len(tensors):
        raise ValueError("concatenate needs at least one tensor")
    return _concatenate(*tensors, dim=dim if axis is None else axis)


cat = concatenate


def stack(tensors: Sequence[Tensor], dim: int = 0, axis: int | None = None) -> Tensor:
    """The tensors, all of one shape, side by side along a new dimension."""
    dim = dim if axis is None else axis
    if len({t.shape for t in tensors}) > 1:
        raise ValueError(f"stack needs equal shapes, not {', '.join(str(t.shape) for t in tensors)}")
    return concatenate([unsqueeze(t, dim) for t in tensors], dim)


@op
def _pad_constant(backend: Any, x: Array, widths: Sequence[tuple[int, int]], value: float) -> Any:
    inside = tuple(slice(a, a + n) for (a, _), n in zip(widths, x.shape, strict=True))
    return backend.xp.pad(x, widths, constant_values=value), lambda g: g[inside]


def pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Wider at both ends of the last dimensions: pad = (left, right, top, bottom, ...), last dimension first.

    mode: "constant" (with `value`, by default 0; negative widths cut off), "reflect", "replicate" or "circular".
    ValueError for another mode, an odd number of widths, or more cut off than there is.
    """
    modes = {"constant": None, "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if mode not in modes or not isinstance(pad, tuple | list) or len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ValueError(
            f"pad: widths in pairs for at most {x.ndim} dimensions and a mode of {list(modes)}, not {pad}, {mode!r}"
        )
    pairs = [(0, 0)] * (x.ndim - len(pad) // 2) + [(pad[k], pad[k + 1]) for k in range(len(pad) - 2, -1, -2)]
    if any(n + a + b < 0 or n + a < 0 or n + b < 0 for (a, b), n in zip(pairs, x.shape, strict=True)):
        raise ValueError(f"pad: widths {tuple(pad)} cut off more than there is of {x.shape}")
    if mode == "constant":
        if builtins.min(pad, default=0) < 0:
            x = x[
                tuple(
                    slice(builtins.max(-a, 0), n - builtins.max(-b, 0))
                    for (a, b), n in zip(pairs, x.shape, strict=True)
                )
            ]
        return _pad_constant(x, [(builtins.max(a, 0), builtins.max(b, 0)) for a, b in pairs], value or 0)
    for k, (a, b) in enumerate(pairs):
        if a or b:  # the same padding of the positions says where each element comes from
            x = x[(slice(None),) * k + (np.pad(np.arange(x.shape[k]), (a, b), mode=modes[mode]),)]  # type: ignore[call-overload]
    return x


# === products ========================================================================================================


@op
def matmul(backend: Any, x: Array, y: Array) -> Any:
    """Matrix product of the last two dimensions, the others broadcast; a vector is a row left, a column right.

    x (..., M, K), y (..., K, N) -> (..., M, N).   ∂L/∂x = g·yᵀ,  ∂L/∂y = xᵀ·g.
    """
    if not x.ndim or not y.ndim or x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
        raise ValueError(f"matmul: shapes {x.shape} and {y.shape} do not fit: the inner sizes must be equal")
    row, column = (x[None] if x.ndim == 1 else x), (y[:, None] if y.ndim == 1 else y)

    def matrix(g: Array) -> Array:
        g = g[..., None] if y.ndim == 1 else g
        return g[..., None, :] if x.ndim == 1 else g

    def grad_x(g: Array) -> Array:
        return _fold(matrix(g) @ column.swapaxes(-1, -2), row).reshape(x.shape)

    def grad_y(g: Array) -> Array:
        return _fold(row.swapaxes(-1, -2) @ matrix(g), column).reshape(y.shape)

    return x @ y, grad_x, grad_y


def _rows(x: Array) -> Array:
    """All but the last dimension as one."""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@op
def linear(backend: Any, x: Array, weight: Array, bias: Array | None = None, activation: str = "") -> Any:
    """y = x·weightᵀ + bias.   x (..., I), weight (O, I), bias (O,) -> y (..., O).

    activation "relu" or "tanh" is applied in the same pass: y = activation(x·weightᵀ + bias).
    """
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"linear: input of shape {x.shape} does not fit a weight of shape {weight.shape} (out, in)")
    if x.dtype != weight.dtype:
        raise TypeError(f"linear: input is {x.dtype} but weight is {weight.dtype}: convert one with astype")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(
            f"linear: bias is {bias.shape} {bias.dtype}, expected {weight.shape[:1]} {weight.dtype} as the weight"
        )
    rows = _rows(x)
    y = backend.linear(rows, weight, bias, activation)
    if rows is not x:
        y = y.reshape(*x.shape[:-1], len(weight))
    before = _once(lambda g: _rows(backend.activation_grad(g, y, activation))) if activation else _rows
    both = _once(lambda g: backend.linear_grad_w(before(g), rows))
    return (
        y,
        lambda g: backend.linear_grad_x(before(g), weight).reshape(x.shape),
        lambda g: both(g)[0],
        lambda g: both(g)[1],
    )


# === probabilities ===================================================================================================


@op
def softmax(backend: Any, x: Array, dim: int = -1) -> Any:
    """y = eˣ/Σ eˣ along `dim`;  ∂L/∂x = y·(g − Σ g·y)."""
    _check_floating("softmax", x)
    e = backend.xp.exp(x - x.max(axis=dim, keepdims=True))  # the largest exponent is 0: no overflow
    y = e / e.sum(axis=dim, keepdims=True)
    return y, lambda g: y * (g - (g * y).sum(axis=dim, keepdims=True))


@op
def log_softmax(backend: Any, x: Array, dim: int = -1) -> Any:
    """y = x − log Σ eˣ along `dim`;  ∂L/∂x = g − eʸ·Σ g."""
    _check_floating("log_softmax", x)
    shifted = x - x.max(axis=dim, keepdims=True)
    y = shifted - backend.xp.log(backend.xp.exp(shifted).sum(axis=dim, keepdims=True))
    return y, lambda g: g - backend.xp.exp(y) * g.sum(axis=dim, keepdims=True)


# === convolution =====================================================================================================


def _pair(value: Any, name: str, least: int) -> tuple[int, int]:
    """An option of the two image axes as (h, w); ValueError below `least`."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or any(not isinstance(v, int | np.integer) or v < least for v in pair):
        raise ValueError(f"{name} is a whole number, or a pair of them, of at least {least}, not {value!r}")
    return int(pair[0]), int(pair[1])


def _conv_options(stride: Any, padding: Any, dilation: Any, groups: int) -> dict[str, Any]:
    if not isinstance(groups, int | np.integer) or groups < 1:
        raise ValueError(f"groups is a whole number of at least 1, not {groups!r}")
    # fmt: off
    return {"stride": _pair(stride, "stride", 1), "padding": _pair(padding, "padding", 0),
            "dilation": _pair(dilation, "dilation", 1), "groups": int(groups)}
    # fmt: on


@op
def _conv2d(backend: Any, x: Array, w: Array, b: Array | None, options: dict[str, Any], activation: str) -> Any:
    y = backend.conv2d(x, w, b, **options, activation=activation)
    # Without an activation y is not kept.
    before = _once(lambda g: backend.activation_grad(g, y, activation)) if activation else lambda g: g
    return (
        y,
        lambda g: backend.conv2d_grad_x(before(g), w, x.shape, **options),
        lambda g: backend.conv2d_grad_w(before(g), x, w.shape, **options),
        lambda g: backend.channel_sum(before(g)),
    )


@op
def _conv2d_joined(
    backend: Any, x: Array, beside: Array, w: Array, b: Array | None, options: dict[str, Any], activation: str
) -> Any:
    both = backend.join(x, beside)
    y = backend.conv2d_joined(both, w, b, **options, activation=activation)
    before = _once(lambda g: backend.activation_grad(g, y, activation)) if activation else lambda g: g
    grads = _once(lambda g: backend.conv2d_joined_grad_x(before(g), w, both, x.shape[1], **options))
    return (
        y,
        lambda g: grads(g)[0],
        lambda g: grads(g)[1],
        lambda g: backend.conv2d_joined_grad_w(before(g), both, w.shape, **options),
        lambda g: backend.channel_sum(before(g)),
    )


def conv2d(
    x: Tensor | tuple[Tensor, Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    activation: str = "",
) -> Tensor:
    """Each output pixel is a weighted sum of the window of input pixels around it, the same weights everywhere.

    x (N, C, H, W), weight (O, C/groups, KH, KW), bias (O,) -> y (N, O, OH, OW),
    y[n,o,i,j] = bias[o] + Σ_{c,u,v} weight[o,c,u,v] · x[n, c, i·stride + u·dilation − padding, the same for j, v],
    zero outside the image; c runs over the channels of o's group. padding "same" keeps the size, "valid" is 0.
    activation "relu" cuts y at 0 while it is written, which saves a pass through memory.
    Two tensors as x are convolved as their concatenation along the channels, which fast kernels never build.
    ValueError for shapes or options that do not fit, TypeError for mixed dtypes.
    """
    if isinstance(x, tuple):
        first, second = x
        if (
            first.ndim != 4
            or second.ndim != 4
            or first.shape[::2] + first.shape[3:] != second.shape[::2] + second.shape[3:]
        ):
            raise ValueError(f"conv2d: images {first.shape} and {second.shape} do not lie side by side")
        if not isinstance(padding, str) and activation in ("", "relu"):
            given = _conv_options(stride, padding, dilation, groups)
            return _conv2d_joined(first, second, weight, bias, given, activation)
        x = concatenate(x, 1)
    if isinstance(padding, str):
        x, padding = _padding_by_name(x, weight, padding, stride, dilation)
    if activation not in ("", "relu"):
        raise ValueError(f"conv2d: activation is '' or 'relu', not {activation!r}")
    return _conv2d(x, weight, bias, _conv_options(stride, padding, dilation, groups), activation)


def _padding_by_name(x: Tensor, w: Tensor, name: str, stride: Pair, dilation: Pair) -> tuple[Tensor, Pair]:
    if name == "valid":
        return x, 0
    if name != "same" or _pair(stride, "stride", 1) != (1, 1):
        raise ValueError(f"padding by name is 'valid', or 'same' with stride 1, not {name!r} with stride {stride}")
    total = [d * (k - 1) for d, k in zip(_pair(dilation, "dilation", 1), w.shape[2:], strict=True)]
    x = pad(x, (0, total[1] % 2, 0, total[0] % 2))  # an even kernel: one more on the far side
    return x, (total[0] // 2, total[1] // 2)


@op
def _conv_transpose2d(
    backend: Any,
    x: Array,
    w: Array,
    b: Array | None,
    out_shape: tuple[int, ...],
    options: dict[str, Any],
    activation: str,
) -> Any:
    y = backend.conv_transpose2d(x, w, out_shape, b, activation, **options)
    before = _once(lambda g: backend.activation_grad(g, y, activation)) if activation else lambda g: g
    return (
        y,
        lambda g: backend.conv2d(before(g), w, None, **options),
        lambda g: backend.conv2d_grad_w(x, before(g), w.shape, **options),
        lambda g: backend.channel_sum(before(g)),
    )


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    activation: str = "",
) -> Tensor:
    """The adjoint of conv2d: each input pixel paints its window of output pixels.

    x (N, C, H, W), weight (C, O/groups, KH, KW), bias (O,) -> y (N, O, OH, OW),
    OH = (H − 1)·stride − 2·padding + dilation·(KH − 1) + output_padding + 1. So it needs no kernel of its own: forward
    is conv2d's gradient for its input, and conversely. activation is "" or "relu", as in conv2d. Dumoulin & Visin 2016,
    section 4.
    """
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[0]:
        raise ValueError(
            f"conv_transpose2d: input {x.shape} (N, C, H, W) does not fit weight {weight.shape} (C, O/groups, KH, KW)"
        )
    if activation not in ("", "relu"):
        raise ValueError(f"conv_transpose2d: activation is '' or 'relu', not {activation!r}")
    options = _conv_options(stride, padding, dilation, groups)
    if x.shape[1] % groups:
        raise ValueError(
            f"conv_transpose2d: {groups} groups do not divide the {x.shape[1]} channels of input {x.shape}"
        )
    if bias is not None and (bias.shape != (weight.shape[1] * groups,) or bias.dtype != weight.dtype):
        raise ValueError(
            f"conv_transpose2d: bias is {bias.shape} {bias.dtype}, "
            f"expected ({weight.shape[1] * groups},) {weight.dtype} as the weight"
        )
    extra = _pair(output_padding, "output_padding", 0)
    size = []
    for k in (0, 1):
        s, p, d = (options[name][k] for name in ("stride", "padding", "dilation"))
        if extra[k] >= builtins.max(s, d):
            raise ValueError(
                f"conv_transpose2d: output_padding {extra[k]} must be smaller than stride {s} or dilation {d}"
            )
        size.append((x.shape[2 + k] - 1) * s - 2 * p + d * (weight.shape[2 + k] - 1) + extra[k] + 1)
    if builtins.min(size) < 1:
        raise ValueError(
            f"conv_transpose2d: input {x.shape} with weight {weight.shape} and padding {padding} leaves no pixel"
        )
    beyond = [e // s for e, s in zip(extra, options["stride"], strict=True)]
    if any(beyond):  # output_padding of a stride or more, which a dilation allows: rows that see zeros only
        x = pad(x, (0, beyond[1], 0, beyond[0]))
    out_shape = (x.shape[0], weight.shape[1] * groups, *size)
    return _conv_transpose2d(x, weight, bias, out_shape, options, activation)


# --- one dimension is two with height 1


def _flat(value: Any, neutral: int) -> Any:
    """A 1-D option as the pair for an image of height 1."""
    if isinstance(value, str):
        return value
    return neutral, value[0] if isinstance(value, tuple | list) and len(value) == 1 else value


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: str = "",
) -> Tensor:
    """conv2d along one axis.   x (N, C, L), weight (O, C/groups, K), bias (O,) -> y (N, O, OL)."""
    _check_1d("conv1d", x, weight)
    options = (_flat(stride, 1), _flat(padding, 0), _flat(dilation, 1), groups, activation)
    return squeeze(conv2d(unsqueeze(x, 2), unsqueeze(weight, 2), bias, *options), 2)


def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    activation: str = "",
) -> Tensor:
    """conv_transpose2d along one axis.   x (N, C, L), weight (C, O/groups, K), bias (O,) -> y (N, O, OL)."""
    _check_1d("conv_transpose1d", x, weight)
    options = {"stride": _flat(stride, 1), "padding": _flat(padding, 0), "output_padding": _flat(output_padding, 0)}
    options |= {"groups": groups, "dilation": _flat(dilation, 1), "activation": activation}
    y = conv_transpose2d(unsqueeze(x, 2), unsqueeze(weight, 2), bias, **options)
    return squeeze(y, 2)


def _check_1d(name: str, x: Tensor, *others: Tensor) -> None:
    if any(t.ndim != 3 for t in (x, *others)):
        shapes = " and ".join(str(t.shape) for t in (x, *others))
        raise ValueError(f"{name}: 3 dimensions are needed, not {shapes}")


# === pooling and resizing ============================================================================================


def _pool_options(kernel_size: Any, stride: Any, padding: Any, dilation: Any = 1) -> dict[str, Any]:
    kernel = _pair(kernel_size, "kernel_size", 1)
    return {
        "kernel_size": kernel,
        "stride": kernel if stride is None else _pair(stride, "stride", 1),
        "padding": _pair(padding, "padding", 0),
        "dilation": _pair(dilation, "dilation", 1),
    }


@op
def _max_pool2d(backend: Any, x: Array, options: dict[str, Any], ceil_mode: bool) -> Any:
    y, index = backend.max_pool2d(x, **options, ceil_mode=ceil_mode)
    x_shape = x.shape  # the gradient needs no more of x
    return y, adding(lambda g, before=None: backend.max_pool2d_grad(g, index, x_shape, before, **options))


def max_pool2d(
    x: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest pixel of each window; its gradient goes to that pixel, the first of several.

    x (N, C, H, W) -> y (N, C, OH, OW). stride: the kernel's size by default. ceil_mode rounds OH up, so that the last
    window may hang over the edge, as long as it starts inside the image or its padding at the front.
    """
    return _max_pool2d(x, _pool_options(kernel_size, stride, padding, dilation), bool(ceil_mode))


def max_pool1d(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    """max_pool2d along one axis.   x (N, C, L) -> y (N, C, OL)."""
    _check_1d("max_pool1d", x)
    kernel, step = _flat(kernel_size, 1), _flat(kernel_size if stride is None else stride, 1)
    return squeeze(max_pool2d(unsqueeze(x, 2), kernel, step, _flat(padding, 0), _flat(dilation, 1), ceil_mode), 2)


@op
def _avg_pool2d(backend: Any, x: Array, options: dict[str, Any], count: Any) -> Any:
    """Σ over each window, divided by `count` (OH, OW)."""
    count, x_shape = count.astype(x.dtype), x.shape
    return backend.avg_pool2d(x, count, **options), lambda g: backend.avg_pool2d_grad(g, count, x_shape, **options)


def avg_pool2d(
    x: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window.   x (N, C, H, W) -> y (N, C, OH, OW).

    The sum is divided by the number of pixels of the window inside the padded image, by those inside the image itself
    (count_include_pad=False), or by `divisor_override`.
    """
    if x.ndim != 4:
        raise ValueError(f"avg_pool2d: input must be (N, C, H, W), not {x.shape}")
    _check_floating("avg_pool2d", x)
    if divisor_override == 0:
        raise ValueError("avg_pool2d: divisor_override must not be 0")
    options = _pool_options(kernel_size, stride, padding)
    del options["dilation"]
    counts = []
    for n, k, s, p in zip(x.shape[2:], options["kernel_size"], options["stride"], options["padding"], strict=True):
        start = np.arange(pool_output_size(n, k, s, p, 1, ceil_mode)) * s
        low, high = (0, n + 2 * p) if count_include_pad else (p, n + p)
        counts.append(np.minimum(start + k, high) - np.maximum(start, low))
    count = (
        np.multiply.outer(*counts) if divisor_override is None else np.full([len(k) for k in counts], divisor_override)
    )
    return _avg_pool2d(x, options, get_backend().constant(count))


def avg_pool1d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """avg_pool2d along one axis.   x (N, C, L) -> y (N, C, OL)."""
    _check_1d("avg_pool1d", x)
    kernel, step = _flat(kernel_size, 1), _flat(kernel_size if stride is None else stride, 1)
    return squeeze(avg_pool2d(unsqueeze(x, 2), kernel, step, _flat(padding, 0), ceil_mode, count_include_pad), 2)


def _transpose(windows: Windows, size: int) -> Windows:
    """The windows of the adjoint: of each of the `size` inputs the outputs that use it, a run, for windows in order."""
    first, last, weight = windows
    pixel = np.arange(size)
    start, end = np.searchsorted(last, pixel, "right"), np.searchsorted(first, pixel, "right")
    output = np.minimum(start[:, None] + np.arange(np.max(end - start, initial=1)), len(first) - 1)
    tap = np.clip(pixel[:, None] - first[output], 0, weight.shape[1] - 1)
    return start, end, weight[output, tap]


@op
def _resample(backend: Any, x: Array, rows: Windows, columns: Windows) -> Any:
    """Any resizing linear in each axis; its gradient is the same sum with the windows turned round."""
    y = backend.resample(x, rows, columns)
    return y, lambda g: backend.resample(g, *map(_transpose, (rows, columns), x.shape[2:]))


def _means(n: int, m: int) -> Windows:
    """Output i of m averages the pixels ⌊i·n/m⌋ to ⌈(i + 1)·n/m⌉ − 1 of n."""
    i = np.arange(m)
    first, last = i * n // m, -(-(i + 1) * n // m)
    width = last - first
    return first, last, np.repeat(1 / width[:, None], np.max(width, initial=1), axis=1)


def adaptive_avg_pool2d(x: Tensor, output_size: Any) -> Tensor:
    """The mean over windows that give `output_size`: (OH, OW) or one number for both, None to keep a size."""
    if x.ndim != 4:
        raise ValueError(f"adaptive_avg_pool2d: input must be (N, C, H, W), not {x.shape}")
    _check_floating("adaptive_avg_pool2d", x)
    wanted = list(output_size) if isinstance(output_size, tuple | list) else [output_size] * 2
    given = [n if m is None else m for m, n in zip(wanted, x.shape[2:], strict=False)]
    size = list(_pair(given if len(wanted) == 2 else output_size, "output_size", 0))
    if size == [1, 1]:
        return mean(x, (2, 3), keepdim=True)
    return _resample(x, *(_means(n, m) for n, m in zip(x.shape[2:], size, strict=True)))


def _interpolation(n: int, m: int, mode: str, align_corners: bool, scale: float | None, dtype: Any) -> Windows:
    """The one or two pixels of n, and their weights, that output pixel i of m takes."""
    i = np.arange(m)
    if m == n or (mode == "nearest" and m % n == 0 and (scale in (None, m // n) or m == 2 * n)):  # exact, as in torch
        return i * n // m, i * n // m + 1, np.ones((m, 1))
    step = 1 / scale if scale else n / m  # torch takes 1/scale as the step
    if mode == "nearest":  # in the image's dtype, as in torch: in another, rounding may choose the neighbour
        position = i * step if dtype == np.float64 else i.astype(np.float32) * np.float32(step)
        first = np.minimum(position.astype(np.float32).astype(int), n - 1)
        return first, first + 1, np.ones((m, 1))
    corners = (n - 1) / (m - 1) if m > 1 else 0.0
    position = i * corners if align_corners else np.maximum((i + 0.5) * step - 0.5, 0)
    first = np.minimum(position.astype(int), n - 1)
    weight = np.where(first < n - 1, position - first, 0)  # beyond the last pixel there is only that pixel
    return first, np.minimum(first + 2, n), np.stack([1 - weight, weight], axis=1)


def interpolate(
    x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool = False
) -> Tensor:
    """The image at another size, by the nearest pixel or bilinear.   x (N, C, H, W) -> y (N, C, OH, OW).

    Give `size` or `scale_factor`. align_corners (bilinear): the centres of the corner pixels stay where they are,
    otherwise the edges do. ValueError for other modes or sizes below 1.
    """
    if x.ndim != 4:
        raise ValueError(f"interpolate: input must be (N, C, H, W), not {x.shape}")
    if mode not in ("nearest", "bilinear") or (mode == "nearest" and align_corners):
        raise ValueError(f"interpolate: mode 'nearest' or 'bilinear' (align_corners with bilinear only), not {mode!r}")
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: give either size or scale_factor")
    if mode == "bilinear":
        _check_floating("interpolate", x)
    if size is None:
        scales = tuple(scale_factor) if isinstance(scale_factor, tuple | list) else (scale_factor,) * 2
        if len(scales) != 2 or not all(0 < s < math.inf for s in scales):
            raise ValueError(f"interpolate: scale_factor is a positive number, or a pair of them, not {scale_factor!r}")
        sizes = tuple(int(n * s) for n, s in zip(x.shape[2:], scales, strict=True))
    else:
        scales, sizes = (None, None), _pair(size, "interpolate: size", 1)
    if builtins.min(sizes) < 1:
        raise ValueError(f"interpolate: output size {sizes} has no pixel")
    axes = zip(x.shape[2:], sizes, scales, strict=True)
    return _resample(x, *(_interpolation(n, m, mode, align_corners, s, x.dtype) for n, m, s in axes))


# === normalisation and dropout =======================================================================================


def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and variance over `axes`, kept with size 1, of a tensor or an array."""
    x = x.data if isinstance(x, Tensor) else x
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    return mean, (centred * centred).mean(axis=axes, keepdims=True)


@op
def _normalize(
    backend: Any, x: Array, weight: Array | None, bias: Array | None, mean: Any, var: Any, axes: Any, eps: float
) -> Any:
    """y = weight·x̂ + bias with x̂ = (x − mean)/√(variance + ε), the moments over `axes`; weight and bias broadcast.

    ∂L/∂x = (ĝ − mean ĝ − x̂·mean(ĝ·x̂))/√(variance + ε) with ĝ = g·weight. Ioffe & Szegedy 2015, section 3.
    """
    inverse = 1 / backend.xp.sqrt(var + eps)
    unit = (x - mean) * inverse
    y = unit if weight is None else unit * weight
    if bias is not None:
        y = y + bias

    def grad_x(g: Array) -> Array:
        g = g if weight is None else g * weight
        return inverse * (g - g.mean(axis=axes, keepdims=True) - unit * (g * unit).mean(axis=axes, keepdims=True))

    return y, grad_x, lambda g: _fold(g * unit, weight), lambda g: _fold(g, bias)


@op
def _batch_norm(
    backend: Any,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    running: tuple[Array, Array] | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
) -> Any:
    fixed = not training and running is not None
    given = [a.astype(x.dtype) for a in running] if fixed and running is not None else (None, None)
    y, mean, var = backend.batch_norm(x, weight, bias, *given, eps, activation)
    if training and running is not None:
        count = x.size // x.shape[1]
        for kept, new in zip(running, (mean, var * (count / (count - 1))), strict=True):
            kept += momentum * (new - kept)
    grads = _once(lambda g: backend.batch_norm_grad(g, x, mean, var, weight, bias, eps, activation, not fixed))
    return y, lambda g: grads(g)[0], lambda g: grads(g)[1], lambda g: grads(g)[2]


def batch_norm(
    x: Tensor,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "",
) -> Tensor:
    """Each channel scaled to mean 0 and variance 1 over the batch, then by `weight` and `bias`.   x (N, C, ...).

    While training, the arrays `running_mean` and `running_var` (C,) move towards the batch's mean and unbiased
    variance by `momentum`, in place; otherwise they are used instead of the batch's. Ioffe & Szegedy 2015, algorithm 1.
    activation "relu" cuts y at 0 while it is written, which saves a pass through memory.
    ValueError for a wrong number of channels, or a training batch with a single value per channel; TypeError for a
    weight or bias of another dtype.
    """
    if x.ndim < 2:
        raise ValueError(f"batch_norm: input must be (N, C, ...), not {x.shape}")
    _check_floating("batch_norm", x)
    if activation not in ("", "relu"):
        raise ValueError(f"batch_norm: activation is '' or 'relu', not {activation!r}")
    if isinstance(running_mean, Tensor) and isinstance(running_var, Tensor):
        running_mean, running_var = running_mean.data, running_var.data
    for name, a in (("running_mean", running_mean), ("running_var", running_var), ("weight", weight), ("bias", bias)):
        if a is not None and tuple(a.shape) != (x.shape[1],):
            raise ValueError(
                f"batch_norm: {name} has shape {tuple(a.shape)}, expected ({x.shape[1]},) for input {x.shape}"
            )
    for name, a in (("weight", weight), ("bias", bias)):
        if a is not None and a.dtype != x.dtype:
            raise TypeError(f"batch_norm: input is {x.dtype} but {name} is {a.dtype}: convert one with astype")
    if training and x.size < 2 * x.shape[1]:
        raise ValueError(f"batch_norm: more than one value per channel is needed to train, input has shape {x.shape}")
    running = None if running_mean is None or running_var is None else (running_mean, running_var)
    return _batch_norm(x, weight, bias, running, training, momentum, eps, activation)


def layer_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Each sample scaled to mean 0, variance 1 over its last dimensions `normalized_shape`. Ba et al. 2016, eq. 4."""
    shape = tuple(normalized_shape) if isinstance(normalized_shape, tuple | list) else (normalized_shape,)
    if x.shape[x.ndim - len(shape) :] != shape:
        raise ValueError(f"layer_norm: input {x.shape} does not end in {shape}")
    for name, a in (("weight", weight), ("bias", bias)):
        if a is not None and a.shape != shape:
            raise ValueError(f"layer_norm: {name} has shape {a.shape}, expected {shape}")
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    return _normalize(x, weight, bias, *_moments(x, axes), axes, eps)


@op
def local_response_norm(
    backend: Any, x: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Any:
    """y_c = x_c / d_c^β,  d_c = k + α/size · Σ x² over the `size` channels around c.   x (N, C, ...).

    ∂L/∂x_c = g_c·d_c^−β − (2αβ/size)·x_c·Σ_{c'} g_c'·x_c'·d_c'^(−β−1), over the c' whose windows hold c.
    Krizhevsky et al. 2012, section 3.3 (there without the division by size).
    """
    if size < 1 or x.ndim < 3:
        raise ValueError(f"local_response_norm: size >= 1 and input (N, C, ...) are needed, not {size} and {x.shape}")

    y, d = backend.local_response_norm(x, size, alpha, beta, k)
    return y, lambda g: backend.local_response_norm_grad(g, x, d, size, alpha, beta, k)


@op
def _dropout(backend: Any, x: Array, kept: Array, scale: float) -> Any:
    return backend.dropout(x, kept, scale), lambda g: backend.dropout(g, kept, scale)


def dropout(x: Tensor, p: float = 0.5, training: bool = True, rng: np.random.Generator | None = None) -> Tensor:
    """Each element is zero with probability p, the others grow by 1/(1 − p); nothing happens outside training.

    Srivastava et al. 2014, section 10. ValueError unless 0 <= p <= 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p is a probability between 0 and 1, not {p}")
    if not training or p == 0:
        return x
    kept = get_backend().random_mask(rng or init.default_rng(), x.shape, p)
    return _dropout(x, kept, 1 / (1 - p) if p < 1 else 0.0)


# === losses ==========================================================================================================


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    _check_reduction(reduction)
    return loss if reduction == "none" else getattr(loss, reduction)()


def _check_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction is 'none', 'mean' or 'sum', not {reduction!r}")


def _check_target(name: str, x: Any, target: Any) -> None:
    if x.shape != target.shape:
        raise ValueError(
            f"{name}: prediction {x.shape} and target {target.shape} must have one shape (broadcasting hides mistakes)"
        )


def _difference(name: str, x: Tensor, target: Any) -> Tensor:
    target = target if isinstance(target, Tensor) else Tensor(target)
    _check_target(name, x, target)
    return sub(x, target)


@op
def mse_loss(backend: Any, x: Array, target: Array, reduction: str = "mean") -> Any:
    """(x − target)²."""
    x, t = backend.xp.asarray(x), backend.xp.asarray(target)
    _check_target("mse_loss", x, t)
    _check_reduction(reduction)
    if reduction == "none":
        d = x - t
        return d * d, lambda g: _fold(2 * g * d, x), lambda g: _fold(-2 * g * d, t)
    if reduction == "mean":
        _check_floating("mse_loss", x)
    scale = 1 if reduction == "sum" else 1 / x.size if x.size else math.nan
    # fmt: off
    return (backend.squared_error(x, t, scale),
            lambda g: _fold(backend.squared_error_grad(x, t, 2 * scale * backend.number(g)), x),
            lambda g: _fold(backend.squared_error_grad(t, x, 2 * scale * backend.number(g)), t))
    # fmt: on


def l1_loss(x: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """|x − target|."""
    return _reduce(abs(_difference("l1_loss", x, target)), reduction)


@op
def _huber(backend: Any, d: Array, delta: float) -> Any:
    size = backend.xp.abs(d)
    y = backend.xp.where(size <= delta, 0.5 * d * d, delta * (size - 0.5 * delta))
    return y, lambda g: g * backend.xp.clip(d, -delta, delta)


def huber_loss(x: Tensor, target: Any, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """½d² for |d| ≤ δ, else δ(|d| − ½δ), with d = x − target: quadratic near zero, linear for outliers. Huber 1964."""
    if not delta > 0:
        raise ValueError(f"huber_loss: delta must be positive, not {delta}")
    return _reduce(_huber(_difference("huber_loss", x, target), delta), reduction)


def nll_loss(x: Tensor, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """−weight[t]·x[t] for log-probabilities x (N, C, ...) and classes t (N, ...).

    "mean" divides by the sum of the weights of the classes present. Targets equal to `ignore_index` do not count.
    """
    return _class_loss("nll_loss", x, target, weight, ignore_index, reduction, 0.0)


def cross_entropy(
    x: Tensor,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """−Σ_c q_c·log softmax(x)_c for logits x (N, C, ...) and classes t (N, ...), q = 1 at class t, smoothed.

    q_c = weight_c·((1 − ε)·[c = t] + ε/C) with ε = label_smoothing. Szegedy et al. 2016, section 7.
    TypeError for targets that are not whole numbers, IndexError for classes out of range.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing lies between 0 and 1, not {label_smoothing}")
    _check_floating("cross_entropy", x)
    return _class_loss("cross_entropy", x, target, weight, ignore_index, reduction, label_smoothing)


@op
def _cross_entropy(backend: Any, x: Array, t: Array, weight: Array, ignore_index: int, smoothing: float) -> Any:
    loss, lse = backend.cross_entropy(x, t, weight, ignore_index, smoothing)
    return loss, lambda g: backend.cross_entropy_grad(g, x, t, lse, weight, ignore_index, smoothing)


@op
def _nll(backend: Any, x: Array, t: Array, weight: Array) -> Any:
    """−weight·x[t] at every position; where the weight is 0, even −∞ counts nothing.   t, weight (N, ...)."""
    xp = backend.xp
    own = xp.take_along_axis(x, t[:, None], axis=1)[:, 0]

    def grad(g: Array) -> Array:
        out = xp.zeros(x.shape, x.dtype)
        xp.put_along_axis(out, t[:, None], (-g * weight)[:, None], axis=1)
        return out

    return -xp.where(weight == 0, 0, weight * own), grad


def _class_loss(
    name: str, x: Tensor, target: Any, weight: Any, ignore_index: int, reduction: str, smoothing: float
) -> Tensor:
    """What cross_entropy and nll_loss have in common: they check the targets, weigh, and reduce."""
    xp = get_backend().xp
    t = xp.asarray(target.data if isinstance(target, Tensor) else target)
    if x.ndim == 1 and t.ndim == 0:  # one sample without a batch
        loss = _class_loss(name, unsqueeze(x, 0), t[None], weight, ignore_index, reduction, smoothing)
        return squeeze(loss)
    if t.dtype.kind not in "iu":
        raise TypeError(f"{name}: targets are class numbers (integers), not {t.dtype}")
    if x.ndim < 2 or t.shape != (x.shape[0], *x.shape[2:]):
        raise ValueError(f"{name}: input {x.shape} is (N, C, ...), so targets must be (N, ...), not {t.shape}")
    classes = x.shape[1]
    counts = t != ignore_index
    w = (
        xp.ones(classes, x.dtype)
        if weight is None
        else xp.asarray(weight.data if isinstance(weight, Tensor) else weight, dtype=x.dtype)
    )
    if w.shape != (classes,):
        raise ValueError(f"{name}: weight has shape {w.shape}, expected ({classes},)")
    if name == "cross_entropy":
        loss = _cross_entropy(x, t, w, ignore_index, smoothing)
    else:
        check_classes(name, t, classes, ignore_index)
        t = xp.where(counts, t, 0)
        loss = _nll(x, t, xp.where(counts, w[t], 0))
    if reduction != "mean":
        return _reduce(loss, reduction)
    total = counts.sum() if weight is None else w[t[counts]].sum()
    return loss.sum() / get_backend().number(total.astype(x.dtype))  # type: ignore[no-any-return]


def binary_cross_entropy_with_logits(
    x: Tensor, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Tensor:
    """−weight·(pos_weight·t·log σ(x) + (1 − t)·log(1 − σ(x))), from logits x and targets t in [0, 1] of one shape."""
    t = target if isinstance(target, Tensor) else Tensor(target)
    if x.shape != t.shape:
        raise ValueError(f"binary_cross_entropy_with_logits: input {x.shape} and target {t.shape} must have one shape")
    weight, pos_weight = (
        w if w is None or isinstance(w, Tensor) else Tensor(w, dtype=x.dtype) for w in (weight, pos_weight)
    )
    log_odds = softplus(-x, threshold=math.inf)  # −log σ(x);  −log(1 − σ(x)) = x + that
    factor = 1.0 if pos_weight is None else (pos_weight - 1) * t + 1
    loss = (1 - t) * x + factor * log_odds
    return _reduce(loss if weight is None else loss * weight, reduction)
