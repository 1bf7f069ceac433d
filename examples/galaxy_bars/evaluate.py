"""How good the network is: the talk's table with ours beside it, on all galaxies, clean labels, a fair subset.

Precision depends on the share of bars in the test sample, so it is also restated at the talk's share. Errors come from
the bootstrap, probabilities are held against what happened (calibration), calls against experts. Every number here is
of one part of the sample, by default the test part, which no choice has touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.common import Table, write_csv
from examples.galaxy_bars.data import Galaxies, subsets
from examples.galaxy_bars.occlusion import COVERS, Occlusion, flips, wilson, with_interval
from minidl.metrics import confusion_matrix, precision_recall_f1, roc_auc

TALK = np.array([[2568, 173], [57, 1100]])  # rows: truly unbarred, barred; columns: called unbarred, barred
NOTES = {
    "talk": "talk: Abraham et al. 2018, AlexNet on its own SDSS sample; its printed average is the micro average.",
    "clean": "clean: without barred galaxies of p_bar > .995 (probably one or two voters).",
    "fair": "fair: axis ratio > .5 and edge brightness < 40, so that neither shape nor size gives the class away.",
}
THRESHOLD = 0.5
RESAMPLES = 1000  # of the bootstrap
BINS = 10  # of the reliability curve, in p(bar)
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class Scores:
    """What one sample gave: the confusion matrix, truth in its rows (unbarred, barred), and the area of the ROC.

    `errors` are the bootstrap's standard errors of accuracy, precision, recall and area.
    """

    name: str
    matrix: Counts
    auc: float | None = None
    errors: tuple[float, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of right calls."""
        return float(np.trace(self.matrix) / self.matrix.sum())

    def precision_at(self, share: float) -> float:
        """Precision of "barred" if the share π of galaxies were barred: π·R / (π·R + (1 - π)·FPR)."""
        (tn, fp), (fn, tp) = self.matrix
        recall, fpr = tp / (tp + fn), fp / (fp + tn)
        return float(share * recall / (share * recall + (1 - share) * fpr)) if tp + fp else 0.0


def score(galaxies: Galaxies, p_bar: Floats) -> list[Scores]:
    """Scores on all galaxies, and on the clean and the fair ones (those subsets in which both classes occur)."""
    results = []
    for name, mask in subsets(galaxies).items():
        labels, p = galaxies.labels[mask], p_bar[mask]
        if set(labels) == {0, 1}:
            matrix = confusion_matrix(labels, (p >= THRESHOLD).astype(int), 2)
            results.append(Scores(name, matrix, roc_auc(labels, p), bootstrap(labels, p)))
    return results


def bootstrap(labels: NDArray[np.int64], p_bar: Floats, seed: int = 0) -> tuple[float, ...]:
    """Standard errors of accuracy, precision, recall and ROC area: their scatter over 1000 resamplings.  (n,), (n,)

    Each takes n galaxies at random, with replacement. Efron 1979
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, len(labels), len(labels))
        truth, p = labels[rows] == 1, p_bar[rows]
        called = p >= THRESHOLD
        if truth.any() and not truth.all():
            hits = np.sum(called & truth)
            values.append(
                (np.mean(called == truth), hits / max(called.sum(), 1), hits / truth.sum(), roc_auc(truth, p))
            )
    return tuple(float(error) for error in np.std(values, axis=0))


def tables(results: Sequence[Scores], of: str) -> dict[str, Table]:
    """The talk's table with ours beside it, the confusion matrices, and precision at the talk's share of bars."""
    talk_labels = np.repeat([0, 0, 1, 1], TALK.ravel())
    talk_calls = np.repeat([0.0, 1.0, 0.0, 1.0], TALK.ravel())
    samples = [Scores("talk", TALK, None, bootstrap(talk_labels, talk_calls)), *results]
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
        values = (s.accuracy, scores.precision[1], scores.recall[1])
        percents = [f"{100 * v:.2f} ± {100 * e:.2f}" for v, e in zip(values, s.errors, strict=False)]
        area = "-" if s.auc is None else f"{s.auc:.4f} ± {s.errors[3]:.4f}"
        confusion.append([s.name, tp, fn, fp, tn, *percents, area])
        own = (tp + fn) / s.matrix.sum()
        restated.append([s.name, *(f"{100 * v:.2f}" for v in (own, s.precision_at(own), s.precision_at(share)))])
    return {
        "scores": Table(
            f"Bars: number of galaxies N, precision P and recall R in %, {of}",
            ["class", *(f"{s.name} {column}" for s in samples for column in "NPR")],
            rows,
            "\n".join(NOTES[s.name] for s in samples if s.name in NOTES),
        ),
        "confusion": Table(
            f"Confusion, a bar being positive, with bootstrap errors, {of}",
            ["sample", "TP", "FN", "FP", "TN", "accuracy %", "precision %", "recall %", "ROC area"],
            confusion,
            f"Errors: scatter over {RESAMPLES} resamplings of the galaxies (seed 0).",
        ),
        "restated": Table(
            f"Precision of 'barred' restated at the talk's share of bars, {of}",
            ["sample", "bars here %", "precision here %", f"precision at {100 * share:.1f} % bars"],
            restated,
            "P(π) = π·R / (π·R + (1 - π)·FPR): test samples differ in their share π of bars.",
        ),
    }


# Calibration: of the galaxies called barred with p = .8, are 80 % barred?


def reliability(labels: NDArray[np.int64], p_bar: Floats) -> list[tuple[float, int, int]]:
    """Of each of ten equal bins of p(bar): mean p(bar), barred galaxies, galaxies; empty bins are left out."""
    bins = np.minimum((p_bar * BINS).astype(int), BINS - 1)
    found = [(p_bar[bins == k], labels[bins == k]) for k in range(BINS)]
    return [(float(p.mean()), int(y.sum()), len(y)) for p, y in found if len(y)]


def calibration_error(labels: NDArray[np.int64], p_bar: Floats) -> float:
    """Expected calibration error Σ_bins n_k/n·|mean p(bar) - share of barred|.     Naeini et al. 2015"""
    return sum(abs(p * n - barred) for p, barred, n in reliability(labels, p_bar)) / len(labels)


def log_loss(labels: NDArray[np.int64], p_bar: Floats) -> float:
    """Mean of -ln(probability of the true class), in nats."""
    return float(-np.log(np.clip(np.where(labels == 1, p_bar, 1 - p_bar), 1e-12, 1)).mean())


def calibration_table(galaxies: Galaxies, before: Floats, after: Floats, temperature: float, of: str) -> Table:
    """Calibration error and log loss of every sample before and after the division by the temperature."""
    rows = []
    for name, mask in subsets(galaxies).items():
        measures = [
            [f"{measure(galaxies.labels[mask], p[mask]):.4f}" for p in (before, after)]
            for measure in (calibration_error, log_loss)
        ]
        if mask.any():
            rows.append([name, int(mask.sum()), *measures[0], *measures[1]])
    return Table(
        f"Calibration, {of}",
        ["sample", "N", "error before", "error after", "log loss before", "log loss after"],
        rows,
        f"After: log odds divided by T = {temperature:.3f}, fitted to the validation part's clean galaxies. "
        "Error: expected calibration error, ten bins.",
    )


# Against experts


def firm(galaxies: Galaxies) -> NDArray[np.int64]:
    """What MaNGA's experts say where they are firm: 1 a bar (.75 or 1), 0 none (0), -1 not firm or not seen.   (n,)"""
    manga = galaxies.columns.get("manga_bars", np.full(len(galaxies), np.nan))
    return np.where(manga >= 0.75, 1, np.where(manga == 0, 0, -1))


def experts_table(galaxies: Galaxies, p_bar: Floats, of: str) -> Table | None:
    """Agreement of the network, and of the votes, with experts, on all and on clean galaxies; None without experts."""
    experts = firm(galaxies)
    rows = []
    for name, mask in subsets(galaxies).items():
        seen = mask & (experts >= 0)
        if n := int(seen.sum()):
            agree = int(np.sum((p_bar >= THRESHOLD)[seen] == experts[seen]))
            votes = int(np.sum(galaxies.labels[seen] == experts[seen]))
            rows.append([name, n, agree, with_interval(agree, n), votes, with_interval(votes, n)])
    if not rows:
        return None
    header = ["sample", "N", "network agrees", "% (68 % interval)", "votes agree", "% (68 % interval)"]
    note = "Experts are firm where the MaNGA catalogue gives 0 (no bar), or .75 or 1 (a bar)."
    return Table(f"Agreement with the MaNGA experts, {of}", header, rows, note)


# Occlusion


def occlusion_table(test: Occlusion, galaxies: Galaxies, of: str) -> Table:
    """Share of the true positives that lose their bar under a disc on it, and under the same disc beside it."""
    samples = dict(subsets(galaxies[test.rows]))
    rows = []
    for k, cover in enumerate(COVERS):
        masks = {name: mask for name, mask in samples.items() if not name.startswith("fair")}
        masks |= {f"{name}, control whole": mask & test.whole[k] for name, mask in masks.items()}
        for name, mask in masks.items():
            n, on, off = flips(test, mask, k)
            if n:
                least = wilson(on, n)[0] / wilson(off, n)[1]
                ratio = f"{on / off:.1f}" if off else "-"
                cells = [with_interval(on, n), with_interval(off, n), ratio, f"{least:.1f}"]
                rows.append([f"{100 * cover:.0f} %, {name}", n, *cells])
    return Table(
        f"Occlusion: true positives no longer called barred, {of}",
        ["hidden of the bar, sample", "N", "disc on the bar %", "same disc beside it %", "ratio", "at least"],
        rows,
        "Percentages with 68 % intervals (Wilson); at least: lower limit of the one over upper limit of the other. "
        "Control whole: the picture holds all of the disc beside the bar. Bars measured on the picture, "
        "discs filled with the harmonic function of the colours around them.",
    )


def unbarred_table(test: Occlusion, of: str) -> Table:
    """Share of the true negatives that a disc on their centre makes "barred": what the disc itself does."""
    n = test.unbarred.shape[1]
    rows = [
        [f"{100 * c:.0f} %", n, with_interval(int(np.sum(z >= 0)), n)]
        for c, z in zip(COVERS, test.unbarred, strict=True)
    ]
    return Table(
        f"Occlusion of unbarred galaxies, {of}",
        ["disc as large as for some bar", "N", "now called barred % (68 % interval)"],
        rows,
        "True negatives (all; clean drops none of them) with the same discs on their centres.",
    )


# Several networks


def crossvalidation_table(runs: Sequence[tuple[list[object], list[Scores]]]) -> Table:
    """Accuracy and area of several networks, each on its own test part: a row each, then mean and spread.

    runs: (name, split seed, fold, training seed) and scores of each network. Spread: the standard deviation (n - 1).
    """
    names = [s.name for s in runs[0][1] if all(s.name in {other.name for other in scores} for _, scores in runs)]
    found = [[s for s in scores if s.name in names] for _, scores in runs]
    values = np.array([[100 * s.accuracy for s in scores] + [100 * (s.auc or 0) for s in scores] for scores in found])
    rows = [[*about, *(f"{v:.2f}" for v in line)] for (about, _), line in zip(runs, values, strict=True)]
    blank = [""] * (len(runs[0][0]) - 1)
    rows.append(["mean", *blank, *(f"{v:.2f}" for v in values.mean(0))])
    if len(runs) > 1:
        rows.append(["spread", *blank, *(f"{v:.2f}" for v in values.std(0, ddof=1))])
        rows.append(["error of the mean", *blank, *(f"{v:.2f}" for v in values.std(0, ddof=1) / np.sqrt(len(runs)))])
    header = ["weights", "split", "fold", "seed", *(f"{n} acc %" for n in names), *(f"{n} area %" for n in names)]
    note = (
        "acc: accuracy; area: under the ROC curve. The error of the mean is for folds, whose test parts are disjoint."
    )
    return Table("Several networks, each on its own test part", header, rows, note)


def write_tables(folder: Path, results: Mapping[str, Table], overwrite: bool) -> list[Path]:
    """Write each table as CSV of its name into the folder."""
    paths = [folder / f"{name}.csv" for name in results]
    for path, table in zip(paths, results.values(), strict=True):
        write_csv(path, table.header, table.rows, overwrite)
    return paths
