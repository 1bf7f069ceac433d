"""A stand-in for CuPy without a GPU: arrays are NumPy's underneath, kernels are compiled by g++ and run on fibers.

Stricter than CuPy wherever that finds mistakes: NumPy arrays are refused, device memory starts as NaN and has guards at
both ends that no kernel may touch, and every kernel argument must have the type that the kernel declares. `bench.order`
chooses in which order the threads of a block run, and `bench.limit` how many bytes there are.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import types
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy import bool_, float32, float64, int32, int64, uint8, uint64

HERE = Path(__file__).parents[2]
GUARD = 64  # bytes at each end of an array
__version__ = "stand-in"


class Bench:
    """What a test may choose: the order of threads (0 forward, 1 backward, 2 shuffled), and the bytes of the device."""

    order = 0
    seed = 1
    limit: int | None = None
    launches = 0
    flags: tuple[str, ...] = tuple(os.environ.get("MINIDL_CUDA_FLAGS", "-O1").split())
    recording: list[Callable[[], Any]] | None = None  # of a graph


bench = Bench()
SANITIZED = any(flag.startswith("-fsanitize=address") for flag in bench.flags)
_wholes: dict[int, Any] = {}  # arrays with their guards


def _allocate(shape: Any, kind: Any) -> ndarray:
    """Give memory full of NaN between two guards."""
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(int(n) for n in shape)
    kind = np.dtype(kind)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if bench.limit is not None and size > bench.limit:
        raise cuda.memory.OutOfMemoryError(size, 0, bench.limit)
    whole = np.full(size + 2 * GUARD + 1024, 0xFF, np.uint8)
    start = -(whole.ctypes.data + GUARD) % 512 + GUARD  # CuPy's arrays are aligned
    whole = whole[start - GUARD : start + size + GUARD]
    inner = whole[GUARD : GUARD + size]
    if SANITIZED:  # even to look at a guard is an error then
        asan = ctypes.CDLL(None)
        asan.__asan_unpoison_memory_region(ctypes.c_void_p(whole.base.ctypes.data), ctypes.c_size_t(whole.base.size))
        for guard in (whole[:GUARD], whole[GUARD + size :]):
            asan.__asan_poison_memory_region(ctypes.c_void_p(guard.ctypes.data), ctypes.c_size_t(guard.size))
    _wholes[inner.ctypes.data] = (weakref.ref(whole.base), whole.size)
    return ndarray(inner.view(kind).reshape(shape))


def _check_guards(a: np.ndarray) -> None:
    start = a.ctypes.data
    found = _wholes.get(start)
    if SANITIZED or found is None or found[0]() is None:
        return
    whole = np.ctypeslib.as_array(ctypes.cast(start - GUARD, ctypes.POINTER(ctypes.c_uint8)), (found[1],))
    if (whole[:GUARD] != 0xFF).any() or (whole[-GUARD:] != 0xFF).any():
        raise RuntimeError("cudaErrorIllegalAddress: a kernel wrote beside an array")


def _plain(value: Any) -> Any:
    """Take NumPy's arrays out of ours; real NumPy arrays are refused, as by CuPy."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, tuple | list):
        return type(value)(_plain(v) for v in value)
    return value


def _wrapped(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    if isinstance(value, tuple | list):
        return type(value)(_wrapped(v) for v in value)
    return value


def _synchronise() -> None:
    if bench.recording is not None:
        raise cuda.runtime.CUDARuntimeError(
            "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
        )


def _call(function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Compute with NumPy; while a graph is recorded, also take note how to compute it again."""
    args, options = _plain(args), {name: _plain(value) for name, value in options.items()}
    if bench.recording is not None and "out" in options:
        out = options["out"]
        bench.recording.append(lambda: function(*args, **options))
        return ndarray(out)
    with np.errstate(all="ignore"):
        result = _wrapped(function(*args, **options))
    if bench.recording is not None and isinstance(result, ndarray):
        sources = [a for a in (*args, *options.values()) if isinstance(a, np.ndarray)]
        if not any(np.shares_memory(result._a, a) for a in sources):  # no view: a graph computes it again
            bench.recording.append(lambda: np.copyto(result._a, function(*args, **options)))
            if result.dtype.kind == "f":
                result._a = np.array(result._a, copy=True)
                result._a[...] = np.nan
    return result


def _change(action: Callable[[], Any]) -> None:
    """Do something in place, now or when the graph runs."""
    if bench.recording is None:
        with np.errstate(all="ignore"):
            action()
    else:
        bench.recording.append(action)


class ndarray:
    """An array on the device."""

    __array_priority__ = 100

    def __init__(self, a: np.ndarray) -> None:
        self._a = a

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or any(isinstance(v, np.ndarray) for v in inputs):
            return NotImplemented
        return _call(ufunc, inputs, options)

    def __array_function__(self, function: Any, kinds: Any, args: Any, options: Any) -> Any:
        name = function.__name__
        return (globals()[name] if name in globals() else _module(name))(*args, **options)

    def __getattr__(self, name: str) -> Any:
        if name in VALUES:
            value = getattr(self._a, name)
            return _wrapped(value) if isinstance(value, np.ndarray) else value
        if name in METHODS:
            return lambda *args, **options: _call(
                lambda a, *rest, **o: getattr(a, name)(*rest, **o), (self, *args), options
            )
        raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self._a.ctypes.data)

    @property
    def device(self) -> Any:
        return cuda.Device()

    def get(self, *args: Any, **options: Any) -> np.ndarray:
        _synchronise()
        return self._a.copy()

    def set(self, a: np.ndarray, stream: Any = None) -> None:
        _synchronise()
        if not isinstance(a, np.ndarray) or a.dtype != self.dtype or a.shape != self.shape:
            raise TypeError("only a NumPy array of the same dtype and shape can be set")
        self._a[...] = a

    def item(self) -> Any:
        _synchronise()
        return self._a.item()

    def tolist(self) -> Any:
        _synchronise()
        return self._a.tolist()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    __index__ = None  # CuPy's have none

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Any:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        return _call(lambda a, i: a[i], (self, index), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        index, value = _plain(index), _plain(value)
        _change(lambda: self._a.__setitem__(index, value))

    def __repr__(self) -> str:
        return repr(self._a)

    __hash__ = None  # type: ignore[assignment]


def _operator(name: str) -> Callable[..., Any]:
    def method(self: ndarray, *others: Any) -> Any:
        if others and not isinstance(others[0], ndarray | int | float | np.generic | bool):
            if isinstance(others[0], np.ndarray):
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
            return NotImplemented
        return _call(lambda a, *rest: getattr(a, name)(*rest), (self, *others), {})

    return method


def _in_place(name: str) -> Callable[..., Any]:
    def method(self: ndarray, other: Any) -> ndarray:
        other = _plain(other)
        _change(lambda: getattr(self._a, name)(other))
        return self

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    for _kind in ("", "r"):
        setattr(ndarray, f"__{_kind}{_name}__", _operator(f"__{_kind}{_name}__"))
    setattr(ndarray, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in ("neg", "pos", "abs", "invert", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))

VALUES = {"shape", "dtype", "ndim", "size", "itemsize", "nbytes", "flags", "strides", "T", "base"}
METHODS = {
    "all", "any", "argmax", "argmin", "argsort", "astype", "clip", "copy", "cumsum", "flatten", "max", "mean", "min",
    "nonzero", "prod", "ravel", "repeat", "reshape", "round", "squeeze", "std", "sum", "swapaxes", "take", "transpose",
    "var", "view",
}  # fmt: skip
FUNCTIONS = {  # what minidl uses of CuPy; each name is looked up in the real one by `pytest -m gpu`
    "abs", "absolute", "add", "all", "any", "arange", "argmax", "argmin", "broadcast_to", "clip", "concatenate", "cos",
    "equal", "exp", "full_like", "isfinite", "isnan", "log", "log1p", "matmul", "maximum", "minimum",
    "moveaxis", "multiply", "not_equal", "pad", "put_along_axis", "sign", "sin", "sqrt", "square", "stack", "sum",
    "swapaxes", "take_along_axis", "tanh", "true_divide", "where",
}  # fmt: skip


def _module(name: str) -> Callable[..., Any]:
    if name not in FUNCTIONS:
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    function = getattr(np, name)

    def call(*args: Any, **options: Any) -> Any:
        return _call(function, args, options)

    if name == "put_along_axis":
        return lambda a, i, v, axis: _change(lambda: np.put_along_axis(a._a, _plain(i), _plain(v), axis))
    if name == "add":
        call.at = lambda a, i, v: _change(lambda: np.add.at(a._a, _plain(i), _plain(v)))  # type: ignore[attr-defined]
    return call


__getattr__ = _module


def asarray(a: Any, dtype: Any = None, order: Any = None) -> ndarray:
    """Copy to the device what is not there yet."""
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    return array(a, dtype)


def array(a: Any, dtype: Any = None, copy: bool = True, order: Any = "K") -> ndarray:
    """Copy, to the device or on it."""
    if isinstance(a, ndarray):
        return _call(lambda v: np.array(v, dtype=dtype, order=order), (a,), {})
    _synchronise()
    source = np.asarray(a, dtype=dtype)
    if source.dtype.kind not in "fiub":
        raise ValueError(f"Unsupported dtype {source.dtype}")
    new = _allocate(source.shape, source.dtype)
    new._a[...] = source
    return new


def ascontiguousarray(a: ndarray, dtype: Any = None) -> ndarray:
    """Give a itself, or a copy in C order."""
    if a._a.flags.c_contiguous and dtype in (None, a.dtype):
        return a
    return _call(lambda v: np.ascontiguousarray(v, dtype), (a,), {})


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """Give memory full of NaN."""
    return _allocate(shape, dtype)


def full(shape: Any, value: Any, dtype: Any = None) -> ndarray:
    """Give an array full of one value."""
    new = _allocate(shape, dtype if dtype is not None else np.asarray(value).dtype)
    _change(lambda: new._a.fill(value))
    return new


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    """Give zeros."""
    return full(shape, 0, dtype)


def ones(shape: Any, dtype: Any = float) -> ndarray:
    """Give ones."""
    return full(shape, 1, dtype)


def empty_like(a: ndarray, dtype: Any = None) -> ndarray:
    """Give memory full of NaN."""
    return _allocate(a.shape, dtype or a.dtype)


def zeros_like(a: ndarray, dtype: Any = None) -> ndarray:
    """Give zeros."""
    return zeros(a.shape, dtype or a.dtype)


def ones_like(a: ndarray, dtype: Any = None) -> ndarray:
    """Give ones."""
    return ones(a.shape, dtype or a.dtype)


def asnumpy(a: ndarray) -> np.ndarray:
    """Copy to the host."""
    return a.get()


class _Windows:
    @staticmethod
    def sliding_window_view(a: ndarray, shape: Any, axis: Any = None) -> ndarray:
        return _call(lambda v: np.lib.stride_tricks.sliding_window_view(v, shape, axis), (a,), {})


lib = types.SimpleNamespace(stride_tricks=_Windows)


# --- kernels ---------------------------------------------------------------------------------------------------------

KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(([^)]*)\)')
STRUCT = re.compile(r"^struct (\w+) \{(.*?)\};", re.DOTALL | re.MULTILINE)
TYPES = {"int": int32, "long long": int64, "double": float64, "float": float32, "unsigned long long": uint64}
POINTED = {**TYPES, "unsigned char": uint8, "bool": bool_}


@contextmanager
def _folder() -> Any:
    kept = os.environ.get("MINIDL_CUDA_CACHE")
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
        yield Path(kept)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


class RawModule:
    """Kernels of one text, compiled by g++."""

    def __init__(self, *, code: str, options: tuple[str, ...] = (), name_expressions: Any = None) -> None:
        self.code, self.options = code, options
        self.real = float64 if "-DREAL=double" in options else float32
        self.library: Any = None

    def _compile(self) -> None:
        compiler = os.environ.get("CXX") or shutil.which("g++")
        head = '#include "cuda_on_cpu.hpp"\n'
        defines = [option for option in self.options if option.startswith("-D")]
        flags = ["-std=c++17", *bench.flags, "-fPIC", "-w", f"-I{HERE}", *defines]
        expanded = subprocess.run(
            [str(compiler), "-E", *flags, "-x", "c++", "-"], input=self.code, capture_output=True, text=True
        )
        text = re.sub(r"^#.*$", "", expanded.stdout, flags=re.MULTILINE)  # macros expanded: the kernels they make show
        self.kernels = {name: [p.strip() for p in params.split(",")] for name, params in KERNEL.findall(text)}
        self.structs = {
            name: re.findall(r"(?:^|;)\s*((?:unsigned )?(?:long long|\w+)) ([^;]+)", re.sub(r"//.*", "", fields))
            for name, fields in STRUCT.findall(text)
        }
        tail = [
            f'extern "C" const char* launch_{name}(const bench::Launch* how, void** values) {{ return bench::run(*how, '
            f"[](void** a) {{ {name}({self._unpacked(params)}); }}, values); }}"
            for name, params in self.kernels.items()
        ]
        tail += [
            f'extern "C" unsigned long size_of_{name}() {{ return sizeof({name}); }}' for name in self.used_structs()
        ]
        source = head + self.code + "\n" + "\n".join(tail)
        name = hashlib.sha256((source + (HERE / "cuda_on_cpu.hpp").read_text() + str(flags)).encode()).hexdigest()[:20]
        with _folder() as folder:
            library = folder / f"{name}.so"
            if not library.exists():
                command = [str(compiler), *flags, "-shared", "-x", "c++", "-", "-o", f"{library}.{os.getpid()}"]
                done = subprocess.run(command, input=source, capture_output=True, text=True)
                if done.returncode:
                    raise cuda.compiler.CompileException(done.stderr, source, name, self.options)
                os.replace(f"{library}.{os.getpid()}", library)
            self.library = ctypes.CDLL(str(library))

    def _unpacked(self, params: list[str]) -> str:
        return ", ".join(f"*({self._type(p)}*)a[{k}]" for k, p in enumerate(params))

    def used_structs(self) -> list[str]:
        """Name the structs that kernels take by value."""
        types = {self._type(p) for params in self.kernels.values() for p in params}
        return sorted(types & self.structs.keys())

    @staticmethod
    def _type(parameter: str) -> str:
        return re.sub(r"\b(const|__restrict__)\b", "", parameter.rpartition("*")[0] + "*" if "*" in parameter
                      else parameter.rpartition(" ")[0]).strip()  # fmt: skip

    def get_function(self, name: str) -> RawKernel:
        """Give a kernel."""
        if self.library is None:
            self._compile()
        if name not in self.kernels:
            raise cuda.driver.CUDADriverError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name}")
        return RawKernel(self, name)


class RawKernel:
    """One kernel: called with grid, block and a tuple of arguments."""

    def __init__(self, module: RawModule, name: str) -> None:
        self.module, self.name = module, name
        self.run = getattr(module.library, f"launch_{name}")
        self.run.restype = ctypes.c_char_p

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
        """Launch, at once or when the recorded graph runs."""
        if not (isinstance(grid, tuple) and isinstance(block, tuple) and isinstance(args, tuple)):
            raise TypeError("grid, block and arguments are tuples")
        grid, block = ((*(max(1, int(n)) for n in size), 1, 1)[:3] for size in (grid, block))
        if grid[0] > 2**31 - 1 or max(grid[1:]) > 65535 or np.prod(block) > 1024:
            raise cuda.driver.CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        params = self.module.kernels[self.name]
        if len(args) != len(params):
            raise TypeError(f"{self.name} takes {len(params)} arguments, not {len(args)}")
        values = [self._value(p, a) for p, a in zip(params, args, strict=True)]
        if sum(v.nbytes for v in values) > 4096:
            raise cuda.driver.CUDADriverError(f"{self.name}: arguments are limited to 4096 bytes")
        _change(lambda: self._launch(grid, block, values, args))

    def _launch(self, grid: tuple[int, ...], block: tuple[int, ...], values: list[Any], args: tuple[Any, ...]) -> None:
        bench.launches += 1
        how = (ctypes.c_uint * 8)(*grid, *block, bench.order, bench.seed)
        problem = self.run(how, (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values)))
        if problem:
            raise RuntimeError(f"{self.name}: {problem.decode()}")
        for a in args:
            if isinstance(a, ndarray):
                _check_guards(a._a)

    def _value(self, parameter: str, a: Any) -> np.ndarray:
        """Pack an argument as CuPy does, if it is what the kernel declares."""
        kind = self.module._type(parameter)

        def refuse(found: Any) -> TypeError:
            return TypeError(f"{self.name}: the kernel declares `{parameter}`, it was given {found}")

        if kind.endswith("*"):
            if a is None:
                return np.zeros(1, uint64)
            pointed = kind[:-1].strip()
            if not isinstance(a, ndarray):
                raise refuse(type(a).__name__)
            kinds = {**POINTED, "real": self.module.real}
            wanted = np.dtype(kinds.get(pointed, int32))  # a structure: its numbers, all int
            if a.dtype != wanted:
                raise refuse(f"an array of {a.dtype}")
            if not a._a.flags.c_contiguous:
                raise refuse("an array that is not contiguous")
            return np.array([a._a.ctypes.data], uint64)
        if kind in self.module.structs:
            if not isinstance(a, np.ndarray) or a.size != 1 or a.dtype != self._layout(kind):
                raise refuse(getattr(a, "dtype", a))
            if a.dtype.itemsize != getattr(self.module.library, f"size_of_{kind}")():
                raise refuse(f"a structure of {a.dtype.itemsize} bytes")
            return a
        value = np.asarray(int64(a) if type(a) is int else float64(a) if type(a) is float else a)  # as CuPy packs them
        if value.size != 1 or value.dtype != np.dtype(self.module.real if kind == "real" else TYPES[kind]):
            raise refuse(f"{value.dtype}")
        return value

    def _layout(self, struct: str) -> Any:
        """Give a C++ structure's layout, read from the text."""
        fields: list[Any] = []
        for kind, names in self.module.structs[struct]:
            for name, count in re.findall(r"(\w+)(?:\[(\w+)\])?", names):
                if count and not count.isdigit():
                    count = re.search(rf"constexpr int {count} = (\d+)", self.module.code)[1]  # type: ignore[index]
                kind_of = self.module.real if kind == "real" else TYPES[kind]
                fields.append((name, kind_of, (int(count),)) if count else (name, kind_of))
        return np.dtype(fields, align=True)


# --- the device ------------------------------------------------------------------------------------------------------


class CUDARuntimeError(RuntimeError):
    """An error of the CUDA runtime."""


class OutOfMemoryError(MemoryError):
    """CuPy's: what was wanted, what is used, what the limit is."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class CompileException(Exception):
    """What the compiler said."""

    def __init__(self, message: str, source: str, name: str, options: Any) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Device:
    """The one device."""

    id = 0
    compute_capability = "80"
    mem_info = (1 << 30, 2 << 30)
    attributes = {"MultiProcessorCount": 4}  # noqa: RUF012

    def __init__(self, device: int = 0) -> None:
        pass

    def synchronize(self) -> None:
        """Wait; nothing is ever under way."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    __hash__ = None  # type: ignore[assignment]


class Stream:
    """A stream that can record a graph."""

    def __init__(self, non_blocking: bool = False) -> None:
        pass

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def begin_capture(self, mode: Any = None) -> None:
        """Record from here on."""
        bench.recording = []

    def end_capture(self) -> Graph:
        """Give what was recorded."""
        actions, bench.recording = bench.recording, None
        return Graph(actions or [])

    def synchronize(self) -> None:
        """Wait; nothing is ever under way."""


class Graph:
    """Recorded work."""

    def __init__(self, actions: list[Callable[[], None]]) -> None:
        self.actions = actions

    def launch(self, stream: Any = None) -> None:
        """Do it again."""
        with np.errstate(all="ignore"):
            for action in self.actions:
                action()


class MemoryPool:
    """Memory that is kept."""

    def malloc(self, size: int) -> Any:
        """Never called: arrays are NumPy's."""

    def total_bytes(self) -> int:
        """Bytes that the pool holds."""
        return 0

    def used_bytes(self) -> int:
        """Bytes of living arrays."""
        return 0

    def free_bytes(self) -> int:
        """Bytes that the pool holds and nobody uses."""
        return 0


@contextmanager
def _using_allocator(allocator: Any) -> Any:
    yield


_pool = MemoryPool()


def get_default_memory_pool() -> MemoryPool:
    """Give the pool."""
    return _pool


def show_config() -> None:
    """Say what there is."""


cuda = types.SimpleNamespace(
    Device=Device, Stream=Stream, Graph=Graph, MemoryPool=MemoryPool, using_allocator=_using_allocator,
    get_current_stream=Stream,
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    compiler=types.SimpleNamespace(CompileException=CompileException),
    driver=types.SimpleNamespace(CUDADriverError=type("CUDADriverError", (RuntimeError,), {})),
    runtime=types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: 1, driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000, getDevice=lambda: 0,
        getDeviceProperties=lambda device: {"name": b"stand-in", "multiProcessorCount": 4, "totalGlobalMem": 2 << 30},
    ),
)  # fmt: skip
