"""`yolact-export`: export a checkpoint for deployment and verify the export, or inspect a file."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from yolact_export.trt import options as trt_options
from yolact_runtime.commandline import Parser, run
from yolact_runtime.engines.remote.address import is_address
from yolact_runtime.errors import UsageError, without_secrets
from yolact_runtime.files import is_stdout
from yolact_runtime.metadata import parse_input_size, size_text
from yolact_runtime.outputs import Named, check_outputs, engine_files
from yolact_runtime.packages import import_failure, installed

log = logging.getLogger(__name__)

# Options that only the export of a checkpoint can have.
_CHECKPOINT_OPTIONS = (
    *("config", "class_names", "detect", "batch", "max_batch", "input_size", "input_type"),
    *("precision", "keep_float", "calibrate", "calibration_method", "calibration_images"),
)


# Of the files that each `--to` writes and `yolact-infer` opens; the first is that of the default.
_SUFFIXES = {"onnx": (".onnx",), "trt": (".engine", ".plan"), "openvino": (".xml",)}

_ELSEWHERE = {"--classes": "the names of a checkpoint without its own are --class-names FILE|NAMES"}


def build_parser() -> Parser:
    """The options of an export, and the subcommand `inspect`."""
    parser = Parser(
        prog="yolact-export",
        usage="yolact-export --weights WEIGHTS [--to FORMAT] [options]\n       yolact-export inspect FILE",
        description="Export a checkpoint and verify that the export computes the same.",
        elsewhere=_ELSEWHERE,
    )
    weights = "checkpoint or name; or an exported .onnx (trt, openvino, triton) or .engine (triton); required"
    parser.add_argument("--weights", "--trained-model", help=weights)
    parser.add_argument("--config", help="configuration, if neither the file nor its name says it")
    classes = "classes, if the file does not hold them: NAME,NAME,... or a file with one in each line"
    parser.add_argument("--class-names", metavar="FILE|NAMES", help=classes)
    parser.add_argument("--to", choices=list(TARGETS), default="onnx", help="format to write")
    parser.add_argument("--output", type=Path, help="file to write; by default, next to the weights")
    _add_graph_options(parser.add_argument_group("graph"))
    _add_precision_options(parser.add_argument_group("precision"))
    _add_verification_options(parser.add_argument_group("verification"))
    trt_options.add_arguments(parser)
    add = parser.add_argument_group("server (--to triton)").add_argument
    add("--triton-name", metavar="NAME", help="name of the model on the server")
    models = "python: image in, instances out; raw: the network; ensemble: the network and steps around it"
    add("--triton-models", choices=["python", "raw", "ensemble", "all"], default="python", help=models)
    instances = "copies of each model (default: 2 of the Python model, 1 of others)"
    add("--triton-instances", type=int, metavar="N", help=instances)
    delay = "longest wait for more requests to fill a batch (default: 2000 for the network alone, else 0)"
    add("--triton-queue-delay", type=int, metavar="MICROSECONDS", help=delay)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", prog=parser.prog)
    inspect = commands.add_parser(
        "inspect",
        help="show what an exported file or a checkpoint is",
        description="Show the metadata, inputs, outputs, compute by precision, and FLOPs of a file.",
        argument_default=argparse.SUPPRESS,  # so that options before `inspect` count as well
        elsewhere=_ELSEWHERE,
    )
    inspect.add_argument("file", type=Path, help=".onnx, .xml, .engine or .plan, or a checkpoint")
    inspect.add_argument("--config", help="configuration, if the checkpoint does not say it")
    inspect.add_argument("--class-names", metavar="FILE|NAMES", help="its classes, if it does not hold them")
    return parser


def _add_graph_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of the exported graph."""
    add = group.add_argument
    detect = (
        "native: the graph returns detections; runtime: it returns raw heads, and the runtime detects;"
        " plugin: the engine runs the runtime's kernels (TensorRT 10.8 and later)"
    )
    add("--detect", choices=["native", "runtime", "plugin"], default="native", help=detect)
    add("--batch", type=int, default=1, help="images in every call")
    size = "height and width of the input, also of another size than it was trained with; N for a square"
    add("--input-size", type=parse_input_size, metavar="HxW", help=size)
    add("--max-batch", type=int, help="make the batch dynamic, 1 to this many")
    input_type = "float32 accepts images resized without rounding, as in the original's evaluation"
    add("--input-type", choices=["uint8", "float32"], default="uint8", help=input_type)


def _add_precision_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of fp16 and int8."""
    add = group.add_argument
    precisions = ["fp32", "fp16", "int8"]
    add("--precision", choices=precisions, default="fp32", help="of convolutions and matrix products")
    keep = "layer groups to keep in float32, separated by commas; auto measures which have to be"
    add("--keep-float", default="auto", metavar="auto|none|NAMES", help=keep)
    add("--calibrate", type=Path, metavar="DIR", help="folder of images to calibrate int8")
    methods = ["auto", "entropy", "percentile", "minmax"]
    how = "how to choose the range of a tensor; auto compares percentile and minmax"
    add("--calibration-method", choices=methods, default="auto", help=how)
    add("--calibration-images", type=int, default=128, help="calibrate with at most this many images")
    fallback = "write the file even if it has less of the precision than requested"
    add("--allow-fallback", action="store_true", help=fallback)


def _add_verification_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of the comparison with the checkpoint."""
    add = group.add_argument
    add("--verify", type=Path, metavar="DIR", help="images to verify on; by default, synthetic images")
    add("--no-verify", action="store_true", help="do not compare the file with the checkpoint")
    annotations = "COCO annotations of --verify: compare the AP of float32 and of the reduced precision"
    add("--annotations", type=Path, metavar="FILE", help=annotations)


def command(args: argparse.Namespace) -> None:
    """Run an export or `inspect`."""
    if args.command:
        _inspect(args)
        return
    _check(args)
    _check_files(args)
    try:
        TARGETS[args.to](args)
    except ImportError as error:
        failure = import_failure(error, f"yolact-export --to {args.to}", _extra(args))
        if failure is None:
            raise
        raise failure from error


def _extra(args: argparse.Namespace) -> str:
    """The extras with all packages of an export: those of PyTorch and ONNX, and those of the format."""
    if args.to == "onnx":
        return "train"
    if args.to != "trt":
        return f"train,{args.to}"
    library = args.backend if args.backend != "auto" else "trt" if installed("tensorrt") else "rtx"
    return library if _is_exported(args.weights) else f"train,{library}"


def _inspect(args: argparse.Namespace) -> None:
    """Run `yolact-export inspect`."""
    own = ("command", "file", "config", "class_names", "debug", "quiet", "command_line", "prog")
    if given := _given(args, [name for name in vars(args) if name not in own]):
        raise UsageError(
            f"{given[0]} is an option of an export; inspect takes --config, --class-names, --debug and"
            " --quiet"
        )
    from yolact_export.inspection import print_file

    if is_address(args.file):
        raise UsageError("inspect shows files; what a server's model is, yolact-infer --engine says")

    print_file(args.file, args.config, args.class_names)


def _given(args: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Those of the options `names` that are not at their defaults, spelled as on the command line."""
    defaults = build_parser()
    changed = [name for name in names if getattr(args, name) != defaults.get_default(name)]
    return ["--" + name.replace("_", "-") for name in changed]


def _check(args: argparse.Namespace) -> None:
    """Refuse a missing --weights, and options that would have no effect."""
    if args.weights is None:
        raise UsageError(
            "--weights is required: a checkpoint, the name of published weights, or an exported file; see"
            " yolact-export --help"
        )
    if is_address(args.weights):
        raise UsageError(
            f"--weights {without_secrets(args.weights)}: a model on a server cannot be exported; give the"
            " file that it was made from"
        )
    if args.detect == "plugin" and args.to != "trt":
        raise UsageError(f"--detect plugin is for --to trt; {args.to} allows native and runtime")
    if args.annotations is not None and args.precision == "fp32":
        raise UsageError("--annotations compares AP with float32: it needs --precision fp16 or int8")
    if Path(args.weights).suffix.lower() == ".xml":
        raise UsageError(
            f"--weights {args.weights} is an OpenVINO model; give its .onnx file or its checkpoint"
        )
    if not _is_exported(args.weights):
        return
    if args.to == "onnx":
        raise UsageError(f"--weights {args.weights}: --to onnx needs a checkpoint")
    given = _given(args, _CHECKPOINT_OPTIONS)
    if args.to == "trt":  # the build checks the precision of the file, and can add plugins to it
        given = [option for option in given if option != "--precision"]
        given = [option for option in given if (option, args.detect) != ("--detect", "plugin")]
    if given:
        raise UsageError(f"{given[0]} is for checkpoints; {args.weights} is already exported")


def _output(args: argparse.Namespace) -> Path:
    """The file to write, whose name must end in a suffix that `yolact-infer` opens for `--to`."""
    suffixes = _SUFFIXES[args.to]
    output: Path = args.output or _default_output(args, suffixes[0])
    if output.suffix.lower() not in suffixes:
        # Engines are opened by their suffix.
        raise UsageError(f"--output {output}: with --to {args.to} its name ends in {' or '.join(suffixes)}")
    if output.is_dir():
        raise UsageError(f"--output {output} is a folder; name a file")
    return output


def _check_files(args: argparse.Namespace) -> None:
    """Check before the work that everything can be written, and that none of it is an input."""
    for option, path in (("--output", args.output), ("--timing-cache", args.timing_cache)):
        if path is not None and is_stdout(path):
            raise UsageError(f"{option} {path}: standard output has the tables; name a file")
    reads: list[Named] = [("--weights", path) for path in engine_files(args.weights)]
    reads += [(f"--{name}", getattr(args, name)) for name in ("calibrate", "verify", "annotations")]
    if args.to == "triton":
        return check_outputs(reads, [], [("--output", args.output)], shared=["--output"])
    output = _output(args)
    writes = [output]
    if args.to == "openvino":
        writes.append(output.with_suffix(".bin"))
    elif args.to == "trt":
        writes += [Path(f"{output}.json")]
        writes += [] if _is_exported(args.weights) else [output.with_suffix(".onnx")]
    named: list[Named] = [("--output", path) for path in writes]
    caches: list[Named] = [("--timing-cache", args.timing_cache)]
    return check_outputs(reads, named + caches, shared=["--timing-cache"])


def _export_onnx(args: argparse.Namespace) -> None:
    with _onnx_file(args, keep=_output(args)):
        pass


def _export_engine(args: argparse.Namespace) -> None:
    """Run `--to trt`; the ONNX file is kept next to the engine."""
    from yolact_export.trt.engine import build_engine
    from yolact_export.trt.target import choose_target

    options = trt_options.from_arguments(args)
    output = _output(args)
    if not _is_exported(args.weights):
        choose_target(options, args.precision)  # refuse what cannot be built before exporting it
    requested = None if args.precision == "fp32" else args.precision
    with _onnx_file(args, keep=output.with_suffix(".onnx")) as source:
        build_engine(source, output, options, args.command_line, requested)


def _export_openvino(args: argparse.Namespace) -> None:
    """Run `--to openvino`."""
    from yolact_export.openvino import verify_openvino, write_openvino

    if args.precision == "fp16":
        raise UsageError("--precision fp16: CPUs compute fp16 in float32; --to openvino allows fp32 and int8")
    output = _output(args)
    with _onnx_file(args) as source:
        check = None
        if not args.no_verify:
            from yolact_export.verify import verification_images

            check = functools.partial(verify_openvino, source, verification_images(args.verify))
        write_openvino(source, output, check)
    log.info("wrote %s and %s", output, output.with_suffix(".bin").name)


def _export_triton(args: argparse.Namespace) -> None:
    from yolact_export.triton import TritonOptions, write_repository

    options = TritonOptions(args.triton_instances, args.triton_queue_delay, args.triton_models)
    repository = args.output or _default_output(args, "").with_name("triton")
    name = args.triton_name or Path(args.weights).stem
    with _onnx_file(args) as source:
        log.info("wrote %s", write_repository(source, repository, name, options))


def _is_exported(weights: str) -> bool:
    """Whether the weights are an exported file, which needs no PyTorch."""
    return Path(weights).suffix.lower() in (".onnx", ".engine", ".plan")


def _default_output(args: argparse.Namespace, suffix: str) -> Path:
    """The default of `--output`: next to the weights, with the options that are not the default."""
    if _is_exported(args.weights):
        return Path(args.weights).with_suffix(suffix)
    from yolact.weights.load import locate

    weights = locate(args.weights)
    parts = [size_text(args.input_size)] if args.input_size else []
    parts += [
        part for part, default in ((args.precision, "fp32"), (args.detect, "native")) if part != default
    ]
    return weights.with_name("_".join([weights.stem, *parts]) + suffix)


@contextlib.contextmanager
def _onnx_file(args: argparse.Namespace, keep: Path | None = None) -> Iterator[Path]:
    """The ONNX file to convert: the one given, or a verified export of the checkpoint.

    Args:
        args: Arguments of the command line.
        keep: Where to write the export; None for a temporary file.
    """
    if _is_exported(args.weights):
        yield Path(args.weights)
        return
    from yolact.weights.load import locate
    from yolact_runtime.engines.trial import remember
    from yolact_runtime.files import atomic_path, stream_of

    weights = locate(args.weights)
    with tempfile.TemporaryDirectory() as folder:
        path = keep or Path(folder) / f"{weights.stem}.onnx"
        with atomic_path(path) as temporary:
            _export_checkpoint(args, weights, temporary)
        if stream_of(path) is None:
            remember(path)
        if keep is not None:
            log.info("wrote %s (%.1f MB)", path, path.stat().st_size / 1e6)
        yield path


def _export_checkpoint(args: argparse.Namespace, weights: Path, path: Path) -> None:
    """Write the verified ONNX file that `args` describe to `path`."""
    from yolact_export.checkpoint import Verification, export_checkpoint
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
    verification = Verification(not args.no_verify, args.verify, args.annotations)
    log.info("exporting %s as %s", weights, args.precision)
    opened = args.class_names, args.input_size
    export_checkpoint(weights, args.config, path, options, verification, precision, *opened)


# Formats by name. Each function takes the parsed options and writes `args.output`.
TARGETS: dict[str, Callable[[argparse.Namespace], None]] = {
    "onnx": _export_onnx,
    "trt": _export_engine,
    "openvino": _export_openvino,
    "triton": _export_triton,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `yolact-export`."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    parser.set_defaults(command_line=shlex.join(["yolact-export", *words]))
    return run(command, parser, words)


if __name__ == "__main__":
    sys.exit(main())
