"""Looking at networks: a table of a model's layers, and a drawing of the graph behind a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import Any

import numpy as np

from .backends import get_backend
from .nn import Module, evaluating
from .tensor import Tensor, _pass_on, no_grad

# === a model's layers ================================================================================================


@contextmanager
def watched(modules: Iterable[Module], see: Callable[[Module, Any, Any], Any]) -> Iterator[None]:
    """Inside the block `see(module, x, y)` is called after each forward; what it returns, unless None, replaces y."""

    def watch(module: Module) -> None:
        forward = module.forward

        def seen(x: Any, *more: Any, **options: Any) -> Any:
            y = forward(x, *more, **options)
            other = see(module, x, y)
            return y if other is None else other

        module.forward = seen  # type: ignore[method-assign,assignment]

    unique = list({id(module): module for module in modules}.values())
    for module in unique:
        watch(module)
    try:
        yield
    finally:
        for module in unique:
            del module.forward


def names_of(model: Module) -> dict[int, str]:
    """The dotted name of each module by its id; a shared one has its first name, the model itself "(model)"."""
    return {id(module): name or "(model)" for name, module in reversed(list(model.named_modules()))}


def summary(model: Module, input_shape: tuple[int, ...], dtype: Any = np.float32) -> str:
    """Print layers, output shapes, parameters and multiply-adds for an input shape (N, ...); returns the text.

    A layer used twice has two lines; its parameters count once.
    """
    rows: list[tuple[str, str, str, str]] = []
    names = names_of(model)
    counted: set[int] = set()
    total = [0, 0]

    def see(module: Module, x: Any, y: Any) -> None:
        new = [p for p in module.parameters() if id(p) not in counted]
        counted.update(id(p) for p in new)
        x = x if isinstance(x, Tensor) else x[0]  # of two images side by side the first
        count, work = sum(p.size for p in new), module.multiply_adds(x.shape, y.shape)
        total[0] += count
        total[1] += work
        rows.append((f"{names[id(module)]}: {type(module).__name__}", str(y.shape), f"{count:,}", f"{work:,}"))

    leaves = [module for module in model.modules() if not list(module.children())]
    with evaluating(model), no_grad(), watched(leaves, see):
        model(Tensor(np.zeros(input_shape, dtype)))
    held = sum(p.size for p in model.parameters()) - total[0]  # parameters outside the layers that were called
    if held:
        rows.append(("(elsewhere)", "", f"{held:,}", "0"))
    rows.append(("total", "", f"{total[0] + held:,}", f"{total[1]:,}"))
    rows.insert(0, ("layer", "output shape", "parameters", "multiply-adds"))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    lines = [f"{r[0]:<{widths[0]}}  {r[1]:<{widths[1]}}  {r[2]:>{widths[2]}}  {r[3]:>{widths[3]}}" for r in rows]
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(-1, lines[1])
    text = "\n".join(lines)
    print(text)
    return text


# === the graph behind a tensor =======================================================================================


class Svg(str):
    """The text of an SVG picture, which a notebook shows as the picture."""

    def _repr_svg_(self) -> str:
        return str(self)


def gradient_norms(tensor: Tensor) -> dict[int, float]:
    """|∂tensor/∂node|, the root of the sum of squares, by the birth of each node; no `.grad` changes, no node is used.

    The same walk as `Tensor.backward`, which keeps the gradients of leaves only.
    """
    pending: dict[int, Any] = {tensor.birth: get_backend().xp.ones(tensor.shape, tensor.dtype)}
    norms = {}
    for node in reversed(tensor._ancestors()):
        g = pending.pop(node.birth)
        norms[node.birth] = float(np.sqrt((g * g).sum(dtype=np.float64)))
        _pass_on(node, g, pending, anomaly=False)
    return norms


def _labels(tensor: Tensor, names: Mapping[str, Tensor] | None) -> list[tuple[Tensor, list[str]]]:
    """The nodes that require a gradient, oldest first, each with its lines: a name or its op, and its shape."""
    given = {t.birth: name for name, t in (names or {}).items()}
    return [
        (node, [given.get(node.birth, node.op or "leaf"), " x ".join(map(str, node.shape)) or "scalar"])
        for node in tensor._ancestors()
    ]


def to_dot(tensor: Tensor, names: Mapping[str, Tensor] | None = None) -> str:
    """The graph behind a tensor in Graphviz's language (paste it into any viewer); `names` labels its nodes.

    Call it before `backward`, which uses the graph up, or after `backward(retain_graph=True)`.
    """
    lines = ["digraph {", "  rankdir=BT; node [shape=box, fontname=sans];"]
    for node, text in _labels(tensor, names):
        style = ", style=filled, fillcolor=lightblue" if node.is_leaf else ""
        label = "\\n".join(text)
        lines.append(f'  n{node.birth} [label="{label}"{style}];')
        lines += [f"  n{parent.birth} -> n{node.birth};" for parent in node.parents]
    return "\n".join([*lines, "}"])


def draw(tensor: Tensor, names: Mapping[str, Tensor] | None = None, gradients: bool | None = None) -> Svg:
    """The graph behind a tensor as SVG text: ops and shapes, from the leaves (blue) down to the tensor.

    `names` labels nodes: {"w": w}, or dict(model.named_parameters()). With `gradients` each box also shows the norm
    |∂tensor/∂node|; by default it does after `backward(retain_graph=True)`. What requires no gradient is not in the
    graph. RuntimeError if a backward used the graph up.
    Layout in rows: Sugiyama, Tagawa & Toda 1981.
    """
    labels = _labels(tensor, names)
    if gradients is None:
        gradients = any(node.is_leaf and node.grad is not None for node, _ in labels)
    norms = gradient_norms(tensor) if gradients and tensor.requires_grad else {}
    for node, text in labels:
        if node.birth in norms:
            text.append(f"|g| {norms[node.birth]:.3g}")
    rows, edges = _rows([node for node, _ in labels])
    width = {node.birth: 7.5 * max(map(len, text)) + 18 for node, text in labels}
    height = 16 * max(len(text) for _, text in labels) + 12
    x = _columns(rows, edges, width)
    y = {item: r * (height + 30) + 10 for r, row in enumerate(rows) for item in row}

    lines = []
    for upper, lower in edges:
        x0, y0, x1, y1 = x[upper], y[upper] + height, x[lower], y[lower]
        if upper not in width:  # an edge that passes this row by
            lines.append(f'<path d="M{x0:.1f},{y[upper]} V{y0}"/>')
        arrow = ' marker-end="url(#arrow)"' if lower in width else ""
        lines.append(f'<path d="M{x0:.1f},{y0} C{x0:.1f},{y0 + 15} {x1:.1f},{y1 - 15} {x1:.1f},{y1}"{arrow}/>')
    for node, text in labels:
        wide, left, top = width[node.birth], x[node.birth], y[node.birth]
        fill = "#cfe6f5" if node.is_leaf else "white"
        lines.append(
            f'<rect x="{left - wide / 2:.1f}" y="{top}" width="{wide:.1f}" height="{height}" rx="5" fill="{fill}"/>'
        )
        for k, line in enumerate(text):
            bold = ' font-weight="bold"' if k == 0 else ""
            lines.append(f'<text x="{left:.1f}" y="{top + 18 + 16 * k}"{bold}>{escape(line)}</text>')
    across = max(x[item] + width.get(item, 0) / 2 for item in x) + 10
    down = len(rows) * (height + 30) - 10
    return Svg(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across:.0f} {down}" width="{across:.0f}" '
        f'height="{down}" font-family="sans-serif" font-size="13" text-anchor="middle">\n'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#555" stroke="none"/></marker></defs>\n'
        '<rect width="100%" height="100%" fill="white"/>\n<g fill="none" stroke="#555">\n'
        + "\n".join(line for line in lines if not line.startswith("<text"))
        + '\n</g>\n<g fill="#111">\n'
        + "\n".join(line for line in lines if line.startswith("<text"))
        + "\n</g>\n</svg>\n"
    )


def _rows(nodes: list[Tensor]) -> tuple[list[list[Any]], list[tuple[Any, Any]]]:
    """Births in rows, every node below its parents, and the edges between neighbouring rows.

    An edge over several rows passes through a tuple (parent, child, row) in each row between.
    """
    rank: dict[int, int] = {}
    for node in nodes:  # oldest first
        rank[node.birth] = 1 + max((rank[parent.birth] for parent in node.parents), default=-1)
    users: dict[int, list[int]] = {}
    for node in nodes:
        for parent in node.parents:
            users.setdefault(parent.birth, []).append(node.birth)
    for node in nodes:
        if not node.parents and node.birth in users:  # a leaf stands right above the first op that uses it
            rank[node.birth] = min(rank[user] for user in users[node.birth]) - 1
    rows: list[list[Any]] = [[] for _ in range(max(rank.values()) + 1)]
    edges: list[tuple[Any, Any]] = []
    for node in nodes:
        rows[rank[node.birth]].append(node.birth)
        for birth in dict.fromkeys(parent.birth for parent in node.parents):
            before: Any = birth
            for r in range(rank[birth] + 1, rank[node.birth]):
                rows[r].append((birth, node.birth, r))
                edges.append((before, rows[r][-1]))
                before = rows[r][-1]
            edges.append((before, node.birth))
    return rows, edges


def _columns(rows: list[list[Any]], edges: list[tuple[Any, Any]], width: Mapping[int, float]) -> dict[Any, float]:
    """The middle of each item: rows are sorted, then moved, towards the mean of their neighbours, in a few sweeps."""
    above: dict[Any, list[Any]] = {}
    below: dict[Any, list[Any]] = {}
    for upper, lower in edges:
        below.setdefault(upper, []).append(lower)
        above.setdefault(lower, []).append(upper)
    x = {item: float(k) for row in rows for k, item in enumerate(row)}
    half = {item: width.get(item, 8.0) / 2 + 9 for item in x}
    weight = {item: 1.0 if item in above else 0.1 for item in x}  # a leaf follows its op, not the op its leaves
    for sweep in range(12):
        near, order = (above, rows) if sweep % 2 == 0 else (below, rows[::-1])
        for row in order:
            wanted = {}
            for item in row:
                others = near.get(item, [item])
                wanted[item] = float(np.average([x[o] for o in others], weights=[weight[o] for o in others]))
            row.sort(key=lambda item: wanted[item])
            for left, item in zip([None, *row], row, strict=False):
                x[item] = wanted[item] if left is None else max(wanted[item], x[left] + half[left] + half[item])
            shift = float(np.average([x[item] - wanted[item] for item in row], weights=[weight[item] for item in row]))
            for item in row:
                x[item] -= shift
    least = min(x[item] - half[item] for item in x)
    return {item: value - least for item, value in x.items()}
