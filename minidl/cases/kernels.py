"""The table of kernels' cases: every backend is tested on these rows, and the benchmarks time some of them.

A new way to break a kernel is a new row here, nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pair = tuple[int, int]


class ConvCase(NamedTuple):
    """x (N, C, H, W), w (O, C/groups, KH, KW) and the options of a convolution."""

    name: str
    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the kernels."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}


class PoolCase(NamedTuple):
    """x (N, C, H, W) and the options of a max pooling."""

    name: str
    x: tuple[int, int, int, int]
    kernel_size: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    @property
    def window(self) -> dict[str, Any]:
        """The keyword arguments of the kernel's gradient."""
        return {key: getattr(self, key) for key in ("kernel_size", "stride", "padding", "dilation")}

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the kernel."""
        return {**self.window, "ceil_mode": self.ceil_mode}


KERNEL_CASES = [
    ConvCase("plain 3x3", (2, 3, 8, 9), (4, 3, 3, 3), padding=(1, 1)),
    ConvCase("one of everything", (1, 1, 1, 1), (1, 1, 1, 1)),
    ConvCase("one image, one channel", (1, 1, 6, 7), (1, 1, 3, 3)),
    ConvCase("1x1", (2, 5, 6, 7), (3, 5, 1, 1)),
    ConvCase("1x1, stride 2", (2, 5, 7, 7), (3, 5, 1, 1), stride=(2, 2)),
    ConvCase("1x1, padded", (1, 2, 4, 4), (3, 2, 1, 1), padding=(1, 2)),
    ConvCase("kernel = image", (3, 2, 5, 4), (6, 2, 5, 4)),
    ConvCase("non-square", (2, 3, 10, 5), (4, 3, 2, 5), padding=(0, 2)),
    ConvCase("stride > kernel", (2, 2, 11, 11), (3, 2, 2, 2), stride=(3, 4)),
    ConvCase("stride does not divide", (1, 3, 12, 10), (4, 3, 5, 3), stride=(3, 2), padding=(2, 1)),
    ConvCase("11x11, stride 4", (2, 3, 27, 31), (9, 3, 11, 11), stride=(4, 4), padding=(2, 2)),
    ConvCase("padding >= kernel", (1, 2, 4, 3), (2, 2, 3, 3), padding=(4, 3)),
    ConvCase("dilated", (2, 2, 11, 13), (3, 2, 3, 3), padding=(2, 3), dilation=(2, 3)),
    ConvCase("dilated and strided", (2, 2, 14, 13), (3, 2, 3, 2), stride=(2, 3), padding=(2, 1), dilation=(2, 4)),
    ConvCase("two groups", (2, 6, 7, 8), (4, 3, 3, 3), padding=(1, 1), groups=2),
    ConvCase("depthwise, strided", (2, 5, 9, 9), (10, 1, 3, 3), stride=(2, 2), padding=(1, 1), groups=5),
    ConvCase("past a tile: 17 and 33", (1, 17, 17, 33), (9, 17, 3, 3), padding=(1, 1)),
    ConvCase("many channels, tiny maps", (9, 20, 3, 3), (35, 20, 3, 3), padding=(1, 1)),
    ConvCase("3x3 tiles, channels past a vector", (2, 19, 13, 20), (34, 19, 3, 3), padding=(1, 1)),
    ConvCase("3x3 tiles, three groups", (1, 27, 14, 12), (51, 9, 3, 3), padding=(0, 2), groups=3),
    ConvCase("3x3 tiles, two panels", (1, 10, 25, 13), (70, 10, 3, 3), padding=(3, 4)),
    ConvCase("3x3 of a narrow map", (2, 9, 2, 40), (9, 9, 3, 3), padding=(1, 0)),
    ConvCase("5x5 tiles", (2, 18, 15, 15), (20, 9, 5, 5), padding=(2, 2), groups=2),
    ConvCase("5x5, padding 4", (1, 8, 6, 11), (17, 8, 5, 5), padding=(4, 1)),
    ConvCase("two outputs of 37 channels", (2, 37, 5, 7), (2, 37, 1, 1)),
    ConvCase("three outputs, padded", (1, 20, 7, 9), (3, 20, 3, 3), padding=(1, 2)),
    ConvCase("four outputs in each of two groups", (2, 34, 6, 5), (8, 17, 3, 2), stride=(2, 1), groups=2),
    ConvCase("1-D", (3, 4, 1, 301), (6, 4, 1, 7), padding=(0, 3)),
    ConvCase("1-D, strided", (2, 3, 1, 100), (5, 3, 1, 5), stride=(1, 3), padding=(0, 2)),
]

POOL_CASES = [
    PoolCase("plain 2x2", (2, 3, 8, 6), (2, 2), (2, 2)),
    PoolCase("overlap 3/2", (2, 3, 13, 11), (3, 3), (2, 2)),
    PoolCase("overlap, ceil", (2, 2, 8, 10), (3, 3), (2, 2), ceil_mode=True),
    PoolCase("ceil, last window starts in the padding", (1, 2, 5, 7), (2, 2), (3, 3), (1, 1), ceil_mode=True),
    PoolCase("kernel larger than image, ceil", (1, 2, 2, 3), (4, 4), (4, 4), (1, 1), ceil_mode=True),
    PoolCase("padded", (2, 1, 7, 5), (3, 3), (2, 1), (1, 1)),
    PoolCase("stride > kernel", (1, 3, 11, 10), (2, 2), (3, 4)),
    PoolCase("dilated", (2, 2, 9, 12), (2, 3), (2, 1), (1, 1), (3, 2)),
    PoolCase("1-D", (3, 2, 1, 33), (1, 4), (1, 4)),
    PoolCase("one pixel", (1, 1, 1, 1), (1, 1), (1, 1)),
    PoolCase("more taps than a byte counts", (2, 3, 20, 19), (17, 16), (2, 3), (8, 1)),
    PoolCase("many planes", (17, 16, 12, 12), (3, 3), (2, 2), (1, 1)),
]


def conv_arrays(case: ConvCase, dtype: Any) -> tuple[Array, Array, Array]:
    """Random x, w and b of a case."""
    rng = np.random.default_rng(len(case.name))
    x, w, b = (rng.standard_normal(shape) for shape in (case.x, case.w, case.w[:1]))
    return x.astype(dtype), w.astype(dtype), b.astype(dtype)


def pool_array(case: PoolCase, dtype: Any) -> Array:
    """Whole numbers, so that ties are common; all below zero, so that padding with 0 would show."""
    return np.random.default_rng(len(case.name)).integers(-5, 0, case.x).astype(dtype)
