"""The cupy backend for tests: the real one on a GPU, or one over the stand-in `cupy` of this folder, anywhere."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minidl import backends

HERE = Path(__file__).parent


def _execute(name: str, path: Path, **modules: Any) -> Any:
    """Run a file as module `name`, with some modules in place of the installed ones."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = {other: sys.modules.get(other) for other in (name, *modules)}
    sys.modules.update({name: module, **modules})
    try:
        spec.loader.exec_module(module)
    finally:
        for other, old in before.items():
            if old is None:
                del sys.modules[other]
            else:
                sys.modules[other] = old
    return module


@cache
def cupy() -> Any:
    """Give the stand-in; the test is skipped where there is no g++, or no fibers."""
    if not shutil.which("g++") or sys.platform != "linux":
        pytest.skip("the .cu files run on a processor by g++ and ucontext, on Linux")
    return _execute("cupy", HERE / "cupy" / "__init__.py")


@cache
def module() -> Any:
    """Give minidl.backends.cupy_backend over the stand-in."""
    path = Path(backends.__file__).parent / "cupy_backend.py"
    return _execute("minidl.backends.cupy_backend", path, cupy=cupy())


@cache
def backend() -> Any:
    """Give the cupy backend over the stand-in."""
    return module().CupyBackend()


@contextmanager
def active(inner: Any) -> Iterator[Any]:
    """Make a backend, also one that is not in the registry, the active one for a block."""
    token = backends._chosen.set(inner)
    try:
        yield inner
    finally:
        backends._chosen.reset(token)


class OnTheDevice:
    """A backend of GPU arrays that takes and gives NumPy's, so that the tests of all backends fit it.

    Arrays that are not contiguous are not contiguous there either. Each launch takes the next order of threads.
    """

    def __init__(self, inner: Any) -> None:
        self.inner, self.xp = inner, inner.xp

    def _there(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._there(v) for v in value]
        if not isinstance(value, np.ndarray):
            return value
        there = self.xp.asarray(np.ascontiguousarray(value))
        if value.flags.c_contiguous or not value.ndim:
            return there.reshape(value.shape)
        wide = self.xp.zeros((*value.shape[:-1], 2 * value.shape[-1]), value.dtype)
        wide[..., ::2] = there
        return wide[..., ::2]

    def _back(self, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(self._back(v) for v in value)
        return value.get() if isinstance(value, self.xp.ndarray) else value

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if not callable(value) or name in ("explain_conv", "describe"):
            return value

        def call(*args: Any, **options: Any) -> Any:
            if hasattr(self.xp, "bench"):
                self.xp.bench.order = (self.xp.bench.order + 1) % 3
                self.xp.bench.seed += 1
            if name == "resample":  # windows are worked out on the host
                return self._back(value(self._there(args[0]), *args[1:]))
            return self._back(value(*map(self._there, args), **{k: self._there(v) for k, v in options.items()}))

        return call
