"""The table of ops' cases: a row is a call that reads the same for minidl and torch, and its inputs.

A new behaviour of an op is a new row here, nothing else; `tests/test_functional.py` says what is done with it.
"""
# ruff: noqa: E501 (a row is a line)

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import functional as F

Array = NDArray[Any]


class Row(NamedTuple):
    """A call that reads the same for minidl and torch (L), and its inputs: shapes to be filled at random, or arrays."""

    name: str
    call: Callable[..., Any]
    inputs: tuple[Any, ...]
    smooth: bool = True  # False where a difference quotient makes no sense: ties and kinks, on purpose


def ints(*values: Any) -> Array:
    return np.array(values, np.int64)


def positive(*shape: int) -> Array:
    return np.random.default_rng(shape[0]).uniform(0.5, 2.0, shape)


KINKS = np.array([-2.0, -1.0, -0.5, 0.0, 0.0, 0.5, 1.0, 2.0, 30.0, -30.0])
TIES = np.array([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [-1.0, 0.0, 0.0, -1.0]])
IMAGE_TIES = np.random.default_rng(5).integers(0, 3, (2, 3, 7, 8)).astype(float)
LABELS = ints(0, 2, 1, 4, 2, 0)
WEIGHT = np.array([0.5, 1.0, 2.0, 0.25, 3.0])


def const(L: Any, array: Array) -> Any:
    """An array that needs no gradient, in either library."""
    return array if L is F else L.tensor(array)


# fmt: off
ROWS = [
    # arithmetic and broadcasting
    Row("add", lambda L, x, y: x + y, ((3, 4), (3, 4))),
    Row("add_broadcast", lambda L, x, y: x + y, ((2, 3, 4), (3, 1))),
    Row("add_scalar", lambda L, x: 2 + x + 0.5, ((3,),)),
    Row("sub_broadcast", lambda L, x, y: x - y, ((4,), (2, 1, 4))),
    Row("rsub", lambda L, x: 1 - x, ((3,),)),
    Row("mul_broadcast", lambda L, x, y: x * y, ((2, 1, 4), (3, 1))),
    Row("mul_zero_dim", lambda L, x, y: x * y, ((), (2, 3))),
    Row("div_broadcast", lambda L, x, y: x / y, ((3, 4), positive(4))),
    Row("rdiv", lambda L, x: 2 / x, (positive(3, 4),)),
    Row("neg", lambda L, x: -x, ((3,),)),
    Row("reuse", lambda L, x: x * x + x * 3, ((3, 2),)),
    Row("pow_number", lambda L, x: x ** 3, ((3, 4),)),
    Row("pow_half", lambda L, x: x ** 0.5, (positive(3),)),
    Row("pow_zero_exponent", lambda L, x: x ** 0, (np.array([0.0, 1.0, -2.0]),)),
    Row("pow_tensors", lambda L, x, y: x ** y, (positive(3, 1), (2, 3, 4))),
    Row("pow_kinks", lambda L, x, y: x ** y, (np.array([0.0, 0.0, 2.0, 0.0]), np.array([0.0, 1.0, 0.0, 2.0])), False),
    Row("rpow", lambda L, x: 2.0 ** x, ((3,),)),
    Row("maximum", lambda L, x, y: L.maximum(x, y), ((3, 4), (4,))),
    Row("maximum_ties", lambda L, x, y: L.maximum(x, y), (KINKS, KINKS * np.array([1, 0] * 5)), False),
    Row("minimum", lambda L, x, y: L.minimum(x, y), ((3, 4), (4,))),
    Row("minimum_ties", lambda L, x, y: L.minimum(x, y), (KINKS, KINKS * np.array([1, 0] * 5)), False),
    # functions of one element
    Row("exp", lambda L, x: L.exp(x), ((3, 4),)),
    Row("log", lambda L, x: L.log(x), (positive(3, 4),)),
    Row("sqrt", lambda L, x: L.sqrt(x), (positive(3, 4),)),
    Row("abs", lambda L, x: L.abs(x), (KINKS,), False),
    Row("tanh", lambda L, x: L.tanh(x), ((3, 4),)),
    Row("sigmoid", lambda L, x: L.sigmoid(x), (KINKS,)),
    Row("relu", lambda L, x: L.relu(x), (KINKS,), False),
    Row("sqrt_of_relu_and_clip", lambda L, x: L.sqrt(L.relu(x)) + L.sqrt(L.clip(x, 0)), (np.array([-1.0, 4.0]),)),
    Row("sqrt_of_extremes", lambda L, x: L.sqrt(L.maximum(x, 0 * x.detach())) + L.sqrt(-L.minimum(-x, 0 * x.detach())),
        (np.array([-1.0, 4.0]),)),
    Row("leaky_relu", lambda L, x: L.leaky_relu(x, 0.1), (KINKS,), False),
    Row("leaky_relu_default", lambda L, x: L.leaky_relu(x), (KINKS,), False),
    Row("gelu", lambda L, x: L.gelu(x), (KINKS,)),
    Row("gelu_tanh", lambda L, x: L.gelu(x, approximate="tanh"), (KINKS,)),
    Row("softplus", lambda L, x: L.softplus(x), (KINKS,)),
    Row("softplus_beta", lambda L, x: L.softplus(x, beta=2, threshold=1.5), (KINKS,), False),
    Row("softplus_negative_beta", lambda L, x: L.softplus(x, beta=-0.5), (np.array([-3.0, 0.5, 2.0]),)),
    Row("clip", lambda L, x: L.clip(x, -1, 0.5), (KINKS,), False),
    Row("clamp_min", lambda L, x: L.clamp(x, min=0.5), (KINKS,), False),
    Row("where", lambda L, x, y: L.where(x > 0.3, x, y), ((3, 4), (4,))),
    # reductions
    Row("sum", lambda L, x: L.sum(x), ((3, 4),)),
    Row("sum_dim", lambda L, x: L.sum(x, dim=1), ((3, 4, 2),)),
    Row("sum_dims_keep", lambda L, x: L.sum(x, dim=(0, -1), keepdim=True), ((3, 4, 2),)),
    Row("mean", lambda L, x: L.mean(x), ((3, 4),)),
    Row("mean_dims", lambda L, x: L.mean(x, dim=(0, 2)), ((3, 4, 2),)),
    Row("var", lambda L, x: L.var(x), ((3, 4),)),
    Row("var_dim", lambda L, x: L.var(x, dim=1, correction=0, keepdim=True), ((3, 4),)),
    Row("max_all_ties", lambda L, x: L.max(x), (TIES,), False),
    Row("max_dim_values", lambda L, x: L.max(x, dim=1).values, (TIES,), False),
    Row("max_dim_indices", lambda L, x: L.max(x, 0, keepdim=True).indices * 1.0 + 0 * x, (TIES,), False),
    Row("min_all_ties", lambda L, x: L.min(x), (TIES,), False),
    Row("min_dim", lambda L, x: L.min(x, dim=-1)[0], ((3, 5),)),
    Row("amax_ties", lambda L, x: L.amax(x, dim=(0, 1)), (TIES,), False),
    Row("amin_ties", lambda L, x: L.amin(x, dim=1, keepdim=True), (TIES,), False),
    Row("argmax", lambda L, x: L.argmax(x, dim=1) + 0 * x[:, 0], (TIES,), False),
    # shapes
    Row("reshape", lambda L, x: L.reshape(x, (4, -1)), ((2, 3, 4),)),
    Row("flatten", lambda L, x: L.flatten(x, 1), ((2, 3, 4),)),
    Row("flatten_middle", lambda L, x: L.flatten(x, 1, 2), ((2, 3, 4, 2),)),
    Row("squeeze", lambda L, x: L.squeeze(x), ((2, 1, 3, 1),)),
    Row("squeeze_dim", lambda L, x: L.squeeze(x, 1), ((2, 1, 3, 1),)),
    Row("unsqueeze", lambda L, x: L.unsqueeze(x, -1), ((2, 3),)),
    Row("transpose", lambda L, x: L.transpose(x, 0, -1), ((2, 3, 4),)),
    Row("permute", lambda L, x: L.permute(x, (2, 0, 1)), ((2, 3, 4),)),
    Row("permute_negative", lambda L, x: L.permute(x, (0, -1, 1)), ((2, 3, 4),)),
    Row("getitem_slices", lambda L, x: x[1:, ..., ::2], ((3, 2, 5),)),
    Row("getitem_number_none", lambda L, x: x[1, None, :, -1], ((3, 2, 5),)),
    Row("getitem_integers", lambda L, x: x[const(L, ints(0, 2, 2, -1))], ((3, 2),)),
    Row("getitem_pairs", lambda L, x: x[const(L, ints(0, 1, 1)), const(L, ints(1, 0, 0))], ((3, 2),)),
    Row("getitem_list", lambda L, x: x[:, [0, 0, 1]], ((3, 2),)),
    Row("getitem_boolean", lambda L, x: x[x > 0], ((3, 4),)),
    Row("concatenate", lambda L, x, y: L.concatenate([x, y, x], dim=1), ((2, 3), (2, 2))),
    Row("stack", lambda L, x, y: L.stack([x, y, x], dim=-1), ((2, 3), (2, 3))),
    Row("pad", lambda L, x: L.pad(x, (1, 2, 0, 1), value=0.5), ((2, 3, 4),)),
    Row("pad_negative", lambda L, x: L.pad(x, (-1, 2, 1, -1)), ((2, 3, 4),)),
    Row("pad_reflect", lambda L, x: L.pad(x, (2, 1, 1, 0), mode="reflect"), ((1, 2, 3, 4),)),
    Row("pad_replicate", lambda L, x: L.pad(x, (2, 1, 1, 0), mode="replicate"), ((1, 2, 3, 4),)),
    Row("pad_circular", lambda L, x: L.pad(x, (2, 1, 1, 0), mode="circular"), ((1, 2, 3, 4),)),
    Row("take_along_dim", lambda L, x: L.take_along_dim(x, const(L, ints([0, 0], [1, 2])), 1), ((2, 3),)),
    Row("take_along_dim_broadcast", lambda L, x: L.take_along_dim(x, const(L, ints([0, 0])), 1), ((2, 3),)),
    # products
    Row("matmul", lambda L, x, y: x @ y, ((3, 4), (4, 2))),
    Row("matmul_vectors", lambda L, x, y: x @ y, ((4,), (4,))),
    Row("matmul_vector_matrix", lambda L, x, y: x @ y, ((4,), (2, 4, 3))),
    Row("matmul_matrix_vector", lambda L, x, y: x @ y, ((2, 3, 4), (4,))),
    Row("matmul_batched", lambda L, x, y: L.matmul(x, y), ((5, 1, 3, 4), (2, 4, 2))),
    Row("linear", lambda L, x, w, b: L.linear(x, w, b), ((2, 3, 4), (5, 4), (5,))),
    Row("linear_no_bias", lambda L, x, w: L.linear(x, w), ((3, 4), (5, 4))),
    Row("linear_vector", lambda L, x, w, b: L.linear(x, w, bias=b), ((4,), (5, 4), (5,))),
    Row("linear_relu", lambda L, x, w, b: L.linear(x, w, b, activation="relu") if L is F else L.relu(L.linear(x, w, b)), ((3, 4), (5, 4), (5,))),
    Row("linear_tanh", lambda L, x, w, b: L.linear(x, w, b, activation="tanh") if L is F else L.tanh(L.linear(x, w, b)), ((2, 3, 4), (5, 4), (5,))),
    Row("softmax", lambda L, x: L.softmax(x, dim=1), ((3, 4, 2),)),
    Row("softmax_large", lambda L, x: L.softmax(x, dim=0), (KINKS * 30,)),
    Row("log_softmax", lambda L, x: L.log_softmax(x, dim=-1), ((3, 4),)),
    # convolution: the backends' own table (cases.py) goes through every geometry, here the wiring
    Row("conv2d", lambda L, x, w, b: L.conv2d(x, w, b), ((2, 3, 5, 6), (4, 3, 3, 2), (4,))),
    Row("conv2d_options", lambda L, x, w, b: L.conv2d(x, w, b, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        ((2, 4, 7, 8), (6, 2, 3, 3), (6,))),
    Row("conv2d_no_bias", lambda L, x, w: L.conv2d(x, w, None, 2, 1), ((1, 2, 6, 6), (3, 2, 3, 3))),
    Row("conv2d_same", lambda L, x, w: L.conv2d(x, w, padding="same", dilation=3), ((1, 2, 6, 7), (3, 2, 3, 2))),
    Row("conv2d_valid", lambda L, x, w: L.conv2d(x, w, padding="valid"), ((1, 2, 6, 6), (3, 2, 3, 2))),
    Row("conv1d", lambda L, x, w, b: L.conv1d(x, w, b, stride=2, padding=3, groups=2), ((2, 4, 11), (6, 2, 5), (6,))),
    Row("conv1d_same", lambda L, x, w: L.conv1d(x, w, padding="same", dilation=2), ((2, 4, 11), (6, 4, 4))),
    Row("conv_transpose2d", lambda L, x, w, b: L.conv_transpose2d(x, w, b), ((2, 3, 4, 5), (3, 2, 3, 2), (2,))),
    Row("conv_transpose2d_relu",
        lambda L, x, w, b: L.conv_transpose2d(x, w, b, activation="relu") if L is F else L.relu(L.conv_transpose2d(x, w, b)),
        ((2, 3, 4, 5), (3, 2, 3, 2), (2,))),
    Row("conv_transpose2d_options",
        lambda L, x, w, b: L.conv_transpose2d(x, w, b, stride=(3, 2), padding=1, output_padding=(2, 1), groups=2, dilation=(1, 2)),
        ((2, 4, 4, 5), (4, 3, 3, 3), (6,))),
    Row("conv_transpose2d_wide_output_padding",
        lambda L, x, w: L.conv_transpose2d(x, w, None, stride=(1, 2), padding=1, output_padding=(2, 3), dilation=(3, 4)),
        ((2, 3, 4, 5), (3, 2, 3, 2))),
    Row("conv_transpose1d", lambda L, x, w, b: L.conv_transpose1d(x, w, b, 2, 1, 1, 2), ((2, 4, 6), (4, 3, 5), (6,))),
    # pooling and resizing
    Row("max_pool2d", lambda L, x: L.max_pool2d(x, 2), ((2, 3, 6, 7),)),
    Row("max_pool2d_overlap_ceil", lambda L, x: L.max_pool2d(x, 3, 2, ceil_mode=True), ((2, 3, 7, 8),)),
    Row("max_pool2d_options", lambda L, x: L.max_pool2d(x, (3, 2), (1, 2), (1, 0), (2, 1)), ((2, 3, 7, 8),)),
    Row("max_pool2d_ties", lambda L, x: L.max_pool2d(x, 3, 1, 1), (IMAGE_TIES,), False),
    Row("max_pool1d", lambda L, x: L.max_pool1d(x, 3, 2, 1, ceil_mode=True), ((2, 3, 10),)),
    Row("avg_pool2d", lambda L, x: L.avg_pool2d(x, 2), ((2, 3, 6, 7),)),
    Row("avg_pool2d_overlap_ceil", lambda L, x: L.avg_pool2d(x, 3, 2, 1, ceil_mode=True), ((2, 3, 6, 8),)),
    Row("avg_pool2d_no_pad_count", lambda L, x: L.avg_pool2d(x, (3, 2), (2, 3), (1, 1), True, False), ((2, 3, 6, 8),)),
    Row("avg_pool2d_divisor", lambda L, x: L.avg_pool2d(x, 3, 2, divisor_override=5), ((2, 3, 6, 8),)),
    Row("avg_pool1d", lambda L, x: L.avg_pool1d(x, 4, 3, 2), ((2, 3, 11),)),
    Row("adaptive_avg_pool2d", lambda L, x: L.adaptive_avg_pool2d(x, (3, 5)), ((2, 3, 7, 8),)),
    Row("adaptive_avg_pool2d_one", lambda L, x: L.adaptive_avg_pool2d(x, 1), ((2, 3, 7, 8),)),
    Row("adaptive_avg_pool2d_keep", lambda L, x: L.adaptive_avg_pool2d(x, (None, 2)), ((2, 3, 7, 8),)),
    Row("interpolate_nearest", lambda L, x: L.interpolate(x, scale_factor=2), ((2, 3, 4, 5),)),
    Row("interpolate_nearest_size", lambda L, x: L.interpolate(x, size=(7, 3)), ((2, 3, 4, 5),)),
    Row("interpolate_nearest_fraction", lambda L, x: L.interpolate(x, scale_factor=1.7), ((2, 3, 4, 5),)),
    Row("interpolate_nearest_whole_ratio", lambda L, x: L.interpolate(x, scale_factor=(3.3, 2.3)), ((1, 2, 3, 3),)),
    Row("interpolate_bilinear_kept_size", lambda L, x: L.interpolate(x, scale_factor=1.2, mode="bilinear"), ((1, 2, 3, 4),)),
    Row("interpolate_bilinear", lambda L, x: L.interpolate(x, scale_factor=2, mode="bilinear"), ((2, 3, 4, 5),)),
    Row("interpolate_bilinear_shrink", lambda L, x: L.interpolate(x, size=(3, 2), mode="bilinear"), ((2, 3, 7, 5),)),
    Row("interpolate_bilinear_fraction", lambda L, x: L.interpolate(x, scale_factor=(1.3, 2.6), mode="bilinear"), ((1, 2, 7, 5),)),
    Row("interpolate_corners", lambda L, x: L.interpolate(x, size=(9, 1), mode="bilinear", align_corners=True), ((2, 3, 4, 5),)),
    # normalisation
    Row("batch_norm_train", lambda L, x, w, b: L.batch_norm(x, None, None, w, b, training=True), ((4, 3, 2, 2), (3,), (3,))),
    Row("batch_norm_eval", lambda L, x, w, b: L.batch_norm(x, const(L, np.arange(3.0)), const(L, np.arange(1.0, 4)), w, b),
        ((4, 3, 5), (3,), (3,))),
    Row("batch_norm_plain", lambda L, x: L.batch_norm(x, const(L, np.zeros(3)), const(L, np.ones(3)), training=True, eps=0.1), ((4, 3),)),
    Row("layer_norm", lambda L, x, w, b: L.layer_norm(x, (3, 4), w, b), ((2, 3, 4), (3, 4), (3, 4))),
    Row("layer_norm_plain", lambda L, x: L.layer_norm(x, (4,), eps=1e-3), ((2, 3, 4),)),
    Row("local_response_norm", lambda L, x: L.local_response_norm(x, 5, alpha=0.5, beta=0.75, k=2), ((2, 8, 3, 3),)),
    Row("local_response_norm_even", lambda L, x: L.local_response_norm(x, 4, 0.3), ((2, 6, 5),)),
    Row("local_response_norm_wide", lambda L, x: L.local_response_norm(x, 9, 0.3), ((2, 3, 2, 2),)),
    Row("local_response_norm_outlier", lambda L, x: L.local_response_norm(x, 3, 0.5), (np.array([[[1e9], [1.0], [2.0], [3.0], [4.0]]]),), False),
    # losses
    Row("mse_loss", lambda L, x, t: L.mse_loss(x, t), ((3, 4), (3, 4))),
    Row("mse_loss_none", lambda L, x, t: L.mse_loss(x, t, reduction="none"), ((3, 4), (3, 4))),
    Row("mse_loss_sum", lambda L, x, t: L.mse_loss(x, t, reduction="sum"), ((3, 4), (3, 4))),
    Row("l1_loss", lambda L, x, t: L.l1_loss(x, t, reduction="sum"), ((3, 4), (3, 4))),
    Row("huber_loss", lambda L, x, t: L.huber_loss(x, t, delta=0.7), ((5, 4), (5, 4))),
    Row("huber_loss_kinks", lambda L, x, t: L.huber_loss(x, t, reduction="sum"), (KINKS, KINKS * 0), False),
    Row("nll_loss", lambda L, x: L.nll_loss(x, const(L, LABELS), const(L, WEIGHT)), ((6, 5),)),
    Row("cross_entropy", lambda L, x: L.cross_entropy(x, const(L, LABELS)), ((6, 5),)),
    Row("cross_entropy_all", lambda L, x: L.cross_entropy(x, const(L, LABELS), const(L, WEIGHT), ignore_index=2, label_smoothing=0.1), ((6, 5),)),
    Row("cross_entropy_none", lambda L, x: L.cross_entropy(x, const(L, LABELS), reduction="none", ignore_index=0), ((6, 5),)),
    Row("cross_entropy_sum", lambda L, x: L.cross_entropy(x, const(L, LABELS), const(L, WEIGHT), reduction="sum", label_smoothing=0.3), ((6, 5),)),
    Row("cross_entropy_image", lambda L, x: L.cross_entropy(x, const(L, np.arange(24).reshape(2, 3, 4) % 6 - 1), const(L, WEIGHT), ignore_index=-1, label_smoothing=0.2),
        ((2, 5, 3, 4),)),
    Row("cross_entropy_one", lambda L, x: L.cross_entropy(x, const(L, np.array(1))), ((4,),)),
    Row("bce_logits", lambda L, x: L.binary_cross_entropy_with_logits(x, const(L, np.linspace(0, 1, 10))), (KINKS,)),
    Row("bce_logits_weights", lambda L, x: L.binary_cross_entropy_with_logits(x, const(L, np.linspace(0, 1, 12).reshape(4, 3)),
        weight=const(L, WEIGHT[:3]), pos_weight=const(L, WEIGHT[2:])), ((4, 3),)),
]
# fmt: on


def arrays(row: Row) -> list[Array]:
    """The row's inputs, the same in every run."""
    rng = np.random.default_rng(zlib.crc32(row.name.encode()))
    return [rng.standard_normal(i) if isinstance(i, tuple) else i.copy() for i in row.inputs]
