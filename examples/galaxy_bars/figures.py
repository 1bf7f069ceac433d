"""The pictures of the bar task: examples, curves, calibration, mistakes, feature maps, what the network looks at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.drawing import BLUE, GREEN, ORANGE, PURPLE, RED, new_figure, save
from examples.galaxy_bars import network, saliency
from examples.galaxy_bars.data import CLASSES, Galaxies, subsets
from examples.galaxy_bars.evaluate import BINS, TALK, THRESHOLD, Scores, calibration_error, reliability
from examples.galaxy_bars.occlusion import (
    COVERS,
    LogOdds,
    Occlusion,
    beside,
    cover,
    flips,
    occlusion_map,
    wilson,
)
from minidl.metrics import auc, average_precision, precision_recall_curve, roc_curve

COLOURS = {"all": BLUE, "clean": GREEN, "fair": RED, "fair and clean": PURPLE}
LINES = {"all": "-", "clean": "--", "fair": "-.", "fair and clean": ":"}


def shown(p: float) -> str:
    """A probability to three decimals, or as a power of ten where that is 0."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


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


def calibration(
    galaxies: Galaxies, before: NDArray[np.floating], after: NDArray[np.floating], of: str, path: Path
) -> Path:
    """Reliability curves before and after temperature scaling, of all and of clean galaxies; how p(bar) spreads."""
    figure = new_figure(8.6, 5.4)
    axes = figure.subplots(2, 2, sharex=True, height_ratios=[3, 1])
    for column, (p, title) in enumerate(((before, "before"), (after, "after temperature scaling"))):
        curve, bars = axes[:, column]
        curve.plot([0, 1], [0, 1], color="0.6", lw=1)
        for name, shift in (("all", -0.004), ("clean", 0.004)):
            if name not in (masks := subsets(galaxies)):
                continue
            labels, values = galaxies.labels[masks[name]], p[masks[name]]
            x, barred, n = (np.array(v) for v in zip(*reliability(labels, values), strict=True))
            low, high = np.array([wilson(k, m) for k, m in zip(barred, n, strict=True)]).T
            share = barred / n
            error = calibration_error(labels, values)
            style = {"color": COLOURS[name], "ls": LINES[name], "marker": "o", "ms": 4, "capsize": 2}
            bars_up_down = np.clip([share - low, high - share], 0, None)
            curve.errorbar(x + shift, share, bars_up_down, label=f"{name}: error {error:.3f}", **style)
        bars.hist(p, bins=np.linspace(0, 1, BINS + 1), color="0.7", edgecolor="white")
        bars.set(xlabel="p(bar)", yscale="log")
        curve.set_title(title)
        curve.legend(frameon=False, loc="upper left")
        curve.grid(alpha=0.3)
    axes[0, 0].set_ylabel("share that is barred")
    axes[1, 0].set_ylabel("galaxies")
    figure.suptitle(f"Calibration, {of}")
    return save(figure, path)


def mistakes(galaxies: Galaxies, p_bar: NDArray[np.floating], of: str, path: Path, columns: int = 10) -> Path:
    """The surest mistakes with their p(bar): unbarred called barred, missed bars of clean and of doubtful votes."""
    called = p_bar >= THRESHOLD
    clean = subsets(galaxies).get("clean", np.ones(len(galaxies), bool))
    doubt = [("", clean), (", doubtful votes (not clean)", ~clean)][: 1 if clean.all() else 2]
    groups = [("unbarred, called barred", 0, -p_bar, clean)]
    groups += [(f"barred, called unbarred{what}", 1, p_bar, mask) for what, mask in doubt]
    worst = []
    for title, label, rank, mask in groups:
        wrong = np.flatnonzero((galaxies.labels == label) & (called != label) & mask)
        worst.append((f"{title}: {len(wrong)}", wrong[np.argsort(rank[wrong], kind="stable")][: 2 * columns]))
    rows = [max(1, -(-len(picked) // columns)) for _, picked in worst]
    figure = new_figure(9.6, 0.5 + 0.4 * len(rows) + 1.1 * sum(rows))
    figure.suptitle(f"Mistakes, the surest first, with p(bar); {of}", fontsize=11)
    parts = np.atleast_1d(figure.subfigures(len(rows), 1, height_ratios=[height + 0.35 for height in rows]))
    for part, height, (title, picked) in zip(parts, rows, worst, strict=True):
        part.suptitle(title, fontsize=10)
        axes = part.subplots(height, columns, squeeze=False)
        for k, axis in enumerate(axes.flat):
            axis.axis("off")
            if k < len(picked):
                axis.imshow(galaxies.images[picked[k]])
                axis.set_title(shown(p_bar[picked[k]]), fontsize=8, pad=2)
    return save(figure, path)


def feature_maps(
    galaxies: Galaxies,
    rows: Sequence[int],
    layers: Sequence[tuple[str, NDArray[np.float32]]],
    p_bar: NDArray[np.floating],
    path: Path,
    columns: int = 8,
) -> Path:
    """The maps of every layer for a barred and an unbarred galaxy, side by side: `layers` are (name, (2, c, h, w)).

    Of each layer the maps that vary most in the two galaxies, each map in the same colours in both.
    """
    figure = new_figure(11.0, 1.5 + 1.32 * len(layers))
    grid = figure.add_gridspec(len(layers) + 1, 2, height_ratios=[1.3] + [1] * len(layers))
    for column, row in enumerate(rows):
        axis = figure.add_subplot(grid[0, column])
        axis.imshow(galaxies.images[row])
        axis.set_title(f"{CLASSES[galaxies.labels[row]]} ({galaxies.kind}), p(bar) {shown(p_bar[row])}", fontsize=10)
        axis.axis("off")
    for j, (name, maps) in enumerate(layers):
        chosen = np.argsort(-maps.std((2, 3)).mean(0), kind="stable")[: 2 * columns]
        picked = maps[:, chosen]
        low, high = picked.min((0, 2, 3)), picked.max((0, 2, 3))
        grey = (picked - low[:, None, None]) / np.maximum(high - low, 1e-9)[:, None, None]
        shape = f"{grey.shape[2]} x {grey.shape[3]}"
        enlarged = max(1, 32 // grey.shape[3])  # so that all gaps look alike
        grey = grey.repeat(enlarged, 2).repeat(enlarged, 3)
        h, w = grey.shape[2:]
        gap = max(1, w // 16)
        for column in range(len(rows)):
            sheet = np.full((2 * (h + gap) - gap, columns * (w + gap) - gap), np.nan)
            for c, picture in enumerate(grey[column]):
                top, left = c // columns * (h + gap), c % columns * (w + gap)
                sheet[top : top + h, left : left + w] = picture
            axis = figure.add_subplot(grid[j + 1, column])
            axis.imshow(sheet, cmap="viridis", interpolation="nearest", vmin=0, vmax=1)
            axis.set_title(f"{name}: {len(chosen)} of {maps.shape[1]} maps, {shape}", fontsize=9, pad=3)
            axis.axis("off")
    return save(figure, path)


# What the network looks at


def occlusion(test: Occlusion, galaxies: Galaxies, of: str, path: Path) -> Path:
    """Share of true positives no longer called barred, against how much of the bar is hidden: on the bar, beside it."""
    masks = {name: mask for name, mask in subsets(galaxies[test.rows]).items() if name in ("all", "clean")}
    figure = new_figure(6.4, 4.4)
    axis = figure.subplots()
    for i, (name, mask) in enumerate(masks.items()):
        counts = np.array([flips(test, mask, k) for k in range(len(COVERS))])
        for column, colour, what in ((1, BLUE, "disc on the bar"), (2, ORANGE, "same disc beside it")):
            share = 100 * counts[:, column] / counts[:, 0]
            low, high = 100 * np.array([wilson(int(c[column]), int(c[0])) for c in counts]).T
            axis.errorbar(
                100 * np.array(COVERS) + 1.5 * i,
                share,
                np.clip([share - low, high - share], 0, None),
                color=colour,
                ls=LINES[name],
                marker="os"[i],
                capsize=3,
                label=f"{what}, {name} ({counts[0, 0]})",
            )
    if m := test.unbarred.shape[1]:
        gained = [int(np.sum(z >= 0)) for z in test.unbarred]
        share = 100 * np.array(gained) / m
        low, high = 100 * np.array([wilson(k, m) for k in gained]).T
        label = f"unbarred, disc on the centre: now called barred ({m})"
        spread = np.clip([share - low, high - share], 0, None)
        axis.errorbar(
            100 * np.array(COVERS) - 1.5, share, spread, color="0.5", ls=":", marker="^", capsize=3, label=label
        )
    axis.set(
        xlabel="part of the bar hidden (%)",
        ylabel="called otherwise than before (%)",
        xticks=[100 * c for c in COVERS],
        ylim=(-3, 103),
    )
    axis.set_title(f"Occlusion, {of}", fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="upper left")
    return save(figure, path)


def occlusion_examples(test: Occlusion, galaxies: Galaxies, path: Path, rows: int = 4) -> Path:
    """Some true positives with the discs of the test, on the bar and beside it, and what p(bar) becomes."""
    ranks = np.unique(np.linspace(0, len(test.rows) - 1, rows + 2).astype(int)[1:-1])
    some = np.argsort(test.before, kind="stable")[ranks]
    figure = new_figure(9.6, 0.5 + 1.55 * len(some))
    axes = figure.subplots(len(some), 1 + 2 * len(COVERS), squeeze=False)
    for line, k in zip(axes, some, strict=True):
        image, bar = galaxies.images[test.rows[k]], test.bars[k]
        line[0].imshow(image)
        angle = np.linspace(0, 2 * np.pi, 100)
        along, across = bar.length * np.cos(angle), bar.width * np.sin(angle)
        cos, sin = np.cos(bar.angle), np.sin(bar.angle)
        line[0].plot(bar.x + along * cos - across * sin, bar.y + along * sin + across * cos, "w", lw=0.8)
        panels = [(test.before[k], "measured bar")]
        for j, part in enumerate(COVERS):
            places = (bar.x, bar.y), beside(bar, part * bar.length, len(image))[:2]
            for column, place in enumerate(places):
                line[1 + j + column * len(COVERS)].imshow(cover(image, *place, part * bar.length))
            panels.insert(1 + j, (test.on[j][k], f"{100 * part:.0f} % on"))
            panels.append((test.off[j][k], f"{100 * part:.0f} % beside"))
        for axis, (z, what) in zip(line, panels, strict=True):
            axis.set_xlim(-0.5, len(image) - 0.5)
            axis.set_ylim(len(image) - 0.5, -0.5)
            axis.axis("off")
            p, colour = shown(network.sigmoid(z)), RED if z < 0 else "k"
            axis.set_title(f"{what}\np(bar) {p}", fontsize=8, pad=2, color=colour)
    figure.suptitle(f"Occlusion test, {galaxies.kind} galaxies; red: no longer called barred", fontsize=10)
    return save(figure, path)


def attention(
    model: Any, log_odds: LogOdds, galaxies: Galaxies, p_bar: NDArray[np.floating], of: str, path: Path
) -> Path:
    """Occlusion map, gradient and grad-CAM of galaxies called rightly and wrongly, clean ones where there are any."""
    clean = subsets(galaxies).get("clean", np.ones(len(galaxies), bool))
    chosen: list[tuple[str, int]] = []
    for label, called in ((1, 1), (0, 0), (0, 1), (1, 0)):
        rows = np.flatnonzero((galaxies.labels == label) & ((p_bar >= THRESHOLD) == called))
        rows = rows[clean[rows]] if clean[rows].any() else rows
        order = rows[np.argsort(np.abs(p_bar[rows] - 0.5), kind="stable")]  # the surest last
        picks = [order[-1], order[len(order) // 2]] if label == called == 1 and len(order) > 1 else order[-1:]
        chosen += [(f"{CLASSES[label]}, called {CLASSES[called]}", int(row)) for row in picks]
    images = galaxies.images[[row for _, row in chosen]]
    gradients, cams = saliency.gradient(model, images), saliency.grad_cam(model, images)
    size = images.shape[1]
    box = (-0.5, size - 0.5, size - 0.5, -0.5)
    figure = new_figure(8.4, 0.4 + 2.05 * len(chosen))
    axes = figure.subplots(len(chosen), 4, squeeze=False)
    for line, (what, row), image, slope, cam in zip(axes, chosen, images, gradients, cams, strict=True):
        lowered = occlusion_map(log_odds, image)
        grey = image.mean(-1)
        for axis in line:
            axis.axis("off")
            axis.imshow(image if axis is line[0] else grey, cmap="gray")
        most = max(np.abs(lowered).max(), 1e-9)
        options = {"extent": box, "alpha": 0.6, "interpolation": "bilinear"}
        drawn = line[1].imshow(lowered, cmap="RdBu_r", vmin=-most, vmax=most, **options)
        figure.colorbar(drawn, ax=line[1], fraction=0.046)
        line[2].imshow(slope, cmap="magma", **options)
        line[3].imshow(cam, cmap="magma", **options)
        line[0].set_title(f"{what}\np(bar) {shown(p_bar[row])}", fontsize=9)
        for axis, title in zip(line[1:], ("fall of log odds\nif hidden here", "gradient", "grad-CAM"), strict=True):
            axis.set_title(title if axis is line[1] else f"{title}\n", fontsize=9)
    figure.suptitle(f"What the answer depends on, {of}", fontsize=10)
    return save(figure, path)


def all_figures(
    folder: Path,
    model: Any,
    galaxies: Galaxies,
    p_bar: NDArray[np.floating],
    uncalibrated: NDArray[np.floating],
    test: Occlusion,
    of: str,
    meta: dict[str, Any],
    results: Sequence[Scores],
) -> list[tuple[Path, str]]:
    """Draw every figure into the folder -> (path, caption)."""
    wrong = ", ".join(
        f"{s.name}: {s.matrix[0, 1]} unbarred called barred, {s.matrix[1, 0]} missed"
        for s in results
        if s.name in ("all", "clean")
    )
    made = [
        (examples(galaxies, folder / "examples.png", np.random.default_rng(0)), f"Examples, {galaxies.kind} galaxies.")
    ]
    if history := meta["history"]:
        curve = training_curve(history, folder / "training.png", meta["kind"])
        made.append((curve, f"Training on {meta['kind']} galaxies: loss and accuracy after each epoch."))
    roc, pr = curves(galaxies, p_bar, of, folder)
    sure = [int(np.argmax(np.where(galaxies.labels == k, p_bar if k else 1 - p_bar, -1))) for k in (1, 0)]
    layers = network.feature_maps(model, galaxies.images[sure])
    made += [
        (roc, f"ROC of 'barred', {of}; the star is the talk's result on its own sample."),
        (pr, f"Precision against recall, {of}; it depends on the share of bars."),
        (
            calibration(galaxies, uncalibrated, p_bar, of, folder / "calibration.png"),
            f"Share of barred galaxies against p(bar), {of}; on the line, probabilities mean what they say.",
        ),
        (
            mistakes(galaxies, p_bar, of, folder / "mistakes.png"),
            f"The surest mistakes with their p(bar), {of}; {wrong}.",
        ),
        (
            feature_maps(galaxies, sure, layers, p_bar, folder / "features.png"),
            f"Feature maps of every layer for a barred and an unbarred galaxy ({galaxies.kind}).",
        ),
    ]
    if len(test.rows):
        made += [
            (
                occlusion(test, galaxies, of, folder / "occlusion.png"),
                f"Occlusion test, {of}: bars lost when a disc hides them, or as much beside them.",
            ),
            (
                occlusion_examples(test, galaxies, folder / "occlusion_examples.png"),
                f"The discs of the occlusion test on some {galaxies.kind} galaxies.",
            ),
        ]
    maps = attention(model, test.log_odds, galaxies, p_bar, of, folder / "attention.png")
    made.append((maps, f"Sliding-window occlusion, gradient and grad-CAM, {of}."))
    return made
