"""The C++ kernels as Python sees them; csrc/bindings.cpp has the truth."""

from collections.abc import Sequence

from .backends.numpy_backend import Array, Pair

def simd_levels() -> list[str]: ...
def simd_level() -> str: ...
def set_simd_level(name: str) -> None: ...
def set_conv_algorithm(name: str) -> None: ...
def get_conv_algorithm() -> str: ...
def explain_conv(
    x_shape: Sequence[int], w_shape: Sequence[int], stride: Pair, padding: Pair, dilation: Pair, groups: int, /
) -> str: ...
def winograd_matrices(tile: int, kernel: int) -> tuple[Array, Array, Array]: ...
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
def max_pool2d(
    x: Array, out: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, threads: int, /
) -> tuple[Array, Array]: ...
def max_pool2d_grad(g: Array, index: Array, x_shape: Sequence[int], threads: int, /) -> Array: ...
