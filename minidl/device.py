"""What training asks of the device: a step as one launch, and what to do when memory ran out.

A small network's step is mostly the starting of many small kernels: launches on a GPU, Python on a processor. Recorded
once (a CUDA graph, a list of calls), all of them are started at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .backends import get_backend
from .nn import Module
from .tensor import Array, Tensor


class _Recording(NamedTuple):
    weights: list[Array]  # the arrays that were the parameters
    repeat: Callable[..., None]  # for the arrays of a batch
    loss: Array  # where the results will be
    grads: list[Array | None]


class RecordedStep:
    """The forward and backward pass of a training step, recorded and then repeated on the same memory.

    Called with a batch it leaves the gradients in `params` and returns the loss, as the plain step does, to the bit.
    The first batch of each shape is computed plainly (kernels are compiled, libraries get their memory), at the second
    the step is recorded; on a processor it is then compared with the plain one. It is recorded anew when a parameter's
    array has been replaced. A recording keeps the memory of a whole step; the next batch overwrites the gradients.

    Raises RuntimeError where the backend cannot record, or where the loss is not computed from the batch's and the
    model's arrays by kernels that can be: on a processor, those of dense layers and of `mse_loss`.
    """

    def __init__(self, model: Module, loss_fn: Callable[[Module, Any], Tensor], params: list[Tensor]) -> None:
        self.model, self.loss_fn, self.params = model, loss_fn, params
        self.read = list({id(p): p for p in (*model.parameters(), *params)}.values())
        self.steps: dict[Any, Any] = {}  # by the batch's shapes: the first such batch, then its recording
        if get_backend().memory() is None:
            get_backend().record(list, [], [])  # says why it cannot

    def __call__(self, batch: tuple[Array, ...]) -> float:
        """Give the loss of a batch; its gradients are in `params`."""
        arrays = tuple(Tensor(a).data for a in batch)
        kind = tuple((a.shape, a.dtype) for a in arrays)
        step = self.steps.get(kind)
        if step is None or arrays[0].shape[:1] == (1,):  # the products of a single sample are the BLAS's
            self.steps[kind] = arrays
            return float(self._plainly(arrays).item())
        known = isinstance(step, _Recording)
        if not known or any(p.data is not w for p, w in zip(self.read, step.weights, strict=True)):
            step = self.steps[kind] = self._recorded(arrays if known else step)
        step.repeat(*arrays)
        if not known and get_backend().memory() is None:
            self._compare(step, arrays)
        for p, g in zip(self.params, step.grads, strict=True):
            p.grad = g
        return float(step.loss.item())

    def _plainly(self, arrays: tuple[Array, ...]) -> Tensor:
        for p in self.params:
            p.grad = None
        loss = self.loss_fn(self.model, arrays)
        loss.backward()
        return loss

    def _recorded(self, arrays: tuple[Array, ...]) -> _Recording:
        """Record a step on copies of `arrays`."""
        batch = tuple(get_backend().xp.array(a, order="C") for a in arrays)
        weights = [p.data for p in self.read]
        results: list[Any] = []

        def run() -> list[Any]:
            results[:] = self._plainly(batch).data, *(p.grad for p in self.params)
            return results

        repeat = get_backend().record(run, batch, weights)
        return _Recording(weights, repeat, results[0], results[1:])

    def _compare(self, step: _Recording, arrays: tuple[Array, ...]) -> None:
        """RuntimeError unless the plain step gives the same for a batch other than the recorded one."""
        plain = [self._plainly(arrays).data, *(p.grad for p in self.params)]
        for one, other in zip([step.loss, *step.grads], plain, strict=True):
            if not np.array_equal(one, other, equal_nan=one is not None):
                raise RuntimeError(
                    "this step cannot be recorded: repeated, it gives another result than computed plainly; the loss "
                    "must neither look at numbers nor write to arrays. Train without record"
                )


def out_of_memory(error: MemoryError, batch: int) -> MemoryError:
    """Give an error that says how much memory was wanted and free, and which batch would fit instead of `batch`."""
    memory = get_backend().memory()
    wanted = re.search(r"allocating ([\d,]+) bytes", str(error))
    if memory is None or wanted is None:
        return error
    (used, free, total), more = memory, int(wanted[1].replace(",", ""))
    fits = min(batch - 1, batch * (used + free) // (used + more))
    remedy = f"a batch of {fits} instead of {batch} may fit" if fits > 0 else "not even one sample fits"
    gigabytes = [f"{size / 2**30:.2f} GiB" for size in (more, free, total, used)]
    return MemoryError(
        "out of GPU memory: {} more was wanted, {} of {} was free, arrays held {}: {}".format(*gigabytes, remedy)
    )
