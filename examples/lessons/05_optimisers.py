"""
Lesson 5: four optimisers on one surface
========================================

Gradient descent, momentum, RMSprop and Adam start at the same place of the same valley. A fair race lets each have its
own best learning rate.

Run it: ``python -m examples.lessons.05_optimisers``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

import matplotlib.pyplot as plt
import numpy as np

from examples.lessons.common import BLUE, GREEN, ORANGE, RED, finish
from minidl import Tensor, optim

# %% [markdown]
# **The surface.** Rosenbrock's valley, f(x, y) = (1 − x)² + 20·(y − x²)²: steep walls, a floor that is nearly flat and
# bends, the minimum 0 at (1, 1). Losses of networks have such valleys: steep in a few directions, flat in most.


# %%
def loss(p):
    x, y = p[0], p[1]
    return (1 - x) ** 2 + 20 * (y - x * x) ** 2


START, STEPS = (-1.2, 0.8), 200


def race(make, lr):
    """Walk STEPS steps -> the path (STEPS + 1, 2) and the loss at each place; inf once it has flown away."""
    p = Tensor(np.array(START), requires_grad=True)
    optimizer = make([p], lr)
    path, losses = [p.data.copy()], [loss(p).item()]
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(p)
        value.backward()
        optimizer.step()
        path.append(p.data.copy())
        losses.append(loss(p).item())
        if not losses[-1] < 1e6:
            return np.array(path), [np.inf]
    return np.array(path), losses


# %% [markdown]
# **The four rules**, g the gradient:
#
# * gradient descent: p ← p − lr·g
# * momentum: v ← 0.9·v + g, then p ← p − lr·v. A heavy ball: it forgets the walls' push and pull and keeps the drift.
# * RMSprop: g divided by the running root of its mean square. Steep and flat directions get steps of like size.
# * Adam: both.
#
# Each tries the same eleven learning rates; the one that ends lowest counts. A race at one common rate would only show
# which rule that rate happens to suit.

# %%
rules = {
    "gradient descent": (BLUE, "-", lambda p, lr: optim.SGD(p, lr=lr)),
    "momentum 0.9": (ORANGE, "--", lambda p, lr: optim.SGD(p, lr=lr, momentum=0.9)),
    "RMSprop": (GREEN, "-.", lambda p, lr: optim.RMSprop(p, lr=lr)),
    "Adam": (RED, ":", lambda p, lr: optim.Adam(p, lr=lr)),
}
rates = np.logspace(-4, 1, 11)
best, finals = {}, {}
for name, (_, _, make) in rules.items():
    runs = [race(make, lr) for lr in rates]
    finals[name] = [losses[-1] for _, losses in runs]
    k = int(np.argmin(finals[name]))
    best[name] = (rates[k], *runs[k])
    usable = int(np.sum(np.array(finals[name]) < 0.5))
    print(
        f"{name:17} best rate {rates[k]:.2g}: loss {finals[name][k]:.2g} at the end; below 0.5 at {usable} of 11 rates"
    )

# %% [markdown]
# Which one wins depends on the surface and on the number of steps. What lasts is the right panel: how wide the range of
# learning rates is in which a rule works at all. That is what you pay for when you must search.

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
u, v = np.meshgrid(np.linspace(-1.6, 1.6, 200), np.linspace(-0.6, 1.8, 200))
height = (1 - u) ** 2 + 20 * (v - u * u) ** 2
left.contourf(u, v, height, levels=np.logspace(-2, 2.3, 18), norm="log", cmap="cividis_r", alpha=0.6)
for name, (colour, style, _) in rules.items():
    lr, path, losses = best[name]
    left.plot(path[:, 0], path[:, 1], color=colour, ls=style, lw=1.8)
    middle.semilogy(np.maximum(losses, 1e-12), color=colour, ls=style, lw=1.8, label=f"{name}, lr {lr:.2g}")
    right.loglog(rates, np.clip(finals[name], 1e-12, 1e3), color=colour, ls=style, marker="o", ms=4, label=name)
left.plot(*START, "ko", ms=7)
left.plot(1, 1, "k*", ms=13)
left.set(xlabel="parameter x", ylabel="parameter y", xlim=(-1.6, 1.6), ylim=(-0.6, 1.8))
left.set_title("Paths from the dot to the star")
middle.set(xlabel="step", ylabel="loss", xlim=(0, STEPS), ylim=(1e-12, 1e2), title="Each at its best rate")
middle.legend(fontsize="small", loc="lower left")
right.set(xlabel="learning rate", ylabel=f"loss after {STEPS} steps", xlim=(7e-5, 15), ylim=(1e-12, 2e3))
right.set_title("How choosy each is (top: flown away)")
finish(figure, "05_optimisers")

# %% [markdown]
# **Exercises**
#
# 1. Make the walls five times steeper (100 for 20). Whose best rate changes most? *Right if* you can say why RMSprop
#    and Adam hardly notice a factor before the loss.
# 2. Add noise to every gradient, ``p.grad += rng.normal(0, 0.5, 2)``, as batches do. Who suffers? *You see it* in the
#    middle panel: nobody gets below a floor now, and a smaller rate has a lower one.
# 3. Let the rate fall as a cosine (``optim.lr_scheduler.CosineAnnealingLR``). *Right if* with the noise of exercise 2
#    the last losses are lower than without.
