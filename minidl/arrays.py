"""Where arrays lie: NumPy's in the memory of the processor, CuPy's in that of a GPU; and how they move."""

from __future__ import annotations

from typing import Any

import numpy as np

from .backends import array_library


def on_device(array: Any) -> bool:
    """True for CuPy's arrays, which alone have get and set (a table's column has get)."""
    return hasattr(array, "dtype") and hasattr(array, "get") and hasattr(array, "set")


def to_host(array: Any) -> np.ndarray[Any, Any]:
    """Give a NumPy array: itself, a copy of what lies on a GPU, or what NumPy makes of other things."""
    return array.get() if on_device(array) else np.asarray(array)


def move(array: Any, name: str) -> Any:
    """Give an array where backend `name` computes: itself if it lies there, else a copy."""
    xp = array_library(name)
    return array if isinstance(array, xp.ndarray) else xp.asarray(to_host(array))


def beside(other: Any, array: Any) -> Any:
    """Give an array where `other` lies: itself, or a copy."""
    return array if isinstance(array, type(other)) else np.asarray(to_host(array), like=other)


def upload(arrays: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    """Give NumPy arrays where backend `name` computes, copied beside its work if that is a GPU.

    A GPU copies by itself only from page-locked memory, and beside its kernels only in another stream. The copy waits
    for what was queued when its memory was taken, which may have been in use until then; this thread waits for it.
    """
    xp = array_library(name)
    if xp is np:
        return arrays
    copies = xp.cuda.Stream(non_blocking=True)
    held = []
    for a in arrays:
        locked = np.frombuffer(xp.cuda.alloc_pinned_memory(max(a.nbytes, 1)), a.dtype, a.size).reshape(a.shape)
        locked[...] = a
        held.append((xp.empty(a.shape, a.dtype), locked))
    copies.wait_event(xp.cuda.get_current_stream().record())
    for there, locked in held:
        there.set(locked, stream=copies)
    copies.synchronize()
    return tuple(there for there, _ in held)
