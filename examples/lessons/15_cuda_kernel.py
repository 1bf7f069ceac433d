"""
Lesson 15: a kernel for a GPU
=============================

A GPU runs one small program a million times at once. Here it is written in Python with Numba: in a simulator, which
every machine has, or on a GPU where there is one.

Run it: ``python -m examples.lessons.15_cuda_kernel``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

import os
import time

import matplotlib.pyplot as plt
import numpy as np

from examples.lessons.common import BLUE, GREEN, ORANGE, finish, need, quick

need("numba")
if not any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/dxg")):
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")  # must be set before Numba is imported
from numba import config, cuda, float32  # noqa: E402

simulated = bool(config.ENABLE_CUDASIM)
print("in Numba's simulator" if simulated else f"on {cuda.get_current_device().name}")

# %% [markdown]
# **One thread, one pixel.** The kernel is what *one thread* does: find out which pixel is mine, compute it. There are
# no loops over pixels; the launch makes as many threads as there are pixels, in square blocks of T x T. At the rim some
# threads have no pixel, and must leave.

# %%
T, K = 8, 5  # side of a block, side of the kernel


@cuda.jit
def each_for_itself(x, w, y):
    i, j = cuda.grid(2)  # which of all threads am I?
    if i >= y.shape[0] or j >= y.shape[1]:
        return
    total = float32(0)
    for k in range(K):
        for m in range(K):
            total += w[k, m] * x[i + k, j + m]
    y[i, j] = total


# %% [markdown]
# It is right, and wasteful. Every thread reads 25 pixels from the GPU's main memory, and its neighbour reads nearly the
# same 25. Main memory is far; arithmetic waits for it.
#
# **A block works together.** Threads of a block share a small, fast memory. Together they load the T + K − 1 by T + K −
# 1 pixels that the block needs, each pixel once. Then all must *wait* until every pixel is there: the barrier. Only
# then they compute, from the fast memory.

# %%
SIDE = T + K - 1


@cuda.jit
def block_together(x, w, y):
    tile = cuda.shared.array((SIDE, SIDE), float32)
    i, j = cuda.grid(2)
    top, left = cuda.blockIdx.x * T, cuda.blockIdx.y * T
    for p in range(cuda.threadIdx.x * T + cuda.threadIdx.y, SIDE * SIDE, T * T):  # T·T threads share out SIDE² pixels
        row, column = top + p // SIDE, left + p % SIDE
        if row < x.shape[0] and column < x.shape[1]:
            tile[p // SIDE, p % SIDE] = x[row, column]
    cuda.syncthreads()  # nobody goes on before everybody has loaded
    if i < y.shape[0] and j < y.shape[1]:  # no early return above: all threads must meet at the barrier
        total = float32(0)
        for k in range(K):
            for m in range(K):
                total += w[k, m] * tile[cuda.threadIdx.x + k, cuda.threadIdx.y + m]
        y[i, j] = total


# %% [markdown]
# **Is it right?** The simulator runs each thread as a Python thread: slow, but you may print and debug inside. The
# picture is small there, and its size no multiple of T: the rim is where kernels break.

# %%
size = quick(37, 21) if simulated else 4099
rng = np.random.default_rng(0)
x = rng.normal(size=(size, size)).astype(np.float32)
w = rng.normal(size=(K, K)).astype(np.float32)
out = size - K + 1
truth = sum(float(w[k, m]) * x[k : k + out, m : m + out].astype(np.float64) for k in range(K) for m in range(K))
blocks = (-(-out // T), -(-out // T))
rates = {}
for kernel in (each_for_itself, block_together):
    dx, dw, dy = cuda.to_device(x), cuda.to_device(w), cuda.to_device(np.zeros((out, out), np.float32))
    kernel[blocks, (T, T)](dx, dw, dy)  # the first launch compiles
    error = np.abs(dy.copy_to_host() - truth).max()
    assert error <= 1e-4, f"{kernel.__name__} is wrong by {error}"
    start = time.perf_counter()
    for _ in range(1 if simulated else 20):
        kernel[blocks, (T, T)](dx, dw, dy)
    cuda.synchronize()
    rates[kernel.__name__] = out * out * (1 if simulated else 20) / (time.perf_counter() - start)
    print(f"{kernel.__name__:16} largest error {error:.1e}, {blocks[0] * blocks[1]} blocks of {T * T} threads")
if not simulated:
    for name, rate in rates.items():
        print(f"{name:16} {rate / 1e9:.1f} billion pixels a second")

# %% [markdown]
# **What the tile saves.** For each pixel of the answer, alone: K² reads from main memory. Together: (T + K − 1)²/T².
# The larger the block the better, until the fast memory is full. (A GPU's caches hide a part of the waste, so the time
# gains less than the count: on a GPU this lesson prints both.)

# %%
alone, together = K * K, SIDE * SIDE / (T * T)
print(f"reads a pixel: {alone} alone, {together:.2f} together, {alone / together:.0f} times fewer")

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
show = 24
owner = np.add.outer(np.arange(show) // T, np.arange(show) // T) % 2
places = np.arange(show + 1)
left.pcolormesh(places, places, owner, cmap="cividis", vmin=-1, vmax=2, edgecolor="white", lw=0.2)
for side, colour, what in ((SIDE, ORANGE, "pixels read by one block"), (T, "black", "pixels it computes")):
    left.add_patch(plt.Rectangle((T, T), side, side, fill=False, ec=colour, lw=3, label=f"{what}: {side} x {side}"))
left.set(xlabel="column (pixels)", ylabel="row (pixels)", xlim=(0, show), ylim=(show, 0), aspect="equal")
left.set_title("Blocks of threads, and what one needs")
left.legend(loc="lower left", fontsize="small")
sides = np.arange(1, 33)
for width, colour, style in ((3, GREEN, "-"), (5, BLUE, "--"), (11, ORANGE, ":")):
    reads = ((sides + width - 1) / sides) ** 2
    right.semilogy(sides, reads, color=colour, ls=style, lw=2, label=f"kernel {width} x {width}")
    right.plot(1, width**2, "o", color=colour)
right.set(xlabel="side of a block, T (threads)", ylabel="reads from main memory a pixel", xlim=(0, 33), ylim=(0.9, 200))
right.set_title("Together (dots: each for itself)")
right.legend()
finish(figure, "15_cuda_kernel")

# %% [markdown]
# **Exercises**
#
# 1. Take ``cuda.syncthreads()`` out. *You see it* in the error, perhaps: in the simulator threads take turns, so run it
#    several times. A missing barrier may pass on one machine and fail on the next; that makes it the worst of bugs.
# 2. Let each thread compute two pixels, one below the other. *Right if* the result is the same and the reads a pixel
#    fall to (2T + K − 1)(T + K − 1)/(2T²).
# 3. Write the gradient in x: each thread *collects* for one pixel of x (lesson 6). Why not let each pixel of g spread
#    its share? *Right if* you can say what happens when two threads add to one place at the same time.
