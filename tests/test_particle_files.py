"""Files of the particle picker: coordinates in five formats, masks, stacks for RELION; runs that watch or resume."""

from __future__ import annotations

import itertools
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy")
pytest.importorskip("PIL")
mrcfile = pytest.importorskip("mrcfile")

from examples.common import InputError, run_command  # noqa: E402
from examples.particle_picking import formats, network, picking, predict, stacks  # noqa: E402
from examples.particle_picking.__main__ import main  # noqa: E402
from examples.particle_picking.formats import Picks  # noqa: E402


def run(*argv: object) -> int:
    """The command line, as a user meets it."""
    return run_command(main, [str(a) for a in argv])


# ------------------------------------------------------------------------------------------------------ coordinates

centres = st.lists(st.tuples(st.floats(0, 9000), st.floats(0, 9000)), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(points=centres, box=st.integers(2, 501), first=st.sampled_from(formats.COORDINATE_SUFFIXES))
def test_any_format_becomes_any_other_within_half_a_pixel(
    tmp_path_factory: pytest.TempPathFactory, points: list, box: int, first: str
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    xy = np.array(points, np.float64)
    picks = Picks(xy, np.linspace(0.25, 1, len(xy)), np.linspace(10, 20, len(xy)))
    formats.write_coordinates(folder / f"a{first}", picks, box)
    for to in formats.COORDINATE_SUFFIXES:
        assert run("convert", folder / f"a{first}", "--to", to[1:], "--box", box, "--out", folder / to[1:]) == 0
        (written,) = (folder / to[1:]).iterdir()
        assert formats.stem(written) == "a" and written.suffix == to
        back = formats.read_coordinates(written)
        assert np.abs(back.xy - xy).max() <= (0.501 if ".box" in (first, to) else 0.01)
        if ".box" not in (first, to):
            np.testing.assert_allclose(back.score, picks.score, atol=1e-5)
        if {first, to} <= {".cbox", ".csv"}:
            np.testing.assert_allclose(back.size, picks.size, atol=0.006)
        if to in (".box", ".cbox"):
            assert back.box == box


def test_topaz_table_of_many_micrographs(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "t.txt").write_text("image_name\tx_coord\ty_coord\tscore\nm1\t10\t20\t-1.5\nm2\t5\t6\t3\nm1\t7\t8\t2\n")
    with pytest.raises(InputError, match="several micrographs"):
        formats.read_coordinates(tmp_path / "t.txt")
    found = formats.read_all(tmp_path / "t.txt")
    assert found["m1"].xy.tolist() == [[10, 20], [7, 8]] and found["m2"].score.tolist() == [3]
    assert run("convert", tmp_path / "t.txt", "--to", "star", "--threshold", 0, "--out", tmp_path / "s") == 0
    assert formats.read_coordinates(tmp_path / "s" / "m1_autopick.star").xy.tolist() == [[7, 8]]
    assert run("convert", tmp_path / "s", "--to", "txt", "--flip-height", 100, "--out", tmp_path / "back") == 0
    assert (tmp_path / "back" / "m1.txt").read_text().splitlines()[1].split("\t")[:3] == ["m1", "7.0000", "92.0000"]
    assert run("convert", tmp_path / "t.txt", "--to", "box", "--out", tmp_path / "b") == 2
    assert "give --box" in capfd.readouterr().err
    assert run("convert", tmp_path / "s", tmp_path / "t.txt", "--to", "csv", "--out", tmp_path / "c") == 2
    assert "stands in another file too" in capfd.readouterr().err


def test_folders_leave_other_tables_alone(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("not coordinates\n")
    (tmp_path / "index.csv").write_text("micrograph,n\nm1,3\n")
    formats.write_star(tmp_path / "m1_autopick.star", Picks(np.ones((1, 2)), np.ones(1)))
    formats.write_cbox(tmp_path / "m1.cbox", Picks(np.ones((2, 2)), np.ones(2)), 8)
    assert [path.name for path in formats.coordinate_files(tmp_path)] == ["m1_autopick.star", "m1.cbox"]
    assert (
        len(formats.read_folder(tmp_path)["m1"]) == 1 and len(formats.read_folder(tmp_path, candidates=True)["m1"]) == 2
    )


def test_masks_as_png_and_mrc(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 4, (40, 50)).astype(np.uint8)
    for name in ("m.png", "m.mrc"):
        formats.write_mask(tmp_path / name, mask, 1.77)
        np.testing.assert_array_equal(formats.read_mask(tmp_path / name), mask)
    with mrcfile.open(tmp_path / "m.mrc") as file:
        assert file.header.mode == 0 and file.voxel_size.x == pytest.approx(1.77)
    mask[0, 0] = 255
    formats.write_mask(tmp_path / "u.mrc", mask)
    np.testing.assert_array_equal(formats.read_mask(tmp_path / "u.mrc"), mask)


def test_large_micrographs_are_in_memory_once(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 900, (1500, 1600)).astype(np.int16)
    formats.write_mrc(tmp_path / "m.mrc", image, 1.5, "x")
    tracemalloc.start()
    read, _ = formats.read_micrograph(tmp_path / "m.mrc")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read[3, 4] == image[3, 4] and peak < 1.5 * read.nbytes  # one float32 copy, and a mask of what is finite
    short = (tmp_path / "m.mrc").read_bytes()[:1030]
    (tmp_path / "m.mrc").write_bytes(short)
    assert formats.pixel_size(tmp_path / "m.mrc") == pytest.approx(1.5)  # of the header alone


# ------------------------------------------------------------------------------------------------------------ stacks


@pytest.mark.parametrize("box", [8, 26])
def test_stack_is_cut_as_relion_cuts(tmp_path: Path, box: int) -> None:
    starfile = pytest.importorskip("starfile")
    image = np.random.default_rng(1).normal(500, 4, (60, 70)).astype(np.float32)
    image += np.add.outer(0.5 * np.arange(60), np.arange(70))  # a plane that must go
    picks = Picks(np.array([[30.9, 20.2], [1.0, 2.0], [300, 5]]), np.array([0.5, np.nan, 0.7]))
    for x, y in ((30, 20), (1, 2)):
        image[y, x] -= 400  # a dark pixel at the centre, rounded down
    target = {"source": Path("mics/m.mrc"), "place": Path("out/m_particles.mrcs")}
    stacks.write_stack(tmp_path / "m_particles.mrcs", image, picks, box, 1.77, **target)
    assert mrcfile.validate(tmp_path / "m_particles.mrcs")
    with mrcfile.open(tmp_path / "m_particles.mrcs") as file:
        assert file.is_image_stack() and file.data.shape == (2, box, box)  # the third pick lies outside
        assert file.voxel_size.x == pytest.approx(1.77)
        boxes = np.array(file.data)
    y, x = np.mgrid[:box, :box] - box // 2
    outside = np.hypot(y, x) > 0.375 * box
    for one in boxes:
        assert np.unravel_index(one.argmax(), one.shape) == (box // 2, box // 2)  # white now
        assert abs(one[outside].mean()) < 1e-4 and one[outside].std() == pytest.approx(1, abs=1e-3)
    table = starfile.read(tmp_path / "m_particles.star")
    assert table["optics"]["rlnImagePixelSize"].item() == pytest.approx(1.77)
    assert table["optics"]["rlnImageSize"].item() == box
    rows = table["particles"]
    assert rows["rlnImageName"].tolist() == ["000001@out/m_particles.mrcs", "000002@out/m_particles.mrcs"]
    assert set(rows["rlnMicrographName"]) == {"mics/m.mrc"} and rows["rlnCoordinateX"].tolist() == [30.9, 1.0]
    assert rows["rlnAutopickFigureOfMerit"].tolist() == [0.5, -999]


def test_what_lies_beyond_the_rim_repeats_the_nearest_pixel() -> None:
    image = np.arange(40 * 40, dtype=np.float32).reshape(40, 40) % 7
    inner = stacks.extract(np.pad(image, 10, mode="edge"), Picks(np.array([[12.0, 11.0]]), np.ones(1)), 12)
    np.testing.assert_allclose(stacks.extract(image, Picks(np.array([[2.0, 1.0]]), np.ones(1)), 12), inner, atol=1e-4)


def test_odd_boxes_are_refused_as_relion_does(tmp_path: Path) -> None:
    picks, target = Picks(np.ones((1, 2)), np.ones(1)), {"source": Path("m"), "place": Path("p")}
    with pytest.raises(InputError, match="even"):
        stacks.write_stack(tmp_path / "m.mrcs", np.ones((40, 40), np.float32), picks, 9, 1.0, **target)


# ------------------------------------------------------------------------------------------------- watch and resume


class Quick:
    """Stands in for a trained picker: a Laplacian of Gaussian, with a number of micrographs after which it stops."""

    threshold = 0.6
    meta = {"diameter": 30.0, "apix": None, "kind": "simulated"}  # noqa: RUF012

    def __init__(self) -> None:
        self.left = 99

    def look(self, enhanced):  # type: ignore[no-untyped-def]
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        picks = picking.log_picks(enhanced)
        probability = np.full((4, *enhanced.image.shape), 0.25, np.float32)
        return Picks(picks.xy, picks.score, np.full(len(picks), 31.0)), probability


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quick:
    """Three micrographs in `in`, a file as weights, and the picker that it loads as."""
    picker = Quick()
    monkeypatch.setattr(network, "load_picker", lambda path: picker)
    (tmp_path / "w").write_bytes(b"weights")
    yy, xx = np.mgrid[:200, :220]
    for k in range(3):
        rng = np.random.default_rng(k)
        image = rng.normal(0, 0.2, yy.shape)
        for x, y in rng.uniform(30, 170, (5, 2)):
            image -= np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 80)
        formats.write_mrc(tmp_path / "in" / f"m{k}.mrc", image.astype(np.float32), 2.0, "SIMULATED")
    return picker


def test_an_interrupted_run_goes_on(quick: Quick, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    command = ("predict", tmp_path / "in", "--weights", tmp_path / "w", "--out", tmp_path / "out")
    quick.left = 2
    assert run(*command) == 130 and "2 micrographs are done: --resume goes on" in capfd.readouterr().err
    first = (tmp_path / "out" / "m0.cbox").stat().st_mtime_ns
    assert run(*command) == 2 and "give --resume" in capfd.readouterr().err
    assert run(*command, "--resume", "--threshold", 0.5) == 2
    assert "begun with another threshold" in capfd.readouterr().err
    quick.left = 1  # only the third is picked anew
    (tmp_path / "in" / "a_bad.mrc").write_bytes(b"x" * 2000)
    assert run(*command, "--resume") == 1
    said = capfd.readouterr()
    assert said.err.count("a_bad.mrc") == 1 and "1 of 4 micrographs failed" in said.err
    assert (tmp_path / "out" / "m0.cbox").stat().st_mtime_ns == first
    saved = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert sorted(saved["done"]) == ["m0", "m1", "m2"] and saved["done"]["m2"]["median_size"] == 31
    assert formats.read_coordinates(tmp_path / "out" / "m2.cbox").size[0] == 31


def test_everything_that_can_be_written(quick: Quick, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    starfile = pytest.importorskip("starfile")
    command = ("predict", tmp_path / "in", "--weights", tmp_path / "w", "--out", tmp_path / "out")
    kinds = list(predict.OUTPUTS)
    assert run(*command, "--write", *kinds) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    wanted = {f"m{k}{end}" for k in range(3) for end in (*predict.OUTPUTS.values(), "_particles.mrcs")}
    assert names == wanted | {"particles.star", "predict.json"}
    picks = formats.read_coordinates(tmp_path / "out" / "m1_autopick.star")
    for end in (".txt", ".csv"):
        np.testing.assert_allclose(formats.read_coordinates(tmp_path / "out" / f"m1{end}").xy, picks.xy, atol=1e-3)
    joined = starfile.read(tmp_path / "out" / "particles.star")
    total = sum(len(p) for p in formats.read_folder(tmp_path / "out").values())
    assert run("convert", tmp_path / "out", "--to", "box", "--box", 9, "--out", tmp_path / "boxes") == 0
    assert len(formats.read_coordinates(tmp_path / "boxes" / "m1.box")) == len(picks)
    assert len(joined["particles"]) == total > 9 and joined["optics"]["rlnImageSize"].item() == 46
    assert f"{total} particles in" in capfd.readouterr().out
    assert run(*command, "--write", "stack", "--box", 33, "--overwrite") == 2
    assert capfd.readouterr().err.count("RELION takes boxes of even side") == 3
    formats.write_mrc(tmp_path / "in2" / "u.mrc", formats.read_micrograph(tmp_path / "in" / "m0.mrc")[0], 0, "x")
    other = ("predict", tmp_path / "in2", "--weights", tmp_path / "w", "--out", tmp_path / "out2")
    assert run(*other, "--write", "stack") == 2 and "give --apix" in capfd.readouterr().err


def test_a_watched_folder_gives_each_file_when_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mrc").write_bytes(b"1")
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    actions = iter([
        lambda: (tmp_path / "b.mrc").write_bytes(b"half"),
        lambda: (tmp_path / "b.mrc").write_bytes(b"nearly all"),
        lambda: (tmp_path / ".c.mrc").write_bytes(b"hidden while it is copied"),
        lambda: (tmp_path / ".c.mrc").rename(tmp_path / "c.mrc"),
        lambda: None,
        lambda: (tmp_path / "a.mrc").write_bytes(b"another"),
    ])  # fmt: skip
    slept: list[int] = []

    def sleep(seconds: float) -> None:
        slept.append(1)
        next(actions, lambda: None)()

    monkeypatch.setattr(time, "sleep", sleep)
    given = [(path.name, len(slept)) for path in predict.watched([tmp_path], idle=20)]
    # seen at look 0, 1, 2, 4, 6 for the last time changed; given one look later
    assert given == [("a.mrc", 1), ("b.mrc", 3), ("c.mrc", 5), ("a.mrc", 7)]


def test_watching_picks_what_comes_and_forgives_a_file_that_was_completed(
    quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    whole = (tmp_path / "in" / "m2.mrc").read_bytes()
    (tmp_path / "in" / "m2.mrc").write_bytes(whole[:3000])
    looks = itertools.count()
    clock = itertools.count()
    monkeypatch.setattr(predict, "POLL", 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(
        time, "sleep", lambda s: (tmp_path / "in" / "m2.mrc").write_bytes(whole) if next(looks) == 3 else None
    )
    command = ("predict", tmp_path / "in", "--weights", tmp_path / "w", "--out", tmp_path / "out", "--watch-for", 30)
    assert run(*command) == 0
    said = capfd.readouterr()
    assert said.err.count("m2.mrc") == 1 and "3 micrographs in" in said.out
    assert run("predict", tmp_path / "in" / "m0.mrc", *command[2:5], tmp_path / "o2", "--watch") == 2
    assert "--watch takes folders" in capfd.readouterr().err


def test_ctrl_c_ends_a_watch_in_peace(quick: Quick, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    quick.left = 1
    predict_poll, predict.POLL = predict.POLL, 0.0
    try:
        assert run("predict", tmp_path / "in", "--weights", tmp_path / "w", "--out", tmp_path / "out", "--watch") == 0
    finally:
        predict.POLL = predict_poll
    assert "particles on 1 micrographs" in capfd.readouterr().out
