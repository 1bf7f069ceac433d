"""The contrast enhancement made visible: a picture after each of its steps, before and after side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.common import InputError
from examples.drawing import ORANGE, PURPLE, save, subplots
from examples.particle_picking import enhance, formats
from examples.particle_picking.data import Diameter, in_pixels


def draw(file: Path, out: Path, *, diameter: Diameter, apix: float | None = None) -> list[str]:
    """Write one picture of every step of `enhance`, of the talk's three channels, and of what the rule calls ice and
    carbon -> the steps' names.
    """
    from matplotlib.colors import ListedColormap

    image, stored = formats.read_micrograph(file)
    try:
        across = in_pixels(diameter, apix or stored)
        pictures: list[tuple[str, np.ndarray]] = []
        done = enhance.enhance(image, across, lambda name, picture: pictures.append((name, picture)))
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    enhance.three_channels(done, lambda name, picture: pictures.append((name, picture)))
    pictures.append(("ice (orange), carbon (purple)", done.image))
    rows = -(-len(pictures) // 5)
    figure, axes = subplots(15, 3.3 * rows, rows, 5)
    side = 24 * across  # px: what is shown, from the middle
    for k, (axis, (name, picture)) in enumerate(zip(axes.flat, pictures, strict=False)):
        full = picture.shape == done.shape and name != "local contrast"
        sy, sx = (1.0, 1.0) if full else done.scale
        h, w = picture.shape
        part = picture
        if k < len(pictures) - 1:  # the last shows everything
            cut = [
                slice(max(0, int(n / 2 - side * s / 2)), int(n / 2 + side * s / 2) + 1) for n, s in ((h, sy), (w, sx))
            ]
            part = picture[cut[0], cut[1]]
        low, high = np.percentile(part, (0.5, 99.5))
        axis.imshow(part, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
        axis.set(title=f"{k}. {name}" if k else f"before: {name}", xticks=[], yticks=[])
    for axis in axes.flat[len(pictures) :]:
        axis.set_visible(False)
    last = axes.flat[len(pictures) - 1]
    marked = np.ma.masked_equal(done.foreign, 0)
    last.imshow(marked, cmap=ListedColormap([ORANGE, PURPLE]), vmin=2, vmax=3, alpha=0.5)
    last.set(title=pictures[-1][0])
    figure.suptitle(f"{file.name}: {across:.3g} px to a particle, {enhance.WORKING} px after shrinking", fontsize=11)
    save(figure, out)
    return [name for name, _ in pictures]
