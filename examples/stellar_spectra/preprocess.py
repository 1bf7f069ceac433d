"""From the pixels of any spectrum to the numbers that the network reads, one function a step.

As the group did in 2017: bring wavelengths to air and to rest, smooth to a common resolution of 4.5 Å FWHM, resample
to equal bins conserving flux (580 of 5 Å, or 1900 of 3 Å), divide by the flux at 5550 Å. Beside it stands division by a
running continuum, which forgets reddening and flux calibration and keeps the lines alone. `python -m
examples.stellar_spectra prepare FILE --out steps.png` draws the steps of one spectrum.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ..common import InputError


@dataclass(frozen=True)
class Grid:
    """Equal bins: their number is (last − first)/step, all in Å."""

    first: float
    last: float
    step: float

    @property
    def bins(self) -> int:
        """How many."""
        return round((self.last - self.first) / self.step)

    @property
    def centres(self) -> np.ndarray:
        """Their middles: (bins,) in Å."""
        return self.first + self.step * (np.arange(self.bins) + 0.5)

    def __str__(self) -> str:
        return f"{self.first:.0f}-{self.last:.0f} Å"


GRIDS = {"580": Grid(3900.0, 6800.0, 5.0), "1900": Grid(3650.0, 9350.0, 3.0)}  # the talk's sets A and B
BINS, CENTRES = GRIDS["580"].bins, GRIDS["580"].centres  # of the grid that is used where none is named
FWHM = 4.5  # Å, the resolution that all spectra are brought to
USUAL_FWHM = 2.5  # Å, of files that tell nothing
COVERAGE = 0.65  # least share of the bins that must have been measured
COARSEST = 20.0  # Å, the widest pixels that still show lines
FINE = 0.5  # Å, the pixels to smooth on: a ninth of the FWHM
MARGIN = 15.0  # Å beyond both ends, so that smoothing has neighbours there
CONTINUUM_WIDTH = 250.0  # Å, of the running mean
NORMALISATIONS = ("5550", "continuum")
_LEVELS = {"5550": "the flux at 5550 Å", "mean": "the mean, for 5550 Å was not measured",
           "continuum": "the running mean over 250 Å"}  # fmt: skip
LIGHT = 299792.458  # km/s
_SIGMA = 1 / np.sqrt(8 * np.log(2))  # of a Gaussian with FWHM 1


@dataclass
class Spectrum:
    """One spectrum as a reader returns it: wave (n,) in Å, ascending; flux (n,), F_λ in any unit; good (n,) bool.

    `medium`: "air" or "vacuum"; `redshift`: what `to_rest` has to take away; `fwhm`: resolution in Å, None if unknown;
    `sptype`: the type printed in the file; `notes`: what the reader had to conclude or convert.
    """

    wave: np.ndarray
    flux: np.ndarray
    good: np.ndarray
    name: str = ""
    fwhm: float | None = None
    sptype: str | None = None
    medium: str = "air"
    redshift: float = 0.0
    notes: list[str] = field(default_factory=list)


class Stage(NamedTuple):
    """What one step of `prepare_in_steps` made, to look at: wave (n,) in Å, flux (n,), NaN where not measured."""

    title: str
    wave: np.ndarray
    flux: np.ndarray


class Prepared(NamedTuple):
    """flux (bins,) float32 for the network, NaN where not measured; coverage 0..1; own resolution fwhm in Å; stages."""

    flux: np.ndarray
    coverage: float
    fwhm: float
    stages: list[Stage]


def vacuum_to_air(wave: np.ndarray) -> np.ndarray:
    """Wavelengths in air from those in vacuum, Å (Ciddor 1996 as the SDSS prints it); within .01 Å in the optical."""
    inverse = (1e4 / wave) ** 2
    return wave / (1 + 0.05792105 / (238.0185 - inverse) + 0.00167917 / (57.362 - inverse))


def to_rest(spectrum: Spectrum) -> Spectrum:
    """The same spectrum with its wavelengths at rest and in air: λ/(1 + z), then vacuum to air.

    F_λ would grow by the constant 1 + z, which the normalisation takes out again.
    """
    stretch = 1 + spectrum.redshift
    wave = spectrum.wave / stretch
    if spectrum.medium == "vacuum":
        wave = vacuum_to_air(wave)
    fwhm = spectrum.fwhm and spectrum.fwhm / stretch
    return replace(spectrum, wave=wave, fwhm=fwhm, medium="air", redshift=0.0)


def pixel_edges(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edges (n,), (n,) of pixels whose middles are given, ascending: midway between neighbours.

    A step far wider than the others (10 Å and five times the median) is a gap in which nothing was measured.
    """
    step = np.diff(wave)
    typical = float(np.median(step))
    half = np.where(step > max(10.0, 5 * typical), typical, step) / 2
    return wave - np.concatenate([half[:1], half]), wave + np.concatenate([half, half[-1:]])


def rebin(edges: tuple[np.ndarray, np.ndarray], flux: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Mean flux in new bins, conserving ∫F dλ: pixel edges (n,), (n,); flux (n,); new edges (m + 1,) -> (m,).

    Each pixel's light lies evenly over it and none outside: with the light C(λ) = ∫F dλ below a wavelength,
    F_k = (C(e_{k+1}) − C(e_k)) / (e_{k+1} − e_k), the mean over pixels weighted by how far they overlap the bin.
    """
    low, high = edges
    below = np.concatenate([[0.0], np.cumsum(flux * (high - low), dtype=np.float64)])
    nodes = np.stack([low, high], axis=1).ravel()
    light = np.interp(new, nodes, np.stack([below[:-1], below[1:]], axis=1).ravel())
    return np.diff(light) / np.diff(new)


def smooth(flux: np.ndarray, sigma: float) -> np.ndarray:
    """Convolve (n,) with a Gaussian of `sigma` pixels, as if zero lay beyond both ends; sigma 0 changes nothing."""
    if sigma <= 0:
        return flux
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(flux, kernel / kernel.sum(), mode="same")


def on_fine_pixels(spectrum: Spectrum, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Resample to pixels of 0.5 Å -> light w·f (n,) and share measured w (n,), which masked pixels do not add to."""
    new = np.arange(grid.first - MARGIN, grid.last + MARGIN + FINE / 2, FINE)
    edges = pixel_edges(spectrum.wave)
    light = rebin(edges, np.where(spectrum.good, spectrum.flux, 0.0), new)
    return light, rebin(edges, spectrum.good.astype(np.float64), new)


def to_common_fwhm(light: np.ndarray, share: np.ndarray, own: float) -> tuple[np.ndarray, np.ndarray]:
    """Smooth fine pixels (n,) of a resolution of `own` Å FWHM to 4.5 Å; one that is coarser stays as it is.

    Both are smoothed, so that masked pixels weigh nothing in their ratio: F = K∗(w·f) / K∗w with the Gaussian K.
    """
    sigma = np.sqrt(max(FWHM**2 - own**2, 0.0)) * _SIGMA / FINE
    return smooth(light, sigma), smooth(share, sigma)


def to_bins(light: np.ndarray, share: np.ndarray, grid: Grid = GRIDS["580"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean flux of the fine pixels (n,) in each bin -> flux (bins,), measured (bins,) bool: at least half of it was."""
    skip, per_bin = round(MARGIN / FINE), round(grid.step / FINE)
    light, share = (x[skip:-skip].reshape(grid.bins, per_bin).mean(axis=1) for x in (light, share))
    measured = share >= 0.5
    return np.divide(light, share, out=np.zeros(grid.bins), where=measured), measured


def own_fwhm(spectrum: Spectrum) -> float:
    """A spectrum's resolution in Å: what is known of it, else 2.5, but not finer than two pixels."""
    return spectrum.fwhm or max(USUAL_FWHM, 2 * float(np.median(np.diff(spectrum.wave))))


def normalise(flux: np.ndarray, measured: np.ndarray, how: str, grid: Grid = GRIDS["580"]) -> np.ndarray:
    """Divide by the mean flux within 25 Å of 5550 Å ("5550"), of all ("mean"), or over 250 Å ("continuum").

    flux (bins,), measured (bins,) bool -> (bins,) float32. InputError if there is no light to divide by.
    """
    if how == "continuum":
        level = continuum(flux, measured, grid)
    else:
        near = measured & near_5550(grid) if how == "5550" else measured
        level = np.array(flux[near].mean() if near.any() else 0.0)
    if not np.all(level > 1e-6 * np.abs(flux).max()):
        raise InputError("no light near 5550 Å to divide by" if how == "5550" else "the continuum is not positive")
    return (np.where(measured, flux, 0.0) / level).astype(np.float32)


def near_5550(grid: Grid) -> np.ndarray:
    """The bins within 25 Å of 5550 Å: (bins,) bool."""
    return np.abs(grid.centres - 5550) <= 25


def continuum(flux: np.ndarray, measured: np.ndarray, grid: Grid = GRIDS["580"]) -> np.ndarray:
    """Running mean over 250 Å of what was measured: (bins,), (bins,) bool -> (bins,), 1 where nothing was."""
    ones = np.ones(round(CONTINUUM_WIDTH / grid.step) | 1)
    weight = np.convolve(measured, ones, mode="same")
    total = np.convolve(np.where(measured, flux, 0.0), ones, mode="same")
    return np.where(measured, total / np.maximum(weight, 1), 1.0)


def prepare(spectrum: Spectrum, *, how: str = "5550", grid: Grid = GRIDS["580"]) -> np.ndarray:
    """A spectrum as the network takes it: (bins,) float32, about 1, NaN where nothing was measured.

    InputError if less than 65 % of the grid was measured or there is no light to divide by.
    """
    return prepare_in_steps(spectrum, how=how, grid=grid).flux


def prepare_in_steps(
    spectrum: Spectrum, *, how: str = "5550", grid: Grid = GRIDS["580"], least: float | None = None
) -> Prepared:
    """The same with what each step made, the share of the grid that was measured, and the spectrum's own resolution.

    `least`, 0..1, accepts less of the grid, and a gap at 5550 Å: the mean of what was measured is divided by then, and
    the scale is left to `StarNetwork`'s components (`predict.rescaled`).
    """
    rest = to_rest(spectrum)
    first, last = rest.wave[0], rest.wave[-1]
    if last <= grid.first or first >= grid.last:
        hint = "; are these nm? then give --unit nm" if 300 < last < 3000 else ""
        raise InputError(f"wavelengths {first:.4g}-{last:.4g} Å do not meet {grid}{hint}")
    inside = int(((rest.wave > grid.first) & (rest.wave < grid.last)).sum())
    if inside < (min(last, grid.last) - max(first, grid.first)) / COARSEST:
        raise InputError(f"only {inside} pixels in {grid}: too coarse for bins of {grid.step:.0f} Å")
    light = np.where(rest.good, rest.flux, 0.0)
    rest = replace(rest, flux=light / (float(np.abs(light).max()) or 1.0))  # sums of fluxes near 1e308 would overflow
    light, share = to_common_fwhm(*on_fine_pixels(rest, grid), own_fwhm(rest))
    flux, measured = to_bins(light, share, grid)
    coverage = float(measured.mean())
    needed = COVERAGE if least is None else least
    if coverage < needed or not measured.any():
        raise InputError(f"only {coverage:.1%} of {grid} is measured; {needed:.0%} are needed")
    if not flux.any():
        raise InputError("no light in the spectrum")
    if least is not None and how == "5550" and not measured[near_5550(grid)].any():
        how = "mean"
    prepared = normalise(flux / np.abs(flux).max(), measured, how, grid)
    prepared[~measured] = np.nan
    fine = grid.first - MARGIN + FINE * (np.arange(len(light)) + 0.5)
    stages = [
        Stage("as read", spectrum.wave, np.where(spectrum.good, spectrum.flux, np.nan)),
        Stage(_moved(spectrum), rest.wave, np.where(rest.good, rest.flux, np.nan)),
        Stage(f"smoothed from {own_fwhm(rest):.2g} to {FWHM} Å FWHM", fine, _over(light, share)),
        Stage(f"{grid.bins} bins of {grid.step:g} Å, {coverage:.0%} measured", grid.centres,
              np.where(measured, flux, np.nan)),
        Stage(f"divided by {_LEVELS[how]}", grid.centres, prepared),
    ]  # fmt: skip
    return Prepared(prepared, coverage, own_fwhm(rest), stages)


def _over(light: np.ndarray, share: np.ndarray) -> np.ndarray:
    return np.divide(light, share, out=np.full(len(light), np.nan), where=share >= 0.5)


def _moved(spectrum: Spectrum) -> str:
    steps = ["from vacuum to air"] if spectrum.medium == "vacuum" else []
    if spectrum.redshift:
        steps.append(f"to rest (z = {spectrum.redshift:.4g}, {spectrum.redshift * LIGHT:.0f} km/s)")
    return f"wavelengths {' and '.join(steps) or 'in air and at rest as they are'}"
