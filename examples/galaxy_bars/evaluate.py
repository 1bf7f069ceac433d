"""How good the network is: the talk's table with ours beside it, on all galaxies, clean labels, a fair subset.

Precision depends on the share of bars in the test sample, so it is also restated at the talk's share. Every number
here is of one part of the sample, by default the test part, which no choice has touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.common import Table, write_csv
from examples.galaxy_bars.data import Galaxies, subsets
from minidl.metrics import confusion_matrix, precision_recall_f1, roc_auc

TALK = np.array([[2568, 173], [57, 1100]])  # rows: truly unbarred, barred; columns: called unbarred, barred
NOTES = {
    "talk": "talk: Abraham et al. 2018, AlexNet on its own SDSS sample; its printed average is the micro average.",
    "clean": "clean: without barred galaxies of p_bar > .995 (probably one or two voters).",
    "fair": "fair: axis ratio > .5 and edge brightness < 40, so that neither shape nor size gives the class away.",
}
THRESHOLD = 0.5
Counts = NDArray[np.int64]


@dataclass
class Scores:
    """What one sample gave: the confusion matrix, truth in its rows (unbarred, barred), and the area of the ROC."""

    name: str
    matrix: Counts
    auc: float | None = None

    @property
    def accuracy(self) -> float:
        """Share of right calls."""
        return float(np.trace(self.matrix) / self.matrix.sum())

    @property
    def error(self) -> float:
        """Its binomial standard error √(a·(1 - a)/n)."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / self.matrix.sum()))

    def precision_at(self, share: float) -> float:
        """Precision of "barred" if the share π of galaxies were barred: π·R / (π·R + (1 - π)·FPR)."""
        (tn, fp), (fn, tp) = self.matrix
        recall, fpr = tp / (tp + fn), fp / (fp + tn)
        return float(share * recall / (share * recall + (1 - share) * fpr)) if tp + fp else 0.0


def score(galaxies: Galaxies, p_bar: NDArray[np.floating]) -> list[Scores]:
    """Scores on all galaxies, on the clean and on the fair ones (those subsets in which both classes occur)."""
    results = []
    for name, mask in subsets(galaxies).items():
        labels, p = galaxies.labels[mask], p_bar[mask]
        if set(labels) == {0, 1}:
            calls = (p >= THRESHOLD).astype(int)
            results.append(Scores(name, confusion_matrix(labels, calls, 2), roc_auc(labels, p)))
    return results


def tables(results: Sequence[Scores], of: str) -> list[Table]:
    """The talk's table with ours beside it, the confusion matrices, and precision at the talk's share of bars."""
    samples = [Scores("talk", TALK), *results]
    share = TALK[1].sum() / TALK.sum()
    rows: list[list[object]] = [["barred"], ["unbarred"], ["average (micro)"], ["average (macro)"]]
    confusion, restated = [], []
    for s in samples:
        scores = precision_recall_f1(s.matrix)
        micro, macro = (precision_recall_f1(s.matrix, average=kind) for kind in ("micro", "macro"))
        numbers = [s.matrix[1].sum(), s.matrix[0].sum(), s.matrix.sum(), s.matrix.sum()]
        precision = [scores.precision[1], scores.precision[0], micro.precision, macro.precision]
        recall = [scores.recall[1], scores.recall[0], micro.recall, macro.recall]
        for row, n, p, r in zip(rows, numbers, precision, recall, strict=True):
            row += [int(n), f"{100 * p:.2f}", f"{100 * r:.2f}"]
        (tn, fp), (fn, tp) = s.matrix
        area = "-" if s.auc is None else f"{s.auc:.4f}"
        confusion.append([s.name, tp, fn, fp, tn, f"{100 * s.accuracy:.2f} ± {100 * s.error:.2f}", area])
        own = (tp + fn) / s.matrix.sum()
        values = (own, s.precision_at(own), s.precision_at(share))
        restated.append([s.name, *(f"{100 * value:.2f}" for value in values)])
    return [
        Table(
            f"Bars: number of galaxies N, precision P and recall R in %, {of}",
            ["class", *(f"{s.name} {column}" for s in samples for column in "NPR")],
            rows,
            "\n".join(NOTES[s.name] for s in samples if s.name in NOTES),
        ),
        Table(
            f"Confusion, a bar being positive, {of}",
            ["sample", "TP", "FN", "FP", "TN", "accuracy %", "ROC area"],
            confusion,
        ),
        Table(
            f"Precision of 'barred' restated at the talk's share of bars, {of}",
            ["sample", "bars here %", "precision here %", f"precision at {100 * share:.1f} % bars"],
            restated,
            "P(π) = π·R / (π·R + (1 - π)·FPR): test samples differ in their share π of bars.",
        ),
    ]


def write_tables(folder: Path, results: Sequence[Table], overwrite: bool) -> list[Path]:
    """Write each table as CSV into the folder: scores.csv, confusion.csv, restated.csv."""
    paths = [folder / f"{name}.csv" for name in ("scores", "confusion", "restated")]
    for path, table in zip(paths, results, strict=True):
        write_csv(path, table.header, table.rows, overwrite)
    return paths
