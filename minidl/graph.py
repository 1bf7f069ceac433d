"""Looking at networks: a table of a model's layers, and a drawing of the graph behind a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np

from .nn import Module
from .tensor import Tensor, no_grad


def summary(model: Module, input_shape: tuple[int, ...], dtype: Any = np.float32) -> str:
    """Print layers, output shapes, parameters and multiply-adds for an input shape (N, ...); returns the text.

    A layer used twice has two lines; its parameters count once.
    """
    rows: list[tuple[str, str, str, str]] = []
    names = {id(module): name for name, module in reversed(list(model.named_modules()))}  # shared: the first name
    counted: set[int] = set()
    total = [0, 0]

    def watch(module: Module) -> None:
        forward = module.forward

        def recording(x: Any, *more: Any, **options: Any) -> Any:
            y = forward(x, *more, **options)
            new = [p for p in module.parameters() if id(p) not in counted]
            counted.update(id(p) for p in new)
            count, work = sum(p.size for p in new), module.multiply_adds(x.shape, y.shape)
            total[0] += count
            total[1] += work
            label = f"{names[id(module)] or '(model)'}: {type(module).__name__}"
            rows.append((label, str(y.shape), f"{count:,}", f"{work:,}"))
            return y

        module.forward = recording  # type: ignore[method-assign,assignment]

    leaves = list({id(module): module for module in model.modules() if not list(module.children())}.values())
    modes = [(module, module.training) for module in model.modules()]
    for leaf in leaves:
        watch(leaf)
    try:
        with no_grad():
            model.eval()(Tensor(np.zeros(input_shape, dtype)))
    finally:
        for leaf in leaves:
            del leaf.forward
        for module, mode in modes:
            module.training = mode
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


def to_dot(tensor: Tensor, names: dict[str, Tensor] | None = None) -> str:
    """The graph behind a tensor in Graphviz's language (paste it into any viewer); `names` labels its leaves.

    Call it before `backward`, which uses the graph up.
    """
    label = {t.birth: name for name, t in (names or {}).items()}
    lines = ["digraph {", "  rankdir=BT; node [shape=box, fontname=sans];"]
    for node in tensor._ancestors():
        text = label.get(node.birth, node.op or "leaf")
        style = ", style=filled, fillcolor=lightblue" if node.is_leaf else ""
        lines.append(f'  n{node.birth} [label="{text}\\n{"x".join(map(str, node.shape)) or "scalar"}"{style}];')
        lines += [f"  n{parent.birth} -> n{node.birth};" for parent in node.parents]
    return "\n".join([*lines, "}"])
