"""Which code computes the kernels. The folder is the registry: a module `NAME_backend.py` here is the backend NAME.

`use_backend("numpy")` chooses one, `show_backends()` tells what there is, what is native or inherited, what is missing.
"""

from __future__ import annotations

import os
import pkgutil
from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from threading import current_thread, main_thread
from types import TracebackType
from typing import Any

from .numpy_backend import KERNELS, NumpyBackend, Shape, conv2d_shape

__all__ = [
    "array_library", "backends", "explain_conv", "get_backend", "get_num_threads", "set_conv_algorithm",
    "set_matmul_precision", "set_num_threads", "show_backends", "use_backend",
]  # fmt: skip

CONV_ALGORITHMS = ("auto", "direct", "winograd", "exact")

# A choice belongs to its context (thread, task). New threads start with an empty context, so the main thread's choice
# is also kept for the process: a loader's threads compute as the program that started them.
_chosen: ContextVar[NumpyBackend | None] = ContextVar("minidl_backend", default=None)
_process: NumpyBackend | None = None


def backends() -> list[str]:
    """Give the names of all backends in this folder, available or not."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.removesuffix("_backend") for name in modules if name.endswith("_backend"))


@cache
def _load(name: str) -> NumpyBackend:
    """Import a backend and make its one instance; ValueError for an unknown name, RuntimeError if it cannot run."""
    if name not in backends():
        raise ValueError(f"there is no backend {name!r}; there are {', '.join(backends())}")
    try:
        module = import_module(f"{__name__}.{name}_backend")
    except Exception as error:  # not only ImportError: a half-installed library raises what it likes
        raise RuntimeError(f"the backend {name!r} is unavailable: {error}") from error
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, NumpyBackend) and value.name == name:
            return value()
    raise RuntimeError(f"{module.__name__} defines no subclass of NumpyBackend with name = {name!r}")


def _first_choice() -> NumpyBackend:
    """Give the backend of a program that chose none: MINIDL_BACKEND, else cpp where it was built, else numpy."""
    name = os.environ.get("MINIDL_BACKEND")
    if name:
        return _load(name)
    try:
        return _load("cpp")
    except (RuntimeError, ValueError):
        return _load("numpy")


def get_backend() -> NumpyBackend:
    """Give the active backend."""
    global _process
    active = _chosen.get() or _process
    if active is None:
        active = _process = _first_choice()
    return active


class use_backend:
    """Choose the backend: `use_backend("cpp")` from here on, `with use_backend("cpp"):` for one block.

    The choice holds for the current thread; made in the main thread, also for all threads that made none themselves.
    Raises ValueError for an unknown name, RuntimeError with reason and remedy for a backend that cannot run here.
    """

    def __init__(self, name: str) -> None:
        global _process
        backend = _load(name)
        self._before = _chosen.get(), _process
        _chosen.set(backend)
        if current_thread() is main_thread():
            _process = backend

    def __enter__(self) -> NumpyBackend:
        return get_backend()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _process
        _chosen.set(self._before[0])
        if current_thread() is main_thread():
            _process = self._before[1]


def show_backends() -> str:
    """Print, for every backend, what computes each kernel, or why it is missing and what to do; give the text back."""
    lines = [f"threads: {get_num_threads()} (minidl.set_num_threads)"]
    try:
        active = get_backend().name
    except (RuntimeError, ValueError) as error:  # a wrong MINIDL_BACKEND must not hide what there is
        active = ""
        lines.append(f"none is active, MINIDL_BACKEND cannot be had: {error}")
    for name in backends():
        mark = "*" if name == active else " "
        try:
            backend = _load(name)
        except RuntimeError as error:
            lines += [f"{mark} {name}: {error}", *(f"    {kernel:16} unavailable" for kernel in KERNELS)]
            continue
        lines.append(f"{mark} {name}: {backend.describe()}")
        for kernel in KERNELS:
            own = name == "numpy" or getattr(type(backend), kernel) is not getattr(NumpyBackend, kernel)
            lines.append(f"    {kernel:16} {'native' if own else 'inherited from numpy'}")
    text = "\n".join([*lines, "* active"])
    print(text)
    return text


def array_library(name: str) -> Any:
    """Give the library whose arrays backend `name` computes with: NumPy, or CuPy."""
    return _load(name).xp


def set_num_threads(n: int) -> None:
    """Set how many threads the cpp and numba kernels use (numpy's matrix products follow BLAS's own setting)."""
    if n < 1:
        raise ValueError(f"the number of threads must be at least 1, got {n}")
    NumpyBackend.threads = int(n)


def get_num_threads() -> int:
    """Give the number of threads the cpp and numba kernels use."""
    return NumpyBackend.threads


def set_conv_algorithm(name: str) -> None:
    """Choose how the cpp and cupy backends compute convolutions; the other backends know one way only.

    "auto": by shape (`explain_conv` says how);  "direct": never a transform, errors of rounding;  "winograd": wherever
    it can be done;  "exact": float32 is summed in float64 and rounded once, two to four times slower.
    The environment's MINIDL_CONV chooses for a whole program. Errors of float32 against float64, relative to the
    largest result: "auto" 2e-5 (gradients of weights 1e-4), "exact" 2e-7.
    """
    if name not in CONV_ALGORITHMS:
        raise ValueError(f"there is no convolution algorithm {name!r}; there are {', '.join(CONV_ALGORITHMS)}")
    NumpyBackend.algorithm = name
    with suppress(RuntimeError):
        _load("cpp").set_conv_algorithm(name)


def set_matmul_precision(name: str) -> None:
    """Choose how exact float32 products are on a GPU: "highest", as anywhere, or "high", by its tensor cores in TF32.

    TF32 keeps 10 bits of each factor instead of 23, and sums in float32: errors of 1e-3 instead of 1e-6 of the largest
    result, several times as fast. For the cupy backend's convolutions, from compute capability 8.0 on. As torch's
    set_float32_matmul_precision. ValueError for another name.
    """
    if name not in ("highest", "high"):
        raise ValueError(f"matmul precision is 'highest' or 'high', not {name!r}")
    NumpyBackend.precision = name


def explain_conv(
    x_shape: Shape, w_shape: Shape, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> str:
    """Say which algorithm the active backend takes for a convolution and its two gradients, and why; a line each."""
    pairs = (tuple(v) if isinstance(v, tuple | list) else (v, v) for v in (stride, padding, dilation))
    options = dict(zip(("stride", "padding", "dilation"), pairs, strict=True), groups=groups)
    conv2d_shape(tuple(x_shape), tuple(w_shape), **options)  # type: ignore[arg-type]
    return get_backend().explain_conv(tuple(x_shape), tuple(w_shape), **options)
