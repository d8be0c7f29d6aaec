"""Chooses the library and the GPU to build for, and refuses impossible choices before any work."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass

from yolact_export.trt.builder import known_capabilities
from yolact_export.trt.options import BuildOptions
from yolact_runtime.cuda.gpu import Gpu, current_gpu
from yolact_runtime.engines.tensorrt.record import LIBRARIES, TITLES
from yolact_runtime.errors import UsageError, YolactError

log = logging.getLogger(__name__)

RTX = LIBRARIES["rtx"]


@dataclass(frozen=True)
class Target:
    """The library and the GPUs of a build.

    Attributes:
        library: "tensorrt" or "tensorrt_rtx".
        capabilities: Compute capabilities to build for; empty for TensorRT-RTX's default, 8.0 and later.
        gpu: The GPU of this machine, if any.
    """

    library: str
    capabilities: tuple[str, ...]
    gpu: Gpu | None

    @property
    def title(self) -> str:
        """The library's name in messages."""
        return TITLES[self.library]


def choose_target(options: BuildOptions, precision: str) -> Target:
    """Choose the library and the compute capabilities.

    Args:
        options: The user's options.
        precision: "fp32", "fp16" or "int8".

    Raises:
        UsageError: the options contradict each other, or the precision is no faster on that GPU.
        YolactError: no suitable library is installed, or it does not load.
    """
    gpu = current_gpu()
    library = _choose_library(options, gpu)
    capabilities = options.capabilities
    if library == RTX:
        _check_rtx(options)
        if not capabilities and gpu is not None and gpu.capability == "7.5":
            capabilities = ("7.5",)  # the default, 8.0 and later, would not run on this GPU
    else:
        if gpu is None:
            raise YolactError(
                "TensorRT builds on the GPU that the engine is for, and none was found; build there, or ahead"
                " of time with --backend rtx"
            )
        if capabilities and capabilities != (gpu.capability,):
            raise UsageError(
                f"--device-capability {', '.join(capabilities)}: TensorRT builds for the GPU it runs on"
                f" ({gpu.name}, {gpu.capability}); leave it out, build there, or use --backend rtx"
            )
        capabilities = (gpu.capability,)
    if precision == "fp16":
        _check_half(capabilities, options.allow_fallback)
    return Target(library, capabilities, gpu)


def _choose_library(options: BuildOptions, gpu: Gpu | None) -> str:
    """The first suitable library that is installed."""
    # Without a GPU, or for another one, only RTX can build; otherwise TensorRT's engines are faster.
    other = bool(options.capabilities) and (gpu is None or options.capabilities != (gpu.capability,))
    order = ["rtx", "trt"] if gpu is None or other else ["trt", "rtx"]
    if options.backend == "auto" and "6.1" in options.capabilities:
        order = ["trt"]
    allowed = order if options.backend == "auto" else [options.backend]
    for short in allowed:
        if importlib.util.find_spec(LIBRARIES[short]) is not None:
            return LIBRARIES[short]
    names = " or ".join(TITLES[LIBRARIES[short]] for short in allowed)
    ways = " or ".join(f'pip install "yolact[{short}]"' for short in allowed)
    raise YolactError(f"--to trt needs {names}, and it is not installed; run: {ways}")


def _check_rtx(options: BuildOptions) -> None:
    """Refuse options that TensorRT-RTX does not support."""
    if "6.1" in options.capabilities:
        raise UsageError(
            "TensorRT-RTX does not build for capability 6.1; a GTX 1080 Ti needs TensorRT 8.6 on that machine"
            " (--backend trt)"
        )
    if options.capabilities:
        known = _rtx_capabilities()
        if unknown := [value for value in options.capabilities if value not in known]:
            raise UsageError(
                f"--device-capability {', '.join(unknown)}: this TensorRT-RTX builds for {', '.join(known)}"
            )
    if options.plugin:
        raise UsageError("TensorRT-RTX has no plugins; use --detect runtime, or --detect native")
    if options.hardware_compatible:
        raise UsageError(
            "--hardware-compatible is an option of TensorRT; TensorRT-RTX engines run on 8.0 and later unless"
            " --device-capability narrows that"
        )
    if options.version_compatible:
        raise UsageError(
            "--version-compatible is an option of TensorRT; TensorRT-RTX supports it only with a GPU"
        )


def _rtx_capabilities() -> tuple[str, ...]:
    """The compute capabilities that the installed TensorRT-RTX builds for."""
    try:
        return known_capabilities(importlib.import_module(RTX))
    except (ImportError, OSError) as error:
        raise YolactError(f"{RTX} does not load: {error}") from error


def _check_half(capabilities: tuple[str, ...], allowed: bool) -> None:
    """Refuse fp16 on a GPU where it is slow, or warn if the user accepts that."""
    if "6.1" not in capabilities:
        return
    text = (
        "capability 6.1 (GTX 1080 Ti) computes in half precision at 1/64 of the rate of float32: fp16 is not"
        " faster there"
    )
    if not allowed:
        raise UsageError(f"{text}; use --precision int8, which is, or build it anyway with --allow-fallback")
    log.warning("%s, int8 is", text)
