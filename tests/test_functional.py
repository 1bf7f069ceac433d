"""Every operation, by its rows in minidl/cases/ops.py: against torch's results, by gradient check, for its dtypes.

torch's results are kept as two numbers a row in torch_results.json (value and gradients, projected on random weights),
so the check needs no torch. With torch installed each row is also compared element by element, and
`python -m tests.test_functional` writes the file anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minidl import Tensor
from minidl import functional as F
from minidl.cases.ops import ROWS, Row, arrays
from minidl.testing import gradcheck

RESULTS = Path(__file__).with_name("torch_results.json")


def weights(shape: tuple[int, ...]) -> np.ndarray:
    """The random weights on which a result is projected."""
    return np.random.default_rng(7).uniform(0.5, 1.5, shape)


def ours(row: Row, dtype: Any = np.float64) -> tuple[np.ndarray, list[np.ndarray]]:
    """Value and gradients by minidl."""
    inputs = [Tensor(a.astype(dtype), requires_grad=True) for a in arrays(row)]
    y = row.call(F, *inputs)
    y.backward(weights(y.shape).astype(dtype))
    return y.data, [x.grad for x in inputs]


def projected(value: np.ndarray, gradients: list[np.ndarray]) -> list[float]:
    """One number for the value, one for each gradient."""
    return [float(np.sum(a * weights(a.shape))) for a in (value, *gradients)]


class Torch:
    """torch's functions under one name, whether they live in torch or in torch.nn.functional."""

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch.nn.functional, name, None) or getattr(torch, name)


def torchs(row: Row) -> tuple[np.ndarray, list[np.ndarray]]:
    """Value and gradients by torch, in float64."""
    import torch

    inputs = [torch.tensor(a, requires_grad=True) for a in arrays(row)]
    y = row.call(Torch(), *inputs)
    y.backward(torch.tensor(weights(tuple(y.shape))))
    return y.detach().numpy(), [x.grad.numpy() for x in inputs]


each_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


@each_row
def test_results_are_torchs(row: Row) -> None:
    value, gradients = ours(row)
    expected = kept["rows"][row.name]
    assert list(value.shape) == expected["shape"]
    for mine, theirs, a in zip(projected(value, gradients), expected["projected"], (value, *gradients), strict=True):
        assert abs(mine - theirs) <= 1e-12 * (1 + np.abs(a).sum()), row.name


@each_row
def test_every_element_is_torchs(row: Row) -> None:
    if "torch" not in os.environ.get("MINIDL_REQUIRE", ""):
        pytest.importorskip("torch")
    value, gradients = ours(row)
    their_value, their_gradients = torchs(row)
    for mine, theirs in zip((value, *gradients), (their_value, *their_gradients), strict=True):
        assert mine.shape == theirs.shape
        assert np.max(np.abs(mine - theirs), initial=0.0) <= 1e-11 * (1 + np.max(np.abs(theirs), initial=0.0))


@pytest.mark.parametrize("row", [row for row in ROWS if row.smooth], ids=[row.name for row in ROWS if row.smooth])
def test_gradient_is_the_slope(row: Row) -> None:
    gradcheck(lambda *x: row.call(F, *x), arrays(row))


@each_row
def test_dtype_stays_and_inputs_stay(row: Row) -> None:
    inputs = [a.astype(np.float32) for a in arrays(row)]
    before = [a.copy() for a in inputs]
    tensors = [Tensor(a, requires_grad=True) for a in inputs]
    y = row.call(F, *tensors)
    if not any(t in row.name for t in ("_all", "bce_logits", "cross_entropy", "nll", "batch_norm")):
        assert y.dtype == np.float32
    y.backward(np.ones(y.shape, y.dtype))
    for a, b, t in zip(inputs, before, tensors, strict=True):
        assert np.array_equal(a, b) and t.grad.dtype == np.float32 and t.grad.shape == a.shape


def test_kept_results_cover_the_rows() -> None:
    assert set(kept["rows"]) == {row.name for row in ROWS}, "run python -m tests.test_functional"
    assert len({row.name for row in ROWS}) == len(ROWS)


if __name__ == "__main__":
    import torch

    rows = {}
    for row in ROWS:
        value, gradients = torchs(row)
        rows[row.name] = {"shape": list(value.shape), "projected": projected(value, gradients)}
    text = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    RESULTS.write_text(f'{{"torch": "{torch.__version__}", "rows": {{\n{text}\n}}}}\n')
    print(f"{len(rows)} rows written to {RESULTS.name}")
