"""What training asks of the device: a step as one launch, and what to do when memory ran out.

On a GPU a small network's step is mostly the launching of many small kernels. Recorded once (a CUDA graph), all of them
are one launch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .backends import get_backend
from .nn import Module
from .tensor import Array, Tensor


class RecordedStep:
    """The forward and backward pass of a training step, recorded and then repeated on the same memory.

    Called with a batch it leaves the gradients in `params` and returns the loss, as the plain step does; the first
    batch of each shape is computed plainly (kernels are compiled, libraries get their memory), the second is recorded.

    Raises RuntimeError where the backend cannot record, or where the loss needs numbers that are not on the GPU.
    """

    def __init__(self, model: Module, loss_fn: Callable[[Module, Any], Tensor], params: list[Tensor]) -> None:
        self.model, self.loss_fn, self.params = model, loss_fn, params
        self.steps: dict[Any, Any] = {}  # by the batch's shapes: None after the first, then what to repeat
        if get_backend().memory() is None:
            get_backend().record(lambda: None)  # says why it cannot

    def __call__(self, batch: tuple[Array, ...]) -> float:
        """Give the loss of a batch; its gradients are in `params`."""
        arrays = tuple(Tensor(a).data for a in batch)
        kind = tuple((a.shape, a.dtype) for a in arrays)
        if kind not in self.steps:
            self.steps[kind] = None
            return float(self._plainly(arrays).item())
        if self.steps[kind] is None:
            self.steps[kind] = self._recorded(arrays)
        inputs, repeat, loss, grads = self.steps[kind]
        for kept, new in zip(inputs, arrays, strict=True):
            kept[...] = new
        repeat()
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g
        return float(loss.item())

    def _plainly(self, arrays: tuple[Array, ...]) -> Tensor:
        for p in self.params:
            p.grad = None
        loss = self.loss_fn(self.model, arrays)
        loss.backward()
        return loss

    def _recorded(self, arrays: tuple[Array, ...]) -> tuple[Any, ...]:
        """Record a step on copies of `arrays` -> those, what repeats it, where the loss and the gradients will be."""
        inputs = tuple(get_backend().xp.array(a) for a in arrays)
        losses: list[Tensor] = []
        repeat = get_backend().record(lambda: losses.append(self._plainly(inputs)))
        return inputs, repeat, losses[0].detach(), [p.grad for p in self.params]


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
