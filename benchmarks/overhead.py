"""What an op costs besides its arithmetic: `python -m benchmarks.overhead`.

Ops on eight numbers, where the arithmetic takes nothing: minidl's, recorded for a gradient and not, beside NumPy's own
call. The difference is the price of the graph, of checks, and of the way to the backend; the aim is under 3 µs. Each
time is the least of several turns, since whatever disturbs a call makes it longer.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import Tensor, no_grad
from minidl import functional as F

A, M = np.ones(8, np.float32), np.ones((8, 8), np.float32)
OPS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = {
    "x + y": (lambda x, y: x + y, lambda x, y: x + y, (A, A)),
    "x * y": (lambda x, y: x * y, lambda x, y: x * y, (A, A)),
    "exp(x)": (F.exp, np.exp, (A,)),
    "tanh(x)": (F.tanh, np.tanh, (A,)),
    "relu(x)": (F.relu, lambda x: np.maximum(x, 0), (A,)),
    "sum(x)": (F.sum, np.sum, (A,)),
    "x @ y": (F.matmul, np.matmul, (M, M)),
    "reshape(x)": (lambda x: F.reshape(x, (4, 2)), lambda x: x.reshape(4, 2), (A,)),
}


def microseconds(call: Callable[[], Any], calls: int = 5000, turns: int = 9) -> float:
    """The least time of a call, over `turns` turns of `calls` calls."""
    return min(timeit.repeat(call, number=calls, repeat=turns)) / calls * 1e6


def main() -> None:
    """Time all ops and print a table."""
    print("| op on 8 numbers | NumPy, µs | minidl, no gradient | recorded | above NumPy |")
    print("|---|--:|--:|--:|--:|")
    for name, (ours, theirs, arrays) in OPS.items():
        tensors = [Tensor(a, requires_grad=True) for a in arrays]
        assert np.allclose(ours(*tensors).data, theirs(*arrays), rtol=1e-6), name
        recorded = microseconds(lambda ours=ours, tensors=tensors: ours(*tensors))
        with no_grad():
            plain = microseconds(lambda ours=ours, tensors=tensors: ours(*tensors))
        numpy = microseconds(lambda theirs=theirs, arrays=arrays: theirs(*arrays))
        print(f"| {name} | {numpy:.2f} | {plain:.2f} | {recorded:.2f} | {recorded - numpy:.2f} |")


if __name__ == "__main__":
    main()
