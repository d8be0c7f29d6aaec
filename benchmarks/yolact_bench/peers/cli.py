"""`yolact-bench peers`: the same images through our engines and other implementations, in turns."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from yolact_bench.agreement import agree
from yolact_bench.contender import Contender
from yolact_bench.engines import EngineSpec
from yolact_bench.options import (
    Opened,
    add_engines,
    add_output,
    add_protocol,
    deliver,
    on_gpu,
    open_engines,
    settings_of,
)
from yolact_bench.report.page import check_packages
from yolact_bench.suite import Settings, measure, with_extras
from yolact_runtime import Metadata
from yolact_runtime.commandline import Parser
from yolact_runtime.commandline import run as run_command
from yolact_runtime.engines.choose import choose_for_cpu
from yolact_runtime.engines.onnx_file import read_properties
from yolact_runtime.engines.threads import usable_cores
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import PREFIX
from yolact_runtime.sources.images import list_images

log = logging.getLogger(__name__)

AGREE_ON = 5  # images


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(prog="yolact-bench peers", description=__doc__.split(": ", 1)[1])
    add_engines(parser)
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
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where all of them run")
    add_protocol(parser, seconds=10.0, threads=usable_cores())
    add_output(parser)
    return run_command(_run, parser, argv)


def _run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    if not (args.torchvision or args.torchvision_weights or args.ultralytics or args.original):
        raise UsageError("no peer was asked for; give --torchvision, --ultralytics YAML or --original PATH")
    if args.original and not args.weights:
        raise UsageError("--original needs --weights W, the .pth that the engine was exported from")
    if args.report:
        check_packages()
    images = list_images([args.images])
    with ExitStack() as stack:
        ours = open_engines(args.engines, settings, stack, lambda spec: _where(spec, args.device))
        _check_devices(ours, args.device)
        first = ours[0].contender.engine.metadata
        peers = _peers_that_run(_makers(args, first, settings), images, stack)
        if settings.score_threshold or (args.original and settings.top_k):
            log.warning(
                "--score-threshold holds for our engines only, and --top-k does not for the original;"
                " look at the instances found"
            )
        if args.original:
            for one in ours:
                if one.contender.engine.metadata.input_dtype == "uint8":
                    one.contender.note = (
                        "input rounded to uint8, which the original does not do; exact with an export of"
                        " --input-type float32"
                    )
        contenders = [one.contender for one in ours]
        report = measure([*contenders, *peers], images, settings)
        extras: dict[str, dict[str, Any]] = {}
        for contender in contenders:
            for peer in peers:
                if found := agree(peer, contender, images[:AGREE_ON]):
                    extras[contender.name] = {"agreement": {"with": peer.name, **found}}
    deliver(with_extras(report, extras), args)
    return 0


def _where(spec: EngineSpec, device: str) -> dict[str, Any]:
    """Options that make an engine run on the device of the peers, where it does not say how to run."""
    suffix = Path(spec.path).suffix.lower()
    if suffix in (".pth", ".pt", ".safetensors"):
        return {"device": device}
    if suffix != ".onnx" or spec.options.keys() & {"backend", "providers"}:
        return {}
    if device == "cuda":
        return {"providers": ("cuda",)}
    delivered = (read_properties(spec.path) or {}).get(f"{PREFIX}precision", "").strip('"')
    return {"backend": choose_for_cpu(delivered, spec.options.get("precision"))[0]}


def _check_devices(ours: Sequence[Opened], device: str) -> None:
    for one in ours:
        name, backend = one.contender.name, one.contender.backend
        if on_gpu(backend) and device == "cpu":
            raise UsageError(f"--engine {name} runs on the GPU, the peers on the CPU; give --device cuda")
        if device == "cuda" and not on_gpu(backend):
            raise UsageError(f"--engine {name} runs on the CPU ({backend}); leave out --device cuda")


def _peers_that_run(
    makers: Iterator[Callable[[], Contender]], images: Sequence[Path], stack: ExitStack
) -> list[Contender]:
    """Those that can look at an image here; the others are told of and left out."""
    peers = []
    for make in makers:
        try:
            peer = make()
            stack.callback(peer.close)
            peer.prepare(images[:1], 1)
        except UsageError:
            raise
        except YolactError as error:
            log.warning("left out: %s", error)
        else:
            peers.append(peer)
    if not peers:
        raise YolactError("none of the peers that were asked for can run here; see the lines above")
    return peers


def _makers(
    args: argparse.Namespace, like: Metadata, settings: Settings
) -> Iterator[Callable[[], Contender]]:
    """What makes each peer that was asked for; nothing of it is imported before."""
    threads = settings.threads or usable_cores()
    detections = min(settings.top_k or like.max_detections, like.max_detections)
    if args.original:

        def original() -> Contender:
            from yolact_bench.peers.original import OriginalContender

            return OriginalContender(Path(args.original), Path(args.weights), like, threads, args.device)

        yield original
    if args.torchvision or args.torchvision_weights:

        def torchvision() -> Contender:
            from yolact_bench.peers.torchvision import TorchvisionContender

            weights = Path(args.torchvision_weights) if args.torchvision_weights else None
            return TorchvisionContender(threads, weights, detections, args.device)

        yield torchvision
    for model in args.ultralytics:

        def ultralytics(model: str = model) -> Contender:
            from yolact_bench.peers.ultralytics import UltralyticsContender

            return UltralyticsContender(model, threads, detections, args.device)

        yield ultralytics


if __name__ == "__main__":
    raise SystemExit(main())
