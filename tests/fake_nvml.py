"""NVIDIA's management library with one GPU that the test makes up: `install(monkeypatch, ...)`."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest


class FakeNvml(ModuleType):
    """Answers as `pynvml` does. `broken` names calls that this GPU does not know; `gpus` may be 0."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, broken: tuple[str, ...] = (), gpus: int = 1) -> None:
        super().__init__("pynvml")
        self.broken, self.gpus = broken, gpus
        self.open = 0
        self.reasons = 0
        self.chosen: object = None

    def __getattribute__(self, name: str):
        get = super().__getattribute__
        if name.startswith("nvml") and name in get("broken"):
            error = get("NVMLError")

            def refuse(*_: object) -> None:
                raise error(f"{name}: not supported")

            return refuse
        return get(name)

    def nvmlInit(self):  # noqa: N802
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index >= self.gpus:
            raise self.NVMLError("no such GPU")
        self.chosen = index
        return "gpu"

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        self.chosen = uuid
        return "gpu"

    def nvmlDeviceGetName(self, _):  # noqa: N802
        return "Fake GPU"

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "999.1"

    def nvmlDeviceGetMemoryInfo(self, _):  # noqa: N802
        return SimpleNamespace(total=8 * 2**30, used=512 * 2**20)

    def nvmlDeviceGetEnforcedPowerLimit(self, _):  # noqa: N802
        return 250_000

    def nvmlDeviceGetMaxClockInfo(self, _, kind):  # noqa: N802
        return {1: 1900, 2: 5000}[kind]

    def nvmlDeviceGetClockInfo(self, _, kind):  # noqa: N802
        return {1: 1800, 2: 5000}[kind]

    def nvmlDeviceGetTemperature(self, _, __):  # noqa: N802
        return 71

    def nvmlDeviceGetPowerUsage(self, _):  # noqa: N802
        return 187_654

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, _):  # noqa: N802
        return self.reasons


def install(monkeypatch: pytest.MonkeyPatch, **options) -> FakeNvml:
    """Make `import pynvml` give a fake one."""
    library = FakeNvml(**options)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return library
