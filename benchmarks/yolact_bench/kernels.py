"""`yolact-bench kernels`: each kernel launch against the time that its bytes need at least.

The heads are synthetic: a few objects per image, with the given number of priors above the threshold around
them. A launch is timed with cold caches. Its floor is the bytes that it has to move, divided by the bandwidth
of copies in the same GPU's memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from yolact_bench.options import check_number, parse_size
from yolact_runtime.commandline import Table, print_line, printing_beside
from yolact_runtime.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench kernels`."""
    parser.add_argument("--config", default="yolact_resnet50", help="use the priors and classes of this one")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="images in one call")
    parser.add_argument("--half", action="store_true", help="heads and prototypes in float16")
    parser.add_argument("--candidates", type=int, default=1000, help="priors per image above the threshold")
    parser.add_argument("--image-size", default="480x640", metavar="HxW", help="size of the masks in pixels")
    parser.add_argument("--repeats", type=int, default=50, help="runs of each plan")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic heads")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")


def command(args: argparse.Namespace) -> int:
    """Measure the kernels, print tables and write the JSON; returns the exit code.

    Raises:
        UsageError: an option is outside what is allowed.
        YolactError: there is no GPU, or a package is missing.
    """
    from yolact import get_config
    from yolact_bench.kernel_measurements import make_inputs, measure
    from yolact_bench.measure.machine import describe_machine
    from yolact_runtime.cuda.device import Device
    from yolact_runtime.cuda.timing import copy_bandwidth

    for size in args.batch:
        check_number("--batch", size, 1, "batch")
    check_number("--repeats", args.repeats, 1, "runs")
    check_number("--seed", args.seed, 0, 2**63 - 1)
    config, (height, width) = get_config(args.config), parse_size("--image-size", args.image_size)
    with Device() as device, device.current:
        bandwidth = copy_bandwidth(device)
        runs = []
        for batch in args.batch:
            inputs = make_inputs(config, batch, args.candidates, args.half, args.seed)
            runs.append(measure(device, config, inputs, (height, width), args.repeats, bandwidth))
        report = {
            "gpu": dataclasses.asdict(device.gpu),
            "bandwidth": bandwidth,
            "config": args.config,
            "half": args.half,
            "image_size": [height, width],
            "machine": describe_machine(),
            "runs": runs,
        }
    with printing_beside(args.json):
        _print(report)
    if args.json:
        write_json(args.json, report)
    return 0


def _print(report: Mapping[str, Any]) -> None:
    """Print one table per batch size."""
    from yolact_bench.kernel_measurements import WHOLE

    gpu, kind = report["gpu"], "float16" if report["half"] else "float32"
    versions = ", ".join(f"{name} {found}" for name, found in report["machine"]["versions"].items())
    out = sys.stdout
    print_line(f"{gpu['name']}, compute capability {gpu['capability']}, CUDA {gpu['cuda']}", out)
    print_line(f"copies move {report['bandwidth'] / 1e9:.0f} GB/s, read and written; {versions}", out)
    for one in report["runs"]:
        rows = [
            [
                f"{row['plan']}, all" if row["kernel"] == WHOLE else row["kernel"],
                *(f"{row['microseconds']:.1f}", f"{row['bytes']:,}", f"{row['floor_microseconds']:.1f}"),
                "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            ]
            for row in one["rows"]
        ]
        Table(
            f"{report['config']}, {kind}, batch {one['batch']}: {one['candidates']:.0f} candidates,"
            f" {one['detections']:.0f} detections per image",
            ("kernel", "median us", "bytes", "floor us", "times the floor"),
            rows,
        ).show()
        for name, timing in (one["eager"] or {}).items():
            time = f"{1000 * timing['median']:.1f} us by the host's clock"
            print_line(f"detection by {name}: {time}", out)
