"""The page to look at picks: complete in one file, and driven in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("PIL")
pytest.importorskip("mrcfile")

from examples.common import run_command
from examples.particle_picking import formats, picking
from examples.particle_picking.__main__ import main
from examples.particle_picking.formats import Picks

DIAMETER = 30


def run(*argv: object) -> int:
    """The command line, as a user meets it."""
    return run_command(main, [str(a) for a in argv])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two micrographs with truth, candidates of all scores and sizes, one mask; and the page of them."""
    folder = tmp_path_factory.mktemp("view")
    for k in range(2):
        rng = np.random.default_rng(k)
        image = rng.normal(100, 10, (300, 400)).astype(np.float32)
        formats.write_mrc(folder / "images" / f"m{k}.mrc", image, 2.0, "SIMULATED")
        truth = rng.uniform((0, 0), (400, 300), (40, 2))
        found = np.vstack([truth[:30] + rng.normal(0, 6, (30, 2)), rng.uniform((0, 0), (400, 300), (20, 2))])
        picks = Picks(found, rng.uniform(0.1, 0.9, 50).round(3), rng.uniform(25, 35, 50))
        formats.write_cbox(folder / "picks" / f"m{k}.cbox", picks, DIAMETER)
        formats.write_star(folder / "coords" / f"m{k}.star", Picks(truth, np.ones(40)))
    mask = np.zeros((300, 400), np.uint8)
    mask[100:200, 50:90], mask[:20] = 2, 1
    formats.write_mask(folder / "picks" / "m1_mask.png", mask)
    (folder / "picks" / "predict.json").write_text(json.dumps({"about": {"threshold": 0.5}, "done": {}}))
    command = ("view", folder / "picks", "--images", folder / "images", "--coords", folder / "coords")
    assert run(*command, "--diameter", DIAMETER, "--side", 200, "--out", folder / "page.html") == 0
    return folder


def counts(folder: Path, threshold: float) -> tuple[list[int], list[int]]:
    """(picked, hits, marked) of m0, and of both, by the program's own matching."""
    totals = []
    for k in range(2):
        truth = formats.read_coordinates(folder / "coords" / f"m{k}.star").xy
        picks = formats.read_coordinates(folder / "picks" / f"m{k}.cbox").above(threshold)
        score = picking.score(truth, picks, DIAMETER / 2)
        totals.append([score.picked, score.hits, score.marked])
    return totals[0], np.sum(totals, 0).tolist()


def test_the_page_is_complete_and_asks_nothing_of_anyone(folder: Path) -> None:
    page = (folder / "page.html").read_text()
    assert not re.findall(r"""(?:src|href|url\(|import|fetch)\s*=?\s*["'(]?\s*(?:https?:)?//""", page)
    content = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert [item["name"] for item in content["items"]] == ["m0", "m1"] and content["threshold"] == 0.5
    assert sorted(content["items"][1]["layers"]) == ["ice", "micrograph", "protein"]
    assert all(uri.startswith("data:image/") for uri in content["items"][1]["layers"].values())
    assert 'lang="en"' in page and "prefers-color-scheme" in page and "aria-live" in page


def test_pages_without_truth_scores_or_images(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    formats.write_box(tmp_path / "boxes" / "m0.box", Picks(np.ones((3, 2)) * 50, np.ones(3)), 24)
    assert run("view", tmp_path / "boxes", "--images", folder / "images", "--out", tmp_path / "p.html") == 0
    content = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "p.html").read_text(), re.S)[1])
    assert not content["truth"] and not content["scored"] and not content["sized"] and content["radius"] == 12
    for argv, words in [
        ([tmp_path / "boxes", "--out", tmp_path / "q.html"], "give --images"),
        ([tmp_path / "boxes", "--out", tmp_path / "q.txt"], "a page is a .html file"),
        ([tmp_path / "boxes", "--out", tmp_path / "p.html"], "--overwrite"),
        ([tmp_path / "gone", "--out", tmp_path / "q.html"], "no such folder"),
    ]:
        assert run("view", *argv) == 2 and words in capfd.readouterr().err


DRIVE = """<script>addEventListener("load", async () => {
  const results = [], options = {bubbles: true, cancelable: true};
  const key = (to, name) => to.dispatchEvent(new KeyboardEvent("keydown", {key: name, ...options}));
  const say = what => results.push([what, +$("view").dataset.zoom, +$("view").dataset.left, $("which").value,
    ["picks", "true", "false", "missed"].map(name => [+document.querySelector(`[data-here=${name}]`).textContent,
      +document.querySelector(`[data-all=${name}]`).textContent])]);
  const pixel = () => pen.getImageData(left + 70 * zoom, top_ + 150 * zoom, 1, 1).data;
  const shade = () => pixel()[0] - pixel()[2];
  say("start");
  $("threshold").value = 0.7; $("threshold").dispatchEvent(new Event("input")); say("slider");
  $("reset").click(); say("reset");
  key($("view"), "+"); say("zoomed");
  key($("view"), "ArrowLeft"); say("moved");
  $("view").dispatchEvent(new WheelEvent("wheel", {deltaY: -100, cancelable: true})); say("wheel");
  key($("view"), "0"); say("fitted");
  key(document, "PageDown"); await new Promise(go => setTimeout(go, 300)); say("next");
  for (const name of ["true", "false", "missed"]) document.querySelector(`[data-layer=${name}]`).click();
  const before = shade(); document.querySelector("[data-layer=ice]").click();
  results.push(["ice", before, shade()], ["sizes", +$("sizes").dataset.median], ["focus", $("view").tabIndex],
    ["names", [...document.querySelectorAll("input,select,button,canvas")].filter(e =>
      !(e.labels?.length || e.textContent.trim() || e.getAttribute("aria-label"))).map(e => e.id)]);
  document.body.innerHTML = `<pre id="results">${JSON.stringify(results)}</pre>`;
});</script></body>"""


def test_the_page_works_in_a_browser(folder: Path, tmp_path: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("skipped: no Chromium on this machine to open the page with")
    page = (folder / "page.html").read_text()
    (tmp_path / "driven.html").write_text(page.replace("</body>", DRIVE))
    quiet = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync disable-background-networking"
    command = [
        browser,
        *(f"--{word}" for word in quiet.split()),
        "--disable-component-update",
        "--window-size=1000,700",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    command.append(f"{(tmp_path / 'driven.html').as_uri()}#threshold=0.3")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="results">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stdout[-500:]
    states = {name: rest for name, *rest in json.loads(found[1])}
    for name, threshold in (("start", 0.3), ("slider", 0.7), ("reset", 0.5)):
        (here, every) = counts(folder, threshold)
        for column, (picked, hits, marked) in enumerate((here, every)):
            shown = [pair[column] for pair in states[name][3]]
            assert shown == [picked, hits, picked - hits, marked - hits], name
    zoom = {name: state[0] for name, state in states.items() if len(state) == 4}
    assert zoom["start"] < zoom["zoomed"] == zoom["moved"] < zoom["wheel"] and zoom["fitted"] == zoom["start"]
    assert states["moved"][1] == pytest.approx(states["zoomed"][1] + 60, abs=0.2)
    assert states["start"][2] == "0" and states["next"][2] == "1"
    assert states["ice"][1] > states["ice"][0] + 30  # orange over grey
    assert 25 < states["sizes"][0] < 35 and states["focus"] == [0] and states["names"] == [[]]
