"""Exercises that check themselves: write an op, a layer, an optimiser, a kernel, a backend; the tables judge it.

    python -m minidl.exercises list
    python -m minidl.exercises show 1
    python -m minidl.exercises check 1 my_answer.py

`check` RUNS the Python file you name, as you and with all your rights, in a process of its own that is ended after a
minute: check your own answers, or those of students you trust. The rows are those that minidl's own ops and kernels
are tested on (minidl/cases), gradients are compared with minidl's and with differences (minidl.testing.gradcheck), and
the first thing that is wrong is told: the row, the element, what was expected, what came.

An exercise is one function below: its docstring is the text that students read, its code judges the answer.
"""

from __future__ import annotations

import argparse
import inspect
import math
import runpy
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from . import functional as F
from . import nn, optim
from .backends.numpy_backend import NumpyBackend
from .cases.kernels import KERNEL_CASES, POOL_CASES, ConvCase, PoolCase, conv_arrays, pool_array
from .cases.ops import LABELS, ROWS, Row, arrays
from .tensor import Tensor, _is_array, op
from .testing import assert_close, gradcheck


class Exercise(NamedTuple):
    """The name that the answer must define, what kind of thing it is, a title, the text, and the judge."""

    name: str
    kind: str
    title: str
    text: str
    check: Callable[[Any], None]


class Wrong(Exception):
    """An answer is wrong: where, what was expected, and what came."""


EXERCISES: list[Exercise] = []


def exercise(name: str, kind: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Add an exercise: the answer defines `name`, and the decorated function raises Wrong or AssertionError."""

    def add(check: Callable[[Any], None]) -> Callable[[Any], None]:
        title, _, text = inspect.cleandoc(check.__doc__ or "").partition("\n\n")
        EXERCISES.append(Exercise(name, kind, title, text, check))
        return check

    return add


# === what the judges share ===========================================================================================


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Say of what goes wrong inside where it did."""
    try:
        yield
    except AssertionError as error:
        raise Wrong(f"{place}: {error}") from None
    except Wrong as error:
        raise Wrong(f"{place}: {error}") from error.__cause__
    except (Exception, SystemExit) as error:
        raise Wrong(f"{place}: your code raised {type(error).__name__}: {error}") from error


def _rows(*names: str) -> list[Row]:
    """Rows of the table of ops, by name."""
    return [row for row in ROWS if row.name in names]


def _as_op(answer: Any) -> tuple[Any, list[str]]:
    """The answer as an op, and the names of its differentiable inputs."""
    function = getattr(answer, "__wrapped__", answer)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    names = [p.name for p in parameters if _is_array(p.annotation)]
    if not names:
        raise Wrong("no input is marked `: Array`, so none would get a gradient: see `show`")
    return (answer if hasattr(answer, "__wrapped__") else op(answer)), names


def _check_op(name: str, answer: Any, rows: Iterable[Row], reference: Any = F) -> None:
    """Value, gradients, dtypes and untouched inputs of an op on each row, beside `reference` and by differences."""
    answer, names = _as_op(answer)
    library = SimpleNamespace(**{name: answer}, tensor=lambda array: array)

    def compare(row: Row, dtype: Any, tolerance: float) -> None:
        gradients = []
        for L in (reference, library):
            inputs = [Tensor(a.astype(dtype), requires_grad=True) for a in arrays(row)]
            y = row.call(L, *inputs)
            if L is reference:
                expected = y
            for input_name, x, a in zip(names, inputs, arrays(row), strict=True):
                assert_close(x.data, a.astype(dtype), 0, f"{input_name} was changed in place: {input_name}")
            assert_close(y, expected, tolerance)
            y.backward(np.random.default_rng(7).uniform(0.5, 1.5, y.shape).astype(dtype))
            gradients.append([x.grad for x in inputs])
        for input_name, theirs, ours in zip(names, *gradients, strict=True):
            assert_close(ours, theirs, tolerance, f"∂L/∂{input_name}")

    for row in rows:
        with _at(f'row "{row.name}"'):
            compare(row, np.float64, 1e-9)
            compare(row, np.float32, 1e-4)
            if row.smooth:
                gradcheck(lambda *x, call=row.call: call(library, *x), arrays(row))


def _check_steps(answer: Any, reference: Any, **options: Any) -> None:
    """Six steps of an optimiser beside ours, on two parameters; in step 3 one of them has no gradient."""
    rng = np.random.default_rng(0)
    starts = [rng.standard_normal((2, 3)), rng.standard_normal(4)]
    mine, theirs = ([Tensor(a.copy(), requires_grad=True) for a in starts] for _ in range(2))
    with _at("making the optimiser"):
        optimizers = reference(mine, **options), answer(theirs, **options)
    for step in range(1, 7):
        gradients = [rng.standard_normal(a.shape) for a in starts]
        for k, g in enumerate(gradients):
            mine[k].grad, theirs[k].grad = (None if step == 3 and k == 1 else g.copy() for _ in range(2))
        with _at(f"step {step} of {options}"):
            for optimizer in optimizers:
                optimizer.step()
            for k, g in enumerate(gradients):
                assert_close(theirs[k].data, mine[k].data, 1e-9, f"parameter {k}")
                if theirs[k].grad is not None:
                    assert_close(theirs[k].grad, g, 0, f"the gradient was changed in place: gradient {k}")


def _check_kernel(case: Any, call: Callable[[Any], Any], expected: Any, name: str) -> None:
    """The result of a kernel on a row of the table of kernels, in float64 and float32; `call` takes the dtype."""
    options = ", ".join(f"{key} {value}" for key, value in case._asdict().items() if key != "name")
    with _at(f'row "{case.name}" ({options})'):
        for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 1e-4)):
            got = call(dtype)
            assert_close(got, expected, tolerance, name)
            assert got.dtype == dtype, f"{name} of {np.dtype(dtype)} inputs is {got.dtype}"


# === the exercises, simplest first ===================================================================================


@exercise("relu", "op")
def _relu(answer: Any) -> None:
    """The rectifier and its derivative.

    y = max(x, 0), element by element. Its derivative is 1 where x > 0 and 0 elsewhere, at 0 too.

    An op is a plain function on arrays that returns its value and, for each input marked `: Array`, the function that
    takes g = ∂L/∂y to ∂L/∂x:

        import numpy as np
        from minidl.tensor import Array

        def relu(backend, x: Array):
            y = ...
            return y, lambda g: ...

    Do not write into x: it belongs to others. Compare with tanh in minidl/functional.py.
    """
    _check_op("relu", answer, [*_rows("relu"), Row("pictures", lambda L, x: L.relu(x), ((2, 3, 4, 4),))])


@exercise("neuron", "op")
def _neuron(answer: Any) -> None:
    """A tanh neuron, with its three gradients.

    y_n = tanh(Σ_k x_nk·w_k + b) for N samples: x (N, K), w (K,), b a number of shape () -> y (N,).

        def neuron(backend, x: Array, w: Array, b: Array):
            y = ...
            return y, lambda g: ..., lambda g: ..., lambda g: ...      # ∂L/∂x (N, K), ∂L/∂w (K,), ∂L/∂b ()

    g = ∂L/∂y has the shape (N,). Begin with the derivative of tanh, then ask how often each input was used.
    """
    rows = [
        Row("one sample", lambda L, x, w, b: L.neuron(x, w, b), ((1, 3), (3,), ())),
        Row("many samples", lambda L, x, w, b: L.neuron(x, w, b), ((7, 2), (2,), ())),
    ]
    _check_op("neuron", answer, rows, SimpleNamespace(neuron=lambda x, w, b: F.tanh(x @ w + b)))


@exercise("Linear", "layer")
def _linear(answer: Any) -> None:
    """A dense layer.

    y = x·weightᵀ + bias, x (N, in_features) -> y (N, out_features), as a module with the parameters `weight`
    (out_features, in_features) and `bias` (out_features,), so that torch's files load into it.

        from minidl import Tensor, nn

        class Linear(nn.Module):
            def __init__(self, in_features, out_features): ...      # nn.Parameter(array) is what a module learns
            def forward(self, x): ...                               # with tensors: +, @ and .T record gradients

    Start with small random float32 weights. Keep nothing of x in self: a layer may be used twice in one network.
    """
    with _at("making Linear(3, 4)"):
        layer = answer(3, 4)
        found = {name: p.shape for name, p in layer.named_parameters()}
        assert found == {"weight": (4, 3), "bias": (4,)}, (
            f"its parameters are {found}, expected weight (4, 3) and bias (4,)"
        )
        assert all(p.dtype == np.float32 for p in layer.parameters()), "its parameters are not float32"
        assert np.std(layer.weight.data) > 0, "all weights are alike: every neuron would learn the same"
    rng = np.random.default_rng(0)
    ours = nn.Linear(3, 4)
    ours.load_state_dict({"weight": rng.standard_normal((4, 3)), "bias": rng.standard_normal(4)})
    layer.load_state_dict(ours.state_dict())
    x = [Tensor(rng.standard_normal((n, 3)).astype("float32"), requires_grad=True) for n in (5, 1)]
    results = []
    with _at("used for 5 samples, then for 1"):
        for model in (layer, ours):
            y = [model(t) for t in x]
            ((y[0] ** 2).sum() + (y[1] ** 2).sum()).backward()
            results.append([*(t.data for t in y), *(p.grad for p in model.parameters()), *(t.grad for t in x)])
            for t in x:
                t.grad = None
        names = ("y of 5 samples", "y of 1 sample", "∂L/∂weight", "∂L/∂bias", "∂L/∂x of 5 samples", "∂L/∂x of 1 sample")
        for name, got, expected in zip(names, *results, strict=True):
            assert_close(got, expected, 1e-5, name)


@exercise("cross_entropy", "op")
def _cross_entropy(answer: Any) -> None:
    """Softmax and cross-entropy in one, stable.

    L = −(1/N) Σ_n log p_n,t(n) with p_n = softmax(x_n): scores x (N, C) and the true classes t (N,), whole numbers
    -> one number. Scores of 1000 must give no infinity: what may be subtracted from every score without changing p?

        def cross_entropy(backend, x: Array, t):        # t is a plain array, without a gradient
            ...
            return loss, lambda g: ...                  # g is ∂L/∂loss, of shape ()

    The gradient is short: g/N times (p − 1 at the true class).
    """
    big = np.random.default_rng(2).standard_normal((6, 5)) * 1000
    hot = Row("scores of 1000", lambda L, x: L.cross_entropy(x, LABELS), (big,), smooth=False)
    _check_op("cross_entropy", answer, [*_rows("cross_entropy"), hot])


@exercise("backward_order", "function")
def _backward_order(answer: Any) -> None:
    """The order in which gradients flow back.

    A tensor knows the tensors it was made from, `tensor.parents`; leaves have none. Before a tensor can pass its
    gradient on, all that was made from it must have passed on theirs. Give such an order:

        def backward_order(tensor) -> list:     # `tensor` first; each tensor once, after all that was made from it

    In d = b·c with b = 2a and c = 3a, a comes last, after both b and c. Chains of ten thousand tensors must work
    (Python's recursion ends at a thousand), and so must ladders with 2^60 paths. Do not look at `tensor.birth`.
    """

    def diamond(a: Any) -> Any:
        return (a * 2) * (a * 3)

    def chain(a: Any) -> Any:
        for _ in range(10_000):
            a = a + 1
        return a

    def ladder(a: Any) -> Any:
        for _ in range(60):
            a = a * a
        return a

    def shortcut(a: Any) -> Any:
        return ((a + 1).tanh().exp() + a) * (a + 1)

    for make in (diamond, shortcut, ladder, chain):
        with _at(f"the {make.__name__}"):
            end = make(Tensor(np.ones(()), requires_grad=True))
            order = list(answer(end))
            wanted = end._ancestors()
            names = {t.birth: f"number {k} ({t.op or 'leaf'}), counted in the order of making" for k, t in
                     enumerate(wanted)}  # fmt: skip
            place = {t.birth: k for k, t in enumerate(order)}
            assert len(place) == len(order), f"{len(order)} tensors are listed, but only {len(place)} different ones"
            for t in wanted:
                assert t.birth in place, f"{names[t.birth]} is missing"
            assert len(order) == len(wanted), f"{len(order)} tensors are listed, expected {len(wanted)}"
            for t in wanted:
                for parent in t.parents:
                    assert place[parent.birth] > place[t.birth], (
                        f"{names[parent.birth]} comes at place {place[parent.birth]}, "
                        f"before {names[t.birth]}, which was made from it, at place {place[t.birth]}"
                    )


@exercise("Momentum", "optimiser")
def _momentum(answer: Any) -> None:
    """Gradient descent with momentum.

    v ← momentum·v + g, p ← p − lr·v; v starts at 0. A subclass of minidl.optim.Optimizer, which keeps the parameters:

        from minidl import optim

        class Momentum(optim.Optimizer):
            def __init__(self, params, lr=0.1, momentum=0.9):
                super().__init__(params, lr=lr, momentum=momentum)

            def _update(self, p, g, state, group):      # change p in place; state is this parameter's own dict,
                ...                                     # at first empty; group["lr"], group["momentum"]

    g may be shared: do not write into it.
    """
    for momentum in (0.9, 0.0):
        _check_steps(answer, optim.SGD, lr=0.1, momentum=momentum)


@exercise("Adam", "optimiser")
def _adam(answer: Any) -> None:
    """Adam, with its correction for the start.

    m ← β₁·m + (1 − β₁)·g,   s ← β₂·s + (1 − β₂)·g²,   p ← p − lr·m̂/(√ŝ + eps)
    with m̂ = m/(1 − β₁ᵗ), ŝ = s/(1 − β₂ᵗ) in a parameter's own t-th step, counted from 1 (Kingma & Ba 2015).

        class Adam(optim.Optimizer):
            def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
                super().__init__(params, lr=lr, betas=betas, eps=eps)

            def _update(self, p, g, state, group): ...

    A parameter without a gradient is not updated and its t stands still: `_update` is not called for it.
    """
    _check_steps(answer, optim.Adam, lr=0.1)
    _check_steps(answer, optim.Adam, lr=0.02, betas=(0.5, 0.6), eps=0.1)


@exercise("dropout", "function")
def _dropout(answer: Any) -> None:
    """Dropout.

    While training, each element of the tensor x is zero with probability p, and the others grow by 1/(1 − p), so that
    the mean stays. Otherwise x itself is returned.

        def dropout(x, p, training, rng):       # rng.random(x.shape) draws numbers from 0 to 1
            ...                                 # tensor * array records the gradient

    Everything is drawn anew at each call; p = 0 and p = 1 work, without a NaN.
    """
    rng = np.random.default_rng(0)
    x = Tensor(rng.uniform(1, 2, (100, 100)).astype(np.float32), requires_grad=True)
    with _at("training=False"):
        assert_close(answer(x, 0.3, False, rng), x, 0)
    for p in (0.0, 0.2, 0.7, 1.0):
        with _at(f"p = {p}"):
            x.grad = None
            y = answer(x, p, True, rng)
            assert isinstance(y, Tensor), f"the result is a {type(y).__name__}, not a tensor"
            assert y.dtype == np.float32, f"y of a float32 tensor is {y.dtype}"
            zero = y.data == 0
            share, allowed = float(zero.mean()), 5 * math.sqrt(p * (1 - p) / x.size)
            assert abs(share - p) <= allowed, f"{share:.3f} of the elements are zero, expected {p} ± {allowed:.3f}"
            scale = 0 if p == 1 else 1 / (1 - p)
            assert_close(y, np.where(zero, 0, x.data * scale), 1e-6)
            y.sum().backward()
            assert_close(x.grad, np.where(zero, 0, scale) * np.ones(x.shape), 1e-6, "∂L/∂x")
            if 0 < p < 1:
                again = answer(x, p, True, rng).data == 0
                assert np.any(again != zero), "a second call drops the same elements"


@exercise("batch_norm", "op")
def _batch_norm(answer: Any) -> None:
    """Batch normalisation, as in training.

    For each channel c, over the batch and all pixels: y = weight_c·x̂ + bias_c with x̂ = (x − mean)/√(var + eps);
    var is the mean square deviation. x (N, C) or (N, C, H, W), weight (C,), bias (C,).

        def batch_norm(backend, x: Array, weight: Array, bias: Array, eps=1e-5):
            ...
            return y, lambda g: ..., lambda g: ..., lambda g: ...

    Mean and variance depend on x too: ∂L/∂x = (ĝ − mean ĝ − x̂·mean(ĝ·x̂))/√(var + eps) with ĝ = g·weight
    (Ioffe & Szegedy 2015, section 3).
    """
    rows = [
        Row("vectors", lambda L, x, w, b: L.batch_norm(x, w, b), ((6, 3), (3,), (3,))),
        Row("pictures", lambda L, x, w, b: L.batch_norm(x, w, b), ((4, 3, 2, 5), (3,), (3,))),
        Row("another eps", lambda L, x, w, b: L.batch_norm(x, w, b, 0.5), ((4, 2), (2,), (2,))),
    ]

    def reference(x: Any, w: Any, b: Any, eps: float = 1e-5) -> Any:
        return F.batch_norm(x, None, None, w, b, training=True, eps=eps)

    _check_op("batch_norm", answer, rows, SimpleNamespace(batch_norm=reference))


@exercise("max_pool2d", "op")
def _max_pool2d(answer: Any) -> None:
    """Max pooling, and who gets the gradient.

    y[n, c, i, j] is the largest pixel of the window of kernel (KH, KW) at row i·stride_h, column j·stride_w; only whole
    windows count. Its gradient goes to that pixel alone, the first of several equal ones, row by row. Where windows
    overlap, a pixel may win more than once.

        def max_pool2d(backend, x: Array, kernel, stride):      # pairs (h, w);  x (N, C, H, W) -> (N, C, OH, OW)
            ...
            return y, lambda g: ...
    """
    plain = [c for c in POOL_CASES if (c.padding, c.dilation, c.ceil_mode) == ((0, 0), (1, 1), False) and c.x[0] < 10]

    def row(case: PoolCase) -> Row:
        kernel, stride = case.kernel_size, case.stride
        call = lambda L, x: L.max_pool2d(x, kernel, stride)  # noqa: E731
        return Row(f"{case.name}: kernel {kernel}, stride {stride}", call, (pool_array(case, np.float64),), False)

    _check_op("max_pool2d", answer, [row(case) for case in plain])


def _small(cases: Sequence[ConvCase]) -> list[ConvCase]:
    """The rows without dilation and groups that plain loops finish at once."""
    simple = [c for c in cases if c.dilation == (1, 1) and c.groups == 1]
    return [c for c in simple if math.prod(c.x) * math.prod(c.w) < 50_000]


@exercise("conv2d", "kernel")
def _conv2d(answer: Any) -> None:
    """A convolution in loops.

    y[n, o, i, j] = Σ_{c, k, l} w[o, c, k, l]·x[n, c, i·stride_h + k − padding_h, j·stride_w + l − padding_w],
    x being 0 outside the picture. x (N, C, H, W), w (O, C, KH, KW) -> y (N, O, OH, OW),
    OH = ⌊(H + 2·padding_h − KH)/stride_h⌋ + 1, OW likewise.

        def conv2d(x, w, stride, padding):      # NumPy arrays and pairs (h, w)

    Plain Python is quick enough; with @numba.njit the same loops become fast. y has x's dtype.
    """
    backend = NumpyBackend()
    for case in _small(KERNEL_CASES):
        x, w, _ = conv_arrays(case, np.float64)
        expected = backend.conv2d(x, w, None, **case.options)

        def call(dtype: Any, case: ConvCase = case) -> Any:
            x, w, _ = conv_arrays(case, dtype)
            return answer(x, w, case.stride, case.padding)

        _check_kernel(case, call, expected, "y")


@exercise("conv2d_grad_x", "kernel")
def _conv2d_grad_x(answer: Any) -> None:
    """The convolution turned round: its gradient for x.

    Each y[n, o, i, j] took from a window of x with the weights w[o]; so g[n, o, i, j]·w[o] is added to that window.
    g (N, O, OH, OW), w (O, C, KH, KW) -> ∂L/∂x (N, C, H, W) = x_shape.

        def conv2d_grad_x(g, w, x_shape, stride, padding):

    It is also the transposed convolution that enlarges pictures. It must be the adjoint of conv2d:
    ⟨g, conv2d(x, w)⟩ = ⟨conv2d_grad_x(g, w), x⟩ for every x and g, which tests it without any definition.
    """
    backend = NumpyBackend()
    for case in _small(KERNEL_CASES):
        x, w, _ = conv_arrays(case, np.float64)
        y = backend.conv2d(x, w, None, **case.options)
        g = y + np.random.default_rng(1).standard_normal(y.shape)
        expected = backend.conv2d_grad_x(g, w, case.x, **case.options)

        def call(dtype: Any, case: ConvCase = case, g: Any = g, w: Any = w) -> Any:
            return answer(g.astype(dtype), w.astype(dtype), case.x, case.stride, case.padding)

        _check_kernel(case, call, expected, "∂L/∂x")


@exercise("Im2colBackend", "backend")
def _im2col(answer: Any) -> None:
    """A backend of your own: the convolution as one matrix product.

    Copy each window of x into a column (im2col); the convolution is then weights times columns, which a fast matrix
    product computes. A backend is a subclass of NumpyBackend that overrides what it does better:

        from minidl.backends.numpy_backend import NumpyBackend

        class Im2colBackend(NumpyBackend):
            name = "im2col"

            def conv2d(self, x, w, b, *, stride, padding, dilation, groups, activation=""): ...

    Options are pairs (h, w). Tap k of a window lies k·dilation rows below the first; with `groups`, the outputs of each
    group see only its channels: w (O, C/groups, KH, KW). b (O,) is added unless it is None; activation is "" or "relu".
    Every row of the table of kernels counts. It must not call NumpyBackend's own conv2d.
    """
    ours = NumpyBackend()
    with _at("making the backend"):
        assert isinstance(answer, type) and issubclass(answer, NumpyBackend), "it is no subclass of NumpyBackend"
        assert "conv2d" in vars(answer), "it defines no conv2d"
        theirs = answer()
    inherited = NumpyBackend.conv2d
    for case in KERNEL_CASES:
        for bias, activation in ((True, ""), (False, "relu")):
            x, w, b = conv_arrays(case, np.float64)
            expected = ours.conv2d(x, w, b if bias else None, **case.options, activation=activation)

            def call(dtype: Any, case: ConvCase = case, bias: bool = bias, activation: str = activation) -> Any:
                x, w, b = conv_arrays(case, dtype)
                NumpyBackend.conv2d = _not_this  # type: ignore[method-assign]
                try:
                    return theirs.conv2d(x, w, b if bias else None, **case.options, activation=activation)
                finally:
                    NumpyBackend.conv2d = inherited  # type: ignore[method-assign]

            _check_kernel(case, call, expected, f"y (bias {bias}, activation {activation!r})")


def _not_this(*_: Any, **__: Any) -> Any:
    raise Wrong("NumpyBackend's own conv2d was called")


# === the command line ================================================================================================


def judge(exercise: Exercise, path: Path) -> str:
    """Run the file and check the answer in it; returns "" or what is wrong, with the line where its code failed."""
    try:
        with _at(f"running {path.name}"):
            found = runpy.run_path(str(path))
        if exercise.name not in found:
            raise Wrong(f"{path.name} defines no {exercise.name}")
        with _at(exercise.name):
            exercise.check(found[exercise.name])
    except Wrong as error:
        frames = traceback.extract_tb(error.__cause__.__traceback__) if error.__cause__ else []
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        return str(error) + (f" ({path.name}, line {lines[-1]})" if lines else "")
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """List, show and check exercises; 0 for a right answer, 1 for a wrong one, 2 for a wrong command."""
    parser = argparse.ArgumentParser(prog="python -m minidl.exercises", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all exercises, simplest first")
    commands.add_parser("show", help="the text of one").add_argument("exercise", help="number or name")
    check = commands.add_parser("check", help="run your answer's file and judge it")
    check.add_argument("exercise", help="number or name")
    check.add_argument("file", type=Path, help="a Python file of your own; it is run")
    check.add_argument("--seconds", type=float, default=60, help="time after which it is ended (default 60)")
    options = parser.parse_args(argv)
    if options.command == "list":
        for k, e in enumerate(EXERCISES, 1):
            print(f"{k:2}  {e.name:16} {e.kind:10} {e.title}")
        return 0
    known = {str(key): (k, e) for k, e in enumerate(EXERCISES, 1) for key in (k, e.name)}
    if options.exercise not in known:
        parser.error(f"there is no exercise {options.exercise!r}; `list` shows them all")
    number, e = known[options.exercise]
    if options.command == "show":
        print(f"Exercise {number}, {e.kind} `{e.name}`: {e.title}\n\n{e.text}\n")
        print(f"Check it: python -m minidl.exercises check {number} my_answer.py")
        return 0
    if not options.file.is_file():
        parser.error(f"there is no file {options.file}")
    code = (
        "import sys; from pathlib import Path; from minidl import exercises as e\n"
        f"wrong = e.judge(e.EXERCISES[{number - 1}], Path({str(options.file)!r}))\n"
        "print(f'wrong: {wrong}' if wrong else 'right'); sys.exit(bool(wrong))"
    )
    print(f"exercise {number}, {e.name}: ", end="", flush=True)
    try:
        return subprocess.run([sys.executable, "-c", code], timeout=options.seconds).returncode
    except subprocess.TimeoutExpired:
        print(f"wrong: ended after {options.seconds:g} s: is there an endless loop, or one over every path?")
        return 1


if __name__ == "__main__":
    sys.exit(main())
