"""Modules: what they hold, their names and shapes as torch has them, saving, switching, and the talk's networks."""

# ruff: noqa: E501 (a row is a line)

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import minidl
from minidl import Tensor, models, nn, no_grad
from minidl import functional as F
from minidl.testing import gradcheck


def image(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


# Every layer: how it is made, its input's shape, its state's keys and shapes (torch's), its output's shape.
# fmt: off
LAYERS: list[tuple[Any, tuple[int, ...], dict[str, tuple[int, ...]], tuple[int, ...]]] = [
    (lambda L: L.Linear(3, 5), (2, 3), {"weight": (5, 3), "bias": (5,)}, (2, 5)),
    (lambda L: L.Linear(3, 5, bias=False), (2, 4, 3), {"weight": (5, 3)}, (2, 4, 5)),
    (lambda L: L.Conv1d(4, 6, 5, stride=2, padding=1, groups=2), (2, 4, 11), {"weight": (6, 2, 5), "bias": (6,)}, (2, 6, 5)),
    (lambda L: L.Conv2d(4, 6, (3, 2), padding=1, dilation=2), (2, 4, 7, 8), {"weight": (6, 4, 3, 2), "bias": (6,)}, (2, 6, 5, 8)),
    (lambda L: L.Conv2d(4, 6, 3, padding="same", bias=False), (2, 4, 7, 8), {"weight": (6, 4, 3, 3)}, (2, 6, 7, 8)),
    (lambda L: L.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2), (2, 4, 5), {"weight": (4, 3, 3), "bias": (6,)}, (2, 6, 10)),
    (lambda L: L.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 3, 5), {"weight": (4, 6, 2, 2), "bias": (6,)}, (2, 6, 6, 10)),
    (lambda L: L.BatchNorm1d(3), (4, 3), {"weight": (3,), "bias": (3,), "running_mean": (3,), "running_var": (3,), "num_batches_tracked": ()}, (4, 3)),
    (lambda L: L.BatchNorm2d(3, affine=False), (4, 3, 2, 2), {"running_mean": (3,), "running_var": (3,), "num_batches_tracked": ()}, (4, 3, 2, 2)),
    (lambda L: L.BatchNorm2d(3, track_running_stats=False), (4, 3, 2, 2), {"weight": (3,), "bias": (3,)}, (4, 3, 2, 2)),
    (lambda L: L.LayerNorm((3, 4)), (2, 3, 4), {"weight": (3, 4), "bias": (3, 4)}, (2, 3, 4)),
    (lambda L: L.LocalResponseNorm(5), (2, 3, 4, 4), {}, (2, 3, 4, 4)),
    (lambda L: L.Dropout(0.3), (2, 3), {}, (2, 3)),
    (lambda L: L.MaxPool1d(3, 2, ceil_mode=True), (2, 3, 8), {}, (2, 3, 4)),
    (lambda L: L.MaxPool2d(2), (2, 3, 6, 8), {}, (2, 3, 3, 4)),
    (lambda L: L.AvgPool1d(2), (2, 3, 6), {}, (2, 3, 3)),
    (lambda L: L.AvgPool2d(3, 2, 1), (2, 3, 6, 8), {}, (2, 3, 3, 4)),
    (lambda L: L.AdaptiveAvgPool2d(1), (2, 3, 6, 8), {}, (2, 3, 1, 1)),
    (lambda L: L.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 3, 4), {}, (2, 3, 6, 8)),
    (lambda L: L.Flatten(), (2, 3, 4), {}, (2, 12)),
    (lambda L: L.Unflatten(1, (3, 4)), (2, 12), {}, (2, 3, 4)),
    (lambda L: L.Identity(), (2, 3), {}, (2, 3)),
    (lambda L: L.ReLU(), (2, 3), {}, (2, 3)),
    (lambda L: L.LeakyReLU(0.2), (2, 3), {}, (2, 3)),
    (lambda L: L.GELU(approximate="tanh"), (2, 3), {}, (2, 3)),
    (lambda L: L.Softplus(2.0), (2, 3), {}, (2, 3)),
    (lambda L: L.Tanh(), (2, 3), {}, (2, 3)),
    (lambda L: L.Sigmoid(), (2, 3), {}, (2, 3)),
    (lambda L: L.Softmax(dim=1), (2, 3), {}, (2, 3)),
    (lambda L: L.LogSoftmax(dim=1), (2, 3), {}, (2, 3)),
]
# fmt: on


each_layer = pytest.mark.parametrize(("make", "shape", "keys", "out"), LAYERS, ids=[repr(row[0](nn)) for row in LAYERS])


@each_layer
def test_layer(make, shape, keys, out) -> None:
    layer, again = make(nn), make(nn)
    y = layer(image(*shape))
    assert y.shape == out and y.dtype == np.float32
    state = layer.state_dict()
    assert {name: a.shape for name, a in state.items()} == keys
    again.load_state_dict(state)
    assert np.array_equal(layer.eval()(image(*shape)).data, again.eval()(image(*shape)).data)
    assert layer.double()(Tensor(image(*shape).data.astype(np.float64))).dtype == np.float64


@each_layer
def test_layer_is_torchs(make, shape, keys, out) -> None:
    """torch's layer of the same arguments takes our state_dict and gives the same answer, in training and evaluation."""
    torch = pytest.importorskip("torch")
    ours, theirs = make(nn), make(torch.nn)
    theirs.load_state_dict({name: torch.tensor(a) for name, a in ours.state_dict().items()})
    x = image(*shape)
    for mode in (True, False):
        if isinstance(ours, nn.Dropout) and mode:
            continue  # other random numbers
        mine, other = ours.train(mode)(x).data, theirs.train(mode)(torch.tensor(x.data)).detach().numpy()
        assert np.allclose(mine, other, atol=2e-6), f"training={mode}"
    for name, array in theirs.state_dict().items():  # running statistics too
        assert np.allclose(ours.state_dict()[name], array.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("MSELoss", np.ones((4, 3), "f")),
        ("L1Loss", np.ones((4, 3), "f")),
        ("HuberLoss", np.ones((4, 3), "f")),
        ("BCEWithLogitsLoss", np.ones((4, 3), "f")),
        ("CrossEntropyLoss", np.array([0, 1, 2, 0])),
        ("NLLLoss", np.array([0, 1, 2, 0])),
    ],
)
def test_loss_modules_are_the_functions(name: str, target: np.ndarray) -> None:
    function = {"BCEWithLogitsLoss": F.binary_cross_entropy_with_logits, "MSELoss": F.mse_loss, "L1Loss": F.l1_loss,
                "HuberLoss": F.huber_loss, "CrossEntropyLoss": F.cross_entropy, "NLLLoss": F.nll_loss}[name]  # fmt: skip
    x = image(4, 3)
    assert getattr(nn, name)(reduction="sum")(x, target).item() == function(x, target, reduction="sum").item()


# --- what a module holds -----------------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self) -> None:
        self.second = nn.Linear(3, 2)
        self.first = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2))
        self.scale = nn.Parameter(np.ones(1, np.float32))
        self.again = self.second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x) * self.scale + self.again(x)


def test_order_is_that_of_the_code_and_shared_come_once() -> None:
    names = [name for name, _ in Two().named_parameters()]
    assert names == ["scale", "second.weight", "second.bias", "first.0.weight", "first.0.bias", "first.1.weight", "first.1.bias"]  # fmt: skip
    assert "again.weight" in Two().state_dict() and "first.1.num_batches_tracked" in Two().state_dict()


def test_shared_layer_gets_both_gradients() -> None:
    model = Two()
    model(Tensor(np.ones((1, 3), "f"))).sum().backward()
    assert np.array_equal(model.second.bias.grad, [2, 2])
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_layers_in_a_plain_list_are_refused() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            self.layers = [nn.Linear(2, 2)]

    with pytest.raises(TypeError, match="ModuleList"):
        list(Forgetful().parameters())


def test_containers() -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 3), b=nn.Tanh()))
    assert list(model.state_dict()) == ["a.weight", "a.bias"] and len(model) == 2
    assert isinstance(model[1], nn.Tanh) and len(model[:1]) == 1 and model[0] is model[:1][0]
    layers = nn.ModuleList([nn.Linear(1, 1)])
    layers.append(nn.Tanh())
    assert len(layers) == 2 and isinstance(layers[-1], nn.Tanh) and list(layers.state_dict()) == ["0.weight", "0.bias"]
    with pytest.raises(TypeError, match=r"nn\.ReLU\(\)"):
        nn.Sequential(F.relu)


def test_train_and_eval_reach_everything() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.9)), nn.BatchNorm1d(4))
    x = image(8, 4)
    a, b = model(x), model(x)
    assert not np.array_equal(a.data, b.data) and model[2].num_batches_tracked == 2
    model.eval()
    assert np.array_equal(model(x).data, model(x).data) and not model[1][0].training


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    ("conv", "norm", "shape"), [(nn.Conv2d, nn.BatchNorm2d, (2, 3, 7, 6)), (nn.Conv1d, nn.BatchNorm1d, (2, 3, 9))]
)
def test_batch_norm_folds_into_the_convolution_before_it(
    conv: Any, norm: Any, shape: Any, affine: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    model = nn.Sequential(conv(3, 5, 3, bias=bias), norm(5, affine=affine), nn.ReLU()).eval()
    model[1].running_mean[:], model[1].running_var[:] = rng.standard_normal(5), rng.random(5) + 0.1
    if affine:
        model[1].weight.data[:], model[1].bias.data[:] = rng.standard_normal(5), rng.standard_normal(5)
    x = image(*shape)
    with no_grad():
        layer_by_layer = F.relu(model[1](model[0](x)))
    calls: list[str] = []
    monkeypatch.setattr(F, "batch_norm", lambda *a, f=F.batch_norm: calls.append("batch_norm") or f(*a))
    with no_grad():
        y = model(x)
    assert not calls
    model(x)  # gradients are recorded: the layers stay apart
    assert len(calls) == 1
    with no_grad():
        model.train()(x)  # statistics of the batch: nothing to fold
    assert len(calls) == 2
    np.testing.assert_allclose(y.data, layer_by_layer.data, rtol=1e-5, atol=1e-5)
    with no_grad(), pytest.raises(ValueError, match="expected"):
        nn.Sequential(conv(3, 5, 3), norm(4)).eval()(x)


def test_running_statistics_are_torchs() -> None:
    x = image(6, 3, 2, 2)
    layer = nn.BatchNorm2d(3, momentum=0.3)
    layer(x)
    data = x.data.transpose(1, 0, 2, 3).reshape(3, -1)
    assert np.allclose(layer.running_mean, 0.3 * data.mean(1), atol=1e-6)
    assert np.allclose(layer.running_var, 0.7 + 0.3 * data.var(1, ddof=1), atol=1e-6)


def test_load_changes_nothing_unless_all_fits() -> None:
    model = nn.Linear(2, 2)
    before = model.state_dict()
    state = {"weight": np.zeros((2, 2)), "bias": np.zeros(3)}
    with pytest.raises(ValueError, match=r"bias has shape \(3,\), expected \(2,\)"):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match="missing bias; unexpected gain"):
        model.load_state_dict({"weight": np.zeros((2, 2)), "gain": 1})
    assert all(np.array_equal(before[k], v) for k, v in model.state_dict().items())
    model.load_state_dict({"weight": np.zeros((2, 2)), "gain": 1}, strict=False)
    assert not model.weight.data.any() and model.weight.dtype == np.float32


def test_state_is_a_copy() -> None:
    model = nn.Linear(2, 2)
    model.state_dict()["weight"][...] = 7
    assert not (model.weight.data == 7).any()


def test_freezing() -> None:
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    model(image(3, 2)).sum().backward()
    assert model[0].weight.grad is None and model[1].weight.grad is not None


def test_apply_visits_children_first() -> None:
    seen: list[str] = []
    nn.Sequential(nn.Linear(1, 1), nn.Tanh()).apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["Linear", "Tanh", "Sequential"]


def test_one_seed_one_network_and_torchs_bounds() -> None:
    a, b = (nn.Conv2d(4, 50, 5, rng=np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(a.weight.data, b.weight.data)
    assert 0.98 < np.abs(a.weight.data).max() * np.sqrt(4 * 25) <= 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Linear(0, 2), "in_features"),
        (lambda: nn.Linear(2.5, 2), "in_features"),
        (lambda: nn.Conv2d(3, 4, 0), "kernel_size"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), "kernel_size"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups do not divide"),
        (lambda: nn.Conv1d(3, 4, 3, stride=-1), "stride"),
        (lambda: nn.Conv2d(3, 4, 2.5), "kernel_size"),
        (lambda: nn.Conv2d(3, 4, 3, padding="smae"), "'same' or 'valid'"),
        (lambda: nn.Conv2d(3, 4, 3, stride=2, padding="same"), "stride 1"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, padding="same"), "not transposed"),
        (lambda: nn.MaxPool1d(2.7)(image(1, 2, 9)), "kernel_size"),
        (lambda: models.Perceptron(2).rosenblatt_step([[0, 1], [1, 1]], [-1, 1]), "0 or 1"),
        (lambda: models.Perceptron(2).rosenblatt_step([[0, 1], [1, 1]], [1]), "targets"),
        (lambda: nn.Dropout(2), "probability"),
        (lambda: nn.BatchNorm2d(-1), "num_features"),
        (lambda: nn.BatchNorm2d(3)(image(2, 3)), "4 dimensions are needed"),
        (lambda: nn.BatchNorm1d(3)(image(2, 4)), "expected"),
        (lambda: models.Perceptron(2, "relu"), "activation"),
        (lambda: models.Autoencoder([4]), "code"),
        (lambda: models.ConvAutoencoder(581), "divisible"),
        (lambda: models.AlexNet(image_size=8), "kernel"),
        (lambda: models.AlexNet(image_size=150, width=0.05, hidden=4, weights="zero"), "kaiming"),
        (lambda: models.ResNet(widths=()), "width"),
        (lambda: models.ResNet(blocks=0), "blocks"),
        (lambda: models.UNet(depth=-1), "depth"),
        (lambda: models.UNet(depth=2.5), "depth"),
        (lambda: nn.Linear(1, 1).load_state_dict({"weight": np.ones((1, 1)), "bias": np.array(["a"])}), "no real"),
        (lambda: nn.Linear(1, 1).load_state_dict({"weight": np.ones((1, 1)), "bias": np.ones(1) * 1j}), "no real"),
        (lambda: models.UNet(depth=3)(image(1, 1, 20, 20)), "divisible by 8"),
    ],
)
def test_bad_arguments(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_module_list_takes_modules_only() -> None:
    with pytest.raises(TypeError, match="not function"):
        nn.ModuleList([nn.ReLU(), lambda x: x])


def test_a_slice_keeps_its_names() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    assert list(model[1:].state_dict()) == ["2.weight", "2.bias"] and model[1:][1] is model[2]


def test_options_reach_forward_by_name() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return x * scale

    assert Scaled()(Tensor([1.0]), scale=3.0).item() == 3


def test_module_without_forward() -> None:
    with pytest.raises(NotImplementedError, match=r"forward\(\)"):
        nn.Module()(1)


# --- the networks of the talk --------------------------------------------------------------------------------------


def test_step_perceptron_learns_and_but_not_xor() -> None:
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    model = models.Perceptron(2, rng=np.random.default_rng(0))
    mistakes = [model.rosenblatt_step(x, [0, 0, 0, 1]) for _ in range(20)]
    assert mistakes[-1] == 0 and model(Tensor(x)).data[:, 0].tolist() == [0, 0, 0, 1]
    assert all(model.rosenblatt_step(x, [0, 1, 1, 0]) for _ in range(50))


def test_logistic_perceptron_has_gradients() -> None:
    model = models.Perceptron(2, "logistic", rng=np.random.default_rng(0)).double()
    x = np.random.default_rng(1).standard_normal((5, 2))
    gradcheck(lambda t: model(t), [x])
    assert ((model(Tensor(x)).data > 0) & (model(Tensor(x)).data < 1)).all()


def test_tanh_network_is_its_formula() -> None:
    model = models.TanhNetwork(3, 2, rng=np.random.default_rng(0))
    s, x = model.state_dict(), image(4, 3)
    y = np.tanh(x.data @ s["hidden.weight"].T + s["hidden.bias"]) @ s["output.weight"].T + s["output.bias"]
    assert s["hidden.weight"].shape == (20, 3) and np.allclose(model(x).data, y, atol=1e-6)


def test_alexnet_has_the_published_shapes() -> None:
    text = minidl.summary(models.AlexNet(image_size=150, hidden=8), (1, 3, 150, 150))
    shapes = [line.split("  ")[1:] for line in text.splitlines() if "Conv2d" in line or "MaxPool2d" in line]
    found = [next(part.strip() for part in line if part.strip()) for line in shapes]
    assert found == ["(1, 96, 35, 35)", "(1, 96, 17, 17)", "(1, 256, 17, 17)", "(1, 256, 8, 8)", "(1, 384, 8, 8)",
                     "(1, 384, 8, 8)", "(1, 256, 8, 8)", "(1, 256, 4, 4)"]  # fmt: skip


def test_alexnet_small() -> None:
    model = models.AlexNet(image_size=64, width=0.125, hidden=16, stride=2, rng=np.random.default_rng(0))
    loss = F.cross_entropy(model(image(4, 3, 64, 64)), np.array([0, 1, 0, 1]))
    loss.backward()
    assert all(np.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())
    gauss = models.AlexNet(image_size=64, width=0.125, hidden=16, weights="gauss", rng=np.random.default_rng(0))
    assert abs(gauss.features[0].weight.data.std() - 0.01) < 1e-3


@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_autoencoder(kind: str) -> None:
    rng = np.random.default_rng(0)
    make = models.Autoencoder if kind == "dense" else models.ConvAutoencoder
    model = make((20, 8, 3), rng=rng) if kind == "dense" else make(20, 1, (4, 6), 3, rng=rng)
    x = image(5, 20) if kind == "dense" else image(5, 1, 20)
    assert model(x).shape == x.shape and model.encoder(x).shape == (5, 3)
    head = model.with_head(7, hidden=4, rng=rng)
    F.cross_entropy(head(x), np.arange(5)).backward()
    assert head(x).shape == (5, 7) and next(model.encoder.parameters()).grad.any()
    assert next(model.decoder.parameters()).grad is None


def test_residual_block_is_its_formula() -> None:
    block, x = models.Residual(4, 6, stride=2, rng=np.random.default_rng(0)).eval(), image(2, 4, 8, 8)
    assert np.array_equal(block(x).data, np.maximum(block.shortcut(x).data + block.change(x).data, 0))
    mean = x.data.reshape(2, 4, 4, 2, 4, 2).mean((3, 5))
    carried = np.einsum("nchw,oc->nohw", mean, block.shortcut[1].weight.data[..., 0, 0])
    assert np.allclose(block.shortcut(x).data, carried / np.sqrt(1 + 1e-5), atol=1e-5)
    same = models.Residual(4, 4, rng=np.random.default_rng(0))
    same.change[4].weight.data[...] = 0  # a block that has learnt nothing passes its input on
    assert np.array_equal(same(x).data, np.maximum(x.data, 0)) and len(same.shortcut) == 0


def test_resnet() -> None:
    model = models.ResNet(3, 2, (4, 6, 8), blocks=2, rng=np.random.default_rng(0))
    assert model.features(image(2, 3, 64, 64)).shape == (2, 8, 8, 8)
    F.cross_entropy(model(image(4, 3, 64, 64)), np.array([0, 1, 0, 1])).backward()
    assert all(np.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())
    assert sum(p.data.size for p in models.ResNet().parameters()) < 300_000


def test_unet() -> None:
    model = models.UNet(1, 4, width=4, depth=2, rng=np.random.default_rng(0))
    y = model(image(2, 1, 16, 24))
    assert y.shape == (2, 4, 16, 24)
    F.cross_entropy(y, np.zeros((2, 16, 24), int)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_summary_counts(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 3))
    model.train()
    text = minidl.summary(model, (1, 2, 5, 5))
    assert capsys.readouterr().out.strip() == text
    assert text.splitlines()[-1].split()[-2:] == [f"{4 * 9 + 4 + 303:,}", f"{4 * 9 * 25 + 300:,}"]
    assert model.training and "forward" not in vars(model[0])


def test_summary_of_a_layer_used_twice() -> None:
    act = nn.Tanh()
    text = minidl.summary(nn.Sequential(nn.Linear(2, 3), act, nn.Linear(3, 1), act), (1, 2))
    assert [line.split(":")[0] for line in text.splitlines()[2:6]] == ["0", "1", "2", "1"]
    assert "forward" not in vars(act)


def test_to_dot_draws_every_node() -> None:
    a = Tensor(np.ones(3), requires_grad=True)
    text = minidl.to_dot((a * 2 + a).sum(), {"a": a})
    assert text.count("->") == 4 and '"a\\n3"' in text and '"sum\\nscalar"' in text


def test_inference_keeps_no_graph() -> None:
    with no_grad():
        assert models.TanhNetwork(3)(image(2, 3)).is_leaf
