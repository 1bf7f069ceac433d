"""Simulated barred and unbarred disc galaxies: what a bar looks like when everything else is equal.

A galaxy is a thin exponential disc with log-spiral arms, a Sérsic bulge and a Ferrers bar, inclined, blurred by a
Moffat point-spread function, with sky and photon noise in the bands g, r, i, shown as an asinh colour composite. An
unbarred galaxy has a round *lens* of the same light and area in place of the bar and every other number is drawn from
the same distribution: size, brightness, colour and inclination tell nothing, only the shape of the bar does.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.common import InputError, new_folder

FIELD = 19.2  # arcsec: side of an image, as in the real cut-outs (64 pixels of 0.3")
ZERO_POINT = 22.5  # magnitude of 1 nanomaggy
SKY = np.array([22.0, 20.9, 20.2])  # dark sky in g, r, i, mag / arcsec²
ELECTRONS = np.array([750.0, 1000.0, 800.0])  # electrons per nanomaggy in 54 s on the 2.5 m SDSS telescope, rounded
STRETCH, SOFTENING, WEIGHTS = 0.285, 10.25, np.array([1.4, 1.18, 1.0])  # asinh composite; weights of g, r, i
Array = NDArray[np.float32]


@dataclass
class Truth:
    """What each galaxy was made of: arrays (n,), written to labels.csv; lengths in arcsec, angles in degrees.

    `bar_length` is the semi-major axis, of the bar or of the lens's bar-to-be (its radius is
    bar_length·√bar_axis_ratio).
    """

    barred: NDArray[np.bool_]
    bar_length: Array
    bar_axis_ratio: Array
    bar_fraction: Array  # of the total light; in the lens where there is no bar
    bar_angle: Array  # in the disc's plane, from the line of nodes
    bar_boxiness: Array  # exponent c of |x/a|^c + |y/b|^c: 2 is an ellipse, larger is boxier
    ferrers_index: Array
    scale_length: Array
    inclination: Array
    position_angle: Array
    surface_brightness: Array  # face-on centre of the disc in r, mag / arcsec²
    magnitude: Array  # total, r
    bulge_fraction: Array  # of the total light
    bulge_radius: Array
    bulge_index: Array  # Sérsic n
    arms: NDArray[np.int64]
    arm_strength: Array
    pitch: Array
    redness: Array  # shift of g - r of the whole galaxy, mag
    seeing: Array  # full width at half maximum


def draw(n: int, rng: np.random.Generator) -> Truth:
    """Draw n galaxies, alternately barred and unbarred, all properties independent of the label."""
    uniform = lambda low, high: rng.uniform(low, high, n)  # noqa: E731
    h = np.clip(rng.lognormal(np.log(2.7), 0.3, n), 1.9, 5.5)
    bulge, bar = uniform(0.03, 0.25), uniform(0.14, 0.30)
    mu = rng.normal(20.3, 0.45, n)
    disc_flux = 2 * np.pi * h**2 * 10 ** (-0.4 * (mu - ZERO_POINT))
    truth = Truth(
        barred=np.arange(n) % 2 == 0,
        bar_length=h * uniform(0.9, 1.7),
        bar_axis_ratio=uniform(0.18, 0.36),
        bar_fraction=bar,
        bar_angle=uniform(0, 180),
        bar_boxiness=uniform(2.0, 3.5),
        ferrers_index=uniform(0.2, 1.0),
        scale_length=h,
        inclination=np.degrees(np.arccos(uniform(0.5, 1.0))),  # random orientations, those near edge-on left out
        position_angle=uniform(0, 180),
        surface_brightness=mu,
        magnitude=ZERO_POINT - 2.5 * np.log10(disc_flux / (1 - bulge - bar)),
        bulge_fraction=bulge,
        bulge_radius=h * uniform(0.15, 0.35),
        bulge_index=uniform(1.0, 3.0),
        arms=rng.choice([2, 3, 4], n, p=[0.7, 0.15, 0.15]),
        arm_strength=uniform(0.0, 0.9),
        pitch=uniform(12, 32),
        redness=rng.normal(0.0, 0.1, n),
        seeing=np.clip(rng.normal(1.25, 0.15, n), 0.9, 2.0),
    )
    return truth


def superellipse(x: Array, y: Array, a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Radius m^c = |x/a|^c + |y/b|^c and area 4ab Γ(1+1/c)²/Γ(1+2/c) of the generalised ellipse m = 1."""
    from scipy.special import gamma

    m = ((np.abs(x) / a) ** c + (np.abs(y) / b) ** c) ** (1 / c)
    return m, 4 * a * b * gamma(1 + 1 / c) ** 2 / gamma(1 + 2 / c)


def surface_brightness(truth: Truth, size: int, margin: int, rng: np.random.Generator) -> Array:
    """Light before the atmosphere, nanomaggies per pixel.     -> (n, 3, s, s), bands g, r, i, s = size + 2·margin"""
    from scipy.special import gamma

    t = {f.name: np.asarray(getattr(truth, f.name), np.float32)[:, None, None] for f in fields(truth)}
    pixel = FIELD / size
    axis = (np.arange(size + 2 * margin, dtype=np.float32) - (size + 2 * margin - 1) / 2) * pixel
    pa, incline = np.radians(t["position_angle"]), np.radians(t["inclination"])
    along = axis[None, None, :] * np.cos(pa) + axis[None, :, None] * np.sin(pa)  # sky, along the line of nodes
    across = axis[None, None, :] * -np.sin(pa) + axis[None, :, None] * np.cos(pa)
    tilt = np.cos(incline)
    deep = across / tilt  # in the disc's plane
    soft = (0.4 * pixel) ** 2  # pixels average over cusps
    radius = np.sqrt(along**2 + deep**2 + soft)

    disc = np.exp(-radius / t["scale_length"]) / (2 * np.pi * t["scale_length"] ** 2 * tilt)

    flat = np.sqrt(1 - (1 - 0.75**2) * np.sin(incline) ** 2)  # an oblate bulge of axis ratio 0.75
    n, re = t["bulge_index"], t["bulge_radius"]
    b = 2 * n - 1 / 3 + 4 / (405 * n)  # Ciotti & Bertin 1999
    bulge_radius = np.sqrt(along**2 + (across / flat) ** 2 + soft)
    bulge = np.exp(-b * (bulge_radius / re) ** (1 / n)) / (2 * np.pi * n * re**2 * b ** (-2 * n) * gamma(2 * n) * flat)

    angle = np.radians(t["bar_angle"])
    x = along * np.cos(angle) + deep * np.sin(angle)
    y = -along * np.sin(angle) + deep * np.cos(angle)
    barred, q = t["barred"] > 0, t["bar_axis_ratio"]
    long = t["bar_length"] * np.where(barred, 1, np.sqrt(q))
    short = t["bar_length"] * np.where(barred, q, np.sqrt(q))
    m, area = superellipse(x, y, long, short, np.where(barred, t["bar_boxiness"], np.float32(2)))
    k = t["ferrers_index"] + 0.5  # a Ferrers body of density (1 - m²)^n projects to (1 - m²)^(n + 1/2)
    bar = np.clip(1 - m * m, 0, None) ** k * (k + 1) / (area * tilt)

    # Arms: ridges of log spirals that start at the ends of the bar, clumpy, made of the disc's light.
    theta = np.arctan2(y, x) - np.log(radius / t["bar_length"]) / np.tan(np.radians(t["pitch"]))
    ridge = np.exp(2.5 * (np.cos(t["arms"] * theta) - 1))
    rise = 1 / (1 + np.exp(-(radius / t["bar_length"] - 0.95) * 10))
    clumps = rng.gamma(1.0, 1.0, radius.shape).astype(np.float32)
    young = disc * t["arm_strength"] * rise * 2.2 * ridge * (0.6 + 0.4 * clumps)
    old = disc * (1 - 0.45 * t["arm_strength"] * rise)

    total = 10 ** (-0.4 * (t["magnitude"] - ZERO_POINT)) * np.float32(pixel**2)
    bulge_share, bar_share = t["bulge_fraction"], t["bar_fraction"]
    disc_share = 1 - bulge_share - bar_share
    image = np.zeros((len(truth.barred), 3, len(axis), len(axis)), np.float32)
    components = [
        (bulge_share * bulge + bar_share * bar, 0.85, 0.42),
        (disc_share * old, 0.66, 0.34),
        (disc_share * young, 0.25, 0.10),
    ]
    for light, g_r, r_i in components:
        light = total * light
        image[:, 0] += light * 10 ** (-0.4 * (g_r + t["redness"]))
        image[:, 1] += light
        image[:, 2] += light * 10 ** (0.4 * (r_i + 0.5 * t["redness"]))
    return image


def add_stars(image: Array, pixel: float, rng: np.random.Generator) -> None:
    """Add up to two foreground stars to each image, not on its centre, in place.     image (n, 3, s, s)"""
    n, _, size, _ = image.shape
    for _ in range(2):
        on = rng.random(n) < 0.15
        y, x = rng.integers(0, size, (2, n))
        on &= np.hypot(y - size / 2, x - size / 2) * pixel > 4
        magnitude, g_r = rng.uniform(17.5, 21, n), rng.uniform(0.2, 1.4, n)
        flux = 10 ** (-0.4 * (magnitude - ZERO_POINT)) * on
        image[np.arange(n), :, y, x] += np.stack([flux * 10 ** (-0.4 * g_r), flux, flux * 10 ** (0.16 * g_r)], 1)


def blur(image: Array, seeing: Array, pixel: float) -> Array:
    """Convolve each image with its Moffat profile (1 + r²/α²)^-3, by FFT.     image (n, 3, s, s), seeing (n,) arcsec"""
    from scipy import fft

    size = image.shape[-1]
    axis = (np.arange(size, dtype=np.float32) - size // 2) * pixel
    alpha = (seeing / (2 * np.sqrt(2 ** (1 / 3) - 1))).astype(np.float32)[:, None, None]
    psf = (1 + (axis[:, None] ** 2 + axis**2) / alpha**2) ** -3
    psf /= psf.sum((1, 2), keepdims=True)
    transfer = fft.rfft2(fft.ifftshift(psf, axes=(1, 2)))[:, None]
    return fft.irfft2(fft.rfft2(image) * transfer, s=(size, size)).astype(np.float32)


def observe(image: Array, pixel: float, rng: np.random.Generator) -> Array:
    """Add the noise of sky and source photons; the sky's mean is subtracted.     image (n, 3, s, s) in nanomaggies

    Variance = (source + sky) / electrons per nanomaggy. The survey's pixels of 0.396" are resampled to smaller ones,
    which correlates the noise of neighbours: a 1-2-1 filter along each axis, scaled to look as the JPEG cut-outs do.
    """
    sky = 10 ** (-0.4 * (SKY - ZERO_POINT)) * pixel**2
    sigma = np.sqrt((np.clip(image, 0, None) + sky[:, None, None]) / ELECTRONS[:, None, None]).astype(np.float32)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    for axis in (-1, -2):
        noise = 0.5 * noise + 0.25 * (np.roll(noise, 1, axis) + np.roll(noise, -1, axis))
    return image + sigma * noise


def composite(bands: Array, stretch: float = STRETCH, softening: float = SOFTENING) -> NDArray[np.uint8]:
    """Colour picture of the bands g, r, i by Lupton et al. 2004: blue, green, red, with an asinh of the mean intensity.

    bands (n, 3, s, s) -> (n, s, s, 3) RGB of 0..255. With I = (r + g + b)/3 and softening Q, each colour c becomes
    c·f/I, f = 0.1·asinh(Q·I/stretch) / asinh(0.1·Q), divided by the brightest colour where that exceeds 1; I > 0.
    """
    rgb = np.moveaxis(bands, 1, -1)[..., ::-1]
    intensity = rgb.mean(-1, keepdims=True)
    positive = np.where(intensity > 0, intensity, np.inf)
    rgb = np.clip(rgb, 0, None) * (
        0.1 / np.arcsinh(0.1 * softening) * np.arcsinh(softening * intensity / stretch) / positive
    )
    rgb = rgb / np.maximum(rgb.max(-1, keepdims=True), 1)
    return (rgb * 255).astype(np.uint8)


def galaxies(n: int, seed: int = 0, size: int = 64, chunk: int = 64) -> tuple[Array, Truth]:
    """Simulate n galaxies: bands g, r, i in nanomaggies per pixel (n, 3, size, size), and what they were made of."""
    margin = max(4, round(2.4 / FIELD * size))  # light scattered in from outside, and no wrapping of the FFT
    rng = np.random.default_rng(seed)
    truth = draw(n, rng)
    pixel = FIELD / size
    bands = np.empty((n, 3, size, size), np.float32)
    for start in range(0, n, chunk):
        part = slice(start, min(start + chunk, n))
        some = Truth(**{f.name: getattr(truth, f.name)[part] for f in fields(truth)})
        image = surface_brightness(some, size, margin, rng)
        add_stars(image, pixel, rng)
        image = observe(blur(image, some.seeing, pixel), pixel, rng)
        bands[part] = image[:, :, margin:-margin, margin:-margin]
    return bands, truth


def pictures(n: int, seed: int = 0, size: int = 64) -> tuple[NDArray[np.uint8], Truth]:
    """Simulate n galaxies as colour pictures (n, size, size, 3), 0..255."""
    bands, truth = galaxies(n, seed, size)
    return composite(bands * WEIGHTS[:, None, None].astype(np.float32)), truth


def write(out: Path, n: int, seed: int = 0, size: int = 64, file_format: str = "png", overwrite: bool = False) -> None:
    """Write n simulated galaxies: barred/, unbarred/, labels.csv with the truth, simulated.json; all or nothing."""
    from PIL import Image

    if n < 2 or not 16 <= size <= 1024:
        raise InputError(f"simulate needs at least 2 galaxies of 16 to 1024 pixels, got --n {n} --size {size}")
    with new_folder(out, "simulated.json", overwrite) as part:
        for label in ("barred", "unbarred"):
            (part / label).mkdir()
        images, truth = pictures(n, seed, size)
        names = [f.name for f in fields(truth) if f.name != "barred"]
        bars = {"bar_length", "bar_axis_ratio", "bar_angle", "bar_boxiness"}  # empty for galaxies without a bar
        with open(part / "labels.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["file", "label", *names, "lens_radius"])
            for k, image in enumerate(images):
                label = "barred" if truth.barred[k] else "unbarred"
                path = f"{label}/s{k:05d}.{file_format}"
                Image.fromarray(image).save(part / path, quality=85)
                lens = truth.bar_length[k] * np.sqrt(truth.bar_axis_ratio[k])
                barred = label == "barred"
                values = [f"{getattr(truth, n)[k]:.5g}" if barred or n not in bars else "" for n in names]
                table.writerow([path, label, *values, "" if barred else f"{lens:.5g}"])
        about = {
            "kind": "simulated",
            "note": "SIMULATED galaxies, not observations",
            "n": n,
            "seed": seed,
            "size": size,
        }
        (part / "simulated.json").write_text(json.dumps({**about, "arcsec_per_pixel": FIELD / size}, indent=1) + "\n")
