"""The numba_cuda backend without a GPU: its kernels run in Numba's simulator, and compile where NVVM is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_backends import python, require

ROOT = Path(__file__).parents[1]

# Every method is called with NumPy in CuPy's place; a launch compiles its kernel for the types it is given, no more.
COMPILE = """
import re, sys, types
import numba, numpy as np
from numba import cuda
import numba.cuda.dispatcher
cuda.is_available = lambda: True
numba.cuda.dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=(8, 0))
sys.modules["cupy"] = np
jit, done = cuda.jit, set()
class Kernel:
    def __init__(self, function): self.function = function
    def __getitem__(self, grid): return self.launch
    def launch(self, *arguments):
        kinds = tuple(map(numba.typeof, arguments))
        if (self.function, kinds) in done: return
        text, _ = cuda.compile_ptx(self.function, kinds, cc=(8, 0))
        done.add((self.function, kinds))
        name = self.function.__name__
        assert ".local" not in text, f"{name}: an array in slow local memory"
        assert not re.search(r"(fma|mul|add|div)\\S*\\.f64", text), f"{name}: float64 crept in"
cuda.jit = lambda function=None, **options: Kernel(function) if function else jit(**options)
from minidl.backends import numba_cuda_backend as module
backend = module.NumbaCudaBackend()
one, none, two = (1, 1), (0, 0), (2, 2)
conv = dict(stride=one, padding=none, dilation=one, groups=1)
window = dict(kernel_size=two, stride=two, padding=none)
try:
    x, w, m, v = (np.ones(shape, np.float32) for shape in ((2, 3, 4, 4), (5, 3, 1, 1), (6, 3), 3))
    for backend.rung in module.RUNGS:
        g = backend.conv2d(x, w, None, **conv)
        backend.linear_grad_x(m.T, m)
    backend.rung = "tiled"  # compiled sooner than blocked
    backend.conv2d_grad_x(g, w, x.shape, **conv), backend.conv2d_grad_w(g, x, w.shape, **conv)
    backend.linear(m, m, None), backend.linear_grad_w(m, m)
    y, index = backend.max_pool2d(x, **window, dilation=one, ceil_mode=False)
    backend.max_pool2d_grad(y, index, x.shape, **window, dilation=one)
    backend.avg_pool2d(x, y[0, 0], **window), backend.avg_pool2d_grad(y, y[0, 0], x.shape, **window)
    axis = np.arange(4), np.arange(4) + 1, np.ones((4, 1))
    backend.resample(x, axis, axis), backend.dropout(x, x > 0, 1.0), backend.activation_grad(x, x, "relu")
    backend.batch_norm(x, v, v, None, None, 1e-5, "relu")
    backend.batch_norm_grad(x, x, v, v, v, v, 1e-5, "relu", True)
    backend.local_response_norm(x, 5, 1.0, 0.75, 1.0), backend.local_response_norm_grad(x, x, x, 5, 1.0, 0.75, 1.0)
    t = np.zeros((2, 4, 4), np.int64)
    backend.cross_entropy(x, t, v, -1, 0.1), backend.cross_entropy_grad(x[:, 0], x, t, x[:, 0], v, -1, 0.1)
    backend.sgd_step([x], [x], [x], 0.1, 0.9, 0.0, 0.1, True)
    backend.adam_step([x], [x], [x], [x], 0.1, 0.9, 0.99, 1e-8, 0.1, False, 1)
    print(len(done), "compiled")
except Exception as error:
    if type(error).__name__ not in ("NvvmSupportError", "DynamicLibNotFoundError"): raise
    print("no NVVM:", str(error).split(chr(10))[0])
"""


def run_kernels(simulated: bool) -> None:
    """In a process of its own: Numba is told to simulate, or not, before it is first imported."""
    require("numba")
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment = os.environ | threads | {"NUMBA_ENABLE_CUDASIM": str(int(simulated))}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/numba_cuda_kernels.py"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_kernel_in_numba_s_simulator() -> None:
    run_kernels(simulated=True)


@pytest.mark.gpu
def test_every_kernel_on_a_gpu() -> None:
    require("numba_cuda")
    run_kernels(simulated=False)


def test_every_kernel_compiles_for_a_gpu() -> None:
    """Types, which the simulator knows nothing of: float32 stays float32, and what a thread keeps is in registers."""
    require("numba")
    said = python(COMPILE)
    if said.startswith("no NVVM"):
        pytest.skip(said)
    assert said.endswith("compiled") and int(said.split()[0]) >= 27


def test_without_a_gpu_one_clear_line_says_so() -> None:
    require("numba")
    hide = "from numba import cuda; cuda.is_available = lambda: False\n"
    code = "import minidl.backends as b\ntry: b.use_backend('numba_cuda')\nexcept RuntimeError as error: print(error)"
    said = python(hide + code, NUMBA_ENABLE_CUDASIM="0")
    assert "no NVIDIA GPU" in said and "NUMBA_ENABLE_CUDASIM=1" in said and "\n" not in said
    hide = "import sys; sys.modules['cupy'] = None\nfrom numba import cuda; cuda.is_available = lambda: True\n"
    assert 'pip install "minidl[cuda]"' in python(hide + code, NUMBA_ENABLE_CUDASIM="0")
    assert 'pip install "minidl[numba]"' in python("import sys; sys.modules['numba'] = None\n" + code)
