"""`yolact-export`: write a checkpoint as ONNX and prove that it computes the same."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from yolact_runtime.commandline import Parser, run
from yolact_runtime.errors import YolactError, missing_extra

log = logging.getLogger(__name__)


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="yolact-export", description="Export a checkpoint and prove the export.")
    parser.add_argument("--weights", "--trained-model", required=True, help=".pth, .safetensors, or a name")
    parser.add_argument("--config", help="configuration, where neither the file nor its name says it")
    parser.add_argument("--to", choices=["onnx"], default="onnx", help="format")
    parser.add_argument("--output", type=Path, help="file to write; beside the weights if not given")
    parser.add_argument("--precision", choices=["fp32"], default="fp32", help="of the arithmetic")
    parser.add_argument(
        "--detect",
        choices=["native", "runtime"],
        default="native",
        help="native: detections come out of the graph; runtime: raw heads do, the runtime detects",
    )
    parser.add_argument("--batch", type=int, default=1, help="images in every call")
    parser.add_argument("--max-batch", type=int, help="make the batch dynamic, 1 to this many")
    parser.add_argument(
        "--input-type",
        choices=["uint8", "float32"],
        default="uint8",
        help="float32 takes images resized without rounding, as the original evaluates",
    )
    parser.add_argument(
        "--verify", type=Path, metavar="DIR", help="verify on these images; made ones if not given"
    )
    parser.add_argument(
        "--no-verify", action="store_true", help="do not compare the file with the checkpoint"
    )
    return parser


def command(args: argparse.Namespace) -> None:
    """Run the command."""
    try:
        from yolact.weights import load_model, locate, sha256
        from yolact_export import verify
        from yolact_export.onnx import OnnxOptions, write_onnx
    except ModuleNotFoundError as error:
        raise missing_extra(f"yolact-export (no module {error.name!r})", "train") from error
    from yolact_runtime.files import atomic_path

    images = [] if args.no_verify else verify.verification_images(args.verify)
    weights = locate(args.weights)
    model = load_model(weights, args.config)
    output = args.output or weights.with_suffix(".onnx")
    options = OnnxOptions(
        detect=args.detect,
        batch=args.batch,
        max_batch=args.max_batch,
        input_type=args.input_type,
        command=shlex.join(["yolact-export", *sys.argv[1:]]),
        weights_sha256=sha256(weights),
    )
    log.info("exporting %s as %s to %s", weights, model.config.name, output)
    with atomic_path(output) as temporary:
        write_onnx(model, temporary, options)
        if not args.no_verify:
            from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine

            reference = verify.reference_engine(weights, args.config, args.input_type)
            with OnnxRuntimeEngine(temporary, providers=["CPUExecutionProvider"]) as engine:
                seen = verify.compare(reference, engine, images)
            Console().print(verify.report(seen))
            if seen.problems:
                more = f" (and {len(seen.problems) - 1} more)" if len(seen.problems) > 1 else ""
                raise YolactError(f"{output} was not written: verification failed: {seen.problems[0]}{more}")
    log.info("wrote %s (%.1f MB)", output, output.stat().st_size / 1e6)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `yolact-export`."""
    return run(command, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
