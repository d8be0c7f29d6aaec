"""End to end against the original's way of working, in one interleaved run.

    python -m yolact_bench.original --weights W.pth --engine F.onnx [--engine G.xml:precision=bf16 ...] \
        --images DIR [--threads 2]

`OriginalOrder` restates, from scratch, what the original implementation of YOLACT computes for one image
and in which order: one image at a time, softmax over all priors, scores transposed to class-first and
filtered, fast NMS that sorts every class over all priors that are left, masks of all detections enlarged to
the whole image as floats and compared with 0.5, each whole mask encoded by pycocotools. The network is ours
with the same weights, so the figure speaks of the work around the network and of the runtime, not of the
layers. It is kept for this comparison only; `yolact.model.detect` is the implementation to use.

Beside the time by the clock stands the processor time of all threads, which a busy machine disturbs less.

The agreement that is printed is 1 to 1 where the file was exported with `--input-type float32`. With uint8
input the resized picture is rounded first, and instances near a threshold may differ.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table

import yolact
from yolact_bench.agreement import agreement
from yolact_bench.engines import different_names, open_engine, parse_engine
from yolact_bench.machine import describe_machine
from yolact_bench.original.order import OriginalOrder
from yolact_bench.protocol import Timing, ratios, take_turns
from yolact_runtime import Engine
from yolact_runtime.commandline import Parser, run, table_console
from yolact_runtime.errors import UsageError
from yolact_runtime.files import write_json
from yolact_runtime.sources.images import list_images, read_image

log = logging.getLogger(__name__)


def deployed(engine: Engine) -> Callable[[Path], dict[str, Any]]:
    """The same work by an engine: image file to run lengths of everything it keeps."""

    def work(path: Path) -> dict[str, Any]:
        (result,) = engine.predict([read_image(path)], 0.0, engine.metadata.max_detections)
        return {"boxes": result.boxes, "classes": result.classes, "rles": result.rles}

    return work


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(
        prog="python -m yolact_bench.original",
        description="File to run lengths: the original's order of work in PyTorch against exported files.",
    )
    parser.add_argument("--weights", required=True, metavar="W", help="checkpoint, run the original's way")
    parser.add_argument(
        "--engine",
        "--onnx",
        action="append",
        required=True,
        metavar="E[:KEY=VALUE,...]",
        dest="engines",
        help="the same model, exported, with options such as g.xml:precision=bf16; repeat for several",
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of images, used in turn")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each")
    parser.add_argument("--runs", type=int, default=200, help="at most so many images each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of all")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    return run(_compare, parser, argv)


def _compare(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    images = list_images([args.images])
    with contextlib.ExitStack() as stack:
        ways: dict[str, Callable[[Path], dict[str, Any]]] = {
            "original": OriginalOrder(yolact.load_model(args.weights))
        }
        backends = {"original": ("PyTorch (cpu)", "fp32")}
        specs = [parse_engine(text) for text in args.engines]
        for name, spec in zip(different_names(specs), specs, strict=True):
            if name in ways:
                raise UsageError(
                    f"--engine {spec.path}: {name} is the name of the checkpoint's row; choose another"
                )
            engine = stack.enter_context(open_engine(spec.path, {"threads": args.threads, **spec.options}))
            ways[name] = deployed(engine)
            backends[name] = engine.name, engine.precision
        samples = {name: work(images[0]) for name, work in ways.items()}
        times, processor = take_turns(
            {name: _over(work, images) for name, work in ways.items()}, args.seconds, args.runs
        )
    timings = {name: Timing.of(taken) for name, taken in times.items()}
    processor_ms = {name: float(np.median(taken)) * 1000 for name, taken in processor.items()}
    first, *others = ways
    agreements = {name: agreement(samples[first], samples[name]) for name in others}
    found = len(samples[first]["rles"])
    table = Table(title="Image file to run lengths, ms per image", box=SIMPLE, title_justify="left")
    for column in ("", "backend", "precision"):
        table.add_column(column)
    for column in ("median", "p90", "p95", "processor", "images", "times as fast", "found", "IoU"):
        table.add_column(column, justify="right")
    for name, timing in timings.items():
        figures = (timing.median, timing.p90, timing.p95, processor_ms[name])
        same, iou = agreements.get(name, (found, 1.0))
        table.add_row(
            name,
            *backends[name],
            *(f"{value:.1f}" for value in figures),
            str(timing.runs),
            f"{ratios(timings)[name]:.2f}",
            f"{same}/{found}",
            f"{iou:.4f}",
        )
    console = table_console()
    console.print(table)
    console.print(
        f"{args.threads} threads, {len(images)} images; found: instances of the original again, on"
        f" {images[0].name}, and their mean mask IoU",
        highlight=False,
    )
    if args.json:
        write_json(
            args.json,
            {
                "machine": describe_machine(),
                "threads": args.threads,
                "timings": {name: asdict(timing) for name, timing in timings.items()},
                "engines": {
                    name: {"backend": backend, "precision": precision}
                    for name, (backend, precision) in backends.items()
                },
                "processor_ms": processor_ms,
                "times_as_fast": ratios(timings),
                "instances": found,
                "agreement": {
                    name: {"matched": same, "mask_iou": iou} for name, (same, iou) in agreements.items()
                },
            },
            indent=2,
        )
    return 0


def _over(work: Callable[[Path], object], images: Sequence[Path]) -> Callable[[], float]:
    """One run on the next image, returning the processor time of all threads in seconds."""
    turn = cycle(images)

    def once() -> float:
        start = time.process_time()
        work(next(turn))
        return time.process_time() - start

    return once


if __name__ == "__main__":
    raise SystemExit(main())
