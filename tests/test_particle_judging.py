"""Judging picks: folders by true coordinates, and by 2-D classification."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("PIL")
pytest.importorskip("mrcfile")

from scipy import ndimage

from examples.common import InputError, run_command
from examples.particle_picking import classify, data, enhance, evaluate, formats, picking
from examples.particle_picking.__main__ import main
from examples.particle_picking.formats import Picks


def run(*argv: object) -> int:
    """The command line, as a user meets it."""
    return run_command(main, [str(a) for a in argv])


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


# ------------------------------------------------------------------------------------------------- by coordinates


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two micrographs with 3 and 2 particles; picks with scores far from 0..1, one of them false; the second none."""
    true = np.array([[50.0, 50], [150, 50], [250, 50]])
    formats.write_coordinates(tmp_path / "coords" / "a.csv", Picks(true, np.full(3, np.nan), np.full(3, 40.0)), 40)
    formats.write_coordinates(tmp_path / "coords" / "b.box", Picks(true[:2], np.full(2, np.nan)), 40)
    found = Picks(np.array([[55.0, 50], [150, 57], [400, 50]]), np.array([12.0, -3.0, 4.0]))
    formats.write_coordinates(tmp_path / "ours" / "a.txt", found, 40)
    formats.write_coordinates(tmp_path / "flipped" / "a.star", Picks(found.xy * (1, -1) + (0, 300), found.score), 40)
    formats.write_coordinates(tmp_path / "predicted" / "a_autopick.star", found[found.score > 5], 40)
    formats.write_coordinates(tmp_path / "predicted" / "a.cbox", found, 40)
    return tmp_path


def test_any_folder_is_scored_by_any_other(folders: Path, capsys: pytest.CaptureFixture) -> None:
    names = ("ours", "flipped", "predicted")
    command = ("score", "--picks", *(folders / n for n in names), "--coords", folders / "coords", "--flip", "flipped")
    assert run(*command, "--height", 300, "--out", folders / "out") == 0
    table = {row["picker"]: row for row in rows(folders / "out" / "comparison.csv")}
    for name in ("ours", "flipped"):
        assert [table[name][key] for key in ("marked", "picked", "false")] == ["5", "3", "1"]
        assert table[name]["precision"] == "0.667" and table[name]["recall"] == "0.400"
        # by score: hit, false, hit -> recall 1/5 at precision 1, 2/5 at 2/3
        assert float(table[name]["AP"]) == pytest.approx(1 / 5 + 1 / 5 * 2 / 3, abs=1e-3)
    # what predict writes: the star says what was picked, the cbox what might have been
    assert table["predicted"]["picked"] == "1" and table["predicted"]["AP"] == table["ours"]["AP"]
    each = {(row["micrograph"], row["picker"]): row for row in rows(folders / "out" / "micrographs.csv")}
    assert each["a", "ours"]["recall"] == "0.667" and each["b", "ours"]["picked"] == "0" and len(each) == 6
    assert "within 20 px" in capsys.readouterr().out
    assert run(*command, "--height", 300, "--threshold", 0, "--out", folders / "cut") == 0
    assert rows(folders / "cut" / "comparison.csv")[0]["picked"] == "2"
    assert run(*command, "--height", 300, "--diameter", "9", "--out", folders / "near") == 0
    assert rows(folders / "near" / "comparison.csv")[0]["false"] == "3"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--picks", "{}/ours", "--flip", "theirs", "--height", "9"], "none of the folders"),
        (["--picks", "{}/ours", "--flip", "ours"], "give --height"),
        (["--picks", "{}/gone"], "no such folder"),
        (["--picks", "{}/empty"], "no coordinates in it"),
        (["--picks", "{}/other"], "none of its micrographs"),
    ],
)
def test_what_cannot_be_scored_is_said(
    folders: Path, capfd: pytest.CaptureFixture, argv: list[str], words: str
) -> None:
    (folders / "empty").mkdir()
    formats.write_star(folders / "other" / "z.star", Picks(np.ones((1, 2)), np.ones(1)))
    argv = [a.format(folders) for a in argv]
    assert run("score", *argv, "--coords", folders / "coords", "--out", folders / "out") == 2
    assert words in capfd.readouterr().err and not (folders / "out").exists()


def test_average_precision_depends_on_the_order_of_scores_alone() -> None:
    rng = np.random.default_rng(0)
    truth = [rng.uniform(0, 900, (40, 2)) for _ in range(2)]
    found = [Picks(np.vstack([t[:25], rng.uniform(0, 900, (30, 2))]), rng.permutation(55) / 55) for t in truth]
    wild = [Picks(p.xy, 1e3 * np.exp(5 * p.score) - 7) for p in found]
    assert evaluate.average_precision(truth, found, 15) == evaluate.average_precision(truth, wild, 15) != ""
    assert evaluate.average_precision(truth, [Picks(p.xy, np.ones(55)) for p in found], 15) == ""


# ------------------------------------------------------------------------------------------ by 2-D classification


def shapes() -> list[np.ndarray]:
    """Three dark particles without symmetry and of one contrast, 32 px across, in frames of 97."""
    y, x = np.mgrid[-48:49, -48:49]

    def blob(cy: float, cx: float, sy: float, sx: float) -> np.ndarray:
        return np.exp(-((y - cy) ** 2) / (2 * sy**2) - (x - cx) ** 2 / (2 * sx**2))

    bar = blob(0, 0, 3, 9) + 0.6 * blob(5, 9, 3, 3)
    corner = blob(0, 0, 4, 4) + blob(-9, 0, 3, 3) + 0.7 * blob(3, 9, 3, 3)
    disc = 1 / (1 + np.exp((np.hypot(y, x) - 10) / 1.5)) - 0.9 * blob(9, 0, 3, 3)
    circle = np.hypot(y, x) <= 16
    return [-0.3 * shape / shape[circle].std() for shape in (bar, corner, disc)]


def particles(rng: np.random.Generator, each: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (3 each, 65, 65), which shape and by what angle it was turned."""
    kind, turn = np.repeat(np.arange(3), each), rng.uniform(0, 360, 3 * each)
    boxes = []
    for k, degrees, shift in zip(kind, turn, rng.uniform(-3, 3, (3 * each, 2)), strict=True):
        image = ndimage.shift(ndimage.rotate(shapes()[k], degrees, reshape=False, order=1), shift, order=1)
        boxes.append(image[16:-16, 16:-16] + ndimage.gaussian_filter(rng.normal(size=(65, 65)), 1) * noise * 3.5)
    return np.array(boxes, np.float16), kind, turn


def test_classes_are_the_shapes_turned_upon_one_another() -> None:
    boxes, kind, turn = particles(np.random.default_rng(0), 40, noise=0.25)
    found = classify.classify(boxes, classes=6, rounds=8, progress=False)
    assert found.sizes.sum() == 120 and (np.diff(found.sizes) <= 0).all()
    table = np.zeros((6, 3), int)
    np.add.at(table, (found.label, kind), 1)
    assert table.max(1).sum() >= 105  # of 120 in a class of their own shape
    kind_of_first = table[0].argmax()
    members = (found.label == 0) & (kind == kind_of_first)
    # ndimage turns against the clock, and a class turns its members back: the two angles differ by a constant
    together = np.degrees(found.angle[members]) + turn[members]
    spread = np.abs(np.exp(2j * np.radians(together)).mean())  # a bar turned by half a turn looks much the same
    assert spread > 0.8
    # so the average is as sharp as the shape itself: turned the wrong way it would be round
    best = 0.0
    for degrees in range(0, 360, 6):
        view = ndimage.rotate(shapes()[kind_of_first], degrees, reshape=False, order=1)[24:-24, 24:-24]
        for dy, dx in np.ndindex(5, 5):
            moved = np.roll(view, (dy - 2, dx - 2), (0, 1))
            best = max(best, np.corrcoef(moved.ravel(), found.averages[0].ravel())[0, 1])
    assert best > 0.93


def test_the_rule_calls_empty_ice_false() -> None:
    rng = np.random.default_rng(1)
    boxes, _, _ = particles(rng, 40, noise=0.25)
    empty = ndimage.gaussian_filter(rng.normal(size=(80, 65, 65)), (0, 1, 1)) * 0.25 * 3.5
    found = classify.classify(np.concatenate([boxes, empty.astype(np.float16)]), classes=10, rounds=6, progress=False)
    false = found.false()[found.label]
    assert false[:120].mean() <= 0.1 and false[120:].mean() >= 0.85
    again = classify.classify(np.concatenate([boxes, empty.astype(np.float16)]), classes=10, rounds=6, progress=False)
    np.testing.assert_array_equal(found.label, again.label)


def test_too_few_particles() -> None:
    with pytest.raises(InputError, match="9 particles for 5 classes"):
        classify.classify(np.zeros((9, 65, 65), np.float16), classes=5)


def test_boxes_are_cut_where_the_particle_is() -> None:
    yy, xx = np.mgrid[:400, :420]
    image = -9 * np.exp(-((yy - 60.0) ** 2 + (xx - 200.0) ** 2) / 200) + np.random.default_rng(0).normal(0, 1, yy.shape)
    for diameter in (64, 24):
        first, second = classify.cut(image.astype(np.float32), [np.array([[200.0, 60]]), np.empty((0, 2))], diameter)
        smooth = ndimage.gaussian_filter(first[0].astype(float), 3)
        assert first.shape == (1, 65, 65) and second.shape == (0, 65, 65)
        assert np.abs(np.subtract(np.unravel_index(smooth.argmin(), smooth.shape), 32)).max() <= 2


def test_classify_compares_folders_and_keeps_the_good(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(3)
    boxes, _, _ = particles(rng, 12, noise=0)
    image = ndimage.gaussian_filter(rng.normal(size=(500, 520)), 1) * 0.7
    places = np.array([(x, y) for y in range(40, 460, 80) for x in range(40, 500, 80)], float)[:36]
    for (x, y), box in zip(places.astype(int), boxes, strict=True):
        image[y - 32 : y + 33, x - 32 : x + 33] += box
    formats.write_mrc(tmp_path / "images" / "m.mrc", image.astype(np.float32), 2.0, "SIMULATED")
    formats.write_star(tmp_path / "coords" / "m.star", Picks(places, np.ones(36)))
    empty = places + 40
    formats.write_box(tmp_path / "good" / "m.box", Picks(places, np.ones(36)), 32)
    mixed = Picks(np.vstack([places, empty]) * (1, -1) + (0, 500), np.ones(72))
    formats.write_box(tmp_path / "mixed" / "m.box", mixed, 32)
    command = ["classify", "--picks", tmp_path / "good", tmp_path / "mixed", "--images", tmp_path / "images"]
    options = ["--flip", "mixed", "--classes", 6, "--rounds", 5]
    assert run(*command, *options, "--coords", tmp_path / "coords", "--out", tmp_path / "out") == 0
    said = capfd.readouterr().out
    assert "accuracy" in said and "36934" in said  # the talk's figures stand beside
    table = {row["picks"]: row for row in rows(tmp_path / "out" / "comparison.csv")}
    assert table["good"]["precision %"] == "100.0" and table["mixed"]["precision %"] == "50.0"
    assert float(table["good"]["accuracy %"]) >= 80 and abs(float(table["mixed"]["accuracy %"]) - 50) <= 12
    kept = formats.read_coordinates(tmp_path / "out" / "mixed" / "kept" / "m_autopick.star")
    assert (picking.match(places, kept.xy, 16) >= 0).mean() >= 0.8
    each = rows(tmp_path / "out" / "mixed" / "particles.csv")
    assert len(each) == 72 and sum(row["false"] == "0" for row in each) == len(kept)
    assert (tmp_path / "out" / "mixed" / "gallery.png").stat().st_size > 5000
    assert run(*command, *options, "--out", tmp_path / "out") == 2 and "--overwrite" in capfd.readouterr().err
    assert run(*command, "--flip", "x", "--out", tmp_path / "o2") == 2 and "none of the" in capfd.readouterr().err
    assert run(*command, "--out", tmp_path / "o3") == 2 and "36 particles for 50 classes" in capfd.readouterr().err
    assert run(*command[:3], "--images", tmp_path / "good", "--out", tmp_path / "o4") == 2
    assert "none of the micrographs" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------------ real data


@pytest.fixture(scope="module")
def real(real_data: Callable[[str], Path]) -> Path:
    return real_data("micrographs") / "betagal_10017"


@pytest.mark.data
def test_published_picks_in_one_table(real: Path, tmp_path: Path) -> None:
    names = ("cassper", "cryolo", "gautomatch")
    picks = [real / "pickers" / name for name in names]
    flip = ("--flip", *names, "--height", 4096)
    assert run("score", "--picks", *picks, *flip, "--coords", real / "coords", "--out", tmp_path / "out") == 0
    table = {row["picker"]: float(row["F1"]) for row in rows(tmp_path / "out" / "comparison.csv")}
    assert table == {"cassper": 0.759, "cryolo": 0.842, "gautomatch": 0.533}
    assert len(rows(tmp_path / "out" / "micrographs.csv")) == 36


@pytest.mark.data
def test_the_rule_tells_true_from_false_on_a_real_micrograph(real: Path) -> None:
    entry = data.open_collection(real).entries[8]
    image, truth = formats.read_micrograph(entry.image)[0], data.truth(entry)
    picks = picking.log_picks(enhance.enhance(image, 108)).above(0.3)
    hit = picking.match(truth, picks.xy, 54) >= 0
    found = classify.classify(classify.cut(image, [picks.xy], 108)[0], classes=20, rounds=6, progress=False)
    false = found.false()[found.label]
    assert hit[~false].mean() > hit[false].mean() + 0.3
    assert abs((~false).mean() - hit.mean()) < 0.2
