"""How good is a picker? Precision, recall, F1 and average precision on micrographs it never saw, beside other
programs' picks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from examples.common import InputError, Table, write_csv
from examples.particle_picking import CLASSES, formats, network, picking
from examples.particle_picking.data import Collection, Entry
from examples.particle_picking.picking import Score

TALK = Table(
    "The talk's table (printed there)",
    ("data", "tool", "picked", "false", "accuracy %"),
    (
        ("β-galactosidase EMPIAR-10017", "semantic segmentation (CASSPER)", 36934, 2404, "93.5"),
        ("β-galactosidase EMPIAR-10017", "Gautomatch", 73662, 18541, "74.8"),
        ("β-galactosidase EMPIAR-10017", "crYOLO", 44591, 1787, "96"),
        ("HCN1 EMPIAR-10081", "semantic segmentation (CASSPER)", 140164, 33598, "77"),
        ("HCN1 EMPIAR-10081", "Gautomatch", 139320, 35652, "75"),
        ("HCN1 EMPIAR-10081", "crYOLO", 141002, 32375, "77"),
    ),
    "Its accuracy is 1 − false/picked, judged on 50 class averages: a precision, which says nothing of recall.",
)


@dataclass(frozen=True)
class Tested:
    """One test micrograph: prepared, all candidates, class probabilities (4, h, w), the threshold of the picker that
    saw it.
    """

    item: network.Prepared
    candidates: formats.Picks
    probability: np.ndarray
    threshold: float

    @property
    def picks(self) -> formats.Picks:
        """The candidates that pass."""
        return self.candidates.above(self.threshold)


@dataclass(frozen=True)
class Evaluation:
    """All test micrographs, the matching radius in px, and other programs' picks by name and micrograph."""

    collection: Collection
    pickers: list[network.Picker]
    tested: list[Tested]
    radius: float
    others: dict[str, dict[str, formats.Picks]]

    def rows(self) -> list[tuple[str, Score]]:
        """(micrograph, score) of the network's picks."""
        return [(t.item.entry.name, picking.score(t.item.xy, t.picks, self.radius)) for t in self.tested]

    def total(self) -> Score:
        """All test micrographs together."""
        return sum((s for _, s in self.rows()), Score(0, 0, 0))

    def curve(self) -> picking.Curve:
        """Precision and recall of all test micrographs together at each threshold."""
        return picking.curve([t.item.xy for t in self.tested], [t.candidates for t in self.tested], self.radius)

    def baseline(self) -> picking.Curve:
        """The Laplacian of Gaussian on the same micrographs."""
        found = [picking.log_picks(t.item.enhanced) for t in self.tested]
        return picking.curve([t.item.xy for t in self.tested], found, self.radius)

    def other_score(self, name: str) -> Score:
        """The same test micrographs, picks of another program, one to one."""
        pairs = [(t.item.xy, self.others[name][t.item.entry.name]) for t in self.tested]
        return sum((picking.score(xy, picks, self.radius) for xy, picks in pairs), Score(0, 0, 0))


def evaluate(collection: Collection, pickers: Sequence[network.Picker], *, progress: bool = True) -> Evaluation:
    """Run each picker on its own test micrographs (all, if the folder has none it was trained with)."""
    from tqdm import tqdm

    names = {entry.name for entry in collection.entries if entry.coords}
    jobs: list[tuple[network.Picker, Entry]] = []
    for picker in pickers:
        parts = picker.meta["split"]
        known = names & {*parts["train"], *parts["val"], *parts["test"]}
        wanted = names & set(parts["test"]) if known else names
        jobs += [(picker, entry) for entry in collection.named(sorted(wanted))]
    if len({entry.name for _, entry in jobs}) < len(jobs):
        raise InputError("two of the weights have the same test micrographs; give one file for each fold")
    if not jobs:
        raise InputError(f"{collection.folder}: none of the test micrographs of these weights has coordinates here")
    tested = []
    for picker, entry in tqdm(jobs, "testing", leave=False, disable=None if progress else True):
        item = network.prepare(collection, entry)
        candidates, probability = picker.look(item.enhanced)
        tested.append(Tested(item, candidates, probability, picker.threshold))
    others: dict[str, dict[str, formats.Picks]] = {}
    for name in sorted({name for _, entry in jobs for name in entry.pickers}):
        have = {t.item.entry.name: t for t in tested if name in t.item.entry.pickers}
        if len(have) == len(tested):  # compare on the same micrographs or not at all
            others[name] = {
                n: formats.read_coordinates(t.item.entry.pickers[name], flip_height=t.item.enhanced.shape[0])
                for n, t in have.items()
            }
    return Evaluation(collection, list(pickers), tested, collection.diameter / 2, others)


OTHER_NAMES = {
    "cassper": "CASSPER (published picks)",
    "cryolo": "crYOLO (published picks)",
    "gautomatch": "Gautomatch (published picks)",
}


def tables(result: Evaluation) -> list[Table]:
    """Ours beside the other programs on the same micrographs; each micrograph; the talk's table."""
    kind = result.collection.kind
    total, ap = result.total(), result.curve().average_precision
    taught = result.pickers[0].meta["kind"]
    ours = result.pickers[0].label + (f" (trained on {taught} data)" if taught != kind else "")
    rows = [(ours, *_cells(total), f"{ap:.3f}")]
    rows += [(OTHER_NAMES.get(n, n), *_cells(result.other_score(n)), "") for n in result.others]
    blobs = result.baseline()
    best = blobs.scores[int(np.argmax(blobs.f1))]
    rows.append(("Laplacian of Gaussian, best threshold", *_cells(best), f"{blobs.average_precision:.3f}"))
    folds = (
        f"{len(result.pickers)} folds, each tested by a network that never saw it; " if len(result.pickers) > 1 else ""
    )
    note = (
        f"{folds}hit = one to one within {result.radius:.3g} px (half a diameter), nearest pair first; threshold from"
        " validation. The Laplacian of Gaussian learns nothing; its threshold is the best on the test, in its favour."
        + (" Expert picks miss some true particles, so precision is a lower bound." if kind == "real" else "")
    )
    compared = Table(f"Picking on {len(result.tested)} test micrographs ({kind})", HEADER, rows, note)
    truth = {t.item.entry.name: t.item.xy for t in result.tested}
    found = {ours: {t.item.entry.name: (t.picks, t.candidates) for t in result.tested}}
    for n, picks in result.others.items():
        found[OTHER_NAMES.get(n, n)] = {name: (picks[name], picks[name]) for name in truth}
    each = each_table(found, truth, result.radius, f"Each test micrograph ({kind})")
    return [compared, each, TALK, *([masks] if (masks := mask_table(result)) else [])]


Judged = dict[str, tuple[formats.Picks, formats.Picks]]  # by micrograph: the picks, and all candidates with scores


def each_table(found: dict[str, Judged], truth: dict[str, np.ndarray], radius: float, title: str) -> Table:
    """Every micrograph by every picker."""
    rows = [
        (name, picker, *_cells(picking.score(truth[name], judged[name][0], radius)),
         average_precision([truth[name]], [judged[name][1]], radius))
        for name in sorted(truth)
        for picker, judged in found.items()
    ]  # fmt: skip
    return Table(title, ("micrograph", "picker", *HEADER[1:]), rows)


HEADER = ("picker", "marked", "picked", "false", "precision", "recall", "F1", "AP")


def score_tables(found: dict[str, Judged], truth: dict[str, np.ndarray], radius: float) -> list[Table]:
    """Any picks by any true centres: all micrographs together, and each; a micrograph without picks has none found."""
    nothing = formats.Picks(np.empty((0, 2)), np.empty(0))
    full = {picker: {name: judged.get(name, (nothing, nothing)) for name in truth} for picker, judged in found.items()}
    rows = []
    for picker, judged in full.items():
        total = sum((picking.score(xy, judged[name][0], radius) for name, xy in truth.items()), Score(0, 0, 0))
        ap = average_precision(list(truth.values()), [judged[name][1] for name in truth], radius)
        rows.append((picker, *_cells(total), ap))
    note = f"hit = one to one within {radius:.3g} px (half a diameter), nearest pair first."
    compared = Table(f"Picks on {len(truth)} micrographs", HEADER, rows, note)
    return [compared, each_table(full, truth, radius, "Each micrograph")]


def average_precision(truths: list[np.ndarray], candidates: list[formats.Picks], radius: float) -> str:
    """Average precision of candidates whose scores may be of any scale, as a cell; empty where they have no scores.

    Only the order of scores counts, so each is replaced by its rank.
    """
    scores = np.concatenate([picks.score for picks in candidates])
    if not len(scores) or np.isnan(scores).any() or np.ptp(scores) == 0:
        return ""
    rank = picking.FLOOR + (1 - 2 * picking.FLOOR) * rankdata(scores, "max") / len(scores)
    parts = np.split(rank, np.cumsum([len(picks) for picks in candidates])[:-1])
    ranked = [formats.Picks(picks.xy, part) for picks, part in zip(candidates, parts, strict=True)]
    return f"{picking.curve(truths, ranked, radius).average_precision:.3f}"


def read_picks(folder: Path, threshold: float | None, heights: Mapping[str, int] | None = None) -> Judged:
    """The picks of a folder and all candidates, where its .cbox has them; a `threshold` cuts the candidates anew."""
    every = formats.read_folder(folder, candidates=True, heights=heights)
    if threshold is not None:
        return {name: (picks.above(threshold), picks) for name, picks in every.items()}
    chosen = formats.read_folder(folder, heights=heights)
    return {name: (picks, every[name]) for name, picks in chosen.items()}


def score(
    folders: Sequence[Path],
    coords: Path,
    out: Path,
    *,
    diameter: float | None = None,
    threshold: float | None = None,
    flip: Sequence[str] = (),
    height: int | None = None,
) -> list[Table]:
    """Judge folders of picks by a folder of true coordinates, and write both tables as CSV to `out`.

    Only micrographs with true coordinates count. `flip` names the folders whose rows count from the bottom of
    `height`. Raises InputError if no micrograph is in both or the `diameter` in px is nowhere given.
    """
    marked = formats.read_folder(coords)
    across = diameter or next((picks.diameter for picks in marked.values() if picks.diameter), None)
    if across is None:
        raise InputError(f"{coords}: its files have no diameter: give --diameter, as 108 (px) or 190A (Å)")
    if unknown := set(flip) - {folder.name for folder in folders}:
        raise InputError(f"--flip {min(unknown)}: none of the folders of --picks is named so")
    if flip and height is None:
        raise InputError("--flip needs the number of rows of a micrograph: give --height")
    truth = {name: picks.xy for name, picks in marked.items()}
    found = {}
    for folder in folders:
        heights = dict.fromkeys(truth, height or 0) if folder.name in flip else None
        found[folder.name] = read_picks(folder, threshold, heights)
        if not truth.keys() & found[folder.name].keys():
            raise InputError(f"{folder}: none of its micrographs ({min(found[folder.name])} ..) is in {coords}")
    made = score_tables(found, truth, across / 2)
    for name, table in zip(("comparison", "micrographs"), made, strict=True):
        write_csv(out / f"{name}.csv", table.header, table.rows, overwrite=True)
    return made


def _cells(score: Score) -> tuple[object, ...]:
    false = score.picked - score.hits
    return (score.marked, score.picked, false, f"{score.precision:.3f}", f"{score.recall:.3f}", f"{score.f1:.3f}")


def mask_table(result: Evaluation) -> Table | None:
    """How well the mask's ice and carbon agree with the given masks: intersection over union (None without)."""
    rows = []
    for k in (2, 3):
        both = either = marked = 0
        for t in result.tested:
            if t.item.entry.semantic:
                truth, found = t.item.label == k, (t.probability.argmax(0) == k) & (t.item.label != network.IGNORE)
                both, either = both + int((truth & found).sum()), either + int((truth | found).sum())
                marked += int(truth.sum())
        if marked:
            rows.append((CLASSES[k], marked, f"{both / either:.3f}"))
    title = f"Pixels of the mask ({result.collection.kind}; {network.WORKING} px to a particle)"
    return Table(title, ("class", "marked px", "intersection / union"), rows) if rows else None


def write(result: Evaluation, out: Path) -> tuple[list[Table], list[tuple[Path, str]]]:
    """Write tables (CSV), summary.json and figures (PNG) to `out`; returns the tables and (figure, caption)."""
    from examples.particle_picking import figures

    made = tables(result)
    for name, table in zip(("comparison", "micrographs", "talk", "mask"), made, strict=False):
        write_csv(out / f"{name}.csv", table.header, table.rows, overwrite=True)
    curve = result.curve()
    rows = zip(curve.thresholds, curve.precision, curve.recall, curve.f1, strict=True)
    write_csv(
        out / "curve.csv",
        ("threshold", "precision", "recall", "f1"),
        [[f"{v:.4f}" for v in row] for row in rows],
        overwrite=True,
    )
    total = result.total()
    summary = {
        "kind": result.collection.kind,
        "micrographs": [t.item.entry.name for t in result.tested],
        "precision": total.precision,
        "recall": total.recall,
        "f1": total.f1,
        "average_precision": curve.average_precision,
        "thresholds": [picker.threshold for picker in result.pickers],
    }
    with formats.atomic_write(out / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=1) + "\n")
    return made, figures.draw_all(result, out)
