"""The registry of backends: choosing, showing, threads, what is imported when, and life without a compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minidl import backends
from minidl.backends import get_backend, get_num_threads, set_num_threads, show_backends, use_backend

ROOT = Path(__file__).parents[1]


def require(name: str) -> None:
    """Skip, with the reason, where backend `name` cannot run; fail if MINIDL_REQUIRE asks for it."""
    try:
        with use_backend(name):
            pass
    except RuntimeError as error:
        if name in os.environ.get("MINIDL_REQUIRE", "").split(","):
            pytest.fail(f"MINIDL_REQUIRE asks for {name}: {error}")
        pytest.skip(str(error))


def python(code: str, **env: str) -> str:
    """Run code in a fresh interpreter and give what it printed."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MINIDL_")}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean | env, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def in_thread(function: Any) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


REQUIRED = [name for name in os.environ.get("MINIDL_REQUIRE", "").split(",") if name]


@pytest.mark.parametrize("name", sorted({"numpy", "cpp", "numba", *REQUIRED}))
def test_required_backends_are_there(name: str) -> None:
    require(name)


def test_the_folder_is_the_registry() -> None:
    files = (ROOT / "minidl" / "backends").glob("*_backend.py")
    assert backends.backends() == sorted(file.stem.removesuffix("_backend") for file in files)


def test_use_backend_as_a_block_and_as_a_call() -> None:
    before = get_backend()
    with use_backend("numpy") as active:
        assert active.name == get_backend().name == "numpy"
        assert in_thread(lambda: get_backend().name) == "numpy"  # the main thread's choice, seen by threads without one
    assert get_backend() is before
    with pytest.raises(KeyError), use_backend("numpy"):
        raise KeyError
    assert get_backend() is before
    use_backend("numpy")
    assert get_backend().name == "numpy"
    use_backend(before.name)


def test_a_thread_s_choice_is_its_own() -> None:
    require("cpp")
    with use_backend("cpp"):

        def choose() -> str:
            use_backend("numpy")
            return get_backend().name

        assert in_thread(choose) == "numpy"
        assert get_backend().name == "cpp"


def test_an_unknown_backend_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"no backend 'fpga'; there are .*cpp.*numpy"):
        use_backend("fpga")


HIDE = "import sys; sys.modules['minidl._C'] = sys.modules['numba'] = sys.modules['cupy'] = None\n"


def test_without_extension_and_numba_numpy_computes_and_the_remedies_are_told() -> None:
    code = HIDE + (
        "import minidl.backends as b\n"
        "print(b.get_backend().name)\n"
        "for name in ('cpp', 'numba'):\n"
        "    try: b.use_backend(name)\n"
        "    except RuntimeError as error: print(error)\n"
        "b.show_backends()"
    )
    first, cpp, numba, *table = python(code).splitlines()
    assert first == "numpy"
    assert "was not built" in cpp and "compiler" in cpp
    assert 'pip install "minidl[numba]"' in numba
    assert sum("unavailable" in line for line in table) == (len(backends.backends()) - 1) * (1 + len(backends.KERNELS))


def test_show_backends_survives_a_choice_that_cannot_be_had() -> None:
    code = HIDE + "import minidl; minidl.show_backends()"
    for name, reason in (("cpp", "was not built"), ("fpga", "no backend 'fpga'")):
        text = python(code, MINIDL_BACKEND=name)
        assert "none is active" in text and reason in text and "  numpy: NumPy" in text


def test_the_first_choice_follows_the_environment() -> None:
    code = "from minidl.backends import get_backend; print(get_backend().name)"
    assert python(code, MINIDL_BACKEND="numpy") == "numpy"
    require("cpp")
    assert python(code) == "cpp"


def test_import_minidl_imports_no_backend() -> None:
    code = (
        "import minidl, sys\n"
        "optional = ('numba', 'minidl._C', 'torch', 'scipy', 'matplotlib', 'cupy', 'astropy')\n"
        "print([name for name in optional if name in sys.modules])"
    )
    assert python(code) == "[]"


def test_show_backends_names_every_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    with use_backend("numpy"):
        text = show_backends()
    assert text == capsys.readouterr().out.rstrip("\n")
    assert text.count("conv2d_grad_w") == len(backends.backends())
    assert "* numpy:" in text and f"threads: {get_num_threads()}" in text


def test_show_backends_tells_inherited_from_native(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_backend.py").write_text(
        "from minidl.backends.numpy_backend import NumpyBackend\n"
        "class HalfBackend(NumpyBackend):\n"
        "    name = 'half'\n"
        "    def max_pool2d(self, *args, **options): return super().max_pool2d(*args, **options)\n"
    )
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])
    assert "half" in backends.backends()
    part = show_backends().split("half:")[1].splitlines()
    assert part[1].split() == ["conv2d", "inherited", "from", "numpy"]
    assert part[4].split() == ["max_pool2d", "native"]


def test_threads() -> None:
    before = get_num_threads()
    try:
        set_num_threads(3)
        assert get_num_threads() == get_backend().threads == 3
        for bad in (0, -1):
            with pytest.raises(ValueError, match="at least 1"):
                set_num_threads(bad)
    finally:
        set_num_threads(before)
    code = "import minidl.backends as b; print(b.get_num_threads())"
    assert python(code, MINIDL_NUM_THREADS="5", OMP_NUM_THREADS="3") == "5"
    assert python(code, OMP_NUM_THREADS="3") == "3"


COMPUTE = (
    "import numpy as np, os, threading\n"
    "from minidl.backends import get_backend, set_num_threads, use_backend\n"
    "use_backend('cpp'); set_num_threads(4); backend = get_backend()\n"
    "x, w = np.ones((4, 8, 40, 40), 'f4'), np.ones((8, 8, 3, 3), 'f4')\n"
    "run = lambda: backend.conv2d(x, w, None, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)\n"
    "y = run()\n"
)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_absurd_numbers_of_threads_are_capped() -> None:
    require("cpp")
    code = COMPUTE + (
        "x, w, before = np.ones((2, 1, 300, 300), 'f4'), w[:1, :1], len(os.listdir('/proc/self/task'))\n"
        "for n in (4000, 10**12): set_num_threads(n); run()\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    assert int(python(code)) <= 256


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_after_a_threaded_kernel_computes() -> None:
    require("cpp")
    code = COMPUTE + (
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if np.array_equal(run(), y) else 1)\n"
        "print(os.waitpid(child, 0)[1])"
    )
    assert python(code) == "0"


def test_many_python_threads_share_the_kernels() -> None:
    require("cpp")
    code = COMPUTE + (
        "good = []\n"
        "def loop(): good.extend(np.array_equal(run(), y) for _ in range(50))\n"
        "threads = [threading.Thread(target=loop) for _ in range(4)]\n"
        "for t in threads: t.start()\n"
        "for t in threads: t.join()\n"
        "print(sum(good))"
    )
    assert python(code) == "200"


def test_minidl_simd_forces_a_level() -> None:
    require("cpp")
    assert python("from minidl import _C; print(_C.simd_level())", MINIDL_SIMD="baseline") == "baseline"
    code = "import minidl.backends as b\ntry: b.use_backend('cpp')\nexcept RuntimeError as error: print(error)"
    assert "'sse9' cannot run here" in python(code, MINIDL_SIMD="sse9")


def test_a_level_runs_only_where_all_that_its_file_may_use_is_there() -> None:
    setup = (ROOT / "setup.py").read_text()
    bindings = (ROOT / "csrc" / "bindings.cpp").read_text()
    for level in ("avx2", "avx512"):
        flags = re.search(rf'"simd_{level}.cpp": \[(.*?)\]', setup)
        check = re.search(rf'if \(name == "{level}"\)(.*?);', bindings, re.DOTALL)
        assert flags and check
        wanted = set(re.findall(r'"-m(avx\w+|fma)"', flags[1]))
        assert wanted == set(re.findall(r'cpu_supports\("(\w+)"\)', check[1])), level


def sources(folder: Path) -> Path:
    """Copy what a build of the extension needs."""
    (folder / "minidl").mkdir()
    (folder / "minidl" / "__init__.py").touch()
    shutil.copy(ROOT / "setup.py", folder)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    return folder / "minidl" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


@pytest.mark.skipif(sys.platform == "win32", reason="CXXFLAGS chooses nothing here")
def test_a_build_with_assertions_computes(tmp_path: Path) -> None:
    """CXXFLAGS of the user's own replace Python's, NDEBUG among them; pybind11 then checks that the GIL is held."""
    require("cpp")
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    sources(tmp_path)
    setup = tmp_path / "setup.py"
    setup.write_text(setup.read_text().replace('"-O3"', '"-O0"'))  # compiled sooner
    command, env = (
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        {"CXXFLAGS": "-fPIC", "MINIDL_REQUIRE": "cpp"},
    )
    subprocess.run(command, cwd=tmp_path, env=os.environ | env, capture_output=True, check=True)
    code = (
        "import numpy as np, minidl._C as C\n"
        "a, one, no = np.ones((1, 1, 4, 4), 'f4'), (1, 1), (0, 0)\n"
        "g = C.conv2d(a, a, None, one, no, one, 1, False, 1)\n"
        "dx = C.conv2d_grad_x(g, a, a.shape, None, one, no, one, 1, False, 1)\n"
        "dw = C.conv2d_grad_w(g, a, a.shape, one, no, one, 1, 1)\n"
        "y, index = C.max_pool2d(a, one, (4, 4), one, no, one, 1)\n"
        "da = C.max_pool2d_grad(y, index, a.shape, None, (4, 4), one, no, one, 1)\n"
        "print(C.__file__, g.sum() + dx.sum() + dw.sum() + da.sum())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.split()[1:] == ["529.0"] and run.stdout.startswith(str(tmp_path)), run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="CC and CXX choose no compiler here")
def test_a_failed_build_warns_or_fails_and_leaves_no_old_extension(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    old = sources(tmp_path)
    env = {key: value for key, value in os.environ.items() if key != "MINIDL_REQUIRE"} | {"CC": "false", "CXX": "false"}

    def build(*where: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "setup.py", "build_ext", *where]
        return subprocess.run(command, cwd=tmp_path, env=env | more, capture_output=True, text=True, timeout=120)

    old.touch()
    assert build().returncode == 0 and old.exists()  # a wheel is built elsewhere: not this build's to delete
    done = build("--inplace")
    assert done.returncode == 0 and "could not be built" in done.stderr, done.stderr
    assert not old.exists()
    assert build("--inplace", MINIDL_REQUIRE="numpy,cpp").returncode != 0


def test_numpy_keeps_its_unfolded_windows_small(monkeypatch: pytest.MonkeyPatch) -> None:
    from minidl.backends import numpy_backend

    largest = 0
    unfold = numpy_backend.NumpyBackend._unfold

    def watch(windows: Any, groups: int) -> Any:
        nonlocal largest
        columns = unfold(windows, groups)
        largest = max(largest, columns.nbytes)
        return columns

    monkeypatch.setattr(numpy_backend.NumpyBackend, "_unfold", staticmethod(watch))
    with use_backend("numpy"):
        x, w = np.ones((2, 16, 256, 256), "f4"), np.ones((1, 16, 3, 3), "f4")
        get_backend().conv2d(x, w, None, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
    assert 0 < largest <= numpy_backend.BLOCK_BYTES
