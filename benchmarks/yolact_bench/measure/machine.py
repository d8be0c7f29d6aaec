"""What the times were measured on."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from yolact_bench.measure.nvml import open_nvml
from yolact_runtime.engines.cpu import cpu_flags
from yolact_runtime.engines.threads import usable_cores

_PACKAGES = (
    *("yolact", "numpy", "opencv-python-headless", "pycocotools", "onnxruntime", "onnxruntime-gpu"),
    *("openvino", "torch", "torchvision", "ultralytics", "tensorrt", "tensorrt-rtx-cu13", "pycuda"),
    *("cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"),
)
# What decides how fast a CPU computes this project's networks.
_FEATURES = (
    *("sse4_1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve"),
)


def describe_machine() -> dict[str, Any]:
    """What `machine` says, with the GPU and the versions of the installed libraries."""
    gpu = None
    if nvml := open_nvml():
        gpu = nvml.describe()
        nvml.close()
    versions = {name: found for name in _PACKAGES if (found := _version(name))}
    return {**machine(), "gpu": gpu, "versions": versions}


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system, without what names the user or the host."""
    physical, available = _memory()
    return {
        "cpu": cpu_model(),
        "cpu_features": [name for name in _FEATURES if name in cpu_flags()],
        "cores": usable_cores(),
        "logical_cpus": os.cpu_count() or 1,
        "cpu_quota": _cgroup("cpu.max"),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "memory_gib": physical,
        "memory_available_gib": available,
        "memory_limit_gib": _gib(_cgroup("memory.max")),
        "temporary_free_gib": _free(),
        "system": _system(),
        "python": platform.python_version(),
        "threads_variables": {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
            if re.fullmatch(r"\d{1,6}", os.environ.get(name, ""))
        },
    }


def _system() -> str:
    """Name, version and C library of the system; not the kernel's build, which may name who runs the host."""
    version = ".".join(platform.release().split(".")[:2])
    return " ".join([platform.system(), version, platform.machine(), *platform.libc_ver()]).strip()


def _memory() -> tuple[float | None, float | None]:
    """GiB of memory, and those that are free or can be freed."""
    found = dict(
        re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", read_text(Path("/proc/meminfo")), re.MULTILINE)
    )
    if not found:
        with contextlib.suppress(Exception):
            import psutil

            memory = psutil.virtual_memory()
            return round(memory.total / 2**30, 1), round(memory.available / 2**30, 1)
    total, free = (found.get(name) for name in ("MemTotal", "MemAvailable"))
    return tuple(round(int(text) / 2**20, 1) if text else None for text in (total, free))  # type: ignore[return-value]


def _cgroup(name: str) -> str:
    """A limit of this container; empty if there is none."""
    text = read_text(Path("/sys/fs/cgroup") / name).strip()
    return "" if text.startswith("max") else text


def _gib(text: str) -> float | None:
    return round(int(text) / 2**30, 1) if text.isdigit() else None


def _free() -> float | None:
    with contextlib.suppress(OSError):
        return round(shutil.disk_usage(tempfile.gettempdir()).free / 2**30, 1)
    return None


def read_text(path: Path) -> str:
    """A file of the system as text; empty if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def cpu_model() -> str:
    """The processor's name, if the system reports one; psutil does not."""
    match = re.search(r"^model name\s*:\s*(.+)$", read_text(Path("/proc/cpuinfo")), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return None
