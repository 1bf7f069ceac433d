"""Saving and loading: arrays as safetensors, the rest as JSON in the same file, always whole or not at all.

A model's arrays stand in the file under their state_dict names, so other programs that read safetensors find them by
name, and their files load here. No pickle: loading a file runs nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arrays import on_device, to_host

if TYPE_CHECKING:
    from .lr_scheduler import LRScheduler, ReduceLROnPlateau
    from .nn import Module
    from .optim import Optimizer

Array = NDArray[Any]
StrPath = str | os.PathLike[str]


@contextmanager
def atomic_write(path: StrPath) -> Iterator[Path]:
    """Give a path beside `path` to write to; rename it to `path` at the end, or remove it if anything fails."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part" + path.suffix)
    except OSError as error:
        raise OSError(error.errno, f"cannot write here ({error.strerror})", str(path)) from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with open(part, "r+b") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(part, 0o666 & ~mask)  # mkstemp makes files private
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Checkpoint:
    """What `load` found: the model's `arrays` by name, the user's `meta`, and for resuming the states of the rest."""

    path: Path
    arrays: dict[str, Array]
    meta: dict[str, Any]
    epoch: int | None
    optimizer: dict[str, Any] | None
    scheduler: dict[str, Any] | None
    rngs: dict[str, Any]
    extra: dict[str, Any]

    def restore(
        self,
        model: Module,
        *,
        optimizer: Optimizer | None = None,
        scheduler: LRScheduler | ReduceLROnPlateau | None = None,
        rngs: Mapping[str, np.random.Generator] | None = None,
    ) -> None:
        """Put the saved states back into the objects given.

        Raises ValueError if a state is missing or does not fit, as of another model; the model is then unchanged.
        """
        rngs = rngs or {}
        before = model.state_dict()
        try:
            model.load_state_dict(self.arrays)
            if optimizer is not None:
                optimizer.load_state_dict(self._state("optimiser", self.optimizer))
            if scheduler is not None:
                scheduler.load_state_dict(self._state("scheduler", self.scheduler))
            states = {name: self._state(f"random generator {name!r}", self.rngs.get(name)) for name in rngs}
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # the last three: not what minidl writes
            model.load_state_dict(before)
            raise ValueError(f"{self.path}: {error}") from None
        for name, rng in rngs.items():
            rng.bit_generator.state = states[name]

    def _state(self, name: str, state: dict[str, Any] | None) -> dict[str, Any]:
        if state is None:
            raise ValueError(f"no state of the {name} was saved")
        return state


def save(
    path: StrPath,
    model: Module | Mapping[str, Array],
    *,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | ReduceLROnPlateau | None = None,
    epoch: int | None = None,
    rngs: Mapping[str, np.random.Generator] | None = None,
    meta: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write one safetensors file, replacing an older one at once: a model (or its state_dict) and what else is given.

    `meta` is yours and JSON: what a later prediction must know, such as class names. `extra` may also hold arrays.
    Raises TypeError for what JSON (where keys are strings) or safetensors cannot hold, OSError where writing is not
    allowed; the older file then stays.
    """
    from safetensors.numpy import save as to_bytes

    rest = {
        "meta": dict(meta or {}),
        "epoch": epoch,
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "rngs": {name: rng.bit_generator.state for name, rng in (rngs or {}).items()},
        "extra": dict(extra or {}),
    }
    arrays = dict(model if isinstance(model, Mapping) else model.state_dict())
    header = json.dumps({name: _take_arrays(value, name, arrays) for name, value in rest.items()})
    # In C order: safetensors writes raw memory.
    arrays = {name: np.asarray(to_host(array), order="C") for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name} is an array of {array.dtype}: only numbers and booleans can be saved")
    with atomic_write(path) as part:
        part.write_bytes(to_bytes(arrays, {"minidl": header}))  # save_file would leave a file of its own if killed


def load(path: StrPath) -> Checkpoint:
    """Read a checkpoint, or any safetensors file as one that holds arrays only.

    Raises FileNotFoundError, or ValueError for a file that is truncated, no safetensors, or of a type NumPy lacks.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("minidl", "{}"))
            if not isinstance(header, dict):
                raise ValueError("its entry minidl is no JSON object")
            arrays = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file of NumPy's types: {error}") from None
    rest = {name: _put_arrays(header.get(name), arrays) for name in ("optimizer", "scheduler", "epoch")}
    dicts = {name: _put_arrays(header.get(name, {}), arrays) for name in ("meta", "rngs", "extra")}
    return Checkpoint(path=path, arrays=arrays, **rest, **dicts)


def load_model(path: StrPath, model: Module) -> Checkpoint:
    """Load the weights at `path` into `model`; returns the checkpoint, for its `meta`.

    Raises what `load` raises, and ValueError naming the arrays if they are another model's; `model` is then unchanged.
    """
    checkpoint = load(path)
    checkpoint.restore(model)
    return checkpoint


def _take_arrays(value: Any, name: str, arrays: dict[str, Array]) -> Any:
    """`value` as JSON: its arrays are moved to `arrays` under path-like names, which stand in their place."""
    if isinstance(value, np.ndarray) or on_device(value):
        arrays[name] = to_host(value)
        return {"array": name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{name} has the key {wrong[0]!r}: JSON keys are strings")
        return {key: _take_arrays(item, f"{name}/{key}", arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_take_arrays(item, f"{name}/{i}", arrays) for i, item in enumerate(value)]
    return value


def _put_arrays(value: Any, arrays: dict[str, Array]) -> Any:
    """Undo `_take_arrays`, taking the arrays out of `arrays`."""
    if isinstance(value, dict):
        if value.keys() == {"array"} and value["array"] in arrays:
            return arrays.pop(value["array"])
        return {key: _put_arrays(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_arrays(item, arrays) for item in value]
    return value
