"""The whole chain on simulated micrographs, for `make reproduce`: simulate, train, evaluate, draw."""

from __future__ import annotations

import time
from pathlib import Path

import minidl
from examples.common import Section
from examples.particle_picking import data, evaluate, network, simulate

SMALL = {"epochs": 10, "width": 8, "lr": 5e-3}  # half the channels: seconds in C++, minutes where only NumPy is there


def reproduce(out: Path, *, seed: int = 0, threads: int | None = None) -> Section:
    """Simulate 12 micrographs, train on 7, choose on 2, test on 3 -> the report's section; all lands in `out`."""
    start = time.perf_counter()
    if threads:
        minidl.set_num_threads(threads)
    simulate.simulate(out / "micrographs", n=12, seed=seed, overwrite=True)
    collection = data.open_collection(out / "micrographs")
    picker = network.train_picker(collection, data.split(collection), seed=seed, **SMALL)
    picker.save(out / "picking.safetensors")
    result = evaluate.evaluate(collection, [picker])
    tables, figures = evaluate.write(result, out)
    for table in tables:
        print(table.text(), end="\n\n")
    return Section(
        title="Particles in cryo-EM micrographs",
        intro=(
            "A U-Net labels every pixel of a micrograph as background, protein, ice or carbon; particles are the"
            " peaks of the protein map. The micrographs here are simulated: projections of a D2 molecule of"
            " beta-galactosidase's size through a 300 kV microscope. Their scores say that the chain works, not how"
            " well it does on real data."
        ),
        command="python -m examples.particle_picking simulate | train | evaluate",
        data=f"simulated micrographs (12 of 1024 x 1024 px, seed {seed}; 7 train, 2 validation, 3 test)",
        tables=tables,
        figures=figures,
        seconds=time.perf_counter() - start,
    )
