"""Pictures of single spectra: the steps of one's preparation, and a star with what was predicted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..drawing import BLUE, GREEN, ORANGE, RED, save, subplots
from .codes import CLASSES, LUMINOSITIES
from .preprocess import Grid, Stage, continuum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Å
FEATURES = {"Ca K": 3934, "Hδ": 4102, "G": 4305, "Hγ": 4340, "He I": 4471, "Hβ": 4861, "Mg b": 5175, "Na D": 5893,
            "TiO": 6158, "Hα": 6563, "TiO 7053": 7053, "Ca II": 8542}  # fmt: skip


def _features(ax: Axes, grid: Grid) -> None:
    """Mark the lines that make the classes; names above the axes, as far as there is room."""
    last = 0.0
    for name, wave in FEATURES.items():
        if grid.first < wave < grid.last:
            ax.axvline(wave, color="0.9", lw=3, zorder=0)
            if wave - last > 0.04 * (grid.last - grid.first):
                ax.text(wave, 1.01, name, transform=ax.get_xaxis_transform(), ha="center", fontsize=8)
                last = wave


def draw_steps(stages: list[Stage], grid: Grid, title: str, path: Path) -> Path:
    """Draw what each step of the preparation made of a spectrum, one above the other, on one wavelength axis."""
    figure, axes = subplots(9, 1.55 * len(stages) + 0.9, len(stages), sharex=True)
    for k, (ax, stage) in enumerate(zip(axes, stages, strict=True)):
        inside = (stage.wave > grid.first - 300) & (stage.wave < grid.last + 300)
        ax.plot(stage.wave[inside], stage.flux[inside], color=BLUE, lw=0.8, drawstyle="steps-mid")
        for low, high in _unmeasured(stage):
            ax.axvspan(low, high, color=ORANGE, alpha=0.3, lw=0)
        ax.set_title(f"{k + 1}. {stage.title}", loc="left", pad=14 if k == 0 else 4)
        ax.margins(y=0.1)
    binned = axes[-2].lines[0]
    wave, flux = binned.get_data()
    known = np.isfinite(flux)
    if "running" in stages[-1].title:
        level = continuum(np.where(known, flux, 0.0), known, grid)
        axes[-2].plot(wave, np.where(known, level, np.nan), color=GREEN, lw=1.2)
    elif "5550 Å" in stages[-1].title and "mean" not in stages[-1].title:
        axes[-2].axvspan(5525, 5575, color=GREEN, alpha=0.3, lw=0)
    _features(axes[0], grid)
    axes[0].set_yticks([])  # in whatever unit
    axes[-1].set(xlim=(grid.first - 150, grid.last + 150), xlabel="wavelength / Å")
    figure.supylabel("flux (orange: not measured; green: what is divided by)", fontsize=9)
    figure.suptitle(title)
    return save(figure, path)


def _unmeasured(stage: Stage) -> list[tuple[float, float]]:
    """Stretches of wavelength in which a stage's flux is NaN."""
    bad = np.concatenate([[False], ~np.isfinite(stage.flux), [False]])
    starts, ends = np.flatnonzero(bad[1:] & ~bad[:-1]), np.flatnonzero(~bad[1:] & bad[:-1]) - 1
    return [(float(stage.wave[a]), float(stage.wave[b])) for a, b in zip(starts, ends, strict=True)]


def draw_star(
    row: dict[str, Any], flux: np.ndarray, filled: np.ndarray, grid: Grid, trained_on: str, path: Path
) -> Path:
    """Draw the flux (bins,) and how gaps were filled, the type, and the probabilities of class and luminosity."""
    figure, (left, middle, right) = subplots(11, 3.4, 1, 3, gridspec_kw={"width_ratios": [5, 1.1, 0.9]})
    if not np.isfinite(flux).all():
        left.plot(grid.centres, filled, color=ORANGE, lw=0.8, label="filled, not measured")
    left.plot(grid.centres, flux, color=BLUE, lw=1, label="measured")
    left.legend(fontsize=8)
    _features(left, grid)
    left.set(xlim=(grid.first, grid.last), xlabel="wavelength in air / Å", ylabel="flux as the network reads it")
    for ax, names, best in ((middle, CLASSES, row["spectral_type"][0]), (right, LUMINOSITIES, row["luminosity"])):
        values = [row[f"p_{name}"] for name in names]
        ax.barh(list(names), values, color=[RED if name == best else "0.7" for name in names])
        ax.set(xlim=(0, 1), xticks=[0, 1])
        ax.invert_yaxis()
    middle.set_title("class", fontsize=9)
    right.set_title("luminosity", fontsize=9)
    flags = f"  [{row['flags']}]" if row["flags"] else ""
    figure.suptitle(
        f"{row['star']}: {row['spectral_type']}, code {row['code']:.0f} ± {row['code_error']:.0f}, "
        f"{row['coverage']:.0%} measured{flags}  (network trained on {trained_on} spectra)"
    )
    return save(figure, path)
