"""2-D classification: sort picked particles into classes of one view each, and tell particles from what is none.

A single particle drowns in noise; the average of some hundred of the same view does not. K-means finds the views: the
distance of a particle to a class average is the least over all rotations and small shifts. Rotations come nearly free,
because on a polar grid a rotation is a shift along the angle: with the Fourier coefficients c(m, r) of each ring over
the angle, Σ_r c(m, r) conj(a(m, r)) transformed back over m is the correlation at every rotation at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import fft, ndimage, sparse

from examples.common import InputError, Table, write_csv
from examples.particle_picking import formats, picking
from examples.particle_picking.data import Diameter, in_pixels
from examples.particle_picking.enhance import downsample

ACROSS = 32  # px: a particle's diameter in the images that are classified
HALF = 24  # px: half their side; a box is 1.5 diameters wide
ROOM = 8  # px: how far a centre may move from its pick, a quarter of a diameter
RINGS = 16  # polar grid: radii 0.5, 1.5 .. 15.5 px, to half a diameter: neighbours stay outside
ANGLES = 48  # steps of 7.5 degrees
SHIFTS = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)])
BATCH = 400  # particles whose correlations are in memory at once
WEIGHT = np.sqrt(np.arange(RINGS, dtype=np.float32) + 0.5)  # of a ring: sums over the grid become integrals over area
FLAT = 0.8  # contrast below which a class is false; chosen on picks of which half are false, as the README says


def cut(image: np.ndarray, places: Sequence[np.ndarray], diameter: float) -> list[np.ndarray]:
    """Boxes (n, 65, 65) float16 of a micrograph (H, W) about centres (n, 2), one array for each list of centres.

    32 px to a diameter, in the micrograph's own robust deviations; what lies beyond its rim is mirrored.
    """
    reach = HALF + ROOM
    small, (sy, sx) = downsample(image, diameter / ACROSS)
    middle = np.median(small)
    small = (small - middle) / (1.4826 * np.median(np.abs(small - middle)) + 1e-6)
    padded = np.pad(np.clip(small, -20, 20).astype(np.float16), reach, mode="symmetric")
    views = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1,) * 2)
    most = small.shape[1] - 1, small.shape[0] - 1
    return [views[*np.round(xy * (sx, sy)).astype(int).clip(0, most).T[::-1]] for xy in places]


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
    correlation with the class. Class 0 is the largest; halves (2, K, 49, 49) are the averages of every other turned
    particle, from the first and from the second.
    """

    label: np.ndarray
    angle: np.ndarray
    offset: np.ndarray
    agreement: np.ndarray
    halves: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Particles in each class (K,)."""
        return np.bincount(self.label, minlength=self.halves.shape[1])

    @property
    def averages(self) -> np.ndarray:
        """Average (K, 49, 49) of each class."""
        first = np.bincount(self.label[::2], minlength=self.halves.shape[1]) / np.maximum(self.sizes, 1)
        return self.halves[0] * first[:, None, None] + self.halves[1] * (1 - first)[:, None, None]

    @property
    def contrast(self) -> np.ndarray:
        """√ of the covariance (K,) of both halves within a particle's circle, in units of the weighted upper quartile:
        what the clearest quarter of the particles reaches. What is in both halves is no noise, however few they are.
        """
        circle = np.hypot(*(np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1])) <= ACROSS / 2
        first, second = (half[:, circle] - half[:, circle].mean(1, keepdims=True) for half in self.halves)
        depth = np.sqrt(np.maximum((first * second).mean(1), 0))
        order = np.argsort(depth)
        clear = depth[order][np.searchsorted(np.cumsum(self.sizes[order]), 0.75 * len(self.label))]
        return depth / max(clear, 1e-12)

    def false(self, flat: float = FLAT) -> np.ndarray:
        """The rule (K,) bool: a class is false if its contrast is less than `flat`. It holds if a quarter of the picks
        or more are particles, and none of their views is by itself much fainter.
        """
        return self.contrast < flat


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
    for number in tqdm(range(rounds), "classifying", unit="round", leave=False, disable=None if progress else True):
        step = 2 if number < rounds // 2 else 1
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
            agreement[part] = (found[a, each, s, k] + norm[k] / 2) / np.sqrt(norm[k] + 1e-12)
            offset[part] += step * SHIFTS[s]
            member = sparse.csr_array((np.ones(count, np.float32), (k, each)), shape=(classes, count))
            for m, own in enumerate(c[:, each, s] * np.exp(turn * a)[:, :, None]):
                total[m] += (member @ own).T
        sizes = np.bincount(label, minlength=classes)
        average = np.where(sizes > 0, total / np.maximum(sizes, 1), average).astype(np.complex64)
    rank = np.empty(classes, int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(classes)
    label = rank[label]
    return Classes(label, angle, offset, agreement, _halves(boxes, label, angle, offset, classes))


def _halves(boxes: np.ndarray, label: np.ndarray, angle: np.ndarray, offset: np.ndarray, classes: int) -> np.ndarray:
    """Means (2, K, 49, 49) of every other member of each class, moved and turned upon one another."""
    total = np.zeros((2, classes, 2 * HALF + 1, 2 * HALF + 1))
    for first in range(0, len(boxes), BATCH):
        for k, image in enumerate(windows(boxes[first : first + BATCH], offset[first : first + BATCH]), first):
            cos, sin = np.cos(angle[k]), np.sin(angle[k])
            matrix = np.array([[cos, sin], [-sin, cos]])
            turned = ndimage.affine_transform(image, matrix, HALF - matrix @ (HALF, HALF), order=1, mode="nearest")
            total[k % 2, label[k]] += turned
    sizes = np.stack([np.bincount(label[start::2], minlength=classes) for start in (0, 1)])
    return total / np.maximum(sizes, 1)[:, :, None, None]


@dataclass(frozen=True)
class Sorted:
    """One folder of picks, sorted: micrograph (n,) and centre (n, 2) of each pick, its classes, which of them are false
    (K,), and hit (n,) bool where the truth is known.
    """

    micrograph: np.ndarray
    xy: np.ndarray
    classes: Classes
    false: np.ndarray
    hit: np.ndarray | None


def compare(
    folders: Sequence[Path],
    images: Path,
    out: Path,
    *,
    coords: Path | None = None,
    diameter: Diameter | None = None,
    apix: float | None = None,
    threshold: float | None = None,
    flip: Sequence[str] = (),
    classes: int = 50,
    rounds: int = 15,
    seed: int = 0,
    flat: float = FLAT,
) -> Table:
    """Classify each folder of picks by itself and count false ones; write tables, galleries and kept picks to `out`.

    `flip` names the folders whose rows count from the bottom. With `coords` the same micrographs' true centres stand
    beside. Raises InputError for what cannot be used.
    """
    from tqdm import tqdm

    if len({folder.name for folder in folders}) < len(folders):
        raise InputError("two folders of --picks have the same name")
    if unknown := set(flip) - {folder.name for folder in folders}:
        raise InputError(f"--flip {min(unknown)}: none of the folders of --picks is named so")
    found = {folder.name: formats.read_folder(folder, candidates=threshold is not None) for folder in folders}
    truth = formats.read_folder(coords) if coords else {}
    wanted = truth.keys() if coords else set().union(*found.values())
    files = [path for path in sorted(images.glob("*")) if formats.is_micrograph(path) and formats.stem(path) in wanted]
    if not files:
        raise InputError(f"{images}: none of the micrographs of these picks is in it")
    parts: dict[str, list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]] = {name: [] for name in found}
    for path in tqdm(files, "cutting", unit="micrograph", leave=False, disable=None):
        name, (image, stored) = formats.stem(path), formats.read_micrograph(path)
        across = _across(name, diameter, apix or stored, truth, found)
        here = {folder: picks[name] for folder, picks in found.items() if name in picks}
        for folder, picks in here.items():
            if threshold is not None:
                here[folder] = picks = picks.above(threshold)
            if folder in flip:
                picks.xy[:, 1] = len(image) - picks.xy[:, 1]
        cutouts = cut(image, [picks.xy for picks in here.values()], across)
        for (folder, picks), boxes in zip(here.items(), cutouts, strict=True):
            owner = picking.match(truth[name].xy, picks.xy, across / 2) if truth else np.zeros(len(picks))
            parts[folder].append((name, picks.xy, boxes, owner >= 0))
    results = {}
    for folder, part in parts.items():
        if not part:
            raise InputError(f"{folder}: none of its micrographs is in {images}{f' and {coords}' if coords else ''}")
        names, xy, boxes, hit = zip(*part, strict=True)
        sorted_ = classify(np.concatenate(boxes), classes=classes, rounds=rounds, seed=seed)
        micrograph = np.repeat(names, [len(some) for some in xy])
        known = np.concatenate(hit) if coords else None
        results[folder] = Sorted(micrograph, np.concatenate(xy), sorted_, sorted_.false(flat), known)
        _write(out, folder, results[folder])
    table = comparison(results, len(files), flat)
    write_csv(out / "comparison.csv", table.header, table.rows, overwrite=True)
    return table


def _across(
    name: str, wanted: Diameter | None, apix: float | None, truth: dict[str, formats.Picks],
    found: dict[str, dict[str, formats.Picks]],
) -> float:  # fmt: skip
    """Particle diameter in px: as wanted, else as the truth or any of the picks say."""
    if wanted is not None:
        return in_pixels(wanted, apix)
    known = [picks[name].diameter for picks in (truth, *found.values()) if name in picks]
    across = next((value for value in known if value), None)
    if across is None:
        raise InputError(f"{name}: the particle diameter is not in the files: give --diameter, as 108 (px) or 190A (Å)")
    return across


def comparison(results: dict[str, Sorted], micrographs: int, flat: float) -> Table:
    """Picked, false and accuracy = 1 − false / picked of each folder; where the truth is known the precision too, and
    how often the verdict on a pick's class is that of most of its members.
    """
    header = ["picks", "picked", "classes", "false classes", "false", "accuracy %"]
    header += ["precision %", "verdict right %"] if next(iter(results.values())).hit is not None else []
    rows = []
    for name, result in results.items():
        sizes, false = result.classes.sizes, result.false
        picked, wrong = len(result.xy), int(sizes[false].sum())
        row: list[object] = [name, picked, int((sizes > 0).sum()), int((false & (sizes > 0)).sum()), wrong]
        row.append(f"{100 * (1 - wrong / picked):.1f}")
        if result.hit is not None:
            share = np.bincount(result.classes.label, result.hit, len(sizes)) / np.maximum(sizes, 1)
            row += [f"{100 * result.hit.mean():.1f}", f"{100 * sizes[(share < 0.5) == false].sum() / picked:.1f}"]
        rows.append(row)
    note = (
        "A class is false if its average is flat: what its two halves show alike within a particle's circle deviates by"
        f" less than {flat:g} of what the clearest quarter of the picks reaches."
    )
    return Table(f"2-D classification of picks on {micrographs} micrographs", header, rows, note)


def _write(out: Path, folder: str, result: Sorted) -> None:
    """The gallery, a row for each class and each pick, and the kept picks as .star."""
    from examples.particle_picking import figures

    classes, kept = result.classes, ~result.false[result.classes.label]
    rows: list[list[object]] = []
    for k, (size, contrast, false) in enumerate(zip(classes.sizes, classes.contrast, result.false, strict=True)):
        members = classes.label == k
        agreement = f"{classes.agreement[members].mean():.3f}" if size else ""
        rows.append([k + 1, size, f"{contrast:.3f}", agreement, int(false)])
        if result.hit is not None:
            rows[-1].append(f"{result.hit[members].mean():.3f}" if size else "")
    header = [
        "class",
        "particles",
        "contrast",
        "agreement",
        "false",
        *(["precision"] if result.hit is not None else []),
    ]
    write_csv(out / folder / "classes.csv", header, rows, overwrite=True)
    columns = (classes.label + 1, np.round(np.degrees(classes.angle), 1), np.round(classes.agreement, 3), 1 - kept)
    particles = zip(result.micrograph, *np.round(result.xy, 2).T, *columns, strict=True)
    header = ["micrograph", "x", "y", "class", "angle", "agreement", "false"]
    write_csv(out / folder / "particles.csv", header, particles, overwrite=True)
    for name in np.unique(result.micrograph):
        good = kept & (result.micrograph == name)
        picks = formats.Picks(result.xy[good], classes.agreement[good].astype(float))
        formats.write_star(out / folder / "kept" / f"{name}_autopick.star", picks)
    figures.gallery(classes.averages, classes.sizes, result.false, folder, out / folder / "gallery.png")
