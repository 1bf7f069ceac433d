"""Winograd's convolution: its matrices from the points, its accuracy, and each of its tiles on many shapes."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest

from minidl import Tensor, explain_conv, set_conv_algorithm, set_num_threads
from minidl import functional as F
from minidl.backends import get_backend, use_backend
from minidl.backends.numpy_backend import conv2d_shape
from minidl.cases.kernels import KERNEL_CASES, ConvCase
from tests.test_backends import require

PAIRS = {6: ["3/4", "3/2"], 8: ["1", "2", "1/2"]}  # the points are 0, these with both signs, and infinity
POSSIBLE = [
    case for case in KERNEL_CASES if case.w[2:] in ((3, 3), (5, 5)) and (*case.stride, *case.dilation) == (1,) * 4
]
ROWS = [  # kernels of one row, whose strides become channels
    ConvCase("1x7/2, the tenth group leaves the row", (3, 5, 1, 39), (7, 5, 1, 7), (1, 2), (0, 3)),
    ConvCase("1x5 on images", (2, 17, 6, 23), (9, 17, 1, 5), padding=(0, 2)),
    ConvCase("1x3, wide padding", (2, 3, 1, 10), (33, 3, 1, 3), padding=(0, 8)),
    ConvCase("1x20/4", (1, 4, 1, 101), (16, 4, 1, 20), (1, 4), (0, 10)),
    ConvCase("the last pixels are not seen", (2, 8, 1, 23), (8, 8, 1, 9), (1, 3)),
]


@pytest.fixture
def cpp(cpp_at_each_level: Any) -> Iterator[Any]:
    """The cpp backend with Winograd asked for, at each instruction set that this processor has."""
    set_conv_algorithm("winograd")
    yield cpp_at_each_level
    set_conv_algorithm("auto")


def channels_last(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def three_passes(
    backend: Any, case: ConvCase, dtype: Any, mean: float = 0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """y, dx and dw of a case, and what they are in float64 by the direct kernel."""
    x, w, b, g = numbers(case, mean)
    found, exact = [], []
    for results, kind in ((found, dtype), (exact, np.float64)):
        xs, ws, bs, gs = (channels_last(a.astype(kind)) if a.ndim == 4 else a.astype(kind) for a in (x, w, b, g))
        set_conv_algorithm("winograd" if results is found else "direct")
        results.append(backend.conv2d(xs, ws, bs, **case.options))
        results.append(backend.conv2d_grad_x(gs, ws, x.shape, **case.options))
        results.append(backend.conv2d_grad_w(gs, xs, w.shape, **case.options))
    set_conv_algorithm("winograd")
    return found, exact


@cache
def numbers(case: ConvCase, mean: float) -> list[np.ndarray]:
    """x, w, b and g, rounded to float32, so that both precisions start from the same."""
    rng = np.random.default_rng(len(case.name))
    shapes: list[tuple[int, ...]] = [case.x, case.w, case.w[:1], conv2d_shape(case.x, case.w, **case.options)]
    means = [mean, 0, 0, mean]
    return [(m + rng.standard_normal(shape)).astype(np.float32) for m, shape in zip(means, shapes, strict=True)]


def error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(found - exact).max() / np.abs(exact).max())


# --- the matrices ----------------------------------------------------------------------------------------------------


def product(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of all (x - root), lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [s - root * c for s, c in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


@pytest.mark.parametrize(("tile", "kernel"), [(4, 3), (6, 3), (4, 5), (5, 4)])
def test_matrices_follow_from_the_points(tile: int, kernel: int) -> None:
    require("cpp")
    from minidl import _C

    n = tile + kernel - 1
    points = [Fraction(0)] + [sign * Fraction(p) for p in PAIRS[n] for sign in (1, -1)]
    bt, a, g = np.zeros((n, n)), np.zeros((n, tile)), np.zeros((n, kernel))
    for i, p in enumerate(points):
        others = [q for q in points if q != p]
        scale = np.prod([p - q for q in others])
        bt[i, : n - 1] = product(others)
        a[i] = [p**k for k in range(tile)]
        g[i] = [p**k / scale for k in range(kernel)]
    bt[-1], a[-1, -1], g[-1, -1] = product(points), 1, 1

    d, f = np.arange(n) ** 2.0, np.arange(kernel) + 1.0  # Aᵀ [(G f) ⊙ (Bᵀ d)] is the correlation of d and f
    np.testing.assert_allclose(a.T @ ((g @ f) * (bt @ d)), np.correlate(d, f), rtol=1e-12)
    for ours, derived in zip(_C.winograd_matrices(tile, kernel), (bt, a, g), strict=True):
        np.testing.assert_allclose(ours, derived, rtol=1e-15)


def test_there_are_no_other_tiles() -> None:
    require("cpp")
    from minidl import _C

    with pytest.raises(ValueError, match=r"F\(4, 3\), F\(6, 3\), F\(4, 5\) and F\(5, 4\)"):
        _C.winograd_matrices(6, 5)


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", POSSIBLE + ROWS, ids=lambda case: case.name)
def test_rows_of_the_table(cpp: Any, case: ConvCase, dtype: Any) -> None:
    for found, exact in zip(*three_passes(cpp, case, dtype), strict=True):
        assert found.dtype == dtype
        assert error(found, exact) < (3e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("seed", range(30))
def test_random_shapes(cpp: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, k = int(rng.choice([1, 1, 2, 3])), int(rng.choice([3, 5]))
    top, left = (int(p) for p in rng.integers(0, 6, 2))
    h, w = (max(int(size), k - 2 * p) for size, p in zip(rng.integers(1, 26, 2), (top, left), strict=True))
    c, o = (groups * int(channels) for channels in rng.integers(1, 70, 2))
    case = ConvCase(
        f"seed {seed}", (int(rng.integers(1, 5)), c, h, w), (o, c // groups, k, k), (1, 1), (top, left), (1, 1), groups
    )
    set_num_threads(int(rng.integers(1, 4)))
    for found, exact in zip(*three_passes(cpp, case, np.float64), strict=True):
        assert error(found, exact) < 1e-13


@pytest.mark.parametrize("seed", range(30))
def test_random_rows(cpp: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    stride = int(rng.integers(1, 5))
    k = int(rng.integers(2 * stride + 1, 5 * stride + 1))
    padding, h, n = int(rng.integers(0, k + 3)), int(rng.choice([1, 1, 3])), int(rng.integers(1, 70))
    w = max(int(rng.integers(1, 90)), k - 2 * padding)
    c, o = (int(channels) for channels in rng.integers(1, 70, 2))
    case = ConvCase(f"seed {seed}", (n, c, h, w), (o, c, 1, k), (1, stride), (0, padding))
    assert "asked for" in explain_conv(case.x, case.w, **case.options)
    set_num_threads(int(rng.integers(1, 4)))
    for found, exact in zip(*three_passes(cpp, case, np.float64), strict=True):
        assert error(found, exact) < 1e-13


def test_rows_of_pixels_with_gaps_between_them(cpp: Any) -> None:
    case = ROWS[0]
    x, w, b, g = numbers(case, 0)
    wide_x, wide_g = (channels_last(np.repeat(a, 2, 1)) for a in (x, g))
    xs, gs = wide_x[:, : case.w[1]], wide_g[:, : case.w[0]]  # the pitch is twice the channels
    whole = [np.ascontiguousarray(a) for a in (xs, gs)]
    for a, c in zip((xs, gs), whole, strict=True):
        assert np.array_equal(a, c)
    assert np.array_equal(cpp.conv2d(xs, w, b, **case.options), cpp.conv2d(whole[0], w, b, **case.options))
    for name in ("conv2d_grad_x", "conv2d_grad_w"):
        last = (w, x.shape) if name == "conv2d_grad_x" else (xs, w.shape)
        dense = (w, x.shape) if name == "conv2d_grad_x" else (whole[0], w.shape)
        assert np.array_equal(
            getattr(cpp, name)(gs, *last, **case.options), getattr(cpp, name)(whole[1], *dense, **case.options)
        )


ACCURACY = [
    ConvCase("16 channels, F(6, 3)", (1, 16, 128, 128), (16, 16, 3, 3), padding=(1, 1)),
    ConvCase("128 channels, F(6, 3)", (1, 128, 60, 60), (64, 128, 3, 3), padding=(1, 1)),
    ConvCase("384 channels, F(6, 3)", (4, 384, 36, 36), (32, 384, 3, 3), padding=(1, 1)),
    ConvCase("384 channels, F(4, 3)", (8, 384, 7, 7), (64, 384, 3, 3), padding=(1, 1)),
    ConvCase("groups of 48, F(4, 5)", (4, 96, 31, 31), (64, 48, 5, 5), padding=(2, 2), groups=2),
    ConvCase("1x7/2, 16 channels", (64, 16, 1, 950), (32, 16, 1, 7), (1, 2), (0, 3)),
    ConvCase("1x3, 256 channels", (16, 256, 1, 64), (64, 256, 1, 3), padding=(0, 1)),
    ConvCase("1x5, 128 channels", (16, 128, 1, 64), (64, 128, 1, 5), padding=(0, 2)),
]


@pytest.mark.parametrize("mean", [0, 5])
@pytest.mark.parametrize("case", ACCURACY, ids=lambda case: case.name)
def test_accuracy_in_float32(case: ConvCase, mean: float) -> None:
    """2e-5 of the largest output, 1e-4 for the gradient in w: what the documentation promises."""
    require("cpp")
    with use_backend("cpp"):
        found, exact = three_passes(get_backend(), case, np.float32, mean)
        set_conv_algorithm("auto")
    errors = [error(f, e) for f, e in zip(found, exact, strict=True)]
    assert max(errors[:2]) < 2e-5
    assert errors[2] < 2e-5  # of the 1e-4 allowed


@pytest.mark.parametrize(
    "case",
    [
        ConvCase("many tiles, two panels", (3, 40, 50, 41), (70, 20, 3, 3), padding=(1, 1), groups=2),
        ConvCase("the same in rows", (30, 10, 1, 301), (70, 10, 1, 7), (1, 2), (0, 3)),
    ],
    ids=lambda case: case.name,
)
def test_threads_change_no_bit(cpp: Any, case: ConvCase) -> None:
    set_num_threads(1)
    alone, _ = three_passes(cpp, case, np.float32)
    for threads in (2, 5):
        set_num_threads(threads)
        for one, many in zip(alone, three_passes(cpp, case, np.float32)[0], strict=True):
            assert np.array_equal(one, many)


@pytest.mark.parametrize("case", [ConvCase("fused", (2, 9, 14, 11), (19, 9, 3, 3), padding=(1, 1)), ROWS[0]])
def test_bias_and_relu_are_applied_at_the_end(cpp: Any, case: ConvCase) -> None:
    x, w, b, _ = numbers(case, 0)
    plain = cpp.conv2d(x, w, b, **case.options)
    assert (plain < 0).any()
    assert np.array_equal(cpp.conv2d(x, w, b, activation="relu", **case.options), np.maximum(plain, 0))


def test_a_large_output_is_the_same_written_past_the_caches(cpp: Any) -> None:
    case = ConvCase("17 MB", (1, 8, 520, 520), (16, 8, 3, 3), padding=(1, 1))
    x, w, b, _ = numbers(case, 0)
    set_conv_algorithm("direct")
    exact = cpp.conv2d(x.astype(np.float64), w.astype(np.float64), b.astype(np.float64), **case.options)
    set_conv_algorithm("winograd")
    assert error(cpp.conv2d(x, w, b, **case.options), exact) < 2e-5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_reaches_all_that_sees_it(cpp: Any, value: float) -> None:
    x, w = np.ones((1, 8, 20, 20), np.float32), np.ones((8, 8, 3, 3), np.float32)
    x[0, 3, 8, 9] = value
    y = cpp.conv2d(x, w, None, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, activation="relu")
    assert not np.isfinite(y[0, :, 7:10, 8:11]).any()
    assert np.isfinite(y[0, :, 14:, 14:]).all()  # and at most the rest of its tiles
    y = cpp.conv2d(x[:, :, 8:9], w[:, :, :1], None, stride=(1, 1), padding=(0, 1), dilation=(1, 1), groups=1)
    assert not np.isfinite(y[0, :, :, 8:11]).any()
    assert np.isfinite(y[0, :, :, 14:]).all()


@pytest.mark.parametrize("size", [(1, 3), (3, 3)])
def test_no_image_gives_no_gradient(cpp: Any, size: tuple[int, int]) -> None:
    x, w = np.ones((0, 16, 1, 400), np.float32), np.ones((16, 16, *size), np.float32)
    options: Any = {"stride": (1, 1), "padding": (size[0] // 2, 1), "dilation": (1, 1), "groups": 1}
    for algorithm in ("winograd", "auto"):
        set_conv_algorithm(algorithm)
        y = cpp.conv2d(x, w, None, **options)
        assert y.shape == cpp.conv2d_grad_x(y, w, x.shape, **options).shape == x.shape
        assert not cpp.conv2d_grad_w(y, x, w.shape, **options).any()


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_says_why() -> None:
    require("cpp")
    with use_backend("cpp"):

        def why(x: tuple[int, ...], w: tuple[int, ...], **options: Any) -> str:
            return explain_conv(x, w, **options).splitlines()[0]

        set_conv_algorithm("auto")
        assert (
            why((4, 16, 512, 512), (16, 16, 3, 3), padding=1)
            == "forward: Winograd F(6x6, 3x3): 5.0 times fewer multiplications"
        )
        assert (
            why((64, 256, 7, 7), (384, 256, 3, 3), padding=1)
            == "forward: Winograd F(4x4, 3x3): 3.1 times fewer multiplications"
        )
        assert why((64, 96, 15, 15), (256, 48, 5, 5), padding=2, groups=2).startswith("forward: Winograd F(4x4, 5x5)")
        assert "stride 1" in why((1, 16, 30, 30), (16, 16, 3, 3), stride=2)
        assert "dilation" in why((1, 16, 30, 30), (16, 16, 3, 3), dilation=2)
        assert "3x3 and 5x5" in why((1, 16, 30, 30), (16, 16, 3, 5))
        assert "fewer than 8 channels" in why((1, 3, 30, 30), (16, 3, 3, 3))
        assert "hang over" in why((9, 16, 4, 4), (16, 16, 3, 3))
        assert "fewer than 12 tiles" in why((2, 512, 7, 7), (512, 512, 3, 3), padding=1)
        assert "few outputs" in why((1, 16, 64, 64), (4, 16, 3, 3), padding=1)
        assert "Winograd" in explain_conv((2, 512, 7, 7), (512, 512, 3, 3), padding=1).splitlines()[2]

        row = (64, 16, 1, 950)
        assert (
            why(row, (32, 16, 1, 7), stride=(1, 2), padding=(0, 3))
            == "forward: Winograd F(5, 4), the phases of the stride as channels: 2.2 times fewer multiplications"
        )
        assert why(row, (32, 16, 1, 5), padding=(0, 2)).startswith("forward: Winograd F(4, 5): 2.5 times")
        assert "Winograd F(5, 4)" in explain_conv(row, (32, 16, 1, 7), stride=(1, 2)).splitlines()[1]
        assert "3 to 5 strides" in why(row, (32, 16, 1, 7))
        assert "every row" in why((64, 16, 9, 950), (32, 16, 1, 5), stride=2)
        assert "dilation" in why(row, (32, 16, 1, 5), dilation=2)
        assert "one group" in why(row, (32, 8, 1, 5), groups=2)
        assert "fewer than 16 channels" in why((64, 1, 1, 950), (16, 1, 1, 7), stride=(1, 2))
        assert "so few tiles" in why((1, 32, 1, 200), (32, 32, 1, 7), stride=(1, 2))
        set_conv_algorithm("winograd")
        assert why((1, 3, 30, 30), (16, 3, 3, 3)).endswith("asked for")
        assert "stride 1" in why((1, 3, 30, 30), (16, 3, 3, 3), stride=2)
        set_conv_algorithm("direct")
        assert why((4, 16, 512, 512), (16, 16, 3, 3)) == "forward: direct: asked for"
        set_conv_algorithm("auto")


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(
    "first,second,size,groups",
    [(16, 16, 19, 1), (32, 5, 12, 1), (16, 40, 9, 1), (48, 16, 8, 2), (16, 32, 7, 2), (3, 16, 12, 1), (17, 20, 5, 1)],
)
@pytest.mark.parametrize("algorithm", ["auto", "winograd", "direct", "exact"])
def test_two_images_side_by_side(
    cpp: Any, algorithm: str, first: int, second: int, size: int, groups: int, dtype: Any
) -> None:
    """A convolution of two images has the bits of that of their concatenation, and so have its gradients."""
    set_conv_algorithm(algorithm)
    rng = np.random.default_rng(0)
    shapes = [(2, first, size, size + 1), (2, second, size, size + 1), (8, (first + second) // groups, 3, 3), (8,)]
    if shapes[2][1] * groups != first + second:
        pytest.fail("the row is wrong: its groups do not divide the channels")
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    results = []
    for joined in (True, False):
        a, b, w, bias = tensors = [Tensor(array, requires_grad=True) for array in arrays]
        y = F.conv2d(
            (a, b) if joined else F.concatenate([a, b], 1), w, bias, padding=1, groups=groups, activation="relu"
        )
        y.backward(arrays[3].sum() + y.data)
        results.append([y.data, *(t.grad for t in tensors)])
    for found, expected in zip(*results, strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_array_equal(found, expected)


def test_images_that_do_not_lie_side_by_side() -> None:
    a, w = Tensor(np.zeros((2, 3, 5, 5), np.float32)), Tensor(np.zeros((4, 6, 3, 3), np.float32))
    for other in ((2, 3, 5, 4), (1, 3, 5, 5), (3, 5, 5)):
        with pytest.raises(ValueError, match="do not lie side by side"):
            F.conv2d((a, Tensor(np.zeros(other, np.float32))), w)
    y = F.conv2d((a, a), w, padding="same")
    assert y.shape == (2, 4, 5, 5)
