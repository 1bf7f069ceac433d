"""The reference backend: every kernel in plain NumPy, a convolution one product with unfolded windows (im2col).

It is also the base class of all other backends, which override what they do faster and inherit the rest. Read it after
`functional.py`. Sizes: N images, C channels in, O channels out, H × W pixels, KH × KW kernel, OH × OW pixels out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Pair = tuple[int, int]
Shape = tuple[int, ...]
Windows = tuple[Array, Array, Array]  # of each output: first input, last + 1, their weights (outputs, width)

KERNELS = (
    "conv2d", "conv2d_grad_x", "conv2d_grad_w",
    "max_pool2d", "max_pool2d_grad", "avg_pool2d", "avg_pool2d_grad",
    "relu", "activation_grad", "add", "channel_sum", "concatenate", "dropout", "resample",
    "batch_norm", "batch_norm_grad", "local_response_norm", "local_response_norm_grad",
    "linear", "linear_grad_x", "linear_grad_w", "squared_error", "squared_error_grad", "sgd_step", "adam_step",
    "cross_entropy", "cross_entropy_grad",
)  # fmt: skip
BLOCK_BYTES = 1 << 24  # unfolded windows held at a time: large enough for BLAS, small enough for any image


def check_classes(name: str, t: Array, classes: int, ignore_index: int) -> None:
    """Raise IndexError if a target is neither a class, 0 to classes − 1, nor ignored."""
    wrong = (t != ignore_index) & ((t < 0) | (t >= classes))
    if wrong.any():
        raise IndexError(f"{name}: class {t[wrong][0]} among the targets, but the input has classes 0 to {classes - 1}")


def conv_output_size(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """Give a convolution's output length along one axis, ⌊(size + 2·padding − dilation·(kernel − 1) − 1)/stride⌋ + 1.

    Raises ValueError if an option is out of range or the kernel does not fit.
    """
    return _output_size(size, kernel, stride, padding, dilation, 0)


def pool_output_size(
    size: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> int:
    """Give a pooling's output length along one axis: as a convolution's, or rounded up with `ceil_mode`.

    Rounded up, the last window may hang over the right edge but must start inside the image or its left padding.
    Raises ValueError if the padding exceeds half a kernel, or if a dilated window falls between a tiny image's pixels.
    """
    if padding > kernel // 2:
        raise ValueError(f"pooling padding {padding} is more than half of the kernel {kernel}")
    out = _output_size(size, kernel, stride, padding, dilation, stride - 1 if ceil_mode else 0)
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1
    if dilation > 1:
        start = np.arange(out) * stride - padding
        first = start + (np.maximum(-start, 0) + dilation - 1) // dilation * dilation
        if np.any((first >= size) | (first > start + dilation * (kernel - 1))):
            raise ValueError(f"a pooling window (kernel {kernel}, dilation {dilation}) misses all {size} pixels")
    return out


def _output_size(size: int, kernel: int, stride: int, padding: int, dilation: int, slack: int) -> int:
    if kernel < 1 or stride < 1 or dilation < 1 or padding < 0:
        raise ValueError(f"kernel {kernel}, stride {stride}, dilation {dilation} must be >= 1, padding {padding} >= 0")
    extent = dilation * (kernel - 1) + 1
    out = (size + 2 * padding - extent + slack) // stride + 1
    if out < 1 or size < 1:
        raise ValueError(
            f"the kernel spans {extent} pixels, the input {size} + 2·{padding}: pad more or shrink the kernel"
        )
    return out


def check_float(**arrays: Array | None) -> None:
    """Raise TypeError unless all given arrays are float32, or all are float64."""
    kinds = {name: a.dtype for name, a in arrays.items() if a is not None}
    if len(set(kinds.values())) > 1 or not set(kinds.values()) <= {np.dtype(np.float32), np.dtype(np.float64)}:
        found = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        raise TypeError(f"kernels take arrays that are all float32 or all float64, got {found}")


def conv2d_shape(
    x_shape: Shape, w_shape: Shape, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[int, int, int, int]:
    """Give the shape (N, O, OH, OW) of conv2d for x (N, C, H, W) and w (O, C/groups, KH, KW).

    Raises ValueError, with the shapes, where they do not fit.
    """
    if len(x_shape) != 4 or len(w_shape) != 4:
        raise ValueError(f"conv2d takes x (N, C, H, W) and w (O, C/groups, KH, KW), got {x_shape} and {w_shape}")
    if groups < 1 or w_shape[0] % groups or x_shape[1] != groups * w_shape[1] or not w_shape[0] * w_shape[1]:
        raise ValueError(
            f"conv2d: x {x_shape} and w {w_shape} do not fit with groups = {groups}: "
            f"x needs {groups} x {w_shape[1]} channels, and groups must divide {w_shape[0]}"
        )
    oh, ow = (conv_output_size(x_shape[i + 2], w_shape[i + 2], stride[i], padding[i], dilation[i]) for i in range(2))
    return x_shape[0], w_shape[0], oh, ow


def pool2d_size(
    x_shape: Shape, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> Pair:
    """Give (OH, OW) of a pooling of x (N, C, H, W); ValueError where it does not fit."""
    if len(x_shape) != 4:
        raise ValueError(f"pooling takes x (N, C, H, W), got shape {x_shape}")
    oh, ow = (
        pool_output_size(x_shape[i + 2], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode)
        for i in range(2)
    )
    return oh, ow


def check_shape(name: str, array: Array, expected: Shape) -> None:
    """Raise ValueError unless `array` has the `expected` shape."""
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}, expected {expected}")


def check_pool_grad(g: Array, index: Array, x_shape: Shape, kernel_size: Pair) -> None:
    """Raise ValueError unless g and index can come from max_pool2d of an x of x_shape, TypeError for a wrong dtype."""
    check_float(g=g)
    check_shape("index", index, g.shape)
    if index.dtype != index_dtype(kernel_size):
        raise TypeError(f"max_pool2d_grad: index must be {index_dtype(kernel_size)}, got {index.dtype}")
    if g.ndim != 4 or len(x_shape) != 4 or g.shape[:2] != tuple(x_shape[:2]):
        raise ValueError(f"max_pool2d_grad: g {g.shape} does not belong to an input of shape {tuple(x_shape)}")


def index_dtype(kernel_size: Pair) -> Any:
    """Give the dtype of max_pool2d's index, the number of a tap: a byte wherever that is enough."""
    return np.dtype(np.uint8 if kernel_size[0] * kernel_size[1] <= 256 else np.int32)


def default_threads() -> int:
    """Give the number of threads to start with: MINIDL_NUM_THREADS, OMP_NUM_THREADS, or the processors we may use."""
    for variable in ("MINIDL_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "")
        if text.isdecimal() and int(text) > 0:
            return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class NumpyBackend:
    """Kernels in NumPy. Arrays (any strides, float32 or float64) in, new arrays of the same dtype out."""

    name = "numpy"
    xp: Any = np
    # Of this class, so shared by all backends: minidl.set_num_threads, set_conv_algorithm and set_matmul_precision.
    threads = default_threads()
    algorithm = os.environ.get("MINIDL_CONV", "auto")
    precision = "highest"
    recording = False  # while a GPU's work is recorded to be repeated, nothing may wait for its numbers

    def describe(self) -> str:
        """Say in a few words what computes: versions, vector instructions, threads."""
        return f"NumPy {np.__version__}, matrix products by BLAS with its own threads (OPENBLAS_NUM_THREADS)"

    def set_conv_algorithm(self, name: str) -> None:
        """Take note of minidl.set_conv_algorithm; there is one way here."""

    def explain_conv(self, x_shape: Shape, w_shape: Shape, **options: Any) -> str:
        """Say which algorithm computes a convolution and its gradients, and why."""
        return f"{self.name}: direct, the only way of this backend"

    # What a GPU does in its own way.

    def record(self, run: Callable[[], list[Any]], batch: Sequence[Array], reads: list[Array]) -> Callable[..., None]:
        """Record the kernels that run() starts -> a function of other arrays for `batch`, which starts them all again.

        run gives its results, which stay where they are; `reads` is what else may change in between. On a GPU run's
        kernels are only recorded. RuntimeError where nothing can be: here are no launches to save.
        """
        raise RuntimeError(f"steps are recorded by the backends 'cpp' and 'cupy', the active one is {self.name!r}")

    def random_mask(self, rng: np.random.Generator, shape: Shape, p: float) -> Array:
        """Draw an array of bool, each False with probability p."""
        return self.xp.asarray(rng.random(shape, dtype=np.float32) >= p)  # type: ignore[no-any-return]

    def constant(self, a: Array) -> Array:
        """Give a small array of NumPy's where this backend computes; the same numbers may come again."""
        return self.xp.asarray(a)  # type: ignore[no-any-return]

    def number(self, a: Array) -> Any:
        """Give the one number of an array as kernels take it."""
        return float(a)

    def memory(self) -> tuple[int, int, int] | None:
        """Give the bytes that arrays use, that are free, and that there are; None where that is the system's affair."""
        return None

    # Unfolding. A window is a row of `cols`; the convolution of a block of output rows is then w · cols.

    def _blocks(self, windows: Any) -> Iterator[tuple[slice, slice]]:
        """Cut windows (N, C, OH, OW, KH, KW) into blocks of images, and of output rows where one image is too large."""
        n, c, oh, ow, kh, kw = windows.shape
        rows = max(1, min(oh, BLOCK_BYTES // (c * ow * kh * kw * windows.itemsize)))
        images = max(1, BLOCK_BYTES // (c * rows * ow * kh * kw * windows.itemsize))
        for i in range(0, n, images):
            for r in range(0, oh, rows):
                yield slice(i, min(i + images, n)), slice(r, min(r + rows, oh))

    def _windows(self, x: Any, kernel: Shape, stride: Pair, padding: Pair, dilation: Pair) -> Any:
        """View x (N, C, H, W), zero-padded, as windows (N, C, OH, OW, KH, KW); only the padding copies."""
        if any(padding):
            ph, pw = padding
            x = self.xp.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
        extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
        view = self.xp.lib.stride_tricks.sliding_window_view(x, extent, axis=(2, 3))
        return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]

    @staticmethod
    def _unfold(windows: Any, groups: int) -> Any:
        """Copy windows (B, C, R, OW, KH, KW) into columns (B, groups, C/groups·KH·KW, R·OW)."""
        b, c, r, ow, kh, kw = windows.shape
        return windows.transpose(0, 1, 4, 5, 2, 3).reshape(b, groups, c // groups * kh * kw, r * ow)

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
        """Correlate images with kernels; `activation` "relu" cuts the result at 0.

        x (N, C, H, W), w (O, C/groups, KH, KW), b (O,) or None -> y (N, O, OH, OW)
        y[n, o, i, j] = b[o] + Σ_{c, k, l} w[o, c, k, l] · x[n, c, i·stride + k·dilation − padding, j·stride + ...]
        """
        check_float(x=x, w=w, b=b)
        y = self.xp.empty(conv2d_shape(x.shape, w.shape, stride, padding, dilation, groups), x.dtype)
        windows = self._windows(x, w.shape[2:], stride, padding, dilation)
        matrix = w.reshape(groups, w.shape[0] // groups, -1)
        for images, rows in self._blocks(windows):
            part = y[images, :, rows]
            part[...] = (matrix @ self._unfold(windows[images, :, rows], groups)).reshape(part.shape)
        if b is not None:
            check_shape("b", b, (w.shape[0],))
            y += b[:, None, None]
        if activation == "relu":
            self.xp.maximum(y, 0, out=y)
        return y  # type: ignore[no-any-return]

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
        """Give ∂L/∂x, the adjoint of conv2d in x: g[n, o, i, j]·w[o] is added to the window it came from (col2im).

        g (N, O, OH, OW), w (O, C/groups, KH, KW) -> (N, C, H, W) = x_shape.   b (C,) is added where the adjoint is a
        layer of its own, the transposed convolution.
        """
        check_float(g=g, w=w, b=b)
        check_shape("g", g, conv2d_shape(x_shape, w.shape, stride, padding, dilation, groups))
        (n, c, h, wd), (o, _, kh, kw) = x_shape, w.shape
        (sh, sw), (ph, pw), (dh, dw), ow = stride, padding, dilation, g.shape[3]
        padded = self.xp.zeros((n, c, h + 2 * ph, wd + 2 * pw), g.dtype)
        matrix = w.reshape(groups, o // groups, -1).transpose(0, 2, 1)
        windows = self._windows(padded, (kh, kw), stride, (0, 0), dilation)
        for images, rows in self._blocks(windows):
            part = g[images, :, rows]
            cols = (matrix @ part.reshape(len(part), groups, o // groups, -1)).reshape(len(part), c, kh, kw, -1, ow)
            for i in range(kh):
                top = rows.start * sh + i * dh
                down = slice(top, top + (rows.stop - rows.start - 1) * sh + 1, sh)
                for j in range(kw):
                    padded[images, :, down, j * dw : j * dw + (ow - 1) * sw + 1 : sw] += cols[:, :, i, j]
        dx = padded[:, :, ph : ph + h, pw : pw + wd]
        if b is not None:
            check_shape("b", b, (c,))
            dx += b[:, None, None]
        return dx  # type: ignore[no-any-return]

    def conv2d_grad_w(
        self, g: Array, x: Array, w_shape: Shape, *, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Array:
        """Give ∂L/∂w, the adjoint of conv2d in w: the sum over images and pixels of g times the window below it.

        g (N, O, OH, OW), x (N, C, H, W) -> (O, C/groups, KH, KW) = w_shape
        """
        check_float(g=g, x=x)
        check_shape("g", g, conv2d_shape(x.shape, w_shape, stride, padding, dilation, groups))
        windows = self._windows(x, w_shape[2:], stride, padding, dilation)
        total = self.xp.zeros((groups, w_shape[0] // groups, w_shape[1] * w_shape[2] * w_shape[3]), g.dtype)
        for images, rows in self._blocks(windows):
            part = g[images, :, rows]
            cols = self._unfold(windows[images, :, rows], groups)
            total += (part.reshape(len(part), groups, total.shape[1], -1) @ cols.swapaxes(2, 3)).sum(axis=0)
        return total.reshape(w_shape)  # type: ignore[no-any-return]

    def relu(self, x: Array) -> Array:
        """Give max(x, 0); NaN stays NaN."""
        return self.xp.maximum(x, 0)  # type: ignore[no-any-return]

    def activation_grad(self, g: Array, y: Array, activation: str) -> Array:
        """Give the gradient before an activation from g, the one behind it, and y, its result.

        "relu": g where y > 0, else 0;   "tanh": g·(1 − y²).
        """
        if activation == "tanh":
            return g * (1 - y * y)  # type: ignore[no-any-return]
        # A product is fastest, but not where g is infinite: 0·∞ is NaN.
        share = g * (y > 0)
        return share if self.xp.isfinite(share.sum()) else self.xp.where(y > 0, g, 0)

    def add(self, x: Array, y: Array) -> Array:
        """Give x + y for two arrays of one shape: what reaches a tensor from two sides."""
        return x + y

    def concatenate(self, xs: Sequence[Array], axis: int) -> Array:
        """Give the arrays one after another along `axis`."""
        return self.xp.concatenate(xs, axis=axis)  # type: ignore[no-any-return]

    def reshape(self, x: Array, shape: Shape) -> Array:
        """Give the elements in the same order under another shape; one size may be −1."""
        return x.reshape(shape)

    def dropout(self, x: Array, kept: Array, scale: float) -> Array:
        """Give scale·x where `kept`, a bool array of x's shape, is true, else 0·x."""
        return x * (kept * x.dtype.type(scale))  # type: ignore[no-any-return]

    def channel_sum(self, g: Array) -> Array:
        """Sum g (N, C, ...) over everything but the channels -> (C,)."""
        return g.sum(axis=(0, *range(2, g.ndim)))  # type: ignore[no-any-return]

    # Two images side by side, convolved as one; a kernel can do without their concatenation.

    def join(self, x: Array, beside: Array) -> Any:
        """Give what conv2d_joined and its gradients take for x (N, C, H, W) and `beside` (N, D, H, W)."""
        return self.concatenate([x, beside], 1)

    def conv2d_joined(self, both: Any, w: Array, b: Array | None, **options: Any) -> Array:
        """As conv2d of the concatenation of two images."""
        return self.conv2d(both, w, b, **options)

    def conv2d_joined_grad_x(self, g: Array, w: Array, both: Any, channels: int, **options: Any) -> Any:
        """Give the gradients of both images, of which the first has so many channels."""
        dx = self.conv2d_grad_x(g, w, both.shape, **options)
        return dx[:, :channels], dx[:, channels:]

    def conv2d_joined_grad_w(self, g: Array, both: Any, w_shape: Shape, **options: Any) -> Array:
        """As conv2d_grad_w of the concatenation of two images."""
        return self.conv2d_grad_w(g, both, w_shape, **options)

    def max_pool2d(
        self, x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
    ) -> tuple[Array, Array]:
        """Take the largest value of every window, and where in the window it was.

        x (N, C, H, W) -> y (N, C, OH, OW), index (N, C, OH, OW): the number k·KW + l of the tap, in a byte if it fits.
        As torch: padding is −∞, of equal values the first wins, a NaN beats all numbers (of several, the last wins).
        """
        xp = self.xp
        check_float(x=x)
        oh, ow = pool2d_size(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
        y = xp.full((*x.shape[:2], oh, ow), -np.inf, x.dtype)
        index = xp.zeros(y.shape, index_dtype(kernel_size))
        seen = xp.zeros((oh, ow), bool)  # windows of which a pixel was seen
        for tap, (rows, columns), (i, j) in _taps(x.shape, (oh, ow), kernel_size, stride, padding, dilation):
            value, best, where = x[:, :, i, j], y[:, :, rows, columns], index[:, :, rows, columns]
            better = (value > best) | xp.isnan(value) | ~seen[rows, columns]
            best[...] = xp.where(better, value, best)
            where[better] = tap
            seen[rows, columns] = True
        return y, index

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
        """Give ∂L/∂x of max_pool2d: each g goes to the pixel that was largest; where windows overlap they add.

        g, index (N, C, OH, OW) -> (N, C, H, W) = x_shape; `before`, if given, is a gradient of this shape to add to
        """
        check_pool_grad(g, index, x_shape, kernel_size)
        dx = self.xp.zeros(x_shape, g.dtype)
        for tap, (rows, columns), (i, j) in _taps(x_shape, g.shape[2:], kernel_size, stride, padding, dilation):
            part = np.s_[:, :, rows, columns]
            dx[:, :, i, j] += self.xp.where(index[part] == tap, g[part], 0)
        return dx if before is None else before + dx  # type: ignore[no-any-return]

    # Normalisation.

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
        """Scale each channel to mean 0 and variance 1, then by weight and bias; "relu" cuts the result at 0.

        x (N, C, ...); weight, bias, mean, var (C,) or None -> y (N, C, ...), mean, var: those given, else x's own.
        y = weight·x̂ + bias with x̂ = (x − mean)/√(var + ε). Ioffe & Szegedy 2015, algorithm 1.
        """
        axes = (0, *range(2, x.ndim))
        if mean is None or var is None:
            mean = x.mean(axis=axes)
            var = self.xp.square(x - _along(mean, x)).mean(axis=axes)
        scale = 1 / self.xp.sqrt(var + eps) if weight is None else weight / self.xp.sqrt(var + eps)
        y = (x - _along(mean, x)) * _along(scale, x)
        if bias is not None:
            y += _along(bias, x)
        if activation == "relu":
            self.xp.maximum(y, 0, out=y)
        return y, mean, var

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
        """Give ∂L/∂x, ∂L/∂weight and ∂L/∂bias of batch_norm; `training`: mean and var are x's own.

        With ĝ = g, or g where y > 0 before relu: ∂L/∂weight = Σ ĝ·x̂,  ∂L/∂bias = Σ ĝ,
        ∂L/∂x = weight/√(var + ε)·(ĝ − mean ĝ − x̂·mean(ĝ·x̂)), outside training weight/√(var + ε)·ĝ.
        """
        if activation == "relu":
            y = self.batch_norm(x, weight, bias, mean, var, eps)[0]
            g = self.activation_grad(g, y, "relu")
        inverse = 1 / self.xp.sqrt(var + eps)
        unit = (x - _along(mean, x)) * _along(inverse, x)
        dbias, dweight = self.channel_sum(g), self.channel_sum(g * unit)
        if training:
            count = x.size // x.shape[1]
            g = g - _along(dbias / count, x) - unit * _along(dweight / count, x)
        scale = inverse if weight is None else weight * inverse
        return g * _along(scale, x), dweight, dbias

    def local_response_norm(self, x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
        """Weaken each channel by its strong neighbours.   x (N, C, ...) -> y, d of its shape.

        y_c = x_c·d_c^−β,  d_c = k + α/size·Σ x² over the channels c − ⌊size/2⌋ ... c + ⌊(size − 1)/2⌋.
        Krizhevsky et al. 2012, section 3.3 (there without the division by size).
        """
        d = k + (alpha / size) * _channel_windows(x * x, size // 2, (size - 1) // 2)
        return x * d**-beta, d

    def local_response_norm_grad(
        self, g: Array, x: Array, d: Array, size: int, alpha: float, beta: float, k: float
    ) -> Array:
        """Give ∂L/∂x_c = g_c·d_c^−β − (2αβ/size)·x_c·Σ_{c'} g_c'·x_c'·d_c'^(−β−1), over the c' whose windows hold c."""
        shrunk = g * d**-beta
        held = _channel_windows(shrunk * x / d, (size - 1) // 2, size // 2)
        return shrunk - (2 * alpha * beta / size) * x * held

    def avg_pool2d(self, x: Array, count: Array, *, kernel_size: Pair, stride: Pair, padding: Pair) -> Array:
        """Give Σ over each window, divided by count.   x (N, C, H, W), count (OH, OW) -> (N, C, OH, OW)."""
        y = self.xp.zeros((*x.shape[:2], *count.shape), x.dtype)
        for _, out, pixels in _taps(x.shape, count.shape, kernel_size, stride, padding, (1, 1)):
            y[:, :, out[0], out[1]] += x[:, :, pixels[0], pixels[1]]
        return y / count  # type: ignore[no-any-return]

    def avg_pool2d_grad(
        self, g: Array, count: Array, x_shape: Shape, *, kernel_size: Pair, stride: Pair, padding: Pair
    ) -> Array:
        """Give ∂L/∂x of avg_pool2d: each pixel gets g/count of every window that holds it."""
        dx, share = self.xp.zeros(x_shape, g.dtype), g / count
        for _, out, pixels in _taps(x_shape, count.shape, kernel_size, stride, padding, (1, 1)):
            dx[:, :, pixels[0], pixels[1]] += share[:, :, out[0], out[1]]
        return dx  # type: ignore[no-any-return]

    # Images at another size.

    def resample(self, x: Array, rows: Windows, columns: Windows) -> Array:
        """Give y[i, j] = Σ_k Σ_l rows[i, k]·columns[j, l]·x[k, l] for every image and channel.

        x (N, C, H, W) -> (N, C, OH, OW), the inputs k of output i being first[i] ... last[i] − 1 of its windows.
        """
        return self._along_axis(self._along_axis(x, 2, rows), 3, columns)

    def _along_axis(self, x: Array, axis: int, windows: Windows) -> Array:
        """Give the sums of windows along one axis, tap by tap; beside a window even NaN counts nothing."""
        xp = self.xp
        first, last, weight = (xp.asarray(a) for a in windows)
        shape = [-1 if d == axis else 1 for d in range(x.ndim)]
        y = xp.zeros((*x.shape[:axis], len(first), *x.shape[axis + 1 :]), x.dtype)
        for k in range(weight.shape[1]):
            inside = first + k < last
            taken = x.take(xp.where(inside, first + k, 0), axis) * weight[:, k].astype(x.dtype).reshape(shape)
            y += xp.where(inside.reshape(shape), taken, 0)
        return y  # type: ignore[no-any-return]

    # Losses.

    def cross_entropy(
        self, x: Array, t: Array, weight: Array, ignore_index: int, smoothing: float
    ) -> tuple[Array, Array]:
        """Give the loss −Σ_c q_c·log softmax(x)_c and log Σ_c exp(x_c − max x).

        x (N, C, ...), t (N, ...), weight (C,) -> twice (N, ...).   q_c = weight_c·((1 − ε)·[c = t] + ε/C) with
        ε = smoothing, 0 where t is ignored; where q is 0, even −∞ counts nothing. IndexError if a t is no class.
        """
        xp = self.xp
        check_classes("cross_entropy", t, x.shape[1], ignore_index)
        top = x.max(axis=1, keepdims=True)
        log = xp.log(xp.exp(x - top).sum(axis=1, keepdims=True))
        q = self._class_shares(x, t, weight, ignore_index, smoothing)
        loss = -xp.where(q == 0, 0, q * (x - top - log)).sum(axis=1)
        return loss, log[:, 0]

    def cross_entropy_grad(
        self, g: Array, x: Array, t: Array, lse: Array, weight: Array, ignore_index: int, smoothing: float
    ) -> Array:
        """Give ∂L/∂x_c = g·(softmax(x)_c·Σ q − q_c), from g and the lse that cross_entropy gave, both (N, ...)."""
        q = self._class_shares(x, t, weight, ignore_index, smoothing)
        softmax = self.xp.exp(x - x.max(axis=1, keepdims=True) - lse[:, None])
        return g[:, None] * (softmax * q.sum(axis=1, keepdims=True) - q)  # type: ignore[no-any-return]

    def _class_shares(self, x: Array, t: Array, weight: Array, ignore_index: int, smoothing: float) -> Array:
        """Give q of cross_entropy, (N, C, ...)."""
        xp, classes = self.xp, x.shape[1]
        along = (1, -1) + (1,) * (x.ndim - 2)  # the classes stand along axis 1
        hit = xp.arange(classes).reshape(along) == t[:, None]
        q = weight.reshape(along) * (hit * (1 - smoothing) + smoothing / classes)
        return xp.where((t == ignore_index)[:, None], 0, q).astype(x.dtype)  # type: ignore[no-any-return]

    def conv_transpose2d(
        self, x: Array, w: Array, out_shape: Shape, b: Array | None, activation: str = "", **options: Any
    ) -> Array:
        """Give activation(the adjoint of conv2d + b), as `conv2d_grad_x` of x; activation "relu" or ""."""
        return self.activate(self.conv2d_grad_x(x, w, out_shape, b, **options), activation)

    # Dense layers. Their products are BLAS's.

    def activate(self, y: Array, activation: str) -> Array:
        """Give max(y, 0) for "relu", tanh y for "tanh", y itself for "": written over y."""
        if activation == "relu":
            return self.xp.maximum(y, 0, out=y)  # type: ignore[no-any-return]
        if activation == "tanh":
            return self.xp.tanh(y, out=y)  # type: ignore[no-any-return]
        if activation:
            raise ValueError(f"activation is 'relu', 'tanh' or '', not {activation!r}")
        return y

    def linear(self, x: Array, w: Array, b: Array | None, activation: str = "") -> Array:
        """Give activation(x·wᵀ + b).   x (N, I), w (O, I), b (O,) or None -> (N, O)."""
        y = x @ w.T
        if b is not None:
            y += b
        return self.activate(y, activation)

    def linear_grad_x(self, g: Array, w: Array) -> Array:
        """Give ∂L/∂x = g·w.   g (N, O), w (O, I) -> (N, I)."""
        return g @ w

    def linear_grad_w(self, g: Array, x: Array) -> tuple[Array, Array]:
        """Give ∂L/∂w = gᵀ·x and ∂L/∂b = Σ g.   g (N, O), x (N, I) -> (O, I), (O,)."""
        return g.T @ x, g.sum(axis=0)

    def squared_error(self, x: Array, t: Array, factor: float) -> Array:
        """Give factor·Σ (x − t)² over arrays of one shape."""
        d = x - t
        return factor * (d * d).sum()  # type: ignore[no-any-return]

    def squared_error_grad(self, x: Array, t: Array, factor: float) -> Array:
        """Give factor·(x − t)."""
        return factor * (x - t)

    # Optimisers. All parameters of a group in one call; p and its running means change in place, g never does.

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
        """Give each p the step of `optim.SGD`; without momentum there are no velocities."""
        for k, (p, g) in enumerate(zip(params, grads, strict=True)):
            if weight_decay:
                g = g + weight_decay * p
            if momentum:
                v = velocities[k]
                v *= momentum
                v += (1 - dampening) * g
                g = g + momentum * v if nesterov else v
            p -= lr * g

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
        """Give each p the step number t of `optim.Adam`, or of `optim.AdamW` (decoupled)."""
        for p, g, m, s in zip(params, grads, means, squares, strict=True):
            if decoupled:
                p *= 1 - lr * weight_decay
            elif weight_decay:
                g = g + weight_decay * p
            m *= beta1
            m += (1 - beta1) * g
            s *= beta2
            s += (1 - beta2) * (g * g)
            p -= lr / (1 - beta1**t) * (m / (self.xp.sqrt(s) / math.sqrt(1 - beta2**t) + eps))


def _along(a: Array, x: Array) -> Array:
    """View a (C,) so that it meets the channels of x (N, C, ...)."""
    return a.reshape(1, -1, *(1,) * (x.ndim - 2))


def _channel_windows(a: Array, before: int, after: int) -> Array:
    """Σ of a over the channels c − before ... c + after, one by one: differences of running sums lose digits."""
    total = a.copy()
    for s in range(1, min(max(before, after) + 1, a.shape[1])):
        if s <= before:
            total[:, s:] += a[:, :-s]
        if s <= after:
            total[:, :-s] += a[:, s:]
    return total


def _taps(
    x_shape: Shape, out: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
    """Walk over a window's taps: number, the outputs whose pixel there lies in the image, and those pixels."""
    for tap in range(kernel[0] * kernel[1]):
        at = tap // kernel[1], tap % kernel[1]
        axes = [_inside(x_shape[2 + d], out[d], stride[d], at[d] * dilation[d] - padding[d]) for d in range(2)]
        yield tap, (axes[0][0], axes[1][0]), (axes[0][1], axes[1][1])


def _inside(size: int, out: int, stride: int, offset: int) -> tuple[slice, slice]:
    """Give the outputs whose pixel i·stride + offset lies in the image, and the slice of those pixels."""
    first = max(0, -(offset // stride))
    last = min(out, (size - 1 - offset) // stride + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0, stride)
    return slice(first, last), slice(first * stride + offset, (last - 1) * stride + offset + 1, stride)
