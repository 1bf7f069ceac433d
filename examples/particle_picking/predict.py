"""Pick particles in files, folders, or a folder that is still filling, and write what other programs read.

`predict.json` in the output folder keeps what was asked and which micrographs are done, so that a run that was
interrupted goes on. A micrograph's files appear all together or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.common import InputError
from examples.particle_picking import formats, network, stacks
from examples.particle_picking.data import Diameter, in_pixels
from examples.particle_picking.enhance import enhance
from minidl.checkpoint import atomic_write

OUTPUTS = {
    "star": "_autopick.star",
    "box": ".box",
    "cbox": ".cbox",
    "txt": ".txt",
    "csv": ".csv",
    "mask": "_mask.png",
    "mask.mrc": "_mask.mrc",
    "stack": "_particles.star",
}
POLL = 2.0  # s between two looks at a folder that is watched


@dataclass(frozen=True)
class Options:
    """How to pick: least score, particle diameter, pixel size in Å, what to write (keys of OUTPUTS), box side in px."""

    threshold: float | None = None
    diameter: Diameter | None = None
    apix: float | None = None
    write: tuple[str, ...] = ("star", "box", "cbox", "mask")
    box: int | None = None


def diameter_px(picker: network.Picker, wanted: Diameter | None, apix: float | None) -> float:
    """Particle diameter in px of an image with `apix` Å/px: what the user says, else what the picker was trained on."""
    trained, trained_apix = picker.meta["diameter"], picker.meta["apix"]
    if wanted is None and trained is None:
        raise InputError("these weights are for particles of any size: give --diameter, as 108 (px) or 190A (Å)")
    if wanted is None:
        return trained * trained_apix / apix if apix and trained_apix else trained
    return in_pixels(wanted, apix)


def predict_one(
    picker: network.Picker, path: Path, out: Path, threshold: float, options: Options, *, overwrite: bool
) -> dict[str, Any]:
    """Pick in one micrograph and write its files -> what predict.json says of it: file, counts, diameter, pixel size.

    The .cbox has every candidate with its score, all other files those of at least `threshold`.
    """
    name = formats.stem(path)
    places = {kind: out / f"{name}{OUTPUTS[kind]}" for kind in options.write}
    if "stack" in places:
        places["mrcs"] = out / f"{name}_particles.mrcs"
    if not overwrite and (taken := [place for place in places.values() if place.exists()]):
        raise InputError(f"{taken[0]} exists already; give --overwrite to replace it, or another --out")
    image, stored = formats.read_micrograph(path)
    apix = options.apix or stored
    if "stack" in places and not apix:
        raise InputError(f"{path}: a stack states its pixel size, which is not in the file: give --apix")
    try:
        across = diameter_px(picker, options.diameter, apix)
        enhanced = enhance(image, across)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    candidates, probability = picker.look(enhanced)
    picks = candidates.above(threshold)
    box = options.box or round(across)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}.") as part:  # all files or none
        mask = network.class_mask(probability, enhanced) if {"mask", "mask.mrc"} & set(options.write) else None
        for kind in options.write:
            place = Path(part) / places[kind].name
            if kind == "stack":
                side, stack = options.box or stacks.default_box(across), places["mrcs"]
                target = {"source": stacks.relative(path), "place": stacks.relative(stack)}
                stacks.write_stack(Path(part) / stack.name, image, picks, side, float(apix or 0), **target)
            elif mask is not None and kind.startswith("mask"):
                formats.write_mask(place, mask, apix)
            else:
                formats.write_coordinates(place, candidates if kind == "cbox" else picks, box)
        for place in places.values():
            os.replace(Path(part) / place.name, place)
    size = None if picks.size is None or not len(picks) else round(float(np.median(picks.size)), 2)
    return {
        "file": str(path), "picks": len(picks), "candidates": len(candidates), "median_size": size,
        "diameter": across, "apix": apix, "box": box,
    }  # fmt: skip


class Journal:
    """predict.json in the output folder: what was asked, and the micrographs that are done."""

    def __init__(self, out: Path, about: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        self.path, self.about = out / "predict.json", about
        self.done: dict[str, dict[str, Any]] = {}
        if self.path.exists() and not (resume or overwrite):
            raise InputError(f"{self.path} exists already: give --resume to go on, or --overwrite to start anew")
        if resume and self.path.exists():
            try:
                saved = json.loads(self.path.read_text(encoding="utf-8"))
                begun, self.done = saved["about"], saved["done"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self.path}: not the journal of a prediction ({error})") from error
            if changed := [key for key in about if begun.get(key) != about[key]]:
                raise InputError(
                    f"{self.path} was begun with another {', '.join(changed)}: repeat that, or --overwrite"
                )

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Note a micrograph as done."""
        self.done[name] = row
        with atomic_write(self.path) as part:
            part.write_text(json.dumps({"about": self.about, "done": self.done}, indent=1) + "\n", encoding="utf-8")


def micrographs(places: Iterable[Path]) -> list[Path]:
    """The files, and for a folder the micrographs in it."""
    found: list[Path] = []
    for place in places:
        found += sorted(p for p in place.iterdir() if formats.is_micrograph(p)) if place.is_dir() else [place]
    return found


def watched(places: Sequence[Path], idle: float | None, poll: float | None = None) -> Iterator[Path]:
    """Yield each micrograph in these folders once it is finished: as large and as old in two looks, `poll` s apart.

    A file that changes later is yielded again. Ends when nothing has happened for `idle` s (None: never).
    """
    seen: dict[Path, tuple[int, int]] = {}
    given: dict[Path, tuple[int, int]] = {}
    active = time.monotonic()
    while True:
        for path in micrographs(places):
            try:
                state = path.stat()
            except FileNotFoundError:  # renamed since the folder was listed
                continue
            now = state.st_size, state.st_mtime_ns
            if seen.get(path) != now:
                seen[path], active = now, time.monotonic()
            elif given.get(path) != now:
                given[path] = now
                yield path
                active = time.monotonic()
        if idle is not None and time.monotonic() - active >= idle:
            return
        time.sleep(POLL if poll is None else poll)


def predict(
    places: Sequence[Path],
    weights: Path,
    out: Path,
    options: Options | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    watch: bool = False,
    watch_for: float | None = None,
) -> int:
    """Pick in every file or folder -> exit code: 0, or 1 if a file failed (said on stderr; the others are done).

    `watch` stays and picks what comes, until Ctrl-C or `watch_for` seconds without anything new. InputError if every
    file failed: nothing is written then; and if `resume` finds a run with other weights or options.
    """
    from tqdm import tqdm

    options = options or Options()
    picker = network.load_picker(weights)
    threshold = picker.threshold if options.threshold is None else options.threshold
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give --out the name of a folder")
    if watch:
        if files := [place for place in places if not place.is_dir()]:
            raise InputError(f"{files[0]}: --watch takes folders")
        queue: Iterable[Path] = watched(places, watch_for)
    else:
        queue = micrographs(places)
        names = [formats.stem(path) for path in queue]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"two micrographs are named {twice[0]}: their results would overwrite each other")
        if not names:
            raise InputError(f"{places[0]}: no micrographs (.mrc, .png, .jpg) in this folder")
    about = {"weights": hashlib.sha256(weights.read_bytes()).hexdigest(), **asdict(options), "threshold": threshold}
    journal = Journal(out, json.loads(json.dumps(about)), resume=resume, overwrite=overwrite)
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    before, failed = len(journal.done), set()
    if before:
        print(f"{before} micrographs were done before", file=sys.stderr)
    with tqdm(queue, "picking", unit="micrograph", disable=None) as bar:
        try:
            for path in bar:
                name = formats.stem(path)
                if name in journal.done:
                    continue
                try:
                    row = predict_one(picker, path, out, threshold, options, overwrite=overwrite)
                except (InputError, OSError, ValueError) as error:
                    failed.add(name)
                    bar.write(f"error: {' '.join(str(error).split())}", file=sys.stderr)
                    continue
                journal.add(name, row)
                failed.discard(name)
                bar.write(
                    f"{path.name}: {row['picks']} particles (of {row['candidates']} candidates)"
                    f" at threshold {threshold:.2f}"
                )
        except KeyboardInterrupt:
            if not watch:
                print(f"{len(journal.done)} micrographs are done: --resume goes on", file=sys.stderr)
                raise
    if failed and not journal.done:
        if new:
            out.rmdir()
        raise InputError(f"none of the {len(failed)} micrographs could be picked: nothing written")
    if "stack" in options.write and journal.done:
        print(f"{stacks.join(out, list(journal.done))} particles in {out / 'particles.star'}")
    total = sum(row["picks"] for row in journal.done.values())
    trained = f"network trained on {picker.meta['kind']} micrographs"
    print(f"{total} particles on {len(journal.done)} micrographs in {out} ({trained})")
    if failed:
        print(f"{len(failed)} of {len(failed) + len(journal.done)} micrographs failed", file=sys.stderr)
    return 1 if failed else 0
