"""The playground's pages, in headless Chromium: they load, they learn, and they compute what minidl computes."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.galaxy_bars import network, occlusion
from minidl import Tensor, models, use_backend
from minidl import functional as F

ROOT = Path(__file__).parents[1]
PLAYGROUND = ROOT / "docs" / "playground"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with the weights inside, freshly built."""
    page = tmp_path_factory.mktemp("site") / "occlusion.html"
    command = [sys.executable, str(PLAYGROUND / "build.py"), "--out", str(page)]
    subprocess.run(command, check=True, capture_output=True)
    return page


def results(page: Path, folder: Path) -> Any:
    """Open a page with ?test=1 in Chromium, without a network; what it wrote, if it complained of nothing."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("skipped: no Chromium here (install the package chromium)")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder}", "--dump-dom", f"{page.as_uri()}?test=1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r'<pre id="test" hidden="">(.+?)</pre>', done.stdout, re.S)
    assert found, f"{page.name} wrote no results: {done.stderr[-2000:]}"
    return json.loads(html.unescape(found[1]))


def loaded(weights: list[float], hidden: int) -> models.TanhNetwork:
    """The page's weights, W (n, 2), b (n), v (n), c, in minidl's network, in float64."""
    w = np.array(weights)
    parts = np.split(w, [2 * hidden, 3 * hidden, 4 * hidden])
    model = models.TanhNetwork(2, hidden=hidden).double()
    names = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")
    model.load_state_dict({n: p.reshape(model.state_dict()[n].shape) for n, p in zip(names, parts, strict=True)})
    return model


def test_twenty_neurons_learn_two_moons_and_are_minidl_s(tmp_path: Path) -> None:
    found = results(PLAYGROUND / "tanh.html", tmp_path)
    # at one step a picture and 60 pictures a second, 10 s are 600 steps
    assert found["needed"]["moons"] <= 600 and max(found["needed"].values()) <= 2000
    assert float(found["shown"].split()[0]) > 95
    points = np.array(found["points"])
    x, labels = points[:, :2], points[:, 2]
    model = loaded(found["weights"], 20)
    y = model(Tensor(x)).detach().numpy()
    assert np.max(np.abs(y[:, 0] - found["outputs"])) <= 1e-5
    assert np.mean((y[:, 0] > 0) == labels) > 0.95
    first = loaded(found["first"]["weights"], 20)
    loss = F.binary_cross_entropy_with_logits(first(Tensor(x))[:, 0], labels)
    loss.backward()
    gradient = np.concatenate([p.grad.ravel() for p in first.parameters()])
    assert abs(loss.item() - found["first"]["loss"]) <= 1e-9
    assert np.abs(gradient).max() > 0.01
    assert np.max(np.abs(gradient - found["first"]["gradient"])) <= 1e-9


def test_the_page_computes_p_bar_as_minidl_does(built: Path, tmp_path: Path) -> None:
    found = results(built, tmp_path)
    model, meta = network.load(ROOT / "examples" / "galaxy_bars" / "bars.safetensors")
    inside = json.loads(re.search(r'<script id="model".*?>(.*?)</script>', built.read_text(encoding="utf-8"), re.S)[1])
    assert all(g["name"].startswith("simulated") and g["simulated"] for g in inside["galaxies"])
    images = np.stack([np.frombuffer(b64decode(g["image"]), np.uint8).reshape(64, 64, 3) for g in inside["galaxies"]])
    model.eval()
    with use_backend("numpy"):
        odds, views = network.log_odds(model, images, 1)[:, 0], network.log_odds(model, images[:1], 8)[0]
        p = network.probabilities(model, images, 8, meta["temperature"])
    assert np.ptp(views) > 0.1  # the views differ, so that a wrong order would show
    for ours, theirs in ((odds, found["odds"]), (views, found["views"]), (p, found["p"])):
        assert np.max(np.abs(ours - theirs)) <= 1e-5
    assert (p > 0.5).tolist() == [True, True, False, False]
    for (x, y, radius), pixels in zip(found["places"], found["covered"], strict=True):
        ours = occlusion.cover(images[0], x, y, radius)
        assert np.any(ours != images[0]) and np.max(np.abs(ours.ravel().astype(int) - pixels)) == 0
    bar = occlusion.Bar(**inside["galaxies"][0]["bar"])
    assert np.allclose(occlusion.beside(bar, 7, 64)[:2], (found["beside"]["x"], found["beside"]["y"]))


def test_the_pages_ask_for_nothing_from_outside(built: Path) -> None:
    for page in (PLAYGROUND / "tanh.html", built):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"https?://|src=|@import|fetch\(|XMLHttpRequest|import\(", text), page.name
        assert '<html lang="en">' in text and "prefers-color-scheme: dark" in text
        for control in re.findall(r"<(?:select|input)[^>]*>", text):  # every control stands inside its label
            assert re.search(r"<label[^>]*>(?:(?!</label>).)*" + re.escape(control), text, re.S), control
