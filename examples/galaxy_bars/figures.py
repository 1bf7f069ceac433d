"""The pictures of the bar task: examples, training curve, ROC, precision-recall, mistakes, feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.drawing import BLUE, GREEN, RED, new_figure, save
from examples.galaxy_bars.data import CLASSES, Galaxies, subsets
from examples.galaxy_bars.evaluate import TALK, Scores
from minidl.metrics import auc, average_precision, precision_recall_curve, roc_curve

COLOURS = {"all": BLUE, "clean": GREEN, "fair": RED, "talk": "black"}
LINES = {"all": "-", "clean": "--", "fair": "-."}


def mosaic(images: NDArray[np.uint8], columns: int, gap: int = 2, scale: int = 2) -> NDArray[np.uint8]:
    """Lay pictures (n, h, w, 3) in rows on white, each pixel enlarged `scale` times."""
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for k, image in enumerate(images):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet.repeat(scale, 0).repeat(scale, 1)


def examples(galaxies: Galaxies, path: Path, rng: np.random.Generator, rows: int = 4, columns: int = 12) -> Path:
    """Random barred galaxies above, unbarred below."""
    figure = new_figure(9.6, 7.4)
    axes = figure.subplots(2, 1)
    for axis, label in zip(axes, (1, 0), strict=True):
        mine = np.flatnonzero(galaxies.labels == label)
        some = rng.permutation(mine)[: rows * columns]
        axis.imshow(mosaic(galaxies.images[some], columns))
        axis.set_title(f'{CLASSES[label]}, {galaxies.kind} galaxies, 19.2" fields', fontsize=11)
        axis.axis("off")
    return save(figure, path)


def training_curve(history: Sequence[dict[str, Any]], path: Path, kind: str) -> Path:
    """Loss and accuracy after each epoch, of training and of validation."""
    figure = new_figure(8.2, 3.6)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], color="#0072B2", label="training (augmented)")
    left.plot(epochs, [row["val_loss"] for row in history], color="#D55E00", ls="--", label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)")
    right.plot(epochs, [100 * row["val_accuracy"] for row in history], color="#D55E00", ls="--", label="validation")
    right.set(xlabel="epoch", ylabel="accuracy (%)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.suptitle(f"Training on {kind} galaxies")
    return save(figure, path)


def curves(galaxies: Galaxies, p_bar: NDArray[np.floating], of: str, folder: Path) -> list[Path]:
    """ROC and precision-recall, each for all, clean and fair galaxies, with the talk's working point."""
    (tn, fp), (fn, tp) = TALK
    roc, pr = new_figure(5.6, 4.8), new_figure(5.6, 4.8)
    a, b = roc.subplots(), pr.subplots()
    for name, mask in subsets(galaxies).items():
        labels, p = galaxies.labels[mask], p_bar[mask]
        if set(labels) != {0, 1}:
            continue
        fpr, tpr, _ = roc_curve(labels, p)
        style = {"color": COLOURS[name], "ls": LINES[name]}
        a.plot(fpr, tpr, label=f"{name} ({len(p)}): area {auc(fpr, tpr):.3f}", **style)
        precision, recall, _ = precision_recall_curve(labels, p)
        b.plot(recall, precision, label=f"{name} ({len(p)}): average {average_precision(labels, p):.3f}", **style)
    a.plot([0, 1], [0, 1], color="0.7", lw=1)
    a.plot(fp / (fp + tn), tp / (tp + fn), "k*", ms=11, label="talk (its own sample)")
    a.set(xlabel="false positive rate: unbarred called barred", ylabel="true positive rate: barred called barred")
    b.plot(tp / (tp + fn), tp / (tp + fp), "k*", ms=11, label="talk (its own sample, 30 % bars)")
    b.set(xlabel="recall of barred galaxies", ylabel="precision of 'barred'", ylim=(0.4, 1.02))
    for axis, title in ((a, "ROC"), (b, "Precision and recall")):
        axis.set_title(f"{title}, {of}", fontsize=11)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, loc="lower right" if axis is a else "lower left")
    return [save(roc, folder / "roc.png"), save(pr, folder / "precision_recall.png")]


def mistakes(galaxies: Galaxies, p_bar: NDArray[np.floating], of: str, path: Path, columns: int = 10) -> Path:
    """The surest mistakes: unbarred called barred above, barred called unbarred below, each with its p(bar)."""
    called = p_bar >= 0.5
    worst = []
    for label, rank in ((0, -p_bar), (1, p_bar)):
        wrong = np.flatnonzero((galaxies.labels == label) & (called != label))
        worst.append((len(wrong), wrong[np.argsort(rank[wrong], kind="stable")][: 2 * columns]))
    rows = [max(1, -(-len(shown) // columns)) for _, shown in worst]
    figure = new_figure(9.6, 0.4 + 1.15 * sum(rows))
    titles = ("unbarred, called barred", "barred, called unbarred")
    halves = figure.subfigures(2, 1, height_ratios=rows)
    for half, title, height, (number, shown) in zip(halves, titles, rows, worst, strict=True):
        half.suptitle(f"{title}: {number}, the surest first; numbers are p(bar); {of}", fontsize=10)
        axes = half.subplots(height, columns, squeeze=False)
        for k, axis in enumerate(axes.flat):
            axis.axis("off")
            if k < len(shown):
                axis.imshow(galaxies.images[shown[k]])
                axis.set_title(f"{p_bar[shown[k]]:.2f}", fontsize=8, pad=2)
    return save(figure, path)


def feature_maps(
    galaxies: Galaxies,
    rows: Sequence[int],
    layers: Sequence[tuple[str, NDArray[np.float32]]],
    path: Path,
    columns: int = 16,
) -> Path:
    """What the first layers see in each of some galaxies: `layers` are (name, maps (galaxies, channels, h, w))."""
    figure = new_figure(9.6, 1.75 * len(rows) * len(layers) * 0.62 + 0.6)
    parts = figure.subfigures(len(rows), 1)
    for k, (part, row) in enumerate(zip(np.atleast_1d(parts), rows, strict=True)):
        grid = part.add_gridspec(len(layers), 2, width_ratios=[1, 6], left=0.07)
        axis = part.add_subplot(grid[:, 0])
        axis.imshow(galaxies.images[row])
        axis.set_title(f"{CLASSES[galaxies.labels[row]]} ({galaxies.kind})", fontsize=10)
        axis.axis("off")
        for j, (name, maps) in enumerate(layers):
            channels = maps[k][np.argsort(-maps[k].std((1, 2)))[: 2 * columns]]
            low, high = channels.min((1, 2), keepdims=True), channels.max((1, 2), keepdims=True)
            grey = (channels - low) / np.maximum(high - low, 1e-9)
            h, w = grey.shape[1:]
            sheet = np.full((2 * (h + 2), columns * (w + 2)), np.nan)
            for c, picture in enumerate(grey):
                top, left = c // columns * (h + 2), c % columns * (w + 2)
                sheet[top : top + h, left : left + w] = picture
            axis = part.add_subplot(grid[j, 1])
            axis.imshow(sheet, cmap="viridis", interpolation="nearest")
            axis.set_title(
                f"{name}: {maps.shape[1]} maps of {h} x {w} (the {len(channels)} that vary most)", fontsize=9
            )
            axis.axis("off")
    return save(figure, path)


def all_figures(
    folder: Path,
    galaxies: Galaxies,
    p_bar: NDArray[np.floating],
    of: str,
    history: Sequence[dict[str, Any]],
    trained_on: str,
    results: Sequence[Scores],
    layers_of: Any,
) -> list[tuple[Path, str]]:
    """Draw every figure into the folder -> (path, caption); `layers_of(images)` gives the maps of the first layers."""
    of_all = next(s for s in results if s.name == "all")
    made = [
        (examples(galaxies, folder / "examples.png", np.random.default_rng(0)), f"Examples, {galaxies.kind} galaxies.")
    ]
    if history:
        curve = training_curve(history, folder / "training.png", trained_on)
        made.append((curve, f"Training on {trained_on} galaxies: loss and accuracy after each epoch."))
    roc, pr = curves(galaxies, p_bar, of, folder)
    made += [
        (roc, f"ROC of 'barred', {of}; the star is the talk's result on its own sample."),
        (pr, f"Precision against recall, {of}; it depends on the share of bars."),
        (
            mistakes(galaxies, p_bar, of, folder / "mistakes.png"),
            f"The surest mistakes, {of}: {of_all.matrix[0, 1]} unbarred called barred, {of_all.matrix[1, 0]} missed.",
        ),
    ]
    sure = [int(np.argmax(np.where(galaxies.labels == k, p_bar if k else 1 - p_bar, -1))) for k in (1, 0)]
    maps = feature_maps(galaxies, sure, layers_of(galaxies.images[sure]), folder / "features.png")
    made.append((maps, f"Feature maps of the first layers for a barred and an unbarred galaxy ({galaxies.kind})."))
    return made
