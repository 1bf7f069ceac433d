"""Pick particles in a list of micrographs and write the files that other programs read."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from examples.common import InputError
from examples.particle_picking import formats, network
from examples.particle_picking.data import Diameter, in_pixels
from examples.particle_picking.enhance import enhance


def diameter_px(picker: network.Picker, wanted: Diameter | None, apix: float | None) -> float:
    """Particle diameter in px of an image with `apix` Å/px: what the user says, else what the picker was trained on."""
    trained, trained_apix = picker.meta["diameter"], picker.meta["apix"]
    if wanted is None:
        return trained * trained_apix / apix if apix and trained_apix else trained
    return in_pixels(wanted, apix)


def predict_one(
    picker: network.Picker,
    path: Path,
    out: Path,
    *,
    threshold: float,
    diameter: Diameter | None,
    apix: float | None,
    overwrite: bool,
) -> tuple[int, int]:
    """Write `<name>_autopick.star`, `.box`, `.cbox` and `<name>_mask.png` for one micrograph -> (picks, candidates)."""
    name = formats.stem(path)
    places = [out / f"{name}{end}" for end in ("_autopick.star", ".box", ".cbox", "_mask.png")]
    if not overwrite and (taken := [place for place in places if place.exists()]):
        raise InputError(f"{taken[0]} exists already; give --overwrite to replace it, or another --out")
    image, stored = formats.read_micrograph(path)
    try:
        across = diameter_px(picker, diameter, apix or stored)
        enhanced = enhance(image, across)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    candidates, probability = picker.look(enhanced)
    picks = candidates.above(threshold)
    box = round(across)
    mask = network.class_mask(probability, enhanced)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}.") as part:  # all four files or none
        star, boxes, cbox, classes = (Path(part) / place.name for place in places)
        formats.write_star(star, picks)
        formats.write_box(boxes, picks, box)
        formats.write_cbox(cbox, candidates, box)
        formats.write_mask(classes, mask)
        for place in places:
            os.replace(Path(part) / place.name, place)
    return len(picks), len(candidates)


def predict(
    files: Sequence[Path],
    weights: Path,
    out: Path,
    *,
    threshold: float | None = None,
    diameter: Diameter | None = None,
    apix: float | None = None,
    overwrite: bool = False,
) -> int:
    """Pick in every file -> exit code: 0, or 1 if a file failed (said on stderr; the others are done).

    InputError if every file failed: nothing is written then.
    """
    from tqdm import tqdm

    picker = network.load_picker(weights)
    names = [formats.stem(path) for path in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two micrographs are named {twice[0]}: their results would overwrite each other")
    limit = picker.threshold if threshold is None else threshold
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give --out the name of a folder")
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    with tqdm(files, "picking", unit="micrograph", disable=None) as bar:
        for path in bar:
            try:
                picks, candidates = predict_one(
                    picker, path, out, threshold=limit, diameter=diameter, apix=apix, overwrite=overwrite
                )
                bar.write(f"{path.name}: {picks} particles (of {candidates} candidates) at threshold {limit:.2f}")
            except (InputError, OSError, ValueError) as error:
                failed += 1
                bar.write(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    if failed == len(files):
        if new:
            out.rmdir()
        raise InputError(f"none of the {failed} micrographs could be picked: nothing written")
    print(f"{len(files) - failed} micrographs in {out} (network trained on {picker.meta['kind']} micrographs)")
    if failed:
        print(f"{failed} of {len(files)} micrographs failed", file=sys.stderr)
    return 1 if failed else 0
