"""How fast a graph could run on a machine at most, and the share of that which was reached.

    python -m yolact_bench.roofline --onnx F [--batch N] [--threads T] [--measured-ms X] [--json FILE]

Operations and bytes are counted from the graph (`graph_work`), ceilings are measured (`ceilings`). Two times
cannot be beaten with such ceilings:

    floor     all operations at their ceilings, or weights, inputs and outputs through the memory, whichever
              takes longer: everything between stays in caches, and both overlap fully
    kernels   the same for each fused kernel with all it reads and writes, one after the other: what perfect
              kernels would take where activations pass through memory

The share reached is such a time over the measured one. It may exceed 1 where a kernel does fewer operations
than it says (Winograd), or better than the libraries that the ceilings were measured with.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from yolact_bench.ceilings import Ceilings, ceilings, ceilings_table, gpu_ceilings
from yolact_bench.graph_work import PARTS, GraphWork, Work, count_work
from yolact_export.inspection import read_graph
from yolact_runtime.commandline import Parser, run, table_console
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import write_json

KINDS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8"}


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
    """What a graph has to do; see `graph_work` for how it is counted.

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
            precision: What the engine really computes in. "fp32", "bf16" and "fp16" hold for whatever the
                graph says; "int8" for its float32, but not where it has int8 of its own: then it left
                something in float32 on purpose. The bytes stay those of the graph.

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
        if precision not in KINDS:
            raise UsageError(f"precision is {precision!r}; allowed: {', '.join(KINDS)}")
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


def roofline_table(found: Roofline, limits: Ceilings | None = None) -> Table:
    """Parts of the network with their operations, bytes and, under ceilings, least times."""
    title = f"{found.path.name}, a call of {found.work.batch}"
    table = Table(title=title, box=SIMPLE, title_justify="left")
    table.add_column("")
    for column in ("Gop", "MB of weights", "MB moved", "fused", "op/byte"):
        table.add_column(column, justify="right")
    table.add_column("in")
    if limits:
        table.add_column("kernels ms", justify="right")
    parts = found.parts()
    for part, (unfused, fused) in parts.items():
        count = sum(fused.operations.values())
        cells = [
            f"{count / 1e9:.2f}" if count else "-",
            f"{unfused.weights / 1e6:.1f}",
            f"{unfused.bytes / 1e6:.1f}",
            f"{fused.bytes / 1e6:.1f}",
            f"{count / fused.bytes:.0f}" if count else "-",
            ", ".join(kind for kind, value in fused.operations.items() if value),
        ]
        if limits:
            seconds = found.kernels_seconds(limits, None if part == "all" else part)
            cells.append(f"{1000 * seconds:.2f}")
        table.add_row(part, *cells, end_section=part == list(parts)[-2])
    return table


def told(reached: Reached) -> str:
    """The times of `Reached`, in words."""
    lines = [
        f"floor {reached.floor_ms:.2f} ms (operations {reached.compute_ms:.2f}, weights, inputs and outputs"
        f" {reached.memory_ms:.2f}); kernel by kernel {reached.kernels_ms:.2f} ms"
    ]
    if reached.share is not None and reached.kernels_share is not None:
        lines.append(
            f"measured {reached.measured_ms:.2f} ms: {reached.share:.1%} of the roofline by the floor,"
            f" {reached.kernels_share:.1%} kernel by kernel"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(prog="python -m yolact_bench.roofline", description=__doc__.split("\n")[0])
    parser.add_argument("--onnx", required=True, metavar="F", help="the graph, in whatever precision")
    parser.add_argument("--batch", type=int, default=1, help="images in a call")
    parser.add_argument("--threads", type=int, help="CPU threads of the ceilings (default: all cores)")
    parser.add_argument("--gpu", action="store_true", help="ceilings of the first GPU instead of the CPU")
    parser.add_argument("--fresh", action="store_true", help="measure the ceilings again")
    parser.add_argument(
        "--measured-ms", type=float, metavar="X", help="what a call took: shows the share reached"
    )
    parser.add_argument("--precision", choices=KINDS, help="what the engine really computes in")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    return run(_command, parser, argv)


def _command(args: argparse.Namespace) -> int:
    found = roofline(args.onnx, args.batch)
    limits = gpu_ceilings() if args.gpu else ceilings(args.threads, args.fresh)
    if args.precision:
        limits = found.computing(limits, args.precision)
    reached = found.reached(limits, args.measured_ms)
    console = table_console()
    console.print(roofline_table(found, limits))
    console.print(ceilings_table([limits]))
    console.print(told(reached), highlight=False)
    if found.work.unknown:
        console.print(f"{len(found.work.unknown)} nodes with unknown shapes are not counted", highlight=False)
    console.print(
        "Gop: operations of convolutions and matrix products, a multiply-add is 2. Moved: every node reads"
        " and writes memory; fused: what is done element by element costs nothing more.",
        highlight=False,
    )
    if args.json:
        figures = {**found.to_json(), "ceilings": limits.to_json(), "reached": asdict(reached)}
        write_json(args.json, figures, indent=2)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
