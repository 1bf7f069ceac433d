"""Layers: a Module holds Parameters and says how they are used; it can hold other Modules, and so on.

Names, arguments, defaults, initial weights and state_dict keys are torch's, so that weights travel between the two.
Every layer with random weights takes `rng`, the numpy Generator they are drawn from.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from . import functional as F
from . import init
from .arrays import beside, move, to_host
from .tensor import Array, Tensor, is_grad_enabled

M = TypeVar("M", bound="Module")
Rng = np.random.Generator | None


class Parameter(Tensor):
    """A tensor that a Module learns: a leaf that requires its gradient."""

    def __init__(self, data: Any) -> None:
        super().__init__(data, requires_grad=True)


class Module:
    """Base class of layers and networks: define `forward`; Parameters and Modules among the attributes are found."""

    training = True
    _buffers: tuple[str, ...] = ()  # names of the attributes that are saved but not learnt

    def forward(self, *inputs: Any) -> Any:
        """What the module computes; each subclass defines its own."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.forward(*inputs, **options)

    # --- what it holds, always in the order in which the attributes were first set --------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Names and modules directly inside. TypeError for layers in a plain list, which would not be learnt."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list | tuple | dict) and any(isinstance(v, Module) for v in value):
                kind = type(value).__name__
                raise TypeError(f"{type(self).__name__}.{name}: put layers into nn.ModuleList, not into a {kind}")

    def children(self) -> Iterator[Module]:
        """Modules directly inside."""
        return (child for _, child in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all inside it, with dotted names."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all inside it."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Dotted names and parameters; one that is shared comes once, under its first name."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{prefix}.{name}" if prefix else name), value

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, in the order of `named_parameters`."""
        return (parameter for _, parameter in self.named_parameters())

    def register_buffer(self, name: str, array: Array) -> None:
        """Keep an array that is saved with the weights but not learnt, such as a running mean."""
        self._buffers = (*self._buffers, name)
        setattr(self, name, Tensor(array).data)  # where the active backend computes, as parameters

    # --- saving -----------------------------------------------------------------------------------------------------

    def _named_arrays(self) -> Iterator[tuple[str, Module, str]]:
        """Dotted name, owner and attribute of every parameter (shared ones under each name) and buffer."""
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) or name in module._buffers:
                    yield (f"{prefix}.{name}" if prefix else name), module, name

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of all parameters and buffers as arrays, under torch's keys."""
        values = ((name, getattr(module, attribute)) for name, module, attribute in self._named_arrays())
        return {name: np.array(to_host(_data(value))) for name, value in values}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take the arrays of `state`, converted to the dtypes here. Everything is checked before anything changes.

        ValueError names missing and unexpected keys (`strict` only) and arrays of a wrong shape or no real numbers.
        """
        mine = {name: (module, attribute) for name, module, attribute in self._named_arrays()}
        wrong = []
        if strict:
            wrong += [f"missing {name}" for name in mine if name not in state]
            wrong += [f"unexpected {name}" for name in state if name not in mine]
        new = {name: to_host(_data(value)) for name, value in state.items() if name in mine}
        for name, array in new.items():
            shape = getattr(*mine[name]).shape
            if array.shape != shape:
                wrong.append(f"{name} has shape {array.shape}, expected {shape}")
            elif array.dtype.kind not in "fiub":
                wrong.append(f"{name} is {array.dtype}, no real numbers")
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise ValueError(f"these weights do not fit {type(self).__name__}: {'; '.join(wrong[:5])}{more}")
        for name, array in new.items():
            held = _data(getattr(*mine[name]))
            held[...] = beside(held, array)

    # --- switching --------------------------------------------------------------------------------------------------

    def train(self: M, mode: bool = True) -> M:
        """Set this module and all inside it to training (or evaluation); returns itself."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Set this module and all inside it to evaluation: no dropout, running statistics; returns itself."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Learn (or freeze) all parameters; returns itself."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def astype(self: M, dtype: Any) -> M:
        """Convert all parameters and floating-point buffers; returns itself."""
        for _, module, name in self._named_arrays():
            held = getattr(module, name)
            if isinstance(held, Tensor):
                held.data = held.data.astype(dtype)
            elif held.dtype.kind == "f":
                setattr(module, name, held.astype(dtype))
        return self

    def double(self: M) -> M:
        """Convert to float64; returns itself."""
        return self.astype(np.float64)

    def float(self: M) -> M:
        """Convert to float32; returns itself."""
        return self.astype(np.float32)

    def to(self: M, backend: str) -> M:
        """Move parameters, their gradients and buffers to where `backend` computes, in place; returns itself.

        To compute there that backend must be active (`use_backend`). An optimiser's state follows at its next step.
        """
        for _, module, name in self._named_arrays():
            held = getattr(module, name)
            if isinstance(held, Tensor):
                held.data, held.grad = move(held.data, backend), None if held.grad is None else move(held.grad, backend)
            else:
                setattr(module, name, move(held, backend))
        return self

    def apply(self: M, function: Callable[[Module], object]) -> M:
        """Call `function` with every module inside, then with this one; returns itself."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # --- showing ----------------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The options that `repr` shows in brackets."""
        return ""

    def multiply_adds(self, x: tuple[int, ...], y: tuple[int, ...]) -> int:
        """Multiplications with a weight for an input of shape x and an output of shape y."""
        return 0

    def __repr__(self) -> str:
        inside = "".join(f"\n({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children())
        return f"{type(self).__name__}({self.extra_repr()}{inside}" + ("\n)" if inside else ")")


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


# === containers ======================================================================================================


class Sequential(Module):
    """Modules one after the other, given in order or as an OrderedDict of names."""

    def __init__(self, *modules: Any) -> None:
        named = modules[0].items() if len(modules) == 1 and isinstance(modules[0], OrderedDict) else enumerate(modules)
        for name, module in named:
            if not isinstance(module, Module):
                raise TypeError(f"Sequential takes modules, not {type(module).__name__} (use nn.ReLU(), not F.relu)")
            setattr(self, str(name), module)

    def forward(self, x: Tensor) -> Tensor:
        """Each module applied to the result of the one before; a layer and its activation in one op where it can.

        So too a convolution and the batch norm after it, where nothing is learnt from it (`_BatchNorm.fold`).
        """
        modules = list(self.children())[::-1]
        while modules:
            module = modules.pop()
            more: dict[str, Any] = {}
            if modules and _foldable(module, modules[-1]):
                more["norm"] = modules.pop()
            activation = _fusible(module, modules[-1]) if modules else ""
            if activation:
                modules.pop()
                more["activation"] = activation
            x = module(x, **more)
        return x

    def __len__(self) -> int:
        return len(list(self.children()))

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: Any) -> Any:
        chosen = list(self.named_children())[index]
        return Sequential(OrderedDict(chosen)) if isinstance(index, slice) else chosen[1]


def _fusible(layer: Module, after: Module) -> str:
    """The name of the activation `after` if `layer` can apply it itself: its class says so in `fuses`.

    Not if a subclass may define another `forward`, or if someone watches one of the two (`graph.summary`).
    """
    name = after._name if type(after) in (ReLU, Tanh) else ""  # type: ignore[attr-defined]
    return name if name in vars(type(layer)).get("fuses", ()) and not _watched(layer, after) else ""


def _foldable(layer: Module, after: Module) -> bool:
    """True if `layer` is a convolution and `after` its batch norm, with statistics that stand, and nobody watches."""
    if is_grad_enabled() or not isinstance(after, _BatchNorm) or (type(layer), type(after)) not in FOLDS:
        return False
    fits = after.num_features == layer.out_channels  # type: ignore[attr-defined]
    stands = not after.training and after.running_mean is not None
    return fits and stands and not _watched(layer, after)


def _watched(*modules: Module) -> bool:
    """Whether someone put a `forward` of his own into one of these modules, to see what passes (`graph.summary`)."""
    return any("forward" in vars(module) for module in modules)


class ModuleList(Module):
    """A list of modules whose parameters are found."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> None:
        """Add a module at the end."""
        if not isinstance(module, Module):
            raise TypeError(f"ModuleList takes modules, not {type(module).__name__}")
        setattr(self, str(len(self)), module)

    def __len__(self) -> int:
        return len(list(self.children()))

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: int) -> Module:
        return list(self.children())[index]


# === layers with weights =============================================================================================


class Linear(Module):
    """y = x·weightᵀ + bias.   x (..., in_features) -> y (..., out_features)."""

    fuses = ("relu", "tanh")  # the activations its forward can apply itself

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, rng: Rng = None) -> None:
        _positive(in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(init.default_uniform((out_features, in_features), in_features, rng))
        self.bias = Parameter(init.default_uniform((out_features,), in_features, rng)) if bias else None

    def forward(self, x: Tensor, activation: str = "") -> Tensor:
        """See `functional.linear`; `activation` is that of a following ReLU or Tanh, done in the same pass."""
        return F.linear(x, self.weight, self.bias, activation)

    def extra_repr(self) -> str:
        """See `Module.extra_repr`."""
        return f"{self.in_features}, {self.out_features}{'' if self.bias is not None else ', bias=False'}"

    def multiply_adds(self, x: tuple[int, ...], y: tuple[int, ...]) -> int:
        """See `Module.multiply_adds`."""
        return math.prod(y) * self.in_features


class _Conv(Module):
    """What the four convolutions share: the options, the weights, and their initial values."""

    dims: int
    transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        rng: Rng = None,
    ) -> None:
        _positive(in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"{groups} groups do not divide {in_channels} channels in and {out_channels} out")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _tuple(kernel_size, self.dims, "kernel_size", 1)
        self.stride = _tuple(stride, self.dims, "stride", 1)
        self.padding = padding if isinstance(padding, str) else _tuple(padding, self.dims, "padding", 0)
        self.dilation = _tuple(dilation, self.dims, "dilation", 1)
        if isinstance(padding, str) and (self.transposed or padding not in ("same", "valid")):
            raise ValueError(f"padding is a whole number, or 'same' or 'valid' (not transposed), not {padding!r}")
        if padding == "same" and set(self.stride) != {1}:
            raise ValueError(f"padding 'same' needs stride 1, not {stride!r}")
        first, second = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        shape = (first, second // groups, *self.kernel_size)
        fan_in = init.fans(shape)[0]
        self.weight = Parameter(init.default_uniform(shape, fan_in, rng))
        self.bias = Parameter(init.default_uniform((out_channels,), fan_in, rng)) if bias else None

    def extra_repr(self) -> str:
        """See `Module.extra_repr`."""
        shown = [
            str(self.in_channels),
            str(self.out_channels),
            f"kernel_size={self.kernel_size}",
            f"stride={self.stride}",
        ]
        neutral = {"padding": (0,) * self.dims, "dilation": (1,) * self.dims, "groups": 1}
        shown += [f"{name}={getattr(self, name)}" for name, plain in neutral.items() if getattr(self, name) != plain]
        return ", ".join(shown + (["bias=False"] if self.bias is None else []))

    def multiply_adds(self, x: tuple[int, ...], y: tuple[int, ...]) -> int:
        """See `Module.multiply_adds`."""
        return math.prod(x if self.transposed else y) * math.prod(self.weight.shape[1:])


class Conv2d(_Conv):
    """Convolution of images.   x (N, in_channels, H, W) -> y (N, out_channels, OH, OW); see `functional.conv2d`."""

    dims = 2
    fuses = ("relu",)

    def forward(self, x: Tensor, activation: str = "", norm: BatchNorm2d | None = None) -> Tensor:
        """See `functional.conv2d`; `activation` and `norm` are what follows, done in the same pass."""
        weight, bias = (self.weight, self.bias) if norm is None else norm.fold(self.weight, self.bias)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups, activation)


class Conv1d(_Conv):
    """Convolution of series, such as spectra.   x (N, in_channels, L) -> y (N, out_channels, OL)."""

    dims = 1
    fuses = ("relu",)

    def forward(self, x: Tensor, activation: str = "", norm: BatchNorm1d | None = None) -> Tensor:
        """See `functional.conv1d`; `activation` and `norm` are what follows, done in the same pass."""
        weight, bias = (self.weight, self.bias) if norm is None else norm.fold(self.weight, self.bias)
        return F.conv1d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups, activation)


class _ConvTranspose(_Conv):
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        *,
        rng: Rng = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, rng=rng)
        self.output_padding = _tuple(output_padding, self.dims, "output_padding", 0)

    def _options(self, activation: str) -> tuple[Any, ...]:
        return self.stride, self.padding, self.output_padding, self.groups, self.dilation, activation


class ConvTranspose2d(_ConvTranspose):
    """The adjoint of Conv2d, which enlarges.   x (N, in_channels, H, W) -> y (N, out_channels, OH, OW)."""

    dims = 2
    fuses = ("relu",)

    def forward(self, x: Tensor, activation: str = "") -> Tensor:
        """See `functional.conv_transpose2d`; `activation` is what follows, done in the same pass."""
        return F.conv_transpose2d(x, self.weight, self.bias, *self._options(activation))


class ConvTranspose1d(_ConvTranspose):
    """The adjoint of Conv1d, which lengthens.   x (N, in_channels, L) -> y (N, out_channels, OL)."""

    dims = 1
    fuses = ("relu",)

    def forward(self, x: Tensor, activation: str = "") -> Tensor:
        """See `functional.conv_transpose1d`; `activation` is what follows, done in the same pass."""
        return F.conv_transpose1d(x, self.weight, self.bias, *self._options(activation))


# === normalisation and dropout =======================================================================================


class _BatchNorm(Module):
    wanted: tuple[int, ...]  # numbers of dimensions an input may have

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        _positive(num_features=num_features)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = Parameter(np.ones(num_features, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(num_features, np.float32)) if affine else None
        self.running_mean = self.running_var = self.num_batches_tracked = None
        if track_running_stats:
            self.register_buffer("running_mean", np.zeros(num_features, np.float32))
            self.register_buffer("running_var", np.ones(num_features, np.float32))
            self.register_buffer("num_batches_tracked", np.zeros((), np.int64))

    def forward(self, x: Tensor, activation: str = "") -> Tensor:
        """See `functional.batch_norm`; `activation` is that of a following ReLU, done in the same pass."""
        if x.ndim not in self.wanted:
            wanted = " or ".join(map(str, self.wanted))
            raise ValueError(f"{type(self).__name__}: input has shape {x.shape}, {wanted} dimensions are needed")
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        options = (self.training, self.momentum, self.eps, activation)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, *options)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The weights of a convolution that does with its own what it did with `weight`, `bias` and then this layer.

        By the running statistics μ, σ², s = γ/√(σ² + ε):  weight (O, ...) -> s·weight,  bias (O,) -> s·(bias − μ) + β.
        """
        mean, var = (Tensor(a.astype(weight.dtype)) for a in (self.running_mean, self.running_var))  # type: ignore[attr-defined]
        scale = (var + self.eps) ** -0.5 * (1 if self.weight is None else self.weight)
        shift = -mean if bias is None else bias - mean
        shift = shift * scale if self.bias is None else shift * scale + self.bias
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), shift

    def extra_repr(self) -> str:
        """See `Module.extra_repr`."""
        return str(self.num_features)


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of x (N, C) or (N, C, L)."""

    wanted = (2, 3)
    fuses = ("relu",)


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of x (N, C, H, W)."""

    wanted = (4,)
    fuses = ("relu",)


FOLDS = ((Conv1d, BatchNorm1d), (Conv2d, BatchNorm2d))  # a convolution and the layer it can take in: `_foldable`


class LayerNorm(Module):
    """Every sample normalised over its last dimensions `normalized_shape`; see `functional.layer_norm`."""

    def __init__(self, normalized_shape: Any, eps: float = 1e-5, elementwise_affine: bool = True) -> None:
        self.normalized_shape = (
            tuple(normalized_shape) if isinstance(normalized_shape, tuple | list) else (normalized_shape,)
        )
        self.eps = eps
        self.weight = Parameter(np.ones(self.normalized_shape, np.float32)) if elementwise_affine else None
        self.bias = Parameter(np.zeros(self.normalized_shape, np.float32)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """See `functional.layer_norm`."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """See `Module.extra_repr`."""
        return str(self.normalized_shape)


class LocalResponseNorm(Module):
    """Each channel weakened by its strong neighbours, as in AlexNet; see `functional.local_response_norm`."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        _positive(size=size)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        """See `functional.local_response_norm`."""
        return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """See `Module.extra_repr`."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class Dropout(Module):
    """While training, zeros with probability p, drawn from `rng` or the default generator; see `functional.dropout`."""

    def __init__(self, p: float = 0.5, *, rng: Rng = None) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"dropout: p is a probability between 0 and 1, not {p}")
        self.p, self.rng = p, rng

    def forward(self, x: Tensor) -> Tensor:
        """See `functional.dropout`."""
        return F.dropout(x, self.p, self.training, self.rng)

    def extra_repr(self) -> str:
        """See `Module.extra_repr`."""
        return f"p={self.p}"


# === layers without weights: a function of functional.py with its options ============================================


class _Function(Module):
    """A layer that is only a function of `functional.py` and the options it is called with."""

    options: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        """The function of functional.py named in the class, with the options of this layer."""
        return getattr(F, self._name)(x, **self.options)  # type: ignore[no-any-return]

    _name: str

    def extra_repr(self) -> str:
        """See `Module.extra_repr`."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class _Max(_Function):
    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> None:
        # fmt: off
        self.options = {"kernel_size": kernel_size, "stride": kernel_size if stride is None else stride,
                        "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
        # fmt: on


class MaxPool2d(_Max):
    """The largest pixel of each window; see `functional.max_pool2d`."""

    _name = "max_pool2d"


class MaxPool1d(_Max):
    """The largest value of each window; see `functional.max_pool1d`."""

    _name = "max_pool1d"


class _Avg(_Function):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        # fmt: off
        self.options = {"kernel_size": kernel_size, "stride": kernel_size if stride is None else stride,
                        "padding": padding, "ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
        # fmt: on


class AvgPool2d(_Avg):
    """The mean of each window; see `functional.avg_pool2d`."""

    _name = "avg_pool2d"


class AvgPool1d(_Avg):
    """The mean of each window; see `functional.avg_pool1d`."""

    _name = "avg_pool1d"


class AdaptiveAvgPool2d(_Function):
    """The mean over windows that give a fixed output size; see `functional.adaptive_avg_pool2d`."""

    _name = "adaptive_avg_pool2d"

    def __init__(self, output_size: Any) -> None:
        self.options = {"output_size": output_size}


class Upsample(_Function):
    """The image at another size; see `functional.interpolate`."""

    _name = "interpolate"

    def __init__(
        self, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool = False
    ) -> None:
        self.options = {"size": size, "scale_factor": scale_factor, "mode": mode, "align_corners": align_corners}


class Flatten(_Function):
    """Dimensions start_dim to end_dim as one; by default all but the first."""

    _name = "flatten"

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.options = {"start_dim": start_dim, "end_dim": end_dim}


class Unflatten(Module):
    """One dimension as several, the inverse of Flatten."""

    def __init__(self, dim: int, unflattened_size: tuple[int, ...]) -> None:
        self.dim, self.unflattened_size = dim, tuple(unflattened_size)

    def forward(self, x: Tensor) -> Tensor:
        """x with dimension `dim` unfolded into `unflattened_size`."""
        dim = self.dim % x.ndim
        return x.reshape(*x.shape[:dim], *self.unflattened_size, *x.shape[dim + 1 :])

    def extra_repr(self) -> str:
        """See `Module.extra_repr`."""
        return f"{self.dim}, {self.unflattened_size}"


class Identity(Module):
    """y = x."""

    def forward(self, x: Tensor) -> Tensor:
        """x itself."""
        return x


class ReLU(_Function):
    """max(x, 0)."""

    _name, options = "relu", {}


class Tanh(_Function):
    """tanh x."""

    _name, options = "tanh", {}


class Sigmoid(_Function):
    """1/(1 + e⁻ˣ)."""

    _name, options = "sigmoid", {}


class LeakyReLU(_Function):
    """x where positive, else negative_slope·x."""

    _name = "leaky_relu"

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.options = {"negative_slope": negative_slope}


class GELU(_Function):
    """x·Φ(x); see `functional.gelu`."""

    _name = "gelu"

    def __init__(self, approximate: str = "none") -> None:
        self.options = {"approximate": approximate}


class Softplus(_Function):
    """log(1 + e^(βx))/β; see `functional.softplus`."""

    _name = "softplus"

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        self.options = {"beta": beta, "threshold": threshold}


class Softmax(_Function):
    """eˣ/Σ eˣ along `dim`."""

    _name = "softmax"

    def __init__(self, dim: int = -1) -> None:
        self.options = {"dim": dim}


class LogSoftmax(_Function):
    """log(eˣ/Σ eˣ) along `dim`."""

    _name = "log_softmax"

    def __init__(self, dim: int = -1) -> None:
        self.options = {"dim": dim}


# === losses: functions of prediction and target ======================================================================


class _Loss(Module):
    _name: str
    options: dict[str, Any]

    def forward(self, x: Tensor, target: Any) -> Tensor:
        """The loss of functional.py named in the class, with the options of this module."""
        return getattr(F, self._name)(x, target, **self.options)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """See `Module.extra_repr`."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)


class MSELoss(_Loss):
    """(x − target)²; see `functional.mse_loss`."""

    _name = "mse_loss"

    def __init__(self, reduction: str = "mean") -> None:
        self.options = {"reduction": reduction}


class L1Loss(_Loss):
    """|x − target|; see `functional.l1_loss`."""

    _name = "l1_loss"

    def __init__(self, reduction: str = "mean") -> None:
        self.options = {"reduction": reduction}


class HuberLoss(_Loss):
    """Quadratic near zero, linear for outliers; see `functional.huber_loss`."""

    _name = "huber_loss"

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        self.options = {"reduction": reduction, "delta": delta}


class NLLLoss(_Loss):
    """Minus the log-probability of the target class; see `functional.nll_loss`."""

    _name = "nll_loss"

    def __init__(self, weight: Any = None, ignore_index: int = -100, reduction: str = "mean") -> None:
        self.options = {"weight": weight, "ignore_index": ignore_index, "reduction": reduction}


class CrossEntropyLoss(_Loss):
    """Softmax, then minus the log-probability of the target class; see `functional.cross_entropy`."""

    _name = "cross_entropy"

    def __init__(
        self, weight: Any = None, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0
    ) -> None:
        # fmt: off
        self.options = {"weight": weight, "ignore_index": ignore_index, "reduction": reduction,
                        "label_smoothing": label_smoothing}
        # fmt: on


class BCEWithLogitsLoss(_Loss):
    """Two-class cross entropy from logits; see `functional.binary_cross_entropy_with_logits`."""

    _name = "binary_cross_entropy_with_logits"

    def __init__(self, weight: Any = None, reduction: str = "mean", pos_weight: Any = None) -> None:
        self.options = {"weight": weight, "reduction": reduction, "pos_weight": pos_weight}


# === checks ==========================================================================================================


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{name} is a positive whole number, not {size!r}")


def _tuple(value: Any, dims: int, name: str, least: int) -> Any:
    """One number for each axis; ValueError below `least`."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * dims
    if len(values) != dims or any(not isinstance(v, int | np.integer) or v < least for v in values):
        raise ValueError(f"{name} is a whole number of at least {least}, or {dims} of them, not {value!r}")
    return tuple(int(v) for v in values)


def _data(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value
