"""
Lesson 4: is this derivative right?
===================================

A wrong gradient raises no error: the network just learns badly. Differences of the value find it out, and here they
catch three bugs that people really make.

Run it: ``python -m examples.lessons.04_gradient_check``
"""

# %%
from __future__ import annotations  # @op reads the word `Array` in the signatures

import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

import matplotlib.pyplot as plt
import numpy as np

from examples.lessons.common import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, finish
from minidl import Tensor
from minidl.tensor import Array, op
from minidl.testing import gradcheck

rng = np.random.default_rng(0)

# %% [markdown]
# **Four ops.** An op of minidl is a function that returns its value and, for each input, the function that takes g =
# ∂L/∂y to ∂L/∂x. The first is right. Each of the others computes the right value and has one bug in its gradient.


# %%
@op
def softmax(backend, x: Array):
    y = np.exp(x - x.max(-1, keepdims=True))
    y = y / y.sum(-1, keepdims=True)
    return y, lambda g: y * (g - (g * y).sum(-1, keepdims=True))


@op
def softmax_alone(backend, x: Array):
    y = np.exp(x - x.max(-1, keepdims=True))
    y = y / y.sum(-1, keepdims=True)
    return y, lambda g: g * y * (1 - y)  # bug 1: forgets that each output depends on every input


@op
def tanh_of_x(backend, x: Array):
    return np.tanh(x), lambda g: g * (1 - x * x)  # bug 2: 1 − y² is meant


@op
def add_bias(backend, x: Array, b: Array):
    return x + b, lambda g: g, lambda g: g.mean(0)  # bug 3: b is used in every row, its shares add up: g.sum(0)


# %% [markdown]
# **The check.** For a small step ε in a random direction u the value must change by the slope that the gradient claims:
#
#     (f(x + εu) − f(x − εu)) / 2ε  =  Σ ∂f/∂x · u        up to an error of size ε²
#
# f must be one number, so the outputs are added with random weights v. (All weights 1 would be a trap: the outputs of
# softmax add up to 1 whatever x is, and any gradient that sums to nothing would pass.) One direction checks all
# elements together: to slip through, an error would have to be at right angles to u by chance.


# %%
def disagreement(function, inputs, eps, one_sided=False):
    """Relative difference between the claimed and the measured slope."""
    draw = np.random.default_rng(1).normal
    tensors = [Tensor(a, requires_grad=True) for a in inputs]
    y = function(*tensors)
    v = draw(size=y.shape).astype(y.dtype)
    directions = [draw(size=a.shape).astype(a.dtype) for a in inputs]
    y.backward(v)
    claimed = sum(float((t.grad * u).sum()) for t, u in zip(tensors, directions, strict=True))

    def value(step):
        moved = (Tensor((a + step * u).astype(a.dtype)) for a, u in zip(inputs, directions, strict=True))
        return float((function(*moved).data * v).sum())

    back = 0 if one_sided else -eps
    measured = (value(eps) - value(back)) / (eps - back)
    return abs(claimed - measured) / max(abs(claimed), abs(measured))


x, b = rng.normal(size=(4, 6)), rng.normal(size=6)
for function, inputs in ((softmax, [x]), (softmax_alone, [x]), (tanh_of_x, [x]), (add_bias, [x, b])):
    error = disagreement(function, inputs, 1e-6)
    print(f"{function.__name__:14} relative error {error:7.1e}  {'right' if error < 1e-6 else 'WRONG'}")

# %% [markdown]
# minidl's own check does the same and names the two numbers that disagree; all its ops pass it in the tests.

# %%
print(f"gradcheck(softmax): {gradcheck(softmax, [x]):.1e}")
try:
    gradcheck(add_bias, [x, b])
except AssertionError as error:
    print(f"gradcheck(add_bias): {error}")

# %% [markdown]
# **How small a step?** Two errors pull in opposite directions. The formula is wrong by about ε² (only ε for the
# one-sided difference). Rounding is wrong by about 10⁻¹⁶/ε, in float32 10⁻⁷/ε. In float64 the best step lies between
# 10⁻⁶ and 10⁻⁵ and leaves ten digits; in float32 no step leaves more than five, so gradients are checked in float64.

# %%
steps = np.logspace(-10, 0, 41)
curves = [
    ("softmax, right", BLUE, "-", softmax, [x], False),
    ("right, one-sided", SKY, "--", softmax, [x], True),
    ("right, in float32", GREEN, ":", softmax, [x.astype(np.float32)], False),
    ("bug 1: softmax element by element", ORANGE, "-.", softmax_alone, [x], False),
    ("bug 2: 1 − x² for 1 − y²", RED, (0, (1, 1)), tanh_of_x, [x], False),
    ("bug 3: bias averaged, not summed", PURPLE, (0, (5, 1)), add_bias, [x, b], False),
]
figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
for name, colour, style, function, inputs, one_sided in curves:
    errors = [max(disagreement(function, inputs, eps, one_sided), 1e-13) for eps in steps]
    axes.loglog(steps, errors, color=colour, ls=style, lw=2, label=name)
axes.set(xlabel="step ε", ylabel="relative error of the slope", xlim=(1e-10, 1), ylim=(5e-13, 1e3))
axes.set_title("A right gradient has a valley, a wrong one a floor")
axes.legend(ncols=2, loc="upper center")
finish(figure, "04_gradient_check")

# %% [markdown]
# **Exercises**
#
# 1. Plant a fourth bug: 1 − 1.001·y² in a right tanh. Is an error of a tenth of a per cent caught? *Right if* its curve
#    is flat at about 10⁻³ for small steps, far above the valley.
# 2. Check ``relu`` at x = 0 and at x = 10⁻⁸ with ε = 10⁻⁶. Why does a right gradient fail? *You see it*: the difference
#    reaches over the kink. The tests of minidl keep away from kinks, and test the kinks themselves apart.
# 3. Set v to all ones and repair nothing. Which bug is still caught, which not? *Right if* you can explain why softmax
#    then claims a slope of exactly 0.
