"""The table of backends: the libraries that run exported files.

Other files, such as checkpoints, have one engine each, found by entry point (`yolact_runtime.engines.load`).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from yolact_runtime.errors import UsageError

# "int8+bf16": the floating-point part of an int8 file is computed in bf16.
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8+bf16")
# The precision of an engine whose library does not say what it computes in.
UNKNOWN = "unknown"
# Precisions that OpenVINO computes a file of another precision in, on CPUs with bf16 units.
IN_BF16 = {"bf16": "fp32", "int8+bf16": "int8"}


@dataclass(frozen=True)
class Backend:
    """A library that runs exported files.

    Attributes:
        opener: "module:attribute", imported when needed; called with the path, and options by parameter name.
        suffixes: Suffixes of the files it opens, without the dot.
        extra: The extra of this project that installs it; empty if the base install does.
    """

    opener: str
    suffixes: tuple[str, ...]
    extra: str = ""


# Keys are the values of `--backend`.
BACKENDS = {
    "onnxruntime": Backend("yolact_runtime.engines.onnxruntime:OnnxRuntimeEngine", ("onnx",)),
    "openvino": Backend("yolact_runtime.engines.openvino:OpenVinoEngine", ("onnx", "xml"), "openvino"),
    "cuda": Backend("yolact_runtime.engines.onnxruntime_cuda:open_on_cuda", ("onnx",)),
    "tensorrt": Backend(
        "yolact_runtime.engines.tensorrt.open:open_engine", ("engine", "plan", "onnx"), "trt"
    ),
}
SUFFIXES = tuple(dict.fromkeys(suffix for backend in BACKENDS.values() for suffix in backend.suffixes))


def backends_of(suffix: str) -> list[str]:
    """Names of the backends that open files of a suffix (without the dot)."""
    return [name for name, backend in BACKENDS.items() if suffix in backend.suffixes]


def check_backend(backend: str, file: Path) -> None:
    """Raise a UsageError if there is no such backend, or it does not open such files."""
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r}; allowed: {', '.join(BACKENDS)}")
    suffix = file.suffix.lower().removeprefix(".")
    opens = BACKENDS[backend].suffixes
    if suffix in opens:
        return
    others = backends_of(suffix)
    if others:
        remedy = f"for .{suffix} use --backend {' or '.join(others)}"
    else:
        export = shlex.join(["yolact-export", "--weights", str(file), "--to", "onnx"])
        remedy = f"leave --backend out, or export it: {export}"
    raise UsageError(
        f"engine {file}: backend {backend} opens {', '.join('.' + name for name in opens)} files; {remedy}"
    )
