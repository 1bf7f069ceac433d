"""The house keeps its shape: imports run one way, and what is optional is not imported at start."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up: a module may import those before it. (Two pairs know each other: tensor
# and functional, because methods are functions; optim and lr_scheduler, because torch has one inside the other.)
FLOORS = [
    {"minidl.backends", "minidl._C"},
    {"minidl.arrays", "minidl.init", "minidl.tensor", "minidl.functional"},
    {"minidl.nn"},
    {
        "minidl.models",
        "minidl.graph",
        "minidl.explain",
        "minidl.testing",
        "minidl.cases",
        "minidl.optim",
        "minidl.lr_scheduler",
        "minidl.metrics",
        "minidl.data",
        "minidl.device",
    },
    {"minidl.checkpoint"},
    {"minidl.train", "minidl.onnx", "minidl.exercises"},
    {"minidl.live"},
]
OPTIONAL = {
    "numba",
    "cupy",
    "safetensors",
    "tqdm",
    "scipy",
    "matplotlib",
    "astropy",
    "mrcfile",
    "PIL",
    "torch",
    "onnx",
    "pybind11",
}
SOURCES = sorted((ROOT / "minidl").rglob("*.py"))


def imported(path: Path) -> list[tuple[str, bool]]:
    """Absolute names of the modules a file imports, and whether at its top level."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    parent = package.removesuffix(".__init__") if path.name == "__init__.py" else package.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parent.split(".")[: len(parent.split(".")) - node.level + 1]) if node.level else ""
            name = ".".join(part for part in (base, node.module) if part)
            found += [(f"{name}.{alias.name}" if name == "minidl" else name, top) for alias in node.names]
    return found


def floor(module: str) -> int | None:
    """The floor of a module of minidl, None for others."""
    for k, names in enumerate(FLOORS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return k
    return None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    own = floor(module)
    assert module == "minidl" or own is not None, f"{module} stands on no floor: add it to FLOORS"
    for name, _ in imported(path):
        assert not name.startswith(("examples", "benchmarks", "tests")), f"{module} imports {name}"
        other = floor(name)
        assert own is None or other is None or other <= own, f"{module} imports {name}, which stands above it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_optional_packages_are_imported_where_used(path: Path) -> None:
    if path.name.endswith("_backend.py"):
        return  # imported only when chosen
    tops = {name.split(".")[0] for name, top in imported(path) if top}
    assert not tops & OPTIONAL


def test_import_brings_in_numpy_alone() -> None:
    code = "import sys, minidl; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(done.stdout.split()) & OPTIONAL


def test_backends_see_no_tensor_and_layers_no_backend() -> None:
    for path in (ROOT / "minidl" / "backends").glob("*.py"):
        assert not any(name.startswith("minidl.tensor") for name, _ in imported(path))
    for name in ("nn", "models", "train", "metrics", "data"):  # optim.py calls its kernels itself
        assert not any("backends" in n for n, _ in imported(ROOT / "minidl" / f"{name}.py"))
