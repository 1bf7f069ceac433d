"""What the tests share: where the real data are, and which backends must be there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minidl import set_num_threads
from minidl.backends import get_num_threads, use_backend

DATA = Path(os.environ.get("MINIDL_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """`real_data("galaxies")` is that folder. Without it the test is skipped, or fails where MINIDL_DATA is set."""

    def folder(name: str) -> Path:
        path = DATA / name
        if not path.is_dir():
            if os.environ.get("MINIDL_DATA"):
                pytest.fail(f"MINIDL_DATA is set, but there is no data at {path}")
            pytest.skip(f"skipped: no data at {path}")
        return path

    return folder


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def cpp_at_each_level(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The cpp backend at each instruction set that this processor has; level and threads are put back."""
    from tests.test_backends import require

    require("cpp")
    from minidl import _C

    if request.param not in _C.simd_levels():
        pytest.skip(f"this processor or build has no {request.param}")
    before, threads = _C.simd_level(), get_num_threads()
    _C.set_simd_level(request.param)
    with use_backend("cpp") as backend:
        yield backend
    _C.set_simd_level(before)
    set_num_threads(threads)
