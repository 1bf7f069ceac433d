"""How good the types are: errors of the code, classes right, luminosity classes right, beside the talk's figures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minidl import metrics

from ..common import InputError, Table, write_csv
from .codes import CLASSES, LUMINOSITIES, SUBCLASS, SpectralType, encode
from .data import Stars, join, load
from .network import Prediction, apply, describe
from .network import load as load_network

# What the talk, its paper and code of its group give; the tags are explained in the note of each table.
LITERATURE: list[list[object]] = [
    ["Sharma et al. 2020: convnet [paper]", "", "", "", "1.23", "", "", "", ""],
    ["Jacoby -> CFLIB: MLP [code]", 850, "-0.35", "2.46", "", "", "", "", ""],
    ["Jacoby -> CFLIB: NuSVC [code]", 850, "", "4.33", "", "", "", "", ""],
    ["Jacoby -> CFLIB: nearest neighbours [code]", 850, "", "10.04", "", "", "", "", ""],
]
PER_CLASS = dict(zip(CLASSES, (1.00, 0.93, 0.90, 0.88, 0.85, 0.80, 0.93), strict=True))  # [second-hand]
TAGS = (
    "Units: subclasses of 100 code units. [paper]: its abstract; [code]: published code of the group; [second-hand]: "
    "quoted by a third party, unchecked."
)


def types_of(prediction: Prediction) -> list[SpectralType]:
    """Types to print: the likeliest class, the code's subclass held inside that class, the likeliest luminosity."""
    types = []
    for code, p_class, p_lum in zip(prediction.code, prediction.p_class, prediction.p_luminosity, strict=True):
        cls = int(p_class.argmax())
        half = min(max(round((code - 5.5) / 50) - 20 * (cls + 1), 0), 19)
        types.append(SpectralType(CLASSES[cls], half / 2, LUMINOSITIES[int(p_lum.argmax())]))
    return types


def errors(prediction: Prediction, stars: Stars) -> dict[str, float]:
    """Errors of N typed spectra: n; mean, sigma, rms, mae, sigma68 in code units; class_accuracy, code_class_accuracy,
    luminosity_accuracy and n_luminosity.

    sigma68 is half the width that holds the middle 68 % of the errors: outliers do not move it. code_class_accuracy:
    the class read off the code alone; class_accuracy: the class head's.
    """
    error = prediction.code - stars.codes()
    cls, lum = stars.classes(), stars.luminosities()
    low, high = np.percentile(error, [15.87, 84.13])
    by_code = np.clip((prediction.code - 5.5 + 25) // 1000 - 1, 0, len(CLASSES) - 1).astype(int)
    known = lum >= 0
    right = prediction.p_luminosity.argmax(1)[known] == lum[known]
    return {
        "n": len(error), "mean": float(error.mean()), "sigma": float(error.std()),
        "rms": float(np.sqrt((error**2).mean())), "mae": float(np.abs(error).mean()), "sigma68": float(high - low) / 2,
        "class_accuracy": metrics.accuracy(cls, prediction.p_class.argmax(1)),
        "code_class_accuracy": metrics.accuracy(cls, by_code),
        "luminosity_accuracy": float(right.mean()) if known.any() else float("nan"), "n_luminosity": int(known.sum()),
    }  # fmt: skip


@dataclass
class Result:
    """One test set: its stars, what was predicted, and the errors."""

    stars: Stars
    prediction: Prediction
    errors: dict[str, float]


def unseen(stars: Stars, meta: dict[str, Any], but: Collection[tuple[str, str, str]] = ()) -> list[int]:
    """Indices of the typed spectra of stars that neither trained nor validated this network, in whatever library.

    `but` names spectra (library, star, file) to leave out. InputError if nothing is left to test on.
    """
    seen = set(meta["seen"])
    code = stars.codes()
    names = zip(stars.libraries, stars.stars, stars.files, strict=True)
    index = [i for i, name in enumerate(names) if name[1] not in seen and name not in but and np.isfinite(code[i])]
    if not index:
        raise InputError("no typed spectrum of a star that the network has not seen: nothing to test on")
    return index


def by_library(stars: Stars, prediction: Prediction) -> dict[str, Result]:
    """Results of each library, and of all together where they are several, under the name "all"."""
    results = {}
    names = sorted(set(stars.libraries))
    for name in [*names, *(["all"] if len(names) > 1 else [])]:
        index = [i for i in range(len(stars)) if name in ("all", stars.libraries[i])]
        part, predicted = stars.take(index), Prediction(*(x[index] for x in prediction))
        results[name] = Result(part, predicted, errors(predicted, part))
    return results


def test(weights: Sequence[Path], folder: Path, libraries: Sequence[str] | None) -> tuple[dict[str, Result], Any]:
    """Test a network on the stars it has not seen -> results by library, and its meta.

    Given the networks of several folds, each spectrum is tested once, by the first network that has not seen its star.
    InputError if they differ in anything but the fold.
    """
    tested: set[tuple[str, str, str]] = set()
    parts: list[Stars] = []
    predictions: list[Prediction] = []
    metas: list[dict[str, Any]] = []
    for path in weights:
        model, meta = load_network(path)
        if metas and {**meta["settings"], "fold": 0} != {**metas[0]["settings"], "fold": 0}:
            raise InputError(f"{path} and {weights[0]} are not folds of one training: their settings differ")
        metas.append(meta)
        if len(metas) == 1:
            settings = meta["settings"]
            stars = load(folder, how=settings["normalisation"], grid=settings["grid"], libraries=libraries)
        names = list(zip(stars.libraries, stars.stars, stars.files, strict=True))
        part = unseen(stars, meta, tested)
        tested |= {names[i] for i in part}
        parts.append(stars.take(part))
        predictions.append(apply(model, parts[-1].flux))
    fold = [m["settings"]["fold"] for m in metas]
    meta = {**metas[0], "settings": {**metas[0]["settings"], "fold": fold[0] if len(fold) == 1 else fold}}
    together = Prediction(*(np.concatenate(columns) for columns in zip(*predictions, strict=True)))
    return by_library(join(parts), together), meta


def tables(results: dict[str, Result], meta: dict[str, Any]) -> list[Table]:
    """The talk's figures beside ours: errors, classes, luminosity, and the confusion of classes."""
    kind = next(iter(results.values())).stars.kind

    def row(name: str, e: dict[str, float]) -> list[object]:
        units = [f"{e[k] / SUBCLASS:.2f}" for k in ("mean", "sigma", "rms", "mae", "sigma68")]
        return [f"{name} ({kind})", e["n"], *units, f"{e['class_accuracy']:.3f}", f"{e['luminosity_accuracy']:.3f}"]

    header = ["test stars", "N", "mean", "sigma", "rms", "MAE", "sigma68", "class", "lum."]
    main = Table(
        "Spectral types: errors in subclasses, share of classes and of luminosity classes right",
        header,
        [*(row(name, r.errors) for name, r in results.items()), *LITERATURE],
        f"Network: {describe(meta)}. {TAGS}",
    )
    units_rows: list[list[object]] = []
    for name, r in results.items():
        values = [f"{r.errors[k]:.1f}" for k in ("mean", "sigma", "rms", "mae", "sigma68")]
        units_rows.append([name, r.errors["n"], *values, f"{r.errors['code_class_accuracy']:.3f}"])
    units_rows.append(["Jacoby -> CFLIB: MLP [code]", 850, "-34.8", "245.8", "", "", "", ""])
    units = Table(
        "The same in units of the code 1000·A1 + 100·A2 + 2·A3 + 1.5",
        ["test stars", "N", "mean", "sigma", "rms", "MAE", "sigma68", "class from code"],
        units_rows,
        "The code cannot carry the luminosity class (8 units at most, far below sigma): a head of its own does.",
    )
    classes = Table(
        "Share of each class recognised",
        ["test stars", *CLASSES],
        [
            *([name, *(_share(r, k) for k in range(len(CLASSES)))] for name, r in results.items()),
            ["talk's network [second-hand]", *(f"{PER_CLASS[c]:.2f}" for c in CLASSES)],
        ],
        "In brackets: right/all.",
    )
    last = list(results)[-1]
    matrix = confusion(results[last])
    confused = Table(
        f"Confusion of classes, {last}: a row is the catalogue's class, a column the predicted one",
        ["", *CLASSES],
        [[c, *map(int, matrix[k])] for k, c in enumerate(CLASSES)],
    )
    giants = luminosity_confusion(results[last])
    luminous = Table(
        f"Confusion of luminosity classes, {last}",
        ["", *LUMINOSITIES],
        [[name, *map(int, giants[k])] for k, name in enumerate(LUMINOSITIES)],
    )
    return [main, units, classes, confused, luminous]


def _share(result: Result, k: int) -> str:
    cls = result.stars.classes()
    n = int((cls == k).sum())
    right = int((result.prediction.p_class.argmax(1)[cls == k] == k).sum())
    return f"{right / n:.2f} ({right}/{n})" if n else "-"


def confusion(result: Result) -> np.ndarray:
    """Counts (7, 7): rows the catalogue's class, columns the predicted one."""
    return metrics.confusion_matrix(result.stars.classes(), result.prediction.p_class.argmax(1), len(CLASSES))


def luminosity_confusion(result: Result) -> np.ndarray:
    """Counts (5, 5) of the stars whose luminosity class is known: rows the catalogue's, columns predicted."""
    lum = result.stars.luminosities()
    known = lum >= 0
    return metrics.confusion_matrix(lum[known], result.prediction.p_luminosity.argmax(1)[known], len(LUMINOSITIES))


def write(results: dict[str, Result], meta: dict[str, Any], out: Path, overwrite: bool) -> list[tuple[Path, str]]:
    """Write tables as CSV and figures as PNG into `out` -> the figures with their captions."""
    from . import figures

    out.mkdir(parents=True, exist_ok=True)
    names = ("errors", "errors_units", "classes", "confusion", "luminosities")
    for name, table in zip(names, tables(results, meta), strict=True):
        write_csv(out / f"{name}.csv", table.header, table.rows, overwrite)
    result = results[list(results)[-1]]
    rows = []
    for i, kind in enumerate(types_of(result.prediction)):
        truth = result.stars.types[i]
        assert truth is not None
        rows.append(
            [result.stars.files[i], result.stars.libraries[i], result.stars.stars[i], truth, f"{encode(truth):.1f}",
             kind, f"{result.prediction.code[i]:.1f}", f"{result.prediction.spread[i]:.1f}",
             *(f"{p:.4f}" for p in result.prediction.p_class[i])]
        )  # fmt: skip
    header = ["file", "library", "star", "catalogue_type", "catalogue_code", "predicted_type", "predicted_code"]
    write_csv(out / "predictions.csv", [*header, "code_error", *(f"p_{c}" for c in CLASSES)], rows, overwrite)
    return figures.draw(results, meta, out)
