"""Dense layers, squared error and optimisers of every backend: definition, layouts, threads, NaN, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from minidl import Tensor, get_num_threads, models, nn, optim, set_num_threads
from minidl import functional as F
from minidl.backends.numpy_backend import NumpyBackend
from tests.test_kernels import backend, dtypes  # noqa: F401 (a fixture: each backend and instruction set)

# (N, I, O): one, primes, whole vectors and blocks, one more than that, more than one panel and depth
SHAPES = [
    (1, 1, 1),
    (2, 3, 5),
    (7, 13, 11),
    (16, 32, 96),
    (17, 33, 97),
    (32, 580, 20),
    (33, 259, 31),
    (97, 64, 193),
    (300, 17, 3),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))


def problem(shape: tuple[int, int, int], dtype: Any) -> list[np.ndarray]:
    """x (N, I), w (O, I), b (O,), g (N, O)."""
    n, i, o = shape
    rng = np.random.default_rng(n * 1000 + i * 10 + o)
    return [rng.standard_normal(s).astype(dtype) for s in ((n, i), (o, i), (o,), (n, o))]


def close(result: np.ndarray, exact: np.ndarray, size: np.ndarray | float) -> None:
    """Within rounding of the exact result; `size`: the same sum of magnitudes."""
    assert result.shape == exact.shape
    assert np.all(np.abs(result - exact) <= 8 * np.finfo(result.dtype).eps * (np.abs(size) + 1))


@shapes
@dtypes
@pytest.mark.parametrize("activation", ["", "relu", "tanh"])
def test_linear_is_its_definition(backend: Any, shape: Any, dtype: Any, activation: str) -> None:  # noqa: F811
    x, w, b, _ = problem(shape, dtype)
    for bias in (b, None):
        z = x.astype(float) @ w.T.astype(float) + (0 if bias is None else bias.astype(float))
        expected = {"": z, "relu": np.maximum(z, 0), "tanh": np.tanh(z)}[activation]
        y = backend.linear(x, w, bias, activation)
        assert y.dtype == dtype
        close(y, expected, np.abs(x).astype(float) @ np.abs(w.T))


@dtypes
def test_tanh_is_exact_to_the_last_places(backend: Any, dtype: Any) -> None:  # noqa: F811
    """Of every size, on both sides of where formulas change, denormal, infinite, NaN: at most 3 units beside."""
    rng, tiny = np.random.default_rng(6), np.finfo(dtype).tiny
    around = np.concatenate([rng.normal(0, scale, 3000) for scale in (1e-6, 0.3, 1, 3, 30)])
    special = [0.0, tiny, tiny / 4, 0.625, np.nextafter(0.625, 0), 9.0, 19.06, 20.0, 1e4, np.finfo(dtype).max, np.inf]
    x = np.concatenate([around, special, np.negative(special), [np.nan]]).astype(dtype)
    y = backend.linear(x[:, None], np.ones((1, 1), dtype), None, "tanh")[:, 0]
    exact = np.tanh(x.astype(np.longdouble))
    assert np.isnan(y[-1]) and np.array_equal(np.isnan(y), np.isnan(x))
    beside = np.abs(y - exact)[:-1] / np.spacing(np.abs(exact[:-1]).astype(dtype))
    assert beside.max() <= 3, x[beside.argmax()]


@shapes
@dtypes
def test_gradients_are_their_definitions(backend: Any, shape: Any, dtype: Any) -> None:  # noqa: F811
    x, w, _, g = problem(shape, dtype)
    exact_g = g.astype(float)
    close(backend.linear_grad_x(g, w), exact_g @ w, np.abs(exact_g) @ np.abs(w))
    dw, db = backend.linear_grad_w(g, x)
    close(dw, exact_g.T @ x, np.abs(exact_g.T) @ np.abs(x))
    close(db, exact_g.sum(axis=0), np.abs(exact_g).sum(axis=0))


def layouts(a: np.ndarray) -> list[np.ndarray]:
    """The same numbers in other layouts: strided, transposed, backwards, unaligned, read-only."""
    strided = np.zeros((*a.shape, 2), a.dtype)
    strided[..., 0] = a
    unaligned = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    unaligned[...] = a
    frozen = a.copy()
    frozen.flags.writeable = False
    return [strided[..., 0], np.asfortranarray(a), a[::-1].copy()[::-1], unaligned, frozen]


def test_layouts_do_not_matter(backend: Any) -> None:  # noqa: F811
    x, w, b, g = problem((17, 33, 19), np.float32)
    y, dx, (dw, db) = backend.linear(x, w, b), backend.linear_grad_x(g, w), backend.linear_grad_w(g, x)
    for x2, w2, b2, g2 in zip(*map(layouts, (x, w, b, g)), strict=True):
        before = [a.copy() for a in (x2, w2, b2, g2)]
        for result, expected in zip(
            (backend.linear(x2, w2, b2), backend.linear_grad_x(g2, w2), *backend.linear_grad_w(g2, x2)),
            (y, dx, dw, db),
            strict=True,
        ):
            assert np.allclose(result, expected, rtol=1e-4, atol=1e-5)
        assert np.allclose(backend.squared_error(x2, x, 1.0), 0) and not backend.squared_error_grad(x2, x, 2.0).any()
        assert all(np.array_equal(a, c) for a, c in zip(before, (x2, w2, b2, g2), strict=True))


@shapes
def test_the_same_bits_for_any_number_of_threads(backend: Any, shape: Any) -> None:  # noqa: F811
    if backend.name != "cpp":
        pytest.skip("BLAS has its own threads")
    x, w, b, g = problem(shape, np.float32)
    before, results = get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            results.append(
                [
                    backend.linear(x, w, b),
                    backend.linear_grad_x(g, w),
                    *backend.linear_grad_w(g, x),
                    backend.squared_error(x, 2 * x, 1.0),
                ]
            )
    finally:
        set_num_threads(before)
    for other in results[1:]:
        assert all(np.array_equal(a, c) for a, c in zip(results[0], other, strict=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_reach_what_depends_on_them_alone(backend: Any, bad: float) -> None:  # noqa: F811
    x, w, b, g = problem((18, 35, 21), np.float32)
    x[17, 34] = g[17, 20] = bad
    for activation in ("", "relu"):
        y = backend.linear(x, w, b, activation)
        assert np.isfinite(y[:17]).all()
        assert np.isnan(y[17]).all() if np.isnan(bad) else np.isin(y[17], (np.inf, 0 if activation else -np.inf)).all()
    dx, (dw, db) = backend.linear_grad_x(g, w), backend.linear_grad_w(g, np.ones_like(x))
    assert np.isfinite(dx[:17]).all() and not np.isfinite(dx[17]).any()
    assert np.isfinite(dw[:20]).all() and not np.isfinite(dw[20]).any() and not np.isfinite(db[20])
    assert np.isfinite(db[:20]).all() and not np.isfinite(backend.squared_error(x, x, 1.0))


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2), (3, 2, 0), (0, 0, 0)])
def test_empty_arrays(backend: Any, shape: Any) -> None:  # noqa: F811
    x, w, b, g = problem(shape, np.float32)
    assert np.array_equal(backend.linear(x, w, b), np.zeros(g.shape) + b)
    dw, db = backend.linear_grad_w(g, x)
    assert backend.linear_grad_x(g, w).shape == x.shape and dw.shape == w.shape and not dw.any()
    assert (
        db.shape == b.shape
        and backend.squared_error(x, x, 1.0) == 0
        and backend.squared_error_grad(x, x, 1.0).shape == x.shape
    )


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (100, 401)])
@dtypes
def test_squared_error_is_its_definition(backend: Any, shape: Any, dtype: Any) -> None:  # noqa: F811
    x, t = np.random.default_rng(0).standard_normal((2, *shape)).astype(dtype)
    d = x.astype(float) - t
    assert abs(backend.squared_error(x, t, 0.5) - 0.5 * (d * d).sum()) <= 16 * np.finfo(dtype).eps * (d * d).sum()
    close(backend.squared_error_grad(x, t, 0.25), 0.25 * d, d)


def test_shapes_that_do_not_fit_are_refused(backend: Any) -> None:  # noqa: F811
    a, b = np.ones((2, 3), np.float32), np.ones((4, 5), np.float32)
    for call in (
        lambda: backend.linear(a, b, None),
        lambda: backend.linear_grad_x(a, b),
        lambda: backend.linear_grad_w(a, b),
        lambda: backend.linear(a, a, np.ones(7, np.float32)),
        lambda: backend.squared_error(a, b, 1.0),
        lambda: backend.linear(a, a, None, "tan"),
    ):
        with pytest.raises(ValueError):
            call()


# --- optimisers ------------------------------------------------------------------------------------------------------

SGD = [(0.1, 0.0, 0.0, 0.01, False), (0.1, 0.9, 0.2, 0.0, False), (0.1, 0.9, 0.0, 0.01, True)]
ADAM = [
    (0.01, 0.9, 0.99, 1e-8, 0.0, False, 3),
    (0.01, 0.9, 0.99, 1e-8, 0.1, False, 1),
    (0.01, 0.9, 0.99, 1e-8, 0.1, True, 2),
]


@pytest.fixture
def in_place(backend: Any) -> Any:  # noqa: F811
    """A backend whose arrays are NumPy's: steps write into them."""
    if backend.name == "cupy":
        pytest.skip("steps change arrays on the GPU: test_cuda.py has them")
    return backend


def after_step(by: Any, options: tuple[Any, ...], arrays: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """All arrays after one step from copies of these: parameters, gradients, means, squares."""
    p, g, m, s = copy.deepcopy(arrays)
    take_step(by, options, p, g, m, s)
    return [p, g, m, s]


def take_step(by: Any, options: tuple[Any, ...], p: Any, g: Any, m: Any, s: Any) -> None:
    if len(options) == 7:
        by.adam_step(p, g, m, s, *options)
    else:
        by.sgd_step(p, g, m if options[1] else [], *options)


def parameters(sizes: tuple[Any, ...], kinds: Any = None) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(1)
    pairs = list(zip(sizes, kinds or [np.float32] * len(sizes), strict=True))
    return [[np.abs(rng.standard_normal(size)).astype(dtype) for size, dtype in pairs] for _ in range(4)]


@pytest.mark.parametrize("options", SGD + ADAM, ids=str)
def test_steps_are_those_of_array_code_in_float64(in_place: Any, options: Any) -> None:
    arrays = parameters(((), (1,), (17, 3), (0,), (20011,), (5, 7)), [np.float32] * 5 + [np.float64])
    exact = after_step(NumpyBackend(), options, [[a.astype(float) for a in part] for part in arrays])
    for mine, theirs in zip(after_step(in_place, options, arrays), exact, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            close(np.asarray(a), np.asarray(b), b)


@pytest.mark.parametrize("options", SGD + ADAM, ids=str)
def test_steps_have_the_same_bits_for_any_number_of_threads(in_place: Any, options: Any) -> None:
    arrays, before, results = parameters(((8191,), (8193,), (40000,), (3,))), get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            results.append(after_step(in_place, options, arrays))
    finally:
        set_num_threads(before)
    for other in results[1:]:
        assert all(
            np.array_equal(a, b) for x, y in zip(results[0], other, strict=True) for a, b in zip(x, y, strict=True)
        )


@pytest.mark.parametrize("options", [SGD[1], ADAM[0]], ids=str)
def test_steps_take_any_layout_and_shared_memory(in_place: Any, options: Any) -> None:
    arrays = parameters(((6, 4), (24,)))
    expected = after_step(in_place, options, arrays)
    p, g, m, s = copy.deepcopy(arrays)
    p[0], g[0] = np.asfortranarray(p[0]), np.repeat(g[0], 2, axis=1)[:, ::2]
    take_step(in_place, options, p, g, m, s)
    assert np.allclose(p[0], expected[0][0], rtol=1e-6) and np.allclose(p[1], expected[0][1], rtol=1e-6)
    whole = np.ones(10, np.float32)  # two parameters that overlap: one after the other
    g, m, s = ([np.ones(6, np.float32), np.ones(6, np.float32)] for _ in range(3))
    overlapping = [whole[:6], whole[4:]]
    (
        in_place.adam_step(overlapping, g, m, s, *options)
        if len(options) == 7
        else in_place.sgd_step(overlapping, g, m, *options)
    )
    assert whole[4] == whole[5] < whole[0] == whole[9] < 1


def test_a_read_only_parameter_is_refused(in_place: Any) -> None:
    frozen = np.ones(3, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        in_place.sgd_step([frozen], [np.ones(3, np.float32)], [], *SGD[0])
    with pytest.raises((ValueError, TypeError)):
        in_place.sgd_step([np.ones(3, np.float32)], [], [], *SGD[0])


# --- fused layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda rng: nn.Linear(3, 4, rng=rng), (2, 3)),
        (lambda rng: nn.Conv2d(2, 4, 3, rng=rng), (2, 2, 5, 5)),
        (lambda rng: nn.Conv1d(2, 4, 3, rng=rng), (2, 2, 7)),
        (lambda rng: nn.ConvTranspose2d(2, 4, 3, rng=rng), (2, 2, 5, 5)),
        (lambda rng: nn.ConvTranspose1d(32, 4, 3, rng=rng), (40, 32, 30)),
        (lambda rng: nn.BatchNorm2d(3), (4, 3, 2, 5)),
        (lambda rng: nn.BatchNorm1d(3).eval(), (4, 3)),
    ],
    ids=["Linear", "Conv2d", "Conv1d", "ConvTranspose2d", "ConvTranspose1d", "BatchNorm2d", "BatchNorm1d"],
)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_a_layer_takes_the_activation_behind_it(layer: Any, shape: Any, activation: Any) -> None:
    rng = np.random.default_rng(0)
    first = layer(rng)
    x = rng.standard_normal(shape).astype(np.float32)
    results = []
    for network in (nn.Sequential(first, activation()), lambda t: activation()(first(t))):
        t = Tensor(x, requires_grad=True)
        first.zero_grad()
        y = network(t)
        (y * y).sum().backward()
        results.append([y.data, t.grad, first.weight.grad, first.bias.grad])
    assert all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*results, strict=True))
    fused = activation.__name__.lower() in first.fuses
    assert (nn.Sequential(first, activation())(Tensor(x)).op or "leaf") != ("relu" if fused else "leaf")


def test_layers_with_a_forward_of_their_own_are_called_as_they_are() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) * 2

    layer = Doubled(3, 4, rng=np.random.default_rng(0))
    x = Tensor(np.ones((2, 3), np.float32))
    assert np.array_equal(nn.Sequential(layer, nn.ReLU())(x).data, F.relu(layer(x)).data)
    watched, seen = nn.ReLU(), []
    watched.forward = lambda t: seen.append(t) or t  # type: ignore[method-assign, assignment, func-returns-value]
    nn.Sequential(nn.Linear(3, 4), watched)(x)
    assert len(seen) == 1


def test_a_network_learns_as_its_separate_parts_do() -> None:
    results = []
    for fused in (True, False):
        rng = np.random.default_rng(0)
        model = models.TanhNetwork(5, rng=rng)
        x, t = rng.standard_normal((8, 5)).astype(np.float32), rng.standard_normal((8, 1)).astype(np.float32)
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            y = model(Tensor(x)) if fused else model.output(F.tanh(model.hidden(Tensor(x))))
            d = y - Tensor(t)
            (F.mse_loss(y, t) if fused else (d * d).mean()).backward()
            optimizer.step()
        results.append(model.state_dict())
    assert all(np.allclose(results[0][k], results[1][k], rtol=1e-4, atol=1e-5) for k in results[0])
