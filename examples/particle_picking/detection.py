"""Detection, crYOLO's way: for each cell of a coarse grid a network says whether a particle's centre is near, where it
is, and how large the particle is.
"""

from __future__ import annotations

import numpy as np

import minidl
from examples.particle_picking import formats, picking
from examples.particle_picking.crops import IGNORE
from examples.particle_picking.enhance import WORKING, Enhanced
from examples.particle_picking.network import Network, with_foreign
from minidl import functional as F
from minidl import nn

CELL = 4  # working px: side of a grid cell, 2/9 of a particle
NEAR = 0.15  # diameters: σ of the Gaussian around a centre that is the objectness to be learned
REACH = 0.35  # diameters: cells nearer to a centre learn offset and size


class GridNet(nn.Module):
    """Convolutions down to an eighth of the size, and back to a quarter for fine places.

    x (N, 1, H, W) -> (N, 4, H/4, W/4): objectness (logit), offset x and y in cells, log of the diameter in units of
    WORKING. Redmon et al. 2016 (YOLO); Wagner et al. 2019 (crYOLO).
    """

    def __init__(self, width: int = 12) -> None:
        a, b, c, d = width, 2 * width, 4 * width, 8 * width
        self.fine = nn.Sequential(
            *_block(1, a), *_block(a, a), nn.MaxPool2d(2), *_block(a, b), *_block(b, b), nn.MaxPool2d(2),
            *_block(b, c), *_block(c, c),
        )  # fmt: skip
        self.coarse = nn.Sequential(
            nn.MaxPool2d(2), *_block(c, d), *_block(d, d), nn.ConvTranspose2d(d, c, 2, stride=2)
        )
        self.head = nn.Sequential(*_block(2 * c, c), nn.Conv2d(c, 4, 1))

    def forward(self, x: minidl.Tensor) -> minidl.Tensor:
        """Four numbers for every cell."""
        fine = self.fine(x)
        return self.head(F.concatenate([fine, self.coarse(fine)], 1))  # type: ignore[no-any-return]


def _block(a: int, b: int) -> list[nn.Module]:
    """Convolution 3x3, batch norm, ReLU."""
    return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]


def cell_targets(points: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, ...]:
    """What the grid should say: points (n, 3: x, y, diameter), classes (h, w) -> targets (4, gh, gw), weights (2, gh,
    gw).

    Targets: objectness exp(−r²/2σ²) of the nearest centre, offset to it in cells, log size. Weights: where objectness
    counts (labelled cells), where offset and size do (cells near a centre).
    """
    h, w = (n // CELL for n in classes.shape)
    yy, xx = np.mgrid[:h, :w].astype(np.float32) * CELL + (CELL - 1) / 2  # centres of the cells, px
    target, near = np.zeros((4, h, w), np.float32), np.full((h, w), np.inf, np.float32)
    for x, y, diameter in points:
        reach = diameter  # px
        rows = slice(max(0, int((y - reach) / CELL)), max(0, int((y + reach) / CELL) + 1))
        columns = slice(max(0, int((x - reach) / CELL)), max(0, int((x + reach) / CELL) + 1))
        dx, dy = x - xx[rows, columns], y - yy[rows, columns]
        r = np.hypot(dx, dy) / diameter
        closer = r < near[rows, columns]
        near[rows, columns] = np.minimum(r, near[rows, columns])
        mine = (dx / CELL, dy / CELL, np.full_like(dx, np.log(diameter / WORKING)))
        for k, field in enumerate(mine, 1):
            target[k, rows, columns] = np.where(closer, field, target[k, rows, columns])
    target[0] = np.exp(-0.5 * (near / NEAR) ** 2)
    known = classes[CELL // 2 :: CELL, CELL // 2 :: CELL][:h, :w] != IGNORE
    return target, np.stack([known, known & (near < REACH)]).astype(np.float32)


class Detection(Network):
    """The grid network as a picker."""

    method, label, step = "detection", "minidl grid detector", 8

    def __init__(self, width: int = 12) -> None:
        super().__init__(width=width)
        self.model = GridNet(width)

    def target(self, points: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Targets and weights of the crop's cells."""
        return cell_targets(points, classes)

    def loss(self, batch: tuple[np.ndarray, ...]) -> minidl.Tensor:
        """Cross-entropy of the objectness, and the squared errors of offset and size near centres."""
        images, target, weight = batch
        said = self.model(minidl.Tensor(images))
        known, near = weight[:, 0], weight[:, 1:]
        seen = F.binary_cross_entropy_with_logits(said[:, 0], target[:, 0], known, reduction="sum", pos_weight=4.0)
        error = (said[:, 1:] - minidl.Tensor(target[:, 1:])) * minidl.Tensor(near)
        return seen / max(float(known.sum()), 1.0) + 0.1 * (error * error).sum() / max(float(near.sum()), 1.0)

    def look(self, enhanced: Enhanced) -> tuple[formats.Picks, np.ndarray]:
        """Candidates with their sizes, and a map (4, h, w): objectness as protein, the rest background."""
        h, w = enhanced.image.shape
        padded = np.pad(enhanced.image, ((0, -h % self.step), (0, -w % self.step)), mode="symmetric")
        logit, dx, dy, size = self.run(padded[None])
        seen = 1 / (1 + np.exp(-logit))
        gy, gx = np.mgrid[: logit.shape[0], : logit.shape[1]] * CELL + (CELL - 1) / 2
        xy = np.stack([gx + dx.clip(-2, 2) * CELL, gy + dy.clip(-2, 2) * CELL], -1).reshape(-1, 2)
        sizes = WORKING * np.exp(size.clip(-1, 1)).ravel()
        protein = np.repeat(np.repeat(seen, CELL, 0), CELL, 1)[:h, :w].astype(np.float32)
        none = np.zeros_like(protein)
        found = picking.keep_apart(xy, seen.ravel(), sizes, enhanced)
        return found, with_foreign(np.stack([1 - protein, protein, none, none]), enhanced)
