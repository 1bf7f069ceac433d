"""The three systems on real data, from the command line and with default options, must reach their first targets.

Minutes each, so only on demand: `python -m pytest -m targets` (.ci/run does it). The targets are far below what is
published in the examples' READMEs, so that a miss means a fault and not a bad day. The test part of each sample is used
here as a check and decides nothing.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.targets, pytest.mark.data]


def run(name: str, *options: object) -> None:
    """`python -m examples.NAME ...`, its output shown."""
    subprocess.run([sys.executable, "-m", f"examples.{name}", *map(str, options)], check=True, cwd=ROOT)


def rows(path: Path) -> dict[str, dict[str, str]]:
    """A CSV file's rows by their first cell."""
    with open(path, newline="", encoding="utf-8") as file:
        return {next(iter(row.values())): row for row in csv.DictReader(file)}


def train_and_evaluate(name: str, data: Path, out: Path, *train: object, evaluate: tuple[object, ...] = ()) -> Path:
    """Train with default options, evaluate on the test part -> the folder of tables."""
    run(name, "train", "--data", data, "--out", out / "weights.safetensors", *train)
    run(name, "evaluate", "--data", data, "--weights", out / "weights.safetensors", "--out", out / "tables", *evaluate)
    return out / "tables"


def test_bars(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    tables = train_and_evaluate("galaxy_bars", real_data("galaxies"), tmp_path)
    accuracy = {name: float(row["accuracy %"].split()[0]) for name, row in rows(tables / "confusion.csv").items()}
    assert accuracy["all"] >= 84
    assert accuracy["clean"] >= 95


def test_spectra(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    tables = train_and_evaluate(
        "stellar_spectra", real_data("spectra"), tmp_path,
        "--libraries", "cflib_dev", "miles", evaluate=("--libraries", "cflib_dev"),
    )  # fmt: skip
    [row] = [row for name, row in rows(tables / "errors.csv").items() if name.startswith("cflib_dev")]
    assert float(row["sigma"]) <= 2.5
    assert float(row["class"]) >= 0.80


def test_picking(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    tables = train_and_evaluate("particle_picking", real_data("micrographs"), tmp_path)
    assert json.loads((tables / "summary.json").read_text())["f1"] >= 0.70
