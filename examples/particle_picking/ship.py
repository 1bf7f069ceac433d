"""The weights that come with the program: `python -m examples.particle_picking ship --data micrographs --out DIR`.

Two files of the same network. `simulated.safetensors` learnt from micrographs of random molecules alone: begin with it
(`train --start`) when you have some labels. `picker.safetensors` went on from there with simulated and real
micrographs mixed: `predict` uses it for a particle nobody has labelled yet.
"""

from __future__ import annotations

from pathlib import Path

import minidl
from examples.particle_picking import crops, network
from examples.particle_picking.data import Collection, Split, split
from examples.particle_picking.network import Picker, Training

MICROGRAPHS = 100  # simulated, of as many random molecules; a tenth validates
FIRST, THEN = Training(epochs=40), Training(lr=1e-3)
START, SHIPPED = "simulated.safetensors", "picker.safetensors"


def from_simulated(seed: int = 0, *, micrographs: int = MICROGRAPHS, how: Training = FIRST) -> Picker:
    """A U-Net that has seen simulated micrographs only."""
    minidl.manual_seed(seed)
    picker = network.new_picker("segmentation")
    made = crops.simulated(micrographs, seed, how.progress)
    held = max(1, micrographs // 10)
    picker.fit(made[held:], made[:held], how)
    picker.calibrate(made[:held])
    picker.meta |= network.described(
        Split([], [], []), "simulated", None, None, list(network.CLASSES), micrographs, how
    )
    return picker


def general(
    collection: Collection,
    start: Path,
    seed: int = 0,
    *,
    micrographs: int = MICROGRAPHS,
    how: Training = THEN,
) -> Picker:
    """Go on from `start` with the real training micrographs of fold 0, and as many crops of simulated ones.

    The micrographs of its test stay unseen, so that `evaluate` can say how good it is. It is to be told the diameter of
    the particles, so it remembers none.
    """
    picker = network.train_picker(collection, split(collection), simulated=micrographs, start=start, how=how)
    picker.meta |= {"diameter": None, "apix": None}
    return picker


def ship(collection: Collection, out: Path, seed: int = 0) -> list[Path]:
    """Train and write both files -> their paths."""
    paths = [out / START, out / SHIPPED]
    from_simulated(seed).save(paths[0])
    general(collection, paths[0], seed).save(paths[1])
    return paths
