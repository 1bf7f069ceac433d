"""How many labels does a picker need? The same test micrographs, and 1, 2, 4, 8 micrographs or 100 picks to learn from.

Nothing but those labels is used: no validation micrograph, so the last epoch stays and the threshold comes from the
micrographs trained on. `python -m examples.particle_picking study --out study` goes on where it stopped.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import minidl
from examples.common import Table, write_csv
from examples.particle_picking import crops, network, picking
from examples.particle_picking.crops import IGNORE, Prepared
from examples.particle_picking.data import Collection, Split, split
from examples.particle_picking.enhance import WORKING
from examples.particle_picking.network import Training
from examples.particle_picking.picking import Score

LABELS = ("100 picks", "1", "2", "4", "8")  # "100 picks": a strip of one micrograph; the rest whole micrographs
HEADER = ("method", "labels", "fold", "particles", "threshold", "hits", "picked", "marked")
WAYS = {  # name: method, whether it starts from simulated micrographs
    "U-Net from simulated": ("segmentation", True),
    "U-Net from nothing": ("segmentation", False),
    "templates": ("template", False),
    "Laplacian of Gaussian": ("log", False),
}


def strip(item: Prepared, count: int = 100) -> Prepared:
    """The upper strip of a micrograph that holds `count` picks; what lies below is not labelled."""
    order = np.argsort(item.points[:, 1], kind="stable")[:count]
    end = int(np.ceil(item.points[order[-1], 1])) if len(order) else 0
    classes = item.classes.copy()
    classes[end:] = IGNORE
    live = item.enhanced.live.copy()
    live[end + WORKING // 2 + 1 :] = False  # so that nothing is picked there when the threshold is chosen
    return replace(item, xy=item.xy[order], classes=classes, enhanced=replace(item.enhanced, live=live))


def chosen(parts: Split, ready: dict[str, Prepared], labels: str, fold: int) -> list[Prepared]:
    """The micrographs to learn from: those of training and validation, in an order that `fold` shuffles."""
    names = np.random.default_rng(fold).permutation(sorted(parts.train + parts.val))
    if labels.endswith("picks"):
        return [strip(ready[names[0]], int(labels.split()[0]))]
    return [ready[name] for name in names[: int(labels)]]


def run(
    ways: Sequence[str],
    folds: Sequence[int],
    collection: Collection,
    out: Path,
    start: Path | None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Iterator[dict[str, Any]]:
    """One line for each way, number of labels and fold, written to `out`/runs.csv as it is known."""
    path = out / "runs.csv"
    done = list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []
    yield from done
    known = {(row["method"], row["labels"], int(row["fold"])) for row in done}
    ready: dict[str, Prepared] = {}
    for fold in folds:
        parts = split(collection, fold=fold)
        for labels in LABELS:
            for way in ways:
                if (way, labels, fold) in known or (labels.isdigit() and int(labels) > len(parts.train + parts.val)):
                    continue
                for entry in collection.named(parts.train + parts.val + parts.test):
                    if entry.name not in ready:
                        ready[entry.name] = crops.prepare(collection, entry)
                row = _one(way, chosen(parts, ready, labels, fold), [ready[n] for n in parts.test], start, seed)
                done.append({"method": way, "labels": labels, "fold": fold, **row})
                write_csv(path, HEADER, [[line[name] for name in HEADER] for line in done], overwrite=True)
                if progress:
                    print(" ".join(str(done[-1][name]) for name in HEADER), flush=True)
                yield done[-1]


def _one(
    way: str, training: Sequence[Prepared], test: Sequence[Prepared], start: Path | None, seed: int
) -> dict[str, Any]:
    method, begun = WAYS[way]
    minidl.manual_seed(seed)
    picker = network.new_picker(method)
    how = Training(epochs=16, seed=seed, progress=False)
    if begun and start is not None:
        network.begin(picker, start)
        how = replace(how, epochs=8, lr=1e-3)
    picker.fit(training, [], how)
    picker.calibrate(training)
    total = sum(
        (picking.score(i.xy, picker.pick(i.enhanced).above(picker.threshold), i.diameter / 2) for i in test),
        Score(0, 0, 0),
    )
    return {
        "particles": sum(len(item.xy) for item in training),
        "threshold": f"{picker.threshold:.2f}",
        "hits": total.hits,
        "picked": total.picked,
        "marked": total.marked,
    }


def table(lines: Sequence[dict[str, Any]], kind: str) -> Table:
    """F1 of each way (rows) at each number of labels (columns), test micrographs of all folds together."""
    folds = sorted({int(line["fold"]) for line in lines})
    columns = [n for n in LABELS if any(line["labels"] == n for line in lines)]
    rows = []
    for way in WAYS:
        cells = []
        for labels in columns:
            some = [line for line in lines if (line["method"], line["labels"]) == (way, labels)]
            total = sum((Score(*(int(line[n]) for n in ("hits", "picked", "marked"))) for line in some), Score(0, 0, 0))
            cells.append(f"{total.f1:.3f}" if some else "")
        if any(cells):
            rows.append((way, *cells))
    header = ("F1 on test", *(n if n.endswith("picks") else f"{n} micrographs" for n in columns))
    note = (
        f"test micrographs of folds {', '.join(map(str, folds))} together; no validation micrographs: threshold from"
        " those trained on"
    )
    return Table(f"Learning from few labels ({kind})", header, rows, note)
