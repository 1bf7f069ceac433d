"""Compile the CUDA kernels for real GPUs and look at registers and spills: python -m tests.cuda_registers [--write].

Needs nvcc, no GPU. The table (cuda_registers.txt) is kept: a kernel that begins to spill, or whose registers let fewer
blocks run at once, is seen before it is slow. Other versions of nvcc count differently: then only spills are compared.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TABLE = Path(__file__).with_name("cuda_registers.txt")
ARCHITECTURES = (75, 80, 90)
REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    r"(?:.*?(\d+) bytes smem)?[^\n]*",
    re.DOTALL,
)


class Row(NamedTuple):
    """What ptxas says of a kernel."""

    architecture: str
    real: str
    file: str
    kernel: str
    registers: int
    shared: int
    spilled: int


def version() -> str:
    """Give nvcc's version, "" where there is none."""
    nvcc = shutil.which("nvcc")
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout if nvcc else ""
    found = re.search(r"V([\d.]+)", text)
    return found[1] if found else ""


def compiled(file: str, real: Any, architecture: int) -> Iterator[Row]:
    """Compile one file to a cubin -> its kernels."""
    from tests import stand_in

    module = stand_in.module()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{file}.cu"
        source.write_text(module.kernel_source(file), encoding="utf-8")
        options = [*module.kernel_options(real), "-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
        done = subprocess.run(
            ["nvcc", *options, "-o", str(source.with_suffix(".cubin")), str(source)], capture_output=True, text=True
        )
    if done.returncode:
        raise RuntimeError(f"{file} for {real.__name__}, sm_{architecture}:\n{done.stderr}")
    for part in done.stderr.split("ptxas info    : Compiling")[1:]:
        found = REPORT.search("Compiling" + part)
        assert found, part
        name, stores, loads, registers, shared = found.groups()
        spilled = int(stores) + int(loads)
        yield Row(f"sm_{architecture}", real.__name__, file, name, int(registers), int(shared or 0), spilled)


def files() -> list[str]:
    """Name the files with kernels."""
    from tests import stand_in

    return sorted(path.stem for path in stand_in.module().sources().glob("*.cu") if path.stem != "prelude")


def measure(names: list[str] | None = None, architectures: tuple[int, ...] = ARCHITECTURES) -> list[Row]:
    """Compile files (all) for float and double and every architecture."""
    every = [(f, r, a) for a in architectures for r in (np.float32, np.float64) for f in names or files()]
    return [row for file, real, architecture in every for row in sorted(compiled(file, real, architecture))]


def read() -> tuple[str, list[Row]]:
    """Read the table -> the version of nvcc that made it, its rows."""
    head, _, *lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines]
    return head.split()[-1], [Row(a, r, f, k, int(n), int(s), int(p)) for a, r, f, k, n, s, p in rows]


def write(rows: list[Row]) -> None:
    """Write the table."""
    lines = [f"CUDA kernels as compiled by python -m tests.cuda_registers, nvcc {version()}"]
    lines += [f"{'GPU':6} {'numbers':8} {'file':12} {'kernel':22} registers shared spilled"]
    lines += [f"{a:6} {r:8} {f:12} {k:22} {n:9} {s:6} {p:7}" for a, r, f, k, n, s, p in rows]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def differences(found: list[Row]) -> list[str]:
    """Say where rows differ from the table: all that changed with its version of nvcc, else spills alone."""
    maker, rows = read()
    before = {row[:4]: row for row in rows}
    wrong = []
    for row in found:
        old = before.get(row[:4])
        if old is None:
            wrong.append(f"{row[:4]} is not in the table")
        elif row.spilled > old.spilled or (maker == version() and row != old):
            wrong.append(f"{row[:4]}: {row[4:]}, the table says {old[4:]}")
    return wrong


def main() -> int:
    """Compile all and compare, or write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table instead of comparing with it")
    arguments = parser.parse_args()
    if not version():
        print("skipped: no nvcc here, so nothing can be compiled for a GPU")
        return 0
    rows = measure()
    if arguments.write:
        write(rows)
        return 0
    wrong = differences(rows)
    print("\n".join(wrong) or f"{len(rows)} kernels as in {TABLE.name}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
