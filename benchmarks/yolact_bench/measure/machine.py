"""What the times were measured on."""

from __future__ import annotations

import contextlib
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from yolact_bench.measure.nvml import open_nvml
from yolact_runtime.engines.threads import usable_cores

_PACKAGES = (
    *("yolact", "numpy", "opencv-python-headless", "pycocotools", "onnxruntime", "onnxruntime-gpu"),
    *("openvino", "torch", "torchvision", "ultralytics", "tensorrt", "tensorrt-rtx-cu13", "pycuda"),
    *("cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"),
)


def describe_machine() -> dict[str, Any]:
    """Processor, usable cores, memory, GPU, operating system, and versions of the installed libraries."""
    import psutil

    gpu = None
    if nvml := open_nvml():
        gpu = nvml.describe()
        nvml.close()
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def cpu_model() -> str:
    """The processor's name, if the system reports one; psutil does not."""
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return None
