"""Which GPU this machine has, and calls to its driver through cuda-bindings.

pycuda does everything else. Machines that only export engines have cuda-bindings, which is a wheel, but often
not pycuda, which pip has to compile.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from yolact_runtime.errors import DeviceError, device_failure, first_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: The driver's name for it.
        capability: Compute capability, such as "8.6".
        cuda: Newest CUDA version that the driver supports, such as "12.8".
    """

    name: str
    capability: str
    cuda: str


def current_gpu() -> Gpu | None:
    """The first visible GPU; None without a GPU, its driver or the package cuda-bindings."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    attributes = driver.CUdevice_attribute
    try:
        driver_call("cuInit", 0)
        device = driver_call("cuDeviceGet", 0)
        prefix = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_"
        major, minor = (
            driver_call("cuDeviceGetAttribute", getattr(attributes, prefix + part), device)
            for part in ("MAJOR", "MINOR")
        )
        name = driver_call("cuDeviceGetName", 128, device).split(b"\0")[0].decode()
        version = driver_call("cuDriverGetVersion")
    except DeviceError as error:  # no driver library, or no device
        log.debug("no GPU: %s", error)
        return None
    return Gpu(name, f"{major}.{minor}", f"{version // 1000}.{version % 1000 // 10}")


def only_the_first(number: int, option: str) -> str:
    """Why kernels cannot run on the GPU `number`, and how to make it the first visible one.

    The numbers of a program are positions in CUDA_VISIBLE_DEVICES, if that is set.

    Args:
        number: Of the GPU, from 1 on.
        option: The option that takes the first visible GPU, such as "--device cuda".
    """
    reason = "the kernels run on the first visible GPU only"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    entries = [str(number)] * (number + 1) if visible is None else [one.strip() for one in visible.split(",")]
    # CUDA sees none of those from an invalid entry on.
    end = next((place for place, entry in enumerate(entries) if entry in ("", "-1")), len(entries))
    if number < end:
        first = f"set CUDA_VISIBLE_DEVICES={entries[number]}"
        return f"{reason}; to make this one the first, {first} and use {option}"
    return (
        f"{reason}; CUDA_VISIBLE_DEVICES is {visible!r}, in which there is no GPU {number}: set it to the"
        f" number or the UUID of the wanted one (nvidia-smi -L), and use {option}"
    )


def driver_call(name: str, *arguments: Any, at: str = "") -> Any:
    """Call a driver function through cuda-bindings; returns its value, or None if it has none.

    Args:
        name: Name of the function.
        arguments: Its arguments.
        at: What the call is for, for the error message.

    Raises:
        DeviceError: the call failed; names the function and the driver's error.
        ImportError: cuda-bindings is not installed.
    """
    from cuda.bindings import driver

    try:
        status, *values = getattr(driver, name)(*arguments)
    except RuntimeError as error:  # the driver does not have the function
        raise device_failure("the GPU's driver", name, first_line(error), at) from error
    if int(status) != 0:
        raise device_failure("the GPU's driver", name, str(getattr(status, "name", status)), at)
    return values[0] if values else None
