"""Seeing: the drawn graph and its gradient norms, and the live plot of a training."""

from __future__ import annotations

import io
import sys
import types
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest

import minidl
from minidl import Tensor, data, graph, models, nn, optim
from minidl import functional as F
from minidl.live import LivePlot
from minidl.train import History, fit

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    rects = list(ElementTree.fromstring(svg).iter(f"{SVG}rect"))[1:]  # the first is the background
    return [tuple(float(r.get(name)) for name in ("x", "y", "width", "height")) for r in rects]  # type: ignore


def diamond() -> tuple[Tensor, Tensor]:
    a = Tensor(2.0, requires_grad=True)
    b, c = 2 * a, 3 * a
    return a, b * c


def test_draw_shows_shapes_then_gradient_norms() -> None:
    a, d = diamond()
    before = minidl.draw(d, {"a": a})
    assert texts(before) == ["a", "scalar", "mul", "scalar", "mul", "scalar", "mul", "scalar"]
    d.backward(retain_graph=True)
    svg = minidl.draw(d, {"a": a, "d": d})
    assert [t for t in texts(svg) if t.startswith("|g|")] == ["|g| 24", "|g| 6", "|g| 4", "|g| 1"]
    assert a.grad == 24, "drawing adds nothing"
    assert svg._repr_svg_() == svg
    assert minidl.draw(d, gradients=False).count("|g|") == 0
    d.backward()
    assert a.grad == 48
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        minidl.draw(d)


def test_gradient_norms_are_those_of_backward() -> None:
    rng = np.random.default_rng(0)
    model = models.ResNet(1, 2, widths=(4, 6), rng=rng)
    loss = F.cross_entropy(model(Tensor(rng.normal(size=(3, 1, 16, 16)).astype("float32"))), np.array([0, 1, 1]))
    norms = graph.gradient_norms(loss)
    loss.backward()
    for p in model.parameters():
        assert norms[p.birth] == pytest.approx(float(np.sqrt((p.grad**2).sum())), rel=1e-5)


def test_boxes_do_not_overlap_and_every_edge_is_drawn() -> None:
    model = models.UNet(1, 2, 2, 2)
    loss = model(Tensor(np.ones((1, 1, 8, 8), np.float32))).sum()
    svg = minidl.draw(loss, dict(model.named_parameters()))
    nodes = loss._ancestors()
    found = boxes(svg)
    assert len(found) == len(nodes)
    for k, (x, y, w, h) in enumerate(found):
        assert x >= 0
        for x2, y2, w2, h2 in found[:k]:
            assert x >= x2 + w2 or x2 >= x + w or y >= y2 + h2 or y2 >= y + h
    row = dict(zip((node.birth for node in nodes), (box[1] for box in found), strict=True))
    assert all(row[p.birth] < row[node.birth] for node in nodes for p in node.parents)
    assert svg.count("marker-end") == sum(len({p.birth for p in node.parents}) for node in nodes)
    assert {"down.0.0.weight", "head.bias"} <= set(texts(svg))
    assert minidl.to_dot(loss).count("->") == sum(len(node.parents) for node in nodes)


def test_names_are_escaped_and_a_lone_leaf_is_drawn() -> None:
    a = Tensor(np.ones(3), requires_grad=True)
    assert texts(minidl.draw(a, {"<a & b>": a})) == ["<a & b>", "3"]


# Watching a training


def trained(**options: Any) -> tuple[nn.Module, History]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)).astype("float32")
    model = models.TanhNetwork(2, rng=rng)
    loader = data.DataLoader(data.TensorDataset(x, (x[:, :1] * 0.5)), 10)
    plot = options.pop("plot")(model)
    history = fit(
        model, lambda m, batch: F.mse_loss(m(Tensor(batch[0])), batch[1]), optim.Adam(model.parameters(), lr=0.01),
        loader, loader, epochs=5, progress=False, callback=plot,
    )  # fmt: skip
    return plot, history


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_plot_redraws_itself_in_a_terminal() -> None:
    screen = Terminal()
    plot, history = trained(plot=lambda model: LivePlot(model, file=screen))
    text = str(plot)
    assert screen.getvalue().endswith(text + "\n")
    assert screen.getvalue().count(f"\x1b[{text.count(chr(10)) + 1}F") == 4
    lines = text.splitlines()
    assert f"● loss {history['loss'][-1]:.4g}  ○ val_loss {history['val_loss'][-1]:.4g}" in lines[0]
    assert lines[1].startswith(f"{max(history['loss'][0], history['val_loss'][0]):8.3g} ┤")
    assert sum(line.count("●") for line in lines) >= 5 and "epoch 5" in lines[-1]
    norm = np.sqrt(sum((p.grad**2).sum() for p in plot.model.parameters()))
    assert plot.norms[5] == pytest.approx(norm, rel=1e-5) and len(plot.norms) == 5


def test_live_plot_says_nothing_in_a_log_file(capsys: pytest.CaptureFixture[str]) -> None:
    plot, _ = trained(plot=LivePlot)
    assert capsys.readouterr().out == ""
    svg = plot._repr_svg_()
    lines = list(ElementTree.fromstring(svg).iter(f"{SVG}polyline"))
    assert [len(line.get("points").split()) for line in lines] == [5, 5, 5]
    assert "gradient norm (log scale)" in texts(svg)


def test_live_plot_updates_its_display_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Display:
        def update(self, plot: LivePlot) -> None:
            shown.append(plot._repr_svg_())

    def display(plot: LivePlot, display_id: bool) -> Display:
        shown.append("first")
        return Display()

    stand_in: Any = types.ModuleType("IPython")
    stand_in.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    stand_in.display = types.SimpleNamespace(display=display)
    monkeypatch.setitem(sys.modules, "IPython", stand_in)
    trained(plot=LivePlot)
    assert shown[0] == "first" and len(shown) == 5 and all(s.startswith("<svg") for s in shown[1:])


def test_live_plot_of_what_has_no_logarithm() -> None:
    plot = LivePlot(models.TanhNetwork(2))
    assert "epoch 0" in str(plot)
    plot(History([{"epoch": 1, "loss": 0.0}]))
    assert "epoch 1" in str(plot) and "nan" not in plot._repr_svg_()
