"""The benchmark of a GPU without one: on a CPU with a stand-in for the device; its report from made-up times."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minidl
from benchmarks import gpu, rows
from minidl.backends import get_backend, use_backend

LAYER = replace(next(layer for layer in rows.case_layers() if layer.name == "plain 3x3"), network="Test")
STEP = next(w for w in rows.WORKLOADS if w.name == "tanh MLP 580-20-1 step, batch 32")
NAMES = ["minidl", "minidl TF32", *(f"numba {rung}" for rung in gpu.RUNGS)]
CUDNN = [f"{kind}, {mode}" for kind in ("cuDNN", "cuDNN TF32") for mode in ("channels-first", "channels-last")]


class Cpu:
    """A device of NumPy, whose events are a clock."""

    torch_device, backends, tf32, square, copied, cache, xp = "cpu", ("numpy", "cpp"), True, 64, 1 << 12, 20_000, np

    def describe(self) -> dict[str, str]:
        return {"device": "none", "driver": "none"}

    def milliseconds(self, calls: Any) -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        return 1e3 * (time.perf_counter() - start) / len(calls)

    def launches(self, call: Any) -> int:
        return 7


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Few small rows, short turns; the precisions asked for."""
    asked: list[str] = []
    monkeypatch.setattr(minidl, "set_matmul_precision", asked.append, raising=False)
    monkeypatch.setattr(gpu, "TURN", 0.01)
    monkeypatch.setattr(gpu, "STEPS", [STEP])
    monkeypatch.setattr(rows, "network_layers", lambda: [LAYER])
    shapes = {4: (2, 3, 4, 6), 1: (30,)}
    memory = [replace(row, shape=shapes[len(row.shape)]) for row in gpu.MEMORY_ROWS]
    monkeypatch.setattr(gpu, "MEMORY_ROWS", memory)
    before, threads = get_backend().name, minidl.get_num_threads()
    yield asked
    use_backend("cpp")
    vars(get_backend()).pop("rung", None)
    use_backend(before)
    minidl.set_num_threads(threads)


def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def none() -> Any:
        raise RuntimeError("the backend 'cupy' is unavailable: no device")

    assert gpu.main([], none) == 1
    assert capsys.readouterr().err == "nothing to time without a GPU: the backend 'cupy' is unavailable: no device\n"


def test_the_whole_benchmark_runs_on_a_stand_in(small: list[str], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "README.md").write_text(f"before\n{gpu.BEGIN}old\n{gpu.END}after\n", encoding="utf-8")
    assert gpu.main(["--rounds", "3", "--out", str(tmp_path)], Cpu) == 0
    results = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    layers = [row for row in results["rows"] if row["kind"] == "layer"]
    assert [row["pass"] for row in layers] == list(rows.PASSES) and not results["wrong"] and not results["notes"]
    assert all(sorted(row["times"]) == sorted([*NAMES, *CUDNN]) for row in layers)
    memory = [row for row in results["rows"] if row["kind"] == "memory"]
    assert len(memory) == len(gpu.MEMORY_ROWS) and all(
        set(row["times"]) == {"minidl", "numba", "PyTorch"} for row in memory
    )
    step = results["rows"][-1]
    assert step["kind"] == "step" and step["launches"] == 7 and "PyTorch TF32, eager, fused Adam" in step["times"]
    assert {"high", "highest"} == set(small) and small[-1] == "highest"
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("before") and text.endswith("after\n") and "old\n" not in text
    for words in ("Training steps", "Convolutions", "Kernels bound by memory", "| blocked |", "measured ceilings"):
        assert words in text
    with pytest.raises(SystemExit):
        gpu.main(["--quick", "--out", str(tmp_path)], Cpu)  # a README holds full runs only


def test_wrong_results_are_not_timed(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with use_backend("numpy") as backend:
        right, pool = backend.conv2d, backend.avg_pool2d
    monkeypatch.setattr(backend, "conv2d", lambda *a, **o: right(*a, **o) * np.float32(1.001))
    monkeypatch.setattr(backend, "avg_pool2d", lambda *a, **o: pool(*a, **o) + 1)
    assert gpu.main(["--rounds", "3", "--out", str(tmp_path), "--only", "Test"], Cpu) == 1
    assert gpu.main(["--rounds", "3", "--out", str(tmp_path / "pool"), "--only", "average"], Cpu) == 1
    results = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert results["wrong"][0].startswith("minidl: Test") and "forward" in results["wrong"][0]
    assert all("minidl" not in row["times"] and "numba naive" in row["times"] for row in results["rows"])


def canned(kind: str, name: str, times: dict[str, float], **more: Any) -> dict[str, Any]:
    row = {"kind": kind, "name": name, "pass": "forward", "operations": 2e9, "bytes": 1e6}
    return row | {"times": {n: {"median": t, "min": t, "spread": 0.01, "turns": 3} for n, t in times.items()}} | more


RESULTS: dict[str, Any] = {
    "machine": {"device": "a card"}, "date": "today", "commit": "abc", "command": "c", "minutes": 1.0, "notes": ["n"],
    "wrong": [], "ceilings": {"bandwidth": 1e12, "float32": 1e13, "TF32": 1e14},
    "rows": [
        canned("layer", "one", {"minidl": 0.4, "minidl TF32": 0.05, "cuDNN, channels-first": 0.6,
               "cuDNN, channels-last": 0.5, "cuDNN TF32, channels-last": 0.04, "numba naive": 8.0, "numba tiled": 4.0,
               "numba blocked": 0.8}, kernel=[3, 3], channels=64, batch=64),
        canned("layer", "two", {"minidl": 1.0, "cuDNN, channels-first": 0.7}, kernel=[5, 5], channels=3, batch=64),
        canned("memory", "pool", {"minidl": 0.00125, "PyTorch": 0.001}, operations=0.0),
        canned("step", "net", {"minidl": 2.0, "PyTorch, channels-last": 3.0}, bytes=None, launches=38),
    ],
}  # fmt: skip


def test_shares_ratios_and_targets_from_made_up_times(tmp_path: Path) -> None:
    one, two, pool, step = RESULTS["rows"]
    ceilings = RESULTS["ceilings"]
    assert gpu.ratio(one, "minidl") == pytest.approx(1.25) and gpu.ratio(one, "minidl TF32") == pytest.approx(0.8)
    assert gpu.share(one, "minidl", ceilings) == pytest.approx(0.5)  # 2 GFLOP at 10 TFLOP/s are 0.2 ms
    assert gpu.share(one, "minidl TF32", ceilings) == pytest.approx(0.4)
    assert gpu.share(pool, "minidl", ceilings) == pytest.approx(0.8)  # 1 MB at 1 TB/s is 1 µs
    assert gpu.share(step, "minidl", ceilings) is None and gpu.ratio(two, "minidl TF32") is None
    reached = [(least, value) for _, least, value, _ in gpu.targets(RESULTS)]
    assert [value for _, value in reached] == pytest.approx([1.25, 0.7, 0.4, 0.8, 1.5])
    text = gpu.markdown(RESULTS)
    assert text.count("**missed**") == 3 and "two, forward" in text and "| naive | 2.5 % | 5.0 % |" in text
    assert "0.5 ± 1 % (channels-last)" in text and "| 38 |" in text
    assert [path.name for path in gpu.write(RESULTS, tmp_path)] == ["gpu.json", "gpu.md"]


def test_small_arrays_rotate_through_more_than_the_cache_holds() -> None:
    run = gpu.Run.__new__(gpu.Run)
    run.gpu = Cpu()
    assert run.sets(1000) == gpu.MOST_SETS and run.sets(10_000) == 4 and run.sets(1e9) == 1


def test_every_convolution_of_the_bar_network_is_among_the_layers() -> None:
    layers = rows.record(gpu.STEPS[-1])[0]
    assert len(layers) >= 7 and layers[0].case.w == (24, 3, 5, 5) and layers[0].case.x == (64, 3, 64, 64)


def test_the_readme_has_a_place_for_the_results() -> None:
    assert gpu.report.section(Path(gpu.__file__).parent, gpu.BEGIN, gpu.END)
