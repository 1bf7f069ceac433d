"""The networks, their training with rotated, flipped and zoomed galaxies, and the probability of a bar.

A galaxy has no up and no left: training turns every picture by a random angle each time it is seen (the talk enlarged
its sample by rotated copies), and prediction averages over turned and mirrored views. Zooming at random takes away the
apparent size, which gives the class away in a sample of fixed field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import minidl
from examples.common import InputError
from examples.galaxy_bars.data import CLASSES, FIELD, SIZE, Galaxies, subsets
from minidl import Tensor, checkpoint, explain, models, nn, no_grad, optim
from minidl import functional as F
from minidl.data import DataLoader, TensorDataset
from minidl.train import fit

TASK = "galaxy_bars"
NETWORKS = ("resnet", "alexnet")
LEARNING_RATES = {"resnet": 3e-3, "alexnet": 1e-3}
LABELS = ("clean", "votes", "robust", "all")
MEAN, SPREAD = 0.17, 0.2  # of the brightness of the real training pictures, 0..1
ZOOM = 0.25  # largest change of the logarithm of the size in training
SMOOTHING = 0.05  # of hard labels: a few are wrong
VIEWS = 8  # turned and mirrored views a prediction averages


def build(network: str, size: int = SIZE) -> nn.Module:
    """The network of a name for pictures of `size` pixels: "resnet" (175,000 parameters) or the talk's "alexnet".

    AlexNet is as published from 150 pixels on; for smaller pictures a quarter as wide with a first stride of 2.
    """
    if network == "resnet":
        return models.ResNet(3, len(CLASSES))
    if network == "alexnet":
        small = {"width": 0.25, "hidden": 256, "stride": 2} if size < 150 else {}
        return models.AlexNet(3, len(CLASSES), image_size=size, **small)
    raise InputError(f"unknown network {network!r}: {' or '.join(NETWORKS)}")


def normalise(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pictures (n, size, size, 3) of 0..255 -> network input (n, 3, size, size), about mean 0 and spread 1."""
    return np.ascontiguousarray(np.moveaxis((images.astype(np.float32) / 255 - MEAN) / SPREAD, -1, 1))


def turn(
    image: NDArray[np.uint8], angle: float, zoom: float = 1.0, mirror: int = 1, shift: Any = (0.0, 0.0)
) -> NDArray[np.uint8]:
    """Turn a picture by an angle (radians), zoom, mirror (-1) and shift it (pixels).   (size, size, 3) -> the same

    One bilinear resampling of the picture mirrored beyond its edges, so that it has no black corners.
    """
    from PIL import Image

    size = len(image)
    pad = size // 2
    mirrored = np.pad(np.arange(size), pad, mode="reflect")
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom * [mirror, 1]
    offset = size / 2 + pad + np.asarray(shift) - matrix @ [size / 2, size / 2]
    wide = Image.fromarray(image.take(mirrored, 0).take(mirrored, 1))
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])
    return np.asarray(wide.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))


def augment(sample: tuple[NDArray[np.uint8], Any], rng: np.random.Generator) -> tuple[NDArray[np.float32], Any]:
    """Turn by any angle, mirror, zoom by up to 28 %, shift by up to 2 %, vary brightness and colour a little.

    (size, size, 3) bytes -> (3, size, size) normalised.
    """
    image, target = sample
    shift = rng.uniform(-0.0234, 0.0234, 2) * len(image)
    turned = turn(image, rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(-ZOOM, ZOOM)), rng.choice([-1, 1]), shift)
    gain = np.exp(rng.normal(0, 0.1) + rng.normal(0, 0.05, 3)).astype(np.float32)
    pixels = (turned.astype(np.float32) / 255 * gain - MEAN) / SPREAD
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), target


# Labels and losses


def usable(galaxies: Galaxies, labels: str) -> Galaxies:
    """The galaxies a treatment of the label noise learns from: "clean" drops barred ones of p_bar > .995."""
    if labels == "clean":
        return galaxies[subsets(galaxies).get("clean", np.ones(len(galaxies), bool))]
    return galaxies


def targets(galaxies: Galaxies, labels: str) -> NDArray[np.float32]:
    """What the network is to answer, p(bar) in 0..1, smoothed by 0.05.   -> (n,)

    "votes": the share of votes for a bar; where it is 1, by one or two voters mostly, 2/3 (Laplace's rule of succession
    for one voter). Else the labels. InputError for "votes" without a column p_bar.
    """
    y = galaxies.labels.astype(np.float32)
    if labels == "votes":
        if not np.isfinite(votes := galaxies.columns.get("p_bar", np.array([np.nan]))).all():
            raise InputError("--labels votes needs the votes: a column p_bar in the table of labels, without gaps")
        y = np.where(votes > 0.995, 2 / 3, votes).astype(np.float32)
    return y * (1 - SMOOTHING) + SMOOTHING / 2


def loss_of(labels: str) -> Any:
    """The loss of a treatment of the label noise: cross-entropy, or for "robust" (1 - p^q)/q with q = .7.

    p is the probability of the label; the gradient of a sample the network is sure is mislabelled is weakened by p^q.
    Generalised cross-entropy: Zhang & Sabuncu 2018, equation 6.
    """
    return robust_loss if labels == "robust" else loss


def loss(model: nn.Module, batch: tuple[NDArray[Any], ...]) -> Tensor:
    """Cross-entropy of p(bar) with targets in 0..1."""
    logits = model(Tensor(batch[0]))
    return F.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], batch[1])


def robust_loss(model: nn.Module, batch: tuple[NDArray[Any], ...], q: float = 0.7) -> Tensor:
    """Generalised cross-entropy (1 - p^q)/q of the label's probability p."""
    logits = model(Tensor(batch[0]))
    sign = np.where(batch[1] > 0.5, 1, -1).astype(np.float32)
    p = F.sigmoid((logits[:, 1] - logits[:, 0]) * Tensor(sign))
    return ((1 - p**q) / q).mean()


def accuracy(model: nn.Module, batch: tuple[NDArray[Any], ...]) -> float:
    """Share of right calls in a batch."""
    return float(np.mean(model(Tensor(batch[0])).numpy().argmax(1) == (batch[1] > 0.5)))


@dataclass
class Recipe:
    """How a network is trained; the defaults were chosen on the validation part of the real galaxies."""

    network: str = "resnet"
    epochs: int = 100
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    labels: str = "clean"
    size: int = SIZE
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
    model = build(recipe.network, recipe.size)
    learned, held_out = (usable(part, recipe.labels) for part in (train_part, validation))
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
        TensorDataset(learned.images, targets(learned, recipe.labels)),
        min(recipe.batch_size, len(learned)),
        shuffle=True,
        rng=np.random.default_rng(recipe.seed),
        drop_last=True,  # batch normalisation needs batches of a fair size
        transform=augment,
    )
    held = DataLoader(TensorDataset(normalise(held_out.images), targets(held_out, recipe.labels)), 128)
    history = fit(
        model,
        loss_of(recipe.labels),
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


# Prediction


def oriented(images: NDArray[np.uint8], views: int = VIEWS) -> Iterator[NDArray[np.float32]]:
    """Network input for each view of some pictures: the turns and mirrors of the square, for 16 also turned by 45°."""
    if views not in (1, 8, 16):
        raise InputError(f"views are 1, 8 (turns and mirrors of the square) or 16 (also between them), not {views}")
    for angle in (0, np.pi / 4)[: 1 + views // 16]:
        x = normalise(np.stack([turn(image, angle) for image in images]) if angle else images)
        for k in range(min(views, 8)):
            yield np.ascontiguousarray(np.rot90(x if k < 4 else x[..., ::-1], k, axes=(2, 3)))


def log_odds(
    model: nn.Module, images: NDArray[np.uint8], views: int = VIEWS, batch_size: int = 64
) -> NDArray[np.float64]:
    """ln(p/(1 - p)) of a bar in each view of each picture, uncalibrated.     (n, size, size, 3) -> (n, views)"""
    model.eval()
    chunks = [np.zeros((0, views))]
    with no_grad():
        for start in range(0, len(images), batch_size):
            logits = [model(Tensor(x)).numpy() for x in oriented(images[start : start + batch_size], views)]
            chunks.append(np.stack([z[:, 1] - z[:, 0] for z in logits], axis=1).astype(np.float64))
    return np.concatenate(chunks)


def probabilities(
    model: nn.Module, images: NDArray[np.uint8], views: int = VIEWS, temperature: float = 1.0
) -> NDArray[np.float64]:
    """p(bar) of each picture, of its log odds averaged over the views and divided by the temperature.     -> (n,)"""
    return sigmoid(log_odds(model, images, views).mean(1) / temperature)


def sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """1/(1 + exp(-z)), without overflow."""
    return 0.5 * (1 + np.tanh(z / 2))


def temperature(z: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The T > 0 for which the log odds z/T best explain the labels: the least cross-entropy.   z, labels (n,)

    Guo et al. 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    sign = 2 * labels - 1
    best = minimize_scalar(lambda t: np.logaddexp(0, -sign * z / np.exp(t)).mean(), bounds=(-3, 3), method="bounded")
    return float(np.exp(best.x))


def feature_maps(model: nn.Module, images: NDArray[np.uint8]) -> list[tuple[str, NDArray[np.float32]]]:
    """Maps after every ReLU, residual block and pooling of the network: (name, (n, channels, h, w)) each."""
    kinds = {nn.ReLU: "convolution", models.Residual: "residual block", nn.MaxPool2d: "pooling"}
    maps: list[tuple[str, NDArray[np.float32]]] = []
    count = dict.fromkeys(kinds, 0)
    found = explain.feature_maps(model.features, normalise(images))
    for name, layer in model.features.named_children():
        if (kind := type(layer)) in kinds:
            count[kind] += 1
            maps.append((f"{kinds[kind]} {count[kind]}", found[name]))
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
        "preprocessing": {"size": recipe.size, "field_arcsec": FIELD, "mean": MEAN, "spread": SPREAD},
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
    model = build(meta["network"], meta["preprocessing"]["size"])
    checkpoint.load_model(path, model)
    return model, meta
