"""The whole chain on simulated micrographs, for `make reproduce`: simulate, train, evaluate, draw."""

from __future__ import annotations

from pathlib import Path

from examples.common import Section
from examples.particle_picking import data, evaluate, network, simulate

WIDTH = 8  # half the channels: seconds in C++, minutes where only NumPy is there


def reproduce(out: Path, *, seed: int = 0) -> Section:
    """Simulate 12 micrographs, train on 7, choose on 2, test on 3 -> the report's section; all lands in `out`."""
    simulate.simulate(out / "micrographs", n=12, seed=seed, overwrite=True)
    collection = data.open_collection(out / "micrographs")
    picker = network.train_picker(
        collection,
        data.split(collection),
        settings={"width": WIDTH},
        how=network.Training(epochs=10, lr=5e-3, seed=seed),
    )
    picker.save(out / "picking.safetensors")
    result = evaluate.evaluate(collection, [picker])
    tables, figures = evaluate.write(result, out)
    return Section(
        title="Particles in cryo-EM micrographs",
        intro=(
            "A U-Net labels every pixel of a micrograph as background, protein, ice or carbon; particles are the"
            " peaks of the protein map. The micrographs here are simulated: projections of a D2 molecule of"
            " beta-galactosidase's size through a 300 kV microscope. Their scores say that the chain works, not how"
            " well it does on real data."
        ),
        command=f"python -m examples.reproduce --only particle_picking --seed {seed}",
        data=f"simulated micrographs (12 of 1024 x 1024 px, seed {seed}; 7 train, 2 validation, 3 test)",
        tables=tables,
        figures=figures,
    )
