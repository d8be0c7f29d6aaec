"""`yolact-bench peers`: the same images through our engine and other implementations, in turns."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from yolact_bench.agreement import agreement
from yolact_bench.contender import Contender, Run
from yolact_bench.machine import describe_machine, usable_cores
from yolact_bench.protocol import Timing, take_turns
from yolact_bench.stages import EngineContender
from yolact_runtime import Engine, load_engine
from yolact_runtime.commandline import Parser, table_console
from yolact_runtime.commandline import run as run_command
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import write_json
from yolact_runtime.sources.images import list_images

log = logging.getLogger(__name__)

SCHEMA = "yolact-bench-peers/1"
AGREE_ON = 5  # images


@dataclass(frozen=True)
class PeerReport:
    """The figures of one contender; times are milliseconds of one image.

    Attributes:
        name: In tables.
        backend: What runs it.
        config: The model.
        precision: Of its arithmetic.
        input_size: Side of the input in pixels; None where it varies.
        licence: Of its code.
        note: What a reader must know to compare.
        detections: Mean of an image.
        network: The network and its detection, on an image in memory.
        network_ratio: How many times as fast as the first contender, by medians of the rounds both ran in.
        end_to_end: Image file to run lengths.
        end_to_end_ratio: As above.
        stages: Median of each, end to end.
    """

    name: str
    backend: str
    config: str
    precision: str
    input_size: int | None
    licence: str
    note: str
    detections: float
    network: Timing
    network_ratio: float
    end_to_end: Timing
    end_to_end_ratio: float
    stages: dict[str, float]


def compare(
    contenders: Sequence[Contender], images: Sequence[Path], seconds: float, runs: int
) -> list[PeerReport]:
    """Measure contenders one image at a time, taking turns; ratios refer to the first.

    Raises:
        UsageError: no time, or no runs.
        YolactError: an image cannot be read, or a contender failed.
    """
    for contender in contenders:
        contender.prepare(images, 1)
    alone, _ = take_turns({contender.name: contender.alone for contender in contenders}, seconds, runs)
    whole, found = take_turns(
        {contender.name: _over(contender, images) for contender in contenders}, seconds, runs
    )
    first, reports = contenders[0].name, []
    for contender in contenders:
        name = contender.name
        made = found[name]
        reports.append(
            PeerReport(
                name=name,
                backend=contender.backend,
                config=contender.config,
                precision=contender.precision,
                input_size=contender.input_size,
                licence=getattr(contender, "licence", "MIT"),
                note=contender.note,
                detections=float(np.mean([one.detections for one in made])),
                network=Timing.of(alone[name]),
                network_ratio=_ratio(alone[first], alone[name]),
                end_to_end=Timing.of(whole[name]),
                end_to_end_ratio=_ratio(whole[first], whole[name]),
                stages={
                    stage: 1000 * float(np.median([one.seconds[stage] for one in made]))
                    for stage in made[0].seconds
                },
            )
        )
    return reports


def _ratio(first: np.ndarray, other: np.ndarray) -> float:
    rounds = min(len(first), len(other))
    return float(np.median(first[:rounds]) / np.median(other[:rounds]))


def agree(first: Contender, second: Contender, images: Sequence[Path]) -> dict[str, float] | None:
    """How far two contenders of the same weights find the same.

    Returns:
        `instances` of the first in these images, how many of them `matched` one of the second of their
        category with a mask IoU above 0.9, and the mean `mask_iou` of these; None where classes differ.
    """
    instances = matched = 0
    overlap = 0.0
    for number, path in enumerate(images):
        results = [contender.to_coco(path, number) for contender in (first, second)]
        if results[0] is None or results[1] is None:
            return None
        sides = [
            {
                "classes": [entry["category_id"] for entry in entries],
                "rles": [entry["segmentation"] for entry in entries],
            }
            for entries in results
            if entries is not None
        ]
        same, iou = agreement(*sides)
        instances += len(results[0])
        matched += same
        overlap += same * iou
    return {
        "images": len(images),
        "instances": instances,
        "matched": matched,
        "mask_iou": overlap / matched if matched else 0.0,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `yolact-bench peers`."""
    parser.add_argument("--engine", required=True, metavar="E", help="ours; ratios refer to it")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of images, used in turn")
    group = parser.add_argument_group("peers (at least one)")
    group.add_argument("--torchvision", action="store_true", help="Mask R-CNN R50-FPN, random weights")
    group.add_argument("--torchvision-weights", metavar="FILE", help="its published weights, .pth")
    group.add_argument(
        "--ultralytics",
        action="append",
        default=[],
        metavar="YAML",
        help="a segmentation model such as yolo11n-seg.yaml, random weights (AGPL-3.0); repeat for several",
    )
    group.add_argument("--original", metavar="PATH", help="a checkout of github.com/dbolya/yolact")
    group.add_argument("--weights", metavar="W", help="for the original: the .pth that E was exported from")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the peers run")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="CPU threads of all")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each contender and kind")
    parser.add_argument("--runs", type=int, default=200, help="at most so many runs of each and kind")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code.

    Raises:
        UsageError: no peer was asked for, or one without what it needs.
        YolactError: none of those asked for can run here.
    """
    if args.threads < 1:
        raise UsageError(f"--threads is {args.threads}; it must be 1 or more")
    images = list_images([args.images])
    cv2.setNumThreads(args.threads)
    with ExitStack() as stack:
        engine = _open(args.engine, args.device, args.threads)
        ours = EngineContender(Path(args.engine).name, engine)
        stack.callback(ours.close)
        peers = []
        for make in _makers(args, engine):
            try:
                peer = make()
            except UsageError:
                raise
            except YolactError as error:
                log.warning("left out: %s", error)
                continue
            stack.callback(peer.close)
            peers.append(peer)
        if not peers:
            raise YolactError("none of the peers that were asked for can run here; see the lines above")
        log.info("measuring %s", ", ".join(one.name for one in (ours, *peers)))
        reports = compare([ours, *peers], images, args.seconds, args.runs)
        agreements = {}
        for peer in peers:
            if found := agree(peer, ours, images[:AGREE_ON]):
                agreements[peer.name] = found
        rounded = engine.metadata.input_dtype == "uint8"
    why = "; input rounded to uint8, exact with an export of --input-type float32" if rounded else ""
    _show(reports, agreements, args, len(images), why)
    if args.json:
        settings = {
            "threads": args.threads,
            "seconds": args.seconds,
            "runs": args.runs,
            "device": args.device,
            "images": len(images),
        }
        figures = {
            "schema": SCHEMA,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": describe_machine(),
            "settings": settings,
            "contenders": [asdict(report) for report in reports],
            "agreement": agreements,
        }
        write_json(args.json, figures, indent=2)
        log.info("wrote %s", args.json)
    return 0


def _open(path: str, device: str, threads: int) -> Engine:
    """Our engine, on the device that the peers use."""
    suffix = Path(path).suffix.lower()
    if suffix in (".engine", ".plan"):
        if device == "cpu":
            raise UsageError(f"--engine {path} runs on the GPU, the peers on the CPU; give --device cuda")
        return load_engine(path)
    if suffix == ".xml" and device == "cuda":
        raise UsageError(f"--engine {path} runs on the CPU; leave out --device cuda")
    options: dict[str, Any] = {} if suffix == ".xml" else {"device": device}
    if suffix == ".onnx":
        options = {"providers": [device]}
    return load_engine(path, threads=threads, **options)


def _makers(args: argparse.Namespace, engine: Engine) -> Iterator[Callable[[], Contender]]:
    """What makes each peer that was asked for; nothing of it is imported before."""
    if not (args.torchvision or args.torchvision_weights or args.ultralytics or args.original):
        raise UsageError("no peer was asked for; give --torchvision, --ultralytics YAML or --original PATH")
    if args.original and not args.weights:
        raise UsageError("--original needs --weights W, the .pth that the engine was exported from")
    detections = engine.metadata.max_detections
    if args.original:

        def original() -> Contender:
            from yolact_bench.peers.original import OriginalContender

            checkout, weights = Path(args.original), Path(args.weights)
            return OriginalContender(checkout, weights, engine.metadata, args.threads, args.device)

        yield original
    if args.torchvision or args.torchvision_weights:

        def torchvision() -> Contender:
            from yolact_bench.peers.torchvision import TorchvisionContender

            weights = Path(args.torchvision_weights) if args.torchvision_weights else None
            return TorchvisionContender(args.threads, weights, detections, args.device)

        yield torchvision
    for model in args.ultralytics:

        def ultralytics(model: str = model) -> Contender:
            from yolact_bench.peers.ultralytics import UltralyticsContender

            return UltralyticsContender(model, args.threads, detections, args.device)

        yield ultralytics


def _over(contender: Contender, images: Sequence[Path]) -> Callable[[], Run]:
    turn = cycle(images)
    return lambda: contender.end_to_end([next(turn)])


def _show(
    reports: Sequence[PeerReport],
    agreements: Mapping[str, Mapping[str, float]],
    args: argparse.Namespace,
    images: int,
    why: str,
) -> None:
    title = (
        f"One image at a time, ms: {args.threads} threads, {images} images, peers on {args.device}, in turns"
    )
    table = Table(title=title, box=SIMPLE, title_justify="left")
    for column in ("", "model", "in", "input"):
        table.add_column(column, no_wrap=True)
    for column in ("network", "p95", "times", "end to end", "p95", "times", "masks"):
        table.add_column(column, justify="right")
    table.add_column("licence", no_wrap=True)
    for one in reports:
        table.add_row(
            one.name,
            one.config,
            one.precision,
            str(one.input_size or "varies"),
            f"{one.network.median:.1f}",
            f"{one.network.p95:.1f}",
            f"{one.network_ratio:.2f}",
            f"{one.end_to_end.median:.1f}",
            f"{one.end_to_end.p95:.1f}",
            f"{one.end_to_end_ratio:.2f}",
            f"{one.detections:.0f}",
            one.licence,
        )
    console = table_console()
    console.print(table)
    stages = Table(title="Stages end to end, median ms", box=SIMPLE, title_justify="left")
    names = list(dict.fromkeys(stage for one in reports for stage in one.stages))
    for column in ("", *names):
        stages.add_column(column, justify="right" if column else "left")
    for one in reports:
        cells = [f"{one.stages[name]:.1f}" if name in one.stages else "" for name in names]
        stages.add_row(one.name, *cells)
    console.print(stages)
    lines = [
        "times: as fast as the first, by medians of the rounds both ran in. network: detection too, no masks."
    ]
    lines += [
        f"{one.name}: {one.backend}; {one.network.runs} and {one.end_to_end.runs} runs"
        + (f"; {one.note}" if one.note else "")
        for one in reports
    ]
    lines += [
        f"{reports[0].name} finds {found['matched']:.0f} of {found['instances']:.0f} instances of {name}"
        f" in {found['images']:.0f} images, mask IoU {found['mask_iou']:.4f}{why}"
        for name, found in agreements.items()
    ]
    console.print("\n".join(lines), highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(prog="yolact-bench peers", description=__doc__.split(": ", 1)[1])
    add_arguments(parser)
    return run_command(run, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
