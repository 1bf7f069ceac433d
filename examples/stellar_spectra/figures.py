"""The pictures of an evaluation; the only file here that draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..drawing import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, save, subplots
from . import evaluate
from .codes import CLASSES, LUMINOSITIES, SUBCLASS
from .preprocess import CENTRES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .data import Stars
    from .lines import Importance
    from .preprocess import Grid
    from .study import Study
    from .unlabelled import Squeezed

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
        (
            "confusion",
            _confusion(evaluate.confusion(result), CLASSES, "class", kind),
            f"Which class was taken for which ({kind}).",
        ),
        (
            "luminosity",
            _confusion(evaluate.luminosity_confusion(result), LUMINOSITIES, "luminosity class", kind),
            f"Which luminosity class, I to V, was taken for which ({kind}).",
        ),
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


def _confusion(matrix: np.ndarray, names: Sequence[str], what: str, kind: str) -> Figure:
    """Counts (K, K), rows the catalogue's, coloured by the share of the row."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure, ax = subplots(5.6, 5)
    image = ax.imshow(share, cmap="cividis", vmin=0, vmax=1)
    for i, j in np.argwhere(matrix > 0):
        ax.text(j, i, matrix[i, j], ha="center", va="center", color="black" if share[i, j] > 0.55 else "white")
    ax.set_xticks(range(len(names)), names)
    ax.set_yticks(range(len(names)), [f"{name} ({n})" for name, n in zip(names, matrix.sum(1), strict=True)])
    ax.set(xlabel=f"predicted {what}", ylabel=f"{what} in the catalogue (stars)")
    right = np.trace(matrix) / (matrix.sum() or np.nan)
    ax.set_title(f"Confusion, {what}: {right:.3f} right\n({kind})")
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


# --- the study -----------------------------------------------------------------------------------------------------
def draw_study(study: Study) -> list[tuple[Path, str]]:
    """Draw what the study's runs say of noise and of labels, as far as they are done -> (path, caption) of each."""
    figures = []
    if found := study.select("noise"):
        caption = "CFLIB's stars with noise added, five folds: error of the code and classes right."
        figures.append((save(_noise(found), study.out / "noise.png"), caption))
    if found := study.select("labels"):
        caption = "Mean absolute error by the number of labelled spectra, with and without pre-training."
        figures.append((save(_labels(found), study.out / "labels.png"), caption))
    return figures


def _noise(found: dict[tuple[str, str], list[dict[str, Any]]]) -> Figure:
    """Error and share of classes right against signal to noise, a line a network."""
    figure, axes = subplots(9, 3.8, 1, 2)
    kinds = sorted({run.rsplit(", SNR ", 1)[0] for run, _ in found})
    for k, kind in enumerate(kinds):
        rows = sorted(
            (float(run.rsplit(" ", 1)[1]), r[0]) for (run, _), r in found.items() if run.startswith(kind + ",")
        )
        for ax, measure in zip(axes, ("sigma", "class_accuracy"), strict=True):
            ax.plot([x for x, _ in rows], [r[measure] for _, r in rows], color=COLOURS[k], marker=_MARKS[k], label=kind)
    for ax, name in zip(axes, ("σ of the code / subclasses", "share of classes right"), strict=True):
        ax.set(xscale="log", xlabel="signal to noise in a bin of 5 Å at 5550 Å", ylabel=name)
        ax.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        ax.minorticks_off()
    axes[0].legend()
    figure.suptitle("Real spectra of CFLIB, each by networks that have not seen its star, noise added")
    return figure


def _labels(found: dict[tuple[str, str], list[dict[str, Any]]]) -> Figure:
    """Error against the number of labels; bars are standard errors over seeds."""
    from .study import LABELS, LEADING, PRETRAINING

    figure, axes = subplots(9, 3.8, 1, 2, sharey=True)
    for ax, kind in zip(axes, ("autoencoder", "dense-autoencoder"), strict=True):
        for k, (corrupt, task) in enumerate(PRETRAINING.items()):
            points = [
                (n, [r["mae"] for r in found[key]])
                for n in LABELS
                if (key := (f"{kind}, {corrupt}, {n}", LEADING)) in found
            ]
            errors = [np.std(v, ddof=1) / np.sqrt(len(v)) if len(v) > 1 else 0 for _, v in points]
            x = [n * (0.95 + 0.05 * k) for n, _ in points]
            y = [np.mean(v) for _, v in points]
            ax.errorbar(
                x, y, errors, color=COLOURS[k], marker=_MARKS[k], ls=("-", "-.", "--", ":")[k], capsize=3, label=task
            )
        ax.set(xscale="log", yscale="log", xlabel="labelled spectra", title=kind)
        ax.set_xticks(list(LABELS), [str(n) for n in LABELS])
        ax.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_yticks([0.7, 1, 1.5, 2])
    axes[0].set_ylabel("mean absolute error / subclasses")
    axes[0].legend(title="pre-training")
    figure.suptitle("CFLIB's test stars, one network: mean and standard error of the mean over seeds")
    return figure


# --- which lines matter --------------------------------------------------------------------------------------------
_FEATURE_COLOURS = {
    "Balmer": BLUE,
    "Ca H, K": ORANGE,
    "G band": "0.5",
    "He II": "#F0E442",
    "He I": PURPLE,
    "Mg b": GREEN,
    "Na D": RED,
    "TiO": SKY,
    "O2 (air)": "black",
}


def draw_lines(found: Importance, stars: Stars, grid: Grid, title: str, out: Path) -> list[tuple[Path, str]]:
    """Draw saliency and occlusion, a panel a class over its mean spectrum -> (path, caption) of each."""
    cls = stars.classes()
    means = [np.nanmean(stars.flux[cls == k], 0) if found.stars[k] else None for k in range(len(CLASSES))]
    figures = []
    for name, x, values, unit, caption in (
        ("saliency", grid.centres, found.saliency, "subclasses a percent of flux",
         "How far the code moves if one bin gets a percent brighter, mean size in each class."),
        ("occlusion", found.centres, found.hidden, "subclasses",
         "How far the code moves if 50 Å are hidden and filled in from the rest, mean size in each class."),
    ):  # fmt: skip
        figure = _by_class(found, means, grid, x, values)
        figure.supylabel(f"{name} / {unit} (black: the mean spectrum, any unit)", fontsize=10)
        figure.suptitle(f"{caption}\n{title}", fontsize=11)
        figures.append((save(figure, out / f"{name}.png"), caption))
    return figures


def _by_class(
    found: Importance, means: list[np.ndarray | None], grid: Grid, x: np.ndarray, values: np.ndarray
) -> Figure:
    """A panel a class: bars of `values` (7, n) at `x` (n,), the class's mean spectrum, the features shaded."""
    from .lines import FEATURES

    present = [k for k in range(len(CLASSES)) if found.stars[k]]
    figure, axes = subplots(9, 1.35 * len(present) + 1.2, len(present), sharex=True, squeeze=False)
    for ax, k in zip(axes[:, 0], present, strict=True):
        for name, spans in FEATURES.items():
            for i, (a, b) in enumerate(spans):
                middle, width = (a + b) / 2, max(b - a, 14)
                ax.axvspan(middle - width / 2, middle + width / 2, color=_FEATURE_COLOURS[name], alpha=0.35, lw=0,
                           label=name if i == 0 and k == present[0] else None)  # fmt: skip
        ax.fill_between(x, values[k], color="0.25", alpha=0.75, lw=0, step="mid")
        ax.set_ylim(0, float(values[k].max()) * 1.15)
        twin = ax.twinx()
        twin.plot(grid.centres, means[k], color="black", lw=0.9)
        twin.set_ylim(0, float(np.nanmax(means[k])) * 1.1)
        twin.set_yticks([])
        ax.text(1.01, 0.5, f"{CLASSES[k]}\n{found.stars[k]} stars", transform=ax.transAxes, va="center")
    axes[0, 0].legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(FEATURES), fontsize=8, columnspacing=1, frameon=False
    )
    axes[-1, 0].set(xlim=(grid.first, grid.last), xlabel="wavelength in air / Å")
    return figure


# --- the autoencoder -----------------------------------------------------------------------------------------------
def draw_squeezed(found: Squeezed, out: Path) -> list[tuple[Path, str]]:
    """Draw rebuilt spectra, the code space, the outliers and what becomes of noise -> (path, caption) of each."""
    kind = f"{found.stars.kind} test spectra"
    figures = [
        ("rebuilt", _rebuilt(found), f"One spectrum of each class and what 32 numbers keep of it ({kind})."),
        ("code_space", _code_space(found), f"The autoencoder's code, learnt without types ({kind})."),
        ("outliers", _outliers(found), f"The spectra that are rebuilt worst ({kind})."),
        ("denoised", _denoised(found), f"Noise added to a spectrum, and taken out ({kind})."),
    ]
    return [(save(figure, out / f"{name}.png"), caption) for name, figure, caption in figures]


def _pairs(found: Squeezed, index: list[int], title: str) -> Figure:
    """Panels of spectra and what was rebuilt of them."""
    figure, axes = subplots(9, 1.25 * len(index) + 0.8, len(index), sharex=True, squeeze=False)
    for ax, i in zip(axes[:, 0], index, strict=True):
        ax.plot(CENTRES, found.flux[i], color="black", lw=1, label="spectrum, gaps filled")
        ax.plot(CENTRES, found.rebuilt[i], color=RED, lw=0.9, ls="--", label="rebuilt from 32 numbers")
        text = (
            f"{found.stars.types[i]}  {found.stars.stars[i]} ({found.stars.libraries[i]}), misfit {found.misfit[i]:.3f}"
        )
        rising = found.flux[i, -200:].mean() > found.flux[i, :200].mean()
        ax.text(0.01 if rising else 0.99, 0.9, text, transform=ax.transAxes, ha="left" if rising else "right", va="top",
                fontsize=8.5, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5})  # fmt: skip
        ax.set_ylim(min(0, float(found.flux[i].min())), 1.3 * float(found.flux[i].max()))  # room for the label
    axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8.5, frameon=False)
    axes[-1, 0].set(xlim=(3900, 6800), xlabel="wavelength in air / Å")
    figure.supylabel("flux / that at 5550 Å", fontsize=10)
    figure.suptitle(title, fontsize=11)
    return figure


def _rebuilt(found: Squeezed) -> Figure:
    cls = found.stars.classes()
    typical = [np.flatnonzero(cls == k) for k in range(len(CLASSES))]
    index = [int(m[np.argsort(found.misfit[m])[len(m) // 2]]) for m in typical if len(m)]
    return _pairs(found, index, "The star of median misfit in each class")


def _outliers(found: Squeezed) -> Figure:
    from .unlabelled import OUTLIERS

    return _pairs(found, [int(i) for i in np.argsort(-found.misfit)[:OUTLIERS]], "The stars that fit worst")


def _code_space(found: Squeezed) -> Figure:
    """First principal components of the codes, coloured by class."""
    from .unlabelled import components

    place, share = components(found.code)
    cls = found.stars.classes()
    figure, axes = subplots(10, 4.8, 1, 2)
    for ax, (a, b) in zip(axes, ((0, 1), (1, 2)), strict=True):
        for k, name in enumerate(CLASSES):
            m = cls == k
            ax.scatter(place[m, a], place[m, b], s=16, color=COLOURS[k], marker=_MARKS[k], alpha=0.7, lw=0, label=name)
        ax.set(xlabel=f"component {a + 1} ({share[a]:.0%})", ylabel=f"component {b + 1} ({share[b]:.0%})")
    axes[0].legend(title="class", fontsize=9)
    figure.suptitle("Principal components of the 32 numbers; colours were not known to the autoencoder")
    return figure


def _denoised(found: Squeezed) -> Figure:
    """A noisy spectrum and what became of it; rms error before and after against signal to noise."""
    figure, (left, right) = subplots(11, 3.8, 1, 2, gridspec_kw={"width_ratios": [2, 1]})
    middle = int(np.argsort(found.stars.codes())[len(found.stars) // 2])
    noisy, clean = found.example
    left.plot(CENTRES, noisy, color="0.7", lw=0.8, label="with noise, SNR 10")
    left.plot(CENTRES, found.flux[middle], color="black", lw=1, label="as observed")
    left.plot(CENTRES, clean, color=RED, lw=1, ls="--", label="denoised")
    left.set(xlim=(3900, 6800), xlabel="wavelength in air / Å", ylabel="flux / that at 5550 Å")
    left.set_title(f"{found.stars.types[middle]}  {found.stars.stars[middle]}")
    left.legend()
    snr = list(found.denoised)
    right.plot(snr, [b for b, _ in found.denoised.values()], color="0.4", marker="o", label="with noise")
    right.plot(snr, [a for _, a in found.denoised.values()], color=RED, marker="s", ls="--", label="denoised")
    right.set(xscale="log", yscale="log", xlabel="signal to noise", ylabel="rms error / flux at 5550 Å")
    right.set_xticks(snr, [str(s) for s in snr])
    right.minorticks_off()
    right.legend()
    return figure
