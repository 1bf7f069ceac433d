"""Types of thousands of files: streamed, resumable; a bad file is reported and the rest goes on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..common import InputError, check_file, write_csv, write_fits
from .codes import SUBCLASS, encode
from .compare import P_CLASS, P_LUMINOSITY, Catalogue, Row, compared
from .data import given_in, read_table
from .evaluate import types_of
from .network import Prediction, StarNetwork, apply, load
from .preprocess import COVERAGE, FWHM, GRIDS, Grid, Prepared, Spectrum, near_5550, prepare_in_steps
from .readers import Given, read

SUFFIXES = (".fits", ".fit", ".fts", ".txt", ".dat", ".asc", ".ascii", ".csv", ".spec", ".sp", ".gz", ".bz2")
BATCH = 256  # spectra in memory at a time
# When a prediction is flagged. Of the training and validation parts of CFLIB and MILES 1 star in 200 has a misfit above
# 2.5, 1 in 100 one above 6 where telluric bands are in; cut down to 90 % of the range they lose nothing (README).
DOUBTFUL = 7.0  # subclasses between the printed type and the code
EXTRAPOLATED = 0.9  # share of the range that was measured
OUTLIER = {"580": 2.5, "1900": 6.0}  # misfit, by grid
FLAGS = {
    "extrapolated": "less than 90 % of the range was measured; the rest is a likely filling",
    "coarse": "the resolution is coarser than the network's 4.5 Å",
    "outlier": "no star of the training part looks like this: the misfit is above 2.5 (grid 1900: 6)",
    "doubtful": "class and code are more than 7 subclasses apart",
}
COLUMNS = ["file", "star", "spectral_type", "code", "code_error", *P_CLASS, "luminosity", *P_LUMINOSITY,
           "coverage", "fwhm", "misfit", "flags", "notes"]  # fmt: skip
_DIGITS = {"code": 1, "code_error": 1, "coverage": 3, "fwhm": 2, "misfit": 2, "difference": 2}


@dataclass
class Options:
    """How to predict: the least share of the range that must have been measured, where pictures go, a catalogue to
    compare with, whether to go on or replace."""

    coverage: float = COVERAGE
    pictures: Path | None = None
    compare: Path | None = None
    resume: bool = False
    overwrite: bool = False


def predict(files: dict[Path, Given], weights: Path, out: Path, options: Options | None = None) -> int:
    """Write the table `out` (.fits, else CSV), a row for each file that can be read -> 1 if any could not, else 0.

    Rows go to `<out>.running` batch by batch, so that an interrupted run goes on with `resume`.
    InputError if no file can be used, or if the running table is of other weights.
    """
    options = options or Options()
    check_file(out, options.overwrite)
    if options.pictures and options.pictures.exists() and not options.pictures.is_dir():
        raise InputError(f"{options.pictures} is a file: give --pictures the name of a folder")
    catalogue = Catalogue(options.compare) if options.compare else None
    model, meta = load(weights)
    if not 0.05 <= options.coverage <= 1:
        raise InputError(f"--coverage {options.coverage:g}: a share between 0.05 and 1 is expected")
    about = {"weights": hashlib.sha256(weights.read_bytes()).hexdigest(), "columns": COLUMNS,
             "coverage": options.coverage}  # fmt: skip
    running = out.with_name(out.name + ".running")
    keys = {file: _key(file, given) for file, given in files.items()}
    with closing(_Journal(running, about, options.resume, options.overwrite)) as journal:
        left = {file: given for file, given in files.items() if keys[file] not in journal.rows}
        if len(left) < len(files):
            print(f"{len(files) - len(left)} of {len(files)} files were done before", file=sys.stderr)
        pictures = picture_names(files, options.pictures) if options.pictures else {}
        try:
            bad = _predict(left, model, meta, journal, pictures, options.coverage)
        except KeyboardInterrupt:
            print(f"{len(journal.rows)} of {len(files)} files are done: --resume goes on", file=sys.stderr)
            raise
        rows = [journal.rows[key] for key in keys.values() if key in journal.rows]
    if not rows:
        running.unlink()
        raise InputError(f"none of the {len(files)} files holds a usable spectrum; nothing written")
    if catalogue:
        catalogue.add_to(rows)
    write(out, rows, options.overwrite)
    running.unlink()
    trained_on = "simulated spectra: a lesson, not a measurement" if meta["data"] == "simulated" else "real spectra"
    counts = Counter(flag for row in rows for flag in row["flags"].split())
    failed = f"; {bad} files left out" if bad else ""
    print(f"{len(rows)} types in {out} (network trained on {trained_on}){failed}")
    for flag, n in counts.items():
        print(f"{n} flagged {flag}: {FLAGS[flag]}")
    for table in compared(rows, meta) if catalogue else []:
        print(f"\n{table.text()}")
    return 1 if bad else 0


class Ready(NamedTuple):
    """A file that could be read, and its spectrum before and after preparation."""

    file: Path
    given: Given
    spectrum: Spectrum
    prepared: Prepared


def ready(file: Path, given: Given, how: str, grid: Grid, least: float = COVERAGE) -> Ready:
    """Read and prepare one file; InputError names it."""
    spectrum = read(file, given)
    try:
        return Ready(file, given, spectrum, prepare_in_steps(spectrum, how=how, grid=grid, least=least))
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _predict(
    left: dict[Path, Given], model: StarNetwork, meta: dict[str, Any], journal: _Journal, pictures: dict[Path, Path],
    least: float,
) -> int:  # fmt: skip
    """Predict the files that are left, batch by batch, into the journal -> how many could not be used."""
    how, name = meta["settings"]["normalisation"], meta["settings"].get("grid", "580")
    grid = GRIDS[name]
    items, bad = list(left.items()), 0
    with tqdm(total=len(left), unit="star", leave=False, disable=not sys.stderr.isatty()) as bar:
        for start in range(0, len(items), BATCH):
            used = []
            for file, given in items[start : start + BATCH]:
                try:
                    used.append(ready(file, given, how, grid, least))
                except InputError as error:
                    bad += 1
                    bar.write(f"error: {error}", file=sys.stderr)
                bar.update()
            if not used:
                continue
            flux = np.stack([star.prepared.flux for star in used])
            if how == "5550":
                flux = rescaled(model, flux, grid)
            rows = rows_of(used, apply(model, flux), misfit(model, flux), OUTLIER[name])
            if pictures:
                from .pictures import draw_star  # matplotlib, which prediction does not need

                for star, row, own, whole in zip(used, rows, flux, model.fill(flux), strict=True):
                    draw_star(row, own, whole, grid, meta["data"], pictures[star.file])
            journal.add({_key(star.file, star.given): row for star, row in zip(used, rows, strict=True)})
    return bad


def _key(file: Path, given: Given) -> str:
    return json.dumps([str(file), *asdict(given).values()])


def rows_of(used: Sequence[Ready], prediction: Prediction, misfits: np.ndarray, limit: float) -> list[Row]:
    """What the table says of each of N stars, given N predictions and misfits (N,), outliers beyond `limit`."""
    rows = []
    for i, (star, kind) in enumerate(zip(used, types_of(prediction), strict=True)):
        code, prepared = float(prediction.code[i]), star.prepared
        true = {
            "extrapolated": prepared.coverage < EXTRAPOLATED,
            "coarse": prepared.fwhm > FWHM + 0.5,
            "outlier": misfits[i] > limit,
            "doubtful": abs(encode(kind) - code) > DOUBTFUL * SUBCLASS,
        }
        rows.append({
            "file": str(star.file), "star": star.spectrum.name, "spectral_type": kind.spaced(), "code": code,
            "code_error": float(prediction.spread[i]),
            **dict(zip(P_CLASS, map(float, prediction.p_class[i]), strict=True)), "luminosity": kind.lum,
            **dict(zip(P_LUMINOSITY, map(float, prediction.p_luminosity[i]), strict=True)),
            "coverage": prepared.coverage, "fwhm": prepared.fwhm, "misfit": float(misfits[i]),
            "flags": " ".join(flag for flag in FLAGS if true[flag]), "notes": "; ".join(star.spectrum.notes),
        })  # fmt: skip
    return rows


def misfit(model: StarNetwork, flux: np.ndarray) -> np.ndarray:
    """How badly the training part's principal components rebuild spectra: (N, bins) with NaN -> (N,), usually below 2.

    The rms of the residual in means of five bins, less the noise, in units of what the components leave unexplained
    in the training part. The noise is told from neighbours, ⟨(2f_i − f_{i−2} − f_{i+2})²⟩/6 (after Stoehr et al. 2008).
    """
    out, unit = np.zeros(len(flux)), float(model.noise[0])
    for i, f in enumerate(flux):
        known = np.isfinite(f)
        basis, offset = model.basis[:, known].astype(np.float64) / unit, (f - model.mean)[known] / unit
        r = offset - np.linalg.solve(basis @ basis.T + np.eye(len(basis)), basis @ offset) @ basis
        noise = float(((2 * r[2:-2] - r[:-4] - r[4:]) ** 2).mean()) / 6
        means = np.convolve(r, np.ones(5) / 5, mode="valid")
        out[i] = np.sqrt(max(float((means**2).mean()) - noise / 5, 0.0))
    return out


def rescaled(model: StarNetwork, flux: np.ndarray, grid: Grid) -> np.ndarray:
    """Spectra (N, bins) of which 5550 Å was not measured, in the scale in which their flux there would likely be 1.

    The unknown factor s is fitted together with the components: min |s·f − mean − c·basis|²/σ² + |c|².
    """
    flux, sigma = flux.copy(), float(model.noise[0])
    for i in np.flatnonzero(~np.isfinite(flux[:, near_5550(grid)]).any(1)):
        known = np.isfinite(flux[i])
        mean = model.mean[known].astype(np.float64) / sigma
        rows = np.vstack([flux[i], -model.basis])[:, known] / sigma
        normal = rows @ rows.T + np.diag([0.0, *np.ones(len(model.basis))])
        flux[i] *= np.linalg.solve(normal, rows @ mean)[0]
    return flux


# --- files in, table out -------------------------------------------------------------------------------------------
def spectra_in(paths: Sequence[Path], given: Given, but: Iterable[Path | None] = ()) -> dict[Path, Given]:
    """The files named, and those of the folders named that may be spectra; hidden ones and the tables in `but` are not.

    InputError if a folder holds none.
    """
    found: dict[Path, Given] = {}
    tables = {path.resolve() for path in but if path}
    for path in paths:
        if not path.is_dir():
            found[path] = given
            continue
        inside = sorted(p for p in path.rglob("[!.]*") if p.is_file() and p.suffix.lower() in SUFFIXES)
        inside = [p for p in inside if "/." not in f"/{p.relative_to(path).as_posix()}" and p.name != "labels.csv"]
        inside = [p for p in inside if p.resolve() not in tables]
        if not inside:
            raise InputError(f"{path} holds no file that may be a spectrum ({' '.join(SUFFIXES)})")
        found |= dict.fromkeys(inside, given)
    return found


def listed(table: Path, given: Given) -> dict[Path, Given]:
    """Files of a CSV table with the column file and those that `given_in` knows; it may be a labels.csv.

    A file is sought beside the table. A value of the table goes before that of the command line.
    """
    columns, rows = read_table(table)
    if "file" not in columns:
        raise InputError(f"{table}: a column file is needed, it has {columns or 'none'}")
    found: dict[Path, Given] = {}
    for number, row in enumerate(rows, start=2):
        try:
            found[table.parent / (row["file"] or "")] = given_in(row, given)
        except (ValueError, InputError) as error:
            raise InputError(f"{table} line {number}: {error}") from None
    return found


def picture_names(files: Iterable[Path], folder: Path) -> dict[Path, Path]:
    """A PNG for each file, of its name; where two share one, the later are numbered."""
    taken: Counter[str] = Counter()
    names = {}
    for file in files:
        taken[file.name] += 1
        names[file] = folder / (file.name + (f"-{taken[file.name]}" if taken[file.name] > 1 else "") + ".png")
    return names


class _Journal:
    """Rows written beside the table batch by batch, one JSON object a line, the first saying what they are of."""

    def __init__(self, path: Path, about: Row, resume: bool, overwrite: bool) -> None:
        self.path, self.rows = path, dict[str, Row]()
        if path.exists() and not resume and not overwrite:
            raise InputError(f"{path} is of a run that was interrupted: --resume goes on, --overwrite starts anew")
        lines = path.read_bytes().splitlines(keepends=True) if resume and path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            del lines[-1]  # torn when the run was killed
        try:
            entries = [json.loads(line) for line in lines]
            if entries and entries[0] != about:
                raise InputError(f"{path} was made with other weights or --coverage: --overwrite starts anew")
            self.rows = {key: row for entry in entries[1:] for key, row in entry.items()}
        except (ValueError, AttributeError) as error:
            raise InputError(f"{path}: cannot go on from it ({error}); --overwrite starts anew") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = open(path, "r+b" if lines else "wb")  # noqa: SIM115  closed by close
        self._file.seek(sum(map(len, lines)))
        self._file.truncate()
        if not lines:
            self._write(about)

    def _write(self, entry: Row) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def add(self, rows: dict[str, Row]) -> None:
        """Keep the rows of one batch, by key."""
        self._write(rows)
        self.rows |= rows

    def close(self) -> None:
        """No more rows come."""
        self._file.close()


def write(out: Path, rows: Sequence[Row], overwrite: bool) -> None:
    """Write rows as FITS table if `out` ends in .fits, else as CSV; whole or not at all."""
    columns = list(rows[0])
    if out.suffix.lower() not in (".fits", ".fit"):
        write_csv(out, columns, [[_printed(c, row[c]) for c in columns] for row in rows], overwrite)
        return
    table = {column: [row[column] for row in rows] for column in columns}
    write_fits(out, table, overwrite, {"fwhm": "Angstrom"})


def _printed(column: str, value: Any) -> str:
    return f"{value:.{_DIGITS.get(column, 4)}f}" if isinstance(value, float) else str(value)
