"""Schedules: how the learning rate changes from epoch to epoch. Use them as `minidl.optim.lr_scheduler`.

Call `scheduler.step()` once after each epoch. All but `ReduceLROnPlateau` give the learning rate as a function of the
epoch alone, counted from 0, so a run can resume anywhere; torch's values, written without its recursions. To combine
two, use `SequentialLR`: the last scheduler to step sets the rate, they do not multiply.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .optim import Optimizer


class LRScheduler:
    """Sets every group's "lr" from its first value, kept as "initial_lr", and the epoch; subclasses define `lr_at`."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.last_epoch = 0
        self._apply()

    def lr_at(self, base: float, epoch: int) -> float:
        """The learning rate of an epoch for a group that began with `base`."""
        raise NotImplementedError(f"{type(self).__name__} must define lr_at")

    def step(self) -> None:
        """Go to the next epoch."""
        self.last_epoch += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """The learning rate now, of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The epoch; first learning rates are kept by the optimiser."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; ValueError if it is another kind of scheduler's."""
        _require(state.keys() == self.state_dict().keys(), f"the saved state is not of a {type(self).__name__}")
        self.last_epoch = int(state["last_epoch"])
        self._apply()

    def _apply(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(group.setdefault("initial_lr", group["lr"]), self.last_epoch)


class StepLR(LRScheduler):
    """lr = base · gamma^⌊epoch / step_size⌋"""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        _require(step_size >= 1 and gamma > 0, f"need step_size >= 1 and gamma > 0, got {step_size} and {gamma}")
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def lr_at(self, base: float, epoch: int) -> float:
        return base * self.gamma ** (epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """lr = base · gamma^(number of milestones <= epoch)"""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        _require(gamma > 0, f"gamma must be > 0, got {gamma}")
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer)

    def lr_at(self, base: float, epoch: int) -> float:
        return base * self.gamma ** bisect_right(self.milestones, epoch)


class ExponentialLR(LRScheduler):
    """lr = base · gamma^epoch"""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        _require(gamma > 0, f"gamma must be > 0, got {gamma}")
        self.gamma = gamma
        super().__init__(optimizer)

    def lr_at(self, base: float, epoch: int) -> float:
        return float(base * self.gamma**epoch)


class CosineAnnealingLR(LRScheduler):
    """lr = eta_min + (base − eta_min)·(1 + cos(π·epoch/T_max))/2.  Loshchilov & Hutter 2017, eq. 5.

    Down to eta_min at epoch T_max, and up again after it, as in torch.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        _require(T_max >= 1, f"T_max must be >= 1, got {T_max}")
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def lr_at(self, base: float, epoch: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * epoch / self.T_max)) / 2


class LinearLR(LRScheduler):
    """Warm-up: lr = base · factor, the factor going straight from start_factor to end_factor in total_iters epochs."""

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        _require(0 < start_factor <= 1 and 0 <= end_factor <= 1, "need 0 < start_factor <= 1 and 0 <= end_factor <= 1")
        _require(total_iters >= 1, f"total_iters must be >= 1, got {total_iters}")
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer)

    def lr_at(self, base: float, epoch: int) -> float:
        done = min(epoch, self.total_iters) / self.total_iters
        return base * (self.start_factor + (self.end_factor - self.start_factor) * done)


class SequentialLR(LRScheduler):
    """One schedule after the other: schedulers[k] takes over at epoch milestones[k − 1] and counts epochs from there.

    For instance warm-up, then a cosine:
    `SequentialLR(optimizer, [LinearLR(optimizer, 0.1), CosineAnnealingLR(optimizer, 45)], milestones=[5])`.
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int]) -> None:
        _require(len(schedulers) == len(milestones) + 1, "need one more scheduler than milestones")
        _require(list(milestones) == sorted(set(milestones)), f"milestones must rise, got {list(milestones)}")
        for scheduler in schedulers:
            _require(
                isinstance(scheduler, LRScheduler), f"{type(scheduler).__name__} is no function of the epoch alone"
            )
            _require(scheduler.optimizer is optimizer, "the schedulers belong to another optimiser")
        self.schedulers, self.milestones = list(schedulers), list(milestones)
        super().__init__(optimizer)

    def lr_at(self, base: float, epoch: int) -> float:
        k = bisect_right(self.milestones, epoch)
        return self.schedulers[k].lr_at(base, epoch - (self.milestones[k - 1] if k else 0))


class ReduceLROnPlateau:
    """Multiplies every learning rate by `factor` after `patience` + 1 steps without a better metric.

    Better: below best·(1 − threshold) for mode "min" and threshold_mode "rel", best − threshold for "abs"; for "max"
    above best·(1 + threshold), best + threshold. After a reduction `cooldown` steps do not count. No rate falls below
    `min_lr`, and changes of at most `eps` are not made. `step(metric)` after each epoch.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        _require(mode in ("min", "max"), f"mode must be 'min' or 'max', got {mode!r}")
        _require(threshold_mode in ("rel", "abs"), f"threshold_mode must be 'rel' or 'abs', got {threshold_mode!r}")
        _require(0 < factor < 1, f"factor must lie between 0 and 1, got {factor}")
        self.optimizer, self.mode, self.factor, self.patience = optimizer, mode, factor, patience
        self.threshold, self.threshold_mode, self.cooldown = threshold, threshold_mode, cooldown
        self.min_lr, self.eps = min_lr, eps
        self.best: float | None = None
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0

    def step(self, metric: float) -> None:
        """Go to the next epoch, the last one having reached `metric`."""
        self.last_epoch += 1
        if self._is_better(float(metric)):
            self.best, self.num_bad_epochs = float(metric), 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for group in self.optimizer.param_groups:
                lr = max(group["lr"] * self.factor, self.min_lr)
                if group["lr"] - lr > self.eps:
                    group["lr"] = lr
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def get_last_lr(self) -> list[float]:
        """The learning rate now, of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Best metric and counters; the learning rates are kept by the optimiser."""
        return {name: getattr(self, name) for name in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; ValueError if it is another kind of scheduler's."""
        _require(state.keys() == self.state_dict().keys(), f"the saved state is not of a {type(self).__name__}")
        for name, value in state.items():
            setattr(self, name, value)

    def _is_better(self, metric: float) -> bool:
        if self.best is None:
            return math.isfinite(metric)
        sign = 1 if self.mode == "min" else -1
        margin = self.threshold * (self.best if self.threshold_mode == "rel" else 1)
        return sign * metric < sign * (self.best - sign * margin)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
