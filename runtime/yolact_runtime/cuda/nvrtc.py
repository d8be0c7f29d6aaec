"""NVIDIA's run-time compiler (NVRTC): find it and call it.

One process may need two major versions: NVRTC 13 no longer supports the GTX 10 series, and PyTorch has 13.
cuda-bindings loads only one of them, so this calls the C interface, which has been stable since CUDA 11.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from yolact_runtime.errors import UsageError, YolactError

log = logging.getLogger(__name__)

VARIABLE = "YOLACT_NVRTC"
# CUDA 12 supports compute capability 5.0 to 12.0, CUDA 13 only 7.5 and later.
_LAST_OF_12 = (12, 0)


class Nvrtc:
    """One NVRTC library.

    Attributes:
        path: The library file.
        version: (major, minor).
        architectures: Compute capabilities that it supports, ascending; 8.6 is (8, 6).
    """

    def __init__(self, path: Path) -> None:
        """Load the library `path`.

        Raises:
            YolactError: it cannot be loaded or is not NVRTC.
        """
        self.path = path
        try:
            # NVRTC loads it by name; the wheels' NVRTC only finds it if it is in memory already.
            for builtins in sorted(path.parent.glob("*nvrtc-builtins*")):
                if _is_shared(builtins):
                    ctypes.CDLL(str(builtins))
            self._library = ctypes.CDLL(str(path))
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            raise YolactError(f"{path} is not an NVRTC library that can be loaded: {error}") from error
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
            YolactError: the headers are not installed; names their package.
        """
        # Toolkits and the wheels of CUDA 13 have both in one folder, the wheels of CUDA 12 in separate ones.
        root = self.path.resolve().parent.parent
        for folder in (root / "include", root.parent / "include", root.parent / "cuda_runtime" / "include"):
            if (folder / "cuda_fp16.h").is_file():
                return folder
        package = "nvidia-cuda-runtime-cu12" if self.version[0] <= 12 else "nvidia-cuda-runtime"
        raise YolactError(f"{self.path} has no header cuda_fp16.h; run: pip install {package}")

    def compile(
        self,
        name: str,
        source: str,
        headers: Mapping[str, str],
        expressions: Sequence[str],
        options: Sequence[str],
        ptx: bool,
    ) -> tuple[bytes, dict[str, str], str]:
        """Compile CUDA C++.

        Args:
            name: Name of the source, for messages.
            source: Its text.
            headers: Texts of headers by name; others are in include folders.
            expressions: Kernels, such as `resize<float>`.
            options: Compiler options.
            ptx: Return PTX instead of machine code (cubin).

        Returns:
            The code, the name in it of each expression, and the compiler's log.

        Raises:
            YolactError: the source has an error; has the compiler's first message.
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
            return image.rstrip(b"\0") if ptx else image, lowered, log
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


def choose(
    capability: tuple[int, int], newest_major: int | None = None, newest_minor: int | None = None
) -> Nvrtc:
    """The newest installed NVRTC that supports `capability`; libraries that do not load are skipped.

    The environment variable `YOLACT_NVRTC` names one library file to use instead.

    Args:
        capability: (major, minor).
        newest_major: CUDA major of the driver that will load the code: it may not support newer compilers.
        newest_minor: Its minor version, for PTX: within a major, a driver loads the machine code of newer
            compilers, but not their PTX.

    Raises:
        UsageError: `YOLACT_NVRTC` is not a file.
        YolactError: none is installed, none supports the capability (names the package that does), or the
            one that `YOLACT_NVRTC` names does not load.
    """
    target = f"compute capability {_text(capability)}"
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
        newest = (newest_major,) if newest_minor is None else (newest_major, newest_minor)
        suited = [library for library in found if library.version[: len(newest)] <= newest]
        if newest_minor is not None and found and not suited:
            package = "nvidia-cuda-nvrtc" + (f"-cu{newest_major}" if newest_major < 13 else "")
            remedy = f'run: pip install "{package}=={newest_major}.{newest_minor}.*", or update the driver'
            oldest = _text(found[-1].version)
            raise YolactError(
                f"compiling PTX for {target}: the driver supports CUDA {_text((newest_major, newest_minor))},"
                f" and the oldest installed NVRTC is {oldest}; {remedy}"
            )
        found = suited
    if not found:
        raise YolactError(f"compiling kernels for {target} needs NVRTC, which is not installed; {remedy}")
    for library in found:
        if capability in library.architectures:
            return library
    have = "; ".join(
        f"{_text(one.version)} supports {_text(one.architectures[0])} to {_text(one.architectures[-1])}"
        for one in found
    )
    raise YolactError(f"no installed NVRTC compiles for {target} ({have}); {remedy}")


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
            log.debug("skipped: %s", error)
    return found


def _is_shared(path: Path) -> bool:
    """Whether to load it: toolkits also have static libraries, wheels an alternative one."""
    return "alt" not in path.name and (".so" in path.name or path.suffix == ".dll")


def _text(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"
