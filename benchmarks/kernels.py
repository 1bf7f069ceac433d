"""Time the kernels of all backends side by side: python -m benchmarks.kernels [--quick] [--out FILE.md].

Rows are the layers of the three networks and, below them, the table of cases of the tests. Every result is verified
before anything is timed. Backends take turns (2 ms or one call each), so that a busy machine slows all alike; a time is
the median of the rounds, ± half of the quartiles' distance. PyTorch joins as a peer where it is installed.
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
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from minidl import set_num_threads, use_backend
from minidl.backends import backends, get_backend
from minidl.checkpoint import atomic_write
from tests.cases import KERNEL_CASES, POOL_CASES, ConvCase, PoolCase, conv_arrays, pool_array

Calls = dict[str, Callable[[], Any]]  # pass -> what to time

LAYERS: list[ConvCase | PoolCase] = [
    ConvCase("U-Net 1→16, 2 x 512²", (2, 1, 512, 512), (16, 1, 3, 3), padding=(1, 1)),
    ConvCase("U-Net 16→16, 2 x 512²", (2, 16, 512, 512), (16, 16, 3, 3), padding=(1, 1)),
    ConvCase("U-Net 32→32, 2 x 256²", (2, 32, 256, 256), (32, 32, 3, 3), padding=(1, 1)),
    ConvCase("U-Net 64→128, 2 x 128²", (2, 64, 128, 128), (128, 64, 3, 3), padding=(1, 1)),
    ConvCase("U-Net 16→2, 2 x 512², 1x1", (2, 16, 512, 512), (2, 16, 1, 1)),
    ConvCase("AlexNet conv1, 16 x 128²", (16, 3, 128, 128), (96, 3, 11, 11), stride=(4, 4), padding=(2, 2)),
    ConvCase("AlexNet conv2", (16, 96, 15, 15), (256, 96, 5, 5), padding=(2, 2)),
    ConvCase("AlexNet conv3", (16, 256, 7, 7), (384, 256, 3, 3), padding=(1, 1)),
    ConvCase("spectra 16→32, 16 x 1900", (16, 16, 1, 1900), (32, 16, 1, 7), padding=(0, 3)),
    PoolCase("pool 2x2, 2 x 16 x 512²", (2, 16, 512, 512), (2, 2), (2, 2)),
    PoolCase("pool 3x3/2, 16 x 96 x 31²", (16, 96, 31, 31), (3, 3), (2, 2)),
]


def verify(case: ConvCase, x: Any, w: Any, g: Any, y: Any, grad_x: Any, grad_w: Any) -> None:
    """Compare 50 outputs with the definition, and the gradients with it through ⟨g, y⟩ = ⟨grad_x, x⟩ = ⟨grad_w, w⟩."""
    rng = np.random.default_rng(0)
    (o, c, kh, kw), (ph, pw) = case.w, case.padding
    for n, out, i, j in zip(*(rng.integers(0, size, 50) for size in y.shape), strict=True):
        k, m = np.mgrid[:kh, :kw]
        rows = i * case.stride[0] + k * case.dilation[0] - ph
        columns = j * case.stride[1] + m * case.dilation[1] - pw
        inside = (rows >= 0) & (rows < case.x[2]) & (columns >= 0) & (columns < case.x[3])
        first = out // (o // case.groups) * c
        products = w[out].astype(float)[:, inside] * x[n, first : first + c, rows[inside], columns[inside]].T
        bound = 2 * products.size * np.finfo(x.dtype).eps * np.abs(products).sum()
        assert abs(y[n, out, i, j] - products.sum()) <= bound, f"{case.name}: a wrong output"
    one, two, three = (float((a.astype(float) * b).sum()) for a, b in ((g, y), (grad_x, x), (grad_w, w)))
    assert max(abs(one - two), abs(one - three)) <= 1e-4 * abs(one), f"{case.name}: a wrong gradient"


def conv_calls(case: ConvCase, backend: Any) -> Calls:
    """Forward and both gradients of one backend (or of torch), verified."""
    x, w, _ = conv_arrays(case, np.float32)
    noise = np.random.default_rng(1)
    if backend == "torch":
        import torch

        tx, tw = torch.from_numpy(x), torch.from_numpy(w)
        options = (case.stride, case.padding, case.dilation)
        forward = lambda: torch.conv2d(tx, tw, None, *options, case.groups)  # noqa: E731
        g = forward().add_(0.1)

        def backward(*mask: bool) -> Any:
            return torch.ops.aten.convolution_backward(g, tx, tw, None, *options, False, (0, 0), case.groups, mask)

        return {
            "forward": forward,
            "grad_x": lambda: backward(True, False, False),
            "grad_w": lambda: backward(False, True, False),
        }
    y = backend.conv2d(x, w, None, **case.options)
    g_own = (y + 0.1 * noise.standard_normal(y.shape)).astype(np.float32)
    calls: Calls = {
        "forward": lambda: backend.conv2d(x, w, None, **case.options),
        "grad_x": lambda: backend.conv2d_grad_x(g_own, w, case.x, **case.options),
        "grad_w": lambda: backend.conv2d_grad_w(g_own, x, case.w, **case.options),
    }
    verify(case, x, w, g_own, *(call() for call in calls.values()))
    return calls


def pool_calls(case: PoolCase, backend: Any) -> Calls:
    """Forward and gradient of a pooling; all backends must agree with NumPy's bit by bit."""
    x = pool_array(case, np.float32)
    if backend == "torch":
        import torch

        tx = torch.from_numpy(x).requires_grad_()
        forward = lambda: torch.max_pool2d(tx, *list(case.options.values()))  # noqa: E731
        ty = forward()
        tg = torch.ones_like(ty)
        return {"forward": forward, "grad_x": lambda: torch.autograd.grad(ty, tx, tg, retain_graph=True)}
    with use_backend("numpy") as reference:
        true = reference.max_pool2d(x, **case.options)
    y, index = backend.max_pool2d(x, **case.options)
    assert np.array_equal(y, true[0]) and np.array_equal(index, true[1]), f"{case.name}: wrong maxima"
    return {
        "forward": lambda: backend.max_pool2d(x, **case.options),
        "grad_x": lambda: backend.max_pool2d_grad(y, index, case.x),
    }


def measure(case: ConvCase | PoolCase, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """Time every pass of one case on every backend, in turns; times in milliseconds."""
    calls = {}
    for name in names:
        backend: Any = name
        if name != "torch":
            with use_backend(name):
                backend = get_backend()
        calls[name] = conv_calls(case, backend) if isinstance(case, ConvCase) else pool_calls(case, backend)
    rows = []
    for which in next(iter(calls.values())):
        times: dict[str, list[float]] = {name: [] for name in names}
        repeats = dict.fromkeys(names, 1)
        for turn in range(rounds + 1):  # the first one warms up and tells how many calls make 2 ms
            for name in names:
                time.sleep(0.005)  # threads of the one before may still be spinning
                start = time.perf_counter()
                for _ in range(repeats[name]):
                    calls[name][which]()
                took = 1000 * (time.perf_counter() - start) / repeats[name]
                if turn:
                    times[name].append(took)
                else:
                    repeats[name] = max(1, round(2 / took))
        row: dict[str, Any] = {"case": case.name, "pass": which, "milliseconds": {}, "spread": {}}
        for name, values in times.items():
            low, middle, high = statistics.quantiles(values, n=4)
            row["milliseconds"][name], row["spread"][name] = middle, (high - low) / 2 / middle
        rows.append(row)
    return rows


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
    run = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def markdown(results: dict[str, Any]) -> str:
    """Set the results as one table, a ratio below 1 meaning that cpp is the slower one."""
    names = results["backends"]
    others = [name for name in names if name != "cpp"] if "cpp" in names else []
    head = ["layer", "pass", *(f"{name}, ms" for name in names), *(f"{name} / cpp" for name in others)]
    lines = [f"| {' | '.join(head)} |", f"|---|---|{'---:|' * (len(head) - 2)}"]
    for row in results["rows"]:
        ms, spread = row["milliseconds"], row["spread"]
        cells = [f"{ms[name]:.3g} ± {100 * spread[name]:.0f} %" for name in names]
        cells += [f"{ms[name] / ms['cpp']:.1f}" for name in others]
        lines.append(f"| {row['case']} | {row['pass']} | {' | '.join(cells)} |")
    facts = " · ".join(
        f"{key}: {results[key]}" for key in ("machine", "versions", "threads", "date", "commit", "command")
    )
    return "\n".join([facts, "", *lines, ""])


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, and write it as Markdown and JSON where --out says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description="Time the kernels of all backends side by side, after verifying them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="only the table of cases: small shapes, a minute")
    parser.add_argument("--only", nargs="+", default=[""], help="only rows whose names contain one of these words")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of every backend and pass, at least 2")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of cpp, numba and torch")
    parser.add_argument("--out", type=Path, help="file for the Markdown; the JSON goes beside it")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    args = parser.parse_args(argv)
    outputs = [args.out.with_suffix(suffix) for suffix in (".md", ".json")] if args.out else []
    if args.rounds < 2:
        parser.error("--rounds must be at least 2")
    if args.threads < 1:
        parser.error("--threads must be at least 1")
    for path in outputs:
        if path.exists() and not args.overwrite:
            parser.error(f"{path} exists; --overwrite replaces it")

    set_num_threads(args.threads)
    names, versions = [], [f"NumPy {np.__version__}"]
    for name in ("numpy", *(name for name in backends() if name != "numpy")):
        try:
            with use_backend(name) as backend:
                names.append(name)
                if name != "numpy":
                    versions.append(f"{name}: {backend.describe()}")
        except RuntimeError as error:
            print(f"left out: {error}", file=sys.stderr)
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(args.threads)
        names.append("torch")
        versions.append(f"torch {torch.__version__}")

    results: dict[str, Any] = {
        "machine": machine(), "versions": ", ".join(versions), "threads": args.threads, "date": str(date.today()),
        "commit": commit(), "command": shlex.join(["python", "-m", "benchmarks.kernels", *(argv or sys.argv[1:])]),
        "backends": names, "rows": [],
    }  # fmt: skip
    for case in ([] if args.quick else LAYERS) + [*KERNEL_CASES, *POOL_CASES]:
        if not any(word in case.name for word in args.only):
            continue
        print(f"... {case.name}", file=sys.stderr, flush=True)
        results["rows"] += measure(case, names, args.rounds)
    text = markdown(results)
    print(text)
    for path, content in zip(outputs, (text, json.dumps(results, indent=1)), strict=False):
        with atomic_write(path) as part:
            part.write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
