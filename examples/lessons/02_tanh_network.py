"""
Lesson 2: twenty tanh neurons
=============================

A hidden layer bends the line, and gradients teach all weights at once.

    y = σ(v · tanh(W x + b) + c)        20 rows in W: 20 soft steps, added up with the weights v

Run it: ``python -m examples.lessons.02_tanh_network``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

import matplotlib.pyplot as plt
import numpy as np

from examples.lessons.common import decision_boundary, finish, quick
from minidl import Tensor, data, models, nn, no_grad, optim
from minidl import functional as F

rng = np.random.default_rng(0)

# %% [markdown]
# Two interlocked spirals: hopeless for the single line of lesson 1.

# %%
n = 150
turn = np.sqrt(rng.uniform(0.03, 1, 2 * n)) * 2.2 * np.pi
labels = np.arange(2 * n) % 2
angle = turn + np.pi * labels
x = np.stack([np.cos(angle), np.sin(angle)], 1) * turn[:, None] / 3
x = (x + rng.normal(0, 0.05, x.shape)).astype(np.float32)

# %% [markdown]
# The talk's multilayer network: one hidden layer of 20 tanh neurons. For each batch of points:
#
# 1. compute the loss, 2. ``loss.backward()`` gives ∂loss/∂weight for every weight, 3. step against it.

# %%
network = models.TanhNetwork(2, hidden=20, rng=rng)
probability = nn.Sequential(network, nn.Sigmoid())
optimizer = optim.Adam(network.parameters(), lr=0.03)
loader = data.DataLoader(data.TensorDataset(x, labels.astype(np.float32)), 30, shuffle=True, rng=rng)
epochs = quick(300, 200)

for epoch in range(epochs + 1):
    if epoch in (0, 30, epochs):
        right = float(np.mean((network(Tensor(x)).data[:, 0] > 0) == labels))
        print(f"epoch {epoch:4}: {right:.1%} of the points on the right side")
    for points, target in loader:
        loss = F.binary_cross_entropy_with_logits(network(Tensor(points))[:, 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %% [markdown]
# **What each hidden neuron sees.** Neuron k answers tanh(w·x + b): −1 on one side of its line, +1 on the other, a soft
# step between. The output neuron adds the 20 steps with its weights v; many crooked sums of straight steps make a
# spiral. The neurons are sorted by |v|, how much the output listens to them.

# %%
reach = 3.2
u, v = np.meshgrid(np.linspace(-reach, reach, 60), np.linspace(-reach, reach, 60))
with no_grad():
    seen = network.hidden(Tensor(np.stack([u.ravel(), v.ravel()], 1).astype(np.float32)), activation="tanh").numpy()
weights = network.output.weight.data[0]
order = np.argsort(-np.abs(weights))

figure = plt.figure(figsize=(13, 6), layout="constrained")
left, right_part = figure.subfigures(1, 2, width_ratios=[1, 1.25])
decision_boundary(left.subplots(), probability, x, labels, "Twenty soft steps, added up")
for axes, k in zip(right_part.subplots(4, 5, sharex=True, sharey=True).flat, order, strict=True):
    picture = axes.pcolormesh(u, v, seen[:, k].reshape(u.shape), cmap="cividis", vmin=-1, vmax=1, rasterized=True)
    axes.set_title(f"v = {weights[k]:+.1f}", fontsize=9)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[-2, 0, 2], yticks=[-2, 0, 2])
right_part.supxlabel("$x_1$", fontsize=10)
right_part.supylabel("$x_2$", fontsize=10)
bar = right_part.colorbar(picture, ax=right_part.axes, fraction=0.03)
bar.set_label("answer of the hidden neuron, tanh(w·x + b)")
finish(figure, "02_tanh_network")

# %% [markdown]
# **Exercises**
#
# 1. How few hidden neurons still do it? Try 3, 6 and 10. *You see it* in the share on the right side after the last
#    epoch: three steps can cut the plane into at most seven pieces.
# 2. Set the 10 weights v of smallest size to zero after training. *Right if* you can say before you look which neurons
#    the network would miss most, and the share confirms it.
# 3. Replace tanh by ReLU (``F.relu``). What shape has the boundary now? *You see it* in the left panel: it is made of
#    straight pieces, with corners where a neuron switches on.
