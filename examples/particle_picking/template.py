"""Template matching, Gautomatch's way, and the Laplacian of Gaussian that needs no template and no training.

The normalised cross-correlation asks at every place how well the picture there, its mean taken off and its deviation
divided out, agrees with a reference; the best of many rotated references is the score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import fft, ndimage

from examples.common import InputError
from examples.particle_picking import formats, picking
from examples.particle_picking.crops import Prepared
from examples.particle_picking.enhance import WORKING, Enhanced
from examples.particle_picking.network import Picker, Training, with_foreign
from minidl import checkpoint

SIDE = 27  # working px: side of a template, one and a half diameters
ANGLES = 24  # rotations of each template in the search


def disc(radius: float) -> np.ndarray:
    """A soft-edged disc (SIDE, SIDE) of `radius` diameters: 1 inside, 0 outside, a pixel of slope."""
    yy, xx = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    return np.clip(radius * WORKING - np.hypot(yy, xx) + 0.5, 0, 1)


def rotate(template: np.ndarray, degrees: float) -> np.ndarray:
    """A template turned about its middle pixel, cubic interpolation."""
    return ndimage.rotate(template, degrees, reshape=False, order=3, mode="nearest")


class Correlator:
    """Correlates one picture with many templates by FFT, sharing what they have in common.

    ncc(x) = Σ_u m(u) t(u) f(x + u) / (σ_f(x) · |t|): m a round mask, t of mean 0 and |t|² = Σ m t² under it, σ_f² = Σ m
    (f − mean)² around x (Roseman 2003, eq. 6). A place where σ_f is `reject` times
    its median or more (edges of carbon, ice) or less than a quarter of it (nothing) scores 0.
    """

    def __init__(self, image: np.ndarray, mask: np.ndarray, reject: float) -> None:
        half = SIDE // 2  # a frame, so that a kernel's corner at (y, x) of the framed picture has its middle at (y, x)
        image = np.pad(image, half).astype(np.float32)
        self.mask, self.shape = mask, (image.shape[0] - 2 * half, image.shape[1] - 2 * half)
        self.full = tuple(fft.next_fast_len(n, real=True) for n in image.shape)
        self.spectrum = fft.rfft2(image, self.full)
        count = mask.sum()
        square = self._correlate(fft.rfft2(image * image, self.full), mask)
        self.deviation = np.sqrt(np.maximum(square - self._correlate(self.spectrum, mask) ** 2 / count, 1e-6))
        middle = np.median(self.deviation)
        self.usable = (self.deviation < reject * middle) & (self.deviation > 0.25 * middle)

    def _correlate(self, spectrum: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        """Σ_u k(u) f(x + u) -> (h, w), from the transform of f."""
        product = spectrum * np.conj(fft.rfft2(kernel.astype(np.float32), self.full))
        return fft.irfft2(product, self.full)[: self.shape[0], : self.shape[1]]

    def ncc(self, template: np.ndarray) -> np.ndarray:
        """Normalised cross-correlation (h, w) in −1..1 with one template."""
        mean = (self.mask * template).sum() / self.mask.sum()
        kernel = self.mask * (template - mean)
        norm = np.sqrt((kernel**2 / np.maximum(self.mask, 1e-9)).sum()) + 1e-12
        return np.where(self.usable, self._correlate(self.spectrum, kernel) / (self.deviation * norm), 0)


def patches(item: Prepared) -> np.ndarray:
    """Windows (n, SIDE, SIDE) around the particles of one micrograph, centred to a fraction of a pixel."""
    half = SIDE // 2
    offsets = np.arange(SIDE) - half
    points = item.points[:, :2]
    h, w = item.enhanced.image.shape
    points = points[((points >= half) & (points <= (w - 1 - half, h - 1 - half))).all(1)]
    rows = points[:, 1, None, None] + offsets[:, None]
    columns = points[:, 0, None, None] + offsets[None]
    rows, columns = np.broadcast_arrays(rows, columns)
    return ndimage.map_coordinates(item.enhanced.image, [rows, columns], order=1)


def average_classes(windows: np.ndarray, count: int, seed: int, rounds: int = 8) -> np.ndarray:
    """`count` class averages of windows (n, SIDE, SIDE) over free rotation: K-means with alignment.

    Each round turns every average to ANGLES angles, gives each window to the average and angle it correlates with
    best, turns it back, and averages. Starts from random windows. -> (count, SIDE, SIDE), the largest class first.
    """
    rng = np.random.default_rng(seed)
    mask = disc(0.6).ravel() > 0.5
    turns = np.arange(ANGLES) * 360 / ANGLES
    averages = ndimage.gaussian_filter(windows[rng.choice(len(windows), count)], (0, 1, 1))
    flat = windows.reshape(len(windows), -1)[:, mask]
    flat = (flat - flat.mean(1, keepdims=True)) / (flat.std(1, keepdims=True) + 1e-6)
    sizes = np.zeros(count, int)
    for _ in range(rounds):
        turned = np.stack([rotate(a, t) for a in averages for t in turns]).reshape(count * ANGLES, -1)[:, mask]
        turned -= turned.mean(1, keepdims=True)
        turned /= np.linalg.norm(turned, axis=1, keepdims=True) + 1e-6
        best = (flat @ turned.T).argmax(1)
        owner, angle = best // ANGLES, best % ANGLES
        sums, sizes = np.zeros_like(averages), np.bincount(owner, minlength=count)
        for k in range(count):
            for t in range(ANGLES):
                chosen = windows[(owner == k) & (angle == t)]
                if len(chosen):
                    sums[k] += rotate(chosen.sum(0), -turns[t])
            averages[k] = sums[k] / sizes[k] if sizes[k] else windows[rng.integers(len(windows))]
    return averages[np.argsort(-sizes, kind="stable")]


def read_templates(path: Path, diameter: float) -> np.ndarray:
    """Reference pictures from .mrcs, .mrc (one or a stack) or .png -> (n, SIDE, SIDE), particles dark.

    `diameter` is the particle's in their px. Bright particles, as most class averages have, are turned dark.
    """
    if path.suffix.lower() in formats.IMAGE_SUFFIXES:
        stack = formats.read_micrograph(path)[0][None]
    else:
        stack = _read_stack(path)
    made = []
    for picture in stack:
        zoom = diameter / WORKING  # px of the picture to a working px
        blurred = ndimage.gaussian_filter(picture.astype(np.float64), max(0.0, 0.4 * zoom))
        grid = (np.mgrid[:SIDE, :SIDE] - SIDE // 2) * zoom
        grid += ((np.array(picture.shape) - 1) / 2)[:, None, None]
        template = ndimage.map_coordinates(blurred, grid, order=1, mode="nearest")
        inner, ring = template[disc(0.4) > 0.5].mean(), template[(disc(0.75) - disc(0.55)) > 0.5].mean()
        made.append(template if inner < ring else -template)
    return np.array(made)


def _read_stack(path: Path) -> np.ndarray:
    """The pictures (n, h, w) of an MRC file: one, or a stack."""
    import mrcfile

    try:
        with mrcfile.open(path, permissive=True) as file:
            data = np.array(file.data, np.float32)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable MRC file ({error})") from error
    if data.ndim not in (2, 3) or min(data.shape[-2:]) < 8 or not np.isfinite(data).all():
        raise InputError(f"{path}: references are pictures of at least 8x8 px, one or a stack, not {data.shape}")
    return data.reshape(-1, *data.shape[-2:])


class Template(Picker):
    """Normalised cross-correlation with rotated templates, given or averaged from the marked particles."""

    method, label = "template", "minidl templates"

    def __init__(self, count: int = 4, reject: float = 2.0, mask: float = 0.7, contrast: float = 0.5) -> None:
        super().__init__(count=count, reject=reject, mask=mask, contrast=contrast)
        self.templates = np.zeros((0, SIDE, SIDE), np.float32)

    def fit(self, training: Sequence[Prepared], validation: Sequence[Prepared], how: Training) -> None:
        """Average the marked particles in `count` classes, unless templates were given."""
        if len(self.templates):
            return
        windows = np.concatenate([patches(item) for item in training])
        if len(windows) < 4 * self.settings["count"]:
            raise InputError(f"{len(windows)} marked particles are too few for {self.settings['count']} templates")
        self.templates = average_classes(windows, self.settings["count"], how.seed).astype(np.float32)

    def take_references(self, path: Path, diameter: float) -> None:
        """Use these pictures instead of averages."""
        self.templates = read_templates(path, diameter).astype(np.float32)

    def response(self, enhanced: Enhanced) -> np.ndarray:
        """The highest correlation over templates and rotations (h, w), as r / (1 + r) of r in its own deviations.

        Dividing by the local deviation makes faint specks of the right form as good as particles; so it is divided by
        its power 1 − `contrast` only (0: the textbook's correlation, 1: a matched filter).
        """
        search = Correlator(enhanced.image, disc(self.settings["mask"]), self.settings["reject"])
        best = np.zeros(enhanced.image.shape, np.float32)
        for template in self.templates:
            for turn in range(ANGLES):
                np.maximum(best, search.ncc(rotate(template, turn * 360 / ANGLES)), out=best)
        best *= (search.deviation / np.median(search.deviation)) ** self.settings["contrast"]
        best /= best[enhanced.live].std() + 1e-9
        return (best / (1 + best)).astype(np.float32)

    def look(self, enhanced: Enhanced) -> tuple[formats.Picks, np.ndarray]:
        """Candidates scored by correlation, and a map (4, h, w) with the correlation as protein."""
        response = self.response(enhanced)
        return picking.find_picks(response, enhanced, smooth=0.06), _two_classes(response, enhanced)

    def arrays(self) -> Mapping[str, np.ndarray]:
        """The templates (count, SIDE, SIDE)."""
        return {"templates": self.templates}

    def restore(self, path: Path) -> None:
        """Take the templates from a file."""
        self.templates = checkpoint.load(path).arrays["templates"]


def _two_classes(response: np.ndarray, enhanced: Enhanced) -> np.ndarray:
    none = np.zeros_like(response)
    return with_foreign(np.stack([1 - response, response, none, none]), enhanced)


class Blobs(Picker):
    """The training-free start: dark blobs by the Laplacian of a Gaussian. Fitting finds the threshold alone."""

    method, label = "log", "Laplacian of Gaussian"

    def fit(self, training: Sequence[Prepared], validation: Sequence[Prepared], how: Training) -> None:
        """There is nothing to learn."""

    def look(self, enhanced: Enhanced) -> tuple[formats.Picks, np.ndarray]:
        """Candidates, and a map (4, h, w) with the response as protein."""
        return picking.log_picks(enhanced), _two_classes(picking.log_response(enhanced), enhanced)

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Its one length, σ in diameters."""
        return {"sigma": np.array([picking.LOG_SIGMA])}

    def restore(self, path: Path) -> None:
        """There is nothing to take."""
