"""Which lines matter: where the flux moves the code (saliency), and what hiding a stretch of it does (occlusion)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from minidl import Tensor

from ..common import Table, write_csv
from .codes import CLASSES, SUBCLASS
from .data import Stars
from .network import StarNetwork, apply
from .preprocess import Grid

WINDOW = 50.0  # Å hidden at a time
# Å, in air: lines, or the stretch that a band covers
FEATURES: dict[str, list[tuple[float, float]]] = {
    "Balmer": [(6553, 6573), (4846, 4876), (4325, 4356), (4087, 4117), (3962, 3978)],
    "Ca H, K": [(3926, 3942), (3962, 3975)],
    "G band": [(4295, 4315)],
    "He II": [(4536, 4547), (4680, 4692), (5406, 5417)],
    "He I": [(4021, 4031), (4466, 4476), (5871, 5880)],
    "Mg b": [(5160, 5190)],
    "Na D": [(5882, 5904)],
    "TiO": [(4954, 5060), (5448, 5520), (5847, 5880), (6158, 6270), (6651, 6750)],
    "O2 (air)": [(6276, 6317)],
}


class Importance(NamedTuple):
    """By class O..M: stars (7,); saliency (7, bins), subclasses a percent; hidden (7, windows), subclasses moved.

    centres (windows,): middles of the hidden windows in Å. Rows of classes without a star are NaN.
    """

    stars: np.ndarray
    saliency: np.ndarray
    hidden: np.ndarray
    centres: np.ndarray


def saliency(model: StarNetwork, flux: np.ndarray) -> np.ndarray:
    """By how many subclasses the code moves if a bin gets a percent brighter: (N, bins), no NaN -> (N, bins), signed.

    S_i = ∂code/∂f_i · f_i/100, averaged over the members. Simonyan et al. 2014, section 3.
    """
    x = Tensor(flux, requires_grad=True)
    model(x)[:, :, 0].mean(0).sum().backward()
    assert x.grad is not None
    return np.asarray(x.grad) * 10 * flux / 100  # the output is in classes of ten subclasses


def occlusion(model: StarNetwork, flux: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """By how many subclasses the code moves if 50 Å are hidden: (N, bins) -> (N, windows), middles (windows,) in Å.

    What is hidden is filled in from the rest, as a gap is: a plain spectrum without the feature, not a hole.
    """
    width = round(WINDOW / grid.step)
    starts = np.arange(0, grid.bins - width + 1, width // 2)
    plain = apply(model, model.fill(flux)).code  # filled before: its error is not asked for
    moved = np.zeros((len(flux), len(starts)))
    for k, start in enumerate(starts):
        gap = flux.copy()
        gap[:, start : start + width] = np.nan
        moved[:, k] = (apply(model, model.fill(gap)).code - plain) / SUBCLASS
    return moved, grid.first + grid.step * (starts + width / 2)


def importance(model: StarNetwork, stars: Stars, grid: Grid) -> Importance:
    """Mean size of saliency and occlusion in each class of N typed stars."""
    gradient = saliency(model, model.fill(stars.flux))
    moved, centres = occlusion(model, stars.flux, grid)
    cls = stars.classes()
    counts = np.bincount(cls[cls >= 0], minlength=len(CLASSES))

    def by_class(values: np.ndarray) -> np.ndarray:
        rows = [
            np.abs(values[cls == k]).mean(0) if counts[k] else np.full(values.shape[1], np.nan)
            for k in range(len(CLASSES))
        ]
        return np.stack(rows)

    return Importance(counts, by_class(gradient), by_class(moved), centres)


def names_at(low: float, high: float) -> str:
    """Features within a stretch, or "-"."""
    found = [name for name, spans in FEATURES.items() if any(a < high and b > low for a, b in spans)]
    return ", ".join(found) or "-"


def tables(found: Importance, grid: Grid) -> list[Table]:
    """The three windows of each class that matter most, and how much more a feature matters than a bin elsewhere."""
    windows, ratios = [], []
    for k, name in enumerate(CLASSES):
        if not found.stars[k]:
            continue
        best: list[int] = []
        for i in np.argsort(-found.hidden[k]):
            if all(abs(int(i) - j) > 1 for j in best):  # neighbours overlap
                best.append(int(i))
        cells = []
        for i in best[:3]:
            c = found.centres[i]
            cells.append(f"{c:.0f} Å: {found.hidden[k, i]:.2f} ({names_at(c - WINDOW / 2, c + WINDOW / 2)})")
        windows.append([f"{name} ({found.stars[k]})", *cells])
        inside = {f: _inside(grid, spans) for f, spans in FEATURES.items()}
        elsewhere = max(found.saliency[k][~np.any(list(inside.values()), axis=0)].mean(), 1e-12)
        ratios.append([name, *(f"{found.saliency[k][mask].mean() / elsewhere:.1f}" for mask in inside.values())])
    return [
        Table("Hiding 50 Å: subclasses by which the code moves, mean size over a class",
              ["class (stars)", "first", "second", "third"], windows),
        Table("Saliency of a bin in a feature over that of a bin in none", ["class", *FEATURES], ratios),
    ]  # fmt: skip


def _inside(grid: Grid, spans: list[tuple[float, float]]) -> np.ndarray:
    half = grid.step / 2
    return np.any([(grid.centres + half > a) & (grid.centres - half < b) for a, b in spans], axis=0)


def write(found: Importance, stars: Stars, grid: Grid, title: str, out: Path) -> list[tuple[Path, str]]:
    """Write saliency.csv, occlusion.csv and their figures into `out` -> (path, caption) of each figure."""
    from . import figures

    out.mkdir(parents=True, exist_ok=True)
    for name, x, values in (("saliency", grid.centres, found.saliency), ("occlusion", found.centres, found.hidden)):
        rows = [[f"{w:.1f}", *(f"{v:.5f}" for v in column)] for w, column in zip(x, values.T, strict=True)]
        write_csv(out / f"{name}.csv", ["wavelength", *CLASSES], rows, overwrite=True)
    return figures.draw_lines(found, stars, grid, title, out)
