"""The options of an engine build, in Python and on the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from yolact_runtime.errors import UsageError

CAPABILITIES = ("6.1", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0", "12.1")


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine; its precision and batch are those of the ONNX file.

    Attributes:
        backend: "trt" for TensorRT, "rtx" for TensorRT-RTX, "auto" to choose for this machine.
        capabilities: Compute capabilities to build for; empty for this machine's GPU, or without one for
            TensorRT-RTX's default.
        workspace_mib: Limit of scratch memory in MiB; None for the library's default.
        opt_batch: Number of images to optimise for; None for the largest batch.
        timing_cache: File of measured times; None for one per library version and device in the cache folder.
        plugin: Add detection by the runtime's kernels as plugins; the ONNX file returns raw heads.
        tf32: Let float32 convolutions round to TensorFloat-32.
        hardware_compatible: Build for every capability from 8.0 (TensorRT).
        version_compatible: Build for later versions of the same major version (TensorRT).
        allow_fallback: Accept a different precision than the ONNX file's, or one that is not faster.
    """

    backend: str = "auto"
    capabilities: tuple[str, ...] = ()
    workspace_mib: int | None = None
    opt_batch: int | None = None
    timing_cache: Path | None = None
    plugin: bool = False
    tf32: bool = False
    hardware_compatible: bool = False
    version_compatible: bool = False
    allow_fallback: bool = False

    def __post_init__(self) -> None:
        for option, number in (("--workspace", self.workspace_mib), ("--opt-batch", self.opt_batch)):
            if number is not None and number < 1:
                raise UsageError(f"{option} {number}; allowed: 1 or more")
        for value in self.capabilities:
            if value not in CAPABILITIES:
                raise UsageError(f"--device-capability {value}; allowed: {', '.join(CAPABILITIES)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `--to trt`."""
    add = parser.add_argument_group("engines (--to trt)").add_argument
    backend = "trt: TensorRT, on the GPU that the engine is for; rtx: TensorRT-RTX, without a GPU"
    add("--backend", choices=["auto", "trt", "rtx"], default="auto", help=backend)
    capability = f"compute capability to build for ({', '.join(CAPABILITIES)}); can be repeated"
    add("--device-capability", action="append", choices=CAPABILITIES, metavar="X.Y", help=capability)
    add("--workspace", type=int, metavar="MiB", help="limit scratch memory")
    add("--opt-batch", type=int, metavar="N", help="optimise a dynamic batch for N images")
    add("--timing-cache", type=Path, metavar="FILE", help="file of measured times, reused by later builds")
    add("--tf32", action="store_true", help="let float32 convolutions round to TensorFloat-32")
    hardware = "run on every GPU from capability 8.0 (TensorRT)"
    add("--hardware-compatible", action="store_true", help=hardware)
    add("--version-compatible", action="store_true", help="run on later versions of the same major version")


def from_arguments(args: argparse.Namespace) -> BuildOptions:
    """Build options from a parser with `add_arguments`, `--detect` and `--allow-fallback`."""
    same = ("backend", "opt_batch", "timing_cache", "tf32", "hardware_compatible", "version_compatible")
    return BuildOptions(
        capabilities=tuple(dict.fromkeys(args.device_capability or ())),
        workspace_mib=args.workspace,
        plugin=args.detect == "plugin",
        **{name: getattr(args, name) for name in (*same, "allow_fallback")},
    )
