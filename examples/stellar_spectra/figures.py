"""The pictures of an evaluation; the only file here that draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..drawing import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, save, subplots
from . import evaluate
from .codes import CLASSES, SUBCLASS
from .preprocess import CENTRES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, "black")
_MARKS = ("o", "^", "s", "D", "v", "P", "X")
_TICKS = [1000 * (k + 1) + 505 for k in range(len(CLASSES))]  # the middle of each class on the code's axis
_FEATURES = {"Hα": 6563, "Hβ": 4861, "Hγ": 4340, "Hδ": 4102, "He I": 4471, "Ca K": 3934, "G": 4305, "Mg b": 5175,
             "Na D": 5893, "TiO": 6158}  # fmt: skip


def draw(results: dict[str, evaluate.Result], meta: dict[str, Any], out: Path) -> list[tuple[Path, str]]:
    """Draw all figures into `out` -> (path, caption) of each."""
    last = list(results)[-1]
    result = results[last]
    kind = f"{result.stars.kind} spectra, {last}"
    figures = [
        ("predicted_against_catalogue", _against(results), f"Predicted against catalogued type ({kind})."),
        ("residuals", _residuals(result, kind), f"Errors of the code ({kind}): how they are spread, and where."),
        ("confusion", _confusion(result, kind), f"Which class was taken for which ({kind})."),
        ("examples", _examples(result, kind), f"One test spectrum of each class ({kind}): catalogue -> prediction."),
        ("training", _training(meta), f"Training and validation ({meta['data']} spectra)."),
    ]
    return [(save(figure, out / f"{name}.png"), caption) for name, figure, caption in figures]


def _class_axis(axis: Any) -> None:
    axis.set_ticks([1000 * (k + 1) for k in range(len(CLASSES) + 1)], minor=True)
    axis.set_ticks(_TICKS, CLASSES)
    axis.set_tick_params(which="major", length=0)


def _against(results: dict[str, evaluate.Result]) -> Figure:
    """Predicted code against the catalogue's, a colour and mark for each library."""
    figure, ax = subplots(7.2, 6.6)
    parts = {name: r for name, r in results.items() if name != "all"}
    ax.plot([800, 8200], [800, 8200], color="0.6", lw=1, zorder=0)
    for k, (name, r) in enumerate(parts.items()):
        e = r.errors
        label = f"{name}: σ {e['sigma'] / SUBCLASS:.2f} subclasses, class right {e['class_accuracy']:.2f} (N {e['n']})"
        style = {"color": COLOURS[k % 7], "marker": _MARKS[k % 7]}
        ax.scatter(r.stars.codes(), r.prediction.code, s=20, alpha=0.65, lw=0, label=label, **style)
    ax.set(xlim=(900, 8100), ylim=(900, 8100), xlabel="type in the catalogue", ylabel="predicted type")
    for axis in (ax.xaxis, ax.yaxis):
        _class_axis(axis)
    ax.grid(which="minor", color="0.9", lw=0.8)
    ax.set_axisbelow(True)
    ax.set_aspect("equal")
    ax.legend(loc="upper left", fontsize=9)
    ax.set_title(f"Predicted against catalogued type ({next(iter(results.values())).stars.kind} spectra, test stars)")
    return figure


def _residuals(result: evaluate.Result, kind: str) -> Figure:
    """Histogram of the errors, and the errors along the sequence."""
    error = (result.prediction.code - result.stars.codes()) / SUBCLASS
    figure, (left, right) = subplots(9, 3.8, 1, 2, gridspec_kw={"width_ratios": [1, 1.5]})
    edge = 8
    left.hist(np.clip(error, -edge, edge), bins=np.arange(-edge, edge + 0.5, 0.5), color=COLOURS[0])
    e = result.errors
    left.axvline(e["mean"] / SUBCLASS, color=COLOURS[1], lw=1.5)
    left.set(xlabel="predicted − catalogue / subclasses\n(beyond ±8 in the last bins)", ylabel="number of stars")
    mean, sigma, sigma68 = (e[k] / SUBCLASS for k in ("mean", "sigma", "sigma68"))
    left.set_title(f"mean {mean:+.2f}, σ {sigma:.2f}, σ68 {sigma68:.2f}")
    cls = result.stars.classes()
    wrong = result.prediction.p_class.argmax(1) != cls
    for mask, colour, mark, label in (
        (~wrong, COLOURS[0], "o", "class right"),
        (wrong, COLOURS[1], "^", "class wrong"),
    ):
        right.scatter(
            result.stars.codes()[mask], error[mask], s=18, alpha=0.7, lw=0, color=colour, marker=mark, label=label
        )
    right.axhline(0, color="0.6", lw=1, zorder=0)
    right.set(xlim=(900, 8100), xlabel="type in the catalogue", ylabel="error / subclasses")
    _class_axis(right.xaxis)
    right.grid(which="minor", axis="x", color="0.9", lw=0.8)
    right.legend(fontsize=9)
    figure.suptitle(f"Errors of the code ({kind})")
    return figure


def _confusion(result: evaluate.Result, kind: str) -> Figure:
    """Counts, coloured by the share of the row."""
    matrix = evaluate.confusion(result)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure, ax = subplots(5.6, 5)
    image = ax.imshow(share, cmap="cividis", vmin=0, vmax=1)
    for i, j in np.argwhere(matrix > 0):
        ax.text(j, i, matrix[i, j], ha="center", va="center", color="black" if share[i, j] > 0.55 else "white")
    ax.set_xticks(range(len(CLASSES)), CLASSES)
    ax.set_yticks(range(len(CLASSES)), [f"{c} ({n})" for c, n in zip(CLASSES, matrix.sum(1), strict=True)])
    ax.set(xlabel="predicted class", ylabel="class in the catalogue (stars)")
    ax.set_title(f"Confusion of classes\n({kind})")
    figure.colorbar(image, label="share of the row", shrink=0.85)
    return figure


def _examples(result: evaluate.Result, kind: str) -> Figure:
    """The spectrum in the middle of each class, with the lines that make the class."""
    cls, code = result.stars.classes(), result.stars.codes()
    present = [k for k in range(len(CLASSES)) if (cls == k).any()]
    figure, axes = subplots(8.6, 1.35 * len(present) + 0.8, len(present), sharex=True, squeeze=False)
    types = evaluate.types_of(result.prediction)
    for ax, k in zip(axes[:, 0], present, strict=True):
        members = np.flatnonzero(cls == k)
        i = members[np.argsort(code[members])[len(members) // 2]]
        flux = result.stars.flux[i]
        for wave in _FEATURES.values():
            ax.axvline(wave, color="0.88", lw=3, zorder=0)
        ax.plot(CENTRES, flux, color=COLOURS[0], lw=1)
        top = float(np.nanmax(flux))
        ax.set_ylim(0, top * 1.12)
        ax.set_yticks([0, round(top, 1)])
        label = f"{result.stars.types[i]} → {types[i]}   {result.stars.stars[i]}"
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
        rising = np.nanmean(flux[-200:]) > np.nanmean(flux[:200])
        ax.text(0.01 if rising else 0.99, 0.86, label, transform=ax.transAxes, ha="left" if rising else "right",
                va="top", fontsize=9, bbox=box)  # fmt: skip
    for name, wave in _FEATURES.items():
        side = {"G": "right", "Hγ": "left"}.get(name, "center")  # these two are neighbours
        axes[0, 0].text(wave, 1.04, name, transform=axes[0, 0].get_xaxis_transform(), ha=side, fontsize=8)
    axes[-1, 0].set(xlim=(3900, 6800), xlabel="wavelength in air / Å")
    figure.supylabel("flux as prepared for the network", fontsize=10)
    figure.suptitle(f"One test spectrum of each class: catalogue → prediction ({kind})", fontsize=11)
    return figure


def _training(meta: dict[str, Any]) -> Figure:
    """Loss, and the error of the code on the validation part where there is one, against the epoch."""
    history = meta["history"]
    epoch = [row["epoch"] for row in history]
    validated = "val_loss" in history[0]
    figure, axes = subplots(9 if validated else 5, 3.4, 1, 1 + validated, squeeze=False)
    left, right = axes[0, 0], axes[0, -1]
    left.plot(epoch, [row["loss"] for row in history], color=COLOURS[0], label="training")
    left.set(xlabel="epoch", ylabel="loss", yscale="log")
    if validated:
        left.plot(epoch, [row["val_loss"] for row in history], color=COLOURS[1], ls="--", label="validation")
        right.plot(epoch, [row["val_sigma"] for row in history], color=COLOURS[1], label="σ of the code / subclasses")
        right.set(xlabel="epoch", ylabel="σ / subclasses", yscale="log")
        best = min(history, key=lambda row: row["val_loss"])
        right.axvline(best["epoch"], color="0.6", lw=1)
        right.set_title(f"validation; the best epoch, {best['epoch']:.0f}, is kept", fontsize=10)
    left.legend()
    for ax in (left, right):
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
    figure.suptitle(f"Training ({meta['data']} spectra of {', '.join(meta['libraries'])})", fontsize=11)
    return figure
