"""The picture both first lessons end with: points of two classes and what the network says of every place between."""

from __future__ import annotations

from typing import Any

import numpy as np

from examples.drawing import BLUE, ORANGE
from minidl import Tensor, no_grad


def decision_boundary(axes: Any, model: Any, x: np.ndarray, labels: np.ndarray, title: str) -> None:
    """Colour the plane by the model's output, 0 to 1, draw the line where it is one half, and the points (N, 2)."""
    low, high = x.min(0) - 0.6, x.max(0) + 0.6
    u, v = np.meshgrid(np.linspace(low[0], high[0], 200), np.linspace(low[1], high[1], 200))
    with no_grad():
        p = model(Tensor(np.stack([u.ravel(), v.ravel()], 1).astype(np.float32))).numpy().reshape(u.shape)
    axes.pcolormesh(u, v, p, vmin=0, vmax=1, cmap="cividis", alpha=0.5, rasterized=True)
    axes.contour(u, v, p, levels=[0.5], colors="black", linewidths=1.5)
    for k, (color, marker) in enumerate(((BLUE, "o"), (ORANGE, "^"))):
        here = x[labels == k]
        axes.scatter(
            here[:, 0], here[:, 1], c=color, marker=marker, edgecolors="black", linewidths=0.5, label=f"class {k}"
        )
    axes.set(title=title, xlabel="$x_1$", ylabel="$x_2$")
    axes.legend(loc="best", fontsize="small")
