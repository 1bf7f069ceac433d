"""Run the C++ kernels under the compiler's sanitizers: python -m tests.sanitize [--examples 2000].

AddressSanitizer and UndefinedBehaviorSanitizer: an extension built for them in a folder of its own runs the table of
cases, random shapes and every other kernel test; the CUDA kernels, compiled for the processor, run theirs.
ThreadSanitizer: a C++ program (threads.cpp) uses the pool, the buffers and a kernel from several threads at once.
AddressSanitizer and ThreadSanitizer must also catch an error planted
for them, else a clean run proves nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = [
    "tests/test_kernels.py",
    "tests/test_random_shapes.py",
    "tests/test_winograd.py",
    "tests/test_memory_kernels.py",
    "tests/test_dense.py",
]
PLANTED = """
from tests import stand_in
cupy = stand_in.cupy()
code = 'extern "C" __global__ void copy(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x + 1]; }'
x = cupy.zeros(32, "f4")
cupy.RawModule(code=code).get_function("copy")((1,), (32,), (x, cupy.empty(32, "f4")))
"""
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1"


def run(command: list[str], where: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command and show what it prints."""
    print("$", " ".join(command), flush=True)
    return subprocess.run(command, cwd=where, env=os.environ | environment, text=True)


def runtime_library(compiler: str, name: str) -> str:
    """Give the path of a sanitizer's runtime library, which must be loaded before Python."""
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def address(compiler: str, where: Path, examples: int) -> bool:
    """Build the extension with AddressSanitizer and run the kernel tests on it."""
    for name in ("minidl", "csrc", "tests"):
        shutil.copytree(ROOT / name, where / name, ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, where)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    flags = {"CC": compiler, "CXX": compiler, "CXXFLAGS": FLAGS, "LDFLAGS": FLAGS, "MINIDL_REQUIRE": "cpp"}
    if run(build, where, **flags).returncode:
        return False
    environment = {
        "LD_PRELOAD": runtime_library(compiler, "libasan.so") + " " + runtime_library(compiler, "libstdc++.so"),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks at exit
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "MINIDL_EXAMPLES": str(examples),
        "MINIDL_REQUIRE": "cpp",
    }
    planted = "from minidl import _C; _C.read_past_a_buffer()"
    caught = subprocess.run(
        [sys.executable, "-c", planted], cwd=where, env=os.environ | environment, capture_output=True, text=True
    )
    if "heap-buffer-overflow" not in caught.stderr:
        print(f"AddressSanitizer missed a planted error: {caught.stderr[:3000]}")
        return False
    chosen = [test for test in TESTS if (where / test).exists()]
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    if run([*command, "-k", "(cpp or not backend) and not processor", *chosen], where, **environment).returncode:
        return False
    return cuda(command, where, environment)


def cuda(command: list[str], where: Path, environment: dict[str, str]) -> bool:
    """Run the CUDA kernels on the processor under the same sanitizers; a planted step too far must be caught."""
    environment = environment | {"MINIDL_CUDA_FLAGS": f"-O1 {FLAGS}", "MINIDL_CUDA_CACHE": str(where / "kernels")}
    caught = subprocess.run(
        [sys.executable, "-c", PLANTED], cwd=where, env=os.environ | environment, capture_output=True, text=True
    )
    if "use-after-poison" not in caught.stderr:
        print(f"AddressSanitizer missed a planted error in a CUDA kernel: {caught.stderr[:3000]}")
        return False
    chosen = ["tests/test_kernels.py", "tests/test_cuda.py"]
    return run([*command, "-k", "processor", *chosen], where, **environment).returncode == 0


def threads(compiler: str, where: Path) -> bool:
    """Build threads.cpp with ThreadSanitizer, run it, and run it again with a planted race, which must be caught."""
    sources = ["tests/threads.cpp", "csrc/cpu/runtime.cpp", "csrc/cpu/simd_baseline.cpp"]
    flags = ["-std=c++17", "-O1", "-g1", "-fsanitize=thread", "-pthread", "-Icsrc"]
    program = where / "threads"
    if run([compiler, *flags, *sources, "-o", str(program)], ROOT).returncode:
        return False
    if run([str(program)], where, TSAN_OPTIONS="halt_on_error=1").returncode:
        return False
    planted = subprocess.run([str(program), "race"], capture_output=True, text=True)
    if "data race" not in planted.stderr:
        print(f"ThreadSanitizer missed a planted race: {planted.stderr[-2000:]}")
        return False
    return True


def main() -> int:
    """Run all three sanitizers; 0 if they find nothing but what was planted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=2000, help="random shapes to try (2000)")
    examples = parser.parse_args().examples
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        print("skipped: no g++ here, and CXX names no compiler")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "address").mkdir()
        good = threads(compiler, Path(folder)) and address(compiler, Path(folder) / "address", examples)
    print("sanitizers: clean, and each caught its planted error" if good else "sanitizers: see above")
    return not good


if __name__ == "__main__":
    sys.exit(main())
