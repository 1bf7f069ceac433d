"""From labelled micrographs to what a network learns from: random crops, turned, stretched, blurred, made noisier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from examples.common import InputError
from examples.particle_picking import CLASSES, formats, picking, simulate
from examples.particle_picking.data import Collection, Entry, truth
from examples.particle_picking.enhance import WORKING, Enhanced, enhance
from minidl import data

IGNORE = 255
CROP = 160  # px: side of a training crop, nine particles across


@dataclass(frozen=True)
class Prepared:
    """A labelled micrograph: its name, enhanced image, true centres xy (n, 2) and `diameter` in original px.

    `classes` (h, w) uint8 in working px: 2 ice, 3 carbon, IGNORE where nobody marked, else 0; the particles are in xy.
    """

    entry: Entry
    enhanced: Enhanced
    xy: np.ndarray
    diameter: float
    classes: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """Centres and diameter (n, 3) in working px."""
        centres = self.enhanced.to_working(self.xy)
        return np.column_stack([centres, np.full(len(centres), float(WORKING))])

    @property
    def label(self) -> np.ndarray:
        """Class of every working pixel (h, w) int64: discs at the centres are protein."""
        return discs(self.points, self.classes)


def discs(points: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Draw a disc of 0.35 diameters at each of `points` (n, 3: x, y, diameter) as protein -> (h, w) int64.

    It covers ice and carbon, never what is not labelled.
    """
    label = classes.astype(np.int64)
    for x, y, diameter in points:
        reach = picking.DISC * diameter
        top, left = max(0, int(y - reach)), max(0, int(x - reach))
        window = label[top : max(0, int(y + reach) + 2), left : max(0, int(x + reach) + 2)]
        yy, xx = np.ogrid[: window.shape[0], : window.shape[1]]
        window[(np.hypot(yy + top - y, xx + left - x) <= reach) & (window != IGNORE)] = 1
    return label


def marked_classes(enhanced: Enhanced, mask: np.ndarray | None) -> np.ndarray:
    """`classes` of a Prepared from a mask (H, W) at full size, or without one.

    Within half a particle of the rim nothing is labelled: particles there are not marked.
    """
    h, w = enhanced.image.shape
    classes = np.zeros((h, w), np.uint8)
    if mask is not None:
        rows, columns = ((np.arange(n) / s).astype(int) for n, s in zip((h, w), enhanced.scale, strict=True))
        coarse = mask[np.ix_(np.minimum(rows, mask.shape[0] - 1), np.minimum(columns, mask.shape[1] - 1))]
        classes[coarse == 2] = 2
        classes[coarse == 3] = 3
    classes[picking.rim_distance(enhanced) < 0.5 * WORKING] = IGNORE
    return classes


def prepare(collection: Collection, entry: Entry) -> Prepared:
    """Read, enhance and label one micrograph; raises InputError if its centres or mask are those of another size."""
    image, _ = formats.read_micrograph(entry.image)
    tall, wide = image.shape
    enhanced = enhance(image, collection.diameter)
    xy = truth(entry)
    outside = int(((xy < -0.5) | (xy > (wide - 0.5, tall - 0.5))).any(1).sum())
    if outside > len(xy) / 2:
        raise InputError(
            f"{entry.coords}: {outside} of {len(xy)} centres lie outside {wide}x{tall} px: another binning?"
        )
    mask = formats.read_mask(entry.semantic) if entry.semantic else None
    if mask is not None and mask.shape != image.shape:
        raise InputError(
            f"{entry.semantic}: {mask.shape[1]}x{mask.shape[0]} px, but its micrograph is {wide}x{tall} px"
        )
    return Prepared(entry, enhanced, xy, collection.diameter, marked_classes(enhanced, mask))


def simulated(count: int, seed: int, progress: bool = True) -> list[Prepared]:
    """`count` simulated micrographs of random molecules, enhanced and labelled, no file written."""
    from pathlib import Path

    from tqdm import tqdm

    across, made = 36.0, []
    streams = np.random.default_rng([seed, 10017]).spawn(count)
    for k, rng in enumerate(tqdm(streams, "simulating", leave=False, disable=None if progress else True)):
        field = simulate.random_micrograph(rng, across=across)
        enhanced = enhance(field.counts.astype(np.float32), across)
        entry = Entry(f"random {k}", Path("simulated"), None, None, {})
        made.append(Prepared(entry, enhanced, field.xy, across, marked_classes(enhanced, field.mask)))
    return made


Target = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]  # (points, classes) of a crop -> what to learn


class Crops(data.Dataset):
    """`count` random crops; `cut` takes each from one of the micrographs, all equally likely."""

    def __init__(self, prepared: Sequence[Prepared], count: int, side: int, target: Target) -> None:
        self.prepared, self.count, self.side, self.target = prepared, count, side, target
        self.points = [item.points for item in prepared]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int]:
        return (index,)

    def cut(self, sample: tuple[int], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """A random crop -> image (1, side, side) float32 and the targets.

        Turned by quarters and mirrored; every other crop by any angle and stretched by 0.8 to 1.25; contrast and
        brightness changed; half of the crops blurred and made noisier.
        """
        which, side = int(rng.integers(len(self.prepared))), self.side
        item, points = self.prepared[which], self.points[which]
        turn = np.pi / 2 * int(rng.integers(4))
        zoom = 1.0
        if rng.random() < 0.5:
            turn, zoom = rng.uniform(0, 2 * np.pi), float(np.exp(rng.uniform(-0.22, 0.22)))
        back = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).round(12) / zoom
        if rng.random() < 0.5:
            back = back @ np.diag([1.0, -1.0])
        centre = (side - 1) / 2
        for _ in range(100):  # until a tenth of the crop is labelled
            corner = np.array([rng.integers(n - side + 1) for n in item.classes.shape])
            offset = corner + centre - back @ (centre, centre)  # (row, column) in the micrograph of the crop's (0, 0)
            classes = ndimage.affine_transform(item.classes, back, offset, (side, side), order=0, cval=IGNORE)
            if (classes != IGNORE).mean() > 0.1:
                break
        image = ndimage.affine_transform(item.enhanced.image, back, offset, (side, side), order=1)
        rows_columns = (points[:, 1::-1] - offset) @ np.linalg.inv(back).T
        points = np.column_stack([rows_columns[:, ::-1], points[:, 2] * zoom])
        points = points[((points[:, :2] > -WORKING) & (points[:, :2] < side + WORKING)).all(1)]
        image = image * rng.uniform(0.8, 1.25) + rng.normal(0, 0.2)
        if rng.random() < 0.5:
            blurred = ndimage.gaussian_filter(image, rng.uniform(0, 1.2))
            noise = rng.uniform(0, 1)
            image = (blurred + noise * rng.normal(size=image.shape)) / np.hypot(1, noise)
        return np.ascontiguousarray(image, np.float32)[None], *self.target(points, classes)


def tiles(prepared: Sequence[Prepared], side: int, target: Target) -> data.TensorDataset:
    """Every micrograph cut into crops side by side, unchanged, for validation."""
    samples = []
    for item in prepared:
        points = item.points
        for y in range(0, item.classes.shape[0] - side + 1, side):
            for x in range(0, item.classes.shape[1] - side + 1, side):
                place = np.s_[y : y + side, x : x + side]
                samples.append((item.enhanced.image[place][None], *target(points - (x, y, 0), item.classes[place])))
    return data.TensorDataset(*(np.stack(field) for field in zip(*samples, strict=True)))


def class_weights(prepared: Sequence[Prepared]) -> np.ndarray:
    """Weight 1/√frequency of each class (4,), at most 10 times background's, mean 1 over pixels; 0 if unlabelled."""
    counts = np.zeros(len(CLASSES))
    for item in prepared:
        label = item.label
        counts += np.bincount(label[label != IGNORE], minlength=len(CLASSES))
    share = counts / max(counts.sum(), 1)
    weight = np.where(share > 0, np.sqrt(share[0] / np.maximum(share, 1e-12)), 0).clip(0, 10)
    return (weight / max((weight * share).sum(), 1e-12)).astype(np.float32)
