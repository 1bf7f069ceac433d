"""Loaders: every sample once, the same batches for any number of threads, and errors that say where."""

import threading
import time

import numpy as np
import pytest

from minidl.data import DataLoader, Dataset, Subset, TensorDataset, random_split
from minidl.init import manual_seed


@pytest.fixture
def numbers():
    return TensorDataset(np.arange(10, dtype=np.float32)[:, None] * [1, 10], np.arange(10))


def augment(sample, rng):
    x, y = sample
    return x + rng.normal(size=x.shape).astype(np.float32), y


def same(a, b):
    return len(a) == len(b) and all(
        len(p) == len(q) and all(np.array_equal(u, v) for u, v in zip(p, q, strict=True))
        for p, q in zip(a, b, strict=True)
    )


def test_batches_in_order_with_and_without_the_last(numbers):
    batches = list(DataLoader(numbers, 4))
    assert [len(y) for _, y in batches] == [4, 4, 2]
    assert len(DataLoader(numbers, 4)) == 3
    assert [len(y) for _, y in DataLoader(numbers, 4, drop_last=True)] == [4, 4]
    assert np.array_equal(np.concatenate([y for _, y in batches]), np.arange(10))
    assert batches[0][0].shape == (4, 2) and batches[0][0].dtype == np.float64 and batches[0][1].dtype == np.int64


def test_shuffle_visits_every_sample_once_in_another_order_each_epoch(numbers):
    loader = DataLoader(numbers, 3, shuffle=True, rng=np.random.default_rng(0))
    first, second = (np.concatenate([y for _, y in loader]) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second) != list(range(10))
    again = DataLoader(numbers, 3, shuffle=True, rng=np.random.default_rng(0))
    assert np.array_equal(first, np.concatenate([y for _, y in again]))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_same_batches_for_any_number_of_workers(numbers, workers):
    def epochs(n):
        loader = DataLoader(numbers, 3, shuffle=True, rng=np.random.default_rng(1), transform=augment, num_workers=n)
        return [batch for _ in range(3) for batch in loader]

    assert same(epochs(0), epochs(workers))


def test_transform_differs_from_sample_to_sample_and_epoch_to_epoch():
    zeros = TensorDataset(np.zeros((50, 1), np.float32), np.arange(50))
    loader = DataLoader(zeros, 50, rng=np.random.default_rng(0), transform=augment)
    noise = np.concatenate([x.ravel() for _ in range(3) for x, _ in loader])
    assert len(set(noise.tolist())) == 150


def test_state_continues_with_the_same_epochs(numbers):
    def make(seed):
        return DataLoader(numbers, 3, shuffle=True, rng=np.random.default_rng(seed), transform=augment)

    loader, other = make(0), make(1)
    list(loader), list(loader)
    other.load_state_dict(loader.state_dict())
    assert same(list(loader), list(other))


def test_default_generator_gives_the_seed(numbers):
    def batches():
        manual_seed(3)
        return list(DataLoader(numbers, 3, shuffle=True))

    assert same(batches(), batches())


def test_python_numbers_are_stacked_as_float32_and_int64():
    class Pairs(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return 0.5 * index, index, np.float64(index)

    batch = next(iter(DataLoader(Pairs(), 2)))
    assert [field.dtype for field in batch] == [np.float32, np.int64, np.float64]


class Slow(Dataset):
    """Counts the samples begun; sample 7 is broken."""

    def __init__(self):
        self.begun = 0

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        self.begun += 1
        time.sleep(0.001)
        if index == 7:
            raise OSError("no such file: seven.png")
        return (np.zeros(index // 10),)


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("minidl-loader")]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_its_sample(workers):
    with pytest.raises(OSError, match="seven") as caught:
        list(DataLoader(Slow(), 2, num_workers=workers))
    assert caught.value.__notes__ == ["while loading sample 7"]
    assert not loader_threads()


def test_breaking_out_stops_the_threads_and_what_they_prefetched_is_bounded():
    dataset = Slow()
    for _ in DataLoader(dataset, 2, num_workers=2):
        time.sleep(0.05)
        break
    assert not loader_threads()
    assert dataset.begun <= 2 * (4 + 1)


def test_random_split_deals_every_sample_once(numbers):
    for lengths, expected in [((7, 3), [7, 3]), ((0.5, 0.25, 0.25), [6, 2, 2]), ((1.0,), [10]), ((10, 0), [10, 0])]:
        parts = random_split(numbers, lengths, np.random.default_rng(0))
        assert [len(part) for part in parts] == expected
        assert sorted(int(part[i][1]) for part in parts for i in range(len(part))) == list(range(10))
    assert [int(s[1]) for s in random_split(numbers, (5, 5), np.random.default_rng(0))[0]] != [0, 1, 2, 3, 4]


def test_unequal_samples_are_named():
    class Ragged(Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            return (np.zeros(index // 10),)

    with pytest.raises(ValueError, match=r"field 0 of sample 7 has shape \(0,\), of sample 10 \(1,\)"):
        list(DataLoader(Ragged(), 7))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda d: DataLoader(d, 0), ValueError, "batch_size >= 1"),
        (lambda d: DataLoader(d, num_workers=-1), ValueError, "num_workers >= 0"),
        (lambda d: DataLoader(d, 2.5), ValueError, "whole numbers"),
        (lambda d: DataLoader(d, 2, True, rng=0), TypeError, "numpy Generator"),
        (lambda d: DataLoader(Subset(d, [])), ValueError, "empty"),
        (lambda d: DataLoader(d, 11, drop_last=True), ValueError, "no batch"),
        (lambda d: list(DataLoader(d, transform=lambda s, rng: s[0])), TypeError, "sample 0 is a ndarray"),
        (lambda d: list(DataLoader(d, 2, transform=lambda s, rng: s[: 1 + s[1]])), ValueError, "has 1 fields"),
        (lambda d: TensorDataset(np.zeros(3), np.zeros(4)), ValueError, r"\[3, 4\]"),
        (lambda d: TensorDataset(), ValueError, "first axis"),
        (lambda d: TensorDataset(1.0), ValueError, "first axis"),
        (lambda d: Subset(d, [3, 10]), IndexError, "index 10 is outside a dataset of 10"),
        (lambda d: Subset(d, np.ones(10, bool)), ValueError, "flatnonzero"),
        (lambda d: random_split(d, (5, 4), np.random.default_rng(0)), ValueError, "sum to 10"),
        (lambda d: random_split(d, (0.5, 0.4), np.random.default_rng(0)), ValueError, "to 1"),
        (lambda d: random_split(d, (11, -1), np.random.default_rng(0)), ValueError, ">= 0"),
        (lambda d: random_split(d, (), np.random.default_rng(0)), ValueError, ">= 0"),
        (lambda d: len(Dataset()), NotImplementedError, "must define __len__"),
    ],
)
def test_bad_arguments_are_named(numbers, call, error, words):
    with pytest.raises(error, match=words):
        call(numbers)
