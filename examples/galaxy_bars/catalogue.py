"""Catalogues of galaxies: objid, place on the sky, radii, votes; and the selection of the talk.

A catalogue is a CSV or FITS table as the SDSS and Galaxy Zoo 2 give it. Its columns are known by the names of either
(`NAMES`), in capitals or not; all others are kept and carried along.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.common import InputError, write_csv

NAMES = {
    "objid": ("objid", "dr7objid", "dr8objid"),
    "ra": ("ra",),
    "dec": ("dec",),
    "radius": ("devrad_r",),  # de Vaucouleurs, r band, arcsec
    "r": ("modelmag_r", "petromag_r", "r"),
    "z": ("z", "redshift"),
    "half_light": ("petror50_r", "r50"),  # arcsec
    "edge_on": ("t02_edgeon_a04_yes_debiased", "p_edge_on"),
    "bar": ("t03_bar_a06_bar_debiased", "p_bar"),
    "votes": ("n_votes",),  # number of people who answered the question for a bar
    "label": ("label",),
}


@dataclass
class Catalogue:
    """Rows of text by column, and the column in which each known quantity stands."""

    rows: list[dict[str, str]]
    columns: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        have = {name.lower(): name for name in (self.rows[0] if self.rows else {})}
        known = {what: [have[name] for name in names if name in have] for what, names in NAMES.items()}
        self.columns = {what: found[0] for what, found in known.items() if found}

    def text(self, what: str) -> list[str]:
        """A known quantity as it is written."""
        return [row[self.columns[what]].strip() for row in self.rows]

    def numbers(self, what: str) -> NDArray[np.float64]:
        """A known quantity (n,), NaN where the table has no number."""
        return np.array([_number(text) for text in self.text(what)], float)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def read_catalogue(path: Path) -> Catalogue:
    """Read a CSV or FITS table; InputError unless it has objid, ra and dec, and each objid once."""
    if not path.is_file():
        raise InputError(f"no catalogue at {path}")
    rows = _read_fits(path) if path.name.lower().endswith((".fits", ".fits.gz", ".fit")) else _read_csv(path)
    if not rows:
        raise InputError(f"{path}: no galaxies in this table")
    catalogue = Catalogue(rows)
    if missing := [" or ".join(NAMES[what]) for what in ("objid", "ra", "dec") if what not in catalogue.columns]:
        raise InputError(f"{path}: no column {', '.join(missing)}; it has {', '.join(list(rows[0])[:12])}")
    seen: dict[str, int] = {}
    for number, objid in enumerate(catalogue.text("objid"), start=1):
        if not objid or objid in seen or not objid.replace("-", "").replace("_", "").isalnum():
            was = f"also in row {seen[objid]}" if objid in seen else "letters, digits, - and _ are wanted"
            raise InputError(f"{path}, row {number}: objid {objid!r}: {was}")
        seen[objid] = number
    return catalogue


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = (line for line in file if not line.startswith("#"))  # CasJobs and SkyServer begin with "#Table1"
            return [
                {name: text or "" for name, text in row.items() if name is not None}
                for row in csv.DictReader(lines, skipinitialspace=True)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV table ({error})") from error


def _read_fits(path: Path) -> list[dict[str, str]]:
    from astropy.table import Table

    try:
        table = Table.read(path, format="fits")
        columns = {name: ["" if v is None else str(v) for v in table[name].tolist()] for name in table.colnames}
    except Exception as error:  # astropy raises nearly anything on a damaged file
        raise InputError(f"{path}: not a FITS table ({' '.join(str(error).split())[:120]})") from error
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@dataclass
class Cuts:
    """Which galaxies are taken. Magnitude, redshift and half-light radius are the talk's.

    The limit on edge-on votes is that of Willett et al. 2013 (table 3) for the question for a bar, and so is the least
    number of voters; the votes that make a galaxy barred or unbarred are those of the sample this network learned from.
    """

    r_from: float = 14.0
    r_to: float = 17.4
    z_to: float = 0.2
    half_light_from: float = 5.0
    half_light_to: float = 30.0
    edge_on_to: float = 0.285
    votes_from: float = 20.0
    barred_from: float = 0.8
    unbarred_to: float = 0.0


def select(catalogue: Catalogue, cuts: Cuts) -> tuple[NDArray[np.bool_], list[str]]:
    """Which rows pass (n,), and a line for each cut: how many it leaves, or that its column is missing.

    A galaxy without a number in a column that is cut does not pass. Votes only label: see `labels`.
    """
    inside = {
        "r": ("r magnitude", cuts.r_from, cuts.r_to),
        "z": ("redshift", 0.0, cuts.z_to),
        "half_light": ("half-light radius", cuts.half_light_from, cuts.half_light_to),
        "edge_on": ("votes for edge-on", 0.0, cuts.edge_on_to),
        "votes": ("number of voters", cuts.votes_from, math.inf),
    }
    mask, lines = np.ones(len(catalogue.rows), bool), []
    for what, (name, low, high) in inside.items():
        if what not in catalogue.columns:
            lines.append(f"{name}: no column {' or '.join(NAMES[what])}, not cut")
            continue
        values = catalogue.numbers(what)
        mask &= (values >= low) & (values <= high)
        lines.append(f"{name} {low:g} ... {high:g}: {mask.sum()} left")
    return mask, lines


def labels(catalogue: Catalogue, cuts: Cuts) -> list[str]:
    """ "barred", "unbarred", or "" for votes between; the catalogue's own column `label` goes before its votes."""
    if "label" in catalogue.columns:
        return catalogue.text("label")
    if "bar" not in catalogue.columns:
        return [""] * len(catalogue.rows)
    votes = catalogue.numbers("bar")
    return ["barred" if v >= cuts.barred_from else "unbarred" if v <= cuts.unbarred_to else "" for v in votes]


def write_selection(path: Path, catalogue: Catalogue, mask: NDArray[np.bool_], own: list[str], overwrite: bool) -> None:
    """Write the rows that passed, with their labels, as CSV."""
    name = catalogue.columns.get("label", "label")
    header = list(dict.fromkeys([*catalogue.rows[0], name]))
    rows = [{**row, name: label} for row, label, taken in zip(catalogue.rows, own, mask, strict=True) if taken]
    write_csv(path, header, ([row[column] for column in header] for row in rows), overwrite)


def write_labels(folder: Path, catalogue: Catalogue, files: dict[str, str]) -> int:
    """Write labels.csv (file, label, all of the catalogue) for those of `files` (objid -> file) whose label is known.

    Such a folder is what `train --data` reads. Returns the number of galaxies with a label; with none, no file.
    """
    own = labels(catalogue, Cuts())
    known = {"barred", "unbarred"}
    chosen = [
        (files[objid], label, row)
        for objid, label, row in zip(catalogue.text("objid"), own, catalogue.rows, strict=True)
        if label in known and objid in files
    ]
    if chosen:
        rest = [name for name in catalogue.rows[0] if name.lower() not in ("file", "label")]
        names = ["p_bar" if name == catalogue.columns.get("bar") else name for name in rest]
        rows = [[file, label, *(row[name] for name in rest)] for file, label, row in chosen]
        write_csv(folder / "labels.csv", ["file", "label", *names], rows, overwrite=True)
    return len(chosen)
