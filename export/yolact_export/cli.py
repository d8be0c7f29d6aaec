"""`yolact-export`: write a checkpoint for deployment, prove that it computes the same; inspect files."""

from __future__ import annotations

import argparse
import contextlib
import logging
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from yolact_export.trt import options as trt_options
from yolact_runtime.commandline import Parser, run
from yolact_runtime.errors import UsageError, missing_extra

log = logging.getLogger(__name__)

# What only the export of a checkpoint can choose, and what it is where nothing is said.
_OF_THE_GRAPH = (
    *("config", "detect", "batch", "max_batch", "input_type"),
    *("precision", "keep_float", "calibrate", "calibration_method", "calibration_images"),
)


def build_parser() -> Parser:
    """The options of an export."""
    parser = Parser(
        prog="yolact-export",
        description="Export a checkpoint and prove the export.",
        epilog="yolact-export inspect FILE tells what an exported file or a checkpoint is.",
    )
    parser.add_argument(
        "--weights",
        "--trained-model",
        required=True,
        help="a checkpoint or a name; or an exported .onnx (trt, openvino, triton) or .engine (triton)",
    )
    parser.add_argument("--config", help="configuration, where neither the file nor its name says it")
    parser.add_argument("--to", choices=list(TARGETS), default="onnx", help="format")
    parser.add_argument("--output", type=Path, help="file to write; beside the weights if not given")
    _add_graph_options(parser.add_argument_group("graph"))
    _add_precision_options(parser.add_argument_group("precision"))
    _add_proof_options(parser.add_argument_group("proof"))
    trt_options.add_arguments(parser)
    group = parser.add_argument_group("server (--to triton)")
    group.add_argument("--triton-name", metavar="NAME", help="the model's name on the server")
    group.add_argument("--triton-instances", type=int, default=1, help="copies of the model on a device")
    group.add_argument(
        "--triton-queue-delay",
        type=int,
        default=2000,
        metavar="MICROSECONDS",
        help="longest wait for more requests to join a batch",
    )
    return parser


def _add_graph_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--detect",
        choices=["native", "runtime", "plugin"],
        default="native",
        help="native: detections come out of the graph; runtime: raw heads do, the runtime detects;"
        " plugin: the runtime's kernels are put into the engine (TensorRT 10.8 and later)",
    )
    group.add_argument("--batch", type=int, default=1, help="images in every call")
    group.add_argument("--max-batch", type=int, help="make the batch dynamic, 1 to this many")
    group.add_argument(
        "--input-type",
        choices=["uint8", "float32"],
        default="uint8",
        help="float32 takes images resized without rounding, as the original evaluates",
    )


def _add_precision_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--precision", choices=["fp32", "fp16", "int8"], default="fp32", help="of convolutions and products"
    )
    group.add_argument(
        "--keep-float",
        default="auto",
        metavar="auto|none|NAMES",
        help="layer groups left in float32, with commas; auto measures which must be",
    )
    group.add_argument("--calibrate", type=Path, metavar="DIR", help="images to find the ranges of int8 with")
    group.add_argument(
        "--calibration-method",
        choices=["entropy", "percentile", "minmax"],
        default="minmax",
        help="how ranges are chosen from what was seen",
    )
    group.add_argument("--calibration-images", type=int, default=128, help="use at most this many of DIR")
    group.add_argument(
        "--allow-fallback",
        action="store_true",
        help="write the file even with less of the precision than asked",
    )


def _add_proof_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--verify", type=Path, metavar="DIR", help="verify on these images; made ones if not given"
    )
    group.add_argument("--no-verify", action="store_true", help="do not compare the file with the checkpoint")
    group.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO annotations of --verify: show the AP of float32 and of the precision side by side",
    )


def command(args: argparse.Namespace) -> None:
    """Run an export."""
    _check(args)
    try:
        TARGETS[args.to](args)
    except ModuleNotFoundError as error:
        raise missing_extra(f"yolact-export (no module {error.name!r})", "train") from error


def _check(args: argparse.Namespace) -> None:
    """Refuse options that would have no effect."""
    if args.detect == "plugin" and args.to != "trt":
        raise UsageError(f"--detect plugin is for --to trt; {args.to} takes native or runtime")
    if args.annotations is not None and args.precision == "fp32":
        raise UsageError("--annotations compares AP with float32: it needs --precision fp16 or int8")
    if not _is_exported(args.weights):
        return
    if args.to == "onnx":
        raise UsageError(f"--weights {args.weights}; --to onnx takes a checkpoint")
    defaults = build_parser()
    given = [name for name in _OF_THE_GRAPH if getattr(args, name) != defaults.get_default(name)]
    if args.to == "trt":  # which compares the precision with the file's, and can add plugins to it
        given = [
            name for name in given if name != "precision" and (name, args.detect) != ("detect", "plugin")
        ]
    if given:
        option = "--" + given[0].replace("_", "-")
        raise UsageError(
            f"{option} is for checkpoints; {args.weights} is exported already and stays as it is"
        )


def _export_onnx(args: argparse.Namespace) -> None:
    with _onnx_source(args, keep=args.output or _beside(args, ".onnx")):
        pass


def _export_engine(args: argparse.Namespace) -> None:
    from yolact_export.trt.engine import build_engine
    from yolact_export.trt.target import choose_target

    options = trt_options.from_arguments(args)
    output = args.output or _beside(args, ".engine")
    if output.suffix.lower() not in (".engine", ".plan"):
        raise UsageError(f"--output {output}; an engine ends in .engine or .plan")
    if not _is_exported(args.weights):
        choose_target(options, args.precision)  # what cannot be built need not be exported
    asked = None if args.precision == "fp32" else args.precision
    with _onnx_source(args, keep=output.with_suffix(".onnx")) as source:
        build_engine(source, output, options, args.command_line, asked)


def _export_openvino(args: argparse.Namespace) -> None:
    from yolact_export.openvino import proven_equal, write_openvino

    if args.precision == "fp16":
        raise UsageError("--precision fp16; CPUs compute half in float32: --to openvino takes fp32 and int8")
    output = args.output or _beside(args, ".xml")
    if output.suffix != ".xml":
        raise UsageError(f"--output {output}; an OpenVINO model ends in .xml")
    with _onnx_source(args) as source:
        check = None
        if not args.no_verify:
            from yolact_export.verify import verification_images

            check = proven_equal(source, verification_images(args.verify))
        write_openvino(source, output, check)
    log.info("wrote %s and %s", output, output.with_suffix(".bin").name)


def _export_triton(args: argparse.Namespace) -> None:
    from yolact_export.triton import TritonOptions, write_repository

    options = TritonOptions(args.triton_instances, args.triton_queue_delay)
    repository = args.output or _beside(args, "").with_name("triton")
    name = args.triton_name or Path(args.weights).stem
    with _onnx_source(args) as source:
        log.info("wrote %s", write_repository(source, repository, name, options))


def _is_exported(weights: str) -> bool:
    """Whether the "weights" are an export already, so that the machine need not have PyTorch."""
    return Path(weights).suffix.lower() in (".onnx", ".engine", ".plan")


def _beside(args: argparse.Namespace, suffix: str) -> Path:
    """The default for `--output`; exports of other precisions or kinds get other names."""
    if _is_exported(args.weights):
        return Path(args.weights).with_suffix(suffix)
    from yolact.weights.load import locate

    weights = locate(args.weights)
    parts = [part for part, default in ((args.precision, "fp32"), (args.detect, "native")) if part != default]
    return weights.with_name("_".join([weights.stem, *parts]) + suffix)


@contextlib.contextmanager
def _onnx_source(args: argparse.Namespace, keep: Path | None = None) -> Iterator[Path]:
    """The export to go on from: the file given, or a proven one that is made, and kept as `keep`."""
    if _is_exported(args.weights):
        yield Path(args.weights)
        return
    from yolact.weights.load import locate
    from yolact_runtime.files import atomic_path

    weights = locate(args.weights)
    with contextlib.ExitStack() as stack:
        path = keep
        if path is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder) / f"{weights.stem}.onnx"
        with atomic_path(path) as temporary:
            write_proven_onnx(args, weights, temporary)
        if keep is not None:
            log.info("wrote %s (%.1f MB)", path, path.stat().st_size / 1e6)
        yield path


def write_proven_onnx(args: argparse.Namespace, weights: Path, path: Path) -> None:
    """Write the ONNX file that `args` describe to `path`; every format starts from it."""
    from yolact_export.build import Proof, build_onnx
    from yolact_export.onnx import OnnxOptions
    from yolact_export.precision.calibration import CalibrationOptions
    from yolact_export.precision.reduce import PrecisionOptions

    calibration = precision = None
    if args.calibrate is not None:
        calibration = CalibrationOptions(args.calibrate, args.calibration_method, args.calibration_images)
    if args.precision != "fp32":
        keep_float = tuple(name.strip() for name in args.keep_float.split(",") if name.strip())
        precision = PrecisionOptions(args.precision, calibration, keep_float, args.allow_fallback)
    options = OnnxOptions(
        detect="runtime" if args.detect == "plugin" else args.detect,
        batch=args.batch,
        max_batch=args.max_batch,
        input_type=args.input_type,
        command=args.command_line,
    )
    proof = Proof(not args.no_verify, args.verify, args.annotations)
    log.info("exporting %s as %s", weights, args.precision)
    build_onnx(weights, args.config, path, options, proof, precision)


# Formats by name. Each function takes the parsed options and writes `args.output`.
TARGETS: dict[str, Callable[[argparse.Namespace], None]] = {
    "onnx": _export_onnx,
    "trt": _export_engine,
    "openvino": _export_openvino,
    "triton": _export_triton,
}


def build_inspect_parser() -> Parser:
    """The options of `yolact-export inspect`."""
    parser = Parser(
        prog="yolact-export inspect",
        description="Tell what a file is: metadata, inputs, outputs, precision by share of compute, FLOPs.",
    )
    parser.add_argument("file", type=Path, help=".onnx, .xml, .engine or .plan, or a checkpoint")
    parser.add_argument("--config", help="configuration of a checkpoint that does not say it")
    return parser


def inspect_command(args: argparse.Namespace) -> None:
    """Run `yolact-export inspect`."""
    try:
        from yolact_export.describe import print_file
    except ModuleNotFoundError as error:
        raise missing_extra(f"yolact-export inspect (no module {error.name!r})", "train") from error
    print_file(args.file, args.config)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `yolact-export`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["inspect"]:
        return run(inspect_command, build_inspect_parser(), words[1:])
    parser = build_parser()
    parser.set_defaults(command_line=shlex.join(["yolact-export", *words]))
    return run(command, parser, words)


if __name__ == "__main__":
    sys.exit(main())
