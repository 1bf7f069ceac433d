"""Checkpoints come back bit for bit, other programs' files load by name, and broken files are refused in one line."""

import importlib.util
import os
import stat
import tempfile

import numpy as np
import pytest

import minidl
from minidl import checkpoint, nn, optim


def make(seed=0, width=3):
    rng = np.random.default_rng(seed)
    return nn.Sequential(nn.Linear(2, width, rng=rng), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 1, rng=rng))


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def trained(model, steps=3):
    """An optimiser and a schedule with some history."""
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for k in range(steps):
        for p in model.parameters():
            p.grad = np.full(p.shape, k + 1, p.data.dtype)
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler


def test_everything_comes_back(tmp_path):
    model = make()
    optimizer, scheduler = trained(model)
    rngs = {"a": np.random.default_rng(3), "b": np.random.Generator(np.random.MT19937(4))}
    checkpoint.save(
        tmp_path / "run.safetensors",
        model,
        optimizer=optimizer,
        scheduler=scheduler,
        epoch=3,
        rngs=rngs,
        meta={"classes": ["no bar", "bar"], "scale": np.float64(0.5), "μ": None},
        extra={"best": [{"w": np.arange(3)}], "wait": 2},
    )
    other, new_rngs = make(1), {"a": np.random.default_rng(), "b": np.random.Generator(np.random.MT19937())}
    new_optimizer, new_scheduler = trained(other, 1)
    found = checkpoint.load(tmp_path / "run.safetensors")
    assert found.arrays.keys() == model.state_dict().keys()
    found.restore(other, optimizer=new_optimizer, scheduler=new_scheduler, rngs=new_rngs)
    assert same(other.state_dict(), model.state_dict())
    assert str(new_optimizer.state_dict()) == str(optimizer.state_dict())
    assert new_scheduler.get_last_lr() == scheduler.get_last_lr() and new_scheduler.last_epoch == 3
    for name, rng in rngs.items():
        assert np.array_equal(rng.random(100), new_rngs[name].random(100))
    assert found.meta == {"classes": ["no bar", "bar"], "scale": 0.5, "μ": None} and found.epoch == 3
    assert np.array_equal(found.extra["best"][0]["w"], np.arange(3)) and found.extra["wait"] == 2


def test_layouts_and_scalars_survive(tmp_path):
    arrays = {"f": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "s": np.array(2.0), "n": np.zeros((0, 3), np.int64)}
    arrays["t"], arrays["big"] = np.arange(10, dtype=np.float32)[::3], np.arange(3, dtype=">f4")
    checkpoint.save(tmp_path / "x", arrays)
    found = checkpoint.load(tmp_path / "x").arrays
    assert all(found[k].shape == v.shape and np.array_equal(found[k], v) for k, v in arrays.items())
    assert os.stat(tmp_path / "x").st_mode & 0o777 == 0o666 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_of_another_program_loads_by_name(tmp_path):
    from safetensors.numpy import save_file

    model = make()
    save_file(make(1).state_dict(), tmp_path / "plain.safetensors", {"format": "pt"})
    assert checkpoint.load_model(tmp_path / "plain.safetensors", model).meta == {}
    assert same(model.state_dict(), make(1).state_dict())


@pytest.fixture
def torch():
    if importlib.util.find_spec("torch") is None:
        if "torch" in os.environ.get("MINIDL_REQUIRE", ""):
            pytest.fail("torch is required here (MINIDL_REQUIRE) and is not installed")
        pytest.skip("torch is not installed")
    import torch

    return torch


def test_weights_travel_to_torch_and_back(torch, tmp_path):
    from safetensors.torch import load_file, save_file

    theirs = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Tanh(), torch.nn.Linear(3, 1)
    ).eval()
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    mine = make().eval()
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    checkpoint.load_model(tmp_path / "theirs.safetensors", mine)
    with minidl.no_grad(), torch.no_grad():
        assert np.max(np.abs(mine(minidl.Tensor(x)).numpy() - theirs(torch.tensor(x)).numpy())) < 1e-6
        checkpoint.save(tmp_path / "mine.safetensors", make(5), meta={"a": 1})
        theirs.load_state_dict(load_file(tmp_path / "mine.safetensors"))
        mine = make(5).eval()
        assert np.max(np.abs(mine(minidl.Tensor(x)).numpy() - theirs(torch.tensor(x)).numpy())) < 1e-6


def test_broken_files_are_refused_and_leave_the_model_alone(tmp_path):
    whole = tmp_path / "whole"
    checkpoint.save(whole, make(1))
    content = whole.read_bytes()
    model = make()
    before = model.state_dict()
    for name, broken in {
        "truncated": content[:-1],
        "cut in the header": content[:30],
        "empty": b"",
        "text": b"these are no weights at all",
        "zeros": bytes(1000),
        "no json": content.replace(b'"minidl":"{', b'"minidl":"!', 1),
    }.items():
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ValueError, match=f"{name} is truncated or no safetensors file") as caught:
            checkpoint.load_model(tmp_path / name, model)
        assert "\n" not in str(caught.value)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such checkpoint"):
            checkpoint.load_model(missing, model)
    assert same(model.state_dict(), before)


def test_another_models_checkpoint_is_named(tmp_path):
    checkpoint.save(tmp_path / "wide", make(width=4), meta={})
    model, before = make(), make().state_dict()
    with pytest.raises(ValueError, match=r"wide: .*Sequential: .*0.weight has shape \(4, 2\), expected \(3, 2\)"):
        checkpoint.load_model(tmp_path / "wide", model)
    checkpoint.save(tmp_path / "linear", nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"linear: .*missing 0.weight.*"):
        checkpoint.load_model(tmp_path / "linear", model)
    optimizer, scheduler = trained(make())
    checkpoint.save(tmp_path / "weights", make(1))
    checkpoint.save(tmp_path / "adam", make(1), optimizer=optimizer, scheduler=scheduler)
    plateau = optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    for name, given, words in [
        ("weights", {"optimizer": optimizer}, "no state of the optimiser"),
        ("weights", {"scheduler": scheduler}, "no state of the scheduler"),
        ("weights", {"rngs": {"x": np.random.default_rng()}}, "no state of the random generator 'x'"),
        ("adam", {"optimizer": optim.SGD(model.parameters(), momentum=0.9)}, "no SGD"),
        ("adam", {"optimizer": optim.Adam([model[0].weight])}, "other parameter groups"),
        ("adam", {"scheduler": plateau}, "not of a ReduceLROnPlateau"),
    ]:
        with pytest.raises(ValueError, match=f"{name}: .*{words}"):
            checkpoint.load(tmp_path / name).restore(model, **given)
    assert same(model.state_dict(), before)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    checkpoint.save(path, make())
    content = path.read_bytes()
    with pytest.raises(TypeError, match="JSON"):
        checkpoint.save(path, make(1), meta={"x": object()})
    with pytest.raises(RuntimeError, match="half"), checkpoint.atomic_write(path) as part:
        part.write_text("half")
        raise RuntimeError("half")
    with pytest.raises(OSError, match="cannot write here"):
        checkpoint.save(path / "below", make())

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(PermissionError, match=r"cannot write here \(Permission denied\).*file"):
        checkpoint.save(path, make(1))
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_write_permission(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError, match="cannot write here"):
        checkpoint.save(tmp_path / "file", make())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"meta": {"classes": {0: "O"}}}, "key 0"), ({"extra": {"names": np.array(["a"])}}, "extra/names is an array of")],
)
def test_what_would_come_back_changed_is_not_saved(tmp_path, options, words):
    with pytest.raises(TypeError, match=words):
        checkpoint.save(tmp_path / "a.safetensors", {"w": np.ones(2)}, **options)
    assert not list(tmp_path.iterdir())


def test_a_foreign_header_is_named_and_changes_nothing(tmp_path):
    from safetensors.numpy import save_file

    path, model = tmp_path / "a.safetensors", nn.Linear(2, 1)
    save_file({"w": np.ones(2)}, path, {"minidl": "[]"})
    with pytest.raises(ValueError, match="no JSON object"):
        checkpoint.load(path)
    before = model.state_dict()
    save_file({name: a + 1 for name, a in before.items()}, path, {"minidl": '{"optimizer": {"a": 1}}'})
    with pytest.raises(ValueError, match="lacks param_groups"):
        checkpoint.load(path).restore(model, optimizer=optim.Adam(model.parameters()))
    assert all(np.array_equal(a, before[name]) for name, a in model.state_dict().items())
