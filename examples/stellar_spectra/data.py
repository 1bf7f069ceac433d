"""Folders of spectra with their types, and the split by star.

Two kinds of folder are read: `labels.csv` beside spectrum files (what `simulate` and `fetch` write, and what users can
make), and libraries packed as NAME.npz (wave, flux, mask) with NAME.csv. A star keeps its part in every library it is
in: no test star is ever trained on through another library's spectrum of it.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..common import InputError
from . import codes
from .preprocess import GRIDS, Spectrum, prepare
from .readers import Given, read, redshift_of

# Published resolutions in Å FWHM: Valdes et al. 2004 (1.2, here binned to 1 Å), Sanchez-Blazquez et al. 2006,
# Le Borgne et al. 2003, and λ/2000 for the means of SDSS spectra.
LIBRARY_FWHM = {"cflib": 1.4, "miles": 2.5, "stelib": 3.0, "pyhammer": 2.5}
LABELS = ("file", "library", "star", "spectral_type", "fwhm")
FOLDS = 5


@dataclass
class Stars:
    """Spectra ready for the network, and what is known of each: all of length N.

    flux (N, bins) float32, NaN where not measured; types: SpectralType or None; stars: key of the star; libraries;
    files. kind: "real" or "simulated".
    """

    flux: np.ndarray
    types: list[codes.SpectralType | None]
    stars: list[str]
    libraries: list[str]
    files: list[str]
    kind: str

    def __len__(self) -> int:
        return len(self.files)

    def take(self, index: Iterable[int]) -> Stars:
        """Those at `index`."""
        k = [int(i) for i in index]
        columns = (self.types, self.stars, self.libraries, self.files)
        return Stars(self.flux[k], *([column[i] for i in k] for column in columns), self.kind)

    def codes(self) -> np.ndarray:
        """Code of each type: (N,) float64, NaN where class or subclass is unknown."""
        return np.array([codes.encode(t) if t and t.sub is not None else np.nan for t in self.types])

    def classes(self) -> np.ndarray:
        """Index 0..6 of O..M: (N,) int64, −100 where unknown."""
        return np.array([codes.CLASSES.index(t.cls) if t else -100 for t in self.types], dtype=np.int64)

    def luminosities(self) -> np.ndarray:
        """Index 0..4 of I..V: (N,) int64, −100 where unknown."""
        return np.array([codes.LUMINOSITIES.index(t.lum) if t and t.lum else -100 for t in self.types], dtype=np.int64)

    def describe(self) -> str:
        """One line: how many of each class."""
        counts = Counter(t.cls if t else "untyped" for t in self.types)
        return f"{len(self)} spectra: " + " ".join(f"{c}{counts[c]}" for c in [*codes.CLASSES, "untyped"] if counts[c])


def join(parts: Sequence[Stars]) -> Stars:
    """One after another; all of one kind."""
    flux = np.concatenate([part.flux for part in parts])
    columns = [[x for part in parts for x in getattr(part, name)] for name in ("types", "stars", "libraries", "files")]
    return Stars(flux, *columns, parts[0].kind)


def star_key(name: str) -> str:
    """One spelling for a star: "HD 048682A", "HD48682" -> "HD48682"; "BD+08 3095", "BD+083095" -> "BD+08-3095".

    Components of a double star share a key: at worst two stars stay on one side of the split.
    """
    text = re.sub(r"\s+", "", name).upper()
    if match := re.match(r"(HD|HIP|HR|SAO)0*(\d+)", text):
        return match[1] + match[2]
    if match := re.match(r"(BD|CD|CPD)([+-])(\d\d)0*(\d+)", text):
        return f"{match[1]}{match[2]}{match[3]}-{match[4]}"
    return text


def split(stars: Stars, *, fold: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Indices of the training, validation and test parts: 60/20/20 by star, every class in each.

    The stars of a class, in an order drawn from `seed`, are dealt to five folds; fold `fold` is the test part, the
    next one validates, three train. Where several libraries are together, a star named neither by HD nor by BD
    could hide under two names: it trains and is never tested. Spectra without a full type are in no part.
    """
    if not 0 <= fold < FOLDS:
        raise InputError(f"fold {fold}: 0..{FOLDS - 1} are there")
    code = stars.codes()
    typed = np.flatnonzero(np.isfinite(code))
    mixed = len(set(stars.libraries)) > 1
    by_class: dict[str, list[str]] = {c: [] for c in codes.CLASSES}
    hidden, seen = set(), set()
    for i in typed:
        key, kind = stars.stars[i], stars.types[i]
        if key not in seen and kind is not None:
            seen.add(key)
            if mixed and not re.match(r"HD|BD|CD", key):
                hidden.add(key)
            else:
                by_class[kind.cls].append(key)
    rng = np.random.default_rng(seed)
    fold_of: dict[str, int] = {}
    for members in by_class.values():
        for key in rng.permutation(sorted(members)):
            fold_of[str(key)] = len(fold_of) % FOLDS
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for i in typed:
        key = stars.stars[i]
        where = 2 if key in hidden else (fold_of[key] - fold) % FOLDS
        parts["test" if where == 0 else "validation" if where == 1 else "train"].append(int(i))
    return {name: np.array(index, dtype=np.int64) for name, index in parts.items()}


def load(folder: Path, *, how: str, libraries: Sequence[str] | None = None, grid: str = "580") -> Stars:
    """All spectra of a folder, prepared with normalisation `how` on a grid "580" or "1900"; `libraries` to take.

    Spectra that cannot be used are counted (packed libraries) or named (files) on stderr.
    InputError if the folder holds none, or a library that is asked for is not there.
    """
    kind, rows = "real", []
    about = folder / "about.json"
    if about.exists():
        try:
            kind = str(json.loads(about.read_text(encoding="utf-8")).get("kind", "real"))
        except (ValueError, AttributeError) as error:
            raise InputError(f"{about}: cannot be used ({error})") from None
    packed = [p for p in sorted(folder.glob("*.npz")) if p.with_suffix(".csv").exists()]
    if (folder / "labels.csv").exists():
        rows = list(_labelled(folder, libraries))
    elif packed:
        known = [p.stem for p in packed]
        if libraries and (missing := sorted(set(libraries) - set(known))):
            raise InputError(f"{folder} has no library {', '.join(missing)}; it has {', '.join(known)}")
        rows = [row for p in packed if not libraries or p.stem in libraries for row in _packed(p)]
    else:
        raise InputError(f"{folder} holds neither labels.csv nor NAME.npz with NAME.csv")
    flux, types, stars, names, files = [], [], [], [], []
    unusable: Counter[tuple[str, str]] = Counter()
    for spectrum, kind_of, star, library, file in rows:
        try:
            flux.append(prepare(spectrum, how=how, grid=GRIDS[grid]))
        except InputError as error:
            unusable[library, re.sub(r"only [\d.]+% of", "too little of", str(error))] += 1
            continue
        types.append(kind_of)
        stars.append(star)
        names.append(library)
        files.append(file)
    for (library, why), n in unusable.items():
        print(f"left out: {n} of {library}: {why}", file=sys.stderr)
    if not files:
        raise InputError(f"{folder}: no usable spectrum" + (f" of {', '.join(libraries)}" if libraries else ""))
    return Stars(np.stack(flux), types, stars, names, files, kind)


_Row = tuple[Spectrum, "codes.SpectralType | None", str, str, str]


def _labelled(folder: Path, libraries: Sequence[str] | None) -> Iterator[_Row]:
    """Rows of labels.csv with the spectra they name; a file that cannot be read is named on stderr."""
    path = folder / "labels.csv"
    columns, rows = read_table(path)
    if not {"file", "spectral_type"} <= set(columns):
        raise InputError(f"{path}: columns file and spectral_type are needed, it has {columns or 'none'}")
    known = sorted({row.get("library") or folder.name for row in rows})
    if libraries and (missing := sorted(set(libraries) - set(known))):
        raise InputError(f"{folder} has no library {', '.join(missing)}; it has {', '.join(known)}")
    for number, row in enumerate(rows, start=2):
        library = row.get("library") or folder.name
        if libraries and library not in libraries:
            continue
        try:
            spectrum = read(folder / (row["file"] or ""), given_in(row, Given()))
        except (InputError, ValueError) as error:
            print(f"left out: {path.name} line {number}: {error}", file=sys.stderr)
            continue
        star = star_key(row.get("star") or row["file"])
        yield spectrum, codes.parse(row["spectral_type"]), star, library, row["file"]


def given_in(row: dict[str, str], given: Given) -> Given:
    """What a row says of its file, over `given`: fwhm (Å), unit, medium, redshift or velocity (km/s), where filled in.

    ValueError for what is no number, InputError for what cannot be.
    """
    words = {name: row[name] for name in ("unit", "medium") if row.get(name)}
    numbers = {name: float(row[name]) for name in ("fwhm", "redshift", "velocity") if row.get(name)}
    if "velocity" in numbers:
        numbers["redshift"] = redshift_of(numbers.pop("velocity"))
    return replace(given, **words, **numbers)


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Names of the columns and rows of a CSV table."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV table in UTF-8 ({error})") from None


def _packed(path: Path) -> Iterator[_Row]:
    """Spectra of NAME.npz with the types of NAME.csv (columns sptype; file, name, hd where they are)."""
    columns, rows = read_table(path.with_suffix(".csv"))
    try:
        with np.load(path) as arrays:
            wave, flux = arrays["wave"].astype(np.float64), arrays["flux"]
            good = np.isfinite(flux) & (flux != 0)
            if "mask" in arrays:
                good &= arrays["mask"]
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: no library with the arrays wave and flux ({error})") from None
    if len(rows) != len(flux) or "sptype" not in columns:
        raise InputError(f"{path}: {len(flux)} spectra, but {len(rows)} rows or no column sptype in its .csv")
    if flux.shape[1:] != wave.shape:
        raise InputError(f"{path}: flux {flux.shape} does not fit wave {wave.shape}")
    fwhm = next((value for name, value in LIBRARY_FWHM.items() if path.stem.startswith(name)), None)
    for number, (row, f, g) in enumerate(zip(rows, flux, good, strict=True)):
        label = row.get("name") or row.get("file") or row.get("row") or f"{path.stem} {number}"
        in_file = re.search(r"_(HD\d+)", row.get("file") or "")  # STELIB names HR numbers inside, HD numbers outside
        star = row.get("hd") or (in_file[1] if in_file else label)
        spectrum = Spectrum(wave, np.where(g, f, 0.0), g, name=label, fwhm=fwhm)
        yield spectrum, codes.parse(row["sptype"]), star_key(star), path.stem, label


def write_labels(folder: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write labels.csv with the columns file, library, star, spectral_type, fwhm."""
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(LABELS)
        writer.writerows(rows)
