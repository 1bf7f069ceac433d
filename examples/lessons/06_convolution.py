"""
Lesson 6: convolution three ways
================================

By hand, as a product with one big matrix, and backwards: the gradient of a convolution is a convolution again.

Run it: ``python -m examples.lessons.06_convolution``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

import matplotlib.pyplot as plt
import numpy as np

from examples.galaxy_bars import simulate
from examples.lessons.common import finish
from minidl import Tensor
from minidl import functional as F

rng = np.random.default_rng(0)

# %% [markdown]
# **By hand.** Lay a small kernel w on the picture x, multiply what lies on each other, add up: one pixel of the answer
# y. Move on. The same nine weights everywhere: what the kernel finds, it finds at every place.


# %%
def by_hand(x, w):
    """y[i, j] = Σ_kl w[k, l]·x[i + k, j + l].   x (H, W), w (K, K) -> (H − K + 1, W − K + 1)"""
    size = len(w)
    y = np.zeros((x.shape[0] - size + 1, x.shape[1] - size + 1))
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] = (w * x[i : i + size, j : j + size]).sum()
    return y


galaxy = simulate.pictures(1, seed=2)[0][0].mean(-1) / 255
edge = np.array([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]])  # Sobel's: the slope of brightness from bottom to top
answer = by_hand(galaxy, edge)

# %% [markdown]
# minidl's op does the same for many pictures, channels and kernels at once: x (N, C, H, W), w (O, C, K, K).

# %%
ours = F.conv2d(galaxy[None, None], edge[None, None]).data[0, 0]
print(f"by hand and F.conv2d differ by at most {np.abs(answer - ours).max():.1e}")

# %% [markdown]
# **As a matrix.** Every y is a weighted sum of x's, so y = M·x with x laid out as one long vector. Each row of M holds
# the nine weights, shifted; most of M is 0. A convolution is a dense layer that shares its weights and looks nearby.


# %%
def matrix_of(w, height, width):
    """M with (M @ x.ravel()) = by_hand(x, w).ravel(): its column p is the answer to a picture with one lit pixel p."""
    lit = np.eye(height * width).reshape(-1, height, width)
    return np.stack([by_hand(x, w).ravel() for x in lit], axis=1)


w = rng.normal(size=(3, 3))
x = rng.normal(size=(6, 6))
matrix = matrix_of(w, 6, 6)
print(f"M is {matrix.shape[0]} x {matrix.shape[1]}, {np.mean(matrix != 0):.0%} of it not 0, 9 different numbers")
print(f"M·x and by hand differ by at most {np.abs(matrix @ x.ravel() - by_hand(x, w).ravel()).max():.1e}")

# %% [markdown]
# **Backwards.** If y = M·x and g = ∂L/∂y, then ∂L/∂x = Mᵀ·g: each pixel collects from every y it had helped to make. Mᵀ
# spreads each g over a 3 x 3 patch. That is the *transposed convolution*, used on its own to enlarge pictures. For the
# weights: ∂L/∂w[k, l] = Σ_ij g[i, j]·x[i + k, j + l], which is x convolved with g as kernel.

# %%
g = rng.normal(size=(4, 4))
dx = (matrix.T @ g.ravel()).reshape(6, 6)
dw = by_hand(x, g)
tx, tw = Tensor(x[None, None], requires_grad=True), Tensor(w[None, None], requires_grad=True)
F.conv2d(tx, tw).backward(g[None, None])
print(f"Mᵀ·g and minidl's ∂L/∂x differ by at most {np.abs(dx - tx.grad[0, 0]).max():.1e}")
print(f"x convolved with g and minidl's ∂L/∂w differ by at most {np.abs(dw - tw.grad[0, 0]).max():.1e}")
spread = F.conv_transpose2d(g[None, None], w[None, None]).data[0, 0]
print(f"Mᵀ·g and F.conv_transpose2d differ by at most {np.abs(dx - spread).max():.1e}")
three = (g * by_hand(x, w)).sum(), (x * dx).sum(), (w * dw).sum()
print("one number three ways, ⟨g, y⟩ = ⟨x, ∂L/∂x⟩ = ⟨w, ∂L/∂w⟩: " + ", ".join(f"{value:.10f}" for value in three))

# %% [markdown]
# The last line is how minidl's kernels are tested in float32 and on a GPU: no step size, no differences.

# %%
figure, axes = plt.subplots(1, 4, figsize=(16, 4.2), layout="constrained")
axes[0].imshow(galaxy, cmap="gray", vmin=0, vmax=1)
axes[0].set_title("x: a simulated galaxy")
most = np.abs(answer).max()
shown = axes[1].imshow(answer, cmap="RdBu_r", vmin=-most, vmax=most)
axes[1].set_title("y: Sobel's kernel, brightness from bottom to top")
figure.colorbar(shown, ax=axes[1], label="y (brightness x 8 a pixel)", shrink=0.8)
for panel, picture, title in (
    (axes[2], matrix, "M: y = M·x for 6 x 6 pixels"),
    (axes[3], matrix.T, "Mᵀ: ∂L/∂x = Mᵀ·g"),
):
    shown = panel.imshow(np.where(picture == 0, np.nan, picture), cmap="RdBu_r", vmin=-2.5, vmax=2.5)
    panel.set_title(title)
figure.colorbar(shown, ax=axes[2:], label="weight (white: 0)", shrink=0.8)
for panel in axes[:2]:
    panel.set(xlabel="x (pixels)", ylabel="y (pixels)")
axes[2].set(xlabel="pixel of x", ylabel="pixel of y")
axes[3].set(xlabel="pixel of g", ylabel="pixel of ∂L/∂x")
finish(figure, "06_convolution")

# %% [markdown]
# **Exercises**
#
# 1. Give ``by_hand`` a stride of 2. What happens to M? *Right if* M keeps every second row of every second row of
#    pixels, and ``F.conv2d(..., stride=2)`` agrees.
# 2. Show that the gradient in x is itself ``by_hand`` of g, padded by 2, with w turned by 180°. *Right if* it equals
#    ``dx`` to 10⁻¹⁵.
# 3. How many multiplications does M·x take for a picture of 64 x 64, if M's zeros are multiplied too, and how many by
#    hand? *Right if* the ratio is 64²/9, about 455.
