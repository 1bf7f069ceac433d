"""Galaxies in: pictures and labels from a zip, folders or single files, JPEG, PNG or FITS, and the fixed split.

Everything becomes an RGB picture of 64 x 64 bytes, the network's field (or another `size`). A picture of that size is
taken as it is; of any other, the largest central square is resampled (bicubic, antialiased), or, where the pixel scale
is told, the central 19.2 arcsec. FITS bands become a colour picture by the asinh composite of Lupton et al. 2004.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.common import InputError

SIZE = 64  # pixels across the network's field
FIELD = 19.2  # arcsec across it, in the training pictures
CLASSES = ("unbarred", "barred")  # label 0, 1
PICTURES = (".jpeg", ".jpg", ".png")
FITS = (".fits", ".fit", ".fits.gz", ".fit.gz", ".fz")
PARTS = ("train", "validation", "test")
FOLDS = 5  # equal parts of the sample: three to train, one to validate, one to test
Bytes = NDArray[np.uint8]
REMEDY = "make galaxies with `python -m examples.galaxy_bars simulate --out DIR`"


@dataclass
class Galaxies:
    """Labelled pictures (n, size, size, 3), labels (n,) 1 barred 0 unbarred, and columns of numbers (NaN: unknown)."""

    files: list[str]
    images: Bytes
    labels: NDArray[np.int64]
    columns: dict[str, NDArray[np.float64]]
    kind: str  # "real" or "simulated"
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Galaxies:
        """The galaxies of some rows."""
        files = [str(name) for name in np.array(self.files, dtype=object)[rows]]
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Galaxies(files, self.images[rows], self.labels[rows], columns, self.kind)


# One picture


def read_image(source: Path | bytes, name: str, pixel_scale: float | None = None, size: int = SIZE) -> Bytes:
    """Read one galaxy from a path or from bytes -> RGB (size, size, 3); InputError says what is wrong with `name`."""
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error
    if not content:
        raise InputError(f"{name}: the file is empty")
    decode = _decode_fits if name.lower().endswith(FITS) else _decode_picture
    rgb = decode(content, name)
    if min(rgb.shape[:2]) < 16:
        raise InputError(f"{name}: {rgb.shape[1]} x {rgb.shape[0]} pixels is too small for a galaxy, 16 x 16 at least")
    if rgb.min() == rgb.max():
        raise InputError(f"{name}: all pixels are equal, there is nothing in this picture")
    if np.median(rgb.max(-1)) < 1 and np.median(_centre(rgb).max(-1)) < 1:
        raise InputError(f"{name}: black, centre included: an error tile, not a galaxy")
    return to_field(rgb, name, pixel_scale, size)


def _centre(rgb: Bytes) -> Bytes:
    """The central quarter of a picture's width and height."""
    height, width = rgb.shape[:2]
    return rgb[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8]


def to_field(rgb: Bytes, name: str = "picture", pixel_scale: float | None = None, size: int = SIZE) -> Bytes:
    """Cut the central square (19.2 arcsec, given arcsec per pixel), resample it.  (h, w, 3) -> (size, size, 3)"""
    from PIL import Image

    height, width = rgb.shape[:2]
    side = min(height, width)
    if pixel_scale is not None:
        wanted = round(FIELD / pixel_scale)
        if not 16 <= wanted <= side:
            raise InputError(
                f"{name}: {width} x {height} pixels of {pixel_scale:g} arcsec cannot give the field of {FIELD} arcsec "
                f"({wanted} pixels, between 16 and the picture's side)"
            )
        side = wanted
    top, left = (height - side) // 2, (width - side) // 2
    square = rgb[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))


def _decode_picture(content: bytes, name: str) -> Bytes:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size, palettes, broken EXIF: nothing the user could act on
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
                image.load()
                if image.mode.startswith("I"):  # 16-bit grey PNG
                    return np.repeat((np.asarray(image) // 257).astype(np.uint8)[..., None], 3, axis=2)
                return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "neither JPEG nor PNG" if "cannot identify" in str(error) else f"damaged or truncated ({error})"
        raise InputError(f"{name}: {reason}") from error


def _decode_fits(content: bytes, name: str) -> Bytes:
    return colour_picture(fits_bands(content, name)[0], name)


def fits_bands(content: bytes, name: str) -> tuple[NDArray[np.float64], Any]:
    """The bands g, r, i of a FITS file (3, h, w), and the header of the first; one image stands for all three."""
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning

    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)  # astropy unpacks files, not bytes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)  # old headers break the standard harmlessly
            warnings.filterwarnings("error", message=".*truncated.*")
            with fits.open(io.BytesIO(content), memmap=False) as hdus:
                found = [hdu for hdu in hdus if hdu.is_image and hdu.data is not None and hdu.data.size > 1]
                planes = {str(hdu.name).strip().lower(): hdu for hdu in found}
                found = [planes[band] for band in "gri"] if all(band in planes for band in "gri") else found
                images = [np.asarray(hdu.data) for hdu in found]
                header = found[0].header if found else None
    except Exception as error:  # astropy raises nearly anything on a damaged file
        raise InputError(f"{name}: not a FITS image or truncated ({' '.join(str(error).split())[:120]})") from error
    if not images:
        raise InputError(f"{name}: no image in this FITS file")
    shapes = [image.shape for image in images]
    if images[0].ndim == 3 and 3 in (images[0].shape[0], images[0].shape[2]):
        cube = images[0] if images[0].shape[0] == 3 else np.moveaxis(images[0], 2, 0)
    elif len(images) >= 3 and shapes[0] == shapes[1] == shapes[2] and len(shapes[0]) == 2:
        cube = np.stack(images[:3])
    elif len(images) == 1 and images[0].ndim == 2:
        cube = np.repeat(images[0][None], 3, axis=0)
    else:
        raise InputError(f"{name}: expected one image (h, w), one cube (3, h, w) or three images, found {shapes}")
    return np.ascontiguousarray(cube, dtype=np.float64), header  # FITS is big-endian


def colour_picture(bands: NDArray[np.float64], name: str) -> Bytes:
    """The composite of g, r, i in any unit, at most a tenth of it NaN.   (3, h, w) -> (h, w, 3), upside down"""
    good = np.isfinite(bands)
    if good.mean() < 0.9:
        raise InputError(f"{name}: {100 * (1 - good.mean()):.0f} % of the pixels are NaN or infinite")
    if bands[good].min() == bands[good].max():
        raise InputError(f"{name}: all pixels are equal, there is nothing in this picture")
    bands = bands / np.abs(bands[good]).max()  # whatever the unit: neither 1e-33 nor 1e38 leaves float32
    return lupton(np.where(good, bands, np.median(bands[good])).astype(np.float32))


def lupton(bands: NDArray[np.float32]) -> Bytes:
    """Colour picture of the bands g, r, i in any unit (3, h, w) -> (h, w, 3), by astropy's make_lupton_rgb(i, r, g).

    The sky (the 5th percentile of each band) is subtracted and the 99.8th percentile of the mean band becomes 1; then
    the asinh of minidl's own simulated pictures. The first row of a FITS image is the bottom row of the picture.
    """
    from astropy.visualization import make_lupton_rgb

    from examples.galaxy_bars.simulate import SOFTENING, STRETCH, WEIGHTS

    bands = bands[:, ::-1] - np.percentile(bands, 5, axis=(1, 2))[:, None, None].astype(np.float32)
    bright = np.percentile(bands.mean(0), 99.8)
    g, r, i = bands / max(float(bright), 1e-30) * WEIGHTS[:, None, None]
    with np.errstate(invalid="ignore"):  # astropy divides 0 by 0 in the dark pixels, then drops them
        return make_lupton_rgb(i, r, g, stretch=STRETCH, Q=SOFTENING)


# A sample


def read_sample(folder: Path, progress: Callable[[Iterable[str]], Iterable[str]] = iter, size: int = SIZE) -> Galaxies:
    """Read the galaxies of a folder as pictures of `size` pixels; `.skipped` lists those that cannot be read.

    The folder holds `labels*.csv` (columns file, label, any numbers) with the pictures beside it or in a zip, which
    is read in place; or just the folders `barred` and `unbarred`. The labels of a table go before the names of
    folders.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; {REMEDY}")
    tables, zips = sorted(folder.glob("labels*.csv")), sorted(folder.glob("*.zip"))
    if len(tables) > 1:
        raise InputError(f"{folder} holds several tables of labels ({', '.join(t.name for t in tables)}): keep one")
    rows = _read_table(tables[0]) if tables else _list_folders(folder)
    if not rows:
        raise InputError(
            f"no galaxies in {folder}: expected labels*.csv, or pictures in barred/ and unbarred/; {REMEDY}"
        )
    kind = "simulated" if (folder / "simulated.json").exists() else "real"
    members: dict[str, zipfile.ZipFile] = {}
    archives = []
    try:
        for path in zips:
            archives.append(zipfile.ZipFile(path))
            members.update(dict.fromkeys(archives[-1].namelist(), archives[-1]))
        return _read_rows(folder, rows, members, kind, progress, size)
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{zips[len(archives)] if len(archives) < len(zips) else folder}: damaged zip ({error})"
        ) from error
    finally:
        for archive in archives:
            archive.close()


def _read_rows(
    folder: Path,
    rows: list[dict[str, str]],
    members: dict[str, zipfile.ZipFile],
    kind: str,
    progress: Callable[[Iterable[str]], Iterable[str]],
    size: int,
) -> Galaxies:
    images, kept, skipped = [], [], []
    for row, name in zip(rows, progress([row["file"] for row in rows]), strict=True):
        try:
            if name in members:
                try:
                    content: Path | bytes = members[name].read(name)
                except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
                    raise InputError(f"{name}: cannot be read from the zip ({error})") from error
            else:
                content = folder / name
            images.append(read_image(content, name, size=size))
            kept.append(row)
        except InputError as error:
            skipped.append(str(error))
    if not kept:
        raise InputError(f"none of the {len(rows)} galaxies of {folder} can be read; the first: {skipped[0]}")
    numbers = [c for c in kept[0] if c not in ("file", "label") and all(_number(row[c]) is not None for row in kept)]
    return Galaxies(
        files=[row["file"] for row in kept],
        images=np.stack(images),
        labels=np.array([CLASSES.index(row["label"]) for row in kept]),
        columns={name: np.array([_number(row[name]) for row in kept], float) for name in numbers},
        kind=kind,
        skipped=skipped,
    )


def _number(text: str | None) -> float | None:
    """The number a cell holds, NaN for an empty one, None for a word."""
    try:
        return float(text) if text else float("nan")
    except ValueError:
        return None


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV table ({error})") from error
    seen: set[str] = set()
    for line, row in enumerate(rows, start=2):
        row.pop(None, None)  # cells beyond the header's
        name, label = row.get("file"), row.get("label")
        if not name or label not in CLASSES:
            raise InputError(
                f"{path}, line {line}: columns file and label (barred or unbarred) wanted, got {name!r}, {label!r}"
            )
        if name in seen:
            raise InputError(f"{path}, line {line}: {name} is listed twice")
        seen.add(name)
    return rows


def _list_folders(folder: Path) -> list[dict[str, str]]:
    return [
        {"file": path.relative_to(folder).as_posix(), "label": label}
        for label in ("barred", "unbarred")
        for path in sorted((folder / label).glob("*"))
        if path.name.lower().endswith((*PICTURES, *FITS))
    ]


def list_pictures(inputs: Iterable[Path]) -> list[Path]:
    """The files themselves, and of folders all pictures and FITS images below them, sorted."""
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.name.lower().endswith((*PICTURES, *FITS)))
            if not below:
                raise InputError(f"no JPEG, PNG or FITS images in {path}")
            found += below
        else:
            found.append(path)
    return found


# What is measured on the picture, and the split


def edge_brightness(images: Bytes) -> NDArray[np.float64]:
    """Median grey level, 0..255, of the outermost ring of pixels: above 40 the galaxy fills the frame.     -> (n,)"""
    grey = images.mean(-1)
    return np.median(np.concatenate([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], axis=1), axis=1)


def axis_ratio(images: Bytes) -> NDArray[np.float64]:
    """Square root of the ratio of the second moments of the light above the edge's brightness.  (n, 64, 64, 3) -> (n,)

    Moments within a circle of the frame's half-width, of grey levels less twice the edge's (at least 10).
    """
    grey = images.mean(-1)
    light = np.clip(grey - np.maximum(2 * edge_brightness(images), 10)[:, None, None], 0, None)
    y, x = np.indices(grey.shape[1:]) - (grey.shape[1] - 1) / 2
    light = light * (np.hypot(x, y) < grey.shape[1] / 2)
    total = light.sum((1, 2)) + 1e-9
    mx, my = (light * x).sum((1, 2)) / total, (light * y).sum((1, 2)) / total
    xx = (light * x * x).sum((1, 2)) / total - mx * mx
    yy = (light * y * y).sum((1, 2)) / total - my * my
    xy = (light * x * y).sum((1, 2)) / total - mx * my
    spread = np.hypot((xx - yy) / 2, xy)
    mean = (xx + yy) / 2
    return np.sqrt(np.clip((mean - spread) / np.maximum(mean + spread, 1e-9), 0, 1))


def same_galaxy(galaxies: Galaxies, arcsec: float = 3.0) -> NDArray[np.int64]:
    """Group number (n,) of each picture: pictures within 3 arcsec on the sky, or of equal pixels, show one galaxy."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    first: dict[bytes, int] = {}
    pairs = [(first.setdefault(image.tobytes(), k), k) for k, image in enumerate(galaxies.images)]
    if {"ra", "dec"} <= galaxies.columns.keys():
        ra, dec = np.radians(galaxies.columns["ra"]), np.radians(galaxies.columns["dec"])
        known = np.flatnonzero(np.isfinite(ra + dec))
        sky = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)[known]
        pairs += [(known[a], known[b]) for a, b in cKDTree(sky).query_pairs(np.radians(arcsec / 3600))]
    a, b = np.array(pairs).T
    return connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(len(galaxies),) * 2), directed=False)[1]


def split(galaxies: Galaxies, seed: int = 0, folds: int = FOLDS, fold: int = 0) -> dict[str, NDArray[np.int64]]:
    """Rows of train, validation, test, by galaxy and of each class alike, the same whatever the order of the files.

    The galaxies are shuffled and cut into `folds` equal parts; one is the test part, the one before it the validation
    part. `fold` counts through them, so that over all folds each galaxy is tested once (cross-validation).
    """
    if folds < 3 or not 0 <= fold < folds:
        raise InputError(f"at least 3 folds, and a fold of 0 ... folds - 1, are needed, not {folds} and {fold}")
    groups = same_galaxy(galaxies)
    order = np.argsort(galaxies.files)
    rng = np.random.default_rng(seed)
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    members: dict[int, list[int]] = {}
    for row in order:
        members.setdefault(int(groups[row]), []).append(int(row))
    for label in range(len(CLASSES)):
        mine = [rows for rows in members.values() if galaxies.labels[rows[0]] == label]
        if len(mine) < folds:
            raise InputError(
                f"only {len(mine)} {CLASSES[label]} galaxies: at least {folds} of each class are needed for the split"
            )
        mine = [mine[k] for k in rng.permutation(len(mine))]
        cuts = np.round(np.arange(folds + 1) / folds * len(mine)).astype(int)
        for k, (start, stop) in enumerate(pairwise(cuts)):
            part = {0: "validation", 1: "test"}.get((k - fold - folds + 2) % folds, "train")
            parts[part] += [row for rows in mine[start:stop] for row in rows]
    return {part: np.sort(np.array(rows, dtype=np.int64)) for part, rows in parts.items()}


def subsets(galaxies: Galaxies) -> dict[str, NDArray[np.bool_]]:
    """Masks (n,) of the samples a table is printed for: all; clean, by votes only; fair, by the image's shape and size.

    Clean drops barred galaxies with p_bar > .995 (probably one or two voters); it needs votes. Fair keeps axis ratio
    > .5 and edge brightness < 40, so that neither edge-on discs nor frame-filling galaxies give the class away; the
    table's columns axis_ratio_img and edge_brightness are used where it has them, else they are measured here.
    """
    masks = {"all": np.ones(len(galaxies), bool)}
    if "p_bar" in galaxies.columns:
        masks["clean"] = ~((galaxies.labels == 1) & (galaxies.columns["p_bar"] > 0.995))
    ratio = galaxies.columns.get("axis_ratio_img", axis_ratio(galaxies.images))
    edge = galaxies.columns.get("edge_brightness", edge_brightness(galaxies.images))
    masks["fair"] = (ratio > 0.5) & (edge < 40)
    if "clean" in masks:
        masks["fair and clean"] = masks["fair"] & masks["clean"]
    return masks


def simulation_note(folder: Path) -> dict[str, object]:
    """What `simulate` wrote about a folder, empty for real data."""
    path = folder / "simulated.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}
