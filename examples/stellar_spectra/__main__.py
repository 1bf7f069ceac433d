"""Command line: simulate, fetch, train, evaluate, predict. Each has --help."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .. import common

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
    p.add_argument("--normalisation", default="5550", choices=["5550", "continuum"],
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
        commands, "predict", "Write the types of spectra: FITS (1-D, SDSS, table) or two-column text."
    )
    p.add_argument("files", nargs="+", type=Path, metavar="FILE", help="spectra")
    p.add_argument("--weights", type=Path, required=True, help="file that train wrote")
    p.add_argument("--fwhm", type=float, help="resolution in Å of files whose header has none; 2.5 is assumed")
    common.add_threads(p)
    common.add_output(p, "table to write (CSV): file, spectral_type, code, p_O ... p_M")
    return main


def add_data(p: argparse.ArgumentParser) -> None:
    """Add where the spectra are and which of them to take."""
    p.add_argument("--data", type=Path, help="folder with labels.csv or NAME.npz + NAME.csv ($MINIDL_DATA/spectra)")
    p.add_argument("--libraries", nargs="+", metavar="NAME", help="libraries of the folder to take (all)")


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
    else:
        from .predict import predict

        code = predict(a.files, a.weights, a.out, fwhm=a.fwhm, overwrite=a.overwrite)
    if a.command in ("train", "evaluate"):
        print(f"{time.perf_counter() - start:.0f} s")
    return code or 0


def _train(a: argparse.Namespace) -> None:
    from . import data, network

    folder = common.data_folder(a.data, "spectra", REMEDY)
    common.check_file(a.out, a.overwrite or a.resume)
    names = network.Settings.__dataclass_fields__
    settings = network.Settings(**{name: getattr(a, name) for name in names})
    stars = data.load(folder, how=settings.normalisation, libraries=a.libraries)
    print(f"{stars.kind} data, {stars.describe()}")
    _, meta = network.train(stars, a.out, settings, resume=a.resume)
    best = min(meta["history"], key=lambda row: row["val_loss"])
    counts = ", ".join(f"{n} {part}" for part, n in meta["counts"].items())
    print(
        f"{counts} spectra, split by star; best epoch {best['epoch']:.0f}: validation sigma {best['val_sigma']:.2f} "
        f"subclasses, class right {best['val_accuracy']:.3f}; written to {a.out}"
    )


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
