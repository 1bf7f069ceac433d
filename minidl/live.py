"""Watch a training: loss and gradient norm, drawn anew after every epoch, in a terminal or a notebook."""

from __future__ import annotations

import math
import sys
from typing import Any, TextIO

from .graph import Svg
from .nn import Module
from .train import History

MARKS = ("●", "○")
COLOURS = ("#0072B2", "#D55E00")
Panel = tuple[str, dict[str, list[float]]]


class LivePlot:
    """A callback for `fit` that draws the losses and the norm of the gradient, on logarithmic axes:

        fit(..., callback=LivePlot(model), progress=False)

    In a terminal it redraws itself in place, in a notebook too; where neither is (a log file), nothing is drawn until
    you `print(plot)`. The norm is that of the last step of each epoch, √Σ g² over all parameters, after clipping.
    """

    def __init__(self, model: Module, *, width: int = 60, height: int = 8, file: TextIO | None = None) -> None:
        self.model, self.width, self.height, self.file = model, width, height, file
        self.norms: dict[int, float] = {}  # by epoch
        self.history: History | None = None
        self._drawn: Any = None  # lines on the terminal, or the notebook's display

    def __call__(self, history: History) -> None:
        """Take note of the epoch that has just ended, and draw."""
        self.history = history
        squares = (float((p.grad * p.grad).sum()) for p in self.model.parameters() if p.grad is not None)
        self.norms[len(history.epochs)] = math.sqrt(sum(squares))
        ipython = sys.modules.get("IPython")
        file = self.file or sys.stdout
        if ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None:
            if self._drawn is None:
                self._drawn = ipython.display.display(self, display_id=True)
            else:
                self._drawn.update(self)
        elif file.isatty():
            text = str(self)
            file.write((f"\x1b[{self._drawn}F" if self._drawn else "") + text + "\n")  # so many lines up
            file.flush()
            self._drawn = text.count("\n") + 1

    def _panels(self) -> list[Panel]:
        epochs = self.history.epochs if self.history else []
        names: list[str] = [name for name in ("loss", "val_loss") if epochs and name in epochs[0]]
        losses = {name: [row[name] for row in epochs] for name in names}
        norms = [self.norms.get(k, math.nan) for k in range(1, len(epochs) + 1)]
        return [("loss", losses), ("gradient norm", {"norm": norms})]

    def __str__(self) -> str:
        """Both panels as text."""
        return "\n".join(line for panel in self._panels() for line in _text(panel, self.width, self.height))

    def _repr_svg_(self) -> str:
        return _svg(self._panels())


def _range(curves: dict[str, list[float]]) -> tuple[float, float]:
    """Common logarithms of the least and the largest positive value, at least a factor of two apart."""
    logs = [math.log10(v) for values in curves.values() for v in values if v > 0 and math.isfinite(v)] or [0.0]
    low, high = min(logs), max(logs)
    room = max(0.0, math.log10(2) - (high - low)) / 2
    return low - room, high + room


def _places(curves: dict[str, list[float]]) -> list[list[tuple[float, float]]]:
    """Each curve's points in the unit square, epochs from left to right; what has no logarithm is left out."""
    low, high = _range(curves)
    return [
        [
            (k / max(1, len(values) - 1), (math.log10(v) - low) / (high - low))
            for k, v in enumerate(values)
            if v > 0 and math.isfinite(v)
        ]
        for values in curves.values()
    ]


def _text(panel: Panel, width: int, height: int) -> list[str]:
    title, curves = panel
    low, high = _range(curves)
    grid = [[" "] * width for _ in range(height)]
    for mark, points in zip(MARKS, _places(curves), strict=False):
        for x, y in points:
            grid[height - 1 - round(y * (height - 1))][round(x * (width - 1))] = mark
    ends = {0: f"{10**high:.3g}", height - 1: f"{10**low:.3g}"}
    lines = [f"{ends.get(k, ''):>8} ┤{''.join(row)}" for k, row in enumerate(grid)]
    latest = "  ".join(
        f"{m} {name} {values[-1]:.4g}" for m, (name, values) in zip(MARKS, curves.items(), strict=False) if values
    )
    epochs = max((len(values) for values in curves.values()), default=0)
    return [f"{title:>8}  {latest}".ljust(width), *lines, f"{'':8} └{'─' * width} epoch {epochs}"]


def _svg(panels: list[Panel], width: int = 320, height: int = 200) -> Svg:
    parts = []
    for k, (title, curves) in enumerate(panels):
        left = 60 + k * (width + 80)
        low, high = _range(curves)
        epochs = max((len(values) for values in curves.values()), default=0)
        parts.append(f'<rect x="{left}" y="30" width="{width}" height="{height}" fill="none" stroke="#555"/>')
        for x, y, anchor, text in (
            (left - 6, 36, "end", f"{10**high:.3g}"), (left - 6, 30 + height, "end", f"{10**low:.3g}"),
            (left, height + 48, "middle", "1"), (left + width, height + 48, "middle", str(epochs)),
            (left + width / 2, height + 48, "middle", "epoch"), (left, 20, "start", f"{title} (log scale)"),
        ):  # fmt: skip
            parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>')
        for c, (colour, points) in enumerate(zip(COLOURS, _places(curves), strict=False)):
            line = " ".join(f"{left + x * width:.1f},{30 + (1 - y) * height:.1f}" for x, y in points)
            dash = ' stroke-dasharray="6 3"' if c else ""
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
            name = list(curves)[c]
            parts.append(f'<text x="{left + width - 60 * c}" y="20" text-anchor="end" fill="{colour}">{name}</text>')
    across = 60 + len(panels) * (width + 80) - 60
    return Svg(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {height + 60}" width="{across}" '
        f'height="{height + 60}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>'
    )
