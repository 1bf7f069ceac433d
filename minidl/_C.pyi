"""The C++ kernels as Python sees them; csrc/bindings.cpp has the truth."""

from collections.abc import Callable, Sequence
from typing import Any

from .backends.numpy_backend import Array, Pair, Windows

def simd_levels() -> list[str]: ...
def simd_level() -> str: ...
def set_simd_level(name: str) -> None: ...
def set_conv_algorithm(name: str) -> None: ...
def get_conv_algorithm() -> str: ...
def explain_conv(
    x_shape: Sequence[int], w_shape: Sequence[int], stride: Pair, padding: Pair, dilation: Pair, groups: int, /
) -> str: ...
def winograd_matrices(tile: int, kernel: int) -> tuple[Array, Array, Array]: ...
def record(
    run: Callable[[], list[Array | None]], batch: Sequence[Array], reads: list[Array], /
) -> Callable[..., None]: ...
def memory() -> tuple[int, int, int]: ...
def empty_cache() -> None: ...
def conv2d(
    x: Array,
    w: Array,
    b: Array | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    relu: bool,
    threads: int,
    /,
) -> Array: ...
def conv2d_grad_x(
    g: Array,
    w: Array,
    x_shape: Sequence[int],
    b: Array | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    relu: bool,
    threads: int,
    /,
) -> Array: ...
def conv2d_grad_w(
    g: Array,
    x: Array,
    w_shape: Sequence[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    threads: int,
    /,
) -> Array: ...
def conv2d_joined(
    x: Array,
    beside: Array,
    w: Array,
    b: Array | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    relu: bool,
    threads: int,
    /,
) -> Array: ...
def conv2d_joined_grad_x(
    g: Array,
    w: Array,
    x_shape: Sequence[int],
    channels: int,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    threads: int,
    /,
) -> Array | tuple[Array, Array]: ...
def conv2d_joined_grad_w(
    g: Array,
    x: Array,
    beside: Array,
    w_shape: Sequence[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    threads: int,
    /,
) -> Array: ...
def relu(x: Array, threads: int, /) -> Array: ...
def activation_grad(g: Array, y: Array, activation: str, threads: int, /) -> Array: ...
def add(x: Array, y: Array, threads: int, /) -> Array: ...
def channel_sum(g: Array, threads: int, /) -> Array: ...
def contiguous(x: Array, threads: int, /) -> Array | None: ...
def dropout(x: Array, kept: Array, scale: float, threads: int, /) -> Array: ...
def resample(x: Array, rows: Windows, columns: Windows, threads: int, /) -> Array: ...
def concatenate(xs: Sequence[Array], threads: int, /) -> Array: ...
def batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    var: Array | None,
    eps: float,
    relu: bool,
    threads: int,
    /,
) -> tuple[Array, Array, Array]: ...
def batch_norm_grad(
    g: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    relu: bool,
    training: bool,
    threads: int,
    /,
) -> tuple[Array, Array, Array]: ...
def local_response_norm(
    x: Array, size: int, alpha: float, beta: float, k: float, threads: int, /
) -> tuple[Array, Array]: ...
def local_response_norm_grad(
    g: Array, x: Array, d: Array, size: int, alpha: float, beta: float, k: float, threads: int, /
) -> Array: ...
def max_pool2d(
    x: Array, out: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, threads: int, /
) -> tuple[Array, Array]: ...
def max_pool2d_grad(
    g: Array,
    index: Array,
    x_shape: Sequence[int],
    before: Array | None,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    threads: int,
    /,
) -> Array: ...
def avg_pool2d(x: Array, count: Array, kernel_size: Pair, stride: Pair, padding: Pair, threads: int, /) -> Array: ...
def avg_pool2d_grad(
    g: Array, count: Array, x_shape: Sequence[int], kernel_size: Pair, stride: Pair, padding: Pair, threads: int, /
) -> Array: ...
def cross_entropy(
    x: Array, t: Array, weight: Array, ignore_index: int, smoothing: float, threads: int, /
) -> tuple[Array, Array]: ...
def cross_entropy_grad(
    g: Array, x: Array, t: Array, lse: Array, weight: Array, ignore_index: int, smoothing: float, threads: int, /
) -> Array: ...
def linear(x: Array, w: Array, b: Array | None, activation: str, threads: int, /) -> Array | None: ...
def linear_grad_x(g: Array, w: Array, threads: int, /) -> Array | None: ...
def linear_grad_w(g: Array, x: Array, threads: int, /) -> tuple[Array, Array] | None: ...
def squared_error(x: Array, t: Array, factor: float, threads: int, /) -> Array | None: ...
def squared_error_grad(x: Array, t: Array, factor: float, threads: int, /) -> Array | None: ...
def sgd_step(params: list[Array], grads: list[Array], velocities: list[Array], /, *options: Any) -> bool: ...
def adam_step(
    params: list[Array], grads: list[Array], means: list[Array], squares: list[Array], /, *options: Any
) -> bool: ...
