"""What all pictures share: colours that every eye tells apart, figures that need no display, files written whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from minidl.checkpoint import atomic_write

# the colours of Okabe and Ito
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"

matplotlib.rcParams.update({"font.size": 10, "axes.titlesize": 10.5, "figure.titlesize": 11})


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, its size in inches, whose parts make room for one another."""
    return Figure(figsize=(width, height), layout="constrained")


def subplots(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes, as `matplotlib.pyplot.subplots` gives them, without a window that must be closed."""
    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG of 110 dots per inch, whole or not at all."""
    with atomic_write(path) as part:
        figure.savefig(part, dpi=110, bbox_inches="tight", format="png")
    return path
