"""Command line of the bar task: `python -m examples.galaxy_bars COMMAND --help`, for each command below."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.common import add_command, add_output, add_threads, run_command, seed

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
        "--network", choices=["resnet", "alexnet"], default="resnet", help="residual, 175,000 parameters, or the talk's"
    )
    train.add_argument(
        "--labels",
        choices=["clean", "votes", "robust", "all"],
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

    predict = add_command(commands, "predict", "p(bar) of each picture, as CSV: file, p_bar, label")
    predict.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JPEG, PNG, FITS, or folders of them")
    predict.add_argument("--weights", type=Path, required=True, help="what train wrote")
    add_output(predict, "the CSV file")
    predict.add_argument(
        "--pixel-scale", type=float, help="arcsec per pixel; default: the largest central square is used"
    )
    predict.add_argument("--threshold", type=float, default=0.5, help="p(bar) from which a galaxy is called barred")
    add_threads(predict)
    return main


def main(argv: list[str] | None = None) -> int:
    """Run one command -> exit code."""
    options = parser().parse_args(argv)
    from examples.galaxy_bars import commands

    return getattr(commands, options.command)(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
