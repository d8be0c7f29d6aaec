"""What the machine did while it was measured: clocks, temperatures, load, and who else was at work.

A thread looks every quarter of a second. One look takes about as long as `Conditions.look_ms` says, so
what it takes away is known.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yolact_bench.nvml import Nvml, open_nvml

log = logging.getLogger(__name__)

INTERVAL = 0.25  # seconds
MOST_LOOKS = 1000  # kept
OTHERS_LIMIT = 0.10  # share of the CPU time above which a reader must be told
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq of a line in /proc/stat; steal is apart
_STEAL = 7


@dataclass(frozen=True)
class Conditions:
    """What was seen; lists have a value for each look, and None where the system does not tell.

    Attributes:
        seconds: From start to stop.
        look_ms: Mean cost of one look, in milliseconds.
        load_before: Processes that wanted to run, mean of the minute before.
        load_after: The same at the end.
        others: Share 0..1 of the CPU time of the usable cores that other processes took.
        steal: Share 0..1 that other machines on the same hardware took.
        times: Seconds since the start.
        cpu_mhz: Mean clock of the cores.
        cpu_temperature: Hottest thermal zone, degrees Celsius.
        gpu: By what `Nvml.sample` calls it; empty without a GPU.
        throttled: Reasons for throttling of the GPU, with the share 0..1 of the looks that saw them.
        warnings: Sentences for the reader.
    """

    seconds: float = 0.0
    look_ms: float = 0.0
    load_before: float | None = None
    load_after: float | None = None
    others: float | None = None
    steal: float | None = None
    times: list[float] = field(default_factory=list)
    cpu_mhz: list[float | None] = field(default_factory=list)
    cpu_temperature: list[float | None] = field(default_factory=list)
    gpu: dict[str, list[Any]] = field(default_factory=dict)
    throttled: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Monitor:
    """Looks at the machine between `__enter__` and `__exit__`; then `conditions` says what it saw.

    Args:
        proc: Where Linux tells about itself.
        thermal: Where it tells temperatures.
        interval: Seconds between looks.
    """

    def __init__(
        self,
        proc: Path = Path("/proc"),
        thermal: Path = Path("/sys/class/thermal"),
        interval: float = INTERVAL,
    ) -> None:
        self._proc, self._interval = proc, interval
        self._zones = sorted(thermal.glob("thermal_zone*/temp"))
        self._stop = threading.Event()
        self.conditions = Conditions()

    def __enter__(self) -> Monitor:
        self._nvml = open_nvml()
        self._looks: list[tuple[float, float | None, float | None, dict[str, Any]]] = []
        self._costs: list[float] = []
        self._load = self._load_average()
        self.began_ns = time.perf_counter_ns()
        self._began = self.began_ns / 1e9
        self._before = self._cpu_times()
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        after = self._cpu_times()
        nvml: Nvml | None = self._nvml
        if nvml is not None:
            nvml.close()
        self.conditions = self._summary(after)

    def _watch(self) -> None:
        while True:
            start = time.perf_counter()
            gpu = self._nvml.sample() if self._nvml else {}
            self._looks.append((start - self._began, self._clock(), self._temperature(), gpu))
            self._costs.append(time.perf_counter() - start)
            if self._stop.wait(self._interval):
                return

    def _summary(self, after: tuple[float, float, float, float] | None) -> Conditions:
        others = steal = None
        if self._before and after:
            total, busy, stolen, own = (b - a for a, b in zip(self._before, after, strict=True))
            if total > 0:
                others = round(min(1.0, max(0.0, busy - own) / total), 4)
                steal = round(min(1.0, stolen / total), 4)
        # Hours of looking are thinned out: the picture has only so many pixels.
        looks = self._looks[:: -(-len(self._looks) // MOST_LOOKS)]
        times, clocks, temperatures, gpus = zip(*looks, strict=True)
        keys = [key for key in gpus[0] if key != "throttled"]
        reasons = [reason for gpu in gpus for reason in gpu.get("throttled", ())]
        throttled = {reason: round(reasons.count(reason) / len(gpus), 4) for reason in dict.fromkeys(reasons)}
        return Conditions(
            seconds=round(time.perf_counter() - self._began, 2),
            look_ms=round(1000 * float(np.mean(self._costs)), 3),
            load_before=self._load,
            load_after=self._load_average(),
            others=others,
            steal=steal,
            times=[round(value, 2) for value in times],
            cpu_mhz=list(clocks),
            cpu_temperature=list(temperatures),
            gpu={key: [gpu[key] for gpu in gpus] for key in keys},
            throttled=throttled,
            warnings=_warnings(others, steal, throttled),
        )

    def _load_average(self) -> float | None:
        try:
            return float(self._read("loadavg").split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def _clock(self) -> float | None:
        try:
            found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", self._read("cpuinfo"), re.MULTILINE)
        except OSError:
            return None
        return round(float(np.mean([float(value) for value in found])), 0) if found else None

    def _temperature(self) -> float | None:
        found = []
        for zone in self._zones:
            try:
                found.append(int(zone.read_text()) / 1000)
            except (OSError, ValueError):
                continue
        return max(found) if found else None

    def _cpu_times(self) -> tuple[float, float, float, float] | None:
        """Seconds of all time, work, steal on the usable cores, and of work by us; None without Linux."""
        if sys.platform != "linux":
            return None
        try:
            cores, hertz = os.sched_getaffinity(0), os.sysconf("SC_CLK_TCK")
            rows = [
                [int(value) for value in line.split()[1:9]]
                for line in self._read("stat").splitlines()
                if (match := re.match(r"cpu(\d+) ", line)) and int(match[1]) in cores
            ]
            if not rows:
                return None
            total, busy, stolen = (
                sum(sum(row[i] for i in places) for row in rows) / hertz
                for places in (range(8), _BUSY, (_STEAL,))
            )
            return total, busy, stolen, self._own(hertz)
        except (OSError, ValueError, IndexError):
            return None

    def _own(self, hertz: int) -> float:
        """CPU seconds of this process, of children that ended, and of descendants that run."""
        parents: dict[int, int] = {}
        spent: dict[int, int] = {}
        for folder in self._proc.iterdir():
            if not folder.name.isdigit():
                continue
            try:
                # The name in brackets may hold spaces.
                words = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                pid = int(folder.name)
                parents[pid], spent[pid] = int(words[1]), sum(int(word) for word in words[11:15])
            except (OSError, ValueError, IndexError):
                continue
        mine = {os.getpid()}
        while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
            mine |= more
        return sum(spent.get(pid, 0) for pid in mine) / hertz

    def _read(self, name: str) -> str:
        return (self._proc / name).read_text(encoding="utf-8", errors="replace")


def _warnings(others: float | None, steal: float | None, throttled: dict[str, float]) -> list[str]:
    found = []
    if others is not None and others > OTHERS_LIMIT:
        found.append(
            f"other processes took {others:.0%} of the CPU time while measuring; stop them and measure again"
        )
    if steal is not None and steal > OTHERS_LIMIT:
        found.append(f"other machines on the same hardware took {steal:.0%} of the CPU time while measuring")
    found += [f"the GPU was throttled in {share:.0%} of the time: {why}" for why, share in throttled.items()]
    return found
