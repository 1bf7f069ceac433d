"""The pickers' common interface and file, and the first of them: a U-Net that labels every pixel.

A picker is fitted to labelled micrographs, gives candidates with scores, and lives in one safetensors file that says by
which method it works. `template` and `detection` hold the other two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import minidl
from examples.common import InputError
from examples.particle_picking import CLASSES, crops, formats, picking
from examples.particle_picking.crops import CROP, IGNORE, Crops, Prepared, discs, prepare, tiles
from examples.particle_picking.data import Collection, Split
from examples.particle_picking.enhance import WORKING, Enhanced
from minidl import checkpoint, data, models, no_grad, optim, train
from minidl import functional as F

CROPS_PER_EPOCH = 128
TASK = "particle_picking"
SEEN = 0.005  # a class that covers less of the training micrographs has not been learnt
METHODS = {
    "segmentation": "network.Segmentation",
    "detection": "detection.Detection",
    "template": "template.Template",
    "log": "template.Blobs",
}
"""Ways to pick by name, and the class that does it."""


@dataclass(frozen=True)
class Training:
    """How networks learn: AdamW, the rate falling by a cosine, `epochs` of `crops` crops.

    `state` is the file where training is kept after each epoch, for `resume`.
    """

    epochs: int = 16
    seed: int = 0
    batch_size: int = 8
    lr: float = 2e-3
    crops: int | None = None  # an epoch; None: CROPS_PER_EPOCH
    state: Path | None = None
    resume: bool = False
    progress: bool = True


class Picker:
    """What every picker does: `fit` to labelled micrographs, `pick` in an enhanced one, `save`.

    `settings` are what its constructor took; `meta` is what a file must tell: method, settings, threshold, diameter,
    pixel size, kind of data, split, history.
    """

    method: ClassVar[str]
    label: ClassVar[str]  # its name in tables
    overfits: ClassVar[bool] = False  # whether the micrographs it learnt from cannot tell its threshold

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.meta: dict[str, Any] = {}

    @property
    def threshold(self) -> float:
        """The score that validation chose."""
        return float(self.meta["threshold"])

    def fit(self, training: Sequence[Prepared], validation: Sequence[Prepared], how: Training) -> None:
        """Learn from `training`; `validation` chooses the best epoch (none: the last)."""
        raise NotImplementedError

    def look(self, enhanced: Enhanced) -> tuple[formats.Picks, np.ndarray]:
        """All candidates with scores and sizes, and the map (4, h, w) of class probabilities they come from."""
        raise NotImplementedError

    def pick(self, enhanced: Enhanced) -> formats.Picks:
        """All candidates: centres and sizes in original px, scores in 0..1; a threshold comes later."""
        return self.look(enhanced)[0]

    def take_references(self, path: Path, diameter: float) -> None:
        """Use the pictures in a file, whose particles are `diameter` px across, as templates."""
        raise InputError(f"{path}: {self.method} takes no references")

    def calibrate(self, items: Sequence[Prepared]) -> None:
        """Set the threshold of highest F1 on labelled micrographs."""
        curve = picking.curve(
            [item.xy / item.diameter for item in items],
            [scaled(self.pick(item.enhanced), item.diameter) for item in items],
            0.5,
        )
        self.meta["threshold"] = curve.best()
        self.meta["validation"] = {"f1": float(curve.f1.max()), "average_precision": curve.average_precision}

    def arrays(self) -> Mapping[str, np.ndarray]:
        """What has been learned."""
        raise NotImplementedError

    def restore(self, path: Path) -> None:
        """Take the arrays from a file."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write arrays and meta to one safetensors file."""
        meta = {"task": TASK, "method": self.method, "settings": self.settings, **self.meta}
        checkpoint.save(path, self.arrays(), meta=meta)


def with_foreign(maps: np.ndarray, enhanced: Enhanced) -> np.ndarray:
    """Class probabilities (4, h, w) with the rule's ice and carbon laid over them."""
    if enhanced.foreign is not None:
        for k in (2, 3):
            maps[:, enhanced.foreign == k] = (np.arange(len(CLASSES)) == k)[:, None]
    return maps


def scaled(picks: formats.Picks, diameter: float) -> formats.Picks:
    """Picks with the particle diameter as the unit of length."""
    return formats.Picks(picks.xy / diameter, picks.score)


def new_picker(method: str, **settings: Any) -> Picker:
    """A picker by the name of its method, not yet fitted."""
    module, name = METHODS[method].split(".")
    found: Picker = getattr(import_module(f"examples.particle_picking.{module}"), name)(**settings)
    return found


def load_picker(path: Path) -> Picker:
    """Read a picker of any method; raises InputError if the file is none."""
    meta = checkpoint.load(path).meta
    wanted = {"method", "settings", "threshold", "diameter", "apix", "split"}
    if meta.get("task") != TASK or not wanted <= meta.keys() or meta["method"] not in METHODS:
        raise InputError(f"{path}: not the weights of a particle picker; train some with: particle_picking train")
    picker = new_picker(meta["method"], **meta["settings"])
    picker.restore(path)
    picker.meta = {name: value for name, value in meta.items() if name not in ("task", "method", "settings")}
    return picker


class Network(Picker):
    """A picker whose `model` learns from crops; what the crops' targets and the loss are, subclasses say."""

    model: minidl.nn.Module
    overfits = True
    step = 8  # px: sides of the model's input are multiples of it

    def target(self, points: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, ...]:
        """What is to be learned of a crop with these points (n, 3) and classes (side, side)."""
        raise NotImplementedError

    def loss(self, batch: tuple[np.ndarray, ...]) -> minidl.Tensor:
        """Of one batch: images and targets."""
        raise NotImplementedError

    def run(self, image: np.ndarray) -> np.ndarray:
        """The model's output (C, h, w) for a picture (1, h, w)."""
        self.model.eval()
        with no_grad():
            return self.model(minidl.Tensor(np.ascontiguousarray(image)[None])).numpy()[0]

    def fit(self, training: Sequence[Prepared], validation: Sequence[Prepared], how: Training) -> None:
        """Train on random crops; the epoch of lowest validation loss stays."""
        side = min([CROP] + [min(item.classes.shape) // self.step * self.step for item in (*training, *validation)])
        if side < 4 * self.step:
            across = min(min(item.classes.shape) for item in training) / WORKING
            raise InputError(f"micrographs span too few particle diameters ({across:.1f}) to train on")
        cuts = Crops(training, how.crops or CROPS_PER_EPOCH, side, self.target)
        loader = data.DataLoader(
            cuts, how.batch_size, shuffle=True, rng=np.random.default_rng(how.seed), transform=cuts.cut
        )
        optimizer = optim.AdamW(self.model.parameters(), lr=how.lr, weight_decay=1e-2)
        history = train.fit(
            self.model,
            lambda model, batch: self.loss(batch),
            optimizer,
            loader,
            data.DataLoader(tiles(validation, side, self.target), how.batch_size) if validation else None,
            epochs=how.epochs,
            scheduler=optim.lr_scheduler.CosineAnnealingLR(optimizer, how.epochs),
            checkpoint=how.state,
            resume=how.resume,
            progress=how.progress,
        )
        self.meta["history"] = history.epochs

    def arrays(self) -> Mapping[str, np.ndarray]:
        """The weights."""
        return self.model.state_dict()

    def restore(self, path: Path) -> None:
        """Take the weights from a file."""
        checkpoint.load_model(path, self.model)


class Segmentation(Network):
    """A U-Net labels every pixel as background, protein, ice or carbon (CASSPER's way); particles are the peaks of
    protein.
    """

    method, label = "segmentation", "minidl U-Net"

    def __init__(self, width: int = 16, depth: int = 3, rule: str = "peaks") -> None:
        super().__init__(width=width, depth=depth, rule=rule)
        self.model = models.UNet(1, len(CLASSES), width, depth)
        self.step = 2**depth
        self.weight = np.ones(len(CLASSES), np.float32)

    def target(self, points: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Class of every pixel (side, side) int64."""
        return (discs(points, classes),)

    def loss(self, batch: tuple[np.ndarray, ...]) -> minidl.Tensor:
        """Class-weighted cross-entropy."""
        logits = self.model(minidl.Tensor(batch[0]))
        return F.cross_entropy(logits, batch[1], weight=self.weight, ignore_index=IGNORE)

    def fit(self, training: Sequence[Prepared], validation: Sequence[Prepared], how: Training) -> None:
        """Train on random crops, rare classes weighing more."""
        self.weight = crops.class_weights(training)
        super().fit(training, validation, how)

    def segment(self, enhanced: Enhanced, tile: int = 512, margin: int = 64) -> np.ndarray:
        """Class probabilities (4, h, w) float32, tile by tile so that memory stays bounded; `margin` px are seen
        around each.
        """
        h, w = enhanced.image.shape
        step = self.step
        padded = np.pad(enhanced.image, ((margin, margin + -h % step), (margin, margin + -w % step)), mode="symmetric")
        result = np.empty((len(CLASSES), h, w), np.float32)
        for y in range(0, h, tile):
            for x in range(0, w, tile):
                logits = self.run(padded[None, y : y + tile + 2 * margin, x : x + tile + 2 * margin])
                room = result[:, y : y + tile, x : x + tile]
                inner = logits[:, margin:, margin:][:, : room.shape[1], : room.shape[2]]
                power = np.exp(inner - inner.max(0))
                room[:] = power / power.sum(0)
        return result

    def look(self, enhanced: Enhanced) -> tuple[formats.Picks, np.ndarray]:
        """Candidates, and the class probabilities (4, h, w) they come from."""
        probability, rule = self.segment(enhanced), self.settings["rule"]
        if {"ice", "carbon"} <= set(self.meta.get("labelled", ())):  # learnt, so the rule is not asked
            return picking.find_picks(probability[1], replace(enhanced, foreign=None), rule=rule), probability
        return picking.find_picks(probability[1], enhanced, rule=rule), with_foreign(probability, enhanced)


def class_mask(probability: np.ndarray, enhanced: Enhanced) -> np.ndarray:
    """The likeliest class of every original pixel (H, W) uint8, probabilities (4, h, w) interpolated linearly; dead
    border 0.
    """
    from PIL import Image

    tall, wide = enhanced.shape
    (sy, sx) = enhanced.scale
    left, top = 1.5 - sx / 2, 1.5 - sy / 2  # where the original's corner lies in the working image padded by 1
    best, mask = np.zeros((tall, wide), np.float32), np.zeros((tall, wide), np.uint8)
    for k, field in enumerate(probability * enhanced.live):
        picture = Image.fromarray(np.pad(field, 1, mode="edge"))
        box = (left, top, min(left + wide * sx, picture.width), min(top + tall * sy, picture.height))
        full = np.asarray(picture.resize((wide, tall), Image.Resampling.BILINEAR, box=box))
        mask[full > best] = k
        np.maximum(best, full, out=best)
    return mask


def train_picker(
    collection: Collection,
    parts: Split,
    *,
    method: str = "segmentation",
    simulated: int = 0,
    start: Path | None = None,
    references: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    how: Training = Training(),
) -> Picker:
    """Fit a picker to the training micrographs; validation picks the best epoch and the threshold.

    `simulated` micrographs of random molecules join the training, as often seen as all real ones together; `start`
    holds weights to begin with, `references` pictures for the template method.
    """
    from tqdm import tqdm

    minidl.manual_seed(how.seed)
    bar = tqdm(
        collection.named(parts.train + parts.val),
        "reading and enhancing",
        leave=False,
        disable=None if how.progress else True,
    )
    ready = {entry.name: prepare(collection, entry) for entry in bar}
    training, validation = [ready[n] for n in parts.train], [ready[n] for n in parts.val]
    for item in training + validation:
        if not len(item.xy):
            raise InputError(f"{item.entry.coords}: no particle in it; take it out of coords/ or mark some")
    picker = new_picker(method, **settings or {})
    if start is not None:
        begin(picker, start)
    if references is not None:
        picker.take_references(references, collection.diameter)
    picker.fit(mixed(training, crops.simulated(simulated, how.seed, how.progress)), validation, how)
    share = np.mean([[(item.label == k).mean() for k in range(len(CLASSES))] for item in training], axis=0)
    learnt = [name for name, part in zip(CLASSES, share, strict=True) if simulated or part > SEEN]
    kind = f"{collection.kind} and simulated" if simulated and collection.kind == "real" else collection.kind
    picker.meta |= described(parts, kind, collection.diameter, collection.apix, learnt, simulated, how)
    picker.meta.setdefault("history", [])
    picker.calibrate(validation if validation and picker.overfits else training + validation)
    return picker


def described(
    parts: Split,
    kind: str,
    diameter: float | None,
    apix: float | None,
    learnt: list[str],
    simulated: int,
    how: Training,
) -> dict[str, Any]:
    """What the file of a picker says of its training."""
    return {
        "kind": kind,
        "classes": list(CLASSES),
        "labelled": learnt,
        "working": WORKING,
        "diameter": diameter,
        "apix": apix,
        "split": {"train": parts.train, "val": parts.val, "test": parts.test},
        "simulated": simulated,
        "training": {k: v for k, v in asdict(how).items() if k not in ("state", "resume", "progress")},
    }


def begin(picker: Picker, start: Path) -> None:
    """Take first weights from a file of the same method and settings."""
    other = load_picker(start)
    mine, theirs = ({k: v for k, v in p.settings.items() if k != "rule"} for p in (picker, other))
    if (other.method, theirs) != (picker.method, mine):
        raise InputError(f"{start}: weights of {other.method} {theirs}, not {picker.method} {mine}")
    picker.restore(start)


def mixed(real: Sequence[Prepared], made: Sequence[Prepared]) -> list[Prepared]:
    """Both, each kind as often as the other."""
    if not real or not made:
        return [*real, *made]
    most = max(len(real), len(made))
    return [group[k % len(group)] for k in range(most) for group in (real, made)]
