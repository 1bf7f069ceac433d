"""Predicted types against a catalogue's: the rows of `predict` with the study's measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common import InputError, Table
from .codes import CLASSES, LUMINOSITIES, SUBCLASS, encode, parse
from .data import Stars, read_table, star_key
from .evaluate import Result, confusion, errors
from .network import Prediction

P_CLASS = [f"p_{c}" for c in CLASSES]
P_LUMINOSITY = [f"p_{lum}" for lum in LUMINOSITIES]
Row = dict[str, Any]


class Catalogue:
    """Types from a CSV table: columns spectral_type or sptype, and file (matched first), star or name.

    InputError if these columns are not there.
    """

    def __init__(self, path: Path) -> None:
        columns, rows = read_table(path)
        kind = next((c for c in ("spectral_type", "sptype") if c in columns), None)
        stars = [c for c in ("star", "name") if c in columns]
        if kind is None or not (stars or "file" in columns):
            raise InputError(f"{path}: columns spectral_type (or sptype) and file or star are needed, it has {columns}")
        self.path = path
        self._files: dict[str, list[tuple[str, str, str]]] = {}
        self._stars: dict[str, str] = {}
        for row in rows:
            star = next((row[c] for c in stars if row[c]), "")
            file = row.get("file") or ""
            if file:
                self._files.setdefault(Path(file).name, []).append((file, row[kind] or "", star))
            if star:
                self._stars[star_key(star)] = row[kind] or ""

    def find(self, file: str, star: str) -> tuple[str, str] | None:
        """Type and star's name of a file, or None: by the file's name, else by the star's."""
        of_name = self._files.get(Path(file).name, [])
        for known, kind, name in of_name:
            if len(of_name) == 1 or Path(file).as_posix().endswith(known):
                return kind, name or star
        kind = self._stars.get(star_key(star))
        return None if kind is None else (kind, star)

    def add_to(self, rows: Sequence[Row]) -> None:
        """Add catalogue_type and difference (predicted − catalogued, subclasses; NaN if unknown) to each row."""
        matched = 0
        for row in rows:
            found = self.find(row["file"], row["star"])
            kind = parse(found[0]) if found else None
            matched += found is not None
            if found:
                row["star"] = found[1]
            row["catalogue_type"] = kind.spaced() if kind else ""
            row["difference"] = (row["code"] - encode(kind)) / SUBCLASS if kind and kind.sub is not None else np.nan
        if not matched:
            raise InputError(f"{self.path}: none of the {len(rows)} spectra is in it, by file or star")


def compared(rows: Sequence[Row], meta: dict[str, Any]) -> list[Table]:
    """The study's measures for rows with a catalogued type, apart for stars that the network was trained on."""
    known = [row for row in rows if np.isfinite(row["difference"])]
    if not known:
        return [Table("No spectrum has a catalogued type with a subclass: nothing to compare", [""], [])]
    seen = set(meta["seen"])
    parts = {
        "stars not trained on": [row for row in known if star_key(row["star"]) not in seen],
        "stars trained on: no test": [row for row in known if star_key(row["star"]) in seen],
    }
    results = {name: _result(part, meta["data"]) for name, part in parts.items() if part}
    lines = []
    for name, r in results.items():
        e = r.errors
        units = [f"{e[k] / SUBCLASS:.2f}" for k in ("mean", "sigma", "rms", "mae", "sigma68")]
        inside = float((np.abs(r.prediction.code - r.stars.codes()) <= r.prediction.spread).mean())
        lines.append([name, e["n"], *units, f"{e['class_accuracy']:.3f}", f"{e['luminosity_accuracy']:.3f}",
                      f"{inside:.2f}"])  # fmt: skip
    header = ["", "N", "mean", "sigma", "rms", "MAE", "sigma68", "class", "lum.", "within code_error"]
    left = len(rows) - len(known)
    measures = Table(
        "Predicted against catalogued types: errors in subclasses, shares right", header, lines,
        f"{left} spectra without a full catalogued type are not counted." if left else "",
    )  # fmt: skip
    name, first = next(iter(results.items()))
    matrix = [[c, *map(int, row)] for c, row in zip(CLASSES, confusion(first), strict=True)]
    title = f"Confusion of classes, {name}: a row is the catalogue's class, a column the predicted one"
    return [measures, Table(title, ["", *CLASSES], matrix)]


def _result(rows: Sequence[Row], kind: str) -> Result:
    """Rows with catalogued types as a `Result` of the study."""
    names = [row["star"] for row in rows]
    nothing = np.zeros((len(rows), 0), np.float32)
    types = [parse(row["catalogue_type"]) for row in rows]
    stars = Stars(nothing, types, names, [""] * len(rows), [row["file"] for row in rows], kind)
    p_class, p_luminosity = (
        np.array([[row[c] for c in columns] for row in rows]) for columns in (P_CLASS, P_LUMINOSITY)
    )
    code, spread = (np.array([row[c] for row in rows]) for c in ("code", "code_error"))
    prediction = Prediction(code, p_class, p_luminosity, spread)
    return Result(stars, prediction, errors(prediction, stars))
