"""Kernels in C++ (csrc/), compiled when minidl was installed: threads, vector instructions chosen at run time.

Images come back with their channels innermost in memory, (N, C, H, W) as they are to the user, and go in the same way
without a copy; arrays of another layout are converted once (csrc/bindings.cpp).
"""

from __future__ import annotations

from typing import Any

from .numpy_backend import Array, NumpyBackend, Pair, Shape, pool2d_size

try:
    from minidl import _C
except ImportError as error:
    raise ImportError(
        f"the extension minidl._C was not built or cannot run here ({error}); "
        "install a C++17 compiler, then `pip install -e .` again, or `python setup.py build_ext --inplace`"
    ) from error


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
        return _C.conv2d_grad_x(g, w, x_shape, b, stride, padding, dilation, groups, self.threads)

    def conv2d_grad_w(
        self, g: Array, x: Array, w_shape: Shape, *, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Array:
        """As NumpyBackend.conv2d_grad_w."""
        return _C.conv2d_grad_w(g, x, w_shape, stride, padding, dilation, groups, self.threads)

    def max_pool2d(
        self, x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
    ) -> tuple[Array, Array]:
        """As NumpyBackend.max_pool2d."""
        out = pool2d_size(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
        return _C.max_pool2d(x, out, kernel_size, stride, padding, dilation, self.threads)

    def max_pool2d_grad(self, g: Array, index: Array, x_shape: Shape) -> Array:
        """As NumpyBackend.max_pool2d_grad."""
        return _C.max_pool2d_grad(g, index, x_shape, self.threads)

    # Dense layers and optimisers: where arrays are not contiguous, or of another dtype, array code takes over.

    def linear(self, x: Array, w: Array, b: Array | None, activation: str = "") -> Array:
        """As NumpyBackend.linear."""
        y = _C.linear(x, w, b, activation == "relu", self.threads)
        if y is None:
            return super().linear(x, w, b, activation)
        return y if activation == "relu" else self.activate(y, activation)

    def linear_grad_x(self, g: Array, w: Array) -> Array:
        """As NumpyBackend.linear_grad_x."""
        dx = _C.linear_grad_x(g, w, self.threads)
        return super().linear_grad_x(g, w) if dx is None else dx

    def linear_grad_w(self, g: Array, x: Array) -> tuple[Array, Array]:
        """As NumpyBackend.linear_grad_w."""
        return _C.linear_grad_w(g, x, self.threads) or super().linear_grad_w(g, x)

    def squared_error(self, x: Array, t: Array) -> Array:
        """As NumpyBackend.squared_error."""
        total = _C.squared_error(x, t, self.threads)
        return super().squared_error(x, t) if total is None else total

    def squared_error_grad(self, factor: float, x: Array, t: Array) -> Array:
        """As NumpyBackend.squared_error_grad."""
        dx = _C.squared_error_grad(factor, x, t, self.threads)
        return super().squared_error_grad(factor, x, t) if dx is None else dx

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
