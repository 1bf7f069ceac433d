"""The tensor and its gradients: the graph, the rules of backward, what is refused, and the traps others fell into."""

from __future__ import annotations

import copy
import gc
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays, mutually_broadcastable_shapes

import minidl
from minidl import Tensor, no_grad
from minidl import functional as F
from minidl.tensor import Array, _births, op
from minidl.testing import gradcheck


def leaf(*values: float, dtype: type = np.float64) -> Tensor:
    return Tensor(np.array(values, dtype), requires_grad=True)


# --- the graph -------------------------------------------------------------------------------------------------------


def test_diamond_waits_for_both_sides() -> None:
    a = leaf(5.0)
    b, c = 2 * a, 3 * a
    (b * c).sum().backward()
    assert a.grad == 12 * 5.0


def test_node_used_many_times() -> None:
    a = leaf(3.0)
    (a * a * a + a).sum().backward()
    assert a.grad == 3 * 9 + 1


def test_gradient_functions_that_add_to_what_is_there() -> None:
    """Max pooling adds its gradient onto another's: whichever op comes first, with another one, and with itself."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 6))
    uses = [lambda t: (t * t).sum(), lambda t: F.max_pool2d(t, 2).sum() * 3, lambda t: F.max_pool2d(t, 3, 1).sum()]

    def gradient(*used: int) -> Array:
        leaf = Tensor(x, requires_grad=True)
        inner = leaf * 1
        sum((uses[k](inner) for k in used), Tensor(0.0)).backward()
        return leaf.grad

    for order in ((0, 1), (1, 0), (1, 1), (1, 2), (2, 0, 1)):
        np.testing.assert_allclose(gradient(*order), sum(gradient(k) for k in order), rtol=1e-12)


def test_chain_of_ten_thousand_ops_needs_no_recursion() -> None:
    a = leaf(1.0)
    y = a
    for _ in range(10_000):
        y = y + a
    y.sum().backward()
    assert a.grad == 10_001


def test_gradients_only_on_leaves_that_ask() -> None:
    a, b, plain = leaf(2.0), leaf(3.0), Tensor(np.array([4.0]))
    middle = a * b
    (middle * plain).sum().backward()
    assert (a.grad, b.grad, middle.grad, plain.grad) == (12, 8, None, None)


def test_gradients_add_up_until_forgotten() -> None:
    a = leaf(2.0)
    for _ in range(2):
        (a * 3).sum().backward()
    assert a.grad == 6


def test_second_backward_needs_retain_graph() -> None:
    a = leaf(2.0)
    y = (a * a).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert a.grad == 8  # 4 and 4 again: never 12, as if an inner node had kept its gradient
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()


def test_used_up_part_of_a_graph_is_noticed() -> None:
    a = leaf(2.0)
    trunk = a * a
    first, second = trunk.sum(), (trunk * 2).sum()
    first.backward()
    with pytest.raises(RuntimeError, match="used up"):
        second.backward()
    assert a.grad == 4  # the failed call changed nothing


def test_aliased_gradients_stay_apart() -> None:
    a, b = leaf(1.0), leaf(2.0)
    (a + b).sum().backward()
    a.grad += 10
    assert b.grad == 1


def test_graphs_hold_no_cycles() -> None:
    gc.collect()
    gc.disable()
    try:
        a = leaf(*range(1000))
        import weakref

        y = F.tanh(a * 2)
        watched = weakref.ref(y)
        loss = y.sum()
        del y, loss
        assert watched() is None, "a graph that was dropped must be freed at once"
    finally:
        gc.enable()


def test_memory_is_freed_on_the_way_back() -> None:
    import weakref

    a = leaf(1.0, 2.0)
    y = F.exp(a)
    watched = weakref.ref(y)
    z = (y * 2).sum()
    del y
    z.backward()
    assert watched() is None  # although z is still alive


# --- switches --------------------------------------------------------------------------------------------------------


def test_no_grad_nests_and_ends() -> None:
    a = leaf(1.0)
    with no_grad():
        with minidl.enable_grad():
            assert (a * 2).requires_grad
        assert not (a * 2).requires_grad
    assert (a * 2).requires_grad

    @no_grad()
    def quiet() -> Tensor:
        return a * 2

    assert not quiet().requires_grad and minidl.is_grad_enabled()


def test_no_grad_belongs_to_its_thread() -> None:
    a, seen = leaf(1.0), []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append((a * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_detach_shares_data_and_cuts() -> None:
    a = leaf(3.0)
    d = (a * 2).detach()
    assert d.is_leaf and not d.requires_grad
    (d * a).sum().backward()
    assert a.grad == 6


def test_anomaly_names_the_op() -> None:
    a = leaf(-1.0)
    with minidl.detect_anomaly(), np.errstate(all="ignore"):
        with pytest.raises(FloatingPointError, match=r"^log made the first"):
            F.exp(F.log(a) + 1)
        with pytest.raises(FloatingPointError, match=r"backward of sqrt .*first NaN or Inf"):
            F.sqrt(leaf(0.0)).sum().backward()
        with pytest.raises(FloatingPointError, match="input 0 of tanh already held"):
            F.tanh(leaf(np.nan))
    with np.errstate(all="ignore"):
        assert np.isnan(F.log(a).data).all()  # off again


# --- gradients are checked -------------------------------------------------------------------------------------------


def test_wrong_gradient_shape_names_the_op() -> None:
    @op
    def crooked(backend, x: Array):
        return x * 2, lambda g: g[:1]

    with pytest.raises(RuntimeError, match=r"crooked gave \(1,\)"):
        crooked(leaf(1.0, 2.0)).sum().backward()


def test_wrong_gradient_dtype_names_the_op() -> None:
    @op
    def fat(backend, x: Array):
        return x * 2, lambda g: g.astype(np.float64)

    with pytest.raises(RuntimeError, match=r"fat gave .*float64"):
        fat(leaf(1.0, dtype=np.float32)).sum().backward()


def test_gradcheck_finds_a_wrong_derivative() -> None:
    @op
    def wrong(backend, x: Array):
        return x**3, lambda g: g * 2 * x**2

    with pytest.raises(AssertionError, match="gradient says"):
        gradcheck(wrong, [np.array([1.0, 2.0])])


def test_gradient_functions_of_constants_are_dropped() -> None:
    a, constant = leaf(1.0, 2.0), Tensor(np.ones(2))
    y = a * constant
    assert len(y.vjps) == len(y.parents) == 1


@settings(max_examples=60, deadline=None)
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4), data=st.data())
def test_broadcast_gradients_have_the_inputs_shapes(shapes, data) -> None:
    x, y = (data.draw(arrays(np.float64, s, elements=st.floats(0.5, 2))) for s in shapes.input_shapes)
    gradcheck(lambda a, b: a * b + a / b - b, [x, y])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_getitem_agrees_with_numpy(data) -> None:
    from hypothesis.extra.numpy import basic_indices

    x = np.arange(60.0).reshape(3, 4, 5)
    index = data.draw(basic_indices(x.shape, allow_newaxis=True))
    t = Tensor(x, requires_grad=True)
    y = t[index]
    assert np.array_equal(y.data, x[index])
    y.sum().backward()
    mask = np.zeros_like(x)
    mask[index] = 1
    assert np.array_equal(t.grad, mask)


@op
def _constant_slope(backend: object, x: Array, slope: Array) -> object:
    return (x * slope).sum(), lambda g: slope, None  # the array itself, not a copy


@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_gradient_shares_its_memory_with_nothing(retain_graph: bool) -> None:
    a, b, c, given, slope = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(5.0, 6.0), np.ones(2), np.array([7.0, 8.0])
    (a + b).backward(given, retain_graph)  # both receive the array given
    F.reshape(c, (2, 1)).backward(given[:, None], retain_graph)  # a view of it
    d = leaf(1.0, 2.0)
    _constant_slope(d, slope).backward(retain_graph=retain_graph)
    arrays = [a.grad, b.grad, c.grad, d.grad, given, slope, a.data, d.data]
    assert not any(np.shares_memory(p, q) for k, p in enumerate(arrays) for q in arrays[:k])


# --- numbers, dtypes, and NumPy --------------------------------------------------------------------------------------


def test_dtypes_of_new_tensors() -> None:
    assert Tensor(1.5).dtype == Tensor([1.5, 2]).dtype == np.float32
    assert Tensor([1, 2]).dtype == np.int64 and Tensor([True]).dtype == bool
    assert Tensor(np.zeros(2)).dtype == np.float64 and Tensor(np.float16([1])).dtype == np.float16
    assert Tensor(np.zeros(2), dtype=np.float32).dtype == np.float32


def test_data_are_shared() -> None:
    a = np.zeros(3)
    assert Tensor(a).data is a


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2), np.float32(2), np.int64(2)])
def test_numbers_do_not_change_the_dtype(number: float) -> None:
    a = Tensor([1.0, 2.0], requires_grad=True)
    for y in (a * number, number * a, a + number, number - a, number / a, a**number, number**a):
        assert isinstance(y, Tensor) and y.dtype == np.float32 and y.requires_grad


def test_array_times_tensor_keeps_the_gradient() -> None:
    a = leaf(1.0, 2.0)
    y = np.array([3.0, 4.0]) * a
    assert isinstance(y, Tensor)
    y.sum().backward()
    assert np.array_equal(a.grad, [3, 4])


def test_mixed_dtypes_give_each_its_own_gradient() -> None:
    a, b = leaf(1.0, dtype=np.float32), leaf(2.0)
    (a * b).sum().backward()
    assert a.grad.dtype == np.float32 and b.grad.dtype == np.float64


def test_integers_divide_to_float32() -> None:
    assert (Tensor([1, 2]) / 2).dtype == np.float32 and F.exp(Tensor([1, 2])).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, bool])
def test_functions_of_integers_are_float32(dtype) -> None:
    x = np.array([0, 1], dtype)
    assert F.exp(Tensor(x)).dtype == F.sqrt(Tensor(x)).dtype == F.sigmoid(Tensor(x)).dtype == np.float32
    assert np.allclose(F.exp(Tensor(x)).data, np.exp([0.0, 1.0]), rtol=1e-6)
    assert np.allclose(F.sigmoid(Tensor(x)).data, [0.5, 1 / (1 + np.exp(-1))], rtol=1e-6)
    assert np.allclose(F.softplus(Tensor(x)).data, np.log1p(np.exp([0.0, 1.0])), rtol=1e-6)


def test_gradients_of_files_byte_orders() -> None:
    a = Tensor(np.array([1.0, 2.0], ">f4"), requires_grad=True)
    F.exp(a).sum().backward()
    assert a.dtype == np.float32 and a.dtype.isnative and np.allclose(a.grad, np.exp([1, 2]))


def test_the_given_gradient_takes_the_tensors_dtype() -> None:
    a = leaf(1.0, 2.0, dtype=np.float32)
    a.backward(Tensor(np.ones(2)))
    (a * 2).backward(Tensor(np.ones(2)))
    assert a.grad.dtype == np.float32 and np.array_equal(a.grad, [3, 3])


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_a_copy_is_a_leaf_of_its_own(duplicate) -> None:
    a = leaf(1.0, 2.0)
    b = duplicate(a)
    (a * 3 + b * 5).sum().backward()
    assert a.grad.tolist() == [3, 3] and b.grad.tolist() == [5, 5]


def test_numpy_integers_name_dimensions_and_sizes() -> None:
    x, two = Tensor(np.ones((1, 1, 4, 4))), np.int64(2)
    assert F.sum(x, dim=two).shape == (1, 1, 4) and F.interpolate(x, size=two).shape == (1, 1, 2, 2)
    assert F.interpolate(x, scale_factor=np.float32(2)).shape == (1, 1, 8, 8)
    assert F.adaptive_avg_pool2d(x, two).shape == (1, 1, 2, 2) and F.layer_norm(x, np.int64(4)).shape == x.shape


def test_weights_of_the_logits_loss_are_numbers_or_lists() -> None:
    x = Tensor([0.5, -1.0])
    values = [F.binary_cross_entropy_with_logits(x, [1, 0], pos_weight=w) for w in (2.0, [2.0, 2.0], np.array([2, 2]))]
    assert len({v.item() for v in values}) == 1 and {v.dtype for v in values} == {np.dtype(np.float32)}


def test_batch_norm_moves_running_statistics_in_tensors() -> None:
    mean, var = Tensor(np.zeros(1)), Tensor(np.ones(1))
    F.batch_norm(Tensor(np.array([[1.0], [3.0]])), mean, var, training=True)
    assert mean.item() == pytest.approx(0.2) and var.item() == pytest.approx(1.1)
    assert F.batch_norm(Tensor(np.ones((2, 1))), mean, var).shape == (2, 1)


def test_comparisons_and_truth() -> None:
    a = Tensor([1.0, 2.0, 3.0])
    assert (a > 2).tolist() == [False, False, True] and (a == 2).tolist() == [False, True, False]
    assert (a != 2).dtype == bool and not (a > 2).requires_grad
    assert bool(Tensor(1.0) > 0) and float(Tensor(2.5)) == 2.5 and int(Tensor(3)) == 3
    with pytest.raises(ValueError, match="one element"):
        bool(a > 2)


def test_numpy_names_of_options() -> None:
    a = Tensor(np.arange(6.0).reshape(2, 3))
    assert a.sum(axis=1, keepdims=True).shape == (2, 1) and a.max(axis=0).values.shape == (3,)
    assert a.mean(axis=(0, 1)).shape == () and F.concatenate([a, a], axis=1).shape == (2, 6)
    assert F.softmax(a, axis=0).shape == (2, 3) and F.stack([a, a], axis=2).shape == (2, 3, 2)


def test_methods() -> None:
    a = Tensor(np.arange(6.0).reshape(2, 3))
    assert a.T.shape == a.reshape(3, 2).shape == a.view((3, -1)).shape == a.permute(1, 0).shape == (3, 2)
    assert len(a) == 2 and [r.shape for r in a] == [(3,), (3,)] and a.numel() == a.size == 6 and a.dim() == 2
    assert a[0, 1].item() == 1.0


def test_out_of_the_graph() -> None:
    a = leaf(1.0)
    assert np.array_equal(np.asarray(a.detach()), [1.0]) and np.array_equal(np.from_dlpack(a.detach()), [1.0])
    for escape in (a.numpy, lambda: np.asarray(a), lambda: np.from_dlpack(a)):
        with pytest.raises(RuntimeError, match="detach"):
            escape()
    with pytest.raises(TypeError):
        np.exp(a)


def test_repr() -> None:
    assert repr(Tensor([1.0, 2.0])) == "Tensor([1., 2.])"
    assert repr(Tensor(1.0, requires_grad=True)) == "Tensor(1., requires_grad=True)"
    assert repr(leaf(1.0) * 2) == "Tensor([2.], dtype=float64, op=mul)"


def test_birth_order_is_a_counter() -> None:
    assert Tensor(1).birth < Tensor(1).birth < next(_births)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Tensor("text"), TypeError, "real numbers"),
        (lambda: Tensor([[1, 2], [3]]), TypeError, "cannot make a tensor"),
        (lambda: Tensor(1j), TypeError, "real numbers"),
        (lambda: Tensor(None), TypeError, "real numbers"),
        (lambda: Tensor([1, 2], requires_grad=True), TypeError, "floating-point"),
        (lambda: Tensor([1, 2]).requires_grad_(), TypeError, "floating-point"),
        (lambda: (leaf(1.0) * 2).requires_grad_(False), RuntimeError, "leaf"),
        (lambda: Tensor([1.0]).backward(), RuntimeError, "nothing here requires a gradient"),
        (lambda: leaf(1.0, 2.0).backward(), RuntimeError, "needs one element"),
        (lambda: (leaf(1.0, 2.0) * 2).backward(np.ones(3)), ValueError, "gradient has shape"),
        (lambda: Tensor([1.0, 2.0]).item(), ValueError, "one element"),
        (lambda: leaf(1.0).__setitem__(0, 2), TypeError, "not written in place"),
        (lambda: F.matmul(leaf(1.0, 2.0), leaf(1.0)), ValueError, "inner sizes"),
        (lambda: F.sum(leaf(1.0), dim=1), IndexError, "dimension 1"),
        (lambda: F.mean(Tensor([1, 2])), TypeError, "mean needs floating-point"),
        (lambda: F.linear(Tensor(np.ones((2, 3))), Tensor(np.ones((4, 2)))), ValueError, "does not fit a weight"),
        (lambda: F.linear(Tensor(np.ones((2, 3))), Tensor(np.ones((4, 3), "f"))), TypeError, "float32"),
        (lambda: F.conv2d(Tensor(np.ones((1, 3, 5, 5))), Tensor(np.ones((4, 2, 3, 3)))), ValueError, "do not fit"),
        (lambda: F.conv2d(Tensor(np.ones((1, 1, 2, 2))), Tensor(np.ones((1, 1, 3, 3)))), ValueError, "kernel"),
        (
            lambda: F.conv2d(Tensor(np.ones((1, 1, 5, 5))), Tensor(np.ones((1, 1, 3, 3))), stride=0),
            ValueError,
            "stride",
        ),
        (lambda: F.conv2d(Tensor(np.ones((1, 1, 5, 5))), Tensor(np.ones((1, 1, 3, 3), "f"))), TypeError, "float32"),
        (lambda: F.conv1d(Tensor(np.ones((1, 5))), Tensor(np.ones((1, 1, 3)))), ValueError, "3 dimensions"),
        (lambda: F.max_pool2d(Tensor(np.ones((1, 1, 4, 4))), 3, padding=2), ValueError, "half"),
        (lambda: F.mse_loss(Tensor(np.ones((3, 1))), np.ones(3)), ValueError, "one shape"),
        (lambda: F.cross_entropy(Tensor(np.ones((2, 3))), np.array([0, 3])), IndexError, "class 3"),
        (lambda: F.cross_entropy(Tensor(np.ones((2, 3))), np.array([0, -1])), IndexError, "class -1"),
        (lambda: F.cross_entropy(Tensor(np.ones((2, 3))), np.array([0.0, 1.0])), TypeError, "class numbers"),
        (lambda: F.cross_entropy(Tensor(np.ones((2, 3))), np.array([0])), ValueError, "targets must be"),
        (lambda: F.cross_entropy(Tensor(np.ones((2, 3))), np.array([0, 1]), reduction="avg"), ValueError, "reduction"),
        (lambda: F.dropout(leaf(1.0), 1.5), ValueError, "between 0 and 1"),
        (lambda: F.interpolate(Tensor(np.ones((1, 1, 2, 2)))), ValueError, "either size or scale_factor"),
        (lambda: F.interpolate(Tensor(np.ones((1, 1, 2, 2))), 4, mode="cubic"), ValueError, "mode"),
        (lambda: F.pad(leaf(1.0), (1, 2, 3)), ValueError, "pairs"),
        (lambda: F.gelu(leaf(1.0), "fast"), ValueError, "approximate"),
        (lambda: F.clip(leaf(1.0)), ValueError, "min, max"),
        (lambda: F.stack([leaf(1.0), leaf(1.0, 2.0)]), ValueError, "equal shapes"),
        (lambda: F.concatenate([]), ValueError, "at least one"),
        (lambda: F.max(Tensor(np.ones((2, 3))), dmi=1), TypeError, "dmi"),
        (lambda: F.max(leaf(1.0), leaf(2.0)), TypeError, "maximum"),
        (lambda: F.unsqueeze(leaf(1.0, 2.0), 2), IndexError, "no place"),
        (lambda: F.unsqueeze(leaf(1.0, 2.0), -3), IndexError, "no place"),
        (lambda: F.flatten(Tensor(np.ones((2, 3, 4))), 2, 1), ValueError, "comes after"),
        (lambda: F.pad(leaf(1.0, 2.0, 3.0), (0, -5)), ValueError, "more than there is"),
        (lambda: F.pad(leaf(1.0), 1), ValueError, "pairs"),
        (lambda: F.gelu(Tensor([1, 2])), TypeError, "gelu needs floating-point"),
        (lambda: F.softmax(Tensor(np.array([0, 1], np.uint8))), TypeError, "softmax needs floating-point"),
        (lambda: F.log_softmax(Tensor(np.array([0, 1], np.uint8))), TypeError, "log_softmax needs floating-point"),
        (lambda: F.adaptive_avg_pool2d(Tensor(np.ones((1, 1, 4, 4), int)), 2), TypeError, "floating-point"),
        (lambda: F.adaptive_avg_pool2d(Tensor(np.ones((1, 1, 4, 4))), (3,)), ValueError, "output_size"),
        (lambda: F.avg_pool2d(Tensor(np.ones((1, 1, 4, 4), int)), 2), TypeError, "floating-point"),
        (lambda: F.avg_pool2d(Tensor(np.ones((1, 1, 4, 4))), 2, divisor_override=0), ValueError, "divisor"),
        (
            lambda: F.interpolate(Tensor(np.ones((1, 1, 4, 4), int)), 2, mode="bilinear"),
            TypeError,
            "floating-point",
        ),
        (lambda: F.interpolate(Tensor(np.ones((1, 1, 2, 2))), 2.5), ValueError, "whole number"),
        (lambda: F.interpolate(Tensor(np.ones((1, 1, 2, 2))), scale_factor=np.nan), ValueError, "scale_factor"),
        (
            lambda: F.linear(Tensor(np.ones((4, 3))), Tensor(np.ones((4, 3))), Tensor(np.ones((4, 1)))),
            ValueError,
            "bias",
        ),
        (
            lambda: F.linear(Tensor(np.ones((4, 3))), Tensor(np.ones((4, 3))), Tensor(np.ones(4, "f"))),
            ValueError,
            "bias",
        ),
        (lambda: F.conv1d(Tensor(np.ones((1, 1, 5))), Tensor(np.ones((1, 1, 3))), stride=1.5), ValueError, "stride"),
        (
            lambda: F.conv1d(Tensor(np.ones((1, 1, 5))), Tensor(np.ones((1, 1, 3))), groups=1.5),
            ValueError,
            "groups",
        ),
        (
            lambda: F.conv_transpose1d(Tensor(np.ones((1, 2, 5))), Tensor(np.ones((2, 1, 3))), groups=3),
            ValueError,
            "groups",
        ),
        (lambda: F.layer_norm(Tensor(np.ones((2, 3))), 3, Tensor(np.ones((2, 3)))), ValueError, "weight has shape"),
        (lambda: F.huber_loss(leaf(1.0), [2.0], delta=np.nan), ValueError, "delta"),
        (lambda: copy.deepcopy(leaf(1.0) * 2), RuntimeError, "only a leaf"),
        (lambda: F.layer_norm(Tensor(np.ones((2, 3))), 4), ValueError, "does not end in"),
        (lambda: F.batch_norm(Tensor(np.ones((1, 3))), None, None, training=True), ValueError, "more than one value"),
        (lambda: gradcheck(F.exp, [np.ones(2, "f")]), TypeError, "float64"),
    ],
)
def test_bad_input_is_named(call, error, words) -> None:
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- dropout and random numbers --------------------------------------------------------------------------------------


def test_dropout() -> None:
    x = Tensor(np.ones(10_000), requires_grad=True)
    y = F.dropout(x, 0.3, rng=np.random.default_rng(1))
    kept = y.data != 0
    assert abs(kept.mean() - 0.7) < 5 * np.sqrt(0.21 / 10_000) and np.allclose(y.data[kept], 1 / 0.7)
    y.sum().backward()
    assert np.array_equal(x.grad, y.data)
    assert F.dropout(x, 0.3, training=False) is x and not F.dropout(x, 1.0).data.any()
    assert np.array_equal(y.data, F.dropout(x, 0.3, rng=np.random.default_rng(1)).data)


def test_manual_seed() -> None:
    x = Tensor(np.ones(100))
    draws = []
    for _ in range(2):
        minidl.manual_seed(3)
        draws.append(F.dropout(x).data)
    assert np.array_equal(*draws)
