"""What the times were taken on."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from yolact_bench.nvml import open_nvml
from yolact_runtime.engines.threads import usable_cores

_PACKAGES = (
    "yolact",
    "numpy",
    "opencv-python-headless",
    "pycocotools",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "torchvision",
    "ultralytics",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "pycuda",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-nvrtc-cu12",
)


def describe_machine() -> dict[str, Any]:
    """Processor, usable cores, memory, GPU, operating system, and versions of the installed libraries."""
    nvml = open_nvml()
    gpu = None
    if nvml is not None:
        gpu = nvml.describe()
        nvml.close()
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gib": _memory(),
        "gpu": gpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def cpu_model() -> str:
    """The processor's name, as far as the system says it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def peak_memory() -> float | None:
    """The most memory this process has had resident, in MiB; None where the system does not say."""
    try:
        # A process started by another inherits that one's peak in getrusage; this field starts afresh.
        match = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if match:
            return int(match[1]) / 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def _memory() -> float | None:
    """Of the host, in GiB."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
