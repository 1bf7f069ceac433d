"""Arrays of CuPy on an NVIDIA GPU, and kernels of our own in CUDA C++ (csrc/cuda/), compiled when first used.

Where the base class computes number by number CuPy does the same on the GPU; its matrix products are cuBLAS's, and it
keeps what it compiled. The rest is launched here: each method works out the geometry, a structure that travels with the
launch, and the grid.
Images are (N, C, H, W) in C order; arrays of another layout are copied once. Nothing waits for the GPU but what must.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

try:
    import cupy  # type: ignore[import-not-found, unused-ignore]
except ImportError as error:
    raise ImportError(f'CuPy cannot be imported ({error}); with an NVIDIA GPU: pip install "minidl[cuda]"') from error

from .numpy_backend import (
    Array,
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

THREADS = 256  # a block
FULL = 256  # blocks that keep a large GPU busy; cuts depend on shapes alone, so that results do
MANY, BLOCK = 80, 2048  # parameters a launch and numbers a block of csrc/cuda/optim.cu


def _structure(**fields: str) -> Any:
    """Give the layout of a structure in csrc/cuda: names by type."""
    kinds = {"int": np.int32, "long": np.int64, "double": np.float64}
    return np.dtype([(name, kinds[kind]) for kind, names in fields.items() for name in names.split()], align=True)


GATHER = _structure(
    int="images groups rows taps channels h w oh ow fh fw sh sw top left step_h step_w first_h first_w padded relu"
)
TILES = _structure(int="images groups channels rows h w oh ow ph pw down right flipped relu")
POOL = _structure(int="planes h w oh ow kh kw sh sw ph pw dh dw")
CHANNELS = _structure(int="images channels area slices")
RESPONSE = _structure(int="channels size", long="count area", double="share beta k")
CLASSES = _structure(long="positions", int="classes area ignored lanes", double="smoothing")
PARAMETERS = np.dtype(
    [(name, np.uint64, (MANY,)) for name in "pgms"]
    + [("size", np.int64, (MANY,)), ("ends", np.int32, (MANY,)), ("count", np.int32)],
    align=True,
)


def _fill(layout: Any, **values: Any) -> Array:
    """Give one structure, as a kernel takes it by value."""
    one = np.zeros(1, layout)
    for name, value in values.items():
        one[name] = value
    return one


def sources() -> Path:
    """Give the folder of the kernels: beside the package where it was installed, else in the repository."""
    installed = Path(__file__).parents[1] / "cuda"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "csrc" / "cuda"


def kernel_source(name: str) -> str:
    """Give what is compiled for csrc/cuda/`name`.cu: the prelude and the file, whose lines keep their numbers."""
    parts = [(file, (sources() / f"{file}.cu").read_text(encoding="utf-8")) for file in ("prelude", name)]
    return "".join(f'#line 1 "csrc/cuda/{file}.cu"\n{text}' for file, text in parts)


def kernel_options(real: Any) -> tuple[str, ...]:
    """Give the compiler's options for arrays of dtype `real`."""
    return ("--std=c++17", "-DREAL=float", "-DTENSOR_CORES") if real == np.float32 else ("--std=c++17", "-DREAL=double")


@cache
def _kernel(file: str, name: str, real: Any) -> Any:
    """Compile a kernel, or take it from CuPy's cache; RuntimeError with the compiler's words, file and line."""
    try:
        return _module(file, real).get_function(name)
    except cupy.cuda.compiler.CompileException as error:
        raise RuntimeError(
            f"csrc/cuda/{file}.cu does not compile for {real} on compute capability "
            f"{cupy.cuda.Device().compute_capability}, CuPy {cupy.__version__}:\n{error}"
        ) from error


@cache
def _module(file: str, real: Any) -> Any:
    return cupy.RawModule(code=kernel_source(file), options=kernel_options(real))


def _blocks(threads: int, numbers: int = 1) -> tuple[int]:
    """Give a grid of blocks for so many threads, each of which takes some numbers."""
    return (min(-(-threads // (THREADS * numbers)), 2**31 - 1),)


def _dense(*arrays: Any) -> Any:
    """Give the arrays in C order; TypeError for one that is not on a GPU, ValueError for one on another GPU."""
    here = cupy.cuda.Device()
    for a in arrays:
        if a is not None and not isinstance(a, cupy.ndarray):
            raise TypeError(f"the cupy backend takes arrays on the GPU, not {type(a).__module__}.{type(a).__name__}")
        if a is not None and a.device != here:
            raise ValueError(f"an array lies on GPU {a.device.id}, the current one is GPU {here.id}: move one of them")
    dense = [a if a is None or a.flags.c_contiguous else cupy.ascontiguousarray(a) for a in arrays]
    return dense[0] if len(dense) == 1 else dense


def _ready(*arrays: Any) -> bool:
    """True for arrays that are all float32, or all float64, and hold something."""
    kinds = {a.dtype.char for a in arrays if a is not None}
    return kinds in ({"f"}, {"d"}) and all(a is None or a.size for a in arrays)


@cache
def _forward_taps(c: int, h: int, w: int, kernel: Pair, dilation: Pair, multiple: int) -> Any:
    """Give the table of conv.cu: of each product k = (c, u, v) where it lies, from the window's corner."""
    channel, u, v = (a.ravel() for a in np.indices((c, *kernel)))
    down, right = u * dilation[0], v * dilation[1]
    return _table(channel * h * w + down * w + right, down, right, np.arange(len(u)), multiple)


@cache
def _backward_taps(
    o: int, c: int, size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, phase: Pair, multiple: int
) -> Any:
    """Give the table of a phase of the gradient for the images: the (o, u, v) whose g reaches pixels ≡ phase."""
    output, u, v = (a.ravel() for a in np.indices((o, *kernel)))
    down, right = phase[0] + padding[0] - u * dilation[0], phase[1] + padding[1] - v * dilation[1]
    meets = (down % stride[0] == 0) & (right % stride[1] == 0)
    down, right = down // stride[0], right // stride[1]
    offset = output * size[0] * size[1] + down * size[1] + right
    weight = output * c * kernel[0] * kernel[1] + u * kernel[1] + v
    return _table(offset[meets], down[meets], right[meets], weight[meets], multiple)


def _table(offset: Array, down: Array, right: Array, weight: Array, multiple: int) -> Any:
    """Put the columns side by side and pad with products that lie outside of every image."""
    taps = np.stack([offset, down, right, weight], axis=1)
    if np.abs(taps).max(initial=0) >= 1 << 29:
        raise ValueError("a convolution on a GPU takes images of fewer than 2^29 numbers: cut them into pieces")
    taps = taps.astype(np.int32)
    missing = -len(taps) % multiple if len(taps) else multiple
    return cupy.asarray(np.concatenate([taps, np.tile(np.array([[0, 1 << 29, 0, -1]], np.int32), (missing, 1))]))


class _NoUploads:
    """CuPy while a step is recorded: an upload would be recorded with the memory it came from, which does not stay."""

    def __getattr__(self, name: str) -> Any:
        return getattr(cupy, name)

    def asarray(self, a: Any, **options: Any) -> Any:
        """As cupy.asarray, for what is on the GPU."""
        if not isinstance(a, cupy.ndarray):
            raise TypeError(f"{type(a).__name__} is not on the GPU")
        return cupy.asarray(a, **options)

    def array(self, a: Any, **options: Any) -> Any:
        """As cupy.array, for what is on the GPU."""
        return cupy.array(self.asarray(a), **options)


class CupyBackend(NumpyBackend):
    """Computes on the current GPU; arrays are CuPy's."""

    name = "cupy"
    xp: Any = cupy

    def __init__(self) -> None:
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            remedy = "no NVIDIA GPU, or its driver is missing or too old for this CuPy: nvidia-smi shows what there is"
            raise RuntimeError(f"the backend 'cupy' is unavailable: {remedy} ({error})") from error
        if not count:
            raise RuntimeError("the backend 'cupy' is unavailable: CUDA finds no GPU (is CUDA_VISIBLE_DEVICES empty?)")
        self._constants: dict[Any, Array] = {}
        self._refills: list[Callable[[], None]] = []

    def describe(self) -> str:
        """Name the GPU, its memory, CuPy and the precision of products."""
        device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        return (
            f"{device['name'].decode()}, {device['totalGlobalMem'] / 2**30:.0f} GiB, CuPy {cupy.__version__}, "
            f"float32 products {'in TF32' if self._tensor_cores(np.dtype(np.float32)) else 'in full'}"
        )

    @cached_property
    def capability(self) -> int:
        """The GPU's compute capability, such as 90."""
        return int(cupy.cuda.Device().compute_capability)

    def _launch(self, file: str, name: str, real: Any, grid: tuple[int, ...], *args: Any) -> None:
        _kernel(file, name, np.dtype(real))(grid, (THREADS,), args)

    # A training step as one launch, and memory.

    def record(self, run: Callable[[], list[Any]], batch: Sequence[Array], reads: list[Array]) -> Callable[..., None]:
        """As NumpyBackend.record: a CUDA graph, whose memory stays its own."""
        pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
        refills = self._refills = []
        cupy.cuda.Device().synchronize()  # what the step reads must be there
        self.recording, self.xp = True, _NoUploads()
        try:
            with cupy.cuda.using_allocator(pool.malloc), stream:
                stream.begin_capture()
                try:
                    run()
                finally:
                    graph = stream.end_capture()
        except (cupy.cuda.runtime.CUDARuntimeError, TypeError) as error:
            raise RuntimeError(
                f"this step cannot be recorded ({error}): the loss must be computed on the GPU from the batch's arrays "
                "alone, without looking at a number of it; train without record"
            ) from error
        finally:
            self.recording, self.xp = False, cupy

        def repeat(*arrays: Array, pool: Any = pool) -> None:
            for kept, new in zip(batch, arrays, strict=True):
                kept[...] = new
            for refill in refills:
                refill()
            graph.launch()

        return repeat

    def random_mask(self, rng: np.random.Generator, shape: Shape, p: float) -> Array:
        """As NumpyBackend.random_mask; in a recorded step drawn anew each time it is repeated."""
        if not self.recording:
            return super().random_mask(rng, shape, p)
        mask = cupy.empty(shape, np.bool_)
        self._refills.append(lambda: mask.set(rng.random(shape, dtype=np.float32) >= p))
        return mask  # type: ignore[no-any-return]

    def constant(self, a: Array) -> Array:
        """As NumpyBackend.constant; kept on the GPU, since few are ever asked for, and copies cannot be recorded."""
        key = a.tobytes(), a.shape, a.dtype
        if key not in self._constants:
            self._constants[key] = cupy.asarray(np.ascontiguousarray(a))
        return self._constants[key]

    def number(self, a: Array) -> Any:
        """As NumpyBackend.number; while a step is recorded it stays on the GPU."""
        return a if self.recording else super().number(a)

    def memory(self) -> tuple[int, int, int]:
        """Give the bytes that arrays use, that are free, and that there are."""
        pool, (free, total) = cupy.get_default_memory_pool(), cupy.cuda.Device().mem_info
        return pool.used_bytes(), free + pool.free_bytes(), total

    # Convolution: see csrc/cuda/conv.cu.

    def _tensor_cores(self, real: Any) -> bool:
        return self.precision == "high" and real == np.float32 and self.capability >= 80

    def _winograd(self, o: int, c: int, pixels: int, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> bool:
        """Decide for F(4x4, 3x3), o and c of one group: where it can be done and its extra bytes are few."""
        can = kernel == (3, 3) and stride == dilation == (1, 1) and min(padding) >= 0
        worth = min(o, c) >= 32 and pixels >= 1024 and self.precision == "highest"
        return can and (self.algorithm == "winograd" or (self.algorithm == "auto" and worth))

    def explain_conv(self, x_shape: Shape, w_shape: Shape, **options: Any) -> str:
        """Say which algorithm computes a convolution and its gradients, and why."""
        n, o, oh, ow = conv2d_shape(x_shape, w_shape, **options)
        groups, padding, flipped = options["groups"], options["padding"], self._flipped(options["padding"])
        rows, c = o // groups, w_shape[1]
        kernel, stride, dilation = (w_shape[2], w_shape[3]), options["stride"], options["dilation"]
        forward = self._winograd(rows, c, n * oh * ow, kernel, stride, padding, dilation)
        backward = self._winograd(c, rows, n * x_shape[2] * x_shape[3], kernel, stride, flipped, dilation)
        direct = f"direct, tiles of {self._tile(rows, n * oh * ow, groups, np.float32)[0] or '1 pixel'}"
        words = {True: "Winograd F(4x4, 3x3): a quarter of the products", False: direct}
        lines = [
            ("conv2d", words[forward]),
            ("conv2d_grad_x", words[backward]),
            ("conv2d_grad_w", "direct, in slices"),
        ]
        return "\n".join(f"{name:14} {how}" for name, how in lines)

    @staticmethod
    def _flipped(padding: Pair) -> Pair:
        """Give the padding of the 3 x 3 convolution that is the adjoint of one with `padding`."""
        return 2 - padding[0], 2 - padding[1]

    def _tile(self, rows: int, columns: int, groups: int, real: Any, few: int = 99) -> tuple[str, int, int]:
        """Choose a kernel's tile by shape -> its name, rows and columns; no tile where products or outputs are few."""
        if rows <= 8 or few <= 12:
            return "", 8, THREADS
        large = -(-rows // 128) * -(-columns // 128) * groups >= FULL // 2
        if rows <= 32:
            m, n = 16, 256
        elif rows <= 64 or not large:
            m, n = 64, 128 if self._tensor_cores(real) else 64
        else:
            m, n = 128, 128
        return f"{m}x{n}", m, n

    def _gather(
        self, table: Any, x: Array, w: Array, b: Array | None, y: Array, group: int, stride: int, /, **s: Any
    ) -> None:
        """Launch one phase: y[m, pixel] = Σ_k weights[m, k] · x[window of the pixel, k] + b[m].

        `table` gives the taps, padded to a multiple; w's next group is `group` further, its next output `stride`.
        """
        rows, pixels, groups = s["rows"], s["images"] * s["oh"] * s["ow"], s["groups"]
        tile, m, n = self._tile(rows, pixels, groups, x.dtype, few=s["channels"] * w.shape[2] * w.shape[3])
        taps = table(16 if tile else 1)
        padded = -(-rows // m) * m
        geometry = _fill(GATHER, **s, taps=len(taps), padded=padded)
        packed = cupy.empty((groups, len(taps), padded), x.dtype)
        self._launch(
            "conv",
            "pack_weights",
            x.dtype,
            _blocks(packed.size),
            geometry,
            np.int32(stride),
            np.int32(group),
            taps,
            w,
            packed,
        )
        grid = (-(-pixels // n), padded // m, groups)
        name = ("tensor_conv_" if self._tensor_cores(x.dtype) else "conv_") + tile if tile else "conv_direct"
        self._launch("conv", name, x.dtype, grid, geometry, taps, x, packed, b, y)

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
        options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        n, o, oh, ow = conv2d_shape(x.shape, w.shape, stride, padding, dilation, groups)
        if b is not None:
            check_shape("b", b, (o,))
        if self.algorithm == "exact" and x.dtype == np.float32:
            wide = [None if a is None else a.astype(np.float64) for a in (x, w, b)]
            return self.conv2d(*wide, **options, activation=activation).astype(np.float32)  # type: ignore[arg-type]
        x, w, b = _dense(x, w, b)
        y = cupy.empty((n, o, oh, ow), x.dtype)
        if not y.size:
            return y  # type: ignore[no-any-return]
        relu, rows, (c, kh, kw), (h, wd) = activation == "relu", o // groups, w.shape[1:], x.shape[2:]
        if self._winograd(rows, c, n * oh * ow, (kh, kw), stride, padding, dilation):
            return self._winograd_conv(x, w, b, y, padding, groups, flipped=False, relu=relu)
        self._gather(
            lambda multiple: _forward_taps(c, h, wd, (kh, kw), dilation, multiple),
            x, w, b, y, rows * c * kh * kw, c * kh * kw, images=n, groups=groups, rows=rows, channels=c, h=h, w=wd,
            oh=oh, ow=ow, fh=oh, fw=ow, sh=stride[0], sw=stride[1], top=-padding[0], left=-padding[1],
            step_h=1, step_w=1, relu=relu,
        )  # fmt: skip
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
        """As NumpyBackend.conv2d_grad_x."""
        check_float(g=g, w=w, b=b)
        check_shape("g", g, conv2d_shape(x_shape, w.shape, stride, padding, dilation, groups))
        if b is not None:
            check_shape("b", b, (x_shape[1],))
        options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        if self.algorithm == "exact" and g.dtype == np.float32:
            wide_g, wide_w, wide_b = [None if a is None else a.astype(np.float64) for a in (g, w, b)]
            return self.conv2d_grad_x(wide_g, wide_w, x_shape, wide_b, **options).astype(np.float32)  # type: ignore[arg-type]
        g, w, b = _dense(g, w, b)
        dx = cupy.empty(x_shape, g.dtype)
        if not dx.size:
            return dx  # type: ignore[no-any-return]
        (n, o, oh, ow), (c, kh, kw), (h, wd) = g.shape, w.shape[1:], x_shape[2:]
        rows, (sh, sw) = o // groups, stride
        if self._winograd(c, rows, n * h * wd, (kh, kw), stride, self._flipped(padding), dilation):
            return self._winograd_conv(g, w, b, dx, self._flipped(padding), groups, flipped=True, relu=False)
        for phase in np.ndindex(min(sh, h), min(sw, wd)):
            self._gather(
                lambda multiple, phase=phase: _backward_taps(
                    rows, c, (oh, ow), (kh, kw), stride, padding, dilation, phase, multiple
                ),
                g, w, b, dx, rows * c * kh * kw, kh * kw, images=n, groups=groups, rows=c, channels=rows, h=oh, w=ow,
                oh=-(-(h - phase[0]) // sh), ow=-(-(wd - phase[1]) // sw), fh=h, fw=wd, sh=1, sw=1,
                step_h=sh, step_w=sw, first_h=phase[0], first_w=phase[1],
            )  # fmt: skip
        return dx  # type: ignore[no-any-return]

    def conv2d_grad_w(
        self, g: Array, x: Array, w_shape: Shape, *, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Array:
        """As NumpyBackend.conv2d_grad_w."""
        check_float(g=g, x=x)
        check_shape("g", g, conv2d_shape(x.shape, w_shape, stride, padding, dilation, groups))
        options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        if self.algorithm == "exact" and g.dtype == np.float32:
            wide = self.conv2d_grad_w(g.astype(np.float64), x.astype(np.float64), w_shape, **options)
            return wide.astype(np.float32)
        g, x = _dense(g, x)
        if not g.size:
            return cupy.zeros(w_shape, g.dtype)  # type: ignore[no-any-return]
        (n, _, oh, ow), (c, kh, kw), (h, wd), rows = g.shape, w_shape[1:], x.shape[2:], w_shape[0] // groups
        taps = _forward_taps(c, h, wd, (kh, kw), dilation, 1)
        _, m, k = self._tile(max(rows, 9), len(taps), groups * 64, g.dtype)
        depth = 16 if self._tensor_cores(g.dtype) else 8  # pixels a stage
        tiles = -(-rows // m) * -(-len(taps) // k)
        slices = max(1, min(-(-FULL // (tiles * groups)), n * oh * ow // (16 * depth), 65535 // groups))
        geometry = _fill(
            GATHER, images=n, groups=groups, rows=rows, taps=len(taps), channels=c, h=h, w=wd, oh=oh, ow=ow,
            sh=stride[0], sw=stride[1], top=-padding[0], left=-padding[1],
        )  # fmt: skip
        parts = cupy.empty((slices, *w_shape), g.dtype)
        name = f"{'tensor_' if self._tensor_cores(g.dtype) else ''}grad_w_{m}x{k}"
        grid = (-(-len(taps) // k), -(-rows // m), groups * slices)
        self._launch("conv", name, g.dtype, grid, geometry, np.int32(slices), taps, g, x, parts)
        return self._sum_slices(parts)

    def _sum_slices(self, parts: Array) -> Array:
        """Give the sum over the first axis, in order."""
        if len(parts) == 1:
            return parts[0]  # type: ignore[no-any-return]
        y = cupy.empty(parts.shape[1:], parts.dtype)
        self._launch("conv", "sum_slices", y.dtype, _blocks(y.size), np.int32(len(parts)), np.int64(y.size), parts, y)
        return y  # type: ignore[no-any-return]

    def _winograd_conv(
        self, x: Array, w: Array, b: Array | None, y: Array, padding: Pair, groups: int, *, flipped: bool, relu: bool
    ) -> Array:
        """Transform, multiply, transform back into y: see csrc/cuda/winograd.cu; `flipped` for the gradient."""
        n, channels, rows = x.shape[0], x.shape[1] // groups, y.shape[1] // groups
        down, right = -(-y.shape[2] // 4), -(-y.shape[3] // 4)
        tiles = n * down * right
        geometry = _fill(
            TILES, images=n, groups=groups, channels=channels, rows=rows, h=x.shape[2], w=x.shape[3], oh=y.shape[2],
            ow=y.shape[3], ph=padding[0], pw=padding[1], down=down, right=right, flipped=flipped, relu=relu,
        )  # fmt: skip
        weights = cupy.empty((36, groups, rows, channels), x.dtype)
        images = cupy.empty((36, groups, channels, tiles), x.dtype)
        self._launch("winograd", "winograd_weights", x.dtype, _blocks(weights.size // 36), geometry, w, weights)
        self._launch("winograd", "winograd_images", x.dtype, _blocks(images.size // 36), geometry, x, images)
        products = cupy.matmul(weights, images)
        self._launch("winograd", "winograd_results", x.dtype, _blocks(products.size // 36), geometry, products, b, y)
        return y

    # Pooling: see csrc/cuda/pool.cu.

    def _pool(
        self, x_shape: Shape, out: Shape, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
    ) -> Array:
        pairs = zip(("k", "s", "p", "d"), (kernel_size, stride, padding, dilation), strict=True)
        sizes = {f"{name}{axis}": pair[k] for name, pair in pairs for k, axis in enumerate("hw")}
        return _fill(POOL, planes=x_shape[0] * x_shape[1], h=x_shape[2], w=x_shape[3], oh=out[0], ow=out[1], **sizes)

    def max_pool2d(
        self, x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
    ) -> tuple[Array, Array]:
        """As NumpyBackend.max_pool2d."""
        check_float(x=x)
        out = pool2d_size(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
        x = _dense(x)
        y = cupy.empty((*x.shape[:2], *out), x.dtype)
        index = cupy.empty(y.shape, index_dtype(kernel_size))
        if y.size:
            name = "max_pool_byte" if index.itemsize == 1 else "max_pool_int"
            geometry = self._pool(x.shape, out, kernel_size, stride, padding, dilation)
            self._launch("pool", name, x.dtype, _blocks(y.size), geometry, x, y, index)
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
        """As NumpyBackend.max_pool2d_grad."""
        check_pool_grad(g, index, x_shape, kernel_size)
        g, index = _dense(g, index)
        dx = cupy.empty(x_shape, g.dtype)
        if dx.size:
            name = "max_pool_grad_byte" if index.itemsize == 1 else "max_pool_grad_int"
            geometry = self._pool(x_shape, g.shape[2:], kernel_size, stride, padding, dilation)
            self._launch("pool", name, g.dtype, _blocks(dx.size), geometry, g, index, dx)
        return dx if before is None else before + dx  # type: ignore[no-any-return]

    def avg_pool2d(self, x: Array, count: Array, *, kernel_size: Pair, stride: Pair, padding: Pair) -> Array:
        """As NumpyBackend.avg_pool2d."""
        if not _ready(x, count):
            return super().avg_pool2d(x, count, kernel_size=kernel_size, stride=stride, padding=padding)
        x, count = _dense(x, count)
        y = cupy.empty((*x.shape[:2], *count.shape), x.dtype)
        geometry = self._pool(x.shape, count.shape, kernel_size, stride, padding, (1, 1))
        self._launch("pool", "avg_pool", x.dtype, _blocks(y.size), geometry, x, count, y)
        return y  # type: ignore[no-any-return]

    def avg_pool2d_grad(
        self, g: Array, count: Array, x_shape: Shape, *, kernel_size: Pair, stride: Pair, padding: Pair
    ) -> Array:
        """As NumpyBackend.avg_pool2d_grad."""
        if not _ready(g, count):
            return super().avg_pool2d_grad(g, count, x_shape, kernel_size=kernel_size, stride=stride, padding=padding)
        g, count = _dense(g, count)
        dx = cupy.empty(x_shape, g.dtype)
        geometry = self._pool(x_shape, count.shape, kernel_size, stride, padding, (1, 1))
        self._launch("pool", "avg_pool_grad", g.dtype, _blocks(dx.size), geometry, g, count, dx)
        return dx  # type: ignore[no-any-return]

    # Normalisation: see csrc/cuda/norm.cu and lrn.cu.

    @staticmethod
    def _channels(x: Array) -> tuple[Array, tuple[int, int]]:
        """Give the geometry of x (N, C, ...) and the grid: slices, channels."""
        n, c = x.shape[:2]
        area = x.size // (n * c)
        slices = max(1, min(-(-FULL * 2 // c), n * area // 2048))
        return _fill(CHANNELS, images=n, channels=c, area=area, slices=slices), (slices, c)

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
        if not _ready(x, weight, bias, mean, var) or x.shape[1] > 65535:
            return super().batch_norm(x, weight, bias, mean, var, eps, activation)
        x, weight, bias, mean, var = _dense(x, weight, bias, mean, var)
        geometry, grid = self._channels(x)
        y, parts = cupy.empty(x.shape, x.dtype), None
        if mean is None or var is None:
            mean, var = (cupy.empty(x.shape[1], x.dtype) for _ in range(2))
            parts = cupy.empty((x.shape[1], grid[0], 3), x.dtype)
            self._launch("norm", "moments", x.dtype, grid, geometry, x, parts)
        cut = np.int32(activation == "relu")
        self._launch(
            "norm", "normalize", x.dtype, grid, geometry, np.float64(eps), cut, x, parts, mean, var, weight, bias, y
        )
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
        """As NumpyBackend.batch_norm_grad."""
        if not _ready(g, x, mean, var, weight, bias) or x.shape[1] > 65535:
            return super().batch_norm_grad(g, x, mean, var, weight, bias, eps, activation, training)
        g, x, mean, var, weight, bias = _dense(g, x, mean, var, weight, bias)
        geometry, grid = self._channels(x)
        parts, dx = cupy.empty((x.shape[1], grid[0], 2), x.dtype), cupy.empty(x.shape, x.dtype)
        dweight, dbias = (cupy.empty(x.shape[1], x.dtype) for _ in range(2))
        before = geometry, np.float64(eps), np.int32(activation == "relu")
        given = g, x, mean, var, weight, bias
        self._launch("norm", "normalize_sums", x.dtype, grid, *before, *given, parts)
        self._launch(
            "norm", "normalize_grad", x.dtype, grid, *before, np.int32(training), *given, parts, dx, dweight, dbias
        )
        return dx, dweight, dbias

    def channel_sum(self, g: Array) -> Array:
        """As NumpyBackend.channel_sum."""
        if not _ready(g):
            return super().channel_sum(g)
        g = _dense(g)
        geometry, grid = self._channels(g)
        parts = cupy.empty((grid[0], g.shape[1]), g.dtype)
        self._launch("norm", "channel_sums", g.dtype, grid, geometry, g, parts)
        return self._sum_slices(parts)

    @staticmethod
    def _response(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
        area = math.prod(x.shape[2:])
        return _fill(
            RESPONSE, channels=x.shape[1], size=size, count=x.size, area=area, share=alpha / size, beta=beta, k=k
        )

    def local_response_norm(self, x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
        """As NumpyBackend.local_response_norm."""
        if not _ready(x):
            return super().local_response_norm(x, size, alpha, beta, k)
        x = _dense(x)
        y, d = cupy.empty(x.shape, x.dtype), cupy.empty(x.shape, x.dtype)
        self._launch("lrn", "respond", x.dtype, _blocks(x.size), self._response(x, size, alpha, beta, k), x, y, d)
        return y, d

    def local_response_norm_grad(
        self, g: Array, x: Array, d: Array, size: int, alpha: float, beta: float, k: float
    ) -> Array:
        """As NumpyBackend.local_response_norm_grad."""
        if not _ready(g, x, d):
            return super().local_response_norm_grad(g, x, d, size, alpha, beta, k)
        g, x, d = _dense(g, x, d)
        dx = cupy.empty(x.shape, x.dtype)
        geometry = self._response(x, size, alpha, beta, k)
        self._launch("lrn", "respond_grad", x.dtype, _blocks(x.size), geometry, g, x, d, dx)
        return dx  # type: ignore[no-any-return]

    # Losses: see csrc/cuda/loss.cu.

    @staticmethod
    def _classes(x: Array, ignore_index: int, smoothing: float) -> tuple[Array, tuple[int]]:
        """Give the geometry of logits x (N, C, ...) and the grid."""
        classes, area = x.shape[1], math.prod(x.shape[2:])
        positions, lanes = x.shape[0] * area, 32 if area == 1 and classes >= 32 else 1
        sizes = {"positions": positions, "classes": classes, "area": area, "lanes": lanes}
        return _fill(CLASSES, **sizes, ignored=ignore_index, smoothing=smoothing), _blocks(positions * lanes)

    def cross_entropy(
        self, x: Array, t: Array, weight: Array, ignore_index: int, smoothing: float
    ) -> tuple[Array, Array]:
        """As NumpyBackend.cross_entropy."""
        if not self.recording:  # asking waits for the GPU; in a recorded step a wrong class makes the loss NaN
            check_classes("cross_entropy", t, x.shape[1], ignore_index)
        if not _ready(x, weight):
            return super().cross_entropy(x, t, weight, ignore_index, smoothing)
        x, t, weight = _dense(x, t.astype(np.int64, copy=False), weight)
        loss, lse = (cupy.empty(t.shape, x.dtype) for _ in range(2))
        geometry, grid = self._classes(x, ignore_index, smoothing)
        self._launch("loss", "cross_entropy", x.dtype, grid, geometry, x, t, weight, loss, lse)
        return loss, lse

    def cross_entropy_grad(
        self, g: Array, x: Array, t: Array, lse: Array, weight: Array, ignore_index: int, smoothing: float
    ) -> Array:
        """As NumpyBackend.cross_entropy_grad."""
        if not _ready(g, x, lse, weight):
            return super().cross_entropy_grad(g, x, t, lse, weight, ignore_index, smoothing)
        g, x, t, lse, weight = _dense(g, x, t.astype(np.int64, copy=False), lse, weight)
        dx = cupy.empty(x.shape, x.dtype)
        geometry, grid = self._classes(x, ignore_index, smoothing)
        self._launch("loss", "cross_entropy_grad", x.dtype, grid, geometry, g, x, t, lse, weight, dx)
        return dx  # type: ignore[no-any-return]

    def squared_error_grad(self, x: Array, t: Array, factor: float) -> Array:
        """As NumpyBackend.squared_error_grad."""
        if not _ready(x, t) or isinstance(factor, cupy.ndarray):
            return super().squared_error_grad(x, t, factor)
        return self._each(x.dtype.type(factor), "scaled_difference", x, t)

    # Number by number: see csrc/cuda/elementwise.cu.

    def _each(self, scale: Any, name: str, *arrays: Any) -> Array:
        """Launch a kernel of elementwise.cu on arrays of one shape."""
        arrays = _dense(*arrays)
        y = cupy.empty(arrays[0].shape, arrays[0].dtype)
        options = (np.int64(y.size),) if scale is None else (np.int64(y.size), scale)
        self._launch("elementwise", name, y.dtype, _blocks(y.size, numbers=4), *options, *arrays, y)
        return y  # type: ignore[no-any-return]

    def activation_grad(self, g: Array, y: Array, activation: str) -> Array:
        """As NumpyBackend.activation_grad."""
        if not _ready(g, y) or g.shape != y.shape:
            return super().activation_grad(g, y, activation)
        return self._each(None, f"{activation}_grad", g, y)

    def dropout(self, x: Array, kept: Array, scale: float) -> Array:
        """As NumpyBackend.dropout."""
        if kept.dtype != np.bool_:
            raise TypeError(f"dropout: kept is an array of bool, not {kept.dtype}")
        if not _ready(x) or kept.shape != x.shape:
            return super().dropout(x, kept, scale)
        return self._each(x.dtype.type(scale), "dropout", x, kept)

    # Images at another size: see csrc/cuda/resample.cu.

    def resample(self, x: Array, rows: Windows, columns: Windows) -> Array:
        """As NumpyBackend.resample."""
        if not _ready(x) or not len(rows[0]) or not len(columns[0]):
            return super().resample(x, rows, columns)
        x = _dense(x)
        (n, c, h, w), oh, ow = x.shape, len(rows[0]), len(columns[0])
        y = cupy.empty((n, c, oh, ow), x.dtype)
        there = (*self._there(rows, h, x.dtype), *self._there(columns, w, x.dtype))
        sizes = [np.int32(size) for size in (h, w, oh, ow, rows[2].shape[1], columns[2].shape[1])]
        self._launch("resample", "resample", x.dtype, _blocks(y.size), np.int64(n * c), *sizes, *there, x, y)
        return y  # type: ignore[no-any-return]

    def _there(self, windows: Windows, size: int, real: Any) -> list[Any]:
        """Check windows and give them on the GPU."""
        first, last, weight = windows
        wrong = (first < 0) | (last > size) | (last - first > weight.shape[1]) | (last < first)
        if wrong.any():
            raise ValueError(f"resample: window {int(np.argmax(wrong))} leaves the {size} pixels or its weights")
        kinds = (np.int32, np.int32, real)
        return [self.constant(a.astype(kind)) for a, kind in zip(windows, kinds, strict=True)]

    # Optimisers: see csrc/cuda/optim.cu.

    def _step(self, name: str, arrays: tuple[list[Array], ...], *options: Any) -> bool:
        """Launch a step for all parameters, p first, g second; False if not all are of one dtype and in C order."""
        params, grads, *states = arrays
        if not all(
            _ready(p, *a) and all(b.flags.c_contiguous for b in (p, *a[1:])) for p, *a in zip(*arrays, strict=True)
        ):
            return False
        if len({p.dtype for p in params}) > 1:
            return False
        grads = [_dense(g) for g in grads]
        for first in range(0, len(params), MANY):
            part = slice(first, first + MANY)
            table = _fill(PARAMETERS, count=len(params[part]))
            for column, each in zip("pgms", (params, grads, *states), strict=False):
                table[column][0, : len(each[part])] = [a.data.ptr for a in each[part]]  # type: ignore[attr-defined]
            sizes = np.array([p.size for p in params[part]])
            table["size"][0, : len(sizes)] = sizes
            table["ends"][0, : len(sizes)] = ends = np.cumsum(-(-sizes // BLOCK))
            self._launch("optim", name, params[0].dtype, (int(ends[-1]),), table, *options)
        return True

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
        """As NumpyBackend.sgd_step."""
        arrays = (params, grads, velocities) if momentum else (params, grads)
        numbers = [np.float64(v) for v in (lr, momentum, 1 - dampening, weight_decay)]
        if not self._step("sgd_step", arrays, *numbers, np.int32(nesterov)):
            super().sgd_step(params, grads, velocities, lr, momentum, dampening, weight_decay, nesterov)

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
        """As NumpyBackend.adam_step."""
        numbers = [np.float64(v) for v in (lr, beta1, beta2, eps, weight_decay)]
        corrections = np.float64(lr / (1 - beta1**t)), np.float64(math.sqrt(1 - beta2**t))
        if not self._step("adam_step", (params, grads, means, squares), *numbers, np.int32(decoupled), *corrections):
            super().adam_step(params, grads, means, squares, lr, beta1, beta2, eps, weight_decay, decoupled, t)
