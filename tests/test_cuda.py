"""The CUDA kernels and the cupy backend without a GPU: csrc/cuda/*.cu compiled by g++, their threads as fibers.

test_kernels.py runs the table of cases on them; here are the other kernels, the tiles that small cases do not reach,
the backend's clear errors, and the test bench itself: each kind of mistake, planted, must be caught.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

import minidl
from minidl import functional as F
from minidl import nn, optim
from minidl.backends.numpy_backend import NumpyBackend
from minidl.cases.kernels import KERNEL_CASES, PoolCase, conv_arrays
from minidl.train import fit
from tests import cuda_registers, stand_in, test_functional
from tests.test_kernels import compute, defined

REFERENCE = NumpyBackend()
DTYPES = [np.float32, np.float64]
CASES = {case.name: case for case in KERNEL_CASES}

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)


@pytest.fixture(params=["on a processor", pytest.param("on a GPU", marks=pytest.mark.gpu)])
def cupy(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The cupy backend, taking and giving NumPy arrays."""
    if request.param == "on a processor":
        yield stand_in.OnTheDevice(stand_in.backend())
        return
    from tests.test_backends import require

    require("cupy")
    with minidl.use_backend("cupy") as backend:
        yield stand_in.OnTheDevice(backend)


def settings(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """Set options of all backends for one test."""
    for name, value in values.items():
        monkeypatch.setattr(NumpyBackend, name, value)


def numbers(shape: tuple[int, ...], count: int, dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(count)]


def agree(cupy: Any, name: str, arrays: list[Any], *options: Any, tolerance: float = 20, **more: Any) -> None:
    """A kernel is the reference in float64 but for rounding, whatever the layout; in any order the same bits."""
    dtype = arrays[0].dtype
    wide = getattr(REFERENCE, name)(
        *(a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == dtype else a for a in arrays),
        *options,
        **more,
    )
    turned = [np.asfortranarray(a) if isinstance(a, np.ndarray) and a.ndim > 1 else a for a in arrays]
    results = [getattr(cupy, name)(*given, *options, **more) for given in (arrays, turned, arrays)]
    results = [r if isinstance(r, tuple) else (r,) for r in results]
    for y, exact, *others in zip(results[0], wide if isinstance(wide, tuple) else (wide,), *results[1:], strict=True):
        assert y.dtype == dtype and y.shape == exact.shape, name
        eps = tolerance * float(np.finfo(dtype).eps)
        scale = np.abs(exact).max(initial=0, where=np.isfinite(exact))
        np.testing.assert_allclose(y, exact, eps, eps * scale, err_msg=name)
        for other in others:
            np.testing.assert_array_equal(y, other, err_msg=name)


# --- convolution: what the table of cases does not reach -------------------------------------------------------------


@pytest.mark.parametrize("name", ["3x3 tiles, two panels", "dilated and strided"])
@dtypes
def test_large_tiles(cupy: Any, monkeypatch: pytest.MonkeyPatch, name: str, dtype: Any) -> None:
    """Tiles of 128 x 128 are for large layers: here they are taken for a small one."""
    monkeypatch.setattr(
        type(cupy.inner), "_tile", lambda self, rows, columns, groups, real, few=99: ("128x128", 128, 128)
    )
    x, w, b = conv_arrays(CASES[name], dtype)
    true, bound, g = defined(CASES[name], dtype)
    for what, result in compute(cupy, CASES[name], x, w, b, g).items():
        assert np.all(np.abs(result - true[what]) <= bound[what]), what


@pytest.mark.parametrize("tile", ["16x256", "64x128", "128x128"])
def test_tensor_cores(cupy: Any, monkeypatch: pytest.MonkeyPatch, tile: str) -> None:
    """TF32 rounds each factor by at most 2^-11 of itself, so a product by 2^-10 and a little."""
    settings(monkeypatch, precision="high")
    m, n = map(int, tile.split("x"))
    monkeypatch.setattr(type(cupy.inner), "_tile", lambda self, rows, columns, groups, real, few=99: (tile, m, n))
    case = CASES["3x3 tiles, two panels" if m == 128 else "two groups"]
    x, w, b = conv_arrays(case, np.float32)
    true, bound, g = defined(case, np.float32)
    exact = compute(REFERENCE, case, x, w, b, g)
    size = {k: v.astype(np.float64) for k, v in compute(REFERENCE, case, abs(x), abs(w), abs(b), abs(g)).items()}
    for what, result in compute(cupy, case, x, w, b, g).items():
        error = np.abs(result - true[what])
        assert np.all(error <= bound[what] + 1.01 * 2**-10 * size[what]), what
        assert not np.array_equal(result, exact[what])  # it was not the ordinary kernel that ran
        assert error.max() > 10 * np.abs(exact[what] - true[what]).max()


@pytest.mark.parametrize(
    "name", ["plain 3x3", "3x3 tiles, three groups", "3x3 tiles, two panels", "3x3 of a narrow map"]
)
@dtypes
def test_winograd(cupy: Any, monkeypatch: pytest.MonkeyPatch, name: str, dtype: Any) -> None:
    settings(monkeypatch, algorithm="winograd")
    case = CASES[name]
    assert "Winograd" in cupy.explain_conv(case.x, case.w, **case.options)
    x, w, b = conv_arrays(case, dtype)
    true, _, g = defined(case, dtype)
    eps = 100 * float(np.finfo(dtype).eps)
    for what, result in compute(cupy, case, x, w, b, g).items():
        assert np.all(np.abs(result - true[what]) <= eps * np.abs(true[what]).max()), what
    cut = cupy.conv2d(x, w, b, **case.options, activation="relu")
    np.testing.assert_array_equal(cut, np.maximum(cupy.conv2d(x, w, b, **case.options), 0))


def test_exact_sums_in_float64(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(monkeypatch, algorithm="exact")
    case = CASES["many channels, tiny maps"]
    x, w, b = conv_arrays(case, np.float32)
    true, _, g = defined(case, np.float32)
    for what, result in compute(cupy, case, x, w, b, g).items():
        assert np.all(np.abs(result - true[what]) <= 2e-7 * np.abs(true[what]).max()), what


@pytest.mark.parametrize("name", ["plain 3x3", "past a tile: 17 and 33", "1-D, strided", "many channels, tiny maps"])
def test_relu_and_bias_are_part_of_the_kernel(cupy: Any, name: str) -> None:
    case = CASES[name]
    x, w, b = conv_arrays(case, np.float32)
    plain = cupy.conv2d(x, w, b, **case.options)
    np.testing.assert_array_equal(cupy.conv2d(x, w, b, **case.options, activation="relu"), np.maximum(plain, 0))
    g = np.random.default_rng(0).standard_normal(plain.shape).astype(np.float32)
    shift = np.arange(case.x[1], dtype=np.float32)
    dx = cupy.conv2d_grad_x(g, w, case.x, **case.options)
    np.testing.assert_allclose(
        cupy.conv2d_grad_x(g, w, case.x, shift, **case.options), dx + shift[:, None, None], 1e-5, 1e-5
    )


# --- the other kernels -----------------------------------------------------------------------------------------------


SHAPES = [(2, 3, 7, 5), (1, 1, 1, 1), (5, 2, 31, 33), (3, 40, 4), (4, 9)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@shapes
@dtypes
def test_batch_norm(cupy: Any, shape: tuple[int, ...], dtype: Any) -> None:
    x, g = numbers(shape, 2, dtype)
    x += 3
    weight, bias, mean, var = numbers((shape[1],), 4, dtype)
    var = np.abs(var) + 0.1
    for activation in ("", "relu"):
        agree(cupy, "batch_norm", [x, weight, bias, mean, var], 1e-5, activation)
        agree(cupy, "batch_norm", [x, None, None, mean, var], 1e-5, activation)
        if x.size > x.shape[1]:
            agree(cupy, "batch_norm", [x, weight, bias, None, None], 1e-5, activation, tolerance=200)
        for training in (True, False):
            m, v = (
                (x.mean(axis=(0, *range(2, x.ndim))), x.var(axis=(0, *range(2, x.ndim)))) if training else (mean, var)
            )
            arrays = [g, x, m, v + dtype(0.1), weight, bias]
            agree(cupy, "batch_norm_grad", arrays, 1e-5, activation, training, tolerance=500)


@dtypes
def test_batch_norm_keeps_its_digits_far_from_zero(cupy: Any, dtype: Any) -> None:
    far = 2.0**20 if dtype == np.float32 else 2.0**40
    x = (np.random.default_rng(0).integers(-8, 8, (4, 2, 40, 30)) + far).astype(dtype)
    _, mean, var = cupy.batch_norm(x, None, None, None, None, 1e-5)
    np.testing.assert_allclose(mean - far, (x - dtype(far)).mean(axis=(0, 2, 3)), 0, 4 * far * np.finfo(dtype).eps)
    np.testing.assert_allclose(var, (x - dtype(far)).var(axis=(0, 2, 3)), 1e-2)


@shapes
@dtypes
def test_numbers_one_by_one(cupy: Any, shape: tuple[int, ...], dtype: Any) -> None:
    x, g = numbers(shape, 2, dtype)
    for activation in ("relu", "tanh"):
        agree(cupy, "activation_grad", [g, np.tanh(x)], activation)
    agree(cupy, "channel_sum", [g], tolerance=200)
    agree(cupy, "squared_error_grad", [x, g], 0.3)
    kept = np.random.default_rng(1).random(shape) < 0.5
    agree(cupy, "dropout", [x, kept], 1.25)
    with pytest.raises(TypeError, match="bool"):
        cupy.dropout(x, x, 1.25)
    infinite = np.full(shape, np.inf, dtype)
    assert not np.isnan(cupy.activation_grad(infinite, -np.abs(x), "relu")).any()


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) > 2], ids=str)
@dtypes
def test_local_response_norm(cupy: Any, shape: tuple[int, ...], dtype: Any) -> None:
    x, g = numbers(shape, 2, dtype)
    for options in ((5, 1e-1, 0.75, 1.0), (4, 1.0, 1.0, 0.5), (40, 1.0, 0.5, 1.0)):
        agree(cupy, "local_response_norm", [x], *options)
        d = REFERENCE.local_response_norm(x, *options)[1].astype(dtype)
        agree(cupy, "local_response_norm_grad", [g, x, d], *options, tolerance=100)


@pytest.mark.parametrize("shape", [(2, 3, 3, 5), (7, 10), (3, 100), (2, 1, 6), (1, 32), (0, 3)], ids=str)
@dtypes
def test_cross_entropy(cupy: Any, shape: tuple[int, ...], dtype: Any) -> None:
    x = 5 * numbers(shape, 1, dtype)[0]
    rng = np.random.default_rng(1)
    t = rng.integers(shape[1], size=(shape[0], *shape[2:])).astype(np.int32 if shape[1] == 3 else np.int64)
    t[rng.random(t.shape) < 0.2] = -7
    g = rng.standard_normal(t.shape).astype(dtype)
    weight = rng.random(shape[1]).astype(dtype)
    for smoothing in (0.0, 0.1):
        agree(cupy, "cross_entropy", [x, t, weight], -7, smoothing, tolerance=40)
        lse = REFERENCE.cross_entropy(x, t, weight, -7, smoothing)[1].astype(dtype)
        agree(cupy, "cross_entropy_grad", [g, x, t, lse, weight], -7, smoothing, tolerance=100)
    with pytest.raises(IndexError, match="class"):
        cupy.cross_entropy(np.ones((2, 3), dtype), np.array([0, 3]), np.ones(3, dtype), -100, 0.0)


@dtypes
def test_cross_entropy_at_nan_infinity_and_large_logits(cupy: Any, dtype: Any) -> None:
    rows = [[0, -np.inf, 3], [0, np.inf, 3], [np.nan, 0, 1], [0, 1, np.nan], [-np.inf] * 3, [-1e30, 0, 1e30]]
    x, weight = np.array(rows, dtype), np.ones(3, dtype)
    for target in (0, 2, -1):
        t = np.full(len(x), target)
        with np.errstate(all="ignore"):
            loss, lse = REFERENCE.cross_entropy(x, t, weight, -1, 0.0)
            grad = REFERENCE.cross_entropy_grad(weight[t], x, t, lse, weight, -1, 0.0)
        found = cupy.cross_entropy(x, t, weight, -1, 0.0)
        np.testing.assert_allclose(found[0], loss, 1e-6, 1e-37)
        np.testing.assert_allclose(
            cupy.cross_entropy_grad(weight[t], x, t, found[1], weight, -1, 0.0), grad, 1e-6, 2e-7
        )


@dtypes
def test_avg_pool2d(cupy: Any, dtype: Any) -> None:
    x, g = numbers((2, 3, 9, 11), 1, dtype)[0], numbers((2, 3, 4, 6), 1, dtype)[0]
    count = (1 + np.arange(24).reshape(4, 6)).astype(dtype)
    options: dict[str, Any] = {"kernel_size": (3, 2), "stride": (2, 2), "padding": (0, 1)}
    agree(cupy, "avg_pool2d", [x, count], **options)
    agree(cupy, "avg_pool2d_grad", [g, count, x.shape], **options)


@dtypes
def test_resample(cupy: Any, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    x = numbers((2, 3, 7, 5), 1, dtype)[0]
    for size, width in (((1, 1), 1), ((9, 4), 3), ((13, 11), 2)):
        axes = []
        for n, m in zip(x.shape[2:], size, strict=True):
            first = rng.integers(0, n, m)
            last = np.minimum(first + rng.integers(0, width + 1, m), n)
            axes.append((first, last, rng.standard_normal((m, width)).astype(dtype).astype(float)))
        agree(cupy, "resample", [x], *axes)
    with pytest.raises(ValueError, match="window 0 leaves"):
        cupy.resample(x, axes[0], (np.array([3]), np.array([9]), np.ones((1, 6))))


def steps(backend: Any, name: str, params: list[Any], *options: Any, states: int) -> list[np.ndarray]:
    """Three steps of an optimiser on copies of the parameters -> those, and the states."""
    inner = getattr(backend, "inner", backend)
    there = [inner.xp.array(p) for p in params]
    kept = [[inner.xp.zeros(p.shape, p.dtype) for p in params] for _ in range(states)]
    for t in (1, 2, 3):
        grads = [inner.xp.asarray(np.sin(t + p)) for p in params]
        last = (t,) if name == "adam_step" else ()
        getattr(inner, name)(there, grads, *(kept or [[]]), *options, *last)
    return [a if isinstance(a, np.ndarray) else a.get() for a in (*there, *(a for s in kept for a in s))]


@dtypes
def test_optimisers_step_through_many_parameters_at_once(cupy: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(shape).astype(dtype) for shape in [(3000,), (4, 5), (), (1,), (2048,)] + [(2,)] * 80]
    kinds: list[tuple[str, tuple[Any, ...], int]] = [
        ("sgd_step", (0.1, 0.0, 0.0, 0.0, False), 0),
        ("sgd_step", (0.1, 0.9, 0.5, 0.01, False), 1),
        ("sgd_step", (0.1, 0.9, 0.0, 0.0, True), 1),
        ("adam_step", (0.01, 0.9, 0.999, 1e-8, 0.01, False), 2),
        ("adam_step", (0.01, 0.9, 0.999, 1e-8, 0.01, True), 2),
    ]
    for name, options, states in kinds:
        wide = steps(REFERENCE, name, [p.astype(np.float64) for p in params], *options, states=states)
        for found, exact in zip(steps(cupy, name, params, *options, states=states), wide, strict=True):
            assert found.dtype == dtype
            np.testing.assert_allclose(found, exact, 50 * np.finfo(dtype).eps, 50 * np.finfo(dtype).eps)
    if hasattr(cupy.xp, "bench"):
        before = cupy.xp.bench.launches
        steps(cupy, "adam_step", params[:80], *kinds[3][1], states=2)
        assert cupy.xp.bench.launches - before == 3  # one a step


# --- a network -------------------------------------------------------------------------------------------------------


def host(a: Any) -> np.ndarray:
    return a if isinstance(a, np.ndarray) else a.get()


class Library:
    """minidl.functional, and constants as tensors: those lie where the active backend computes."""

    tensor = minidl.Tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name)


def evaluated(row: Any) -> list[np.ndarray]:
    """A row's value and gradients in float32, on the active backend."""
    inputs = [minidl.Tensor(a.astype(np.float32), requires_grad=True) for a in test_functional.arrays(row)]
    value = row.call(Library(), *inputs)
    value.backward(minidl.Tensor(test_functional.weights(value.shape).astype(np.float32)))
    return [host(a) for a in (value.data, *(t.grad for t in inputs))]


def test_every_op_is_that_of_the_numpy_backend(cupy: Any) -> None:
    """The rows of test_functional.py: also ops that are array code must be array code that CuPy has."""
    wrong = []
    for row in test_functional.ROWS:
        with minidl.use_backend("numpy"), np.errstate(all="ignore"):
            expected = evaluated(row)
        try:
            with stand_in.active(cupy.inner):
                found = evaluated(row)
        except (TypeError, AttributeError) as error:
            wrong.append(f"{row.name}: {error!r}")
            continue
        for a, b in zip(found, expected, strict=True):
            if a.dtype != b.dtype or not np.allclose(a, b, 1e-4, 1e-4, equal_nan=True):
                wrong.append(row.name)
    assert not wrong, "\n".join(wrong)


def network() -> nn.Module:
    """A little of everything, on the active backend."""
    minidl.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2),
        nn.LocalResponseNorm(3), nn.ConvTranspose2d(4, 9, 2, stride=2), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(144, 3),
    )  # fmt: skip
    return model


def classify(model: nn.Module, batch: Any) -> minidl.Tensor:
    return F.cross_entropy(model(minidl.Tensor(batch[0])), minidl.Tensor(batch[1]))


def batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = [4] * (count - 1) + [3]  # the last is smaller, as loaders give it
    return [(rng.standard_normal((n, 1, 8, 8)).astype(np.float32), rng.integers(3, size=n)) for n in sizes]


def trained(loss_fn: Any = classify, **options: Any) -> tuple[list[float], dict[str, np.ndarray]]:
    """Train for two epochs on the active backend -> losses and weights."""
    model = network()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    history = fit(model, loss_fn, optimizer, batches(4), epochs=2, progress=False, **options)
    kept = {**dict(model.named_parameters()), "running_mean": model[1].running_mean}
    arrays = {name: getattr(p, "data", p) if isinstance(p, minidl.Tensor) else p for name, p in kept.items()}
    return history["loss"], {name: a if isinstance(a, np.ndarray) else a.get() for name, a in arrays.items()}


def test_a_network_trains_as_on_the_numpy_backend_and_recorded_alike(cupy: Any) -> None:
    with minidl.use_backend("numpy"):
        losses, weights = trained()
    with stand_in.active(cupy.inner):
        found, there = trained()
        again, recorded = trained(record=True)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(found, losses, 1e-4)
    assert found == again
    for name, value in weights.items():
        np.testing.assert_allclose(there[name], value, 1e-3, 1e-4, err_msg=name)
        np.testing.assert_array_equal(there[name], recorded[name], err_msg=name)


def test_a_step_that_cannot_be_recorded_says_why(cupy: Any) -> None:
    def looks(model: nn.Module, batch: Any) -> minidl.Tensor:
        loss = classify(model, batch)
        return loss if float(loss.item()) > 0 else -loss

    def uploads(model: nn.Module, batch: Any) -> minidl.Tensor:
        return classify(model, batch) * minidl.Tensor(np.ones(1, np.float32)).sum()

    with minidl.use_backend("numpy"), pytest.raises(RuntimeError, match=r"'cpp' and 'cupy', the active one is 'n"):
        trained(record=True)
    with stand_in.active(cupy.inner):
        with pytest.raises(RuntimeError, match=r"cannot be recorded .*without looking at a number"):
            trained(looks, record=True)
        with pytest.raises(RuntimeError, match=r"cannot be recorded .*ndarray is not on the GPU"):
            trained(uploads, record=True)
        assert trained()[0]  # nothing is left half recorded


def test_out_of_memory_says_what_was_wanted_and_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy, backend = stand_in.cupy(), stand_in.backend()
    with stand_in.active(backend):
        model = network()
        monkeypatch.setattr(cupy.bench, "limit", 4000)
        monkeypatch.setattr(type(backend), "memory", lambda self: (2 << 30, 1 << 29, 4 << 30))
        many = [(np.zeros((16, 1, 8, 8), np.float32), np.zeros(16, int))]
        with pytest.raises(MemoryError, match=r"out of GPU memory: 0.00 GiB more was wanted, 0.50 GiB of 4.00 .* 15 i"):
            fit(model, classify, optim.SGD(model.parameters()), many, epochs=1, progress=False)


# --- compiled for real GPUs -------------------------------------------------------------------------------------------


def test_the_table_of_registers_has_every_kernel_and_none_spills() -> None:
    _, rows = cuda_registers.read()
    there = {(row.file, row.kernel) for row in rows}
    for file in cuda_registers.files():
        text = stand_in.module().kernel_source(file)
        names = re.findall(r'extern "C" __global__ void\s+(?!__)(\w+)\(', text)
        names += re.findall(r"^(?:GATHER|WEIGH)\((\w+), ", text, re.M)
        assert names and not [name for name in names if (file, name) not in there], file
    assert {row.architecture for row in rows} == {"sm_75", "sm_80", "sm_90"}
    assert not [row for row in rows if row.spilled and row.architecture != "sm_75"]


def test_a_kernel_compiles_for_a_gpu_as_the_table_says() -> None:
    """One small file; `python -m tests.cuda_registers` compiles all, for minutes."""
    if not cuda_registers.version():
        pytest.skip("no nvcc here: the kernels are compiled for GPUs where there is one")
    rows = cuda_registers.measure(["resample"], (90,))
    assert len(rows) == 2 and cuda_registers.differences(rows) == []
    assert cuda_registers.differences([rows[0]._replace(spilled=8)])


# --- clear errors ----------------------------------------------------------------------------------------------------


def test_arrays_that_are_not_on_the_gpu_are_refused() -> None:
    x = np.zeros((1, 1, 4, 4), np.float32)
    with pytest.raises(TypeError, match=r"takes arrays on the GPU, not numpy\.ndarray"):
        stand_in.backend().local_response_norm(x, 3, 1.0, 0.75, 1.0)


def test_arrays_on_two_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = stand_in.cupy()
    x = cupy.zeros((1, 3, 4, 4), np.float32)
    other = cupy.cuda.Device()
    other.id = 1
    monkeypatch.setattr(cupy.Device, "__eq__", lambda self, second: self.id == second.id)
    monkeypatch.setattr(cupy.ndarray, "device", other)
    with pytest.raises(ValueError, match="an array lies on GPU 1, the current one is GPU 0"):
        stand_in.backend().local_response_norm(x, 3, 1.0, 0.75, 1.0)


def test_images_too_large_for_the_table_of_taps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fewer than 2\^29 numbers"):
        stand_in.module()._forward_taps(2, 1 << 15, 1 << 15, (1, 1), (1, 1), 1)


def test_a_kernel_that_does_not_compile_shows_file_line_and_log(monkeypatch: pytest.MonkeyPatch) -> None:
    module = stand_in.module()
    line = 1 + module.kernel_source("lrn").split('"csrc/cuda/lrn.cu"\n')[1].count("\n")
    plant(monkeypatch, "lrn", "", "\nint mistake = nothing;\n", at_end=True)
    with pytest.raises(RuntimeError) as caught:
        module._kernel("lrn", "respond", np.dtype(np.float32))
    assert f"csrc/cuda/lrn.cu:{line + 1}" in str(caught.value) or f"csrc/cuda/lrn.cu({line + 1})" in str(caught.value)
    assert "nothing" in str(caught.value) and "does not compile" in str(caught.value)


@pytest.mark.parametrize("count", [0, None])
def test_no_device_or_an_old_driver(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    runtime = stand_in.cupy().cuda.runtime

    def ask() -> int:
        if count is None:
            raise runtime.CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
        return count

    monkeypatch.setattr(runtime, "getDeviceCount", ask)
    with pytest.raises(RuntimeError, match=r"'cupy' is unavailable: .*(nvidia-smi|CUDA_VISIBLE_DEVICES)"):
        stand_in.module().CupyBackend()


# --- the test bench: planted mistakes --------------------------------------------------------------------------------


def plant(monkeypatch: pytest.MonkeyPatch, file: str, right: str, wrong: str, at_end: bool = False) -> None:
    """Change the text of a kernel file for one test."""
    module = stand_in.module()
    source = module.kernel_source

    def changed(name: str) -> str:
        text: str = source(name)
        if name != file:
            return text
        assert at_end or text.count(right) == 1
        return text + wrong if at_end else text.replace(right, wrong)

    monkeypatch.setattr(module, "kernel_source", changed)
    for kept in ("_kernel", "_module"):  # what is planted must not be kept
        monkeypatch.setattr(module, kept, cache(getattr(module, kept).__wrapped__))


def caught(run: Any, true: np.ndarray) -> str:
    """Run with the threads in each order -> what was wrong, "" if nothing was."""
    bench = stand_in.cupy().bench
    for order in (0, 1, 2):
        bench.order = order
        try:
            result = run().get()
        except RuntimeError as error:
            return str(error)
        if not np.allclose(result, true, 1e-3, 1e-3):
            return "wrong numbers"
    return ""


MISTAKES = {
    "a missing barrier": ("conv", "copies_arrived();\n        __syncthreads();", "copies_arrived();", "wrong numbers"),
    "a copy not waited for": ("conv", "        copies_arrived();\n", "", ""),
    "a row too many is read": ("pool", "!within(down, s.h) ||", "!within(down, s.h + 1) ||", "wrong numbers"),
    "a row too many is written": ("winograd", "if (top + k < s.oh &&", "if (top + k <= s.oh &&", "wrote beside"),
    "a barrier that some threads leave out": ("prelude", "", "", "not all others do"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_the_bench_catches(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    file, right, wrong, expected = MISTAKES[what]
    cupy, backend = stand_in.cupy(), stand_in.backend()
    case = CASES["past a tile: 17 and 33" if file == "conv" else "plain 3x3"]
    x, w, _ = conv_arrays(case, np.float32)
    there = cupy.asarray(x), cupy.asarray(w)
    if file == "winograd":
        settings(monkeypatch, algorithm="winograd")
        case = case._replace(x=(1, 3, 7, 9))  # the last row of tiles hangs over
        x, w, _ = conv_arrays(case, np.float32)
        there = cupy.asarray(x), cupy.asarray(w)
    if file == "pool":
        pool = PoolCase("", (2, 3, 7, 9), (3, 3), (2, 2), (1, 1))
        x = -1 - np.abs(numbers(pool.x, 1, np.float32)[0])
        true = REFERENCE.max_pool2d(x, **pool.options)[0]
        run = lambda: backend.max_pool2d(cupy.asarray(x), **pool.options)[0]  # noqa: E731
    elif file == "prelude":
        file, right, wrong = "norm", "    sum = block_sum(sum, warps);\n    if (threadIdx.x == 0) parts[", (
            "    if (threadIdx.x < 32) sum = block_sum(sum, warps);\n    if (threadIdx.x == 0) parts["
        )  # fmt: skip
        true = REFERENCE.channel_sum(x)
        run = lambda: backend.channel_sum(there[0])  # noqa: E731
    else:
        true = REFERENCE.conv2d(x, w, None, **case.options)
        run = lambda: backend.conv2d(*there, None, **case.options)  # noqa: E731
    assert caught(run, true) == ""
    plant(monkeypatch, file, right, wrong)
    found = caught(run, true)
    assert found and expected in found


def test_the_bench_refuses_arguments_of_a_wrong_type() -> None:
    cupy, module = stand_in.cupy(), stand_in.module()
    kernel = module._kernel("elementwise", "dropout", np.dtype(np.float32))
    x, kept = cupy.zeros(4, np.float32), cupy.zeros(4, np.bool_)
    good = (np.int64(4), np.float32(2), x, kept, x)
    kernel((1,), (32,), good)
    wrong = {0: np.int32(4), 1: 2.0, 2: cupy.zeros(4, np.float64), 3: x, 4: np.zeros(4, np.float32)}
    for position, value in wrong.items():
        with pytest.raises(TypeError, match="dropout: the kernel declares"):
            kernel((1,), (32,), (*good[:position], value, *good[position + 1 :]))
    with pytest.raises(TypeError, match="takes 5 arguments"):
        kernel((1,), (32,), good[:4])
    with pytest.raises(TypeError, match="not contiguous"):
        kernel((1,), (32,), (*good[:2], cupy.zeros(8, np.float32)[::2], *good[3:]))
    geometry = module._fill(module.CHANNELS, images=1, channels=1, area=4, slices=1)
    other = np.zeros(1, np.dtype([(name, np.float32) for name in module.CHANNELS.names]))
    norm, parts = module._kernel("norm", "channel_sums", np.dtype(np.float32)), cupy.zeros((1, 1), np.float32)
    norm((1, 1), (32,), (geometry, x, parts))
    with pytest.raises(TypeError, match="channel_sums: the kernel declares `Channels s`"):
        norm((1, 1), (32,), (other, x, parts))


def test_the_stand_in_refuses_what_cupy_does() -> None:
    cupy = stand_in.cupy()
    x, host = cupy.ones(3, np.float32), np.ones(3, np.float32)
    for mix in (lambda: x + host, lambda: host + x, lambda: cupy.maximum(x, host), lambda: np.asarray(x)):
        with pytest.raises(TypeError):
            mix()
    assert isinstance(x.sum(), cupy.ndarray) and isinstance(np.sqrt(x), cupy.ndarray)
    with pytest.raises(AttributeError):
        cupy.vectorise  # noqa: B018


@pytest.mark.gpu
def test_the_stand_in_has_no_name_that_cupy_lacks() -> None:
    real, stand = pytest.importorskip("cupy"), stand_in.cupy()
    assert not [name for name in stand.FUNCTIONS if not hasattr(real, name)]
    assert not [name for name in stand.METHODS | stand.VALUES if not hasattr(real.ndarray, name)]
