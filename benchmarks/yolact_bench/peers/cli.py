"""`yolact-bench peers`: the same images through our engines and other implementations, interleaved."""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_bench.options import add_engines, add_output, add_protocol, deliver, settings_of
from yolact_runtime.errors import UsageError, YolactError

if TYPE_CHECKING:
    from yolact_bench.measure.candidate import Candidate
    from yolact_bench.measure.engines import EngineSpec
    from yolact_bench.measure.stages import EngineCandidate
    from yolact_bench.measure.suite import Settings
    from yolact_runtime import Metadata

log = logging.getLogger(__name__)

AGREE_ON = 5  # images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench peers`."""
    add_engines(parser)
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of images, used in turn")
    group = parser.add_argument_group("peers (at least one)")
    group.add_argument("--torchvision", action="store_true", help="Mask R-CNN R50-FPN, random weights")
    group.add_argument("--torchvision-weights", metavar="FILE", help="its published weights, .pth")
    text = "a segmentation model such as yolo11n-seg.yaml, random weights (AGPL-3.0); repeat for several"
    group.add_argument("--ultralytics", action="append", default=[], metavar="YAML", help=text)
    group.add_argument("--original", metavar="PATH", help="a checkout of github.com/dbolya/yolact")
    group.add_argument("--weights", metavar="W", help="for the original: the .pth that E was exported from")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where all of them run")
    add_protocol(parser, seconds=10.0, all_cores=True)
    add_output(parser)


def command(args: argparse.Namespace) -> int:
    """Measure engines and peers in one run; 1 if a peer that was asked for cannot run here."""
    if not (args.torchvision or args.torchvision_weights or args.ultralytics or args.original):
        raise UsageError("no peer was asked for; give --torchvision, --ultralytics YAML or --original PATH")
    if args.original and not args.weights:
        raise UsageError("--original needs --weights W, the .pth that the engine was exported from")
    from yolact_bench.measure.accuracy import agree
    from yolact_bench.measure.engines import open_engines
    from yolact_bench.measure.suite import measure, with_extras
    from yolact_runtime.sources.images import list_images

    settings = settings_of(args)
    images = list_images([args.images])
    with ExitStack() as stack:
        ours = open_engines(args.engines, settings, stack, lambda spec: _device_options(spec, args.device))
        _check_devices(ours, args.device)
        peers, missing = _open_peers(args, ours[0].engine.metadata, settings, images, stack)
        if settings.score_threshold or (args.original and settings.top_k):
            log.warning(
                "--score-threshold applies to our engines only, and --top-k does not apply to the original;"
                " compare the numbers of instances found"
            )
        for one in ours:
            if args.original and one.engine.metadata.input_dtype == "uint8":
                one.note = (
                    "input rounded to uint8, which the original does not do; exact with an export of"
                    " --input-type float32"
                )
        report = measure([*ours, *peers], images, settings)
        extras = {
            candidate.name: {"agreement": {"with": peer.name, **found}}
            for candidate, peer in itertools.product(ours, peers)
            if (found := agree(peer, candidate, images[:AGREE_ON]))
        }
    deliver(with_extras(report, extras), args)
    return 1 if missing else 0


def _device_options(spec: EngineSpec, device: str) -> dict[str, Any]:
    """Options that run an engine on the device of the peers, if its own do not say where to run."""
    from yolact_runtime.engines.choose import choose_for_cpu
    from yolact_runtime.engines.onnx_file import read_properties
    from yolact_runtime.metadata import PREFIX

    suffix = Path(spec.path).suffix.lower()
    if suffix in (".pth", ".pt", ".safetensors"):
        return {"device": device}
    if suffix != ".onnx" or spec.options.keys() & {"backend", "providers"}:
        return {}
    if device == "cuda":
        return {"providers": ("cuda",)}
    delivered = (read_properties(spec.path) or {}).get(f"{PREFIX}precision", "").strip('"')
    return {"backend": choose_for_cpu(delivered, spec.options.get("precision"))[0]}


def _check_devices(ours: Sequence[EngineCandidate], device: str) -> None:
    """Raise a UsageError if an engine runs on another device than the peers."""
    from yolact_bench.measure.engines import on_gpu

    for one in ours:
        if device == "cpu" and on_gpu(one.backend):
            raise UsageError(f"--engine {one.name} runs on the GPU, the peers on the CPU; give --device cuda")
        if device == "cuda" and not on_gpu(one.backend):
            raise UsageError(f"--engine {one.name} runs on the CPU ({one.backend}); leave out --device cuda")


def _open_peers(
    args: argparse.Namespace, like: Metadata, settings: Settings, images: Sequence[Path], stack: ExitStack
) -> tuple[list[Candidate], int]:
    """Open the peers that can process an image here; the others are reported, left out and counted."""
    from yolact_bench.peers import original, torchvision, ultralytics
    from yolact_runtime.engines.threads import usable_cores

    threads = settings.threads or usable_cores()
    shared = min(settings.top_k or like.max_detections, like.max_detections), args.device
    factories: list[Callable[[], Candidate]] = []
    if args.original:
        files = Path(args.original), Path(args.weights)
        factories.append(partial(original.OriginalCandidate, *files, like, threads, args.device))
    if args.torchvision or args.torchvision_weights:
        published = Path(args.torchvision_weights) if args.torchvision_weights else None
        factories.append(partial(torchvision.TorchvisionCandidate, threads, published, *shared))
    factories += [
        partial(ultralytics.UltralyticsCandidate, one, threads, *shared) for one in args.ultralytics
    ]
    peers = []
    for factory in factories:
        try:
            peer = factory()
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
    return peers, len(factories) - len(peers)
