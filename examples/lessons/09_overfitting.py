"""
Lesson 9: overfitting, and three remedies
=========================================

A network that knows its training galaxies by heart knows nothing of the next ones. Turned copies, dropout and stopping
early help, each in its own way.

Run it: ``python -m examples.lessons.09_overfitting``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

import matplotlib.pyplot as plt
import numpy as np

import minidl
from examples.galaxy_bars import network
from examples.lessons.common import BLUE, ORANGE, finish, galaxies, quick
from minidl import Tensor, data, nn, optim
from minidl import functional as F
from minidl.train import fit

# %% [markdown]
# **Few galaxies, many weights.** The central 32 x 32 pixels of 240 galaxies to learn from, and of 240 others to see
# what was learnt (the validation part: no weight is changed by it).

# %%
n = quick(240, 80)
sample = galaxies(2 * n, seed=9)
sample.images = np.ascontiguousarray(sample.images[:, 16:48, 16:48])
x, labels = network.normalise(sample.images), sample.labels.astype(np.float32)
training = data.TensorDataset(x[:n], labels[:n])
others = data.DataLoader(data.TensorDataset(x[n:], labels[n:]), n)


def build(dropout):
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2, rng=rng), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(dropout, rng=rng),
        nn.Linear(16 * 64, 32, rng=rng), nn.ReLU(), nn.Dropout(dropout, rng=rng), nn.Linear(32, 1, rng=rng),
    )  # fmt: skip


weights = sum(p.size for p in build(0.0).parameters())
print(f"{sample.kind} galaxies: {n} to train, {len(x) - n} to validate; {weights:,} weights")

# %% [markdown]
# **Augmentation by rotation.** A galaxy has no up. Turned or mirrored it is as good a galaxy with the same label, and
# the network has not seen it. The talk enlarged its sample by copies turned in small steps; here each galaxy comes,
# each time it is seen, in one of the eight orientations of the square, which need no interpolation.


# %%
def turned(item, rng):
    image, label = item  # (3, 32, 32)
    return np.ascontiguousarray(np.rot90(image[..., :: rng.choice([-1, 1])], rng.integers(4), axes=(1, 2))), label


def loss(model, batch):
    return F.binary_cross_entropy_with_logits(model(Tensor(batch[0]))[:, 0], batch[1])


def wrong(model, batch):
    return float(np.mean((model(Tensor(batch[0])).data[:, 0] > 0) != (batch[1] > 0.5)))


def learn(transform, dropout, epochs):
    """Train -> the history. fit keeps the best epoch: that is stopping early without knowing when in advance."""
    minidl.manual_seed(0)
    model = build(dropout)
    loader = data.DataLoader(training, 40, shuffle=True, rng=np.random.default_rng(0), transform=transform)
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    return fit(model, loss, optimizer, loader, others, epochs=epochs, metrics={"wrong": wrong}, progress=False)


epochs = quick(80, 8)
runs = {
    "nothing": learn(None, 0.0, epochs),
    "dropout ½": learn(None, 0.5, epochs),
    "turned copies": learn(turned, 0.0, epochs),
}
for name, history in runs.items():
    k = history.best_epoch - 1
    print(
        f"{name:13} last epoch: loss {history['loss'][-1]:.2f} in training, {history['val_loss'][-1]:.2f} on others, "
        f"{history['val_wrong'][-1]:.0%} wrong; stopped at epoch {k + 1:2}: {history['val_loss'][k]:.2f}, "
        f"{history['val_wrong'][k]:.0%} wrong"
    )

# %% [markdown]
# **How to read the curves.** Where the two part, the network has begun to learn its galaxies by heart: training loss
# falls, the loss on others climbs. It gets *surer*, not worse: the share of wrong answers does not climb with the loss;
# the same mistakes are made with more and more confidence.
#
# * *Stopping early* takes the weights of the lowest validation loss (the diamond). It costs a validation part, and the
#   loss at the diamond is a little too good to be true, for it was chosen to be lowest.
# * *Dropout* silences half of the neurons at random in each step, so none can rely on one other. It slows memorising,
#   and the network has time to find what is general.
# * *Turned copies* bring knowledge from outside: that direction means nothing.
#
# (To watch a training while it runs: ``fit(..., callback=minidl.live.LivePlot(model))`` draws its losses and the norm
# of its gradient after every epoch.)
#
# Do not rank remedies by a per cent: a share p of wrong answers among 240 is known to √(p(1 − p)/240), about 3 %.

# %%
figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), sharey=True, layout="constrained")
for panel, (name, history) in zip(axes, runs.items(), strict=True):
    steps = np.arange(1, len(history.epochs) + 1)
    panel.plot(steps, history["loss"], color=BLUE, label="training")
    panel.plot(steps, history["val_loss"], color=ORANGE, ls="--", label="others")
    k = history.best_epoch
    note = f"stop here: {history['val_wrong'][k - 1]:.0%} wrong"
    panel.plot(k, history["val_loss"][k - 1], "D", color="black", ms=6, label=note)
    panel.axhline(np.log(2), color="0.6", lw=0.8, ls=":")
    panel.set(title=name, xlabel="epoch", xlim=(0, epochs + 1), ylim=(0, 1.6))
    panel.legend(loc="upper left", fontsize="small")
axes[0].set_ylabel("cross-entropy (nats); dotted: a coin")
figure.suptitle(f"{n} {sample.kind} galaxies to learn from")
finish(figure, "09_overfitting")

# %% [markdown]
# **Exercises**
#
# 1. Learn from 60 and from 120 galaxies instead of 240 (``galaxies(n, ...)``). *Right if* the curves part the sooner
#    the fewer there are.
# 2. Turn by any angle (``network.turn``, before ``normalise``). Is that better than eight orientations? *You see it* in
#    the loss at the diamond; repeat with three seeds before you believe a difference of .02.
# 3. Shuffle the training labels. *Right if* the training loss still falls far below ln 2 without turned copies: a
#    network can learn noise by heart (Zhang et al. 2017), and the loss on others then only rises.
