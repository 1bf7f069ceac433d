"""
Lesson 3: autograd from nothing
===============================

A number that remembers how it was made can tell you its derivatives. All of it fits on a page; the one thing to get
right is the order.

Run it: ``python -m examples.lessons.03_autograd``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

import itertools
import math
from collections import deque

import matplotlib.pyplot as plt
import numpy as np

from examples.lessons.common import BLUE, ORANGE, finish, keep_svg
from minidl import Tensor, graph

# %% [markdown]
# **The number.** It keeps its value, the numbers it was made from, and for each of these the derivative of the one op
# that made it (the *local* derivative, which every student can write down).

# %%
births = itertools.count()


class Number:
    def __init__(self, value, parents=(), slopes=()):
        self.value, self.parents, self.slopes = value, parents, slopes
        self.grad, self.birth = 0.0, next(births)

    def __add__(self, other):
        return Number(self.value + other.value, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        return Number(self.value * other.value, (self, other), (other.value, self.value))

    def tanh(self):
        y = math.tanh(self.value)
        return Number(y, (self,), (1 - y * y,))


def pass_on(node):
    """The chain rule, one step: each parent gets ∂L/∂node times the local derivative."""
    for parent, slope in zip(node.parents, node.slopes, strict=True):
        parent.grad += node.grad * slope


# %% [markdown]
# **The order.** d = 3·(2a) + a with a = x·x: a feeds d directly, and again through a longer way. A node may pass its
# gradient on only when *all* its shares have arrived. First come, first served (a queue from the end) reaches a by the
# short way, passes on too early, and counts that share twice when the rest arrives.


# %%
def backward_queue(end):
    """Wrong: passes on whatever has arrived."""
    end.grad, queue = 1.0, deque([end])
    while queue:
        node = queue.popleft()
        pass_on(node)
        queue.extend(node.parents)


def backward(end):
    """Right: a number is born after its parents, so the youngest first."""
    end.grad, found, stack = 1.0, {end}, [end]
    while stack:
        for parent in stack.pop().parents:
            if parent not in found:
                found.add(parent)
                stack.append(parent)
    for node in sorted(found, key=lambda node: node.birth, reverse=True):
        pass_on(node)


for walk in (backward_queue, backward):
    x = Number(3.0)
    a = x * x
    walk(Number(3.0) * (Number(2.0) * a) + a)
    print(f"{walk.__name__:15} ∂d/∂x = {x.grad:g}")
print("by hand: d = 7x², so ∂d/∂x = 14x = 42")

# %% [markdown]
# **Why not recursion?** One could follow every path from the end to x on its own and add the products up: right, but a
# chain of n diamonds (y = y + y, n times) has 2ⁿ paths. By birth each of its n numbers is visited once.


# %%
def paths(node):
    """Visits of a backward that follows every path."""
    return 1 + sum(paths(parent) for parent in node.parents)


lengths, visits, y = range(1, 15), [], Number(1.0)
for _ in lengths:
    y = y + y
    visits.append(paths(y))
print(f"14 diamonds: {visits[-1]:,} visits along paths, 15 by birth")

# %% [markdown]
# **The real one** does the same with arrays (``minidl/tensor.py``): births, local derivatives, youngest first.
# ``graph.draw`` shows the graph with each node's gradient; a notebook displays it, a script keeps the SVG.

# %%
x = Tensor(3.0, requires_grad=True)
a = x * x
b = 2 * a
d = (c := 3 * b) + a
d.backward(retain_graph=True)
print(f"minidl: ∂d/∂x = {x.grad:g}")
drawing = graph.draw(d, {"x": x, "a = x·x": a, "2a": b, "3·2a": c, "d": d})
keep_svg(drawing, "03_autograd")
drawing  # noqa: B018  (what a notebook shows)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
places = {"x": (0, 3, x), "a = x·x": (0, 2, a), "2a": (-0.8, 1.4, b), "3·2a": (-0.8, 0.6, c), "d": (0, 0, d)}
for start, end in (("x", "a = x·x"), ("a = x·x", "2a"), ("2a", "3·2a"), ("3·2a", "d"), ("a = x·x", "d")):
    left.annotate("", places[end][:2], places[start][:2], arrowprops={"arrowstyle": "->", "shrinkA": 14, "shrinkB": 14})
for name, (u, v, node) in places.items():
    text = f"{name}\ngradient {graph.gradient_norms(d)[node.birth]:g}"
    left.text(u, v, text, ha="center", va="center", bbox={"boxstyle": "round", "fc": "#cfe6f5"})
left.set(xlim=(-1.5, 1), ylim=(-0.5, 3.5), xticks=[], yticks=[], title="a must wait for both ways: 6 + 1 = 7")
left.set(xlabel="values run down, gradients run up")
right.semilogy(lengths, visits, color=ORANGE, marker="^", label="along every path")
right.semilogy(lengths, np.array(lengths) + 1, color=BLUE, marker="o", label="by birth")
right.set(xlabel="diamonds in a row", ylabel="visits to nodes", ylim=(1, 1e5), title="What the order saves")
right.legend()
finish(figure, "03_autograd")

# %% [markdown]
# **Exercises**
#
# 1. Add ``exp`` and division to ``Number``. *Right if* the gradient of 1/(1 + exp(−x)) at 0 is 0.25.
# 2. Call ``backward`` twice on one graph. Why is the second answer not simply double? *You see it* in ``a.grad``: inner
#    numbers keep their first gradient. minidl keeps gradients of leaves only.
# 3. Train one ``tanh`` neuron on three points with ``Number`` alone. *Right if* the loss falls at every step of a small
#    learning rate.
