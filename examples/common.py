"""What the three example programs share: a command line that fails in one line, tables, and careful output files.

Read this once and each example's `__main__` is only its own science.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import minidl
from minidl.checkpoint import atomic_write


class InputError(Exception):
    """What the user gave cannot be used; the message says what is wrong, where, and what to do, in one line."""


def run_command(main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> int:
    """Run `main(argv)` -> exit code; bad input and unreadable files become one line on stderr and exit code 2.

    With MINIDL_TRACEBACK set, the traceback is shown instead.
    """
    try:
        return main(argv) or 0
    except (InputError, OSError, ValueError, FloatingPointError) as error:
        if os.environ.get("MINIDL_TRACEBACK"):
            raise
        words = [str(error), *getattr(error, "__notes__", [])]
        print(f"error: {' '.join(' '.join(words).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def data_folder(option: str | Path | None, name: str, remedy: str) -> Path:
    """Folder of the data: the option, else `$MINIDL_DATA/name`, else InputError with `remedy`."""
    if option is not None:
        folder = Path(option)
        if not folder.exists():
            raise InputError(f"no such data folder: {folder}; {remedy}")
        return folder
    root = os.environ.get("MINIDL_DATA")
    if root and (Path(root) / name).exists():
        return Path(root) / name
    raise InputError(f"no data given: pass --data DIR, or {remedy}")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise InputError if `path` exists (a file, or a folder with something in it) and `overwrite` is false."""
    taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if taken and not overwrite:
        raise InputError(f"{path} exists already; give --overwrite to replace it, or another --out")


def check_file(out: Path, overwrite: bool) -> None:
    """InputError now, not after the work, if `out` is a folder or a file that must not be replaced."""
    if out.is_dir():
        raise InputError(f"{out} is a folder: give --out the name of a file")
    refuse_existing(out, overwrite)


def check_folder(out: Path, overwrite: bool) -> None:
    """InputError now, not after the work, if `out` is a file or a folder with something in it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give --out the name of a folder")
    refuse_existing(out, overwrite)


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]], overwrite: bool) -> None:
    """Write a table as CSV, whole or not at all."""
    path = Path(path)
    refuse_existing(path, overwrite)
    with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_fits(
    path: str | Path, table: Mapping[str, Iterable[Any]], overwrite: bool, units: Mapping[str, str] | None = None
) -> None:
    """Write columns as a FITS table, whole or not at all; FITS knows ASCII alone, so other characters are escaped."""
    from astropy.table import Table as Columns

    def plain(value: Any) -> Any:
        return value.encode("ascii", "backslashreplace").decode() if isinstance(value, str) else value

    path = Path(path)
    refuse_existing(path, overwrite)
    columns = Columns({plain(name): [plain(value) for value in values] for name, values in table.items()})
    for name, unit in (units or {}).items():
        columns[name].unit = unit
    with atomic_write(path) as part:
        columns.write(part, format="fits", overwrite=True)


@contextmanager
def new_folder(out: Path, marker: str, overwrite: bool) -> Iterator[Path]:
    """Give a folder beside `out` to fill and rename it to `out` at the end; nothing stays if anything fails.

    `overwrite` replaces only a folder that holds the file `marker`, which this program writes into its own.
    """
    refuse_existing(out, overwrite)
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / marker).exists())):
        raise InputError(f"{out} was not made by this program (no {marker} in it): give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield part
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o777 & ~mask)  # mkdtemp makes folders private
        if out.exists():
            shutil.rmtree(out)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def cache_folder() -> Path:
    """Where downloads are kept: `$MINIDL_CACHE`, else `~/.cache/minidl`."""
    return Path(os.environ.get("MINIDL_CACHE") or Path.home() / ".cache" / "minidl")


def pip_archive(requirement: str, sha256: str, *, source: bool = False) -> Path:
    """Download one archive of a package with pip (`name==version`), check its SHA-256, keep it in the cache.

    `source` takes the source archive instead of the wheel. Nothing of it is installed or run.
    Raises InputError if it cannot be had or its checksum differs.
    """
    folder = cache_folder() / requirement.replace("==", "-")
    for kept in sorted(folder.glob("*")):
        if _sha256(kept) == sha256:
            return kept
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as part:
        # fmt: off
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check",
                   *(["--no-binary", ":all:", "--no-build-isolation"] if source else ["--only-binary", ":all:"]),
                   "--dest", part, requirement]
        # fmt: on
        print(f"fetching {requirement} from the package index ...", flush=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        files = list(Path(part).iterdir())
        if not files:
            reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise InputError(f"could not fetch {requirement}: {reason}")
        if (found := _sha256(files[0])) != sha256:
            raise InputError(f"{files[0].name} has checksum {found}, expected {sha256}: not used")
        kept = folder / files[0].name
        os.replace(files[0], kept)
    return kept


def _sha256(path: Path) -> str:
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wheel_members(archive: Path, wanted: Callable[[str], bool]) -> Iterable[tuple[str, bytes]]:
    """Names and bytes of the files in a wheel (a zip) for which `wanted(name)` is true."""
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            if wanted(name):
                yield name, wheel.read(name)


@dataclass
class Table:
    """A table with a title and an optional note: `text()` for the terminal; the report renders it as HTML."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def text(self) -> str:
        """Plain text: the first column left-aligned, the others right-aligned."""
        cells = [[str(c) for c in row] for row in [self.header, *self.rows]]
        widths = [max(len(row[k]) for row in cells) for k in range(len(self.header))]
        lines = [
            "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in cells
        ]
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join([self.title, *lines, *([self.note] if self.note else [])])


@dataclass
class Section:
    """One chapter of the report: what was run, its tables and figures (PNG path, caption)."""

    title: str
    intro: str
    command: str
    data: str  # "real ..." or "simulated ...": said wherever a figure of it stands
    tables: list[Table] = field(default_factory=list)
    figures: list[tuple[Path, str]] = field(default_factory=list)
    seconds: float = 0.0  # set by examples.reproduce


def add_command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Add a command to a program's `add_subparsers()`; its --help shows `text` and the defaults."""
    return commands.add_parser(name, help=text, description=text, formatter_class=_Help)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults, but not that of an option that has none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def seed(text: str) -> int:
    """Type of a --seed: a whole number of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 or more")
    return value


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add `--threads` to a command; `use_threads` sets it."""
    parser.add_argument("--threads", type=int, help="threads of the kernels (default: all processors)")


def use_threads(threads: int | None) -> None:
    """Set the number of threads, if one was given."""
    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads must be at least 1, not {threads}")
        minidl.set_num_threads(threads)


def add_output(parser: argparse.ArgumentParser, out_help: str) -> None:
    """Add `--out` (required) and `--overwrite` to a command."""
    parser.add_argument("--out", required=True, type=Path, help=out_help)
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
