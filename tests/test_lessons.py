"""The lessons run as a student runs them and say what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "examples" / "lessons").glob("[0-9]*.py"))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_lesson(lesson: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"examples.lessons.{lesson.stem}", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    picture = tmp_path / f"{lesson.stem}.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
    promise = {"01_perceptron": ": 0 mistakes", "02_tanh_network": "100.0% of the points"}
    assert promise[lesson.stem] in done.stdout
