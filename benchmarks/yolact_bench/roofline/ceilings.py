"""The ceilings of this machine, measured: arithmetic by type, and memory bandwidth.

Operations per second are those of the fastest of several libraries and shapes (`probes`): what an existing
library reaches here, not what a data sheet says. Bandwidth is the faster of copying an array, and of
multiplying one and adding another into a third, each at least four times as large as the last cache; both
reads and writes count, as in STREAM.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import chain
from typing import TYPE_CHECKING, Any

from yolact_runtime.cache import Cache
from yolact_runtime.commandline import Table, track
from yolact_runtime.engines.threads import usable_cores
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.typed import convert

if TYPE_CHECKING:
    from yolact_bench.roofline.probes import Probe

# The precisions of engines, and the type of arithmetic of each.
KINDS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8"}
PRECISIONS = (*KINDS, "int8+bf16")
_SECONDS = 0.4  # for each probe; the fastest of its runs counts
_LARGEST = 512 * 2**20  # bytes of an array to measure bandwidth with
_CACHE = Cache("ceilings", "the ceilings", "measuring again")


@dataclass(frozen=True)
class Ceilings:
    """The ceilings of a device."""

    device: str
    threads: int | None  # of the CPU; None on a GPU
    # Per second, by type of arithmetic: "float32", "float16", "bfloat16", "int8"; a multiply-add is 2.
    operations: dict[str, float]
    by: dict[str, str]  # the fastest probe of each type
    bandwidth: float  # bytes per second, both read and written
    created: str  # ISO 8601
    versions: dict[str, str] = field(default_factory=dict)  # of the libraries that measured it
    # Every measured rate, by type (or "bandwidth") and probe.
    probes: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def age_days(self) -> float:
        """Days since the measurement."""
        return (datetime.now(timezone.utc) - datetime.fromisoformat(self.created)).total_seconds() / 86400

    def rate(self, kind: str) -> float:
        """Operations per second in a type of arithmetic; one without a ceiling counts as float32."""
        if rate := self.operations.get(kind) or self.operations.get("float32"):
            return rate
        raise YolactError(f"no ceiling for {kind} was measured on {self.device}")


def ceilings(threads: int | None = None, fresh: bool = False) -> Ceilings:
    """The CPU's ceilings, from the cache if this machine has been measured before.

    The cache has an entry for each processor, number of cores and threads, and versions of the libraries. A
    busy machine gives ceilings that are too low, and none gives too high ones: when they are measured again,
    the faster result counts.

    Args:
        threads: None for all usable cores.
        fresh: Measure again.

    Raises:
        UsageError: less than one thread.
    """
    from yolact_bench.measure.machine import cpu_model, describe_machine

    count = usable_cores() if threads is None else threads
    if count < 1:
        raise UsageError(f"threads is {count}; it must be 1 or more")
    inputs = [cpu_model(), usable_cores(), count, describe_machine()["versions"]]
    before = _CACHE.read(f"cpu-{count}", inputs, _from_entry)
    if before and not fresh:
        return before
    found = _measure(cpu_model(), count, _cpu_probes(count), before.probes if before else {})
    _CACHE.write(f"cpu-{count}", inputs, asdict(found))
    return found


def gpu_ceilings() -> Ceilings:
    """The ceilings of the first GPU: copies by the driver, matrix products by PyTorch. Not cached.

    Raises:
        YolactError: no GPU, no driver, or PyTorch has no CUDA.
    """
    from yolact_bench.roofline.probes import gpu_probes
    from yolact_runtime.cuda.device import Device
    from yolact_runtime.cuda.timing import copy_bandwidth

    with Device() as device, device.current:
        rates = {"bandwidth": {"copy": copy_bandwidth(device)}}
        name = device.gpu.name
    return _measure(name, None, gpu_probes(), rates)


def _cpu_probes(threads: int) -> Iterable[Probe]:
    from yolact_bench.roofline import probes

    size = min(_LARGEST, max(64 * 2**20, 4 * _last_cache()))
    yield from probes.numpy_probes(threads, size)
    yield from probes.torch_probes(threads, size)
    yield from probes.ort_probes(threads)
    yield from probes.openvino_probes(threads)


def _measure(
    device: str, threads: int | None, probes: Iterable[Probe], rates: dict[str, dict[str, float]]
) -> Ceilings:
    """Run the probes; `rates` are those measured before, of which the faster counts."""
    from yolact_bench.measure.machine import describe_machine

    for kind, name, amount, work in track(probes, "measuring ceilings"):
        found = rates.setdefault(kind, {})
        found[name] = max(amount / _fastest(work), found.get(name, 0.0))
    best = {kind: max(found, key=lambda name: found[name]) for kind, found in rates.items()}
    bandwidth = rates["bandwidth"][best.pop("bandwidth")]
    operations = {kind: rates[kind][name] for kind, name in best.items()}
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    versions = describe_machine()["versions"]
    return Ceilings(device, threads, operations, best, bandwidth, created, versions, rates)


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the shortest of several runs."""
    work()
    times: list[float] = []
    while sum(times) < _SECONDS or len(times) < 3:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)


def _from_entry(entry: Any) -> Ceilings:
    """The ceilings of a cache entry; a ValueError if they cannot be right."""
    found: Ceilings = convert(entry, Ceilings, "ceilings")
    rates = [rate for rates in found.probes.values() for rate in rates.values()]
    if not all(0 < rate < math.inf for rate in [found.bandwidth, *found.operations.values(), *rates]):
        raise ValueError("it has impossible rates")
    found.age_days  # noqa: B018 - raises if its date is none
    return found


def _last_cache() -> int:
    """Bytes of the third-level cache, 32 MiB if the system does not report it."""
    known = "SC_LEVEL3_CACHE_SIZE" in getattr(os, "sysconf_names", ())
    return max(os.sysconf("SC_LEVEL3_CACHE_SIZE") if known else 0, 0) or 32 * 2**20


def ceilings_table(found: Sequence[Ceilings]) -> Table:
    """Ceilings next to each other, a pair of columns for each."""
    kinds = dict.fromkeys(kind for one in found for kind in one.operations)

    def pairs(one: Ceilings) -> list[tuple[str, str]]:
        name = "GPU" if one.threads is None else f"{one.threads} thread{'s' * (one.threads != 1)}"
        days = one.age_days
        age = f"{24 * days:.0f} h ago" if days < 2 else f"{days:.0f} days ago"
        rates = {kind: f"{rate / 1e9:.0f} G/s" for kind, rate in one.operations.items()}
        measured = [(rates.get(kind, "-"), one.by.get(kind, "")) for kind in kinds]
        memory = f"{one.bandwidth / 1e9:.1f} GB/s"
        return [(name, "by"), *measured, (memory, ""), ("just now" if days < 1 / 24 else age, "")]

    names = ["", *(f"{kind} operations" for kind in kinds), "memory", "measured"]
    columns, *rows = [[name, *chain(*row)] for name, *row in zip(names, *map(pairs, found), strict=True)]
    return Table(f"Measured ceilings, {found[0].device}", columns, rows, text_columns=len(columns))
