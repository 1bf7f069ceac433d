"""From a protein probability map to particle centres, and from two lists of centres to precision and recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from examples.particle_picking.enhance import WORKING, Enhanced
from examples.particle_picking.formats import Picks

DISC = 0.35  # radius of the disc that stands for a particle, in diameters: neighbours in a crowd stay apart
FLOOR = 0.05  # candidates below this score are kept nowhere: noise


def rim_distance(enhanced: Enhanced) -> np.ndarray:
    """Distance (h, w) in working px of every pixel to the rim of the live image."""
    return ndimage.distance_transform_edt(np.pad(enhanced.live, 1))[1:-1, 1:-1]


def find_picks(
    probability: np.ndarray,
    enhanced: Enhanced,
    *,
    rule: str = "peaks",
    smooth: float = 0.12,
    distance: float = 0.45,
    border: float = 0.5,
) -> Picks:
    """Protein probability (h, w) -> centres in original px, scored by its smoothed value at the peak.

    Rule "peaks": every local maximum, sub-pixel by a parabola through three neighbours in x and in y; its size is that
    of its share of the blob it lies in (see `blob_sizes`). Rule "blobs": see `blobs`. Lengths in particle diameters:
    `smooth` the Gaussian's σ, `distance` the least between two centres (the higher score stays), `border` the least
    from the rim of the live image. All candidates with a score of FLOOR or more are kept: thresholds come later.
    """
    heat = ndimage.gaussian_filter(probability * enhanced.live, smooth * WORKING, mode="constant")
    rows, columns = np.nonzero((heat == ndimage.maximum_filter(heat, 3)) & (heat >= FLOOR))
    xy = np.stack([columns + _vertex(heat, rows, columns, 1), rows + _vertex(heat, rows, columns, 0)], 1)
    score, sizes = heat[rows, columns], blob_sizes(heat, rows, columns)
    if rule == "blobs":
        xy, score, sizes = blobs(heat, rows, columns, xy, sizes)
    return keep_apart(xy, score, sizes, enhanced, distance=distance, border=border)


LEVEL = 0.25  # of the protein probability: what exceeds it is a blob


def blobs(
    heat: np.ndarray, rows: np.ndarray, columns: np.ndarray, xy: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CASSPER's way: connected regions above LEVEL, judged by their area -> centres, scores, diameters in working px.

    A region of 0.3 to 1.7 discs is one particle, its centre the centre of mass, its size that of the disc as large; a
    larger one holds touching particles, as many as it has peaks; a smaller one is noise.
    """
    number, count = ndimage.label(heat > LEVEL)
    owner = number[rows, columns]
    index = np.arange(1, count + 1)
    area = np.bincount(number.ravel(), minlength=count + 1)[1:] / (np.pi * (DISC * WORKING) ** 2)
    one = (area >= 0.3) & (area <= 1.7)
    middle = np.array(ndimage.center_of_mass(heat, number, index)).reshape(-1, 2)[one, ::-1]
    top = np.array(ndimage.maximum(heat, number, index)).reshape(-1)[one]
    split = (owner > 0) & (np.append(False, area > 1.7)[owner])
    return (
        np.concatenate([middle, xy[split]]),
        np.concatenate([top, heat[rows, columns][split]]),
        np.concatenate([np.sqrt(area[one]) * WORKING, sizes[split]]),
    )


def keep_apart(
    xy: np.ndarray,
    score: np.ndarray,
    sizes: np.ndarray,
    enhanced: Enhanced,
    *,
    distance: float = 0.45,
    border: float = 0.5,
) -> Picks:
    """Centres xy (n, 2), scores (n,), diameters (n,) in working px -> the Picks among them, best first.

    Of two nearer than `distance` diameters the higher score stays; those below FLOOR, within `border` diameters of the
    rim of the live image, or on what `enhanced` calls ice, carbon or dirt go.
    """
    h, w = enhanced.image.shape
    rows, columns = np.clip(np.round(xy[:, 1]), 0, h - 1).astype(int), np.clip(np.round(xy[:, 0]), 0, w - 1).astype(int)
    good = (score >= FLOOR) & (rim_distance(enhanced)[rows, columns] >= border * WORKING)
    if enhanced.foreign is not None:
        good &= enhanced.foreign[rows, columns] == 0
    order = np.flatnonzero(good)
    order = order[np.argsort(-score[order], kind="stable")]
    xy, score, sizes = xy[order].astype(float), score[order].astype(float), sizes[order].astype(float)
    keep = np.ones(len(xy), bool)
    if len(xy):
        near = cKDTree(xy).query_ball_point(xy, distance * WORKING)
        for k, others in enumerate(near):
            if keep[k]:
                keep[[j for j in others if j > k]] = False
    unit = float(np.mean(enhanced.scale))
    return Picks(enhanced.to_original(xy[keep]), score[keep], sizes[keep] / unit)


def blob_sizes(heat: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Diameter in working px of the particle at each peak: the disc as large as its part of the blob.

    A blob is what exceeds half of its peak; touching ones are split where the nearest peak changes. The network learnt
    discs of 0.35 diameters' radius, so the disc's diameter is divided by 0.7 to be the particle's.
    """
    if not len(rows):
        return np.zeros(0)
    seeds = np.ones(heat.shape, bool)
    seeds[rows, columns] = False
    number = np.zeros(heat.shape, int)
    number[rows, columns] = np.arange(len(rows))
    away, (y, x) = ndimage.distance_transform_edt(seeds, return_indices=True)
    owner = number[y, x]
    inside = (heat > 0.5 * heat[rows, columns][owner]) & (away < WORKING)
    area = np.bincount(owner[inside], minlength=len(rows))
    return np.sqrt(4 * area / np.pi) / (2 * DISC)


LOG_SIGMA = 0.24  # diameters: of the Gaussian whose Laplacian finds blobs


def log_response(enhanced: Enhanced) -> np.ndarray:
    """The Laplacian of a Gaussian of σ = 0.24 diameters, r in its own standard deviations, as r / (1 + r): (h, w)."""
    response = ndimage.gaussian_laplace(enhanced.image, LOG_SIGMA * WORKING)
    response = np.clip(response / response[enhanced.live].std(), 0, None)
    return response / (1 + response)


def log_picks(enhanced: Enhanced) -> Picks:
    """The classical baseline: dark blobs by the Laplacian of Gaussian, nothing learned."""
    return find_picks(log_response(enhanced), enhanced, smooth=0)


def _vertex(heat: np.ndarray, rows: np.ndarray, columns: np.ndarray, axis: int) -> np.ndarray:
    """Offset (−0.5 .. 0.5) along `axis` of the top of the parabola through a maximum and its two neighbours."""
    padded = np.pad(heat, 1, mode="edge")
    at = [rows + 1, columns + 1]
    low, high = list(at), list(at)
    low[axis], high[axis] = at[axis] - 1, at[axis] + 1
    left, middle, right = padded[tuple(low)], padded[tuple(at)], padded[tuple(high)]
    bend = left - 2 * middle + right
    return np.clip(np.where(bend < 0, (left - right) / (2 * np.minimum(bend, -1e-12)), 0), -0.5, 0.5)


def match(truth: np.ndarray, found: np.ndarray, radius: float) -> np.ndarray:
    """Match centres one to one within `radius`, the nearest pair first.

    truth (n, 2), found (m, 2) -> (m,) int: the index of each found one's true centre, −1 if it has none. Pairs come
    from a k-d tree. (An optimal assignment finds at most a pair more or two in 700 on the micrographs here.)
    """
    owner = np.full(len(found), -1)
    if not len(truth) or not len(found):
        return owner
    pairs = cKDTree(truth).sparse_distance_matrix(cKDTree(found), radius, output_type="coo_matrix")
    order = np.argsort(pairs.data, kind="stable")
    taken = np.zeros(len(truth), bool)
    for t, f in zip(pairs.row[order], pairs.col[order], strict=True):
        if not taken[t] and owner[f] < 0:
            taken[t], owner[f] = True, t
    return owner


@dataclass(frozen=True)
class Score:
    """Counts of one comparison: true picks (hits), all picks, all marked particles."""

    hits: int
    picked: int
    marked: int

    @property
    def precision(self) -> float:
        """hits / picked (0 if nothing was picked)."""
        return self.hits / self.picked if self.picked else 0.0

    @property
    def recall(self) -> float:
        """hits / marked (0 if nothing is marked)."""
        return self.hits / self.marked if self.marked else 0.0

    @property
    def f1(self) -> float:
        """2 P R / (P + R) = 2 hits / (picked + marked)."""
        return 2 * self.hits / (self.picked + self.marked) if self.picked + self.marked else 0.0

    def __add__(self, other: Score) -> Score:
        return Score(self.hits + other.hits, self.picked + other.picked, self.marked + other.marked)


def score(truth: np.ndarray, picks: Picks, radius: float) -> Score:
    """Count one-to-one hits within `radius` px."""
    return Score(int((match(truth, picks.xy, radius) >= 0).sum()), len(picks), len(truth))


@dataclass(frozen=True)
class Curve:
    """Score at each threshold, over one or several micrographs; thresholds ascend."""

    thresholds: np.ndarray
    scores: list[Score]

    @property
    def precision(self) -> np.ndarray:
        """Precision at each threshold."""
        return np.array([s.precision for s in self.scores])

    @property
    def recall(self) -> np.ndarray:
        """Recall at each threshold."""
        return np.array([s.recall for s in self.scores])

    @property
    def f1(self) -> np.ndarray:
        """F1 at each threshold."""
        return np.array([s.f1 for s in self.scores])

    @property
    def average_precision(self) -> float:
        """Σ (R_k − R_{k−1}) · max precision at recall >= R_k, recall ascending: the area under the best-case curve."""
        order = np.argsort(self.recall, kind="stable")
        recall, precision = self.recall[order], self.precision[order]
        best = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.sum(np.diff(recall, prepend=0) * best))

    def best(self) -> float:
        """The threshold of highest F1."""
        return float(self.thresholds[int(np.argmax(self.f1))])


def curve(truths: list[np.ndarray], picks: list[Picks], radius: float, steps: int = 91) -> Curve:
    """Precision and recall of the micrographs together, matched anew at `steps` thresholds from 0.05 to 0.95."""
    thresholds = np.linspace(FLOOR, 1 - FLOOR, steps)
    scores = []
    for threshold in thresholds:
        total = Score(0, 0, 0)
        for truth, found in zip(truths, picks, strict=True):
            total += score(truth, found.above(threshold), radius)
        scores.append(total)
    return Curve(thresholds, scores)
