"""Cut-outs a second of the bar network on a CPU, minidl beside PyTorch: `python -m benchmarks.bars --threads 2`.

Both run the weights that ship with examples/galaxy_bars on the same simulated pictures, 8 views of each, from bytes to
the log odds of a bar. Their answers are compared first: where they differ, nothing is timed. They take turns; a number
is the median of the turns, ± half of their quartiles' distance. `galaxy_bars predict` prints its own rate.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import minidl
from benchmarks import peers
from examples.galaxy_bars import network, simulate
from examples.galaxy_bars.predict import WEIGHTS

TOLERANCE = 1e-3  # of the log odds, which are of some units


def twin(model: Any, layout: torch.memory_format) -> Any:
    """PyTorch's network with the same weights, in the memory layout it is to use."""
    rival = peers.ResNet()
    rival.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in model.state_dict().items()})
    return rival.eval().to(memory_format=layout)


def torch_log_odds(rival: Any, images: NDArray[np.uint8], layout: torch.memory_format, batch: int) -> NDArray[Any]:
    """As `network.log_odds`, the network's part by PyTorch.     (n, 64, 64, 3) -> (n, 8)"""
    chunks = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            views = network.oriented(images[start : start + batch], 8)
            z = [rival(torch.from_numpy(x).contiguous(memory_format=layout)).numpy() for x in views]
            chunks.append(np.stack([v[:, 1] - v[:, 0] for v in z], axis=1))
    return np.concatenate(chunks)


def main() -> int:
    """Verify, time, print."""
    parser = argparse.ArgumentParser(description="Cut-outs a second of the bar network, minidl beside PyTorch.")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of a resnet that galaxy_bars train wrote")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each rival")
    parser.add_argument("--n", type=int, default=512, help="simulated cut-outs a turn")
    parser.add_argument("--batch-size", type=int, default=64, help="cut-outs a batch")
    parser.add_argument("--turns", type=int, default=7, help="of each rival")
    args = parser.parse_args()
    minidl.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    model, _ = network.load(args.weights)
    images = simulate.pictures(args.n, seed=0)[0]
    layouts = {"channels-first": torch.contiguous_format, "channels-last": torch.channels_last}
    rivals = {name: twin(model, layout) for name, layout in layouts.items()}
    calls = {"minidl": lambda: network.log_odds(model, images, 8, args.batch_size)} | {
        f"PyTorch {torch.__version__}, {name}": lambda name=name: torch_log_odds(
            rivals[name], images, layouts[name], args.batch_size
        )
        for name in layouts
    }
    answers = {name: call() for name, call in calls.items()}
    for name, answer in answers.items():
        if not np.abs(answer - answers["minidl"]).max() < TOLERANCE:
            print(f"error: {name} gives other log odds than minidl: nothing is timed", file=sys.stderr)
            return 1
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.turns):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    print(f"{args.n} cut-outs, 8 views each, batches of {args.batch_size}, {args.threads} threads, {args.turns} turns")
    for name, found in seconds.items():
        low, middle, high = np.quantile(args.n / np.array(found), [0.25, 0.5, 0.75])
        print(f"{name:32s} {middle:7.0f} ± {(high - low) / 2:.0f} cut-outs/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
