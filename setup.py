"""Builds the CPU kernels with any C compiler; without one the package installs all the same and computes in plain torch."""

import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError

FLAGS = ["-O3", "-std=gnu11", "-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-Wno-psabi", "-Wno-unknown-pragmas"]
"""Loops are vectorised by hand; the compiler's own scatters are slower than what they replace."""
ATTEMPTS = (["-fopenmp"], ["-fopenmp", "-DSF_ONE_TARGET"], ["-DSF_ONE_TARGET"])
"""An old compiler may lack clones for several processors, and some have no OpenMP."""


class BuildKernels(build_ext):
    """A plain shared library, loaded with ctypes: no Python headers, no torch headers."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ext.export_symbols

    def build_extension(self, ext: Extension) -> None:
        ext.define_macros = [("SF_SOURCE", f'"{zlib.crc32(Path(ext.sources[0]).read_bytes()):08x}"')]
        for extra in ATTEMPTS:
            ext.extra_compile_args, ext.extra_link_args = [*FLAGS, *extra], [flag for flag in extra if flag == "-fopenmp"]
            try:
                super().build_extension(ext)
                return
            except (BaseError, CCompilerError, CompileError) as error:
                why = str(error)
        self.warn(f"the CPU kernels were not built ({why}); sparse layers will compute in plain torch")


setup(
    ext_modules=[Extension("sparsefleet.ops._kernels", ["sparsefleet/ops/kernels.c"], optional=True)],
    cmdclass={"build_ext": BuildKernels},
)
