"""What a machine has: GPUs and libraries, each asked or imported in a child process."""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from yolact_bench.doctor.child import call
from yolact_bench.doctor.stage import FAILED, OK, SKIPPED, Figure, Outcome
from yolact_bench.measure.machine import read_text
from yolact_runtime.errors import first_line, missing_extra
from yolact_runtime.packages import PACKAGES, import_failure, installed

# Imported in this order in one process, and in a new one after each that crashes; the others of `PACKAGES`
# are only looked up.
PROBED = (
    *("numpy", "cv2", "pycocotools", "rich", "shtab", "onnxruntime", "openvino", "onnx", "psutil", "scipy"),
    *(
        "jinja2",
        "matplotlib",
        "av",
        "pyarrow",
        "tritonclient",
        "pynvml",
        "safetensors",
        "torch",
        "torchvision",
    ),
    *("onnxscript", "cuda", "pycuda", "tensorrt", "tensorrt_rtx"),
)
# Modules that load a package's shared libraries, where importing the package itself does not.
_LOADS = {"cuda": "cuda.bindings.driver", "pycuda": "pycuda.driver", "pycocotools": "pycocotools.mask"}
_LOADS |= {"onnx": "onnx.checker", "pynvml": "pynvml", "scipy": "scipy.stats"}
NOT_TRIED = "installed; its import was not tried"
_ON_GPU = ("cuda", "pycuda", "tensorrt", "tensorrt_rtx")
_IMPORT_SECONDS = 60.0
_GPU_SECONDS = 20.0
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@dataclass(frozen=True)
class Library:
    """A library: OK, FAILED if it is installed and does not load, SKIPPED if it is not installed.

    `name` is what it is imported by, and `version` is empty if it is not known.
    """

    name: str
    distribution: str
    state: str
    version: str = ""
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Gpu:
    """The GPUs: OK, FAILED if there is a driver that does not work, SKIPPED if there is none, or no GPU."""

    state: str
    driver: str = ""  # version of the driver
    cuda: str = ""  # newest version of CUDA that it supports
    devices: tuple[dict[str, Any], ...] = ()
    reason: str = ""
    remedy: str = ""


def probe_libraries(gpu: Gpu, names: Sequence[str] = PROBED) -> dict[str, Library]:
    """The state of each library by the name that it is imported by."""
    asked = [name for name in names if installed(name)]
    found = dict(_imported(asked, gpu))
    for name, (distribution, extras) in PACKAGES.items():
        if name in found:
            continue
        if installed(name):
            found[name] = Library(name, _distribution(name), OK, _version(name), NOT_TRIED)
        else:
            remedy = str(missing_extra("", extras[0])).rpartition("run: ")[2]
            found[name] = Library(name, distribution, SKIPPED, reason="not installed", remedy=remedy)
    return {name: found[name] for name in PACKAGES if name in found}


def _imported(names: Sequence[str], gpu: Gpu) -> Iterator[tuple[str, Library]]:
    """Import libraries in a child process, which begins again behind each that ends it."""
    left, without_numpy = list(names), False
    while left:
        ended = call("yolact_bench.doctor.facts:import_here", *left, seconds=_IMPORT_SECONDS)
        done: dict[str, str] = ended.value if isinstance(ended.value, dict) else {}
        for name, problem in done.items():
            yield name, _library(name, problem, gpu)
        left = left[len(done) :]
        if ended.late and done:  # all of them took long: the next one has not had its time
            continue
        if left:  # the first of them is the one that was being imported
            name, problem = left[0], ended.problem or "its import ended the process"
            guilty = "numpy" if without_numpy else _crashed(ended.output) or name
            without_numpy = guilty == "numpy"
            text = f"installed, but its import does not end well: {problem}"
            if guilty != name:
                text = f"installed, but {guilty}, which it needs, does not load: {problem}"
            yield name, _failed(name, text, _reinstall(guilty, problem))
            left = left[1:]


def import_here(*names: str, report: Callable[[Any], None]) -> dict[str, str]:
    """The child process: import libraries, and report after each why those so far do not load, or ""."""
    done: dict[str, str] = {}
    for name in names:
        done[name] = ""
        before = _printed_bytes()
        try:
            importlib.import_module(_LOADS.get(name, name))
        except Exception as error:
            done[name] = _problem(name, error, before)
        report(done)
    return done


def _library(name: str, problem: str, gpu: Gpu) -> Library:
    """What has been found out about a library by importing it; `problem` is why it does not load."""
    distribution = _distribution(name)
    if not problem:
        return Library(name, distribution, OK, _version(name))
    if name in _ON_GPU and gpu.state == SKIPPED:
        return Library(name, distribution, SKIPPED, _version(name), gpu.reason, gpu.remedy)
    guilty, _, why = problem.partition(": ")
    if guilty not in PACKAGES:
        text, run, command = problem.partition("; run: ")
        return _failed(name, text, command if run else _reinstall(name, problem))
    needed = "" if guilty == name else f" {guilty}, which it needs,"
    verb = " does not load" if needed else ", but does not load"
    return _failed(
        name, f"installed{', but' if needed else ''}{needed}{verb}: {why}", _reinstall(guilty, why)
    )


def _printed_bytes() -> int:
    """Bytes that this process has printed to standard error, if that is a file."""
    return os.fstat(2).st_size


def _problem(name: str, error: Exception, printed: int) -> str:
    """Why a library does not load: the package to blame and the reason, or an error that says what to do.

    Args:
        name: What was imported.
        error: What was raised.
        printed: Bytes that were printed before.
    """
    failure = import_failure(error, name)
    found = re.search(r" needs (\w+), which is installed but does not load ", str(failure or ""))
    if not found and failure:
        return str(failure)
    reason = str(error).strip() and first_line(error)
    if not reason:  # NumPy prints the reason and has no words in its exception
        with suppress(OSError):
            said = os.pread(2, 4000, printed).decode(errors="replace").split("\n\n")
            reason = next((" ".join(one.split())[:200] for one in said if one.strip()), "")
    kind = type(error).__name__
    return f"{found[1] if found else name}: {f'{kind}: {reason}' if reason else kind}"


def _crashed(output: str) -> str:
    """The package in whose module a process crashed, from the stack in its output; empty if unknown."""
    names = re.findall(
        r"File \"[^\"]*(?:site|dist)-packages/(\w+)", output.partition("Fatal Python error")[2]
    )
    return next((name for name in names if name in PACKAGES), "")


# Libraries of the system that wheels do not bring: part of an error, package for Debian and for Fedora.
_SYSTEM = {
    "libgomp.so": ("libgomp1", "libgomp"),
    "libGL.so": ("libgl1", "mesa-libGL"),
    "libgthread-2.0.so": ("libglib2.0-0", "glib2"),
    "libglib-2.0.so": ("libglib2.0-0", "glib2"),
    "libstdc++.so": ("libstdc++6", "libstdc++"),
}
_OF_NUMPY = ("numpy.core", "numpy.dtype", "_ARRAY_API", "NumPy 1.x", "module 'numpy'")


def _reinstall(name: str, problem: str) -> str:
    """What mends a package that does not load, by the reason."""
    distribution = _distribution(name)
    for library, (debian, fedora) in _SYSTEM.items():
        if library in problem and "cannot open" in problem:
            return f"apt install {debian} (Debian, Ubuntu) or dnf install {fedora} (Fedora)"
    if "SIGILL" in problem:
        return f"this CPU lacks an instruction that it uses: install another version of {distribution}"
    if any(words in problem for words in _OF_NUMPY):  # built for another NumPy: another version is needed
        return f"pip install --upgrade --no-cache-dir {distribution}"
    version = _version(name).partition("+")[0]
    damaged = any(
        words in problem for words in ("SIGBUS", "SIGSEGV", "too short", "ELF", "Header", "decompress")
    )
    if damaged and version:  # the same version, and nothing else: other packages may need it
        return f"pip install --force-reinstall --no-deps {distribution}=={version}"
    return f"pip install --force-reinstall {distribution}"


def _failed(name: str, reason: str, remedy: str) -> Library:
    return Library(name, _distribution(name), FAILED, _version(name), reason, remedy)


def _distribution(name: str) -> str:
    """The installed distribution that brings a package; that of `PACKAGES` if no other is known."""
    known = PACKAGES[name][0]
    if _of_distribution(known):
        return known
    return next(iter(_packages().get(name, [])), known)


def _packages() -> dict[str, list[str]]:
    global _cached
    if not _cached:
        _cached = dict(packages_distributions())
    return _cached


_cached: dict[str, list[str]] = {}


def _version(name: str) -> str:
    return _of_distribution(_distribution(name))


def _of_distribution(distribution: str) -> str:
    with suppress(PackageNotFoundError):
        return version(distribution) or ""
    return ""


def probe_gpu() -> Gpu:
    """The GPUs as their driver describes them, asked in a child process."""
    ended = call("yolact_bench.doctor.facts:gpu_here", seconds=_GPU_SECONDS)
    if ended.problem or not isinstance(ended.value, dict):
        remedy = "install NVIDIA's driver again, or start the machine again; see what nvidia-smi says"
        return Gpu(FAILED, _driver(), reason=f"the GPU's driver library: {ended.problem}", remedy=remedy)
    return Gpu(**{**ended.value, "devices": tuple(ended.value["devices"])})


def driver_outcome(gpu: Gpu) -> Outcome:
    """The GPUs as the outcome of a stage."""
    figures: dict[str, Figure] = {
        f"GPU {number}": device["name"] for number, device in enumerate(gpu.devices)
    }
    return Outcome(gpu.state, figures | ({"CUDA": gpu.cuda} if gpu.cuda else {}), gpu.reason, gpu.remedy)


def gpu_here(report: Any = None) -> dict[str, Any]:
    """The child process: the fields of `Gpu`."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    none: dict[str, Any] = {"state": SKIPPED, "driver": _driver(), "devices": []}
    if sys.platform == "darwin":  # NVIDIA has no driver for it
        return none | {"reason": "no NVIDIA GPU", "remedy": ""}
    try:
        driver = ctypes.CDLL(name)
    except OSError as error:
        return none | _no_library(name, str(error))
    try:
        code = driver.cuInit(0)
        if code == _NO_DEVICE:
            return none | {"reason": "the NVIDIA driver finds no GPU", "remedy": _remedy()}
        if code:
            reason = f"the GPU's driver failed in cuInit: error {code}"
            remedy = "see what nvidia-smi says; in a container, start it with --gpus all; update the driver"
            return none | {"state": FAILED, "reason": reason, "remedy": remedy}
        return none | _devices(driver)
    except AttributeError as error:  # a library of this name that is not the driver
        reason = f"{name} is not NVIDIA's driver library ({first_line(error)})"
        return none | {"state": FAILED, "reason": reason, "remedy": "install NVIDIA's driver again"}


def _no_library(name: str, error: str) -> dict[str, Any]:
    """What it means that the driver's library does not load."""
    if not any(words in error.lower() for words in ("no such file", "not find")):
        reason = f"the GPU's driver library does not load: {error[:200]}"
        return {"state": FAILED, "reason": reason, "remedy": "install NVIDIA's driver again"}
    if _driver() or Path("/dev/nvidiactl").exists():
        reason = f"there is an NVIDIA driver, but not its library {name}"
        return {"state": FAILED, "reason": reason, "remedy": _remedy()}
    if _has_card():
        remedy = "install NVIDIA's driver to use it: https://www.nvidia.com/drivers"
        return {"reason": "there is an NVIDIA GPU, but no driver for it", "remedy": remedy}
    return {"reason": "no NVIDIA GPU", "remedy": ""}


def _remedy() -> str:
    return "in a container, start it with --gpus all and NVIDIA's container toolkit; see what nvidia-smi says"


def _driver() -> str:
    """Version of the kernel's driver; empty if there is none."""
    match = re.search(
        r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", read_text(Path("/proc/driver/nvidia/version"))
    )
    return match[1] if match else ""


def _has_card() -> bool:
    """Whether the machine has a display or 3D controller by NVIDIA."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        if read_text(device / "vendor").strip() == "0x10de" and read_text(device / "class").startswith(
            "0x03"
        ):
            return True
    return False


def _devices(driver: ctypes.CDLL) -> dict[str, Any]:
    """Version of CUDA and the GPUs, from a driver that has been initialised."""
    count, number = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    driver.cuDeviceGetCount(ctypes.byref(count))
    devices = []
    for index in range(min(count.value, 64)):
        device, total, value = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), index)
        name = ctypes.create_string_buffer(256)
        driver.cuDeviceGetName(name, 256, device)
        attributes = []
        for attribute in (75, 76, 16):  # capability, major and minor; multiprocessors
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            attributes.append(value.value)
        driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)
        devices.append(
            {
                "name": name.value.decode(errors="replace"),
                "capability": f"{attributes[0]}.{attributes[1]}",
                "multiprocessors": attributes[2],
                "memory_gib": round(total.value / 2**30, 1),
            }
        )
    cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
    if not devices:
        return {"cuda": cuda, "reason": "the NVIDIA driver finds no GPU", "remedy": _remedy()}
    return {"state": OK, "cuda": cuda, "devices": devices, "driver": _driver() or _nvml_driver()}


def _nvml_driver() -> str:
    """Version of the driver from NVIDIA's management library; empty if that is not installed."""
    with suppress(Exception):
        from yolact_bench.measure.nvml import open_nvml

        if nvml := open_nvml():
            text = str(nvml.describe()["driver"])
            nvml.close()
            return text
    return ""
