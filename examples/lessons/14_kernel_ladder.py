"""
Lesson 14: a kernel ladder
==========================

One convolution, written six times, from plain Python to C++: what does each step buy? Measured on your machine, now.

Run it: ``python -m examples.lessons.14_kernel_ladder``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

import time

import matplotlib.pyplot as plt
import numpy as np

import minidl
from examples.lessons.common import BLUE, ORANGE, SKY, finish, quick
from minidl import functional as F

# %% [markdown]
# **The work.** 8 pictures of 32 x 32 pixels with 32 channels, 32 kernels of 3 x 3: a layer of a small network. Its
# definition is six loops deep; every rung does these multiplications and additions (but for the last, see there).

# %%
N, C, M, H, K = quick(8, 2), 32, 32, 32, 3
OH = H - K + 1
rng = np.random.default_rng(0)
x = rng.normal(size=(N, C, H, H)).astype(np.float32)
w = rng.normal(size=(M, C, K, K)).astype(np.float32)
work = N * M * C * OH * OH * K * K
print(f"{work / 1e6:.0f} million multiply-adds")

# %% [markdown]
# **Rung 1: Python loops.** Each multiplication is an object made, a type looked up, a function called. Only one picture
# and two kernels are done, the rest would take a minute; the rate counts.


# %%
def python_loops(x, w):
    xs, ws = x[0].tolist(), w[:2].tolist()
    rows, places = range(quick(OH, 4)), range(OH)
    taps = [(c, k, m) for c in range(C) for k in range(K) for m in range(K)]
    total = lambda o, i, j: sum(ws[o][c][k][m] * xs[c][i + k][j + m] for c, k, m in taps)  # noqa: E731
    return np.array([[[[total(o, i, j) for j in places] for i in rows] for o in range(2)]])


# %% [markdown]
# **Rung 2: NumPy, shifted pictures.** Nine times: shift the pictures by (k, m), multiply with the weights at (k, m),
# add. The loops now run in compiled code, but each of the nine passes reads and writes everything: memory is the limit.


# %%
def numpy_shifts(x, w):
    y = np.zeros((N, M, OH, OH), np.float32)
    for k in range(K):
        for m in range(K):
            y += np.einsum("oc,nchw->nohw", w[:, :, k, m], x[:, :, k : k + OH, m : m + OH])
    return y


# %% [markdown]
# **Rung 3: NumPy, one matrix product** (lesson 6). Lay the 288 pixels under the kernel out as a column, for every
# place, and multiply with the weights as one matrix. The copy costs memory, nine times the input; but matrix products
# are what decades went into making fast.


# %%
def numpy_product(x, w):
    windows = np.lib.stride_tricks.sliding_window_view(x, (K, K), axis=(2, 3))  # (N, C, OH, OH, K, K), no copy yet
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(N * OH * OH, C * K * K)
    return (columns @ w.reshape(M, -1).T).reshape(N, OH, OH, M).transpose(0, 3, 1, 2)


# %% [markdown]
# **Rungs 4 to 6: compiled.** Numba turns the plain loops of rung 1 into machine code (read
# ``minidl/backends/numba_backend.py``: it is the definition, written out) and comes near the matrix product, without
# its copy. The C++ kernels keep what they use in registers, eight or sixteen numbers an instruction (``csrc/cpu``). For
# 3 x 3 kernels they may also take Winograd's way, which does the same sum with fewer multiplications;
# ``minidl.explain_conv`` says what is chosen and why.


# %%
def ours(x, w, name, algorithm="auto"):
    with minidl.use_backend(name), minidl.no_grad():
        minidl.set_conv_algorithm(algorithm)
        y = F.conv2d(x, w).numpy()
        minidl.set_conv_algorithm("auto")
        return y


def seconds(function):
    """The median time of a call, after one that warms up (compiles, fills caches)."""
    function(x, w)
    times = []
    while sum(times) < quick(1, 0) * 0.2 or len(times) < 3:
        start = time.perf_counter()
        function(x, w)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


minidl.set_num_threads(1)
truth = numpy_product(x.astype(np.float64), w.astype(np.float64))
rungs = [("Python loops", python_loops), ("NumPy, shifts", numpy_shifts), ("NumPy, product", numpy_product)]
for name, *choice in (("Numba", "numba"), ("C++, direct", "cpp", "direct"), ("C++, its choice", "cpp")):
    try:
        ours(x, w, *choice)
        rungs.append((name, lambda x, w, choice=choice: ours(x, w, *choice)))
    except (ImportError, RuntimeError) as reason:
        print(f"{name}: not here ({reason})")

rates = []
for name, function in rungs:
    y = function(x, w)
    error = np.abs(y - truth[: len(y), : y.shape[1], : y.shape[2]]).max()
    assert error <= 1e-3, f"{name} is wrong by {error}"
    rates.append(y.size / truth.size * work / seconds(function))
    gain = f", {rates[-1] / rates[-2]:.1f} times the rung before" if len(rates) > 1 else ""
    print(f"{name:16} {rates[-1] / 1e9:8.4f} billion multiply-adds a second{gain}")

# %% [markdown]
# One thread each (BLAS, under rung 3, may take more: set OPENBLAS_NUM_THREADS=1 to be fair). Every rung is checked
# against float64 before its time counts: a wrong kernel can be very fast.

# %%
figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
colours = [ORANGE if "Python" in name else SKY if "NumPy" in name else BLUE for name, _ in rungs]
axes.barh(range(len(rungs)), np.array(rates) / 1e9, color=colours)
for k, rate in enumerate(rates):
    axes.text(rate / 1e9 * 1.15, k, f"{rate / 1e9:.3g}", va="center")
axes.set(xscale="log", xlabel="billion multiply-adds a second (log scale)", xlim=(1e-3, 1e3), ylabel="rung")
axes.set(yticks=range(len(rungs)), yticklabels=[name for name, _ in rungs])
axes.invert_yaxis()
axes.set_title(f"One convolution, {work / 1e6:.0f} million multiply-adds, one thread, this machine")
finish(figure, "14_kernel_ladder")

# %% [markdown]
# **Exercises**
#
# 1. Make the kernel 1 x 1 (K = 1). Which rungs draw level? *You see it*: without windows there is nothing to copy, and
#    the convolution *is* a matrix product.
# 2. How much of the time of rung 3 is the copy? Time ``columns`` alone. *Right if* you find that a large part of the
#    rung is no arithmetic at all: that is what a direct kernel saves.
# 3. ``minidl.set_num_threads(2)``. *Right if* the result has the same bits (``np.array_equal``), and you can say why a
#    small layer does not become twice as fast.
