"""The stellar part of `make reproduce`: real MILES and STELIB spectra where pip brings them, else simulated ones."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from ..common import InputError, Section, cache_folder
from . import data, evaluate, network
from .fetch import ACKNOWLEDGEMENT, fetch
from .simulate import simulate

TITLE = "Spectral types of stars"
SIMULATED = 1500  # spectra


def reproduce(out: Path, *, seed: int = 0) -> Section:
    """Fetch or simulate, train, test on stars not trained on, draw: all into `out` -> a chapter of the report."""
    out.mkdir(parents=True, exist_ok=True)
    folder, real = _data(seed)
    stars = data.load(folder, how="5550")
    print(f"{stars.kind} data, {stars.describe()}", flush=True)
    first = "miles" if real else "simulated"
    training = stars.take(i for i in range(len(stars)) if stars.libraries[i] == first)
    tables, figures = [], []
    for kind, name in (("tanh", "twenty tanh neurons"), ("cnn", "a convnet")):
        model, meta = network.train(training, out / f"{kind}.safetensors", network.Settings.of(kind, seed=seed))
        tested = stars.take(evaluate.unseen(stars, meta))
        results = evaluate.by_library(tested, network.apply(model, tested.flux))
        found = evaluate.tables(results, meta)
        tables += [replace(t, title=f"{t.title}: {name}") for t in (found if kind == "tanh" else found[:1])]
        drawn = evaluate.write(results, meta, out / kind, overwrite=True)
        figures += drawn if kind == "tanh" else [(path, f"A convnet: {text}") for path, text in drawn[:1]]
    where = (
        "Trained on three fifths of the stars of MILES; tested on another fifth, and on the stars of STELIB that are "
        f"not among those trained on: another telescope, the harder test. {ACKNOWLEDGEMENT}"
        if real
        else "MILES and STELIB could not be fetched, so stars were SIMULATED from temperature, gravity and line "
        "strengths: these numbers say that the program works, nothing about real stars."
    )
    return Section(
        TITLE,
        "The talk's two networks, twenty tanh neurons and a one-dimensional convnet, read 580 fluxes from 3900 to "
        "6800 Å and give the code 1000·A1 + 100·A2 + 2·A3 + 1.5 of class, subclass and luminosity; two heads more give "
        f"probabilities. {where}",
        f"python -m examples.reproduce --only stellar_spectra --seed {seed}",
        "real (MILES, STELIB)" if real else "simulated",
        tables=tables,
        figures=figures,
    )


def _data(seed: int) -> tuple[Path, bool]:
    """Folder with the libraries, or with simulated spectra if they cannot be had -> folder, whether real."""
    folder = cache_folder() / "stellar_spectra"
    try:
        if not (folder / "real" / "about.json").exists():
            fetch(folder / "real")
        return folder / "real", True
    except InputError as error:
        print(f"no real spectra: {error}; SIMULATED ones take their place", file=sys.stderr)
    simulated = folder / f"simulated-{seed}"
    if not (simulated / "about.json").exists():
        simulate(simulated, n=SIMULATED, seed=seed)
    return simulated, False
