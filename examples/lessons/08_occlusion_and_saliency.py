"""
Lesson 8: where does it look?
=============================

Hide the bar and see whether the network still calls the galaxy barred. And then hide something else, for without a
control the test proves nothing.

Run it: ``python -m examples.lessons.08_occlusion_and_saliency``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import examples
from examples.galaxy_bars import network, occlusion
from examples.lessons.common import BLUE, GREEN, ORANGE, finish, galaxies, quick
from minidl import explain

# %% [markdown]
# The shipped network (lesson 7) answers with the log odds of a bar, ln(p/(1 − p)): positive means "barred".

# %%
model, meta = network.load(Path(examples.__file__).parent / "galaxy_bars" / "bars.safetensors")
sample = galaxies(quick(160, 60), seed=5)


def log_odds(images):
    return network.log_odds(model, images, views=1)[:, 0]


z = log_odds(sample.images)
found = np.flatnonzero((sample.labels == 1) & (z > 0))
print(f"{len(sample)} {sample.kind} galaxies; {len(found)} of {sample.labels.sum()} bars found")

# %% [markdown]
# **Three maps of one galaxy**, all of the same question: what does the answer depend on?
#
# * *Occlusion*: slide a disc over the picture; by how much does the answer fall? Honest and slow, one prediction a
#   place. What is hidden must be filled with something; here with the smooth continuation of its surroundings. So the
#   disc must be wider than the bar: inside a bar the smooth continuation is bar.
# * *Gradient*: |∂answer/∂pixel|, one backward pass. What a *tiny* change of each pixel would do, not its removal.
# * *Grad-CAM*: the last maps, weighted by their gradients. Coarse, and signed: only what speaks for a bar.

# %%
bar_score = lambda y: y[:, 1] - y[:, 0]  # noqa: E731
bars = [occlusion.measure_bar(image) for image in sample.images[found]]
long = int(np.argsort([bar.length for bar in bars])[len(bars) * 3 // 4])
k, bar = int(found[long]), bars[long]  # longer than three quarters of the bars found: there is something to see
x = network.normalise(sample.images[k : k + 1])
fall = explain.occlusion(model, x, bar_score, radius=9, steps=quick(16, 10))[0]
slope = explain.saliency(model, x, bar_score)[0]
cam = explain.saliency(model, x, bar_score, method="grad-cam")[0]
print(f"hiding the most telling place lowers the log odds from {z[k]:.1f} by {fall.max():.1f}")

# %% [markdown]
# **The test of the talk**, on every bar found: cover the bar (its length is measured on the picture's isophotes) with a
# disc, and count the galaxies that are no longer called barred. A large share seems to prove that the network looks at
# the bar. But perhaps *any* disc upsets it? So:
#
# * control 1: the same disc, beside the bar. A share as large would mean that discs are what matters.
# * control 2: the same disc on the centre of unbarred galaxies. If they *become* barred, the disc itself looks like a
#   part of a galaxy, and a bar that "survives" its covering proves nothing either.

# %%
test = occlusion.hide_bars(log_odds, sample, z)
shares = {}
for j, part in enumerate(occlusion.COVERS):
    n, on, off = occlusion.flips(test, np.ones(len(test.rows), bool), j)
    born, m = int((test.unbarred[j] > 0).sum()), test.unbarred.shape[1]
    shares[part] = [(on, n), (off, n), (born, m)]
    print(
        f"disc over {part:4.0%} of the bar: {occlusion.with_interval(on, n)} % lose it; beside the bar "
        f"{occlusion.with_interval(off, n)} %; unbarred now barred {occlusion.with_interval(born, m)} %"
    )

# %% [markdown]
# In brackets the 68 % interval of each share (Wilson's). Read the three columns together: the evidence is the
# difference between the first and the second, as long as the third is small.

# %%
figure, axes = plt.subplots(2, 4, figsize=(15, 7.6), layout="constrained")
image, middle = sample.images[k], (len(sample.images[k]) - 1) / 2
angle = np.linspace(0, 2 * np.pi, 100)
cos, sin = np.cos(bar.angle), np.sin(bar.angle)
along, across = bar.length * np.cos(angle), bar.width * np.sin(angle)
side_x, side_y, _ = occlusion.beside(bar, bar.length, len(image))
axes[0, 0].imshow(image)
axes[0, 0].plot(bar.x + along * cos - across * sin, bar.y + along * sin + across * cos, "w", lw=1)
axes[0, 0].set_title(f"a barred galaxy ({sample.kind}), log odds {z[k]:.1f}")
box = (-0.5, len(image) - 0.5, len(image) - 0.5, -0.5)
most = np.abs(fall).max()
for panel, picture, cmap, title, label, limits in (
    (axes[0, 1], fall, "RdBu_r", "occlusion", "fall of the log odds", (-most, most)),
    (axes[0, 2], slope, "magma", "gradient", "|∂ log odds/∂pixel|", (0, slope.max())),
    (axes[0, 3], cam, "magma", "grad-CAM", "weighted maps", (0, cam.max())),
):
    shown = panel.imshow(picture, cmap=cmap, extent=box, vmin=limits[0], vmax=limits[1])
    panel.plot(
        bar.x + along * cos - across * sin, bar.y + along * sin + across * cos, "k" if panel is axes[0, 1] else "w"
    )
    panel.set_title(title)
    figure.colorbar(shown, ax=panel, label=label, shrink=0.85)
round_one = int(np.flatnonzero((sample.labels == 0) & (z < 0))[0])
for panel, picture, title in (
    (axes[1, 0], explain.cover(image, bar.x, bar.y, bar.length), "disc on the bar"),
    (axes[1, 1], explain.cover(image, side_x, side_y, bar.length), "the same disc beside it"),
    (axes[1, 2], explain.cover(sample.images[round_one], middle, middle, bar.length), "on an unbarred galaxy"),
):
    panel.imshow(picture)
    panel.set_title(f"{title}: log odds {log_odds(picture[None])[0]:.1f}")
for panel in [*axes[0], *axes[1, :3]]:
    panel.set(xlabel="x (pixels)", ylabel="y (pixels)", xlim=box[:2], ylim=box[2:])
for j, (name, colour, mark) in enumerate(
    (
        ("on the bar: no longer barred", BLUE, "o"),
        ("beside: no longer barred", ORANGE, "s"),
        ("unbarred: now barred", GREEN, "^"),
    )
):
    counts = [shares[part][j] for part in occlusion.COVERS]
    share = np.array([100 * a / n for a, n in counts])
    low, high = 100 * np.array([occlusion.wilson(a, n) for a, n in counts]).T
    places = 100 * np.array(occlusion.COVERS) + 2 * (j - 1)
    axes[1, 3].errorbar(
        places, share, np.clip([share - low, high - share], 0, None), color=colour, marker=mark, capsize=3, label=name
    )
axes[1, 3].set(
    xlabel="part of the bar hidden (%)", ylabel="galaxies called otherwise (%)", ylim=(-3, 103), xlim=(15, 110)
)
axes[1, 3].set_title("The test and its two controls")
axes[1, 3].legend(fontsize="small", loc="upper left")
finish(figure, "08_occlusion_and_saliency")

# %% [markdown]
# **Exercises**
#
# 1. Fill the discs with one grey, ``explain.occlusion(..., fill=0.0)``. What do you see at the disc's rim? *Right if*
#    the map gets values far from the galaxy as well: a disc of one colour is an object of its own.
# 2. Take the network's answer to ``network.build("resnet")``, which has learnt nothing, and draw the gradient map.
#    *Right if* it too follows the galaxy somewhat: a saliency map alone proves no learning (Adebayo et al. 2018).
# 3. Hide the *sky* in a corner of every galaxy with the largest disc that touches no light. *Right if* next to nothing
#    changes, and you can say which third control this is.
