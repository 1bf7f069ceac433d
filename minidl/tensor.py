"""A tensor is an array that remembers how it was made; `backward` walks that memory and gives every leaf its gradient.

Reading order: 1. this file · 2. functional.py · 3. nn.py · 4. backends/numpy_backend.py · 5. optim.py · 6. models.py

Why gradients need an order. Take three nodes, a diamond:

        a            b = 2a, c = 3a, d = b·c = 6a²      ∂d/∂a = 12a
       / \\
      b   c          a must wait until both b and c have sent their share: 2·(∂d/∂b) + 3·(∂d/∂c) = 2·3a + 3·2a.
       \\ /
        d            A tensor is always born after its parents. So "youngest first" is such an order: no recursion.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator
from contextvars import ContextVar
from typing import Annotated, Any, TypeAlias

import numpy as np

from .arrays import beside, move, on_device, to_host
from .backends import get_backend

# An ndarray of the active backend: NumPy's, or another library's with the same methods; `op` knows it from other types.
Array: TypeAlias = Annotated[Any, "Array"]
Vjp: TypeAlias = Callable[..., Array]  # vector-Jacobian product: ∂L/∂(output) -> ∂L/∂(one input)

FLOAT64 = np.dtype(np.float64)  # two dtypes compare faster than a dtype and a type
_NUMPY_NAMES = (("axis", "dim"), ("keepdims", "keepdim"))
_births = itertools.count()
_recording: ContextVar[bool] = ContextVar("recording", default=True)
_anomaly: ContextVar[bool] = ContextVar("anomaly", default=False)
_watcher: ContextVar[Callable[..., None] | None] = ContextVar("watcher", default=None)


def _method(name: str, swap: bool = False) -> Callable[..., Any]:
    """Make a method of the function `name` of functional.py; `swap` for operators with the tensor on the right."""

    def method(self: Tensor, *args: Any, **options: Any) -> Any:
        function = getattr(F, name)
        return function(args[0], self) if swap else function(self, *args, **options)

    method.__name__, method.__doc__ = name, f"See `minidl.functional.{name}`."
    return method


class Tensor:
    """An n-dimensional array with a gradient.

    `data` is shared with the array given, not copied. Python floats become float32; arrays keep their dtype.
    After `backward`, `grad` of a leaf (a tensor made by you, not by an op) is an array of `data`'s shape and dtype.

    Raises TypeError for data that are not numbers, or `requires_grad` on data that are not floating point.
    """

    __slots__ = ("__weakref__", "birth", "data", "grad", "op", "parents", "requires_grad", "vjps")
    __array_ufunc__ = None  # so that np.float64(2) * tensor asks the tensor, and the gradient is not lost

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None) -> None:
        self._start(_as_array(data, dtype), requires_grad)

    def _start(self, data: Array, requires_grad: bool) -> None:
        """Begin as a leaf on these data, wherever they lie."""
        if requires_grad and data.dtype.kind != "f":
            raise TypeError(f"only floating-point tensors can require a gradient, not {data.dtype}")
        self.data: Array = data
        self.requires_grad = requires_grad
        self.grad: Array | None = None
        self.birth = next(_births)
        self.op = ""  # the name of the op that made it; "" for a leaf
        self.parents: tuple[Tensor, ...] = ()
        self.vjps: tuple[Vjp, ...] | None = ()  # one for each parent; None once a backward has used them up

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes along each dimension."""
        return self.data.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> Any:
        """Element type of the data."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self.data.ndim  # type: ignore[no-any-return]

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.data.size  # type: ignore[no-any-return]

    @property
    def is_leaf(self) -> bool:
        """True for a tensor that no op with a gradient made."""
        return not self.op

    def numel(self) -> int:
        """Number of elements."""
        return self.size

    def dim(self) -> int:
        """Number of dimensions."""
        return self.ndim

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[k] for k in range(len(self)))

    def __repr__(self) -> str:
        values = np.array2string(to_host(self.data), separator=", ", prefix="Tensor(") if self.size else "[]"
        notes = [] if self.dtype == np.float32 else [f"dtype={self.dtype}"]
        notes += [f"op={self.op}"] if self.op else ["requires_grad=True"] if self.requires_grad else []
        return f"Tensor({', '.join([values, *notes])})"

    # --- to the world outside ---------------------------------------------------------------------------------------

    def item(self) -> Any:
        """The one element as a Python number; ValueError if there are more."""
        if self.size != 1:
            raise ValueError(f"item() needs a tensor of one element, this one has shape {self.shape}")
        return self.data.item()

    def numpy(self) -> np.ndarray[Any, Any]:
        """The data as a NumPy array, shared (from a GPU: a copy); RuntimeError where a gradient would be lost."""
        if self.requires_grad:
            raise RuntimeError("this tensor records gradients, a NumPy array cannot: use tensor.detach().numpy()")
        return to_host(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.numpy(), dtype=dtype, copy=bool(copy) or None)

    def to(self, backend: str) -> Tensor:
        """This tensor where `backend` computes: itself if it lies there, else a copy, from which the gradient returns.

        To compute with the copy that backend must be active: `with use_backend(backend):`.
        """
        there = move(self.data, backend)
        if there is self.data:
            return self
        recorded, here = self.requires_grad and _recording.get(), self.data
        return _result("to", there, [self], [lambda g: beside(here, g)]) if recorded else _leaf(there)

    def __dlpack__(self, **options: Any) -> Any:
        if self.requires_grad:
            raise RuntimeError("this tensor records gradients, another library cannot: share tensor.detach()")
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def tolist(self) -> Any:
        """The data as nested Python lists."""
        return self.data.tolist()

    def detach(self) -> Tensor:
        """The same data, cut from the graph: a new leaf without gradient."""
        return _leaf(self.data)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Switch the recording of gradients on or off for this leaf; returns itself."""
        if not self.is_leaf:
            raise RuntimeError(f"made by {self.op}: only a leaf can be switched, use detach() first")
        if requires_grad and self.dtype.kind != "f":
            raise TypeError(f"only floating-point tensors can require a gradient, not {self.dtype}")
        self.requires_grad = requires_grad
        return self

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __getstate__(self) -> dict[str, Any]:
        if not self.is_leaf:
            raise RuntimeError(f"made by {self.op}: only a leaf can be copied or pickled, use detach() first")
        return {"data": self.data, "grad": self.grad, "requires_grad": self.requires_grad}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._start(state["data"], state["requires_grad"])  # with a birth number of its own
        self.grad = state["grad"]

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "tensors are not written in place: build a new one with where, concatenate or pad, or write to tensor.data"
        )

    # --- gradients --------------------------------------------------------------------------------------------------

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add ∂self/∂leaf, weighted with `gradient`, to the `grad` of every leaf that requires it.

        `gradient` has the tensor's shape; a tensor of one element needs none (1 is taken). The graph is used up as
        it is walked, which frees memory early; a second backward needs `retain_graph=True` in the first, and then
        adds to the leaves once more. RuntimeError if nothing requires a gradient, the graph is used up, or an op
        gives a gradient of a wrong shape or dtype.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "nothing here requires a gradient: set requires_grad=True on an input, or leave no_grad()"
            )
        _check_home("backward", get_backend(), [self.data])
        if gradient is None:
            if self.size != 1:
                raise RuntimeError(
                    f"backward() without a gradient needs one element, this tensor has shape {self.shape}"
                )
            gradient = get_backend().xp.ones(self.shape, self.dtype)
        else:
            gradient = _as_array(gradient, self.dtype)
            if gradient.shape != self.shape:
                raise ValueError(f"gradient has shape {gradient.shape}, the tensor {self.shape}")

        pending: dict[int, Array] = {self.birth: gradient}  # ∂L/∂node, by birth; dropped as soon as it is used
        anomaly = _anomaly.get()
        nodes = self._ancestors()
        while nodes:
            node = nodes.pop()
            if not node.op:
                g, references = _take(pending, node.birth)
                node.grad = _own(g, references) if node.grad is None else node.grad + g
                continue
            _pass_on(node, pending.pop(node.birth), pending, anomaly)
            if not retain_graph:
                node.parents, node.vjps = (), None

    def _ancestors(self) -> list[Tensor]:
        """This tensor and all it was made from that require a gradient, oldest first."""
        found = {self.birth: self}
        stack = [self]
        while stack:
            node = stack.pop()
            if node.vjps is None:
                raise RuntimeError(
                    f"this graph was used up by an earlier backward (at {node.op}): "
                    "call that one with backward(retain_graph=True), or compute the loss again"
                )
            for parent in node.parents:
                if parent.birth not in found:
                    found[parent.birth] = parent
                    if parent.op:
                        stack.append(parent)
        return [found[birth] for birth in sorted(found)]

    # --- methods: each is the function of the same name in functional.py -----------------------------------------

    # fmt: off
    __add__, __radd__ = _method("add"), _method("add", swap=True)
    __sub__, __rsub__ = _method("sub"), _method("sub", swap=True)
    __mul__, __rmul__ = _method("mul"), _method("mul", swap=True)
    __truediv__, __rtruediv__ = _method("div"), _method("div", swap=True)
    __pow__, __rpow__ = _method("pow"), _method("pow", swap=True)
    __matmul__, __rmatmul__ = _method("matmul"), _method("matmul", swap=True)
    __neg__, __abs__, __getitem__ = _method("neg"), _method("abs"), _method("getitem")
    __lt__, __le__, __gt__, __ge__ = _method("lt"), _method("le"), _method("gt"), _method("ge")
    __eq__, __ne__ = _method("eq"), _method("ne")
    __hash__ = object.__hash__
    sum, mean, var, max, min = (_method(n) for n in ("sum", "mean", "var", "max", "min"))
    amax, amin, argmax, argmin = (_method(n) for n in ("amax", "amin", "argmax", "argmin"))
    exp, log, sqrt, abs, pow = (_method(n) for n in ("exp", "log", "sqrt", "abs", "pow"))
    tanh, sigmoid, relu = (_method(n) for n in ("tanh", "sigmoid", "relu"))
    softmax, log_softmax, clip = _method("softmax"), _method("log_softmax"), _method("clip")
    matmul, transpose, flatten = _method("matmul"), _method("transpose"), _method("flatten")
    squeeze, unsqueeze, astype = _method("squeeze"), _method("unsqueeze"), _method("astype")
    # fmt: on

    def reshape(self, *shape: Any) -> Tensor:
        """See `minidl.functional.reshape`; the shape as one tuple or as several numbers."""
        return F.reshape(self, _spread(shape))

    view = reshape

    def permute(self, *dims: Any) -> Tensor:
        """See `minidl.functional.permute`; the dimensions as one tuple or as several numbers."""
        return F.permute(self, _spread(dims))

    @property
    def T(self) -> Tensor:
        """The dimensions in reverse order."""
        return F.permute(self, tuple(reversed(range(self.ndim))))


def _spread(numbers: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(numbers[0]) if len(numbers) == 1 and isinstance(numbers[0], tuple | list) else numbers


def _as_array(data: Any, dtype: Any = None) -> Array:
    """An array of the active backend: arrays as they are, Python numbers and lists with floats as float32."""
    if isinstance(data, Tensor):
        data = data.data
    xp = get_backend().xp
    typed = hasattr(data, "dtype")
    if typed and on_device(data):
        _check_home("Tensor", get_backend(), [data])
    try:
        array = xp.asarray(data, dtype=dtype)
    except (ValueError, TypeError) as error:
        raise TypeError(f"cannot make a tensor of {type(data).__name__}: {error}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a tensor holds real numbers or booleans, not {array.dtype} (from {type(data).__name__})")
    if not array.dtype.isnative:  # as FITS files are read
        array = array.astype(array.dtype.newbyteorder("="))
    if dtype is None and not typed and array.dtype == np.float64:
        array = array.astype(np.float32)
    return array


def _pass_on(node: Tensor, g: Array, pending: dict[int, Array], anomaly: bool) -> None:
    """Add to `pending` what each parent of `node` receives of g = ∂L/∂node."""
    vjps = node.vjps or ()
    for k, parent in enumerate(node.parents):
        vjp, data, before = vjps[k], parent.data, pending.get(parent.birth)
        added = before is not None and hasattr(vjp, "adds")
        share = vjp(g, before) if added else vjp(g)
        if share.shape != data.shape or share.dtype != data.dtype:
            raise RuntimeError(
                f"the gradient function of {node.op} gave {share.shape} {share.dtype} "
                f"for an input of {data.shape} {data.dtype}"
            )
        if anomaly and not get_backend().xp.isfinite(share).all():
            raise FloatingPointError(
                f"backward of {node.op} made the first NaN or Inf: the gradient for its input of shape {parent.shape}"
                + (f" (made by {parent.op})" if parent.op else "")
            )
        if before is not None and not added:
            active = get_backend()
            share = active.add(before, share) if isinstance(share, active.xp.ndarray) else before + share
        pending[parent.birth] = share


def _take(pending: dict[int, Array], birth: int) -> tuple[Array, int]:
    """The pending gradient and the number of references to it."""
    g = pending.pop(birth)
    return g, sys.getrefcount(g)


_ALONE = _take({0: np.empty(1)}, 0)[1]  # what counts as a single reference differs between versions of Python


def _own(g: Array, references: int) -> Array:
    """g as an array of its own, not copied where nothing else can see its memory.

    Otherwise the same array may be the gradient of another tensor, or its memory that of another array.
    """
    if references == _ALONE and type(g) is np.ndarray and g.flags.c_contiguous and not isinstance(g.base, np.ndarray):
        return g
    return np.array(g, order="C") if isinstance(g, np.ndarray | np.generic) else g.copy()


def adding(vjp: Vjp) -> Vjp:
    """Mark a gradient function vjp(g, before) that gives before + ∂L/∂x, where x has the gradient `before` already."""
    vjp.adds = True  # type: ignore[attr-defined]
    return vjp


def op(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """Make a differentiable op of a plain function on arrays.

    `function(backend, x: Array, ..., option=...)` returns its value and, for each parameter annotated `Array`, the
    function that takes g = ∂L/∂value to ∂L/∂x (None where there is no gradient). The op takes tensors, arrays and
    numbers instead, has no `backend` parameter, and accepts NumPy's `axis` and `keepdims` for `dim` and `keepdim`.
    Gradient functions of inputs that need none are dropped at once, with the arrays they hold.
    """
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1:]
    names = [p.name for p in parameters if _is_array(p.annotation)]
    count = len(names)
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    name = function.__name__.lstrip("_")

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Tensor:
        if options:
            for theirs, ours in _NUMPY_NAMES:
                if theirs in options:
                    options[ours] = options.pop(theirs)
            if not options.keys().isdisjoint(names):  # arrays given by name: put them in their places
                bound = call.__signature__.bind(*args, **options)  # type: ignore[attr-defined]
                bound.apply_defaults()
                args, options = bound.args, bound.kwargs
        inputs = args if variadic else args[:count]
        backend = get_backend()
        arrays = [x.data if isinstance(x, Tensor) else _operand(x) for x in inputs]
        home = backend.xp.ndarray
        for a in arrays:
            if type(a) is not home and hasattr(a, "dtype"):
                _check_home(name, backend, arrays)
        value, *vjps = function(backend, *arrays, *args[len(inputs) :], **options)

        if isinstance(value, np.generic):
            value = np.asarray(value)
        if value.dtype == FLOAT64 and not any(hasattr(a, "dtype") and a.dtype == FLOAT64 for a in arrays):
            value = value.astype(np.float32)  # integers in, real numbers out: float32, as for Python floats
        parents, needed = [], []
        if _recording.get():
            for x, vjp in zip(inputs, vjps, strict=False):  # an input left out has none
                if vjp is not None and isinstance(x, Tensor) and x.requires_grad:
                    parents.append(x)
                    needed.append(vjp)
        out = _result(name, value, parents, needed)
        if _anomaly.get():
            _check_value(name, backend.xp, arrays, value)
        if (watcher := _watcher.get()) is not None:
            bound = call.__signature__.bind(*args, **options)  # type: ignore[attr-defined]
            bound.apply_defaults()
            rest = {key: value for key, value in bound.arguments.items() if key not in names}
            watcher(name, inputs if variadic else tuple(bound.arguments[key] for key in names), rest, out)
        return out

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


def _result(name: str, value: Array, parents: list[Tensor], vjps: list[Vjp]) -> Tensor:
    """A tensor made by an op; without parents a leaf."""
    out = Tensor.__new__(Tensor)
    out.data, out.grad, out.birth = value, None, next(_births)
    out.parents, out.vjps = tuple(parents), tuple(vjps)
    out.requires_grad = bool(parents)
    out.op = name if parents else ""
    return out


def _leaf(data: Array) -> Tensor:
    """A leaf without gradient on this array, wherever it lies."""
    return _result("", data, [], [])


def from_dlpack(array: Any) -> Tensor:
    """A tensor on the memory of another library's array (NumPy, torch, CuPy, ...), which is shared, not copied.

    RuntimeError for an array on a GPU unless a backend of the GPU is active; TypeError for what is no such array, or
    holds no real numbers. What the other library writes is seen here; a gradient function may need what was there.
    """
    if not hasattr(array, "__dlpack__") or not hasattr(array, "__dlpack_device__"):
        raise TypeError(f"from_dlpack takes an array that has __dlpack__, not {type(array).__name__}")
    on_gpu, xp = array.__dlpack_device__()[0] == 2, get_backend().xp  # 2: kDLCUDA of dlpack.h
    if on_gpu and xp is np:
        raise RuntimeError('the array lies on a GPU and the active backend computes without: use_backend("cupy") first')
    try:
        data = (xp if on_gpu else np).from_dlpack(array)
    except (BufferError, RuntimeError) as error:  # such as a type that NumPy lacks
        raise TypeError(f"cannot share this {type(array).__name__}: {error}") from None
    if data.dtype.kind not in "fiub":
        raise TypeError(f"a tensor holds real numbers or booleans, not {data.dtype}")
    return _leaf(data)


def _check_home(name: str, backend: Any, arrays: list[Any]) -> None:
    """TypeError, with the remedy, unless all arrays are of the library that the active backend computes with."""
    home = backend.xp.ndarray
    for k, a in enumerate(arrays):
        if hasattr(a, "dtype") and not isinstance(a, home | np.generic):
            where = "in the processor's memory (NumPy)" if isinstance(a, np.ndarray) else f"on a GPU ({_library(a)})"
            raise TypeError(
                f"{name}: input {k} of shape {a.shape} lies {where}, but the active backend is {backend.name}: move it "
                f'with .to("{backend.name}"), or choose a backend that computes there with use_backend()'
            )


def _library(array: Array) -> str:
    return type(array).__module__.partition(".")[0]


def _is_array(annotation: Any) -> bool:
    """Whether a parameter is annotated `Array` or `Array | None`; text where annotations are postponed."""
    return annotation in (Array, Array | None) or str(annotation).startswith("Array")


def _operand(x: Any) -> Any:
    """Python numbers stay numbers, so that float32 · 2.0 stays float32; NumPy's scalars become such numbers."""
    if x is None or isinstance(x, int | float):
        return x.item() if isinstance(x, np.generic) else x  # np.float64 is a float too
    if isinstance(x, np.generic):
        return x.item()
    return _as_array(x)


def _check_value(name: str, xp: Any, arrays: list[Any], value: Array) -> None:
    if value.dtype.kind != "f" or xp.isfinite(value).all():
        return
    guilty = [k for k, a in enumerate(arrays) if hasattr(a, "dtype") and not xp.isfinite(a).all()]
    shapes = ", ".join(str(getattr(a, "shape", a)) for a in arrays)
    if guilty:
        raise FloatingPointError(f"input {guilty[0]} of {name} already held NaN or Inf (inputs: {shapes})")
    raise FloatingPointError(f"{name} made the first NaN or Inf (inputs: {shapes})")


class _Switch(ContextDecorator):
    """Set a context variable for a `with` block or a decorated function; nests, and each thread has its own."""

    def __init__(self, variable: ContextVar[Any], value: Any) -> None:
        self._variable, self._value = variable, value
        self._before: list[Any] = []

    def __enter__(self) -> None:
        self._before.append(self._variable.get())
        self._variable.set(self._value)

    def __exit__(self, *_: object) -> None:
        self._variable.set(self._before.pop())

    def _recreate_cm(self) -> _Switch:
        return _Switch(self._variable, self._value)


def no_grad() -> _Switch:
    """Record nothing inside `with no_grad():` (or under `@no_grad()`): faster, and no graph is kept."""
    return _Switch(_recording, False)


def enable_grad() -> _Switch:
    """Record again inside a `no_grad` block."""
    return _Switch(_recording, True)


def is_grad_enabled() -> bool:
    """Whether ops record their gradient functions just now."""
    return _recording.get()


def detect_anomaly() -> _Switch:
    """In `with detect_anomaly():` the first NaN or Inf, forward or backward, is a FloatingPointError naming its op."""
    return _Switch(_anomaly, True)


def trace(watcher: Callable[[str, tuple[Any, ...], dict[str, Any], Tensor], None]) -> _Switch:
    """In `with trace(watcher):` each op calls watcher(name, inputs, options, result), as `minidl.onnx` does."""
    return _Switch(_watcher, watcher)


from . import functional as F  # noqa: E402  (functional.py needs Tensor and op; the methods above need functional.py)
