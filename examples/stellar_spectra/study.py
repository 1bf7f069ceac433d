"""The study: which network, which stars to learn from, how much light, how many labels.

`python -m examples.stellar_spectra study --out study` trains everything again, three quarters of an hour of one
processor, a part at a time and going on where it stopped: each training adds its lines to `runs.csv`; tables and
figures are made of them. Nothing is chosen here by what a test says; the settings were chosen on validation parts
(README).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..common import InputError, Table
from . import data, evaluate, network
from .codes import SUBCLASS
from .data import Stars
from .evaluate import LITERATURE, Result
from .network import Prediction, Settings
from .preprocess import CENTRES
from .simulate import extinction

LEADING = "cflib_dev"  # the library whose cleaned types set the scale
FOLDED = [LEADING, "miles"]  # trained on in the five folds; STELIB is tested only
TEMPLATES = "pyhammer_templates"
ALL = [*FOLDED, "stelib", TEMPLATES]
NETWORKS = [("tanh", "5550"), ("deep", "5550"), ("cnn", "5550"), ("tanh", "continuum"), ("cnn", "continuum")]
SNR = (5, 10, 20, 50, 100)  # for a bin of 5 Å at 5550 Å
DUST = (0.05, 0.1, 0.3, 1.0)  # E(B−V), magnitudes
PRETRAINING = {  # what an autoencoder had to do before it saw a label
    "none": "none",
    "nothing": "rebuilding",
    "noise": "denoising",
    "masks": "filling in masked stretches",
}
LABELS = {25: 200, 50: 120, 100: 70, 400: 25, 1400: 12}  # labelled spectra: epochs, for 200 to 500 steps each
GAPS = {  # bins taken away
    "nothing": CENTRES < 0,
    "to 4480 Å": CENTRES < 4480,
    "to 5000 Å": CENTRES < 5000,
    "4600 to 5400 Å": np.abs(CENTRES - 5000) < 400,
    "from 5700 Å": CENTRES > 5700,
}
CROSSINGS: list[tuple[str, list[str], list[str], dict[str, Any]]] = [  # name, trained on, tested on, settings
    ("158 of MILES", ["miles"], [LEADING, "stelib"], {"labels": 158}),  # as many as Jacoby's atlas has
    ("158 of MILES, drawn evenly", ["miles"], [LEADING, "stelib"], {"labels": 158, "draw": "even"}),
    ("158 of MILES, jitter 4", ["miles"], [LEADING, "stelib"], {"labels": 158, "jitter": 4.0}),
    ("MILES", ["miles"], ["stelib", LEADING], {}),
    ("A: MILES + STELIB + templates", ["miles", "stelib", TEMPLATES], [LEADING], {}),
    ("CFLIB", [LEADING], ["miles", "stelib"], {}),
    ("B: STELIB + templates, 1900 bins", ["stelib", TEMPLATES], [LEADING], {"grid": "1900"}),
    ("B's stars, 580 bins", ["stelib", TEMPLATES], [LEADING], {}),
]
MEASURES = ("mean", "sigma", "rms", "mae", "sigma68", "class_accuracy", "luminosity_accuracy")
COLUMNS = ("part", "run", "seed", "test", "n", *MEASURES)
SHAPES = {"5550": "flux", "continuum": "lines"}
Line = dict[str, Any]
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Study:
    """What is done and what is left: runs in `out`/runs.csv, weights of the folds in `out`/weights."""

    def __init__(self, folder: Path, out: Path, seeds: int = 5) -> None:
        self.folder, self.out, self.seeds = folder, out, seeds
        self.path = out / "runs.csv"
        (out / "weights").mkdir(parents=True, exist_ok=True)
        self.lines: list[Line] = []
        if self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                self.lines = [
                    {**row, "seed": int(row["seed"]), "n": int(row["n"]), **{m: float(row[m]) for m in MEASURES}}
                    for row in csv.DictReader(file)
                ]
        self.stars = cache(self._stars)

    def _stars(self, how: str, grid: str = "580") -> Stars:
        return data.load(self.folder, how=how, grid=grid)

    def some(self, libraries: Sequence[str], how: str, grid: str = "580") -> Stars:
        """The spectra of these libraries."""
        stars = self.stars(how, grid)
        if missing := sorted(set(libraries) - set(stars.libraries)):
            raise InputError(f"{self.folder} has no library {', '.join(missing)}: the study needs it")
        return stars.take(i for i, name in enumerate(stars.libraries) if name in libraries)

    def missing(self, part: str, run: str, seed: int) -> bool:
        """Whether a run is still to be done; says so."""
        if any((row["part"], row["run"], row["seed"]) == (part, run, seed) for row in self.lines):
            return False
        print(f"{part}: {run}, seed {seed}", flush=True)
        return True

    def add(self, part: str, run: str, seed: int, results: dict[str, Result]) -> None:
        """Add a line for each test set, in units of a subclass, and write them down."""
        for test, r in results.items():
            row: Line = {"part": part, "run": run, "seed": seed, "test": test, "n": r.errors["n"]}
            for m in MEASURES:
                row[m] = round(r.errors[m] / (1 if m.endswith("accuracy") else SUBCLASS), 4)
            self.lines.append(row)
        with open(self.path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.lines)

    def select(self, part: str) -> dict[tuple[str, str], list[Line]]:
        """Lines of a part by (run, test), one a seed."""
        found: dict[tuple[str, str], list[Line]] = {}
        for row in self.lines:
            if row["part"] == part:
                found.setdefault((row["run"], row["test"]), []).append(row)
        return found

    def train(self, stars: Stars, settings: Settings, name: str = "last", **more: Any) -> tuple[Any, dict[str, Any]]:
        """A network with these settings: from `out`/weights if it is there, else trained."""
        path = self.out / "weights" / f"{name}.safetensors"
        if name != "last" and path.exists():
            model, meta = network.load(path)
            if Settings(**meta["settings"]) == settings:
                return model, meta
        return network.train(stars, path, settings, progress=False, **more)


# --- five folds ----------------------------------------------------------------------------------------------------
def _folds(study: Study, kind: str, how: str) -> Iterator[tuple[Any, Stars]]:
    """The networks of five folds, trained on CFLIB and MILES, and for each the spectra that none before has tested."""
    stars, everything = study.some(FOLDED, how), study.some([*FOLDED, "stelib"], how)
    tested: set[tuple[str, str, str]] = set()
    for fold in range(data.FOLDS):
        settings = Settings.of(kind, normalisation=how, lead=LEADING, use="validation", fold=fold)
        model, meta = study.train(stars, settings, f"{kind}-{how}-{fold}")
        part = everything.take(evaluate.unseen(everything, meta, tested))
        tested |= set(zip(part.libraries, part.stars, part.files, strict=True))
        yield model, part


def predict_folds(
    study: Study, kind: str, how: str, *, change: Change | None = None, floor: bool = True
) -> tuple[Stars, Prediction]:
    """Every spectrum of CFLIB, MILES and STELIB by a network that has not seen its star, after `change`.

    With `floor` the predicted errors get the floor that the other folds' errors, before the change, ask for, so that
    no star measures its own; else they are the members' spread and what gaps leave open.
    """
    parts, unchanged, predictions = [], [], []
    for fold, (model, part) in enumerate(_folds(study, kind, how)):
        rng = np.random.default_rng(fold)
        unchanged.append(network.apply(model, part.flux))
        predictions.append(network.apply(model, change(part.flux, rng)) if change else unchanged[-1])
        parts.append(part)
    errors = [p.code - part.codes() for p, part in zip(unchanged, parts, strict=True)]
    spreads = [p.spread for p in unchanged]
    strange = [np.array([name != LEADING for name in part.libraries]) for part in parts]
    for k, prediction in enumerate(predictions if floor else []):
        others = [i for i in range(len(parts)) if i != k]
        error = np.concatenate([errors[i][strange[i]] for i in others])
        added = network.error_floor(error, np.concatenate([spreads[i][strange[i]] for i in others]))
        predictions[k] = prediction._replace(spread=np.hypot(prediction.spread, added))
    return data.join(parts), Prediction(*(np.concatenate(columns) for columns in zip(*predictions, strict=True)))


def noisy(snr: float, flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add photon noise: (N, bins), 1 at 5550 Å, with signal to noise `snr` there, σ = √flux/snr."""
    return (flux + np.sqrt(np.maximum(flux, 0)) / snr * rng.normal(size=flux.shape)).astype(np.float32)


def reddened(excess: float, flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put dust of E(B−V) = `excess` before stars: (N, 580), 1 at 5550 Å, law of Cardelli et al. 1989, R = 3.1."""
    magnitudes = excess * (extinction(CENTRES) - extinction(np.array([5550.0])))
    return (flux * 10 ** (-0.4 * magnitudes)).astype(np.float32)


def cut(gap: np.ndarray, flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take away what was measured: gap (580,) bool, flux (N, 580) -> (N, 580) with NaN there."""
    return np.where(gap, np.float32(np.nan), flux)


def within(r: Result) -> float:
    """Share of errors no larger than the error predicted; 0.68 is right."""
    return float((np.abs(r.prediction.code - r.stars.codes()) <= r.prediction.spread).mean())


def folds(study: Study) -> None:
    """Each star tested once: three networks, flux and lines; the first fold's tests apart, which no choice has seen."""
    for kind, how in NETWORKS:
        if not study.missing("folds", f"{kind}, {SHAPES[how]}", 0):
            continue
        stars, prediction = predict_folds(study, kind, how)
        results = evaluate.by_library(stars, prediction)
        del results["all"]
        first = set(study.some(FOLDED, how).take(data.split(study.some(FOLDED, how))["test"]).stars)
        index = [i for i in range(len(stars)) if stars.libraries[i] == LEADING and stars.stars[i] in first]
        clean = evaluate.by_library(stars.take(index), Prediction(*(x[index] for x in prediction)))
        study.add("folds", f"{kind}, {SHAPES[how]}", 0, {**results, f"{LEADING}, fold 0": clean[LEADING]})


def noise(study: Study) -> None:
    """The same networks at the light of a faint star."""
    for kind, how in NETWORKS:
        if kind == "deep":
            continue
        for snr in SNR:
            if study.missing("noise", f"{kind}, {SHAPES[how]}, SNR {snr}", 0):
                results = evaluate.by_library(*predict_folds(study, kind, how, change=partial(noisy, snr)))
                study.add("noise", f"{kind}, {SHAPES[how]}, SNR {snr}", 0, {LEADING: results[LEADING]})


def dust(study: Study) -> None:
    """The same networks with dust before the stars: what reads the flux's shape takes red for cool."""
    for kind, how in (("tanh", "5550"), ("cnn", "5550")):
        for excess in DUST:
            if study.missing("dust", f"{kind}, E(B-V) {excess}", 0):
                results = evaluate.by_library(*predict_folds(study, kind, how, change=partial(reddened, excess)))
                study.add("dust", f"{kind}, E(B-V) {excess}", 0, {LEADING: results[LEADING]})


# --- from library to library ---------------------------------------------------------------------------------------
def libraries(study: Study) -> None:
    """Train on all stars of some libraries, test on another's that are not among them."""
    for seed in range(study.seeds):
        for name, training, tested, extra in CROSSINGS:
            for kind, how in NETWORKS:
                run = f"{name} ({kind}, {SHAPES[how]})"
                few = "labels" in extra
                if kind == "deep" or (extra.get("grid") and how == "continuum"):
                    continue
                if not study.missing("libraries", run, seed):
                    continue
                settings = Settings.of(kind, normalisation=how, use="all", seed=seed, **extra)
                settings = replace(settings, epochs=200) if few else settings  # a tenth of the stars: as many steps
                model, meta = study.train(study.some(training, how, settings.grid), settings)
                others = study.some(tested, how, settings.grid)
                others = others.take(evaluate.unseen(others, meta))
                results = evaluate.by_library(others, network.apply(model, others.flux))
                study.add("libraries", run, seed, {test: results[test] for test in tested})


# --- how many labels -----------------------------------------------------------------------------------------------
def labels(study: Study) -> None:
    """With and without pre-training, by the number of labelled spectra: a seed is another split and other weights."""
    stars = study.some(ALL, "5550")
    for seed in range(study.seeds):
        for kind in ("autoencoder", "dense-autoencoder"):
            encoders: dict[str, Callable[[], Any]] = {}
            for corrupt in PRETRAINING:
                for n, epochs in LABELS.items():
                    run = f"{kind}, {corrupt}, {n}"
                    if not study.missing("labels", run, seed):
                        continue
                    settings = Settings.of(
                        kind, members=1, epochs=epochs, labels=n, seed=seed, fold=seed, use="validation", pretrain=0
                    )
                    more = {}
                    if corrupt != "none":
                        settings = replace(settings, pretrain=12, corrupt=corrupt)
                        if corrupt not in encoders:
                            encoders[corrupt] = _encoder(stars, settings)
                        more = {"autoencoders": [encoders[corrupt]()]}
                    model, _ = study.train(stars, settings, **more)
                    tested = stars.take(network.parts(stars, settings)["test"])
                    study.add("labels", run, seed, evaluate.by_library(tested, network.apply(model, tested.flux)))


def _encoder(stars: Stars, settings: Settings) -> Callable[[], Any]:
    """Pre-train once on all spectra outside the test part -> a function that gives copies to fine-tune."""
    tested = {stars.stars[i] for i in network.parts(stars, settings)["test"]}
    flux = stars.flux[[i for i, star in enumerate(stars.stars) if star not in tested]]
    rng = np.random.default_rng(settings.seed)
    model = network.build(replace(settings, pretrain=0), rng, flux)
    trained = network.pretrain(model.fill(flux), model, settings, rng)
    state = trained.state_dict()

    def copy() -> Any:
        fresh = network.autoencoder(settings.network, rng, flux.shape[1])
        fresh.load_state_dict(state)
        return fresh

    return copy


PARTS: dict[str, Callable[[Study], None]] = {
    "folds": folds,
    "libraries": libraries,
    "labels": labels,
    "noise": noise,
    "dust": dust,
}


# --- tables --------------------------------------------------------------------------------------------------------
def _said(rows: Sequence[Line], measure: str, digits: int = 2) -> str:
    """Mean ± standard deviation over seeds, or the one value."""
    values = [row[measure] for row in rows]
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def tables(study: Study) -> list[Table]:
    """What the runs say, beside the talk's and the papers' figures."""
    header = [
        "trained on (network, input) -> tested on",
        "seeds",
        "N",
        *("mean", "sigma", "rms", "MAE", "sigma68"),
        "class",
        "lum.",
    ]

    def row(name: str, rows: Sequence[Line]) -> list[object]:
        numbers = [_said(rows, m, 3 if m.endswith("accuracy") else 2) for m in MEASURES]
        return [name, len(rows), rows[0]["n"], *numbers]

    found = {part: study.select(part) for part in PARTS}
    main = [row(f"five folds of CFLIB + MILES ({run}) -> {test}", rows) for (run, test), rows in found["folds"].items()]
    main += [row(f"{run} -> {test}", rows) for (run, test), rows in found["libraries"].items()]
    main += [[line[0], "", *line[1:]] for line in LITERATURE]
    result = [Table("Errors in subclasses, shares right; ± is the scatter over seeds", header, main, evaluate.TAGS)]
    if found["noise"]:
        kinds = sorted({run.rsplit(", SNR", 1)[0] for run, _ in found["noise"]})
        rows = []
        for kind in kinds:
            lines = [found["noise"][f"{kind}, SNR {snr}", LEADING][0] for snr in SNR]
            rows.append([kind, *(f"{line['sigma']:.2f}, {line['class_accuracy']:.3f}" for line in lines)])
        header = ["five folds", *(f"SNR {s}" for s in SNR)]
        result.append(Table("CFLIB with noise added: sigma, class right", header, rows))
    if found["dust"]:
        rows = [
            [run, f"{r['mean']:+.2f}", f"{r['sigma']:.2f}", f"{r['class_accuracy']:.3f}"]
            for (run, _), (r,) in found["dust"].items()
        ]
        result.append(
            Table("CFLIB with dust put before the stars", ["five folds, flux", "mean", "sigma", "class"], rows)
        )
    if found["labels"]:
        result.append(_labels_table(found["labels"]))
    return result


def gains(found: dict[tuple[str, str], list[Line]], kind: str, corrupt: str, n: int, test: str = LEADING) -> np.ndarray:
    """MAE without less MAE with pre-training, seed by seed: (seeds,), positive where it helps."""
    without, with_it = ({r["seed"]: r["mae"] for r in found[f"{kind}, {how}, {n}", test]} for how in ("none", corrupt))
    return np.array([without[seed] - with_it[seed] for seed in sorted(set(without) & set(with_it))])


def _labels_table(found: dict[tuple[str, str], list[Line]]) -> Table:
    rows: list[list[object]] = []
    for kind in ("autoencoder", "dense-autoencoder"):
        for corrupt, task in PRETRAINING.items():
            cells = []
            for n in LABELS:
                runs = found.get((f"{kind}, {corrupt}, {n}", LEADING), [])
                cell = f"{_said(runs, 'mae')}, {np.mean([r['class_accuracy'] for r in runs]):.2f}" if runs else "-"
                if corrupt != "none" and runs and len(gain := gains(found, kind, corrupt, n)) > 1:
                    cell += f" ({gain.mean():+.2f} ± {gain.std(ddof=1) / np.sqrt(len(gain)):.2f})"
                cells.append(cell)
            rows.append([f"{kind}, pre-training: {task}", *cells])
    return Table(
        "CFLIB's test stars by the number of labelled spectra: MAE ± scatter over seeds, class right",
        ["", *(f"{n} labels" for n in LABELS)],
        rows,
        "In brackets: by how much pre-training lessens the MAE, seed by seed, ± standard error; one network each.",
    )
