"""From the pixels of any spectrum to the 580 numbers that the network reads.

As the group did in 2017: smooth to a common resolution of 4.5 Å FWHM, resample to bins of 5 Å from 3900 to 6800 Å,
divide by the flux at 5550 Å. Beside it stands division by a running continuum, which forgets reddening and flux
calibration and keeps the lines alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..common import InputError

FIRST, LAST, STEP = 3900.0, 6800.0, 5.0  # Å
BINS = int((LAST - FIRST) / STEP)  # 580
CENTRES = FIRST + STEP * (np.arange(BINS) + 0.5)  # Å, (580,)
FWHM = 4.5  # Å, the resolution that all spectra are brought to
COVERAGE = 0.65  # least share of the bins that must have been measured
FINE = 0.5  # Å, the grid to smooth on: a tenth of the FWHM
MARGIN = 15.0  # Å beyond both ends, so that smoothing has neighbours there
CONTINUUM_WIDTH = 250.0  # Å, of the running mean
NORMALISATIONS = ("5550", "continuum")
_SIGMA = 1 / np.sqrt(8 * np.log(2))  # of a Gaussian with FWHM 1


@dataclass
class Spectrum:
    """One spectrum as a reader returns it: wave (n,) in Å, in air, at rest, ascending; flux (n,); good (n,) bool.

    `fwhm`: resolution in Å where the file tells it; `sptype`: the type printed in the file.
    """

    wave: np.ndarray
    flux: np.ndarray
    good: np.ndarray
    name: str = ""
    fwhm: float | None = None
    sptype: str | None = None


def rebin(wave: np.ndarray, flux: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mean flux between edges, conserving ∫F dλ: (n,), (n,), (m + 1,) -> (m,); zero outside the spectrum.

    The integral of the straight lines between samples is interpolated at the edges and differenced:
    F_k = (C(e_{k+1}) − C(e_k)) / (e_{k+1} − e_k),   C(λ) = ∫F dλ.
    """
    pieces = np.diff(wave) * (flux[1:] + flux[:-1]) / 2
    integral = np.concatenate([[0.0], np.cumsum(pieces, dtype=np.float64)])
    return np.diff(np.interp(edges, wave, integral)) / np.diff(edges)


def smooth(flux: np.ndarray, sigma: float) -> np.ndarray:
    """Convolve (n,) with a Gaussian of `sigma` pixels, as if zero lay beyond both ends; sigma 0 changes nothing."""
    if sigma <= 0:
        return flux
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(flux, kernel / kernel.sum(), mode="same")


def to_bins(spectrum: Spectrum, fwhm: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Smooth to 4.5 Å and resample: -> flux (580,), measured (580,) bool.

    Masked pixels weigh nothing: F = K∗(w·f) / K∗w with the Gaussian K and w = 1 where good. A bin less than half
    measured counts as not measured. `fwhm` is the spectrum's own resolution in Å (default: what its file says, else
    2.5); one coarser than 4.5 Å stays as it is.
    """
    own = fwhm or spectrum.fwhm or 2.5
    sigma = np.sqrt(max(FWHM**2 - own**2, 0.0)) * _SIGMA / FINE
    edges = np.arange(FIRST - MARGIN, LAST + MARGIN + FINE / 2, FINE)
    good = spectrum.good.astype(np.float64)
    weight = rebin(spectrum.wave, good, edges)
    weight[_gaps(spectrum.wave, edges)] = 0.0
    light = rebin(spectrum.wave, np.where(spectrum.good, spectrum.flux, 0.0), edges) * (weight > 0)
    skip, per_bin = round(MARGIN / FINE), round(STEP / FINE)

    def binned(x: np.ndarray) -> np.ndarray:
        return smooth(x, sigma)[skip:-skip].reshape(BINS, per_bin).mean(axis=1)

    light, share = binned(light), binned(weight)
    measured = share >= 0.5
    return np.divide(light, share, out=np.zeros(BINS), where=measured), measured


def _gaps(wave: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Fine pixels (m,) that lie in a step of the wavelengths far wider than the others: nothing was measured there."""
    steps = np.diff(wave)
    middle = (edges[1:] + edges[:-1]) / 2
    inside = np.clip(np.searchsorted(wave, middle) - 1, 0, len(steps) - 1)
    return steps[inside] > max(2 * STEP, 5 * float(np.median(steps)))


def normalise(flux: np.ndarray, measured: np.ndarray, how: str) -> np.ndarray:
    """Divide by the mean flux within 25 Å of 5550 Å ("5550"), or by a running mean over 250 Å ("continuum").

    flux (580,), measured (580,) bool -> (580,) float32. InputError if there is no light to divide by.
    """
    light = np.where(measured, flux, 0.0)
    if how == "5550":
        near = measured & (np.abs(CENTRES - 5550) <= 25)
        level: np.ndarray | float = float(flux[near].mean()) if near.any() else 0.0
    else:
        ones = np.ones(round(CONTINUUM_WIDTH / STEP) | 1)
        weight = np.convolve(measured, ones, mode="same")
        level = np.where(measured, np.convolve(light, ones, mode="same") / np.maximum(weight, 1), 1.0)
    if not np.all(level > 0):
        raise InputError("no light near 5550 Å to divide by" if how == "5550" else "the continuum is not positive")
    return (light / level).astype(np.float32)


def prepare(spectrum: Spectrum, *, fwhm: float | None = None, how: str = "5550") -> np.ndarray:
    """A spectrum as the network takes it: (580,) float32, about 1, NaN where nothing was measured.

    InputError if less than 65 % of 3900-6800 Å was measured or there is no light to divide by.
    """
    first, last = spectrum.wave[0], spectrum.wave[-1]
    if last <= FIRST or first >= LAST:
        hint = "; are these nm? Å are needed" if last < 3000 else ""
        raise InputError(f"wavelengths {first:.0f}-{last:.0f} Å do not meet {FIRST:.0f}-{LAST:.0f} Å{hint}")
    inside = (spectrum.wave > FIRST) & (spectrum.wave < LAST)
    if inside.sum() < (LAST - FIRST) / (4 * STEP):
        raise InputError(f"only {inside.sum()} pixels in {FIRST:.0f}-{LAST:.0f} Å: too coarse for {STEP:.0f} Å bins")
    unit = float(np.abs(spectrum.flux).max()) or 1.0  # sums of fluxes near 1e308 would overflow
    flux, measured = to_bins(replace(spectrum, flux=spectrum.flux / unit), fwhm)
    share = float(measured.mean())
    if share < COVERAGE:
        raise InputError(f"only {share:.0%} of {FIRST:.0f}-{LAST:.0f} Å is measured; {COVERAGE:.0%} are needed")
    if not flux.any():
        raise InputError("no light in the spectrum")
    prepared = normalise(flux / np.abs(flux).max(), measured, how)
    prepared[~measured] = np.nan
    return prepared
