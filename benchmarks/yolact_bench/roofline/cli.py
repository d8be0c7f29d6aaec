"""`yolact-bench roofline`: the least time of an ONNX graph on a machine, and the share of it reached.

docs/explanation/rooflines.md says what is counted and measured, and what the shares mean.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from yolact_bench.options import LONGEST, check_number
from yolact_bench.roofline.ceilings import PRECISIONS, Ceilings, ceilings, ceilings_table, gpu_ceilings
from yolact_runtime.commandline import Table, print_line, printing_beside
from yolact_runtime.errors import UsageError
from yolact_runtime.files import write_json
from yolact_runtime.packages import require

if TYPE_CHECKING:
    from yolact_bench.roofline.graph import Roofline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench roofline`."""
    parser.add_argument("--onnx", metavar="F", help="the graph, in any precision (default: ceilings only)")
    parser.add_argument("--batch", type=int, default=1, help="images in a call")
    text = "CPU threads of the ceilings (default: all cores; without --onnx 1 and all cores)"
    parser.add_argument("--threads", type=int, nargs="+", metavar="N", help=text)
    parser.add_argument("--gpu", action="store_true", help="ceilings of the first GPU instead of the CPU")
    parser.add_argument("--fresh", action="store_true", help="measure the ceilings again; the faster counts")
    parser.add_argument("--measured-ms", type=float, metavar="X", help="of a call: shows the share reached")
    text = "what the engine really computes in; the file decides that of --layers, except for bf16"
    parser.add_argument("--precision", choices=PRECISIONS, help=text)
    text = "profile the graph in OpenVINO: the N layers that lose most time (default: 20), and why"
    parser.add_argument("--layers", type=int, nargs="?", const=20, metavar="N", help=text)
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")


def command(args: argparse.Namespace) -> None:
    """Print ceilings, and the roofline of `--onnx` under them."""
    require("yolact-bench roofline", "train", "onnx", "sympy")
    from yolact_runtime.engines.threads import usable_cores

    check_number("--measured-ms", args.measured_ms, 1e-9, 1000 * LONGEST)
    for count in args.threads or ():
        check_number("--threads", count, 1, "threads")
    check_number("--layers", args.layers, 1, 10**6)
    if args.layers is not None and (args.gpu or args.measured_ms or args.onnx is None):
        raise UsageError("--layers needs --onnx, and does without --gpu and --measured-ms")
    counts = args.threads or ([usable_cores()] if args.onnx is not None else sorted({1, usable_cores()}))
    if args.onnx is not None and len(counts) > 1:
        raise UsageError(f"--threads {' '.join(map(str, counts))}: with --onnx, give one number")
    if args.onnx is None:
        limits = [gpu_ceilings()] if args.gpu else [ceilings(count, args.fresh) for count in counts]
        with printing_beside(args.json):
            ceilings_table(limits).show()
        if args.json:
            write_json(args.json, [asdict(one) for one in limits], indent=2)
        return
    if args.layers is not None:
        _layers(args, counts[0])
        return
    from yolact_bench.roofline.graph import roofline

    found = roofline(args.onnx, args.batch)
    limit = gpu_ceilings() if args.gpu else ceilings(counts[0], args.fresh)
    if args.precision:
        limit = found.computing(limit, args.precision)
    reached = found.reached(limit, args.measured_ms)
    lines = [
        f"floor {reached.floor_ms:.2f} ms (operations {reached.compute_ms:.2f}, weights, inputs and outputs"
        f" {reached.memory_ms:.2f}); kernel by kernel {reached.kernels_ms:.2f} ms"
    ]
    if reached.measured_ms:
        lines.append(
            f"measured {reached.measured_ms:.2f} ms: {reached.share:.1%} of the roofline by the floor,"
            f" {reached.kernels_share:.1%} kernel by kernel"
        )
    if found.work.unknown:
        lines.append(f"{len(found.work.unknown)} nodes with unknown shapes are not counted")
    with printing_beside(args.json):
        roofline_table(found, limit).show()
        ceilings_table([limit]).show()
        for line in lines:
            print_line(line, sys.stdout)
    if args.json:
        figures = {**found.to_json(), "ceilings": asdict(limit), "reached": asdict(reached)}
        write_json(args.json, figures, indent=2)


def _layers(args: argparse.Namespace, threads: int) -> None:
    """Print where the layers of `--onnx` lose time."""
    from pathlib import Path

    from yolact_bench.roofline.layers import layers_table, measure_layers, reasons_table, to_json

    limit = ceilings(threads, args.fresh)
    found, limit = measure_layers(Path(args.onnx), limit, args.batch, bf16="bf16" in (args.precision or ""))
    with printing_beside(args.json):
        layers_table(found, args.layers).show()
        reasons_table(found).show()
        ceilings_table([limit]).show()
    if args.json:
        figures = {"onnx": Path(args.onnx).name, "batch": args.batch, "precision": args.precision}
        write_json(args.json, {**figures, "ceilings": asdict(limit), "layers": to_json(found)}, indent=2)


def roofline_table(found: Roofline, limits: Ceilings) -> Table:
    """Parts of the network with their operations, bytes and, under ceilings, least times."""
    rows = []
    for part, (unfused, fused) in found.parts().items():
        count = sum(fused.operations.values())
        kinds = ", ".join(kind for kind, value in fused.operations.items() if value)
        amounts = (unfused.weights, unfused.bytes, fused.bytes)
        rows.append(
            [
                *(part, kinds, f"{count / 1e9:.2f}" if count else "-"),
                *(f"{amount / 1e6:.1f}" for amount in amounts),
                f"{count / fused.bytes:.0f}" if count else "-",
                f"{1000 * found.kernels_seconds(limits, part):.2f}",
            ]
        )
    return Table(
        f"{found.path.name}, a call of {found.work.batch}",
        ("", "in", "Gop", "MB of weights", "MB moved", "fused", "op/byte", "kernels ms"),
        rows,
        "Gop: operations of convolutions and matrix products, a multiply-add is 2. Moved: every node reads"
        " and writes memory; fused: element-wise work costs no more.",
        text_columns=2,
    )
