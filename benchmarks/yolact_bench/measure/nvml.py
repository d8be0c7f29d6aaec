"""What NVIDIA's management library reports of a GPU while it works."""

from __future__ import annotations

import logging
import os
from typing import Any

log = logging.getLogger(__name__)

# Reasons for lower clocks that are worth a warning: not idling, a display, or clocks set by the user.
THROTTLES = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "too hot (software)",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}


class Nvml:
    """The GPU that CUDA would use first; `open_nvml` returns None where there is none."""

    def __init__(self, library: Any) -> None:
        self._nvml = library
        library.nvmlInit()
        try:
            # NVML numbers all GPUs; CUDA those that this variable lists, in its order.
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
            if visible.startswith("GPU-"):
                self._device = library.nvmlDeviceGetHandleByUUID(visible)
            else:
                self._device = library.nvmlDeviceGetHandleByIndex(int(visible) if visible.isdigit() else 0)
            self._driver = library.nvmlSystemGetDriverVersion()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the library."""
        self._nvml.nvmlShutdown()

    def describe(self) -> dict[str, Any]:
        """Name, driver, memory in MiB and power limit in watts; None for what it does not report."""
        return {
            "name": self._ask("Name"),
            "driver": self._driver,
            "memory_mib": self._ask("MemoryInfo", field="total", scale=2**-20),
            "power_limit_w": self._ask("EnforcedPowerLimit", scale=1e-3),
            "max_sm_mhz": self._ask("MaxClockInfo", self._nvml.NVML_CLOCK_SM),
        }

    def memory_used(self) -> float | None:
        """MiB in use on the GPU by all processes."""
        return self._ask("MemoryInfo", field="used", scale=2**-20)

    def sample(self) -> dict[str, Any]:
        """Clocks in MHz, temperature in °C, power in W, MiB in use, reasons for throttling; None: unknown."""
        reasons = self._ask("CurrentClocksThrottleReasons")
        words = None if reasons is None else [word for bit, word in THROTTLES.items() if reasons & bit]
        return {
            "sm_mhz": self._ask("ClockInfo", self._nvml.NVML_CLOCK_SM),
            "memory_mhz": self._ask("ClockInfo", self._nvml.NVML_CLOCK_MEM),
            "temperature": self._ask("Temperature", self._nvml.NVML_TEMPERATURE_GPU),
            "power_w": self._ask("PowerUsage", scale=1e-3),
            "memory_mib": self.memory_used(),
            "throttled": words,
        }

    def _ask(self, name: str, *arguments: int, field: str = "", scale: float | None = None) -> Any:
        """An answer, rounded to 0.1 if `scale` is given; None if the GPU or driver has none."""
        try:
            answer = getattr(self._nvml, f"nvmlDeviceGet{name}")(self._device, *arguments)
        except self._nvml.NVMLError:
            return None
        answer = getattr(answer, field) if field else answer
        return answer if scale is None else round(answer * scale, 1)


def open_nvml() -> Nvml | None:
    """The library and its first GPU; None without a GPU or the package nvidia-ml-py."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "-1":
        return None
    try:
        import pynvml

        return Nvml(pynvml)
    except ImportError:
        return None
    except pynvml.NVMLError as error:
        log.debug("no NVML: %s", error)
        return None
