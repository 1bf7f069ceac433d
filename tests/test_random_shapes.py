"""Convolutions, pooling, normalisation, dense layers and losses of the cpp backend on random shapes, options and
layouts, against NumPy in float64.

MINIDL_EXAMPLES sets how many are tried (100; `make sanitize` takes 2000 under AddressSanitizer).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidl import Tensor, set_conv_algorithm, set_num_threads
from minidl import functional as F
from minidl.backends import get_backend, get_num_threads, use_backend
from tests.test_backends import require

EXAMPLES = int(os.environ.get("MINIDL_EXAMPLES", "100"))
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES <= 100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LAYOUTS = ["C", "channels last", "channel slice", "turned round", "unaligned", "every other"]
BOUNDS = {"auto": (2e-5, 1e-4), "direct": (2e-6, 2e-6), "winograd": (2e-5, 1e-4), "exact": (1e-7, 1e-7)}


@pytest.fixture
def cpp() -> Iterator[Any]:
    require("cpp")
    threads = get_num_threads()
    with use_backend("cpp"):
        yield get_backend()
    set_conv_algorithm("auto")
    set_num_threads(threads)


def laid_out(a: np.ndarray, layout: str) -> np.ndarray:
    """The same numbers in other places of memory, read-only; what lies between them is NaN."""
    n, c, h, w = a.shape
    if layout == "C":
        view = a.copy()
    elif layout == "channels last":
        view = np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    elif layout == "channel slice":
        view = np.full((n, h, w, c + 3), np.nan, a.dtype).transpose(0, 3, 1, 2)[:, 1 : c + 1]
    elif layout == "turned round":
        view = np.empty_like(a)[:, ::-1, ::-1, ::-1]
    elif layout == "unaligned":
        view = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    else:
        view = np.full((2 * n, 2 * c, 2 * h, 2 * w), np.nan, a.dtype)[::2, ::2, ::2, ::2]
    view[...] = a
    view.setflags(write=False)
    return view


def close(name: str, result: np.ndarray, true: np.ndarray, scale: np.ndarray, bound: float) -> None:
    """Compare by the largest of `scale`, the sums of the terms' sizes: the sums themselves may cancel to nothing."""
    assert result.shape == true.shape, name
    error = np.abs(result - true).max(initial=0.0)
    assert error <= bound * scale.max(initial=1e-30), f"{name}: {error}"


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes and options that fit; now and then many channels, a wide row, or the 3x3 and 5x5 of Winograd."""
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5]))
    c, o = (groups * draw(st.sampled_from([1, 2, 3, 4, 7, 8, 16, 17, 33])) for _ in range(2))
    plain = draw(st.booleans())
    k = draw(st.sampled_from([3, 5])) if plain else 0
    kernel = (k, k) if plain else (number(1, 6), number(1, 11))
    stride = (1, 1) if plain else (number(1, 4), number(1, 4))
    dilation = (1, 1) if plain else (number(1, 3), number(1, 3))
    padding = (number(0, 5), number(0, 5))
    size = []
    for axis in range(2):
        least = max(1, dilation[axis] * (kernel[axis] - 1) + 1 - 2 * padding[axis])
        size.append(number(least, least + draw(st.sampled_from([0, 3, 14, 30]))))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return {"x": (number(1, 4), c, *size), "w": (o, c // groups, *kernel), "options": options}


@many
@given(
    case=convolutions(),
    algorithm=st.sampled_from(["auto", "auto", "direct", "winograd", "exact"]),
    dtype=st.sampled_from([np.float32, np.float32, np.float64]),
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
    threads=st.sampled_from([1, 2, 3]),
    level=st.sampled_from(["baseline", "avx2", "avx512"]),
)
def test_convolutions_agree_with_numpy_in_float64(
    cpp: Any, case: dict[str, Any], algorithm: str, dtype: Any, layouts: tuple[str, str], threads: int, level: str
) -> None:
    from minidl import _C

    if level not in _C.simd_levels():
        level = _C.simd_levels()[-1]
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(case[name]) for name in ("x", "w"))
    b, options = rng.standard_normal(len(w)), case["options"]
    x, w, b = (a.astype(dtype).astype(float) for a in (x, w, b))
    with use_backend("numpy") as reference:

        def passes(x: np.ndarray, w: np.ndarray, b: np.ndarray, g: np.ndarray) -> list[np.ndarray]:
            grad_x = reference.conv2d_grad_x(g, w, x.shape, **options)
            return [reference.conv2d(x, w, b, **options), grad_x, reference.conv2d_grad_w(g, x, w.shape, **options)]

        true = reference.conv2d(x, w, b, **options)
        g = (true + rng.standard_normal(true.shape)).astype(dtype).astype(float)
        true, true_x, true_w = passes(x, w, b, g)
        scale, scale_x, scale_w = passes(*(np.abs(a) for a in (x, w, b, g)))
    x, w, g, b = (a.astype(dtype) for a in (x, w, g, b))
    x, g = laid_out(x, layouts[0]), laid_out(g, layouts[1])
    bound, bound_w = BOUNDS[algorithm] if dtype == np.float32 else (1e-12, 1e-12)
    before = _C.simd_level()
    _C.set_simd_level(level)
    set_conv_algorithm(algorithm)
    set_num_threads(threads)
    try:
        y = cpp.conv2d(x, w, b, **options)
        assert y.dtype == dtype
        close("forward", y, true, scale, bound)
        close("relu", cpp.conv2d(x, w, b, **options, activation="relu"), np.maximum(true, 0), scale, bound)
        close("grad_x", cpp.conv2d_grad_x(g, w, x.shape, **options), true_x, scale_x, bound)
        shift = np.arange(x.shape[1], dtype=dtype)
        shifted, by = cpp.conv2d_grad_x(g, w, x.shape, shift, **options), shift[:, None, None]
        close("grad_x with a bias", shifted, true_x + by, scale_x + by, bound)
        close("grad_w", cpp.conv2d_grad_w(g, x, w.shape, **options), true_w, scale_w, bound_w)
    finally:
        _C.set_simd_level(before)


@st.composite
def other_ops(draw: st.DrawFn) -> tuple[str, list[tuple[int, ...]], Any]:
    """An op that is no convolution: its name, the shapes of its inputs, and the function itself on tensors."""
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    n, c = number(1, 4), draw(st.sampled_from([1, 2, 3, 7, 8, 15, 16, 17, 33, 64]))
    h, w = number(1, 20), draw(st.sampled_from([1, 2, 5, 16, 17, 40]))
    name = draw(st.sampled_from(["max_pool2d", "avg_pool2d", "batch_norm", "linear", "lrn", "interpolate", "loss"]))
    shape = (n, c, h, w)
    if name == "linear":
        rows, inputs, outputs = number(1, 70), number(1, 90), number(1, 70)
        activation = draw(st.sampled_from(["", "relu", "tanh"]))
        return name, [(rows, inputs), (outputs, inputs), (outputs,)], lambda *a: F.linear(*a, activation)
    if name == "batch_norm":
        shape = (n + 1, c, h + 3, w)  # of two values alone the variance may be nearly 0
        return name, [shape, (c,), (c,)], lambda x, a, b: F.batch_norm(x, None, None, a, b, True)
    if name == "lrn":
        size = number(1, 9)
        return name, [shape], lambda x: F.local_response_norm(x, size)
    if name == "interpolate":
        size, mode = (number(1, 30), number(1, 30)), draw(st.sampled_from(["nearest", "bilinear"]))
        return name, [shape], lambda x: F.interpolate(x, size, mode=mode)
    if name == "loss":
        smoothing = draw(st.sampled_from([0.0, 0.1]))
        target = np.random.default_rng(1).integers(0, c, (n, h, w))
        return name, [shape], lambda x: F.cross_entropy(x, target, reduction="sum", label_smoothing=smoothing)
    kernel = (number(1, h), number(1, min(w, 5)))
    options: dict[str, Any] = {"padding": (number(0, kernel[0] // 2), number(0, kernel[1] // 2))}
    options |= {"stride": (number(1, 4), number(1, 4)), "ceil_mode": draw(st.booleans())}
    return name, [shape], lambda x: getattr(F, name)(x, kernel, **options)


@many
@given(
    case=other_ops(),
    dtype=st.sampled_from([np.float32, np.float64]),
    layout=st.sampled_from(LAYOUTS),
    threads=st.sampled_from([1, 2, 3]),
    level=st.sampled_from(["baseline", "avx2", "avx512"]),
)
def test_other_kernels_agree_with_numpy_in_float64(
    cpp: Any, case: Any, dtype: Any, layout: str, threads: int, level: str
) -> None:
    from minidl import _C

    name, shapes, function = case
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape).astype(dtype).astype(float) for shape in shapes]

    def results(dtype: Any, layout: str) -> list[np.ndarray]:
        tensors = [Tensor(a.astype(dtype), requires_grad=True) for a in inputs]
        if tensors[0].ndim == 4:
            tensors[0].data = laid_out(tensors[0].data, layout)
        y = function(*tensors)
        y.backward(np.random.default_rng(2).standard_normal(y.shape).astype(dtype))
        return [y.data, *(t.grad for t in tensors)]

    with use_backend("numpy"):
        true = results(float, "C")
    before = _C.simd_level()
    _C.set_simd_level(level if level in _C.simd_levels() else _C.simd_levels()[-1])
    set_num_threads(threads)
    try:
        found = results(dtype, layout)
    finally:
        _C.set_simd_level(before)
    for k, (mine, definition) in enumerate(zip(found, true, strict=True)):
        assert mine.dtype == dtype
        close(f"{name} {k}", mine, definition, 1 + np.abs(definition), 2e-5 if dtype == np.float32 else 1e-13)
