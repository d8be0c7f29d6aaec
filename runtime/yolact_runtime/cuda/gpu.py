"""Which GPU this machine has, asked of the driver alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: As the driver calls it.
        capability: Compute capability, such as "8.6".
        cuda: Newest CUDA version that the driver runs, such as "12.8".
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
    try:
        _call(driver.cuInit(0))
        device = _call(driver.cuDeviceGet(0))
        attribute = driver.CUdevice_attribute
        parts = [
            _call(driver.cuDeviceGetAttribute(getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{part}"), device))
            for part in ("COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR")
        ]
        name = _call(driver.cuDeviceGetName(128, device)).split(b"\0")[0].decode()
        version = _call(driver.cuDriverGetVersion())
    except RuntimeError as error:  # no driver library, or no device
        log.debug("no GPU: %s", error)
        return None
    return Gpu(name, "{}.{}".format(*parts), f"{version // 1000}.{version % 1000 // 10}")


def _call(answer: tuple[Any, ...]) -> Any:
    """The value of a driver call's (status, value); RuntimeError where the status is not success."""
    if int(answer[0]) != 0:
        raise RuntimeError(str(answer[0]))
    return answer[1] if len(answer) > 1 else None
