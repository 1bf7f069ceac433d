"""Lesson 2: twenty tanh neurons. A hidden layer bends the line, and gradients teach all weights at once.

    y = σ(v · tanh(W x + b) + c)        20 rows in W: 20 soft steps, added up with the weights v

For each batch: 1. compute the loss  2. loss.backward() gives ∂loss/∂weight for every weight  3. step against it.
XOR, which defeated one neuron, is now easy; two interlocked spirals are hard enough to watch.

Run it: python -m examples.lessons.02_tanh_network
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from examples.drawing import save, subplots
from examples.lessons.drawing import decision_boundary
from minidl import Tensor, data, models, nn, optim
from minidl import functional as F


def spirals(rng: np.random.Generator, n: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Two interlocked spirals of n points each: x (2n, 2) float32 and labels (2n,)."""
    turn = np.sqrt(rng.uniform(0.03, 1, 2 * n)) * 2.2 * np.pi
    labels = np.arange(2 * n) % 2
    angle = turn + np.pi * labels
    x = np.stack([np.cos(angle), np.sin(angle)], 1) * turn[:, None] / 3
    return (x + rng.normal(0, 0.05, x.shape)).astype(np.float32), labels


def main(argv: list[str] | None = None) -> None:
    """Train the talk's multilayer network on the spirals and draw its boundary three times on the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/lessons"), help="folder of the picture")
    parser.add_argument("--seed", type=int, default=0, help="seed of points, weights and order")
    parser.add_argument("--epochs", type=int, default=300, help="passes through the points")
    options = parser.parse_args(argv)
    rng = np.random.default_rng(options.seed)

    x, labels = spirals(rng)
    network = models.TanhNetwork(2, hidden=20, rng=rng)
    probability = nn.Sequential(network, nn.Sigmoid())
    optimizer = optim.Adam(network.parameters(), lr=0.03)
    loader = data.DataLoader(data.TensorDataset(x, labels.astype(np.float32)), 30, shuffle=True, rng=rng)

    figure, axes = subplots(13, 4, 1, 3)
    moments = dict(zip((0, options.epochs // 10, options.epochs), axes, strict=False))
    for epoch in range(options.epochs + 1):
        right = float(np.mean((network(Tensor(x)).data[:, 0] > 0) == labels))
        if epoch in moments:
            print(f"epoch {epoch:4}: {right:.1%} of the points on the right side")
            decision_boundary(moments[epoch], probability, x, labels, f"Epoch {epoch}: {right:.0%} right")
        for points, target in loader:
            loss = F.binary_cross_entropy_with_logits(network(Tensor(points))[:, 0], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"picture: {save(figure, options.out / '02_tanh_network.png')}")


if __name__ == "__main__":
    main()
