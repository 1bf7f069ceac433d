"""The README tells the truth: its example prints what it says, its links and commands exist."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_example_prints_what_the_readme_shows() -> None:
    code, shown = (re.search(rf"```{kind}\n(.*?)```", TEXT, re.S).group(1) for kind in ("python", "text"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue().split() == shown.split()


def test_links_lead_somewhere() -> None:
    documents = [ROOT / name for name in ("README.md", "DESIGN.md", "CONTRIBUTING.md")]
    for document in [*documents, *(ROOT / "examples").glob("*/README.md"), *(ROOT / "benchmarks").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("name", ["galaxy_bars", "stellar_spectra", "particle_picking"])
def test_every_command_explains_itself(name: str) -> None:
    def help_of(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", f"examples.{name}", *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        return done.stdout

    commands = re.search(r"\{([a-z,]+)\}", help_of()).group(1).split(",")
    assert {"simulate", "train", "evaluate", "predict"} <= set(commands)
    for command in commands:
        assert "--out" in help_of(command)


def test_make_knows_the_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\nreproduce:" in makefile and "\ntest:" in makefile
