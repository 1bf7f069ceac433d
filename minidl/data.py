"""Data sets and loaders: from single samples to shuffled, transformed batches, the same for any number of workers.

Everything random here follows from one seed: sample `index` of epoch `epoch` is transformed with a generator made from
(seed, epoch, index). So the order of work does not matter, and a run resumed at an epoch sees the same batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import upload
from .init import default_rng

Array = NDArray[Any]
Sample = tuple[Any, ...]
Batch = tuple[Array, ...]


class Dataset:
    """A sequence of samples: define `__len__` and `__getitem__(index)` -> tuple of arrays and numbers."""

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__")


class TensorDataset(Dataset):
    """Sample i is (arrays[0][i], arrays[1][i], ...).  arrays (N, ...) each; ValueError if their lengths differ."""

    def __init__(self, *arrays: ArrayLike) -> None:
        self.arrays = tuple(np.asarray(array) for array in arrays)
        if not arrays or any(array.ndim == 0 for array in self.arrays):
            raise ValueError("TensorDataset needs arrays whose first axis counts the samples")
        if len({len(array) for array in self.arrays}) > 1:
            raise ValueError(f"arrays differ in length: {[len(array) for array in self.arrays]}")

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> Sample:
        return tuple(array[index] for array in self.arrays)


class Subset(Dataset):
    """The samples of `dataset` at `indices` (K,), in that order; IndexError if one is out of range."""

    def __init__(self, dataset: Dataset, indices: ArrayLike) -> None:
        self.dataset = dataset
        self.indices = np.asarray(indices)
        if self.indices.size == 0:
            self.indices = np.zeros(0, np.int64)
        if self.indices.ndim != 1 or self.indices.dtype.kind not in "iu":
            raise ValueError("indices must be a list of whole numbers; np.flatnonzero(mask) makes one of a mask")
        wrong = (self.indices < 0) | (self.indices >= len(dataset))
        if wrong.any():
            raise IndexError(f"index {self.indices[wrong][0]} is outside a dataset of {len(dataset)} samples")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[int(self.indices[index])]


def random_split(dataset: Dataset, lengths: Sequence[float], rng: np.random.Generator) -> list[Subset]:
    """Deal the samples at random into parts of the given lengths, or of the given fractions if these sum to 1.

    Fractions are rounded down and the samples left over go one each to the first parts, as in torch.
    Raises ValueError unless the lengths sum to len(dataset) or the fractions to 1.
    """
    n = len(dataset)
    if min(lengths, default=-1) < 0:
        raise ValueError(f"lengths must be numbers >= 0, got {list(lengths)}")
    if all(isinstance(length, int | np.integer) for length in lengths) and sum(lengths) == n:
        counts = [int(length) for length in lengths]
    elif abs(sum(lengths) - 1) < 1e-6:
        counts = [int(n * fraction) for fraction in lengths]
        for i in range(n - sum(counts)):
            counts[i % len(counts)] += 1
    else:
        raise ValueError(f"lengths must sum to {n}, or as fractions to 1: got {list(lengths)}")
    order = rng.permutation(n)
    return [Subset(dataset, part) for part in np.split(order, np.cumsum(counts)[:-1])]


class DataLoader:
    """Batches of `dataset`: iterate over it once for each epoch; len() counts the batches.

    A batch is a tuple of arrays (batch_size, ...), the fields of its samples stacked; Python floats become float32.
    The last batch is smaller if batch_size does not divide the dataset, or left out with `drop_last`.
    `transform(sample, rng)` -> sample is applied to each sample, to augment it, say; `rng` is its own generator.
    `rng` gives the seed of shuffling and transforms, drawn once, here; default `minidl.default_rng()`.
    With `num_workers` > 0 that many threads prepare at most two batches each ahead of the consumer. The batches are the
    same for any number, so `dataset[i]` must allow calls from several threads. Threads help where loading waits for
    disks or runs in NumPy; they are not forked, so they never hang after OpenMP.
    With `to="cupy"`, or another backend's name, the batches are that backend's arrays; with num_workers > 0 they are
    copied to a GPU through page-locked memory while it computes.

    Raises ValueError for an empty dataset, samples of unequal shape in a batch, and wrong numbers. An error in the
    dataset or the transform reaches the consumer with a note that names the sample.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        rng: np.random.Generator | None = None,
        drop_last: bool = False,
        transform: Callable[[Any, np.random.Generator], Sample] | None = None,
        num_workers: int = 0,
        to: str = "",
    ) -> None:
        whole = all(isinstance(number, int | np.integer) for number in (batch_size, num_workers))
        if not whole or batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"need whole numbers batch_size >= 1 and num_workers >= 0, got {batch_size!r} and {num_workers!r}"
            )
        if not isinstance(rng, np.random.Generator | None):
            raise TypeError(f"rng must be a numpy Generator such as np.random.default_rng(0), not {rng!r}")
        if len(dataset) == 0:
            raise ValueError("the dataset is empty: there is nothing to load")
        if drop_last and len(dataset) < batch_size:
            raise ValueError(f"drop_last leaves no batch: {len(dataset)} samples, batch_size {batch_size}")
        if to:
            upload((), to)  # an unknown backend, or one that cannot run here, is an error now
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle
        self.drop_last, self.transform, self.num_workers, self.to = drop_last, transform, num_workers, to
        self.epoch = 0  # of the next iteration
        self.seed = 0
        if shuffle or transform is not None:
            self.seed = int((default_rng() if rng is None else rng).integers(2**63))

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        n = len(self.dataset)
        order = self._rng(epoch).permutation(n) if self.shuffle else np.arange(n)
        batches = [order[i * self.batch_size : (i + 1) * self.batch_size].tolist() for i in range(len(self))]
        if self.num_workers == 0:
            return (self._load(epoch, indices) for indices in batches)
        return self._in_threads(epoch, batches)

    def _in_threads(self, epoch: int, batches: list[list[int]]) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="minidl-loader")
        pending: deque[Future[Batch]] = deque()
        try:
            for indices in batches:
                pending.append(pool.submit(self._load, epoch, indices))
                if len(pending) == 2 * self.num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # also when the consumer breaks out of its loop, or a batch failed
            pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, epoch: int, indices: list[int]) -> Batch:
        batch = _stack([self._sample(epoch, index) for index in indices], indices)
        return upload(batch, self.to) if self.to else batch

    def _sample(self, epoch: int, index: int) -> Sample:
        try:
            sample = self.dataset[index]
            if self.transform is not None:
                sample = self.transform(sample, self._rng(epoch, index))
        except Exception as error:
            error.add_note(f"while loading sample {index}")
            raise
        if not isinstance(sample, tuple):
            raise TypeError(f"sample {index} is a {type(sample).__name__}: it must be a tuple, such as (x,) or (x, y)")
        return sample

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def state_dict(self) -> dict[str, int]:
        """All that the coming epochs depend on, apart from the dataset: the seed and the number of the next epoch."""
        return {"seed": self.seed, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where the loader that gave `state` was."""
        self.seed, self.epoch = int(state["seed"]), int(state["epoch"])


def _stack(samples: list[Sample], indices: list[int]) -> Batch:
    """Samples (tuples of K fields) -> tuple of K arrays (len(samples), ...); ValueError if they do not fit together."""
    for index, sample in zip(indices, samples, strict=True):
        if len(sample) != len(samples[0]):
            raise ValueError(f"sample {indices[0]} has {len(samples[0])} fields, sample {index} has {len(sample)}")
    batch = []
    for field, values in enumerate(zip(*samples, strict=True)):
        arrays = [np.float32(value) if type(value) is float else np.asarray(value) for value in values]
        for index, array in zip(indices, arrays, strict=True):
            if array.shape != arrays[0].shape:
                raise ValueError(
                    f"field {field} of sample {indices[0]} has shape {arrays[0].shape}, of sample {index} {array.shape}"
                    ": bring the samples of a batch to one shape in the dataset or the transform"
                )
        batch.append(np.stack(arrays))
    return tuple(batch)
