"""The site: `make docs` builds it into docs/_build. It runs the lessons, on simulated data, and asks for no network.

Pages that repeat what stands elsewhere (the READMEs of the three systems, the benchmarks, the kernels' ladders, the
path through the source) are written into docs/generated from the originals, so that nothing is told twice.
"""

from __future__ import annotations

import os
import pkgutil
import re
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))
os.environ.pop("MINIDL_DATA", None)  # no picture of real data may get into the site
os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # before the lesson on C++ imports Numba, for the one on CUDA
matplotlib.use("agg")

import minidl  # noqa: E402
from minidl import exercises  # noqa: E402

project, author = "minidl", "the authors of minidl"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "playground"]
suppress_warnings = ["config.cache", "myst.header"]
html_theme = "furo"
html_title = "minidl"
html_static_path = ["_static"]
html_css_files = ["minidl.css"]
html_extra_path = ["playground/tanh.html", "playground/occlusion.html"]
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
toc_object_entries_show_parents = "hide"
highlight_language = "default"  # Python where it is, else plain
pygments_style = "friendly"
pygments_dark_style = "github-dark"
sphinx_gallery_conf = {
    "examples_dirs": "../examples/lessons",
    "gallery_dirs": "lessons",
    "filename_pattern": r"[0-9]{2}_",
    "ignore_pattern": r"(__init__|common|drawing)\.py",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "show_memory": False,
    "write_computation_times": False,
    "download_all_examples": False,
    "remove_config_comments": True,
}


# --- docstrings: plain prose with formulas in Unicode -----------------------------------------------------------------

FORMULA = re.compile(r"[^.;:]{0,40}( = |←)|[^.;:]*(->|→)")  # at the start of a row


def as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Prose flows; a row with a formula stays a line of its own, in the type of formulas; what is indented stays so."""
    paragraphs = re.split(r"\n[ \t]*\n", "\n".join(lines).strip("\n"))
    lines.clear()
    for paragraph in paragraphs:
        rows = paragraph.split("\n")
        least = min(len(row) - len(row.lstrip()) for row in rows)
        if least >= 4:
            lines += [".. code-block:: default", "", *("    " + row[least:] for row in rows), ""]
            continue
        for formula, group in groupby(rows, lambda row: bool(FORMULA.match(re.sub("`[^`]*`", "", row)))):
            if formula:
                lines += [".. rst-class:: formula", "", *("| " + _escaped(row) for row in group), ""]
            else:
                lines += [*(_escaped(row.strip()) for row in group), ""]


def _escaped(row: str) -> str:
    """`name` as code, and nothing else as markup; spaces that align stay."""
    parts = row.split("`")
    if len(parts) % 2 == 0:  # a backtick alone
        parts = [row]
    for k, part in enumerate(parts):
        if k % 2:
            parts[k] = f"\\ ``{part}``\\ " if part.strip() == part and part else part
        else:
            parts[k] = re.sub(r"([\\*_|])", r"\\\1", part).replace("   ", "\u2003")
    return "".join(parts)


def as_text(app: Any, docname: str, source: list[str]) -> None:
    """Leave |v| as it is in a lesson's prose, which is Markdown to a notebook; here it would name a substitution."""

    def row(match: re.Match[str]) -> str:
        parts = match[0].split("``")
        return "``".join(part if k % 2 else part.replace("|", "\\|") for k, part in enumerate(parts))

    if docname.startswith("lessons/"):
        source[0] = re.sub(r"^[^ .\n].*$", row, source[0], flags=re.M)


# --- pages written from what stands elsewhere -------------------------------------------------------------------------

READ = [  # the afternoon's path
    ("minidl/tensor.py", "A tensor, and how gradients find their way back"),
    ("minidl/functional.py", "Every op and its derivative, simplest first"),
    ("minidl/nn.py", "Layers"),
    (
        "minidl/backends/numpy_backend.py",
        "Kernels in array code, which define all faster ones",
    ),
    ("minidl/optim.py", "Optimisers"),
    ("minidl/models.py", "The talk's networks, from one neuron to a U-Net"),
]
TASKS = {  # and the lessons whose figures show them
    "galaxy_bars": ["07_feature_maps", "08_occlusion_and_saliency", "10_precision_and_recall"],
    "stellar_spectra": ["11_autoencoder", "12_spectral_code"],
    "particle_picking": ["13_segmentation"],
}


def page(name: str, text: str) -> None:
    """Write a page below docs/generated."""
    path = DOCS / "generated" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def without_links(source: Path) -> str:
    """A Markdown file; its links to files beside it become plain names, its pictures are copied."""
    text = source.read_text(encoding="utf-8")
    for picture in re.findall(r"!\[[^]]*\]\(([^):]+)\)", text):
        target = DOCS / "generated" / picture
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.parent / picture, target)
    return re.sub(r"(?<!!)\[([^]]+)\]\((?!https?:)[^)#]+\)", r"\1", text)


def opening(path: Path) -> str:
    """The comment that a C++ or CUDA file opens with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("//"):
            break
        lines.append(line[2:].removeprefix(" "))
    return "\n".join(lines)


def write_pages() -> None:
    """All pages of docs/generated, and no other."""
    shutil.rmtree(DOCS / "generated", ignore_errors=True)
    for k, (path, title) in enumerate(READ, 1):
        name = Path(path).stem
        code = f"```{{literalinclude}} ../../{path}\n:language: python\n```\n"
        page(f"{k}_{name}.md", f"# {k}. {title}\n\n`{path}`\n\n{code}")
    for task, lessons in TASKS.items():
        folder = ROOT / "examples" / task
        text = without_links(folder / "README.md")
        if (folder / "MODEL_CARD.md").exists():
            text += "\n\n" + re.sub(r"^#", "##", without_links(folder / "MODEL_CARD.md"), flags=re.M)
        text += "\n\n## Figures from the lessons\n\nOn **simulated** data; the lessons tell how they came about.\n"
        for lesson in lessons:
            figure = f"../lessons/images/sphx_glr_{lesson}_001.png"
            text += f"\n[![figure of lesson {lesson}]({figure})](../lessons/{lesson})\n"
        page(f"{task}.md", text)
    modules = [f"minidl.{m.name}" for m in pkgutil.iter_modules(minidl.__path__) if m.name != "_C"]
    for name in [*modules, "minidl.backends.numpy_backend"]:
        page(f"api/{name}.rst", f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n")
    page("benchmarks.md", without_links(ROOT / "benchmarks" / "README.md"))
    page("design.md", without_links(ROOT / "DESIGN.md"))
    page("contributing.md", without_links(ROOT / "CONTRIBUTING.md"))
    ladders = "# Ladders of the kernels\n\nEach file opens with its ladder: every version, its idea, what it buys.\n"
    for path in sorted([*(ROOT / "csrc").glob("cpu/*.hpp"), *(ROOT / "csrc").glob("cuda/*.cu")]):
        ladders += f"\n## {path.relative_to(ROOT)}\n\n```text\n{opening(path)}\n```\n"
    page("ladders.md", ladders)
    text = f"# Exercises\n\n{exercises.__doc__}"
    for k, e in enumerate(exercises.EXERCISES, 1):
        text += f"\n## {k}. {e.title.rstrip('.')}\n\n{e.kind} `{e.name}`\n\n{e.text}\n"
    page("exercises.md", text)
    subprocess.run([sys.executable, str(DOCS / "playground" / "build.py")], check=True)


def setup(app: Any) -> None:
    """Write the pages, and read docstrings as what they are."""
    write_pages()
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("source-read", as_text)
