"""Contrast enhancement: from raw counts to an image where a particle is always about as wide and as dark.

Downsampling does most of it: averaging f x f pixels of independent noise raises the signal-to-noise ratio f-fold, and a
particle needs only some twenty pixels to be recognised. The rest is taking out slow changes of brightness and contrast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from examples.common import InputError

WORKING = 18  # px: a particle's diameter after downsampling


@dataclass(frozen=True)
class Enhanced:
    """An enhanced micrograph.

    image (h, w) float32: mean 0, deviation about 1, particles dark; live (h, w): false on the dead border;
    scale (y, x): working pixels per original pixel; shape: the original (H, W); foreign (h, w) uint8: 2 where ice or
    dirt lies, 3 on carbon, else 0 (None: not looked for).
    """

    image: np.ndarray
    live: np.ndarray
    scale: tuple[float, float]
    shape: tuple[int, int]
    foreign: np.ndarray | None = None

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


Show = Callable[[str, np.ndarray], None]  # takes the name of a step and the picture after it


def robust_scale(image: np.ndarray, sample: tuple[slice, slice], limit: float = 7) -> np.ndarray:
    """(x − median) / (1.4826 · median |x − median|), cut at ± `limit`: hot pixels and dead ones lose their power.

    `sample` says which pixels the medians see.
    """
    some = image[sample]
    middle = np.median(some)
    spread = 1.4826 * np.median(np.abs(some - middle)) + 1e-6 * max(1.0, abs(middle))
    return np.clip((image - middle) / spread, -limit, limit)


def remove_plane(image: np.ndarray, sample: tuple[slice, slice]) -> np.ndarray:
    """Take off the plane a·y + b·x + c fitted to the pixels of `sample`: the slope of ice and beam."""
    yy, xx = (np.linspace(-1, 1, n, dtype=np.float32) for n in image.shape)
    terms = [np.broadcast_to(t, image.shape)[sample].ravel() for t in (yy[:, None], xx[None], np.float32(1))]
    slope = np.linalg.lstsq(np.stack(terms, 1), image[sample].ravel(), rcond=None)[0]
    return image - slope[0] * yy[:, None] - slope[1] * xx[None]


def _masked_blur(field: np.ndarray, live: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean over live pixels only."""
    weight = live.astype(np.float32)
    total = ndimage.gaussian_filter(weight, sigma, mode="constant")
    return ndimage.gaussian_filter(field * weight, sigma, mode="constant") / np.maximum(total, 1e-3)


def enhance(image: np.ndarray, diameter: float, show: Show = lambda name, picture: None) -> Enhanced:
    """Enhance a micrograph (H, W) whose particles are `diameter` px across.

    Robust scaling and removal of a plane (twice: the second time without the outliers that pulled at the first);
    low-pass and shrinking until a particle spans WORKING pixels; the slow background (a Gaussian of one diameter) off;
    division by the local deviation (Gaussian of two diameters), so that thick and thin ice look alike. Dead borders
    count nowhere. `show` is given the picture after each step. Raises InputError for an absurd diameter.
    """
    if not 4 <= diameter <= min(image.shape) / 4:
        raise InputError(
            f"a particle of {diameter:.3g} px in a micrograph of {image.shape[1]}x{image.shape[0]} px: --diameter must"
            " be between 4 px and a quarter of the micrograph"
        )
    show("as stored", image)
    top, bottom, left, right = dead_border(image)
    sample = np.s_[top : image.shape[0] - bottom : 8, left : image.shape[1] - right : 8]
    flat = robust_scale(image, sample)
    show("robust scaling", flat)
    flat = remove_plane(robust_scale(remove_plane(flat, sample), sample), sample)
    show("plane off", flat)
    small, scale = downsample(flat, diameter / WORKING)
    h, w = small.shape
    edges = np.ceil([top * scale[0], bottom * scale[0], left * scale[1], right * scale[1]]).astype(int)
    live = np.zeros((h, w), bool)
    live[edges[0] : h - edges[1], edges[2] : w - edges[3]] = True
    small = np.where(live, small, np.median(small[live]))
    show("low-pass and shrink", small)

    detail = small - _masked_blur(small, live, WORKING)
    show("background off", detail * live)
    deviation = np.sqrt(_masked_blur(detail**2, live, 2 * WORKING))
    foreign = foreign_matter(small, detail, live)
    detail /= np.maximum(deviation, 0.25 * np.median(deviation[live]) + 1e-6)
    done = np.clip(detail, -5, 5) * live.astype(np.float32)
    show("local contrast", done)
    return Enhanced(done, live, scale, image.shape, foreign)


def _opened(mask: np.ndarray, radius: float) -> np.ndarray:
    """Where a disc of `radius` px fits into the mask, which goes on beyond the rim of the picture."""
    frame = int(radius) + 1
    far = ndimage.distance_transform_edt(np.pad(mask, frame, mode="edge")) > radius
    within = ndimage.distance_transform_edt(~far) <= radius if far.any() else far
    return within[frame:-frame, frame:-frame] & mask


def foreign_matter(small: np.ndarray, detail: np.ndarray, live: np.ndarray) -> np.ndarray:
    """Where a rule sees what is no protein -> (h, w) uint8: 2 ice or dirt, 3 carbon film, else 0.

    `small` is the shrunken picture, `detail` the same without its slow background. Ice and dirt are
    darker than the field by 3.5 robust deviations, and at half their depth still wider than a particle. Carbon is
    darker than the field by 6 deviations of its slow changes, or rougher by half, over a disc of three particles.
    """
    smooth = ndimage.gaussian_filter(small, 0.15 * WORKING)
    middle = np.median(smooth[live])
    spread = 1.4826 * np.median(np.abs(smooth[live] - middle)) + 1e-9
    depth = (middle - smooth) * live
    near = ndimage.maximum_filter(depth, WORKING)  # the deepest within half a particle
    ice = _opened((depth > 3.5 * spread) & (depth > 0.5 * near), 0.55 * WORKING)
    if ice.any():
        ice = (ndimage.distance_transform_edt(~ice) <= 0.3 * WORKING) & live
    clear = live & ~(ndimage.distance_transform_edt(~ice) <= WORKING if ice.any() else ice)
    if not clear.any():
        return (2 * live).astype(np.uint8)
    slow, rough = _masked_blur(small, clear, WORKING), np.sqrt(_masked_blur(detail**2, clear, WORKING))
    middle = np.median(slow[clear])
    wide = 1.4826 * np.median(np.abs(slow[clear] - middle)) + 1e-9
    film = _opened(((slow < middle - 6 * wide) | (rough > 1.5 * np.median(rough[clear]))) & clear, 1.5 * WORKING)
    return np.where(ice, 2, np.where(film & live, 3, 0)).astype(np.uint8)


# ------------------------------------------------------------------------------------------- the talk's three channels


def to_bytes(image: np.ndarray, live: np.ndarray | None = None) -> np.ndarray:
    """8 bits (h, w) uint8: the hundredth darkest becomes 0, the hundredth brightest 255."""
    low, high = np.percentile(image if live is None else image[live], (1, 99))
    return np.clip((image - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)


def equalise(image: np.ndarray) -> np.ndarray:
    """Histogram equalisation of an 8-bit picture: every grey becomes equally frequent."""
    share = np.cumsum(np.bincount(image.ravel(), minlength=256)) / image.size
    return (255 * share).astype(np.uint8)[image]


def bilateral(image: np.ndarray, space: float = 1.5, grey: float = 40.0) -> np.ndarray:
    """Mean over neighbours that are near (Gaussian of `space` px) and alike (Gaussian of `grey` levels): noise goes,
    edges stay. Tomasi & Manduchi 1998.
    """
    reach = int(np.ceil(2 * space))
    picture = image.astype(np.float32)
    padded = np.pad(picture, reach, mode="symmetric")
    total, weight = np.zeros_like(picture), np.zeros_like(picture)
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            other = padded[dy : dy + image.shape[0], dx : dx + image.shape[1]]
            near = np.exp(-((dy - reach) ** 2 + (dx - reach) ** 2) / (2 * space**2))
            w = near * np.exp(-((other - picture) ** 2) / (2 * grey**2))
            total += w * other
            weight += w
    return np.round(total / weight).astype(np.uint8)


def clahe(image: np.ndarray, tiles: int = 8, limit: float = 2.0) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of an 8-bit picture (h, w).

    Each of tiles x tiles fields has its own equalisation; a grey counts at most `limit` times its fair share, what is
    cut off is given to all; between the fields' middles the four nearest answers are mixed linearly. Zuiderveld 1994.
    """
    h, w = image.shape
    tables = np.empty((tiles, tiles, 256), np.float32)
    rows, columns = (np.linspace(0, n, tiles + 1).astype(int) for n in (h, w))
    for i in range(tiles):
        for j in range(tiles):
            field = image[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
            count = np.bincount(field.ravel(), minlength=256).astype(np.float32)
            cap = max(limit * field.size / 256, 1)
            count = np.minimum(count, cap) + np.maximum(count - cap, 0).sum() / 256
            tables[i, j] = 255 * np.cumsum(count) / count.sum()
    y, x = (np.clip((np.arange(n) + 0.5) / n * tiles - 0.5, 0, tiles - 1) for n in (h, w))
    i, j = np.minimum(y.astype(int), max(tiles - 2, 0)), np.minimum(x.astype(int), max(tiles - 2, 0))
    fy, fx = (y - i)[:, None], (x - j)[None]
    below, right = np.minimum(i + 1, tiles - 1)[:, None], np.minimum(j + 1, tiles - 1)[None]
    i, j = i[:, None], j[None]
    upper = (1 - fx) * tables[i, j, image] + fx * tables[i, right, image]
    lower = (1 - fx) * tables[below, j, image] + fx * tables[below, right, image]
    return np.round((1 - fy) * upper + fy * lower).astype(np.uint8)


def three_channels(enhanced: Enhanced, show: Show = lambda name, picture: None) -> np.ndarray:
    """The talk's input (3, h, w) uint8: the 8-bit picture equalised; smoothed by a bilateral filter; after CLAHE 8x8.

    Each step works on the one before, as in CASSPER's preparation; which three of its pictures CASSPER stacks is not
    printed, so this choice is ours.
    """
    made = [equalise(to_bytes(enhanced.image, enhanced.live))]
    show("histogram equalised", made[0])
    made.append(bilateral(made[0]))
    show("bilateral filter", made[1])
    made.append(clahe(made[1]))
    show("CLAHE 8x8", made[2])
    return np.stack(made)
