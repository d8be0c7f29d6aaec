"""What a graph has to do, under the ceilings of a device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from yolact_bench.roofline.ceilings import Ceilings
from yolact_bench.roofline.work import PARTS, GraphWork, Work, count_work
from yolact_export.onnx_graph import read_graph
from yolact_runtime.errors import UsageError, YolactError

KINDS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8"}
PRECISIONS = (*KINDS, "int8+bf16")


@dataclass(frozen=True)
class Reached:
    """A graph under ceilings; times in milliseconds for a call.

    Attributes:
        compute_ms: All operations at their ceilings.
        memory_ms: Weights, inputs and outputs through the memory once.
        floor_ms: The longer of these.
        kernels_ms: Kernel by kernel.
        measured_ms: What a call took; None where nothing was measured.
        share: `floor_ms` over `measured_ms`.
        kernels_share: `kernels_ms` over `measured_ms`.
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
    """What a graph has to do; see `work` for how it is counted.

    Attributes:
        path: The file.
        work: Counted.
    """

    path: Path
    work: GraphWork

    @property
    def operations(self) -> dict[str, int]:
        """Of all convolutions and matrix products, by type; a multiplication and an addition are 2."""
        return dict(self.work.floor.operations)

    def parts(self) -> dict[str, tuple[Work, Work]]:
        """Unfused and fused work of each part of the network that has any, then of all."""
        kinds = (self.work.unfused, self.work.fused)
        parts = {}
        for part in PARTS:
            unfused, fused = (Work.sum(node.work for node in nodes if node.part == part) for nodes in kinds)
            if unfused.bytes:
                parts[part] = (unfused, fused)
        unfused, fused = (Work.sum(node.work for node in nodes) for nodes in kinds)
        return {**parts, "all": (unfused, fused)}

    def kernels_seconds(self, limits: Ceilings, part: str | None = None) -> float:
        """Kernel by kernel, the longer of its operations and its bytes, for a part or all of it."""
        return sum(
            max(_compute_seconds(node.work, limits), node.work.bytes / limits.bandwidth)
            for node in self.work.fused
            if part in (None, node.part)
        )

    def reached(
        self, limits: Ceilings, measured_ms: float | None = None, precision: str | None = None
    ) -> Reached:
        """The least time under ceilings, and the share of it that a measured call reached.

        Args:
            limits: Of the device that it runs on, with as many threads.
            measured_ms: Milliseconds that a call of `work.batch` images took.
            precision: What the engine really computes in, one of `PRECISIONS`. "fp32", "bf16" and "fp16"
                hold for whatever the graph says; "int8" for its float32, but not where it has int8 of its
                own: then it left something in float32 on purpose, which "int8+bf16" computes in bf16. The
                bytes stay those of the graph.

        Raises:
            UsageError: a time that is not positive, or an unknown precision.
            YolactError: a type of arithmetic has no ceiling, and float32 none to stand in for it.
        """
        if measured_ms is not None and not measured_ms > 0:
            raise UsageError(f"measured_ms is {measured_ms}; it must be greater than 0")
        if precision is not None:
            limits = self.computing(limits, precision)
        compute = 1000 * _compute_seconds(self.work.floor, limits)
        memory = 1000 * self.work.floor.bytes / limits.bandwidth
        floor, kernels = max(compute, memory), 1000 * self.kernels_seconds(limits)
        if measured_ms is None:
            return Reached(compute, memory, floor, kernels)
        return Reached(
            compute, memory, floor, kernels, measured_ms, floor / measured_ms, kernels / measured_ms
        )

    def computing(self, limits: Ceilings, precision: str) -> Ceilings:
        """The ceilings for an engine that computes this graph in `precision`; see `reached`.

        Raises:
            UsageError: an unknown precision.
        """
        if precision not in PRECISIONS:
            raise UsageError(f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}")
        if precision == "int8+bf16":
            as_bf16 = limits.operations.get("bfloat16") or limits.operations.get("float32")
            return replace(limits, operations=limits.operations | ({"float32": as_bf16} if as_bf16 else {}))
        rate = limits.operations.get(KINDS[precision]) or limits.operations.get("float32")
        if not rate or (precision == "int8" and "int8" in self.operations):
            return limits
        replaced = ["float32"] if precision == "int8" else KINDS.values()
        return replace(limits, operations=limits.operations | dict.fromkeys(replaced, rate))

    def to_json(self) -> dict[str, Any]:
        """Operations and bytes of each part and of all, for one call of `batch` images."""
        return {
            "onnx": self.path.name,
            "batch": self.work.batch,
            "operations": self.operations,
            "bytes": {
                name: Work.sum(node.work for node in nodes).bytes
                for name, nodes in (("unfused", self.work.unfused), ("fused", self.work.fused))
            }
            | {"floor": self.work.floor.bytes, "weights": self.work.floor.weights},
            "parts": {
                part: {"unfused": asdict(unfused), "fused": asdict(fused)}
                for part, (unfused, fused) in self.parts().items()
            },
            "unknown": list(self.work.unknown),
        }


def roofline(path: str | Path, batch: int = 1) -> Roofline:
    """Count what an ONNX file has to do for a call of `batch` images.

    Raises:
        UsageError: less than 1, or the file is for another batch.
        YolactError: not an ONNX file, or nothing in it can be counted.
    """
    return Roofline(Path(path), count_work(read_graph(path), batch))


def _compute_seconds(work: Work, limits: Ceilings) -> float:
    seconds = 0.0
    for kind, count in work.operations.items():
        # A device without a type computes it in float32.
        rate = limits.operations.get(kind) or limits.operations.get("float32")
        if not rate:
            raise YolactError(f"no ceiling for {kind} was measured on {limits.device}")
        seconds += count / rate
    return seconds
