"""The training loop: `fit` runs epochs, `evaluate` measures, `predict` applies.

`loss_fn(model, batch)` and each metric see the model and a batch of the loader, a tuple of arrays: they choose what is
input and what is target, so one loop serves classifiers, autoencoders and segmentation.
"""

from __future__ import annotations

import glob
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checkpoint as checkpoints
from .device import RecordedStep, out_of_memory
from .init import default_rng
from .lr_scheduler import LRScheduler, ReduceLROnPlateau
from .nn import Module, evaluating
from .optim import Optimizer, clip_grad_norm_
from .tensor import Tensor, no_grad

Array = NDArray[Any]
Batches = Iterable[tuple[Array, ...]]
Loss = Callable[[Module, Any], Tensor]
Metric = Callable[[Module, Any], float]


@dataclass
class History:
    """What happened: one dict an epoch (epoch, lr, loss, val_loss, val_<metric>, seconds), and which was the best."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None

    def __getitem__(self, name: str) -> list[float]:
        """The values of one column, for plotting: history["val_loss"]."""
        return [row[name] for row in self.epochs]


def fit(
    model: Module,
    loss_fn: Loss,
    optimizer: Optimizer,
    train_loader: Batches,
    val_loader: Batches | None = None,
    *,
    epochs: int,
    scheduler: LRScheduler | ReduceLROnPlateau | None = None,
    metrics: Mapping[str, Metric] | None = None,
    patience: int | None = None,
    monitor: str = "val_loss",
    mode: str = "min",
    keep_best: bool = True,
    clip_norm: float | None = None,
    checkpoint: checkpoints.StrPath | None = None,
    resume: bool = False,
    meta: Mapping[str, Any] | None = None,
    progress: bool = True,
    stop: Callable[[History], bool] | None = None,
    callback: Callable[[History], object] | None = None,
    record: bool = False,
) -> History:
    """Train `model` until it has seen `epochs` epochs; returns the history. The model is left in eval mode.

    Each epoch: train on every batch (gradients clipped to the norm `clip_norm`), evaluate loss and `metrics` on
    `val_loader` (columns "val_loss", "val_<metric>"), step the `scheduler`. An epoch is the best so far if its column
    `monitor` is the lowest (mode "min") or highest ("max"). With `keep_best` the model ends with the weights of the
    best epoch. Training stops early after `patience` epochs without a better one, or when `stop(history)` is true.
    `callback(history)` is called after every epoch, for instance a `live.LivePlot`.
    Without `val_loader` nothing is monitored, unless monitor="loss": the last weights stay.

    `checkpoint` names a file written after every epoch, replacing what was there. Its model arrays are those `fit`
    would leave if it ended there, ready for `checkpoint.load_model`, and it carries `meta`. With `resume` the run
    continues from that file if it exists: killed at any moment and resumed, it ends with the same bits as one never
    interrupted. For this, random numbers must come from `minidl.default_rng()`, a module's attribute `rng`, or a
    DataLoader.

    With `record` each step's forward and backward pass is recorded at the second batch of a shape and then repeated at
    once, to the same bits: for small networks, whose time goes into starting kernels. `loss_fn` must compute with the
    batch's arrays alone and look at no number. On the cupy backend it is one launch (a CUDA graph); on the cpp backend
    a list of calls without Python between them, for networks of dense layers (ReLU and tanh in the same op, as
    nn.Sequential does) with `mse_loss`.

    Raises FloatingPointError when a loss becomes NaN or infinite, ValueError for options that contradict each other or
    a checkpoint that does not fit, RuntimeError where a step cannot be recorded, MemoryError, with the batch that would
    fit, when a GPU's memory runs out.
    """
    metrics = dict(metrics or {})
    columns = {"loss"} if val_loader is None else {"loss", "val_loss", *(f"val_{name}" for name in metrics)}
    monitored = monitor in columns
    if mode not in ("min", "max") or epochs < 1 or (patience is not None and patience < 1):
        raise ValueError(f"need mode 'min' or 'max', epochs >= 1, patience >= 1; got {mode!r}, {epochs}, {patience}")
    if val_loader is None and metrics:
        raise ValueError("metrics are measured on val_loader: there is none")
    unused = patience is None and monitor == "val_loss" and not isinstance(scheduler, ReduceLROnPlateau)
    if not monitored and (val_loader is not None or not unused):
        raise ValueError(f"cannot monitor {monitor!r}: the columns are {', '.join(sorted(columns))}")
    if checkpoint is None and (resume or meta is not None):
        raise ValueError("resume and meta need checkpoint=path")

    history = History()
    best: dict[str, Array] | None = None  # weights of the best epoch
    loaders = [train_loader, val_loader]
    if resume and checkpoint is not None:
        history, best = _resume(checkpoint, model, optimizer, scheduler, loaders)

    params = [p for group in optimizer.param_groups for p in group["params"]]
    step = RecordedStep(model, loss_fn, params) if record else None
    sign = 1 if mode == "min" else -1
    while len(history.epochs) < epochs and not _stops_early(history, patience if monitored else None, stop):
        start = time.perf_counter()
        epoch = len(history.epochs) + 1
        row = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"]}
        row["loss"] = _train_epoch(model, loss_fn, optimizer, train_loader, clip_norm, progress, epoch, epochs, step)
        if val_loader is not None:
            row |= {f"val_{name}": value for name, value in evaluate(model, loss_fn, val_loader, metrics).items()}
            _check_loss(row["val_loss"], f"epoch {epoch}, validation")
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(row[monitor])
        elif scheduler is not None:
            scheduler.step()
        row["seconds"] = round(time.perf_counter() - start, 3)

        before = history.best_epoch
        if monitored and sign * row[monitor] < (sign * history[monitor][before - 1] if before else math.inf):
            history.best_epoch = epoch
            best = model.state_dict() if keep_best else None
        history.epochs.append(row)
        if checkpoint is not None:
            _save(checkpoint, model, optimizer, scheduler, loaders, history, best, meta)
        if progress:
            print(_line(row, epochs, history.best_epoch == epoch), file=sys.stderr, flush=True)
        if callback is not None:
            callback(history)

    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return history


def evaluate(
    model: Module, loss_fn: Loss, loader: Batches, metrics: Mapping[str, Metric] | None = None
) -> dict[str, float]:
    """Loss and metrics over all batches, in eval mode and without gradients -> {"loss": ..., name: ...}.

    Each is the mean over batches weighted by their size, so exact for anything that is a mean over samples.
    """
    measures: dict[str, Callable[[Module, Any], Any]] = {"loss": loss_fn, **(metrics or {})}
    sums, count = dict.fromkeys(measures, 0.0), 0
    with evaluating(model), no_grad():
        for batch in loader:
            size = len(batch[0])
            count += size
            for name, measure in measures.items():
                sums[name] += float(measure(model, batch)) * size
    if count == 0:
        raise ValueError("nothing to evaluate: the loader gave no samples")
    return {name: total / count for name, total in sums.items()}


def predict(model: Module, inputs: Array | Tensor | Batches, *, batch_size: int = 64) -> Array:
    """The model's outputs for an array (N, ...), or for the first field of every batch of a loader -> (N, ...).

    In eval mode and without gradients. Raises ValueError if there is no input.
    """
    if hasattr(inputs, "dtype"):  # an array of any library, or a tensor
        array: Any = inputs.data if isinstance(inputs, Tensor) else inputs
        inputs = ((array[i : i + batch_size],) for i in range(0, len(array), batch_size))
    with evaluating(model), no_grad():
        outputs = [model(Tensor(batch[0])).numpy() for batch in inputs]
    if not outputs:
        raise ValueError("nothing to predict: there are no inputs")
    return np.concatenate(outputs)


def _train_epoch(
    model: Module,
    loss_fn: Loss,
    optimizer: Optimizer,
    loader: Batches,
    clip_norm: float | None,
    progress: bool,
    epoch: int,
    epochs: int,
    step: RecordedStep | None = None,
) -> float:
    """One pass over the loader -> the mean loss of its samples, each as the model was when it saw them."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    params = [p for group in optimizer.param_groups for p in group["params"]]
    total, count = 0.0, 0
    model.train()
    # disable=None: a bar on terminals only, not in log files
    with tqdm(loader, f"epoch {epoch}/{epochs}", unit="batch", leave=False, disable=None if progress else True) as bar:
        for number, batch in enumerate(bar, start=1):
            optimizer.zero_grad()
            where = f"epoch {epoch}, batch {number}"
            try:
                value = _step(model, loss_fn, batch, where) if step is None else step(batch)
            except MemoryError as error:
                raise out_of_memory(error, len(batch[0])) from error
            _check_loss(value, where)
            if clip_norm is not None:
                clip_grad_norm_(params, clip_norm)
            optimizer.step()
            total, count = total + value * len(batch[0]), count + len(batch[0])
            bar.set_postfix(loss=f"{total / count:.4g}", refresh=False)
    if count == 0:
        raise ValueError("nothing to train on: the loader gave no samples")
    return total / count


def _step(model: Module, loss_fn: Loss, batch: tuple[Array, ...], where: str) -> float:
    """Forward and backward -> the loss."""
    loss = loss_fn(model, batch)
    value = float(loss.item())
    _check_loss(value, where)  # before backward, which detect_anomaly would blame
    loss.backward()
    return value


def _check_loss(value: float, where: str) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"{where}: the loss is {value}. Lower the learning rate, clip gradients (clip_norm=1.0), or look for NaN "
            "in the data; minidl.detect_anomaly() names the operation that made it"
        )


def _stops_early(history: History, patience: int | None, stop: Callable[[History], bool] | None) -> bool:
    """Decided from the history alone, so that a resumed run decides alike."""
    if patience is not None and len(history.epochs) - (history.best_epoch or 0) >= patience:
        return True
    return stop is not None and len(history.epochs) > 0 and stop(history)


def _line(row: Mapping[str, float], epochs: int, is_best: bool) -> str:
    values = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("epoch", "seconds"))
    return f"epoch {row['epoch']:3.0f}/{epochs}  {values}  {row['seconds']:.1f} s{'  best' if is_best else ''}"


def _generators(model: Module) -> dict[str, np.random.Generator]:
    """Every generator that training draws from, by a name that is the same in the next process."""
    found = {"default": default_rng()}
    for i, module in enumerate(model.modules()):
        if isinstance(rng := getattr(module, "rng", None), np.random.Generator):
            found[f"module {i}"] = rng
    return found


def _save(
    path: checkpoints.StrPath,
    model: Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | ReduceLROnPlateau | None,
    loaders: list[Any],
    history: History,
    best: dict[str, Array] | None,
    meta: Mapping[str, Any] | None,
) -> None:
    """The best weights under their own names, ready to use; the last ones, if others, among what resuming needs."""
    last = model.state_dict()
    best_is_last = best is None or history.best_epoch == len(history.epochs)
    checkpoints.save(
        path,
        last if best is None else best,
        optimizer=optimizer,
        scheduler=scheduler,
        epoch=len(history.epochs),
        rngs=_generators(model),
        meta=meta,
        extra={
            "history": asdict(history),
            "loaders": [loader.state_dict() if hasattr(loader, "state_dict") else None for loader in loaders],
            "keeps_best": best is not None,
            "last": None if best_is_last else last,
        },
    )


def _resume(
    path: checkpoints.StrPath,
    model: Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | ReduceLROnPlateau | None,
    loaders: list[Any],
) -> tuple[History, dict[str, Array] | None]:
    """Put everything back as `_save` found it -> history, best weights; a new run if there is no file yet."""
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.part*"):  # by a run killed while writing
        left.unlink(missing_ok=True)
    if not path.exists():
        return History(), None
    saved = checkpoints.load(path)
    if "history" not in saved.extra:
        raise ValueError(f"{path} holds weights only, no training to resume; train without resume to replace it")
    saved.restore(model, optimizer=optimizer, scheduler=scheduler, rngs=_generators(model))
    if saved.extra["last"] is not None:
        model.load_state_dict(saved.extra["last"])
    for loader, state in zip(loaders, saved.extra["loaders"], strict=True):
        if hasattr(loader, "state_dict") and state is not None:
            loader.load_state_dict(state)
    return History(**saved.extra["history"]), saved.arrays if saved.extra["keeps_best"] else None
