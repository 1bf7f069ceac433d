"""`python -m examples.particle_picking COMMAND`: the command line."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from examples.common import (
    InputError,
    add_command,
    add_output,
    add_threads,
    check_file,
    check_folder,
    data_folder,
    run_command,
    seed,
    use_threads,
)
from examples.particle_picking import WEIGHTS

if TYPE_CHECKING:
    from examples.particle_picking.data import Collection


def _threshold(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 or more")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return value


def _diameter(text: str) -> tuple[float, str]:
    from examples.particle_picking.data import parse_diameter

    try:
        return parse_diameter(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a diameter such as 108 (px) or 190A (Å)") from error


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="particle_picking", description="Find protein particles in cryo-EM micrographs.")
    commands = top.add_subparsers(dest="command", required=True)

    def add_data(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--data", type=Path, help="folder with images/ and coords/ (else $MINIDL_DATA/micrographs)")
        sub.add_argument(
            "--diameter", type=_diameter, help="particle diameter, 108 (px) or 190A (Å), if not in the folder"
        )
        sub.add_argument("--apix", type=_positive, help="pixel size in Å, if not in the files")
        add_threads(sub)

    sim = add_command(commands, "simulate", "make micrographs of a molecule like beta-galactosidase, with truth")
    sim.add_argument("--n", type=_count, default=12, help="number of micrographs")
    sim.add_argument("--seed", type=seed, default=0, help="random seed")
    sim.add_argument("--size", type=_count, default=1024, help="side in px")
    sim.add_argument("--apix", type=_positive, default=3.54, help="pixel size in Å")
    sim.add_argument("--shape", default="betagal", help="molecule: betagal, shell, barrel, antibody or ribosome")
    sim.add_argument("--dose", type=_positive, default=20.0, help="electrons per square Å")
    sim.add_argument("--mode", choices=("float32", "int16", "uint16"), default="float32", help="number type of the MRC")
    add_output(sim, "folder to write")

    fetched = add_command(
        commands, "fetch", "fetch a real micrograph with ice, automatic picks and contamination mask (pip, 5 MB)"
    )
    add_output(fetched, "folder to write")

    steps = add_command(commands, "enhance", "show what each step of the contrast enhancement does to a micrograph")
    steps.add_argument("file", type=Path, help="micrograph: .mrc (.gz, .bz2), .png, .jpg")
    steps.add_argument("--diameter", type=_diameter, required=True, help="particle diameter, 108 (px) or 190A (Å)")
    steps.add_argument("--apix", type=_positive, help="pixel size in Å, if not in the file")
    add_output(steps, "picture to write (.png)")

    fit = add_command(commands, "train", "train a picker on a data folder")
    add_data(fit)
    fit.add_argument(
        "--method",
        choices=("segmentation", "detection", "template", "log"),
        default="segmentation",
        help="U-Net, grid network, averaged templates, or Laplacian of Gaussian",
    )
    fit.add_argument("--start", type=Path, help="weights of the same network to begin with")
    fit.add_argument(
        "--simulated", type=_whole, default=0, help="micrographs of random molecules that join the training"
    )
    fit.add_argument("--epochs", type=_count, default=16, help="epochs of 128 crops")
    fit.add_argument("--seed", type=seed, default=0, help="seed of weights and crops")
    fit.add_argument("--batch-size", type=_count, default=8, help="crops a step")
    fit.add_argument("--lr", type=_positive, default=2e-3, help="first learning rate (AdamW, cosine)")
    fit.add_argument("--width", type=_count, help="channels of the network's first level (default 16, detection 12)")
    fit.add_argument("--depth", type=_count, help="levels of the U-Net (default 3)")
    fit.add_argument(
        "--rule",
        choices=("peaks", "blobs"),
        help="how the U-Net's mask becomes picks: its peaks (default), or blobs of the right size",
    )
    fit.add_argument(
        "--references",
        type=Path,
        help="pictures (.mrcs, .mrc, .png) of the micrographs' pixel size to use as templates, instead of averages",
    )
    fit.add_argument("--templates", type=_count, help="class averages that the template method makes (default 4)")
    fit.add_argument("--folds", type=_count, default=4, help="parts of the split by micrograph")
    fit.add_argument("--fold", type=int, default=0, help="which part is the test")
    fit.add_argument("--split-seed", type=seed, default=0, help="seed of the split")
    fit.add_argument("--resume", action="store_true", help="continue a training that was interrupted")
    add_output(fit, "weights to write (.safetensors)")

    few = add_command(commands, "study", "F1 after 100 picks, 1, 2, 4, 8 micrographs, for each way to pick")
    add_data(few)
    few.add_argument("--folds", type=int, nargs="+", default=[0, 1], help="which of the 4 splits (0..3) to run")
    few.add_argument("--start", type=Path, help="weights trained on simulated micrographs to begin with")
    few.add_argument("--seed", type=seed, default=0, help="seed of weights and crops")
    few.add_argument(
        "--out", type=Path, required=True, help="folder for runs.csv and table.csv; goes on where it stopped"
    )

    weights = add_command(commands, "ship", "train the weights that come with the program again (10 minutes)")
    add_data(weights)
    weights.add_argument("--seed", type=seed, default=0, help="seed of weights, crops and simulated micrographs")
    add_output(weights, "folder for simulated.safetensors and picker.safetensors")

    test = add_command(commands, "evaluate", "score a picker on its test micrographs, beside other programs' picks")
    add_data(test)
    test.add_argument(
        "--weights", type=Path, nargs="+", required=True, help="trained weights; those of all folds together"
    )
    add_output(test, "folder for tables and figures")

    use = add_command(commands, "predict", "pick particles: coordinates and class mask for each micrograph")
    use.add_argument("files", type=Path, nargs="+", help="micrographs (.mrc, also .gz or .bz2; .png, .jpg), or folders")
    use.add_argument("--weights", type=Path, default=WEIGHTS, help="trained weights; default those shipped")
    use.add_argument("--threshold", type=_threshold, help="least score of a pick, 0..1; default the weights' own")
    use.add_argument("--diameter", type=_diameter, help="particle diameter, 108 (px) or 190A (Å); default as trained")
    use.add_argument("--apix", type=_positive, help="pixel size in Å, if not in the file")
    use.add_argument(
        "--write", nargs="+", choices=("star", "box", "cbox", "txt", "csv", "mask", "mask.mrc", "stack"),
        default=["star", "box", "cbox", "mask"], help="what to write",
    )  # fmt: skip
    use.add_argument("--box", type=_count, help="side of boxes in px; default the diameter, for stacks 1.5 diameters")
    use.add_argument("--watch", action="store_true", help="stay, and pick what comes into the folders (Ctrl-C ends it)")
    use.add_argument("--watch-for", type=_positive, metavar="SECONDS", help="end --watch after so long without news")
    use.add_argument("--resume", action="store_true", help="go on with a run that was interrupted")
    add_threads(use)
    add_output(use, "folder to write")

    turn = add_command(commands, "convert", "turn coordinate files into another format")
    turn.add_argument(
        "files", type=Path, nargs="+", help=".star, .box, .cbox, .txt (Topaz) or .csv, or folders of them"
    )
    turn.add_argument("--to", required=True, choices=("star", "box", "cbox", "txt", "csv"), help="format to write")
    turn.add_argument("--box", type=_count, help="side of boxes in px, if the file has none")
    turn.add_argument("--threshold", type=float, help="leave picks of lower score away")
    turn.add_argument("--flip-height", type=_count, help="rows of the files are counted from the bottom of so many")
    add_output(turn, "folder to write")

    def add_picks(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--picks", type=Path, nargs="+", required=True, help="folders of picks, each with its files")
        sub.add_argument("--flip", nargs="+", default=[], metavar="NAME", help="of these folders rows count from below")
        sub.add_argument("--threshold", type=float, help="leave picks of lower score away")
        sub.add_argument(
            "--diameter", type=_diameter, help="particle diameter, 108 (px) or 190A (Å), if not in --coords"
        )

    judge = add_command(commands, "score", "judge any folders of picks by a folder of true coordinates")
    add_picks(judge)
    judge.add_argument("--height", type=_count, help="rows of a micrograph, for --flip")
    judge.add_argument("--coords", type=Path, required=True, help="folder of true coordinates")
    judge.add_argument("--apix", type=_positive, help="pixel size in Å, for a diameter in Å")
    add_output(judge, "folder for the tables")

    sort = add_command(commands, "classify", "sort picks into 2-D classes, find false ones, compare pickers so")
    add_picks(sort)
    sort.add_argument("--images", type=Path, required=True, help="folder of the micrographs")
    sort.add_argument("--coords", type=Path, help="folder of true coordinates, to compare with")
    sort.add_argument("--apix", type=_positive, help="pixel size in Å, if not in the micrographs")
    sort.add_argument("--classes", type=_count, default=50, help="number of classes")
    sort.add_argument("--rounds", type=_count, default=15, help="rounds of K-means")
    sort.add_argument("--seed", type=seed, default=0, help="seed of the first averages")
    sort.add_argument(
        "--flat", type=_positive, default=0.8, help="a class of less contrast, relative to clear ones, is false"
    )
    add_output(sort, "folder for tables, galleries and the picks that are kept")

    look = add_command(commands, "view", "make one HTML page to look at picks: threshold, zoom, layers, true and false")
    look.add_argument("picks", type=Path, help="folder that predict wrote, or any folder of picks")
    look.add_argument("--images", type=Path, help="folder of the micrographs, if not where predict found them")
    look.add_argument("--coords", type=Path, help="folder of true coordinates, to show true, false and missed")
    look.add_argument("--diameter", type=_diameter, help="particle diameter, 108 (px) or 190A (Å), if not known")
    look.add_argument("--apix", type=_positive, help="pixel size in Å, if not in the micrographs")
    look.add_argument("--side", type=_count, default=1400, help="px of the longer side of an embedded micrograph")
    add_output(look, "page to write (.html)")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command -> exit code."""
    args = parser().parse_args(argv)
    if args.command == "simulate":
        from examples.particle_picking.simulate import simulate

        simulate(
            args.out,
            n=args.n,
            seed=args.seed,
            size=args.size,
            apix=args.apix,
            mode=args.mode,
            shape=args.shape,
            dose=args.dose,
            overwrite=args.overwrite,
        )
        print(f"{args.n} simulated micrographs in {args.out}")
        return 0
    if args.command == "fetch":
        from examples.particle_picking.data import fetch

        fetch(args.out, overwrite=args.overwrite)
        print(f"1 real micrograph in {args.out}")
        return 0

    if args.command == "enhance":
        from examples.particle_picking import steps

        check_file(args.out, args.overwrite)
        steps.draw(args.file, args.out, diameter=args.diameter, apix=args.apix)
        print(f"the steps of enhancement in {args.out}")
        return 0

    use_threads(getattr(args, "threads", None))
    if args.command == "predict":
        from examples.particle_picking.predict import Options, predict

        options = Options(args.threshold, args.diameter, args.apix, tuple(dict.fromkeys(args.write)), args.box)
        return predict(
            args.files,
            args.weights,
            args.out,
            options,
            resume=args.resume,
            overwrite=args.overwrite,
            watch=args.watch or args.watch_for is not None,
            watch_for=args.watch_for,
        )
    if args.command in ("convert", "score", "classify", "view"):
        return {"convert": _convert, "score": _score, "classify": _classify, "view": _view}[args.command](args)

    from examples.particle_picking import data

    collection = data.open_collection(
        data_folder(args.data, "micrographs", data.REMEDY), diameter=args.diameter, apix=args.apix
    )
    return {"train": _train, "study": _study, "ship": _ship, "evaluate": _evaluate}[args.command](args, collection)


def _train(args: argparse.Namespace, collection: Collection) -> int:
    from examples.particle_picking import data, network

    check_file(args.out, args.overwrite or args.resume)
    if args.out.suffix != ".safetensors" or args.out.is_dir():
        raise InputError(f"--out {args.out}: weights are a .safetensors file")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=args.out.parent):  # if it cannot be written, say so now and not after an epoch
        pass
    parts = data.split(collection, folds=args.folds, fold=args.fold, seed=args.split_seed)
    print(
        f"{collection.kind} data: {len(parts.train)} micrographs train, {len(parts.val)} validate,"
        f" {len(parts.test)} are kept for the test"
    )
    state = args.out.with_suffix(".training.safetensors")
    how = network.Training(
        epochs=args.epochs, seed=args.seed, batch_size=args.batch_size, lr=args.lr, state=state, resume=args.resume
    )
    picker = network.train_picker(
        collection,
        parts,
        method=args.method,
        simulated=args.simulated,
        start=args.start,
        references=args.references,
        settings=_settings(args),
        how=how,
    )
    picker.save(args.out)
    state.unlink(missing_ok=True)
    found = picker.meta["validation"]
    print(f"validation: F1 {found['f1']:.3f} at threshold {picker.threshold:.2f}, AP {found['average_precision']:.3f}")
    print(f"weights in {args.out}")
    return 0


def _settings(args: argparse.Namespace) -> dict[str, int | str]:
    """What the user said of the picker; InputError for what its method does not have."""
    takes = {
        "segmentation": {"width", "depth", "rule"},
        "detection": {"width"},
        "template": {"templates"},
        "log": set(),
    }
    given = {
        name: getattr(args, name) for name in ("width", "depth", "rule", "templates") if getattr(args, name) is not None
    }
    if strange := sorted(given.keys() - takes[args.method]):
        raise InputError(f"--{strange[0]} says nothing to --method {args.method}")
    return {"count" if name == "templates" else name: value for name, value in given.items()}


def _ship(args: argparse.Namespace, collection: Collection) -> int:
    from examples.particle_picking import ship

    check_folder(args.out, args.overwrite)
    for path in ship.ship(collection, args.out, args.seed):
        print(f"weights in {path}")
    return 0


def _study(args: argparse.Namespace, collection: Collection) -> int:
    from examples.common import write_csv
    from examples.particle_picking import study

    args.out.mkdir(parents=True, exist_ok=True)
    ways = [way for way, (_, begun) in study.WAYS.items() if args.start is not None or not begun]
    lines = list(study.run(ways, args.folds, collection, args.out, args.start, seed=args.seed))
    made = study.table(lines, collection.kind)
    write_csv(args.out / "table.csv", made.header, made.rows, overwrite=True)
    print(made.text())
    return 0


def _evaluate(args: argparse.Namespace, collection: Collection) -> int:
    from examples.particle_picking import evaluate, network

    check_folder(args.out, args.overwrite)
    result = evaluate.evaluate(collection, [network.load_picker(path) for path in args.weights])
    made, drawn = evaluate.write(result, args.out)
    print("\n\n".join(table.text() for table in made))
    print(f"\n{len(drawn)} figures and the tables as CSV in {args.out}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from examples.particle_picking import formats

    check_folder(args.out, args.overwrite)
    found: dict[str, formats.Picks] = {}
    for path in args.files:
        for name, picks in (formats.read_folder(path) if path.is_dir() else formats.read_all(path)).items():
            if name in found:
                raise InputError(f"{path}: {name} stands in another file too: give them one at a time")
            if args.flip_height is not None:
                picks.xy[:, 1] = args.flip_height - picks.xy[:, 1]
            found[name] = picks if args.threshold is None else picks.above(args.threshold)
    for name, picks in found.items():
        if (box := args.box or picks.box or picks.diameter) is None and args.to in ("box", "cbox"):
            raise InputError(f"{name}: its file has no box size: give --box")
        ending = "_autopick.star" if args.to == "star" else f".{args.to}"
        formats.write_coordinates(args.out / f"{name}{ending}", picks, round(box or 0))
    print(f"{sum(map(len, found.values()))} particles of {len(found)} micrographs in {args.out}")
    return 0


def _score(args: argparse.Namespace) -> int:
    from examples.particle_picking import data, evaluate

    check_folder(args.out, args.overwrite)
    made = evaluate.score(
        args.picks,
        args.coords,
        args.out,
        diameter=data.in_pixels(args.diameter, args.apix) if args.diameter else None,
        threshold=args.threshold,
        flip=args.flip,
        height=args.height,
    )
    print("\n\n".join(table.text() for table in made))
    return 0


def _classify(args: argparse.Namespace) -> int:
    from examples.particle_picking import classify
    from examples.particle_picking.evaluate import TALK

    check_folder(args.out, args.overwrite)
    made = classify.compare(
        args.picks,
        args.images,
        args.out,
        coords=args.coords,
        diameter=args.diameter,
        apix=args.apix,
        threshold=args.threshold,
        flip=args.flip,
        classes=args.classes,
        rounds=args.rounds,
        seed=args.seed,
        flat=args.flat,
    )
    print(f"{made.text()}\n\n{TALK.text()}")
    print(f"\ngalleries, classes and the picks that are kept in {args.out}")
    return 0


def _view(args: argparse.Namespace) -> int:
    from examples.particle_picking import viewer

    check_file(args.out, args.overwrite)
    if args.out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {args.out}: a page is a .html file")
    count = viewer.page(
        args.picks,
        args.out,
        images=args.images,
        coords=args.coords,
        diameter=args.diameter,
        apix=args.apix,
        side=args.side,
    )
    print(f"{count} micrographs in {args.out} ({args.out.stat().st_size / 1e6:.1f} MB, opens in any browser)")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
