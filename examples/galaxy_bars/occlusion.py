"""Does the network look at the bar? Hide it under a disc and see; hide the same disc beside the bar and see again.

The talk's test, with two controls it lacks: discs around the galaxy's centre that reach over 25, 50 and 100 % of the
bar; the same discs moved off the bar along its short axis; and the same discs on the centres of unbarred galaxies, for
a disc is a shape too. All are filled alike, with the harmonic function of the colours around them. Where the bar lies
is measured on the picture, by the ellipses of its isophotes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.galaxy_bars.data import SIZE, Galaxies
from minidl import explain
from minidl.explain import cover

Bytes = NDArray[np.uint8]
LogOdds = Callable[[Bytes], NDArray[np.float64]]  # pictures (n, size, size, 3) -> ln(p/(1 - p)) of a bar (n,)
COVERS = (0.25, 0.5, 1.0)  # radius of the disc in half-lengths of the bar
LEVELS = np.geomspace(0.97, 0.08, 40)  # of the isophotes, in units of the centre's light above the sky
ELONGATED, DROP, TWIST = 0.2, 0.85, np.radians(10)


@dataclass
class Bar:
    """A bar in a picture: its centre (column x, row y), half-length and half-width in pixels, angle from x to y."""

    x: float
    y: float
    length: float
    width: float
    angle: float


def measure_bar(image: Bytes) -> Bar:
    """Find the bar by its isophotes: it ends where, going outwards, they stop being elongated alike.  (size, size, 3)

    An ellipse of equal second moments is fitted to the region around the centre brighter than each of 40 levels. The
    bar has the angle and axis ratio of the most elongated ellipse (ellipticity > .2) and ends at the first one beyond
    it that is less elongated by 15 %, or turned by 10°. Without such an end, the most elongated ellipse is the bar.
    """
    ellipses = isophotes(image)
    size = len(image)
    best = None
    for ellipse in ellipses:
        if ellipse.length < size / 16:  # 1.2 arcsec: the seeing makes all round
            continue
        flat = 1 - ellipse.width / ellipse.length
        if best is None or flat > 1 - best.width / best.length:
            best = ellipse
            continue
        most = 1 - best.width / best.length
        turned = abs((ellipse.angle - best.angle + np.pi / 2) % np.pi - np.pi / 2)
        if most > ELONGATED and (flat < DROP * most or turned > TWIST):
            return Bar(best.x, best.y, ellipse.length, best.width / best.length * ellipse.length, best.angle)
    centre = (size - 1) / 2
    return best or Bar(centre, centre, size / 8, size / 16, 0.0)


def isophotes(image: Bytes) -> list[Bar]:
    """The ellipses of the isophotes around the centre, from the brightest outwards to the first that leaves the frame.

    Half-axes 2·√λ of the moments' eigenvalues λ: exact for the region inside an ellipse.
    """
    from scipy import ndimage

    size = len(image)
    grey = ndimage.gaussian_filter(image.mean(-1), 0.7 * size / SIZE)
    rows, columns = np.indices(grey.shape)
    middle = np.abs(np.stack([rows, columns]) - (size - 1) / 2).max(0) < 2
    peak = np.unravel_index(np.argmax(np.where(middle, grey, -1)), grey.shape)
    sky = np.percentile(grey, 5)
    found = []
    for level in sky + LEVELS * max(grey[peak] - sky, 1):
        regions, _ = ndimage.label(grey >= level)
        region = ndimage.binary_fill_holes(regions == regions[peak])
        if not regions[peak] or region.sum() < 12 * (size / SIZE) ** 2:
            continue
        if region[[0, -1]].any() or region[:, [0, -1]].any():
            break
        x, y = columns[region], rows[region]
        (xx, xy), (_, yy) = np.cov(x, y, bias=True) + np.eye(2) / 12  # a pixel is a square, not a point
        mean, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
        half_axes = 2 * np.sqrt(mean + spread), 2 * np.sqrt(mean - spread)
        found.append(Bar(x.mean(), y.mean(), *half_axes, np.arctan2(2 * xy, xx - yy) / 2))
    return found


def beside(bar: Bar, radius: float, size: int) -> tuple[float, float, bool]:
    """Centre (x, y) of the same disc off the bar, and whether the picture holds all of it.

    On the bar's short axis, just clear of the bar; of the two sides, the one with more room.
    """
    away = radius + bar.width
    sides = []
    for sign in (1, -1):
        x, y = bar.x - sign * away * np.sin(bar.angle), bar.y + sign * away * np.cos(bar.angle)
        room = min(x, y, size - 1 - x, size - 1 - y) + 0.5  # to the nearest edge of the picture
        sides.append((room, x, y))
    room, x, y = max(sides)
    return x, y, room >= radius


@dataclass
class Occlusion:
    """Log odds of true positives (n,) before, with a disc on the bar and beside it (3, n); of true negatives (3, m)."""

    rows: NDArray[np.int64]
    bars: list[Bar]
    before: NDArray[np.float64]
    on: NDArray[np.float64]
    off: NDArray[np.float64]
    whole: NDArray[np.bool_]  # whether the picture holds all of the disc beside the bar (3, n)
    unbarred: NDArray[np.float64]  # with a disc on the centre, as large as for some bar
    log_odds: LogOdds


def hide_bars(log_odds: LogOdds, galaxies: Galaxies, before: NDArray[np.float64], seed: int = 0) -> Occlusion:
    """Hide the bar of every true positive, as much beside it, and as much of the centre of every true negative.

    `before` are the galaxies' log odds (n,); `seed` deals the bars' lengths to the true negatives.
    """
    rows = np.flatnonzero((galaxies.labels == 1) & (before >= 0))
    none = galaxies.images[(galaxies.labels == 0) & (before < 0)]
    images = galaxies.images[rows]
    bars = [measure_bar(image) for image in images]
    on, off, whole = (np.zeros((len(COVERS), len(rows)), dtype) for dtype in (float, float, bool))
    unbarred = np.zeros((len(COVERS), len(none)))
    sizes = np.random.default_rng(seed).choice([bar.length for bar in bars], len(none)) if bars else []
    centre = (images.shape[1] - 1) / 2
    for k, share in enumerate(COVERS if len(rows) else ()):
        places = [beside(bar, share * bar.length, images.shape[1]) for bar in bars]
        radii = [share * bar.length for bar in bars]
        whole[k] = [place[2] for place in places]
        on[k] = log_odds(np.stack([cover(i, b.x, b.y, r) for i, b, r in zip(images, bars, radii, strict=True)]))
        off[k] = log_odds(np.stack([cover(i, x, y, r) for i, (x, y, _), r in zip(images, places, radii, strict=True)]))
        if len(none):
            discs = [cover(i, centre, centre, share * r) for i, r in zip(none, sizes, strict=True)]
            unbarred[k] = log_odds(np.stack(discs))
    return Occlusion(rows, bars, before[rows], on, off, whole, unbarred, log_odds)


def occlusion_map(log_odds: LogOdds, image: Bytes, radius: float = 1 / 12, steps: int = 12) -> NDArray[np.float64]:
    """By how much a small disc at each place lowers the log odds of a bar.  (size, size, 3) -> (steps, steps)"""
    channels_first = np.moveaxis(image, -1, 0)[None]
    options = {"radius": radius * len(image), "steps": steps}
    return explain.occlusion(lambda x: log_odds(np.moveaxis(x, 1, -1)), channels_first, **options)[0]


def wilson(count: int, n: int) -> tuple[float, float]:
    """The 68 % interval of a share, count of n: those shares p with |count/n - p| <= √(p·(1 - p)/n).  Wilson 1927"""
    share = count / n
    middle, half = share + 0.5 / n, np.sqrt(share * (1 - share) / n + 0.25 / n**2)
    return max(0.0, float((middle - half) / (1 + 1 / n))), min(1.0, float((middle + half) / (1 + 1 / n)))


def with_interval(count: int, n: int) -> str:
    """A share in per cent with its 68 % interval."""
    low, high = wilson(count, n)
    return f"{100 * count / n:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def flips(test: Occlusion, chosen: Sequence[bool] | NDArray[np.bool_], cover_index: int) -> tuple[int, int, int]:
    """Number of chosen galaxies, and how many of them lose their bar by the disc on it and by the disc off it."""
    chosen = np.asarray(chosen, bool)
    on, off = test.on[cover_index][chosen] < 0, test.off[cover_index][chosen] < 0
    return int(chosen.sum()), int(on.sum()), int(off.sum())
