"""The pictures: picks on a micrograph, precision against recall, the class mask, the training, and what enhancement
does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from examples.drawing import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, save, subplots
from examples.particle_picking import CLASSES, formats, network, picking

if TYPE_CHECKING:
    from examples.particle_picking.evaluate import Evaluation, Tested

CLASS_COLOURS = ("#FFFFFF", BLUE, ORANGE, PURPLE)
MARKS = {"cassper": ("s", ORANGE), "cryolo": ("^", GREEN), "gautomatch": ("D", PURPLE)}


def draw_all(result: Evaluation, out: Path) -> list[tuple[Path, str]]:
    """Draw every figure of an evaluation into `out` -> (path, caption)."""
    worst_first = sorted(result.tested, key=lambda t: picking.score(t.item.xy, t.picks, result.radius).f1)
    middle = worst_first[len(worst_first) // 2]
    kind = result.collection.kind
    # the mask is shown where the labels have most ice and carbon
    rich = max(result.tested, key=lambda t: int(np.isin(t.item.label, (2, 3)).sum()))
    return [
        (overlay(result, middle, out / "picks.png"), f"Picks on a test micrograph of median F1 ({kind})."),
        (curves(result, out / "precision_recall.png"), f"Precision against recall, all test micrographs ({kind})."),
        (mask(result, rich, out / "mask.png"), f"The class mask of a test micrograph ({kind})."),
        (
            enhancement(result, middle, out / "enhancement.png"),
            f"A test micrograph before and after enhancement ({kind}).",
        ),
        (training(result, out / "training.png"), f"Training ({result.pickers[0].meta['kind']} data)."),
    ]


def _show(axes: Any, image: np.ndarray, tested: Tested) -> None:
    """A working image in grey, axes in original pixels."""
    sy, sx = tested.item.enhanced.scale
    h, w = image.shape
    low, high = np.percentile(image, (1, 99))
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, extent=(-0.5 / sx, (w - 0.5) / sx, (h - 0.5) / sy, -0.5 / sy))
    axes.set(xlabel="x (px)", ylabel="y (px)")


def overlay(result: Evaluation, tested: Tested, path: Path) -> Path:
    """True, false and missed picks on the enhanced micrograph (its middle, if it is large)."""
    from matplotlib.collections import EllipseCollection

    xy, picks = tested.item.xy, tested.picks
    owner = picking.match(xy, picks.xy, result.radius)
    score = picking.score(xy, picks, result.radius)
    missed = np.delete(xy, owner[owner >= 0], axis=0)
    figure, axes = subplots(8.2, 8.6)
    _show(axes, tested.item.enhanced.image, tested)
    groups = (
        (picks.xy[owner >= 0], GREEN, "solid", f"true ({score.hits})"),
        (picks.xy[owner < 0], RED, "solid", f"false ({score.picked - score.hits})"),
        (missed, SKY, (0, (2, 1.5)), f"missed ({score.marked - score.hits})"),
    )
    across = 2 * result.radius
    for centres, colour, style, label in groups:
        axes.add_collection(
            EllipseCollection(
                np.full(len(centres), across), np.full(len(centres), across), np.zeros(len(centres)), units="xy",
                offsets=centres, offset_transform=axes.transData, facecolors="none", edgecolors=colour, linewidths=1.6,
                linestyles=[style],
            )
        )  # fmt: skip
        axes.plot([], [], "o", mfc="none", mec=colour, mew=1.6, ms=9, ls="none", label=label)
    tall, wide = tested.item.enhanced.shape
    half = min(11 * across, min(tall, wide) / 2)  # 22 particles across: enough to see, not too many to look at
    axes.set_xlim(wide / 2 - half, wide / 2 + half)
    axes.set_ylim(tall / 2 + half, tall / 2 - half)
    axes.set_title(
        f"{tested.item.entry.name} ({result.collection.kind}): precision {score.precision:.2f},"
        f" recall {score.recall:.2f}, F1 {score.f1:.2f} (whole micrograph)"
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=3, frameon=False)
    return save(figure, path)


def curves(result: Evaluation, path: Path) -> Path:
    """Precision against recall as the threshold moves, the chosen point, and the other programs."""
    curve, total = result.curve(), result.total()
    figure, axes = subplots(6.6, 5.6)
    grid = np.linspace(0.01, 1, 200)
    for f1 in (0.5, 0.6, 0.7, 0.8, 0.9):
        precision = f1 * grid / np.maximum(2 * grid - f1, 1e-9)
        visible = (2 * grid > f1) & (precision <= 1)
        axes.plot(grid[visible], precision[visible], color="0.85", lw=0.8, zorder=0)
        axes.annotate(f"F1 {f1}", (1.01, f1 / (2 - f1)), color="0.5", fontsize=8, va="center", annotation_clip=False)
    axes.plot(
        curve.recall,
        curve.precision,
        color=BLUE,
        lw=2,
        label=f"{result.pickers[0].label} (AP {curve.average_precision:.3f})",
    )
    axes.plot(
        total.recall, total.precision, "o", color=BLUE, ms=9, label=f"threshold from validation (F1 {total.f1:.3f})"
    )
    for name in result.others:
        marker, colour = MARKS.get(name, ("x", RED))
        score = result.other_score(name)
        axes.plot(
            score.recall, score.precision, marker, color=colour, ms=8, ls="none", label=f"{name} (F1 {score.f1:.3f})"
        )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(
        f"{len(result.tested)} test micrographs ({result.collection.kind}), hit within {result.radius:.3g} px"
    )
    axes.legend(loc="lower left")
    return save(figure, path)


def mask(result: Evaluation, tested: Tested, path: Path) -> Path:
    """Enhanced micrograph, protein probability, predicted classes."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    enhanced = tested.item.enhanced
    figure, axes = subplots(10, 3.9, 1, 3, sharex=True, sharey=True)
    _show(axes[0], enhanced.image, tested)
    axes[0].set_title(f"enhanced ({result.collection.kind})")
    extent = axes[0].images[0].get_extent()
    shown = axes[1].imshow(tested.probability[1] * enhanced.live, cmap="viridis", vmin=0, vmax=1, extent=extent)
    figure.colorbar(shown, ax=axes[1], label="probability of protein", shrink=0.75)
    axes[1].set(xlabel="x (px)", title="protein probability")
    classes = tested.probability.argmax(0) * enhanced.live
    axes[2].imshow(
        classes, cmap=ListedColormap(CLASS_COLOURS), vmin=-0.5, vmax=3.5, extent=extent, interpolation="nearest"
    )
    axes[2].set(xlabel="x (px)", title="predicted classes")
    handles = [Patch(facecolor=c, edgecolor="0.4", label=n) for c, n in zip(CLASS_COLOURS, CLASSES, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(tested.item.entry.name, fontsize=10)
    return save(figure, path)


def enhancement(result: Evaluation, tested: Tested, path: Path) -> Path:
    """The same corner of a micrograph as stored and as the network sees it."""
    image, _ = formats.read_micrograph(tested.item.entry.image)
    side = int(min(*image.shape, 30 * result.radius))
    y, x = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    part = image[y : y + side, x : x + side]
    low, high = np.percentile(part, (0.5, 99.5))
    figure, axes = subplots(9.2, 4.9, 1, 2, sharex=True, sharey=True)
    axes[0].imshow(part, cmap="gray", vmin=low, vmax=high, extent=(x - 0.5, x + side - 0.5, y + side - 0.5, y - 0.5))
    unit = "electrons per px" if result.collection.kind == "simulated" else "as stored"
    axes[0].set(
        title=f"{tested.item.entry.name}: before, {unit} ({result.collection.kind})", xlabel="x (px)", ylabel="y (px)"
    )
    _show(axes[1], tested.item.enhanced.image, tested)
    axes[1].set(xlim=(x - 0.5, x + side - 0.5), ylim=(y + side - 0.5, y - 0.5), ylabel="")
    axes[1].set_title(f"after: {network.WORKING} px to a particle, background levelled")
    return save(figure, path)


def training(result: Evaluation, path: Path) -> Path:
    """Loss of training and validation against epoch, for every fold."""
    figure, axes = subplots(6.6, 4.4)
    for k, picker in enumerate(result.pickers):
        history = picker.meta["history"]
        epochs = [row["epoch"] for row in history]
        axes.plot(
            epochs, [row["loss"] for row in history], color=BLUE, lw=1.6, label="training crops" if k == 0 else None
        )
        axes.plot(
            epochs,
            [row["val_loss"] for row in history],
            color=ORANGE,
            lw=1.6,
            ls="--",
            label="validation" if k == 0 else None,
        )
    many = f", {len(result.pickers)} folds" if len(result.pickers) > 1 else ""
    axes.set(xlabel="epoch (128 crops)", ylabel="weighted cross-entropy (nats)", ylim=(0, None))
    axes.set_title(f"Training on {result.pickers[0].meta['kind']} micrographs{many}")
    axes.legend()
    return save(figure, path)


def gallery(averages: np.ndarray, sizes: np.ndarray, false: np.ndarray, name: str, path: Path) -> Path:
    """Class averages (K, h, w), largest class first, false ones crossed out."""
    shown = np.flatnonzero(sizes)
    columns = 10
    rows = -(-len(shown) // columns)
    figure, axes = subplots(10, 1.13 * rows + 0.5, rows, columns, squeeze=False)
    low, high = np.percentile(averages[shown], (0.5, 99.5))
    for place, k in zip(axes.flat, shown, strict=False):
        place.imshow(averages[k], cmap="gray", vmin=low, vmax=high)
        place.set_title(
            f"{sizes[k]}{' false' if false[k] else ''}", fontsize=8, color=RED if false[k] else "black", pad=2
        )
        if false[k]:
            side = averages.shape[1] - 1
            place.plot([0, side], [0, side], color=RED, lw=1.2)
            place.plot([0, side], [side, 0], color=RED, lw=1.2)
    for place in axes.flat:
        place.set_axis_off()
    wrong = int(sizes[false].sum())
    share = 100 * (1 - wrong / sizes.sum())
    figure.suptitle(
        f"{name}: {sizes.sum()} picks in {len(shown)} classes, {wrong} false by the rule, accuracy {share:.1f} %"
    )
    return save(figure, path)
