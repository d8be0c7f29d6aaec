"""What is seen of the machine while it is measured, on a machine that the test makes up."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fake_nvml
import pytest

from yolact_bench.machine import describe_machine
from yolact_bench.monitor import MOST_LOOKS, Monitor
from yolact_bench.nvml import open_nvml

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells")


class Machine:
    """Files as Linux has them; `spend` lets time pass."""

    def __init__(self, root: Path) -> None:
        self.proc, self.thermal = root / "proc", root / "thermal"
        self.core = min(os.sched_getaffinity(0))
        self.own, self.busy, self.steal, self.idle = 0, 1000, 0, 5000
        self.children: dict[int, tuple[int, int]] = {}
        zone = self.thermal / "thermal_zone0"
        zone.mkdir(parents=True)
        (zone / "temp").write_text("61500\n")
        self.proc.mkdir()
        (self.proc / "loadavg").write_text("0.50 0.40 0.30 1/200 999\n")
        (self.proc / "cpuinfo").write_text("cpu MHz\t\t: 2000.0\ncpu MHz\t\t: 3000.0\n")
        self.write()

    def write(self) -> None:
        line = f"{self.busy} 0 0 {self.idle} 0 0 0 {self.steal} 0 0"
        # Another core, which this process may not use, is always busy.
        (self.proc / "stat").write_text(f"cpu  1 1\ncpu{self.core} {line}\ncpu4095 9999 0 0 0 0 0 0 0 0 0\n")
        processes = {os.getpid(): (1, self.own), **self.children}
        for pid, (parent, ticks) in processes.items():
            folder = self.proc / str(pid)
            folder.mkdir(exist_ok=True)
            words = ["S", parent, *[0] * 9, ticks, 0, 0, 0]
            (folder / "stat").write_text(f"{pid} (a (b) c) {' '.join(map(str, words))}\n")

    def spend(self, own: int = 0, child: int = 0, others: int = 0, steal: int = 0, idle: int = 0) -> None:
        self.own += own
        if child:
            self.children[10**7] = (os.getpid(), self.children.get(10**7, (0, 0))[1] + child)
        self.busy += own + child + others
        self.steal += steal
        self.idle += idle
        self.write()

    def monitor(self) -> Monitor:
        return Monitor(self.proc, self.thermal, interval=0.001)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return Machine(tmp_path)


@linux
def test_who_took_the_time(box: Machine) -> None:
    monitor = box.monitor()
    with monitor:
        box.spend(own=300, child=200, others=250, steal=50, idle=200)
    seen = monitor.conditions
    assert seen.others == pytest.approx(0.25)
    assert seen.steal == pytest.approx(0.05)
    assert seen.warnings == [
        "other processes took 25% of the CPU time while measuring; stop them and measure again"
    ]


@linux
def test_a_quiet_machine(box: Machine) -> None:
    monitor = box.monitor()
    with monitor:
        box.spend(own=900, others=50, idle=50)
    seen = monitor.conditions
    assert (seen.others, seen.warnings, seen.gpu, seen.throttled) == (pytest.approx(0.05), [], {}, {})
    assert (seen.load_before, seen.load_after) == (0.5, 0.5)
    assert set(seen.cpu_mhz) == {2500.0}
    assert set(seen.cpu_temperature) == {61.5}
    assert len(seen.times) == len(seen.cpu_mhz) == len(seen.cpu_temperature)
    assert seen.times == sorted(seen.times)


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monitor = Monitor(tmp_path, tmp_path, interval=0.001)
    with monitor:
        pass
    seen = monitor.conditions
    assert (seen.others, seen.steal, seen.load_before, seen.warnings) == (None, None, None, [])
    assert set(seen.cpu_mhz) == set(seen.cpu_temperature) == {None}


def test_it_stops_where_measuring_fails(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, tmp_path, interval=0.001)
    with pytest.raises(RuntimeError, match="engine"), monitor:
        raise RuntimeError("engine")
    assert not monitor._thread.is_alive()


def test_long_runs_are_thinned_out(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, tmp_path, interval=0.001)
    with monitor:
        monitor._stop.set()
        monitor._thread.join()
        monitor._looks += [(float(i), 1.0, None, {}) for i in range(5 * MOST_LOOKS)]
    assert MOST_LOOKS / 2 < len(monitor.conditions.times) <= MOST_LOOKS


def test_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = fake_nvml.install(monkeypatch)
    library.reasons = 0x4 | 0x1 | 0x40  # power cap, idle, too hot
    monitor = Monitor(tmp_path, tmp_path, interval=0.001)
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
    assert (sample["power_w"], sample["throttled"], sample["sm_mhz"]) == (None, [], 1800)


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
