"""Lesson 1: the perceptron. One neuron draws one straight line, and learns where from its mistakes.

    y = 1 if w·x + b >= 0, else 0

Rosenblatt's rule (1958): go through the points; whenever y is wrong, add (target − y)·x to w and (target − y) to b.
If a line separates the classes it finds one. If none does (XOR), it never stops making mistakes.

Run it: python -m examples.lessons.01_perceptron
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from examples.drawing import save, subplots
from examples.lessons.drawing import decision_boundary
from minidl import models


def clouds(
    centres: list[tuple[float, float]], labels: list[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """25 points around each centre: x (N, 2) float32 and their labels (N,)."""
    x = np.concatenate([rng.normal(c, 0.35, (25, 2)) for c in centres]).astype(np.float32)
    order = rng.permutation(len(x))
    return x[order], np.repeat(labels, 25)[order]


def learn(x: np.ndarray, labels: np.ndarray, epochs: int, rng: np.random.Generator) -> models.Perceptron:
    """Train one neuron and print its mistakes, epoch by epoch."""
    neuron = models.Perceptron(2, rng=rng)
    for epoch in range(1, epochs + 1):
        mistakes = neuron.rosenblatt_step(x, labels, lr=0.1)
        print(f"  epoch {epoch:2}: {mistakes} mistakes")
        if mistakes == 0:
            break
    w, b = neuron.sum.weight.data[0], neuron.sum.bias.data[0]
    print(f"  the line: {w[0]:+.2f} x1 {w[1]:+.2f} x2 {b:+.2f} = 0")
    return neuron


def main(argv: list[str] | None = None) -> None:
    """Learn two problems, one that a line can solve and one that it cannot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/lessons"), help="folder of the picture")
    parser.add_argument("--seed", type=int, default=0, help="seed of points and weights")
    options = parser.parse_args(argv)
    rng = np.random.default_rng(options.seed)

    print("Two clouds that a line can part:")
    easy = clouds([(1.2, 0), (2.4, 1.5)], [0, 1], rng)
    first = learn(*easy, epochs=20, rng=rng)

    print("XOR, which no line can part:")
    hard = clouds([(-1, -1), (1, 1), (-1, 1), (1, -1)], [0, 0, 1, 1], rng)
    second = learn(*hard, epochs=8, rng=rng)

    figure, axes = subplots(9, 4, 1, 2)
    decision_boundary(axes[0], first, *easy, "One neuron parts two clouds")
    decision_boundary(axes[1], second, *hard, "One neuron cannot do XOR")
    print(f"picture: {save(figure, options.out / '01_perceptron.png')}")


if __name__ == "__main__":
    main()
