"""
Lesson 1: the perceptron
========================

One neuron draws one straight line, and learns where from its mistakes.

    y = 1 if w·x + b >= 0, else 0

Run it: ``python -m examples.lessons.01_perceptron``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

import matplotlib.pyplot as plt
import numpy as np

from examples.lessons.common import BLUE, ORANGE, decision_boundary, finish
from minidl import models

rng = np.random.default_rng(0)


def clouds(centres, labels):
    """25 points around each centre: x (N, 2) and the class of each (N,)."""
    x = np.concatenate([rng.normal(c, 0.35, (25, 2)) for c in centres]).astype(np.float32)
    order = rng.permutation(len(x))
    return x[order], np.repeat(labels, 25)[order]


easy = clouds([(1.2, 0), (2.4, 1.5)], [0, 1])
xor = clouds([(-1, -1), (1, 1), (-1, 1), (1, -1)], [0, 0, 1, 1])

# %% [markdown]
# **The rule** (Rosenblatt 1958). Go through the points. Where the neuron is right, leave it alone. Where it is wrong,
# add (target − y)·x to the weights and (target − y) to the bias: if it said 0 and should have said 1, w·x grows by x·x,
# which is positive, so next time it is more likely to say 1. That is all the learning there is.


# %%
def go_through(w, b, x, targets, lr=0.1):
    """One epoch of Rosenblatt's rule: new weights, new bias, number of mistakes."""
    mistakes = 0
    for point, target in zip(x, targets, strict=True):
        y = 1 if w @ point + b >= 0 else 0
        w = w + lr * (target - y) * point
        b = b + lr * (target - y)
        mistakes += y != target
    return w, b, mistakes


w, b, counts = np.zeros(2), 0.0, []
while not counts or counts[-1]:
    w, b, mistakes = go_through(w, b, *easy)
    counts.append(mistakes)
    print(f"epoch {len(counts):2}: {mistakes} mistakes")
print(f"the line: {w[0]:+.2f} x1 {w[1]:+.2f} x2 {b:+.2f} = 0")

# %% [markdown]
# If some line separates the classes, the rule ends after finitely many mistakes (Novikoff 1962). It says nothing about
# *which* line: it stops at the first that works.
#
# **The limit.** Exclusive or: class 1 where exactly one of x1, x2 is positive. No straight line has both upper-left and
# lower-right on one side and the other two corners on the other (Minsky & Papert 1969). The rule goes on for ever.
# ``models.Perceptron`` is the same neuron as a layer of minidl.

# %%
neurons, mistakes = [], []
for x, targets in (easy, xor):
    neuron = models.Perceptron(2, rng=np.random.default_rng(0))
    mistakes.append([neuron.rosenblatt_step(x, targets, lr=0.1) for _ in range(20)])
    neurons.append(neuron)
print(f"two clouds: {mistakes[0][-1]} mistakes in epoch 20; XOR: {mistakes[1][-1]} of {len(xor[0])}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
decision_boundary(axes[0], neurons[0], *easy, "One neuron parts two clouds")
decision_boundary(axes[1], neurons[1], *xor, "One neuron cannot do XOR")
axes[2].plot(range(1, 21), mistakes[1], color=ORANGE, marker="^", ms=4, label="XOR (100 points)")
axes[2].plot(range(1, 21), mistakes[0], color=BLUE, marker="o", ms=4, label="two clouds (50 points)")
axes[2].set(title="Mistakes in each epoch", xlabel="epoch", ylabel="mistakes", xlim=(0, 21), ylim=(-3, 80))
axes[2].legend()
finish(figure, "01_perceptron")

# %% [markdown]
# **Exercises**
#
# 1. Move the second cloud of ``easy`` nearer, to (1.8, 0.8). When does the rule stop ending? *You see it* in the loop
#    above: it no longer stops. Give it an end before you start it.
# 2. Give XOR a third input, x1·x2. Can one neuron do it now? *Right if* the mistakes reach 0, and the weight of the
#    third input ends up the largest and negative.
# 3. Start from w = (10, −10). Does the rule still end on the two clouds, and how many epochs more does it need? *Right
#    if* the last count is 0, as Novikoff promises from any start.
