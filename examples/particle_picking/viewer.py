"""One HTML page to look at picks: no server, no network, everything inside."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from examples.common import InputError
from examples.particle_picking import formats
from examples.particle_picking.data import Diameter, in_pixels
from examples.particle_picking.enhance import downsample
from minidl.checkpoint import atomic_write

TEMPLATE = Path(__file__).with_name("viewer.html")
COLOURS = {"protein": (0, 114, 178), "ice": (230, 159, 0), "carbon": (204, 121, 167)}  # Okabe and Ito; labels 1, 2, 3


def _uri(picture: Any, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def micrograph_layer(image: np.ndarray, side: int) -> str:
    """A micrograph (H, W), low-passed and shrunk to `side` px at most, as JPEG in a data URI."""
    from PIL import Image

    factor = max(image.shape) / side
    small = downsample(image, factor)[0] if factor > 1 else image
    low, high = np.percentile(small, (0.5, 99.5))
    grey = np.clip((small - low) / max(high - low, 1e-12) * 255, 0, 255).astype(np.uint8)
    return _uri(Image.fromarray(grey), "JPEG", quality=82)


def mask_layers(mask: np.ndarray, side: int) -> dict[str, str]:
    """Each class of a mask (H, W) that occurs, as PNG of its colour, transparent elsewhere."""
    from PIL import Image

    step = max(1, max(mask.shape) // side)
    small = mask[step // 2 :: step, step // 2 :: step]
    layers = {}
    for label, (name, colour) in enumerate(COLOURS.items(), 1):
        if (small == label).any():
            picture = Image.fromarray((small == label).astype(np.uint8))
            picture.putpalette([0, 0, 0, *colour])
            layers[name] = _uri(picture, "PNG", transparency=0, bits=1)
    return layers


def page(
    picks: Path,
    out: Path,
    *,
    images: Path | None = None,
    coords: Path | None = None,
    diameter: Diameter | None = None,
    apix: float | None = None,
    side: int = 1400,
) -> int:
    """Write the page of all micrographs in the folder `picks` -> how many.

    What `predict` noted in predict.json is used: where the micrographs are, diameter, threshold. Raises InputError if
    a micrograph or the diameter is not known.
    """
    journal: dict[str, Any] = {"about": {}, "done": {}}
    if (picks / "predict.json").exists():
        journal = json.loads((picks / "predict.json").read_text(encoding="utf-8"))
    found = formats.read_folder(picks, candidates=True)
    truth = formats.read_folder(coords) if coords else {}
    if coords and not found.keys() & truth.keys():
        raise InputError(f"{coords}: none of the micrographs of {picks} ({min(found)} ..) is in it")
    if images:
        files = {formats.stem(path): path for path in sorted(images.iterdir()) if formats.is_micrograph(path)}
    else:
        files = {name: Path(row["file"]) for name, row in journal["done"].items()}
    names = sorted(found.keys() & files.keys() & truth.keys() if coords else found.keys() & files.keys())
    if not names:
        raise InputError(f"{images or picks}: the micrographs of these picks are not there: give --images")
    across = in_pixels(diameter, apix or formats.pixel_size(files[names[0]])) if diameter else None
    across = across or journal["done"].get(names[0], {}).get("diameter")
    across = across or next((p.diameter for p in (truth.get(names[0]), found[names[0]]) if p and p.diameter), None)
    if across is None:
        raise InputError(
            f"{picks}: the particle diameter is not in its files: give --diameter, as 108 (px) or 190A (Å)"
        )
    items = [_item(name, files[name], picks, found[name], truth.get(name), across / 2, side) for name in names]
    scores = np.concatenate([found[name].score for name in names])
    sizes = np.concatenate([np.zeros(0), *(p.size for name in names if (p := found[name]).size is not None)])
    scored = bool(len(scores) and np.isfinite(scores).all() and np.ptp(scores) > 0)
    low, high = (float(scores.min()), float(scores.max())) if scored else (0.0, 1.0)
    content = {
        "items": items,
        "truth": bool(coords),
        "radius": across / 2,
        "scored": scored,
        "low": round(low - 5e-6, 5),
        "high": round(high + 5e-6, 5),
        "threshold": float(np.clip(journal["about"].get("threshold", low), low, high)),
        "sized": bool(len(sizes) and np.ptp(sizes) > 0),
        "smallest": float(sizes.min(initial=1e9)),
        "largest": float(sizes.max(initial=0)),
    }
    note = f"A hit is one pick on one marked particle within {across / 2:.3g} px, nearest pair first." if coords else ""
    text = TEMPLATE.read_text(encoding="utf-8")
    for key, value in {
        "TITLE": html.escape(picks.resolve().name),
        "NOTE": note,
        "DATA": json.dumps(content, separators=(",", ":")).replace("</", "<\\/"),
    }.items():
        text = text.replace(key, value)
    with atomic_write(out) as part:
        part.write_text(text, encoding="utf-8")
    return len(items)


def _item(
    name: str, file: Path, picks: Path, found: formats.Picks, truth: formats.Picks | None, radius: float, side: int
) -> dict[str, Any]:
    """What the page knows of one micrograph: pictures, picks [x, y, score, size], truth, near pairs by distance."""
    image, _ = formats.read_micrograph(file)
    layers = {"micrograph": micrograph_layer(image, side)}
    for ending in ("_mask.png", "_mask.mrc"):
        if (picks / f"{name}{ending}").exists():
            layers |= mask_layers(formats.read_mask(picks / f"{name}{ending}"), side // 2)
            break
    score = np.where(np.isnan(found.score), 1, found.score)
    size = np.zeros(len(found)) if found.size is None else found.size
    xy = np.empty((0, 2)) if truth is None else truth.xy
    pairs: list[list[int]] = []
    if len(xy) and len(found):
        near = cKDTree(xy).sparse_distance_matrix(cKDTree(found.xy), radius, output_type="coo_matrix")
        order = np.argsort(near.data, kind="stable")
        pairs = np.stack([near.row[order], near.col[order]], 1).tolist()
    return {
        "name": name,
        "width": image.shape[1],
        "height": image.shape[0],
        "layers": layers,
        "picks": [
            [round(float(x), 1), round(float(y), 1), round(float(s), 5), round(float(d), 1)]
            for (x, y), s, d in zip(found.xy, score, size, strict=True)
        ],
        "truth": [[round(float(x), 1), round(float(y), 1)] for x, y in xy],
        "pairs": pairs,
    }
