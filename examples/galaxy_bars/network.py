"""The networks, their training with rotated, flipped and zoomed galaxies, and the probability of a bar.

A galaxy has no up and no left: training turns every picture by a random angle each time it is seen (the talk enlarged
its sample by rotated copies), and prediction averages over the eight turns and mirrors of the square.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import minidl
from examples.common import InputError
from examples.galaxy_bars.data import CLASSES, FIELD, SIZE, Galaxies
from minidl import Tensor, checkpoint, models, nn, no_grad, optim
from minidl import functional as F
from minidl.data import DataLoader, TensorDataset
from minidl.train import fit

TASK = "galaxy_bars"
MEAN, SPREAD = 0.17, 0.2  # of the brightness of the real training pictures, 0..1
PAD = 22  # pixels mirrored at the edge, so that a turned picture has no black corners
MIRRORED = np.pad(np.arange(SIZE), PAD, mode="reflect")


def block(inputs: int, outputs: int, kernel_size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Convolution without bias, batch normalisation, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class BarNet(nn.Module):
    """Six convolutions and one linear layer, 125,000 parameters.     x (N, 3, 64, 64) -> logits (N, 2)

    64 px -> 32 by the stride of the first convolution, -> 16, 8, 4 by pooling. The last maps are averaged to 2 x 2
    only, so that the centre of the picture, where a bar must be, still counts as the centre.
    """

    def __init__(self, width: int = 24, dropout: float = 0.3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *block(3, width, 5, 2),
            *block(width, width + 8),
            nn.MaxPool2d(2),
            *block(width + 8, 2 * width),
            nn.MaxPool2d(2),
            *block(2 * width, 64),
            *block(64, 64),
            nn.MaxPool2d(2),
            *block(64, 64),
        )
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * 64, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of unbarred and barred."""
        return self.classifier(self.features(x))


def build(network: str) -> nn.Module:
    """The network of a name: "small" (BarNet) or "alexnet" (the talk's, a quarter as wide, for 64-pixel pictures)."""
    if network == "small":
        return BarNet()
    if network == "alexnet":
        return models.AlexNet(3, len(CLASSES), image_size=SIZE, width=0.25, hidden=256, stride=2)
    raise InputError(f"unknown network {network!r}: small or alexnet")


def normalise(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pictures (n, 64, 64, 3) of 0..255 -> network input (n, 3, 64, 64), about mean 0 and spread 1."""
    return np.ascontiguousarray(np.moveaxis((images.astype(np.float32) / 255 - MEAN) / SPREAD, -1, 1))


def augment(sample: tuple[NDArray[np.uint8], Any], rng: np.random.Generator) -> tuple[NDArray[np.float32], Any]:
    """Turn by any angle, mirror, zoom by up to 16 %, shift by up to 1.5 pixels, vary brightness and colour a little.

    (64, 64, 3) bytes -> (3, 64, 64) normalised; one bilinear resampling of the picture mirrored beyond its edges.
    """
    from PIL import Image

    image, label = sample
    angle, zoom, mirror = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(-0.15, 0.15)), rng.choice([-1, 1])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom * [mirror, 1]
    offset = SIZE / 2 + PAD + rng.uniform(-1.5, 1.5, 2) - turn @ [SIZE / 2, SIZE / 2]
    wide = Image.fromarray(image.take(MIRRORED, 0).take(MIRRORED, 1))
    affine = (*turn[0], offset[0], *turn[1], offset[1])
    turned = wide.transform((SIZE, SIZE), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    gain = np.exp(rng.normal(0, 0.1) + rng.normal(0, 0.05, 3)).astype(np.float32)
    pixels = (np.asarray(turned, np.float32) / 255 * gain - MEAN) / SPREAD
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), label


def loss(model: nn.Module, batch: tuple[NDArray[Any], ...]) -> Tensor:
    """Cross-entropy with labels smoothed by 0.05: about 8 % of the votes are wrong."""
    return F.cross_entropy(model(Tensor(batch[0])), batch[1], label_smoothing=0.05)


def accuracy(model: nn.Module, batch: tuple[NDArray[Any], ...]) -> float:
    """Share of right calls in a batch."""
    return float(np.mean(model(Tensor(batch[0])).numpy().argmax(1) == batch[1]))


@dataclass
class Recipe:
    """How a network is trained; the defaults were chosen on the validation part of the real galaxies."""

    network: str = "small"
    epochs: int = 60
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 0


def train(
    train_part: Galaxies,
    validation: Galaxies,
    recipe: Recipe,
    running: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train -> (network with the weights of the lowest validation loss, one dict an epoch).

    AdamW; the rate rises over the first tenth of the epochs, then falls as a cosine. `running` holds the state after
    every epoch; `resume` continues from it, InputError if it was begun with another recipe or other galaxies.
    """
    begun = {"task": TASK, "recipe": vars(recipe), "trained_on": fingerprint(train_part)}
    if resume and running is not None and (found := checkpoint.load(running).meta) != begun:
        raise InputError(f"{running} was begun with other options or galaxies ({found.get('recipe')}): repeat those")
    minidl.manual_seed(recipe.seed)
    model = build(recipe.network)
    optimizer = optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    warm = max(1, recipe.epochs // 10)
    scheduler = optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=warm),
            optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, recipe.epochs - warm)),
        ],
        milestones=[warm],
    )
    batches = DataLoader(
        TensorDataset(train_part.images, train_part.labels),
        min(recipe.batch_size, len(train_part)),
        shuffle=True,
        rng=np.random.default_rng(recipe.seed),
        drop_last=True,  # batch normalisation needs batches of a fair size
        transform=augment,
    )
    held = DataLoader(TensorDataset(normalise(validation.images), validation.labels), 128)
    history = fit(
        model,
        loss,
        optimizer,
        batches,
        held,
        epochs=recipe.epochs,
        scheduler=scheduler,
        metrics={"accuracy": accuracy},
        checkpoint=running,
        resume=resume,
        meta=None if running is None else begun,
        progress=progress,
    )
    return model, history.epochs


def probabilities(model: nn.Module, images: NDArray[np.uint8], batch_size: int = 64) -> NDArray[np.float64]:
    """p(bar) of each picture, the mean over its eight turns and mirrors.     (n, 64, 64, 3) -> (n,)"""
    model.eval()
    p_bar = np.zeros(len(images))
    with no_grad():
        for start in range(0, len(images), batch_size):
            x = normalise(images[start : start + batch_size])
            for k in range(8):
                view = np.rot90(x if k < 4 else x[..., ::-1], k, axes=(2, 3))
                logits = model(Tensor(np.ascontiguousarray(view)))
                p_bar[start : start + len(x)] += F.softmax(logits, dim=1).numpy()[:, 1] / 8
    return p_bar


def first_layers(model: nn.Module, images: NDArray[np.uint8], layers: int = 3) -> list[tuple[str, NDArray[np.float32]]]:
    """Maps after the first ReLUs of the network: (name, (n, channels, h, w)) each."""
    model.eval()
    maps: list[tuple[str, NDArray[np.float32]]] = []
    x = Tensor(normalise(images))
    with no_grad():
        for layer in model.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU) and len(maps) < layers:
                maps.append((f"convolution {len(maps) + 1}", x.numpy().copy()))
    return maps


def fingerprint(galaxies: Galaxies) -> str:
    """Hash of a sample's pictures, to tell whether a network was trained on them."""
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(image).digest() for image in galaxies.images))).hexdigest()


def save(path: Path, model: nn.Module, recipe: Recipe, about: dict[str, Any]) -> None:
    """Write the trained network with all that prediction needs to know."""
    meta = {
        "task": TASK,
        "network": recipe.network,
        "recipe": vars(recipe),
        "classes": list(CLASSES),
        "preprocessing": {"size": SIZE, "field_arcsec": FIELD, "mean": MEAN, "spread": SPREAD},
        **about,
    }
    checkpoint.save(path, model, meta=meta)


def load(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A trained network and what was saved with it; InputError unless it is one of this task."""
    if not path.is_file():
        raise InputError(f"no weights at {path}; `python -m examples.galaxy_bars train` makes them")
    meta = checkpoint.load(path).meta
    if meta.get("task") != TASK:
        raise InputError(
            f"{path} holds no bar network (its task is {meta.get('task')!r}); train one with galaxy_bars train"
        )
    if "history" not in meta:
        raise InputError(f"{path} is the state of an unfinished training; finish it with train --resume")
    model = build(meta["network"])
    checkpoint.load_model(path, model)
    return model, meta
