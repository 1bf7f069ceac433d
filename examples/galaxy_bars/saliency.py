"""Where a small change of the picture changes the answer: the gradient in the picture, and grad-CAM in a layer.

Both are averaged over the eight turns and mirrors of the picture, each map turned back, as the prediction is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from examples.galaxy_bars.network import oriented
from minidl import Tensor, models, nn, no_grad

Maps = NDArray[np.float64]
SMALLEST = 6  # pixels across the maps grad-CAM looks at


def gradient(model: nn.Module, images: NDArray[np.uint8]) -> Maps:
    """|∂z/∂pixel| summed over the colours, z the log odds of a bar.   (n, size, size, 3) -> (n, size, size)

    Simonyan, Vedaldi & Zisserman 2014, section 3.
    """
    model.eval()
    maps = []
    for view in oriented(images, 8):
        x = Tensor(view, requires_grad=True)
        _backward(model, model(x))
        maps.append(np.abs(x.grad).sum(1))
    return _turned_back(maps)


def grad_cam(model: nn.Module, images: NDArray[np.uint8]) -> Maps:
    """ReLU(Σ_c w_c·A_c): maps A of the last layer of at least 6 x 6 pixels, w_c the mean of ∂z/∂A_c.   -> (n, h, w)

    Selvaraju et al. 2017, equations 1 and 2.
    """
    model.eval()
    maps = []
    for view in oriented(images, 8):
        with no_grad():
            x, last, seen = Tensor(view), 0, Tensor(view)
            for k, layer in enumerate(model.features):
                x = layer(x)
                if isinstance(layer, nn.ReLU | models.Residual) and x.ndim == 4 and x.shape[-1] >= SMALLEST:
                    last, seen = k + 1, x
        a = x = Tensor(seen.data, requires_grad=True)
        for layer in list(model.features)[last:]:
            x = layer(x)
        _backward(model, model.classifier(x))
        weights = a.grad.mean((2, 3), keepdims=True)
        maps.append(np.maximum((weights * a.data).sum(1), 0))
    return _turned_back(maps)


def _backward(model: nn.Module, logits: Tensor) -> None:
    """Gradients of each picture's log odds; the weights keep none."""
    (logits[:, 1] - logits[:, 0]).sum().backward()
    model.zero_grad()


def _turned_back(maps: list[NDArray[np.float32]]) -> Maps:
    """Mean of the maps (n, h, w) of the eight views of `oriented`, each turned back."""
    upright = [np.rot90(m, -k, axes=(1, 2))[..., :: 1 if k < 4 else -1] for k, m in enumerate(maps)]
    return np.mean(upright, axis=0, dtype=np.float64)
