"""Where a small change of the picture changes the answer: the gradient in the picture, and grad-CAM in a layer.

Both are averaged over the eight turns and mirrors of the picture, each map turned back, as the prediction is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from examples.galaxy_bars.network import oriented
from minidl import Tensor, explain, nn

Maps = NDArray[np.float64]


def gradient(model: nn.Module, images: NDArray[np.uint8]) -> Maps:
    """|∂z/∂pixel| summed over the colours, z the log odds of a bar.   (n, size, size, 3) -> (n, size, size)"""
    return _mean_of_views(model, images, "gradient")


def grad_cam(model: nn.Module, images: NDArray[np.uint8]) -> Maps:
    """Grad-CAM of the log odds of a bar in the last layer of at least 6 x 6 pixels.   -> (n, h, w)"""
    return _mean_of_views(model, images, "grad-cam")


def log_odds(logits: Tensor) -> Tensor:
    """ln(p/(1 - p)) of a bar.   (n, 2) -> (n,)"""
    return logits[:, 1] - logits[:, 0]


def _mean_of_views(model: nn.Module, images: NDArray[np.uint8], method: str) -> Maps:
    """Mean of the maps (n, h, w) of the eight views of `oriented`, each turned back."""
    maps = [explain.saliency(model, view, log_odds, method=method) for view in oriented(images, 8)]
    upright = [np.rot90(m, -k, axes=(1, 2))[..., :: 1 if k < 4 else -1] for k, m in enumerate(maps)]
    return np.mean(upright, axis=0, dtype=np.float64)
