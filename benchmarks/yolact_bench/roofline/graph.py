"""The work of a graph under the ceilings of a device."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from yolact_bench.roofline.ceilings import KINDS, PRECISIONS, Ceilings, ceilings, gpu_ceilings
from yolact_bench.roofline.count import count_file
from yolact_bench.roofline.work import PARTS, GraphWork, Work
from yolact_runtime.errors import UsageError, YolactError, without_secrets

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reached:
    """The least times of a call under ceilings, in milliseconds, and their shares of the measured time.

    `compute_ms` is all operations at their ceilings, `memory_ms` weights, inputs and outputs through the
    memory once, `floor_ms` the longer of both, and `kernels_ms` the sum over all kernels.
    """

    compute_ms: float
    memory_ms: float
    floor_ms: float
    kernels_ms: float
    measured_ms: float | None = None
    share: float | None = None
    kernels_share: float | None = None


@dataclass(frozen=True)
class Roofline:
    """The work of the graph in the file `path`; see the module `work` for how it is counted."""

    path: Path
    work: GraphWork

    def parts(self) -> dict[str, tuple[Work, Work]]:
        """Unfused and fused work of each part of the network that has any, then of all."""
        found = {}
        for part in (*PARTS, "all"):
            unfused, fused = (
                Work.sum(node.work for node in nodes if part in ("all", node.part))
                for nodes in (self.work.unfused, self.work.fused)
            )
            if unfused.bytes or part == "all":
                found[part] = unfused, fused
        return found

    def kernels_seconds(self, limits: Ceilings, part: str = "all") -> float:
        """Kernel by kernel, the longer time of its operations and its bytes, for a part or for "all"."""
        return sum(
            max(_compute_seconds(node.work, limits), node.work.bytes / limits.bandwidth)
            for node in self.work.fused
            if part in ("all", node.part)
        )

    def reached(
        self, limits: Ceilings, measured_ms: float | None = None, precision: str | None = None
    ) -> Reached:
        """The least time of a call under ceilings, and its share of a measured time.

        `limits` are those of the device that it runs on, with the same number of threads; `precision` is what
        the engine really computes in, see `computing`, or None for what the graph says.

        Raises:
            UsageError: a time that is not positive, or an unknown precision.
            YolactError: a type of arithmetic has no ceiling, and neither has float32 as its fallback.
        """
        if measured_ms is not None and not measured_ms > 0:
            raise UsageError(f"measured_ms is {measured_ms}; it must be greater than 0")
        if precision is not None:
            limits = self.computing(limits, precision)
        compute = 1000 * _compute_seconds(self.work.floor, limits)
        memory = 1000 * self.work.floor.bytes / limits.bandwidth
        floor, kernels = max(compute, memory), 1000 * self.kernels_seconds(limits)
        shares = (measured_ms, floor / measured_ms, kernels / measured_ms) if measured_ms else ()
        return Reached(compute, memory, floor, kernels, *shares)

    def computing(self, limits: Ceilings, precision: str) -> Ceilings:
        """The ceilings for an engine that computes this graph in `precision`.

        "fp32", "bf16" and "fp16" replace every type of the graph. "int8" replaces its float32, unless it has
        int8 layers of its own: the others are float32 on purpose, and "int8+bf16" computes these in bf16.

        Raises:
            UsageError: an unknown precision.
        """
        if precision not in PRECISIONS:
            raise UsageError(f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}")
        kind = KINDS.get(precision, "bfloat16")
        replaced = ["float32"] if "int8" in precision else list(KINDS.values())
        if precision == "int8" and "int8" in self.work.floor.operations:
            return limits
        return replace(limits, operations=limits.operations | dict.fromkeys(replaced, limits.rate(kind)))

    def to_json(self) -> dict[str, Any]:
        """Operations and bytes of each part and of all, for one call of `batch` images."""
        parts = self.parts()
        unfused, fused = parts["all"]
        works = {"unfused": unfused, "fused": fused, "floor": self.work.floor}
        return {
            "onnx": self.path.name,
            "batch": self.work.batch,
            "operations": self.work.floor.operations,
            "bytes": {name: one.bytes for name, one in works.items()} | {"weights": unfused.weights},
            "parts": {
                part: {"unfused": asdict(before), "fused": asdict(after)}
                for part, (before, after) in parts.items()
            },
            "unknown": list(self.work.unknown),
        }


def roofline(path: str | Path, batch: int = 1) -> Roofline:
    """Count the work of an ONNX file for a call of `batch` images.

    Raises:
        UsageError: less than 1, or the file is for another batch size.
        YolactError: not an ONNX file, or nothing in it can be counted.
    """
    return Roofline(Path(path), count_file(Path(path), batch))


def roofline_share(
    path: str | Path, batch: int, measured_ms: float, gpu: bool, threads: int | None, precision: str | None
) -> dict[str, Any] | None:
    """The field "roofline" of an engine in a report, see `report/schema.json`.

    Args:
        path: The engine's file.
        batch: Images in a call.
        measured_ms: Median of a call, network only.
        gpu: Under the ceilings of the first GPU instead of the CPU's.
        threads: Of the engine on the CPU; None for all cores.
        precision: See `Roofline.computing`; None for what the graph says.

    Returns:
        None, and a warning, if it is no ONNX file, or nothing in it can be counted.
    """
    try:
        if Path(path).suffix.lower() != ".onnx":
            raise UsageError("only ONNX files can be counted")
        graph = roofline(path, batch)
        limits = gpu_ceilings() if gpu else ceilings(threads)
        reached = graph.reached(limits, measured_ms, precision)
    except YolactError as error:
        log.warning("no roofline of %s: %s", without_secrets(str(path)), error)
        return None
    return {
        "batch": batch,
        "precision": precision,
        "flops": sum(graph.work.floor.operations.values()),
        "bytes": graph.work.floor.bytes,
        "ceilings": {
            "device": limits.device,
            "threads": limits.threads,
            "flops_per_second": dict(limits.operations),
            "bytes_per_second": limits.bandwidth,
        },
        **asdict(reached),
    }


def _compute_seconds(work: Work, limits: Ceilings) -> float:
    """Seconds of all operations at their ceilings."""
    return sum(count / limits.rate(kind) for kind, count in work.operations.items())
