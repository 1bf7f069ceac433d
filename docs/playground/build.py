"""Write occlusion.html: the page of occlusion.template.html with the shipped network and simulated galaxies inside.

    python docs/playground/build.py      # writes docs/playground/occlusion.html, which then works from a file

Each batch norm is folded into the convolution before it; weights stand in the page as float32 in base64. The galaxies
are SIMULATED (examples/galaxy_bars/simulate.py, seed 0): of those that the network is sure of, p beyond .95 or .05, the
first two barred ones and the first unbarred one that it calls rightly, and the first barred one that it misses.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from examples.galaxy_bars import network, occlusion, simulate  # noqa: E402
from minidl import models, nn  # noqa: E402
from minidl.checkpoint import atomic_write  # noqa: E402

WEIGHTS = HERE.parents[1] / "examples" / "galaxy_bars" / "bars.safetensors"


def text(array: Any, dtype: Any) -> str:
    """The array's bytes, little endian, in base64."""
    return base64.b64encode(np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()).decode()


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> dict[str, Any]:
    """A convolution that computes what `conv` and then `norm` do, by the running statistics."""
    scale = norm.weight.data / np.sqrt(norm.running_var.astype(np.float64) + norm.eps)
    return {
        "weight": text(conv.weight.data * scale[:, None, None, None], np.float32),
        "bias": text(norm.bias.data - norm.running_mean * scale, np.float32),
        "out": conv.out_channels,
        "kernel": conv.kernel_size[0],
        "stride": conv.stride[0],
        "padding": conv.padding[0],
    }


def layers(model: models.ResNet) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """All convolutions by the names of their weights, the linear layer, and the blocks with their strides."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            children = list(module.named_children())
            for (key, conv), (_, norm) in pairwise(children):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    found[f"{name}.{key}"] = folded(conv, norm)
        if isinstance(module, nn.Linear):
            found[name] = {"weight": text(module.weight.data, "f4"), "bias": text(module.bias.data, "f4")}
    blocks = [(n, m.change[0].stride[0]) for n, m in model.named_modules() if isinstance(m, models.Residual)]
    return found, blocks


def chosen(model: nn.Module, temperature: float) -> list[dict[str, Any]]:
    """The simulated galaxies of the page, what they are, and where their bars lie."""
    images, truth = simulate.pictures(200, seed=0)
    p = network.probabilities(model, images, temperature=temperature)
    barred, yes, no = truth.barred, p > 0.95, p < 0.05
    groups = [(barred & yes, 2, "right"), (~barred & no, 1, "right"), (barred & no, 1, "wrong")]
    found = []
    for k, verdict in [(k, verdict) for group, n, verdict in groups for k in np.flatnonzero(group)[:n]]:
        bar = {name: float(value) for name, value in asdict(occlusion.measure_bar(images[k])).items()}
        name = f"simulated galaxy {k}, {'barred' if barred[k] else 'unbarred'}: the network is {verdict}"
        found.append({"name": name, "image": text(images[k], "u1"), "bar": bar, "simulated": True})
    return found


def page() -> str:
    """The whole page."""
    model, meta = network.load(WEIGHTS)
    convs, blocks = layers(model)
    shown = {
        **{name: meta["preprocessing"][name] for name in ("size", "mean", "spread")},
        "temperature": meta["temperature"],
        "layers": convs,
        "blocks": blocks,
        "galaxies": chosen(model, meta["temperature"]),
    }
    template = (HERE / "occlusion.template.html").read_text(encoding="utf-8")
    return template.replace("@MODEL@", json.dumps(shown))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "occlusion.html", help="the page to write")
    out = parser.parse_args().out
    with atomic_write(out) as part:
        part.write_text(page(), encoding="utf-8")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
