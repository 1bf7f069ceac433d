"""
Lesson 7: what the layers see
=============================

A trained network looks at a barred and an unbarred galaxy. Its maps, layer by layer, go from edges to "there is a
bar".

Run it: ``python -m examples.lessons.07_feature_maps``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import examples
from examples.galaxy_bars import network
from examples.lessons.common import BLUE, finish, galaxies, quick
from minidl import explain

# %% [markdown]
# **The network** is the one the project ships: a small residual network that learnt bars from real SDSS galaxies (see
# ``examples/galaxy_bars/MODEL_CARD.md``). The galaxies are real where there are some (``MINIDL_DATA``), and new to it;
# else they are simulated, which it has never seen, and then it misses many bars.

# %%
model, meta = network.load(Path(examples.__file__).parent / "galaxy_bars" / "bars.safetensors")
sample = galaxies(quick(160, 60), seed=5)
z = network.log_odds(model, sample.images, views=1)[:, 0]
print(f"{len(sample)} {sample.kind} galaxies, {np.mean((z > 0) == sample.labels):.0%} called rightly")

# %% [markdown]
# **The maps.** ``explain.feature_maps`` returns what every layer of any model answers, by name. We keep four stages:
# the first convolution and the three residual blocks. Each halves the picture from the second block on, so one pixel of
# a late map looks at a large part of the galaxy.

# %%
stages = {"features.2": "convolution", "features.3": "block 1", "features.4": "block 2", "features.5": "block 3"}
maps = explain.feature_maps(model, network.normalise(sample.images))
for name, title in stages.items():
    print(f"{title:12} {maps[name].shape[1]:3} maps of {maps[name].shape[2]} x {maps[name].shape[3]} pixels")

# %% [markdown]
# **Which maps carry the verdict?** Correlate the mean of each map over the galaxies with the network's answer. Each
# stage has dozens of maps, and the best of dozens looks good by chance. So it is chosen on one half of the galaxies and
# measured on the other.

# %%
half = np.arange(len(sample)) % 2 == 0
best, curves = {}, {}
for name, title in stages.items():
    means = maps[name].mean((2, 3)) + 1e-6 * np.arange(len(sample))[:, None]  # silent maps have no correlation
    chosen, fresh = (np.array([np.corrcoef(z[part], m[part])[0, 1] for m in means.T]) for part in (half, ~half))
    best[name], curves[name] = int(chosen.argmax()), fresh
    print(
        f"{title:12} map {best[name]:2}: {chosen.max():.2f} where it was chosen, {fresh[best[name]]:.2f} on the others"
    )

# %% [markdown]
# **What would excite it most?** ``explain.maximise`` starts from faint noise and climbs: each step changes the picture
# so that the map's mean grows. What comes out is no galaxy, but shows what the map is waiting for.

# %%
shape = network.normalise(sample.images[:1]).shape[1:]
wishes = {
    name: explain.maximise(model, best[name], shape, layer=name.replace(".2", ".1"), steps=quick(40, 8), blur=2)
    for name in stages
}  # of the first convolution its answer before the ReLU: where a ReLU is silent there is no slope to climb

# %%
pair = [int(np.argmax(np.where(sample.labels == label, z if label else -z, -np.inf))) for label in (1, 0)]
figure, axes = plt.subplots(3, 5, figsize=(14, 8.4), layout="constrained")
for row, (k, what) in enumerate(zip(pair, ("barred", "unbarred"), strict=True)):
    axes[row, 0].imshow(sample.images[k])
    axes[row, 0].set_title(f"{what} ({sample.kind}), p(bar) {network.sigmoid(z[k]):.3f}")
    for column, name in enumerate(stages, start=1):
        both = maps[name][pair, best[name]]
        shown = axes[row, column].imshow(both[row], cmap="viridis", vmin=both.min(), vmax=both.max())
        axes[row, column].set_title(f"{stages[name]}, map {best[name]}")
    figure.colorbar(shown, ax=axes[row, 4], label="answer of the map, block 3", shrink=0.8)
for column, name in enumerate(stages, start=1):
    wish = wishes[name][0].transpose(1, 2, 0)
    axes[2, column].imshow(np.clip(0.5 + 0.2 * (wish - wish.mean()) / wish.std(), 0, 1))
    axes[2, column].set_title("a picture that excites it")
for panel in [*axes[:2].flat, *axes[2, 1:]]:
    panel.set(xlabel="x (pixels)", ylabel="y (pixels)")
for column, name in enumerate(stages):
    spread = np.linspace(-0.25, 0.25, len(curves[name]))
    axes[2, 0].plot(column + spread, curves[name], ".", color="0.6", ms=5)
    axes[2, 0].plot(column, curves[name][best[name]], "D", color=BLUE, label="the chosen map" if column == 0 else None)
axes[2, 0].axhline(0, color="black", lw=0.8, ls=":")
axes[2, 0].set(xticks=range(4), xlabel="stage", ylabel="correlation with the answer", ylim=(-1, 1), xlim=(-0.5, 3.5))
axes[2, 0].set_xticklabels(["conv", "1", "2", "3"])
axes[2, 0].set_title("Mean of one map and the log odds")
axes[2, 0].legend(loc="lower left", fontsize="small")
finish(figure, "07_feature_maps")

# %% [markdown]
# **Exercises**
#
# 1. Turn the barred galaxy by 90° (``np.rot90``) before the network sees it. Do the maps turn with it? *You see it*:
#    early maps nearly, but a map that likes one direction goes dark. So prediction averages over turned views.
# 2. Shuffle ``z`` before the correlations. *Right if* the best maps still reach about 0.2 where they were chosen, and
#    nothing on the others: that is the luck of the best of many.
# 3. Take a network that has learnt nothing, ``network.build("resnet")``. *Right if* its maps look like blurred edges of
#    the galaxy in every layer.
