"""Time minidl on an NVIDIA GPU beside PyTorch and cuDNN: python -m benchmarks.gpu [--quick] [--only TEXT] [--out DIR].

Every convolution of the networks, forward and both backwards; the kernels bound by memory; whole training steps; and
the ladder of the numba_cuda backend. All rivals run in this process and take turns, forwards and then backwards through
the list. A turn queues calls between two CUDA events, behind one that is not timed; each call takes the next of several
sets of arrays, more than the L2 cache holds. cuDNN runs in float32 and TF32, channels first and last, with its own
search for the fastest algorithm; its best counts. Nothing is timed before its results were verified.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import minidl
from benchmarks import report, rows
from benchmarks.cpu import LOSS_ERROR, commit, machine, statistic
from benchmarks.worker import Minidl, one_line
from minidl.arrays import move, to_host
from minidl.backends import get_backend
from minidl.backends.numpy_backend import NumpyBackend
from minidl.checkpoint import atomic_write

BEGIN = "<!-- results: written by python -m benchmarks.gpu --out benchmarks -->\n"
END = "<!-- end of GPU results -->\n"
TF32_ERROR = {"forward": 3e-3, "grad_x": 3e-3, "grad_w": 3e-3}  # of the largest result: factors keep 10 bits
TURN, WARM_UP = 10.0, 3  # milliseconds of a turn, calls before it
MOST_SETS = 24  # of arrays that a row rotates through
STEPS = [w for w in rows.WORKLOADS if w.training] + [
    rows.Workload("bar network step, 64 x 3 x 64²", "ResNet", {}, (64, 3, 64, 64), "label"),
]
RUNGS = ("naive", "tiled", "blocked")
TARGETS = {
    "3x3 layers, float32: cuDNN's speed": 1.0,
    "other layers, float32: cuDNN's speed": 0.8,
    "layers of 64 channels and more at batch 64, TF32: share of the ceiling": 0.6,
    "kernels bound by memory: share of the copy": 0.85,
    "training steps: PyTorch's speed": 1.0,
}  # each holds for the slowest of its rows


# === what is timed beside convolutions and steps =====================================================================


@dataclass(frozen=True)
class MemoryRow:
    """A kernel bound by memory: the least that it must move, and what makes the call of each library."""

    name: str
    shape: tuple[int, ...]
    passes: float  # how often the array's bytes are read or written, at the least
    minidl: Callable[..., Any]  # (backend, x, g) -> result
    torch: Callable[..., Any]  # (torch, x, g) -> result

    @property
    def bytes(self) -> float:
        """The least that must be read and written in float32."""
        return 4 * self.passes * math.prod(self.shape)


_POOL: dict[str, Any] = {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)}
_LRN = (5, 1e-4, 0.75, 1.0)


def _max_pool_grad(b: Any, x: Any, g: Any) -> Callable[[], Any]:
    y, index = b.max_pool2d(x, **_POOL, dilation=(1, 1), ceil_mode=False)
    return lambda: b.max_pool2d_grad(y, index, x.shape, **_POOL, dilation=(1, 1))


def _torch_max_pool_grad(t: Any, x: Any, g: Any) -> Callable[[], Any]:
    y, index = t.nn.functional.max_pool2d(x, 2, return_indices=True)
    back = t.ops.aten.max_pool2d_with_indices_backward
    return lambda: back(y, x, [2, 2], [2, 2], [0, 0], [1, 1], False, index)


def _batch_norm_grad(b: Any, x: Any, g: Any) -> Callable[[], Any]:
    one = b.xp.ones(x.shape[1], x.dtype)
    _, mean, var = b.batch_norm(x, one, one, None, None, 1e-5)
    return lambda: b.batch_norm_grad(g, x, mean, var, one, one, 1e-5, "", True)[0]


def _torch_batch_norm_grad(t: Any, x: Any, g: Any) -> Callable[[], Any]:
    one = t.ones(x.shape[1], device=x.device)
    _, mean, inverse = t.ops.aten.native_batch_norm(x, one, one, None, None, True, 0.1, 1e-5)
    back = t.ops.aten.native_batch_norm_backward
    return lambda: back(g, x, one, None, None, mean, inverse, True, 1e-5, [True, True, True])[0]


def _adam(b: Any, x: Any, g: Any) -> Callable[[], Any]:
    p, m, s = x.copy(), b.xp.zeros_like(x), b.xp.zeros_like(x)

    def step() -> Any:
        b.adam_step([p], [g], [m], [s], 0.1, 0.9, 0.999, 1e-8, 0.0, False, 1)
        return p

    return step


def _torch_adam(t: Any, x: Any, g: Any) -> Callable[[], Any]:
    p = x.clone().requires_grad_()
    p.grad, optimizer = g, t.optim.Adam([p], lr=0.1, fused=True)

    def step() -> Any:
        optimizer.step()
        return p.detach()

    return step


def _cross_entropy(b: Any, x: Any, g: Any) -> Callable[[], Any]:
    t, weight = (g[:, 0] > 0).astype(np.int64), b.xp.ones(x.shape[1], x.dtype)
    return lambda: b.cross_entropy(x, t, weight, -100, 0.0)[0]


def _torch_cross_entropy(t: Any, x: Any, g: Any) -> Callable[[], Any]:
    target = (g[:, 0] > 0).long()
    return lambda: t.nn.functional.cross_entropy(x, target, reduction="none")


_UNET, _ALEXNET = (4, 16, 512, 512), (64, 96, 30, 30)
MEMORY_ROWS = [
    MemoryRow("ReLU's gradient", _UNET, 3, lambda b, x, g: lambda: b.activation_grad(g, x, "relu"),
              lambda t, x, g: lambda: t.ops.aten.threshold_backward(g, x, 0)),
    MemoryRow("max pooling 2x2", _UNET, 1.3125, lambda b, x, g: lambda: b.max_pool2d(
                  x, **_POOL, dilation=(1, 1), ceil_mode=False)[0],
              lambda t, x, g: lambda: t.nn.functional.max_pool2d(x, 2)),
    MemoryRow("max pooling 2x2, gradient", _UNET, 1.3125, _max_pool_grad, _torch_max_pool_grad),
    MemoryRow("average pooling 2x2", _UNET, 1.25, lambda b, x, g: functools.partial(
                  b.avg_pool2d, x, b.xp.full((x.shape[2] // 2, x.shape[3] // 2), 4, x.dtype), **_POOL),
              lambda t, x, g: lambda: t.nn.functional.avg_pool2d(x, 2)),
    MemoryRow("batch norm", _UNET, 3, lambda b, x, g: lambda: b.batch_norm(x, None, None, None, None, 1e-5)[0],
              lambda t, x, g: lambda: t.nn.functional.batch_norm(x, None, None, training=True)),
    MemoryRow("batch norm, gradient", _UNET, 5, _batch_norm_grad, _torch_batch_norm_grad),
    MemoryRow("local response norm", _ALEXNET, 3, lambda b, x, g: lambda: b.local_response_norm(x, *_LRN)[0],
              lambda t, x, g: lambda: t.nn.functional.local_response_norm(x, *_LRN)),
    MemoryRow("cross entropy a pixel", (4, 2, 512, 512), 3, _cross_entropy, _torch_cross_entropy),
    MemoryRow("Adam", (16_000_000,), 7, _adam, _torch_adam),
]  # fmt: skip


# === the machine =====================================================================================================


class Gpu:
    """The device at hand: its name, its events, its ceilings. Tests put a stand-in in its place."""

    torch_device = "cuda"
    backends = ("cupy", "numba_cuda")
    tf32 = True
    square = 8192  # of the matrices of the probe
    copied = 1 << 30  # bytes of the probe

    def __init__(self) -> None:
        minidl.use_backend("cupy")
        self.xp = get_backend().xp
        self.device = self.xp.cuda.Device()
        self.cache = int(self.device.attributes["L2CacheSize"])

    def describe(self) -> dict[str, str]:
        """Name the device, the driver and the libraries."""
        runtime = self.xp.cuda.runtime
        name = runtime.getDeviceProperties(self.device.id)["name"].decode()
        found = {
            "device": f"{name}, compute capability {self.device.compute_capability}, L2 {self.cache / 1e6:.0f} MB",
            "driver": f"CUDA {runtime.driverGetVersion()}, runtime {runtime.runtimeGetVersion()}",
            "minidl": get_backend().describe(), "host": machine(),
        }  # fmt: skip
        torch = pytorch()
        if torch:
            found["PyTorch"] = f"{torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
        return found

    def milliseconds(self, calls: Sequence[Callable[[], Any]]) -> float:
        """Queue the calls between two events; the milliseconds each took."""
        start, stop = self.xp.cuda.Event(), self.xp.cuda.Event()
        start.record()
        for call in calls:
            call()
        stop.record()
        stop.synchronize()
        return float(self.xp.cuda.get_elapsed_time(start, stop)) / len(calls)

    def launches(self, call: Callable[[], Any]) -> int | None:
        """How many kernels a call launches, counted by PyTorch's profiler, which sees those of others too."""
        torch = pytorch()
        if torch is None:
            return None
        call()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
            call()
            torch.cuda.synchronize()
        on_device = [e.name for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return sum(not name.startswith(("Memcpy", "Memset")) for name in on_device)


@functools.cache
def pytorch() -> Any:
    """PyTorch, None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def turns(gpu: Any, rivals: dict[str, list[Callable[[], Any]]], rounds: int) -> dict[str, dict[str, float]]:
    """Time rivals in turns, each a list of one call on several sets of arrays -> statistics in milliseconds."""
    found: dict[str, list[list[float]]] = {name: [] for name in rivals}
    repeats = {}
    for name, calls in rivals.items():
        for k in range(WARM_UP):
            calls[k % len(calls)]()
        repeats[name] = max(2, min(1000, round(TURN / max(gpu.milliseconds(calls[:2]), 1e-3))))
    for k in range(rounds):
        for name in list(rivals)[:: 1 if k % 2 else -1]:
            calls = rivals[name]
            calls[0]()
            found[name].append([gpu.milliseconds([calls[i % len(calls)] for i in range(repeats[name])])])
    return {name: statistic(values) for name, values in found.items()}


@contextmanager
def precision(name: str) -> Iterator[None]:
    """minidl and PyTorch in float32, or in TF32 where the name of a rival says so."""
    torch, fast = pytorch(), "TF32" in name
    if fast:
        minidl.set_matmul_precision("high")
    if torch:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = fast
    try:
        yield
    finally:
        if fast:
            minidl.set_matmul_precision("highest")


def within(name: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call in the precision of its rival."""

    def run() -> Any:
        with precision(name):
            return call()

    return run


class Run:
    """One run: the machine, the rows so far, what was wrong or left out."""

    def __init__(self, gpu: Any, rounds: int) -> None:
        self.gpu, self.rounds = gpu, rounds
        self.rows: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.notes: list[str] = []
        if pytorch() is None:
            self.notes.append("PyTorch is not installed: minidl runs without its peer (pip install -e '.[bench]')")
        self.ceilings = self.measure()

    def measure(self) -> dict[str, float]:
        """The best of some copies in bytes/s, of some products of matrices in FLOP/s, float32 and TF32."""
        xp, n, torch = self.gpu.xp, self.gpu.square, pytorch()
        source = xp.ones(self.gpu.copied // 4, np.float32)
        goal, a = xp.empty_like(source), xp.ones((n, n), np.float32)

        def copy() -> None:
            goal[...] = source

        def best(call: Callable[[], Any]) -> float:
            call()
            return min(self.gpu.milliseconds([call] * 3) for _ in range(5)) / 1e3

        found = {"bandwidth": 2 * self.gpu.copied / best(copy), "float32": 2 * n**3 / best(lambda: a @ a)}
        if torch:
            b = torch.ones(n, n, device=self.gpu.torch_device)
            found["float32"] = max(found["float32"], 2 * n**3 / best(within("float32", lambda: b @ b)))
            if self.gpu.tf32:
                found["TF32"] = 2 * n**3 / best(within("TF32", lambda: b @ b))
        return found

    def finish(self, row: dict[str, Any], rivals: dict[str, list[Callable[[], Any]]]) -> None:
        """Time the rivals and keep the row."""
        if rivals:
            self.rows.append(row | {"times": turns(self.gpu, rivals, self.rounds)})

    def attempt(self, row: str, rival: str, make: Callable[[], Any]) -> Any:
        """What `make` gives; None, with a note, where it fails. A wrong result of minidl's is an error of the run."""
        try:
            with precision(rival):
                return make()
        except rows.Wrong as error:
            self.wrong.append(f"{rival}: {error}")
        except Exception as error:  # no memory, no such kernel: the others go on
            self.notes.append(f"{row}: {rival} left out: {one_line(error)}")
            if rival.startswith("minidl"):
                self.wrong.append(self.notes[-1])
        return None

    def sets(self, size: float) -> int:
        """How many sets of arrays of this size are more than the L2 cache holds, twice over."""
        return max(1, min(MOST_SETS, math.ceil(2 * self.gpu.cache / size)))

    def rivals(self) -> list[tuple[str, Callable[[], Any]]]:
        """Names and makers of all that run convolutions: minidl, the ladder, cuDNN."""
        fast = ["minidl TF32"] if self.gpu.tf32 else []
        found: list[tuple[str, Callable[[], Any]]] = [
            (name, lambda: Minidl(self.gpu.backends[0], 1)) for name in ["minidl", *fast]
        ]
        if len(self.gpu.backends) > 1:
            found += [(f"numba {rung}", functools.partial(self.ladder, rung)) for rung in RUNGS]
        if pytorch():
            from benchmarks.peers import Torch

            kinds = ["cuDNN", *(["cuDNN TF32"] if self.gpu.tf32 else [])]
            found += [
                (f"{kind}, {layout}", lambda: Torch(1, self.gpu.torch_device))
                for kind in kinds
                for layout in ("channels-first", "channels-last")
            ]
        return found

    def ladder(self, rung: str) -> Any:
        """minidl with the numba_cuda backend on this rung."""
        rival = Minidl(self.gpu.backends[1], 1)
        get_backend().rung = rung  # type: ignore[attr-defined]
        return rival

    def layer(self, layer: rows.Layer) -> None:
        """Verify a convolution by every rival and time its three passes."""
        print(f"... {layer.name}", file=sys.stderr, flush=True)
        calls: dict[str, dict[str, list[Callable[[], Any]]]] = {which: {} for which in rows.PASSES}
        for name, make in self.rivals():

            def prepare(name: str = name, make: Callable[[], Any] = make) -> list[dict[str, Any]]:
                rival, mode = make(), name.partition(", ")[2]
                backend = get_backend()
                made = [rival.layer(layer, mode) for _ in range(self.sets(layer.bytes))]
                results = [host(call()) for call in made[0][0]]
                tolerance = TF32_ERROR if "TF32" in name else rows.ERROR
                rows.verify(layer, *map(host, made[0][1]), *results, tolerance)
                return [layer.passes([within(name, _again(backend, name, call)) for call in each]) for each, _ in made]

            for passes in self.attempt(layer.name, name, prepare) or []:
                for which, call in passes.items():
                    calls[which].setdefault(name, []).append(call)
        for which, rivals in calls.items():
            row = {
                "kind": "layer", "name": layer.name, "pass": which, "operations": layer.operations,
                "bytes": layer.bytes, "count": layer.count, "kernel": list(layer.case.w[2:]), "batch": layer.case.x[0],
                "channels": min(layer.case.w[0], layer.case.x[1]) // layer.case.groups,
            }  # fmt: skip
            self.finish(row, rivals)

    def memory(self, row: MemoryRow) -> None:
        """Compare minidl's results, and PyTorch's, with those of array code on the processor, and time them."""
        print(f"... {row.name}", file=sys.stderr, flush=True)
        x, g = rows.noise(row.shape, 3), rows.noise(row.shape, 5)
        sets, torch = self.sets(row.bytes), pytorch()
        made: dict[str, list[Callable[[], Any]]] = {}
        for name, backend in zip(("minidl", "numba"), self.gpu.backends, strict=False):

            def ours(backend: str = backend) -> list[Callable[[], Any]]:
                with minidl.use_backend(backend) as active:
                    return [row.minidl(active, *(move(a, backend) for a in (x, g))) for _ in range(sets)]

            made[name] = self.attempt(row.name, name, ours) or []
        if torch:
            there = self.gpu.torch_device
            make = lambda: [row.torch(torch, *(torch.tensor(a, device=there) for a in (x, g))) for _ in range(sets)]  # noqa: E731
            made["PyTorch"] = self.attempt(row.name, "PyTorch", make) or []
        results = {name: host(calls[0]()) for name, calls in made.items() if calls}
        true = row.minidl(NumpyBackend(), x, g)()
        for name, result in results.items():
            if not np.abs(result - true).max() <= 1e-4 * np.abs(true).max():
                self.wrong.append(f"{row.name}: {name} and array code differ")
                made[name] = []
        self.finish(
            {"kind": "memory", "name": row.name, "pass": "", "operations": 0.0, "bytes": row.bytes},
            {name: calls for name, calls in made.items() if calls},
        )

    def step(self, workload: rows.Workload) -> None:
        """Compare the losses of the first two steps without dropout, then time whole training steps."""
        print(f"... {workload.name}", file=sys.stderr, flush=True)
        rivals, losses = {}, {}
        modes = ("channels-first", "channels-last") if len(workload.x) == 4 else ("eager, fused Adam",)
        makers = {name: make for name, make in self.rivals() if name in ("minidl", "minidl TF32", "numba blocked")}
        kinds = ["PyTorch", *(["PyTorch TF32"] if self.gpu.tf32 else [])] if pytorch() else []
        for name in [*makers, *(f"{kind}, {mode}" for kind in kinds for mode in modes)]:

            def prepare(name: str = name) -> tuple[Callable[[], Any], list[float]]:
                if name.startswith("PyTorch"):
                    from benchmarks.peers import Torch

                    step, dropouts = Torch(1, self.gpu.torch_device).step(workload, name.partition(", ")[2])
                else:
                    step, dropouts = makers[name]().step(workload, "")
                    step = _again(get_backend(), name, step)
                probabilities = [layer.p for layer in dropouts]
                for layer in dropouts:
                    layer.p = 0.0
                first = [float(step()), float(step())]
                for layer, p in zip(dropouts, probabilities, strict=True):
                    layer.p = p
                return step, first

            found = self.attempt(workload.name, name, prepare)
            if found:
                rivals[name], losses[name] = [within(name, found[0])], found[1]
        judge = losses.get(f"PyTorch, {modes[0]}")
        for name, values in losses.items():
            room = [10 * e if "TF32" in name else e for e in LOSS_ERROR]
            if judge and not all(abs(a - b) <= e * abs(b) for a, b, e in zip(values, judge, room, strict=True)):
                self.wrong.append(f"{workload.name}: {name} has losses {values}, PyTorch {judge}")
                del rivals[name]
        row = {"kind": "step", "name": workload.name, "pass": "step", "operations": workload.operations, "bytes": None}
        if "minidl" in rivals:
            call = rivals["minidl"][0]
            row["launches"] = self.attempt(workload.name, "PyTorch's profiler", lambda: self.gpu.launches(call))
        self.finish(row, rivals)


def _again(backend: Any, name: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with the backend that made it active; the rungs of the ladder share one."""
    if name.startswith("cuDNN"):
        return call

    def run() -> Any:
        with minidl.use_backend(backend.name):
            if name.startswith("numba"):
                backend.rung = name.split()[1]
            return call()

    return run


def host(array: Any) -> np.ndarray:
    """A NumPy array of one of minidl's or PyTorch's."""
    return array.detach().cpu().numpy() if hasattr(array, "detach") else to_host(array)


# === the report ======================================================================================================


def share(row: dict[str, Any], name: str, ceilings: dict[str, float]) -> float | None:
    """The time that the measured ceilings allow, of arithmetic or memory, over the time taken; Winograd may pass 1."""
    peak = ceilings.get("TF32" if "TF32" in name else "float32")
    if name not in row["times"] or not peak or row["kind"] == "step":
        return None
    least = max(row["operations"] / peak, row["bytes"] / ceilings["bandwidth"])
    return least / (row["times"][name]["median"] / 1e3)


def rival_of(row: dict[str, Any], name: str) -> str | None:
    """PyTorch's fastest mode in the precision of minidl's."""
    kind = ("cuDNN" if row["kind"] == "layer" else "PyTorch") + (" TF32" if "TF32" in name else "")
    modes = [other for other in row["times"] if other.partition(",")[0] == kind]
    return min(modes, key=lambda other: row["times"][other]["median"], default=None)


def ratio(row: dict[str, Any], name: str) -> float | None:
    """PyTorch's time over minidl's: above 1 minidl is faster."""
    rival = rival_of(row, name)
    if rival is None or name not in row["times"]:
        return None
    return row["times"][rival]["median"] / row["times"][name]["median"]  # type: ignore[no-any-return]


def targets(results: dict[str, Any]) -> list[tuple[str, float, float, str]]:
    """Each target, what was reached by the slowest of its rows, and which that was."""
    ceilings, found = results["ceilings"], []
    layers = [row for row in results["rows"] if row["kind"] == "layer"]
    wide = [row for row in layers if row["channels"] >= 64 and row["batch"] == 64]
    values: list[list[tuple[float | None, str]]] = [
        [(ratio(row, "minidl"), label(row)) for row in layers if row["kernel"] == [3, 3]],
        [(ratio(row, "minidl"), label(row)) for row in layers if row["kernel"] != [3, 3]],
        [(share(row, "minidl TF32", ceilings), label(row)) for row in wide],
        [(share(row, "minidl", ceilings), label(row)) for row in results["rows"] if row["kind"] == "memory"],
        [(ratio(row, "minidl"), label(row)) for row in results["rows"] if row["kind"] == "step"],
    ]
    for (what, least), reached in zip(TARGETS.items(), values, strict=True):
        known = [(value, name) for value, name in reached if value is not None]
        if known:
            found.append((what, least, *min(known)))
    return found


def label(row: dict[str, Any]) -> str:
    """A row in words."""
    return f"{row['name']}, {row['pass']}" if row["pass"] else row["name"]


def table(results: dict[str, Any], kind: str) -> str:
    """The rows of a kind: minidl's times, speed, share of the ceiling, and ratio to PyTorch's best."""
    chosen = [row for row in results["rows"] if row["kind"] == kind]
    names = [name for name in ("minidl", "minidl TF32") if any(name in row["times"] for row in chosen)]
    columns = "TFLOP/s", "of ceiling", "PyTorch's best, ms", "its time / ours"
    head = ["what", *(text for name in names for text in (f"{name}, ms", *columns))]
    if kind == "step":
        head.append("launches")
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    for row in chosen:
        cells = [label(row)]
        for name in names:
            best, part, times = rival_of(row, name), share(row, name, results["ceilings"]), row["times"].get(name)
            cells += [milliseconds(times), speed(row, times), "" if part is None else f"{100 * part:.0f} %"]
            cells.append(f"{milliseconds(row['times'][best])} ({best.partition(', ')[2] or best})" if best else "")
            won = ratio(row, name)
            cells.append("" if won is None else f"{won:.2f}")
        if kind == "step":
            cells.append(str(row.get("launches") or ""))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def milliseconds(times: dict[str, float] | None) -> str:
    """A time with its spread."""
    return "" if times is None else f"{times['median']:.3g} ± {100 * times['spread']:.0f} %"


def speed(row: dict[str, Any], times: dict[str, float] | None) -> str:
    """TFLOP/s by the definition's operations."""
    return "" if times is None or not row["operations"] else f"{row['operations'] / times['median'] / 1e9:.3g}"


def ladder(results: dict[str, Any]) -> str:
    """The rungs of the numba_cuda backend: geometric means over the convolutions that all of them ran."""
    names = [f"numba {rung}" for rung in RUNGS]
    layers = [row for row in results["rows"] if row["kind"] == "layer"]
    chosen = [row for row in layers if {*names, "minidl"} <= row["times"].keys()]
    lines = ["| rung | share of the ceiling | of minidl's speed with cupy |", "|---|--:|--:|"]
    for name in names if chosen else []:
        parts = [share(row, name, results["ceilings"]) or 0.0 for row in chosen]
        gains = [row["times"]["minidl"]["median"] / row["times"][name]["median"] for row in chosen]
        means = [math.exp(sum(map(math.log, v)) / len(v)) for v in (parts, gains)]
        lines.append(f"| {name.split()[1]} | {100 * means[0]:.1f} % | {100 * means[1]:.1f} % |")
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """Everything, to be read."""
    ceilings = results["ceilings"]
    peaks = ", ".join(f"{v / 1e12:.1f} TFLOP/s {k}" for k, v in ceilings.items() if k != "bandwidth")
    lines = [f"- {name}: {text}" for name, text in results["machine"].items()]
    copy = f"{ceilings['bandwidth'] / 1e9:.0f} GB/s (a copy, read and written)"
    lines += [f"- measured ceilings: {copy}, {peaks} (products of matrices)"]
    lines += [f"- date: {results['date']}, commit {results['commit']}, {results['minutes']:.1f} minutes"]
    lines += [f"- command: `{results['command']}`", *(f"- note: {note}" for note in results["notes"])]
    lines += [f"- **wrong**: {wrong}" for wrong in results["wrong"]]
    lines += ["", "| target, for the slowest row | at least | reached | verdict | by |", "|---|--:|--:|---|---|"]
    for what, least, reached, name in targets(results):
        verdict = "reached" if reached >= least else "**missed**"
        lines.append(f"| {what} | {least} | **{reached:.2f}** | {verdict} | {name} |")
    lines += ["", "#### The ladder of numba_cuda, geometric means over the convolutions", "", ladder(results), ""]
    titles = {"step": "Training steps", "layer": "Convolutions", "memory": "Kernels bound by memory"}
    for kind, title in titles.items():
        if any(row["kind"] == kind for row in results["rows"]):
            lines += [f"#### {title}", "", table(results, kind), ""]
    return "\n".join(lines)


def write(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write gpu.json, and the Markdown into the folder's README.md if it has a place for it, else gpu.md."""
    around = report.section(folder, BEGIN, END)
    paths = [folder / "gpu.json", folder / ("README.md" if around else "gpu.md")]
    with atomic_write(paths[0]) as part:
        part.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = markdown(results)
    with atomic_write(paths[1]) as part:
        part.write_text(f"{around[0]}\n{text}\n{around[1]}" if around else text, encoding="utf-8")
    return paths


def main(argv: list[str] | None = None, make: Callable[[], Any] = Gpu) -> int:
    """Measure, print, write; 1 if there is no GPU or a result was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Time convolutions, kernels bound by memory and training steps on a GPU beside PyTorch and cuDNN.",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer layers and turns")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose names contain this")
    parser.add_argument("--rounds", type=int, default=9, help="turns of a rival, 3 to 1000")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), metavar="DIR",
                        help="folder for gpu.json, and gpu.md or a place for it in README.md")  # fmt: skip
    args = parser.parse_args(argv)
    if not 3 <= args.rounds <= 1000:
        parser.error("--rounds must be between 3 and 1000")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is not a folder")
    if report.section(args.out, BEGIN, END) and (args.quick or args.only):
        parser.error(f"{args.out}/README.md holds full runs only: leave --quick and --only, or choose --out")
    try:
        gpu = make()
    except (RuntimeError, ValueError) as error:
        print(f"nothing to time without a GPU: {error}", file=sys.stderr)
        return 1
    network = {w.name: w for w in STEPS if not args.quick or w.quick}
    layers = [layer for layer in [*rows.network_layers(), *rows.record(STEPS[-1])[0]] if layer.quick or not args.quick]
    layers = [layer for layer in layers if args.only in layer.name]
    memory = [row for row in MEMORY_ROWS if args.only in row.name]
    steps = [w for name, w in network.items() if args.only in name]
    if not layers and not memory and not steps:
        parser.error(f"no row's name contains {args.only!r}")
    start = time.perf_counter()
    run = Run(gpu, 3 if args.quick else args.rounds)
    for layer in layers:
        run.layer(layer)
    for row in memory:
        run.memory(row)
    for workload in steps:
        run.step(workload)
    results = {
        "machine": gpu.describe(), "date": str(date.today()), "commit": commit(),
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *(sys.argv[1:] if argv is None else argv)]),
        "minutes": (time.perf_counter() - start) / 60, "ceilings": run.ceilings, "notes": run.notes,
        "wrong": run.wrong, "rows": run.rows,
    }  # fmt: skip
    for what, least, reached, name in targets(results):
        print(f"{what}: {reached:.2f}, at least {least} wanted ({name})")
    for path in write(results, args.out):
        print(f"wrote {path}")
    for text in run.wrong:
        print(f"WRONG {text}")
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
