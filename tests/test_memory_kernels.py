"""The kernels bound by memory, at each instruction set, against the array code of the NumPy backend in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from minidl import set_num_threads
from minidl.backends.numpy_backend import NumpyBackend

SHAPES = [
    *((2, c, 3, 5) for c in (1, 2, 3, 15, 16, 17, 96)),
    (1, 1, 1, 1), (3, 7, 11, 13), (2, 5, 9), (2, 3, 2, 3, 5), (5, 33, 41, 43), (0, 3, 4, 4), (2, 3, 0, 4),
]  # fmt: skip
DTYPES = [np.float32, np.float64]
REFERENCE = NumpyBackend()

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)


@pytest.fixture
def cpp(cpp_at_each_level: Any) -> Any:
    """The cpp backend at each instruction set that this processor has."""
    return cpp_at_each_level


def layouts(a: np.ndarray) -> list[np.ndarray]:
    """The same numbers in C order, with the channels innermost, and as a slice of more channels (pitch > c)."""
    last = np.moveaxis(a, 1, -1)
    wide = np.full((*last.shape[:-1], a.shape[1] + 3), np.nan, a.dtype)
    wide[..., 1:-2] = last
    return [a, np.moveaxis(np.ascontiguousarray(last), -1, 1), np.moveaxis(wide[..., 1:-2], -1, 1)]


def numbers(shape: Sequence[int], count: int, dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(count)]


def agree(cpp: Any, name: str, arrays: Sequence[np.ndarray], *options: Any, tolerance: float = 20, **more: Any) -> None:
    """A kernel on arrays of each layout, with any number of threads, is the reference in float64 but for rounding."""
    dtype = arrays[0].dtype
    wide = getattr(REFERENCE, name)(*(a.astype(np.float64) for a in arrays), *options, **more)
    for given in zip(*map(layouts, arrays), strict=True):
        copies = [a.copy() for a in given]
        results = []
        for threads in (1, 2, 3):
            set_num_threads(threads)
            found = getattr(cpp, name)(*given, *options, **more)
            results.append(found if isinstance(found, tuple) else (found,))
        for a, copy in zip(given, copies, strict=True):
            np.testing.assert_array_equal(a, copy)
        for k, exact in enumerate(wide if isinstance(wide, tuple) else (wide,)):
            y = results[0][k]
            assert y.dtype == dtype and y.shape == exact.shape
            scale = np.abs(exact).max(initial=0, where=np.isfinite(exact))
            error = tolerance * float(np.finfo(dtype).eps)
            np.testing.assert_allclose(y, exact, error, error * scale)
            for other in results[1:]:
                np.testing.assert_array_equal(y, other[k])


RESPONSES = [(5, 1e-1, 0.75, 1.0), (5, 2.0, 0.75, 2.0), (1, 0.5, 0.5, 1.0), (4, 1.0, 1.0, 0.5), (40, 1.0, 0.75, 1.0)]


@shapes
@dtypes
def test_local_response_norm(cpp: Any, shape: tuple[int, ...], dtype: Any) -> None:
    x, g = numbers(shape, 2, dtype)
    for options in RESPONSES:
        agree(cpp, "local_response_norm", [x], *options)
        d = REFERENCE.local_response_norm(x, *options)[1].astype(dtype)
        agree(cpp, "local_response_norm_grad", [g, x, d], *options, tolerance=100)


@dtypes
def test_local_response_norm_keeps_its_digits_and_its_nan(cpp: Any, dtype: Any) -> None:
    x = np.ones((1, 40, 1, 1), dtype)
    x[0, 3], x[0, 20], x[0, 30] = 1e15, np.nan, np.inf
    y, d = cpp.local_response_norm(x, 5, 1.0, 0.75, 0.0)
    with np.errstate(invalid="ignore"):
        true = REFERENCE.local_response_norm(x, 5, 1.0, 0.75, 0.0)
        true_grad = REFERENCE.local_response_norm_grad(x, x, true[1], 5, 1.0, 0.75, 0.0)
    np.testing.assert_allclose(d, true[1], 1e-5)
    np.testing.assert_allclose(y, true[0], 1e-5)
    np.testing.assert_array_equal(d[0, 6:18], 1)  # after a bright channel as if there had been none
    grad = cpp.local_response_norm_grad(x, x, d, 5, 1.0, 0.75, 0.0)
    np.testing.assert_allclose(grad, true_grad, 1e-4)


CLASS_SHAPES = [
    *((2, c, 3, 5) for c in (1, 2, 3, 15, 16, 17, 96)),
    (7, 10), (3, 1000), (2, 2, 67), (1, 2, 130, 131), (1, 9000), (0, 3), (2, 3, 0, 4),
]  # fmt: skip


@pytest.mark.parametrize("shape", CLASS_SHAPES, ids=str)
@dtypes
def test_cross_entropy(cpp: Any, shape: tuple[int, ...], dtype: Any) -> None:
    x = 5 * numbers(shape, 1, dtype)[0]
    positions = (shape[0], *shape[2:])
    rng = np.random.default_rng(1)
    t = rng.integers(shape[1], size=positions).astype(np.int32 if shape[1] == 3 else np.int64)
    t[rng.random(positions) < 0.2] = -7
    g = rng.standard_normal(positions).astype(dtype)
    for smoothing in (0.0, 0.1, 1.0):
        weight = rng.random(shape[1]).astype(dtype)
        weight[0] = 0 if shape[1] > 2 else 1
        options = t, weight.astype(np.float64), -7, smoothing
        true_loss, true_lse = REFERENCE.cross_entropy(x.astype(np.float64), *options)
        true_grad = REFERENCE.cross_entropy_grad(g.astype(np.float64), x.astype(np.float64), t, true_lse, *options[1:])
        eps = 40 * float(np.finfo(dtype).eps)
        for given in layouts(x):
            results = []
            for threads in (1, 2, 3):
                set_num_threads(threads)
                loss, lse = cpp.cross_entropy(given, t, weight, -7, smoothing)
                grad = cpp.cross_entropy_grad(g, given, t, lse, weight, -7, smoothing)
                results.append((loss, lse, grad))
            for y, true in zip(results[0], (true_loss, true_lse, true_grad), strict=True):
                assert y.dtype == dtype and y.shape == true.shape
                np.testing.assert_allclose(y, true, eps, eps * np.abs(true).max(initial=1))
            for other in results[1:]:
                for a, b in zip(results[0], other, strict=True):
                    np.testing.assert_array_equal(a, b)


@dtypes
def test_cross_entropy_at_nan_infinity_and_large_logits(cpp: Any, dtype: Any) -> None:
    """The exponentials span all that a float holds; NaN and infinity come out where array code has them."""
    rows = [
        [0, -np.inf, 3],
        [0, np.inf, 3],
        [np.nan, 0, 1],
        [0, 1, np.nan],
        [-np.inf] * 3,
        [-1e30, 0, 1e30],
        [-86, 0, -88],
    ]
    x = np.array(rows * 7, dtype)
    weight = np.ones(3, dtype)
    for target in (0, 1, 2, -1):
        for smoothing in (0.0, 0.5):
            t = np.full(len(x), target)
            with np.errstate(all="ignore"):
                loss, lse = REFERENCE.cross_entropy(x, t, weight, -1, smoothing)
                grad = REFERENCE.cross_entropy_grad(weight[t], x, t, lse, weight, -1, smoothing)
            found = cpp.cross_entropy(x, t, weight, -1, smoothing)
            found_grad = cpp.cross_entropy_grad(weight[t], x, t, found[1], weight, -1, smoothing)
            for y, true in zip(found, (loss, lse), strict=True):
                np.testing.assert_allclose(y, true, 1e-6, 1e-37)
            np.testing.assert_allclose(found_grad, grad, 1e-6, 2e-7)  # a difference of numbers up to 1


def test_cross_entropy_keeps_its_digits_far_from_zero(cpp: Any) -> None:
    x, t, one = np.array([[0.0, 1, -1], [3, 2, 2]], np.float32), np.array([0, 2]), np.ones(3, np.float32)
    near, far = (cpp.cross_entropy(a, t, one, -1, 0.0) for a in (x, x + 10000))
    np.testing.assert_allclose(far[0], near[0], 1e-6)
    grads = [cpp.cross_entropy_grad(one[:2], a, t, near[1], one, -1, 0.0) for a in (x, x + 10000)]
    np.testing.assert_allclose(grads[1], grads[0], 1e-6)


def test_cross_entropy_refuses(cpp: Any) -> None:
    x, weight = np.ones((2, 3), np.float32), np.ones(3, np.float32)
    with pytest.raises(IndexError, match="class 3"):
        cpp.cross_entropy(x, np.array([0, 3]), weight, -100, 0.0)
    with pytest.raises(ValueError, match="t has shape"):
        cpp.cross_entropy(x, np.array([0]), weight, -100, 0.0)
    with pytest.raises(ValueError, match="weight"):
        cpp.cross_entropy(x, np.array([0, 1]), weight[:2], -100, 0.0)
    with pytest.raises(ValueError, match="at least one class"):
        cpp.cross_entropy(x[:, :0], np.array([0, 1]), weight[:0], -100, 0.0)


def windows(rng: np.random.Generator, inputs: int, outputs: int, width: int) -> tuple[np.ndarray, ...]:
    """Windows anywhere, of 0 to `width` inputs."""
    first = rng.integers(0, inputs, outputs)
    last = np.minimum(first + rng.integers(0, width + 1, outputs), inputs)
    return first, last, rng.standard_normal((outputs, width))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) == 4 and 0 not in shape[2:]], ids=str)
@dtypes
def test_resample(cpp: Any, shape: tuple[int, ...], dtype: Any) -> None:
    (x,) = numbers(shape, 1, dtype)
    rng = np.random.default_rng(1)
    for size, width in (((1, 1), 1), ((7, 4), 3), ((50, 60), 2), ((0, 2), 1)):
        axes = [windows(rng, n, m, width) for n, m in zip(shape[2:], size, strict=True)]
        axes = [(first, last, weight.astype(dtype).astype(float)) for first, last, weight in axes]
        agree(cpp, "resample", [x], *axes)


def test_resample_looks_only_into_its_windows(cpp: Any) -> None:
    """A NaN reaches the outputs whose windows hold it, and no window may leave the image."""
    x = np.zeros((1, 3, 4, 4), np.float32)
    x[..., 1, 2] = np.nan
    each = np.arange(4), np.arange(1, 5), np.ones((4, 1))
    for backend in (cpp, REFERENCE):
        np.testing.assert_array_equal(backend.resample(x, each, each), x)
    for first, last in ((-1, 1), (3, 5), (0, 2), (2, 1)):
        with pytest.raises(ValueError, match="window 0 leaves"):
            cpp.resample(x, each, (np.array([first]), np.array([last]), np.ones((1, 1))))
    with pytest.raises(ValueError, match="first has shape"):
        cpp.resample(x, each, (np.arange(3), np.arange(1, 5), np.ones((4, 1))))


@shapes
@dtypes
def test_dropout(cpp: Any, shape: tuple[int, ...], dtype: Any) -> None:
    (x,) = numbers(shape, 1, dtype)
    x.ravel()[:: 1 + x.size // 3] = np.nan
    drawn = np.random.default_rng(1).random(shape) < 0.5
    for a in layouts(x):
        for kept in layouts(drawn.astype(np.float32)):
            np.testing.assert_array_equal(cpp.dropout(a, kept > 0, 1.25), REFERENCE.dropout(x, drawn, 1.25))
    with pytest.raises(TypeError, match="bool"):
        cpp.dropout(x, x, 1.25)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 3, 9), (3, 17, 5, 4), (2, 1, 6), (0, 3, 5), (4, 7)])
def test_relu_leaves_images_with_their_channels_innermost(cpp: Any, shape: tuple[int, ...], dtype: Any) -> None:
    (x,) = numbers(shape, 1, dtype)
    agree(cpp, "relu", [x])
    y = cpp.relu(x)
    assert y is not x and (len(shape) == 2 or np.moveaxis(y, 1, -1).flags.c_contiguous)


def test_freed_memory_serves_results_of_other_sizes(cpp: Any) -> None:
    """A large result, two small ones in its place, a large one again: the system is asked for memory once."""
    _C = pytest.importorskip("minidl._C")
    if hasattr(_C, "read_past_a_buffer"):
        pytest.skip("built for AddressSanitizer, where nothing is used again")
    half = np.random.default_rng(0).standard_normal((1, 4, 500, 500)).astype(np.float32)
    whole = np.concatenate([half, half])

    def held() -> int:
        used, _, kept = _C.memory()
        return used + kept

    _C.empty_cache()
    before, most = held(), 0
    for _ in range(3):
        y = cpp.relu(whole)
        most = most or held()
        del y
        small = [cpp.relu(half), cpp.relu(-half)]
        np.testing.assert_array_equal(small, [np.maximum(half, 0), np.maximum(-half, 0)])
        del small
        assert held() == most
    assert whole.nbytes < most - before < 1.1 * whole.nbytes
    _C.empty_cache()
    assert held() == before
