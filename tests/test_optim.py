"""Optimisers and schedules: against their formulas as plain float64 loops, and against torch where it is installed."""

import importlib.util
import math
import os

import numpy as np
import pytest

from minidl import optim
from minidl.optim import lr_scheduler
from minidl.tensor import Tensor

SCHEDULE_EPOCHS = 30


def sgd(p, gradients, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False):
    v = None
    for g in gradients:
        g = g + weight_decay * p
        v = g if v is None else momentum * v + (1 - dampening) * g
        p = p - lr * (g + momentum * v if nesterov else v if momentum else g)
    return p


def rmsprop(p, gradients, lr, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
    s = m = v = 0.0
    for g in gradients:
        g = g + weight_decay * p
        s = alpha * s + (1 - alpha) * g**2
        m = alpha * m + (1 - alpha) * g
        v = momentum * v + g / (math.sqrt(s - m**2 if centered else s) + eps)
        p = p - lr * v
    return p


def adam(p, gradients, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, decoupled=False):
    m = s = 0.0
    for t, g in enumerate(gradients, start=1):
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        s = betas[1] * s + (1 - betas[1]) * g**2
        p = p - lr * (m / (1 - betas[0] ** t)) / (math.sqrt(s / (1 - betas[1] ** t)) + eps)
    return p


def adamw(p, gradients, lr, weight_decay=1e-2, **options):
    return adam(p, gradients, lr, weight_decay=weight_decay, decoupled=True, **options)


CASES = [
    ("SGD", sgd, {"lr": 0.1}),
    ("SGD", sgd, {"lr": 0.1, "weight_decay": 0.1}),
    ("SGD", sgd, {"lr": 0.1, "momentum": 0.9}),
    ("SGD", sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    ("SGD", sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("RMSprop", rmsprop, {"lr": 0.01}),
    ("RMSprop", rmsprop, {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1}),
    ("RMSprop", rmsprop, {"lr": 0.01, "momentum": 0.9, "centered": True}),
    ("Adam", adam, {"lr": 0.01}),
    ("Adam", adam, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("AdamW", adamw, {"lr": 0.01}),
    ("AdamW", adamw, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.5}),
]
IDS = [f"{name}-{'-'.join(options)}" for name, _, options in CASES]


def run(name, options, start, gradients):
    """Parameters after one step for each gradient, one array of all steps."""
    p = Tensor(start.copy(), requires_grad=True)
    optimizer = getattr(optim, name)([p], **options)
    steps = []
    for g in gradients:
        p.grad = g.copy()
        optimizer.step()
        assert np.array_equal(p.grad, g)  # never changed: two leaves may share one gradient
        steps.append(p.data.copy())
    return np.array(steps)


def problem(dtype, steps=25):
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 3)).astype(dtype), rng.normal(size=(steps, 2, 3)).astype(dtype)


@pytest.mark.parametrize(("name", "definition", "options"), CASES, ids=IDS)
def test_rule_is_its_definition(name, definition, options):
    start, gradients = problem(np.float64)
    result = run(name, options, start, gradients)[-1]
    for index in np.ndindex(start.shape):
        expected = definition(start[index], [g[index] for g in gradients], **options)
        assert abs(result[index] - expected) <= 1e-12 * abs(expected)


@pytest.fixture
def torch():
    if importlib.util.find_spec("torch") is None:
        if "torch" in os.environ.get("MINIDL_REQUIRE", ""):
            pytest.fail("torch is required here (MINIDL_REQUIRE) and is not installed")
        pytest.skip("torch is not installed")
    import torch

    return torch


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "definition", "options"), CASES, ids=IDS)
def test_rule_is_torchs(torch, name, definition, options, dtype):
    start, gradients = problem(dtype)
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = getattr(torch.optim, name)([p], **options)
    for step, g in zip(run(name, options, start, gradients), gradients, strict=True):
        p.grad = torch.tensor(g)
        optimizer.step()
        assert step.dtype == dtype
        error = np.max(np.abs(step - p.detach().numpy()))
        assert error <= 200 * np.finfo(dtype).eps


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_defaults_are_torchs(torch, name):
    mine = getattr(optim, name)([Tensor([1.0])]).defaults
    theirs = getattr(torch.optim, name)([torch.nn.Parameter(torch.ones(1))]).defaults
    assert mine == {option: theirs[option] for option in mine}


@pytest.mark.parametrize(("name", "definition", "options"), CASES, ids=IDS)
def test_state_continues_with_the_same_bits(name, definition, options):
    start, gradients = problem(np.float32)
    whole = run(name, options, start, gradients)[-1]
    p = Tensor(start.copy(), requires_grad=True)
    first, second = getattr(optim, name)([p], **options), getattr(optim, name)([p], lr=123.0)
    for optimizer, part in ((first, gradients[:10]), (second, gradients[10:])):
        if optimizer is second:
            second.load_state_dict(first.state_dict())
        for g in part:
            p.grad = g
            optimizer.step()
    assert np.array_equal(p.data, whole)


def test_scalars_numpy_options_and_missing_gradients():
    scalar, still = Tensor(np.float32(1.0), requires_grad=True), Tensor([1.0], requires_grad=True)
    for name in ("SGD", "RMSprop", "Adam", "AdamW"):
        optimizer = getattr(optim, name)([scalar, still], lr=np.float64(0.1))
        before, storage = float(scalar.data), scalar.data
        scalar.grad = np.array(1.0, np.float32)
        optimizer.step()
        assert scalar.data is storage and scalar.data.dtype == np.float32 and float(scalar.data) < before
        assert still.data[0] == 1
        optimizer.zero_grad()
        assert scalar.grad is None


def test_groups_have_their_own_options():
    a, b = Tensor([1.0], requires_grad=True), Tensor([1.0], requires_grad=True)
    optimizer = optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1)
    a.grad = b.grad = np.ones(1, np.float32)
    optimizer.step()
    assert np.allclose([a.data[0], b.data[0]], [0.9, 0.5])
    assert [group["params"] for group in optimizer.state_dict()["param_groups"]] == [[0], [1]]


def p(shape=(2,)):
    return Tensor(np.ones(shape, np.float32), requires_grad=True)


twice = p()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: optim.SGD([]), ValueError, "no parameters"),
        (lambda: optim.SGD([{"params": []}]), ValueError, "no parameters"),
        (lambda: optim.SGD([np.ones(3)]), TypeError, "got ndarray"),
        (lambda: optim.SGD(p()), TypeError, "iterable"),
        (lambda: optim.SGD({p()}), TypeError, "ordered"),
        (lambda: optim.SGD([{"params": [p()]}, p()]), TypeError, "do not mix"),
        (lambda: optim.SGD([twice, twice]), ValueError, "twice"),
        (lambda: optim.SGD([{"params": [twice]}, {"params": [twice]}]), ValueError, "twice"),
        (lambda: optim.SGD([{"params": [p()], "beta": 1}]), ValueError, "no option 'beta'"),
        (lambda: optim.SGD([p()], lr=-1), ValueError, "lr must be"),
        (lambda: optim.SGD([p()], lr=math.nan), ValueError, "lr must be"),
        (lambda: optim.SGD([p()], momentum=-0.1), ValueError, "momentum must be"),
        (lambda: optim.SGD([p()], nesterov=True), ValueError, "nesterov needs"),
        (lambda: optim.SGD([p()], nesterov=True, momentum=0.9, dampening=0.1), ValueError, "nesterov needs"),
        (lambda: optim.RMSprop([p()], alpha=1), ValueError, "alpha must"),
        (lambda: optim.Adam([p()], betas=(0.9, 1.0)), ValueError, "betas must"),
        (lambda: optim.SGD([p()], lr="fast"), ValueError, "lr must be a number"),
        (lambda: optim.SGD(3), TypeError, "model.parameters"),
        (lambda: optim.SGD([p()]).load_state_dict({}), ValueError, "lacks param_groups"),
        (
            lambda: optim.SGD([p()]).load_state_dict({"state": [], "param_groups": [{"params": [0]}]}),
            ValueError,
            "has 0",
        ),
        (lambda: optim.Adam([p()], betas=0.9), ValueError, "betas must"),
        (lambda: optim.AdamW([p()], weight_decay=-1), ValueError, "weight_decay must"),
        (lambda: optim.AdamW([p()], eps=-1), ValueError, "eps must"),
        (lambda: optim.clip_grad_norm_([p()], -1), ValueError, "max_norm >= 0"),
        (lambda: optim.clip_grad_value_([p()], math.nan), ValueError, "clip_value >= 0"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    def stepped(kind, *shapes, **options):
        params = [p(shape) for shape in shapes]
        for q in params:
            q.grad = np.ones(q.shape, np.float32)
        optimizer = kind(params, **options)
        optimizer.step()
        return optimizer

    adam = stepped(optim.Adam, (2,))
    before = str(adam.state_dict())
    for other, words in [
        (stepped(optim.SGD, (2,), momentum=0.9), "no Adam"),
        (stepped(optim.Adam, (2,), (3,)), "other parameter groups"),
        (stepped(optim.Adam, (3,)), r"exp_avg of parameter 0 has shape \(3,\), the parameter \(2,\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            adam.load_state_dict(other.state_dict())
    assert str(adam.state_dict()) == before


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
def test_gradients_are_clipped_by_their_common_norm(norm_type):
    rng = np.random.default_rng(0)
    params = [p((3, 2)), p((4,)), p()]
    for q in params[:2]:
        q.grad = rng.normal(size=q.shape).astype(np.float32)
    everything = np.concatenate([q.grad.ravel() for q in params[:2]]).astype(np.float64)
    expected = np.linalg.norm(everything, norm_type)
    assert abs(optim.clip_grad_norm_(params, 1000, norm_type) - expected) < 1e-6 * expected
    assert np.array_equal(np.concatenate([q.grad.ravel() for q in params[:2]]), everything)
    optim.clip_grad_norm_(params, 0.1, norm_type)
    clipped = np.concatenate([q.grad.ravel() for q in params[:2]])
    assert clipped.dtype == np.float32 and params[2].grad is None
    assert np.max(np.abs(clipped - everything * 0.1 / expected)) < 1e-6


def test_a_gradient_shared_by_two_leaves_is_clipped_once():
    a, b = p(), p()
    a.grad = b.grad = np.array([3.0, 4.0], np.float32)
    optim.clip_grad_norm_([a, b], 1.0)
    assert np.allclose(a.grad, np.array([3, 4]) / math.sqrt(50)) and np.allclose(a.grad, b.grad)
    optim.clip_grad_value_(a, 0.5)
    assert np.allclose(a.grad, [3 / math.sqrt(50), 0.5]) and np.allclose(b.grad, np.array([3, 4]) / math.sqrt(50))


SCHEDULES = {
    "step": lambda s, o: s.StepLR(o, 7, gamma=0.5),
    "multi": lambda s, o: s.MultiStepLR(o, [20, 5], gamma=0.5),
    "exponential": lambda s, o: s.ExponentialLR(o, 0.9),
    "cosine": lambda s, o: s.CosineAnnealingLR(o, 12, eta_min=0.001),
    "linear": lambda s, o: s.LinearLR(o, 0.1, 0.8, total_iters=10),
    "linear default": lambda s, o: s.LinearLR(o),
    "warm-up": lambda s, o: s.SequentialLR(o, [s.LinearLR(o, 0.1), s.CosineAnnealingLR(o, 20)], [5]),
    "three": lambda s, o: s.SequentialLR(o, [s.LinearLR(o), s.ExponentialLR(o, 0.9), s.StepLR(o, 4)], [5, 11]),
}


def rates(schedulers, optimizer, make):
    scheduler = make(schedulers, optimizer)
    found = []
    for _ in range(SCHEDULE_EPOCHS):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return np.array(found)


def two_groups():
    return optim.SGD([{"params": [p()]}, {"params": [p()], "lr": 0.5}], lr=0.1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_torchs(torch, name):
    q = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    theirs = torch.optim.SGD([{"params": [q[0]]}, {"params": [q[1]], "lr": 0.5}], lr=0.1)
    expected = rates(torch.optim.lr_scheduler, theirs, SCHEDULES[name])
    assert np.max(np.abs(rates(lr_scheduler, two_groups(), SCHEDULES[name]) - expected)) < 1e-14


def test_schedules_at_known_epochs():
    def at(name, *epochs):
        return rates(lr_scheduler, two_groups(), SCHEDULES[name])[list(epochs), 0]

    assert np.allclose(at("step", 0, 6, 7, 14), [0.1, 0.1, 0.05, 0.025])
    assert np.allclose(at("multi", 4, 5, 20), [0.1, 0.05, 0.025])
    assert np.allclose(at("exponential", 0, 3), [0.1, 0.1 * 0.9**3])
    assert np.allclose(at("cosine", 0, 6, 12, 24), [0.1, 0.0505, 0.001, 0.1])
    assert np.allclose(at("linear", 0, 5, 10, 29), [0.01, 0.045, 0.08, 0.08])
    assert np.allclose(at("warm-up", 0, 5, 15, 25), [0.01, 0.1, 0.05, 0.0])


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_continues_from_its_state(name):
    optimizer = two_groups()
    scheduler = SCHEDULES[name](lr_scheduler, optimizer)
    for _ in range(8):
        scheduler.step()
    other = two_groups()
    resumed = SCHEDULES[name](lr_scheduler, other)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    for _ in range(15):
        assert resumed.get_last_lr() == scheduler.get_last_lr()
        resumed.step(), scheduler.step()


PLATEAUS = [
    {},
    {"patience": 2, "factor": 0.5},
    {"patience": 1, "cooldown": 2, "min_lr": 0.002, "threshold": 0.1},
    {"patience": 1, "mode": "max", "threshold": 0.05},
    {"patience": 1, "mode": "max", "threshold": 0.05, "threshold_mode": "abs"},
    {"patience": 1, "threshold": 0.05, "threshold_mode": "abs"},
]


@pytest.mark.parametrize("options", PLATEAUS)
def test_plateau_is_torchs(torch, options):
    metrics = [1.0, 0.9, math.nan, *np.random.default_rng(0).uniform(0.5, 1.0, 40)]
    mine, theirs = optim.SGD([p()], lr=0.1), torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(mine, **options)
    expected = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
    for metric in metrics:
        scheduler.step(metric), expected.step(metric)
        assert abs(mine.param_groups[0]["lr"] - theirs.param_groups[0]["lr"]) < 1e-15
        state = scheduler.state_dict()
        scheduler = lr_scheduler.ReduceLROnPlateau(mine, **options)
        scheduler.load_state_dict(state)


def test_plateau_waits_and_then_reduces():
    optimizer = optim.SGD([p()], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    found = []
    for metric in [3, 2, 2, 2, 2, 1, 1, 1, 1]:
        scheduler.step(metric)
        found += scheduler.get_last_lr()
    assert found == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda s, o: s.StepLR(o, 0), "step_size >= 1"),
        (lambda s, o: s.ExponentialLR(o, math.nan), "gamma must be > 0"),
        (lambda s, o: s.CosineAnnealingLR(o, 0), "T_max"),
        (lambda s, o: s.LinearLR(o, 0), "start_factor"),
        (lambda s, o: s.LinearLR(o, total_iters=0), "total_iters"),
        (lambda s, o: s.SequentialLR(o, [s.LinearLR(o)], [3]), "one more scheduler"),
        (lambda s, o: s.SequentialLR(o, [s.LinearLR(o)] * 3, [3, 3]), "must rise"),
        (lambda s, o: s.SequentialLR(o, [s.ReduceLROnPlateau(o)], []), "no function of the epoch"),
        (lambda s, o: s.SequentialLR(o, [s.LinearLR(two_groups())], []), "another optimiser"),
        (lambda s, o: s.ReduceLROnPlateau(o, mode="best"), "'best'"),
        (lambda s, o: s.ReduceLROnPlateau(o, factor=1.0), "factor"),
        (lambda s, o: s.ReduceLROnPlateau(o, threshold_mode="x"), "'x'"),
    ],
)
def test_bad_schedules_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make(lr_scheduler, two_groups())


def test_schedules_are_imported_as_from_torch() -> None:
    from minidl.optim.lr_scheduler import StepLR

    assert StepLR is lr_scheduler.StepLR


def test_the_largest_gradient_among_nan_is_nan():
    params = [Tensor([1.0], requires_grad=True) for _ in range(2)]
    params[0].grad, params[1].grad = np.ones(1, np.float32), np.full(1, np.nan, np.float32)
    assert math.isnan(optim.clip_grad_norm_(params, 1.0, math.inf))
