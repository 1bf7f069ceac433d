"""
Lesson 11: the autoencoder
==========================

Squeeze a spectrum of 580 numbers into eight and build it up again. No label is needed, and three things follow: what is
noise, what is odd, and a head start for a classifier.

Run it: ``python -m examples.lessons.11_autoencoder``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

import matplotlib.pyplot as plt
import numpy as np

from examples.lessons.common import BLUE, GREEN, ORANGE, RED, finish, quick, spectra
from examples.stellar_spectra.codes import CLASSES
from examples.stellar_spectra.preprocess import CENTRES
from minidl import Tensor, data, models, optim
from minidl import functional as F
from minidl.train import fit, predict

rng = np.random.default_rng(0)
flux, types, kind = spectra(quick(700, 240), seed=11)
n = len(flux) * 5 // 7
mean, scale = flux[:n].mean(0), flux[:n].std(0) + 0.02
known, fresh = np.split(((flux - mean) / scale).astype(np.float32), [n])
print(f"{kind} spectra: {n} to learn from, {len(fresh)} fresh ones")

# %% [markdown]
# **Compression.** 580 → 64 → 8 → 64 → 580 with tanh between. The eight numbers in the middle are the *code*; only what
# passes through them can be rebuilt. The measure to beat is linear: the best eight directions (principal components).


# %%
def learn(network, loss, batches, epochs, lr=3e-3):
    optimizer = optim.Adam(network.parameters(), lr=lr)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    measure = lambda net, batch: loss(net(Tensor(batch[0])), batch[1])  # noqa: E731
    fit(network, measure, optimizer, batches, epochs=epochs, scheduler=schedule, progress=False)


def noisy(sample, rng):
    return sample[0] + rng.normal(0, 0.3, 580).astype(np.float32), sample[1]


rms = lambda a, b: np.sqrt(((a - b) ** 2).mean(-1))  # noqa: E731
largest = lambda a, b: np.abs(a - b).max(-1)  # noqa: E731
autoencoder = models.Autoencoder((580, 64, 8), rng=rng)
batches = data.DataLoader(data.TensorDataset(known, known), 32, shuffle=True, rng=rng, transform=noisy)
learn(autoencoder, F.mse_loss, batches, quick(120, 30))
directions = np.linalg.svd(known, full_matrices=False)[2][:8]
linear = fresh @ directions.T @ directions
rebuilt = predict(autoencoder, fresh)
print(f"rms error on fresh spectra: {rms(rebuilt, fresh).mean():.3f}")
print(f"with eight principal components: {rms(linear, fresh).mean():.3f}")

# %% [markdown]
# (In units of each bin's scatter over the stars. The linear code is as good or better here: these spectra hardly leave
# a flat sheet of eight dimensions.)
#
# **Denoising.** While it learnt, the network was shown spectra with extra noise and had to return them without. Noise
# in 580 bins does not fit into eight numbers: it stays outside.

# %%
spoilt = fresh + rng.normal(0, 0.5, fresh.shape).astype(np.float32)
after = rms(predict(autoencoder, spoilt), fresh).mean()
print(f"noise added: rms {rms(spoilt, fresh).mean():.2f}; after the autoencoder {after:.2f}")

# %% [markdown]
# **Outliers.** What the network has never seen it cannot rebuild. Three kinds of odd spectra are mixed in: a wrong
# wavelength scale (shifted by 40 Å), an emission line at Hα, two stars in one slit (every bin the mean of two). Two
# scores of oddness: the rms error over all bins, and the largest error in any one bin.

# %%
some = flux[n : n + 20]
odd = {
    "shifted by 40 Å": np.roll(some, 8, axis=1),
    "Hα in emission": some + 0.8 * np.exp(-0.5 * ((CENTRES - 6563) / 8) ** 2),
    "two stars": 0.5 * (some + flux[n + 20 : n + 40]),
}
scores = {"usual": largest(rebuilt, fresh)}
limits = {score: np.quantile(score(rebuilt, fresh), 0.95) for score in (rms, largest)}
for name, spectrum in odd.items():
    z = ((spectrum - mean) / scale).astype(np.float32)
    again = predict(autoencoder, z)
    scores[name] = largest(again, z)
    found = [np.mean(score(again, z) > limit) for score, limit in limits.items()]
    print(f"{name:16} {found[0]:4.0%} found by the rms, {found[1]:4.0%} by the largest error")

# %% [markdown]
# (Found: beyond the error that 5 % of the usual spectra exceed.) The rms spreads a line over 580 bins and loses it; the
# largest error keeps it. A mean of two spectra is nearly a spectrum again, and most pairs pass for one star.
#
# **Pre-train, cut, fine-tune.** Cut the decoder off, put a fresh classifier on the code, and train the whole on few
# labels. Beside it the same network from scratch. Compare the difference with the scatter of the seeds (the bars in the
# figure) before you believe in a head start: the talk had 60 000 unlabelled spectra, here are only a few hundred.

# %%
labels = np.array([CLASSES.index(t.cls) for t in types])


def class_right(number, pretrained, seed):
    own = np.random.default_rng(seed)
    base = models.Autoencoder((580, 64, 8), rng=own)
    base.load_state_dict((autoencoder if pretrained else base).state_dict())
    network = base.with_head(len(CLASSES), rng=own)
    few = own.permutation(n)[:number]
    batches = data.DataLoader(data.TensorDataset(known[few], labels[few]), 10, shuffle=True, rng=own)
    learn(network, F.cross_entropy, batches, quick(60, 20), lr=2e-3)
    return np.mean(predict(network, fresh).argmax(1) == labels[n:])


numbers, seeds = (20, 50, 150), range(quick(4, 2))
results = {way: [[class_right(k, way, s) for s in seeds] for k in numbers] for way in (False, True)}
for k, *both in zip(numbers, results[False], results[True], strict=True):
    print("{:3} labels: class right {:.0%} from scratch, {:.0%} pre-trained".format(k, *np.mean(both, axis=1)))

# %%
figure, axes = plt.subplots(1, 4, figsize=(17, 4), layout="constrained")
for k, (panel, given, title) in enumerate(((axes[0], fresh, "Compressed to 8 numbers"), (axes[1], spoilt, "Denoised"))):
    out = predict(autoencoder, given[k : k + 1])[0]
    panel.plot(CENTRES, given[k] * scale + mean, color=ORANGE, lw=0.8, label="given")
    panel.plot(CENTRES, out * scale + mean, color=BLUE, lw=1.4, label="rebuilt")
    panel.set(xlabel="wavelength (Å)", ylabel="flux (1 at 5550 Å)", xlim=(3900, 6800), ylim=(0, None))
    panel.set_title(f"{title}: {types[n + k]}")
    panel.legend()
axes[2].hist(scores.pop("usual"), bins := np.logspace(-1, 1.5, 30), color="0.75", label="usual")
for (name, values), colour, style in zip(scores.items(), (RED, BLUE, GREEN), ("-", "--", ":"), strict=True):
    axes[2].hist(values, bins, histtype="step", color=colour, ls=style, lw=2, label=name)
axes[2].axvline(limits[largest], color="black", lw=1)
axes[2].set(xscale="log", xlabel="largest error (scatter of the bin)", ylabel="spectra", xlim=(0.1, 30))
axes[2].legend(title="Outliers", fontsize="small")
for way, colour, mark, name in ((False, ORANGE, "o", "from scratch"), (True, BLUE, "s", "pre-trained, fine-tuned")):
    values = 100 * np.array(results[way])
    axes[3].errorbar(numbers, values.mean(1), values.std(1), color=colour, marker=mark, capsize=3, label=name)
axes[3].set(xlabel="labelled spectra", ylabel="class right (%)", ylim=(0, 100), xlim=(0, 160), xticks=numbers)
axes[3].legend(title=f"Few labels ({kind} spectra)", loc="lower right")
finish(figure, "11_autoencoder")

# %% [markdown]
# **Exercises**
#
# 1. How short may the code be? *You see it* in the rms error of codes of 1, 2, 4 and 16: it falls fast, then slowly.
# 2. Freeze the encoder (``network[0].requires_grad_(False)``). *Right if* the pre-trained one is now clearly ahead.
# 3. Plant the outliers in the training part. *Right if* their error falls: rare is odd, wrong is not.
