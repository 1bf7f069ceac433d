"""Stellar spectra from temperature, gravity and line strengths: simulated, to teach with and to test with.

A Planck continuum, a Balmer jump, and lines whose strength follows from two formulas: Boltzmann's (how many atoms are
excited) and Saha's (how many are ionised). That alone makes the hydrogen lines peak at A0, helium appear in B, ionised
calcium in F and G, neutral metals in K: the spectral sequence as Cecilia Payne explained it in 1925.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..common import new_folder
from .codes import CLASSES, LUMINOSITIES, SpectralType
from .data import write_labels

WAVE = np.arange(3600.0, 7400.0)  # Å, in air
RESOLUTION = 2.5  # Å FWHM, as MILES

# Temperature in K of dwarfs (after the table of Pecaut & Mamajek 2013), against class + subclass/10 with O = 0.
_SCALE = {
    "O3": 44900, "O5": 41400, "O8": 34500, "B0": 31400, "B2": 20600, "B5": 15700, "B8": 12500, "A0": 9700, "A2": 8840,
    "A5": 8080, "F0": 7220, "F2": 6820, "F5": 6550, "F8": 6180, "G0": 5930, "G2": 5770, "G5": 5660, "G8": 5480,
    "K0": 5270, "K2": 5100, "K5": 4440, "K7": 4050, "M0": 3850, "M2": 3560, "M4": 3210, "M6": 2810, "M9": 2400,
}  # fmt: skip
_AT = np.array([CLASSES.index(t[0]) + int(t[1]) / 10 for t in _SCALE])
_LOG_T = np.log(np.array(list(_SCALE.values()), dtype=float))
# log g (cm/s²) at O, B, A, F, G, K, M0, M9 of each luminosity class, and how much cooler giants of type G and K are
_LOG_G = {
    "I": [3.4, 2.6, 2.0, 1.6, 1.4, 1.0, 0.3, -0.2], "II": [3.6, 3.1, 2.7, 2.3, 1.9, 1.5, 0.8, 0.2],
    "III": [3.8, 3.6, 3.5, 3.3, 2.8, 2.3, 1.5, 0.6], "IV": [3.9, 3.9, 3.9, 3.9, 3.7, 3.3, 3.0, 2.8],
    "V": [4.0, 4.0, 4.2, 4.3, 4.4, 4.6, 4.7, 5.1],
}  # fmt: skip
_COOLER = {"I": 0.08, "II": 0.07, "III": 0.06, "IV": 0.02, "V": 0.0}


@dataclass
class Star:
    """What a spectrum is made from: temperature K, log g (cm/s²), [Fe/H] dex, reddening E(B−V) mag, velocity km/s."""

    teff: float
    logg: float
    feh: float = 0.0
    reddening: float = 0.0
    velocity: float = 0.0


def temperature(position: float, lum: str = "V") -> float:
    """Temperature in K at a position of the sequence (class index + subclass/10: O0 = 0, G2 = 4.2, M9 = 6.9)."""
    cooler = 1 - _COOLER[lum] * math.exp(-(((position - 4.8) / 0.7) ** 2))
    return float(np.exp(np.interp(position, _AT, _LOG_T))) * cooler


def gravity(position: float, lum: str) -> float:
    """log g in cm/s² at a position of the sequence."""
    return float(np.interp(position, [0, 1, 2, 3, 4, 5, 6, 6.9], _LOG_G[lum]))


# --- strengths: Boltzmann and Saha ---------------------------------------------------------------------------------
_EV = 11604.5  # K per eV


def _electron_pressure(star: Star) -> float:
    """log10 of the electron pressure in dyn/cm², a rough fit through model photospheres."""
    return float(np.clip(1.2 + 5 * math.log10(star.teff / 5800), -1.5, 4.0)) + 0.35 * (star.logg - 4.4)


def _ionised(star: Star, potential: float) -> float:
    """n(next stage)/n(this stage) by Saha's formula, partition functions aside; potential in eV."""
    log = 2.5 * math.log10(star.teff) - 5040 * potential / star.teff - 0.48 + 0.3 - _electron_pressure(star)
    return float(10.0 ** np.clip(log, -30, 30))


def population(star: Star, excitation: float, potential: float, below: float | None = None) -> float:
    """Share of an element's atoms that can absorb a line: right stage (Saha) and right level (Boltzmann).

    excitation of the level in eV; potential to ionise this stage; `below`: the potential of the stage before, for ions.
    """
    up = _ionised(star, potential)
    down = 1 / _ionised(star, below) if below is not None else 0.0
    return math.exp(-excitation * _EV / star.teff) / (1 + up + down)


# Element or ion: excitation, potential, potential of the stage before (eV) · the star (K, log g) in which a line of
# relative strength 1 has the optical depth that follows · how depth grows with the number of atoms (curve of growth:
# as N where weak, as √N where damped) · metal?
_SPECIES: dict[str, tuple[float, float, float | None, float, float, float, float, bool]] = {
    "H": (10.2, 13.6, None, 9500, 4.1, 3.2, 0.3, False),
    "HeI": (20.9, 24.6, None, 20600, 4.0, 0.35, 0.5, False),
    "HeII": (48.4, 54.4, 24.6, 41400, 4.0, 0.25, 0.8, False),
    "CaII": (0.0, 11.87, 6.11, 5770, 4.4, 12.0, 1.0, True),
    "CaI": (0.0, 6.11, None, 4440, 4.6, 0.9, 0.5, True),
    "FeI": (1.2, 7.90, None, 5770, 4.4, 0.5, 0.5, True),
    "FeII": (2.8, 16.2, 7.90, 7220, 2.3, 0.4, 0.5, True),
    "MgI": (2.71, 7.65, None, 4440, 4.6, 1.3, 0.5, True),
    "MgII": (8.86, 15.0, 7.65, 8840, 4.2, 0.3, 0.5, True),
    "NaI": (0.0, 5.14, None, 4440, 4.6, 0.9, 0.5, True),
    "SrII": (0.0, 11.0, 5.69, 6180, 1.5, 0.5, 0.5, True),
}
# species: wavelengths in Å with relative strengths
_LINES: dict[str, list[tuple[float, float]]] = {
    "HeI": [(4026.2, 1.0), (4143.8, 0.4), (4387.9, 0.5), (4471.5, 1.2), (4713.1, 0.4), (4921.9, 0.6), (5015.7, 0.4),
            (5875.6, 1.3), (6678.2, 0.8)],
    "HeII": [(4199.8, 0.6), (4541.6, 0.8), (4685.7, 1.0), (5411.5, 0.9)],
    "CaII": [(3933.7, 2.0), (3968.5, 1.0)],
    "CaI": [(4226.7, 2.5), (6102.7, 0.25), (6122.2, 0.4), (6162.2, 0.5), (6439.1, 0.3)],
    "FeI": [(w, s) for s, ws in [
        (1.0, [4045.8, 4063.6, 4071.7, 4271.8, 4307.9, 4325.8, 4383.5, 4404.8]), (0.5, [4132.1, 4143.9, 4202.0, 4250.1,
         4260.5, 4415.1, 4528.6, 4920.5, 4957.6, 5269.5, 5328.0, 5371.5, 5397.1, 5405.8, 5429.7, 5446.9, 5455.6]),
        (0.25, [4871.3, 4891.5, 5012.1, 5041.0, 5079.7, 5110.4, 5227.2, 5586.8, 5615.6, 6136.6, 6191.6, 6230.7, 6393.6,
         6400.0, 6494.9, 6593.9])] for w in ws],
    "FeII": [(4173.5, 0.7), (4233.2, 1.0), (4351.8, 0.6), (4522.6, 0.6), (4549.5, 1.0), (4583.8, 0.8), (4923.9, 0.9),
             (5018.4, 1.0), (5169.0, 1.2), (5316.6, 0.7)],
    "MgI": [(5167.3, 0.6), (5172.7, 1.0), (5183.6, 1.4), (5528.4, 0.25), (4703.0, 0.2)],
    "MgII": [(4481.2, 1.0)],
    "NaI": [(5890.0, 1.5), (5895.9, 1.0)],
    "SrII": [(4077.7, 1.0), (4215.5, 0.6)],
}  # fmt: skip
_TIO = [(4584, 0.5), (4761, 0.8), (4954, 1.0), (5167, 1.2), (5448, 0.9), (5759, 0.7), (5847, 0.6), (6158, 1.3),
        (6651, 0.8), (7053, 1.5)]  # band heads in Å, degraded to the red  # fmt: skip


def _strength(star: Star, species: str) -> float:
    """Optical depth in the middle of a species' line of relative strength 1."""
    excitation, potential, below, teff, logg, depth, growth, metal = _SPECIES[species]
    share = population(star, excitation, potential, below)
    share /= population(Star(teff, logg), excitation, potential, below)
    # The continuum of a thin atmosphere is weak, for H⁻ needs electrons: what Saha takes from the neutral atoms' lines
    # comes back, and those of the ions, which are no fewer there, stand out.
    thin = 10 ** (0.2 * (logg - star.logg)) if metal else 1.0
    return depth * min(share, 1e3) ** growth * 10 ** (0.5 * star.feh * metal) * thin


def _add_line(tau: np.ndarray, centre: float, strength: float, width: float, reach: float) -> None:
    """Add a damped line of optical depth `strength` at its centre (Å): a core of `width` and wings to `reach`."""
    near = slice(*np.searchsorted(WAVE, (centre - reach, centre + reach)))
    offset = (WAVE[near] - centre) / width
    tau[near] += strength / (1 + offset**2)


@functools.cache
def _veil() -> np.ndarray:
    """Optical depth of 900 weak metal lines, the same in every star, crowded in the blue: (3800,)."""
    rng = np.random.default_rng(1925)
    tau = np.zeros_like(WAVE)
    for centre in 3600 + 3800 * rng.random(900) ** 1.6:
        _add_line(tau, centre, 0.25 * rng.exponential() * math.exp(-(centre - 3900) / 1500), 1.3, 12.0)
    return tau


def intrinsic(star: Star) -> np.ndarray:
    """Flux F_λ of a star before dust and instrument, 1 at 5550 Å: (3800,) on WAVE."""
    tau = np.zeros_like(WAVE)
    hydrogen = _strength(star, "H")
    stark = 1.5 + 5.5 * 10 ** (0.35 * (star.logg - 4.0))  # Å: pressure broadens; supergiants have narrow lines
    for n in range(3, 25):
        centre = 1e8 / (109677.58 * (0.25 - 1 / n**2)) / 1.000277
        oscillator = 0.64 * (3 / n) ** 1.2
        near = slice(*np.searchsorted(WAVE, (centre - 300, centre + 300)))
        # Stark wings fall as Δλ^(−5/2) [Holtsmark]
        tau[near] += hydrogen * oscillator / (1 + np.abs((WAVE[near] - centre) / stark) ** 2.5)
    for species, lines in _LINES.items():
        strength = _strength(star, species)
        broad = 1.3 if species not in ("CaI", "CaII", "MgI", "NaI") else 1.6 * 10 ** (0.08 * (star.logg - 4.0))
        for centre, relative in lines:
            _add_line(tau, centre, strength * relative, broad, 120.0)
    tau += _strength(star, "FeI") * _veil()
    # CH (G band) and MgH live in cool photospheres, and MgH in dense ones; TiO below 4000 K.
    molecules = 10 ** (0.5 * star.feh)
    tau += molecules * 0.8 * math.exp(-(((star.teff - 4900) / 900) ** 2)) * np.exp(-(((WAVE - 4305) / 9) ** 2))
    hydride = 0.5 * molecules * math.exp(-(((star.teff - 4100) / 600) ** 2)) * 10 ** (0.25 * (star.logg - 4.5))
    tau += hydride * np.exp(-np.maximum(5210 - WAVE, 0) / 70) * (WAVE < 5211)
    oxide = molecules * 1.0 / (1 + math.exp((star.teff - 3450) / 170))
    for head, relative in _TIO:
        tau += oxide * relative * np.exp(-np.maximum(WAVE - head, 0) / 110) * (head <= WAVE)
    planck = (5550 / WAVE) ** 5 / np.expm1(1.4388e8 / (WAVE * star.teff))
    jump = 0.25 * hydrogen / (1 + hydrogen)
    planck *= 1 - jump / (1 + np.exp((WAVE - 3680) / 15))  # the Balmer jump at 3646 Å, blurred by the merging lines
    planck *= math.expm1(1.4388e8 / (5550 * star.teff))
    return planck * (0.06 + 0.94 * np.exp(-tau))  # line cores are not black


def extinction(wave: np.ndarray) -> np.ndarray:
    """A(λ)/E(B−V) of interstellar dust with R = 3.1 (Cardelli, Clayton & Mathis 1989, eqs. 3): (n,) Å -> (n,) mag."""
    y = 1e4 / wave - 1.82
    a = np.polyval([0.32999, -0.77530, 0.01979, 0.72085, -0.02427, -0.50447, 0.17699, 1.0], y)
    b = np.polyval([-2.09002, 5.30260, -0.62251, -5.38434, 1.07233, 2.28305, 1.41338, 0.0], y)
    return 3.1 * a + b


def observe(star: Star, rng: np.random.Generator, signal_to_noise: float) -> np.ndarray:
    """Flux as a telescope brings it: dust, Doppler shift, 2.5 Å resolution, imperfect calibration, photon noise."""
    flux = intrinsic(star) * 10 ** (-0.4 * star.reddening * (extinction(WAVE) - 3.1))
    flux = np.interp(WAVE, WAVE * (1 + star.velocity / 299792.458), flux)
    reach = np.arange(-5, 6)
    kernel = np.exp(-4 * math.log(2) * (reach / RESOLUTION) ** 2)
    flux = np.convolve(np.pad(flux, 5, mode="edge"), kernel / kernel.sum(), mode="valid")
    x = np.linspace(-1, 1, len(WAVE))
    flux *= np.exp(np.polynomial.legendre.legval(x, [0, *rng.normal(0, [0.04, 0.03, 0.02, 0.02])]))
    return flux + rng.normal(size=len(WAVE)) * np.sqrt(np.maximum(flux, 0.01)) / signal_to_noise


def draw(rng: np.random.Generator) -> tuple[SpectralType, Star]:
    """A random type O3-M8 and a star of it: scatter of a quarter of a subclass, [Fe/H] −0.1 ± 0.25, some dust."""
    while True:
        cls, tenth = int(rng.integers(7)), int(rng.integers(10))
        if 3 <= 10 * cls + tenth <= 68:
            break
    lum = str(rng.choice(LUMINOSITIES, p=[0.12, 0.08, 0.3, 0.15, 0.35]))
    position = cls + tenth / 10 + 0.025 * rng.normal()
    star = Star(
        teff=temperature(position, lum),
        logg=gravity(position, lum) + 0.15 * rng.normal(),
        feh=float(rng.normal(-0.1, 0.25)),
        reddening=float(rng.exponential(0.08)),
        velocity=float(rng.normal(0, 10)),
    )
    return SpectralType(CLASSES[cls], float(tenth), lum), star


def simulate(out: Path, *, n: int, seed: int = 0, overwrite: bool = False, progress: bool = True) -> None:
    """Write `n` simulated spectra as 1-D FITS with labels.csv and about.json into the folder `out`, all or none.

    The header of each file says SIMULATED = T; the star's name holds the seed, so that two folders share no star.
    """
    from astropy.io import fits

    if n < 1:
        raise ValueError(f"--n {n}: at least one spectrum is needed")
    with new_folder(out, "about.json", overwrite) as part:
        rows = []
        for i in tqdm(range(n), desc="simulating", unit="star", disable=not progress):
            rng = np.random.default_rng([seed, i])
            kind, star = draw(rng)
            signal_to_noise = float(np.exp(rng.uniform(math.log(25), math.log(250))))
            flux = observe(star, rng, signal_to_noise).astype(np.float32)
            name = f"sim{seed}-{i:05d}"
            hdu = fits.PrimaryHDU(flux)
            hdu.header["HIERARCH SIMULATED"] = (True, "made by minidl, not observed")
            hdu.header.update(
                OBJECT=name, SPECTYPE=str(kind),
                CTYPE1="AWAV", CUNIT1="Angstrom", CRPIX1=1.0, CRVAL1=WAVE[0], CDELT1=1.0, FWHM=(RESOLUTION, "Angstrom"),
                TEFF=(round(star.teff, 1), "K"), LOG_G=round(star.logg, 2), FE_H=round(star.feh, 2),
                EBV=(round(star.reddening, 3), "mag"), SNR=(round(signal_to_noise, 1), "at 5550 A"),
            )  # fmt: skip
            hdu.writeto(part / f"{name}.fits")
            rows.append([f"{name}.fits", "simulated", name, str(kind), RESOLUTION])
        write_labels(part, rows)
        about = {"kind": "simulated", "what": "stellar spectra simulated by minidl", "n": n, "seed": seed}
        (part / "about.json").write_text(json.dumps(about, indent=1) + "\n")
