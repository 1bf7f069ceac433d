"""The picker: a U-Net that labels every pixel, its training, and its use on a micrograph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import minidl
from examples.common import InputError
from examples.particle_picking import CLASSES, formats, picking
from examples.particle_picking.data import Collection, Entry, Split, truth
from examples.particle_picking.enhance import WORKING, Enhanced, enhance
from minidl import checkpoint, data, models, no_grad, optim, train
from minidl import functional as F

IGNORE = 255
DISC = 0.35  # radius of the disc that stands for a particle, in diameters: neighbours in a crowd stay apart
CROP = 160  # px: side of a training crop, nine particles across
CROPS_PER_EPOCH = 128
TASK = "particle_picking"


def labels(enhanced: Enhanced, xy: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Training labels (h, w) int64: discs at the centres xy (n, 2, original px) are protein; ice, carbon from `mask`.

    Within half a particle of the rim nothing is labelled (IGNORE): particles there are not marked.
    """
    h, w = enhanced.image.shape
    label = np.zeros((h, w), np.int64)
    if mask is not None:
        rows, columns = ((np.arange(n) / s).astype(int) for n, s in zip((h, w), enhanced.scale, strict=True))
        coarse = mask[np.ix_(np.minimum(rows, mask.shape[0] - 1), np.minimum(columns, mask.shape[1] - 1))]
        label[coarse == 2] = 2
        label[coarse == 3] = 3
    reach = DISC * WORKING
    for x, y in enhanced.to_working(xy):
        top, left = max(0, int(y - reach)), max(0, int(x - reach))
        window = label[top : int(y + reach) + 2, left : int(x + reach) + 2]
        yy, xx = np.ogrid[: window.shape[0], : window.shape[1]]
        window[np.hypot(yy + top - y, xx + left - x) <= reach] = 1
    label[picking.rim_distance(enhanced) < 0.5 * WORKING] = IGNORE
    return label


@dataclass(frozen=True)
class Prepared:
    """A micrograph ready for the network: its entry, enhanced image, true centres (n, 2) in original px, and labels."""

    entry: Entry
    enhanced: Enhanced
    xy: np.ndarray
    label: np.ndarray


def prepare(collection: Collection, entry: Entry) -> Prepared:
    """Read, enhance and label one micrograph; raises InputError if its centres or mask are those of another size."""
    image, _ = formats.read_micrograph(entry.image)
    tall, wide = image.shape
    enhanced = enhance(image, collection.diameter)
    xy = truth(entry)
    outside = int(((xy < -0.5) | (xy > (wide - 0.5, tall - 0.5))).any(1).sum())
    if outside > len(xy) / 2:
        raise InputError(
            f"{entry.coords}: {outside} of {len(xy)} centres lie outside {wide}x{tall} px: another binning?"
        )
    mask = formats.read_mask(entry.semantic) if entry.semantic else None
    if mask is not None and mask.shape != image.shape:
        raise InputError(
            f"{entry.semantic}: {mask.shape[1]}x{mask.shape[0]} px, but its micrograph is {wide}x{tall} px"
        )
    return Prepared(entry, enhanced, xy, labels(enhanced, xy, mask))


class Crops(data.Dataset):
    """`count` places to cut from, spread evenly over the micrographs; `cut` does it, at random."""

    def __init__(self, prepared: list[Prepared], count: int, side: int) -> None:
        self.prepared, self.count, self.side = prepared, count, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int]:
        return (index % len(self.prepared),)

    def cut(self, sample: tuple[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A random crop turned by 0, 90, 180 or 270 degrees, mirrored or not, contrast x 0.8..1.25, brightness ± 0.2.

        -> image (1, side, side) float32, labels (side, side) int64.
        """
        item = self.prepared[sample[0]]
        y, x = (int(rng.integers(n - self.side + 1)) for n in item.label.shape)
        place = np.s_[y : y + self.side, x : x + self.side]
        image, label = item.enhanced.image[place], item.label[place]
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        image, label = np.rot90(image, turns), np.rot90(label, turns)
        if mirror:
            image, label = image[::-1], label[::-1]
        image = image * rng.uniform(0.8, 1.25) + rng.normal(0, 0.2)
        return np.ascontiguousarray(image, np.float32)[None], np.ascontiguousarray(label)


def _tiles(prepared: list[Prepared], side: int) -> data.TensorDataset:
    """Every micrograph cut into crops side by side, for validation."""
    places = [
        (item, np.s_[y : y + side, x : x + side])
        for item in prepared
        for y in range(0, item.label.shape[0] - side + 1, side)
        for x in range(0, item.label.shape[1] - side + 1, side)
    ]
    images = np.stack([item.enhanced.image[place][None] for item, place in places])
    return data.TensorDataset(images, np.stack([item.label[place] for item, place in places]))


def class_weights(prepared: list[Prepared]) -> np.ndarray:
    """Weight 1/√frequency of each class (4,), at most 10 times background's, mean 1 over pixels; 0 if unlabelled."""
    counts = sum(np.bincount(item.label[item.label != IGNORE], minlength=len(CLASSES)) for item in prepared)
    share = counts / max(counts.sum(), 1)
    weight = np.where(share > 0, np.sqrt(share[0] / np.maximum(share, 1e-12)), 0).clip(0, 10)
    return (weight / max((weight * share).sum(), 1e-12)).astype(np.float32)


@dataclass
class Picker:
    """A trained network and what it must be told: `meta` has network, classes, threshold, data kind, split, history."""

    model: models.UNet
    meta: dict[str, Any]

    @property
    def threshold(self) -> float:
        """The score that validation chose."""
        return float(self.meta["threshold"])

    def segment(self, enhanced: Enhanced, tile: int = 512, margin: int = 64) -> np.ndarray:
        """Class probabilities (4, h, w) float32, tile by tile so that memory stays bounded; `margin` px are seen
        around each.
        """
        h, w = enhanced.image.shape
        step = 2**self.model.depth
        padded = np.pad(enhanced.image, ((margin, margin + -h % step), (margin, margin + -w % step)), mode="symmetric")
        result = np.empty((len(CLASSES), h, w), np.float32)
        self.model.eval()
        with no_grad():
            for y in range(0, h, tile):
                for x in range(0, w, tile):
                    seen = padded[y : y + tile + 2 * margin, x : x + tile + 2 * margin]
                    logits = self.model(minidl.Tensor(np.ascontiguousarray(seen)[None, None]))
                    room = result[:, y : y + tile, x : x + tile]
                    inner = F.softmax(logits, 1).numpy()[0, :, margin:, margin:]
                    room[:] = inner[:, : room.shape[1], : room.shape[2]]
        return result

    def pick(self, enhanced: Enhanced) -> tuple[formats.Picks, np.ndarray]:
        """All candidates with scores, and the class probabilities (4, h, w) they come from."""
        probability = self.segment(enhanced)
        return picking.find_picks(probability[1], enhanced), probability

    def save(self, path: Path) -> None:
        """Write weights and meta to one safetensors file."""
        checkpoint.save(path, self.model, meta=self.meta)


def load_picker(path: Path) -> Picker:
    """Read a trained picker; raises InputError if the file is none."""
    saved = checkpoint.load(path)
    if saved.meta.get("task") != TASK or not {"network", "threshold", "diameter", "apix", "split"} <= saved.meta.keys():
        raise InputError(f"{path}: not the weights of a particle picker; train some with: particle_picking train")
    model = models.UNet(**saved.meta["network"])
    checkpoint.load_model(path, model)
    return Picker(model, saved.meta)


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
    epochs: int = 16,
    seed: int = 0,
    batch_size: int = 8,
    lr: float = 2e-3,
    width: int = 16,
    depth: int = 3,
    state: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Picker:
    """Train on random crops of the training micrographs; validation picks the best epoch and the threshold.

    Class-weighted cross-entropy, AdamW, cosine schedule. `state` is where training is kept after each epoch, for
    `resume`.
    """
    from tqdm import tqdm

    minidl.manual_seed(seed)
    wanted = parts.train + parts.val
    bar = tqdm(collection.named(wanted), "reading and enhancing", leave=False, disable=None if progress else True)
    ready = {entry.name: prepare(collection, entry) for entry in bar}
    training, validation = [ready[n] for n in parts.train], [ready[n] for n in parts.val]
    for item in training + validation:
        if not len(item.xy):
            raise InputError(f"{item.entry.coords}: no particle in it; take it out of coords/ or mark some")
    step = 2**depth
    side = min([CROP] + [min(item.label.shape) // step * step for item in ready.values()])
    if side < 4 * step:
        raise InputError(
            f"{collection.folder}: micrographs span too few particle diameters ({side / WORKING:.1f}) to train on"
        )

    network = {"in_channels": 1, "classes": len(CLASSES), "width": width, "depth": depth}
    model = models.UNet(**network)
    weight = class_weights(training)

    def loss(model: models.UNet, batch: tuple[np.ndarray, np.ndarray]) -> minidl.Tensor:
        return F.cross_entropy(model(minidl.Tensor(batch[0])), batch[1], weight=weight, ignore_index=IGNORE)

    crops = Crops(training, CROPS_PER_EPOCH, side)
    loader = data.DataLoader(crops, batch_size, shuffle=True, rng=np.random.default_rng(seed), transform=crops.cut)
    optimizer = optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    history = train.fit(
        model,
        loss,
        optimizer,
        loader,
        data.DataLoader(_tiles(validation, side), batch_size),
        epochs=epochs,
        scheduler=optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        checkpoint=state,
        resume=resume,
        progress=progress,
    )
    meta = {
        "task": TASK,
        "kind": collection.kind,
        "classes": list(CLASSES),
        "labelled": [name for name, w in zip(CLASSES, weight, strict=True) if w > 0],
        "network": network,
        "working": WORKING,
        "diameter": collection.diameter,
        "apix": collection.apix,
        "split": {"train": parts.train, "val": parts.val, "test": parts.test},
        "seed": seed,
        "history": history.epochs,
    }
    picker = Picker(model, meta)
    found = [picker.pick(item.enhanced)[0] for item in validation]
    curve = picking.curve([item.xy for item in validation], found, collection.diameter / 2)
    meta["threshold"] = curve.best()
    meta["validation"] = {"f1": float(curve.f1.max()), "average_precision": curve.average_precision}
    return picker
