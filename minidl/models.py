"""The networks of the talk, from one neuron to a U-Net. Each is a few layers of nn.py in a row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from . import functional as F
from . import init, nn
from .tensor import Tensor, no_grad

Rng = np.random.Generator | None


class Perceptron(nn.Module):
    """One neuron: a weighted sum, a bias, and a threshold ("step") or its smooth form ("logistic").

    x (N, in_features) -> y (N, 1): 0 or 1 for the step, a probability for the logistic. The step has no useful
    gradient and learns by `rosenblatt_step`; the logistic neuron learns by gradient descent.
    """

    def __init__(self, in_features: int, activation: str = "step", *, rng: Rng = None) -> None:
        if activation not in ("step", "logistic"):
            raise ValueError(f"activation is 'step' or 'logistic', not {activation!r}")
        self.activation = activation
        self.sum = nn.Linear(in_features, 1, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """Whether, or how probably, the weighted sum exceeds 0."""
        z = self.sum(x)
        return (z >= 0).astype(z.dtype) if self.activation == "step" else F.sigmoid(z)

    def rosenblatt_step(self, x: Any, target: Any, lr: float = 1.0) -> int:
        """Go once through the samples; for each mistake add lr·(target − y)·x to the weights. Returns the mistakes.

        x (N, in_features), target (N,) of 0 and 1. It ends with none if a plane separates the classes.
        ValueError for other shapes or targets.
        Rosenblatt 1958; convergence: Novikoff 1962.
        """
        x, target = np.asarray(x), np.asarray(target)
        if x.ndim != 2 or target.shape != x.shape[:1] or not np.isin(target, (0, 1)).all():
            raise ValueError(
                f"samples (N, in_features) and N targets of 0 or 1 are needed, not {x.shape}, {target.shape}"
            )
        mistakes = 0
        weight, bias = self.sum.weight.data[0], self.sum.bias.data  # type: ignore[union-attr]
        for row, t in zip(x, target, strict=True):
            error = float(t) - float(row @ weight + bias[0] >= 0)
            weight += lr * error * row
            bias += lr * error
            mistakes += error != 0
        return mistakes


class TanhNetwork(nn.Module):
    """The talk's multilayer network: a hidden layer of 20 tanh neurons.   x (N, in_features) -> y (N, out_features)."""

    def __init__(self, in_features: int, out_features: int = 1, hidden: int = 20, *, rng: Rng = None) -> None:
        self.hidden = nn.Linear(in_features, hidden, rng=rng)
        self.output = nn.Linear(hidden, out_features, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """output(tanh(hidden(x)))."""
        return self.output(self.hidden(x, activation="tanh"))  # type: ignore[no-any-return]


class AlexNet(nn.Module):
    """Five convolutions and three dense layers, as in the talk's network for bars in galaxies.

    x (N, in_channels, image_size, image_size) -> logits (N, classes). Convolutions 2, 4 and 5 work in two groups, local
    response norm follows the first two, pooling windows overlap and round up (Caffe's way). The published network has
    width=1, hidden=4096 and weights="gauss" (σ = .01, dense .005); for small images take fewer channels (`width`), a
    smaller first `stride`, and weights="kaiming", which trains from the first epoch.
    Krizhevsky et al. 2012; Abraham et al. 2018. ValueError if the image is too small for the pooling.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 2,
        image_size: int = 150,
        width: float = 1.0,
        hidden: int = 4096,
        stride: int = 4,
        dropout: float = 0.5,
        weights: str = "kaiming",
        *,
        rng: Rng = None,
    ) -> None:
        if weights not in ("kaiming", "gauss"):
            raise ValueError(f"weights are 'kaiming' or 'gauss', not {weights!r}")
        a, b, c = (max(2, round(n * width / 2) * 2) for n in (96, 256, 384))  # even, for the two groups
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, a, 11, stride=stride, rng=rng), nn.ReLU(), nn.LocalResponseNorm(5),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(a, b, 5, padding=2, groups=2, rng=rng), nn.ReLU(), nn.LocalResponseNorm(5),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(b, c, 3, padding=1, rng=rng), nn.ReLU(),
            nn.Conv2d(c, c, 3, padding=1, groups=2, rng=rng), nn.ReLU(),
            nn.Conv2d(c, b, 3, padding=1, groups=2, rng=rng), nn.ReLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Flatten(),
        )  # fmt: skip
        with no_grad():
            length = self.features(Tensor(np.zeros((1, in_channels, image_size, image_size), np.float32))).shape[1]
        self.classifier = nn.Sequential(
            nn.Linear(length, hidden, rng=rng), nn.ReLU(), nn.Dropout(dropout, rng=rng),
            nn.Linear(hidden, hidden, rng=rng), nn.ReLU(), nn.Dropout(dropout, rng=rng),
            nn.Linear(hidden, classes, rng=rng),
        )  # fmt: skip
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.data[...] = 0
            elif weights == "kaiming":
                p.data[...] = Tensor(init.kaiming_normal(p.shape, rng)).data  # where the active backend computes
            else:
                p.data[...] = Tensor(init.normal(p.shape, 0.01 if p.ndim == 4 else 0.005, rng)).data

    def forward(self, x: Tensor) -> Tensor:
        """classifier(features(x))."""
        return self.classifier(self.features(x))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two convolutions 3x3 with batch norm that learn what to add to their input: ReLU(x + f(x)).

    x (N, in_channels, H, W) -> (N, out_channels, H/stride, W/stride). Where the shape changes, a convolution 1x1 (after
    averaging over stride x stride pixels) brings x along. He et al. 2016, figure 2; averaging: He et al. 2019.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, rng: Rng = None) -> None:
        self.change = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False, rng=rng),
            nn.BatchNorm2d(out_channels), nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False, rng=rng), nn.BatchNorm2d(out_channels),
        )  # fmt: skip
        self.shortcut = nn.Sequential(*([nn.AvgPool2d(stride)] if stride > 1 else []))
        if stride > 1 or in_channels != out_channels:
            project = nn.Conv2d(in_channels, out_channels, 1, bias=False, rng=rng)
            self.shortcut = nn.Sequential(*self.shortcut, project, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """ReLU(shortcut(x) + change(x))."""
        return F.relu(self.shortcut(x) + self.change(x))


class ResNet(nn.Module):
    """A small residual network for pictures of about 64 pixels.   x (N, in_channels, H, W) -> logits (N, classes)

    A convolution 5x5 of stride 2, then `blocks` residual blocks of each width; each width after the first halves the
    maps. The last maps are averaged to 2 x 2 only, so that the centre of the picture still counts as the centre.
    He et al. 2016. ValueError unless there is a width.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 2,
        widths: Sequence[int] = (24, 48, 96),
        blocks: int = 1,
        dropout: float = 0.3,
        *,
        rng: Rng = None,
    ) -> None:
        if not widths:
            raise ValueError("a residual network needs at least one width")
        nn._positive(blocks=blocks)
        layers: list[nn.Module] = []
        for a, b in pairwise((widths[0], *widths)):
            layers += [Residual(a, b, 1 if not layers else 2, rng=rng)]
            layers += [Residual(b, b, rng=rng) for _ in range(blocks - 1)]
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 5, 2, padding=2, bias=False, rng=rng),
            nn.BatchNorm2d(widths[0]), nn.ReLU(),
            *layers,
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout, rng=rng),
            nn.Linear(4 * widths[-1], classes, rng=rng),
        )

    def forward(self, x: Tensor) -> Tensor:
        """classifier(features(x))."""
        return self.classifier(self.features(x))  # type: ignore[no-any-return]


class Autoencoder(nn.Module):
    """Dense layers that squeeze x into a short code and build it up again.   x (N, sizes[0]) -> the same shape.

    sizes: from the input to the code, such as (580, 128, 32); the decoder mirrors them, tanh in between.
    """

    encoder: nn.Sequential
    decoder: nn.Sequential

    def __init__(self, sizes: Sequence[int], *, rng: Rng = None) -> None:
        if len(sizes) < 2:
            raise ValueError(f"an autoencoder needs at least the input's and the code's size, not {tuple(sizes)}")
        self.code = sizes[-1]
        self.encoder = _dense(sizes, rng)
        self.decoder = _dense(tuple(reversed(sizes)), rng)

    def forward(self, x: Tensor) -> Tensor:
        """decoder(encoder(x))."""
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]

    def with_head(self, outputs: int, hidden: int | None = None, *, rng: Rng = None) -> nn.Sequential:
        """The encoder, its weights shared, with dense layers code -> (hidden ->) outputs instead of the decoder."""
        sizes = (self.code, outputs) if hidden is None else (self.code, hidden, outputs)
        return nn.Sequential(self.encoder, nn.Tanh(), _dense(sizes, rng))


def _dense(sizes: Sequence[int], rng: Rng) -> nn.Sequential:
    """Linear layers of these sizes with tanh between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, rng=rng), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class ConvAutoencoder(Autoencoder):
    """Convolutions of stride 2 that squeeze a series into a code, and transposed ones that build it up again.

    x (N, in_channels, length) -> the same shape. Each of `channels` halves the length. ValueError unless
    2^len(channels) divides it.
    """

    def __init__(
        self,
        length: int,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32),
        code: int = 32,
        kernel_size: int = 7,
        *,
        rng: Rng = None,
    ) -> None:
        if length % 2 ** len(channels) or kernel_size % 2 == 0:
            raise ValueError(
                f"length {length} must be divisible by {2 ** len(channels)} and kernel_size {kernel_size} odd"
            )
        self.code = code
        widths = (in_channels, *channels)
        short = length // 2 ** len(channels)
        half = kernel_size // 2
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for a, b in zip(widths, channels, strict=False):
            down += [nn.Conv1d(a, b, kernel_size, stride=2, padding=half, rng=rng), nn.ReLU()]
            up = [nn.ReLU(), nn.ConvTranspose1d(b, a, kernel_size, 2, half, output_padding=1, rng=rng), *up]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(widths[-1] * short, code, rng=rng))
        expand = [nn.Linear(code, widths[-1] * short, rng=rng), nn.Unflatten(1, (widths[-1], short))]
        self.decoder = nn.Sequential(*expand, *up)


class UNet(nn.Module):
    """A segmentation network: down by pooling, up by transposed convolution, with bridges between equal sizes.

    x (N, in_channels, H, W) -> logits (N, classes, H, W). Channels double at each of `depth` levels from `width`.
    Ronneberger et al. 2015, figure 1 (here padded, with batch norm). ValueError unless 2^depth divides H and W.
    """

    def __init__(
        self, in_channels: int = 1, classes: int = 2, width: int = 16, depth: int = 3, *, rng: Rng = None
    ) -> None:
        nn._positive(width=width, depth=depth)
        widths = [width * 2**k for k in range(depth + 1)]
        self.depth = depth
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(_double(a, b, rng) for a, b in zip([in_channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2, rng=rng) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(_double(2 * w, w, rng) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores for every pixel."""
        if x.ndim != 4 or any(n % 2**self.depth for n in x.shape[2:]):
            raise ValueError(
                f"UNet: input (N, C, H, W) with sides divisible by {2**self.depth} is needed, not {x.shape}"
            )
        bridges = []
        for k, block in enumerate(self.down):
            x = block(x if k == 0 else self.pool(x))
            bridges.append(x)
        bridges.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge((bridges.pop(), up(x)))  # side by side, not concatenated
        return self.head(x)  # type: ignore[no-any-return]


def _double(a: int, b: int, rng: Rng) -> nn.Sequential:
    """Twice: convolution 3x3, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(a, b, 3, padding=1, bias=False, rng=rng), nn.BatchNorm2d(b), nn.ReLU(),
        nn.Conv2d(b, b, 3, padding=1, bias=False, rng=rng), nn.BatchNorm2d(b), nn.ReLU(),
    )  # fmt: skip
