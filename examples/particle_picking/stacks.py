"""Particle images for RELION: boxes cut out, normalised, in one .mrcs stack a micrograph with its .star.

RELION's own conventions (relion_preprocess): the pixel that holds a centre, its position rounded down, becomes pixel
box/2 of the box (0 the first); beyond the rim the nearest pixel inside is repeated; background is what lies outside a
circle of 0.75 boxes; a plane fitted to it is taken off, its deviation becomes 1, and particles are made white.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.common import InputError
from examples.particle_picking import formats
from examples.particle_picking.formats import Picks


def extract(image: np.ndarray, picks: Picks, box: int) -> np.ndarray:
    """Normalised boxes (n, box, box) float32 of the picks, white particles on a background of mean 0, deviation 1."""
    first = np.floor(picks.xy).astype(int) - box // 2
    steps = np.arange(box)
    rows = (first[:, 1, None] + steps).clip(0, image.shape[0] - 1)
    columns = (first[:, 0, None] + steps).clip(0, image.shape[1] - 1)
    boxes = image[rows[:, :, None], columns[:, None, :]].astype(np.float32)
    y, x = np.mgrid[:box, :box] - box // 2
    outside = np.hypot(y, x) > 0.375 * box
    terms = np.stack([y, x, np.ones_like(y)], -1).astype(np.float32)
    plane = np.linalg.lstsq(terms[outside], boxes[:, outside].T, rcond=None)[0]
    boxes -= np.moveaxis(terms @ plane, -1, 0)
    return -boxes / (boxes[:, outside].std(1)[:, None, None] + 1e-12)


def write_stack(
    path: Path, image: np.ndarray, picks: Picks, box: int, apix: float, *, source: Path, place: Path
) -> None:
    """Write the stack `path` (.mrcs) and beside it the .star that names its images as 000001@`place`.

    Picks outside the micrograph are left out. Raises InputError for an odd box, which RELION refuses.
    """
    if box % 2:
        raise InputError(f"--box {box}: RELION takes boxes of even side only")
    inside = ((picks.xy >= 0) & (picks.xy < image.shape[::-1])).all(1)
    picks = picks[inside]
    boxes = (
        extract(image, picks, box) if len(picks) else np.zeros((1, box, box), np.float32)
    )  # MRC knows no empty stack
    formats.write_mrc(path, boxes, apix, "particles, normalised, white")
    rows = [
        f"{x:12.6f} {y:12.6f} {-999.0 if np.isnan(s) else s:12.6f} {k:06d}@{place.as_posix()} {source.as_posix()} 1"
        for k, ((x, y), s) in enumerate(zip(picks.xy, picks.score, strict=True), 1)
    ]
    write_particles(path.with_suffix(".star"), rows, box, apix)


LABELS = ("CoordinateX", "CoordinateY", "AutopickFigureOfMerit", "ImageName", "MicrographName", "OpticsGroup")


def write_particles(path: Path, rows: Sequence[str], box: int, apix: float) -> None:
    """Write RELION 3.1+ particles: one optics group, of pixel size and box, and rows of LABELS.

    Voltage and aberration are not known here, so RELION must be told, or classify without CTF correction.
    """
    optics = ("OpticsGroupName", "OpticsGroup", "ImagePixelSize", "ImageSize", "ImageDimensionality")
    lines = ["", "# version 30001", "", "data_optics", "", "loop_"]
    lines += [f"_rln{label} #{k}" for k, label in enumerate(optics, 1)]
    lines += [f"opticsGroup1 1 {apix:.6f} {box} 2", "", "", "# version 30001", "", "data_particles", "", "loop_"]
    lines += [f"_rln{label} #{k}" for k, label in enumerate(LABELS, 1)]
    formats.write_lines(path, [*lines, *rows, ""])


def join(out: Path, names: Sequence[str]) -> int:
    """Write `out`/particles.star of all stacks of these micrographs -> number of particles."""
    rows: list[str] = []
    optics: dict[str, list[str]] = {}
    for name in names:
        blocks = formats.parse_star((out / f"{name}_particles.star").read_text(encoding="utf-8"), name)
        columns = [blocks["particles"][f"rln{label}"] for label in LABELS]
        if optics and optics != blocks["optics"]:
            raise InputError(
                f"{out}: stacks of different pixel or box sizes cannot share one particles.star; give --apix, --box"
            )
        optics = blocks["optics"]
        rows += [" ".join(row) for row in zip(*columns, strict=True)]
    write_particles(out / "particles.star", rows, int(optics["rlnImageSize"][0]), float(optics["rlnImagePixelSize"][0]))
    return len(rows)


def default_box(diameter: float) -> int:
    """1.5 diameters, to the next even number."""
    return 2 * int(np.ceil(0.75 * diameter))


def relative(path: Path) -> Path:
    """A path as RELION wants it, from the folder it runs in, if it lies below that."""
    return Path(os.path.relpath(path)) if path.resolve().is_relative_to(Path.cwd()) else path
