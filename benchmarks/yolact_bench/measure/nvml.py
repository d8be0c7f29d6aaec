"""What NVIDIA's management library reports of a GPU while it works."""

from __future__ import annotations

import logging
import os
from typing import Any

log = logging.getLogger(__name__)

# Reasons for lower clocks that are worth a warning: not idling, a display, or clocks set by the user.
THROTTLES = {
    0x0000000000000004: "power cap",
    0x0000000000000008: "hardware slowdown",
    0x0000000000000020: "too hot (software)",
    0x0000000000000040: "too hot (hardware)",
    0x0000000000000080: "power brake",
}


class Nvml:
    """The GPU that CUDA would use first; `open_nvml` returns None where there is none."""

    def __init__(self, library: Any) -> None:
        self._nvml = library
        library.nvmlInit()
        try:
            self._device = self._first_visible()
        except BaseException:
            library.nvmlShutdown()
            raise

    def close(self) -> None:
        """Free the library."""
        self._nvml.nvmlShutdown()

    def describe(self) -> dict[str, Any]:
        """Name, driver, memory in MiB and power limit in watts; None for what it does not report."""
        nvml, device = self._nvml, self._device
        name, driver = _ask(nvml.nvmlDeviceGetName, device), _ask(nvml.nvmlSystemGetDriverVersion)
        return {
            "name": name.decode() if isinstance(name, bytes) else name,
            "driver": driver.decode() if isinstance(driver, bytes) else driver,
            "memory_mib": _ask(lambda: nvml.nvmlDeviceGetMemoryInfo(device).total, scale=2**-20),
            "power_limit_w": _ask(nvml.nvmlDeviceGetEnforcedPowerLimit, device, scale=1e-3),
            "max_sm_mhz": _ask(nvml.nvmlDeviceGetMaxClockInfo, device, nvml.NVML_CLOCK_SM),
        }

    def memory_used(self) -> float | None:
        """MiB in use on the GPU by all processes."""
        return _ask(lambda: self._nvml.nvmlDeviceGetMemoryInfo(self._device).used, scale=2**-20)

    def sample(self) -> dict[str, Any]:
        """Clocks in MHz, temperature in °C, power in watts, MiB in use, reasons for throttling."""
        nvml, device = self._nvml, self._device
        reasons = _ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, device) or 0
        return {
            "sm_mhz": _ask(nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_SM),
            "memory_mhz": _ask(nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_MEM),
            "temperature": _ask(nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU),
            "power_w": _ask(nvml.nvmlDeviceGetPowerUsage, device, scale=1e-3),
            "memory_mib": self.memory_used(),
            "throttled": [word for bit, word in THROTTLES.items() if reasons & bit],
        }

    def _first_visible(self) -> Any:
        # NVML numbers all GPUs; CUDA those that this variable lists, in its order.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        if visible.startswith("GPU-"):
            return self._nvml.nvmlDeviceGetHandleByUUID(visible)
        return self._nvml.nvmlDeviceGetHandleByIndex(int(visible) if visible.isdigit() else 0)


def open_nvml() -> Nvml | None:
    """The library and its first GPU; None without a GPU or the package nvidia-ml-py."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "-1":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        return Nvml(pynvml)
    except pynvml.NVMLError as error:
        log.debug("no NVML: %s", error)
        return None


def _ask(question: Any, *arguments: Any, scale: float | None = None) -> Any:
    """The answer, scaled and rounded to 0.1 if `scale` is given; None if the GPU or driver has none."""
    import pynvml

    try:
        answer = question(*arguments)
    except pynvml.NVMLError:
        return None
    return answer if scale is None else round(answer * scale, 1)
