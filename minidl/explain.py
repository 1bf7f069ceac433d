"""What a network has learnt to see: its feature maps, where it looks, and what would excite it most.

Everything here works on any Module, your own too; x is a NumPy array as the network takes it, a batch (N, ...). The
answer that is explained, one number a sample, is chosen by `unit`: a class by its index; None, the class that scores
highest in each sample (or the only output); or a function from the network's output to a Tensor (N,).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np

from .graph import names_of, watched
from .nn import Module, ModuleList, Sequential, evaluating
from .tensor import Array, Tensor, no_grad

Unit = int | Callable[[Tensor], Tensor] | None
SMALLEST = 6  # pixels across the maps that grad-CAM looks at


def feature_maps(model: Module, x: Any) -> dict[str, Array]:
    """What every layer makes of x: {dotted name: output (N, ...)}, in the order in which the layers finish.

    A layer is a Module without Modules inside, or one with a `forward` of its own, such as a residual block. One that
    is used again counts on: "act", "act (2)". Functions called between layers are seen in what comes after them.
    """
    names = names_of(model)
    calls: dict[str, int] = {}
    found: dict[str, Array] = {}

    def see(module: Module, x: Any, y: Any) -> None:
        if isinstance(y, Tensor):
            name = names[id(module)]
            calls[name] = calls.get(name, 0) + 1
            found[name if calls[name] == 1 else f"{name} ({calls[name]})"] = y.detach().numpy()

    with evaluating(model), no_grad(), watched(_layers(model), see):
        model(Tensor(x))
    return found


def saliency(model: Module, x: Any, unit: Unit = None, *, method: str = "gradient", layer: str | None = None) -> Array:
    """Where a small change of the input changes the answer z.   x (N, C, ...) -> (N, ...), x (N, F) -> (N, F)

    method "gradient": Σ_c |∂z/∂x_c|. Simonyan, Vedaldi & Zisserman 2014, section 3.
    method "grad-cam": ReLU(Σ_c w_c·A_c) with the maps A of `layer` and w_c the mean of ∂z/∂A_c; by default of the last
    layer whose maps are at least 6 pixels across. -> (N, h, w), the size of A. Selvaraju et al. 2017, eqs. 1 and 2.
    ValueError for another method, a layer that is not there, or a network without such maps.
    """
    if method not in ("gradient", "grad-cam"):
        raise ValueError(f"method is 'gradient' or 'grad-cam', not {method!r}")
    if method == "gradient":
        with _frozen(model):
            x = Tensor(x, requires_grad=True)
            _answer(model(x), unit).sum().backward()
        g = abs(_gradient(x))
        return g.sum(1) if g.ndim > 2 else g

    chosen = None if layer is None else [_find(model, layer)]
    last: list[Tensor] = []

    def see(module: Module, x: Any, y: Any) -> Tensor | None:
        if not isinstance(y, Tensor) or y.ndim < 3 or (chosen is None and min(y.shape[2:]) < SMALLEST):
            return None
        last[:] = [Tensor(y.data, requires_grad=True)]  # a leaf: what follows is differentiated as far back as here
        return last[0]

    with _frozen(model), watched(chosen or _layers(model), see):
        y = model(Tensor(x))
        if not last or not y.requires_grad:
            where = f"layer {layer}" if layer else f"a layer with maps of {SMALLEST} pixels or more"
            raise ValueError(f"grad-CAM needs maps (N, C, ...) that the answer depends on: {where} gives none")
        _answer(y, unit).sum().backward()
    a = last[0]
    weights = _gradient(a).mean(tuple(range(2, a.ndim)), keepdims=True)
    return np.maximum((weights * a.detach().numpy()).sum(1), 0)


def occlusion(
    model: Module | Callable[[Array], Array],
    x: Any,
    unit: Unit = None,
    *,
    radius: float | None = None,
    steps: int = 12,
    fill: float | None = None,
) -> Array:
    """By how much the answer falls if a small piece of the input is hidden: x (N, C, H, W) -> (N, steps, steps).

    The piece is a disc of `radius` pixels (a twelfth of the shorter side), its centre at steps x steps places. It is
    hidden under the smooth continuation of what surrounds it (`cover`), or the value `fill`. Series (N, C, L) and
    (N, L) give (N, steps). `model` is a network, or any function from a batch of inputs to answers (n,).
    Zeiler & Fergus 2014, section 4.2.
    """
    x = np.asarray(x)
    falls = []
    for sample in x:
        series = sample.ndim == 1
        pixels = sample[:, None] if series else np.moveaxis(sample, 0, -1)  # (L or H x W, C)
        space = pixels.shape[:-1]
        reach = min(space) / 12 if radius is None else radius
        centres = product(*((np.arange(steps) + 0.5) * n / steps - 0.5 for n in space))
        hidden = np.stack([_hide(pixels, centre, reach, fill) for centre in centres])
        hidden = hidden[..., 0] if series else np.moveaxis(hidden, -1, 1)
        if isinstance(model, Module):
            before = _scores(model, sample[None], unit)
            held = int(before.argmax()) if unit is None else unit  # the class that wins unhidden
            fall = _scores(model, sample[None], held) - _scores(model, hidden, held)
        else:
            fall = model(sample[None]) - model(hidden)
        falls.append(fall.reshape((steps,) * len(space)))
    return np.stack(falls)


def cover(image: Array, x: float, y: float, radius: float) -> Array:
    """A copy of the picture (H, W, ...) with a disc hidden under the harmonic continuation of what is around it.

    Poisson's integral for the disc: each hidden pixel is the mean of the ring around the disc, a 40th of the picture
    wide, weighted by 1/distance². It has no edge and no ripple, where a disc of one colour is a shape of its own.
    """
    distance = distances(image.shape[:2], x, y)
    inside, ring = distance <= radius, (distance > radius) & (distance <= radius + min(image.shape[:2]) / 40)
    if not ring.any():  # the disc covers the picture
        ring = distance >= distance.max()
    rim_rows, rim_columns = np.nonzero(ring)
    hidden, around = image.copy(), image[ring].reshape(len(rim_rows), -1)
    for row in np.flatnonzero(inside.any(1)):
        columns = np.flatnonzero(inside[row])
        squares = (rim_rows - row) ** 2 + (rim_columns - columns[:, None]) ** 2
        weights = 1 / np.maximum(squares, 1)
        filled = (weights @ around / weights.sum(1, keepdims=True)).reshape(len(columns), *image.shape[2:])
        hidden[row, columns] = np.rint(filled) if image.dtype.kind in "iu" else filled
    return hidden


def distances(shape: tuple[int, ...], x: float, y: float) -> Array:
    """Distance of each pixel of a picture (H, W) from a point.   -> (H, W)"""
    rows, columns = np.indices(shape)
    return np.hypot(columns - x, rows - y)


def maximise(
    model: Module,
    unit: Unit,
    shape: tuple[int, ...],
    *,
    layer: str | None = None,
    steps: int = 100,
    lr: float = 0.1,
    decay: float = 0.01,
    blur: int = 1,
    rng: np.random.Generator | None = None,
) -> Array:
    """An input that excites a unit: of the output, or the channel `unit` of a layer, on average.   -> (1, *shape)

    Gradient ascent from faint noise, x ← (1 − decay)·x + lr·g/rms(g), g smoothed `blur` times along each axis of space
    by the weights 1/4, 1/2, 1/4: `decay` keeps x small, `blur` keeps out the finest ripples, which excite much and
    show little. Erhan et al. 2009; Yosinski et al. 2015, section 3. ValueError for a layer that is not there.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    dtype = next((p.dtype for p in model.parameters()), np.float32)
    x = (0.1 * rng.standard_normal((1, *shape))).astype(dtype)
    seen: list[Tensor] = []

    def see(module: Module, x: Any, y: Tensor) -> None:
        seen[:] = [y]

    with _frozen(model), watched([model if layer is None else _find(model, layer)], see):
        for _ in range(steps):
            tensor = Tensor(x, requires_grad=True)
            model(tensor)
            _answer(seen[0], unit).sum().backward()
            g = _gradient(tensor)
            for axis in range(2, g.ndim):
                for _ in range(blur):
                    wide = np.pad(g, [(int(a == axis),) * 2 for a in range(g.ndim)], mode="edge").swapaxes(0, axis)
                    g = (0.25 * wide[:-2] + 0.5 * wide[1:-1] + 0.25 * wide[2:]).swapaxes(0, axis)
            size = np.sqrt((g * g).mean())
            x = ((1 - decay) * x + lr * g / max(size, 1e-12)).astype(dtype)
    return x


# --- what they share -------------------------------------------------------------------------------------------------


def _layers(model: Module) -> list[Module]:
    """Modules that compute something themselves: all but plain containers and the model as a whole."""
    found = [m for m in model.modules() if m is not model and type(m) not in (Sequential, ModuleList)]
    return found or [model]


def _find(model: Module, name: str) -> Module:
    modules = dict(model.named_modules())
    if name not in modules:
        raise ValueError(f"no layer {name!r}: there are {', '.join(n for n in modules if n)}")
    return modules[name]


@contextmanager
def _frozen(model: Module) -> Iterator[None]:
    """Eval mode, and no gradients for the weights: nothing of a training under way is touched."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    with evaluating(model):
        for p in learnt:
            p.requires_grad = False
        try:
            yield
        finally:
            for p in learnt:
                p.requires_grad = True


def _answer(y: Tensor, unit: Unit) -> Tensor:
    """The number that is explained, of each sample: (N,), (N, K) or (N, K, ...), averaged over space -> (N,)."""
    if callable(unit):
        return unit(y)
    scores = y.reshape(len(y), -1) if y.ndim < 3 else y.reshape(len(y), y.shape[1], -1).mean(-1)
    count = scores.shape[1]
    if unit is not None and not 0 <= unit < count:
        raise ValueError(f"unit {unit}: the outputs are 0 ... {count - 1}")
    return scores[np.arange(len(y)), scores.detach().numpy().argmax(1) if unit is None else unit]  # type: ignore[no-any-return]


def _scores(model: Module, x: Array, unit: Unit, batch_size: int = 64) -> Array:
    """Answers (n,) to a batch of inputs, in eval mode; for unit None the scores of all classes."""
    with evaluating(model), no_grad():
        batches = (model(Tensor(x[k : k + batch_size])) for k in range(0, len(x), batch_size))
        if unit is None:
            return np.concatenate([y.numpy().reshape(*y.shape[:2], -1).mean(-1) for y in batches])
        return np.concatenate([_answer(y, unit).numpy() for y in batches])


def _gradient(x: Tensor) -> Array:
    return Tensor(x.grad).numpy()


def _hide(pixels: Array, centre: tuple[float, ...], radius: float, fill: float | None) -> Array:
    """A copy of (L, C) or (H, W, C) with the disc, in a series the stretch, around a centre hidden."""
    if fill is None and len(centre) == 2:
        return cover(pixels, centre[1], centre[0], radius)
    hidden = pixels.copy()
    grid = np.indices(pixels.shape[:-1]) - np.reshape(centre, (-1,) + (1,) * len(centre))
    inside = np.sqrt((grid**2).sum(0)) <= radius
    if fill is not None:
        hidden[inside] = fill
        return hidden
    places = np.arange(len(pixels))  # in one dimension the harmonic continuation is the straight line
    for channel in range(pixels.shape[1]):
        hidden[inside, channel] = np.interp(places[inside], places[~inside], pixels[~inside, channel])
    return hidden
