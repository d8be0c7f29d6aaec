"""Compile kernels for a GPU: NVRTC with a cache on disk."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_runtime.cache import Cache
from yolact_runtime.cuda import nvrtc
from yolact_runtime.errors import UsageError

SOURCES = Path(__file__).parent / "kernels"
_OPTIONS = ("-std=c++17", "-lineinfo", "--ptxas-options=-v")
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_CUDA_HEADERS = ("cuda_fp16.h", "cuda_fp16.hpp")
_CACHE = Cache("kernels", "compiled kernels", "compiling again")


@dataclass(frozen=True)
class Module:
    """Compiled kernels, ready for the driver to load.

    Attributes:
        image: Machine code (cubin) or PTX text.
        names: The name in `image` of each kernel.
        log: The compiler's messages, with registers and memory of each kernel.
        capability: The compute capability it was compiled for.
        compiler: Version of NVRTC, (major, minor).
    """

    image: bytes
    names: Mapping[str, str]
    log: str
    capability: tuple[int, int]
    compiler: tuple[int, int]


def parse_capability(text: str) -> tuple[int, int]:
    """ "8.6" to (8, 6).

    Raises:
        UsageError: it does not have that form.
    """
    if not re.fullmatch(r"\d{1,2}\.\d", text):
        raise UsageError(
            f"compute capability {text!r} is not of the form 8.6; see nvidia-smi --query-gpu=compute_cap"
        )
    major, minor = text.split(".")
    return int(major), int(minor)


def compile_kernels(
    source: str,
    expressions: Sequence[str],
    capability: tuple[int, int],
    ptx: bool = False,
    library: nvrtc.Nvrtc | None = None,
    folder: Path = SOURCES,
) -> Module:
    """Compile kernels of one source file, or take them from the cache.

    The cache is the folder `kernels` in the cache folder. Its key is all that the result depends on: source,
    headers, options, capability and compiler. Entries that are damaged, or that somebody else may have
    written, are compiled again, and a cache that cannot be written is not used.

    Args:
        source: Name of a file in `folder`.
        expressions: Kernels with their template arguments, such as `resize<float>`.
        capability: The GPU's. Machine code also runs on GPUs of the same major and a higher minor, PTX on all
            higher ones.
        ptx: Compile to PTX instead of machine code.
        library: The compiler; by default the newest installed one that supports the capability.
        folder: Folder of the sources.

    Raises:
        YolactError: no compiler for this capability is installed, or the source has an error.
    """
    library = library or nvrtc.choose(capability)
    text, headers = _read(folder / source)
    include = library.include
    names = tuple(sorted(set(expressions)))
    major, minor = capability
    options = (*_OPTIONS, f"-arch={'compute' if ptx else 'sm'}_{major}{minor}")
    parts = [source, text, headers, names, options, ptx, library.version]
    parts += [hashlib.sha256((include / name).read_bytes()).hexdigest() for name in _CUDA_HEADERS]
    label = f"{Path(source).stem}-sm{major}{minor}"
    kept = _CACHE.read(label, parts, lambda entry: _from_entry(entry, names))
    if kept is None:
        kept = library.compile(source, text, headers, names, (*options, f"-I{include}"), ptx)
        image, entries, messages = kept
        encoded = base64.b64encode(image).decode()
        _CACHE.write(label, parts, {"image": encoded, "names": entries, "log": messages})
    return Module(*kept, capability, library.version)


def _read(source: Path) -> tuple[str, dict[str, str]]:
    """The text of a source, and of each of our headers that it includes, directly or not."""
    text = source.read_text(encoding="utf-8")
    headers: dict[str, str] = {}
    waiting = _INCLUDE.findall(text)
    while waiting:
        name = waiting.pop()
        # A header that is not there belongs to another compiler, or NVRTC reports it.
        if name not in headers and (source.parent / name).is_file():
            headers[name] = (source.parent / name).read_text(encoding="utf-8")
            waiting += _INCLUDE.findall(headers[name])
    return text, dict(sorted(headers.items()))


def _from_entry(entry: Any, names: Sequence[str]) -> tuple[bytes, dict[str, str], str]:
    """Code, names and log of a cache entry; a ValueError if it has not all of these kernels."""
    image, found, log = base64.b64decode(entry["image"], validate=True), entry["names"], entry["log"]
    texts = all(isinstance(text, str) for text in [*found.values(), log])
    if not image or sorted(found) != list(names) or not texts:
        raise ValueError("it has other kernels")
    return image, found, log
