"""What this machine can do at most, measured: arithmetic by type, and memory bandwidth.

    python -m yolact_bench.ceilings [--threads 1 2] [--fresh] [--gpu]

Operations per second are those of the fastest of several libraries and shapes: a product of two matrices
in PyTorch and ONNX Runtime, a 1x1 and a 3x3 convolution of the network's kind in ONNX Runtime and OpenVINO,
in each type that a library computes in. A ceiling is therefore what somebody's code reaches here, not what
the processor's data sheet says; a cleverer kernel may exceed it. NumPy is left out: the threads of its BLAS
are chosen before it is imported. It and PyTorch measure the memory.

Bandwidth is the faster of copying an array, and of multiplying one and adding another into a third, each at
least four times as large as the last cache; what is read and written counts, as STREAM does.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from yolact_bench.machine import cpu_model, describe_machine
from yolact_runtime.commandline import Parser, run, table_console
from yolact_runtime.engines.threads import usable_cores
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import cache_folder, read_json, write_json

# A probe is (type, what it is called, operations or bytes of a run, the run).
Probe = tuple[str, str, int, Callable[[], object]]

_SECONDS = 0.4  # for each probe; the fastest of its runs counts
_LARGEST = 512 * 2**20  # bytes of an array to measure bandwidth with
_SCHEMA = 1


@dataclass(frozen=True)
class Ceilings:
    """What a device can do at most.

    Attributes:
        device: Processor or GPU.
        threads: CPU threads used; None on a GPU.
        operations: Per second, by type of arithmetic: "float32", "float16", "bfloat16", "int8"; a
            multiplication and an addition are 2.
        by: What reached that.
        bandwidth: Bytes per second, read and written counted.
        created: When it was measured, ISO 8601.
        versions: Of the libraries that measured it.
        probes: Everything measured, by type (or "bandwidth") and probe.
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
        """Since it was measured."""
        return (datetime.now(timezone.utc) - datetime.fromisoformat(self.created)).total_seconds() / 86400

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, numbers and strings."""
        return asdict(self)


def ceilings(threads: int | None = None, fresh: bool = False) -> Ceilings:
    """The CPU's ceilings, from the cache where this machine has been measured before.

    They are kept in `ceilings.json` in `cache_folder()`, for each processor and number of cores and threads,
    as long as the libraries stay the same; `age_days` tells how old they are. A machine that was busy gives
    ceilings that are too low, and no machine too high ones: what is measured again can only raise them.

    Args:
        threads: Left out, all cores that may be used.
        fresh: Measure again; of each probe the faster result counts.

    Raises:
        UsageError: less than one thread.
    """
    count = usable_cores() if threads is None else threads
    if count < 1:
        raise UsageError(f"threads is {count}; it must be 1 or more")
    key = f"{cpu_model()}|{usable_cores()} cores|{count} threads"
    path = cache_folder() / "ceilings.json"
    kept = _read(path)
    versions = describe_machine()["versions"]
    before = Ceilings(**kept[key]) if key in kept and kept[key]["versions"] == versions else None
    if before and not fresh:
        return before
    rates = _measured(_cpu_probes(count))
    for kind, probes in (before.probes if before else {}).items():
        again = rates.setdefault(kind, {})
        again.update({name: max(rate, again.get(name, 0.0)) for name, rate in probes.items()})
    found = _ceilings(cpu_model(), count, rates, versions)
    # Somebody else may have written meanwhile.
    write_json(path, {"schema": _SCHEMA, "ceilings": {**_read(path), key: found.to_json()}}, indent=2)
    return found


def gpu_ceilings() -> Ceilings:
    """The ceilings of the first GPU: copies by the driver, matrix products by PyTorch. Not kept.

    Raises:
        YolactError: no GPU, no driver, or PyTorch has no CUDA.
    """
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
    rates: dict[str, dict[str, float]] = {}
    console = Console(stderr=True)
    quiet = not console.is_terminal
    for kind, name, amount, work in track(probes, "measuring ceilings", console=console, disable=quiet):
        rates.setdefault(kind, {})[name] = amount / _fastest(work)
    return rates


def _ceilings(
    device: str, threads: int | None, rates: dict[str, dict[str, float]], versions: dict[str, str]
) -> Ceilings:
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
    """What is kept; nothing where the file is missing, damaged or of another form."""
    try:
        kept = read_json(path)
    except YolactError:
        return {}
    if not isinstance(kept, dict) or kept.get("schema") != _SCHEMA:
        return {}
    return dict(kept.get("ceilings", {}))


def _last_cache() -> int:
    """Bytes of the largest cache, 32 MiB where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KM])", path.read_text().strip())
        if match:
            sizes.append(int(match[1]) << (10 if match[2] == "K" else 20))
    return max(sizes, default=32 * 2**20)


def ceilings_table(found: Sequence[Ceilings]) -> Table:
    """Ceilings side by side."""
    table = Table(title=f"Measured ceilings, {found[0].device}", box=SIMPLE, title_justify="left")
    table.add_column("")
    for one in found:
        header = "GPU" if one.threads is None else f"{one.threads} thread{'s' if one.threads > 1 else ''}"
        table.add_column(header, justify="right")
        table.add_column("by")
    kinds = dict.fromkeys(kind for one in found for kind in one.operations)
    for kind in kinds:
        cells = []
        for one in found:
            rate = one.operations.get(kind)
            cells += [f"{rate / 1e9:.0f} G/s" if rate else "-", one.by.get(kind, "")]
        table.add_row(f"{kind} operations", *cells)
    table.add_row("memory", *(cell for one in found for cell in (f"{one.bandwidth / 1e9:.1f} GB/s", "")))
    table.add_row("measured", *(cell for one in found for cell in (_told_age(one), "")))
    return table


def _told_age(found: Ceilings) -> str:
    days = found.age_days
    return "just now" if days < 1 / 24 else f"{days * 24:.0f} h ago" if days < 2 else f"{days:.0f} days ago"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(prog="python -m yolact_bench.ceilings", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", help="how many (default: 1 and all cores)")
    parser.add_argument("--fresh", action="store_true", help="measure again; the faster counts")
    parser.add_argument("--gpu", action="store_true", help="the first GPU instead of the CPU")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    return run(_command, parser, argv)


def _command(args: argparse.Namespace) -> int:
    if args.gpu:
        found = [gpu_ceilings()]
    else:
        counts = args.threads or sorted({1, usable_cores()})
        found = [ceilings(count, args.fresh) for count in counts]
    table_console().print(ceilings_table(found))
    if args.json:
        write_json(args.json, [one.to_json() for one in found], indent=2)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
