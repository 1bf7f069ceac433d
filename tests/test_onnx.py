"""What minidl.onnx writes computes, in onnxruntime, what minidl computes; weights saved by torch's names load here."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minidl.onnx
from examples.galaxy_bars import network as bars
from examples.particle_picking import network as particles
from examples.particle_picking.detection import GridNet
from examples.stellar_spectra import network as stars
from minidl import Tensor, checkpoint, models, nn, no_grad
from minidl import functional as F

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)


class Calls(nn.Module):
    """A function of x as a model."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def lived_in(model: nn.Module, rng: np.random.Generator) -> nn.Module:
    """The model with running statistics, weights and biases of batch norm that are not 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn._BatchNorm) and module.running_mean is not None:
            module.running_mean[...] = rng.normal(0, 0.3, module.num_features)
            module.running_var[...] = rng.uniform(0.5, 2, module.num_features)
            if module.weight is not None:
                module.weight.data[...] = rng.uniform(0.5, 1.5, module.num_features)
                module.bias.data[...] = rng.normal(0, 0.3, module.num_features)
    return model


def check(model: nn.Module, shape: tuple[int | None, ...], folder: Path) -> None:
    """Export; compute on new samples, in another number where that is free, in onnxruntime and here."""
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install onnx onnxruntime")
    path = folder / "model.onnx"
    minidl.onnx.export(model, path, shape)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(9).standard_normal((shape[0] or 5, *shape[1:])).astype(np.float32)
    with no_grad():
        expected = model.eval()(Tensor(x)).numpy()
    (y,) = session.run(None, {"x": x})
    assert y.shape == expected.shape and y.dtype == expected.dtype
    assert np.abs(expected).max() > 0
    assert np.max(np.abs(y - expected)) <= 1e-5 * max(1, np.abs(expected).max())


MODELS: dict[str, tuple[Any, tuple[int | None, ...]]] = {
    "perceptron": (lambda: models.Perceptron(4, rng=RNG), (None, 4)),
    "logistic perceptron": (lambda: models.Perceptron(4, "logistic", rng=RNG), (None, 4)),
    "tanh network": (lambda: models.TanhNetwork(3, 2, rng=RNG), (None, 3)),
    "AlexNet": (lambda: bars.build("alexnet"), (None, 3, 64, 64)),
    "ResNet": (lambda: models.ResNet(3, 2, (8, 12), blocks=2, rng=RNG), (None, 3, 32, 40)),
    "U-Net": (lambda: models.UNet(1, 4, width=4, depth=3, rng=RNG), (None, 1, 32, 48)),
    "autoencoder": (lambda: models.Autoencoder((40, 12, 5), rng=RNG), (None, 40)),
    "its head": (lambda: models.Autoencoder((40, 12, 5), rng=RNG).with_head(3, 7, rng=RNG), (None, 40)),
    "convolutional autoencoder": (lambda: models.ConvAutoencoder(64, 2, (4, 6), 8, rng=RNG), (None, 2, 64)),
    "dense layer of a sequence": (lambda: nn.Sequential(nn.Linear(5, 4, rng=RNG), nn.Tanh()), (None, 3, 5)),
    "particles: grid detector": (lambda: GridNet(4), (None, 1, 32, 48)),
    **{
        f"stars: {name}": (lambda n=name: stars.build(stars.Settings.of(n, members=2), RNG), (None, 580))
        for name in stars.NETWORKS
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_the_same_in_onnxruntime(name: str, tmp_path: Path) -> None:
    make, shape = MODELS[name]
    check(lived_in(make(), RNG), shape, tmp_path)


def test_the_shipped_bar_network_computes_the_same(tmp_path: Path) -> None:
    model, meta = bars.load(ROOT / "examples" / "galaxy_bars" / "bars.safetensors")
    check(model, (None, 3, meta["preprocessing"]["size"], meta["preprocessing"]["size"]), tmp_path)


def test_the_shipped_picker_computes_the_same(tmp_path: Path) -> None:
    picker = particles.load_picker(ROOT / "examples" / "particle_picking" / "picker.safetensors")
    check(picker.model, (None, 1, 64, 96), tmp_path)


LAYERS: dict[str, tuple[nn.Module, tuple[int | None, ...]]] = {
    "grouped, dilated": (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, rng=RNG), (None, 4, 9, 8)),
    "same": (nn.Conv2d(2, 3, (4, 3), padding="same", bias=False, rng=RNG), (None, 2, 7, 6)),
    "conv1d": (nn.Conv1d(2, 3, 5, 2, 2, rng=RNG), (None, 2, 21)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, (3, 2), 1, (2, 1), 2, dilation=(1, 2), rng=RNG), (None, 4, 4, 5)),
    "transposed 1-D": (nn.ConvTranspose1d(2, 3, 5, 2, 2, 1, rng=RNG), (None, 2, 9)),
    "max pool, ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), (None, 2, 8, 10)),
    "max pool, ceil, padded": (nn.MaxPool2d(2, 3, 1, ceil_mode=True), (None, 2, 5, 7)),
    "max pool, dilated": (nn.MaxPool2d((3, 2), (1, 2), (1, 0), (2, 1)), (None, 2, 7, 8)),
    "max pool 1-D": (nn.MaxPool1d(3, 2, 1), (None, 2, 11)),
    "average pool": (nn.AvgPool2d(2), (None, 2, 7, 6)),
    "average pool, ceil": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (None, 2, 6, 8)),
    "average pool, inside": (nn.AvgPool2d((3, 2), (2, 3), 1, True, False), (None, 2, 6, 8)),
    "average pool 1-D": (nn.AvgPool1d(3, 2), (None, 2, 9)),
    "adaptive pool": (nn.AdaptiveAvgPool2d((3, 5)), (None, 2, 7, 8)),
    "adaptive pool to one": (nn.AdaptiveAvgPool2d(1), (None, 2, 7, 8)),
    "upsample nearest": (nn.Upsample(scale_factor=2), (None, 2, 3, 5)),
    "upsample bilinear": (nn.Upsample((7, 4), mode="bilinear"), (None, 2, 3, 5)),
    "upsample corners": (nn.Upsample((7, 4), mode="bilinear", align_corners=True), (None, 2, 3, 5)),
    "flatten": (nn.Flatten(), (None, 2, 3, 4)),
    "flatten all": (nn.Flatten(0), (None, 2, 3)),
    "unflatten": (nn.Unflatten(1, (2, 3)), (None, 6, 4)),
    "batch norm 1-D": (lived_in(nn.BatchNorm1d(4), RNG), (None, 4)),
    "batch norm of series": (lived_in(nn.BatchNorm1d(4), RNG), (None, 4, 6)),
    "batch norm, plain": (lived_in(nn.BatchNorm2d(4, affine=False), RNG), (None, 4, 3, 5)),
    "layer norm": (nn.LayerNorm((4, 5), elementwise_affine=False), (None, 3, 4, 5)),
    "local response norm": (nn.LocalResponseNorm(5, 0.3, 0.6, 1.5), (None, 7, 3, 4)),
    "dropout": (nn.Dropout(0.5), (None, 4)),
    "identity": (nn.Identity(), (None, 4)),
    "relu": (nn.ReLU(), (None, 4)),
    "sigmoid": (nn.Sigmoid(), (None, 4)),
    "leaky relu": (nn.LeakyReLU(0.2), (None, 4)),
    "gelu": (nn.GELU(), (None, 4)),
    "gelu tanh": (nn.GELU("tanh"), (None, 4)),
    "softplus": (nn.Softplus(2, 0.5), (None, 4)),
    "softmax": (nn.Softmax(1), (None, 4, 3)),
    "log softmax": (nn.LogSoftmax(), (None, 4)),
    "arithmetic": (Calls(lambda x: (2 - x) * x / (x * x + 1) - x**2 + 0.5**x), (None, 4)),
    "functions": (Calls(lambda x: x.abs().exp().log().sqrt() + F.maximum(x, -x) * F.minimum(x, -x)), (None, 4)),
    "choices": (Calls(lambda x: F.where(x > 0.3, x, -x) * (x <= 1).astype("float32") + (x != x)), (None, 4)),
    "equal": (Calls(lambda x: (x == x).astype("float32") + (x < 0) + (x >= 0)), (None, 4)),
    "sums": (Calls(lambda x: x.sum(1) + x.mean(-1) + x.amax(1) - x.amin((1,))), (None, 4)),
    "sums of all": (Calls(lambda x: x.sum() + x.mean(dim=(0, 1), keepdim=True)), (None, 4)),
    "largest": (Calls(lambda x: F.argmax(x, 1) * 1.0 + F.argmin(x, 1, keepdim=True) + F.argmax(x)), (None, 4)),
    "pieces": (Calls(lambda x: F.stack([x[:, 1], x[..., -1] + x[:, None, ::-2][:, 0, 0]], 1)), (None, 4)),
    "transposed product": (Calls(lambda x: F.matmul(x, F.transpose(x, 1, 2)) + 0.1), (None, 4, 3)),
    "padded": (Calls(lambda x: F.pad(x, (1, 2), value=0.5)), (None, 4)),
    "a fixed number of samples": (Calls(lambda x: x.reshape(-1)), (3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_ops_compute_the_same_in_onnxruntime(name: str, tmp_path: Path) -> None:
    check(*LAYERS[name], tmp_path)


def test_every_row_of_the_table_is_written_by_a_test(tmp_path: Path) -> None:
    seen: set[str] = set()
    for model, shape in [*LAYERS.values(), *((make(), shape) for make, shape in MODELS.values())]:
        _, calls, _ = minidl.onnx._run(model, (shape[0] or 2, *shape[1:]), 0)
        seen |= {call.op for call in calls}
    assert seen == set(minidl.onnx.OPS)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: F.var(x, 1), "the op var has no row in minidl.onnx.OPS"),
        (lambda x: x + Tensor(np.tanh(x.numpy())), "an input of add changes with the model's input, but not by ops"),
        (lambda x: Tensor(x.numpy() * 2), "not made by its ops: did it go through NumPy"),
        (lambda x: x if x.data[0, 0] > 0.3 else -x, "takes another way through its ops"),
        (lambda x: F.batch_norm(x, None, None), "depends on its batch"),
        (lambda x: x[:, [0, 0, 1]], "indexing with arrays"),
        (lambda x: F.local_response_norm(x[:, :, None], 4), "even number of channels"),
        (lambda x: (x, x), "returns one tensor"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(function: Any, message: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs onnx: pip install onnx")
    with pytest.raises(ValueError, match=message):
        minidl.onnx.export(Calls(function), tmp_path / "m.onnx", (None, 4))
    assert not list(tmp_path.iterdir())


def test_weights_keep_their_names_and_layers_stay_apart(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install onnx")
    model = lived_in(models.ResNet(3, 2, (4, 6), rng=RNG), RNG)
    minidl.onnx.export(model, tmp_path / "m.onnx", (None, 3, 16, 16))
    found = {a.name: onnx.numpy_helper.to_array(a) for a in onnx.load(tmp_path / "m.onnx").graph.initializer}
    for name, parameter in model.named_parameters():
        assert np.array_equal(found[name], parameter.data), name


def test_only_the_number_of_samples_is_free(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs onnx: pip install onnx")
    with pytest.raises(ValueError, match="only the first size"):
        minidl.onnx.export(nn.ReLU(), tmp_path / "m.onnx", (None, 1, None))


def test_a_missing_package_gives_one_line_and_nothing_is_imported_at_start(tmp_path: Path) -> None:
    code = (
        "import sys, minidl\nassert 'onnx' not in sys.modules\nsys.modules['onnx'] = None\n"
        f"minidl.onnx.export(minidl.nn.ReLU(), {str(tmp_path / 'm.onnx')!r}, (1, 2))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "ImportError: minidl.onnx.export needs the package onnx: pip install onnx"


def test_training_and_modes_are_left_as_they_were(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs onnx: pip install onnx")
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5).eval())
    before = model.state_dict()
    minidl.onnx.export(model, tmp_path / "m.onnx", (None, 3))
    assert [m.training for m in model.modules()] == [True, True, False]
    assert all(np.array_equal(before[k], v) for k, v in model.state_dict().items())


# --- weights by torch's names ----------------------------------------------------------------------------------------


def written_by_hand(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A safetensors file, from its definition: 8 bytes of length, a JSON header, the arrays one after another."""
    kinds = {"float32": "F32", "int64": "I64"}
    header, data = {}, b""
    for name, a in arrays.items():
        end = len(data) + a.nbytes
        header[name] = {"dtype": kinds[str(a.dtype)], "shape": list(a.shape), "data_offsets": [len(data), end]}
        data += a.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


NORM = {"weight": (4,), "bias": (4,), "running_mean": (4,), "running_var": (4,), "num_batches_tracked": ()}
TORCH_NAMES: list[tuple[str, tuple[Any, ...], dict[str, Any], dict[str, tuple[int, ...]]]] = [
    ("Linear", (3, 4), {}, {"weight": (4, 3), "bias": (4,)}),
    ("Linear", (3, 4), {"bias": False}, {"weight": (4, 3)}),
    ("Conv1d", (4, 6, 5), {"groups": 2}, {"weight": (6, 2, 5), "bias": (6,)}),
    ("Conv2d", (4, 6, (3, 2)), {"groups": 2}, {"weight": (6, 2, 3, 2), "bias": (6,)}),
    ("ConvTranspose1d", (4, 6, 5), {"groups": 2}, {"weight": (4, 3, 5), "bias": (6,)}),
    ("ConvTranspose2d", (4, 6, (3, 2)), {"groups": 2}, {"weight": (4, 3, 3, 2), "bias": (6,)}),
    ("BatchNorm1d", (4,), {}, NORM),
    ("BatchNorm2d", (4,), {}, NORM),
    ("LayerNorm", ((4, 5),), {}, {"weight": (4, 5), "bias": (4, 5)}),
]
each_layer = pytest.mark.parametrize(
    ("layer", "args", "options", "names"), TORCH_NAMES, ids=[f"{row[0]} {row[2] or ''}" for row in TORCH_NAMES]
)


@each_layer
def test_a_file_with_torch_s_names_loads(layer: str, args: Any, options: Any, names: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    arrays = {
        f"1.{name}": np.array(7) if name == "num_batches_tracked" else rng.random(shape).astype(np.float32)
        for name, shape in names.items()
    }
    written_by_hand(tmp_path / "w.safetensors", arrays)
    model = nn.Sequential(nn.Identity(), getattr(nn, layer)(*args, **options))
    checkpoint.load_model(tmp_path / "w.safetensors", model)
    state = model.state_dict()
    assert state.keys() == arrays.keys() and all(np.array_equal(state[k], v) for k, v in arrays.items())


def test_the_list_has_every_layer_with_weights() -> None:
    learns = (nn._Conv, nn._BatchNorm, nn.Linear, nn.LayerNorm)
    public = {k for k, v in vars(nn).items() if isinstance(v, type) and issubclass(v, learns) and k[0] != "_"}
    assert {row[0] for row in TORCH_NAMES} == public


INPUTS = {"Linear": (2, 3), "Conv1d": (2, 4, 9), "Conv2d": (2, 4, 6, 7), "ConvTranspose1d": (2, 4, 9)}
INPUTS |= {"ConvTranspose2d": (2, 4, 6, 7), "BatchNorm1d": (2, 4), "BatchNorm2d": (2, 4, 3, 3), "LayerNorm": (2, 4, 5)}


@each_layer
def test_what_torch_saves_loads_and_computes_the_same(
    layer: str, args: Any, options: Any, names: Any, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    theirs = getattr(torch.nn, layer)(*args, **options)
    x = torch.randn(INPUTS[layer], generator=torch.manual_seed(1))
    theirs(x)  # batch norm: running statistics of its own
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    ours = getattr(nn, layer)(*args, **options)
    checkpoint.load_model(tmp_path / "w.safetensors", ours)
    with torch.no_grad(), no_grad():
        assert np.allclose(ours.eval()(Tensor(x.numpy())).numpy(), theirs.eval()(x).numpy(), atol=1e-5)
