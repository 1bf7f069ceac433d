"""One rival in a process of its own, with its own allocator and its own threads: `worker.py NAME THREADS`.

It reads requests, one JSON object a line, and answers each in a line: `prepare` builds and verifies a row and keeps it
ready, `turn` times some calls of one pass in one mode, `ceilings` measures the machine.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import minidl
from benchmarks.rows import WORKLOADS, Layer, Workload, Wrong, noise, verify
from minidl import Tensor, no_grad, optim
from minidl import functional as F
from minidl.backends import get_backend
from minidl.cases.kernels import ConvCase
from minidl.device import RecordedStep

LEARNING_RATE = 1e-4  # small: the same batch comes hundreds of times


class Minidl:
    """minidl with one of its backends."""

    def __init__(self, backend: str, threads: int) -> None:
        if backend != "minidl":
            minidl.use_backend(backend)
        minidl.set_num_threads(threads)
        self.describe = f"{get_backend().name}: {get_backend().describe()}"

    def modes_of(self, row: Layer | Workload) -> tuple[str, ...]:
        """As it comes and, for steps of dense layers by the C++ kernels, recorded: what torch.compile is to PyTorch."""
        recorded = isinstance(row, Workload) and row.dense and row.training and get_backend().name == "cpp"
        return ("", "recorded") if recorded else ("",)

    def ceiling(self) -> list[Callable[[], Any]]:
        """A product of matrices by the kernels: some BLAS do not know what a processor can."""
        a = np.ones((2048, 2048), np.float32)
        return [lambda: get_backend().linear_grad_x(a, a)]

    def layer(self, layer: Layer, mode: str) -> tuple[list[Any], tuple[Any, Any, Any]]:
        """The three kernels as calls without arguments, and x, w, g; images as the backend's results lie in memory."""
        backend, case = get_backend(), layer.case
        x, w = layer.arrays()
        if backend.name == "cpp":
            x = channels_last(x)
        xp = backend.xp
        x, w = xp.asarray(x), xp.asarray(w)
        y = backend.conv2d(x, w, None, **case.options)
        g = xp.add(y, xp.asarray(0.1 * noise(y.shape, 5)), out=xp.empty_like(y))  # in y's layout
        return [
            lambda: backend.conv2d(x, w, None, **case.options),
            lambda: backend.conv2d_grad_x(g, w, case.x, **case.options),
            lambda: backend.conv2d_grad_w(g, x, case.w, **case.options),
        ], (x, w, g)

    def step(self, workload: Workload, mode: str) -> tuple[Callable[[], Any], list[Any]]:
        """One training step giving the loss, or one inference giving the scores; and the dropout layers."""
        model = workload.model()
        model.train(workload.training)
        data, target = map(get_backend().xp.asarray, workload.batch())
        loss_of = F.cross_entropy if workload.target in ("label", "mask") else F.mse_loss
        optimizer = optim.Adam(model.parameters(), lr=LEARNING_RATE)

        def step() -> Any:
            loss = loss_of(model(Tensor(data)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        if mode == "recorded":
            batch = (data,) if target is data else (data, target)
            recorded = RecordedStep(
                model, lambda model, batch: loss_of(model(Tensor(batch[0])), batch[-1]), [*model.parameters()]
            )

        def repeat() -> Any:
            optimizer.zero_grad()
            loss = recorded(batch)
            optimizer.step()
            return loss

        def infer() -> Any:
            with no_grad():
                return model(Tensor(data)).data

        run = infer if not workload.training else repeat if mode == "recorded" else step
        return run, [m for m in model.modules() if hasattr(m, "p")]


def channels_last(x: np.ndarray) -> np.ndarray:
    """The same (N, C, H, W), its memory in the order N, H, W, C."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def make_rival(name: str, threads: int) -> Any:
    """The rival of this name: minidl's fastest backend, another one of its backends, or PyTorch."""
    if not name.startswith("torch"):
        return Minidl(name, threads)
    from benchmarks.peers import Torch

    return Torch(threads)


class Bench:
    """What a worker does, request by request."""

    def __init__(self, name: str, threads: int) -> None:
        self.rival, self.threads = make_rival(name, threads), threads
        self.calls: dict[str, Callable[[], Any]] = {}

    def hello(self) -> dict[str, Any]:
        """Tell who is here."""
        return {"describe": self.rival.describe}

    def prepare_layer(self, case: list[Any], transposed: bool) -> dict[str, Any]:
        """Verify a convolution in every mode and keep its passes ready."""
        name, x, w, *options, groups = case
        layer = Layer(ConvCase(name, tuple(x), tuple(w), *map(tuple, options), groups), transposed=transposed)
        self.calls = {}
        for mode in self.rival.modes_of(layer):
            calls, arrays = self.rival.layer(layer, mode)
            verify(layer, *map(np.asarray, arrays), *(np.asarray(call()) for call in calls))
            self.calls |= {f"{mode}|{which}": call for which, call in layer.passes(calls).items()}
        return {"calls": list(self.calls)}

    def prepare_workload(self, name: str, compiled: bool = False, steps: int = 2) -> dict[str, Any]:
        """Run some steps in every mode without dropout, for their losses, their time and the memory they take."""
        workload = next(w for w in WORKLOADS if w.name == name)
        self.calls, found = {}, {}
        for mode in self.rival.modes_of(workload):
            if mode == "compiled" and not compiled:
                continue
            try:
                found[mode] = self._two_steps(workload, mode, steps)
            except Exception as error:  # no compiler, no memory: the other modes go on
                found[mode] = {"error": one_line(error)}
        return {"calls": list(self.calls), "found": found}

    def _two_steps(self, workload: Workload, mode: str, steps: int) -> dict[str, Any]:
        step, dropouts = self.rival.step(workload, mode)
        probabilities = [layer.p for layer in dropouts]
        for layer in dropouts:
            layer.p = 0.0
        numbers, before = [], level()
        for _ in range(steps):
            start = time.perf_counter()
            numbers += sample(step())
            seconds = time.perf_counter() - start
        memory = None if before is None or mode == "compiled" else peak() - before  # not that of compiling
        for layer, p in zip(dropouts, probabilities, strict=True):
            layer.p = p
        self.calls[f"{mode}|step"] = step
        return {"numbers": numbers, "seconds": seconds, "memory": memory}

    def turn(self, call: str, repeats: int) -> dict[str, Any]:
        """Time some calls in a row, in seconds each, behind one that is not timed."""
        run, seconds = self.calls[call], []
        run()
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    def ceilings(self) -> dict[str, Any]:
        """The best of some products of 2048² matrices in FLOP/s, and of some copies of 256 MB in bytes/s."""
        a = np.ones((2048, 2048), np.float32)
        flops = max(2 * 2048**3 / best(product) for product in [lambda: a @ a, *self.rival.ceiling()])
        source, goal = np.ones((self.threads, 1 << 26 >> 1), np.float32), np.empty((self.threads, 1 << 25), np.float32)
        with ThreadPoolExecutor(self.threads) as pool:
            copy = best(lambda: list(pool.map(lambda k: np.copyto(goal[k], source[k]), range(self.threads))))
        return {"flops": flops, "bandwidth": 2 * source.nbytes / copy}


def best(call: Callable[[], Any], times: int = 15) -> float:
    """The shortest of some calls, in seconds."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def one_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    return " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])


def sample(result: Any) -> list[float]:
    """A loss as it is, scores by 50 of them."""
    if isinstance(result, float):
        return [result]
    return [float(v) for v in np.asarray(result).reshape(-1)[:: max(1, result.size // 50)]]


# --- memory: Linux tells the largest resident size since it was last asked to forget it


def level() -> int | None:
    """Give unused memory back, forget the peak, and tell the bytes in use; None where the system does not tell."""
    gc.collect()
    try:
        if library := ctypes.util.find_library("c"):
            ctypes.CDLL(library).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return _status("VmRSS")
    except (OSError, AttributeError):
        return None


def peak() -> int:
    """The most bytes that were in use since `level`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))


def main() -> None:
    """Answer requests until there are no more. Whatever libraries print goes to stderr, not between the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    bench = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            bench = bench or Bench(sys.argv[1], int(sys.argv[2]))
            answer = getattr(bench, request.pop("do"))(**request)
        except Wrong as error:
            answer = {"wrong": str(error)}
        except Exception as error:  # the parent leaves this rival out of the row, and says why
            answer = {"error": one_line(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
