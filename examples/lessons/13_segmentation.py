"""
Lesson 13: from mask to picks
=============================

A U-Net says of every pixel of a micrograph what it is. Particles are then found by geometry alone, and a threshold is
moved last.

Run it: ``python -m examples.lessons.13_segmentation``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

import matplotlib.pyplot as plt
import numpy as np

import minidl
from examples.lessons.common import BLUE, GREEN, ORANGE, RED, finish, quick, real_folder
from examples.particle_picking import crops as labelling
from examples.particle_picking import data as micrographs
from examples.particle_picking import formats, picking, simulate
from examples.particle_picking.enhance import WORKING, enhance
from minidl import data, models, optim
from minidl import functional as F
from minidl.train import fit, predict

# %% [markdown]
# **Four micrographs**, three to learn from. Each is brightened and shrunk until a particle is 18 pixels wide
# (``enhance``), and has the centres an expert marked (simulated: those it was made with).

# %%
folder = real_folder("micrographs")
if folder is None:
    kind, apix = "simulated", 7.08
    made = [simulate.micrograph(stream, size=512, apix=apix) for stream in np.random.default_rng(13).spawn(4)]
    images = [enhance(m.counts.astype(np.float32), simulate.DIAMETER / apix) for m in made]
    centres, diameter = [m.xy for m in made], simulate.DIAMETER / apix
else:
    collection = micrographs.open_collection(folder / "betagal_10017", diameter=(108.0, "px"))
    entries, kind, diameter = collection.entries[:4], "real (EMPIAR-10017)", collection.diameter
    images = [enhance(formats.read_micrograph(entry.image)[0], diameter) for entry in entries]
    centres = [micrographs.truth(entry) for entry in entries]
print(f"{kind} micrographs of {images[0].image.shape} pixels with {[len(xy) for xy in centres]} particles")

# %% [markdown]
# **The target is a mask.** Around each centre a disc of 0.7 diameters is "protein" (smaller than the particle, so that
# neighbours stay apart), all else is background. The network learns from crops, turned and mirrored.

# %%
masks = []
for image, xy in zip(images, centres, strict=True):
    points = np.column_stack([image.to_working(xy), np.full(len(xy), WORKING)])
    masks.append(labelling.discs(points, labelling.marked_classes(image, None)))
SIDE = 96


def cut(sample, rng):
    k = sample[0] % 3
    y, x = (int(rng.integers(size - SIDE + 1)) for size in masks[k].shape)
    turns, flip = int(rng.integers(4)), int(rng.choice([-1, 1]))
    image, mask = (np.rot90(a[y : y + SIDE, x : x + SIDE], turns)[::flip] for a in (images[k].image, masks[k]))
    return np.ascontiguousarray(image, np.float32)[None], np.ascontiguousarray(mask)


def loss(model, batch):
    return F.cross_entropy(model(minidl.Tensor(batch[0])), batch[1], ignore_index=labelling.IGNORE)


minidl.manual_seed(0)
model = models.UNet(1, 2, width=8, depth=2, rng=np.random.default_rng(0))
crops = data.DataLoader(data.TensorDataset(np.arange(48)), 8, rng=np.random.default_rng(0), transform=cut)
optimizer = optim.AdamW(model.parameters(), lr=5e-3)
history = fit(model, loss, optimizer, crops, epochs=quick(20, 5), progress=False)
print(f"loss {history['loss'][0]:.2f} in the first epoch, {history['loss'][-1]:.2f} in the last")

# %% [markdown]
# **From mask to picks.** On the fourth micrograph: the probability of protein is smoothed, its local maxima are
# candidates, of two nearer than 0.45 diameters the better stays, the rim is left out. Every candidate keeps its score.

# %%
test, truth = images[3], centres[3]
h, w = (size - size % 4 for size in test.image.shape)
logits = predict(model, np.ascontiguousarray(test.image[None, None, :h, :w], np.float32))[0]
probability = np.zeros(test.image.shape)
probability[:h, :w] = 1 / (1 + np.exp(logits[0] - logits[1]))
learnt, classical = picking.find_picks(probability, test), picking.log_picks(test)

# %% [markdown]
# **Count, then move the threshold.** A pick is a hit if it lies within half a diameter of a marked particle, one to
# one. Beside the network stands the classical way, a Laplacian of a Gaussian, which finds dark blobs and has learnt
# nothing.

# %%
radius = diameter / 2
curves = {
    name: picking.curve([truth], [found], radius) for name, found in (("U-Net", learnt), ("Laplacian", classical))
}
for name, curve in curves.items():
    k = int(np.argmax(curve.f1))
    where = f"at threshold {curve.thresholds[k]:.2f}: precision {curve.precision[k]:.2f}, recall {curve.recall[k]:.2f}"
    print(f"{name:10} best F1 {curve.f1[k]:.2f} {where}")

# %% [markdown]
# (The best threshold is looked up on the test micrograph here, to show the curve. A published number must fix it
# before.)

# %%
threshold = curves["U-Net"].best()
picks = learnt.above(threshold)
owner = picking.match(truth, picks.xy, radius)
missed = np.setdiff1d(np.arange(len(truth)), owner)
figure, axes = plt.subplots(1, 4, figsize=(18, 4.6), layout="constrained")
for panel, picture, title, cmap, limits in (
    (axes[0], test.image, f"a {kind} micrograph, enhanced", "gray", (-3, 3)),
    (axes[1], probability, "p(protein), pixel by pixel", "cividis", (0, 1)),
    (axes[2], test.image, "picks", "gray", (-3, 3)),
):
    shown = panel.imshow(picture, cmap=cmap, vmin=limits[0], vmax=limits[1])
    panel.set(xlabel="x (pixels)", ylabel="y (pixels)", title=title)
figure.colorbar(axes[1].images[0], ax=axes[1], label="probability", shrink=0.8)
hits, false = picks.xy[owner >= 0], picks.xy[owner < 0]
for xy, colour, mark, name in (
    (hits, BLUE, "o", "hit"),
    (false, ORANGE, "s", "false"),
    (truth[missed], RED, "x", "missed"),
):
    axes[2].plot(*test.to_working(xy).T, mark, color=colour, ms=7, mfc="none", label=f"{name} ({len(xy)})")
axes[2].legend(loc="upper right", fontsize="small")
for (name, curve), colour, style in zip(curves.items(), (BLUE, GREEN), ("-", "--"), strict=True):
    axes[3].plot(curve.recall, curve.precision, color=colour, ls=style, lw=2, label=name)
k = int(np.argmax(curves["U-Net"].f1))
axes[3].plot(curves["U-Net"].recall[k], curves["U-Net"].precision[k], "D", color=BLUE, label="threshold of the picture")
axes[3].set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02), title="Moving the threshold")
axes[3].legend(loc="lower left")
finish(figure, "13_segmentation")

# %% [markdown]
# **Exercises**
#
# 1. Make the discs of the mask as wide as the particle (in ``picking``: DISC = 0.5). *You see it* where particles
#    touch: their masks grow together, one maximum is left for two, and recall falls.
# 2. Train with one micrograph instead of three (``sample[0] % 1``). *Right if* F1 falls by a few hundredths only: a
#    crop holds many particles, so three micrographs are not a sample of three.
# 3. Judge hits within a quarter of a diameter. *Right if* precision and recall fall together: they share their hits.
