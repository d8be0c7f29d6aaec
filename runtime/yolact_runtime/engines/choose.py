"""The choice of a backend for an ONNX file if the user names none."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys

from yolact_runtime.engines.backends import IN_BF16
from yolact_runtime.engines.cpu import cpu_flags
from yolact_runtime.errors import YolactError


def cuda_may_load() -> bool:
    """Whether CUDA is worth a try: there is a driver, and ONNX Runtime is built for CUDA."""
    try:
        # First, because it is fast and decides on most machines; an attempt that must fail takes seconds.
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        import onnxruntime
    except (OSError, ImportError):
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def choose_for_cpu(delivered: str, asked: str | None = None) -> tuple[str, str]:
    """The fastest backend for an ONNX file on this CPU as measured (docs/how-to/deploy-cpu.md), and why.

    Args:
        delivered: Precision of the file; empty where it is not known.
        asked: The precision that the user wants, if any. bf16 is never chosen otherwise.
    """
    if asked in IN_BF16:
        return "openvino", "only it computes in bf16"
    if importlib.util.find_spec("openvino") is None:
        return "onnxruntime", "OpenVINO is not installed"
    if delivered == "int8":
        return "openvino", "faster than ONNX Runtime in int8"
    if delivered in ("fp32", "fp16") and _cpu_has_bf16():
        return "openvino", "faster than ONNX Runtime on CPUs with AVX-512 and bf16"
    return "onnxruntime", "no backend is known to be faster on this CPU"


def _cpu_has_bf16() -> bool:
    """Whether OpenVINO computes in bf16 on this CPU."""
    flags = cpu_flags()
    if flags and not flags & {"avx512f", "avx_ne_convert"}:
        return False  # OpenVINO's own condition; loading it only to ask takes 0.2 s
    try:
        core = importlib.import_module("yolact_runtime.engines.openvino").shared_core()
    except YolactError:
        return False
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
