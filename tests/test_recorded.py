"""Recorded steps on a processor: the bits of plain ones, whatever the batch; what cannot be recorded is refused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from threading import Thread
from typing import Any

import numpy as np
import pytest

import minidl
from minidl import Tensor, models, nn, optim
from minidl import functional as F
from minidl.backends import get_backend
from minidl.backends.numpy_backend import NumpyBackend
from minidl.data import DataLoader, TensorDataset
from minidl.device import RecordedStep
from minidl.train import fit
from tests.test_kernels import dtypes

_C = pytest.importorskip("minidl._C")


@pytest.fixture(params=_C.simd_levels(), autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each instruction set of the C++ kernels."""
    before = _C.simd_level()
    _C.set_simd_level(request.param)
    with minidl.use_backend("cpp"):
        yield
    _C.set_simd_level(before)


def squared(model: Any, batch: Any) -> Tensor:
    return F.mse_loss(model(Tensor(batch[0])), batch[-1])


def network(inputs: int = 6, outputs: int = 3) -> nn.Module:
    return models.TanhNetwork(inputs, outputs, hidden=5, rng=np.random.default_rng(1))


def batches(count: int, n: int = 8, inputs: int = 6, outputs: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(2)
    return [tuple(rng.standard_normal((n, m)).astype(np.float32) for m in (inputs, outputs)) for _ in range(count)]  # type: ignore[misc]


def losses(model: nn.Module, step: RecordedStep | None, data: list[Any], optimizer: Any = None) -> list[float]:
    """The losses of one training step for each batch."""
    optimizer = optimizer or optim.SGD(model.parameters(), lr=0.1)
    found = []
    for batch in data:
        optimizer.zero_grad()
        if step is None:
            loss = squared(model, batch)
            loss.backward()
            found.append(loss.item())
        else:
            found.append(step(batch))
        optimizer.step()
    return found


def recorded(model: nn.Module, loss_fn: Any = squared) -> RecordedStep:
    return RecordedStep(model, loss_fn, list(model.parameters()))


@dtypes
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("left_over", [0, 1, 5])
def test_recorded_training_is_plain_training(dtype: Any, threads: int, left_over: int) -> None:
    """Also with a last batch of other size, gradients clipped, a part of the model frozen."""
    rng = np.random.default_rng(3)
    data = rng.standard_normal((96 + left_over, 150)).astype(dtype)

    def trained(record: bool) -> Any:
        model = models.Autoencoder((150, 33, 7), rng=np.random.default_rng(4)).astype(dtype)
        model.encoder[0].requires_grad_(False)
        loader = DataLoader(TensorDataset(data), 32, shuffle=True, rng=np.random.default_rng(5))
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        history = fit(model, squared, optimizer, loader, epochs=4, clip_norm=0.5, record=record, progress=False)
        return history["loss"], {name: array.tobytes() for name, array in model.state_dict().items()}

    before, NumpyBackend.threads = NumpyBackend.threads, threads
    try:
        plain, again = trained(record=False), trained(record=True)
    finally:
        NumpyBackend.threads = before
    assert plain == again and plain[0][-1] < plain[0][0]


def test_a_parameter_in_new_memory_is_recorded_anew() -> None:
    plain, model = network(), network()
    step, data = recorded(model), batches(5)
    one, other = [optim.SGD(m.parameters(), lr=0.1) for m in (plain, model)]
    assert losses(model, step, data, other) == losses(plain, None, data, one)
    model.hidden.weight.data = model.hidden.weight.data.copy()
    assert losses(model, step, data, other) == losses(plain, None, data, one)
    model.double(), plain.double()
    wide = [(x.astype(float), t.astype(float)) for x, t in data]
    assert losses(model, step, wide, other) == losses(plain, None, wide, one)


def test_parameters_without_gradient_stay_without() -> None:
    model = network()
    model.unused = nn.Linear(2, 2)
    step = recorded(model)
    losses(model, step, batches(4))
    assert model.unused.weight.grad is None and model.hidden.weight.grad is not None


def test_gradients_outlive_their_recording() -> None:
    model = network(300, 20)
    step, data = recorded(model), batches(4, 64, 300, 20)
    for batch in data:
        step(batch)
    grads = [p.grad for p in model.parameters()]
    before = [g.copy() for g in grads]
    used = _C.memory()[0]
    del step
    gc.collect()
    assert _C.memory()[0] <= used
    other = network(300, 20)
    losses(other, recorded(other), data)
    for g, value in zip(grads, before, strict=True):
        np.testing.assert_array_equal(g, value)


def test_other_threads_are_not_recorded() -> None:
    x = np.ones((1, 4, 9, 9), np.float32)

    def beside(model: nn.Module, batch: Any) -> Tensor:
        thread = Thread(target=lambda: F.relu(F.conv2d(Tensor(x), Tensor(np.ones((4, 4, 3, 3), np.float32)))))
        thread.start()
        loss = squared(model, batch)
        thread.join()
        return loss

    data = batches(4)
    one, other = network(), network()
    assert losses(one, recorded(one, beside), data) == losses(other, None, data)


OUTSIDE = np.ones((8, 3), np.float32)


def looks(model: Any, batch: Any) -> Tensor:
    loss = squared(model, batch)
    return loss if batch[0][0, 0] > 0 else F.mse_loss(model(Tensor(batch[1] @ batch[1].T @ batch[0])), batch[1])


def writes(model: Any, batch: Any) -> Tensor:
    y = model.hidden(Tensor(batch[0]))
    np.negative(y.data, out=y.data)
    return F.mse_loss(model.output(y), batch[1])


REFUSED = {
    "array code behind": (lambda m, b: 2 * squared(m, b), "comes neither from"),
    "array code before": (lambda m, b: F.mse_loss(m(Tensor(2 * b[0])), b[1]), "comes neither from"),
    "another target": (lambda m, b: F.mse_loss(m(Tensor(b[0])), OUTSIDE), r"\(8, 3\) comes neither from"),
    "an activation of its own": (lambda m, b: F.mse_loss(F.relu(m(Tensor(b[0]))), b[1]), "needs another kernel"),
    "another activation": (lambda m, b: F.mse_loss(F.sigmoid(m(Tensor(b[0]))), b[1]), "comes neither from"),
    "dropout": (lambda m, b: F.mse_loss(F.dropout(m(Tensor(b[0])), 0.5), b[1]), "needs another kernel"),
    "another loss": (lambda m, b: F.cross_entropy(m(Tensor(b[0])), np.zeros(8, int)), "comes neither|another kernel"),
    "what only the graph's end is": (lambda m, b: squared(m, b).reshape(1).sum(), "comes neither from"),
    "looks at numbers": (looks, "gives another result|comes neither from"),
    "writes to arrays": (writes, "gives another result"),
}


@pytest.mark.parametrize("loss_fn, why", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_recorded_is_refused(loss_fn: Any, why: str) -> None:
    model, data = network(), batches(2)
    data[1][0][0, 0], data[0][0][0, 0] = -1, 1
    step = recorded(model, loss_fn)
    step(data[0])
    with pytest.raises(RuntimeError, match=f"cannot be recorded: .*({why}).*Train without record"):
        step(data[1])
    assert losses(model, recorded(model), data)  # nothing is left half recorded


def test_convolutions_and_optimisers_are_refused() -> None:
    x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
    p = Tensor(w, requires_grad=True)
    p.grad = w.copy()
    for refused in (lambda: F.conv2d(Tensor(x), Tensor(w)), optim.SGD([p], lr=0.1).step):
        with pytest.raises(RuntimeError, match="cannot be recorded: it needs another kernel"):
            get_backend().record(lambda run=refused: [run()], [x], [w])
    with pytest.raises(RuntimeError, match="another recording goes on"):
        get_backend().record(lambda: [get_backend().record(list, [], [])], [], [])
