"""The options of all commands that open an engine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from yolact_runtime.engines.backends import BACKENDS, PRECISIONS

if TYPE_CHECKING:
    from yolact_runtime.engines.base import Engine


def add_engine_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the option group with `--engine`, required or not, and how to open it."""
    add = parser.add_argument_group("engine").add_argument
    add("--engine", "--trained-model", required=required, metavar="E",
        help="an .onnx, .xml or .engine file, a checkpoint, or the name of published weights")  # fmt: skip
    add("--backend", choices=tuple(BACKENDS),
        help="library for exported files (default: CUDA if it loads, else the fastest)")  # fmt: skip
    add("--precision", choices=PRECISIONS,
        help="refuse an engine that delivers another precision; those with bf16 run an fp32 or int8 file in"
        " OpenVINO")  # fmt: skip
    add("--threads", type=int, metavar="N", help="CPU threads (default: the number of cores)")
    add("--providers", nargs="+", metavar="NAME",
        help="ONNX Runtime providers, best first: cuda, cuda:1, cpu; end them with --")  # fmt: skip
    add("--config", help="configuration of a checkpoint that does not name its own")
    add("--class-names", metavar="FILE|NAMES",
        help="class names of a checkpoint without its own: NAME,... or a file of one per line")  # fmt: skip


def add_class_filter(parser: argparse._ActionsContainer) -> None:
    """Add the option `--classes`, for `Engine.class_indices`."""
    parser.add_argument("--classes", nargs="+", metavar="NAME|ID",
        help="find only these classes, by name or category id; end them with --")  # fmt: skip


def open_engine(args: argparse.Namespace, **options: Any) -> Engine:
    """Open the engine given by the options of `add_engine_options`, with more `options` of `load_engine`.

    Raises:
        YolactError: as `load_engine`.
    """
    from yolact_runtime.engines.load import load_engine  # imports OpenCV, which `--help` does not need

    named = {
        name: getattr(args, name)
        for name in ("backend", "precision", "threads", "providers", "config", "class_names")
    }
    given = {name: value for name, value in named.items() if value is not None}
    return load_engine(args.engine, **given, **options)
