"""What the machine does while it is measured: clocks, temperatures, load, and other processes at work."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from yolact_bench.measure.nvml import open_nvml

INTERVAL = 0.25  # seconds
MAX_SAMPLES = 1000  # kept
OTHERS_LIMIT = 0.10  # share of the CPU time that gives a warning


@dataclass(frozen=True)
class Conditions:
    """The state of the machine; lists have a value for each sample, None if the system does not report it."""

    seconds: float = 0.0  # from start to stop
    look_ms: float = 0.0  # mean cost of one sample
    load_before: float | None = None  # processes that wanted to run, mean of the minute before
    load_after: float | None = None
    others: float | None = None  # share 0..1 of the CPU time of the usable cores that other processes took
    steal: float | None = None  # share 0..1 that other machines on the same hardware took
    times: list[float] = field(default_factory=list)  # seconds since the start
    cpu_mhz: list[float | None] = field(default_factory=list)  # mean of the cores
    cpu_temperature: list[float | None] = field(default_factory=list)  # hottest sensor, degrees Celsius
    gpu: dict[str, list[Any]] = field(default_factory=dict)  # `Nvml.sample` by its keys; empty without a GPU
    # Reason -> share 0..1 of the samples; None if the GPU does not say.
    throttled: dict[str, float] | None = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)  # sentences for the reader


class Monitor:
    """Samples the machine every `interval` seconds in a `with` block; then `conditions` holds the result."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self._interval = interval
        self._stop = threading.Event()
        self.conditions = Conditions()

    def __enter__(self) -> Monitor:
        """Start sampling."""
        self._nvml = open_nvml()
        # Time, clock, temperature, GPU and the cost in seconds.
        self._samples: list[tuple[float, float | None, float | None, dict[str, Any], float]] = []
        self._load = _load()
        self.began_ns = time.perf_counter_ns()
        self._began = self.began_ns / 1e9
        self._before = _cpu_times()
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self.conditions = self._summary(_cpu_times())
        if self._nvml is not None:
            self._nvml.close()

    def _watch(self) -> None:
        while not self._samples or not self._stop.wait(self._interval):
            start = time.perf_counter()
            found = _clock(), _temperature(), self._nvml.sample() if self._nvml else {}
            self._samples.append((start - self._began, *found, time.perf_counter() - start))

    def _summary(self, after: tuple[float, float, float, float]) -> Conditions:
        """The conditions, from all samples and the CPU times at the end."""
        others = steal = None
        total, busy, stolen, own = (b - a for a, b in zip(self._before, after, strict=True))
        if total > 0:
            others = round(min(1.0, max(0.0, busy - own) / total), 4)
            steal = round(min(1.0, stolen / total), 4)
        # Hours of samples are thinned out: the plot has only so many pixels.
        samples = self._samples[:: -(-len(self._samples) // MAX_SAMPLES)]
        times, clocks, temperatures, gpus, costs = zip(*samples, strict=True)
        known = [gpu.get("throttled", ()) for gpu in gpus]
        reasons = [reason for some in known for reason in some or ()]
        shares = {reason: round(reasons.count(reason) / len(gpus), 4) for reason in dict.fromkeys(reasons)}
        throttled = None if None in known and not shares else shares
        return Conditions(
            seconds=round(time.perf_counter() - self._began, 2),
            look_ms=round(1000 * float(np.mean(costs)), 3),
            load_before=self._load,
            load_after=_load(),
            others=others,
            steal=steal,
            times=[round(value, 2) for value in times],
            cpu_mhz=list(clocks),
            cpu_temperature=list(temperatures),
            gpu={key: [gpu[key] for gpu in gpus] for key in gpus[0] if key != "throttled"},
            throttled=throttled,
            warnings=_warnings(others or 0, steal or 0, shares),
        )


def _load() -> float | None:
    with contextlib.suppress(OSError, AttributeError):
        return round(psutil.getloadavg()[0], 2)
    return None


def _clock() -> float | None:
    """Mean clock of the cores in MHz."""
    with contextlib.suppress(OSError, AttributeError, NotImplementedError):
        found = [core.current for core in psutil.cpu_freq(percpu=True) if core.current]
        return round(float(np.mean(found)), 0) if found else None
    return None


def _temperature() -> float | None:
    """The hottest sensor in degrees Celsius; only Linux and FreeBSD report any."""
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    return max((one.current for group in sensors.values() for one in group), default=None)


def _cpu_times() -> tuple[float, float, float, float]:
    """CPU seconds: all, busy and stolen on the usable cores; and of this process with its descendants."""
    process = psutil.Process()
    cores = process.cpu_affinity() if hasattr(process, "cpu_affinity") else None
    times = psutil.cpu_times(percpu=True)
    used = [one for core, one in enumerate(times) if cores is None or core in cores] or times
    # Guests' time is part of user time; waiting for input and output is idle time.
    names = [name for name in used[0]._fields if not name.startswith("guest")]
    total = sum(getattr(one, name) for one in used for name in names)
    stolen = sum(getattr(one, "steal", 0.0) for one in used)
    idle = sum(one.idle + getattr(one, "iowait", 0.0) for one in used)
    own = sum(process.cpu_times()[:4])  # user and system, of children that have ended too
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            own += sum(child.cpu_times()[:4])
    return total, total - idle - stolen, stolen, own


def _warnings(others: float, steal: float, throttled: dict[str, float]) -> list[str]:
    """What the reader has to know, most important first."""
    found = []
    if others > OTHERS_LIMIT:
        taken = f"other processes took {others:.0%} of the CPU time while measuring"
        found.append(f"{taken}; stop them and measure again")
    if steal > OTHERS_LIMIT:
        found.append(f"other machines on the same hardware took {steal:.0%} of the CPU time while measuring")
    found += [f"the GPU was throttled in {share:.0%} of the time: {why}" for why, share in throttled.items()]
    return found
