"""The report of `make reproduce`: one HTML file with the tables and figures inside, that opens anywhere."""

from __future__ import annotations

import base64
import datetime
import html
import os
import platform
import subprocess
from pathlib import Path

import minidl
from examples.common import Section, Table
from minidl.backends import get_backend
from minidl.checkpoint import atomic_write

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1.5rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; font-size: .93rem; }
h3 { font-size: 1rem; margin: 2rem 0 .3rem; }
td, th { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
.facts td { text-align: left; }
td:first-child, th:first-child { text-align: left; } thead th { border-bottom: 2px solid var(--line); }
.scroll { overflow-x: auto; margin: 0 0 .5rem; } .note { font-size: .88rem; opacity: .8; max-width: 50rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { font-size: .9rem; opacity: .85; }
code { background: var(--soft); padding: .1rem .3rem; border-radius: 3px; }
.tag { padding: .1rem .6rem; border-radius: 1rem; border: 1px solid var(--line); font-size: .85rem; }
"""


def run_facts() -> dict[str, str]:
    """Date, machine, versions, backend and commit: what must stand beside every figure."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "not in a git checkout"
    return {
        "date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        "machine": f"{os.cpu_count()} processors, {_processor()}, {platform.system()}",
        "versions": f"minidl {minidl.__version__}, Python {platform.python_version()}",
        "backend": f"{get_backend().name} ({get_backend().describe()})",
        "commit": commit,
    }


def _processor() -> str:
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return names[0].split(":", 1)[1].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def write_report(path: Path, title: str, intro: str, sections: list[Section]) -> None:
    """Write the sections as one self-contained page: styles and PNG figures are embedded, nothing is fetched."""
    facts = "".join(f"<tr><td>{_text(k)}</td><td>{_text(v)}</td></tr>" for k, v in run_facts().items())
    body = "".join(_section(k, section) for k, section in enumerate(sections, 1))
    contents = "".join(f'<li><a href="#s{k}">{_text(s.title)}</a></li>' for k, s in enumerate(sections, 1))
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{_text(title)}</h1><p>{_text(intro)}</p><ol>{contents}</ol>"
        f'<div class="scroll"><table class="facts">{facts}</table></div>{body}</body></html>'
    )
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")


def _section(number: int, section: Section) -> str:
    figures = "".join(_figure(path, caption) for path, caption in section.figures)
    return (
        f'<h2 id="s{number}">{number}. {_text(section.title)}</h2>'
        f'<p><span class="tag">{_text(section.data)}</span></p><p>{_text(section.intro)}</p>'
        f"<p>Made by <code>{_text(section.command)}</code> in {section.seconds:.0f} s.</p>"
        f"{''.join(map(_table, section.tables))}{figures}"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(c)}</th>" for c in table.header)
    rows = "".join("<tr>" + "".join(f"<td>{_text(c)}</td>" for c in row) + "</tr>" for row in table.rows)
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    return (
        f'<h3>{_text(table.title)}</h3><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def _figure(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{_text(caption)}</figcaption></figure>"


def _text(value: object) -> str:
    return html.escape(str(value))
