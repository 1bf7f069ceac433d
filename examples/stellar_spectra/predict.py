"""Types of a list of files: a bad file is reported and the rest goes on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..common import InputError, check_file, write_csv
from .codes import CLASSES, SUBCLASS, decode, encode
from .evaluate import types_of
from .network import apply, load
from .preprocess import prepare
from .readers import Given, read

DISAGREEMENT = 7.0  # subclasses between the printed type and the code from which on a type is called doubtful
HEADER = ["file", "spectral_type", "code", *(f"p_{c}" for c in CLASSES)]


def predict(
    files: Sequence[Path], weights: Path, out: Path, *, fwhm: float | None = None, overwrite: bool = False
) -> int:
    """Write file, spectral_type, code, p_O ... p_M for each file that can be read -> 1 if any could not, else 0.

    Where the two heads contradict each other, the file is named on stderr as doubtful.
    `fwhm`: resolution of the files in Å, where their headers do not say. InputError if none can be used.
    """
    given = Given(fwhm=fwhm)
    check_file(out, overwrite)
    model, meta = load(weights)
    how = meta["settings"]["normalisation"]
    used, flux, bad = [], [], 0
    for file in files:
        try:
            spectrum = read(file, given)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            bad += 1
            continue
        try:
            flux.append(prepare(spectrum, how=how))
            used.append(file)
        except InputError as error:
            print(f"error: {file}: {error}", file=sys.stderr)
            bad += 1
    if not used:
        raise InputError(f"none of the {len(files)} files holds a usable spectrum; nothing written")
    prediction = apply(model, np.stack(flux))
    types = types_of(prediction)
    for file, kind, code in zip(used, types, prediction.code, strict=True):
        if abs(encode(kind) - code) > DISAGREEMENT * SUBCLASS:
            print(f"doubtful: {file}: class says {kind}, code {code:.0f} says {decode(code)[0]}", file=sys.stderr)
    columns = zip(used, types, prediction.code, prediction.p_class, strict=True)
    rows = [[file, kind, f"{code:.1f}", *(f"{p:.4f}" for p in p_class)] for file, kind, code, p_class in columns]
    write_csv(out, HEADER, rows, overwrite)
    trained_on = "simulated spectra: a lesson, not a measurement" if meta["data"] == "simulated" else "real spectra"
    print(f"{len(used)} types in {out} (network trained on {trained_on})" + (f"; {bad} files left out" if bad else ""))
    return 1 if bad else 0
