"""Arrays on two sides: NumPy's, and those of a library that shares no memory with it, as CuPy's on a GPU.

The other side is played by `far`: NumPy underneath, as strict as CuPy about arrays that are not its own. DLPack is
tested with NumPy and PyTorch themselves.
"""

from __future__ import annotations

import copy
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minidl
from minidl import Tensor, backends, checkpoint, nn, optim, train, use_backend
from minidl import functional as F
from minidl.data import DataLoader, TensorDataset
from tests.test_backends import require

# --- the other side


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that no NumPy function takes, and that takes none of NumPy's."""

    def __init__(self, inner: np.ndarray) -> None:
        self.inner = inner

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return far(getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, kinds: Any, args: Any, options: Any) -> Any:
        made = function is np.asarray  # np.asarray(a, like=one of these)
        return sys.modules["far"].asarray(*args, **options) if made else far(function, args, options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.inner, name)
        return (lambda *args, **options: far(value, args, options)) if callable(value) else outside(value)

    def __deepcopy__(self, memo: Any) -> ndarray:
        return ndarray(self.inner.copy())

    def __len__(self) -> int:
        return len(self.inner)

    def __bool__(self) -> bool:
        return bool(self.inner)

    def __float__(self) -> float:
        return float(self.inner)

    def __getitem__(self, index: Any) -> Any:
        return outside(self.inner[inside(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.inner[inside(index)] = inside(value)

    def get(self) -> np.ndarray:
        return self.inner.copy()

    def set(self, a: np.ndarray, stream: Any) -> None:
        LOG.append("copy")
        assert a.base is not None and stream.waited  # page-locked memory, which is not the array's own
        self.inner[...] = a

    def __dlpack__(self, **options: Any) -> Any:
        return self.inner.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def inside(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        raise TypeError("unsupported type numpy.ndarray")
    if isinstance(value, tuple | list):
        return type(value)(map(inside, value))
    return value.inner if isinstance(value, ndarray) else value


def outside(value: Any) -> Any:
    return ndarray(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def far(function: Any, args: Any, options: Any) -> Any:
    value = function(*inside(tuple(args)), **{name: inside(option) for name, option in options.items()})
    return tuple(map(outside, value)) if isinstance(value, tuple) else outside(value)


LOG: list[str] = []


class Stream:
    waited = False

    def __init__(self, non_blocking: bool = False) -> None:
        assert non_blocking

    def wait_event(self, event: str) -> None:
        self.waited = event == "event"

    def synchronize(self) -> None:
        LOG.append("synchronize")


def library() -> Any:
    """The module whose arrays these are."""
    xp: Any = types.ModuleType("far")
    xp.ndarray = ndarray
    xp.asarray = lambda a, dtype=None: a if isinstance(a, ndarray) else ndarray(np.array(a, dtype))
    xp.from_dlpack = lambda a: ndarray(np.from_dlpack(a.inner))
    current = types.SimpleNamespace(record=lambda: "event")
    xp.cuda = types.SimpleNamespace(Stream=Stream, alloc_pinned_memory=bytearray, get_current_stream=lambda: current)

    def borrowed(name: str) -> Any:
        value = getattr(np, name)
        return (lambda *args, **options: far(value, args, options)) if callable(value) else value

    xp.__getattr__ = borrowed
    return xp


@pytest.fixture(autouse=True, scope="module")
def other_side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The backend `far`, registered as any other: a file in a folder of the registry."""
    folder = tmp_path_factory.mktemp("far")
    (folder / "far_backend.py").write_text(
        "import far\nfrom minidl.backends.numpy_backend import NumpyBackend\n"
        "class FarBackend(NumpyBackend):\n    name, xp = 'far', far\n"
    )
    ndarray.__module__ = "far"
    before = list(backends.__path__)
    sys.modules["far"] = library()
    backends.__path__.append(str(folder))
    with use_backend("numpy"):
        yield
    backends.__path__[:] = before


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


# --- tensors


def test_a_tensor_moves_there_and_back() -> None:
    x = Tensor(numbers(2, 3))
    there = x.to("far")
    assert type(there.data) is ndarray and there.is_leaf and there.to("far") is there and x.to("cpp") is x
    np.testing.assert_array_equal(there.numpy(), x.data)
    np.testing.assert_array_equal(there.to("numpy").data, x.data)
    np.testing.assert_array_equal(np.asarray(there), x.data)
    assert repr(there) == repr(x) and there.tolist() == x.tolist()
    assert type(copy.deepcopy(there).data) is type(there.detach().data) is ndarray


def test_the_gradient_comes_back() -> None:
    x = Tensor(numbers(3), requires_grad=True)
    y = F.tanh(x)
    with use_backend("far"):
        (y.to("far") * y.to("far")).sum().backward()
    twin = Tensor(x.data, requires_grad=True)
    (F.tanh(twin) * F.tanh(twin)).sum().backward()
    assert type(x.grad) is np.ndarray
    np.testing.assert_array_equal(x.grad, twin.grad)
    with minidl.no_grad():
        assert not x.to("far").requires_grad


def test_mixing_two_sides_is_refused_with_the_remedy() -> None:
    here, there = Tensor(numbers(3)), Tensor(numbers(3)).to("far")
    with pytest.raises(
        TypeError, match=r'^add: input 1 of shape \(3,\) lies on a GPU \(far\).* is numpy.*\.to\("numpy"\)'
    ):
        here + there
    with pytest.raises(TypeError, match="lies on a GPU"):
        F.tanh(there)
    with pytest.raises(TypeError, match="lies on a GPU"):
        Tensor(there.data)
    with use_backend("far"):
        assert (there + 1.0).shape == (3,) and type(Tensor(here.data).data) is ndarray
        with pytest.raises(TypeError, match=r'mul: input 1 .* in the processor\'s memory .*\.to\("far"\)'):
            there * here
        loss = (Tensor(numbers(3), requires_grad=True) * 2).sum()
    with pytest.raises(TypeError, match="backward: input 0"):
        loss.backward()
    with pytest.raises(ValueError, match="no backend 'fpga'"):
        here.to("fpga")


def test_arrays_of_other_libraries_are_no_gpu_s() -> None:
    class Column:
        """As a table's column: it has a dtype and a method get, and NumPy knows how to take it."""

        dtype = np.dtype(float)

        def get(self, key: str) -> None:
            raise KeyError(key)

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.arange(3.0)

    np.testing.assert_array_equal(Tensor(Column()).data, [0, 1, 2])
    torch = pytest.importorskip("torch")
    assert Tensor(torch.ones(2)).shape == (2,)
    model = network()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in model.state_dict().items()})


# --- DLPack: memory is shared, both ways


def test_dlpack_with_numpy() -> None:
    x = numbers(2, 3)
    shared = minidl.from_dlpack(x)
    x[0, 0] = 7
    assert np.shares_memory(shared.data, x) and shared.data[0, 0] == 7
    assert np.shares_memory(np.from_dlpack(shared), x)
    whole = minidl.from_dlpack(np.arange(3))
    assert whole.dtype == np.int64 and Tensor(numbers(2)).__dlpack_device__() == (1, 0)


def test_dlpack_with_torch() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.arange(6.0).reshape(2, 3)
    mine = minidl.from_dlpack(theirs)
    theirs[1, 2] = 70
    assert mine.data.ctypes.data == theirs.data_ptr() and mine.data[1, 2] == 70
    mine = Tensor(numbers(3, 2))
    theirs = torch.from_dlpack(mine)
    mine.data[0, 1] = 5
    assert theirs.data_ptr() == mine.data.ctypes.data and theirs[0, 1] == 5
    turned = torch.from_dlpack(mine.T)
    assert turned.data_ptr() == mine.data.ctypes.data and turned.shape == (2, 3) and turned.stride() == (1, 2)
    with pytest.raises(RuntimeError, match=r"share tensor\.detach\(\)"):
        torch.from_dlpack(Tensor(numbers(2), requires_grad=True))
    for kind, words in ((torch.complex64, "complex64"), (torch.bfloat16, "cannot share")):
        with pytest.raises(TypeError, match=words):
            minidl.from_dlpack(torch.zeros(2, dtype=kind))
    with pytest.raises(TypeError, match="not list"):
        minidl.from_dlpack([1.0])


def test_dlpack_on_a_gpu() -> None:
    array = ndarray(numbers(4))
    with pytest.raises(RuntimeError, match=r'lies on a GPU .* use_backend\("cupy"\)'):
        minidl.from_dlpack(array)
    with use_backend("far"):
        shared = minidl.from_dlpack(array)
        assert np.shares_memory(shared.data.inner, array.inner) and shared.__dlpack_device__() == (2, 0)
        assert type(minidl.from_dlpack(numbers(2)).data) is np.ndarray  # memory of the processor stays there


# --- models, optimisers, checkpoints


def network() -> nn.Module:
    minidl.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(12, 2),
    )  # fmt: skip


OPTIMISERS = {"Adam": {}, "SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.5, "centered": True}}


def steps(model: nn.Module, optimizer: optim.Optimizer, count: int) -> list[float]:
    losses = []
    for _ in range(count):
        loss = F.cross_entropy(model(Tensor(numbers(4, 1, 4, 4))), np.array([0, 1, 1, 0]))
        optimizer.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def same(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_one_seed_gives_the_same_weights_on_both_sides() -> None:
    here = network()
    with use_backend("far"):
        there = network()
    assert all(type(p.data) is ndarray for p in there.parameters()) and type(there[1].running_mean) is ndarray
    same(here.state_dict(), there.state_dict())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_training_moves_with_its_optimiser(name: str) -> None:
    """Two steps here, two there, one here again: the bits of five steps here."""
    model, twin = network(), network()
    optimizer, plain = (getattr(optim, name)(m.parameters(), lr=0.05, **OPTIMISERS[name]) for m in (model, twin))
    minidl.manual_seed(1)
    expected = steps(twin, plain, 5)
    minidl.manual_seed(1)
    losses = steps(model, optimizer, 2)
    assert model.to("far") is model
    assert {type(p.grad) for p in model.parameters()} == {type(model[1].running_var)} == {ndarray}
    with use_backend("far"):
        losses += steps(model, optimizer, 2)
        assert {type(a) for s in optimizer.state.values() for a in s.values() if hasattr(a, "shape")} == {ndarray}
    losses += steps(model.to("numpy"), optimizer, 1)
    assert losses == expected and len(set(losses)) == 5
    same(model.state_dict(), twin.state_dict())


def test_a_model_left_behind_is_refused() -> None:
    model = network().to("far")
    with pytest.raises(TypeError, match="conv2d: input 1"):
        model(Tensor(numbers(4, 1, 4, 4)))


def test_checkpoints_load_on_either_side(tmp_path: Path) -> None:
    minidl.manual_seed(1)
    with use_backend("far"):
        there = network()
        optimizer = optim.Adam(there.parameters(), lr=0.05)
        steps(there, optimizer, 2)
        checkpoint.save(tmp_path / "there", there, optimizer=optimizer, extra={"mean": there[1].running_mean})
        after = steps(there, optimizer, 1)
    here = network()
    mine = optim.Adam(here.parameters(), lr=0.05)
    saved = checkpoint.load(tmp_path / "there")
    saved.restore(here, optimizer=mine)
    np.testing.assert_array_equal(saved.extra["mean"], here[1].running_mean)
    assert type(here[1].running_mean) is np.ndarray
    checkpoint.save(tmp_path / "here", here, optimizer=mine)
    assert (tmp_path / "here").stat().st_size < (tmp_path / "there").stat().st_size
    with use_backend("far"):
        again = network()
        theirs = optim.Adam(again.parameters(), lr=0.05)
        checkpoint.load(tmp_path / "here").restore(again, optimizer=theirs)
        assert type(again[0].weight.data) is type(again[1].num_batches_tracked) is ndarray
        for layers in (there, again):
            layers[5].p = 0.0
        assert len(after) == 1 and steps(again, theirs, 1)[0] > 0
    same(here.state_dict(), checkpoint.load(tmp_path / "here").arrays)


# --- loaders


def batches(loader: DataLoader) -> list[np.ndarray]:
    return [field.get() if isinstance(field, ndarray) else field for batch in loader for field in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_on_the_other_side_in_order(workers: int) -> None:
    data = TensorDataset(numbers(11, 3), np.arange(11))
    options: Any = {"shuffle": True, "num_workers": workers}
    plain = DataLoader(data, 2, **options, rng=np.random.default_rng(0))
    loader = DataLoader(data, 2, **options, rng=np.random.default_rng(0), to="far")
    LOG.clear()
    for batch in loader:
        assert [type(field) for field in batch] == [ndarray, ndarray] and LOG.count("synchronize") > 0
    assert LOG == ["copy", "copy", "synchronize"] * 6 or workers
    assert not [t for t in threading.enumerate() if t.name.startswith("minidl-loader")]
    list(plain)  # the second epoch
    for a, b in zip(batches(plain), batches(loader), strict=True):
        np.testing.assert_array_equal(a, b)
    assert type(next(iter(DataLoader(data, 2, to="cpp", num_workers=workers)))[0]) is np.ndarray


def test_an_error_on_the_way_reaches_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(size: int) -> bytearray:
        raise MemoryError("no page-locked memory is left")

    with pytest.raises(ValueError, match="no backend 'fpga'"):
        DataLoader(TensorDataset(numbers(4, 3)), 2, to="fpga")
    monkeypatch.setattr(sys.modules["far"].cuda, "alloc_pinned_memory", full)
    with pytest.raises(MemoryError, match="page-locked"):
        list(DataLoader(TensorDataset(numbers(4, 3)), 2, num_workers=1, to="far"))
    assert not [t for t in threading.enumerate() if t.name.startswith("minidl-loader")]


def test_fit_and_predict_on_the_other_side() -> None:
    data = TensorDataset(numbers(8, 1, 4, 4), np.arange(8) % 2)

    def run(name: str) -> tuple[list[float], np.ndarray]:
        with use_backend(name):
            model = network()
            loader = DataLoader(data, 4, shuffle=True, rng=np.random.default_rng(0), num_workers=1, to=name)
            history = train.fit(
                model, lambda m, batch: F.cross_entropy(m(Tensor(batch[0])), batch[1]),
                optim.Adam(model.parameters(), lr=0.05), loader, loader, epochs=2, progress=False,
            )  # fmt: skip
            return history["val_loss"], train.predict(model, loader)

    here, there = run("numpy"), run("far")
    assert here[0] == there[0]
    np.testing.assert_array_equal(here[1], there[1])


# --- on a GPU, with CuPy and PyTorch themselves


@pytest.mark.gpu
def test_arrays_are_shared_on_a_gpu() -> None:
    require("cupy")
    cupy, torch = pytest.importorskip("cupy"), pytest.importorskip("torch")
    with use_backend("cupy"):
        array = cupy.arange(6, dtype=np.float32)
        mine = minidl.from_dlpack(array)
        assert mine.data.data.ptr == array.data.ptr == cupy.from_dlpack(mine).data.ptr
        if torch.cuda.is_available():
            theirs = torch.arange(6.0, device="cuda")
            assert minidl.from_dlpack(theirs).data.data.ptr == theirs.data_ptr()
            assert torch.from_dlpack(mine).data_ptr() == array.data.ptr
        assert minidl.from_dlpack(array).to("numba_cuda").data.data.ptr == array.data.ptr


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cupy", "numba_cuda"])
def test_a_training_moves_to_a_gpu(name: str) -> None:
    require(name)
    model, twin = network(), network()
    optimizer, plain = (optim.Adam(m.parameters(), lr=0.01) for m in (model, twin))
    minidl.manual_seed(1)
    expected = steps(twin, plain, 4)
    minidl.manual_seed(1)
    losses = steps(model, optimizer, 2)
    model.to(name)
    with use_backend(name):
        losses += steps(model, optimizer, 2)
    np.testing.assert_allclose(losses, expected, 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_on_a_gpu(workers: int) -> None:
    require("cupy")
    data = TensorDataset(np.arange(300_000, dtype=np.float32).reshape(300, 1000), np.arange(300))
    with use_backend("cupy") as backend:
        busy = backend.xp.ones((2000, 2000), np.float32)
        seen = []
        for x, t in DataLoader(data, 7, num_workers=workers, to="cupy"):
            busy = busy @ busy * 1e-4  # the consumer's stream has work while batches are copied
            seen.append((x + 0).get())
            assert int(t[0]) == int(x[0, 0]) // 1000
    np.testing.assert_array_equal(np.concatenate(seen), data.arrays[0])
