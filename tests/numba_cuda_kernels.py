"""Every kernel of the numba_cuda backend on tiny shapes; test_numba_cuda.py runs this file in a process of its own.

It runs in Numba's simulator, which has a Python thread for each of the GPU's: indices, barriers and sums are tested,
speed and types are not. A thread runs until it waits, so a missing barrier shows as a wrong number, almost surely but
not certainly: real hardware may order threads otherwise. Indices below zero count from the end, as in NumPy.
With NUMBA_ENABLE_CUDASIM=0 the same tests run on a GPU (`pytest -m gpu`).
"""

from __future__ import annotations

import os
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")

import numpy as np
import pytest

from minidl import Tensor, nn, optim
from minidl import functional as F
from minidl.arrays import move, to_host
from minidl.backends import numba_cuda_backend as module
from minidl.backends import use_backend
from minidl.backends.numpy_backend import NumpyBackend
from minidl.cases.kernels import POOL_CASES, ConvCase, PoolCase, conv_arrays, pool_array
from tests.test_kernels import compute, defined

CONV_CASES = [
    ConvCase("past a tile", (1, 2, 3, 3), (5, 2, 3, 3), padding=(1, 1)),
    ConvCase("one of everything", (1, 1, 1, 1), (1, 1, 1, 1)),
    ConvCase("every option", (2, 2, 6, 5), (3, 2, 2, 3), stride=(2, 1), padding=(1, 2), dilation=(2, 1)),
    ConvCase("two groups", (1, 4, 3, 4), (6, 2, 1, 2), groups=2),
    ConvCase("stride > kernel", (1, 1, 5, 6), (2, 1, 2, 2), stride=(3, 4)),
    ConvCase("1-D", (2, 2, 1, 9), (2, 2, 1, 3), stride=(1, 2), padding=(0, 1)),
]
SMALL_POOLS = [case for case in POOL_CASES if np.prod(case.x) * np.prod(case.kernel_size) < 1200]
REFERENCE = NumpyBackend()
SHAPES = [(2, 3, 2, 2), (3, 2), (1, 6, 1), (0, 3, 2, 2)]
DTYPES = [np.float32, np.float64]


@pytest.fixture(autouse=True)
def quickly() -> Iterator[None]:
    """Let Python's threads take turns often: at a barrier the simulator waits for all of them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


class Remote:
    """A backend whose methods take and give NumPy arrays, wherever it computes."""

    def __init__(self, backend: Any) -> None:
        vars(self)["inner"] = backend

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            moved = [there(a) for a in arguments]
            found = method(*moved, **options)
            for given, changed in zip(arguments, moved, strict=True):
                for a, b in zip(given, changed, strict=True) if isinstance(given, list) else ():
                    a[...] = to_host(b)  # the parameters of a step
            return here(found)

        return call if callable(method) else method


def there(a: Any) -> Any:
    if isinstance(a, list | tuple) and any(isinstance(each, np.ndarray) for each in a):
        return type(a)(there(each) for each in a)
    return move(a, "numba_cuda") if isinstance(a, np.ndarray) else a


def here(a: Any) -> Any:
    return tuple(map(to_host, a)) if isinstance(a, tuple) else to_host(a) if hasattr(a, "dtype") else a


@pytest.fixture
def backend() -> Iterator[Any]:
    """The backend, back on its own rung afterwards."""
    with use_backend("numba_cuda") as active:
        yield Remote(active)
    vars(active).pop("rung", None)


def numbers(shape: tuple[int, ...], seed: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(found: Any, true: Any, tolerance: float = 40) -> None:
    """Compare one result or several with those in float64, relative to the largest."""
    if isinstance(true, tuple):
        for a, b in zip(found, true, strict=True):
            close(a, b, tolerance)
        return
    assert found.shape == true.shape
    error = tolerance * float(np.finfo(found.dtype).eps)
    np.testing.assert_allclose(found, true, error, error * np.abs(true).max(initial=0, where=np.isfinite(true)))


def agree(backend: Any, name: str, *arguments: Any, **options: Any) -> None:
    """A method is NumPy's in float64 but for rounding, and keeps dtype and inputs."""

    def wide(a: Any) -> Any:
        return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == np.float32 else a

    copies = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    found = getattr(backend, name)(*arguments, **options)
    close(found, getattr(REFERENCE, name)(*map(wide, arguments), **options))
    for a, copy in zip(arguments, copies, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, copy)
    first = found[0] if isinstance(found, tuple) else found
    assert first.dtype == next(a.dtype for a in arguments if isinstance(a, np.ndarray) and a.dtype.kind == "f")


# --- the ladder


@pytest.mark.parametrize("rung", module.RUNGS)
@pytest.mark.parametrize("case", CONV_CASES, ids=lambda case: case.name)
def test_convolutions_are_their_definition_on_every_rung(backend: Any, case: ConvCase, rung: str) -> None:
    backend.rung = rung
    for dtype in DTYPES if case is CONV_CASES[0] else DTYPES[:1]:
        x, w, b = conv_arrays(case, dtype)
        true, bound, g = defined(case, dtype)
        results = compute(backend, case, x, w, b, g)
        for name, result in results.items():
            assert result.dtype == dtype and np.any(true[name])
            assert np.all(np.abs(result - true[name]) <= bound[name]), name


@pytest.mark.parametrize("rung", module.RUNGS)
def test_dense_products_on_every_rung(backend: Any, rung: str) -> None:
    backend.rung = rung
    x, w, b, g = numbers((3, 9), 1), numbers((6, 9), 2), numbers((6,), 3), numbers((3, 6), 4)
    for activation in ("", "relu", "tanh"):
        agree(backend, "linear", x, w, b, activation)
    agree(backend, "linear", x, w, None)
    agree(backend, "linear_grad_x", g, w)
    agree(backend, "linear_grad_w", g, x)


def test_a_long_sum_is_cut_into_parts(backend: Any) -> None:
    depth = 48 * module.TILE
    g, x = numbers((depth, 2), 1), numbers((depth, 3), 2)
    assert module._splits(2, 3, depth, 1) == 3
    agree(backend, "linear_grad_w", g, x)
    assert module._splits(4096, 4096, 4096, 1) == 1


def test_bias_and_relu_are_fused_and_keep_nan(backend: Any) -> None:
    x, w, b = numbers((1, 2, 3, 3), 1), numbers((4, 2, 1, 1), 2), numbers((4,), 3)
    x[0, 0, 1, 1] = np.nan
    options: Any = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    with np.errstate(invalid="ignore"):
        agree(backend, "conv2d", x, w, b, **options, activation="relu")
        agree(backend, "conv2d_grad_x", x, numbers((2, 4, 1, 1), 2), (1, 4, 3, 3), b, **options)


# --- windows


@pytest.mark.parametrize("case", SMALL_POOLS, ids=lambda case: case.name)
def test_pooling(backend: Any, case: PoolCase) -> None:
    x = pool_array(case, np.float32)
    x.reshape(-1)[3::7] = np.nan
    y, index = backend.max_pool2d(x, **case.options)
    true = REFERENCE.max_pool2d(x, **case.options)
    np.testing.assert_array_equal(y, true[0])
    np.testing.assert_array_equal(index, true[1])
    agree(backend, "max_pool2d_grad", numbers(y.shape, 1), index, case.x, **case.window)
    if case.dilation == (1, 1):
        window = {key: value for key, value in case.window.items() if key != "dilation"}
        count = np.arange(1, 1 + y[0, 0].size, dtype=np.float32).reshape(y.shape[2:])
        agree(backend, "avg_pool2d", numbers(case.x, 2), count, **window)
        agree(backend, "avg_pool2d_grad", numbers(y.shape, 1), count, case.x, **window)


def test_resampling_looks_only_into_its_windows(backend: Any) -> None:
    x = numbers((1, 2, 4, 5), 1)
    x[0, 1, 3, 4] = np.nan
    rows = np.array([0, 1, 2]), np.array([2, 1, 4]), np.array([[0.5, 0.5], [1, 1], [0.2, 0.8]])
    columns = np.array([0, 4]), np.array([3, 5]), np.array([[1, 2, 3], [4, 5, 6.0]])
    agree(backend, "resample", x, rows, columns)


# --- channels, numbers one by one


@pytest.mark.parametrize(("shape", "dtype"), [*((s, np.float32) for s in SHAPES), (SHAPES[0], np.float64)], ids=str)
def test_kernels_bound_by_memory(backend: Any, shape: tuple[int, ...], dtype: Any) -> None:
    x, g, mask = numbers(shape, 1, dtype), numbers(shape, 2, dtype), numbers(shape, 3) > 0
    turned = np.moveaxis(np.ascontiguousarray(np.moveaxis(g, 1, -1)), -1, 1)
    weight, bias, mean, var = (numbers(shape[1:2], k, dtype) for k in range(4))
    agree(backend, "channel_sum", turned)
    agree(backend, "dropout", x, mask, 1.25)
    agree(backend, "activation_grad", turned, x, "relu")
    agree(backend, "activation_grad", g, x, "tanh")
    if not x.size:
        return
    for given in ((None, None), (mean, var * var)):
        agree(backend, "batch_norm", x, weight, bias, *given, 1e-3, "relu")
    agree(backend, "batch_norm", x, None, None, None, None, 1e-3)
    for training, activation in ((True, "relu"), (True, ""), (False, "relu")):
        agree(backend, "batch_norm_grad", turned, x, mean, var * var, weight, bias, 1e-3, activation, training)
    for size in (1, 4):
        options = (size, 0.5, 0.75, 1.5)
        agree(backend, "local_response_norm", x, *options)
        d = REFERENCE.local_response_norm(x, *options)[1].astype(dtype)
        agree(backend, "local_response_norm_grad", turned, x, d, *options)


def test_many_numbers_a_channel_are_added_by_many_threads(backend: Any) -> None:
    x = numbers((3, 2, 51), 1)
    agree(backend, "channel_sum", x)
    np.testing.assert_array_equal(backend.channel_sum(x), backend.channel_sum(x))
    agree(backend, "batch_norm", x + 100, None, None, None, None, 1e-5)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2, 2), (2, 1, 3)], ids=str)
def test_cross_entropy(backend: Any, shape: tuple[int, ...]) -> None:
    x, positions = 5 * numbers(shape, 1), (shape[0], *shape[2:])
    rng = np.random.default_rng(1)
    t, weight, g = (
        rng.integers(shape[1], size=positions),
        rng.random(shape[1]).astype(np.float32),
        numbers(positions, 2),
    )
    t.reshape(-1)[0] = -7
    for smoothing in (0.0, 0.1):
        agree(backend, "cross_entropy", x, t, weight, -7, smoothing)
        lse = REFERENCE.cross_entropy(x, t, weight, -7, smoothing)[1]
        agree(backend, "cross_entropy_grad", g, x, t, lse, weight, -7, smoothing)
    with pytest.raises(IndexError, match="class 9"):
        backend.cross_entropy(x, np.full(positions, 9), weight, -7, 0.0)


def test_cross_entropy_at_nan_infinity_and_large_logits(backend: Any) -> None:
    rows = [[0, -np.inf, 3], [0, np.inf, 3], [np.nan, 0, 1], [-np.inf] * 3, [-1e30, 0, 1e30]]
    x, weight, t = np.array(rows, np.float32), np.ones(3, np.float32), np.array([0, 1, 2, 0, 1])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the simulator's threads have settings of their own
        agree(backend, "cross_entropy", x, t, weight, -1, 0.0)


@pytest.mark.parametrize("strided", [False, True])
def test_optimiser_steps(backend: Any, strided: bool) -> None:
    def arrays(seed: int) -> list[np.ndarray]:
        found = [np.abs(numbers(shape, seed)) for shape in ((3, 7), (4,))]
        return [a.T for a in found] if strided else found

    for decay, nesterov in ((0.0, False), (0.1, True)):
        for momentum in (0.0, 0.9):
            mine, theirs = ([arrays(1), arrays(2), arrays(3) if momentum else []] for _ in range(2))
            options = (0.1, momentum, 0.0 if nesterov else 0.5, decay, nesterov and momentum > 0)
            backend.sgd_step(*mine, *options)
            REFERENCE.sgd_step(*theirs, *options)
            close(tuple(a for part in mine for a in part), tuple(a for part in theirs for a in part))
    for decoupled in (False, True):
        mine, theirs = ([arrays(k) for k in range(4)] for _ in range(2))
        for part in (mine, theirs):
            (backend if part is mine else REFERENCE).adam_step(*part, 0.1, 0.9, 0.99, 1e-8, 0.1, decoupled, 3)
        close(tuple(a for part in mine for a in part), tuple(a for part in theirs for a in part))


# --- the whole


def losses(name: str) -> list[float]:
    """Three training steps of a tiny network of every layer."""
    with use_backend(name):
        rng = np.random.default_rng(0)
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1, rng=rng), nn.BatchNorm2d(2), nn.ReLU(), nn.LocalResponseNorm(3),
            nn.MaxPool2d(2), nn.Upsample(scale_factor=2), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.5, rng=rng),
            nn.Linear(8, 2, rng=rng),
        )  # fmt: skip
        optimizer = optim.Adam(model.parameters(), lr=0.05)
        x, t, found = rng.standard_normal((2, 1, 4, 4), dtype=np.float32), np.array([0, 1]), []
        for _ in range(3):
            loss = F.cross_entropy(model(Tensor(x)), t)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found


def test_training_gives_numpy_s_losses() -> None:
    true = losses("numpy")
    assert len(set(true)) == 3
    np.testing.assert_allclose(losses("numba_cuda"), true, 1e-5)


def test_the_backend_says_what_runs_it(backend: Any) -> None:
    assert ("simulator" if module.SIMULATED else "sm_") in backend.describe()


# --- the bench finds planted errors


def planted(old: str, new: str, which: int = 0) -> Any:
    """The backend with the occurrence number `which` of a text replaced."""
    before, *after = Path(module.__file__).read_text(encoding="utf-8").split(old)
    text = old.join([before, *after[:which]]) + new + old.join(after[which:])
    changed: Any = types.ModuleType("planted")
    changed.__package__ = "minidl.backends"
    exec(compile(text, "planted", "exec"), vars(changed))
    return changed.NumbaCudaBackend()


def right(backend: Any, what: str) -> bool:
    """Whether all passes of a convolution on a rung, or the sums over channels, come out."""
    if what == "sums":
        a = numbers((3, 2, 51), 1)
        return np.allclose(backend.channel_sum(a), a.sum(axis=(0, 2)), 1e-4)
    backend.rung, case = what, CONV_CASES[-1]
    x, w, b = conv_arrays(case, np.float32)
    true, bound, g = defined(case, np.float32)
    results = compute(backend, case, x, w, b, g)
    return all(np.all(np.abs(results[name] - true[name]) <= bound[name]) for name in results)


BARRIERS = ["tiled", "tiled", "blocked", "blocked", "sums"]  # where they stand, in the order of the file


simulated = pytest.mark.skipif(not module.SIMULATED, reason="what a GPU does with a wrong kernel is not defined")


@simulated
@pytest.mark.parametrize(("which", "what"), list(enumerate(BARRIERS)))
def test_a_missing_barrier_is_found(which: int, what: str) -> None:
    assert Path(module.__file__).read_text(encoding="utf-8").count("cuda.syncthreads()") == len(BARRIERS)
    sys.setswitchinterval(0.005)  # a thread runs on until it waits, and meets what the others have not done yet
    backend = planted("cuda.syncthreads()", "pass", which)
    assert not all(right(backend, what) for _ in range(5))  # the first run shows it, almost surely


@simulated
def test_an_index_off_by_one_and_a_wrong_dtype_are_found() -> None:
    assert right(planted("cuda.syncthreads()", "cuda.syncthreads()"), "blocked")  # nothing planted
    assert not right(planted("if start < 0 or", "if start <= 0 or"), "blocked")
    assert not right(planted("k + x < last", "k + x < last - 1"), "tiled")
    assert not right(planted("getattr(numba, dtype)", "numba.types.float16"), "blocked")
    with pytest.raises(IndexError):  # a read beyond the image
        right(planted("column < 0 or column >= x.shape[3]", "column < 0 or column > x.shape[3]"), "blocked")
    with pytest.raises(TypeError, match="all float32 or all float64"):
        module.NumbaCudaBackend().linear_grad_x(np.ones((2, 2), np.float32), np.ones((2, 2)))
