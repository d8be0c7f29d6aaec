"""The ceilings of this machine, measured: arithmetic by type, and memory bandwidth.

Operations per second are those of the fastest of several libraries and shapes (`probes`): a product of two
matrices in PyTorch and ONNX Runtime, a 1x1 and a 3x3 convolution of the network's kind in ONNX Runtime and
OpenVINO, in each type that a library computes in. A ceiling is therefore what an existing library reaches
here, not what the processor's data sheet says; a better kernel may exceed it. NumPy measures only memory:
the threads of its BLAS are chosen before it is imported.

Bandwidth is the faster of copying an array, and of multiplying one and adding another into a third, each at
least four times as large as the last cache; both reads and writes count, as in STREAM.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_runtime.engines.threads import usable_cores
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import cache_folder, read_json, write_json

if TYPE_CHECKING:
    from yolact_bench.report.tables import Table
    from yolact_bench.roofline.probes import Probe

# The precisions of engines, and the type of arithmetic of each.
KINDS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8"}
PRECISIONS = (*KINDS, "int8+bf16")
_SECONDS = 0.4  # for each probe; the fastest of its runs counts
_LARGEST = 512 * 2**20  # bytes of an array to measure bandwidth with
_SCHEMA = 1


@dataclass(frozen=True)
class Ceilings:
    """The ceilings of a device.

    Attributes:
        device: Processor or GPU.
        threads: CPU threads used; None on a GPU.
        operations: Per second, by type of arithmetic: "float32", "float16", "bfloat16", "int8"; a
            multiply-add is 2.
        by: The fastest probe of each type.
        bandwidth: Bytes per second, both read and written.
        created: Time of the measurement, ISO 8601.
        versions: Of the libraries that measured it.
        probes: Every measured rate, by type (or "bandwidth") and probe.
    """

    device: str
    threads: int | None
    operations: dict[str, float]
    by: dict[str, str]
    bandwidth: float
    created: str
    versions: dict[str, str] = field(default_factory=dict)
    probes: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def age_days(self) -> float:
        """Days since the measurement."""
        return (datetime.now(timezone.utc) - datetime.fromisoformat(self.created)).total_seconds() / 86400


def ceilings(threads: int | None = None, fresh: bool = False) -> Ceilings:
    """The CPU's ceilings, from the cache if this machine has been measured before.

    The cache is `ceilings.json` in `cache_folder()`, with an entry for each processor and number of cores and
    threads, which is valid as long as the library versions are the same. A busy machine gives ceilings that
    are too low, and none gives too high ones: a second measurement can only raise them.

    Args:
        threads: None for all usable cores.
        fresh: Measure again; of each probe the faster result counts.

    Raises:
        UsageError: less than one thread.
    """
    from yolact_bench.measure.machine import cpu_model, describe_machine

    count = usable_cores() if threads is None else threads
    if count < 1:
        raise UsageError(f"threads is {count}; it must be 1 or more")
    key = f"{cpu_model()}|{usable_cores()} cores|{count} threads"
    path = cache_folder() / "ceilings.json"
    cached = _read(path)
    versions = describe_machine()["versions"]
    known = key in cached and cached[key]["versions"] == versions
    before = Ceilings(**cached[key]) if known else None
    if before and not fresh:
        return before
    rates = _measured(_cpu_probes(count))
    for kind, probes in (before.probes if before else {}).items():
        again = rates.setdefault(kind, {})
        again.update({name: max(rate, again.get(name, 0.0)) for name, rate in probes.items()})
    found = _ceilings(cpu_model(), count, rates, versions)
    # Another process may have written the file in the meantime.
    write_json(path, {"schema": _SCHEMA, "ceilings": {**_read(path), key: asdict(found)}}, indent=2)
    return found


def gpu_ceilings() -> Ceilings:
    """The ceilings of the first GPU: copies by the driver, matrix products by PyTorch. Not cached.

    Raises:
        YolactError: no GPU, no driver, or PyTorch has no CUDA.
    """
    from yolact_bench.measure.machine import describe_machine
    from yolact_bench.roofline.probes import gpu_probes
    from yolact_runtime.cuda.device import Device
    from yolact_runtime.cuda.timing import copy_bandwidth

    with Device() as device, device.current:
        bandwidth = copy_bandwidth(device)
        name = device.gpu.name
    rates = {"bandwidth": {"copy": bandwidth}, **_measured(gpu_probes())}
    return _ceilings(name, None, rates, describe_machine()["versions"])


def _cpu_probes(threads: int) -> Iterable[Probe]:
    from yolact_bench.roofline.probes import numpy_probes, openvino_probes, ort_probes, torch_probes

    size = min(_LARGEST, max(64 * 2**20, 4 * _last_cache()))
    yield from numpy_probes(threads, size)
    yield from torch_probes(threads, size)
    yield from ort_probes(threads)
    yield from openvino_probes(threads)


def _measured(probes: Iterable[Probe]) -> dict[str, dict[str, float]]:
    """Operations or bytes per second, by type and probe."""
    from rich.console import Console
    from rich.progress import track

    rates: dict[str, dict[str, float]] = {}
    console = Console(stderr=True)
    quiet = not console.is_terminal
    for kind, name, amount, work in track(probes, "measuring ceilings", console=console, disable=quiet):
        rates.setdefault(kind, {})[name] = amount / _fastest(work)
    return rates


def _ceilings(
    device: str, threads: int | None, rates: dict[str, dict[str, float]], versions: dict[str, str]
) -> Ceilings:
    """The best of the measured rates of each type."""
    best = {kind: max(found, key=lambda name: found[name]) for kind, found in rates.items()}
    kinds = [kind for kind in rates if kind != "bandwidth"]
    return Ceilings(
        device=device,
        threads=threads,
        operations={kind: rates[kind][best[kind]] for kind in kinds},
        by={kind: best[kind] for kind in kinds},
        bandwidth=rates["bandwidth"][best["bandwidth"]],
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=versions,
        probes=rates,
    )


def _fastest(work: Callable[[], object], seconds: float = _SECONDS) -> float:
    """Seconds of the shortest of several runs."""
    work()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)


def _read(path: Path) -> dict[str, Any]:
    """The entries of the cache; none if the file is missing, damaged or of another version."""
    try:
        content = read_json(path)
    except YolactError:
        return {}
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        return {}
    return dict(content.get("ceilings", {}))


def _last_cache() -> int:
    """Bytes of the largest cache, 32 MiB if the system does not report it."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KM])", path.read_text().strip())
        if match:
            sizes.append(int(match[1]) << (10 if match[2] == "K" else 20))
    return max(sizes, default=32 * 2**20)


def ceilings_table(found: Sequence[Ceilings]) -> Table:
    """Ceilings next to each other, a pair of columns for each."""
    from yolact_bench.report.tables import Table

    def cells(rates: Iterable[str], by: Iterable[str]) -> list[str]:
        return [cell for pair in zip(rates, by, strict=True) for cell in pair]

    threads = (f"{one.threads} thread{'s' if one.threads != 1 else ''}" for one in found)
    headings = ("GPU" if one.threads is None else name for one, name in zip(found, threads, strict=True))
    rows = [
        [
            f"{kind} operations",
            *cells(
                (f"{one.operations[kind] / 1e9:.0f} G/s" if kind in one.operations else "-" for one in found),
                (one.by.get(kind, "") for one in found),
            ),
        ]
        for kind in dict.fromkeys(kind for one in found for kind in one.operations)
    ]
    empty = [""] * len(found)
    rows.append(["memory", *cells((f"{one.bandwidth / 1e9:.1f} GB/s" for one in found), empty)])
    rows.append(["measured", *cells((_age(one.age_days) for one in found), empty)])
    columns = ["", *cells(headings, ["by"] * len(found))]
    return Table(f"Measured ceilings, {found[0].device}", columns, rows, text_columns=len(columns))


def _age(days: float) -> str:
    return "just now" if days < 1 / 24 else f"{days * 24:.0f} h ago" if days < 2 else f"{days:.0f} days ago"
