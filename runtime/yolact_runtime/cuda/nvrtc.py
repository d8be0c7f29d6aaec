"""NVIDIA's run-time compiler: finding it, and calling it.

Two majors are needed at times in one process: NVRTC 13 no longer knows the GTX 10-series, and PyTorch brings
13. `cuda-bindings` calls one per process, of its own choice, so this goes to the C interface itself, which
has been the same since CUDA 11.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from yolact_runtime.errors import UsageError, YolactError

log = logging.getLogger(__name__)

VARIABLE = "YOLACT_NVRTC"
# CUDA 12 knows compute capability 5.0 to 12.0, CUDA 13 only 7.5 and up.
_LAST_OF_12 = (12, 0)


@dataclass(frozen=True)
class Product:
    """What one compilation made.

    Attributes:
        image: Machine code (cubin) or PTX text.
        lowered: The name in `image` of each name expression.
        log: The compiler's messages, with the use of registers and memory where machine code was made.
    """

    image: bytes
    lowered: dict[str, str]
    log: str


class Nvrtc:
    """One NVRTC library.

    Attributes:
        path: The library file.
        version: (major, minor).
        architectures: Compute capabilities that it compiles for, ascending; 8.6 is (8, 6).
    """

    def __init__(self, path: Path) -> None:
        """Load the library `path`.

        Raises:
            YolactError: it cannot be loaded or is no NVRTC.
        """
        self.path = path
        try:
            # Found by name from inside NVRTC, and in the wheels only if it is in memory already.
            for builtins in sorted(path.parent.glob("*nvrtc-builtins*")):
                if _is_shared(builtins):
                    ctypes.CDLL(str(builtins))
            self._library = ctypes.CDLL(str(path))
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            raise YolactError(f"{path} is no NVRTC library that can be loaded: {error}") from error
        major, minor, number = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(number))
        known = (ctypes.c_int * number.value)()
        self._call("nvrtcGetSupportedArchs", known)
        self.architectures = sorted(divmod(int(one), 10) for one in known)

    @property
    def include(self) -> Path:
        """The folder of the CUDA headers that belong to this library.

        Raises:
            YolactError: it is not installed; names the package that holds it.
        """
        # A toolkit or the wheels of CUDA 13 hold both in one folder, the wheels of CUDA 12 each in its own.
        root = self.path.resolve().parent.parent
        for folder in (root / "include", root.parent / "include", root.parent / "cuda_runtime" / "include"):
            if (folder / "cuda_fp16.h").is_file():
                return folder
        package = "nvidia-cuda-runtime-cu12" if self.version[0] <= 12 else "nvidia-cuda-runtime"
        raise YolactError(f"no cuda_fp16.h belongs to {self.path}; run: pip install {package}")

    def compile(
        self,
        name: str,
        source: str,
        headers: Mapping[str, str],
        expressions: Sequence[str],
        options: Sequence[str],
        ptx: bool,
    ) -> Product:
        """Compile CUDA C++.

        Args:
            name: Of the source, for messages.
            source: The text.
            headers: Text of each header that `source` includes by that name; others are in include folders.
            expressions: Kernels, such as `resize<float>`.
            options: Of the compiler.
            ptx: Give PTX and not machine code.

        Raises:
            YolactError: with the compiler's first error.
        """
        program = ctypes.c_void_p()
        texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(),
            len(headers), texts, names,
        )  # fmt: skip
        try:
            for expression in expressions:
                self._call("nvrtcAddNameExpression", program, expression.encode())
            words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            code = self._library.nvrtcCompileProgram(program, len(options), words)
            log = self._text("nvrtcGetProgramLog", program).decode(errors="replace").strip("\0\n")
            if code:
                lines = [line for line in log.splitlines() if "error" in line] or [self._error(code)]
                raise YolactError(lines[0].strip())
            lowered = {expression: self._lowered(program, expression) for expression in expressions}
            image = self._text("nvrtcGetPTX" if ptx else "nvrtcGetCUBIN", program)
            return Product(image.rstrip(b"\0") if ptx else image, lowered, log)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _lowered(self, program: ctypes.c_void_p, expression: str) -> str:
        name = ctypes.c_char_p()
        self._call("nvrtcGetLoweredName", program, expression.encode(), ctypes.byref(name))
        return (name.value or b"").decode()

    def _text(self, function: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(function + "Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(function, program, buffer)
        return buffer.raw[: size.value]

    def _error(self, code: int) -> str:
        return self._library.nvrtcGetErrorString(code).decode()

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            raise YolactError(f"{self.path}: {function} failed: {self._error(code)}")


@lru_cache
def load(path: Path) -> Nvrtc:
    """The NVRTC library `path`, loaded once."""
    return Nvrtc(path)


def choose(capability: tuple[int, int], newest_major: int | None = None) -> Nvrtc:
    """The newest installed NVRTC that compiles for `capability`.

    The environment variable `YOLACT_NVRTC` names one library file instead. Others that do not load are passed
    over.

    Args:
        capability: (major, minor).
        newest_major: CUDA version of the driver that is to load the result; it may not take what a newer
            compiler makes.

    Raises:
        UsageError: `YOLACT_NVRTC` is not a file.
        YolactError: none is installed, none knows the capability (names the package that does), or the one
            that `YOLACT_NVRTC` names does not load.
    """
    wanted = f"compute capability {_text(capability)}"
    package = "nvidia-cuda-nvrtc" if capability > _LAST_OF_12 else "nvidia-cuda-nvrtc-cu12"
    remedy = f"run: pip install -U {package}"
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise UsageError(f"{VARIABLE} is {named}, which is not a file; unset it or name libnvrtc.so.*")
        found = [load(Path(named))]
        remedy = f"unset {VARIABLE} or {remedy}"
    else:
        found = sorted(_loadable(installed()), key=lambda one: one.version, reverse=True)
    if newest_major is not None:
        found = [library for library in found if library.version[0] <= newest_major]
    if not found:
        raise YolactError(f"compiling kernels for {wanted} needs NVRTC, which is not installed; {remedy}")
    for library in found:
        if capability in library.architectures:
            return library
    have = "; ".join(
        f"{_text(one.version)} knows {_text(one.architectures[0])} to {_text(one.architectures[-1])}"
        for one in found
    )
    raise YolactError(f"no installed NVRTC compiles for {wanted} ({have}); {remedy}")


def installed() -> list[Path]:
    """NVRTC libraries in NVIDIA's wheels and CUDA toolkits (`$CUDA_PATH`, `$CUDA_HOME`, /usr/local/cuda*)."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    places = [folder for root in roots for folder in sorted(root.glob("*"))]
    places += [Path(os.environ[name]) for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    places += sorted(Path("/usr/local").glob("cuda*"))
    if sys.platform == "win32":
        patterns = ["bin/nvrtc64_*_0.dll", "bin/*/nvrtc64_*_0.dll"]
    else:
        patterns = ["lib/libnvrtc.so.[0-9]*", "lib64/libnvrtc.so.[0-9]*"]
    files = {path.resolve() for place in places for pattern in patterns for path in place.glob(pattern)}
    return sorted(files)


def _loadable(paths: Sequence[Path]) -> list[Nvrtc]:
    """The libraries that load."""
    found = []
    for path in paths:
        try:
            found.append(load(path))
        except YolactError as error:
            log.debug("passed over: %s", error)
    return found


def _is_shared(path: Path) -> bool:
    """Whether it is a library to load: toolkits have static ones beside it, wheels an alternative."""
    return "alt" not in path.name and (".so" in path.name or path.suffix == ".dll")


def _text(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"
