"""What is timed: the convolutions of the three networks, the table of cases, and whole steps of the networks.

The layers are not typed in but recorded from the models, by a backend that notes what it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from minidl import Tensor, models, no_grad, use_backend
from minidl.backends.numpy_backend import conv2d_shape
from minidl.cases.kernels import KERNEL_CASES, ConvCase

PASSES = ("forward", "grad_x", "grad_w")
ERROR = {"forward": 2e-5, "grad_x": 2e-5, "grad_w": 1e-4}  # of the largest result, against float64


class Wrong(Exception):
    """A result that differs from what it should be: nothing of that row is timed."""


# === whole steps =====================================================================================================


@dataclass(frozen=True)
class Workload:
    """A network of minidl.models with its options, the shape of a batch, and the ratios to PyTorch to be reached."""

    name: str
    network: str
    options: dict[str, Any]
    x: tuple[int, ...]
    target: str  # "label": a class a sample, "mask": a class a pixel, "value": one number, "input": x itself
    training: bool = True
    floor: float = 0.0
    aim: float = 0.0
    quick: bool = True

    def model(self) -> Any:
        """The network of minidl, always with the same weights."""
        return getattr(models, self.network)(**self.options, rng=np.random.default_rng(1))

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Random x, and the target of the loss."""
        rng = np.random.default_rng(2)
        x = noise(self.x, 2)
        if self.target == "input":
            return x, x
        if self.target == "value":
            return x, rng.standard_normal((self.x[0], 1), dtype=np.float32)
        return x, rng.integers(0, 2, (self.x[0], *(self.x[2:] if self.target == "mask" else ())))

    @property
    def dense(self) -> bool:
        """Whether all its layers are dense."""
        return self.network in ("TanhNetwork", "Autoencoder")

    @property
    def operations(self) -> float:
        """Multiplications and additions by the definition: products forward, and twice as many backward."""
        layers, dense = record(self)
        first = layers[0].operations if layers else 2 * self.x[0] * math.prod(dense[0])
        forward = sum(layer.operations * layer.count for layer in layers)
        forward += sum(2 * self.x[0] * math.prod(w) for w in dense)
        return 3 * forward - first if self.training else forward  # no one asks for the gradient of the data


_ALEX = {"image_size": 128}, (64, 3, 128, 128)
_ALEX_LARGE = {"image_size": 227}, (16, 3, 227, 227)
_QUARTER = {"image_size": 128, "width": 0.25, "hidden": 1024}, (64, 3, 128, 128)
_DENSE = {"sizes": (1900, 512, 128, 32)}
WORKLOADS = [
    Workload("U-Net step, 4 x 1 x 512²", "UNet", {}, (4, 1, 512, 512), "mask", True, 2.0, 2.8),
    Workload("U-Net inference, 1 x 1 x 1024²", "UNet", {}, (1, 1, 1024, 1024), "mask", False, 2.0, 3.0),
    Workload("AlexNet step, 64 x 3 x 128²", "AlexNet", *_ALEX, "label", True, 1.6, 2.0),
    Workload("AlexNet inference, 64 x 3 x 128²", "AlexNet", *_ALEX, "label", False, 1.6, 2.0),
    Workload("AlexNet step, 16 x 3 x 227²", "AlexNet", *_ALEX_LARGE, "label", True, 1.6, 2.0, quick=False),
    Workload("AlexNet inference, 16 x 3 x 227²", "AlexNet", *_ALEX_LARGE, "label", False, 1.6, 2.0, quick=False),
    Workload("AlexNet/4 step, 64 x 3 x 128²", "AlexNet", *_QUARTER, "label", True, 1.3, 1.8),
    Workload("tanh MLP 580-20-1 step, batch 32", "TanhNetwork", {"in_features": 580}, (32, 580), "value", True, 5, 10),
    Workload("tanh MLP 580-20-1 step, batch 256", "TanhNetwork", {"in_features": 580}, (256, 580), "value", True,
             1.5, 2.5),
    Workload("dense autoencoder step, batch 32", "Autoencoder", _DENSE, (32, 1900), "input", True, 1.2, 2.0),
    Workload("dense autoencoder step, batch 256", "Autoencoder", _DENSE, (256, 1900), "input", True, 0.95, 1.15),
    Workload("1-D conv autoencoder step, 64 x 1900", "ConvAutoencoder", {"length": 1900}, (64, 1, 1900),
             "input", True, 1.5, 2.0),
]  # fmt: skip
LAYER_TARGETS = {"mean": (1.9, 2.8), "worst": (1.0, 1.3), "scaling": (1.7, 1.95)}
SCALING = WORKLOADS[0].name  # the step whose times with one and with all threads are compared


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A million normal numbers in float32, again and again: to draw a large array takes longer than its layer."""
    return np.resize(_million(seed), shape)


@cache
def _million(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(1_000_003, np.float32)


# === layers ==========================================================================================================


@dataclass(frozen=True)
class Layer:
    """A convolution; a transposed one is kept as the convolution it is the adjoint of, forward and grad_x exchanged."""

    case: ConvCase
    network: str = ""  # "" for a row of the table of cases
    transposed: bool = False
    count: int = 1  # how often it stands in its network
    quick: bool = field(default=True, compare=False)

    @property
    def name(self) -> str:
        """Network, channels, kernel and maps: "U-Net 4 x 1 x 512²: 16→32, 3x3, 256²"."""
        if not self.network:
            return self.case.name
        (_, c, h, w), (o, _, kh, kw), stride = self.case.x, self.case.w, self.case.stride[1]
        if self.transposed:
            _, _, h, w = self.output_shape
            c, o = o, c
        kind = f"{kh}x{kw}" + (f"/{stride}" if stride > 1 else "") + (" transposed" if self.transposed else "")
        groups = f", {self.case.groups} groups" if self.case.groups > 1 else ""
        return f"{self.network}: {c}→{o}, {kind}, {f'{h}²' if h == w else w if h == 1 else f'{h} x {w}'}{groups}"

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """The shape of the convolution's result."""
        return conv2d_shape(self.case.x, self.case.w, **self.case.options)

    @property
    def operations(self) -> float:
        """Multiplications and additions of a pass by the definition; Winograd does with fewer."""
        return 2.0 * math.prod(self.output_shape) * math.prod(self.case.w[1:])

    @property
    def bytes(self) -> float:
        """The least that a pass in float32 must read and write: x, w and y once each."""
        return 4.0 * (math.prod(self.case.x) + math.prod(self.case.w) + math.prod(self.output_shape))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Random x and w in float32."""
        return noise(self.case.x, 3), noise(self.case.w, 4)

    def passes(self, calls: list[Any]) -> dict[str, Any]:
        """Name conv2d, conv2d_grad_x and conv2d_grad_w by the passes of this layer."""
        forward, grad_x, grad_w = calls
        return dict(
            zip(PASSES, (grad_x, forward, grad_w) if self.transposed else (forward, grad_x, grad_w), strict=True)
        )


@contextmanager
def _recorder(layers: list[Layer]) -> Iterator[None]:
    """A backend that notes every convolution it is asked for, and computes none of them."""

    def conv2d(x: Any, w: Any, b: Any = None, activation: str = "", **options: Any) -> np.ndarray:
        layers.append(Layer(ConvCase("", x.shape, w.shape, **options)))
        return np.zeros(conv2d_shape(x.shape, w.shape, **options), x.dtype)

    def conv2d_grad_x(g: Any, w: Any, x_shape: Any, b: Any = None, **options: Any) -> np.ndarray:
        layers.append(Layer(ConvCase("", tuple(x_shape), w.shape, **options), transposed=True))
        return np.zeros(x_shape, g.dtype)

    with use_backend("numpy") as backend:
        backend.conv2d, backend.conv2d_grad_x = conv2d, conv2d_grad_x  # type: ignore[method-assign]
        try:
            yield
        finally:
            del backend.conv2d, backend.conv2d_grad_x


def record(workload: Workload) -> tuple[list[Layer], list[tuple[int, ...]]]:
    """Every distinct convolution of a network for its batch, in order, and the shapes of its dense weights."""
    model = workload.model()
    model.eval()
    dense = [p.shape for name, p in model.named_parameters() if p.ndim == 2]
    found: list[Layer] = []
    if not workload.dense:
        with _recorder(found), no_grad():
            model(Tensor(np.zeros((1, *workload.x[1:]), np.float32)))
    network = workload.name.replace(" step,", "").replace(" inference,", "")
    layers: dict[Layer, int] = {}
    for layer in found:
        case = layer.case._replace(x=(workload.x[0], *layer.case.x[1:]))
        layer = replace(layer, case=case, network=network)
        layers[layer] = layers.get(layer, 0) + 1
    return [replace(layer, count=count) for layer, count in layers.items()], dense


def network_layers() -> list[Layer]:
    """Every distinct convolution of the networks that are trained; --quick leaves out AlexNet at 227² and / 4."""
    layers = []
    for w in WORKLOADS:
        if w.training:
            light = replace(w, options=w.options | {"hidden": 8}) if w.network == "AlexNet" else w
            layers += [replace(layer, quick=w.quick and "AlexNet/4" not in w.name) for layer in record(light)[0]]
    return layers


def case_layers() -> list[Layer]:
    """The rows of the table of cases of the tests: small shapes, every option."""
    return [Layer(case) for case in KERNEL_CASES]


def verify(
    layer: Layer, x: Any, w: Any, g: Any, y: Any, grad_x: Any, grad_w: Any, allowed: dict[str, float] = ERROR
) -> None:
    """Compare samples of conv2d's three results, corners among them, with the definition in float64, then all of them
    through ⟨g, y⟩ = ⟨grad_x, x⟩ = ⟨grad_w, w⟩; raise Wrong.
    """
    case = layer.case
    for name, result, definition, samples in (
        ("forward", y, _output, 40), ("grad_x", grad_x, _input_gradient, 40), ("grad_w", grad_w, _weight_gradient, 8),
    ):  # fmt: skip
        rng = np.random.default_rng(4)
        places = [tuple(rng.integers(0, result.shape)) for _ in range(samples)]
        places += [(0, 0, 0, 0), tuple(n - 1 for n in result.shape)]
        largest = max(float(result.max()), -float(result.min()), float(np.finfo(np.float32).tiny))
        for place in places:
            error = abs(float(result[place]) - definition(case, x, w, g, *place)) / largest
            if not error <= allowed[name]:
                raise Wrong(f"{layer.name}: {name} at {tuple(map(int, place))} is wrong by {error:.1e} of the largest")
    one, two, three = (inner(a, b) for a, b in ((g, y), (grad_x, x), (grad_w, w)))
    if not max(abs(one - two), abs(one - three)) <= allowed["grad_w"] * abs(one):
        raise Wrong(
            f"{layer.name}: the gradients are not adjoint to the forward pass ({one:.6g}, {two:.6g}, {three:.6g})"
        )


def inner(a: np.ndarray, b: np.ndarray) -> float:
    """⟨a, b⟩, summed in the order of memory, each image in float32, the images in float64."""
    order = np.argsort([-s for s in a.strides], kind="stable")
    order = [0, *(k for k in order if k)]
    a, b = (array.transpose(order).reshape(len(array), -1) for array in (a, b))
    return sum(float(p @ q) for p, q in zip(a, b, strict=True))


def _output(case: ConvCase, x: Any, w: Any, g: Any, n: int, o: int, i: int, j: int) -> float:
    """y[n,o,i,j] = Σ_{c,u,v} w[o,c,u,v] · x[n, c, i·s + u·d − p, j·s + v·d − p]."""
    rows, columns = (
        at * case.stride[k] + np.arange(case.w[2 + k]) * case.dilation[k] - case.padding[k]
        for k, at in ((0, i), (1, j))
    )
    u, v = (np.flatnonzero((p >= 0) & (p < case.x[2 + k])) for k, p in ((0, rows), (1, columns)))
    c = np.arange(case.w[1])
    first = o // (case.w[0] // case.groups) * case.w[1]
    return float((w[o][np.ix_(c, u, v)].astype(float) * x[n][np.ix_(first + c, rows[u], columns[v])]).sum())


def _input_gradient(case: ConvCase, x: Any, w: Any, g: Any, n: int, c: int, a: int, b: int) -> float:
    """grad_x[n,c,a,b] = Σ w[o,c,u,v] · g[n,o,i,j] over the o of c's group and i·s = a + p − u·d, j·s = b + p − v·d."""
    rows, columns = (at + case.padding[k] - np.arange(case.w[2 + k]) * case.dilation[k] for k, at in ((0, a), (1, b)))
    u, v = (
        np.flatnonzero((p >= 0) & (p % case.stride[k] == 0) & (p // case.stride[k] < g.shape[2 + k]))
        for k, p in ((0, rows), (1, columns))
    )
    each = case.w[0] // case.groups
    o = c // case.w[1] * each + np.arange(each)
    i, j = rows[u] // case.stride[0], columns[v] // case.stride[1]
    return float((w[:, c % case.w[1]][np.ix_(o, u, v)].astype(float) * g[n][np.ix_(o, i, j)]).sum())


def _weight_gradient(case: ConvCase, x: Any, w: Any, g: Any, o: int, c: int, u: int, v: int) -> float:
    """grad_w[o,c,u,v] = Σ_{n,i,j} g[n,o,i,j] · x[n, c, i·s + u·d − p, j·s + v·d − p]."""
    rows, columns = (
        np.arange(g.shape[2 + k]) * case.stride[k] + at * case.dilation[k] - case.padding[k]
        for k, at in ((0, u), (1, v))
    )
    i, j = (np.flatnonzero((p >= 0) & (p < case.x[2 + k])) for k, p in ((0, rows), (1, columns)))
    n, first = np.arange(case.x[0]), o // (case.w[0] // case.groups) * case.w[1]
    return float((g[:, o][np.ix_(n, i, j)].astype(float) * x[:, first + c][np.ix_(n, rows[i], columns[j])]).sum())
