"""Kernels as plain Python loops, compiled by Numba on their first call (a second each; the result is cached on disk).

The loops are the definitions of the operations written out: read them beside the formulas of `numpy_backend.py`. The
innermost one runs along a row of pixels, so the compiler turns it into vector instructions. A kernel computes tasks
start ... stop − 1 of those it divides into; each task has results of its own and adds in a fixed order, so the bits do
not depend on the threads. No fastmath: it would let the compiler drop NaN and reorder sums.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from .numpy_backend import (
    Array,
    NumpyBackend,
    Pair,
    Shape,
    check_float,
    check_pool_grad,
    check_shape,
    conv2d_shape,
    index_dtype,
    pool2d_size,
)

try:
    import numba
except Exception as error:  # a Numba that does not fit its NumPy raises more than ImportError
    raise ImportError(f'Numba cannot be imported ({error}); pip install "minidl[numba]"') from error

compiled: Any = numba.njit(nogil=True, cache=True, error_model="numpy")  # nogil: Python threads run side by side


@compiled
def conv2d(start, stop, x, w, b, y, stride, dilation):  # type: ignore[no-untyped-def]
    """Task (n, o): y[n, o, i, j] = b[o] + Σ_{c, k, l} w[o, c, k, l] · x[n, c, i·stride + k·dilation, ...], x padded."""
    o_total, oh, ow = y.shape[1:]
    channels, kh, kw = w.shape[1:]
    per_group = o_total // (x.shape[1] // channels)
    for task in range(start, stop):
        n, o = task // o_total, task % o_total
        first = o // per_group * channels
        for i in range(oh):
            row = y[n, o, i]
            row[:] = b[o]
            for c in range(channels):
                for k in range(kh):
                    for m in range(kw):
                        pixels = x[n, first + c, i * stride[0] + k * dilation[0], m * dilation[1] :]
                        weight = w[o, c, k, m]
                        if stride[1] == 1:  # the same loop twice: only this one vectorises
                            for j in range(ow):
                                row[j] += weight * pixels[j]
                        else:
                            for j in range(ow):
                                row[j] += weight * pixels[j * stride[1]]


@compiled
def conv2d_grad_x(start, stop, g, w, x, stride, dilation):  # type: ignore[no-untyped-def]
    """Task (n, c): x[n, c, i·stride + k·dilation, ...] += g[n, o, i, j] · w[o, c, k, l], x being ∂L/∂x, padded."""
    o_total, oh, ow = g.shape[1:]
    channels, kh, kw = w.shape[1:]
    per_group = o_total // (x.shape[1] // channels)
    for task in range(start, stop):
        n, c_all = task // x.shape[1], task % x.shape[1]
        group, c = c_all // channels, c_all % channels
        for o in range(group * per_group, (group + 1) * per_group):
            for i in range(oh):
                row = g[n, o, i]
                for k in range(kh):
                    for m in range(kw):
                        pixels = x[n, c_all, i * stride[0] + k * dilation[0], m * dilation[1] :]
                        weight = w[o, c, k, m]
                        if stride[1] == 1:
                            for j in range(ow):
                                pixels[j] += weight * row[j]
                        else:
                            for j in range(ow):
                                pixels[j * stride[1]] += weight * row[j]


@compiled
def conv2d_grad_w(start, stop, g, x, w, stride, dilation):  # type: ignore[no-untyped-def]
    """Task (o, c): w[o, c, k, l] = Σ_{n, i, j} g[n, o, i, j] · x[n, c, i·stride + k·dilation, ...], w being ∂L/∂w."""
    o_total, channels, kh, kw = w.shape
    images, _, oh, ow = g.shape
    per_group = o_total // (x.shape[1] // channels)
    sums = np.empty(ow, g.dtype)  # one for each column of pixels: a single sum could not be vectorised
    for task in range(start, stop):
        o, c = task // channels, task % channels
        c_all = o // per_group * channels + c
        for k in range(kh):
            for m in range(kw):
                sums[:] = 0
                for n in range(images):
                    for i in range(oh):
                        row = g[n, o, i]
                        pixels = x[n, c_all, i * stride[0] + k * dilation[0], m * dilation[1] :]
                        if stride[1] == 1:
                            for j in range(ow):
                                sums[j] += row[j] * pixels[j]
                        else:
                            for j in range(ow):
                                sums[j] += row[j] * pixels[j * stride[1]]
                w[o, c, k, m] = sums.sum()


@compiled
def max_pool2d(start, stop, x, y, index, kernel_size, stride, padding, dilation):  # type: ignore[no-untyped-def]
    """Task (plane): every output walks its window; the first maximum wins, a NaN beats all numbers."""
    h, w = x.shape[1:]
    oh, ow = y.shape[1:]
    for plane in range(start, stop):
        for i in range(oh):
            for j in range(ow):
                best, where = -np.inf, -1
                for k in range(kernel_size[0]):
                    row = i * stride[0] + k * dilation[0] - padding[0]
                    if row < 0 or row >= h:
                        continue
                    for m in range(kernel_size[1]):
                        column = j * stride[1] + m * dilation[1] - padding[1]
                        if 0 <= column < w:
                            value = x[plane, row, column]
                            if value > best or value != value or where < 0:
                                best, where = value, k * kernel_size[1] + m
                y[plane, i, j] = best
                index[plane, i, j] = where


@compiled
def max_pool2d_grad(start, stop, g, index, x, kernel_size, stride, padding, dilation):  # type: ignore[no-untyped-def]
    """Task (plane): the pixel under the tap `index` of each window gets g, x being ∂L/∂x."""
    for plane in range(start, stop):
        for i in range(g.shape[1]):
            for j in range(g.shape[2]):
                k, m = index[plane, i, j] // kernel_size[1], index[plane, i, j] % kernel_size[1]
                row = i * stride[0] + k * dilation[0] - padding[0]
                column = j * stride[1] + m * dilation[1] - padding[1]
                if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                    x[plane, row, column] += g[plane, i, j]


class NumbaBackend(NumpyBackend):
    """Checks, pads and shares out the tasks of the loops above."""

    name = "numba"

    def describe(self) -> str:
        """Say which Numba compiles, and how many threads run."""
        return f"Numba {numba.__version__}, {self.threads} threads"

    def _run(self, kernel: Callable[..., None], tasks: int, *arrays: Any) -> None:
        """Run kernel(start, stop, *arrays) over all tasks, in pieces, each by one thread."""
        pieces = min(tasks, 4 * self.threads)
        bounds = [tasks * i // pieces for i in range(pieces + 1)] if pieces else []
        if self.threads == 1 or pieces < 2:
            kernel(0, tasks, *arrays)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            for done in [pool.submit(kernel, a, b, *arrays) for a, b in pairwise(bounds)]:
                done.result()

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
        check_float(x=x, w=w, b=b)
        y = np.empty(conv2d_shape(x.shape, w.shape, stride, padding, dilation, groups), x.dtype)
        bias = np.zeros(len(w), x.dtype) if b is None else np.ascontiguousarray(b)
        check_shape("b", bias, (len(w),))
        self._run(conv2d, len(x) * len(w), _pad(x, padding), np.ascontiguousarray(w), bias, y, stride, dilation)
        return np.maximum(y, 0, out=y) if activation == "relu" else y

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
        check_float(g=g, w=w, b=b)
        check_shape("g", g, conv2d_shape(x_shape, w.shape, stride, padding, dilation, groups))
        (n, c, h, wd), (ph, pw) = x_shape, padding
        x = np.zeros((n, c, h + 2 * ph, wd + 2 * pw), g.dtype)
        self._run(conv2d_grad_x, n * c, np.ascontiguousarray(g), np.ascontiguousarray(w), x, stride, dilation)
        dx = x[:, :, ph : ph + h, pw : pw + wd]
        if b is not None:
            check_shape("b", b, (c,))
            dx += b[:, None, None]
        return dx

    def conv2d_grad_w(
        self, g: Array, x: Array, w_shape: Shape, *, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Array:
        """As NumpyBackend.conv2d_grad_w."""
        check_float(g=g, x=x)
        check_shape("g", g, conv2d_shape(x.shape, w_shape, stride, padding, dilation, groups))
        w = np.empty(w_shape, g.dtype)
        self._run(
            conv2d_grad_w, w.shape[0] * w.shape[1], np.ascontiguousarray(g), _pad(x, padding), w, stride, dilation
        )
        return w

    def max_pool2d(
        self, x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
    ) -> tuple[Array, Array]:
        """As NumpyBackend.max_pool2d."""
        check_float(x=x)
        size = pool2d_size(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
        planes = x.shape[0] * x.shape[1]
        y, index = np.empty((planes, *size), x.dtype), np.empty((planes, *size), index_dtype(kernel_size))
        flat = np.ascontiguousarray(x).reshape(planes, *x.shape[2:])
        self._run(max_pool2d, planes, flat, y, index, kernel_size, stride, padding, dilation)
        return y.reshape(*x.shape[:2], *size), index.reshape(*x.shape[:2], *size)

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
        check_pool_grad(g, index, x_shape, kernel_size)
        planes = g.shape[0] * g.shape[1]
        x = np.zeros((planes, *x_shape[2:]), g.dtype)
        g_flat, index_flat = (np.ascontiguousarray(a).reshape(planes, *g.shape[2:]) for a in (g, index))
        self._run(max_pool2d_grad, planes, g_flat, index_flat, x, kernel_size, stride, padding, dilation)
        dx = x.reshape(x_shape)
        return dx if before is None else before + dx


def _pad(x: Array, padding: Pair) -> Array:
    """Copy x with zeros around its images; x itself where it needs neither."""
    if not any(padding):
        return np.ascontiguousarray(x)
    (ph, pw), (n, c, h, w) = padding, x.shape
    padded = np.zeros((n, c, h + 2 * ph, w + 2 * pw), x.dtype)
    padded[:, :, ph : ph + h, pw : pw + w] = x
    return padded
