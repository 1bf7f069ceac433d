"""Contrast enhancement: from raw counts to an image where a particle is always about as wide and as dark.

Downsampling does most of it: averaging f x f pixels of independent noise raises the signal-to-noise ratio f-fold, and a
particle needs only some twenty pixels to be recognised. The rest is taking out slow changes of brightness and contrast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from examples.common import InputError

WORKING = 18  # px: a particle's diameter after downsampling


@dataclass(frozen=True)
class Enhanced:
    """An enhanced micrograph.

    image (h, w) float32: mean 0, deviation about 1, particles dark; live (h, w): false on the dead border;
    scale (y, x): working pixels per original pixel; shape: the original (H, W).
    """

    image: np.ndarray
    live: np.ndarray
    scale: tuple[float, float]
    shape: tuple[int, int]

    def to_working(self, xy: np.ndarray) -> np.ndarray:
        """Original px -> working px, both (n, 2)."""
        return np.asarray(xy, np.float64).reshape(-1, 2) * (self.scale[1], self.scale[0])

    def to_original(self, xy: np.ndarray) -> np.ndarray:
        """Working px -> original px, both (n, 2)."""
        return np.asarray(xy, np.float64).reshape(-1, 2) / (self.scale[1], self.scale[0])


def dead_border(image: np.ndarray) -> tuple[int, int, int, int]:
    """Rows and columns (top, bottom, left, right) that repeat their neighbour, as drift correction leaves them.

    A row is dead if it differs from the next by less than a quarter of what the middle row does; the border ends with
    the last dead row in the outer eighth of the image (filters may have smeared life into its rim).
    """
    widths = []
    for axis in (0, 1):
        with np.errstate(over="ignore"):  # a hot pixel of 3e38 makes its row infinitely alive, which it is
            step = np.abs(np.diff(image, axis=axis)).mean(1 - axis)
        dead = step < np.median(step) / 4
        for side in (dead, dead[::-1]):
            found = np.flatnonzero(side[: len(side) // 8])
            widths.append(int(found[-1]) + 1 if len(found) else 0)
    return widths[0], widths[1], widths[2], widths[3]


def downsample(image: np.ndarray, factor: float) -> tuple[np.ndarray, tuple[float, float]]:
    """Low-pass and shrink by cutting the Fourier transform: (H, W) -> about (H/factor, W/factor), and the exact scale.

    Pixel (0, 0) keeps its place. Everything above the new Nyquist frequency goes and nothing folds back; a Gaussian
    falls to 1/e at it against ringing.
    """
    tall, wide = image.shape
    if factor < 1:  # small particles are drawn larger, by linear interpolation
        large = ndimage.zoom(image, 1 / factor, order=1)
        return large, ((large.shape[0] - 1) / (tall - 1), (large.shape[1] - 1) / (wide - 1))
    pad_y, pad_x = (fft.next_fast_len(n + max(16, n // 16), real=True) - n for n in (tall, wide))
    padded = np.pad(image, ((0, pad_y), (0, pad_x)), mode="symmetric")
    spectrum = fft.rfft2(padded, workers=1)
    h, w = (max(2, round(n / factor)) for n in padded.shape)
    rows = np.r_[0 : (h + 1) // 2, padded.shape[0] - h // 2 : padded.shape[0]]
    spectrum = spectrum[rows, : w // 2 + 1]
    k2 = (fft.fftfreq(h)[:, None] * 2) ** 2 + (np.arange(w // 2 + 1)[None] / w * 2) ** 2
    small = fft.irfft2(spectrum * np.exp(-k2).astype(image.dtype), (h, w), workers=1) * (h * w / padded.size)
    scale = h / padded.shape[0], w / padded.shape[1]
    return small[: round(tall * scale[0]), : round(wide * scale[1])], scale


def enhance(image: np.ndarray, diameter: float) -> Enhanced:
    """Enhance a micrograph (H, W) whose particles are `diameter` px across.

    A plane is taken off, outliers beyond 7 robust deviations are cut, the image is low-passed and shrunk until a
    particle spans WORKING pixels, the slow background (a Gaussian of one diameter) is taken off, and what stays is
    divided by its local deviation (Gaussian of two diameters) so that thick and thin ice look alike. Dead borders
    count nowhere. Raises InputError for an absurd diameter.
    """
    if not 4 <= diameter <= min(image.shape) / 4:
        raise InputError(
            f"a particle of {diameter:.3g} px in a micrograph of {image.shape[1]}x{image.shape[0]} px: --diameter must"
            " be between 4 px and a quarter of the micrograph"
        )
    top, bottom, left, right = dead_border(image)
    yy, xx = (np.linspace(-1, 1, n, dtype=np.float32) for n in image.shape)
    sample = np.s_[top : image.shape[0] - bottom : 8, left : image.shape[1] - right : 8]
    flat = image
    for _ in range(2):  # the second time without the outliers that pulled at the first
        some = flat[sample]
        middle = np.median(some)
        spread = 1.4826 * np.median(np.abs(some - middle)) + 1e-6 * max(1.0, abs(middle))
        flat = np.clip((flat - middle) / spread, -7, 7)
        terms = [np.broadcast_to(t, image.shape)[sample].ravel() for t in (yy[:, None], xx[None], np.float32(1))]
        slope = np.linalg.lstsq(np.stack(terms, 1), flat[sample].ravel(), rcond=None)[0]
        flat = flat - slope[0] * yy[:, None] - slope[1] * xx[None]
    small, scale = downsample(flat, diameter / WORKING)
    h, w = small.shape
    edges = np.ceil([top * scale[0], bottom * scale[0], left * scale[1], right * scale[1]]).astype(int)
    live = np.zeros((h, w), bool)
    live[edges[0] : h - edges[1], edges[2] : w - edges[3]] = True

    weight = live.astype(np.float32)

    def blur(field: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian mean over live pixels only."""
        total = ndimage.gaussian_filter(weight, sigma, mode="constant")
        return ndimage.gaussian_filter(field * weight, sigma, mode="constant") / np.maximum(total, 1e-3)

    detail = small - blur(small, WORKING)
    deviation = np.sqrt(blur(detail**2, 2 * WORKING))
    detail /= np.maximum(deviation, 0.25 * np.median(deviation[live]) + 1e-6)
    return Enhanced(np.clip(detail, -5, 5) * weight, live, scale, image.shape)
