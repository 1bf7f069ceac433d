"""The bar task: simulated galaxies that leak nothing, readers of good and bad files, the commands end to end."""

from __future__ import annotations

import csv
import gzip
import io
import json
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
fits = pytest.importorskip("astropy.io.fits")

from examples.common import InputError, run_command  # noqa: E402
from examples.galaxy_bars import commands, data, evaluate, network, simulate  # noqa: E402
from examples.galaxy_bars.__main__ import main  # noqa: E402


def command(*arguments: object) -> int:
    """Exit code of a command line."""
    return run_command(main, [str(a) for a in arguments])


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that must end with exit code 2."""
    assert command(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bars") / "galaxies"
    assert command("simulate", "--out", folder, "--n", 40, "--seed", 3) == 0
    return folder


@pytest.fixture(scope="module")
def weights(sample: Path) -> Path:
    path = sample.parent / "bars.safetensors"
    assert command("train", "--data", sample, "--out", path, "--epochs", 2, "--batch-size", 8, "--threads", 1) == 0
    return path


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return simulate.pictures(1, seed=5)[0][0]


def encoded(picture: np.ndarray, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, file_format, **options)
    return buffer.getvalue()


# The simulator


def test_simulation_is_decided_by_its_seed() -> None:
    a, b, c = (simulate.pictures(6, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert a.shape == (6, 64, 64, 3) and a.dtype == np.uint8


def test_only_the_bar_tells_the_classes_apart() -> None:
    images, truth = simulate.pictures(1000, seed=0)
    barred = truth.barred

    def differ(values: np.ndarray) -> float:
        """Difference of the two classes' means in standard errors."""
        a, b = values[barred], values[~barred]
        return abs(a.mean() - b.mean()) / np.hypot(a.std() / np.sqrt(len(a)), b.std() / np.sqrt(len(b)))

    for field in fields(truth):
        if field.name != "barred":
            assert differ(np.asarray(getattr(truth, field.name), float)) < 4, field.name
    grey = images.mean(-1)
    y, x = np.indices((64, 64)) - 31.5
    second_moment = (grey * (x * x + y * y)).sum((1, 2)) / grey.sum((1, 2))
    for name, values in {
        "brightness": grey.mean((1, 2)),
        "edge": data.edge_brightness(images),
        "size": np.sqrt(second_moment),
        "colour": images[..., 0].mean((1, 2)) - images[..., 2].mean((1, 2)),
    }.items():
        assert differ(values) < 4, name


def test_a_bar_is_long_and_its_lens_is_round() -> None:
    truth = simulate.draw(2, np.random.default_rng(0))
    for field in fields(truth):
        values = getattr(truth, field.name)
        values[1] = values[0]
    truth.barred[:] = [True, False]
    truth.inclination[:] = truth.arm_strength[:] = truth.bulge_fraction[:] = 0
    truth.bar_fraction[:], truth.position_angle[:], truth.bar_angle[:] = 0.9, 0, 0
    light = simulate.surface_brightness(truth, 64, 0, np.random.default_rng(0))[:, 1]
    y, x = np.indices((64, 64)) - 31.5
    xx, yy = ((light * q).sum((1, 2)) for q in (x * x, y * y))
    assert xx[0] > 1.5 * yy[0]
    assert abs(xx[1] / yy[1] - 1) < 0.01
    assert abs(light[0].sum() / light[1].sum() - 1) < 0.02  # the same light


def test_components_hold_the_light_they_say() -> None:
    truth = simulate.draw(4, np.random.default_rng(2))
    truth.scale_length[:] = 1.2
    truth.bar_length[:], truth.bulge_radius[:], truth.arm_strength[:] = 1.5, 0.4, 0
    light = simulate.surface_brightness(truth, 256, 64, np.random.default_rng(0))[:, 1].sum((1, 2))
    expected = 10 ** (-0.4 * (truth.magnitude - simulate.ZERO_POINT))
    assert np.all(np.abs(light / expected - 1) < 0.05)


def test_blur_keeps_the_light_and_has_the_seeing_asked_for() -> None:
    point = np.zeros((1, 3, 65, 65), np.float32)
    point[:, :, 32, 32] = 1
    blurred = simulate.blur(point, np.array([1.5]), 0.15)[0, 0]
    assert abs(blurred.sum() - 1) < 1e-3
    assert abs(0.15 * 2 * np.sqrt((blurred > blurred.max() / 2).sum() / np.pi) - 1.5) < 0.15


def test_composite_is_astropys_lupton_composite() -> None:
    from astropy.visualization import make_lupton_rgb

    bands = simulate.galaxies(1, seed=4)[0]
    theirs = make_lupton_rgb(bands[0, 2], bands[0, 1], bands[0, 0], stretch=simulate.STRETCH, Q=simulate.SOFTENING)
    ours = simulate.composite(bands)[0]
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 2


def test_simulated_folder(sample: Path) -> None:
    about = json.loads((sample / "simulated.json").read_text())
    assert about["kind"] == "simulated" and "SIMULATED" in about["note"]
    with open(sample / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40 and sum(row["label"] == "barred" for row in rows) == 20
    assert all((row["bar_length"] == "") == (row["label"] == "unbarred") for row in rows)
    galaxies = data.read_sample(sample)
    assert galaxies.kind == "simulated" and not galaxies.skipped
    expected, truth = simulate.pictures(40, seed=3)
    assert np.array_equal(galaxies.images, expected) and np.array_equal(galaxies.labels, truth.barred)


def test_simulate_replaces_nothing_that_is_not_its_own(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert "--overwrite" in fails(capsys, "simulate", "--out", sample, "--n", 4)
    (tmp_path / "thesis.tex").write_text("x")
    assert "was not made by this program" in fails(capsys, "simulate", "--out", tmp_path, "--n", 4, "--overwrite")
    assert (tmp_path / "thesis.tex").read_text() == "x"
    assert "at least 2 galaxies" in fails(capsys, "simulate", "--out", tmp_path / "a", "--n", 0)
    assert command("simulate", "--out", tmp_path / "b", "--n", 2, "--size", 32, "--format", "jpeg") == 0
    assert command("simulate", "--out", tmp_path / "b", "--n", 4, "--overwrite") == 0
    assert len(data.read_sample(tmp_path / "b")) == 4


# Readers


@pytest.mark.parametrize("file_format, suffix", [("PNG", "png"), ("JPEG", "jpg"), ("JPEG", "JPEG")])
def test_pictures_are_read_back(picture: np.ndarray, tmp_path: Path, file_format: str, suffix: str) -> None:
    path = tmp_path / f"g.{suffix}"
    path.write_bytes(encoded(picture, file_format))
    error = np.abs(data.read_image(path, "g." + suffix).astype(int) - picture)
    assert error.max() == 0 if file_format == "PNG" else error.mean() < 8


def test_grey_palette_alpha_and_16_bit_pictures(picture: np.ndarray) -> None:
    grey = picture.mean(-1).astype(np.uint8)
    for image in (
        Image.fromarray(grey),
        Image.fromarray(picture).convert("P"),
        Image.fromarray(np.dstack([picture, np.full_like(grey, 255)])),
        Image.fromarray(grey.astype(np.uint16) * 257),
    ):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        read = data.read_image(buffer.getvalue(), "g.png")
        assert read.shape == (64, 64, 3) and np.abs(read.mean(-1) - grey).mean() < 12  # palettes dither


def test_other_sizes_keep_the_centre(picture: np.ndarray) -> None:
    large = picture.repeat(3, 0).repeat(3, 1)
    wide = np.concatenate([np.zeros((192, 50, 3), np.uint8), large, np.zeros((192, 50, 3), np.uint8)], axis=1)
    assert np.abs(data.to_field(wide).astype(int) - picture).mean() < 3
    padded = np.pad(picture, ((20, 20), (30, 30), (0, 0)))
    assert np.array_equal(data.to_field(padded, pixel_scale=0.3), picture)
    with pytest.raises(InputError, match=r"cannot give the field of 19\.2 arcsec"):
        data.to_field(picture, "g.png", pixel_scale=0.1)


def write_fits(path: Path, bands: np.ndarray, layout: str) -> None:
    if layout == "cube":
        hdus = [fits.PrimaryHDU(bands)]
    elif layout == "named":
        hdus = [fits.PrimaryHDU(), *(fits.ImageHDU(bands["gri".index(b)], name=b) for b in "irg")]
    elif layout == "three":
        hdus = [fits.PrimaryHDU(bands[0]), fits.ImageHDU(bands[1]), fits.ImageHDU(bands[2])]
    else:
        hdus = [fits.PrimaryHDU(bands[1])]
    fits.HDUList(hdus).writeto(path)


@pytest.mark.parametrize("layout", ["cube", "named", "three", "one"])
@pytest.mark.parametrize("scale, sky", [(1.0, 0.0), (1e4, 500.0), (1e-36, 0.0), (1e36, 0.0)])
def test_fits_images_in_any_unit(tmp_path: Path, layout: str, scale: float, sky: float) -> None:
    bands = simulate.galaxies(1, seed=5)[0][0]
    picture = simulate.pictures(1, seed=5)[0][0]
    path = tmp_path / "g.fits"
    write_fits(path, (bands * scale + sky).astype(">f4"), layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of NumPy or astropy for the user to read
        read = data.read_image(path, "g.fits")[::-1].astype(float)  # FITS counts rows from below
    assert read.shape == (64, 64, 3)
    for c in range(3):
        assert np.corrcoef(read[..., c].ravel(), picture[..., c].astype(float).ravel())[0, 1] > 0.9
    if layout != "one":
        bright = picture.max(-1) > 100
        assert (
            abs(
                np.mean(read[bright][:, 0] / read[bright][:, 2])
                / np.mean(picture[bright][:, 0] / picture[bright][:, 2])
                - 1
            )
            < 0.2
        )


def test_fits_packed_or_with_an_old_header(tmp_path: Path) -> None:
    bands = simulate.galaxies(1, seed=5)[0][0]
    write_fits(tmp_path / "g.fits", bands, "cube")
    plain, content = data.read_image(tmp_path / "g.fits", "g.fits"), (tmp_path / "g.fits").read_bytes()
    assert np.array_equal(data.read_image(gzip.compress(content), "g.fits.gz"), plain)
    end = content.index(b"END" + b" " * 77)
    old = content[:end] + b"COMMENT seeing 1\xb02".ljust(80) + b"END".ljust(80) + content[end + 160 :]
    assert np.array_equal(data.read_image(old, "old.fits"), plain)


def test_pictures_are_read_without_noise(picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    palette = io.BytesIO()
    Image.fromarray(picture).convert("P").save(palette, "PNG", transparency=bytes([0, 9, 255]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # 64 x 64 is "large" now
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.read_image(palette.getvalue(), "p.png").shape == (64, 64, 3)


def bad_files(picture: np.ndarray, folder: Path) -> dict[str, str]:
    """Files nobody can classify -> a word of the complaint each must get."""
    folder.mkdir()
    jpeg, png = encoded(picture, "JPEG"), encoded(picture, "PNG")
    contents = {
        "empty.png": (b"", "empty"),
        "cut.jpeg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "text.jpg": (b"not a picture at all", "neither JPEG nor PNG"),
        "gif.png": (encoded(picture, "GIF"), "neither JPEG nor PNG"),
        "tiny.png": (encoded(picture[:1, :1], "PNG"), "too small"),
        "flat.png": (encoded(np.full_like(picture, 7), "PNG"), "all pixels are equal"),
        "text.fits": (b"SIMPLE? no", "not a FITS image"),
    }
    tile = np.zeros_like(picture)
    tile[5, 5:50:3] = 255
    contents["tile.png"] = (encoded(tile, "PNG"), "error tile")
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    bands = simulate.galaxies(1, seed=5)[0][0]
    write_fits(folder / "nan.fits", np.full_like(bands, np.nan), "cube")
    write_fits(folder / "zero.fits", np.zeros_like(bands), "cube")
    write_fits(folder / "two.fits", bands[:2], "cube")
    write_fits(folder / "whole.fits", bands, "cube")
    (folder / "cut.fits").write_bytes((folder / "whole.fits").read_bytes()[:9000])
    packed = gzip.compress((folder / "whole.fits").read_bytes())
    (folder / "cut.fits.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "hit.fits.gz").write_bytes(packed[:9000] + b"\xff" * 40 + packed[9040:])
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(bands[0])]).writeto(folder / "bad.fits.fz")
    (folder / "bad.fits.fz").write_bytes((folder / "bad.fits.fz").read_bytes().replace(b"TFORM1  = '", b"TFORM1  = ("))
    (folder / "whole.fits").unlink()
    fits.BinTableHDU.from_columns([fits.Column("x", "E", array=[1.0])]).writeto(folder / "table.fits")
    words = {name: word for name, (_, word) in contents.items()}
    return words | {
        "nan.fits": "NaN",
        "zero.fits": "all pixels are equal",
        "two.fits": "expected one image",
        "cut.fits": "truncated",
        "cut.fits.gz": "truncated",
        "bad.fits.fz": "not a FITS image",
        "hit.fits.gz": "truncated",
        "table.fits": "no image",
    }


def test_every_bad_file_gets_one_clear_line(picture: np.ndarray, tmp_path: Path) -> None:
    for name, word in bad_files(picture, tmp_path / "bad").items():
        with pytest.raises(InputError, match=word) as caught:
            data.read_image(tmp_path / "bad" / name, name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        data.read_image(tmp_path / "absent.png", "absent.png")


def test_zip_and_folders_give_the_same_sample(sample: Path, tmp_path: Path) -> None:
    zipped, plain = tmp_path / "zipped", tmp_path / "plain"
    zipped.mkdir()
    plain.mkdir()
    (zipped / "labels_dev.csv").write_bytes((sample / "labels.csv").read_bytes())
    with zipfile.ZipFile(zipped / "images.zip", "w") as archive:
        for path in sample.glob("*barred/*"):
            name = path.relative_to(sample).as_posix()
            archive.write(path, name)
            (plain / name).parent.mkdir(exist_ok=True)
            (plain / name).write_bytes(path.read_bytes())
    wanted = data.read_sample(sample)
    for folder in (zipped, plain):
        got = data.read_sample(folder)
        assert got.kind == "real" and sorted(got.files) == sorted(wanted.files)
        assert network.fingerprint(got) == network.fingerprint(wanted)
        mine, theirs = data.split(got), data.split(wanted)
        for part in data.PARTS:  # the same galaxies, whatever the order
            assert {got.files[k] for k in mine[part]} == {wanted.files[k] for k in theirs[part]}
    (plain / "labels.csv").write_text("file,label\n" + "".join(f"{n},{n.split('/')[0]},9\n" for n in wanted.files))
    assert len(data.read_sample(plain)) == len(wanted)  # cells beyond the header's are nobody's
    damaged = bytearray((zipped / "images.zip").read_bytes())
    with zipfile.ZipFile(zipped / "images.zip") as archive:
        first = archive.infolist()[0]
    flags = first.header_offset + 6, damaged.rindex(first.filename.encode()) - 46 + 8
    for place in flags:
        damaged[place] |= 1  # "encrypted"
    (zipped / "images.zip").write_bytes(damaged)
    assert ["from the zip" in line for line in data.read_sample(zipped).skipped] == [True]
    (zipped / "images.zip").write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(InputError, match="damaged zip"):
        data.read_sample(zipped)


def test_bad_samples(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "w.safetensors"
    train = ("train", "--out", out, "--epochs", 1, "--data")
    capsys.readouterr()
    assert "no such data folder" in fails(capsys, *train, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no galaxies in" in fails(capsys, *train, tmp_path / "empty")
    for content, word in [
        ("file,label\nbarred/a.png,bared\n", "line 2"),
        ("name,kind\na,b\n", "columns file and label"),
        ("file,label\na.png,barred\na.png,barred\n", "twice"),
        ("file,label\na.png,barred\n", "none of the 1 galaxies"),
    ]:
        (tmp_path / "empty" / "labels.csv").write_text(content)
        assert word in fails(capsys, *train, tmp_path / "empty")
    (tmp_path / "empty" / "labels_2.csv").write_text("file,label\n")
    assert "several tables" in fails(capsys, *train, tmp_path / "empty")
    assert command("simulate", "--out", tmp_path / "few", "--n", 6) == 0
    assert "at least 5 of each class" in fails(capsys, *train, tmp_path / "few")
    for option, value in [("--epochs", 0), ("--batch-size", 1), ("--lr", "nan"), ("--threads", 0)]:
        fails(capsys, "train", "--out", out, "--data", sample, option, value)
    assert "is a folder" in fails(capsys, "train", "--out", tmp_path, "--data", sample, "--overwrite")
    assert not out.exists()


# Split and subsets


def test_split_keeps_a_galaxy_together(picture: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    n = 200
    images = rng.integers(0, 255, (n, 64, 64, 3), dtype=np.uint8)
    images[1] = images[0]  # the same picture twice
    ra, dec = rng.uniform(0, 360, n), rng.uniform(-10, 60, n)
    ra[3], dec[3] = ra[2] + 1 / 3600 / np.cos(np.radians(dec[2])), dec[2]  # one arcsec apart
    ra[4:8] = np.nan  # unknown places
    columns = {"ra": ra, "dec": dec}
    galaxies = data.Galaxies([f"g{k:03d}" for k in range(n)], images, np.arange(n) // 4 % 2, columns, "real")
    for seed in range(5):
        parts = data.split(galaxies, seed)
        assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(n))
        home = {int(row): part for part, rows in parts.items() for row in rows}
        assert home[0] == home[1] and home[2] == home[3]
        assert [abs(len(parts[p]) - f * n) <= 3 for p, f in zip(data.PARTS, (0.6, 0.2, 0.2), strict=True)] == [True] * 3
        assert all(abs(galaxies.labels[rows].mean() - 0.5) < 0.03 for rows in parts.values())


def test_subsets() -> None:
    images = np.zeros((4, 64, 64, 3), np.uint8)
    y, x = np.indices((64, 64)) - 31.5
    images[0] = (200 * np.exp(-(x**2 + y**2) / 50))[..., None]
    images[1] = (200 * np.exp(-(x**2 / 100 + y**2 / 4)))[..., None]
    images[2] = (200 * np.exp(-(x**2 + y**2) / 4000))[..., None]
    images[3] = images[0]
    galaxies = data.Galaxies(
        list("abcd"), images, np.array([1, 0, 0, 1]), {"p_bar": np.array([0.9, 0, 0, 1.0])}, "real"
    )
    masks = data.subsets(galaxies)
    assert masks["clean"].tolist() == [True, True, True, False]
    assert masks["fair"].tolist() == [True, False, False, True]


def test_scores_are_the_talks() -> None:
    talk = evaluate.Scores("talk", evaluate.TALK)
    table = evaluate.tables([], "test")["scores"]
    assert [row[2:4] for row in table.rows[:3]] == [["86.41", "95.07"], ["97.83", "93.69"], ["94.10", "94.10"]]
    assert abs(talk.precision_at(1157 / 3898) - 1100 / 1273) < 1e-12
    assert talk.precision_at(0.5) > talk.precision_at(0.3)


def test_folds_test_each_galaxy_once() -> None:
    rng = np.random.default_rng(0)
    n = 103
    images = rng.integers(0, 255, (n, 64, 64, 3), dtype=np.uint8)
    galaxies = data.Galaxies([f"g{k:03d}" for k in range(n)], images, np.arange(n) % 2, {}, "real")
    folds = [data.split(galaxies, 3, 4, fold) for fold in range(4)]
    assert np.array_equal(np.sort(np.concatenate([parts["test"] for parts in folds])), np.arange(n))
    for parts in folds:
        assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(n))
        assert len(parts["validation"]) in (25, 26, 27)
    for folds_, fold in [(2, 0), (5, 5), (5, -1)]:
        with pytest.raises(InputError, match="at least 3 folds"):
            data.split(galaxies, 0, folds_, fold)


# The network and the commands


def test_augmentation_keeps_shape_and_centre(picture: np.ndarray) -> None:
    plain = network.normalise(picture[None])[0]
    for seed in range(8):
        x, label = network.augment((picture, 1), np.random.default_rng(seed))
        assert x.shape == (3, 64, 64) and x.dtype == np.float32 and label == 1
        assert abs(x[:, 24:40, 24:40].mean() - plain[:, 24:40, 24:40].mean()) < 1.2
        again, _ = network.augment((picture, 1), np.random.default_rng(seed))
        assert np.array_equal(x, again)


def test_a_quarter_turn_is_exact(picture: np.ndarray) -> None:
    turned = network.turn(picture, np.pi / 2).astype(int)
    assert np.abs(turned - np.rot90(picture, 1)).max() <= 1
    assert np.abs(network.turn(picture, 0, mirror=-1).astype(int) - picture[:, ::-1]).max() <= 1
    small = network.turn(picture, 0, zoom=0.8).astype(float)
    assert small[28:36, 28:36].mean() < picture[28:36, 28:36].mean()  # more of the sky within the same pixels


def labelled(labels: list[int], p_bar: list[float]) -> data.Galaxies:
    images = np.zeros((len(labels), 64, 64, 3), np.uint8)
    columns = {"p_bar": np.array(p_bar)} if p_bar else {}
    return data.Galaxies([f"g{k}" for k in range(len(labels))], images, np.array(labels), columns, "real")


def test_targets_of_noisy_labels() -> None:
    galaxies = labelled([1, 1, 0], [0.9, 1.0, 0.0])
    assert len(network.usable(galaxies, "clean")) == 2 and len(network.usable(galaxies, "all")) == 3
    assert np.allclose(network.targets(galaxies, "all"), [0.975, 0.975, 0.025])
    assert np.allclose(network.targets(galaxies, "votes"), [0.88, 0.95 * 2 / 3 + 0.025, 0.025])
    assert len(network.usable(labelled([1, 0], []), "clean")) == 2  # no votes: nothing is known to be unclean
    for p_bar in ([], [0.9, np.nan]):
        with pytest.raises(InputError, match="needs the votes"):
            network.targets(labelled([1, 0], p_bar), "votes")


def test_losses_are_their_formulas() -> None:
    from minidl import Tensor, nn

    class Given(nn.Module):
        """Logits whose difference is the input."""

        def forward(self, x: Tensor) -> Tensor:
            return x * Tensor(np.array([-0.5, 0.5], np.float32))

    z, y = np.array([[-2.0], [0.5], [3.0]], np.float32), np.array([0.025, 0.975, 0.025], np.float32)
    p = 1 / (1 + np.exp(-z[:, 0]))
    entropy = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert abs(network.loss(Given(), (z, y)).item() - entropy) < 1e-6
    own = np.where(y > 0.5, p, 1 - p)
    robust = network.loss_of("robust")
    assert abs(robust(Given(), (z, y)).item() - np.mean((1 - own**0.7) / 0.7)) < 1e-6
    assert network.loss_of("clean") is network.loss and network.accuracy(Given(), (z, y)) == 2 / 3
    slope = {}
    for name in ("clean", "robust"):  # a label the network is sure is wrong pulls less
        bias = Tensor(np.array([[-6.0]], np.float32), requires_grad=True)
        batch = np.zeros((1, 1), np.float32), np.ones(1, np.float32)
        network.loss_of(name)(lambda x, b=bias: Given()(x + b), batch).backward()
        slope[name] = abs(float(bias.grad[0, 0]))
    assert slope["robust"] < 0.05 * slope["clean"]


def test_temperature_is_found() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 3, 20_000)
    labels = (rng.random(20_000) < network.sigmoid(z)).astype(int)
    for factor in (0.5, 1, 2.5):  # log odds too small or too large by this factor
        assert abs(network.temperature(factor * z, labels) / factor - 1) < 0.05


def test_views_are_turned_and_mirrored(picture: np.ndarray) -> None:
    model = network.build("resnet")
    images = np.stack([picture, np.rot90(picture), picture[:, ::-1]])
    z = network.log_odds(model, images, 8)
    assert np.allclose(np.sort(z, axis=1), np.sort(z[0]), atol=1e-4) and np.ptp(z[0]) > 1e-4
    more = network.log_odds(model, images[:1], 16)
    assert np.allclose(more[:, :8], z[:1], atol=1e-5) and np.ptp(more[0, 8:]) > 0
    assert np.allclose(network.log_odds(model, images[:1], 1), z[:1, :1], atol=1e-5)
    with pytest.raises(InputError, match="views are 1, 8"):
        network.log_odds(model, images, 3)
    p = network.probabilities(model, images, 8, temperature=2.0)
    assert np.allclose(p, network.sigmoid(z.mean(1) / 2))


def test_probability_does_not_depend_on_the_pictures_orientation(weights: Path, picture: np.ndarray) -> None:
    model, _ = network.load(weights)
    views = np.stack([picture, np.rot90(picture), picture[:, ::-1], picture[::-1]])
    p = network.probabilities(model, views)
    assert np.all((p > 0) & (p < 1)) and np.ptp(p) < 1e-5


@pytest.mark.parametrize("name", ["resnet", "alexnet"])
def test_networks(name: str, picture: np.ndarray) -> None:
    model = network.build(name)
    assert network.probabilities(model, picture[None]).shape == (1,)
    maps = network.feature_maps(model, picture[None])
    assert len(maps) >= 4 and all(array.ndim == 4 for _, array in maps)
    if name == "resnet":
        assert sum(p.data.size for p in model.parameters()) < 300_000


def test_evaluate_writes_tables_and_figures(
    sample: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = sample.parent / "evaluation"
    capsys.readouterr()
    assert command("evaluate", "--data", sample, "--weights", weights, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "95.07" in printed and "test part of the simulated galaxies" in printed
    for name in ("examples", "training", "roc", "precision_recall", "calibration", "mistakes", "features", "attention"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 200, name
    with open(out / "predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 8
    with open(out / "confusion.csv", newline="") as file:
        rows = {row["sample"]: row for row in csv.DictReader(file)}
    assert rows["talk"]["TP"] == "1100"
    assert sum(int(rows["all"][name]) for name in ("TP", "FN", "FP", "TN")) == 8
    evaluate_to = ("evaluate", "--data", sample, "--weights", weights, "--out")
    assert "--overwrite" in fails(capsys, *evaluate_to, out)
    assert "is a file" in fails(capsys, *evaluate_to, weights, "--overwrite")
    monkeypatch.setattr(commands, "evaluate_galaxies", lambda *_: ([], []))
    assert command(*evaluate_to, out, "--overwrite", "--part", "all") == 0
    assert "trained on" in capsys.readouterr().err


def test_predict_reports_a_bad_file_and_goes_on(
    sample: Path, weights: Path, picture: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bars.csv"
    capsys.readouterr()
    assert command("predict", sample / "barred", "--weights", weights, "--out", out) == 0
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and list(rows[0]) == ["file", "p_bar", "spread", "label"]
    assert all((float(row["p_bar"]) >= 0.5) == (row["label"] == "barred") for row in rows)
    assert "--overwrite" in fails(capsys, "predict", sample / "barred", "--weights", weights, "--out", out)

    bad = bad_files(picture, tmp_path / "bad")
    good = sample / "unbarred" / "s00001.png"
    assert command("predict", tmp_path / "bad", good, "--weights", weights, "--out", out, "--overwrite") == 1
    complaints = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(complaints) == len(bad)
    with open(out, newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [str(good)]

    for arguments, word in [
        ((tmp_path / "absent.png",), "none of the 1 pictures"),
        ((tmp_path,), "none of"),
        ((good, "--pixel-scale", -1), "positive"),
        ((good, "--threshold", 2), "0 ... 1"),
    ]:
        assert command("predict", *arguments, "--weights", weights, "--out", tmp_path / "none.csv") == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("error: ") and word in last
    assert not (tmp_path / "none.csv").exists()


def test_weights_of_another_kind_are_refused(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from minidl import checkpoint, nn

    other, broken, running = (tmp_path / f"{name}.safetensors" for name in ("other", "broken", "running"))
    checkpoint.save(running, network.build("resnet"), meta={"task": network.TASK})
    checkpoint.save(other, nn.Linear(2, 2), meta={"task": "stars"})
    broken.write_bytes(b"nothing")
    capsys.readouterr()
    for path, word in [
        (other, "'stars'"),
        (broken, "broken"),
        (running, "unfinished"),
        (tmp_path / "absent", "no weights at"),
    ]:
        for rest in (("evaluate", "--data", sample), ("predict", sample / "barred")):
            assert word in fails(capsys, *rest, "--weights", path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_interrupted_training_resumes_with_the_same_bits(
    sample: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "again.safetensors"
    train = ("train", "--data", sample, "--out", out, "--batch-size", 8, "--threads", 1)
    capsys.readouterr()
    assert "nothing to resume" in fails(capsys, *train, "--epochs", 2, "--resume")
    calls = []

    def interrupted(model: object, batch: object) -> object:
        calls.append(1)
        if len(calls) == 5:  # 3 batches and 1 of validation an epoch: in the second epoch
            raise KeyboardInterrupt
        return whole(model, batch)

    whole = network.loss
    monkeypatch.setattr(network, "loss", interrupted)
    assert command(*train, "--epochs", 2) == 130
    monkeypatch.setattr(network, "loss", whole)
    assert not out.exists()
    capsys.readouterr()
    assert "other options" in fails(capsys, *train, "--epochs", 2, "--lr", 0.1, "--resume")
    assert command(*train, "--epochs", 2, "--resume") == 0
    a, b = network.load(weights)[0].state_dict(), network.load(out)[0].state_dict()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert [p.name for p in tmp_path.iterdir()] == ["again.safetensors"]
    capsys.readouterr()
    assert "--overwrite" in fails(capsys, *train, "--epochs", 2)


def test_the_shipped_weights_are_small_and_tell_their_origin(sample: Path, tmp_path: Path) -> None:
    from examples.galaxy_bars.predict import WEIGHTS

    assert WEIGHTS.stat().st_size < 3_000_000
    model, meta = network.load(WEIGHTS)
    assert sum(p.data.size for p in model.parameters()) < 300_000 and 0.1 < meta["temperature"] < 10
    assert (meta["kind"], meta["split"]) == ("real", {"seed": 0, "folds": 5, "fold": 0})
    assert meta["recipe"] == vars(network.Recipe())  # the defaults of train made them
    assert command("predict", sample / "barred", "--views", 1, "--out", tmp_path / "bars.csv") == 0


@pytest.mark.data
def test_the_shipped_weights_know_the_real_validation_part(real_data: Callable[[str], Path]) -> None:
    from examples.galaxy_bars.predict import WEIGHTS

    galaxies = data.read_sample(real_data("galaxies"))
    model, meta = network.load(WEIGHTS)
    parts = data.split(galaxies, **meta["split"])
    assert network.fingerprint(galaxies[parts["train"]]) == meta["trained_on"]
    held = galaxies[parts["validation"]]
    scores = {s.name: s for s in evaluate.score(held, network.probabilities(model, held.images, views=1))}
    assert scores["clean"].accuracy > 0.97 and scores["clean"].auc > 0.995 and scores["all"].accuracy > 0.85


@pytest.mark.data
def test_real_galaxies_are_learned_above_chance(real_data: Callable[[str], Path]) -> None:
    galaxies = data.read_sample(real_data("galaxies"))
    assert len(galaxies) + len(galaxies.skipped) == 3642 and len(galaxies.skipped) < 10
    assert np.abs(data.edge_brightness(galaxies.images) - galaxies.columns["edge_brightness"]).mean() < 0.1
    assert np.corrcoef(data.axis_ratio(galaxies.images), galaxies.columns["axis_ratio_img"])[0, 1] > 0.75
    parts = data.split(galaxies)
    assert [len(parts[part]) for part in data.PARTS] == [2185, 728, 728]
    validation = galaxies[parts["validation"]]
    recipe = network.Recipe(epochs=3, batch_size=32, lr=1e-3)
    model, _ = network.train(galaxies[parts["train"][::4]], validation, recipe, progress=False)
    some = validation[np.arange(0, len(validation), 2)]
    assert evaluate.roc_auc(some.labels, network.probabilities(model, some.images)) > 0.65
