"""Models for other programs: `export` runs a model, notes its ops, and writes them as an ONNX file.

The table OPS has one row for each op; any `forward` made of these ops can be exported, whatever its layers are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .backends.numpy_backend import Windows
from .checkpoint import StrPath, atomic_write
from .nn import Module
from .tensor import Tensor, enable_grad, trace

OPSET, IR = 18, 8  # of 2022: what every reader of today knows
ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh"}


def export(model: Module, path: StrPath, input_shape: Sequence[int | None]) -> None:
    """Write `model`, as it predicts (`eval`), to an ONNX file with one input "x" and one output "y".

    input_shape (N, ...): of an input; None in the place of N leaves the number of samples free. Weights keep their
    state_dict names. The model is run twice, on different random inputs: ValueError where they differ in more than
    what went through ops (an `if` on a value, a detour through NumPy), or for an op without a row in OPS; ImportError
    without the package onnx. The file is replaced only when the new one is whole.  ONNX, opset 18.
    """
    try:
        import onnx  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ImportError("minidl.onnx.export needs the package onnx: pip install onnx") from None
    if any(n is None for n in input_shape[1:]):
        raise ValueError(f"only the first size, the number of samples, can be left free, not {tuple(input_shape)}")
    first = input_shape[0]
    # two samples and three: what follows their number differs, and a size of one would hide in broadcasting
    (x, calls, y), (_, others, other) = (_run(model, (first or 2 + k, *input_shape[1:]), seed=k) for k in range(2))
    if [call.op for call in calls] != [call.op for call in others]:
        raise ValueError("the model takes another way through its ops for another input: ONNX needs the same for all")
    graph = Graph(model, x)
    for pair in zip(calls, others, strict=True):
        graph.follow(*pair)
    if id(y) not in graph.names:
        raise ValueError("the model's output is not made by its ops: did it go through NumPy?")
    graph.node("Identity", graph.names[id(y)], name="y")

    free = ["N" if a != b else a for a, b in zip(y.shape, other.shape, strict=True)]
    written = onnx.helper.make_graph(
        [onnx.helper.make_node(n.kind, n.inputs, [n.name], **n.attributes) for n in graph.nodes],
        type(model).__name__,
        [onnx.helper.make_tensor_value_info("x", _kind(x.dtype), [first or "N", *input_shape[1:]])],
        [onnx.helper.make_tensor_value_info("y", _kind(y.dtype), free)],
        [onnx.numpy_helper.from_array(a, name) for name, a in graph.constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    whole = onnx.helper.make_model(written, opset_imports=opsets, ir_version=IR, producer_name="minidl")
    onnx.checker.check_model(whole)
    with atomic_write(path) as part:
        part.write_bytes(whole.SerializeToString())


class Call(NamedTuple):
    """One op of a run: its name, the tensors, arrays and numbers it differentiates by, its options, its result."""

    op: str
    inputs: tuple[Any, ...]
    options: dict[str, Any]
    out: Tensor


def _run(model: Module, shape: tuple[Any, ...], seed: int) -> tuple[Tensor, list[Call], Tensor]:
    """Run the model on random numbers: input, all calls of ops, output. As if to learn, so that layers stay apart."""
    dtype = next((p.dtype for p in model.parameters()), np.dtype(np.float32))
    x = Tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype))
    calls: list[Call] = []
    modes = [(module, module.training) for module in model.modules()]
    try:
        with enable_grad(), trace(lambda *call: calls.append(Call(*call))):
            y = model.eval()(x)
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(y, Tensor):
        raise ValueError(f"a model to export returns one tensor, this one a {type(y).__name__}")
    return x, calls, y


class Node(NamedTuple):
    """One node of an ONNX graph: its operator, the names of inputs and result, its attributes."""

    kind: str
    inputs: list[str]
    name: str
    attributes: dict[str, Any]


class Graph:
    """An ONNX graph while it is built: its nodes and constants, and which tensors it already holds."""

    def __init__(self, model: Module, x: Tensor) -> None:
        self.weights = {id(p): name for name, p in model.named_parameters()}
        self.names = {id(x): "x"}  # of the tensors that depend on x
        self.nodes: list[Node] = []
        self.constants: dict[str, Any] = {}
        self.out, self.shape = x, x.shape  # result of the call being written; its shape, −1 where it follows N

    def follow(self, call: Call, other: Call) -> None:
        """Add the nodes of a call; `other` is the same call of another run."""
        for a, b in zip(call.inputs, other.inputs, strict=True):
            if id(a) not in self.names and not np.array_equal(_array(a), _array(b)):
                raise ValueError(f"an input of {call.op} changes with the model's input, but not by ops")
        if call.op not in OPS:
            raise ValueError(f"the op {call.op} has no row in minidl.onnx.OPS: it cannot be exported")
        sizes = zip(call.out.shape, other.out.shape, strict=True)
        self.out, self.shape = call.out, tuple(a if a == b else -1 for a, b in sizes)
        self.names[id(call.out)] = OPS[call.op](self, *call.inputs, **call.options)

    def node(self, kind: str, *inputs: Any, name: str = "", **attributes: Any) -> str:
        """Add a node; inputs are names, tensors, arrays, or None where left out. Returns the result's name."""
        name = name or f"{kind}_{len(self.nodes)}"
        names = [x if isinstance(x, str) else self.name(x) for x in inputs]
        while names[-1] == "":  # onnxruntime 1.32 crashes on a layer norm whose bias is there, but empty
            names.pop()
        self.nodes.append(Node(kind, names, name, attributes))
        return name

    def name(self, x: Any, dtype: Any = None) -> str:
        """The name of a tensor, or of an array or number as a constant; converted to `dtype` if given."""
        if x is None:
            return ""
        if id(x) in self.names:
            name = self.names[id(x)]
            return name if dtype in (None, x.dtype) else self.node("Cast", name, to=_kind(dtype))
        name = self.weights.get(id(x)) or f"constant_{len(self.constants)}"
        self.constants[name] = np.array(_array(x), dtype)
        return name

    def activate(self, name: str, activation: str) -> str:
        """The activation, if any, that a layer applies itself."""
        return self.node({"relu": "Relu", "tanh": "Tanh"}[activation], name) if activation else name


# === the rows: each writes the nodes of one op and gives the name of their result ====================================


def _same(kind: str) -> Callable[..., str]:
    """An op whose inputs are those of ONNX, in the dtype of the result."""
    return lambda graph, *xs: graph.node(kind, *(graph.name(x, graph.out.dtype) for x in xs))


def _compare(kind: str, negated: bool = False) -> Callable[..., str]:
    def write(graph: Graph, *xs: Any) -> str:
        dtype = np.result_type(*(x.dtype if hasattr(x, "dtype") else x for x in xs))
        y = graph.node(kind, *(graph.name(x, dtype) for x in xs))
        return graph.node("Not", y) if negated else y

    return write


def _reduce(kind: str) -> Callable[..., str]:
    def write(graph: Graph, x: Tensor, dim: Any, keepdim: bool) -> str:
        dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int | np.integer) else dim
        return graph.node(kind, x, np.array([d % x.ndim for d in dims]), keepdims=int(keepdim))

    return write


def _where_largest(kind: str) -> Callable[..., str]:
    def write(graph: Graph, x: Tensor, dim: int | None, keepdim: bool) -> str:
        flat = graph.node("Reshape", x, np.array([-1])) if dim is None else x
        return graph.node(kind, flat, axis=dim or 0, keepdims=int(keepdim and dim is not None))

    return write


def _clip(graph: Graph, x: Tensor, min: Any, max: Any) -> str:
    low, high = (None if v is None else np.array(_array(v), x.dtype) for v in (min, max))
    return graph.node("Clip", x, low, high)


def _gelu(graph: Graph, x: Tensor, approximate: str) -> str:
    def number(value: float) -> Any:
        return np.array(value, x.dtype)

    if approximate == "tanh":
        cube = graph.node("Mul", graph.node("Mul", x, graph.node("Mul", x, x)), number(0.044715))
        inner = graph.node("Mul", graph.node("Add", x, cube), number(math.sqrt(2 / math.pi)))
        step = graph.node("Tanh", inner)
    else:
        step = graph.node("Erf", graph.node("Mul", x, number(math.sqrt(0.5))))
    return graph.node("Mul", graph.node("Mul", x, number(0.5)), graph.node("Add", step, number(1)))


def _softplus(graph: Graph, x: Tensor, beta: float, threshold: float) -> str:
    scaled = graph.node("Mul", x, np.array(beta, x.dtype))
    y = graph.node("Div", graph.node("Softplus", scaled), np.array(beta, x.dtype))
    return graph.node("Where", graph.node("Greater", scaled, np.array(threshold, x.dtype)), x, y)


def _reshape(graph: Graph, x: Tensor, shape: Any) -> str:
    return graph.node("Reshape", x, np.array(graph.shape, np.int64))


def _getitem(graph: Graph, x: Tensor, index: tuple[Any, ...]) -> str:
    if not all(i is None or i is ... or isinstance(i, int | np.integer | slice) for i in index):
        raise ValueError("indexing with arrays cannot be exported, only with numbers and slices")
    rest = x.ndim - sum(i is not None and i is not ... for i in index)
    at = index.index(...) if ... in index else len(index)
    parts = [*index[:at], *[slice(None)] * rest, *index[at + 1 :]]
    cuts = []
    for axis, i in enumerate(i for i in parts if i is not None):
        if isinstance(i, slice) and i != slice(None):
            start, stop, step = i.indices(x.shape[axis])
            cuts.append((start, stop if stop >= 0 else np.iinfo(np.int64).min, axis, step))
        elif not isinstance(i, slice):
            cuts.append((i % x.shape[axis], i % x.shape[axis] + 1, axis, 1))
    name = graph.node("Slice", x, *np.array(cuts, np.int64).T) if cuts else graph.name(x)
    return graph.node("Reshape", name, np.array(graph.shape, np.int64))


def _pad(graph: Graph, x: Tensor, widths: Any, value: float) -> str:
    return graph.node("Pad", x, np.array(widths, np.int64).T.ravel(), np.array(value, x.dtype))


def _linear(graph: Graph, x: Tensor, weight: Any, bias: Any, activation: str) -> str:
    if x.ndim == 2:
        y = graph.node("Gemm", x, weight, bias, transB=1)
    else:
        y = graph.node("MatMul", x, graph.node("Transpose", weight, perm=[1, 0]))
        y = y if bias is None else graph.node("Add", y, bias)
    return graph.activate(y, activation)


def _window(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a convolution under ONNX's names; it pads each side by itself."""
    names = {"stride": "strides", "padding": "pads", "dilation": "dilations", "groups": "group"}
    found = {names.get(name, "kernel_shape"): value for name, value in options.items()}
    return {**found, "pads": 2 * list(found["pads"])}


def _conv2d(graph: Graph, x: Any, w: Any, b: Any, options: dict[str, Any], activation: str) -> str:
    return graph.activate(graph.node("Conv", x, w, b, **_window(options)), activation)


def _conv2d_joined(
    graph: Graph, x: Tensor, beside: Tensor, w: Any, b: Any, options: dict[str, Any], activation: str
) -> str:
    return _conv2d(graph, graph.node("Concat", x, beside, axis=1), w, b, options, activation)


def _conv_transpose2d(
    graph: Graph, x: Tensor, w: Any, b: Any, out_shape: Any, options: dict[str, Any], activation: str
) -> str:
    given = zip(x.shape[2:], w.shape[2:], *(options[name] for name in ("stride", "padding", "dilation")), strict=True)
    least = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in given]
    extra = [size - n for size, n in zip(out_shape[2:], least, strict=True)]
    y = graph.node("ConvTranspose", x, w, b, output_padding=extra, **_window(options))
    return graph.activate(y, activation)


def _hang_over(x: Tensor, out: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a pooling, the far edge padded as far as its last window reaches: ceil_mode, written out."""
    window = _window(options)
    dilation = options.get("dilation", (1, 1))
    for k in (0, 1):
        reach = (out.shape[2 + k] - 1) * options["stride"][k] + dilation[k] * (options["kernel_size"][k] - 1) + 1
        window["pads"][2 + k] = max(window["pads"][k], reach - x.shape[2 + k] - window["pads"][k])
    return window


def _max_pool2d(graph: Graph, x: Tensor, options: dict[str, Any], ceil_mode: bool) -> str:
    return graph.node("MaxPool", x, **_hang_over(x, graph.out, options))


def _avg_pool2d(graph: Graph, x: Tensor, options: dict[str, Any], count: Any) -> str:
    y = graph.node("AveragePool", x, count_include_pad=1, **_hang_over(x, graph.out, options))
    share = math.prod(options["kernel_size"]) / np.asarray(count)
    return y if np.all(share == 1) else graph.node("Mul", y, share.astype(x.dtype))


def _resample(graph: Graph, x: Tensor, rows: Windows, columns: Windows) -> str:
    def matrix(windows: Windows, size: int) -> Any:
        """What each output takes of each input: (outputs, inputs)."""
        first, last, weight = windows
        found = np.zeros((len(first), size), x.dtype)
        for i, (a, b) in enumerate(zip(first, last, strict=True)):
            found[i, a:b] = weight[i, : b - a]
        return found

    h, w = x.shape[2:]
    return graph.node("MatMul", matrix(rows, h), graph.node("MatMul", x, matrix(columns, w).T))


def _normalize(
    graph: Graph, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, axes: Sequence[int], eps: float
) -> str:
    ones = np.ones(x.shape[axes[0] :], x.dtype) if weight is None else weight
    return graph.node("LayerNormalization", x, ones, bias, axis=axes[0], epsilon=eps)


def _batch_norm(
    graph: Graph, x: Tensor, weight: Any, bias: Any, running: Any, training: bool, eps: float, activation: str, **_: Any
) -> str:
    if training or running is None:
        raise ValueError("batch norm without running statistics depends on its batch: it cannot be exported")
    c = x.shape[1]
    scale = np.ones(c, x.dtype) if weight is None else weight
    shift = np.zeros(c, x.dtype) if bias is None else bias
    moments = [a.astype(x.dtype) for a in running]
    return graph.activate(graph.node("BatchNormalization", x, scale, shift, *moments, epsilon=eps), activation)


def _local_response_norm(graph: Graph, x: Tensor, size: int, alpha: float, beta: float, k: float) -> str:
    if size % 2 == 0:
        raise ValueError("local response norm over an even number of channels is not ONNX's: it cannot be exported")
    return graph.node("LRN", x, size=size, alpha=alpha, beta=beta, bias=k)


OPS: dict[str, Callable[..., str]] = {
    "add": _same("Add"), "sub": _same("Sub"), "mul": _same("Mul"), "div": _same("Div"), "pow": _same("Pow"),
    "neg": _same("Neg"), "maximum": _same("Max"), "minimum": _same("Min"),
    "lt": _compare("Less"), "le": _compare("LessOrEqual"), "gt": _compare("Greater"), "ge": _compare("GreaterOrEqual"),
    "eq": _compare("Equal"), "ne": _compare("Equal", negated=True),
    "exp": _same("Exp"), "log": _same("Log"), "sqrt": _same("Sqrt"), "abs": _same("Abs"), "tanh": _same("Tanh"),
    "sigmoid": _same("Sigmoid"), "relu": _same("Relu"),
    "leaky_relu": lambda graph, x, negative_slope: graph.node("LeakyRelu", x, alpha=negative_slope),
    "gelu": _gelu, "softplus": _softplus, "clip": _clip,
    "astype": lambda graph, x, dtype: graph.node("Cast", x, to=_kind(dtype)),
    "where": lambda graph, condition, x, y: graph.node(
        "Where", condition, graph.name(x, graph.out.dtype), graph.name(y, graph.out.dtype)),
    "sum": _reduce("ReduceSum"), "mean": _reduce("ReduceMean"), "amax": _reduce("ReduceMax"),
    "amin": _reduce("ReduceMin"), "argmax": _where_largest("ArgMax"), "argmin": _where_largest("ArgMin"),
    "reshape": _reshape, "getitem": _getitem, "pad_constant": _pad,
    "permute": lambda graph, x, dims: graph.node("Transpose", x, perm=[int(d) % x.ndim for d in dims]),
    "concatenate": lambda graph, *xs, dim: graph.node("Concat", *xs, axis=dim),
    "matmul": _same("MatMul"), "linear": _linear,
    "softmax": lambda graph, x, dim: graph.node("Softmax", x, axis=dim),
    "log_softmax": lambda graph, x, dim: graph.node("LogSoftmax", x, axis=dim),
    "conv2d": _conv2d, "conv2d_joined": _conv2d_joined, "conv_transpose2d": _conv_transpose2d,
    "max_pool2d": _max_pool2d, "avg_pool2d": _avg_pool2d, "resample": _resample,
    "normalize": _normalize, "batch_norm": _batch_norm, "local_response_norm": _local_response_norm,
}  # fmt: skip


def _array(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


def _kind(dtype: Any) -> int:
    """ONNX's number of a dtype."""
    from onnx import helper  # type: ignore[import-not-found,unused-ignore]

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
