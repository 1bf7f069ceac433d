"""The evaluation of the bar task: bars measured and hidden, saliency, calibration, errors, several networks."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

from examples.common import run_command
from examples.galaxy_bars import data, evaluate, figures, network, occlusion, saliency, simulate
from examples.galaxy_bars.__main__ import WEIGHTS, main
from examples.galaxy_bars.data import Galaxies
from minidl import Tensor, explain, nn

ROWS, COLUMNS = np.indices((64, 64)) - 31.5


def painted(length: float = 14, width: float = 5, degrees: float = 30, bar: float = 120) -> np.ndarray:
    """A round disc with a bar of one brightness on it (64, 64, 3)."""
    a = np.radians(degrees)
    along, across = COLUMNS * np.cos(a) + ROWS * np.sin(a), -COLUMNS * np.sin(a) + ROWS * np.cos(a)
    grey = 100 * np.exp(-np.hypot(ROWS, COLUMNS) / 12)
    grey += bar * ((along / length) ** 2 + (across / width) ** 2 <= 1)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


# Bars measured and hidden


def test_painted_bar_is_measured() -> None:
    for degrees in (0, 30, 75, 120):
        bar = occlusion.measure_bar(painted(degrees=degrees))
        assert np.hypot(bar.x - 31.5, bar.y - 31.5) < 0.5
        assert abs(np.sin(bar.angle - np.radians(degrees))) < np.sin(np.radians(3))
        assert abs(bar.length - 14) < 2 and abs(bar.width - 5) < 2
    larger = np.repeat(np.repeat(painted(), 2, 0), 2, 1)
    assert abs(occlusion.measure_bar(larger).length - 28) < 4


def test_simulated_bars_are_measured() -> None:
    images, truth = simulate.pictures(120, seed=4)
    angle, tilt = np.radians(truth.bar_angle), np.cos(np.radians(truth.inclination))
    length = truth.bar_length * np.hypot(np.cos(angle), np.sin(angle) * tilt) / 0.3
    position = np.radians(truth.position_angle) + np.arctan2(np.sin(angle) * tilt, np.cos(angle))
    bars = [occlusion.measure_bar(image) for image in images]
    turned = np.abs(np.sin([bar.angle for bar in bars] - position))[truth.barred]
    ratio = (np.array([bar.length for bar in bars]) / length)[truth.barred]
    assert np.median(turned) < np.sin(np.radians(5)) and np.mean(turned < np.sin(np.radians(15))) > 0.85
    assert 0.8 < np.median(ratio) < 1.1 and np.mean((ratio > 0.6) & (ratio < 1.5)) > 0.85


def test_pictures_without_an_isophote_have_a_bar_all_the_same() -> None:
    rng = np.random.default_rng(0)
    for image in (np.zeros((64, 64, 3), np.uint8), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), painted(60, 50)):
        bar = occlusion.measure_bar(image)
        assert 0 < bar.width <= bar.length < 64
        for part in occlusion.COVERS:
            assert occlusion.cover(image, bar.x, bar.y, part * bar.length).shape == image.shape


def test_cover_is_harmonic() -> None:
    ramp = np.clip(128 + 1.5 * COLUMNS - 1.0 * ROWS, 0, 255)[..., None].repeat(3, 2).astype(np.uint8)
    for x, y, radius in ((31.5, 31.5, 12.0), (20.0, 40.0, 7.0)):
        hidden = occlusion.cover(ramp, x, y, radius)
        inside = explain.distances((64, 64), x, y) <= radius
        assert np.array_equal(hidden[~inside], ramp[~inside])
        assert np.abs(hidden[inside].astype(int) - ramp[inside]).max() < 4  # a plane is its own harmonic function
    image = painted()
    hidden = occlusion.cover(image, 31.5, 31.5, 16)
    ring = (explain.distances((64, 64), 31.5, 31.5) > 16) & (explain.distances((64, 64), 31.5, 31.5) < 18)
    inside = explain.distances((64, 64), 31.5, 31.5) <= 16
    assert hidden[inside].max() <= image[ring].max() < image[inside].max()  # the bar is gone; extremes lie on the rim
    assert np.ptp(occlusion.cover(image, 31.5, 31.5, 99)) <= np.ptp(image)


def test_disc_beside_misses_the_bar() -> None:
    for x, degrees in ((31.5, 0), (25.0, 40), (40.0, 110)):
        bar = occlusion.Bar(x, 31.5, 12.0, 4.0, np.radians(degrees))
        for radius in (3.0, 12.0):
            cx, cy, whole = occlusion.beside(bar, radius, 64)
            along = (cx - bar.x) * np.cos(bar.angle) + (cy - bar.y) * np.sin(bar.angle)
            away = -(cx - bar.x) * np.sin(bar.angle) + (cy - bar.y) * np.cos(bar.angle)
            assert abs(along) < 1e-9 and abs(abs(away) - radius - 4) < 1e-9
            rows, columns = np.mgrid[-64:128, -64:128]
            pixels = (np.hypot(columns - cx, rows - cy) <= radius).sum()
            kept = (explain.distances((64, 64), cx, cy) <= radius).sum()
            assert kept == pixels if whole else kept <= pixels
    low = occlusion.Bar(31.5, 44.0, 16.0, 4.0, 0.0)  # only above it is there room
    assert occlusion.beside(low, 16.0, 64)[1:] == (pytest.approx(24), True)
    assert not occlusion.beside(low, 30.0, 64)[2]


def bright_bar(images: np.ndarray) -> np.ndarray:
    """Log odds of something that looks at the bar's ends of `painted` only."""
    a = np.radians(30)
    rows, columns = 31.5 + np.array([-11, 11]) * np.sin(a), 31.5 + np.array([-11, 11]) * np.cos(a)
    return images[:, rows.round().astype(int), columns.round().astype(int)].mean((1, 2)) - 110.0


def sky(images: np.ndarray) -> np.ndarray:
    """Log odds of something that looks at a place far from any bar, and likes it dark."""
    return 15.0 - images[:, 45:49, 19:23].mean((1, 2, 3))


def galaxies(n: int = 6) -> Galaxies:
    images = np.stack([painted() if k % 2 else painted(bar=0) for k in range(n)])
    votes = np.where(np.arange(n) % 4 == 3, 1.0, 0.9) * (np.arange(n) % 2)
    return Galaxies([f"g{k}" for k in range(n)], images, np.arange(n) % 2, {"p_bar": votes}, "simulated")


def test_occlusion_tells_a_detector_of_bars_from_one_of_something_else() -> None:
    sample = galaxies()
    seen = occlusion.hide_bars(bright_bar, sample, bright_bar(sample.images))
    assert seen.rows.tolist() == [1, 3, 5] and seen.unbarred.shape == (3, 3)
    everything = np.ones(3, bool)
    assert occlusion.flips(seen, everything, 2) == (3, 3, 0)
    assert occlusion.flips(seen, everything, 0) == (3, 0, 0)  # 25 % of the bar does not reach its ends
    assert occlusion.flips(seen, [True, False, True], 2) == (2, 2, 0)
    assert np.all(seen.unbarred < 0)
    table = evaluate.occlusion_table(seen, sample, "test")
    rows = {row[0]: row for row in table.rows}
    assert rows["100 %, all"][1] == 3 and rows["100 %, clean"][1] == 2  # one of three has doubtful votes
    assert rows["100 %, all"][2].startswith("100.0 (") and rows["100 %, all"][3].startswith("0.0 (")
    other = occlusion.hide_bars(sky, sample, sky(sample.images))
    assert occlusion.flips(other, np.ones(len(other.rows), bool), 2)[1] == 0
    none = occlusion.hide_bars(sky, sample, np.full(6, -1.0))
    assert len(none.rows) == 0 and none.unbarred.shape == (3, 3)


def test_occlusion_map_is_highest_where_the_detector_looks() -> None:
    fall = occlusion.occlusion_map(bright_bar, painted())
    top = np.argwhere(fall > 0.6 * fall.max())
    x, y = (top[:, 1] + 0.5) * 64 / 12 - 32, (top[:, 0] + 0.5) * 64 / 12 - 32
    assert fall.max() > 5 and np.all(np.abs(np.hypot(x, y) - 11) < 4)
    assert np.abs(fall[0]).max() == 0


def test_wilson_interval() -> None:
    assert occlusion.wilson(0, 10) == pytest.approx((0, 1 / 11))
    for count, n in ((3, 40), (39, 40), (40, 40), (7, 9)):
        for p in occlusion.wilson(count, n):
            assert abs(count / n - p) == pytest.approx(np.sqrt(p * (1 - p) / n), abs=1e-12)


@pytest.mark.data
def test_the_shipped_weights_look_at_the_bar(real_data: Callable[[str], Path]) -> None:
    model, meta = network.load(WEIGHTS)
    sample = data.read_sample(real_data("galaxies"))
    rows = data.split(sample, **meta["split"])["validation"]
    some = sample[rows[sample.labels[rows] == 1][:120]]

    def log_odds(images: np.ndarray) -> np.ndarray:
        return network.log_odds(model, images, views=1)[:, 0]

    seen = occlusion.hide_bars(log_odds, some, log_odds(some.images))
    n, on, off = occlusion.flips(seen, np.ones(len(seen.rows), bool), 2)
    assert n > 60 and on >= max(3 * off, 0.2 * n)


# Saliency


@pytest.mark.parametrize("name", network.NETWORKS)
def test_maps_turn_with_the_picture(name: str) -> None:
    model = network.build(name)
    image = simulate.pictures(2, seed=9)[0][:1]
    for function in (saliency.gradient, saliency.grad_cam):
        here = function(model, image)
        assert here.ndim == 3 and np.all(here >= 0) and here.max() > 0 and here.shape[1] >= explain.SMALLEST
        for change in (lambda x: np.rot90(x, 1, axes=(1, 2)), lambda x: x[:, ::-1], lambda x: x.swapaxes(1, 2)):
            there = function(model, np.ascontiguousarray(change(image)))
            assert np.allclose(there, change(here), rtol=1e-3, atol=1e-4 * here.max())
    assert all(parameter.grad is None for parameter in model.parameters())


class Weighted(nn.Module):
    """z = the sum of the pixels times a round pattern of weights."""

    def __init__(self) -> None:
        self.pattern = np.exp(-np.hypot(ROWS, COLUMNS) / 9).astype(np.float32) * [[[1]], [[-2]], [[0.5]]]

    def forward(self, x: Tensor) -> Tensor:
        z = (x * Tensor(self.pattern.astype(np.float32))).sum(dim=(1, 2, 3))
        return z.reshape(-1, 1) * Tensor(np.array([[-0.5, 0.5]], np.float32))


def test_gradient_of_a_weighted_sum_is_its_weights() -> None:
    model = Weighted()
    found = saliency.gradient(model, painted()[None])
    assert np.allclose(found[0], np.abs(model.pattern).sum(0), rtol=1e-4)


def test_grad_cam_weighs_maps_by_their_gradient() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            self.features = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU())
            self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
            self.features[0].weight.data[...] = np.array([[1, 0, 0], [0, 1, 0]], np.float32)[..., None, None]
            self.classifier[2].weight.data[...] = [[0, 3], [2, 0]]

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.features(x))

    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[0, 10:20, 10:20, 0] = 255
    image[0, 40:50, 40:50, 1] = 255
    image[0, 45:60, 45:60, 0] = 255
    a = np.maximum(network.normalise(image)[0], 0)
    wanted = np.maximum(2 * a[0] - 3 * a[1], 0) / 64**2
    assert np.allclose(saliency.grad_cam(Two(), image)[0], np.mean([wanted], axis=0), atol=1e-9)


# Calibration, errors, experts


def test_calibration_error_knows_honest_from_boastful_probabilities() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, 20000)
    labels = (rng.random(len(z)) < network.sigmoid(z)).astype(int)
    honest, boastful = evaluate.calibration_error(labels, network.sigmoid(z)), network.sigmoid(3 * z)
    assert honest < 0.015 < 0.08 < evaluate.calibration_error(labels, boastful)
    repaired = network.sigmoid(3 * z / network.temperature(3 * z, labels))
    assert evaluate.calibration_error(labels, repaired) < 0.015
    assert evaluate.log_loss(labels, repaired) < evaluate.log_loss(labels, boastful)
    assert sum(n for _, _, n in evaluate.reliability(labels, z * 0 + 1)) == len(z)  # p = 1 is in the last bin
    assert evaluate.calibration_error(np.array([1, 0]), np.array([0.8, 0.8])) == pytest.approx(0.3)
    assert evaluate.log_loss(np.array([1, 0]), np.array([0.5, 0.75])) == pytest.approx(1.5 * np.log(2))


def test_bootstrap_error_is_the_binomial_one() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(400) % 2
    p = np.where(rng.random(400) < 0.9, labels, 1 - labels) * 0.8 + 0.1 * rng.random(400)
    accuracy = np.mean((p >= 0.5) == labels)
    errors = evaluate.bootstrap(labels, p)
    assert errors[0] == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 400), rel=0.1)
    assert len(errors) == 4 and errors == evaluate.bootstrap(labels, p) and all(0 < e < 0.05 for e in errors)
    assert evaluate.bootstrap(labels, labels.astype(float)) == (0, 0, 0, 0)


def test_agreement_with_experts() -> None:
    sample = galaxies(8)
    sample.columns["manga_bars"] = np.array([0, 0.75, 0, 1, 0.5, 0.25, np.nan, 0])
    assert evaluate.firm(sample).tolist() == [0, 1, 0, 1, -1, -1, -1, 0]
    table = evaluate.experts_table(sample, np.array([0.1, 0.9, 0.8, 0.9, 0, 0, 0, 0.2]), "test")
    assert table is not None
    rows = {row[0]: row for row in table.rows}
    assert rows["all"][1:3] == [5, 4] and rows["all"][4] == 4  # wrong: the network on g2, the votes on g7
    assert rows["clean"][1:3] == [3, 2] and rows["clean"][4] == 3  # g3 and g7 have doubtful votes
    assert evaluate.experts_table(galaxies(8), np.zeros(8), "test") is None


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    sample = galaxies(8)
    sample.images = sample.images + np.arange(8, dtype=np.uint8)[:, None, None, None]
    p = np.array([0.1, 0.9, 0.8, 0.7, 0.2, 0.3, 0.4, 0.45])
    seen = occlusion.hide_bars(bright_bar, sample, bright_bar(sample.images))
    meta = {"history": [], "kind": "simulated"}
    results = evaluate.score(sample, p)
    made = figures.all_figures(tmp_path, network.build("resnet"), sample, p, p, seen, "a test", meta, results)
    names = {path.stem for path, _ in made}
    assert names >= {"calibration", "mistakes", "features", "occlusion", "occlusion_examples", "attention"}
    assert all(path.stat().st_size > 5000 for path, _ in made)


# Several networks


def command(*arguments: object) -> int:
    """Exit code of a command line."""
    return run_command(main, [str(a) for a in arguments])


def test_crossvalidate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample, other, out = tmp_path / "sky", tmp_path / "other", tmp_path / "cv"
    assert command("simulate", "--out", sample, "--n", 40, "--seed", 3) == 0
    assert command("simulate", "--out", other, "--n", 40, "--seed", 4) == 0
    runs = [(0, 0), (1, 0), (1, 1)]
    paths = [tmp_path / f"fold{fold}seed{seed}.safetensors" for fold, seed in runs]
    for path, (fold, seed) in zip(paths, runs, strict=True):
        train = ("train", "--data", sample, "--out", path, "--epochs", 1, "--batch-size", 8, "--threads", 1)
        assert command(*train, "--fold", fold, "--seed", seed) == 0
    capsys.readouterr()
    assert command("crossvalidate", "--data", sample, "--weights", *paths[:2], "--out", out) == 0
    assert "16 simulated galaxies, each by a network that has not seen it" in capsys.readouterr().out
    with open(out / "crossvalidation.csv", newline="") as file:
        rows = {row["weights"]: row for row in csv.DictReader(file)}
    values = [float(rows[path.stem]["all acc %"]) for path in paths[:2]]
    assert float(rows["mean"]["all acc %"]) == pytest.approx(np.mean(values), abs=0.01)
    assert float(rows["spread"]["all acc %"]) == pytest.approx(np.std(values, ddof=1), abs=0.01)
    assert [rows[path.stem]["fold"] for path in paths[:2]] == ["0", "1"]
    with open(out / "confusion.csv", newline="") as file:
        pooled = {row["sample"]: row for row in csv.DictReader(file)}["all"]
    right = int(pooled["TP"]) + int(pooled["TN"])
    assert right / 16 == pytest.approx(np.mean(values) / 100)  # both test parts have eight galaxies
    assert command("crossvalidate", "--data", sample, "--weights", *paths[1:], "--out", tmp_path / "seeds") == 0
    assert not (tmp_path / "seeds" / "confusion.csv").exists()  # the same galaxies twice
    capsys.readouterr()
    assert command("crossvalidate", "--data", other, "--weights", *paths, "--out", tmp_path / "no") == 2
    assert "trained on other galaxies" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
