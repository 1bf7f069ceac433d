"""The network and its training: 580 fluxes in; the code, the class O..M and the luminosity class out.

One body with three heads: its 13 outputs are the code (scaled), seven class scores and five luminosity scores. The
body is the talk's (20 tanh neurons), a one-dimensional convnet, or the encoder of an autoencoder trained without
labels. A few such members, started differently, are trained side by side and averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minidl
from minidl import Tensor, checkpoint, models, nn, optim
from minidl import functional as F
from minidl.data import DataLoader, TensorDataset
from minidl.train import fit, predict

from ..common import InputError
from . import data
from .codes import CLASSES, LUMINOSITIES
from .preprocess import BINS, CENTRES, NORMALISATIONS

NETWORKS = ("tanh", "cnn", "autoencoder")
OUTPUTS = 1 + len(CLASSES) + len(LUMINOSITIES)
COMPONENTS = 12  # principal components that fill gaps
MIDDLE, SCALE = 4500.0, 1000.0  # the network learns (code − 4500)/1000, about −3..3
_DUST = (CENTRES - 5550) / 1000  # shape of a change in reddening over so short a range, in magnitudes


@dataclass(frozen=True)
class Settings:
    """All that training depends on beside the data; written into the trained file."""

    network: str = "tanh"
    members: int = 5
    hidden: int = 20
    normalisation: str = "5550"
    epochs: int = 150
    batch_size: int = 32
    lr: float = 0.003
    weight_decay: float = 0.1
    jitter: float = 1.0
    pretrain: int = 30
    seed: int = 0
    fold: int = 0

    def __post_init__(self) -> None:
        if self.network not in NETWORKS or self.normalisation not in NORMALISATIONS:
            raise InputError(f"--network is one of {NETWORKS}, --normalisation of {NORMALISATIONS}")
        if min(self.members, self.hidden, self.epochs, self.batch_size, self.pretrain) < 1 or self.lr <= 0:
            raise InputError("--members, --hidden, --epochs, --pretrain, --batch-size and --lr must be positive")
        if self.jitter < 0 or self.weight_decay < 0 or self.seed < 0:
            raise InputError("--jitter, --weight-decay and --seed cannot be negative")


class StarNetwork(nn.Module):
    """Standardise the flux and ask every member.   x (N, 580) -> (M, N, 13): code, O..M, I..V.

    What it needs to know of the training part is saved with the weights: `mean` and `scale` (580,) of the flux, and
    for `fill` its principal components, `basis` (K, 580), each as long as its standard deviation, and `noise`, what
    they leave unexplained.
    """

    def __init__(self, members: Sequence[nn.Module], flux: np.ndarray | None = None) -> None:
        self.members = nn.ModuleList(members)
        self.register_buffer("mean", np.zeros(BINS, np.float32))
        self.register_buffer("scale", np.ones(BINS, np.float32))
        self.register_buffer("basis", np.zeros((COMPONENTS, BINS), np.float32))
        self.register_buffer("noise", np.ones(1, np.float32))
        if flux is not None:
            self._look_at(flux)

    def _look_at(self, flux: np.ndarray) -> None:
        """Mean, scale and principal components of the training part (N, 580)."""
        whole = flux[np.isfinite(flux).all(1)]
        if len(whole) < 2:
            raise InputError(
                "no two training spectra cover all of 3900-6800 Å; the gaps of the others cannot be filled"
            )
        self.mean, self.scale = whole.mean(0), whole.std(0) + 0.02
        _, s, rows = np.linalg.svd(whole - self.mean, full_matrices=False)
        k = min(COMPONENTS, len(whole) - 1)
        self.basis[:k] = s[:k, None] * rows[:k] / np.sqrt(len(whole))
        self.noise[0] = np.sqrt((s[k:] ** 2).sum() / whole.size) + 1e-3

    def fill(self, flux: np.ndarray) -> np.ndarray:
        """Put likely values where nothing was measured: (N, 580) with NaN -> (N, 580).

        The measured part chooses the sum of components, f = mean + c·basis, that is likeliest with c ~ N(0, 1) and
        the noise: (B_m B_mᵀ/σ² + 1)·c = B_m·(f − mean)_m/σ². After Connolly & Szalay 1999 (gappy spectra).
        """
        flux = flux.copy()
        for i in np.flatnonzero(~np.isfinite(flux).all(1)):
            known = np.isfinite(flux[i])
            b = self.basis[:, known].astype(np.float64) / float(self.noise[0])
            c = np.linalg.solve(b @ b.T + np.eye(len(b)), b @ ((flux[i] - self.mean)[known] / float(self.noise[0])))
            flux[i, ~known] = (self.mean + c @ self.basis)[~known]
        return flux

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of all members, side by side."""
        x = (x - self.mean) / self.scale
        return F.stack([member(x) for member in self.members])


def member(network: str, hidden: int, rng: np.random.Generator) -> nn.Module:
    """One network without its standardisation.   x (N, 580) -> (N, 13)."""
    if network == "tanh":
        return models.TanhNetwork(BINS, OUTPUTS, hidden, rng=rng)
    if network == "autoencoder":
        return with_head(autoencoder(rng), hidden, rng)
    return nn.Sequential(
        nn.Unflatten(1, (1, BINS)),
        nn.Conv1d(1, 12, 9, padding=4, rng=rng), nn.ReLU(), nn.MaxPool1d(4),
        nn.Conv1d(12, 24, 7, padding=3, rng=rng), nn.ReLU(), nn.MaxPool1d(5),
        nn.Flatten(), nn.Linear(24 * BINS // 20, hidden, rng=rng), nn.Tanh(), nn.Linear(hidden, OUTPUTS, rng=rng),
    )  # fmt: skip


def autoencoder(rng: np.random.Generator) -> nn.Module:
    """Squeezes a spectrum into 32 numbers and builds it up again.   x (N, 1, 580) -> the same shape."""
    return models.ConvAutoencoder(BINS, channels=(12, 24), code=32, rng=rng)


def with_head(network: Any, hidden: int, rng: np.random.Generator) -> nn.Module:
    """The encoder with a classifier in the decoder's place.   x (N, 580) -> (N, 13)."""
    return nn.Sequential(nn.Unflatten(1, (1, BINS)), network.with_head(OUTPUTS, hidden, rng=rng))


def star_loss(model: nn.Module, batch: tuple[np.ndarray, ...], class_weight: np.ndarray | None = None) -> Tensor:
    """Huber loss of the code + cross-entropy of the class and, where it is known, of the luminosity class.

    batch: flux (N, 580), scaled code (N,), class (N,), luminosity (N,) with −100 where unknown; class_weight (7,).
    """
    flux, code, cls, lum = batch
    out = model(Tensor(flux))
    m = len(out)

    def scores(first: int, number: int) -> Tensor:
        return out[:, :, first : first + number].reshape(-1, number)

    # an error of .3 class, three subclasses, is where the Huber loss turns from square to straight: labels err too
    loss = 5 * F.huber_loss(out[:, :, 0], np.tile(code, (m, 1)), delta=0.3)
    loss = loss + 0.5 * F.cross_entropy(scores(1, len(CLASSES)), np.tile(cls, m), weight=class_weight)
    if (lum >= 0).any():
        loss = loss + 0.3 * F.cross_entropy(scores(1 + len(CLASSES), len(LUMINOSITIES)), np.tile(lum, m))
    return loss


class Prediction(NamedTuple):
    """Of N spectra: code (N,); p_class (N, 7); p_luminosity (N, 5); spread (N,): of the members' codes."""

    code: np.ndarray
    p_class: np.ndarray
    p_luminosity: np.ndarray
    spread: np.ndarray


def apply(model: StarNetwork, flux: np.ndarray) -> Prediction:
    """Average the members' codes and probabilities: flux (N, 580), NaN where not measured -> Prediction."""
    flux = model.fill(flux)
    out = np.concatenate(
        [predict(model, flux[k : k + 256], batch_size=256).swapaxes(0, 1) for k in range(0, len(flux), 256)]
    ).swapaxes(0, 1)
    codes = out[:, :, 0].astype(np.float64) * SCALE + MIDDLE
    c = 1 + len(CLASSES)
    return Prediction(codes.mean(0), _softmax(out[:, :, 1:c]), _softmax(out[:, :, c:]), codes.std(0))


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Mean probabilities over the members: (M, N, K) -> (N, K)."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)).mean(0)


def jitter(amount: float) -> Any:
    """A transform that does to a spectrum what another telescope would: a wrong velocity, dust, noise."""

    def transform(sample: tuple[np.ndarray, ...], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        flux, *rest = sample
        shift = amount * rng.normal(0, 0.3)  # of a bin of 5 Å, 300 km/s
        flux = (1 - abs(shift)) * flux + abs(shift) * np.roll(flux, 1 if shift > 0 else -1)
        tilt = np.exp(amount * rng.normal(0, 0.05) * _DUST)
        noise = 1 + amount * 0.02 * rng.random() * rng.normal(size=BINS)
        return ((flux * tilt * noise).astype(np.float32), *rest)

    return transform


def arrays(stars: data.Stars, model: StarNetwork) -> tuple[np.ndarray, ...]:
    """What `star_loss` takes, for all spectra: flux without gaps, scaled code, class, luminosity."""
    code = ((stars.codes() - MIDDLE) / SCALE).astype(np.float32)
    return model.fill(stars.flux), code, stars.classes(), stars.luminosities()


def train(
    stars: data.Stars, out: Path, settings: Settings, *, resume: bool = False, progress: bool = True
) -> tuple[StarNetwork, dict[str, Any]]:
    """Train on the training part, keep the epoch best on the validation part, write `out` -> network and its meta.

    The test part is not looked at. InputError if a part is empty.
    """
    parts = data.split(stars, fold=settings.fold, seed=settings.seed)
    counts = ", ".join(f"{len(index)} {name}" for name, index in parts.items())
    if any(len(index) == 0 for index in parts.values()):
        raise InputError(f"too few typed spectra for three parts: {counts}")
    training, validation = stars.take(parts["train"]), stars.take(parts["validation"])
    rng = minidl.manual_seed(settings.seed)
    members = [member(settings.network, settings.hidden, rng) for _ in range(settings.members)]
    model = StarNetwork(members, training.flux)
    if settings.network == "autoencoder" and not (resume and out.exists()):
        tested = {stars.stars[i] for i in parts["test"]}
        unlabelled = model.fill(stars.flux[[i for i, star in enumerate(stars.stars) if star not in tested]])
        model.members = _pretrained((unlabelled - model.mean) / model.scale, settings, rng, progress)
    meta = {
        "task": "stellar_spectra", "data": stars.kind, "libraries": sorted(set(stars.libraries)),
        "settings": asdict(settings), "classes": CLASSES, "luminosities": LUMINOSITIES,
        "counts": {name: len(index) for name, index in parts.items()},
        "seen": sorted({stars.stars[i] for part in ("train", "validation") for i in parts[part]}),
    }  # fmt: skip
    # The rare count more, by the square root: unweighted, the few O stars would all be called B.
    numbers = np.maximum(np.bincount(training.classes(), minlength=len(CLASSES)), 1)
    weight = np.sqrt(numbers.mean() / numbers).astype(np.float32)
    transform = jitter(settings.jitter) if settings.jitter else None
    optimizer = optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    history = fit(
        model,
        partial(star_loss, class_weight=weight),
        optimizer,
        DataLoader(
            TensorDataset(*arrays(training, model)), settings.batch_size, shuffle=True, rng=rng, transform=transform
        ),
        DataLoader(TensorDataset(*arrays(validation, model)), 256),
        epochs=settings.epochs,
        scheduler=optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs),
        metrics={"sigma": _sigma, "accuracy": _accuracy},
        checkpoint=out,
        resume=resume,
        meta=meta,
        progress=progress,
    )
    meta["history"] = history.epochs
    checkpoint.save(out, model, meta=meta, epoch=len(history.epochs))
    return model, meta


def _pretrained(flux: np.ndarray, settings: Settings, rng: np.random.Generator, progress: bool) -> nn.ModuleList:
    """Members whose encoders have learnt to squeeze spectra (N, 580), standardised, without any label."""
    members = []
    for _ in range(settings.members):
        network = autoencoder(rng)
        optimizer = optim.Adam(network.parameters(), lr=settings.lr)
        loader = DataLoader(TensorDataset(flux[:, None].astype(np.float32)), settings.batch_size, shuffle=True, rng=rng)
        fit(network, _rebuild, optimizer, loader, epochs=settings.pretrain, progress=progress)
        members.append(with_head(network, settings.hidden, rng))
    return nn.ModuleList(members)


def _rebuild(model: nn.Module, batch: tuple[np.ndarray, ...]) -> Tensor:
    return F.mse_loss(model(Tensor(batch[0])), Tensor(batch[0]))


def _sigma(model: nn.Module, batch: tuple[np.ndarray, ...]) -> float:
    """Standard deviation of the mean code's error in subclasses."""
    error = model(Tensor(batch[0])).numpy()[:, :, 0].mean(0) - batch[1]
    return float(error.std() * 10)


def _accuracy(model: nn.Module, batch: tuple[np.ndarray, ...]) -> float:
    scores = model(Tensor(batch[0])).numpy()[:, :, 1 : 1 + len(CLASSES)]
    return float((_softmax(scores).argmax(1) == batch[2]).mean())


def load(path: Path) -> tuple[StarNetwork, dict[str, Any]]:
    """A trained network and its meta; InputError if the file is of another program, ValueError if it is broken."""
    if not path.exists():
        raise InputError(f"no such weights: {path}; make them with the command train")
    saved = checkpoint.load(path)
    if saved.meta.get("task") != "stellar_spectra":
        raise InputError(f"{path} was not written by the train command of examples.stellar_spectra")
    if "history" not in saved.meta:
        raise InputError(f"{path} is the state of an unfinished training; finish it with train --resume")
    settings = Settings(**saved.meta["settings"])
    rng = np.random.default_rng(0)
    members = [member(settings.network, settings.hidden, rng) for _ in range(settings.members)]
    model = StarNetwork(members)
    checkpoint.load_model(path, model)
    model.eval()
    return model, saved.meta


def describe(meta: dict[str, Any]) -> str:
    """One line of what a network is and what it was trained on."""
    s = meta["settings"]
    trained = f"{meta['counts']['train']} {meta['data']} spectra of {', '.join(meta['libraries'])}"
    return (
        f"{s['members']} {s['network']} networks of {s['hidden']} neurons, normalisation {s['normalisation']}, "
        f"{s['epochs']} epochs, seed {s['seed']}, fold {s['fold']}; trained on {trained}"
    )
