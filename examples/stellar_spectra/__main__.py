"""Command line: simulate, fetch, prepare, train, evaluate, predict. Each has --help."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .. import common
from .preprocess import GRIDS, NORMALISATIONS
from .readers import MEDIA, UNITS, Given, redshift_of

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
    p.add_argument("--network", default="tanh", choices=["tanh", "cnn", "autoencoder"], help="the body")
    p.add_argument("--members", type=int, default=5, help="networks, started differently, whose answers are averaged")
    p.add_argument("--hidden", type=int, default=20, help="tanh neurons before the outputs")
    p.add_argument("--normalisation", default="5550", choices=NORMALISATIONS,
                   help="divide by the flux at 5550 Å or by a running continuum")  # fmt: skip
    p.add_argument("--epochs", type=int, default=150, help="passes over the training part")
    p.add_argument("--pretrain", type=int, default=30, help="passes without labels (network autoencoder)")
    p.add_argument("--batch-size", type=int, default=32, help="spectra a step")
    p.add_argument("--lr", type=float, default=0.003, help="learning rate at the start; it falls as a cosine to 0")
    p.add_argument("--weight-decay", type=float, default=0.1, help="of AdamW")
    p.add_argument("--jitter", type=float, default=1.0, help="how much velocity, dust and noise vary in training")
    p.add_argument("--seed", type=common.seed, default=0, help="of the split, the first weights and the order")
    p.add_argument("--fold", type=int, default=0, help="which fifth of the stars is the test part, 0..4")
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
    return main


def add_data(p: argparse.ArgumentParser) -> None:
    """Add where the spectra are and which of them to take."""
    p.add_argument("--data", type=Path, help="folder with labels.csv or NAME.npz + NAME.csv ($MINIDL_DATA/spectra)")
    p.add_argument("--libraries", nargs="+", metavar="NAME", help="libraries of the folder to take (all)")


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
    else:
        code = _predict(a)
    if a.command in ("train", "evaluate"):
        print(f"{time.perf_counter() - start:.0f} s")
    return code or 0


def _train(a: argparse.Namespace) -> None:
    from . import data, network

    folder = common.data_folder(a.data, "spectra", REMEDY)
    common.check_file(a.out, a.overwrite or a.resume)
    names = network.Settings.__dataclass_fields__
    settings = network.Settings(**{name: getattr(a, name) for name in names if hasattr(a, name)})
    stars = data.load(folder, how=settings.normalisation, libraries=a.libraries)
    print(f"{stars.kind} data, {stars.describe()}")
    _, meta = network.train(stars, a.out, settings, resume=a.resume)
    best = min(meta["history"], key=lambda row: row["val_loss"])
    counts = ", ".join(f"{n} {part}" for part, n in meta["counts"].items())
    print(
        f"{counts} spectra, split by star; best epoch {best['epoch']:.0f}: validation sigma {best['val_sigma']:.2f} "
        f"subclasses, class right {best['val_accuracy']:.3f}; written to {a.out}"
    )


def _prepare(a: argparse.Namespace) -> None:
    from .pictures import draw_steps
    from .predict import ready

    common.check_file(a.out, a.overwrite)
    grid = GRIDS[a.grid]
    star = ready(a.file, given_of(a), a.normalisation, grid)
    prepared, notes = star.prepared, "; ".join(star.spectrum.notes)
    draw_steps(prepared.stages, grid, f"{star.spectrum.name}: how it is prepared", a.out)
    print(f"{prepared.coverage:.0%} of {grid} measured, {prepared.fwhm:.2g} Å FWHM"
          + (f", {notes}" if notes else "") + f"; steps drawn in {a.out}")  # fmt: skip


def _predict(a: argparse.Namespace) -> int:
    from . import predict

    given = given_of(a)
    files = predict.spectra_in(a.files, given) | (predict.listed(a.list, given) if a.list else {})
    if not files:
        raise common.InputError("no spectra: name files or folders, or a --list")
    options = predict.Options(a.pictures, a.compare, a.resume, a.overwrite)
    return predict.predict(files, a.weights, a.out, options)


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
