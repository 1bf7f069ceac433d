"""The benchmark runs to its end without PyTorch, times nothing that is wrong, and notices what became slower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cpu, report, rows
from benchmarks.worker import Bench
from minidl.backends import get_backend
from tests.test_backends import require

LAYER = next(layer for layer in rows.case_layers() if layer.name == "plain 3x3")


class Canned:
    """Stands in for a worker's process: prepares what it is asked for, and takes the time it is told to."""

    seconds = {"minidl": 1e-3, "torch": 3e-3, "torch tuned": 2e-3}  # noqa: RUF012 (the tests change it)

    def __init__(self, name: str, threads: int) -> None:
        self.name = name

    def send(self, do: str, **request: Any) -> None:
        self.do = do

    def receive(self) -> dict[str, Any]:
        return {
            "hello": {"describe": "cpp" if self.name == "minidl" else self.name},
            "ceilings": {"flops": 1e11, "bandwidth": 1e10},
            "prepare_layer": {"calls": [f"{'' if self.name == 'minidl' else 'channels-last'}|forward"]},
            "turn": {"seconds": [self.seconds[self.name]] * 2},
        }[self.do]

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        self.send(do, **request)
        return self.receive()

    def close(self) -> None:
        pass


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A run of one case with stand-ins for all rivals; where its results are."""
    monkeypatch.setattr(cpu, "Worker", Canned)
    monkeypatch.setattr(cpu, "rivals_here", lambda notes: list(Canned.seconds))
    monkeypatch.setattr(cpu, "PAUSE", 0.0)
    monkeypatch.setattr(cpu, "network_layers", list)
    monkeypatch.setattr(cpu, "COMMITTED", tmp_path / "cpu.json")
    assert cpu.main(["--only", "plain 3x3", "--threads", "1", "--out", str(tmp_path)]) == 0
    return tmp_path


def test_without_the_kernels_nothing_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu, "Worker", type("Other", (Canned,), {"ask": lambda *request: {"describe": "numpy"}}))
    with pytest.raises(SystemExit, match="kernels are not built"):
        cpu.Run(["minidl"], 3, True).introduce(1)


def test_the_whole_benchmark_runs_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require("cpp")
    monkeypatch.setattr(cpu, "rivals_here", lambda notes: ["minidl", "numpy"])
    monkeypatch.setattr(cpu, "network_layers", list)
    monkeypatch.setattr(cpu, "case_layers", lambda: [LAYER])
    monkeypatch.setattr(cpu, "WORKLOADS", [w for w in rows.WORKLOADS if w.name == "tanh MLP 580-20-1 step, batch 32"])
    arguments = ["--threads", "1", "--rounds", "3", "--out", str(tmp_path)]
    assert cpu.main(arguments) == 0
    results = json.loads((tmp_path / "cpu.json").read_text(encoding="utf-8"))
    assert [row["pass"] for row in results["rows"]] == [*rows.PASSES, "step"]
    assert all({"minidl", "numpy"} <= set(row["times"]) for row in results["rows"]) and not results["wrong"]
    assert "minidl, recorded" in results["rows"][-1]["times"]
    text = (tmp_path / "cpu.md").read_text(encoding="utf-8")
    assert "plain 3x3" in text and "Whole steps" in text and ", recorded" in text


@pytest.mark.parametrize("kernel", ["conv2d", "conv2d_grad_x", "conv2d_grad_w"])
def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    bench = Bench("minidl", 1)
    right = getattr(get_backend(), kernel)

    def wrong(*arrays: Any, **options: Any) -> np.ndarray:
        result = right(*arrays, **options).copy()
        result[-1, -1, -1, -1] += 0.5 * abs(result).max()
        return result

    assert bench.prepare_layer(LAYER.case, False)["calls"] == [f"|{which}" for which in rows.PASSES]
    monkeypatch.setattr(get_backend(), kernel, wrong)
    with pytest.raises(rows.Wrong, match="plain 3x3"):
        bench.prepare_layer(LAYER.case, False)


def test_losses_that_differ_are_noticed() -> None:
    assert cpu.disagreeing({"minidl": [1.0, 0.9], "torch": [1.0, 0.9]}, training=True) == []
    assert cpu.disagreeing({"minidl": [1.01, 0.9], "torch": [1.0, 0.9]}, training=True) == ["minidl"]


def test_the_better_mode_of_both_sides_counts() -> None:
    names = {"minidl": 3.0, "minidl, recorded": 2.0, "torch": 9.0, "torch, compiled": 8.0, "torch tuned, eager": 6.0}
    found = report.ratios({name: {"median": t, "min": t, "spread": 0.0} for name, t in names.items()})
    assert {key: (row["best"], row["ratio"]) for key, row in found.items()} == {
        "tuned": ("torch tuned, eager", 3.0),
        "default": ("torch, compiled", 4.0),
    }


def test_check_flags_what_became_slower(
    canned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = json.loads((canned / "cpu.json").read_text(encoding="utf-8"))["rows"][0]
    assert row["tuned"]["ratio"] == pytest.approx(2) and row["default"]["ratio"] == pytest.approx(3)
    again = ["--only", "plain 3x3", "--threads", "1", "--out", str(canned / "again"), "--check"]
    assert cpu.main(again) == 0
    assert "compared 1 ratios" in capsys.readouterr().out
    monkeypatch.setitem(Canned.seconds, "minidl", 1.3e-3)
    assert cpu.main(again) == 1
    assert "SLOWER plain 3x3, forward" in capsys.readouterr().out


def test_a_rival_that_fails_in_its_turn_ends_its_row_not_the_run(
    canned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: Canned) -> dict[str, Any]:
        return {"error": "MemoryError:"} if self.do == "turn" and self.name == "torch tuned" else answers(self)

    answers = Canned.receive
    monkeypatch.setattr(Canned, "receive", fails)
    assert cpu.main(["--only", "plain 3x3", "--threads", "1", "--out", str(canned / "again")]) == 1
    assert "WRONG plain 3x3, forward: torch tuned: MemoryError:" in capsys.readouterr().out


def test_results_go_into_the_place_a_readme_has_for_them(canned: Path) -> None:
    results = json.loads((canned / "cpu.json").read_text(encoding="utf-8"))
    (canned / "README.md").write_text(f"before\n{report.BEGIN}old\n{report.END}after\n", encoding="utf-8")
    report.write(results, canned)
    text = (canned / "README.md").read_text(encoding="utf-8")
    assert text.startswith("before") and text.endswith("after\n") and "plain 3x3" in text and "old\n" not in text


def test_the_layers_are_those_of_the_networks() -> None:
    autoencoder = rows.record(rows.WORKLOADS[-1])[0]
    assert [layer.case.w for layer in autoencoder] == [(16, 1, 1, 7), (32, 16, 1, 7), (32, 16, 1, 7), (16, 1, 1, 7)]
    assert [layer.transposed for layer in autoencoder] == [False, False, True, True]


def test_the_bar_networks_twin_gives_the_same_scores() -> None:
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("scipy")
    from benchmarks import bars
    from examples.galaxy_bars import network

    model = network.build("resnet")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    expected = network.log_odds(model, images, 8)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = bars.torch_log_odds(bars.twin(model, layout), images, layout, batch=2)
        assert np.abs(found - expected).max() < 1e-4 < np.ptp(expected)
