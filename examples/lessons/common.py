"""What the lessons share: a size to run at, the figure they end with, and galaxies to look at.

MINIDL_QUICK=1 runs every lesson at a smaller size, as the tests do; the numbers in its prose are of the full size.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from examples.drawing import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, save
from examples.galaxy_bars import simulate
from examples.galaxy_bars.data import Galaxies, read_sample, split, subsets
from examples.stellar_spectra import simulate as simulate_spectra
from examples.stellar_spectra.codes import SpectralType
from examples.stellar_spectra.data import load as load_spectra
from examples.stellar_spectra.preprocess import Spectrum, prepare
from minidl import Tensor, no_grad
from minidl.checkpoint import atomic_write

__all__ = ["BLUE", "GREEN", "ORANGE", "PURPLE", "RED", "SKY"]


def quick(full: int, small: int) -> int:
    """The full size of something, or the small one where MINIDL_QUICK is set."""
    return small if os.environ.get("MINIDL_QUICK") else full


def need(package: str) -> None:
    """End in one line if a package is not installed; it is one of minidl's extras of the same name."""
    if importlib.util.find_spec(package) is None:
        sys.exit(f'this lesson needs {package}: pip install "minidl[{package}]"')


def real_folder(name: str) -> Path | None:
    """The folder of real data of this name below MINIDL_DATA; None where there is none: lessons simulate then."""
    folder = Path(os.environ.get("MINIDL_DATA") or "/nowhere") / name
    return folder if folder.is_dir() else None


def galaxies(n: int, seed: int) -> Galaxies:
    """n galaxies, half of them barred: real ones that the shipped network has not learnt from, else simulated.

    The real ones are of the validation part, with clean votes; nothing is chosen or learnt on the test part. The
    simulated ones have at least a fifth of their light in the bar (or the lens in its place) and are seen from above.
    """
    folder = real_folder("galaxies")
    if folder is None:
        images, truth = simulate.pictures(3 * n, seed)
        clear = np.flatnonzero((truth.bar_fraction > 0.2) & (truth.inclination < 50))
        rows = np.sort(np.concatenate([clear[truth.barred[clear] == label][: n // 2] for label in (True, False)]))
        names = [f"simulated {row}" for row in rows]
        return Galaxies(names, images[rows], truth.barred[rows].astype(int), {}, "simulated")
    sample = read_sample(folder)
    part = sample[split(sample)["validation"]]
    part = part[subsets(part)["clean"]]
    rng = np.random.default_rng(seed)
    rows = [rng.choice(np.flatnonzero(part.labels == label), n // 2, replace=False) for label in (1, 0)]
    return part[rng.permutation(np.concatenate(rows))]


def spectra(n: int, seed: int) -> tuple[np.ndarray, list[SpectralType], str]:
    """n spectra in random order: flux (n, 580), 1 at 5550 Å; full types; "MILES" or "simulated"."""
    rng = np.random.default_rng(seed)
    folder = real_folder("spectra")
    if folder is not None:
        stars = load_spectra(folder, how="5550", libraries=["miles"])
        whole = [k for k, t in enumerate(stars.types) if t and t.lum and t.sub is not None]
        whole = rng.permutation([k for k in whole if np.isfinite(stars.flux[k]).all()])[:n]
        return stars.flux[whole], [stars.types[k] for k in whole], "MILES"
    drawn = [simulate_spectra.draw(rng) for _ in range(n)]
    return np.stack([observed(star, rng) for _, star in drawn]), [kind for kind, _ in drawn], "simulated"


def observed(star: simulate_spectra.Star, rng: np.random.Generator, signal_to_noise: float = 100.0) -> np.ndarray:
    """A simulated spectrum of this star as the networks take it: flux (580,), 1 at 5550 Å."""
    flux = simulate_spectra.observe(star, rng, signal_to_noise)
    return prepare(Spectrum(simulate_spectra.WAVE, flux, np.ones(len(flux), bool), fwhm=simulate_spectra.RESOLUTION))


def finish(figure: Any, name: str) -> None:
    """Write the figure as runs/lessons/NAME.png below the working folder; a notebook shows it besides."""
    print(f"picture: {save(figure, Path('runs/lessons') / f'{name}.png')}")


def keep_svg(drawing: str, name: str) -> None:
    """Write a drawing as runs/lessons/NAME.svg."""
    with atomic_write(Path("runs/lessons") / f"{name}.svg") as part:
        part.write_text(drawing, encoding="utf-8")


def decision_boundary(axes: Any, model: Any, x: np.ndarray, labels: np.ndarray, title: str) -> None:
    """Colour the plane by the model's output, 0 to 1, draw the line where it is one half, and the points (N, 2)."""
    low, high = x.min(0) - 0.6, x.max(0) + 0.6
    u, v = np.meshgrid(np.linspace(low[0], high[0], 200), np.linspace(low[1], high[1], 200))
    with no_grad():
        p = model(Tensor(np.stack([u.ravel(), v.ravel()], 1).astype(np.float32))).numpy().reshape(u.shape)
    axes.pcolormesh(u, v, p, vmin=0, vmax=1, cmap="cividis", alpha=0.5, rasterized=True)
    axes.contour(u, v, p, levels=[0.5], colors="black", linewidths=1.5)
    for k, (color, marker) in enumerate(((BLUE, "o"), (ORANGE, "^"))):
        here = x[labels == k]
        axes.scatter(
            here[:, 0], here[:, 1], c=color, marker=marker, edgecolors="black", linewidths=0.5, label=f"class {k}"
        )
    axes.set(title=title, xlabel="$x_1$", ylabel="$x_2$")
    axes.legend(loc="best", fontsize="small")
