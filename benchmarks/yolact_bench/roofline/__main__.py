"""How fast a graph could run on a machine at most, and the share of that which was reached.

    python -m yolact_bench.roofline --onnx F [--batch N] [--threads T] [--measured-ms X] [--json FILE]

Operations and bytes are counted from the graph (`work`), ceilings are measured (`ceilings`). Two times
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
from dataclasses import asdict

from rich.box import SIMPLE
from rich.table import Table

from yolact_bench.roofline.ceilings import Ceilings, ceilings, ceilings_table, gpu_ceilings
from yolact_bench.roofline.graph import PRECISIONS, Reached, Roofline, roofline
from yolact_runtime.commandline import Parser, run, table_console
from yolact_runtime.files import write_json


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
    parser.add_argument("--precision", choices=PRECISIONS, help="what the engine really computes in")
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
