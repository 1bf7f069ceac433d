"""The exercises' judges: a right answer passes, and each usual mistake is told with its place."""
# ruff: noqa: E501 (a mistake is a line)

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from minidl import exercises
from minidl.testing import assert_close

ROOT = Path(__file__).parents[1]
HEAD = "import numpy as np\nfrom minidl import Tensor, nn, optim\nfrom minidl.tensor import Array, op\n"
RIGHT = {
    "relu": """
        def relu(backend, x: Array):
            y = np.maximum(x, 0)
            return y, lambda g: g * (x > 0)
    """,
    "neuron": """
        @op
        def neuron(backend, x: Array, w: Array, b: Array):
            y = np.tanh(x @ w + b)
            slope = 1 - y * y
            return y, lambda g: np.outer(g * slope, w), lambda g: (g * slope) @ x, lambda g: (g * slope).sum()
    """,
    "Linear": """
        class Linear(nn.Module):
            def __init__(self, in_features, out_features):
                rng = np.random.default_rng(1)
                self.weight = nn.Parameter(rng.normal(0, 0.1, (out_features, in_features)).astype("float32"))
                self.bias = nn.Parameter(np.zeros(out_features, "float32"))

            def forward(self, x):
                return x @ self.weight.T + self.bias
    """,
    "cross_entropy": """
        def cross_entropy(backend, x: Array, t):
            n = np.arange(len(x))
            z = x - x.max(1, keepdims=True)
            p = np.exp(z)
            total = p.sum(1, keepdims=True)
            p /= total
            loss = (np.log(total[:, 0]) - z[n, t]).mean()

            def grad(g):
                d = p.copy()
                d[n, t] -= 1
                return g * d / len(x)

            return loss, grad
    """,
    "backward_order": """
        def backward_order(tensor):
            children, stack, seen = {}, [tensor], {id(tensor)}
            while stack:
                t = stack.pop()
                for p in t.parents:
                    children[id(p)] = children.get(id(p), 0) + 1
                    if id(p) not in seen:
                        seen.add(id(p))
                        stack.append(p)
            order, ready = [], [tensor]
            while ready:
                t = ready.pop()
                order.append(t)
                for p in t.parents:
                    children[id(p)] -= 1
                    if not children[id(p)]:
                        ready.append(p)
            return order
    """,
    "Momentum": """
        class Momentum(optim.Optimizer):
            def __init__(self, params, lr=0.1, momentum=0.9):
                super().__init__(params, lr=lr, momentum=momentum)

            def _update(self, p, g, state, group):
                v = state.setdefault("v", np.zeros_like(p))
                v *= group["momentum"]
                v += g
                p -= group["lr"] * v
    """,
    "Adam": """
        class Adam(optim.Optimizer):
            def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
                super().__init__(params, lr=lr, betas=betas, eps=eps)

            def _update(self, p, g, state, group):
                (b1, b2), t = group["betas"], state.get("t", 0) + 1
                m = state.get("m", 0) * b1 + (1 - b1) * g
                s = state.get("s", 0) * b2 + (1 - b2) * g * g
                state.update(t=t, m=m, s=s)
                p -= group["lr"] * m / (1 - b1**t) / (np.sqrt(s / (1 - b2**t)) + group["eps"])
    """,
    "dropout": """
        def dropout(x, p, training, rng):
            if not training:
                return x
            kept = rng.random(x.shape) >= p
            return x * (kept / (1 - p) if p < 1 else kept).astype("float32")
    """,
    "batch_norm": """
        def batch_norm(backend, x: Array, weight: Array, bias: Array, eps=1e-5):
            axes = (0, *range(2, x.ndim))
            wide = (1, -1) + (1,) * (x.ndim - 2)
            mean, inverse = x.mean(axes, keepdims=True), 1 / np.sqrt(x.var(axes, keepdims=True) + eps)
            unit = (x - mean) * inverse

            def grad_x(g):
                g = g * weight.reshape(wide)
                return inverse * (g - g.mean(axes, keepdims=True) - unit * (g * unit).mean(axes, keepdims=True))

            y = unit * weight.reshape(wide) + bias.reshape(wide)
            return y, grad_x, lambda g: (g * unit).sum(axes), lambda g: g.sum(axes)
    """,
    "max_pool2d": """
        def max_pool2d(backend, x: Array, kernel, stride):
            (n, c, h, w), (kh, kw), (sh, sw) = x.shape, kernel, stride
            oh, ow = (h - kh) // sh + 1, (w - kw) // sw + 1
            y = np.zeros((n, c, oh, ow), x.dtype)
            best = np.zeros(y.shape, int)
            for i in range(oh):
                for j in range(ow):
                    window = x[:, :, i * sh : i * sh + kh, j * sw : j * sw + kw].reshape(n, c, -1)
                    best[:, :, i, j] = window.argmax(2)
                    y[:, :, i, j] = window.max(2)

            def grad(g):
                d = np.zeros_like(x)
                for a, b, i, j in np.ndindex(*y.shape):
                    k, l = divmod(best[a, b, i, j], kw)
                    d[a, b, i * sh + k, j * sw + l] += g[a, b, i, j]
                return d

            return y, grad
    """,
    "conv2d": """
        def conv2d(x, w, stride, padding):
            (n, c, h, wd), (o, _, kh, kw), (sh, sw), (ph, pw) = x.shape, w.shape, stride, padding
            oh, ow = (h + 2 * ph - kh) // sh + 1, (wd + 2 * pw - kw) // sw + 1
            padded = np.zeros((n, c, h + 2 * ph, wd + 2 * pw), x.dtype)
            padded[:, :, ph : ph + h, pw : pw + wd] = x
            y = np.zeros((n, o, oh, ow), x.dtype)
            for i in range(oh):
                for j in range(ow):
                    window = padded[:, :, i * sh : i * sh + kh, j * sw : j * sw + kw]
                    y[:, :, i, j] = np.einsum("nckl,ockl->no", window, w)
            return y
    """,
    "conv2d_grad_x": """
        def conv2d_grad_x(g, w, x_shape, stride, padding):
            (n, c, h, wd), (o, _, kh, kw), (sh, sw), (ph, pw) = x_shape, w.shape, stride, padding
            padded = np.zeros((n, c, h + 2 * ph, wd + 2 * pw), g.dtype)
            for i in range(g.shape[2]):
                for j in range(g.shape[3]):
                    padded[:, :, i * sh : i * sh + kh, j * sw : j * sw + kw] += np.einsum("no,ockl->nckl", g[:, :, i, j], w)
            return padded[:, :, ph : ph + h, pw : pw + wd]
    """,
    "Im2colBackend": """
        from minidl.backends.numpy_backend import NumpyBackend

        class Im2colBackend(NumpyBackend):
            name = "im2col"

            def conv2d(self, x, w, b, *, stride, padding, dilation, groups, activation=""):
                (n, c, h, wd), (o, cg, kh, kw), (sh, sw), (ph, pw), (dh, dw) = x.shape, w.shape, stride, padding, dilation
                x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
                oh = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1
                ow = (wd + 2 * pw - dw * (kw - 1) - 1) // sw + 1
                columns = np.empty((n, c, kh, kw, oh, ow), x.dtype)
                for k in range(kh):
                    for l in range(kw):
                        taps = x[:, :, k * dh :: sh, l * dw :: sw]
                        columns[:, :, k, l] = taps[:, :, :oh, :ow]
                columns = columns.reshape(n, groups, cg * kh * kw, oh * ow)
                y = (w.reshape(groups, o // groups, -1) @ columns).reshape(n, o, oh, ow)
                if b is not None:
                    y = y + b[:, None, None]
                return np.maximum(y, 0) if activation == "relu" else y
    """,
}
# (exercise, what to change in the right answer, into what, what must be told)
WRONG = [
    ("relu", "(x > 0)", "(x >= 0)", r'row "relu": ∂L/∂x\[3\]: expected 0, got [\d.]+ \(2 of 10'),
    ("relu", "g * (x > 0)", "(x > 0)", r"gradient function of relu gave \(10,\) bool for an input"),
    ("relu", "y = np.maximum(x, 0)", "x[x < 0] = 0; y = x.copy()", r"x was changed in place: x\[0\]: expected -2, got 0"),
    ("relu", "x: Array", "x", r"no input is marked `: Array`"),
    ("relu", "def relu", "def rectify", r"answer.py defines no relu"),
    ("relu", "np.maximum(x, 0)", "np.maximum(x, O)", r"your code raised NameError: name 'O' is not defined \(answer.py, line 6"),
    ("relu", "g * (x > 0)", "g * np.where(x > 0, 1.0, 0)", r"gave \(10,\) float64 for an input of \(10,\) float32"),
    ("neuron", "1 - y * y", "1 - y", r'row "one sample": ∂L/∂x\[0, 0\]'),
    ("neuron", "(g * slope) @ x", "(g * slope) @ x / len(x)", r'row "many samples": ∂L/∂w\[0\]: expected'),
    ("neuron", "np.tanh(x @ w + b)", "np.tanh(x @ w)", r"y\[0\]: expected"),
    ("Linear", "(out_features, in_features)", "(in_features, out_features)", r"its parameters are .*'weight': \(3, 4\)"),
    ("Linear", "rng.normal(0, 0.1, (out_features, in_features))", "np.ones((out_features, in_features))", "all weights are alike"),
    ("Linear", " + self.bias", "", r"y of 5 samples\[0, 0\]: expected"),
    ("Linear", "return x @", "self.x = self.__dict__.get('x', x); return self.x @", r"y of 1 sample has shape \(5, 4\), expected \(1, 4\)"),
    ("Linear", "x @ self.weight.T", "Tensor(x.data) @ self.weight.T", r"∂L/∂x of 5 samples is None"),
    ("cross_entropy", "x - x.max(1, keepdims=True)", "x - 0", r'row "scores of 1000": y: expected .*, got (nan|inf)'),
    ("cross_entropy", " / len(x)", "", r'row "cross_entropy": ∂L/∂x\[0, 0\]: expected'),
    ("cross_entropy", ".mean()", ".sum()", r'row "cross_entropy": y: expected'),
    ("cross_entropy", "d[n, t] -= 1", "d[:, t] -= 1", r"∂L/∂x\[0, 1\]"),
    ("backward_order", "if not children[id(p)]:", "if True:", "the diamond"),
    ("backward_order", "ready.pop()", "ready.pop(0)", None),  # breadth first with counts is right too
    ("backward_order", "return order", "return order[:-1]", r"the diamond: number 0 \(leaf\), .* is missing"),
    ("backward_order", "return order", "return order[::-1]", r"number 0 \(leaf\), .* comes at place 0, before number 1 \(mul\)"),
    ("backward_order", "return order", "return [*order, order[-1]]", "5 tensors are listed, but only 4 different ones"),
    ("Momentum", "v += g", "v += (1 - group['momentum']) * g", r"step 1 of .*: parameter 0\[0, 0\]: expected"),
    ("Momentum", "v += g", "v = v + g", r"step 2 of .*: parameter 0\[0, 0\]"),
    ("Momentum", "v += g", "g += v; v[...] = g", r"step 2 .* the gradient was changed in place: gradient 0\[0, 0\]"),
    ("Momentum", "p -= group", "p = p - group", r"step 1 of .*: parameter 0\[0, 0\]"),
    ("Adam", " / (1 - b1**t)", "", r"step 1 of .*: parameter 0\[0, 0\]"),
    ("Adam", '+ group["eps"])', '+ 1e-8)', r"step 1 of \{'lr': 0.02, 'betas': \(0.5, 0.6\), 'eps': 0.1\}"),
    ("Adam", 't = group["betas"], state.get("t", 0) + 1', 't = group["betas"], 1', r"step 2 of"),
    ("dropout", "kept / (1 - p)", "kept", r"p = 0.2: y\[0, 0\]: expected"),
    ("dropout", ">= p", "< p", r"p = 0.0: 1.000 of the elements are zero, expected 0.0"),
    ("dropout", "rng.random(x.shape)", "np.random.default_rng(0).random(x.shape)", "a second call drops the same"),
    ("dropout", "x * (kept", "Tensor(x.data) * (kept", "nothing here requires a gradient"),
    ("dropout", "if not training", "if training", "training=False: y"),
    ("dropout", " if p < 1 else kept", "", "p = 1.0: 0.000 of the elements are zero"),
    ("batch_norm", "unit * (g * unit).mean(axes, keepdims=True)", "0", r'row "vectors": ∂L/∂x\[0, 0\]'),
    ("batch_norm", "+ eps)", "+ 1e-5)", r'row "another eps": y'),
    ("batch_norm", "(0, *range(2, x.ndim))", "(0,)", r'row "pictures"'),
    ("max_pool2d", "window.argmax(2)", "window.shape[2] - 1 - window[:, :, ::-1].argmax(2)", r'row "plain 2x2.*: ∂L/∂x\['),
    ("max_pool2d", "] += g", "] = g", r'row "overlap 3/2.*: ∂L/∂x\['),
    ("max_pool2d", "np.zeros((n, c, oh, ow)", "np.zeros((n, c, oh + 1, ow)", r"y has shape \(2, 3, 5, 3\), expected \(2, 3, 4, 3\)"),
    ("conv2d", "nckl,ockl->no", "nclk,ockl->no", r'row "(plain 3x3|non-square)"'),
    ("conv2d", "i * sh : i * sh + kh", "i * sw : i * sw + kh", r'row "stride'),
    ("conv2d", ", w)", ", w[:, :, ::-1, ::-1])", r'row "plain 3x3" \(x \(2, 3, 8, 9\), .*: y\[0, 0, 0, 0\]: expected'),
    ("conv2d", "np.zeros((n, o, oh, ow), x.dtype)", "np.zeros((n, o, oh, ow))", "y of float32 inputs is float64"),
    ("conv2d_grad_x", "] += np.einsum", "] = np.einsum", r'row "plain 3x3" .*: ∂L/∂x\[0, 0, 0, 0\]'),
    ("conv2d_grad_x", "padded[:, :, ph : ph + h, pw : pw + wd]", "padded[:, :, :h, :wd]", r"∂L/∂x\[0, 0, 0, 0\]"),
    ("Im2colBackend", "k * dh ::", "k ::", r'row "dilated" '),
    ("Im2colBackend", "w.reshape(groups, o // groups, -1) @ columns", "w.reshape(1, o, -1) @ columns.reshape(n, 1, -1, oh * ow)", r'row "two groups"'),
    ("Im2colBackend", 'if activation == "relu"', "if False", r"bias False, activation 'relu'\)\[0, 0, "),
    ("Im2colBackend", "if b is not None:", "if False:", r"bias True, activation ''\)\[0, 0, 0, 0\]"),
    ("Im2colBackend", "x = np.pad", "return super().conv2d(x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups)\n                x = np.pad", "own conv2d was called"),
    ("Im2colBackend", "(NumpyBackend)", "", "it is no subclass of NumpyBackend"),
]  # fmt: skip


def judged(name: str, code: str, folder: Path) -> str:
    path = folder / "answer.py"
    path.write_text(HEAD + textwrap.dedent(code), encoding="utf-8")
    return exercises.judge(next(e for e in exercises.EXERCISES if e.name == name), path)


@pytest.mark.parametrize("name", [e.name for e in exercises.EXERCISES])
def test_a_right_answer_passes(name: str, tmp_path: Path) -> None:
    assert judged(name, RIGHT[name], tmp_path) == ""


@pytest.mark.parametrize(("name", "good", "bad", "told"), WRONG, ids=[f"{w[0]}: {w[2][:40]}" for w in WRONG])
def test_a_mistake_is_told_with_its_place(name: str, good: str, bad: str, told: str | None, tmp_path: Path) -> None:
    assert good in RIGHT[name]
    message = judged(name, RIGHT[name].replace(good, bad), tmp_path)
    if told is None:
        assert message == ""
    else:
        assert re.search(told, message), message
        assert "\n" not in message and len(message) < 400


def test_every_exercise_has_wrong_answers() -> None:
    assert {w[0] for w in WRONG} == {e.name for e in exercises.EXERCISES} == set(RIGHT)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minidl.exercises", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert exercises.main(["list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(exercises.EXERCISES) and shown[6].split()[:2] == ["7", "Adam"]
    assert exercises.main(["show", "4"]) == exercises.main(["show", "cross_entropy"]) == 0
    text = capsys.readouterr().out
    assert "def cross_entropy(backend, x: Array, t):" in text and "check 4 my_answer.py" in text
    for e in exercises.EXERCISES:
        assert e.name in e.text and len(e.text) > 200


def test_check_runs_the_file_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(HEAD + textwrap.dedent(RIGHT["relu"]))
    done = run("check", "1", str(path))
    assert (done.returncode, done.stdout.strip()) == (0, "exercise 1, relu: right"), done.stderr
    path.write_text("import sys\nsys.exit(0)\n")
    done = run("check", "relu", str(path))
    assert done.returncode == 1 and "your code raised SystemExit" in done.stdout
    path.write_text("def relu(backend, x: 'Array | None'):\n    while True: pass\n")
    done = run("check", "1", str(path), "--seconds", "2")
    assert done.returncode == 1 and "ended after 2 s" in done.stdout


def test_wrong_commands_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, told in (
        (["show", "99"], "no exercise '99'"),
        (["check", "1", str(tmp_path / "none.py")], "no file"),
        ([], "required: command"),
    ):
        with pytest.raises(SystemExit) as stop:
            exercises.main(command)
        assert stop.value.code == 2 and told in capsys.readouterr().err.splitlines()[-1]


def test_assert_close_names_the_element() -> None:
    assert_close([1.0, np.nan, np.inf], [1.0, np.nan, np.inf])
    for got, expected, told in (
        ([1.0, np.nan], [1.0, 2.0], r"y\[1\]: expected 2, got nan \(1 of 2"),
        (np.nan, 1.0, "y: expected 1, got nan"),
        ([1.0, -np.inf], [1.0, np.inf], r"y\[1\]: expected inf, got -inf"),
        (None, [1.0], "y is None"),
        (["a"], ["b"], "expected numbers"),
        ([[1.0]], [1.0], r"shape \(1, 1\), expected \(1,\)"),
        ([1.0, 2.1], [1.0, 2.0], r"y\[1\]: expected 2, got 2.1"),
    ):
        with pytest.raises(AssertionError, match=told):
            assert_close(got, expected)
