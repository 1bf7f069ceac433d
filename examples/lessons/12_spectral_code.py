"""
Lesson 12: a class as a number
==============================

The talk turns the classification of stars into regression, by the code 1000·A1 + 100·A2 + 2·A3 + 1.5. That is clever,
and there are two things such a number cannot say.

Run it: ``python -m examples.lessons.12_spectral_code``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

import matplotlib.pyplot as plt
import numpy as np

from examples.lessons.common import BLUE, GREEN, ORANGE, finish, quick, spectra
from examples.stellar_spectra.codes import CLASSES, LUMINOSITIES, decode, encode, parse
from minidl import Tensor, data, nn, optim
from minidl import functional as F
from minidl.train import fit, predict

# %% [markdown]
# **The code** (Gulati et al. 1994, eq. 5): A1 = 1 ... 7 for O B A F G K M, A2 the subclass 0 ... 9.5, A3 = 0 ... 4 for
# the luminosity classes I (supergiants) to V (dwarfs). One subclass is 100 units, and K9.5 is followed by M0 without a
# step: the order of the classes is the order of temperatures, and a number has an order where a label has none.

# %%
for text in ("B2I", "G2V", "G2I", "G9.5V"):
    print(f"{text:6} -> {encode(parse(text)):.1f}")
print(f"4800   -> {decode(4800)}")

# %% [markdown]
# **Regression.** One body of 20 tanh neurons, the talk's, with three heads: the code; scores of the seven classes;
# scores of the five luminosity classes. The last two are there for comparison.
#
# Among the spectra are some of *two* stars in one slit, a hot one and a cool one. As in real catalogues, their label
# names one of the two.

# %%
flux, types, kind = spectra(quick(800, 300), seed=12)
code = np.array([encode(t) for t in types])
cls = np.array([CLASSES.index(t.cls) for t in types])
lum = np.array([LUMINOSITIES.index(t.lum) for t in types])
n = len(flux) * 3 // 4
mean, spread = flux[:n].mean(0), flux[:n].std(0) + 0.02
hot, cool = [np.flatnonzero(cls == k) for k in (CLASSES.index("B"), CLASSES.index("K"))]


def standard(flux):
    return ((flux - mean) / spread).astype(np.float32)


rng = np.random.default_rng(0)
network = nn.Sequential(nn.Linear(580, 20, rng=rng), nn.Tanh(), nn.Linear(20, 1 + 7 + 5, rng=rng))


def loss(model, batch):
    x, target, cls, lum = batch
    y = model(Tensor(x))
    regression = F.huber_loss(y[:, 0], target, delta=0.1)
    return 15 * regression + 0.5 * F.cross_entropy(y[:, 1:8], cls) + F.cross_entropy(y[:, 8:], lum)


def pairs(first, last, count):
    """Two stars in one slit, a B and a K star of equal light at 5550 Å: rows of both, and the mean flux."""
    a, b = (rng.choice(rows[(rows >= first) & (rows < last)], count) for rows in (hot, cool))
    return a, b, 0.5 * (flux[a] + flux[b])


a, b, double = pairs(0, n, n // 4)
rows = np.concatenate([np.arange(n), np.where(rng.random(len(a)) < 0.5, a, b)])  # whose label each spectrum carries
x = standard(np.concatenate([flux[:n], double]))
target = ((code - 4500) / 1000).astype(np.float32)
parts = data.TensorDataset(x, target[rows], cls[rows], lum[rows])
epochs = quick(80, 40)
optimizer = optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.1)
schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
fit(network, loss, optimizer, data.DataLoader(parts, 32, shuffle=True, rng=rng), epochs=epochs, scheduler=schedule,
    progress=False)  # fmt: skip
out = predict(network, standard(flux[n:]))
predicted = 4500 + 1000 * out[:, 0]
error = predicted - code[n:]
print(f"{n} {kind} spectra to learn from, {len(error)} fresh ones")
print(
    f"error of the code: mean {error.mean():+.0f}, sigma {error.std():.0f} units = {error.std() / 100:.2f} subclasses"
)
from_code = np.array([CLASSES.index(decode(c).cls) for c in predicted])
print(f"class right: {np.mean(from_code == cls[n:]):.0%} read off the code")

# %% [markdown]
# **It cannot say the luminosity.** From I to V the code moves by 8 units, and the error is many times that. What
# ``decode`` prints for the luminosity is the last digit of a noisy number. The head of its own reads it from the same
# 20 neurons: the spectrum knows it, the code does not.

# %%
by_digit = np.array([LUMINOSITIES.index(decode(c).lum) for c in predicted])
by_head = out[:, 8:].argmax(1)
guess = np.bincount(lum[:n]).argmax()
shares = [np.mean(said == lum[n:]) for said in (by_digit, by_head, guess)]
print("luminosity class right: {:.0%} from the code, {:.0%} from the head, {:.0%} by always saying one".format(*shares))

# %% [markdown]
# **It cannot say "one of two".** What does it answer to fresh pairs? The label is B in half of the cases and K in the
# other. The code has room for one number, and the number that errs least on average lies between: a type that is
# neither star's. The class scores have two peaks.

# %%
a, b, double = pairs(n, len(flux), 40)
answers = predict(network, standard(double))
said = 4500 + 1000 * answers[:, 0]
p = np.exp(answers[:, 1:8] - answers[:, 1:8].max(1, keepdims=True))
p /= p.sum(1, keepdims=True)
between = (said > code[a] + 300) & (said < code[b] - 300)
print(f"{between.mean():.0%} of the pairs get a code more than 3 subclasses from both stars")
print("mean class probabilities: " + "  ".join(f"{c} {value:.2f}" for c, value in zip(CLASSES, p.mean(0), strict=True)))

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
left.plot([1000, 8000], [1000, 8000], color="0.6", lw=1)
left.plot(code[n:], predicted, "o", color=BLUE, ms=4, alpha=0.6)
left.set(xlabel="code of the catalogue", ylabel="code of the network", xlim=(1000, 8000), ylim=(1000, 8000))
left.set_xticks(1000 * np.arange(1, 8) + 500, [f"{1000 * k + 500}\n{c}" for k, c in enumerate(CLASSES, start=1)])
left.set_title(f"{kind} stars: sigma {error.std():.0f} units")
middle.hist(np.clip(error, -600, 600), np.linspace(-600, 600, 41), color=BLUE, alpha=0.7, label="error of the code")
middle.axvspan(-4, 4, color=ORANGE, label="all that luminosity moves: 8 units")
middle.set(xlabel="error (code units; 100 are a subclass)", ylabel="stars", xlim=(-600, 600))
middle.set_title("What the code cannot say: luminosity")
middle.legend(fontsize="small")
right.bar(range(7), p.mean(0), color=GREEN, label="mean probability of the class")
right.hist(said / 1000 - 1.5, np.linspace(-0.5, 6.5, 29), weights=np.full(40, 1 / 40), histtype="step", color="black",
           lw=2, label="share of pairs with this code")  # fmt: skip
right.set(xticks=range(7), xticklabels=list(CLASSES), xlabel="class", ylabel="probability, share", ylim=(0, 1))
right.set(xlim=(-0.6, 6.6), title="One of two: 40 pairs, a B and a K star in one slit")
right.legend(fontsize="small", loc="upper right")
finish(figure, "12_spectral_code")

# %% [markdown]
# **Exercises**
#
# 1. Multiply A3 by 200 instead of 2. *Right if* the luminosity can now be read off the code, and the class no longer:
#    one number cannot have two orders.
# 2. Replace ``huber_loss`` by ``mse_loss``. *You see it* in sigma and in the tails of the histogram: a few wrong labels
#    pull harder.
# 3. Let the code be predicted from the class scores, Σ p_c·(1000·A1 + 500). *Right if* its error is larger within a
#    class and you can name the part of the spectrum's knowledge that was thrown away.
