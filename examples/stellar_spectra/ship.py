"""The weights that come with the program, and their model card."""

from __future__ import annotations

import hashlib
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import minidl
from minidl import checkpoint
from minidl.checkpoint import atomic_write

from ..common import Table
from . import evaluate, network
from .codes import CLASSES, LUMINOSITIES, SUBCLASS
from .network import Settings
from .study import ALL, GAPS, LEADING, Study, cut, predict_folds, within

CARD = "MODEL_CARD.md"


def ship(study: Study, out: Path, seed: int = 0) -> list[Table]:
    """Train on every typed spectrum of all libraries, write `out` and the model card beside it -> the card's tables.

    The card's figures come from the study's five folds: there, each star is tested by a network that has not seen it.
    The network that is shipped has seen them all.
    """
    settings = Settings.of("cnn", lead=LEADING, use="all", seed=seed)
    model, meta = network.train(study.some(ALL, "5550"), out, settings, progress=False)
    return describe(study, model, meta, out)


def describe(study: Study, model: network.StarNetwork, meta: dict[str, Any], out: Path) -> list[Table]:
    """Give the network the floor of its errors, write it and its card -> the card's tables.

    The floor is what the five folds' errors in MILES and STELIB ask for: CFLIB's would flatter whoever brings spectra
    of another telescope.
    """
    stars, raw = predict_folds(study, "cnn", "5550", floor=False)
    strange = np.array([name != LEADING for name in stars.libraries])
    floor = network.error_floor((raw.code - stars.codes())[strange], raw.spread[strange])
    model.floor[0] = floor
    checkpoint.save(out, model, meta=meta, epoch=len(meta["history"]))
    results = evaluate.by_library(*predict_folds(study, "cnn", "5550"))
    del results["all"]
    tables = [_errors(results), _classes(results), _luminosities(results[LEADING]), _gaps(study)]
    text = _card(tables, out, meta, floor)
    with atomic_write(out.with_name(CARD)) as part:
        Path(part).write_text(text, encoding="utf-8")
    return tables


def _errors(results: dict[str, evaluate.Result]) -> Table:
    rows = []
    for name, r in results.items():
        e = r.errors
        units = [f"{e[k] / SUBCLASS:.2f}" for k in ("mean", "sigma", "rms", "mae", "sigma68")]
        shares = [f"{e['class_accuracy']:.3f}", f"{e['luminosity_accuracy']:.3f}", f"{within(r):.2f}"]
        rows.append([name, e["n"], *units, *shares])
    header = ["tested", "N", "mean", "sigma", "rms", "MAE", "sigma68", "class", "luminosity", "within the error"]
    return Table("Errors in subclasses and shares right, five folds", header, rows)


def _classes(results: dict[str, evaluate.Result]) -> Table:
    rows = []
    for name, r in results.items():
        matrix = evaluate.confusion(r)
        rows.append([name, *(f"{matrix[k, k]}/{matrix[k].sum()}" for k in range(len(CLASSES)))])
    return Table("Classes right", ["tested", *CLASSES], rows)


def _luminosities(r: evaluate.Result) -> Table:
    counts = evaluate.luminosity_confusion(r)
    rows = [[name, *map(int, counts[k])] for k, name in enumerate(LUMINOSITIES)]
    return Table("Luminosity classes of CFLIB: rows the catalogue's, columns predicted", ["", *LUMINOSITIES], rows)


def _gaps(study: Study) -> Table:
    """What it costs that a part was not measured, and whether the predicted error says so."""
    rows = []
    for name, gap in GAPS.items():
        results = evaluate.by_library(*predict_folds(study, "cnn", "5550", change=partial(cut, gap)))
        cells = [f"{r.errors['sigma68'] / SUBCLASS:.2f}, {within(r):.2f}" for n, r in results.items() if n != "all"]
        rows.append([name, f"{1 - gap.mean():.2f}", *cells])
    header = ["taken away", "share left", *(name for name in results if name != "all")]
    return Table("With a part taken away: sigma68, share within the error", header, rows)


def _markdown(table: Table) -> str:
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def _card(tables: list[Table], out: Path, meta: dict[str, Any], floor: float) -> str:
    s = meta["settings"]
    size = np.sum([p.size for p in network.load(out)[0].parameters()])
    members = f"{s['members']} one-dimensional convnets ({size} weights together)"
    settings = textwrap.fill(", ".join(f"{k} {v}" for k, v in s.items()), 116, subsequent_indent="  ")
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    return f"""# Model card: `{out.name}`

Types of stars, O to M with subclass and luminosity class, from optical spectra. Inside are
{members} whose answers are averaged. Made by minidl {minidl.__version__}.
SHA-256 `{digest}`.

- **Input**: 580 bins of 5 Å, 3900-6800 Å in air and at rest, 4.5 Å FWHM, divided by the flux at 5550 Å, as
  `preprocess.py` makes them of any spectrum. Gaps are filled from principal components; 65 % must be measured.
- **Output**: the code 1000·A1 + 100·A2 + 2·A3 + 1.5 with an error, probabilities of O..M and of I..V. The error is the
  members' scatter and, added in squares, what gaps leave open and {floor / SUBCLASS:.2f} subclasses that all share, so
  that 68 % of the errors in MILES and STELIB lie within: for spectra like CFLIB's it is three times too large.
- **Trained on** {meta["counts"]["train"]} real spectra: Indo-US / CFLIB (743 of its stars, types cleaned by
  K. Sharma et al.), MILES 9.1, STELIB 3.2, PyHammer's templates. CFLIB leads: an epoch shows its spectra three times.
- **Made with** `python -m examples.stellar_spectra ship --study study --out {out.name} --seed {s["seed"]}`
  ({settings}).

## How good it is

The shipped network has seen every star it could be tested on here. The figures are those of five like it, each trained
on four fifths of the stars of CFLIB and MILES (split by star over both, seed 0) and tested on the last fifth; STELIB
was never trained on in this test. Errors are in subclasses; "within the error" is the share of errors below the
predicted one.

{_markdown(tables[0])}

{tables[1].title}:

{_markdown(tables[1])}

{tables[2].title}:

{_markdown(tables[2])}

{tables[3].title}:

{_markdown(tables[3])}

The settings were chosen on the validation parts of folds 1 to 4; stars of fold 0 took part in no choice (README).

## Limits

- **CFLIB flatters.** Its flux was calibrated with standard spectra of the star's known type (Valdes et al. 2004), so
  the slope of the spectrum carries the label. For another telescope's spectra expect the errors of MILES and STELIB.
- Catalogues differ: CFLIB and MILES by 1.0 subclass (sigma, 403 common stars). Across them no network does better.
- Few O stars (20) and hardly any of luminosity II (48). Reddening is not told from
  temperature (README, "Dust").
- There is nothing but O..M: white dwarfs, carbon, S and Wolf-Rayet stars, brown dwarfs, galaxies and quasars get a type
  all the same; look at the flag `outlier`. Of a composite spectrum the brighter star's type is meant, not always found.
- A velocity of 300 km/s shifts a spectrum by one bin: give the redshift.

## Who should not use it

Whoever needs a type to publish: this is a first guess with an error, to sort thousands of spectra by. Nobody should
take temperatures, distances or ages from it, or types of stars of odd composition, for which the MK scale is not made.
"""
