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
