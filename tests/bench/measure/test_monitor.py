"""The state of the machine while it is measured, on a machine that the test makes up."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import fake_nvml
import psutil
import pytest

from yolact_bench.measure import monitor as module
from yolact_bench.measure.machine import describe_machine
from yolact_bench.measure.monitor import MAX_SAMPLES, Monitor
from yolact_bench.measure.nvml import open_nvml

Core = namedtuple("Core", "user nice system idle iowait steal guest")
Own = namedtuple("Own", "user system children_user children_system iowait")


class Machine:
    """What psutil reports of it; `spend` lets time pass."""

    def __init__(self) -> None:
        self.own, self.busy, self.steal, self.idle = 0.0, 10.0, 0.0, 50.0
        self.child: float | None = None
        self.ended = 0.0

    def cpu_times(self, percpu: bool) -> list[Core]:
        assert percpu
        # Another core, which this process may not use, is always busy. A guest's time is user time as well.
        other = Core(1e6 * self.busy, 0, 0, 0, 0, 0, 0)
        return [other, Core(self.busy, 0, 0, self.idle, 0, self.steal, self.busy), other]

    def Process(self) -> SimpleNamespace:  # noqa: N802
        children = [] if self.child is None else [self.process(self.child), self.process(None)]
        return SimpleNamespace(
            cpu_affinity=lambda: [1],
            cpu_times=lambda: Own(self.own, 0, self.ended, 0, 1e6),
            children=lambda recursive: children,
        )

    @staticmethod
    def process(seconds: float | None) -> SimpleNamespace:
        def cpu_times() -> Own:
            if seconds is None:
                raise psutil.NoSuchProcess(1)
            return Own(0, seconds, 0, 0, 0)

        return SimpleNamespace(cpu_times=cpu_times)

    def spend(
        self, own: float = 0, child: float = 0, ended: float = 0, others: float = 0, steal: float = 0,
        idle: float = 0,
    ) -> None:  # fmt: skip
        self.own += own
        self.ended += ended
        if child:
            self.child = (self.child or 0) + child
        self.busy += own + child + ended + others
        self.steal += steal
        self.idle += idle


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine = Machine()
    monkeypatch.setattr(psutil, "cpu_times", machine.cpu_times)
    monkeypatch.setattr(psutil, "Process", machine.Process)
    monkeypatch.setattr(psutil, "getloadavg", lambda: (0.5, 0.4, 0.3))
    clocks = [SimpleNamespace(current=2000.0), SimpleNamespace(current=3000.0)]
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: clocks)
    sensors = {"a": [SimpleNamespace(current=61.5), SimpleNamespace(current=40.0)], "b": []}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
    return machine


def test_who_took_the_time(box: Machine) -> None:
    monitor = Monitor(interval=0.001)
    with monitor:
        box.spend(own=3, child=1.5, ended=0.5, others=2.5, steal=0.5, idle=2)
    seen = monitor.conditions
    assert seen.others == pytest.approx(0.25)
    assert seen.steal == pytest.approx(0.05)
    assert seen.warnings == [
        "other processes took 25% of the CPU time while measuring; stop them and measure again"
    ]


def test_a_quiet_machine(box: Machine) -> None:
    monitor = Monitor(interval=0.001)
    with monitor:
        box.spend(own=9, others=0.5, idle=0.5)
    seen = monitor.conditions
    assert (seen.others, seen.warnings, seen.gpu, seen.throttled) == (pytest.approx(0.05), [], {}, {})
    assert (seen.load_before, seen.load_after) == (0.5, 0.5)
    assert set(seen.cpu_mhz) == {2500.0}
    assert set(seen.cpu_temperature) == {61.5}
    assert len(seen.times) == len(seen.cpu_mhz) == len(seen.cpu_temperature)
    assert seen.times == sorted(seen.times)


def test_a_system_that_reports_nothing(box: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(psutil, "cpu_freq", refuse)
    monkeypatch.delattr(psutil, "sensors_temperatures")
    monkeypatch.delattr(psutil, "getloadavg")
    monitor = Monitor(interval=0.001)
    with monitor:
        pass
    seen = monitor.conditions
    assert (seen.others, seen.steal, seen.load_before, seen.warnings) == (None, None, None, [])
    assert set(seen.cpu_mhz) == set(seen.cpu_temperature) == {None}


def test_children_that_ended_count_as_this_process() -> None:
    before = module._cpu_times()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    total, busy, _, own = (b - a for a, b in zip(before, module._cpu_times(), strict=True))
    assert own >= 0.25
    assert total >= busy >= 0.2


def test_it_stops_where_measuring_fails() -> None:
    monitor = Monitor(interval=0.001)
    with pytest.raises(RuntimeError, match="engine"), monitor:
        raise RuntimeError("engine")
    assert not monitor._thread.is_alive()


def test_long_runs_are_thinned_out() -> None:
    monitor = Monitor(interval=0.001)
    with monitor:
        monitor._stop.set()
        monitor._thread.join()
        monitor._samples += [(float(i), 1.0, None, {}, 0.0) for i in range(5 * MAX_SAMPLES)]
    assert MAX_SAMPLES / 2 < len(monitor.conditions.times) <= MAX_SAMPLES


def test_a_gpu(box: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    library = fake_nvml.install(monkeypatch)
    library.reasons = 0x4 | 0x1 | 0x40  # power cap, idle, too hot
    monitor = Monitor(interval=0.001)
    with monitor:
        pass
    seen = monitor.conditions
    assert {key: set(values) for key, values in seen.gpu.items()} == {
        "sm_mhz": {1800},
        "memory_mhz": {5000},
        "temperature": {71},
        "power_w": {187.7},
        "memory_mib": {512.0},
    }
    assert seen.throttled == {"power cap": 1.0, "too hot (hardware)": 1.0}
    assert seen.warnings[0] == "the GPU was throttled in 100% of the time: power cap"
    assert library.open == 0
    gpu = describe_machine()["gpu"]
    assert (gpu["name"], gpu["driver"], gpu["memory_mib"], gpu["power_limit_w"]) == (
        "Fake GPU", "999.1", 8192.0, 250.0,
    )  # fmt: skip
    assert library.open == 0


def test_a_gpu_that_does_not_know_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksThrottleReasons")
    fake_nvml.install(monkeypatch, broken=broken)
    nvml = open_nvml()
    assert nvml is not None
    sample = nvml.sample()
    assert (sample["power_w"], sample["throttled"], sample["sm_mhz"]) == (None, None, 1800)
    with Monitor() as monitor:
        pass
    assert monitor.conditions.throttled is None
    assert not any("GPU" in warning for warning in monitor.conditions.warnings)


@pytest.mark.parametrize("options", [{"gpus": 0}, {"broken": ("nvmlInit",)}])
def test_no_gpu(monkeypatch: pytest.MonkeyPatch, options) -> None:
    library = fake_nvml.install(monkeypatch, **options)
    assert open_nvml() is None
    assert library.open == 0


@pytest.mark.parametrize(("visible", "chosen"), [("1,0", 1), ("GPU-abc", "GPU-abc"), ("", 0)])
def test_the_gpu_that_cuda_uses(monkeypatch: pytest.MonkeyPatch, visible: str, chosen: object) -> None:
    library = fake_nvml.install(monkeypatch, gpus=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert open_nvml() is not None
    assert library.chosen == chosen
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert open_nvml() is None
