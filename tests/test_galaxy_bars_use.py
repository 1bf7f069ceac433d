"""The bar task on other people's galaxies: selection, fetching (a stand-in server), preparation, tables."""

from __future__ import annotations

import csv
import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
fits = pytest.importorskip("astropy.io.fits")
pytest.importorskip("matplotlib")

import minidl  # noqa: E402
from examples.common import InputError, run_command  # noqa: E402
from examples.galaxy_bars import catalogue, data, fetch, network, predict, prepare, simulate  # noqa: E402
from examples.galaxy_bars.__main__ import main  # noqa: E402


def command(*arguments: object) -> int:
    """Exit code of a command line."""
    return run_command(main, [str(a) for a in arguments])


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


# Catalogue and selection

TABLE = """#Table1
objid,ra,dec,deVRad_r,petroMag_r,z,petroR50_r,t02_edgeon_a04_yes_debiased,t03_bar_a06_bar_debiased,n_votes
1237648720693755918,180.0,1.0,6.0,16.0,0.05,7.0,0.1,0.9,30
1237648720693755919,181.0,2.0,5.0,13.9,0.05,7.0,0.1,0.0,30
1237648720693755920,182.0,3.0,4.0,16.0,0.25,7.0,0.1,0.0,30
1237648720693755921,183.0,4.0,4.0,16.0,0.05,4.0,0.1,0.0,30
1237648720693755922,184.0,5.0,4.0,16.0,0.05,7.0,0.9,0.0,30
1237648720693755923,185.0,6.0,4.0,16.0,0.05,7.0,0.1,1.0,2
1237648720693755924,186.0,7.0,4.0,16.0,,7.0,0.1,0.0,30
1237648720693755925,187.0,8.0,3.0,17.4,0.20,30.0,0.285,0.0,20
1237648720693755926,188.0,9.0,3.0,17.0,0.10,9.0,0.2,0.5,40
"""


def write_catalogue(path: Path, text: str = TABLE) -> Path:
    path.write_text(text)
    return path


def test_selection_has_the_talks_cuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_catalogue(tmp_path / "cat.csv")
    assert command("select", "--catalogue", table, "--out", tmp_path / "chosen.csv") == 0
    chosen = rows(tmp_path / "chosen.csv")
    assert [(row["objid"][-1], row["label"]) for row in chosen] == [("8", "barred"), ("5", "unbarred"), ("6", "")]
    assert "3 galaxies, 1 barred, 1 unbarred" in capsys.readouterr().out
    wider = ("--r", 10, 20, "--z", 1, "--half-light", 0, 99, "--edge-on", 1, "--votes", 0, "--barred-from", 0.5)
    assert command("select", "--catalogue", table, "--out", tmp_path / "all.csv", *wider) == 0
    assert len(rows(tmp_path / "all.csv")) == 8  # the one without redshift never passes
    assert rows(tmp_path / "all.csv")[-1]["label"] == "barred"
    assert command("select", "--catalogue", table, "--out", tmp_path / "none.csv", "--r", 1, 2) == 2
    assert not (tmp_path / "none.csv").exists()
    capsys.readouterr()
    bare = write_catalogue(tmp_path / "bare.csv", "objid,ra,dec\n5,1,2\n")
    assert command("select", "--catalogue", bare, "--out", tmp_path / "bare_out.csv") == 0
    assert capsys.readouterr().out.count("not cut") == 5  # a missing column is said, not passed over


def test_catalogues_in_csv_and_fits_are_alike(tmp_path: Path) -> None:
    from astropy.table import Table

    text = "objID,RA,Dec,name\n1237648720693755918,180.5,-1.25,M 1\n42,10.0,20.0,M 2\n"
    one = catalogue.read_catalogue(write_catalogue(tmp_path / "a.csv", text))
    columns = [np.array([1237648720693755918, 42]), [180.5, 10.0], [-1.25, 20.0], ["M 1", "M 2"]]
    Table(columns, names=["objID", "RA", "Dec", "name"]).write(tmp_path / "a.fits")
    two = catalogue.read_catalogue(tmp_path / "a.fits")
    assert one.rows == two.rows and one.numbers("dec").tolist() == [-1.25, 20.0]


@pytest.mark.parametrize(
    "text, word",
    [
        ("objid,ra\n1,2\n", "no column dec"),
        ("objid,ra,dec\n", "no galaxies"),
        ("objid,ra,dec\n1,2,3\n1,2,3\n", "row 2: objid '1': also in row 1"),
        ("objid,ra,dec\n../../x,2,3\n", "letters, digits"),
    ],
)
def test_bad_catalogues(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        catalogue.read_catalogue(write_catalogue(tmp_path / "cat.csv", text))
    (tmp_path / "cat.fits").write_bytes(b"no table")
    with pytest.raises(InputError, match="not a FITS table"):
        catalogue.read_catalogue(tmp_path / "cat.fits")


# Fetching


class StandIn(ThreadingHTTPServer):
    """The image service as far as `fetch` knows it: `faults` maps ra to the answers it gives before the right one."""

    def __init__(self, faults: dict[float, list[str]]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.faults, self.asked, self.times = faults, [], []  # type: ignore[var-annotated]
        self.picture = jpeg(simulate.pictures(1, seed=5)[0][0])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/getjpeg"


class Answer(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlparse(self.path).query).items()}
        self.server.asked.append(query)
        self.server.times.append(time.monotonic())
        faults = self.server.faults.get(float(query["ra"]), [])
        fault = faults.pop(0) if faults else ""
        content = {"tile": jpeg(np.zeros((64, 64, 3), np.uint8)), "words": b"<html>busy</html>"}.get(
            fault, self.server.picture
        )
        self.send_response(int(fault) if fault.isdigit() else 200)
        if fault == "503":
            self.send_header("Retry-After", "3")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:200] if fault == "cut" else content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[StandIn]:
    stand_in = StandIn({})
    thread = threading.Thread(target=stand_in.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield stand_in
    stand_in.shutdown()
    stand_in.server_close()
    thread.join()


def galaxies(n: int) -> catalogue.Catalogue:
    """A catalogue of n galaxies at ra = 0, 1, 2 ..., every other one barred."""
    return catalogue.Catalogue(
        [
            {"objid": f"g{k}", "ra": f"{k}", "dec": "30", "deVRad_r": f"{4 + k}", "p_bar": f"{0.9 * (k % 2)}"}
            for k in range(n)
        ]
    )


def test_fetch_tries_again_goes_on_and_checks(server: StandIn, tmp_path: Path) -> None:
    server.faults = {1.0: ["503", "cut"], 2.0: ["404"], 3.0: ["tile"], 4.0: ["500", "500", "500"]}
    waits: list[float] = []
    service = fetch.Service(server.url, rate=1e6, tries=3, timeout=5, sleep=waits.append)
    done = fetch.fetch(galaxies(6), tmp_path / "cut", service, radii=4, size=64)
    assert sorted(done.files) == ["g0", "g1", "g5"] and done.new == 3
    assert [line.split(":")[0] for line in done.failures] == ["g2", "g3", "g4"]
    assert ["404" in done.failures[0], "all pixels" in done.failures[1], "3 times" in done.failures[2]] == [True] * 3
    assert [query["ra"][0] for query in server.asked] == list("0111234445")  # refused for good: asked once
    assert [w for w in waits if w > 0.1] == [3, 2, 1, 2]  # the server's own wish first
    assert server.asked[0] == {
        "ra": "0.000000", "dec": "30.000000", "scale": "0.25000", "width": "64", "height": "64",
    }  # fmt: skip
    assert {row["label"] for row in rows(tmp_path / "cut" / "labels.csv")} == {"barred", "unbarred"}
    sample = data.read_sample(tmp_path / "cut")
    assert len(sample) == 3 and sample.columns["p_bar"].tolist() == [0, 0.9, 0.9]

    (tmp_path / "cut" / "g0.jpeg").write_bytes(b"bit rot")
    with open(tmp_path / "cut" / fetch.MANIFEST, "a") as file:
        file.write("g9.jpeg,g9,0123")  # cut off by a crash
    server.asked.clear()
    again = fetch.fetch(galaxies(6), tmp_path / "cut", service, radii=4, size=64)
    assert [query["ra"][0] for query in server.asked] == list("0234") and again.new == 4 and len(again.files) == 6
    assert (tmp_path / "cut" / "g0.jpeg").read_bytes() == server.picture
    server.asked.clear()
    assert fetch.fetch(galaxies(6), tmp_path / "cut", service, radii=4, size=64).new == 0 and not server.asked
    assert fetch.fetch(galaxies(6), tmp_path / "cut", service, radii=5, size=64).new == 6  # another field: anew


def test_fetch_keeps_the_rate_and_stops_when_the_service_is_down(server: StandIn, tmp_path: Path) -> None:
    fetch.fetch(galaxies(4), tmp_path / "slow", fetch.Service(server.url, rate=20))
    assert np.all(np.diff(server.times) > 0.04)
    server.faults = {float(k): ["words"] for k in range(40)}
    server.asked.clear()
    with pytest.raises(InputError, match="10 galaxies in a row"):
        fetch.fetch(galaxies(40), tmp_path / "down", fetch.Service(server.url, rate=1e6))
    assert len(server.asked) == fetch.GIVE_UP
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not made by fetch"):
        fetch.fetch(galaxies(1), tmp_path / "mine", fetch.Service(server.url))


def test_fetch_from_the_command_line(server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_catalogue(tmp_path / "cat.csv")
    options = ("fetch", "--catalogue", table, "--out", tmp_path / "cut", "--service", server.url, "--rate", 1000)
    server.faults = {182.0: ["403"]}
    assert command(*options) == 1
    assert "8 cut-outs" in capsys.readouterr().out
    assert command(*options) == 0
    assert "9 cut-outs" in capsys.readouterr().out
    assert float(server.asked[0]["scale"]) == 0.3  # 19.2 arcsec in 64 pixels
    for bad in (("--rate", 0), ("--radii", -1), ("--size", 8)):
        assert command(*options, *bad) == 2


# Preparation


def sky(scale: float, radius: float = 5.0, n: int = 160, centre: tuple[float, float] = (80.0, 70.0)) -> np.ndarray:
    """A spiral-free barred galaxy in g, r, i, `radius` arcsec large, `scale` arcsec per pixel.     -> (3, n, n)"""
    y, x = (np.indices((n, n)) - np.array(centre[::-1])[:, None, None]) * scale / radius
    light = np.exp(-1.7 * np.hypot(x, y)) + 1.5 * np.exp(-((x / 0.8) ** 2) - (y / 0.2) ** 2)
    return np.stack([0.6 * light, light, 1.3 * light]) + 0.01


def write_image(path: Path, planes: np.ndarray, scale: float, place: tuple[float, float], dec: float = 30.0) -> None:
    """A FITS file with world coordinates: the pixel `place` (x, y from 0) lies at ra 150."""
    header = fits.Header(
        {
            "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": place[0] + 1, "CRPIX2": place[1] + 1,
            "CRVAL1": 150.0, "CRVAL2": dec, "CDELT1": -scale / 3600, "CDELT2": scale / 3600,
        }
    )  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    fits.PrimaryHDU(planes.astype(np.float32), header).writeto(path)


def test_prepared_galaxies_fill_their_field_alike(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    write_image(images / "near.fits", sky(0.4, 8.0), 0.4, (80, 70))
    write_image(images / "far.fits", sky(0.3, 5.0, centre=(75, 85)), 0.3, (75, 85))  # smaller, elsewhere in the image
    for k, band in enumerate("gri"):
        write_image(images / f"bands-{band}.fits", sky(0.4, 8.0)[k], 0.4, (80, 70))
    text = "objid,ra,dec,deVRad_r,p_bar\n" + "".join(
        f"{name},150,30,{radius},{votes}\n"
        for name, radius, votes in [("near", 8, 0.9), ("far", 5, 0.4), ("bands", 8, 0), ("none", 5, 0), ("wide", 90, 0)]
    )
    write_image(images / "wide.fits", sky(0.4), 0.4, (80, 70))
    table = write_catalogue(tmp_path / "cat.csv", text)
    options = ("--catalogue", table, "--images", images, "--out", out)
    assert command("prepare", *options) == 1  # none and wide are reported
    made = {row["objid"]: data.read_image(out / row["file"], row["file"]) for row in rows(out / "prepared.csv")}
    assert list(made) == ["near", "far", "bands"]
    assert np.array_equal(made["near"], made["bands"])
    difference = np.abs(made["near"].astype(float) - made["far"])
    assert difference.mean() < 1.5 and made["near"].std() > 20
    middle = np.unravel_index(made["far"].sum(-1).argmax(), (64, 64))
    assert np.abs(np.array(middle) - 31.5).max() < 1.6
    labelled = rows(out / "labels.csv")
    assert [(row["file"], row["label"], row["p_bar"]) for row in labelled] == [
        ("near.png", "barred", "0.9"),
        ("bands.png", "unbarred", "0"),
    ]
    assert command("prepare", *options) == 2  # not over what is there
    assert command("prepare", *options, "--overwrite", "--size", 150, "--radii", 3) == 1
    with Image.open(out / "near.png") as image:
        assert image.size == (150, 150)


def test_preparation_says_what_is_wrong(tmp_path: Path) -> None:
    for k, band in enumerate("gri"):
        write_image(tmp_path / "i" / f"shifted-{band}.fits", sky(0.4)[k], 0.4, (80 + 2 * k, 70))
    for band in "gr":
        write_image(tmp_path / "i" / f"two-{band}.fits", sky(0.4)[0], 0.4, (80, 70))
    write_image(tmp_path / "i" / "edge.fits", sky(0.4), 0.4, (10, 70))
    fits.PrimaryHDU(sky(0.4)).writeto(tmp_path / "i" / "plain.fits")  # no coordinates: the middle
    found = prepare.find_images(tmp_path / "i")

    def cut(name: str, field: float = 20.0) -> np.ndarray:
        bands, headers = prepare.read_bands(found[name], name)
        return prepare.cut_out(bands, headers, 150, 30, field, 64, 0.4, name)

    for name, word in [("shifted", "not aligned"), ("two", "no image in i"), ("edge", "leaves the image")]:
        with pytest.raises(InputError, match=word):
            cut(name)
    with pytest.raises(InputError, match="only 5 pixels"):
        cut("plain", 2.0)
    with pytest.raises(InputError, match="not a positive number"):
        cut("plain", float("nan"))
    assert cut("plain", 64.0).shape == (64, 64, 3)
    with pytest.raises(InputError, match="deVRad_r"):
        prepare.prepare(catalogue.Catalogue([{"objid": "a", "ra": "1", "dec": "1"}]), tmp_path / "i", tmp_path / "o")


# Prediction of many


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network: its answers are worthless, but answers."""
    path = tmp_path_factory.mktemp("use") / "w.safetensors"
    minidl.manual_seed(0)
    about = {"kind": "simulated", "split": {"seed": 0}, "temperature": 0.5, "trained_on": "", "history": []}
    network.save(path, network.build("resnet"), network.Recipe(), about)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty cut-outs, two of them bad."""
    path = tmp_path_factory.mktemp("many")
    for k, picture in enumerate(simulate.pictures(40, seed=1)[0]):
        (path / f"{1000 + k}.jpeg").write_bytes(jpeg(picture) if k % 20 != 7 else b"bad")
    return path


def test_interrupted_prediction_goes_on_to_the_same_table(
    weights: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "BATCH", 8)
    whole, out = tmp_path / "whole.csv", tmp_path / "bars.csv"
    running = tmp_path / "bars.csv.running.csv"
    options = ("predict", folder, "--weights", weights, "--threads", 1)
    assert command(*options, "--out", whole) == 1
    assert "38 galaxies" in capsys.readouterr().out and len(rows(whole)) == 38
    calls = []

    def interrupted(*arguments: Any) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answers(*arguments)

    answers = network.log_odds
    monkeypatch.setattr(network, "log_odds", interrupted)
    assert command(*options, "--out", out) == 130
    assert not out.exists() and running.read_text().count("\n") == 1 + 15  # two batches, one bad file
    with open(running, "a") as file:
        file.write(str(folder / "1020.jpeg") + ",0.12")  # a crash amid a line
    assert command(*options, "--out", out) == 2  # would throw the work away
    assert command(*options, "--out", out, "--resume", "--views", 1) == 2
    calls.clear()
    calls.extend([1, 1, 1])
    assert command(*options, "--out", out, "--resume") == 1
    assert len(calls) == 3 + 4 and out.read_bytes() == whole.read_bytes()
    assert not running.exists()
    assert command(*options, "--out", tmp_path / "new.csv", "--resume") == 2  # nothing to resume
    assert command(*options, "--out", tmp_path / "new.fits.gz") == 2


def test_predictions_are_calibrated_with_a_spread(weights: Path, folder: Path, tmp_path: Path) -> None:
    files = [folder / f"{n}.jpeg" for n in (1000, 1001, 1002)]
    assert command("predict", *files, "--weights", weights, "--out", tmp_path / "p.csv") == 0
    model, meta = network.load(weights)
    z = network.log_odds(model, np.stack([data.read_image(path, "g.jpeg") for path in files])) / meta["temperature"]
    for row, own in zip(rows(tmp_path / "p.csv"), z, strict=True):
        assert abs(float(row["p_bar"]) - 1 / (1 + np.exp(-own.mean()))) < 1e-4
        assert abs(float(row["spread"]) - np.std(1 / (1 + np.exp(-own)))) < 1e-4


def test_names_that_are_not_ascii_go_into_fits_tables(weights: Path, folder: Path, tmp_path: Path) -> None:
    named = tmp_path / "é1.jpeg"
    named.write_bytes((folder / "1000.jpeg").read_bytes())
    assert command("predict", named, "--weights", weights, "--out", tmp_path / "p.fits") == 0
    assert str(fits.getdata(tmp_path / "p.fits")["file"][0]).endswith("\\xe91.jpeg")


def test_catalogue_is_joined_by_objid(
    weights: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from astropy.table import Table

    text = "objid,ra,dec,label,z\n1002,1.5,2,SB,0.1\n1000,3,4,SA,\n9,5,6,S,0.3\n"
    table = write_catalogue(tmp_path / "cat.csv", text)
    files = [folder / f"{n}.jpeg" for n in (1000, 1001, 1002)]
    options = ("predict", *files, "--weights", weights, "--catalogue", table, "--views", 1, "--out")
    assert command(*options, tmp_path / "p.csv") == 0
    assert "2 of them in the catalogue, which has 1 galaxies without a readable picture" in capsys.readouterr().out
    joined = rows(tmp_path / "p.csv")
    assert [row["objid"] for row in joined] == ["1000", "1001", "1002"]
    assert [row["catalogue_label"] for row in joined] == ["SA", "", "SB"]
    assert joined[2]["ra"] == "1.5" and joined[0]["label"] in data.CLASSES
    assert command(*options, tmp_path / "p.fits") == 0
    same = Table.read(tmp_path / "p.fits")
    assert same["objid"].tolist() == [1000, 1001, 1002] and same["ra"][2] == 1.5
    assert np.isnan(np.ma.filled(same["z"].astype(float), np.nan)[[0, 1]]).all()
    assert np.allclose(same["p_bar"], [float(row["p_bar"]) for row in joined])
