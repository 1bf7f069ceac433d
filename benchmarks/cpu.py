"""Time minidl on a CPU beside its other backends and PyTorch: python -m benchmarks.cpu [--quick] [--check] [--out DIR].

Three questions: how fast is each convolution, forward and backward; how fast is a whole training step; how much memory
does it take. Each rival runs in a process of its own (worker.py), PyTorch once with its allocator as it comes and once
tuned. All are ready at the same time and take turns, forwards and then backwards through the list, so that a busy
machine slows all alike: a pause for the threads of the one before to fall asleep, a call to warm up, some timed calls.
Nothing is timed before its results were verified.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.rows import WORKLOADS, Layer, Workload, case_layers, network_layers
from minidl import get_num_threads
from minidl.backends import backends

ROOT = Path(__file__).parents[1]
# What glibc does by default, give large blocks back at once and fault every page in again, is half of a U-Net's step.
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "99999999999", "MALLOC_TOP_PAD_": str(1 << 30)}
COMMITTED = ROOT / "benchmarks" / "cpu.json"  # what --check compares with
TURN = 0.01  # seconds: a turn is two calls, or as many as fill this time, behind one that is not timed
STEP_TURN = 0.1  # the same for whole steps, of which a training does thousands in a row: it finds the caches its own
PAUSE = 0.02  # seconds before a turn: OpenMP's threads go on spinning for some milliseconds after a call
LONG_PAUSE = 0.15  # seconds before a row: OpenBLAS's threads spin for 2^26 cycles, and its rivals find a core taken
LAYER_BUDGET, STEP_BUDGET = 1.0, 6.0  # seconds for all turns of a row, of which there are at least three
SIDE = ("numpy", "numba")  # minidl's other backends: timed behind the others where that takes no minutes
SLOW = 0.25  # a turn of numpy or numba that takes longer is their only one
LOSS_ERROR = (2e-5, 1e-3)  # relative: before any step, and after Adam's first, which divides rounding by rounding


class Dead(Exception):
    """A worker ended before it answered, or could not do what it had prepared."""


class Worker:
    """The parent's end of a rival's process."""

    def __init__(self, name: str, threads: int) -> None:
        variables = ("OPENBLAS", "OMP", "MKL", "VECLIB_MAXIMUM", "MINIDL", "NUMBA")
        environment = os.environ | {f"{variable}_NUM_THREADS": str(threads) for variable in variables}
        environment |= TUNED if name == "torch tuned" else {}
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", name, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, cwd=ROOT, env=environment,
        )  # fmt: skip

    def send(self, do: str, **request: Any) -> None:
        """Send a request; `receive` waits for its answer."""
        assert self.process.stdin
        with suppress(OSError):  # a dead worker is found out by `receive`
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The answer to the request sent last; Dead if there is none."""
        assert self.process.stdout
        answer = self.process.stdout.readline()
        if not answer:
            raise Dead(f"the process of {self.name} ended with status {self.process.wait()}")
        return json.loads(answer)

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        self.send(do, **request)
        return self.receive()

    def close(self) -> None:
        """Let the worker end."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.close()
            self.process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@contextmanager
def team(names: Iterable[str], threads: int) -> Iterator[list[Worker]]:
    """Fresh workers of these names, started at the same time."""
    with ExitStack() as stack:
        workers = [Worker(name, threads) for name in names]
        for worker in workers:
            stack.callback(worker.close)
        yield workers


class Run:
    """One run of the benchmark: who takes part, and the results so far."""

    def __init__(self, names: list[str], rounds: int, quick: bool) -> None:
        self.names, self.rounds, self.quick = names, rounds, quick
        self.rows: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.notes: list[str] = []
        self.versions: dict[str, str] = {}
        self.ceilings: dict[str, dict[str, float]] = {}

    def introduce(self, threads: int) -> None:
        """Start every rival once: its version, and the machine's ceilings; who cannot start takes no part."""
        found: list[dict[str, float]] = []
        with team(self.names, threads) as workers:
            for worker in workers:
                try:
                    hello = worker.ask("hello")
                except Dead as error:
                    hello = {"error": str(error)}
                if "error" in hello:
                    self.names.remove(worker.name)
                    self.note(f"{worker.name} cannot run here and is left out: {hello['error']}")
                    continue
                self.versions.setdefault(worker.name, hello["describe"])
                if worker.name == "minidl" and not hello["describe"].startswith("cpp"):
                    raise SystemExit("nothing to time: minidl's C++ kernels are not built here; see README")
            for worker in workers:  # now that all have started and nobody is busy
                if worker.name in ("minidl", "torch") and worker.name in self.names:
                    time.sleep(PAUSE)
                    found.append(worker.ask("ceilings"))
        if "minidl" not in self.names:
            raise SystemExit(f"nothing to time: {self.notes[-1]}")
        self.ceilings[str(threads)] = {key: max(each[key] for each in found) for key in ("flops", "bandwidth")}

    def note(self, text: str) -> None:
        """Say something once, now and in the report."""
        if text not in self.notes:
            self.notes.append(text)
            print(text, file=sys.stderr, flush=True)

    def fewer(self) -> list[str]:
        """All rivals but PyTorch with its default allocator, where there is PyTorch with a tuned one."""
        return [name for name in self.names if name != "torch" or "torch tuned" not in self.names]

    def compiles(self, worker: Worker, workload: Workload, all_threads: bool) -> bool:
        """Whether there is time for torch.compile: once a workload, with the allocator that is its faster one."""
        return not self.quick and all_threads and workload.quick and worker.name == self.fewer()[-1]

    def layers(self, layers: list[Layer], threads: int, most: int) -> None:
        """Time all passes of some convolutions."""
        thorough = threads == most and not self.quick
        with team(self.names if thorough else self.fewer(), threads) as team_:
            for layer in layers:
                side = layer.operations < (5e9 if thorough else 5e8)
                workers = [worker for worker in team_ if side or worker.name not in SIDE]
                print(f"... {layer.name}, {threads} threads", file=sys.stderr, flush=True)
                calls: dict[str, dict[str, tuple[Worker, str]]] = {}
                for worker in workers:  # all at the same time: nothing is measured yet
                    worker.send("prepare_layer", case=layer.case, transposed=layer.transposed)
                for worker in workers:
                    answer = self.answer(worker, layer.name)
                    for call in answer.get("calls", []):
                        mode, _, which = call.partition("|")
                        calls.setdefault(which, {})[label(worker.name, mode)] = (worker, call)
                for which, rivals in calls.items():
                    row = {
                        "kind": "layer" if layer.network else "case", "name": layer.name, "pass": which,
                        "threads": threads, "operations": layer.operations, "bytes": layer.bytes, "count": layer.count,
                    }  # fmt: skip
                    self.finish(row, rivals, LAYER_BUDGET / 3 if self.quick or not layer.network else LAYER_BUDGET)

    def workload(self, workload: Workload, threads: int, most: int) -> None:
        """Time the steps of one network in fresh workers, after comparing their losses."""
        print(f"... {workload.name}, {threads} threads", file=sys.stderr, flush=True)
        side = [] if self.quick or threads < most else [name for name in self.names if name in SIDE]
        peers = self.names if threads == most else self.fewer()
        names = [name for name in peers if name not in SIDE] + side
        if len(names) == 1 and "numpy" in self.names:
            names.append("numpy")  # someone must say what is right
        row: dict[str, Any] = {
            "kind": "step", "name": workload.name, "pass": "step", "threads": threads, "bytes": None, "memory": {},
            "operations": workload.operations,
        }  # fmt: skip
        with team(names, threads) as workers:
            rivals, numbers, once = {}, {}, {}
            for worker in workers:
                alone = worker.name in SIDE
                if worker.name == "numba":
                    worker.ask("prepare_layer", case=case_layers()[0].case, transposed=False)  # compiles its kernels
                options = {"steps": 1} if alone else {"compiled": self.compiles(worker, workload, threads == most)}
                worker.send("prepare_workload", name=workload.name, **options)
                answer = self.answer(worker, workload.name)
                for mode, found in answer.get("found", {}).items():
                    name = label(worker.name, mode)
                    if "error" in found:
                        self.leave_out(workload.name, name, found["error"])
                        continue
                    numbers[name] = found["numbers"]
                    row["memory"][name] = found["memory"]
                    rivals[name] = (worker, f"{mode}|step")
                    if alone and found["seconds"] > SLOW:
                        once[name] = found["seconds"]
            for name in disagreeing(numbers, workload.training):
                self.wrong.append(
                    f"{workload.name}, {threads} threads: {name} gives {numbers[name][:2]}, others do not"
                )
                print(self.wrong[-1], file=sys.stderr, flush=True)
                del rivals[name]
            self.finish(row, rivals, STEP_BUDGET / 2 if self.quick else STEP_BUDGET, STEP_TURN, once)

    def answer(self, worker: Worker, row: str) -> dict[str, Any]:
        """A worker's answer to what it was asked to prepare; a wrong result, an error or its end is noted."""
        try:
            answer = worker.receive()
        except Dead as error:
            answer = {"error": str(error)}
        if "wrong" in answer:
            self.wrong.append(f"{worker.name}: {answer['wrong']}")
            print(self.wrong[-1], file=sys.stderr, flush=True)
        elif "error" in answer:
            self.leave_out(row, worker.name, answer["error"])
        return answer

    def leave_out(self, row: str, rival: str, error: str) -> None:
        """Say why a rival is not in a row; for minidl itself that is as bad as a wrong result."""
        self.note(f"{row}: {rival} left out: {error}")
        if rival == "minidl":
            self.wrong.append(f"{row}: {error}")

    def finish(
        self,
        row: dict[str, Any],
        rivals: dict[str, tuple[Worker, str]],
        budget: float,
        turn: float = TURN,
        once: dict[str, float] | None = None,
    ) -> None:
        """Let the rivals take turns, and keep the row with its times."""
        if "minidl" not in rivals:
            return
        try:
            times = take_turns(rivals, self.rounds, budget, turn, once or {})
        except Dead as error:
            self.leave_out(f"{row['name']}, {row['pass']}", "minidl", str(error))
        else:
            self.rows.append(row | {"times": times} | report.ratios(times))


def label(worker: str, mode: str) -> str:
    """Name a rival in one of its modes: "torch tuned, channels-last"."""
    return f"{worker}, {mode}" if mode else worker


def disagreeing(numbers: dict[str, list[float]], training: bool) -> list[str]:
    """Whose losses or scores differ by more than rounding from PyTorch's or, where it is not, from numpy's."""
    judge = next((name for name in numbers if name.startswith("torch")), "numpy")
    if judge not in numbers:
        return []
    bad = []
    for name, values in numbers.items():
        pairs = list(zip(values, numbers[judge], strict=False))
        if training:
            right = all(abs(a - b) <= LOSS_ERROR[k] * abs(b) for k, (a, b) in enumerate(pairs))
        else:
            right = np.allclose(*zip(*pairs, strict=True), rtol=0, atol=2e-4 * max(abs(b) for _, b in pairs))
        if not right:
            bad.append(name)
    return bad if judge not in bad else list(numbers)


def take_turns(
    rivals: dict[str, tuple[Worker, str]], rounds: int, budget: float, turn: float, once: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Time each rival in turns; a first one tells how many calls fill a turn, and how many rounds the budget."""
    turns: dict[str, list[list[float]]] = {name: [[once[name]]] if name in once else [] for name in rivals}
    time.sleep(LONG_PAUSE)
    peers = [name for name in rivals if name.partition(",")[0] not in SIDE]
    for names in (peers, [name for name in rivals if name not in peers and name not in once]):
        repeats, cost = {}, 0.0
        for name in names:
            time.sleep(PAUSE)
            took = min(timed(*rivals[name], 2))
            if names is not peers and took > SLOW:
                turns[name] = [[took]]
                continue
            repeats[name] = max(2, min(1000, round(turn / max(took, 1e-6))))
            cost += PAUSE + took * (repeats[name] + 1)
        for k in range(max(3, min(rounds, int(budget / max(cost, 1e-9)))) if names is peers else 3):
            for name in list(repeats)[:: 1 if k % 2 else -1]:
                time.sleep(PAUSE)
                turns[name].append(timed(*rivals[name], repeats[name]))
    return {name: statistic(values) for name, values in turns.items()}


def timed(worker: Worker, call: str, repeats: int) -> list[float]:
    """The seconds of each call in a worker's turn."""
    answer = worker.ask("turn", call=call, repeats=repeats)
    if "error" in answer:
        raise Dead(f"{worker.name}: {answer['error']}")
    return answer["seconds"]


def statistic(turns: list[list[float]]) -> dict[str, float]:
    """Median of the turns' medians, least of all calls, and spread: half of the quartiles' distance over the median."""
    medians = [statistics.median(turn) for turn in turns]
    middle = statistics.median(medians)
    low, _, high = statistics.quantiles(medians, n=4, method="inclusive") if len(turns) > 1 else [middle] * 3
    return {"median": middle, "min": min(map(min, turns)), "spread": (high - low) / 2 / middle, "turns": len(turns)}


def machine() -> str:
    """Name the processor and the software that decide the times."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} processors, {platform.system()}, Python {platform.python_version()}"


def commit() -> str:
    """Give the commit of the sources, marked where they were changed since."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return run.stdout.strip() or "unknown"


def rivals_here(notes: list[str]) -> list[str]:
    """minidl, its other backends, and PyTorch where it is installed, twice where its allocator can be tuned."""
    names = ["minidl", *(name for name in backends() if name in SIDE)]
    if not importlib.util.find_spec("numba"):
        names.remove("numba")
    if not importlib.util.find_spec("torch"):
        notes.append("PyTorch is not installed: minidl runs without its peer (pip install -e '.[bench]')")
        return names
    if platform.libc_ver()[0] != "glibc":
        notes.append("PyTorch's allocator is tuned through glibc, which is not here: it runs as it comes")
        return [*names, "torch"]
    return [*names, "torch", "torch tuned"]


def main(argv: list[str] | None = None) -> int:
    """Measure, print the summary, write Markdown, JSON and the picture; 1 if a result was wrong or became slower."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Time every convolution and whole training steps beside PyTorch, after verifying them.",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer layers and turns, all threads only: two minutes")
    parser.add_argument("--check", action="store_true", help="compare the ratios with benchmarks/cpu.json")
    parser.add_argument("--threads", type=int, nargs="+", metavar="N", help="numbers of threads (default: 1 and all)")
    parser.add_argument("--only", default="", metavar="SUBSTR", help="only rows whose names contain this")
    parser.add_argument("--rounds", type=int, default=9, help="most turns of a rival, 3 to 1000; long ones take fewer")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), metavar="DIR",
                        help="folder for cpu.md, cpu.json, roofline.png; if its README.md has a place for the "
                        "results, they go there instead of cpu.md")  # fmt: skip
    args = parser.parse_args(argv)
    most = get_num_threads()
    threads = sorted(set(args.threads or ([most] if args.quick else [1, most])))
    if not 3 <= args.rounds <= 1000:
        parser.error("--rounds must be between 3 and 1000")
    if threads[0] < 1:
        parser.error("--threads must be at least 1")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is not a folder")
    if args.check and not COMMITTED.exists():
        parser.error(f"--check needs {COMMITTED}, which a full run with --out benchmarks writes")
    publishing = report.section(args.out) is not None
    if publishing and (args.quick or args.only or args.threads):
        parser.error(f"{args.out}/README.md holds full runs only: leave --quick, --only and --threads, or choose --out")
    before = json.loads(COMMITTED.read_text(encoding="utf-8")) if args.check else None

    every = not args.quick
    layers = [layer for layer in [*network_layers(), *case_layers()] if args.only in layer.name]
    layers = [layer for layer in layers if every or layer.quick]
    workloads = [w for w in WORKLOADS if args.only in w.name and (every or w.quick)]
    if not layers and not workloads:
        parser.error(f"no row's name contains {args.only!r}")

    start = time.perf_counter()
    notes: list[str] = []
    run = Run(rivals_here(notes), args.rounds, args.quick)
    for text in notes:
        run.note(text)
    for n in reversed(threads):
        run.introduce(n)
        all_threads = n == threads[-1]  # with fewer, what --quick times, and no cases
        networks = [layer for layer in layers if all_threads or (layer.network and layer.quick)]
        if networks:
            run.layers(networks, n, threads[-1])
        for workload in workloads:
            run.workload(workload, n, threads[-1])
    results = {
        "machine": machine(), "versions": run.versions, "date": str(date.today()), "commit": commit(),
        "command": shlex.join(["python", "-m", "benchmarks.cpu", *(sys.argv[1:] if argv is None else argv)]),
        "minutes": (time.perf_counter() - start) / 60, "threads": threads, "ceilings": run.ceilings,
        "notes": run.notes, "wrong": run.wrong, "rows": run.rows,
    }  # fmt: skip
    print(report.summary(results))
    for path in report.write(results, args.out):
        print(f"wrote {path}")
    for text in run.wrong:
        print(f"WRONG {text}")
    slower = report.compare(results, before) if before else []
    for text in slower:
        print(text)
    return 1 if run.wrong or any(text.startswith("SLOWER") for text in slower) else 0


if __name__ == "__main__":
    sys.exit(main())
