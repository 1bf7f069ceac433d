"""Command line: simulate, fetch, prepare, train, evaluate, predict. Each has --help."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import common
from .preprocess import COVERAGE, GRIDS, NORMALISATIONS
from .readers import MEDIA, UNITS, Given, redshift_of

if TYPE_CHECKING:
    from .network import Settings

WEIGHTS = Path(__file__).with_name("weights.safetensors")  # what the repository ships
REMEDY = "make one with `python -m examples.stellar_spectra fetch --out DIR` or `... simulate --out DIR`"


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    main = argparse.ArgumentParser(prog="python -m examples.stellar_spectra", description="Spectral types of stars.")
    commands = main.add_subparsers(dest="command", required=True)

    p = common.add_command(commands, "simulate", "Write simulated spectra (1-D FITS) with labels.csv into a folder.")
    p.add_argument("--n", type=int, default=1000, help="how many")
    p.add_argument("--seed", type=common.seed, default=0, help="of the random numbers")
    common.add_output(p, "folder to write")

    p = common.add_command(
        commands, "fetch", "Get the MILES and STELIB libraries through pip (121 MB, kept in the cache)."
    )
    common.add_output(p, "folder to write")

    p = common.add_command(
        commands, "train", "Train on a folder of spectra with types; the test part is not looked at."
    )
    add_data(p)
    add_settings(p)
    p.add_argument("--resume", action="store_true", help="go on from --out if it exists")
    common.add_threads(p)
    common.add_output(p, "trained network (.safetensors)")

    p = common.add_command(
        commands, "evaluate", "Print and write tables and figures for stars that the network has not seen."
    )
    add_data(p)
    p.add_argument("--weights", type=Path, required=True, nargs="+", metavar="FILE",
                   help="file that train wrote; or those of several folds, whose tests are put together")  # fmt: skip
    common.add_threads(p)
    common.add_output(p, "folder for tables (CSV) and figures (PNG)")

    p = common.add_command(
        commands, "predict", "Write the types of spectra: FITS (1-D, IRAF, SDSS, table) or two-column text."
    )
    p.add_argument("files", nargs="*", type=Path, metavar="FILE", help="spectra, and folders of them")
    p.add_argument("--list", type=Path, metavar="CSV",
                   help="table of more: file and, where known, fwhm, unit, medium, redshift or velocity")  # fmt: skip
    p.add_argument("--weights", type=Path, default=WEIGHTS, metavar="FILE", help="file that train wrote")
    add_given(p)
    p.add_argument("--coverage", type=float, default=COVERAGE, metavar="SHARE",
                   help="least share of the network's range that must have been measured, 0.05..1")  # fmt: skip
    p.add_argument("--compare", type=Path, metavar="CSV",
                   help="catalogue with spectral_type and file or star: print how far the types agree")  # fmt: skip
    p.add_argument("--pictures", type=Path, metavar="DIR", help="folder for a picture of each star")
    p.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    common.add_threads(p)
    common.add_output(p, "table to write: FITS if it ends in .fits, else CSV")

    p = common.add_command(commands, "prepare", "Draw what each step of the preparation makes of one spectrum.")
    p.add_argument("file", type=Path, metavar="FILE", help="spectrum")
    add_given(p)
    p.add_argument("--grid", default="580", choices=list(GRIDS), help="bins: 3900-6800 Å at 5 Å, 3650-9350 Å at 3 Å")
    p.add_argument("--normalisation", default="5550", choices=NORMALISATIONS,
                   help="divide by the flux at 5550 Å or by a running continuum")  # fmt: skip
    common.add_output(p, "picture to write (PNG)")

    p = common.add_command(
        commands, "lines", "Draw which lines matter, class by class: saliency, and hiding 50 Å at a time."
    )
    add_data(p)
    p.add_argument("--weights", type=Path, default=WEIGHTS, metavar="FILE", help="file that train wrote")
    common.add_threads(p)
    common.add_output(p, "folder for tables (CSV) and figures (PNG)")

    p = common.add_command(
        commands, "autoencoder", "Train an autoencoder without types; draw what it rebuilds, its code space, outliers."
    )
    add_data(p)
    p.add_argument("--network", default="autoencoder", choices=["autoencoder", "dense-autoencoder"],
                   help="of convolutions, or dense")  # fmt: skip
    p.add_argument("--pretrain", type=int, default=60, help="passes over the spectra outside the test part")
    p.add_argument("--corrupt", default="noise", choices=["nothing", "noise", "masks"], help="what it has to make good")
    p.add_argument("--seed", type=common.seed, default=0, help="of the split, the first weights and the order")
    p.add_argument("--fold", type=int, default=0, help="which fifth of the stars is the test part, 0..4")
    common.add_threads(p)
    common.add_output(p, "folder for tables (CSV) and figures (PNG)")

    p = common.add_command(
        commands, "study", "Train and test all that the README's tables say; goes on where it stopped."
    )
    add_data(p)
    p.add_argument("--only", nargs="+", default=["folds", "libraries", "labels", "noise", "dust"], metavar="PART",
                   help="parts to run, in this order")  # fmt: skip
    p.add_argument("--seeds", type=int, default=5, help="repetitions of the small trainings")
    common.add_threads(p)
    p.add_argument("--out", type=Path, required=True, help="folder for runs.csv, weights, tables, figures")

    p = common.add_command(commands, "ship", "Train on every star, test by five folds, write weights and model card.")
    add_data(p)
    p.add_argument("--study", type=Path, required=True, help="folder of the command study, whose folds are tested")
    p.add_argument("--seed", type=common.seed, default=0, help="of the first weights and the order")
    common.add_threads(p)
    common.add_output(p, "weights to write (.safetensors); MODEL_CARD.md comes beside them")
    return main


def add_data(p: argparse.ArgumentParser) -> None:
    """Add where the spectra are and which of them to take."""
    p.add_argument("--data", type=Path, help="folder with labels.csv or NAME.npz + NAME.csv ($MINIDL_DATA/spectra)")
    p.add_argument("--libraries", nargs="+", metavar="NAME", help="libraries of the folder to take (all)")


def add_settings(p: argparse.ArgumentParser) -> None:
    """Add what training depends on; an option that is not given takes the value that suits the network."""
    from .network import CORRUPTIONS, DRAWS, NETWORKS, USES

    def add(name: str, text: str, kind: type = int, **more: Any) -> None:
        p.add_argument(name, help=text, type=None if "choices" in more else kind, default=None, **more)

    p.add_argument("--network", default="tanh", choices=NETWORKS, help="the body")
    add("--members", "networks, started differently, whose answers are averaged (tanh, deep 5; others 3)")
    add("--hidden", "neurons before the outputs (tanh 20, deep 32, others 64)")
    add("--normalisation", "divide by the flux at 5550 Å or by a running continuum (5550)", choices=NORMALISATIONS)
    add("--grid", "bins: 3900-6800 Å at 5 Å, or 3650-9350 Å at 3 Å (580)", choices=list(GRIDS))
    add("--epochs", "passes over the training part (tanh, deep 60; others 50)")
    add("--batch-size", "spectra a step (32)")
    add("--lr", "learning rate at the start; it falls as a cosine to 0 (tanh, deep 0.003; others 0.002)", float)
    add("--weight-decay", "of AdamW (0.1)", float)
    add("--jitter", "how much velocity, flux shape and noise vary in training (1)", float)
    add("--lead", "library whose types set the scale: an epoch shows its spectra three times (none)", str)
    add("--pretrain", "passes without labels over all spectra outside the test part, autoencoders only (30)")
    add("--corrupt", "what the autoencoder has to make good meanwhile (noise)", choices=CORRUPTIONS)
    add("--labels", "train on so many spectra only (all)")
    add("--draw", "which: shares (each class keeps its share), even (each subclass in turn, full types only) (shares)",
        choices=DRAWS)  # fmt: skip
    add("--use", "parts to train on, up to which: train (60 %%, the validation part chooses the epoch), validation "
        "(80 %%, all epochs), all (nothing is left to test on) (train)", choices=USES)  # fmt: skip
    add("--seed", "of the split, the first weights and the order (0)", common.seed)
    add("--fold", "which fifth of the stars is the test part, 0..4 (0)")


def settings_of(a: argparse.Namespace) -> Settings:
    """These options as one."""
    from .network import Settings

    chosen = {name: getattr(a, name, None) for name in Settings.__dataclass_fields__ if name != "network"}
    return Settings.of(a.network, **{name: value for name, value in chosen.items() if value is not None})


def add_given(p: argparse.ArgumentParser) -> None:
    """Add what the user can say of files over what they say themselves."""
    p.add_argument("--fwhm", type=float, metavar="Å", help="resolution (FWHM of the header, else 2.5 or two pixels)")
    p.add_argument("--unit", choices=UNITS, help="unit of the wavelengths (the file's, else told by their range)")
    p.add_argument("--medium", choices=MEDIA, help="of the wavelengths (the file's, else air)")
    motion = p.add_mutually_exclusive_group()
    motion.add_argument("--redshift", type=float, metavar="Z", help="to take out (that of SDSS files, else 0)")
    motion.add_argument("--velocity", type=float, metavar="KM/S", help="the same as radial velocity, positive away")


def given_of(a: argparse.Namespace) -> Given:
    """These options as one."""
    redshift = a.redshift if a.velocity is None else redshift_of(a.velocity)
    return Given(a.unit, a.medium, redshift, a.fwhm)


def run(argv: list[str] | None = None) -> int:
    """Parse and run one command -> exit code."""
    a = parser().parse_args(argv)
    common.use_threads(getattr(a, "threads", None))
    start = time.perf_counter()
    code: int | None = 0
    if a.command == "simulate":
        from .simulate import simulate

        simulate(a.out, n=a.n, seed=a.seed, overwrite=a.overwrite)
        print(f"{a.n} SIMULATED spectra in {a.out}")
    elif a.command == "fetch":
        from .fetch import fetch

        fetch(a.out, overwrite=a.overwrite)
    elif a.command == "train":
        code = _train(a)
    elif a.command == "evaluate":
        code = _evaluate(a)
    elif a.command == "prepare":
        _prepare(a)
    elif a.command == "lines":
        _lines(a)
    elif a.command == "autoencoder":
        _autoencoder(a)
    elif a.command == "study":
        _study(a)
    elif a.command == "ship":
        _ship(a)
    else:
        code = _predict(a)
    if a.command in ("train", "evaluate", "study", "ship"):
        print(f"{time.perf_counter() - start:.0f} s")
    return code or 0


def _train(a: argparse.Namespace) -> None:
    from . import data, network

    folder = common.data_folder(a.data, "spectra", REMEDY)
    common.check_file(a.out, a.overwrite or a.resume)
    settings = settings_of(a)
    stars = data.load(folder, how=settings.normalisation, grid=settings.grid, libraries=a.libraries)
    print(f"{stars.kind} data, {stars.describe()}")
    _, meta = network.train(stars, a.out, settings, resume=a.resume)
    counts = ", ".join(f"{n} {part}" for part, n in meta["counts"].items())
    said = f"all {settings.epochs} epochs used"
    if settings.use == "train":
        best = min(meta["history"], key=lambda row: row["val_loss"])
        said = (
            f"best epoch {best['epoch']:.0f}: validation sigma {best['val_sigma']:.2f} subclasses, "
            f"class right {best['val_accuracy']:.3f}"
        )
    print(f"{counts} spectra, split by star; {said}; written to {a.out}")


def _prepare(a: argparse.Namespace) -> None:
    from .pictures import draw_steps
    from .predict import ready

    common.check_file(a.out, a.overwrite)
    grid = GRIDS[a.grid]
    star = ready(a.file, given_of(a), a.normalisation, grid, least=0.0)  # what predict refuses is worth a look
    prepared, notes = star.prepared, "; ".join(star.spectrum.notes)
    draw_steps(prepared.stages, grid, f"{star.spectrum.name}: how it is prepared", a.out)
    little = " (less than predict accepts without --coverage)"
    print(f"{prepared.coverage:.0%} of {grid} measured{little if prepared.coverage < COVERAGE else ''}, "
          f"{prepared.fwhm:.2g} Å FWHM"
          + (f", {notes}" if notes else "") + f"; steps drawn in {a.out}")  # fmt: skip


def _predict(a: argparse.Namespace) -> int:
    from . import predict

    given = given_of(a)
    files = predict.spectra_in(a.files, given, (a.out, a.list, a.compare))
    files |= predict.listed(a.list, given) if a.list else {}
    if not files:
        raise common.InputError("no spectra: name files or folders, or a --list")
    options = predict.Options(a.coverage, a.pictures, a.compare, a.resume, a.overwrite)
    return predict.predict(files, a.weights, a.out, options)


def _lines(a: argparse.Namespace) -> None:
    import numpy as np

    from . import data, lines, network
    from .evaluate import unseen

    common.check_folder(a.out, a.overwrite)
    model, meta = network.load(a.weights)
    s = meta["settings"]
    folder = common.data_folder(a.data, "spectra", REMEDY)
    stars = data.load(folder, how=s["normalisation"], grid=s["grid"], libraries=a.libraries)
    stars = stars.take(np.flatnonzero(np.isfinite(stars.codes())))
    try:
        stars, seen = stars.take(unseen(stars, meta)), "not trained on"
    except common.InputError:  # the network that is shipped has seen them all
        seen = "that the network was trained on"
    read = "the flux's shape and lines" if s["normalisation"] == "5550" else "the lines alone"
    title = f"{s['network']} that reads {read}; {stars.kind} stars {seen}"
    print(f"{title}; {stars.describe()}")
    grid = GRIDS[s["grid"]]
    found = lines.importance(model, stars, grid)
    _report(lines.tables(found, grid), lines.write(found, stars, grid, title, a.out))


def _autoencoder(a: argparse.Namespace) -> None:
    from . import data, unlabelled

    common.check_folder(a.out, a.overwrite)
    settings = settings_of(a)
    stars = data.load(common.data_folder(a.data, "spectra", REMEDY), how="5550", libraries=a.libraries)
    found, about = unlabelled.squeeze(stars, settings)
    _report(unlabelled.tables(found, about), unlabelled.write(found, about, a.out))


def _report(tables: list[common.Table], figures: list[tuple[Path, str]]) -> None:
    for table in tables:
        print(table.text(), end="\n\n")
    for path, caption in figures:
        print(f"{path}: {caption}")


def _study(a: argparse.Namespace) -> None:
    from . import figures, study

    if unknown := sorted(set(a.only) - set(study.PARTS)):
        raise common.InputError(f"--only {unknown[0]}: the parts are {', '.join(study.PARTS)}")
    if a.out.exists() and not a.out.is_dir():
        raise common.InputError(f"{a.out} is a file: give --out the name of a folder")
    whole = study.Study(common.data_folder(a.data, "spectra", REMEDY), a.out, a.seeds)
    for part in a.only:
        study.PARTS[part](whole)
    _report(study.tables(whole), figures.draw_study(whole))


def _ship(a: argparse.Namespace) -> None:
    from .ship import ship
    from .study import Study

    common.check_file(a.out, a.overwrite)
    study = Study(common.data_folder(a.data, "spectra", REMEDY), a.study)
    for table in ship(study, a.out, a.seed):
        print(table.text(), end="\n\n")
    print(f"weights in {a.out}, {a.out.stat().st_size / 1e6:.2f} MB, and their card beside them")


def _evaluate(a: argparse.Namespace) -> None:
    from . import evaluate

    folder = common.data_folder(a.data, "spectra", REMEDY)
    common.check_folder(a.out, a.overwrite)
    results, meta = evaluate.test(a.weights, folder, a.libraries)
    figures = evaluate.write(results, meta, a.out, a.overwrite)
    for table in evaluate.tables(results, meta):
        print(table.text(), end="\n\n")
    print(f"{len(figures)} figures and the tables in {a.out}")


if __name__ == "__main__":
    sys.exit(common.run_command(run))
