"""The loop: it learns, stops when told, keeps the best, and a killed run ends with the bits of an undisturbed one."""

import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import minidl
from minidl import Tensor, checkpoint, metrics, nn, optim, train
from minidl import functional as F
from minidl.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[1]


def loss_fn(model, batch):
    return F.cross_entropy(model(Tensor(batch[0])), batch[1])


def accuracy(model, batch):
    return metrics.accuracy(batch[1], model(Tensor(batch[0])).numpy().argmax(1))


def rings(n=96, seed=0):
    """Simulated: two rings around the origin, the inner one class 0."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    angle, radius = rng.uniform(0, 2 * np.pi, n), 1 + labels + rng.normal(0, 0.1, n)
    return TensorDataset((radius * [np.cos(angle), np.sin(angle)]).T.astype(np.float32), labels)


class Task:
    """A model with dropout and batch norm, an optimiser and loaders, all from one seed."""

    def __init__(self, lr=0.02, seed=0):
        minidl.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2),
            nn.Dropout(0.1, rng=np.random.default_rng(seed)), nn.Linear(16, 2),
        )  # fmt: skip
        self.optimizer = optim.Adam(self.model.parameters(), lr=lr)
        jitter = np.random.default_rng(seed + 1)
        self.train_loader = DataLoader(
            rings(), 16, True, rng=jitter, transform=lambda s, rng: (s[0] + rng.normal(0, 0.01, 2).astype("f"), s[1])
        )
        self.val_loader = DataLoader(rings(seed=1), 40)

    def fit(self, epochs=5, val=True, progress=False, **options):
        loaders = (self.train_loader, self.val_loader) if val else (self.train_loader,)
        return train.fit(self.model, loss_fn, self.optimizer, *loaders, epochs=epochs, progress=progress, **options)

    def bits(self):
        return {name: array.tobytes() for name, array in self.model.state_dict().items()}


def rows(history):
    """All columns that do not depend on the clock."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history.epochs]


def test_it_learns_and_tells(capsys):
    task = Task()
    history = task.fit(15, metrics={"accuracy": accuracy}, clip_norm=1.0, progress=True)
    assert history["val_accuracy"][-1] > 0.95 and history["loss"][-1] < 0.8 * history["loss"][0]
    assert list(history.epochs[0]) == ["epoch", "lr", "loss", "val_loss", "val_accuracy", "seconds"]
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "val_accuracy" in line]
    assert out == "" and len(lines) == 15 and "epoch  15/15" in lines[-1]
    assert sum(line.endswith("best") for line in lines) >= 1
    assert not any(module.training for module in task.model.modules())


def test_progress_can_be_silenced(capsys):
    Task().fit(1)
    assert capsys.readouterr() == ("", "")


def test_the_best_weights_are_kept():
    task = Task(lr=0.5)
    history = task.fit(8)
    best = min(history["val_loss"])
    assert history["val_loss"].index(best) + 1 == history.best_epoch < 8
    assert train.evaluate(task.model, loss_fn, task.val_loader)["loss"] == best
    task = Task(lr=0.5)
    history = task.fit(8, keep_best=False)
    assert train.evaluate(task.model, loss_fn, task.val_loader)["loss"] == history["val_loss"][-1] > best


def test_training_stops_after_patience_or_when_told():
    history = Task(lr=0.5).fit(50, patience=3)
    assert len(history.epochs) == history.best_epoch + 3 < 50
    assert len(Task().fit(50, stop=lambda h: h["loss"][-1] < 0.6).epochs) < 50
    history = Task(lr=0.5).fit(50, patience=3, monitor="val_accuracy", mode="max", metrics={"accuracy": accuracy})
    assert history["val_accuracy"][history.best_epoch - 1] == max(history["val_accuracy"])


def test_schedules_step_each_epoch():
    task = Task(lr=0.1)
    assert np.allclose(
        task.fit(3, scheduler=optim.lr_scheduler.ExponentialLR(task.optimizer, 0.5))["lr"], [0.1, 0.05, 0.025]
    )
    task = Task(lr=0.5)
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(task.optimizer, patience=0, factor=0.5, threshold=0)
    history = task.fit(8, scheduler=scheduler)
    for k in range(7):
        better = history["val_loss"][k] < min(history["val_loss"][:k], default=math.inf)
        assert history["lr"][k + 1] == history["lr"][k] * (1 if better else 0.5)


def test_training_without_validation():
    task = Task()
    history = task.fit(3, val=False)
    assert list(history.epochs[0]) == ["epoch", "lr", "loss", "seconds"] and history.best_epoch is None
    assert Task().fit(3, val=False, monitor="loss").best_epoch is not None


def test_means_are_over_samples_and_modes_are_kept():
    task = Task()
    task.model.train()
    task.model[1].eval()
    found = train.evaluate(task.model, loss_fn, task.val_loader, {"accuracy": accuracy})  # batches of 40, 40 and 16
    assert [m.training for m in task.model] == [True, False, True, True, True, True]
    whole = train.evaluate(task.model, loss_fn, DataLoader(task.val_loader.dataset, 96), {"accuracy": accuracy})
    assert all(abs(found[name] - whole[name]) < 1e-6 for name in whole)
    x = task.val_loader.dataset.arrays[0]
    scores = train.predict(task.model, x, batch_size=50)
    assert scores.shape == (96, 2) and np.array_equal(scores, train.predict(task.model, DataLoader(rings(seed=1), 50)))
    assert np.mean(scores.argmax(1) == task.val_loader.dataset.arrays[1]) == pytest.approx(whole["accuracy"])


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_named(bad):
    task = Task()
    before = task.bits()
    task.train_loader.dataset.arrays[0][:] = bad
    with pytest.raises(FloatingPointError, match=r"epoch 1, batch 1: the loss is nan\. .*learning rate"):
        task.fit()
    assert task.bits()["0.weight"] == before["0.weight"]
    task = Task()
    task.val_loader.dataset.arrays[0][:] = bad
    with pytest.raises(FloatingPointError, match="epoch 1, validation"):
        task.fit()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stopped_after", [1, 4, 7])
def test_resumed_training_ends_with_the_same_bits(tmp_path, stopped_after, workers):
    def run(epochs, path, lr=0.3):
        task = Task(lr=lr)
        task.train_loader.num_workers = workers
        scheduler = optim.lr_scheduler.ReduceLROnPlateau(task.optimizer, patience=1)
        return task, task.fit(epochs, scheduler=scheduler, patience=4, checkpoint=path, resume=True)

    whole, history = run(8, tmp_path / "whole")
    run(stopped_after, tmp_path / "parts")
    resumed, again = run(8, tmp_path / "parts", lr=0.1)  # the learning rate comes from the file
    assert resumed.bits() == whole.bits()
    assert rows(again) == rows(history) and again.best_epoch == history.best_epoch
    finished, once_more = run(8, tmp_path / "parts")  # nothing left to do
    assert finished.bits() == whole.bits() and rows(once_more) == rows(history)


def test_the_checkpoint_holds_the_weights_that_fit_would_leave(tmp_path):
    task = Task(lr=0.5)
    task.fit(8, checkpoint=tmp_path / "run", meta={"classes": ["inner", "outer"]})
    other = Task(seed=1)
    found = checkpoint.load_model(tmp_path / "run", other.model)
    assert other.bits() == task.bits()
    assert found.meta == {"classes": ["inner", "outer"]} and found.epoch == 8


SCRIPT = """
import os, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import minidl.checkpoint
from minidl import optim
from test_train import Task

def say(word, replaced):
    def function(*args):
        print(word, flush=True)
        time.sleep(0.03)  # time to be killed here
        return replaced(*args)
    return function

minidl.checkpoint.os.fsync = say("written", os.fsync)
minidl.checkpoint.os.replace = say("renaming", os.replace)
task = Task(lr=0.3)
sample = task.train_loader._sample
task.train_loader._sample = lambda epoch, index: (index == 7 and say("training", int)(), sample(epoch, index))[1]
schedule = optim.lr_scheduler.CosineAnnealingLR(task.optimizer, 8)
history = task.fit(8, scheduler=schedule, checkpoint=sys.argv[1], resume=True)
minidl.checkpoint.save(sys.argv[2], task.model, optimizer=task.optimizer, scheduler=schedule,
                       meta={{"rows": [[row[k] for k in ("lr", "loss", "val_loss")] for row in history.epochs]}})
"""


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests")))

    def start(name):
        arguments = [sys.executable, script, tmp_path / name, tmp_path / f"{name}.end"]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

    whole = start("whole")
    moments = random.Random(0)
    # in the first epoch, with the new file half in place, just before it is renamed, and so on
    for word, times in [("training", 1), ("written", 1), ("renaming", 2), ("training", 2), ("written", 2)]:
        with start("killed") as process:
            for line in process.stdout:
                times -= line.strip() == word
                if times == 0:
                    time.sleep(moments.uniform(0, 0.04))
                    process.kill()
                    break
        assert process.returncode != 0
    with start("killed") as process:
        process.communicate()
    whole.communicate()
    assert (whole.returncode, process.returncode) == (0, 0)
    expected, found = (checkpoint.load(tmp_path / f"{name}.end") for name in ("whole", "killed"))
    whole_arrays, killed_arrays = (load_file(tmp_path / f"{name}.end") for name in ("whole", "killed"))
    assert found.meta == expected.meta and len(found.meta["rows"]) == 8
    assert len(whole_arrays) == 9 + 2 * 6 and whole_arrays.keys() == killed_arrays.keys()  # weights, Adam's state
    assert all(killed_arrays[name].tobytes() == array.tobytes() for name, array in whole_arrays.items())
    assert sorted(os.listdir(tmp_path)) == ["killed", "killed.end", "run.py", "whole", "whole.end"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs >= 1"),
        ({"mode": "best"}, "'best'"),
        ({"patience": 0}, "patience >= 1"),
        ({"monitor": "val_accuracy"}, "cannot monitor 'val_accuracy': the columns are loss, val_loss"),
        ({"val": False, "patience": 3}, "cannot monitor 'val_loss': the columns are loss"),
        ({"val": False, "metrics": {"accuracy": accuracy}}, "measured on val_loader"),
        ({"resume": True}, "need checkpoint"),
        ({"meta": {}}, "need checkpoint"),
    ],
)
def test_options_that_contradict_each_other_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        Task().fit(**options)


def test_what_cannot_be_resumed_is_named(tmp_path):
    path = tmp_path / "file"
    checkpoint.save(path, Task().model)
    with pytest.raises(ValueError, match="file holds weights only"):
        Task().fit(checkpoint=path, resume=True)
    Task().fit(1, checkpoint=path)
    task = Task()
    task.model = nn.Linear(2, 2)
    task.optimizer = optim.Adam(task.model.parameters())
    with pytest.raises(ValueError, match="do not fit Linear"):
        task.fit(checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="nothing to train on"):
        train.fit(task.model, loss_fn, task.optimizer, [], epochs=1, progress=False)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        train.evaluate(task.model, loss_fn, [])
    with pytest.raises(ValueError, match="nothing to predict"):
        train.predict(task.model, np.zeros((0, 2), np.float32))


def test_predict_takes_arrays_and_tensors():
    model, x = nn.Linear(2, 3), np.ones((5, 2), np.float32)
    assert np.array_equal(train.predict(model, Tensor(x)), train.predict(model, x))
