"""The four kernel tests of every backend on each row of cases.py: definition, adjoint, dtype and layout, same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from minidl.backends import get_backend, get_num_threads, numpy_backend, set_num_threads, use_backend
from minidl.cases.kernels import KERNEL_CASES, POOL_CASES, ConvCase, PoolCase, conv_arrays, pool_array
from tests import stand_in
from tests.test_backends import require

VARIANTS = [
    "numpy", "numpy:blocks", "numba", "cpp:baseline", "cpp:avx2", "cpp:avx512",
    "cupy:on a processor", pytest.param("cupy", marks=pytest.mark.gpu),
]  # fmt: skip
DTYPES = [np.float32, np.float64]

conv_cases = pytest.mark.parametrize("case", KERNEL_CASES, ids=lambda case: case.name)
pool_cases = pytest.mark.parametrize("case", POOL_CASES, ids=lambda case: case.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)


@pytest.fixture(params=VARIANTS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Each backend; numpy also with blocks of a few rows, cpp with each instruction set that this processor has.

    cupy on a GPU by `pytest -m gpu`, and anywhere on a processor that stands in for one.
    """
    name, _, variant = request.param.partition(":")
    if name == "cupy" and variant:
        yield stand_in.OnTheDevice(stand_in.backend())
        return
    require(name)
    if variant == "blocks":
        monkeypatch.setattr(numpy_backend, "BLOCK_BYTES", 2000)
    elif variant:
        from minidl import _C

        if variant not in _C.simd_levels():
            pytest.skip(f"this processor or build has no {variant}, only {', '.join(_C.simd_levels())}")
        before = _C.simd_level()
        _C.set_simd_level(variant)
    with use_backend(name):
        yield stand_in.OnTheDevice(get_backend()) if name == "cupy" else get_backend()
    if name == "cpp":
        _C.set_simd_level(before)


# --- definitions, by plain loops in float64 --------------------------------------------------------------------------


def windows(case: ConvCase, padded: np.ndarray) -> Iterator[tuple[int, int, int, slice, np.ndarray]]:
    """Walk over image n, group and output pixel (i, j): (n, i, j, outputs of the group, view of the window below)."""
    (o, c, kh, kw), (sh, sw), (dh, dw) = case.w, case.stride, case.dilation
    oh = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    ow = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    per_group = o // case.groups
    for n in range(case.x[0]):
        for q in range(case.groups):
            for i in range(oh):
                for j in range(ow):
                    rows = slice(i * sh, i * sh + dh * (kh - 1) + 1, dh)
                    columns = slice(j * sw, j * sw + dw * (kw - 1) + 1, dw)
                    outputs = slice(q * per_group, (q + 1) * per_group)
                    yield n, i, j, outputs, padded[n, q * c : (q + 1) * c, rows, columns]


def pad(case: ConvCase, x: np.ndarray) -> np.ndarray:
    (ph, pw) = case.padding
    return np.pad(x.astype(np.float64), ((0, 0), (0, 0), (ph, ph), (pw, pw)))


def define_conv2d(case: ConvCase, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    values = [(n, o, i, j, (w[o] * v).sum(axis=(1, 2, 3))) for n, i, j, o, v in windows(case, pad(case, x))]
    y = np.zeros((case.x[0], case.w[0], 1 + max(v[2] for v in values), 1 + max(v[3] for v in values)))
    for n, o, i, j, value in values:
        y[n, o, i, j] = value
    return y


def define_grad_x(case: ConvCase, g: np.ndarray, w: np.ndarray) -> np.ndarray:
    padded = pad(case, np.zeros(case.x))
    for n, i, j, o, view in windows(case, padded):
        view += np.einsum("o,ockl->ckl", g[n, o, i, j], w[o])
    (ph, pw), (h, wd) = case.padding, case.x[2:]
    return padded[:, :, ph : ph + h, pw : pw + wd]


def define_grad_w(case: ConvCase, g: np.ndarray, x: np.ndarray) -> np.ndarray:
    w = np.zeros(case.w)
    for n, i, j, o, view in windows(case, pad(case, x)):
        w[o] += g[n, o, i, j][:, None, None, None] * view
    return w


@cache
def defined(case: ConvCase, dtype: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Give the true results, their bounds of rounding error, and g; g = y + noise, so that no error hides in chance.

    A sum of m products in any order is off by at most m·ε times the sum of their absolute values (Higham 2002, §3.1);
    twice that, since in float64 the definition rounds too.
    """
    x, w, b = conv_arrays(case, dtype)
    y = define_conv2d(case, x, w) + b.astype(np.float64)[:, None, None]
    g = (y + np.random.default_rng(1).standard_normal(y.shape)).astype(dtype)
    true = {"y": y, "grad_x": define_grad_x(case, g, w), "grad_w": define_grad_w(case, g, x)}
    size, eps = abs, float(np.finfo(dtype).eps)
    o, c, kh, kw = case.w
    bound = {
        "y": 2 * (c * kh * kw + 1) * eps * (define_conv2d(case, size(x), size(w)) + size(b)[:, None, None]),
        "grad_x": 2 * (o // case.groups * kh * kw) * eps * define_grad_x(case, size(g), size(w)),
        "grad_w": 2 * (y.size // o) * eps * define_grad_w(case, size(g), size(x)),
    }
    return true, bound, g


def compute(backend: Any, case: ConvCase, x: np.ndarray, w: np.ndarray, b: Any, g: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "y": backend.conv2d(x, w, b, **case.options),
        "grad_x": backend.conv2d_grad_x(g, w, case.x, **case.options),
        "grad_w": backend.conv2d_grad_w(g, x, case.w, **case.options),
    }


def allowed(backend: Any, case: ConvCase, bound: np.ndarray) -> Any:
    """Give the bound of each number; of the largest where Winograd is at work: its errors are those of a whole tile."""
    return bound.max() if "Winograd" in backend.explain_conv(case.x, case.w, **case.options) else bound


# --- convolution -----------------------------------------------------------------------------------------------------


@conv_cases
@dtypes
def test_conv2d_is_its_definition(backend: Any, case: ConvCase, dtype: Any) -> None:
    x, w, b = conv_arrays(case, dtype)
    true, bound, g = defined(case, dtype)
    for name, result in compute(backend, case, x, w, b, g).items():
        assert np.abs(true[name]).max() > 0
        assert result.shape == true[name].shape and result.dtype == dtype, name
        assert np.all(np.abs(result - true[name]) <= allowed(backend, case, bound[name])), name


@conv_cases
@dtypes
def test_conv2d_gradients_are_adjoint(backend: Any, case: ConvCase, dtype: Any) -> None:
    """⟨g, conv(x, w)⟩ = ⟨grad_x(g, w), x⟩ = ⟨grad_w(g, x), w⟩: no definition needed, so good for any size."""
    x, w, _ = conv_arrays(case, dtype)
    y = backend.conv2d(x, w, None, **case.options)
    g = (y + 0.1 * np.random.default_rng(2).standard_normal(y.shape)).astype(dtype)
    results = compute(backend, case, x, w, None, g)
    wide = {"x": x, "w": w, "g": g, **results}
    wide = {name: array.astype(np.float64) for name, array in wide.items()}
    products = [np.vdot(wide[a], wide[b]) for a, b in (("g", "y"), ("grad_x", "x"), ("grad_w", "w"))]
    terms = max(w[0].size, w.size // case.groups, g.size // len(w)) + 1
    scale = np.vdot(abs(g), backend.conv2d(abs(x), abs(w), None, **case.options))
    assert abs(products[0]) > 0
    assert max(products) - min(products) <= 2 * terms * np.finfo(dtype).eps * scale


def other_layout(a: np.ndarray) -> np.ndarray:
    """Give the same numbers, not contiguous: channels last, every second row of a larger array, columns backwards."""
    wide = np.full((2 * a.shape[0], *a.shape[2:], a.shape[1]), np.nan, a.dtype)
    view = wide[::2, :, ::-1].transpose(0, 3, 1, 2)
    view[...] = a
    return view


@conv_cases
@dtypes
def test_conv2d_takes_any_layout_and_changes_no_input(backend: Any, case: ConvCase, dtype: Any) -> None:
    x, w, b = conv_arrays(case, dtype)
    true, bound, g = defined(case, dtype)
    strided = [other_layout(x), other_layout(w), np.repeat(b, 3)[::3], other_layout(g)]
    for a in strided:
        a.setflags(write=False)
    copies = [a.copy() for a in strided]
    for name, result in compute(backend, case, *strided).items():
        assert result.dtype == dtype
        assert np.all(np.abs(result - true[name]) <= allowed(backend, case, bound[name])), name
    for a, copy in zip(strided, copies, strict=True):
        np.testing.assert_array_equal(a, copy)


def unaligned(a: np.ndarray) -> np.ndarray:
    """Give the same numbers at an odd address, as in a memory-mapped file."""
    view = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    view.setflags(write=False)
    return view


@dtypes
def test_kernels_take_unaligned_read_only_arrays(backend: Any, dtype: Any) -> None:
    case, pool = KERNEL_CASES[0], PoolCase("", (2, 3, 8, 9), (3, 3), (2, 2), (1, 1))
    x, w, b = conv_arrays(case, dtype)
    g = defined(case, dtype)[2]
    true = compute(backend, case, x, w, b, g)
    for name, result in compute(backend, case, *map(unaligned, (x, w, b, g))).items():
        np.testing.assert_array_equal(result, true[name])
    y, index = backend.max_pool2d(x, **pool.options)
    for a, b in zip((y, index), backend.max_pool2d(unaligned(x), **pool.options), strict=True):
        np.testing.assert_array_equal(a, b)
    grad = backend.max_pool2d_grad(unaligned(y), unaligned(index), x.shape, **pool.window)
    np.testing.assert_array_equal(grad, backend.max_pool2d_grad(y, index, x.shape, **pool.window))


def same_bits(backend: Any, run: Callable[[], Any]) -> None:
    before = get_num_threads()
    try:
        results = []
        for threads in (1, 1, 2, 3, 7):
            set_num_threads(threads)
            results.append(run())
    finally:
        set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@conv_cases
def test_conv2d_gives_the_same_bits_for_any_threads(backend: Any, case: ConvCase) -> None:
    x, w, b = conv_arrays(case, np.float32)
    _, _, g = defined(case, np.float32)
    same_bits(backend, lambda: tuple(compute(backend, case, x, w, b, g).values()))


def test_conv2d_of_an_image_with_more_than_2_to_the_31_pixels() -> None:
    """Only the pixels that are looked at exist in memory: the others are zero pages nobody wrote to."""
    require("cpp")
    x = np.zeros((1, 1, 46400, 46400), np.float32)
    assert x.size > 2**31
    x[0, 0, -1, -1] = 3
    w = np.full((1, 1, 1, 1), 2, np.float32)
    options = {"stride": (46399, 46399), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    with use_backend("cpp") as cpp:
        np.testing.assert_array_equal(cpp.conv2d(x, w, None, **options)[0, 0], [[0, 0], [0, 6]])


def test_conv2d_of_no_images(backend: Any) -> None:
    case = ConvCase("", (0, 3, 5, 5), (4, 3, 3, 3))
    x, w, b = conv_arrays(case, np.float32)
    results = compute(backend, case, x, w, b, np.zeros((0, 4, 3, 3), np.float32))
    assert results["y"].shape == (0, 4, 3, 3) and results["grad_x"].shape == x.shape
    np.testing.assert_array_equal(results["grad_w"], np.zeros(w.shape))


def test_conv2d_passes_nan_on(backend: Any) -> None:
    x, w = np.zeros((1, 1, 5, 5), np.float32), np.ones((1, 1, 3, 3), np.float32)
    x[0, 0, 0, 0] = np.nan
    y = backend.conv2d(x, w, None, **ConvCase("", (1,) * 4, (1,) * 4).options)
    assert np.isnan(y[0, 0, 0, 0]) and np.isnan(y).sum() == 1


BAD_CONVOLUTIONS = {
    "channels": ({"w": (4, 2, 3, 3)}, {}, ValueError),
    "groups": ({"w": (4, 1, 3, 3)}, {"groups": 4}, ValueError),
    "no group": ({}, {"groups": 0}, ValueError),
    "dimensions": ({"x": (3, 8, 8)}, {}, ValueError),
    "bias": ({"b": (3,)}, {}, ValueError),
    "kernel larger than image": ({"w": (4, 3, 9, 3)}, {}, ValueError),
    "empty image": ({"x": (1, 3, 0, 8)}, {"padding": (2, 2)}, ValueError),
    "no output channels": ({"w": (0, 3, 3, 3)}, {}, ValueError),
    "stride": ({}, {"stride": (0, 1)}, ValueError),
    "padding": ({}, {"padding": (-1, 0)}, ValueError),
    "dilation": ({}, {"dilation": (1, 0)}, ValueError),
    "mixed dtypes": ({"w": np.float64}, {}, TypeError),
    "integers": ({"x": np.int64, "w": np.int64, "b": np.int64}, {}, TypeError),
    "half precision": ({"x": np.float16, "w": np.float16, "b": np.float16}, {}, TypeError),
}


@pytest.mark.parametrize("what", BAD_CONVOLUTIONS)
def test_conv2d_refuses(backend: Any, what: str) -> None:
    changes, options, error = BAD_CONVOLUTIONS[what]
    arrays = {"x": np.ones((1, 3, 8, 8), "f4"), "w": np.ones((4, 3, 3, 3), "f4"), "b": np.ones(4, "f4")}
    for name, change in changes.items():
        arrays[name] = np.ones(change, "f4") if isinstance(change, tuple) else arrays[name].astype(change)
    with pytest.raises(error):
        backend.conv2d(*arrays.values(), **(ConvCase("", (1,) * 4, (1,) * 4).options | options))


def test_gradients_refuse_a_g_of_another_shape(backend: Any) -> None:
    g, x, w = np.ones((1, 4, 5, 6), "f4"), np.ones((1, 3, 8, 8), "f4"), np.ones((4, 3, 3, 3), "f4")
    options = ConvCase("", (1,) * 4, (1,) * 4).options
    with pytest.raises(ValueError, match="g"):
        backend.conv2d_grad_x(g, w, x.shape, **options)
    with pytest.raises(ValueError, match="g"):
        backend.conv2d_grad_w(g, x, w.shape, **options)


# --- max pooling -----------------------------------------------------------------------------------------------------


def define_max_pool2d(case: PoolCase, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walk every window pixel by pixel. The windows along an axis are counted, not computed from a formula."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = case.kernel_size, case.stride, case.padding, case.dilation
    n, c, h, w = x.shape

    def count(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
        starts = range(-padding, size, stride)  # inside the image or its left padding
        extent, end = dilation * (kernel - 1) + 1, size + padding
        slack = stride if case.ceil_mode else 1  # how far the last window may hang over, plus one
        return max(1, sum(start + extent < end + slack for start in starts))

    y = np.empty((n, c, count(h, kh, sh, ph, dh), count(w, kw, sw, pw, dw)), x.dtype)
    index = np.empty(y.shape, np.uint8 if kh * kw <= 256 else np.int32)
    for at in np.ndindex(y.shape):
        pixels = [(at[2] * sh - ph + k * dh, at[3] * sw - pw + m * dw) for k in range(kh) for m in range(kw)]
        values = {k: x[at[0], at[1], i, j] for k, (i, j) in enumerate(pixels) if 0 <= i < h and 0 <= j < w}
        best = max(values, key=lambda k: (values[k], -k))
        y[at], index[at] = values[best], best
    return y, index


@pool_cases
@dtypes
def test_max_pool2d_is_its_definition(backend: Any, case: PoolCase, dtype: Any) -> None:
    x = pool_array(case, dtype)
    true_y, true_index = define_max_pool2d(case, x)
    for layout in (x, other_layout(x)):
        y, index = backend.max_pool2d(layout, **case.options)
        assert y.dtype == dtype and index.dtype == true_index.dtype and np.abs(true_y).max() > 0
        np.testing.assert_array_equal(y, true_y)
        np.testing.assert_array_equal(index, true_index)


@pool_cases
@dtypes
def test_max_pool2d_grad_adds_where_windows_overlap(backend: Any, case: PoolCase, dtype: Any) -> None:
    x = pool_array(case, dtype)
    y, index = backend.max_pool2d(x, **case.options)
    g = np.random.default_rng(3).standard_normal(y.shape).astype(dtype)
    true, size = np.zeros((2, *x.shape))
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = case.kernel_size, case.stride, case.padding, case.dilation
    for n, c, i, j in np.ndindex(y.shape):
        k, m = divmod(int(index[n, c, i, j]), kw)
        pixel = n, c, i * sh - ph + k * dh, j * sw - pw + m * dw
        assert x[pixel] == y[n, c, i, j]
        true[pixel] += g[n, c, i, j]
        size[pixel] += abs(g[n, c, i, j])
    for layout in (g, other_layout(g)):
        result = backend.max_pool2d_grad(layout, index, x.shape, **case.window)
        assert result.dtype == dtype and result.shape == x.shape
        assert np.all(np.abs(result - true) <= 2 * kh * kw * np.finfo(dtype).eps * size)
        for before in (x, other_layout(x)):
            sum_ = backend.max_pool2d_grad(layout, index, x.shape, before, **case.window)
            np.testing.assert_array_equal(sum_, x + result)


@pool_cases
def test_max_pool2d_gives_the_same_bits_for_any_threads(backend: Any, case: PoolCase) -> None:
    x = pool_array(case, np.float32)
    y, index = backend.max_pool2d(x, **case.options)
    g = np.random.default_rng(3).standard_normal(y.shape).astype(np.float32)
    same_bits(
        backend,
        lambda: (*backend.max_pool2d(x, **case.options), backend.max_pool2d_grad(g, index, x.shape, **case.window)),
    )


@dtypes
def test_max_pool2d_at_nan_infinity_and_no_images(backend: Any, dtype: Any) -> None:
    case = PoolCase("", (1,) * 4, (2, 2), (2, 2))
    x = np.array([[[[np.nan, 9, -np.inf, -np.inf], [1, np.nan, -np.inf, -np.inf]]]], dtype)
    y, index = backend.max_pool2d(x, **case.options)
    np.testing.assert_array_equal(y, np.array([[[[np.nan, -np.inf]]]], dtype))
    np.testing.assert_array_equal(index, [[[[3, 0]]]])  # of two NaN the last, of two -inf the first: as torch
    y, index = backend.max_pool2d(np.zeros((0, 3, 4, 4), dtype), **case.options)
    assert y.shape == index.shape == (0, 3, 2, 2)
    assert backend.max_pool2d_grad(y, index, (0, 3, 4, 4), **case.window).shape == (0, 3, 4, 4)


def test_max_pool2d_of_a_signal_with_more_than_2_to_the_24_outputs(backend: Any) -> None:
    x = np.zeros((0, 1, 1, (1 << 24) + 1), np.float32)  # no image, so no memory
    y, index = backend.max_pool2d(x, **PoolCase("", (1,) * 4, (1, 1), (1, 1)).options)
    assert y.shape == index.shape == x.shape


def test_max_pool2d_refuses(backend: Any) -> None:
    x, case = np.zeros((1, 1, 4, 4), np.float32), PoolCase("", (1,) * 4, (2, 2), (2, 2))
    options = case.options
    for bad in ({"padding": (2, 0)}, {"stride": (0, 1)}, {"kernel_size": (5, 1)}, {"dilation": (4, 1)}):
        with pytest.raises(ValueError):
            backend.max_pool2d(x, **(options | bad))
    with pytest.raises(ValueError, match="misses all"):
        backend.max_pool2d(x[:, :, :1], **(options | {"dilation": (2, 1), "padding": (1, 0)}))
    with pytest.raises(ValueError):
        backend.max_pool2d(x[0], **options)
    with pytest.raises(TypeError):
        backend.max_pool2d(x.astype(np.int64), **options)
    y, index = backend.max_pool2d(x, **options)
    with pytest.raises(ValueError, match="index"):
        backend.max_pool2d_grad(y, index[:, :, :1], x.shape, **case.window)
    with pytest.raises(ValueError):
        backend.max_pool2d_grad(y, index, (1, 2, 4, 4), **case.window)
    with pytest.raises(TypeError):
        backend.max_pool2d_grad(y, index.astype(np.int32), x.shape, **case.window)
    outside = backend.max_pool2d_grad(y, index + 16, x.shape, **case.window)  # a tap that no window has
    np.testing.assert_array_equal(outside[:, :, :2], 0)
