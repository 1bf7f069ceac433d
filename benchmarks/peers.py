"""PyTorch as a rival: twins of minidl's networks under the same parameter names, in each of its modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from benchmarks.rows import Layer, Workload, noise


class AlexNet(nn.Module):
    """minidl.models.AlexNet."""

    def __init__(self, image_size: int, width: float = 1.0, hidden: int = 4096, classes: int = 2) -> None:
        super().__init__()
        a, b, c = (max(2, round(n * width / 2) * 2) for n in (96, 256, 384))
        self.features = nn.Sequential(
            nn.Conv2d(3, a, 11, 4), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(a, b, 5, padding=2, groups=2), nn.ReLU(), nn.LocalResponseNorm(5),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1, groups=2), nn.ReLU(),
            nn.Conv2d(c, b, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(),
        )  # fmt: skip
        length = self.features(torch.zeros(1, 3, image_size, image_size)).shape[1]
        self.classifier = nn.Sequential(
            nn.Linear(length, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class UNet(nn.Module):
    """minidl.models.UNet."""

    def __init__(self, in_channels: int = 1, classes: int = 2, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(depth + 1)]
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([in_channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(_double(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bridges = []
        for k, block in enumerate(self.down):
            x = block(x if k == 0 else self.pool(x))
            bridges.append(x)
        bridges.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([bridges.pop(), up(x)], 1))
        return self.head(x)


def _double(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
        nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
    )  # fmt: skip


class Residual(nn.Module):
    """minidl.models.Residual."""

    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(a, b, 3, stride, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
            nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b),
        )  # fmt: skip
        pool = [nn.AvgPool2d(stride)] if stride > 1 else []
        project = [nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)] if stride > 1 or a != b else []
        self.shortcut = nn.Sequential(*pool, *project)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(x) + self.change(x))


class ResNet(nn.Module):
    """minidl.models.ResNet with one block of each width."""

    def __init__(self, classes: int = 2, widths: Sequence[int] = (24, 48, 96)) -> None:
        super().__init__()
        first = widths[0]
        self.features = nn.Sequential(
            nn.Conv2d(3, first, 5, 2, padding=2, bias=False), nn.BatchNorm2d(first), nn.ReLU(),
            Residual(first, first), *(Residual(a, b, 2) for a, b in pairwise(widths)),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * widths[-1], classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class TanhNetwork(nn.Module):
    """minidl.models.TanhNetwork."""

    def __init__(self, in_features: int, out_features: int = 1, hidden: int = 20) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(in_features, hidden), nn.Linear(hidden, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(torch.tanh(self.hidden(x)))


class Autoencoder(nn.Module):
    """minidl.models.Autoencoder."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.decoder = _dense(sizes), _dense(sizes[::-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


def _dense(sizes: Sequence[int]) -> nn.Sequential:
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


class ConvAutoencoder(nn.Module):
    """minidl.models.ConvAutoencoder with its default channels, code and kernel."""

    def __init__(self, length: int) -> None:
        super().__init__()
        short = length // 4
        self.encoder = nn.Sequential(
            nn.Conv1d(1, 16, 7, 2, 3), nn.ReLU(), nn.Conv1d(16, 32, 7, 2, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(32 * short, 32),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(32, 32 * short), nn.Unflatten(1, (32, short)),
            nn.ReLU(), nn.ConvTranspose1d(32, 16, 7, 2, 3, 1), nn.ReLU(), nn.ConvTranspose1d(16, 1, 7, 2, 3, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


class Torch:
    """PyTorch: images channels-first or channels-last, eager or compiled; Adam fused, which is its fastest."""

    def __init__(self, threads: int, device: str = "cpu") -> None:
        self.device = device
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.describe = f"PyTorch {torch.__version__}"

    def modes_of(self, row: Layer | Workload) -> tuple[str, ...]:
        """The modes that make a difference to this row."""
        if isinstance(row, Layer):
            return "channels-first", "channels-last"
        eager = ("channels-first", "channels-last") if len(row.x) == 4 else ("eager", "eager, fused Adam")
        return *eager, "compiled"

    def ceiling(self) -> list[Callable[[], Any]]:
        """A product of matrices by PyTorch's BLAS."""
        a = torch.ones(2048, 2048)
        return [lambda: torch.mm(a, a)]

    def layer(self, layer: Layer, mode: str) -> tuple[list[Any], tuple[Any, Any, Any]]:
        """conv2d and its two gradients as calls without arguments, and x, w, g; a transposed layer by its own."""
        case, layout = layer.case, _layout(mode)
        x, w = (self._put(a).contiguous(memory_format=layout) for a in layer.arrays())
        options = (case.stride, case.padding, case.dilation)
        g = torch.conv2d(x, w, None, *options, case.groups)
        g = (g + 0.1 * self._put(noise(tuple(g.shape), 5))).contiguous(memory_format=layout)
        backward = torch.ops.aten.convolution_backward
        if layer.transposed:
            extra = [
                n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
                for n, m, k, s, p, d in zip(case.x[2:], g.shape[2:], case.w[2:], *options, strict=True)
            ]
            back = (g, w, None, *options, True, extra, case.groups)
            return [
                lambda: backward(x, *back, (True, False, False))[0],
                lambda: torch.conv_transpose2d(g, w, None, *options[:2], extra, case.groups, case.dilation),
                lambda: backward(x, *back, (False, True, False))[1],
            ], (x, w, g)
        back = (x, w, None, *options, False, (0, 0), case.groups)
        return [
            lambda: torch.conv2d(x, w, None, *options, case.groups),
            lambda: backward(g, *back, (True, False, False))[0],
            lambda: backward(g, *back, (False, True, False))[1],
        ], (x, w, g)

    def step(self, workload: Workload, mode: str) -> tuple[Callable[[], Any], list[Any]]:
        """One training step giving the loss, or one inference giving the scores; and the dropout layers."""
        from benchmarks.worker import LEARNING_RATE

        model = globals()[workload.network](**workload.options)
        state = workload.model().state_dict()
        model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
        del state
        model = model.train(workload.training).to(self.device)
        x, target = map(self._put, workload.batch())
        if len(workload.x) == 4:
            layout = _layout(mode)
            model, x = model.to(memory_format=layout), x.contiguous(memory_format=layout)
        dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
        loss_of = nn.functional.cross_entropy if workload.target in ("label", "mask") else nn.functional.mse_loss
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=mode != "eager")
        if mode == "compiled":
            model = torch.compile(model)

        def step() -> Any:
            loss = loss_of(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        def infer() -> Any:
            with torch.inference_mode():
                return model(x).cpu().numpy()

        return step if workload.training else infer, dropouts

    def _put(self, array: Any) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def _layout(mode: str) -> torch.memory_format:
    return torch.contiguous_format if mode == "channels-first" else torch.channels_last
