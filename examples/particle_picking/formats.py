"""Micrographs in, coordinates in and out: MRC, PNG, JPEG; RELION .star, EMAN .box, crYOLO .cbox, Topaz .txt, CSV.

Everywhere in this program a position is a particle's centre in pixels, x = column, y = row, (0, 0) the centre of the
first stored pixel, no flip; each format's own convention is met here and nowhere else.
"""

from __future__ import annotations

import csv
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from examples.common import InputError
from minidl.checkpoint import atomic_write

MRC_SUFFIXES = (".mrc", ".map", ".mrc.gz", ".mrc.bz2", ".map.gz", ".map.bz2")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
COORDINATE_SUFFIXES = (".star", ".cbox", ".box", ".txt", ".csv")


def stem(path: str | Path) -> str:
    """Name of a micrograph or coordinate file without folder and suffix: `a/m1.mrc.gz` -> `m1`, `m1_autopick.star` ->
    `m1`.
    """
    name = Path(path).name
    for suffix in sorted(MRC_SUFFIXES + IMAGE_SUFFIXES + COORDINATE_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return name.removesuffix("_autopick")


def is_micrograph(path: Path) -> bool:
    """Whether the name says MRC, PNG or JPEG, and not that the file is hidden."""
    return path.name.lower().endswith(MRC_SUFFIXES + IMAGE_SUFFIXES) and not path.name.startswith(".")


# ------------------------------------------------------------------------------------------------------ micrographs


def read_micrograph(path: str | Path) -> tuple[np.ndarray, float | None]:
    """Read one micrograph -> image (H, W) float32 in the file's units, and its pixel size in Å (None if not stored).

    MRC modes 0, 1, 2, 6, 12, plain, gzip or bzip2, with or without correct headers; PNG and JPEG of 8 or 16 bits
    (colour becomes luminance). Raises InputError for anything that is not one image with contrast.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'a folder; give the files in it' if path.is_dir() else 'no such file'}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    if path.name.lower().endswith(MRC_SUFFIXES):
        image, apix = _read_mrc(path)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        image, apix = _read_picture(path), None
    else:
        raise InputError(f"{path}: cannot tell the format; give .mrc (also .gz, .bz2), .png or .jpg")
    if image.ndim == 3 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 2:
        raise InputError(f"{path}: holds {image.shape[0]} images; average a movie, or save one micrograph a file")
    if min(image.shape) < 32:
        raise InputError(f"{path}: only {image.shape[1]}x{image.shape[0]} pixels; a micrograph has at least 32x32")
    image = np.require(image, np.float32, ["C", "W"])  # a picture may come read-only
    finite = np.isfinite(image)
    if not finite.all():
        if finite.mean() < 0.9:
            raise InputError(f"{path}: {1 - finite.mean():.0%} of the pixels are NaN or infinite")
        image[~finite] = np.median(image[finite])
    if image.min() == image.max():
        raise InputError(f"{path}: every pixel is {image.flat[0]:g}; nothing to see")
    return image, apix


def pixel_size(path: Path) -> float | None:
    """The pixel size in Å that an MRC header states (None if unset or another format)."""
    if not path.name.lower().endswith(MRC_SUFFIXES):
        return None
    with _open_mrc(path, header_only=True) as file:
        return _voxel(file)


def _read_mrc(path: Path) -> tuple[np.ndarray, float | None]:
    with _open_mrc(path) as file:
        if file.data is None:
            raise InputError(f"{path}: not a complete MRC file (truncated, or another format)")
        if np.iscomplexobj(file.data):
            raise InputError(f"{path}: MRC of complex numbers (a transform), not an image")
        return np.array(file.data, np.float32), _voxel(file)


@contextmanager
def _open_mrc(path: Path, *, header_only: bool = False) -> Iterator[Any]:
    """An MRC file, packed or not; a plain one is mapped, so that only one float32 copy of it is ever in memory."""
    import mrcfile

    packed = path.suffix.lower() in (".gz", ".bz2")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd headers: what matters is checked by who reads
            if packed or header_only:
                opened = mrcfile.open(path, permissive=True, header_only=header_only)
            else:
                opened = mrcfile.mmap(path, permissive=True)
            with opened as file:
                yield file
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a readable MRC file ({error})") from error


def _voxel(file: Any) -> float | None:
    size = float(file.voxel_size.x)
    return size if np.isfinite(size) and size > 0 and size != 1.0 else None  # 0 and 1 mean "unset"


def _read_picture(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size, palettes, broken EXIF: nothing the user could act on
            with Image.open(path) as picture:
                picture.load()
                keep = picture.mode in ("L", "F") or picture.mode.startswith("I")
                return np.asarray(picture if keep else picture.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable picture ({error})") from error


def write_mrc(path: Path, image: np.ndarray, apix: float, label: str) -> None:
    """Write `image` (H, W; int8, int16, uint16, float16, float32) as MRC with its pixel size in Å and a label.

    Images (n, H, W) under a name that ends in .mrcs are a stack of images, else a volume.
    """
    import mrcfile

    with atomic_write(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mrcfile.new(part, overwrite=True) as file:
            file.set_data(image)
            if path.suffix == ".mrcs":
                file.set_image_stack()
            file.voxel_size = apix
            file.header.label[0] = label
            file.header.nlabl = 1


def read_mask(path: str | Path) -> np.ndarray:
    """Read a class mask (PNG of 8 bits, or MRC) -> (H, W) uint8 with the labels 0..3 and 255 (unlabelled)."""
    path = Path(path)
    mask = _read_mrc(path)[0] if path.name.lower().endswith(MRC_SUFFIXES) else _read_picture(path)
    if mask.ndim != 2 or not np.isin(np.unique(mask), (0, 1, 2, 3, 255)).all():
        raise InputError(f"{path}: a class mask holds only 0 background, 1 protein, 2 ice, 3 carbon, 255 unlabelled")
    return mask.astype(np.uint8)


def write_mask(path: Path, mask: np.ndarray, apix: float | None = None) -> None:
    """Write a class mask (H, W) uint8 as PNG or, by the name's ending, as MRC (mode 0; mode 6 where it has a 255)."""
    from PIL import Image

    if path.suffix == ".mrc":
        label = "classes: 0 background 1 protein 2 ice 3 carbon"
        write_mrc(path, mask.astype(np.int8 if mask.max(initial=0) < 128 else np.uint16), apix or 0.0, label)
        return
    with atomic_write(path) as part:
        Image.fromarray(mask).save(part, format="PNG")


# ------------------------------------------------------------------------------------------------------ coordinates


@dataclass
class Picks:
    """Particle centres xy (n, 2) float64 in px, scores (n,) (NaN where the file has none); where known each particle's
    size (n,), its diameter in px, and the side of the boxes in a file.
    """

    xy: np.ndarray
    score: np.ndarray
    size: np.ndarray | None = None
    box: float | None = None

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, which: np.ndarray) -> Picks:
        """Those that an index or boolean array names."""
        return Picks(self.xy[which], self.score[which], None if self.size is None else self.size[which], self.box)

    def above(self, threshold: float) -> Picks:
        """Those with score >= threshold."""
        return self[self.score >= threshold]

    @property
    def diameter(self) -> float | None:
        """The median size, else the side of the boxes, else None."""
        return float(np.median(self.size)) if self.size is not None and len(self.size) else self.box


def read_coordinates(path: str | Path, *, flip_height: float | None = None) -> Picks:
    """Read one micrograph's particle centres from .star (RELION), .cbox (crYOLO), .box (EMAN), .txt (Topaz) or .csv
    (columns x, y, maybe diameter, score).

    `flip_height` H turns rows that were counted from the bottom: y -> H - y. Some published picks need it; nothing
    else does. Raises InputError for a file of several micrographs: `read_all` takes those.
    """
    found = read_all(path, flip_height=flip_height)
    if len(found) > 1:
        raise InputError(f"{path}: particles of several micrographs; give one file a micrograph")
    return next(iter(found.values()))


def read_all(path: str | Path, *, flip_height: float | None = None) -> dict[str, Picks]:
    """Read particle centres as `read_coordinates` does -> {micrograph: its picks}; .star and .txt may hold many."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such coordinate file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file of coordinates") from error
    readers = {".star": _from_star, ".cbox": _from_cbox, ".box": _from_box, ".txt": _from_topaz, ".csv": _from_csv}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: coordinates are read from {', '.join(COORDINATE_SUFFIXES)}")
    picks, images = readers[path.suffix.lower()](path, text)
    if not np.isfinite(picks.xy).all():
        raise InputError(f"{path}: a coordinate is NaN or infinite")
    if flip_height is not None:
        picks.xy[:, 1] = flip_height - picks.xy[:, 1]
    names = np.array([stem(name) for name in images])
    return {str(name): picks[names == name] for name in dict.fromkeys(names)} or {stem(path): picks}


def coordinate_files(folder: Path) -> list[Path]:
    """The coordinate files of a folder, in the order of COORDINATE_SUFFIXES; tables without coordinates are no such."""

    def holds(path: Path) -> bool:
        if path.suffix.lower() not in (".txt", ".csv"):
            return path.suffix.lower() in COORDINATE_SUFFIXES
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            names = re.split(r"[,\t]", file.readline().strip())
        return {"x", "y"} <= set(names) or {"x_coord", "y_coord"} <= set(names)

    files = [path for path in sorted(folder.iterdir()) if path.is_file() and holds(path)]
    return sorted(files, key=lambda path: COORDINATE_SUFFIXES.index(path.suffix.lower()))


def read_folder(
    folder: Path, *, candidates: bool = False, heights: Mapping[str, int] | None = None
) -> dict[str, Picks]:
    """Read all coordinates of a folder -> {micrograph: picks}; where it has several files the first of
    `coordinate_files`, with `candidates` the .cbox. `heights` of micrographs turn rows counted from the bottom.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of coordinates")
    files = coordinate_files(folder)
    found: dict[str, Picks] = {}
    for path in sorted(files, key=lambda path: path.suffix.lower() != ".cbox") if candidates else files:
        for name, picks in read_all(path).items():
            if name not in found:
                found[name] = picks
                if heights is not None and name in heights:
                    picks.xy[:, 1] = heights[name] - picks.xy[:, 1]
    if not found:
        raise InputError(f"{folder}: no coordinates in it ({', '.join(COORDINATE_SUFFIXES)})")
    return found


Found = tuple[Picks, Sequence[str]]  # picks and, where the file says it, the micrograph of each


Block = dict[str, list[str]]


def parse_star(text: str, path: str | Path = "STAR text") -> dict[str, Block]:
    """Read STAR text -> {block name: {label without underscore: values}}; a single item is a list of one.

    Quotes, comments, CRLF and blank lines are accepted; the `#n` after a label is a comment like any other.
    """
    blocks: dict[str, Block] = {}
    block: Block | None = None
    labels: list[str] | None = None  # of the loop we are in
    for number, line in enumerate(text.splitlines(), 1):
        words = [a or b or c for a, b, c in re.findall(r"""(?:^|(?<=\s))(?:'([^']*)'|"([^"]*)"|(\#.*|\S+))""", line)]
        words = words[: next((k for k, w in enumerate(words) if w.startswith("#")), None)]
        if not words:
            continue
        first = words[0]
        if first.lower().startswith("data_"):
            block = blocks.setdefault(first[5:], {})
            labels = None
        elif block is None:
            raise InputError(f"{path}: line {number}: not a STAR file (no data_ block before {first[:30]!r})")
        elif first.lower() == "loop_":
            labels = []
        elif first.startswith("_") and labels is not None and not (labels and block[labels[0]]):
            labels.append(first[1:])
            block[first[1:]] = []
        elif first.startswith("_"):
            labels = None
            block[first[1:]] = words[1:2]
        elif not labels or len(words) != len(labels):
            raise InputError(f"{path}: line {number}: {len(words)} values for {len(labels or [])} columns")
        else:
            for label, word in zip(labels, words, strict=True):
                block[label].append(word)
    return blocks


def _numbers(path: Path, name: str, words: Sequence[str]) -> np.ndarray:
    try:
        return np.array(words, np.float64)
    except ValueError as error:
        raise InputError(f"{path}: column {name}: {error}") from error


def _from_star(path: Path, text: str) -> Found:
    blocks = parse_star(text, path)
    block = next((b for b in blocks.values() if "rlnCoordinateX" in b and "rlnCoordinateY" in b), None)
    if block is None:
        raise InputError(f"{path}: no block with _rlnCoordinateX and _rlnCoordinateY")
    x, y = (_numbers(path, f"_rlnCoordinate{c}", block[f"rlnCoordinate{c}"]) for c in "XY")
    if len(x) != len(y):
        raise InputError(f"{path}: {len(x)} values of _rlnCoordinateX, but {len(y)} of _rlnCoordinateY")
    xy = np.stack([x, y], 1)
    score = np.full(len(xy), np.nan)
    if "rlnAutopickFigureOfMerit" in block:
        score = _numbers(path, "_rlnAutopickFigureOfMerit", block["rlnAutopickFigureOfMerit"])
        score[score == -999] = np.nan  # RELION's "not set"
    return Picks(xy, score), block.get("rlnMicrographName", ())


def _from_cbox(path: Path, text: str) -> Found:
    block = parse_star(text, path).get("cryolo", {})
    wanted = ("CoordinateX", "CoordinateY", "Width", "Height")
    if missing := [f"_{name}" for name in wanted if name not in block]:
        raise InputError(f"{path}: the block data_cryolo lacks {', '.join(missing)}")
    x, y, w, h = (_numbers(path, f"_{name}", block[name]) for name in wanted)
    score = _numbers(path, "_Confidence", block["Confidence"]) if "Confidence" in block else np.full(len(x), np.nan)
    sides = [block[name] for name in ("EstWidth", "EstHeight") if name in block and "<NA>" not in block[name]]
    size = np.mean([_numbers(path, "_EstWidth, _EstHeight", side) for side in sides], 0) if sides else None
    return Picks(np.stack([x + w / 2, y + h / 2], 1), score, size, float(w[0]) if len(w) else None), ()


def _from_box(path: Path, text: str) -> Found:
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if any(len(row) < 4 for row in rows):
        raise InputError(f"{path}: a line of a .box file is: x y width height")
    table = _numbers(path, "x y width height", [row[:4] for row in rows]).reshape(-1, 4)
    centre = table[:, :2] + table[:, 2:] / 2
    return Picks(centre, np.full(len(table), np.nan), box=float(table[0, 2]) if len(table) else None), ()


def _table(path: Path, text: str, delimiter: str, wanted: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """The columns `names` that a table with a header line has; InputError if it lacks one of `wanted`."""
    try:
        lines = text.splitlines()
        rows, header = (
            list(csv.DictReader(lines, delimiter=delimiter)),
            next(csv.reader(lines, delimiter=delimiter), []),
        )
    except csv.Error as error:
        raise InputError(f"{path}: not a table ({error})") from None
    if not set(wanted) <= set(header):
        raise InputError(f"{path}: the first line names the columns, among them {', '.join(wanted)}")
    return {name: [row[name] or "" for row in rows] for name in names if name in header}


def _from_csv(path: Path, text: str) -> Found:
    found = _table(path, text, ",", ("x", "y"), ("x", "y", "score", "diameter"))
    columns = {name: _numbers(path, name, words) for name, words in found.items()}
    score = columns.get("score", np.full(len(columns["x"]), np.nan))
    return Picks(np.stack([columns["x"], columns["y"]], 1), score, columns.get("diameter")), ()


def _from_topaz(path: Path, text: str) -> Found:
    wanted = ("image_name", "x_coord", "y_coord")
    found = _table(path, text, "\t", wanted, (*wanted, "score"))
    x, y = (_numbers(path, name, found[name]) for name in wanted[1:])
    score = _numbers(path, "score", found["score"]) if "score" in found else np.full(len(x), np.nan)
    return Picks(np.stack([x, y], 1), score), found["image_name"]


def write_star(path: Path, picks: Picks) -> None:
    """Write RELION 3.1+ autopick coordinates: centres in px, figure of merit = score."""
    labels = ("CoordinateX", "CoordinateY", "AutopickFigureOfMerit", "ClassNumber", "AnglePsi")
    head = ["", "# version 30001", "", "data_", "", "loop_"]
    head += [f"_rln{label} #{k}" for k, label in enumerate(labels, 1)]
    rows = [
        f"{x:12.6f} {y:12.6f} {-999.0 if np.isnan(s) else s:12.6f} {1:12d} {0:12.6f}"
        for (x, y), s in zip(picks.xy, picks.score, strict=True)
    ]
    write_lines(path, [*head, *rows, ""])


def write_topaz(path: Path, picks: Picks) -> None:
    """Write Topaz's table: the micrograph's name (that of the file), centres, scores (0 where there is none)."""
    rows = [
        f"{stem(path)}\t{x:.4f}\t{y:.4f}\t{s:.6f}"
        for (x, y), s in zip(picks.xy, np.nan_to_num(picks.score), strict=True)
    ]
    write_lines(path, ["image_name\tx_coord\ty_coord\tscore", *rows])


def write_table(path: Path, picks: Picks) -> None:
    """Write CSV: x, y, and the diameter and score where they are known."""
    columns = {"x": picks.xy[:, 0], "y": picks.xy[:, 1]}
    columns |= {} if picks.size is None else {"diameter": picks.size}
    columns |= {} if np.isnan(picks.score).any() else {"score": picks.score}
    rows = [",".join(f"{value:.6g}" for value in row) for row in zip(*columns.values(), strict=True)]
    write_lines(path, [",".join(columns), *rows])


def write_coordinates(path: Path, picks: Picks, box: int) -> None:
    """Write picks in the format that the name's ending says; `box` is the side in px of .box and .cbox."""
    writers: dict[str, Callable[[Path, Picks], None]] = {
        ".star": write_star,
        ".txt": write_topaz,
        ".csv": write_table,
        ".box": partial(write_box, box=box),
        ".cbox": partial(write_cbox, box=box),
    }
    writers[path.suffix](path, picks)


def write_box(path: Path, picks: Picks, box: int) -> None:
    """Write EMAN boxes: integer corner (centre − box/2, rounded) and size."""
    corners = np.floor(picks.xy - box / 2 + 0.5).astype(int)
    write_lines(path, [f"{x}\t{y}\t{box}\t{box}" for x, y in corners])


def write_cbox(path: Path, picks: Picks, box: int) -> None:
    """Write crYOLO boxes with confidence: every candidate, so that the threshold can be moved later.

    _EstWidth and _EstHeight are each particle's size (`box` where it is not known).
    """
    names = "CoordinateX CoordinateY CoordinateZ Width Height Depth EstWidth EstHeight Confidence NumBoxes Angle"
    head = ["", "data_global", "", "_cbox_format_version 1.0", "", "data_cryolo", "", "loop_"]
    head += [f"_{label} #{k}" for k, label in enumerate(names.split(), 1)]
    sizes = np.full(len(picks), float(box)) if picks.size is None else picks.size
    rows = [
        f"{x:.4f} {y:.4f} <NA> {box} {box} <NA> {size:.2f} {size:.2f} {score:.6f} <NA> <NA>"
        for (x, y), score, size in zip(picks.xy - box / 2, np.nan_to_num(picks.score), sizes, strict=True)
    ]
    write_lines(path, [*head, *rows, "", "", "data_cryolo_include", "", "loop_", "_slice_index #1", ""])


def write_lines(path: Path, lines: Sequence[str]) -> None:
    with atomic_write(path) as part:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
