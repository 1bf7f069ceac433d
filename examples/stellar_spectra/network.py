"""The network and its training: 580 fluxes in; the code, the class O..M and the luminosity class out.

One body with three heads: its 13 outputs are the code (scaled), seven class scores and five luminosity scores. The
body is the talk's (20 tanh neurons), a deeper one of tanh, a one-dimensional convnet, or the encoder of an autoencoder
trained without labels. A few such members, started differently, are trained side by side and averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
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
from .codes import CLASSES, LUMINOSITIES, SUBCLASS
from .preprocess import CONTINUUM_WIDTH, GRIDS, NORMALISATIONS, Grid

NETWORKS = ("tanh", "deep", "cnn", "autoencoder", "dense-autoencoder")
CORRUPTIONS = ("nothing", "noise", "masks")
DRAWS = ("shares", "even")
USES = ("train", "validation", "all")
OUTPUTS = 1 + len(CLASSES) + len(LUMINOSITIES)
COMPONENTS = 12  # principal components that fill gaps
FILLINGS = 16  # ways to fill a gap, to see how far it leaves the code open
STRETCH = 2.5  # of their scatter: what components leave unexplained is alike in neighbours, no white noise (README)
LEAD = 3  # how often an epoch shows the spectra of the leading library
MIDDLE, SCALE = 4500.0, 1000.0  # the network learns (code − 4500)/1000, about −3..3


@dataclass(frozen=True)
class Settings:
    """All that training depends on beside the data; written into the trained file."""

    network: str = "tanh"
    members: int = 5
    hidden: int = 20
    normalisation: str = "5550"
    grid: str = "580"
    epochs: int = 60
    batch_size: int = 32
    lr: float = 0.003
    weight_decay: float = 0.1
    jitter: float = 1.0
    pretrain: int = 30
    corrupt: str = "noise"
    lead: str = ""
    labels: int = 0
    draw: str = "shares"
    use: str = "train"
    seed: int = 0
    fold: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("network", self.network, NETWORKS), ("normalisation", self.normalisation, NORMALISATIONS),
            ("grid", self.grid, tuple(GRIDS)), ("corrupt", self.corrupt, CORRUPTIONS), ("use", self.use, USES),
            ("draw", self.draw, DRAWS),
        ):  # fmt: skip
            if value not in known:
                raise InputError(f"--{name} {value}: one of {', '.join(known)} is expected")
        if min(self.members, self.hidden, self.epochs, self.batch_size) < 1 or self.lr <= 0:
            raise InputError("--members, --hidden, --epochs, --batch-size and --lr must be positive")
        if min(self.jitter, self.weight_decay, self.seed, self.pretrain, self.labels) < 0:
            raise InputError("--jitter, --weight-decay, --pretrain, --labels and --seed cannot be negative")

    @classmethod
    def of(cls, network: str, **chosen: Any) -> Settings:
        """The settings that suit a network, but for those `chosen`."""
        return cls(**{"network": network, **PRESETS.get(network, {}), **chosen})


PRESETS: dict[str, dict[str, Any]] = {
    "deep": {"hidden": 32},
    "cnn": {"members": 3, "hidden": 64, "epochs": 50, "lr": 0.002},
    "autoencoder": {"members": 3, "hidden": 64, "epochs": 50, "lr": 0.002},
    "dense-autoencoder": {"members": 3, "hidden": 64, "epochs": 50, "lr": 0.002},
}


class StarNetwork(nn.Module):
    """Standardise the flux and ask every member.   x (N, bins) -> (M, N, 13): code, O..M, I..V.

    With `lines` the members see two channels (N, 2, bins): the flux, and the flux divided by its own running mean.
    What it needs to know of the training part is saved with the weights: `mean` and `scale` (bins,) of the flux and of
    the lines; for `fill` the flux's principal components, `basis` (K, bins), each as long as its standard deviation,
    and `noise`, what they leave unexplained; and `floor`, the part of the code's error that the members share.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        flux: np.ndarray | None = None,
        *,
        grid: Grid = GRIDS["580"],
        lines: bool = False,
    ) -> None:
        bins = grid.bins
        self.members = nn.ModuleList(members)
        self.lines = lines
        self.register_buffer("mean", np.zeros(bins, np.float32))
        self.register_buffer("scale", np.ones(bins, np.float32))
        self.register_buffer("basis", np.zeros((COMPONENTS, bins), np.float32))
        self.register_buffer("noise", np.ones(1, np.float32))
        self.register_buffer("floor", np.zeros(1, np.float32))
        if lines:
            self.register_buffer("line_mean", np.ones(bins, np.float32))
            self.register_buffer("line_scale", np.ones(bins, np.float32))
        ones = np.ones(round(CONTINUUM_WIDTH / grid.step) | 1, np.float32)
        self._window = ones[None, None] / len(ones)
        self._share = np.convolve(np.ones(bins, np.float32), ones, mode="same") / len(ones)  # of the window on the grid
        if flux is not None:
            self._look_at(flux)

    def _look_at(self, flux: np.ndarray) -> None:
        """Mean, scale and principal components of the training part (N, bins)."""
        whole = flux[np.isfinite(flux).all(1)]
        if len(whole) < 2:
            raise InputError("no two training spectra cover the whole range; the gaps of the others cannot be filled")
        self.mean, self.scale = whole.mean(0), whole.std(0) + 0.02
        _, s, rows = np.linalg.svd(whole - self.mean, full_matrices=False)
        k = min(COMPONENTS, len(whole) - 1)
        self.basis[:k] = s[:k, None] * rows[:k] / np.sqrt(len(whole))
        self.noise[0] = np.sqrt((s[k:] ** 2).sum() / whole.size) + 1e-3
        if self.lines:
            lines = self._divided(Tensor(whole)).numpy()
            self.line_mean, self.line_scale = lines.mean(0), lines.std(0) + 0.01

    def fill(self, flux: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Put likely values where nothing was measured: (N, bins) with NaN -> (N, bins).

        The measured part chooses the sum of components, f = mean + c·basis, that is likeliest with c ~ N(0, 1) and
        the noise: A·c = B_m·(f − mean)_m/σ² with A = B_m B_mᵀ/σ² + 1. After Connolly & Szalay 1999 (gappy spectra).
        With `rng` not the likeliest but one of the possible: c ~ N(c, A⁻¹), and noise on what is filled in.
        """
        flux, noise = flux.copy(), float(self.noise[0])
        for i in np.flatnonzero(~np.isfinite(flux).all(1)):
            known = np.isfinite(flux[i])
            b = self.basis[:, known].astype(np.float64) / noise
            a = b @ b.T + np.eye(len(b))
            c = np.linalg.solve(a, b @ ((flux[i] - self.mean)[known] / noise))
            if rng:
                c += np.linalg.solve(np.linalg.cholesky(a).T, rng.normal(size=len(c)))
            flux[i, ~known] = (self.mean + c @ self.basis)[~known]
            if rng:
                flux[i, ~known] += noise * rng.normal(size=int((~known).sum()))
        return flux

    def _divided(self, x: Tensor) -> Tensor:
        """Flux over its running mean: (N, bins) -> the same."""
        level = F.conv1d(x.reshape(len(x), 1, -1), Tensor(self._window), padding=self._window.shape[2] // 2)
        return x * self._share / (F.clip(level.reshape(*x.shape), min=0.02) + 1e-3)  # gaps may be filled below zero

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of all members, side by side."""
        seen = (x - self.mean) / self.scale
        if self.lines:
            seen = F.stack([seen, (self._divided(x) - self.line_mean) / self.line_scale], 1)
        return F.stack([member(seen) for member in self.members])


def build(settings: Settings, rng: np.random.Generator, flux: np.ndarray | None = None) -> StarNetwork:
    """The network of these settings, untrained; `flux` (N, bins) is the training part."""
    grid = GRIDS[settings.grid]
    lines = settings.network == "cnn" and settings.normalisation == "5550"
    members = [member(settings.network, settings.hidden, rng, grid.bins, 1 + lines) for _ in range(settings.members)]
    return StarNetwork(members, flux, grid=grid, lines=lines)


def member(network: str, hidden: int, rng: np.random.Generator, bins: int, channels: int = 1) -> nn.Module:
    """One network without its standardisation.   x (N, bins), or (N, 2, bins) -> (N, 13)."""
    if network == "tanh":
        return models.TanhNetwork(bins, OUTPUTS, hidden, rng=rng)
    if network == "deep":
        sizes = (bins, 4 * hidden, 2 * hidden, hidden)
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b, rng=rng), nn.Tanh())]
        return nn.Sequential(*layers, nn.Linear(hidden, OUTPUTS, rng=rng))
    if network in ("autoencoder", "dense-autoencoder"):
        return with_head(autoencoder(network, rng, bins), hidden, rng)
    return nn.Sequential(
        nn.Unflatten(1, (1, bins)) if channels == 1 else nn.Identity(),
        nn.Conv1d(channels, 16, 9, padding=4, rng=rng), nn.ReLU(), nn.MaxPool1d(4),
        nn.Conv1d(16, 32, 7, padding=3, rng=rng), nn.ReLU(), nn.MaxPool1d(5),
        nn.Flatten(), nn.Dropout(0.3, rng=rng),
        nn.Linear(32 * (bins // 20), hidden, rng=rng), nn.Tanh(), nn.Linear(hidden, OUTPUTS, rng=rng),
    )  # fmt: skip


def autoencoder(network: str, rng: np.random.Generator, bins: int) -> Any:
    """Squeezes a spectrum into 32 numbers and builds it up again: x (N, bins), or with convolutions (N, 1, bins)."""
    if network == "dense-autoencoder":
        return models.Autoencoder((bins, 128, 32), rng=rng)
    return models.ConvAutoencoder(bins, channels=(12, 24), code=32, rng=rng)


def with_head(network: Any, hidden: int, rng: np.random.Generator) -> nn.Module:
    """The encoder with a classifier in the decoder's place.   x (N, bins) -> (N, 13)."""
    head = network.with_head(OUTPUTS, hidden, rng=rng)
    return nn.Sequential(nn.Unflatten(1, (1, -1)), head) if isinstance(network, models.ConvAutoencoder) else head


def star_loss(model: nn.Module, batch: tuple[np.ndarray, ...], class_weight: np.ndarray | None = None) -> Tensor:
    """Huber loss of the code + cross-entropy of the class and, where it is known, of the luminosity class.

    batch: flux (N, bins), scaled code (N,), class (N,), luminosity (N,) with −100 where unknown; class_weight (7,).
    """
    flux, code, cls, lum = batch
    out = model(Tensor(flux))
    m = len(out)

    def scores(first: int, number: int) -> Tensor:
        return out[:, :, first : first + number].reshape(-1, number)

    # an error of .1 class, one subclass, is where the Huber loss turns from square to straight: labels err too
    loss = 15 * F.huber_loss(out[:, :, 0], np.tile(code, (m, 1)), delta=0.1)
    loss = loss + 0.5 * F.cross_entropy(scores(1, len(CLASSES)), np.tile(cls, m), weight=class_weight)
    if (lum >= 0).any():
        loss = loss + F.cross_entropy(scores(1 + len(CLASSES), len(LUMINOSITIES)), np.tile(lum, m))
    return loss


class Prediction(NamedTuple):
    """Of N spectra: code (N,); p_class (N, 7); p_luminosity (N, 5); spread (N,): error of the code, 1 σ.

    The error is √(spread of the members² + `gap_error`² + floor²); the floor makes it hold 68 % of stars that were not
    trained on.
    """

    code: np.ndarray
    p_class: np.ndarray
    p_luminosity: np.ndarray
    spread: np.ndarray


def apply(model: StarNetwork, flux: np.ndarray) -> Prediction:
    """Average the members' codes and probabilities: flux (N, bins), NaN where not measured -> Prediction."""
    out = _outputs(model, model.fill(flux))
    codes = out[:, :, 0].astype(np.float64) * SCALE + MIDDLE
    c = 1 + len(CLASSES)
    spread = np.sqrt(codes.var(0) + gap_error(model, flux) ** 2 + float(model.floor[0]) ** 2)
    return Prediction(codes.mean(0), _softmax(out[:, :, 1:c]), _softmax(out[:, :, c:]), spread)


def gap_error(model: StarNetwork, flux: np.ndarray) -> np.ndarray:
    """How far the code is open because something was not measured: flux (N, bins) with NaN -> (N,), code units.

    Each gap is filled in `FILLINGS` ways, as far apart as the components leave it open (multiple imputation, Rubin
    1987); the error is the scatter of the codes times `STRETCH`. 0 where all was measured.
    """
    error = np.zeros(len(flux))
    for i in np.flatnonzero(~np.isfinite(flux).all(1)):
        rng = np.random.default_rng(0)  # the same for each star, whatever stands beside it
        ways = np.concatenate([model.fill(flux[i : i + 1], rng) for _ in range(FILLINGS)])
        error[i] = STRETCH * SCALE * _outputs(model, ways)[:, :, 0].mean(0).std(ddof=1)
    return error


def _outputs(model: StarNetwork, flux: np.ndarray) -> np.ndarray:
    """What the members say of whole spectra: (N, bins) -> (M, N, 13)."""
    return np.concatenate(
        [predict(model, flux[k : k + 256], batch_size=256).swapaxes(0, 1) for k in range(0, len(flux), 256)]
    ).swapaxes(0, 1)


def error_floor(error: np.ndarray, spread: np.ndarray) -> float:
    """What to add in squares to the members' spread so that 68 % of the errors lie within; both (N,), code units."""
    return float(np.sqrt(max(np.quantile(error**2 - spread**2, 0.6827), 0.0)))


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Mean probabilities over the members: (M, N, K) -> (N, K)."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)).mean(0)


def jitter(amount: float, grid: Grid = GRIDS["580"]) -> Any:
    """A transform that does to a spectrum what another telescope would.

    A wrong velocity, by mixing neighbouring bins (so the resolution varies too); the flux's slope and bend; noise.
    """
    far = (grid.centres - 5550) / 1000

    def transform(sample: tuple[np.ndarray, ...], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        flux, *rest = sample
        shift = amount * rng.normal(0, 0.3)  # of a bin; one of 5 Å is 300 km/s
        flux = (1 - abs(shift)) * flux + abs(shift) * np.roll(flux, 1 if shift > 0 else -1)
        shape = np.exp(amount * 0.02 * (rng.normal() * far + 0.3 * rng.normal() * (far**2 - 0.7)))
        noise = 1 + amount * 0.02 * rng.random() * rng.normal(size=len(flux))
        return ((flux * shape * noise).astype(np.float32), *rest)

    return transform


def arrays(stars: data.Stars, model: StarNetwork) -> tuple[np.ndarray, ...]:
    """What `star_loss` takes, for all spectra: flux without gaps, scaled code, class, luminosity."""
    code = ((stars.codes() - MIDDLE) / SCALE).astype(np.float32)
    return model.fill(stars.flux), code, stars.classes(), stars.luminosities()


def parts(stars: data.Stars, settings: Settings) -> dict[str, np.ndarray]:
    """The split with the parts that `settings.use` trains on put together, thinned to `settings.labels` spectra.

    "train": 60 % of the stars, the validation part choosing the epoch; "validation": both, for all epochs; "all": no
    star is left to test on. InputError if a part that is needed is empty.
    """
    found = data.split(stars, fold=settings.fold, seed=settings.seed)
    if any(len(index) == 0 for index in found.values()):
        counts = ", ".join(f"{len(index)} {name}" for name, index in found.items())
        raise InputError(f"too few typed spectra for three parts: {counts}")
    for name in ("validation", "test")[: USES.index(settings.use)]:
        found["train"] = np.concatenate([found["train"], found[name]])
        found[name] = found[name][:0]
    if settings.labels:
        if settings.draw == "even":  # whose types are full
            found["train"] = found["train"][stars.luminosities()[found["train"]] >= 0]
        if settings.labels > len(found["train"]):
            raise InputError(f"--labels {settings.labels}: the training part has only {len(found['train'])} spectra")
        found["train"] = thinned(stars, found["train"], settings.labels, settings.seed, settings.draw)
    return found


def thinned(stars: data.Stars, index: np.ndarray, n: int, seed: int, draw: str = "shares") -> np.ndarray:
    """n of `index`, drawn at random, with one of every class as long as n allows.

    "shares": the classes' shares are kept; "even": one of each subclass in turn, so that the rare are all there.
    """
    rng = np.random.default_rng(seed)
    cls = stars.classes()[index]
    group = cls if draw == "shares" else stars.codes()[index] // SUBCLASS
    rank = np.zeros(len(index))
    for k in np.unique(group):
        members = rng.permutation(np.flatnonzero(group == k))
        rank[members] = (np.arange(len(members)) + rng.random()) / (len(members) if draw == "shares" else 1)
    first = [np.flatnonzero(cls == k)[rank[cls == k].argmin()] for k in range(len(CLASSES)) if (cls == k).any()]
    rank[first] -= 1
    return index[np.argsort(rank)[:n]]


def train(
    stars: data.Stars,
    out: Path,
    settings: Settings,
    *,
    resume: bool = False,
    progress: bool = True,
    autoencoders: Sequence[Any] = (),
) -> tuple[StarNetwork, dict[str, Any]]:
    """Train on the training part, keep the epoch best on the validation part, write `out` -> network and its meta.

    The test part is not looked at. Encoders of `autoencoders`, one a member, are not pre-trained but taken as they are.
    InputError if a part is empty, or the leading library is not there.
    """
    split = parts(stars, settings)
    training, validation = stars.take(split["train"]), stars.take(split["validation"])
    rng = minidl.manual_seed(settings.seed)
    model = build(settings, rng, training.flux)
    if "autoencoder" in settings.network and settings.pretrain and not (resume and out.exists()):
        tested = {stars.stars[i] for i in split["test"]}
        unlabelled = [i for i, star in enumerate(stars.stars) if star not in tested]
        autoencoders = autoencoders or [
            pretrain(model.fill(stars.flux[unlabelled]), model, settings, rng, progress) for _ in model.members
        ]
        model.members = nn.ModuleList([with_head(network, settings.hidden, rng) for network in autoencoders])
    meta = {
        "task": "stellar_spectra", "data": stars.kind, "libraries": sorted(set(stars.libraries)),
        "settings": asdict(settings), "classes": CLASSES, "luminosities": LUMINOSITIES,
        "counts": {name: len(index) for name, index in split.items()},
        "seen": sorted({stars.stars[i] for part in ("train", "validation") for i in split[part]}),
    }  # fmt: skip
    # The rare count more, by the square root: unweighted, the few O stars would all be called B.
    numbers = np.maximum(np.bincount(training.classes(), minlength=len(CLASSES)), 1)
    weight = np.sqrt(numbers.mean() / numbers).astype(np.float32)
    transform = jitter(settings.jitter, GRIDS[settings.grid]) if settings.jitter else None
    optimizer = optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    shown = TensorDataset(*(x[_emphasis(training, settings.lead)] for x in arrays(training, model)))
    history = fit(
        model,
        partial(star_loss, class_weight=weight),
        optimizer,
        DataLoader(shown, settings.batch_size, shuffle=True, rng=rng, transform=transform),
        DataLoader(TensorDataset(*arrays(validation, model)), 256) if len(validation) else None,
        epochs=settings.epochs,
        scheduler=optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs),
        metrics={"sigma": _sigma, "accuracy": _accuracy} if len(validation) else {},
        checkpoint=out,
        resume=resume,
        meta=meta,
        progress=progress,
    )
    if len(validation):
        prediction = apply(model, validation.flux)
        model.floor[0] = error_floor(prediction.code - validation.codes(), prediction.spread)
    meta["history"] = history.epochs
    checkpoint.save(out, model, meta=meta, epoch=len(history.epochs))
    return model, meta


def _emphasis(training: data.Stars, lead: str) -> np.ndarray:
    """Indices of an epoch: all, those of the leading library several times. Catalogues differ; it sets the scale."""
    if lead and lead not in training.libraries:
        raise InputError(
            f"--lead {lead}: no training spectrum of it; there are {', '.join(sorted(set(training.libraries)))}"
        )
    return np.repeat(np.arange(len(training)), [LEAD if library == lead else 1 for library in training.libraries])


def pretrain(
    flux: np.ndarray, model: StarNetwork, settings: Settings, rng: np.random.Generator, progress: bool = False
) -> Any:
    """An autoencoder that has learnt to squeeze spectra (N, bins) without any label, standardised as `model` does it.

    `settings.corrupt`: it sees them whole, with noise, or with stretches hidden, and has to give them back whole.
    """
    network = autoencoder(settings.network, rng, flux.shape[1])
    flux = ((flux - model.mean) / model.scale).astype(np.float32)
    flux = flux[:, None] if settings.network == "autoencoder" else flux
    optimizer = optim.Adam(network.parameters(), lr=settings.lr)
    loader = DataLoader(
        TensorDataset(flux, flux), settings.batch_size, shuffle=True, rng=rng, transform=corruption(settings.corrupt)
    )
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.pretrain)
    fit(network, _rebuild, optimizer, loader, epochs=settings.pretrain, scheduler=schedule, progress=progress)
    return network


def corruption(how: str) -> Any:
    """A transform of (flux, flux), standardised: the first gets noise of up to half a σ, or five stretches hidden."""

    def transform(sample: tuple[np.ndarray, ...], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        flux, whole = sample
        if how == "noise":
            flux = flux + 0.5 * rng.random() * rng.normal(size=flux.shape)
        elif how == "masks":
            width = flux.shape[-1] // 29  # 100 Å of 2900
            flux = flux.copy()
            for start in rng.integers(0, flux.shape[-1] - width, 5):
                flux[..., start : start + width] = 0  # the mean
        return flux.astype(np.float32), whole

    return transform


def _rebuild(model: nn.Module, batch: tuple[np.ndarray, ...]) -> Tensor:
    return F.mse_loss(model(Tensor(batch[0])), Tensor(batch[1]))


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
    model = build(settings, np.random.default_rng(0))
    checkpoint.load_model(path, model)
    model.eval()
    return model, saved.meta


def describe(meta: dict[str, Any]) -> str:
    """One line of what a network is and what it was trained on."""
    s = meta["settings"]
    trained = f"{meta['counts']['train']} {meta['data']} spectra of {', '.join(meta['libraries'])}"
    return (
        f"{s['members']} {s['network']} networks of {s['hidden']} neurons, normalisation {s['normalisation']}, "
        f"grid {s['grid']}, {s['epochs']} epochs, seed {s['seed']}, fold {s['fold']}; trained on {trained}"
    )
