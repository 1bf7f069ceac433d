"""What a network sees: maps of every layer, saliency, occlusion, what excites a unit; on any Module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minidl import Tensor, explain, models, nn
from minidl import functional as F

RNG = np.random.default_rng(0)


class Own(nn.Module):
    """A network as a student writes it: a layer used twice, functions between layers, two inputs side by side."""

    def __init__(self) -> None:
        self.conv = nn.Conv2d(2, 2, 3, padding=1, rng=np.random.default_rng(1))
        self.act = nn.ReLU()
        self.block = models.Residual(2, 4, rng=np.random.default_rng(2))
        self.head = nn.Linear(4, 3, rng=np.random.default_rng(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(self.act(self.conv(x))))
        return self.head(self.block(x).mean((2, 3)))


def picture(n: int = 2) -> np.ndarray:
    return RNG.normal(size=(n, 2, 8, 10)).astype(np.float32)


def untouched(model: nn.Module) -> bool:
    """Weights keep no gradient and learn as before, layers are in training mode and unwatched."""
    return all(p.grad is None and p.requires_grad for p in model.parameters()) and all(
        m.training and "forward" not in vars(m) for m in model.modules()
    )


def test_feature_maps_of_every_layer_in_order() -> None:
    model, x = Own(), picture()
    maps = explain.feature_maps(model, x)
    assert list(maps)[:4] == ["conv", "act", "conv (2)", "act (2)"]
    assert list(maps)[-2:] == ["block", "head"] and "block.change.0" in maps
    with_functions = model.eval()(Tensor(x)).data
    model.train()
    assert np.allclose(maps["head"], with_functions, atol=1e-6)
    assert np.allclose(maps["block"].mean((2, 3)) @ model.head.weight.data.T + model.head.bias.data, maps["head"])
    assert untouched(model)
    assert list(explain.feature_maps(nn.Linear(3, 2), np.ones((1, 3), np.float32))) == ["(model)"]


def test_gradient_saliency_is_the_derivative() -> None:
    model, x = Own().double(), picture().astype(np.float64)
    found = explain.saliency(model, x, 1)
    assert found.shape == (2, 8, 10) and untouched(model)
    model.eval()
    slopes = np.zeros_like(x)
    for place in np.ndindex(*x.shape[1:]):
        for sign in (1, -1):
            moved = x.copy()
            moved[(slice(None), *place)] += sign * 1e-6
            slopes[(slice(None), *place)] += sign * model(Tensor(moved)).data[:, 1] / 2e-6
    assert np.allclose(found, np.abs(slopes).sum(1), atol=1e-6)


def test_the_answer_is_a_class_the_winner_or_a_function() -> None:
    model = nn.Linear(3, 2, rng=np.random.default_rng(0))
    x = RNG.normal(size=(5, 3)).astype(np.float32)
    winner = model(Tensor(x)).data.argmax(1)
    assert set(winner) == {0, 1}
    w = np.abs(model.weight.data)
    assert np.allclose(explain.saliency(model, x), w[winner])
    assert np.allclose(explain.saliency(model, x, 1), w[1])
    difference = explain.saliency(model, x, lambda y: y[:, 1] - y[:, 0])
    assert np.allclose(difference, np.abs(model.weight.data[1] - model.weight.data[0]))
    with pytest.raises(ValueError, match="unit 2: the outputs are 0"):
        explain.saliency(model, x, 2)


def test_grad_cam_of_a_layer_of_a_series_and_of_none() -> None:
    model, x = Own(), picture()
    assert explain.saliency(model, x, 0, method="grad-cam").shape == (2, 8, 10)
    a = explain.feature_maps(model, x)["block"]
    # z = head(mean(A)), so w_c = head.weight[0, c]/(pixels)
    wanted = np.maximum((model.head.weight.data[0][:, None, None] / 80 * a).sum(1), 0)
    assert np.allclose(explain.saliency(model, x, 0, method="grad-cam", layer="block"), wanted, atol=1e-7)
    assert untouched(model)
    series = nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
    assert explain.saliency(series, np.ones((1, 1, 10), np.float32), method="grad-cam").shape == (1, 8)
    for call, message in (
        (
            lambda: explain.saliency(models.TanhNetwork(2), np.ones((1, 2), "float32"), method="grad-cam"),
            "6 pixels or more",
        ),
        (lambda: explain.saliency(model, x, method="grad-cam", layer="head"), "layer head gives none"),
        (lambda: explain.saliency(model, x, method="cam"), "'grad-cam', not 'cam'"),
        (lambda: explain.maximise(model, 0, (2, 8, 8), layer="no"), "no layer 'no': there are conv, act"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
        assert untouched(model)


class Spot(nn.Module):
    """Answers with the brightness of one pixel, and one place of a series."""

    def forward(self, x: Tensor) -> Tensor:
        spot: Any = x[:, 0, 3, 6] if x.ndim == 4 else x[..., 5].reshape(len(x), -1).mean(1)
        return F.stack([-spot, spot], 1)


def test_occlusion_falls_where_the_answer_lies() -> None:
    x = np.zeros((2, 1, 8, 10), np.float32)
    x[0, 0, 3, 6] = 1
    fall = explain.occlusion(Spot(), x, 1, radius=1.0, steps=4)
    assert fall.shape == (2, 4, 4) and fall[0].argmax() == 1 * 4 + 2 and fall[0].max() == pytest.approx(1, abs=0.05)
    assert np.all(fall[1] == 0)
    same = explain.occlusion(lambda images: images[:, 0, 3, 6], x, radius=1.0, steps=4)
    assert np.array_equal(fall, same)
    filled = explain.occlusion(Spot(), x, 1, radius=1.0, steps=4, fill=3.0)
    assert filled[0].min() == -2 and np.all(filled[1] <= 0)
    winner = explain.occlusion(Spot(), x, radius=1.0, steps=4)
    assert np.array_equal(winner[0], fall[0])  # class 1 wins unhidden, and stays the one asked for


def test_occlusion_of_a_series_bridges_the_gap_by_a_line() -> None:
    ramp = np.arange(12, dtype=np.float32)[None]
    assert np.abs(explain.occlusion(Spot(), ramp, 1, radius=1.5, steps=12)).max() < 1e-6
    peak = np.zeros((1, 12), np.float32)
    peak[0, 5] = 1
    fall = explain.occlusion(Spot(), peak, 1, radius=1.5, steps=12)
    assert fall[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert np.array_equal(explain.occlusion(Spot(), peak[:, None], 1, radius=1.5, steps=12), fall)


def test_maximise_finds_what_a_unit_responds_to() -> None:
    pattern = RNG.normal(size=(1, 1, 5, 5)).astype(np.float32)
    model = nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten())
    model[0].weight.data[1] = pattern[0]
    x = explain.maximise(model, 1, (1, 5, 5), steps=60, decay=0.1, blur=0)
    assert x.shape == (1, 1, 5, 5) and np.corrcoef(x.ravel(), pattern.ravel())[0, 1] > 0.99
    inner = explain.maximise(model, 1, (1, 5, 5), layer="0", steps=60, decay=0.1, blur=0)
    assert np.allclose(inner, x, atol=1e-5)
    rough, smooth = (np.abs(np.diff(explain.maximise(model, 1, (1, 5, 5), blur=b)[0, 0])).mean() for b in (0, 3))
    assert smooth < 0.8 * rough and untouched(model)
