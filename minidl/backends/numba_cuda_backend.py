"""Kernels for a GPU in Python, compiled by Numba, written to be read; `cupy` (csrc/cuda) has those written to be fast.

A GPU runs a kernel for every thread of a grid of blocks. The threads of a block share a small fast memory and can wait
for each other (`syncthreads`); registers are each thread's own. Arrays are CuPy's, which Numba's kernels take as they
are; under NUMBA_ENABLE_CUDASIM=1 the same text runs on a CPU with NumPy's arrays and a Python thread for each of the
GPU's: for tiny shapes, to test and to step through.

Read in this order: matrix products, the ladder below; what they multiply (a convolution is such a product); windows;
sums over a channel; numbers one by one. No kernel uses atomics, every sum has one order: the same bits twice.

The ladder: C = A·B, K products a number of C, the same text for dense layers and the three passes of a convolution.
Bytes are those read from main memory, or its cache, for one number of float32; the operations are always 2·K.

  rung     idea                                                  bytes a number          operations a byte
  naive    a thread computes one number from memory              8·K                     1/4
  tiled    a block of T x T threads reads tiles of A and B into  8·K/T                   T/4 = 4 with T = 16
           shared memory once, each of its threads uses them
  blocked  a thread keeps R x R numbers in registers: R + R      8·K/(T·R), and from     T·R/4 = 16 with R = 4
           values from shared memory give R·R products           shared memory 8·K/R

A naive kernel waits for memory; a tiled one for shared memory, two reads a product; a blocked one at last multiplies.
What each reaches of the device's ceiling is measured by `python -m benchmarks.gpu` and written in benchmarks/README.md.
Rungs not climbed here, see csrc/cuda: loading the next tile while multiplying, 16-byte loads, tensor cores, Winograd.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (Numba gives kernels their types when they are launched.)

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from .numpy_backend import (
    NumpyBackend,
    Pair,
    Shape,
    Windows,
    check_classes,
    check_float,
    check_pool_grad,
    check_shape,
    conv2d_shape,
    index_dtype,
    pool2d_size,
)

try:
    import numba
    from numba import config
    from numba import cuda as numba_cuda
except Exception as error:  # numba-cuda raises RuntimeError without a driver
    raise ImportError(f'Numba cannot be imported ({error}); pip install "minidl[numba]"') from error

cuda: Any = numba_cuda
SIMULATED = bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]
config.CUDA_ARRAY_INTERFACE_SYNC = 0  # type: ignore[attr-defined]  # one stream keeps the order: nothing need wait
if SIMULATED:
    xp: Any = np
elif not cuda.is_available():
    raise ImportError(
        "Numba finds no NVIDIA GPU with a driver here; "
        "with NUMBA_ENABLE_CUDASIM=1 its kernels run in a simulator, for tiny shapes"
    )
else:
    try:
        import cupy as xp  # type: ignore[import-not-found,no-redef]
    except Exception as error:
        raise ImportError(
            f'CuPy, whose arrays are used, cannot be imported ({error}); pip install "minidl[cuda]"'
        ) from error

Array = Any  # CuPy's, or NumPy's
TILE = 4 if SIMULATED else 16  # T: threads along each side of a block
EACH = 2 if SIMULATED else 4  # R: numbers along each side that a thread keeps
WIDE = TILE * EACH  # numbers along each side of a block's tile, last rung
THREADS = 8 if SIMULATED else 256  # of a block, elsewhere; a power of two
BLOCKS = 512  # enough for the largest GPU to be busy
RUNGS = ("naive", "tiled", "blocked")

kernel: Any = cuda.jit
# A function for kernels to call. The simulator calls plain ones, faster.
device: Any = (lambda function: function) if SIMULATED else cuda.jit(device=True)


@device
def smaller(a, b):
    """Give min(a, b), which some versions of Numba cannot compile for a GPU."""
    return a if a < b else b


@device
def larger(a, b):
    """Give max(a, b)."""
    return a if a > b else b


# === matrix products: the ladder =====================================================================================
#
# Each rung is a function that makes a kernel. `left(a, …, i, k)` and `right(b, …, k, j)` look up an element of the two
# matrices, `put(out, …, i, j, value)` stores one of the product; there are `groups` products of one shape, and the sum
# over k may be cut into `splits` parts, each with a result of its own. size = (rows, columns, depth, splits).


def naive(left: Any, right: Any, put: Any, number: Any) -> Any:
    """Rung 1: a thread computes one number and reads all it needs from memory."""

    @kernel
    def product(a, b, bias, out, size, shape, relu):
        rows, columns, depth, splits = size
        group, split = cuda.blockIdx.z // splits, cuda.blockIdx.z % splits
        share = (depth + splits - 1) // splits
        first, last = split * share, smaller((split + 1) * share, depth)
        i = cuda.blockIdx.y * TILE + cuda.threadIdx.y
        j = cuda.blockIdx.x * TILE + cuda.threadIdx.x
        if i < rows and j < columns:
            total = number(0)
            for k in range(first, last):
                total += left(a, shape, group, i, k) * right(b, shape, group, k, j)
            put(out, bias, relu, group, split, i, j, total)

    return product


def tiled(left: Any, right: Any, put: Any, number: Any) -> Any:
    """Rung 2: a block computes T x T numbers; what it reads of A and B serves T threads each."""

    @kernel
    def product(a, b, bias, out, size, shape, relu):
        tile_a = cuda.shared.array((TILE, TILE), number)
        tile_b = cuda.shared.array((TILE, TILE), number)
        rows, columns, depth, splits = size
        group, split = cuda.blockIdx.z // splits, cuda.blockIdx.z % splits
        share = (depth + splits - 1) // splits
        first, last = split * share, smaller((split + 1) * share, depth)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        i, j = cuda.blockIdx.y * TILE + y, cuda.blockIdx.x * TILE + x
        total = number(0)
        for k in range(first, last, TILE):
            tile_a[y, x] = left(a, shape, group, i, k + x) if i < rows and k + x < last else number(0)
            tile_b[y, x] = right(b, shape, group, k + y, j) if j < columns and k + y < last else number(0)
            cuda.syncthreads()  # the tiles are there
            for t in range(TILE):
                total += tile_a[y, t] * tile_b[t, x]
            cuda.syncthreads()  # everyone has read them
        if i < rows and j < columns:
            put(out, bias, relu, group, split, i, j, total)

    return product


def blocked(left: Any, right: Any, put: Any, number: Any) -> Any:
    """Rung 3: a thread computes R x R numbers, T apart, so that neighbours read and write neighbours."""

    @kernel
    def product(a, b, bias, out, size, shape, relu):
        tile_a = cuda.shared.array((WIDE, TILE), number)
        tile_b = cuda.shared.array((TILE, WIDE), number)
        totals = cuda.local.array((EACH, EACH), number)  # in registers, once the loops over it are unrolled
        rows, columns, depth, splits = size
        group, split = cuda.blockIdx.z // splits, cuda.blockIdx.z % splits
        share = (depth + splits - 1) // splits
        first, last = split * share, smaller((split + 1) * share, depth)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        top, side = cuda.blockIdx.y * WIDE + y, cuda.blockIdx.x * WIDE + x
        for p in range(EACH):
            for q in range(EACH):
                totals[p, q] = number(0)
        for k in range(first, last, TILE):
            for p in range(EACH):
                i, j = top + p * TILE, side + p * TILE
                tile_a[y + p * TILE, x] = left(a, shape, group, i, k + x) if i < rows and k + x < last else number(0)
                tile_b[y, x + p * TILE] = (
                    right(b, shape, group, k + y, j) if j < columns and k + y < last else number(0)
                )
            cuda.syncthreads()  # the tiles are there
            for t in range(TILE):
                for p in range(EACH):
                    value = tile_a[y + p * TILE, t]
                    for q in range(EACH):
                        totals[p, q] += value * tile_b[t, x + q * TILE]
            cuda.syncthreads()  # everyone has read them
        for p in range(EACH):
            for q in range(EACH):
                i, j = top + p * TILE, side + q * TILE
                if i < rows and j < columns:
                    put(out, bias, relu, group, split, i, j, totals[p, q])

    return product


# === what is multiplied ==============================================================================================
#
# A convolution is a product whose second matrix, the unfolded windows of im2col, is never written down: its elements
# are looked up in the image ("implicit GEMM"; Chetlur et al. 2014, section 3).
# shape = (kernel, stride, padding, dilation, (OH, OW), (C/groups, O/groups)), six pairs.


@device
def reached(out, tap, stride, padding, dilation):
    """Along one axis: the pixel under a tap of the window of an output; it may lie outside the image."""
    return out * stride + tap * dilation - padding


@device
def reaching(pixel, tap, stride, padding, dilation, size):
    """Along one axis: the output, of `size`, whose window has the pixel under this tap; −1 if there is none."""
    start = pixel + padding - tap * dilation
    if start < 0 or start % stride or start // stride >= size:
        return -1
    return start // stride


@device
def element(a, shape, group, i, k):
    """Matrices themselves."""
    return a[i, k]


@device
def weights(w, shape, group, i, k):
    """conv2d, A (O/groups, C/groups·KH·KW): w as it is."""
    return w[group * shape[5][1] + i, k]


@device
def window(x, shape, group, k, j):
    """conv2d, B (C/groups·KH·KW, N·OH·OW): under tap k = (c, u, v) of the window of output j = (n, oh, ow)."""
    (kh, kw), stride, padding, dilation, (oh, ow), (channels, _) = shape
    n, at = j // (oh * ow), j % (oh * ow)
    c, tap = k // (kh * kw), k % (kh * kw)
    row = reached(at // ow, tap // kw, stride[0], padding[0], dilation[0])
    column = reached(at % ow, tap % kw, stride[1], padding[1], dilation[1])
    if row < 0 or row >= x.shape[2] or column < 0 or column >= x.shape[3]:
        return x.dtype.type(0)
    return x[n, group * channels + c, row, column]


@device
def weights_turned(w, shape, group, i, k):
    """conv2d_grad_x, A (C/groups, O/groups·KH·KW): w[o, i, tap] with k = (o, tap), w (O, C/groups, KH·KW)."""
    taps = shape[0][0] * shape[0][1]
    return w[group * shape[5][1] + k // taps, i, k % taps]


@device
def windows_of(g, shape, group, k, j):
    """conv2d_grad_x, B (O/groups·KH·KW, N·H·W): g of channel o whose window has pixel j under the tap."""
    (kh, kw), stride, padding, dilation, (h, w), (_, outputs) = shape
    n, at = j // (h * w), j % (h * w)
    o, tap = k // (kh * kw), k % (kh * kw)
    row = reaching(at // w, tap // kw, stride[0], padding[0], dilation[0], g.shape[2])
    column = reaching(at % w, tap % kw, stride[1], padding[1], dilation[1], g.shape[3])
    if row < 0 or column < 0:
        return g.dtype.type(0)
    return g[n, group * outputs + o, row, column]


@device
def gradients(g, shape, group, i, k):
    """conv2d_grad_w, A (O/groups, N·OH·OW): g of output channel i at k = (n, oh, ow), g (N, O, OH·OW)."""
    pixels = g.shape[2]
    return g[k // pixels, group * shape[5][1] + i, k % pixels]


@device
def window_turned(x, shape, group, k, j):
    """conv2d_grad_w, B (N·OH·OW, C/groups·KH·KW): the windows of the forward pass, rows and columns exchanged."""
    return window(x, shape, group, j, k)


@device
def put_image(out, bias, relu, group, split, i, j, value):
    """Row i is a channel, column j a pixel of an image: out (N, groups, channels a group, pixels), bias (channels,)."""
    if bias.size:
        value += bias[group * out.shape[2] + i]
    if relu and value < 0:  # NaN stays NaN
        value = out.dtype.type(0)
    out[j // out.shape[3], group, i, j % out.shape[3]] = value


@device
def put_matrix(out, bias, relu, group, split, i, j, value):
    """Store where it stands: out (splits, groups, rows, columns)."""
    out[split, group, i, j] = value


PRODUCTS = {
    "conv2d": (weights, window, put_image),
    "conv2d_grad_x": (weights_turned, windows_of, put_image),
    "conv2d_grad_w": (gradients, window_turned, put_matrix),
    "linear": (element, element, put_image),  # x·wᵀ is a convolution of images of one pixel
    "matmul": (element, element, put_matrix),
}


@cache
def product_kernel(rung: str, name: str, dtype: str) -> Any:
    """Give the kernel of a product on a rung of the ladder, for "float32" or "float64"."""
    return {"naive": naive, "tiled": tiled, "blocked": blocked}[rung](*PRODUCTS[name], getattr(numba, dtype))


# === windows: a thread computes one result ===========================================================================
#
# Bound by memory: the taps of neighbouring windows come from the cache. Backwards a thread asks which windows hold its
# pixel and adds what they send; to let each window write would need atomics, and their order differs from run to run.


@kernel
def max_pool(x, y, index, size, stride, padding, dilation):
    """Thread (plane, i, j) walks its window; the first maximum wins, a NaN beats all numbers.   x (planes, H, W)."""
    at = cuda.grid(1)
    oh, ow = y.shape[1], y.shape[2]
    if at < y.size:
        plane, i, j = at // (oh * ow), at // ow % oh, at % ow
        best, where = x.dtype.type(-math.inf), -1
        for tap in range(size[0] * size[1]):
            row = reached(i, tap // size[1], stride[0], padding[0], dilation[0])
            column = reached(j, tap % size[1], stride[1], padding[1], dilation[1])
            if row >= 0 and row < x.shape[1] and column >= 0 and column < x.shape[2]:
                value = x[plane, row, column]
                if value > best or value != value or where < 0:
                    best, where = value, tap
        y[plane, i, j] = best
        index[plane, i, j] = where


@kernel
def max_pool_grad(g, index, dx, size, stride, padding, dilation):
    """Thread (plane, row, column) adds the g of every window whose maximum was its pixel."""
    at = cuda.grid(1)
    h, w = dx.shape[1], dx.shape[2]
    if at < dx.size:
        plane, row, column = at // (h * w), at // w % h, at % w
        total = dx.dtype.type(0)
        for tap in range(size[0] * size[1]):
            i = reaching(row, tap // size[1], stride[0], padding[0], dilation[0], g.shape[1])
            j = reaching(column, tap % size[1], stride[1], padding[1], dilation[1], g.shape[2])
            if i >= 0 and j >= 0 and index[plane, i, j] == tap:
                total += g[plane, i, j]
        dx[plane, row, column] = total


@kernel
def avg_pool(x, count, y, size, stride, padding):
    """Thread (plane, i, j) adds up its window and divides."""
    at = cuda.grid(1)
    oh, ow = y.shape[1], y.shape[2]
    if at < y.size:
        plane, i, j = at // (oh * ow), at // ow % oh, at % ow
        total = x.dtype.type(0)
        for tap in range(size[0] * size[1]):
            row = reached(i, tap // size[1], stride[0], padding[0], 1)
            column = reached(j, tap % size[1], stride[1], padding[1], 1)
            if row >= 0 and row < x.shape[1] and column >= 0 and column < x.shape[2]:
                total += x[plane, row, column]
        y[plane, i, j] = total / count[i, j]


@kernel
def avg_pool_grad(g, count, dx, size, stride, padding):
    """Thread (plane, row, column) adds g/count of every window that holds its pixel."""
    at = cuda.grid(1)
    h, w = dx.shape[1], dx.shape[2]
    if at < dx.size:
        plane, row, column = at // (h * w), at // w % h, at % w
        total = dx.dtype.type(0)
        for tap in range(size[0] * size[1]):
            i = reaching(row, tap // size[1], stride[0], padding[0], 1, g.shape[1])
            j = reaching(column, tap % size[1], stride[1], padding[1], 1, g.shape[2])
            if i >= 0 and j >= 0:
                total += g[plane, i, j] / count[i, j]
        dx[plane, row, column] = total


@kernel
def resample(x, y, first, last, weight, first_c, last_c, weight_c):
    """Thread (plane, i, j) adds up its window of rows and columns, each with its weights."""
    at = cuda.grid(1)
    oh, ow = y.shape[1], y.shape[2]
    if at < y.size:
        plane, i, j = at // (oh * ow), at // ow % oh, at % ow
        total = x.dtype.type(0)
        for k in range(first[i], last[i]):
            line = x.dtype.type(0)
            for m in range(first_c[j], last_c[j]):
                line += weight_c[j, m - first_c[j]] * x[plane, k, m]
            total += weight[i, k - first[i]] * line
        y[plane, i, j] = total


# === sums over a channel =============================================================================================
#
# Block (channel, share) adds one share of the channel's numbers: each thread every THREADS-th of them, so that
# neighbours read neighbours, then pairs of threads, then pairs of pairs (the tree of a reduction). The shares are added
# afterwards.


@device
def itself(a, b, mean, n, c, p):
    """Σ a."""
    return a[n, c, p]


@device
def squared_distance(a, b, mean, n, c, p):
    """Σ (a − mean)²: a second pass through the numbers, which keeps the digits that Σ a² − count·mean² loses."""
    return (a[n, c, p] - mean[c]) * (a[n, c, p] - mean[c])


@device
def with_distance(a, b, mean, n, c, p):
    """Σ a·(b − mean)."""
    return a[n, c, p] * (b[n, c, p] - mean[c])


TERMS = {"itself": itself, "squared_distance": squared_distance, "with_distance": with_distance}


def channel_sums(term: Any, number: Any) -> Any:
    """Make the kernel that sums a term over images and pixels.   a, b (N, C, pixels), mean (C,) -> shares (S, C)."""

    @kernel
    def sums(a, b, mean, shares):
        held = cuda.shared.array(THREADS, number)
        thread, c, share = cuda.threadIdx.x, cuda.blockIdx.x, cuda.blockIdx.y
        pixels = a.shape[2]
        total = number(0)
        for at in range(share * THREADS + thread, a.shape[0] * pixels, THREADS * cuda.gridDim.y):
            total += term(a, b, mean, at // pixels, c, at % pixels)
        held[thread] = total
        half = THREADS // 2
        while half:
            cuda.syncthreads()  # the sums so far are there
            if thread < half:
                held[thread] += held[thread + half]
            half //= 2
        if thread == 0:
            shares[share, c] = held[0]

    return sums


@cache
def sums_kernel(term: str, dtype: str) -> Any:
    """Give the kernel that sums this term, for "float32" or "float64"."""
    return channel_sums(TERMS[term], getattr(numba, dtype))


# === numbers one by one: a thread each, bound by memory ==============================================================
#
# Bytes a number in float32, all of them needed: dropout 9, batch norm 8 forward and 12 backward, activation_grad 12,
# Adam 28 (reads p, g, m, s; writes p, m, s). Array code would write and read every intermediate result besides.


@kernel
def normalise(x, y, mean, scale, shift, relu):
    """y = (x − mean)·scale + shift, each of a channel.   x, y (N, C, pixels)."""
    at = cuda.grid(1)
    channels, pixels = x.shape[1], x.shape[2]
    if at < x.size:
        n, c, p = at // (channels * pixels), at // pixels % channels, at % pixels
        value = (x[n, c, p] - mean[c]) * scale[c] + shift[c]
        y[n, c, p] = x.dtype.type(0) if relu and value < 0 else value


@kernel
def normalise_grad(g, x, dx, mean, scale, shift, slope):
    """dx = (g − shift − (x − mean)·slope)·scale, each of a channel."""
    at = cuda.grid(1)
    channels, pixels = x.shape[1], x.shape[2]
    if at < x.size:
        n, c, p = at // (channels * pixels), at // pixels % channels, at % pixels
        dx[n, c, p] = (g[n, c, p] - shift[c] - (x[n, c, p] - mean[c]) * slope[c]) * scale[c]


@kernel
def response(x, y, d, before, after, alpha, beta, k):
    """Thread (n, c, p): d = k + alpha·Σ x² over the channels c − before ... c + after, y = x·d^−beta."""
    at = cuda.grid(1)
    channels, pixels = x.shape[1], x.shape[2]
    if at < x.size:
        n, c, p = at // (channels * pixels), at // pixels % channels, at % pixels
        total = x.dtype.type(0)
        for near in range(larger(0, c - before), smaller(channels, c + after + 1)):
            total += x[n, near, p] * x[n, near, p]
        d[n, c, p] = k + alpha * total
        y[n, c, p] = x[n, c, p] * d[n, c, p] ** -beta


@kernel
def response_grad(g, x, d, dx, before, after, slope, beta):
    """Thread (n, c, p): dx = g·d^−beta − slope·x·Σ g·x·d^(−beta − 1) over the channels whose windows hold c."""
    at = cuda.grid(1)
    channels, pixels = x.shape[1], x.shape[2]
    if at < x.size:
        n, c, p = at // (channels * pixels), at // pixels % channels, at % pixels
        total = x.dtype.type(0)
        for near in range(larger(0, c - before), smaller(channels, c + after + 1)):
            total += g[n, near, p] * x[n, near, p] * d[n, near, p] ** -beta / d[n, near, p]
        dx[n, c, p] = g[n, c, p] * d[n, c, p] ** -beta - slope * x[n, c, p] * total


@kernel
def relu_grad(g, y, dx):
    """g where y > 0, else 0."""
    at = cuda.grid(1)
    if at < y.size:
        dx[at] = g[at] if y[at] > 0 else g.dtype.type(0)


@kernel
def drop(x, kept, y, scale):
    """y = scale·x where kept, else 0·x."""
    at = cuda.grid(1)
    if at < x.size:
        y[at] = x[at] * (scale if kept[at] else x.dtype.type(0))


@kernel
def sgd(p, g, v, lr, momentum, fresh, weight_decay, nesterov):
    """The step of `optim.SGD`; fresh = 1 − dampening; v is empty without momentum."""
    at = cuda.grid(1)
    if at < p.size:
        step = g[at]
        if weight_decay != 0:
            step += weight_decay * p[at]
        if v.size:
            v[at] = momentum * v[at] + fresh * step
            step = step + momentum * v[at] if nesterov else v[at]
        p[at] -= lr * step


@kernel
def adam(p, g, m, s, step, beta1, fresh1, beta2, fresh2, root, eps, weight_decay, shrink):
    """The step of `optim.Adam`: step = lr/(1 − β₁ᵗ), root = √(1 − β₂ᵗ), fresh = 1 − β; AdamW shrinks p beforehand."""
    at = cuda.grid(1)
    if at < p.size:
        value = p[at] * shrink
        slope = g[at]
        if weight_decay != 0:
            slope += weight_decay * value
        m[at] = beta1 * m[at] + fresh1 * slope
        s[at] = beta2 * s[at] + fresh2 * (slope * slope)
        p[at] = value - step * (m[at] / (math.sqrt(s[at]) / root + eps))


# === softmax and cross entropy: a thread computes a position, walking over its classes ================================


@device
def share_of(c, target, weight, ignored, hit, rest):
    """q_c = weight_c·((1 − ε)·[c = t] + ε/C) with 1 − ε = hit, ε/C = rest; 0 where the target is ignored."""
    if target == ignored:
        return weight.dtype.type(0)
    return weight[c] * (hit + rest if c == target else rest)


@kernel
def class_loss(x, t, weight, loss, lse, ignored, hit, rest):
    """Thread (n, p): the largest logit, then log Σ exp, then the loss; x (N, C, pixels) is read three times, cached."""
    at = cuda.grid(1)
    classes, pixels = x.shape[1], x.shape[2]
    if at < loss.size:
        n, p = at // pixels, at % pixels
        top = x[n, 0, p]
        for c in range(1, classes):
            if x[n, c, p] > top or x[n, c, p] != x[n, c, p]:
                top = x[n, c, p]
        total = x.dtype.type(0)
        for c in range(classes):
            total += math.exp(x[n, c, p] - top)
        log = math.log(total)
        value = x.dtype.type(0)
        for c in range(classes):
            q = share_of(c, t[n, p], weight, ignored, hit, rest)
            if q != 0:
                value -= q * (x[n, c, p] - top - log)
        loss[n, p], lse[n, p] = value, log


@kernel
def class_loss_grad(g, x, t, lse, weight, dx, ignored, hit, rest):
    """Thread (n, p): dx_c = g·(softmax(x)_c·Σ q − q_c) for all classes."""
    at = cuda.grid(1)
    classes, pixels = x.shape[1], x.shape[2]
    if at < lse.size:
        n, p = at // pixels, at % pixels
        top, total = x[n, 0, p], share_of(0, t[n, p], weight, ignored, hit, rest)
        for c in range(1, classes):
            if x[n, c, p] > top or x[n, c, p] != x[n, c, p]:
                top = x[n, c, p]
            total += share_of(c, t[n, p], weight, ignored, hit, rest)
        for c in range(classes):
            q = share_of(c, t[n, p], weight, ignored, hit, rest)
            dx[n, c, p] = g[n, p] * (math.exp(x[n, c, p] - top - lse[n, p]) * total - q)


# === the backend: checks, shapes, launches ===========================================================================


class NumbaCudaBackend(NumpyBackend):
    """Launches the kernels above on CuPy's arrays (in the simulator: NumPy's); the rest is array code."""

    name = "numba_cuda"
    xp = xp
    rung = "blocked"  # of the ladder that products take

    def describe(self) -> str:
        """Say which Numba compiles, and what runs the kernels."""
        if SIMULATED:
            return f"Numba {numba.__version__}'s CUDA simulator on the CPU, for tiny shapes"
        major, minor = cuda.get_current_device().compute_capability
        name = cuda.get_current_device().name
        return f"Numba {numba.__version__} on {name.decode() if isinstance(name, bytes) else name}, sm_{major}{minor}"

    def _product(
        self,
        name: str,
        a: Array,
        b: Array,
        out: Array,
        size: tuple[int, int, int],
        *,
        shape: tuple[Pair, ...] = ((0, 0),),
        bias: Array | None = None,
        relu: bool = False,
        groups: int = 1,
        splits: int = 1,
    ) -> None:
        """Launch a product on this backend's rung."""
        if not out.size:
            return
        side = WIDE if self.rung == "blocked" else TILE
        grid = -(-size[1] // side), -(-size[0] // side), groups * splits
        launch = product_kernel(self.rung, name, str(out.dtype))[grid, (TILE, TILE)]
        bias = self.xp.empty(0, out.dtype) if bias is None else bias
        launch(a, b, bias, out, (*size, splits), shape, relu)

    def _matmul(self, a: Array, b: Array) -> Array:
        """a (M, K) · b (K, N), with as many parts of the sum as make the device busy."""
        check_float(a=a, b=b)
        (rows, depth), columns = a.shape, b.shape[1]
        splits = _splits(rows, columns, depth, 1)
        out = self.xp.empty((splits, 1, rows, columns), a.dtype)
        self._product("matmul", a, b, out, (rows, columns, depth), splits=splits)
        return out.sum(axis=0)[0] if splits > 1 else out[0, 0]

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
        n, o, *pixels = conv2d_shape(x.shape, w.shape, stride, padding, dilation, groups)
        if b is not None:
            check_shape("b", b, (o,))
        shape = (w.shape[2:], stride, padding, dilation, tuple(pixels), (w.shape[1], o // groups))
        y = self.xp.empty((n, groups, o // groups, math.prod(pixels)), x.dtype)
        size = (o // groups, n * math.prod(pixels), math.prod(w.shape[1:]))
        options: Any = {"shape": shape, "bias": b, "relu": activation == "relu", "groups": groups}
        self._product("conv2d", self._own(w).reshape(o, -1), self._own(x), y, size, **options)
        return y.reshape(n, o, *pixels)

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
        (n, c, *pixels), (o, each, *kernel_size) = x_shape, w.shape
        if b is not None:
            check_shape("b", b, (c,))
        shape = (tuple(kernel_size), stride, padding, dilation, tuple(pixels), (each, o // groups))
        dx = self.xp.empty((n, groups, each, math.prod(pixels)), g.dtype)
        size = (each, n * math.prod(pixels), o // groups * math.prod(kernel_size))
        options: Any = {"shape": shape, "bias": b, "groups": groups}
        self._product("conv2d_grad_x", self._own(w).reshape(o, each, -1), self._own(g), dx, size, **options)
        return dx.reshape(x_shape)

    def conv2d_grad_w(
        self, g: Array, x: Array, w_shape: Shape, *, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Array:
        """As NumpyBackend.conv2d_grad_w."""
        check_float(g=g, x=x)
        check_shape("g", g, conv2d_shape(x.shape, w_shape, stride, padding, dilation, groups))
        n, o, *pixels = g.shape
        shape = (w_shape[2:], stride, padding, dilation, tuple(pixels), (w_shape[1], o // groups))
        size = (o // groups, math.prod(w_shape[1:]), n * math.prod(pixels))
        splits = _splits(*size, groups)
        dw = self.xp.empty((splits, groups, *size[:2]), g.dtype)
        options: Any = {"shape": shape, "groups": groups, "splits": splits}
        self._product("conv2d_grad_w", self._own(g).reshape(n, o, -1), self._own(x), dw, size, **options)
        return dw.sum(axis=0).reshape(w_shape)

    def linear(self, x: Array, w: Array, b: Array | None, activation: str = "") -> Array:
        """As NumpyBackend.linear."""
        check_float(x=x, w=w, b=b)
        y = self.xp.empty((len(x), 1, len(w), 1), x.dtype)
        size, relu = (len(w), len(x), x.shape[1]), activation == "relu"
        self._product("linear", w, x.T, y, size, bias=b, relu=relu)
        y = y.reshape(len(x), len(w))
        return y if relu else self.activate(y, activation)

    def linear_grad_x(self, g: Array, w: Array) -> Array:
        """As NumpyBackend.linear_grad_x."""
        return self._matmul(g, w)

    def linear_grad_w(self, g: Array, x: Array) -> tuple[Array, Array]:
        """As NumpyBackend.linear_grad_w."""
        return self._matmul(g.T, x), self.channel_sum(g)

    def max_pool2d(
        self, x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
    ) -> tuple[Array, Array]:
        """As NumpyBackend.max_pool2d."""
        check_float(x=x)
        size = pool2d_size(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
        y = self.xp.empty((x.shape[0] * x.shape[1], *size), x.dtype)
        index = self.xp.empty(y.shape, index_dtype(kernel_size))
        _each(max_pool, y.size, self._planes(x), y, index, kernel_size, stride, padding, dilation)
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
        dx = self.xp.empty((x_shape[0] * x_shape[1], *x_shape[2:]), g.dtype)
        arrays = self._planes(g), self._planes(index), dx
        _each(max_pool_grad, dx.size, *arrays, kernel_size, stride, padding, dilation)
        dx = dx.reshape(x_shape)
        return dx if before is None else before + dx

    def avg_pool2d(self, x: Array, count: Array, *, kernel_size: Pair, stride: Pair, padding: Pair) -> Array:
        """As NumpyBackend.avg_pool2d."""
        y = self.xp.empty((x.shape[0] * x.shape[1], *count.shape), x.dtype)
        _each(avg_pool, y.size, self._planes(x), self._own(count), y, kernel_size, stride, padding)
        return y.reshape(*x.shape[:2], *count.shape)

    def avg_pool2d_grad(
        self, g: Array, count: Array, x_shape: Shape, *, kernel_size: Pair, stride: Pair, padding: Pair
    ) -> Array:
        """As NumpyBackend.avg_pool2d_grad."""
        dx = self.xp.empty((x_shape[0] * x_shape[1], *x_shape[2:]), g.dtype)
        _each(avg_pool_grad, dx.size, self._planes(g), self._own(count), dx, kernel_size, stride, padding)
        return dx.reshape(x_shape)

    def resample(self, x: Array, rows: Windows, columns: Windows) -> Array:
        """As NumpyBackend.resample."""
        if x.dtype.kind != "f":
            return super().resample(x, rows, columns)
        y = self.xp.empty((x.shape[0] * x.shape[1], len(rows[0]), len(columns[0])), x.dtype)
        axes = [
            self.xp.asarray(a, dtype=x.dtype if a.ndim > 1 else np.int64)
            for windows in (rows, columns)
            for a in windows
        ]
        _each(resample, y.size, self._planes(x), y, *axes)
        return y.reshape(*x.shape[:2], *y.shape[1:])

    def channel_sum(self, g: Array) -> Array:
        """As NumpyBackend.channel_sum."""
        if g.dtype.kind != "f":
            return super().channel_sum(g)
        return self._sum("itself", self._channels(g))

    def _sum(self, term: str, a: Array, b: Array | None = None, mean: Array | None = None) -> Array:
        """Sum a term over all but the channels.   a, b (N, C, pixels), mean (C,) -> (C,)."""
        count, channels = a.shape[0] * a.shape[2], a.shape[1]
        shares = max(1, min(-(-BLOCKS // max(channels, 1)), -(-count // (8 * THREADS))))
        out = self.xp.zeros((shares, channels), a.dtype)
        if a.size:
            unused = out[0]
            b, mean = a if b is None else b, unused if mean is None else mean
            sums_kernel(term, str(a.dtype))[(channels, shares), THREADS](a, b, mean, out)
        return out.sum(axis=0)

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
        """As NumpyBackend.batch_norm: two sums and one pass, x read three times and y written once."""
        a = self._channels(x)
        if mean is None or var is None:
            count = max(a.shape[0] * a.shape[2], 1)
            mean = self._sum("itself", a) / count
            var = self._sum("squared_distance", a, mean=mean) / count
        scale = 1 / self.xp.sqrt(var + eps) if weight is None else weight / self.xp.sqrt(var + eps)
        shift = self.xp.zeros_like(scale) if bias is None else bias
        y = self.xp.empty(a.shape, x.dtype)
        _each(normalise, y.size, a, y, mean, scale, shift, activation == "relu")
        return y.reshape(x.shape), mean, var

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
        if activation == "relu":
            g = self.activation_grad(g, self.batch_norm(x, weight, bias, mean, var, eps)[0], "relu")
        ga, xa = self._channels(g), self._channels(x)
        inverse = 1 / self.xp.sqrt(var + eps)
        dbias, dweight = self._sum("itself", ga), self._sum("with_distance", ga, xa, mean) * inverse
        scale = inverse if weight is None else weight * inverse
        shift = slope = self.xp.zeros_like(mean)
        if training:  # mean and variance depend on x
            count = max(ga.shape[0] * ga.shape[2], 1)
            shift, slope = dbias / count, dweight * inverse / count
        dx = self.xp.empty(xa.shape, x.dtype)
        _each(normalise_grad, dx.size, ga, xa, dx, mean, scale, shift, slope)
        return dx.reshape(x.shape), dweight, dbias

    def local_response_norm(self, x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
        """As NumpyBackend.local_response_norm."""
        a = self._channels(x)
        y, d = self.xp.empty(a.shape, x.dtype), self.xp.empty(a.shape, x.dtype)
        numbers = map(x.dtype.type, (alpha / size, beta, k))
        _each(response, y.size, a, y, d, size // 2, (size - 1) // 2, *numbers)
        return y.reshape(x.shape), d.reshape(x.shape)

    def local_response_norm_grad(
        self, g: Array, x: Array, d: Array, size: int, alpha: float, beta: float, k: float
    ) -> Array:
        """As NumpyBackend.local_response_norm_grad."""
        dx = self.xp.empty(self._channels(x).shape, x.dtype)
        numbers = map(x.dtype.type, (2 * alpha * beta / size, beta))
        _each(response_grad, dx.size, *map(self._channels, (g, x, d)), dx, (size - 1) // 2, size // 2, *numbers)
        return dx.reshape(x.shape)

    def activation_grad(self, g: Array, y: Array, activation: str) -> Array:
        """As NumpyBackend.activation_grad; tanh's is array code."""
        if activation != "relu":
            return super().activation_grad(g, y, activation)
        dx = self.xp.empty(y.shape, g.dtype)
        _each(relu_grad, y.size, *(self._own(a).reshape(-1) for a in (g, y)), dx.reshape(-1))
        return dx

    def dropout(self, x: Array, kept: Array, scale: float) -> Array:
        """As NumpyBackend.dropout."""
        y = self.xp.empty(x.shape, x.dtype)
        flat = [self._own(a).reshape(-1) for a in (x, kept)]
        _each(drop, x.size, *flat, y.reshape(-1), x.dtype.type(scale))
        return y

    def cross_entropy(
        self, x: Array, t: Array, weight: Array, ignore_index: int, smoothing: float
    ) -> tuple[Array, Array]:
        """As NumpyBackend.cross_entropy."""
        check_classes("cross_entropy", t, x.shape[1], ignore_index)
        a, targets, *numbers = self._classes(x, t, ignore_index, smoothing)
        loss, lse = self.xp.empty(targets.shape, x.dtype), self.xp.empty(targets.shape, x.dtype)
        _each(class_loss, loss.size, a, targets, weight, loss, lse, *numbers)
        return loss.reshape(t.shape), lse.reshape(t.shape)

    def cross_entropy_grad(
        self, g: Array, x: Array, t: Array, lse: Array, weight: Array, ignore_index: int, smoothing: float
    ) -> Array:
        """As NumpyBackend.cross_entropy_grad."""
        a, targets, *numbers = self._classes(x, t, ignore_index, smoothing)
        dx = self.xp.empty(a.shape, x.dtype)
        g, lse = (self._own(v).reshape(targets.shape) for v in (g, lse))
        _each(class_loss_grad, lse.size, g, a, targets, lse, weight, dx, *numbers)
        return dx.reshape(x.shape)

    def _classes(self, x: Array, t: Array, ignore_index: int, smoothing: float) -> tuple[Any, ...]:
        """Give what both kernels take: x (N, C, pixels), t (N, pixels), ignore_index, 1 − ε and ε/C."""
        a, kind = self._channels(x), x.dtype.type
        targets = self._own(t).reshape(len(a), a.shape[2])
        return a, targets, ignore_index, kind(1 - smoothing), kind(smoothing / a.shape[1])

    def sgd_step(
        self,
        params: list[Array],
        grads: list[Array],
        velocities: list[Array],
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        """As NumpyBackend.sgd_step: one launch a parameter (csrc/cuda does all in one)."""
        options = (lr, momentum, 1 - dampening, weight_decay)
        for k, (p, g) in enumerate(zip(params, grads, strict=True)):
            v = velocities[k] if momentum else self.xp.empty(0, p.dtype)
            if not all(a.flags.c_contiguous for a in (p, v)):  # flat views are written to
                rest = (velocities[k : k + 1], lr, momentum, dampening, weight_decay, nesterov)
                super().sgd_step([p], [g], *rest)
                continue
            flat = p.reshape(-1), self._own(g).reshape(-1), v.reshape(-1)
            _each(sgd, p.size, *flat, *map(p.dtype.type, options), nesterov)

    def adam_step(
        self,
        params: list[Array],
        grads: list[Array],
        means: list[Array],
        squares: list[Array],
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        decoupled: bool,
        t: int,
    ) -> None:
        """As NumpyBackend.adam_step: one launch a parameter (csrc/cuda does all in one)."""
        decay, shrink = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
        root = math.sqrt(1 - beta2**t)
        options = (lr / (1 - beta1**t), beta1, 1 - beta1, beta2, 1 - beta2, root, eps, decay, shrink)
        for p, g, m, s in zip(params, grads, means, squares, strict=True):
            if not all(a.flags.c_contiguous for a in (p, m, s)):
                rest = (lr, beta1, beta2, eps, weight_decay, decoupled, t)
                super().adam_step([p], [g], [m], [s], *rest)
                continue
            flat = p.reshape(-1), self._own(g).reshape(-1), m.reshape(-1), s.reshape(-1)
            _each(adam, p.size, *flat, *map(p.dtype.type, options))

    # Kernels take arrays in C order; some under fewer axes.

    def _own(self, a: Array) -> Array:
        return self.xp.ascontiguousarray(a)

    def _planes(self, x: Array) -> Array:
        """View (N, C, H, W) as (N·C, H, W)."""
        return self._own(x).reshape(x.shape[0] * x.shape[1], *x.shape[2:])

    def _channels(self, x: Array) -> Array:
        """View (N, C, ...) as (N, C, pixels)."""
        return self._own(x).reshape(*x.shape[:2], math.prod(x.shape[2:]))


def _each(launch: Any, count: int, *arguments: Any) -> None:
    """Run a kernel with a thread for each of `count` numbers."""
    if count:
        launch[-(-count // THREADS), THREADS](*arguments)


def _splits(rows: int, columns: int, depth: int, groups: int) -> int:
    """Give the parts of a long sum over few numbers, decided by the shape alone: as many as keep all blocks busy."""
    blocks = -(-rows // WIDE) * -(-columns // WIDE) * groups
    return max(1, min(BLOCKS // max(blocks, 1), depth // (16 * TILE)))
