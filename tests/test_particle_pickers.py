"""The three ways to pick: enhancement by steps, simulated molecules, crops, templates, the grid, one file format."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("PIL")
pytest.importorskip("mrcfile")

from scipy import ndimage

import minidl
from examples import particle_picking
from examples.common import InputError, run_command
from examples.particle_picking import (
    crops,
    data,
    detection,
    enhance,
    formats,
    network,
    picking,
    ship,
    simulate,
    study,
    template,
)
from examples.particle_picking.__main__ import main
from examples.particle_picking.crops import IGNORE, Prepared
from examples.particle_picking.enhance import WORKING
from examples.particle_picking.formats import Picks
from examples.particle_picking.network import Training

TINY = Training(epochs=1, crops=4, batch_size=2, progress=False)


def run(*argv: object) -> int:
    """The command line, as a user meets it."""
    return run_command(main, [str(a) for a in argv])


def view(image: np.ndarray) -> enhance.Enhanced:
    """A picture as if it were enhanced already: one working pixel a pixel."""
    return enhance.Enhanced(image.astype(np.float32), np.ones(image.shape, bool), (1.0, 1.0), image.shape)


def prepared(image: np.ndarray, xy: np.ndarray) -> Prepared:
    """A labelled picture: centres in its own pixels."""
    seen = view(image)
    entry = data.Entry("m", Path("m.mrc"), None, None, {})
    return Prepared(entry, seen, np.asarray(xy, float), float(WORKING), crops.marked_classes(seen, None))


def bars(seed: int, noise: float = 0.5, side: int = 200) -> Prepared:
    """Dark bars 16 x 6 px at any angle on noise."""
    rng = np.random.default_rng(seed)
    image, xy = noise * rng.normal(size=(side, side)), []
    yy, xx = np.mgrid[:side, :side]
    for _ in range(400):
        x, y = rng.uniform(14, side - 14, 2)
        if all(np.hypot(x - a, y - b) > 22 for a, b in xy) and len(xy) < 30:
            angle = rng.uniform(0, np.pi)
            along, across = (xx - x) * np.cos(angle) + (yy - y) * np.sin(angle), 0
            across = (yy - y) * np.cos(angle) - (xx - x) * np.sin(angle)
            image[(abs(along) < 8) & (abs(across) < 3)] -= 2
            xy.append((x, y))
    return prepared(image, np.array(xy))


# ------------------------------------------------------------------------------------------------- enhancement, seen


def test_every_step_is_shown_in_order() -> None:
    rng = np.random.default_rng(0)
    image = (rng.normal(1000, 30, (300, 320)) + np.linspace(0, 900, 320)).astype(np.float32)
    seen: dict[str, np.ndarray] = {}
    done = enhance.enhance(image, 36, lambda name, picture: seen.update({name: picture.copy()}))
    steps = ["as stored", "robust scaling", "plane off", "low-pass and shrink", "background off", "local contrast"]
    assert list(seen) == steps
    np.testing.assert_array_equal(seen["local contrast"], done.image)

    def slope(picture: np.ndarray) -> float:
        return float(np.polyfit(np.arange(320), picture.mean(0), 1)[0] * 320 / picture.std())

    assert slope(seen["as stored"]) > 2 and abs(slope(seen["plane off"])) < 0.1
    assert abs(np.median(seen["robust scaling"])) < 0.05 and seen["low-pass and shrink"].shape == (150, 160)


def test_hot_pixels_do_not_rule_the_scale() -> None:
    image = np.random.default_rng(0).normal(5, 2, (64, 64)).astype(np.float32)
    image[3, 4] = 1e6
    scaled = enhance.robust_scale(image, np.s_[::1, ::1])
    assert scaled[3, 4] == 7 and scaled.std() == pytest.approx(1, rel=0.1)


def test_equalise_makes_greys_equally_frequent() -> None:
    image = np.random.default_rng(0).normal(100, 10, (200, 200)).clip(0, 255).astype(np.uint8)
    counts, _ = np.histogram(enhance.equalise(image), bins=8, range=(0, 256))
    assert counts.std() / counts.mean() < 0.25


def test_bilateral_keeps_edges_that_a_gaussian_blurs() -> None:
    step = np.where(np.arange(60) < 30, 60, 190) * np.ones((60, 1))
    image = (step + np.random.default_rng(0).normal(0, 8, step.shape)).clip(0, 255).astype(np.uint8)
    done = enhance.bilateral(image, space=1.5, grey=40).astype(float)
    assert done[:, :27].std() < 0.5 * image[:, :27].std()
    assert (
        done[:, 31].mean() - done[:, 28].mean() > 120 > np.diff(ndimage.gaussian_filter(step, 1.5)[:, [28, 31]]).max()
    )


def test_clahe_without_limit_and_tiles_is_equalisation_and_with_them_is_local() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 70)).astype(np.uint8) // 2
    plain = enhance.clahe(image, tiles=1, limit=1e9)
    assert np.abs(plain.astype(int) - enhance.equalise(image)).max() <= 1
    dull = (60 + 6 * rng.normal(size=(160, 160))).clip(0, 255).astype(np.uint8)
    dull[:, 80:] += 120  # two halves of little contrast each
    done = enhance.clahe(dull, tiles=8, limit=4).astype(float)
    assert done[:, :60].std() > 2 * dull[:, :60].std() and done[:, 100:].std() > 2 * dull[:, 100:].std()
    gentle = enhance.clahe(dull, tiles=8, limit=1).astype(float)
    assert gentle[:, :60].std() < done[:, :60].std()


def test_ice_and_carbon_are_found_by_rule_and_particles_are_not() -> None:
    rng = np.random.default_rng(1)
    image, (yy, xx) = rng.normal(0, 1, (640, 640)), np.mgrid[:640, :640]
    particles = rng.uniform(60, 580, (60, 2))
    for x, y in particles:
        image -= 1.5 * (np.hypot(xx - x, yy - y) < 12)
    image -= 6 * np.sqrt(np.clip(1 - ((xx - 150) ** 2 + (yy - 480) ** 2) / 50**2, 0, None))  # a crystal
    image[:, 480:] += rng.normal(0, 5, (640, 160))  # a rough film
    found = enhance.enhance(image.astype(np.float32), 36).foreign
    assert found is not None
    assert found[240, 75] == 2 and (found[:, 260:] == 3).mean() > 0.7 and (found[:, :220] == 3).mean() < 0.02
    clear = [(x, y) for x, y in particles if x < 430 and np.hypot(x - 150, y - 480) > 80]
    assert sum(found[int(y / 2), int(x / 2)] > 0 for x, y in clear) <= 1 < len(clear)
    seen = view(np.zeros((100, 100)))
    marked = replace(seen, foreign=np.pad(np.full((100, 50), 2, np.uint8), ((0, 0), (50, 0))))
    heat = np.exp(-((xx[:100, :100] % 50 - 25) ** 2 + (yy[:100, :100] % 50 - 25) ** 2) / 20.0)
    assert len(picking.find_picks(heat, seen)) == 4 and len(picking.find_picks(heat, marked)) == 2


def test_enhance_command_draws_the_steps(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    image = np.random.default_rng(0).normal(100, 10, (256, 256)).astype(np.float32)
    formats.write_mrc(tmp_path / "m.mrc", image, 2.0, "x")
    assert run("enhance", tmp_path / "m.mrc", "--diameter", "60A", "--out", tmp_path / "s.png") == 0
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    assert run("enhance", tmp_path / "m.mrc", "--diameter", "60A", "--out", tmp_path / "s.png") == 2
    assert run("enhance", tmp_path / "m.mrc", "--diameter", "600A", "--out", tmp_path / "t.png") == 2
    assert "--diameter" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- simulation


@pytest.mark.parametrize("name", sorted(simulate.SHAPES))
def test_shapes_are_as_large_as_they_say(name: str) -> None:
    thing = simulate.SHAPES[name](np.random.default_rng(0))
    np.testing.assert_allclose(thing.centres.mean(0), 0, atol=0.5)
    inside = np.linalg.norm(thing.centres, axis=1) <= thing.diameter / 2
    assert inside.mean() > 0.95
    mass = thing.weight * len(thing.centres) / simulate.CONTRAST / 1.21 / 1e3
    known = {"betagal": 465, "shell": 480, "barrel": 700, "antibody": 150, "ribosome": 2500}[name]
    assert 0.5 < mass / known < 1.5  # kDa


def test_random_molecules_differ_and_are_plausible() -> None:
    things = [simulate.random_molecule(np.random.default_rng(k)) for k in range(12)]
    sizes = [t.diameter for t in things]
    assert len(set(sizes)) == 12 and min(sizes) > 50 and max(sizes) < 500 and max(sizes) > 1.5 * min(sizes)
    for thing in things:
        np.testing.assert_allclose(thing.centres.mean(0), 0, atol=1e-6)
        assert (np.linalg.norm(thing.centres, axis=1) <= thing.diameter / 2).mean() > 0.9


def test_simulate_takes_a_shape_and_a_dose(tmp_path: Path) -> None:
    common = ("simulate", "--n", 1, "--size", 256, "--apix", 6)
    assert run(*common, "--out", tmp_path / "a", "--shape", "shell", "--dose", 40) == 0
    folder = data.open_collection(tmp_path / "a")
    thing = simulate.SHAPES["shell"](np.random.default_rng(465))
    assert folder.diameter == pytest.approx(thing.diameter / 6)
    image, _ = formats.read_micrograph(folder.entries[0].image)
    assert 0.6 * 40 * 36 < np.median(image) < 40 * 36
    assert run(*common, "--out", tmp_path / "b", "--shape", "brick") == 2


# ------------------------------------------------------------------------------------------------------------ crops


def test_crops_carry_their_points_through_turn_stretch_and_mirror() -> None:
    rng = np.random.default_rng(2)
    xy = rng.uniform(20, 180, (25, 2))
    image, (yy, xx) = np.zeros((200, 200)), np.mgrid[:200, :200]
    for x, y in xy:
        image -= 5 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 8)
    item = prepared(image, xy)
    cuts = crops.Crops([item], 1, 96, lambda points, classes: (points, classes))
    sizes = set()
    for k in range(12):
        picture, points, classes = cuts.cut((0,), np.random.default_rng(k))
        assert picture.shape == (1, 96, 96) and picture.dtype == np.float32
        inner = points[((points[:, :2] > 8) & (points[:, :2] < 87)).all(1)]
        assert len(inner) > 1
        smooth = ndimage.gaussian_filter(picture[0], 2)
        sampled = ndimage.map_coordinates(smooth, inner[:, 1::-1].T, order=1)
        assert (sampled < np.median(smooth) - 1).all()  # every point lies on its dark spot
        sizes.add(round(float(points[0, 2]), 3))
        assert set(np.unique(classes)) <= {0, IGNORE}
    assert min(sizes) < WORKING < max(sizes) and WORKING in sizes
    again = cuts.cut((0,), np.random.default_rng(3))
    np.testing.assert_array_equal(again[0], cuts.cut((0,), np.random.default_rng(3))[0])


def test_a_strip_holds_so_many_picks_and_labels_nothing_below() -> None:
    item = bars(0)
    cut = study.strip(item, 10)
    assert len(cut.xy) == 10 and cut.xy[:, 1].max() <= np.sort(item.xy[:, 1])[9]
    end = int(np.ceil(cut.xy[:, 1].max()))
    assert (cut.classes[end:] == IGNORE).all() and (cut.classes[20:end, 20:-20] == 0).all()
    assert (item.classes[20:-20, 20:-20] == 0).all()


# -------------------------------------------------------------------------------------------------- template matching


def test_correlation_is_the_definition() -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.normal(size=(60, 70)), template.disc(0.7)
    pattern = rng.normal(size=(template.SIDE, template.SIDE))
    found = template.Correlator(image, mask, reject=99).ncc(pattern)
    half = template.SIDE // 2
    for y, x in ((30, 30), (13, 13), (41, 52)):
        window = image[y - half : y + half + 1, x - half : x + half + 1]
        f = window - (mask * window).sum() / mask.sum()
        t = pattern - (mask * pattern).sum() / mask.sum()
        expected = (mask * f * t).sum() / np.sqrt((mask * f * f).sum() * (mask * t * t).sum())
        assert found[y, x] == pytest.approx(expected, abs=1e-4)
    planted = image.copy()
    planted[20:47, 30:57] = 3 * pattern + 7  # brightness and contrast do not matter
    found = template.Correlator(planted, mask, reject=99).ncc(pattern)
    assert np.unravel_index(found.argmax(), found.shape) == (33, 43) and found.max() == pytest.approx(1, abs=1e-3)


def test_places_of_strange_deviation_are_rejected() -> None:
    image = np.random.default_rng(0).normal(size=(120, 120))
    image[:, 90:] *= 6
    search = template.Correlator(image, template.disc(0.7), reject=2)
    assert not search.usable[:, 100:].any() and search.usable[20:100, 20:70].all()
    assert (search.ncc(image[:27, :27])[:, 100:] == 0).all()


def test_class_averages_align_what_is_turned() -> None:
    windows = template.patches(bars(1, noise=0.3))
    average = template.average_classes(windows, 1, seed=0)[0]
    far = np.hypot(*np.mgrid[-13:14, -13:14]) <= 10
    weight = np.clip(-average, 0, None) * far
    yy, xx = np.mgrid[-13:14, -13:14]
    second = np.array([[(weight * a * b).sum() for a in (yy, xx)] for b in (yy, xx)]) / weight.sum()
    low, high = np.linalg.eigvalsh(second)
    assert high > 1.8 * low  # a bar, not the round blur that an average over all angles would be


def test_references_from_files(tmp_path: Path) -> None:
    yy, xx = np.mgrid[:72, :72] - 35.5
    bright = (np.hypot(yy / 2, xx) < 10).astype(np.float32)
    import mrcfile

    with mrcfile.new(tmp_path / "r.mrcs") as file:
        file.set_data(np.stack([bright, bright.T]))
    from PIL import Image

    Image.fromarray((bright * 200).astype(np.uint8)).save(tmp_path / "r.png")
    for name, count in (("r.mrcs", 2), ("r.png", 1)):
        read = template.read_templates(tmp_path / name, 40)
        assert read.shape == (count, template.SIDE, template.SIDE)
        assert read[0][13, 13] < read[0][13, 22] and read[0][20, 13] < read[0][13, 20]  # dark and upright
    (tmp_path / "x.mrcs").write_bytes(b"no")
    with pytest.raises(InputError, match=r"x\.mrcs"):
        template.read_templates(tmp_path / "x.mrcs", 40)


# ---------------------------------------------------------------------------------------------------------- detection


def test_cells_say_where_the_centre_is() -> None:
    classes = np.zeros((64, 64), np.uint8)
    classes[:, 48:] = IGNORE
    points = np.array([[21.3, 30.8, 18.0], [40.0, 10.0, 22.0]])
    target, weight = detection.cell_targets(points, classes)
    assert target.shape == (4, 16, 16) and weight.shape == (2, 16, 16)
    for x, y, diameter in points:
        row, column = int(y // 4), int(x // 4)
        place = 4 * column + 1.5 + 4 * target[1, row, column], 4 * row + 1.5 + 4 * target[2, row, column]
        assert place == pytest.approx((x, y), abs=1e-4) and weight[1, row, column] == 1
        assert WORKING * np.exp(target[3, row, column]) == pytest.approx(diameter, rel=1e-5)
        r = np.hypot(4 * column + 1.5 - x, 4 * row + 1.5 - y) / diameter
        assert target[0, row, column] == pytest.approx(np.exp(-0.5 * (r / detection.NEAR) ** 2), rel=1e-4)
    assert (weight[:, :, 12:] == 0).all() and (weight[0, :, :12] == 1).all()
    assert target[0, 12, 3] < 1e-3 and weight[1, 12, 3] == 0


# ---------------------------------------------------------------------------------------------- one interface, one file


@pytest.mark.parametrize(
    ("method", "settings", "least"),
    [("segmentation", {"width": 4, "depth": 2}, 0.8), ("detection", {"width": 4}, 0.8), ("template", {"count": 1}, 0.9),
     ("log", {}, 0.9)],
)  # fmt: skip
def test_every_picker_fits_picks_saves_and_loads(method: str, settings: dict, least: float, tmp_path: Path) -> None:
    minidl.manual_seed(0)
    train, test = [bars(0), bars(1)], bars(2)
    picker = network.new_picker(method, **settings)
    picker.fit(train, [], Training(epochs=6, crops=32, batch_size=4, lr=1e-2, progress=False))
    picker.calibrate(train)
    picks = picker.pick(test.enhanced)
    assert picks.size is not None and len(picks.size) == len(picks) and (np.diff(picks.score) <= 0).all()
    assert picks.score.min() >= 0 and picks.score.max() <= 1
    found = picks.above(picker.threshold)
    assert picking.score(test.xy, found, WORKING / 2).f1 > least
    owner = picking.match(test.xy, found.xy, WORKING / 2)
    assert np.median(np.hypot(*(found.xy[owner >= 0] - test.xy[owner[owner >= 0]]).T)) < 2.5
    maps = picker.look(test.enhanced)[1]
    assert maps.shape == (4, *test.enhanced.image.shape)
    np.testing.assert_allclose(maps.sum(0), 1, atol=1e-5)
    picker.meta |= network.described(data.Split([], [], []), "real", 18.0, None, [], 0, TINY)
    picker.save(tmp_path / "p.safetensors")
    again = network.load_picker(tmp_path / "p.safetensors")
    assert type(again) is type(picker) and again.threshold == picker.threshold and again.settings == picker.settings
    np.testing.assert_array_equal(again.pick(test.enhanced).xy, picks.xy)
    np.testing.assert_array_equal(again.pick(test.enhanced).score, picks.score)


def test_begin_takes_the_same_network_only(tmp_path: Path) -> None:
    picker = network.new_picker("segmentation", width=2, depth=1)
    picker.meta |= network.described(data.Split([], [], []), "real", 18.0, None, [], 0, TINY) | {"threshold": 0.5}
    picker.save(tmp_path / "p.safetensors")
    other = network.new_picker("segmentation", width=2, depth=1)
    network.begin(other, tmp_path / "p.safetensors")
    for name, array in picker.arrays().items():
        np.testing.assert_array_equal(other.arrays()[name], array)
    for wrong in (network.new_picker("segmentation", width=4, depth=1), network.new_picker("detection")):
        with pytest.raises(InputError, match="weights of segmentation"):
            network.begin(wrong, tmp_path / "p.safetensors")


def test_touching_particles_are_split_and_measured() -> None:
    yy, xx = np.mgrid[:90, :120]
    centres = [(40.0, 45.0), (53.0, 45.0), (90.0, 45.0)]
    radius = 0.35 * WORKING
    heat = np.max([1 / (1 + np.exp(2 * (np.hypot(xx - x, yy - y) - radius))) for x, y in centres], axis=0)
    heat[20:23, 60:63] = 0.9  # a speck
    for rule, count in (("peaks", 4), ("blobs", 3)):  # the speck is too small for a blob
        picks = picking.find_picks(heat, view(np.zeros((90, 120))), rule=rule)
        kept = [k for k, (_, y) in enumerate(picks.xy) if y > 30]
        assert len(picks) == count and picks.size is not None
        np.testing.assert_allclose(sorted(picks.xy[kept].tolist()), centres, atol=0.6)
        np.testing.assert_allclose(picks.size[kept], WORKING, rtol=0.2)


def test_mixed_shows_both_kinds_equally_often() -> None:
    a, b = [bars(k, side=64) for k in range(2)], [bars(k, side=64) for k in range(5, 8)]
    both = network.mixed(a, b)
    assert sum(any(item is x for x in a) for item in both) == sum(any(item is x for x in b) for item in both) == 3
    assert network.mixed(a, []) == a and network.mixed([], b) == b


# ---------------------------------------------------------------------------------------------- command line and study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pick") / "sim"
    assert run("simulate", "--out", made, "--n", 4, "--size", 256, "--apix", 7, "--seed", 2) == 0
    return made


@pytest.mark.parametrize("method", ["detection", "template"])
def test_programs_take_any_method(folder: Path, method: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    weights = tmp_path / "w.safetensors"
    options = ("--epochs", 1, "--width", 4) if method == "detection" else ()
    assert run("train", "--data", folder, "--method", method, "--out", weights, *options) == 0
    assert network.load_picker(weights).method == method
    if method == "template":
        assert run("evaluate", "--data", folder, "--weights", weights, "--out", tmp_path / "e") == 0
        assert "minidl templates" in capsys.readouterr().out
    image = sorted((folder / "images").glob("*.mrc"))[0]
    assert run("predict", image, "--weights", weights, "--out", tmp_path / "p") == 0
    assert (tmp_path / "p" / f"{image.stem}_mask.png").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "template", "--width", 8), "--width says nothing to --method template"),
        (("--method", "log", "--references", "r.png"), "takes no references"),
        (("--start", "nowhere.safetensors"), "nowhere"),
    ],
)
def test_options_that_do_not_fit(
    folder: Path, options: tuple, words: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run("train", "--data", folder, "--out", tmp_path / "w.safetensors", *options) == 2
    assert words in capsys.readouterr().err


def test_study_goes_on_where_it_stopped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "WAYS", {"Laplacian of Gaussian": ("log", False)})
    monkeypatch.setattr(study, "LABELS", ("5 picks", "1", "2", "8"))
    assert run("study", "--data", folder, "--folds", 0, "--out", tmp_path) == 0
    lines = (tmp_path / "runs.csv").read_text().splitlines()
    assert len(lines) == 1 + 3  # 8 micrographs are not there
    monkeypatch.setattr(study, "_one", lambda *_: pytest.fail("done already"))
    assert run("study", "--data", folder, "--folds", 0, "--out", tmp_path) == 0
    assert (tmp_path / "table.csv").read_text().startswith("F1 on test,5 picks,1 micrographs,2 micrographs")


def test_shipping_in_small(folder: Path, tmp_path: Path) -> None:
    first = ship.from_simulated(micrographs=2, how=TINY)
    first.save(tmp_path / "s.safetensors")
    both = ship.general(data.open_collection(folder), tmp_path / "s.safetensors", micrographs=2, how=TINY)
    assert both.meta["diameter"] is None and len(both.meta["split"]["test"]) == 1 and both.meta["simulated"] == 2
    assert {"ice", "carbon"} <= set(both.meta["labelled"]) and 0 < both.threshold < 1


def test_shipped_weights_pick_a_protein_they_never_saw(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shipped = sorted(particle_picking.WEIGHTS.parent.glob("*.safetensors"))
    assert particle_picking.WEIGHTS in shipped and sum(path.stat().st_size for path in shipped) < 5e6
    assert run("simulate", "--out", tmp_path / "s", "--shape", "barrel", "--n", 1, "--size", 512, "--apix", 5) == 0
    collection = data.open_collection(tmp_path / "s")
    image = collection.entries[0].image
    assert run("predict", image, "--out", tmp_path / "p") == 2
    assert "--diameter" in capsys.readouterr().err
    assert run("predict", image, "--diameter", collection.diameter, "--out", tmp_path / "p") == 0
    found = formats.read_coordinates(tmp_path / "p" / f"{image.stem}_autopick.star")
    assert picking.score(data.truth(collection.entries[0]), found, collection.diameter / 2).f1 > 0.8


def test_help_stays_light() -> None:
    code = (
        "import sys, examples.particle_picking.__main__ as m\n"
        "m.parser().format_help()\n"
        "print([n for n in ('scipy', 'mrcfile', 'PIL', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.data
def test_classical_pickers_on_real_micrographs(real_data: Callable[[str], Path]) -> None:
    folder = data.open_collection(real_data("micrographs"))
    train, test = (crops.prepare(folder, folder.entries[k]) for k in (4, 5))
    for method, least in (("log", 0.77), ("template", 0.77)):
        picker = network.new_picker(method)
        picker.fit([train], [], TINY)
        picker.calibrate([train])
        found = picker.pick(test.enhanced).above(picker.threshold)
        assert picking.score(test.xy, found, 54).f1 > least
        assert isinstance(found, Picks)


@pytest.mark.data
def test_the_rule_spares_real_particles(real_data: Callable[[str], Path]) -> None:
    folder = data.open_collection(real_data("micrographs"))
    item = crops.prepare(folder, folder.named(["Falcon_2012_06_12-15_07_41_0"])[0])
    columns, rows = np.round(item.points[:, :2]).astype(int).T
    assert item.enhanced.foreign is not None
    lost = item.enhanced.foreign[np.clip(rows, 0, 682), np.clip(columns, 0, 682)] > 0
    ice = item.classes == 2
    assert lost.mean() < 0.01 and (item.enhanced.foreign[ice] > 0).mean() > 0.4
