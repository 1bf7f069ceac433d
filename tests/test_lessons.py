"""The lessons run as a student runs them, say what they promise, and end in the figure they always ended in.

`python -m tests.test_lessons` writes tests/lessons.json anew: for each lesson the axes of its last figure.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from examples.lessons import common
from minidl import get_num_threads, set_num_threads

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "examples" / "lessons").glob("[0-9]*.py"))
DESCRIPTIONS = Path(__file__).with_name("lessons.json")
PROMISES = {  # what a lesson must print, at the small size too
    "01_perceptron": r"two clouds: 0 mistakes in epoch 20",
    "02_tanh_network": r"epoch  \d+: (9[89]|100)\.\d% of the points",
    "03_autograd": r"∂d/∂x = 48\nbackward        ∂d/∂x = 42\n[^z]*minidl: ∂d/∂x = 42",
    "04_gradient_check": r"softmax .*  right\n(.*  WRONG\n){3}",
    "05_optimisers": r"momentum 0.9 .*loss [\d.]+e-0[6-9]",
    "06_convolution": r"one number three ways.*: (-?\d+\.\d{8})\d\d, \1\d\d, \1\d\d",
    "07_feature_maps": r"block 3      map \d+: 0\.[6-9]\d where it was chosen, 0\.[4-9]",
    "08_occlusion_and_saliency": r"disc over 100% of the bar: [4-9]\d\.\d .* beside the bar [0-2]?\d\.\d",
    "09_overfitting": r"nothing       last epoch: loss 0\.\d\d in training",
    "10_precision_and_recall": r"TP 1100  FN 57  FP 173  TN 2568",
    "11_autoencoder": r"shifted by 40 Å .* (9\d|100)% by the largest error",
    "12_spectral_code": r"B2I    -> 2201.5",
    "13_segmentation": r"U-Net      best F1 0\.[89]",
    "14_kernel_ladder": r"NumPy, product .* times the rung before",
    "15_cuda_kernel": r"block_together   largest error \d\.\de-0[5-9]",
}
matplotlib.use("Agg")


def run(lesson: Path, folder: Path) -> tuple[str, Any]:
    """Run a lesson in a folder, at its small size, on simulated data -> what it prints, its last figure."""
    printed, path, threads = io.StringIO(), list(sys.path), get_num_threads()
    plt.close("all")
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
            found = runpy.run_path(str(lesson), run_name="__main__")
    finally:
        sys.path[:] = path
        set_num_threads(threads)
    return printed.getvalue(), found["figure"]


def describe(figure: Any) -> list[dict[str, Any]]:
    """Title, labels and limits of each axes, colour bars included, in their order; numbers in titles aside."""
    return [
        {
            "title": re.sub(r"[-+]?\d+(\.\d+)?", "#", axes.get_title()),
            "xlabel": axes.get_xlabel(),
            "ylabel": axes.get_ylabel(),
            "xlim": [round(float(v), 4) for v in axes.get_xlim()],
            "ylim": [round(float(v), 4) for v in axes.get_ylim()],
        }
        for axes in figure.axes
    ]


def is_drawn(figure: Any) -> bool:
    """Whether there are at least two colours inside every axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3]
    boxes = [axes.get_window_extent().extents.round().astype(int) for axes in figure.axes]
    return all(np.ptp(pixels[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3], axis=(0, 1)).any() for x0, y0, x1, y1 in boxes)


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIDL_QUICK", "1")
    monkeypatch.delenv("MINIDL_DATA", raising=False)


@pytest.mark.parametrize("lesson", LESSONS[:-1], ids=lambda p: p.stem)
def test_lesson(lesson: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    monkeypatch.syspath_prepend(str(ROOT))
    printed, figure = run(lesson, tmp_path)
    check(lesson, printed, describe(figure), tmp_path)
    assert is_drawn(figure)


def test_cuda_lesson_runs_in_the_simulator(tmp_path: Path) -> None:
    lesson = LESSONS[-1]
    code = (
        "import sys, json; from pathlib import Path; from tests.test_lessons import *; "
        "printed, figure = run(Path(sys.argv[1]), Path.cwd()); assert is_drawn(figure); "
        "print(json.dumps([printed, describe(figure)]))"
    )  # a process of its own: the simulator is chosen before Numba is imported
    environment = {**os.environ, "MINIDL_QUICK": "1", "PYTHONPATH": str(ROOT), "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(lesson)],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed, found = json.loads(done.stdout)
    check(lesson, printed, found, tmp_path)


@pytest.mark.data
def test_lessons_use_the_real_data(real_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {real_data(name).parent for name in ("galaxies", "spectra", "micrographs")}
    monkeypatch.setenv("MINIDL_DATA", str(folders.pop()))
    sample = common.galaxies(40, seed=1)
    assert sample.kind == "real" and sample.labels.sum() == 20 and sample.images.shape == (40, 64, 64, 3)
    flux, types, kind = common.spectra(60, seed=1)
    assert kind == "MILES" and flux.shape == (60, 580) and np.isfinite(flux).all()
    assert all(t.lum and t.sub is not None for t in types) and len({t.cls for t in types}) > 4


def check(lesson: Path, printed: str, found: list[dict[str, Any]], folder: Path) -> None:
    assert re.search(PROMISES[lesson.stem], printed), printed
    picture = folder / "runs" / "lessons" / f"{lesson.stem}.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
    wanted = json.loads(DESCRIPTIONS.read_text(encoding="utf-8"))[lesson.stem]
    assert len(found) == len(wanted)
    for axes, other in zip(found, wanted, strict=True):
        assert {k: axes[k] for k in ("title", "xlabel", "ylabel")} == {
            k: other[k] for k in ("title", "xlabel", "ylabel")
        }
        for name in ("xlim", "ylim"):
            size = abs(other[name][1] - other[name][0])
            assert np.allclose(axes[name], other[name], rtol=0, atol=0.3 * size), (axes, other)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_lessons_keep_the_form(lesson: Path) -> None:
    text = lesson.read_text(encoding="utf-8")
    lines = text.splitlines()
    title = f"Lesson {int(lesson.stem[:2])}: "
    assert len(lines) < 150 and lines[1].startswith(title) and lines[2] == "=" * len(lines[1])
    assert f"python -m examples.lessons.{lesson.stem}" in text
    last = text.rpartition("# %% [markdown]\n# **Exercises**\n")[2]
    assert re.findall(r"^# (\d)\. ", last, re.M) == ["1", "2", "3"]
    assert len(re.findall(r"\*(?:Right\s(?:#\s+)?if|You\s(?:#\s+)?see\s(?:#\s+)?it)\*", last)) == 3
    assert f"[{lesson.stem}]({lesson.name})" in (lesson.parent / "README.md").read_text(encoding="utf-8")


def test_is_drawn_tells_an_empty_axes() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    first, second = figure.subplots(1, 2)
    first.plot([0, 1])
    assert not is_drawn(figure)
    second.plot([0, 1])
    assert is_drawn(figure)


def write() -> None:
    """Describe the last figure of every lesson anew."""
    import tempfile

    os.environ["MINIDL_QUICK"] = "1"
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    os.environ.pop("MINIDL_DATA", None)
    found = {}
    for lesson in LESSONS:
        with tempfile.TemporaryDirectory() as folder:
            printed, figure = run(lesson, Path(folder))
        print(lesson.stem, bool(re.search(PROMISES[lesson.stem], printed)), is_drawn(figure))
        found[lesson.stem] = describe(figure)
    lines = [
        f'"{name}": [\n' + ",\n".join(f"  {json.dumps(axes, ensure_ascii=False)}" for axes in value) + "\n]"
        for name, value in found.items()
    ]
    DESCRIPTIONS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write()
