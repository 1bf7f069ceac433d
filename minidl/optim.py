"""Optimisers: small rules that turn gradients into new weights, in place. Schedules are in `minidl.optim.lr_scheduler`.

Reading order: 5, after tensor, functional, nn and the NumPy backend. Each rule is torch's, with torch's names and
defaults; below p is a parameter, g its gradient, t the number of steps taken so far, this one included.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from . import lr_scheduler as lr_scheduler
from .arrays import beside, to_host
from .backends import get_backend
from .tensor import Array, Tensor

# As os does for os.path, so that `from minidl.optim.lr_scheduler import StepLR` works.
sys.modules[__name__ + ".lr_scheduler"] = lr_scheduler


class Optimizer:
    """What all optimisers share: parameter groups, zero_grad, and a state that can be saved.

    `params` is an iterable of parameters, or of groups: dicts {"params": [...], "lr": ...} whose other entries override
    the options given to the optimiser. Subclasses define `_update` and pass their options on.

    Raises ValueError for no parameters, one given twice or options out of range; TypeError for what is no parameter.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[Mapping[str, Any]], **options: Any) -> None:
        if isinstance(params, Tensor | Mapping | set) or not isinstance(params, Iterable):
            raise TypeError("params must be an ordered iterable of parameters, such as model.parameters() or [w, b]")
        self.defaults = options
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        self._home: type | None = None  # the type of the arrays of the last step
        entries: list[Any] = list(params)
        for group in entries if entries and isinstance(entries[0], Mapping) else [{"params": entries}]:
            self.add_param_group(group)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add {"params": [...], option: value, ...}, for instance to train a new head at another learning rate."""
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError('a group is a dict {"params": [...], option: value, ...}; do not mix groups and parameters')
        params = list(group["params"])
        if not params:
            raise ValueError("there are no parameters to optimise")
        for p in params:
            if not isinstance(p, Tensor) or not p.is_leaf:
                raise TypeError(f"only parameters (leaf tensors) can be optimised, got {type(p).__name__}")
        seen = [id(p) for p in [*self._params(), *params]]
        if len(set(seen)) != len(seen):
            raise ValueError("a parameter is given twice: each must be in exactly one group, once")
        if unknown := group.keys() - self.defaults.keys() - {"params"}:
            raise ValueError(f"{type(self).__name__} has no option {sorted(unknown)[0]!r}")
        options = {name: _plain(value) for name, value in {**self.defaults, **group}.items() if name != "params"}
        self._check(**options)
        self.param_groups.append({"params": params, **options})

    def zero_grad(self) -> None:
        """Forget all gradients: call it before each backward, since gradients add up."""
        for p in self._params():
            p.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient; the others keep value and state."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and type(params[0].data) is not self._home:
                self._follow()
            self._update_all(params, [self.state.setdefault(p, {}) for p in params], group)

    def _follow(self) -> None:
        """Bring the state to where the parameters lie, if `Module.to` moved them."""
        for p, state in self.state.items():
            self._home = type(p.data)
            for name, value in state.items():
                state[name] = beside(p.data, value) if hasattr(value, "shape") else value

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that the next steps depend on: {"state": [one dict a parameter], "param_groups": [options]}.

        Parameters are numbered through all groups; each group lists its numbers under "params". Only lists, dicts,
        strings, plain numbers and arrays occur.
        """
        numbers = {p: i for i, p in enumerate(self._params())}
        state = [{name: _to_host(value) for name, value in self.state.get(p, {}).items()} for p in numbers]
        groups = [{**group, "params": [numbers[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()` of the same kind of optimiser over parameters of the same shapes.

        Raises ValueError, and changes nothing, if groups, options or shapes do not fit.
        """
        if missing := {"param_groups", "state"} - state_dict.keys():
            raise ValueError(f"this is no optimiser's state: it lacks {sorted(missing)[0]}")
        params, groups, states = self._params(), state_dict["param_groups"], state_dict["state"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError("the saved optimiser has other parameter groups than this one")
        if len(states) != len(params):
            raise ValueError(f"the saved optimiser has {len(states)} parameters, this one {len(params)}")
        for saved in groups:
            if missing := self.defaults.keys() - saved.keys():
                raise ValueError(f"the saved optimiser is no {type(self).__name__}: it lacks {sorted(missing)[0]}")
            self._check(**{name: saved[name] for name in self.defaults})
        for i, (p, state) in enumerate(zip(params, states, strict=True)):
            for name, value in state.items():
                if hasattr(value, "shape") and value.shape != p.shape:
                    raise ValueError(f"{name} of parameter {i} has shape {value.shape}, the parameter {p.shape}")
        for mine, saved in zip(self.param_groups, groups, strict=True):
            mine.update({name: _plain(value) for name, value in saved.items() if name != "params"})
        self.state = {
            p: {name: _like(p.data, value) if hasattr(value, "shape") else value for name, value in state.items()}
            for p, state in zip(params, states, strict=True)
            if state
        }

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _check(self, **options: Any) -> None:
        """Raise ValueError for an option out of range; NaN is out of every range."""
        for name, value in options.items():
            number = isinstance(value, int | float)
            if name in ("lr", "momentum", "weight_decay", "eps") and not (number and 0 <= value < math.inf):
                raise ValueError(f"{name} must be a number >= 0, got {value!r}")
            if name == "alpha" and not 0 <= value < 1:
                raise ValueError(f"alpha must lie in [0, 1), got {value}")
            if name == "betas" and not (
                isinstance(value, tuple | list) and len(value) == 2 and all(0 <= beta < 1 for beta in value)
            ):
                raise ValueError(f"betas must be two numbers in [0, 1), got {value}")
        if options.get("nesterov") and not (options["momentum"] > 0 and options["dampening"] == 0):
            raise ValueError("nesterov needs momentum > 0 and dampening = 0")

    def _update_all(self, params: list[Any], states: list[dict[str, Any]], group: Mapping[str, Any]) -> None:
        """Update the parameters of a group that have a gradient: one by one, unless a backend does all in one pass."""
        for p, state in zip(params, states, strict=True):
            self._update(p.data, p.grad, state, group)

    def _update(self, p: Array, g: Array, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Change the array `p` and the entries of `state` in place; `g` may be shared, so it is never changed."""
        raise NotImplementedError(f"{type(self).__name__} must define _update")


class SGD(Optimizer):
    """Stochastic gradient descent, plain or with momentum.

        g ← g + weight_decay·p
        v ← momentum·v + (1 − dampening)·g        (v = g in the first step)
        p ← p − lr·v,   with nesterov  p ← p − lr·(g + momentum·v),   without momentum  p ← p − lr·g

    Source: Sutskever et al. 2013, in torch's form, where lr multiplies v instead of g.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Mapping[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov
        )

    def _update_all(self, params: list[Any], states: list[dict[str, Any]], group: Mapping[str, Any]) -> None:
        lr, momentum, weight_decay = group["lr"], group["momentum"], group["weight_decay"]
        for started, ps, chosen in _alike(["momentum_buffer" in state for state in states], params, states):
            if momentum and not started:  # v = g in the first step
                for p, state in zip(ps, chosen, strict=True):
                    state["momentum_buffer"] = np.zeros_like(p.data)
            arrays, grads = [p.data for p in ps], [p.grad for p in ps]
            velocities = [state["momentum_buffer"] for state in chosen] if momentum else []
            options = (lr, momentum, group["dampening"] if started else 0.0, weight_decay, group["nesterov"])
            get_backend().sgd_step(arrays, grads, velocities, *options)


class RMSprop(Optimizer):
    """Gradients divided by the running root of their mean square.

        g ← g + weight_decay·p
        s ← alpha·s + (1 − alpha)·g²
        m ← alpha·m + (1 − alpha)·g               (centered only; else m = 0)
        u = g / (√(s − m²) + eps)
        v ← momentum·v + u,   p ← p − lr·v        (without momentum  p ← p − lr·u)

    Source: Tieleman & Hinton 2012, lecture 6.5; centered: Graves 2013, eq. 38 to 45.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Mapping[str, Any]],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered
        )

    def _update(self, p: Array, g: Array, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        alpha = group["alpha"]
        if group["weight_decay"]:
            g = g + group["weight_decay"] * p
        s = _running_mean(state, "square_avg", g * g, alpha)
        if group["centered"]:
            m = _running_mean(state, "grad_avg", g, alpha)
            s = np.maximum(s - m * m, 0)  # rounding can make a variance negative
        u = g / (np.sqrt(s) + group["eps"])
        if group["momentum"]:
            v = state.setdefault("momentum_buffer", np.zeros_like(p))
            v *= group["momentum"]
            v += u
            u = v
        p -= group["lr"] * u


class Adam(Optimizer):
    """Running mean of the gradient over the running root of its mean square, both corrected for their start at zero.

        g ← g + weight_decay·p
        m ← β₁·m + (1 − β₁)·g,   s ← β₂·s + (1 − β₂)·g²
        p ← p − lr · m/(1 − β₁ᵗ) / (√(s/(1 − β₂ᵗ)) + eps)

    Source: Kingma & Ba 2015, algorithm 1.
    """

    decoupled = False  # whether weight decay acts on p directly instead of through g

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Mapping[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update_all(self, params: list[Any], states: list[dict[str, Any]], group: Mapping[str, Any]) -> None:
        for p, state in zip(params, states, strict=True):
            if not state:
                state.update(step=0, exp_avg=np.zeros_like(p.data), exp_avg_sq=np.zeros_like(p.data))
            state["step"] += 1
        lr, (beta1, beta2), eps, weight_decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
        for t, ps, chosen in _alike([state["step"] for state in states], params, states):
            arrays, grads = [p.data for p in ps], [p.grad for p in ps]
            means, squares = [state["exp_avg"] for state in chosen], [state["exp_avg_sq"] for state in chosen]
            options = (lr, beta1, beta2, eps, weight_decay, self.decoupled, t)
            get_backend().adam_step(arrays, grads, means, squares, *options)


class AdamW(Adam):
    """Adam whose weight decay does not pass through the running means:  p ← p − lr·weight_decay·p, then Adam's step.

    Source: Loshchilov & Hutter 2019, algorithm 2.
    """

    decoupled = True

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Mapping[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0) -> float:
    """Scale all gradients together so that their common norm is at most `max_norm`; returns the norm before.

        norm = (Σ |g|^norm_type)^(1/norm_type) over all elements of all gradients, or max |g| for infinity
        g ← g · min(1, max_norm / (norm + 1e-6))

    Parameters without gradient are skipped. Raises ValueError for a max_norm < 0 or a norm_type <= 0.
    """
    if not max_norm >= 0 or not norm_type > 0:
        raise ValueError(f"need max_norm >= 0 and norm_type > 0, got {max_norm} and {norm_type}")
    params = _with_grad(parameters)
    if norm_type == math.inf:
        norm = float(np.max([float(abs(p.grad).max()) for p in params if p.size], initial=0.0))  # NaN stays NaN
    else:
        # sums of float64: the norm of a million float32 numbers keeps its digits
        norm = sum(float((abs(p.grad) ** norm_type).sum(dtype=np.float64)) for p in params) ** (1 / norm_type)
    scale = max_norm / (norm + 1e-6)
    if not scale >= 1:  # also for NaN
        for p in params:
            p.grad = p.grad * scale  # a new array: two leaves may share one gradient
    return norm


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Cut every element of every gradient to [−clip_value, clip_value]; ValueError for a negative value."""
    if not clip_value >= 0:
        raise ValueError(f"need clip_value >= 0, got {clip_value}")
    for p in _with_grad(parameters):
        p.grad = p.grad.clip(-clip_value, clip_value)


def _with_grad(parameters: Tensor | Iterable[Tensor]) -> list[Any]:
    params = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p for p in params if p.grad is not None]


def _running_mean(state: dict[str, Any], name: str, x: Array, beta: float) -> Array:
    """m ← β·m + (1 − β)·x in place, m = state[name], 0 at first; returns m."""
    if name not in state:
        state[name] = np.zeros_like(x)
    m = state[name]
    m *= beta
    m += (1 - beta) * x
    return m


def _alike(
    kinds: list[int], params: list[Any], states: list[dict[str, Any]]
) -> Iterator[tuple[int, list[Any], list[dict[str, Any]]]]:
    """The parameters of each kind with their states. Mostly all are of one: others had no gradient in some steps."""
    if len(set(kinds)) == 1:
        yield kinds[0], params, states
        return
    for kind in sorted(set(kinds)):
        chosen = [k for k, other in enumerate(kinds) if other == kind]
        yield kind, [params[k] for k in chosen], [states[k] for k in chosen]


def _plain(value: Any) -> Any:
    """NumPy numbers as Python numbers (so that lr·g keeps g's dtype: NEP 50), lists as tuples."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(value) if isinstance(value, list) else value


def _to_host(value: Any) -> Any:
    """A copy of an array as a NumPy array, also from a GPU; plain numbers as they are."""
    return np.array(to_host(value)) if hasattr(value, "shape") else value


def _like(p: Array, value: Array) -> Array:
    """A copy of `value` with the type of array and the dtype of `p`."""
    new = np.empty_like(p)
    new[...] = beside(p, value)
    return new
