"""What the four commands do; `__main__` only reads their options."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from examples.common import InputError, Table, check_file, check_folder, data_folder, use_threads, write_csv
from examples.galaxy_bars import catalogue as catalogues
from examples.galaxy_bars import evaluate as scoring
from examples.galaxy_bars import fetch as fetching
from examples.galaxy_bars import network, occlusion
from examples.galaxy_bars import predict as predicting
from examples.galaxy_bars import prepare as preparing
from examples.galaxy_bars import simulate as simulator
from examples.galaxy_bars.catalogue import Cuts, read_catalogue
from examples.galaxy_bars.data import CLASSES, REMEDY, Galaxies, list_pictures, read_sample, split, subsets


def simulate(options: argparse.Namespace) -> int:
    """Write a folder of simulated galaxies."""
    start = time.perf_counter()
    simulator.write(options.out, options.n, options.seed, options.size, options.format, options.overwrite)
    print(f"{options.n} simulated galaxies in {options.out} ({time.perf_counter() - start:.1f} s)")
    return 0


def read(folder: Path | None, size: int) -> Galaxies:
    """Read the sample as pictures of `size` pixels and say on stderr what was left out."""
    path = data_folder(folder, "galaxies", REMEDY)
    progress = partial(tqdm, desc="reading", leave=False, disable=not sys.stderr.isatty())
    galaxies = read_sample(path, progress, size)
    for line in galaxies.skipped[:5]:
        print(f"left out: {line}", file=sys.stderr)
    if len(galaxies.skipped) > 5:
        print(f"left out: {len(galaxies.skipped) - 5} more", file=sys.stderr)
    return galaxies


def train(options: argparse.Namespace) -> int:
    """Train on the sample's training part and save the network of the lowest validation loss."""
    lr = network.LEARNING_RATES[options.network] if options.lr is None else options.lr
    if options.epochs < 1 or options.batch_size < 2 or not lr > 0 or options.size < 32:
        raise InputError(
            "train needs --epochs of at least 1, --batch-size of at least 2, a positive --lr, a --size of at least 32"
        )
    check_file(options.out, options.overwrite)
    use_threads(options.threads)
    galaxies = read(options.data, options.size)
    running = options.out.with_suffix(".running.safetensors")
    if options.resume and not running.exists():
        raise InputError(f"nothing to resume: no {running}; leave --resume away to start")
    recipe = network.Recipe(
        options.network,
        options.epochs,
        options.batch_size,
        lr,
        options.weight_decay,
        options.labels,
        options.size,
        options.seed,
    )
    about_split = {"seed": options.split_seed, "folds": options.folds, "fold": options.fold}
    train_galaxies(galaxies, recipe, options.out, about_split, running, options.resume)
    running.unlink(missing_ok=True)
    return 0


def train_galaxies(
    galaxies: Galaxies,
    recipe: network.Recipe,
    out: Path,
    about_split: dict[str, int],
    running: Path | None = None,
    resume: bool = False,
) -> None:
    """Split, train, calibrate on the validation part, save, and say how long it took and how good it is there."""
    parts = split(galaxies, **about_split)
    start = time.perf_counter(), time.process_time()
    print(", ".join(f"{len(rows)} {part}" for part, rows in parts.items()), f"galaxies ({galaxies.kind})", flush=True)
    model, history = network.train(
        galaxies[parts["train"]], galaxies[parts["validation"]], recipe, running=running, resume=resume
    )
    held = galaxies[parts["validation"]]
    z = network.log_odds(model, held.images).mean(1)
    clean = subsets(held).get("clean", np.ones(len(held), bool))
    about = {
        "kind": galaxies.kind,
        "split": about_split,
        "temperature": network.temperature(z[clean], held.labels[clean]),
        "trained_on": network.fingerprint(galaxies[parts["train"]]),
        "history": history,
    }
    network.save(out, model, recipe, about)
    for score in scoring.score(held, network.sigmoid(z)):
        print(f"validation part, {score.name}: accuracy {score.accuracy:.4f}, ROC area {score.auc:.4f}")
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    print(f"{out}: {recipe.epochs} epochs in {seconds[0]:.0f} s ({seconds[1]:.0f} s of processor time)")


def evaluate(options: argparse.Namespace) -> int:
    """Print and write the tables, draw the figures."""
    check_folder(options.out, options.overwrite)
    use_threads(options.threads)
    model, meta = network.load(options.weights)
    galaxies = read(options.data, meta["preprocessing"]["size"])
    parts = split(galaxies, **meta["split"])
    same = network.fingerprint(galaxies[parts["train"]]) == meta["trained_on"]
    if options.part == "all" and same:
        print("note: all includes the galaxies the network was trained on", file=sys.stderr)
    if options.part == "test" and not same:
        print("note: not the sample trained on; if none of it was, --part all uses it whole", file=sys.stderr)
    chosen = galaxies if options.part == "all" else galaxies[parts[options.part]]
    tables, _ = evaluate_galaxies(model, meta, chosen, options.part, options.out, options.overwrite)
    print("\n\n".join(table.text() for table in tables))
    print(f"\ntables and figures in {options.out}")
    return 0


def evaluate_galaxies(
    model: Any, meta: dict[str, Any], galaxies: Galaxies, part: str, out: Path, overwrite: bool
) -> tuple[list[Table], list[tuple[Path, str]]]:
    """Score one part of a sample, hide its bars: tables and figures, written to `out` as CSV and PNG."""
    from examples.galaxy_bars import figures  # matplotlib, which prediction does not need

    def log_odds(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return network.log_odds(model, images).mean(1) / meta["temperature"]

    z = log_odds(galaxies.images)
    p_bar, uncalibrated = network.sigmoid(z), network.sigmoid(z * meta["temperature"])
    results = scoring.score(galaxies, p_bar)
    if not results:
        raise InputError("evaluation needs barred and unbarred galaxies: one class is missing")
    of = f"{galaxies.kind} galaxies" if part == "all" else f"{part} part of the {galaxies.kind} galaxies"
    if meta["kind"] != galaxies.kind:
        of += f", network trained on {meta['kind']} ones"
    test = occlusion.hide_bars(log_odds, galaxies, z)
    tables = scoring.tables(results, of)
    tables["calibration"] = scoring.calibration_table(galaxies, uncalibrated, p_bar, meta["temperature"], of)
    experts = scoring.experts_table(galaxies, p_bar, of)
    tables |= {"experts": experts} if experts else {}
    if len(test.rows):
        tables["occlusion"] = scoring.occlusion_table(test, galaxies, of)
        if test.unbarred.size:
            tables["occlusion_unbarred"] = scoring.unbarred_table(test, of)
    scoring.write_tables(out, tables, overwrite)
    calls = [[f"{p:.4f}", CLASSES[int(p >= scoring.THRESHOLD)]] for p in p_bar]
    rows = [[f, *call, CLASSES[y]] for f, call, y in zip(galaxies.files, calls, galaxies.labels, strict=True)]
    write_csv(out / "predictions.csv", ["file", "p_bar", "label", "true_label"], rows, overwrite)
    pictures = figures.all_figures(out, model, galaxies, p_bar, uncalibrated, test, of, meta, results)
    return list(tables.values()), pictures


def crossvalidate(options: argparse.Namespace) -> int:
    """Score several networks, each on its own test part; pool them where no galaxy is tested twice."""
    check_folder(options.out, options.overwrite)
    use_threads(options.threads)
    runs, tested, p_bar = [], [], []
    galaxies = None
    for path in options.weights:
        model, meta = network.load(path)
        if galaxies is None or galaxies.images.shape[1] != meta["preprocessing"]["size"]:
            galaxies = read(options.data, meta["preprocessing"]["size"])
        parts = split(galaxies, **meta["split"])
        if network.fingerprint(galaxies[parts["train"]]) != meta["trained_on"]:
            raise InputError(f"{path} was trained on other galaxies than those of the data's split: nothing to compare")
        part = galaxies[parts["test"]]
        p = network.probabilities(model, part.images, temperature=meta["temperature"])
        about = [path.stem, meta["split"]["seed"], meta["split"]["fold"], meta["recipe"]["seed"]]
        runs.append((about, scoring.score(part, p)))
        tested.append(parts["test"])
        p_bar.append(p)
        print(f"{path}: {len(part)} galaxies", file=sys.stderr)
    tables = {"crossvalidation": scoring.crossvalidation_table(runs)}
    rows, p_all = np.concatenate(tested), np.concatenate(p_bar)
    if galaxies is not None and len(np.unique(rows)) == len(rows) and len(runs) > 1:
        of = f"{len(rows)} {galaxies.kind} galaxies, each by a network that has not seen it"
        pooled = galaxies[rows]
        tables |= {"confusion": scoring.tables(scoring.score(pooled, p_all), of)["confusion"]}
        experts = scoring.experts_table(pooled, p_all, of)
        tables |= {"experts": experts} if experts else {}
    scoring.write_tables(options.out, tables, options.overwrite)
    print("\n\n".join(table.text() for table in tables.values()))
    return 0


def select(options: argparse.Namespace) -> int:
    """Write the galaxies of a catalogue that pass the cuts, with their labels."""
    check_file(options.out, options.overwrite)
    cuts = Cuts(
        *options.r,
        options.z,
        *options.half_light,
        options.edge_on,
        options.votes,
        options.barred_from,
        options.unbarred_to,
    )
    catalogue = read_catalogue(options.catalogue)
    mask, lines = catalogues.select(catalogue, cuts)
    print(f"{len(mask)} galaxies", *lines, sep="\n")
    if not mask.any():
        raise InputError("no galaxy passes the cuts: nothing written")
    own = catalogues.labels(catalogue, cuts)
    catalogues.write_selection(options.out, catalogue, mask, own, options.overwrite)
    taken = [label for label, passed in zip(own, mask, strict=True) if passed]
    print(f"{options.out}: {len(taken)} galaxies, {taken.count('barred')} barred, {taken.count('unbarred')} unbarred")
    return 0


def fetch(options: argparse.Namespace) -> int:
    """Fetch cut-outs of a catalogue; exit code 1 if some galaxies gave none."""
    if not options.rate > 0 or options.tries < 1 or not options.timeout > 0:
        raise InputError("fetch needs a positive --rate and --timeout and at least one of --tries")
    if (options.radii is not None and not options.radii > 0) or not 64 <= options.size <= 2048:
        raise InputError("fetch needs positive --radii and a --size of 64 ... 2048 pixels, the limits of the service")
    service = fetching.Service(options.service, options.rate, options.tries, options.timeout)
    done = fetching.fetch(read_catalogue(options.catalogue), options.out, service, options.radii, options.size)
    print(f"{len(done.files)} cut-outs in {options.out} ({done.new} new, {done.labelled} with a label)")
    if done.failures:
        print(f"{len(done.failures)} galaxies failed: run it again to try those", file=sys.stderr)
    return int(bool(done.failures))


def prepare(options: argparse.Namespace) -> int:
    """Make pictures of FITS images; exit code 1 if some galaxies gave none."""
    if not options.radii > 0 or not options.pixel_scale > 0 or options.size < 16:
        raise InputError("prepare needs positive --radii and --pixel-scale and a --size of at least 16")
    made, labelled, failures = preparing.prepare(
        read_catalogue(options.catalogue),
        options.images,
        options.out,
        options.radii,
        options.size,
        options.pixel_scale,
        options.overwrite,
    )
    for line in failures:
        print(f"error: {line}", file=sys.stderr)
    print(f"{made} pictures in {options.out} ({labelled} with a label)")
    return int(bool(failures))


def predict(options: argparse.Namespace) -> int:
    """Write p(bar) of each picture; one that cannot be read is reported and left out, and the exit code is 1."""
    use_threads(options.threads)
    if options.pixel_scale is not None and not options.pixel_scale > 0:
        raise InputError(f"--pixel-scale must be positive, got {options.pixel_scale}")
    if not 0 <= options.threshold <= 1:
        raise InputError(f"--threshold must lie in 0 ... 1, got {options.threshold}")
    catalogue = read_catalogue(options.catalogue) if options.catalogue else None
    failures = predicting.predict(
        list_pictures(options.files),
        options.weights,
        options.out,
        catalogue=catalogue,
        pixel_scale=options.pixel_scale,
        threshold=options.threshold,
        views=options.views,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    if failures:
        print(f"{len(failures)} pictures could not be read", file=sys.stderr)
    return int(bool(failures))
