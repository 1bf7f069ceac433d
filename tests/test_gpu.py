"""What only a GPU can show (pytest -m gpu): whole networks, the same bits twice, CUDA's own checker.

The kernels' own tests run there too: those of test_kernels.py and test_cuda.py named "cupy" and "on a GPU".
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minidl
from minidl import functional as F
from minidl import models, nn, optim
from tests import cuda_registers, stand_in
from tests.test_backends import require

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.gpu


@pytest.fixture
def cupy() -> Iterator[Any]:
    """The cupy backend, active; MINIDL_GPU=stand-in tries these tests on a processor."""
    if os.environ.get("MINIDL_GPU") == "stand-in":
        with stand_in.active(stand_in.backend()) as backend:
            yield backend
        return
    require("cupy")
    with minidl.use_backend("cupy") as backend:
        yield backend


TASKS = {
    "galaxy bars": (lambda: models.AlexNet(3, 2, image_size=64, width=0.125, hidden=32), (4, 3, 64, 64)),
    "stellar spectra": (lambda: models.ConvAutoencoder(96, channels=(8, 16), code=8), (8, 1, 96)),
    "particle picking": (lambda: models.UNet(1, 1, width=8, depth=2), (2, 1, 32, 32)),
}


def losses(task: str, dtype: Any, **options: Any) -> list[float]:
    """Train a network of a task for five steps on random images, on the active backend -> losses."""
    make, shape = TASKS[task]
    minidl.manual_seed(0)
    model = make().astype(dtype)
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape).astype(dtype)
    batch = x, rng.integers(2, size=len(x)), (x > 0.5).astype(dtype)

    def loss_fn(model: nn.Module, batch: Any) -> minidl.Tensor:
        x, classes, mask = map(minidl.Tensor, batch)
        if task == "galaxy bars":
            return F.cross_entropy(model(x), classes)
        return (
            F.mse_loss(model(x), x) if task == "stellar spectra" else F.binary_cross_entropy_with_logits(model(x), mask)
        )

    optimizer = optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    return minidl.train.fit(model, loss_fn, optimizer, [batch], epochs=5, progress=False, **options)["loss"]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_trains_as_on_the_processor(cupy: Any, task: str) -> None:
    """Off by no more than ten times what float32 costs on the processor, against float64 there."""
    with minidl.use_backend("numpy"):
        wide, plain = losses(task, np.float64), losses(task, np.float32)
    with stand_in.active(cupy):
        found, again, recorded = (losses(task, np.float32, **options) for options in ({}, {}, {"record": True}))
    tolerance = 10 * max(np.abs(np.array(plain) - wide).max(), 1e-6 * max(wide))
    assert np.abs(np.array(found) - wide).max() <= tolerance
    assert found == again == recorded
    assert found[-1] < found[0]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    """Every kernel test of test_cuda.py and a few rows of the table, under CUDA's own checker."""
    program = shutil.which("compute-sanitizer")
    if not program:
        pytest.skip("no compute-sanitizer here (it comes with the CUDA toolkit)")
    rows = "tests/test_kernels.py::test_conv2d_is_its_definition"
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_cuda.py", rows, "-k", "GPU or cupy"]
    done = subprocess.run(
        [program, "--tool", tool, "--error-exitcode", "9", *pytest_run], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards", done.stdout), done.stdout[-2000:]


def test_kernels_use_the_registers_of_the_table(cupy: Any) -> None:
    """What the driver says of the kernels in use; other compilers may count a few more."""
    if hasattr(cupy.xp, "bench"):
        pytest.skip("the stand-in has no registers")
    module = sys.modules[type(cupy).__module__]
    table = {(row.file, row.real, row.kernel): row.registers for row in cuda_registers.read()[1]}
    for (file, real, name), registers in table.items():
        kernel = module._kernel(file, name, np.dtype(real))
        assert kernel.num_regs <= registers + 32, name
        assert kernel.local_size_bytes <= 64, name
