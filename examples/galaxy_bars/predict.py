"""p(bar) of a folder of cut-outs, as many as there are: read in batches, kept after each, joined with a catalogue.

The file `OUT.running.csv` grows by a batch at a time. A run that was interrupted goes on from it and ends with the same
table as one that was not.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from examples.common import InputError, check_file, write_csv, write_fits
from examples.galaxy_bars import network
from examples.galaxy_bars.catalogue import Catalogue
from examples.galaxy_bars.data import CLASSES, read_image
from minidl.checkpoint import atomic_write

WEIGHTS = Path(__file__).parent / "bars.safetensors"  # trained on real SDSS galaxies: see MODEL_CARD.md
BATCH = 256  # pictures read, judged and written together


def predict(
    paths: Sequence[Path],
    weights: Path,
    out: Path,
    *,
    catalogue: Catalogue | None = None,
    pixel_scale: float | None = None,
    threshold: float = 0.5,
    views: int = network.VIEWS,
    resume: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Write a CSV or FITS table (by the ending of `out`) of file, p_bar, spread, label -> a line for each bad file.

    p_bar is calibrated by the temperature of the weights; spread is the standard deviation of p over the views. With a
    catalogue, objid and all its columns stand beside (objid is the file's name without ending). InputError if no
    picture can be read, or if `resume` finds a run with other weights or options.
    """
    check_file(out, overwrite)
    if out.suffix.lower() not in ("", ".csv", ".fits"):
        raise InputError(f"--out {out}: the table is CSV or, with the ending .fits, FITS")
    model, meta = network.load(weights)
    paths = list(dict.fromkeys(paths))
    running = out.with_name(out.name + ".running.csv")
    begun = {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "pixel_scale": pixel_scale,
        "views": views,
    }
    if running.exists() and not (resume or overwrite):
        raise InputError(f"{running} is of an interrupted run: give --resume to go on, or --overwrite to start anew")
    if resume and not running.exists():
        raise InputError(f"nothing to resume: no {running}; leave --resume away to start")
    done = _read_running(running, begun) if resume else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    if not resume:
        running.write_text(json.dumps(begun) + "\n", encoding="utf-8")
    failures: list[str] = []
    start, fresh = time.perf_counter(), 0
    names = {path: os.fsencode(path).decode("utf-8", "backslashreplace") for path in paths}
    todo = [path for path in paths if names[path] not in done]
    bar = tqdm(total=len(paths), initial=len(paths) - len(todo), unit="galaxy", leave=False,
               disable=not sys.stderr.isatty())  # fmt: skip
    with bar, open(running, "a", newline="", encoding="utf-8") as file:
        for first in range(0, len(todo), BATCH):
            batch = todo[first : first + BATCH]
            files, images = [], []
            for path in batch:
                try:
                    images.append(read_image(path, names[path], pixel_scale, meta["preprocessing"]["size"]))
                    files.append(names[path])
                except InputError as error:
                    failures.append(str(error))
                    tqdm.write(f"error: {error}", file=sys.stderr)
            if images:
                z = network.log_odds(model, np.stack(images), views) / meta["temperature"]
                p, spread = network.sigmoid(z.mean(1)), network.sigmoid(z).std(1)
                rows = [(name, f"{a:.6f}", f"{b:.6f}") for name, a, b in zip(files, p, spread, strict=True)]
                csv.writer(file).writerows(rows)
                file.flush()
                os.fsync(file.fileno())
                done |= {name: (float(a), float(b)) for name, a, b in rows}
                fresh += len(files)
            bar.update(len(batch))
    files = [name for name in names.values() if name in done]
    if not files:
        running.unlink()
        raise InputError(f"none of the {len(failures)} pictures can be read: nothing written")
    seconds = time.perf_counter() - start
    table = _table(files, np.array([done[name] for name in files]), threshold, catalogue)
    write_table(out, table, overwrite)
    running.unlink()
    barred = int(np.sum(np.array(table["p_bar"], float) >= threshold))
    print(f"{out}: {len(files)} galaxies, {barred} barred (network trained on {meta['kind']} galaxies)")
    print(f"{fresh} cut-outs in {seconds:.1f} s, {fresh / seconds:.0f} a second, the mean of {views} views of each")
    if catalogue is not None:
        known = set(catalogue.text("objid"))
        inside = sum(objid in known for objid in table["objid"])
        print(f"{inside} of them in the catalogue, which has {len(known) - inside} galaxies without a readable picture")
    return failures


def _read_running(path: Path, begun: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """What an interrupted run wrote; a line cut off by a crash is taken off the file."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    first, _, rest = whole.partition("\n")
    if first != json.dumps(begun):
        raise InputError(f"{path} was begun with other weights, --pixel-scale or --views: repeat those, or --overwrite")
    if whole != text:
        with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            file.write(whole)
    return {name: (float(p), float(spread)) for name, p, spread in csv.reader(io.StringIO(rest, newline=""))}


def _table(
    files: list[str], p: NDArray[np.float64], threshold: float, catalogue: Catalogue | None
) -> dict[str, list[Any]]:
    """Columns of the answer: p_bar and spread (n, 2) with labels, and what the catalogue says of the same objid."""
    table: dict[str, list[Any]] = {
        "file": files,
        "p_bar": [round(float(value), 4) for value in p[:, 0]],
        "spread": [round(float(value), 4) for value in p[:, 1]],
        "label": [CLASSES[int(value >= threshold)] for value in p[:, 0]],
    }
    if catalogue is not None:
        rows = dict(zip(catalogue.text("objid"), catalogue.rows, strict=True))
        table["objid"] = [_objid(name) for name in files]
        for column in catalogue.rows[0]:
            if column != catalogue.columns["objid"]:
                name = f"catalogue_{column}" if column in table else column
                table[name] = [rows.get(objid, {}).get(column, "") for objid in table["objid"]]
    return table


def _objid(file: str) -> str:
    """The name of a file without folder and endings: that of a cut-out is its objid."""
    return Path(file).name.split(".")[0]


def write_table(path: Path, table: dict[str, list[Any]], overwrite: bool) -> None:
    """Write columns as a FITS table (ending .fits) or else as CSV; columns of numbers become numbers in FITS."""
    if path.suffix.lower() != ".fits":
        write_csv(path, list(table), zip(*table.values(), strict=True), overwrite)
        return
    write_fits(path, {name: _typed(values) for name, values in table.items()}, overwrite)


def _typed(values: list[Any]) -> NDArray[Any]:
    """Integers, floats (empty cells NaN) or text, the first that fits all."""
    try:
        return np.array([int(str(value)) for value in values], np.int64)
    except (ValueError, OverflowError):
        pass
    try:
        return np.array([float(value) if value != "" else math.nan for value in values])
    except ValueError:
        return np.array([str(value) for value in values])
