"""Stellar spectra: training parts and labels, what networks see, which lines matter, autoencoders, study, weights."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples.common import InputError, run_command
from examples.stellar_spectra import data, evaluate, lines, network, reproduce, ship, study, unlabelled
from examples.stellar_spectra.__main__ import WEIGHTS, run
from examples.stellar_spectra.network import Settings
from examples.stellar_spectra.preprocess import GRIDS
from minidl import Tensor, models, nn

pytest.importorskip("astropy.io.fits")

GRID = GRIDS["580"]


def command(*words: object) -> int:
    return run_command(run, [str(w) for w in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Simulated spectra under the names of the four libraries; every third star of MILES is one of CFLIB's."""
    path = tmp_path_factory.mktemp("spectra") / "simulated"
    assert command("simulate", "--out", path, "--n", 280, "--seed", 5) == 0
    with open(path / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        library, number = ("cflib_dev", "miles", "stelib", "pyhammer_templates")[i % 4], i
        if library == "miles" and i % 3 == 0:
            number = i - 1
        row |= {"library": library, "star": f"T{i}" if library == "pyhammer_templates" else f"HD {number}"}
    with open(path / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def stars(folder):
    return data.load(folder, how="5550")


# --- what is trained on --------------------------------------------------------------------------------------------


def test_settings_suit_the_network_unless_chosen():
    assert Settings.of("tanh") == Settings()
    assert Settings.of("cnn").hidden == 64 and Settings.of("cnn", hidden=7).hidden == 7


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"network": "lstm"}, "--network lstm: one of tanh"),
        ({"grid": "600"}, "--grid 600"),
        ({"use": "test"}, "--use test"),
        ({"draw": "best"}, "--draw best"),
        ({"corrupt": "x"}, "--corrupt x"),
        ({"labels": -1}, "cannot be negative"),
        ({"members": 0}, "must be positive"),
    ],
)
def test_wrong_settings_are_refused(chosen, message):
    with pytest.raises(InputError, match=message):
        Settings(**chosen)


def test_parts_are_put_together(stars):
    split = network.parts(stars, Settings())
    both = network.parts(stars, Settings(use="validation"))
    whole = network.parts(stars, Settings(use="all"))
    assert set(both["train"]) == set(split["train"]) | set(split["validation"]) and len(both["validation"]) == 0
    assert np.array_equal(both["test"], split["test"]) and len(split["test"]) > 0
    assert sorted(whole["train"]) == sorted(np.concatenate(list(split.values()))) and len(whole["test"]) == 0


@pytest.mark.parametrize("n", [7, 25, 60])
def test_a_thinned_training_part_keeps_the_shares(stars, n):
    index = network.parts(stars, Settings())["train"]
    few = network.thinned(stars, index, n, seed=1)
    assert len(set(few)) == n and set(few) <= set(index)
    assert np.array_equal(few, network.thinned(stars, index, n, seed=1))
    assert set(few) != set(network.thinned(stars, index, n, seed=2))
    have, want = (np.bincount(stars.classes()[i], minlength=7) for i in (few, index))
    assert (have > 0).all() and np.abs(have - want * n / len(index)).max() <= 2.5
    even = network.thinned(stars, index, n, seed=1, draw="even")
    have, want = (np.bincount((stars.codes()[i] // 100).astype(int), minlength=90) for i in (even, index))
    assert len(set(even)) == n and (np.bincount(stars.classes()[even], minlength=7) > 0).all()
    assert have.max() <= 1 + (n > (want > 0).sum())  # a subclass again only after all others
    with pytest.raises(InputError, match="has only"):
        network.parts(stars, Settings(labels=10_000))


def test_an_even_draw_takes_full_types_only(stars):
    types = [t._replace(lum=None) if i % 3 else t for i, t in enumerate(stars.types)]
    unsure = replace(stars, types=types)
    drawn = unsure.take(network.parts(unsure, Settings(labels=30, draw="even"))["train"])
    assert len(drawn) == 30 and (drawn.luminosities() >= 0).all()
    full = unsure.take(network.parts(unsure, Settings())["train"]).luminosities() >= 0
    with pytest.raises(InputError, match=f"has only {full.sum()} "):
        network.parts(unsure, Settings(labels=int(full.sum()) + 1, draw="even"))


def test_the_leading_library_is_shown_three_times(stars):
    shown = network._emphasis(stars, "miles")
    counts = np.bincount(shown, minlength=len(stars))
    assert all(c == (3 if name == "miles" else 1) for c, name in zip(counts, stars.libraries, strict=True))
    with pytest.raises(InputError, match="--lead nobody: no training spectrum"):
        network._emphasis(stars, "nobody")


def test_training_on_all_leaves_nothing_to_test(stars, tmp_path):
    settings = Settings(members=1, epochs=1, use="all", lead="miles")
    _, meta = network.train(stars, tmp_path / "w.safetensors", settings, progress=False)
    assert meta["counts"] == {"train": len(stars), "validation": 0, "test": 0}
    with pytest.raises(InputError, match="nothing to test on"):
        evaluate.unseen(stars, network.load(tmp_path / "w.safetensors")[1])


# --- what the networks see -----------------------------------------------------------------------------------------


def test_the_second_channel_is_flux_over_its_running_mean(stars):
    model = network.build(Settings.of("cnn"), np.random.default_rng(0), stars.flux)
    flux = model.fill(stars.flux[:5])
    expected = np.zeros_like(flux)
    for i in range(580):
        near = flux[:, max(i - 25, 0) : i + 26]
        expected[:, i] = flux[:, i] / (near.mean(1) + 0.001 * 51 / near.shape[1])
    assert np.abs(model._divided(Tensor(flux)).numpy() / expected - 1).max() <= 1e-4
    seen = []

    class Watcher(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x[:, 0, :13]

    network.StarNetwork([Watcher()], stars.flux, lines=True)(Tensor(stars.flux))
    assert seen[0].shape == (len(stars), 2, 580)
    assert np.abs(seen[0].numpy().mean((0, 2))).max() <= 0.05  # both standardised
    assert not network.build(Settings.of("cnn", normalisation="continuum"), np.random.default_rng(0)).lines


@pytest.mark.parametrize("kind", network.NETWORKS)
@pytest.mark.parametrize("grid", ["580", "1900"])
def test_every_network_takes_both_grids(kind, grid):
    model = network.build(Settings.of(kind, members=1, grid=grid), np.random.default_rng(0))
    assert model(Tensor(np.ones((3, GRIDS[grid].bins), np.float32))).shape == (1, 3, 13)


def test_jitter_is_small_and_can_be_off():
    flux = (1 + 0.1 * np.sin(GRID.centres / 50)).astype(np.float32)
    same, label = network.jitter(0.0)((flux, 7), np.random.default_rng(0))
    assert np.array_equal(same, flux) and label == 7
    moved = np.stack([network.jitter(1.0)((flux,), np.random.default_rng(k))[0] for k in range(200)])
    assert 0.01 < (moved / flux).std() < 0.05 and abs((moved / flux).mean() - 1) < 0.01


def test_the_error_floor_holds_two_thirds_of_the_errors():
    rng = np.random.default_rng(0)
    spread = rng.uniform(20, 200, 20_000)
    error = np.hypot(spread, 90) * rng.normal(size=len(spread))
    floor = network.error_floor(error, spread)
    assert abs((np.abs(error) <= np.hypot(spread, floor)).mean() - 0.6827) <= 1e-3
    assert abs(floor - 90) <= 5
    assert network.error_floor(0.1 * spread, spread) == 0


# --- autoencoders --------------------------------------------------------------------------------------------------


def test_corruption_spares_the_target():
    flux = np.ones((1, 580), np.float32)
    rng = np.random.default_rng(0)
    for how in network.CORRUPTIONS:
        spoilt, whole = network.corruption(how)((flux, flux), rng)
        assert whole is flux and (flux == 1).all() and spoilt.dtype == np.float32
        hidden = int((spoilt == 0).sum())
        assert (how == "nothing") == np.array_equal(spoilt, flux)
        assert (20 <= hidden <= 100) == (how == "masks")


@pytest.mark.parametrize("kind", ["autoencoder", "dense-autoencoder"])
def test_an_autoencoder_learns_spectra_and_gives_its_encoder(stars, kind, tmp_path):
    settings = Settings.of(kind, members=1, epochs=1, pretrain=8, corrupt="masks")
    found, about = unlabelled.squeeze(stars, settings, progress=False)
    spread = np.sqrt(((found.flux - found.flux.mean(0)) ** 2).mean())
    assert np.median(found.misfit) < 0.5 * spread and found.code.shape == (about["tested"], 32)
    before, after = found.denoised[5]
    assert after < before
    frozen = Settings.of(kind, members=1, epochs=1, lr=1e-12, weight_decay=0.0)
    encoder = network.autoencoder(kind, np.random.default_rng(1), 580)
    model, _ = network.train(stars, tmp_path / "w.safetensors", frozen, progress=False, autoencoders=[encoder])
    kept = list(model.members[0].state_dict().values())
    for array in encoder.encoder.state_dict().values():
        assert any(array.shape == k.shape and np.abs(array - k).max() <= 1e-9 for k in kept)


def test_neighbours_in_the_code_space():
    code = np.concatenate([np.zeros((10, 3)), np.ones((10, 3))]) + 0.01 * np.arange(20)[:, None]
    cls = np.repeat([0, 1], 10)
    assert unlabelled.neighbours_right(code, cls) == 1
    assert unlabelled.neighbours_right(code, np.tile([0, 1], 10)) < 0.8
    place, share = unlabelled.components(code)
    assert share[0] > 0.9 and abs(share.sum() - 1) <= 1e-9 and place.shape == (20, 3)


# --- which lines matter --------------------------------------------------------------------------------------------


def test_saliency_is_the_derivative(stars):
    rng = np.random.default_rng(0)
    members = [nn.Sequential(nn.Flatten(), models.TanhNetwork(1160, 13, rng=rng)) for _ in range(2)]
    model = network.StarNetwork(members, stars.flux, lines=True)
    flux = model.fill(stars.flux[:3])
    found = lines.saliency(model, flux)
    for i in (40, 300):
        codes = []
        for sign in (-1, 1):
            moved = flux.copy()
            moved[:, i] *= 1 + sign * 0.01
            codes.append(network.apply(model, moved).code)
        assert np.abs((codes[1] - codes[0]) / 200 - found[:, i]).max() <= 0.02 * np.abs(found).max() + 1e-4


def test_hiding_what_the_network_looks_at_moves_the_code(stars):
    """A network that reads one bin in Hβ: only the windows that cover it count, and the table names the line."""

    class Reader(nn.Module):
        def forward(self, x):
            return x[:, 190:194].sum(1, keepdims=True) * np.eye(1, 13, dtype=np.float32)

    model = network.StarNetwork([Reader()], stars.flux)
    found = lines.importance(model, stars, GRID)
    covering = np.abs(found.centres - GRID.centres[191:193].mean()) <= 25
    assert (found.hidden[:, covering] > 0.01).any(1).all()
    assert found.hidden[:, ~covering & (np.abs(found.centres - 4860) > 50)].max() <= 1e-6
    assert (found.saliency[:, [100, 400]] == 0).all() and (found.saliency[:, 191] > 0).all()
    assert all("Balmer" in row[1] for row in lines.tables(found, GRID)[0].rows)
    assert lines.names_at(5880, 5900) == "Na D" and lines.names_at(5600, 5650) == "-"


# --- the whole study, on few simulated stars -----------------------------------------------------------------------


PRETRAINING = {"none": "none", "nothing": "rebuilding"}
CROSSINGS = [("CFLIB", ["cflib_dev"], ["miles"], {}), ("30 of MILES", ["miles"], ["cflib_dev"], {"labels": 30})]


@pytest.fixture(scope="module")
def studied(folder, tmp_path_factory):
    """All parts of the study with one epoch each."""
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "PRESETS", {k: {"epochs": 1, "members": 1, "hidden": 8} for k in network.NETWORKS})
        patch.setattr(study, "LABELS", {10: 1, 40: 1})
        patch.setattr(study, "PRETRAINING", PRETRAINING)
        patch.setattr(study, "CROSSINGS", CROSSINGS)
        patch.setattr(study, "NETWORKS", [("tanh", "5550"), ("cnn", "5550"), ("tanh", "continuum")])
        assert command("study", "--data", folder, "--out", out, "--seeds", 2) == 0
    return out


def test_the_study_tests_no_star_that_it_trained_on(studied, folder, stars):
    with open(studied / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == set(study.PARTS)
    fold = [row for row in rows if row["run"] == "cnn, flux" and row["test"] == "cflib_dev"]
    assert [int(row["n"]) for row in fold] == [stars.libraries.count("cflib_dev")]
    cflib = {s for s, name in zip(stars.stars, stars.libraries, strict=True) if name == "cflib_dev"}
    miles = [s for s, name in zip(stars.stars, stars.libraries, strict=True) if name == "miles"]
    crossed = next(row for row in rows if row["run"] == "CFLIB (tanh, flux)" and row["test"] == "miles")
    assert int(crossed["n"]) == sum(s not in cflib for s in miles) < len(miles)
    _, meta = network.load(studied / "weights" / "cnn-5550-1.safetensors")
    assert len(set(meta["seen"]) & cflib) < len(cflib) and meta["settings"]["use"] == "validation"
    assert {p.name for p in studied.glob("*.png")} == {"noise.png", "labels.png"}


def test_a_study_goes_on_where_it_stopped(studied, folder, capsys, monkeypatch):
    monkeypatch.setattr(study, "LABELS", {10: 1, 40: 1})
    monkeypatch.setattr(study, "PRETRAINING", PRETRAINING)
    monkeypatch.setattr(study, "CROSSINGS", CROSSINGS)
    monkeypatch.setattr(study, "NETWORKS", [("tanh", "5550"), ("cnn", "5550"), ("tanh", "continuum")])
    monkeypatch.setattr(network, "train", None)  # nothing is left to train
    before = (studied / "runs.csv").read_bytes()
    assert command("study", "--data", folder, "--out", studied, "--seeds", 2) == 0
    assert (studied / "runs.csv").read_bytes() == before
    assert "[second-hand]" in capsys.readouterr().out
    assert command("study", "--data", folder, "--out", studied, "--only", "everything") == 2
    assert "--only everything: the parts are folds" in capsys.readouterr().err


def test_noise_has_the_size_that_is_asked_for():
    flux = np.full((2000, 580), 0.25, np.float32)
    noise = study.noisy(10, flux, np.random.default_rng(0)) - flux
    assert abs(noise.std() - 0.05) <= 5e-4 and abs(noise.mean()) <= 5e-4


def test_dust_dims_the_blue_by_the_excess():
    """E(B−V) is by how much more B (4400 Å) is dimmed than V (5495 Å), in magnitudes."""
    flux = study.reddened(0.5, np.ones((1, 580), np.float32), np.random.default_rng(0))[0]
    blue, visual = (flux[np.abs(GRID.centres - wave).argmin()] for wave in (4400, 5495))
    assert abs(-2.5 * np.log10(blue / visual) - 0.5) <= 0.03


def test_the_gain_of_pre_training_is_taken_seed_by_seed():
    def runs(*mae):
        return [{"seed": seed, "mae": value} for seed, value in enumerate(mae)]

    found = {
        ("autoencoder, none, 25", "cflib_dev"): runs(2.0, 3.0, 9.0),
        ("autoencoder, noise, 25", "cflib_dev"): runs(1.5, 3.5),
    }
    assert study.gains(found, "autoencoder", "noise", 25).tolist() == [0.5, -0.5]


def test_shipping_writes_weights_and_a_card_that_belongs_to_them(studied, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "PRESETS", {k: {"epochs": 1, "members": 1, "hidden": 8} for k in network.NETWORKS})
    monkeypatch.setattr(ship, "GAPS", {"to 4480 Å": GRID.centres < 4480})
    out = tmp_path / "w.safetensors"
    assert command("ship", "--data", folder, "--study", studied, "--out", out) == 0
    model, meta = network.load(out)
    assert meta["counts"]["train"] == 280 and meta["settings"]["lead"] == "cflib_dev" and float(model.floor[0]) > 0
    card = (tmp_path / ship.CARD).read_text(encoding="utf-8")
    assert hashlib.sha256(out.read_bytes()).hexdigest() in card and "Who should not use it" in card
    assert "| to 4480 Å | 0.80 |" in card
    assert (
        command("lines", "--data", folder, "--weights", out, "--out", tmp_path / "lines", "--libraries", "stelib") == 0
    )
    assert {p.name for p in (tmp_path / "lines").iterdir()} == {
        f"{n}.{e}" for n in ("saliency", "occlusion") for e in ("csv", "png")
    }
    words = ["autoencoder", "--data", folder, "--pretrain", 1, "--libraries", "stelib", "--out", tmp_path / "ae"]
    assert command(*words) == 0
    assert len(list((tmp_path / "ae").glob("*.png"))) == 4


def test_the_report_shows_both_networks(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "PRESETS", {k: {"epochs": 1, "members": 1, "hidden": 8} for k in network.NETWORKS})
    monkeypatch.setattr(reproduce, "_data", lambda seed: (folder, True))
    drawn = []
    monkeypatch.setattr(evaluate, "write", lambda r, m, out, overwrite: drawn.append(out) or [(out, "a"), (out, "b")])
    section = reproduce.reproduce(tmp_path, seed=1)
    titles = [table.title for table in section.tables]
    assert sum("twenty tanh" in t for t in titles) == 5 and sum("convnet" in t for t in titles) == 1
    assert drawn == [tmp_path / "tanh", tmp_path / "cnn"] and len(section.figures) == 3
    assert [network.load(tmp_path / f"{kind}.safetensors")[1]["settings"]["seed"] for kind in ("tanh", "cnn")] == [1, 1]


# --- the weights that are shipped ----------------------------------------------------------------------------------


def test_the_shipped_weights_fit_their_card():
    assert WEIGHTS.stat().st_size < 3_000_000
    model, meta = network.load(WEIGHTS)
    card = (Path(WEIGHTS).parent / ship.CARD).read_text(encoding="utf-8")
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in card
    assert meta["data"] == "real" and 100 < float(model.floor[0]) < 250


@pytest.mark.data
def test_the_shipped_weights_know_the_real_stars(real_data):
    """Stars that they were trained on: this finds weights that do not belong to the code, it is no test of skill."""
    model, _ = network.load(WEIGHTS)
    stars = data.load(real_data("spectra"), how="5550", libraries=["cflib_dev"])
    found = evaluate.errors(network.apply(model, stars.flux), stars)
    assert found["class_accuracy"] > 0.95 and found["sigma"] < 115 and found["luminosity_accuracy"] > 0.85
