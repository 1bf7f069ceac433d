"""Kernels in C++ (csrc/), compiled when minidl was installed: threads, vector instructions chosen at run time.

Images come back with their channels innermost in memory, (N, C, H, W) as they are to the user, and go in the same way
without a copy; arrays of another layout are converted once (csrc/bindings.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from .numpy_backend import Array, NumpyBackend, Pair, Shape, Windows, pool2d_size

try:
    from minidl import _C
except ImportError as error:
    raise ImportError(
        f"the extension minidl._C was not built or cannot run here ({error}); "
        "install a C++17 compiler, then `pip install -e .` again, or `python setup.py build_ext --inplace`"
    ) from error


_GEOMETRY = itemgetter("stride", "padding", "dilation", "groups")


class CppBackend(NumpyBackend):
    """Calls the kernels of minidl._C, which check what they are given."""

    name = "cpp"

    def describe(self) -> str:
        """Say which vector instructions are in use."""
        return f"SIMD {_C.simd_level()} of {', '.join(_C.simd_levels())} (MINIDL_SIMD chooses), {self.threads} threads"

    def set_conv_algorithm(self, name: str) -> None:
        """Choose the algorithm of convolutions: see minidl.set_conv_algorithm."""
        _C.set_conv_algorithm(name)

    def explain_conv(self, x_shape: Shape, w_shape: Shape, **options: Any) -> str:
        """Ask csrc/cpu/plan.hpp."""
        return _C.explain_conv(x_shape, w_shape, *options.values())

    def record(self, run: Callable[[], list[Any]], batch: Sequence[Array], reads: list[Array]) -> Callable[..., None]:
        """As NumpyBackend.record: of the kernels, those of dense layers and the squared error."""
        return _C.record(run, batch, reads)

    def conv2d(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        *,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        activation: str = "",
    ) -> Array:
        """As NumpyBackend.conv2d."""
        return _C.conv2d(x, w, b, stride, padding, dilation, groups, activation == "relu", self.threads)

    def conv2d_grad_x(
        self,
        g: Array,
        w: Array,
        x_shape: Shape,
        b: Array | None = None,
        *,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
    ) -> Array:
        """As NumpyBackend.conv2d_grad_x."""
        return _C.conv2d_grad_x(g, w, x_shape, b, stride, padding, dilation, groups, False, self.threads)

    def conv_transpose2d(
        self, x: Array, w: Array, out_shape: Shape, b: Array | None, activation: str = "", **options: Any
    ) -> Array:
        """As NumpyBackend.conv_transpose2d."""
        stride, padding, dilation, groups = (options[name] for name in ("stride", "padding", "dilation", "groups"))
        relu = activation == "relu"
        return _C.conv2d_grad_x(x, w, out_shape, b, stride, padding, dilation, groups, relu, self.threads)

    def conv2d_grad_w(
        self, g: Array, x: Array, w_shape: Shape, *, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Array:
        """As NumpyBackend.conv2d_grad_w."""
        return _C.conv2d_grad_w(g, x, w_shape, stride, padding, dilation, groups, self.threads)

    def join(self, x: Array, beside: Array) -> Any:
        """As NumpyBackend.join: both as they are."""
        return x, beside

    def conv2d_joined(self, both: Any, w: Array, b: Array | None, *, activation: str = "", **options: Any) -> Array:
        """As NumpyBackend.conv2d_joined; Winograd's kernels read both images, the others their concatenation."""
        x, beside = both
        stride, padding, dilation, groups = _GEOMETRY(options)
        return _C.conv2d_joined(x, beside, w, b, stride, padding, dilation, groups, activation == "relu", self.threads)

    def conv2d_joined_grad_x(self, g: Array, w: Array, both: Any, channels: int, **options: Any) -> Any:
        """As NumpyBackend.conv2d_joined_grad_x."""
        n, c, *size = both[0].shape
        shape = (n, c + both[1].shape[1], *size)
        stride, padding, dilation, groups = _GEOMETRY(options)
        dx = _C.conv2d_joined_grad_x(g, w, shape, c, stride, padding, dilation, groups, self.threads)
        return dx if isinstance(dx, tuple) else (dx[:, :c], dx[:, c:])

    def conv2d_joined_grad_w(self, g: Array, both: Any, w_shape: Shape, **options: Any) -> Array:
        """As NumpyBackend.conv2d_joined_grad_w."""
        x, beside = both
        stride, padding, dilation, groups = _GEOMETRY(options)
        return _C.conv2d_joined_grad_w(g, x, beside, w_shape, stride, padding, dilation, groups, self.threads)

    def max_pool2d(
        self, x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
    ) -> tuple[Array, Array]:
        """As NumpyBackend.max_pool2d."""
        out = pool2d_size(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
        return _C.max_pool2d(x, out, kernel_size, stride, padding, dilation, self.threads)

    def max_pool2d_grad(
        self,
        g: Array,
        index: Array,
        x_shape: Shape,
        before: Array | None = None,
        *,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
    ) -> Array:
        """As NumpyBackend.max_pool2d_grad."""
        return _C.max_pool2d_grad(g, index, x_shape, before, kernel_size, stride, padding, dilation, self.threads)

    # What array code can do for any dtype, kernels do for float32 and float64.

    def reshape(self, x: Array, shape: Shape) -> Array:
        """As NumpyBackend.reshape; where more than axes of size 1 change, images are turned by a kernel."""
        viewed = x.flags.c_contiguous or [n for n in x.shape if n > 1] == [n for n in shape if n > 1]
        if not viewed and x.ndim > 2 and x.size > 10000 and _ready(x):
            y = _C.contiguous(x, self.threads)
            x = x if y is None else y
        return super().reshape(x, shape)

    def relu(self, x: Array) -> Array:
        """As NumpyBackend.relu."""
        return _C.relu(x, self.threads) if _ready(x) else super().relu(x)

    def activation_grad(self, g: Array, y: Array, activation: str) -> Array:
        """As NumpyBackend.activation_grad."""
        if not _ready(g, y):
            return super().activation_grad(g, y, activation)
        return _C.activation_grad(g, y, activation, self.threads)

    def add(self, x: Array, y: Array) -> Array:
        """As NumpyBackend.add; few numbers are NumPy's, which may be scalars of its own."""
        return _C.add(x, y, self.threads) if x.size > 10000 and _ready(x, y) else super().add(x, y)

    def dropout(self, x: Array, kept: Array, scale: float) -> Array:
        """As NumpyBackend.dropout."""
        return _C.dropout(x, kept, scale, self.threads) if _ready(x) else super().dropout(x, kept, scale)

    def channel_sum(self, g: Array) -> Array:
        """As NumpyBackend.channel_sum."""
        return _C.channel_sum(g, self.threads) if _ready(g) else super().channel_sum(g)

    def concatenate(self, xs: Sequence[Array], axis: int) -> Array:
        """As NumpyBackend.concatenate; a kernel where images get more channels."""
        if axis == 1 and xs[0].ndim > 2 and _ready(*xs):
            return _C.concatenate(xs, self.threads)
        return super().concatenate(xs, axis)

    def batch_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        mean: Array | None,
        var: Array | None,
        eps: float,
        activation: str = "",
    ) -> tuple[Array, Array, Array]:
        """As NumpyBackend.batch_norm."""
        if not _ready(x, weight, bias, mean, var):
            return super().batch_norm(x, weight, bias, mean, var, eps, activation)
        return _C.batch_norm(x, weight, bias, mean, var, eps, activation == "relu", self.threads)

    def batch_norm_grad(
        self,
        g: Array,
        x: Array,
        mean: Array,
        var: Array,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        activation: str,
        training: bool,
    ) -> tuple[Array, Array, Array]:
        """As NumpyBackend.batch_norm_grad."""
        if not _ready(g, x, mean, var, weight, bias):
            return super().batch_norm_grad(g, x, mean, var, weight, bias, eps, activation, training)
        return _C.batch_norm_grad(g, x, mean, var, weight, bias, eps, activation == "relu", training, self.threads)

    def local_response_norm(self, x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
        """As NumpyBackend.local_response_norm."""
        if not _ready(x):
            return super().local_response_norm(x, size, alpha, beta, k)
        return _C.local_response_norm(x, size, alpha, beta, k, self.threads)

    def local_response_norm_grad(
        self, g: Array, x: Array, d: Array, size: int, alpha: float, beta: float, k: float
    ) -> Array:
        """As NumpyBackend.local_response_norm_grad."""
        if not _ready(g, x, d):
            return super().local_response_norm_grad(g, x, d, size, alpha, beta, k)
        return _C.local_response_norm_grad(g, x, d, size, alpha, beta, k, self.threads)

    def avg_pool2d(self, x: Array, count: Array, *, kernel_size: Pair, stride: Pair, padding: Pair) -> Array:
        """As NumpyBackend.avg_pool2d."""
        if not _ready(x, count):
            return super().avg_pool2d(x, count, kernel_size=kernel_size, stride=stride, padding=padding)
        return _C.avg_pool2d(x, count, kernel_size, stride, padding, self.threads)

    def avg_pool2d_grad(
        self, g: Array, count: Array, x_shape: Shape, *, kernel_size: Pair, stride: Pair, padding: Pair
    ) -> Array:
        """As NumpyBackend.avg_pool2d_grad."""
        if not _ready(g, count):
            return super().avg_pool2d_grad(g, count, x_shape, kernel_size=kernel_size, stride=stride, padding=padding)
        return _C.avg_pool2d_grad(g, count, x_shape, kernel_size, stride, padding, self.threads)

    def resample(self, x: Array, rows: Windows, columns: Windows) -> Array:
        """As NumpyBackend.resample."""
        return _C.resample(x, rows, columns, self.threads) if _ready(x) else super().resample(x, rows, columns)

    def cross_entropy(
        self, x: Array, t: Array, weight: Array, ignore_index: int, smoothing: float
    ) -> tuple[Array, Array]:
        """As NumpyBackend.cross_entropy."""
        if not _ready(x, weight):
            return super().cross_entropy(x, t, weight, ignore_index, smoothing)
        return _C.cross_entropy(x, t, weight, ignore_index, smoothing, self.threads)

    def cross_entropy_grad(
        self, g: Array, x: Array, t: Array, lse: Array, weight: Array, ignore_index: int, smoothing: float
    ) -> Array:
        """As NumpyBackend.cross_entropy_grad."""
        if not _ready(g, x, lse, weight):
            return super().cross_entropy_grad(g, x, t, lse, weight, ignore_index, smoothing)
        return _C.cross_entropy_grad(g, x, t, lse, weight, ignore_index, smoothing, self.threads)

    # Dense layers and optimisers: where arrays are not contiguous, or of another dtype, array code takes over.

    def linear(self, x: Array, w: Array, b: Array | None, activation: str = "") -> Array:
        """As NumpyBackend.linear."""
        y = _C.linear(x, w, b, activation, self.threads) if len(x) > 1 else None
        if y is None:  # also one row alone: matrix times vector, bound by memory, BLAS does in a quarter of the time
            return super().linear(x, w, b, activation)
        return y

    def linear_grad_x(self, g: Array, w: Array) -> Array:
        """As NumpyBackend.linear_grad_x."""
        dx = _C.linear_grad_x(g, w, self.threads)
        return super().linear_grad_x(g, w) if dx is None else dx

    def linear_grad_w(self, g: Array, x: Array) -> tuple[Array, Array]:
        """As NumpyBackend.linear_grad_w."""
        return _C.linear_grad_w(g, x, self.threads) or super().linear_grad_w(g, x)

    def squared_error(self, x: Array, t: Array, factor: float) -> Array:
        """As NumpyBackend.squared_error."""
        total = _C.squared_error(x, t, factor, self.threads)
        return super().squared_error(x, t, factor) if total is None else total

    def squared_error_grad(self, x: Array, t: Array, factor: float) -> Array:
        """As NumpyBackend.squared_error_grad."""
        dx = _C.squared_error_grad(x, t, factor, self.threads)
        return super().squared_error_grad(x, t, factor) if dx is None else dx

    def sgd_step(self, params: list[Array], grads: list[Array], velocities: list[Array], *options: Any) -> None:
        """As NumpyBackend.sgd_step."""
        if not _C.sgd_step(params, grads, velocities, *options, self.threads):
            super().sgd_step(params, grads, velocities, *options)

    def adam_step(
        self, params: list[Array], grads: list[Array], means: list[Array], squares: list[Array], *options: Any
    ) -> None:
        """As NumpyBackend.adam_step."""
        if not _C.adam_step(params, grads, means, squares, *options, self.threads):
            super().adam_step(params, grads, means, squares, *options)


def _ready(*arrays: Array | None) -> bool:
    """True for arrays that are all float32, or all float64."""
    kinds = {a.dtype.char for a in arrays if a is not None}
    return kinds == {"f"} or kinds == {"d"}
