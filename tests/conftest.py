"""What the tests share: where the real data are, and which backends must be there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

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
