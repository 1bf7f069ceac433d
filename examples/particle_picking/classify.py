"""2-D classification: sort picked particles into classes of one view each, and tell particles from what is none.

A single particle drowns in noise; the average of some hundred of the same view does not. K-means finds the views: the
distance of a particle to a class average is the least over all rotations and small shifts. Rotations come nearly free,
because on a polar grid a rotation is a shift along the angle: with the Fourier coefficients c(m, r) of each ring over
the angle, Σ_r c(m, r) conj(a(m, r)) transformed back over m is the correlation at every rotation at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import fft, ndimage, sparse

from examples.common import InputError, Table, write_csv
from examples.particle_picking import formats, picking
from examples.particle_picking.enhance import downsample
from examples.particle_picking.formats import Picks

ACROSS = 32  # px: a particle's diameter in the images that are classified
HALF = 24  # px: half their side; a box is 1.5 diameters wide
ROOM = 8  # px: how far a centre may move from its pick, a quarter of a diameter
RINGS = 16  # polar grid: radii 0.5, 1.5 .. 15.5 px, to half a diameter: neighbours stay outside
ANGLES = 48  # steps of 7.5 degrees
SHIFTS = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)])
BATCH = 400  # particles whose correlations are in memory at once
WEIGHT = np.sqrt(np.arange(RINGS, dtype=np.float32) + 0.5)  # of a ring: sums over the grid become integrals over area
FALSE = 0.7


def cut(image: np.ndarray, xy: np.ndarray, diameter: float) -> np.ndarray:
    """Boxes (n, 65, 65) float16 of a micrograph (H, W) about the centres xy (n, 2), 32 px to a diameter.

    In the micrograph's own robust deviations; what lies beyond its rim is mirrored.
    """
    reach = HALF + ROOM
    small, (sy, sx) = downsample(image, diameter / ACROSS)
    middle = np.median(small)
    small = (small - middle) / (1.4826 * np.median(np.abs(small - middle)) + 1e-6)
    padded = np.pad(np.clip(small, -20, 20).astype(np.float16), reach, mode="symmetric")
    columns, rows = np.round(xy * (sx, sy)).astype(int).clip(0, (small.shape[1] - 1, small.shape[0] - 1)).T
    return np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1,) * 2)[rows, columns]


def windows(boxes: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The inner (n, 49, 49) float32 of boxes (n, 65, 65) about centres moved by `offset` (n, 2) whole px (y, x)."""
    views = np.lib.stride_tricks.sliding_window_view(boxes, (2 * HALF + 1,) * 2, (1, 2))
    return views[np.arange(len(boxes)), ROOM + offset[:, 0], ROOM + offset[:, 1]].astype(np.float32)


def polar_sampler(step: int) -> sparse.csr_array:
    """Matrix (9 · 16 · 48, 49²): samples a flattened window on polar grids about 9 centres `step` px apart, bilinear,
    each ring times its WEIGHT.
    """
    side = 2 * HALF + 1
    radius, angle = np.arange(RINGS)[:, None] + 0.5, 2 * np.pi * np.arange(ANGLES) / ANGLES
    centre = HALF + step * SHIFTS[:, :, None, None]
    y, x = (centre[:, 0] + radius * np.sin(angle)).ravel(), (centre[:, 1] + radius * np.cos(angle)).ravel()
    weight = np.broadcast_to(WEIGHT[:, None], (len(SHIFTS), RINGS, ANGLES)).ravel()
    row, column = np.floor(y).astype(int), np.floor(x).astype(int)
    corners = [
        (weight * a * b, (row + dy) * side + column + dx)
        for dy, a in ((0, 1 - y + row), (1, y - row))
        for dx, b in ((0, 1 - x + column), (1, x - column))
    ]
    values, columns = (np.concatenate(part) for part in zip(*corners, strict=True))
    where = np.tile(np.arange(len(y)), 4), columns
    return sparse.csr_array((values.astype(np.float32), where), shape=(len(y), side * side))


def coefficients(images: np.ndarray, sampler: sparse.csr_array) -> np.ndarray:
    """Angular Fourier coefficients (25, n, 9, 16) complex64 of windows (n, 49, 49) at 9 shifts, within the disc of
    mean 0 and norm 1.
    """
    rings = (sampler @ images.reshape(len(images), -1).T).T.reshape(len(images), len(SHIFTS), RINGS, ANGLES)
    mean = np.einsum("nsra,r->ns", rings, WEIGHT) / ((WEIGHT**2).sum() * ANGLES)
    rings = rings - mean[:, :, None, None] * WEIGHT[:, None]
    rings /= np.sqrt(np.einsum("nsra,nsra->ns", rings, rings))[:, :, None, None] + 1e-12
    return np.ascontiguousarray(np.moveaxis(fft.rfft(rings, axis=-1, norm="ortho", workers=1), -1, 0))


@dataclass(frozen=True)
class Classes:
    """Of n particles: class label (n,), rotation (n,) rad, offset (n, 2) px (y, x) of the centre, agreement (n,) =
    correlation with the class. Class 0 is the largest; averages (K, 49, 49) of the turned particles.
    """

    label: np.ndarray
    angle: np.ndarray
    offset: np.ndarray
    agreement: np.ndarray
    averages: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Particles in each class (K,)."""
        return np.bincount(self.label, minlength=len(self.averages))


def classify(
    boxes: np.ndarray, *, classes: int = 50, rounds: int = 15, seed: int = 0, progress: bool = True
) -> Classes:
    """K-means of boxes (n, 65, 65) over rotations and shifts, started from random particles.

    Each round gives every particle the class, rotation and one of 9 shifts (2 px apart in the first half of the
    rounds, then 1) of least |x − a|², then averages anew. Raises InputError for fewer than two particles a class.
    """
    from tqdm import tqdm

    n = len(boxes)
    if n < 2 * classes:
        raise InputError(f"{n} particles for {classes} classes: give fewer --classes, or more particles")
    offset = np.zeros((n, 2), int)
    label, angle, agreement = np.zeros(n, int), np.zeros(n), np.zeros(n, np.float32)
    chosen = np.random.default_rng(seed).choice(n, classes, replace=False)
    average = np.moveaxis(coefficients(windows(boxes[chosen], offset[chosen]), polar_sampler(1))[:, :, 4], 1, 2)
    twice = np.full((len(average), 1, 1), 2)  # a real signal's coefficients stand for their conjugates too,
    twice[[0, -1]] = 1  # but for the first and last
    turn = 2j * np.pi / ANGLES * np.arange(len(average))[:, None]
    for turned in tqdm(range(rounds), "classifying", unit="round", leave=False, disable=None if progress else True):
        step = 2 if turned < rounds // 2 else 1
        sampler = polar_sampler(step)
        norm = (np.abs(average) ** 2 * twice).sum((0, 1))
        total = np.zeros_like(average)
        for first in range(0, n, BATCH):
            part = slice(first, min(n, first + BATCH))
            c = coefficients(windows(boxes[part], offset[part]), sampler)
            count = c.shape[1]
            product = c.reshape(len(c), -1, RINGS) @ average.conj()
            found = fft.irfft(product, ANGLES, axis=0, norm="forward", workers=1).reshape(ANGLES, count, 9, classes)
            found -= norm / 2  # x·a − |a|²/2: less the distance squared, but for a constant
            found[:, (np.abs(offset[part, None] + step * SHIFTS) > ROOM).any(-1)] = -np.inf
            best = found.transpose(1, 0, 2, 3).reshape(count, -1).argmax(1)
            a, s, k = np.unravel_index(best, (ANGLES, 9, classes))
            each = np.arange(count)
            label[part], angle[part] = k, 2 * np.pi * a / ANGLES
            agreement[part] = (found[a, each, s, k] + norm[k] / 2) / np.sqrt(norm[k])
            offset[part] += step * SHIFTS[s]
            member = sparse.csr_array((np.ones(count, np.float32), (k, each)), shape=(classes, count))
            for m, own in enumerate(c[:, each, s] * np.exp(turn * a)[:, :, None]):
                total[m] += (member @ own).T
        sizes = np.bincount(label, minlength=classes)
        average = np.where(sizes > 0, total / np.maximum(sizes, 1), average).astype(np.complex64)
    rank = np.empty(classes, int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(classes)
    label = rank[label]
    return Classes(label, angle, offset, agreement, _averages(boxes, label, angle, offset, classes))


def _averages(boxes: np.ndarray, label: np.ndarray, angle: np.ndarray, offset: np.ndarray, classes: int) -> np.ndarray:
    """Mean (K, 49, 49) of the members of each class, moved and turned upon one another."""
    total = np.zeros((classes, 2 * HALF + 1, 2 * HALF + 1))
    for first in range(0, len(boxes), BATCH):
        part = slice(first, first + BATCH)
        for image, k, (cos, sin) in zip(
            windows(boxes[part], offset[part]),
            label[part],
            np.stack([np.cos(angle), np.sin(angle)], 1)[part],
            strict=True,
        ):
            matrix = np.array([[cos, sin], [-sin, cos]])
            total[k] += ndimage.affine_transform(image, matrix, HALF - matrix @ (HALF, HALF), order=1, mode="nearest")
    return total / np.maximum(np.bincount(label, minlength=classes), 1)[:, None, None]
