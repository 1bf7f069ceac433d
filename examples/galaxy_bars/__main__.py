"""Command line of the bar task: `python -m examples.galaxy_bars --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.common import add_command, add_output, add_threads, run_command, seed
from examples.galaxy_bars.catalogue import Cuts
from examples.galaxy_bars.fetch import SERVICE
from examples.galaxy_bars.network import LABELS, NETWORKS, VIEWS
from examples.galaxy_bars.predict import WEIGHTS
from examples.galaxy_bars.prepare import SDSS_SCALE

DATA_HELP = (
    "folder with labels*.csv and pictures or a zip, or with barred/ and unbarred/; default $MINIDL_DATA/galaxies"
)


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    main = argparse.ArgumentParser(prog="galaxy_bars", description="Find bars in pictures of galaxies.")
    commands = main.add_subparsers(dest="command", required=True)

    simulate = add_command(commands, "simulate", "write simulated barred and unbarred galaxies with their truth")
    add_output(simulate, "new folder: barred/, unbarred/, labels.csv, simulated.json")
    simulate.add_argument("--n", type=int, default=2000, help="number of galaxies, half of them barred")
    simulate.add_argument("--seed", type=seed, default=0, help="of all random numbers")
    simulate.add_argument("--size", type=int, default=64, help="pixels across the field of 19.2 arcsec")
    simulate.add_argument("--format", choices=["png", "jpeg"], default="png", help="of the pictures")

    train = add_command(
        commands, "train", "train a network on three fifths of the galaxies, choose its best epoch on another fifth"
    )
    train.add_argument("--data", type=Path, help=DATA_HELP)
    add_output(train, "trained weights, a .safetensors file")
    train.add_argument(
        "--network", choices=NETWORKS, default="resnet", help="residual, 175,000 parameters, or the talk's"
    )
    train.add_argument(
        "--labels",
        choices=LABELS,
        default="clean",
        help="what of the noisy votes is learned: only barred galaxies of p_bar <= .995; votes as soft targets; all "
        "labels with a robust loss; all labels",
    )
    train.add_argument("--size", type=int, default=64, help="pixels across the network's field, such as 64, 150, 227")
    train.add_argument("--epochs", type=int, default=100, help="passes over the training part")
    train.add_argument("--batch-size", type=int, default=64, help="galaxies in a step")
    train.add_argument("--lr", type=float, help="highest learning rate (default: 0.003, of alexnet 0.001)")
    train.add_argument("--weight-decay", type=float, default=0.05, help="of AdamW")
    train.add_argument("--seed", type=seed, default=0, help="of weights, order and augmentation")
    train.add_argument("--split-seed", type=seed, default=0, help="of the split 60/20/20, kept in the weights")
    train.add_argument("--folds", type=int, default=5, help="equal parts of the sample; one validates, one tests")
    train.add_argument("--fold", type=int, default=0, help="which part tests: 0 ... folds - 1, for cross-validation")
    add_threads(train)
    train.add_argument("--resume", action="store_true", help="continue an interrupted run with this --out")

    evaluate = add_command(commands, "evaluate", "print the talk's table with ours beside it; write tables and figures")
    evaluate.add_argument("--data", type=Path, help=DATA_HELP)
    evaluate.add_argument("--weights", type=Path, required=True, help="what train wrote")
    add_output(evaluate, "folder for the tables (CSV), predictions.csv and the figures (PNG)")
    evaluate.add_argument("--part", choices=["test", "validation", "train", "all"], default="test", help="of the data")
    add_threads(evaluate)

    crossvalidate = add_command(
        commands, "crossvalidate", "score several networks, each on its own test part: train --fold 0, 1, ... or --seed"
    )
    crossvalidate.add_argument("--data", type=Path, help=DATA_HELP)
    crossvalidate.add_argument("--weights", type=Path, nargs="+", required=True, help="what several train runs wrote")
    add_output(crossvalidate, "folder for crossvalidation.csv, and confusion.csv, experts.csv of disjoint test parts")
    add_threads(crossvalidate)

    predict = add_command(commands, "predict", "p(bar) of each picture, as a table: file, p_bar, spread, label")
    predict.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JPEG, PNG, FITS, or folders of them")
    predict.add_argument("--weights", type=Path, default=WEIGHTS, help="what train wrote")
    add_output(predict, "the table, CSV or (ending .fits) FITS")
    predict.add_argument("--catalogue", type=Path, help="CSV or FITS table to join by objid, the pictures' names")
    predict.add_argument(
        "--pixel-scale", type=float, help="arcsec per pixel; default: the largest central square is used"
    )
    predict.add_argument("--threshold", type=float, default=0.5, help="p(bar) from which a galaxy is called barred")
    predict.add_argument("--views", type=int, choices=[1, 8, 16], default=VIEWS, help="turns and mirrors averaged")
    predict.add_argument("--resume", action="store_true", help="continue an interrupted run with this --out")
    add_threads(predict)

    select = add_command(commands, "select", "the talk's selection: write the galaxies of a catalogue that pass cuts")
    add_catalogue(select)
    add_output(select, "the CSV file: all columns of the catalogue, and label")
    cuts = Cuts()
    select.add_argument("--r", type=float, nargs=2, default=[cuts.r_from, cuts.r_to], help="magnitude in r, from, to")
    select.add_argument("--z", type=float, default=cuts.z_to, help="largest redshift")
    select.add_argument(
        "--half-light",
        type=float,
        nargs=2,
        default=[cuts.half_light_from, cuts.half_light_to],
        help="half-light radius in arcsec, from, to",
    )
    select.add_argument("--edge-on", type=float, default=cuts.edge_on_to, help="largest share of votes for edge-on")
    select.add_argument("--votes", type=float, default=cuts.votes_from, help="least number of voters on the bar")
    select.add_argument("--barred-from", type=float, default=cuts.barred_from, help="share of votes that makes a bar")
    select.add_argument("--unbarred-to", type=float, default=cuts.unbarred_to, help="share up to which there is none")

    fetch = add_command(commands, "fetch", "get colour cut-outs of a catalogue from the image service of the SDSS")
    add_catalogue(fetch)
    fetch.add_argument("--out", required=True, type=Path, help="folder; run again with it, fetch goes on")
    fetch.add_argument("--radii", type=float, help="field in de Vaucouleurs radii (default: a field of 19.2 arcsec)")
    fetch.add_argument("--size", type=int, default=64, help="pixels across a cut-out")
    fetch.add_argument("--service", default=SERVICE, help="address of the service")
    fetch.add_argument("--rate", type=float, default=2.0, help="most requests a second")
    fetch.add_argument("--tries", type=int, default=5, help="for each cut-out, 1, 2, 4, 8 ... seconds apart")
    fetch.add_argument("--timeout", type=float, default=30.0, help="seconds until a request is given up")

    prepare = add_command(commands, "prepare", "FITS images in g, r, i -> colour pictures cut to the galaxies' sizes")
    add_catalogue(prepare)
    prepare.add_argument(
        "--images", required=True, type=Path, help="folder of OBJID.fits with all bands, or OBJID-g.fits, -r, -i"
    )
    add_output(prepare, "new folder: OBJID.png, prepared.csv, labels.csv where labels are known")
    prepare.add_argument("--radii", type=float, default=4.0, help="field in de Vaucouleurs radii of the r band")
    prepare.add_argument("--size", type=int, default=64, help="pixels across a picture")
    prepare.add_argument(
        "--pixel-scale", type=float, default=SDSS_SCALE, help="arcsec per pixel of images without coordinates"
    )
    return main


def add_catalogue(command: argparse.ArgumentParser) -> None:
    """Add `--catalogue` to a command."""
    command.add_argument(
        "--catalogue", required=True, type=Path, help="CSV or FITS table with objid, ra, dec, deVRad_r, votes ..."
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command -> exit code."""
    options = parser().parse_args(argv)
    from examples.galaxy_bars import commands

    return getattr(commands, options.command)(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
