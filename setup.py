"""Build the optional C++ kernels; all else about the package is in pyproject.toml.

Without a compiler the package installs all the same and computes with NumPy. Environment:
MINIDL_REQUIRE=numpy,cpp  a failed build is an error;   MINIDL_NATIVE=1  optimise for this very processor.
"""

import os
import platform
import shutil
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup
from setuptools.command.build_py import build_py

# Files that are compiled for newer processors; which of them runs is decided at run time (csrc/cpu/simd.hpp).
LEVELS = {
    "simd_avx2.cpp": ["-mavx2", "-mfma"],
    "simd_avx512.cpp": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"],
}


class BuildKernels(build_ext):
    """Compile each file with its own flags; on failure warn, and leave no old extension behind that could mask it."""

    def run(self):
        """Build all; only builds in place may touch what lies beside the sources (super().run() hides `inplace`)."""
        self.beside_sources = bool(self.inplace)
        super().run()

    def build_extension(self, ext):
        """Build one extension."""
        self.remove(ext)
        try:
            compile_all = self.compiler.compile

            def compile_each(sources, *args, extra_postargs=None, **kwargs):
                return [
                    output
                    for source in sources
                    for output in compile_all(
                        [source], *args, extra_postargs=[*(extra_postargs or []), *self.flags(source)], **kwargs
                    )
                ]

            self.compiler.compile = compile_each
            super().build_extension(ext)
        except Exception as error:
            self.remove(ext)
            if "cpp" in os.environ.get("MINIDL_REQUIRE", "").split(","):
                raise
            print(
                f"\n*** minidl: the C++ kernels could not be built: {error}\n"
                "*** minidl works without them, slower. To get them, install a C++17 compiler and install again.\n",
                file=sys.stderr,
            )

    def copy_extensions_to_source(self):
        """Copy what was built (develop installs); nothing where the build failed."""
        self.extensions = [ext for ext in self.extensions if Path(self.get_ext_fullpath_in_build(ext)).exists()]
        super().copy_extensions_to_source()

    def get_ext_fullpath_in_build(self, ext):
        """Give the path of the extension under build/."""
        return os.path.join(self.build_lib, self.get_ext_filename(self.get_ext_fullname(ext.name)))

    def remove(self, ext):
        """Delete results of earlier builds, in build/ and, where this build goes there, beside the sources."""
        Path(self.get_ext_fullpath_in_build(ext)).unlink(missing_ok=True)
        if self.beside_sources:
            Path(self.get_ext_filename(self.get_ext_fullname(ext.name))).unlink(missing_ok=True)

    def flags(self, source):
        """Give the flags of one source file for this compiler."""
        if self.compiler.compiler_type == "msvc":
            return ["/O2"]
        sanitized = "-fsanitize" in os.environ.get("CXXFLAGS", "")  # see tests/sanitize.py; slow to compile at -O3
        flags = ["-O1" if sanitized else "-O3"]
        flags += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-pthread"]
        if os.environ.get("MINIDL_NATIVE") == "1":
            flags.append("-march=native")
        x86 = platform.machine().lower() in ("x86_64", "amd64") and "arm64" not in os.environ.get("ARCHFLAGS", "")
        return flags + (LEVELS.get(Path(source).name, []) if x86 else [])


class WithCuda(build_py):
    """Puts the CUDA kernels, which are compiled where they run, into the package."""

    def run(self):
        """Copy csrc/cuda to minidl/cuda; an editable install reads them where they are."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("csrc/cuda", Path(self.build_lib) / "minidl" / "cuda", dirs_exist_ok=True)


kernels = Pybind11Extension(
    "minidl._C",
    sorted(str(path) for path in [Path("csrc/bindings.cpp"), *Path("csrc/cpu").glob("*.cpp")]),
    include_dirs=["csrc"],
    depends=sorted(str(path) for path in Path("csrc/cpu").glob("*.hpp")),
    extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
    cxx_std=17,
)

setup(ext_modules=[kernels], cmdclass={"build_ext": BuildKernels, "build_py": WithCuda})
