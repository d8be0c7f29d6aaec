"""The options with which every command opens an engine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from yolact_runtime.engines.backends import BACKENDS, PRECISIONS

if TYPE_CHECKING:
    from yolact_runtime.engines.base import Engine


def add_engine_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add `--engine` and how to open it, as a group of its own.

    Args:
        parser: Of a command.
        required: Whether `--engine` must be given.
    """
    group = parser.add_argument_group("engine")
    add = group.add_argument
    add(
        "--engine",
        "--trained-model",
        required=required,
        metavar="E",
        help="an .onnx, .xml or .engine file, a checkpoint, or the name of published weights",
    )
    add(
        "--backend",
        choices=tuple(BACKENDS),
        help="what runs an exported file (default: CUDA where it loads, else the quickest for this CPU)",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        help="refuse the engine where this is not what it delivers; those with bf16 are ways to run an fp32"
        " or int8 file in OpenVINO",
    )
    add("--threads", type=int, metavar="N", help="CPU threads (default: as many as there are cores)")
    add(
        "--providers",
        nargs="+",
        metavar="NAME",
        help="of ONNX Runtime, best first: cuda, cuda:1, cpu; other options or -- must follow",
    )
    add("--config", help="configuration of a checkpoint that does not name its own")


def open_engine(args: argparse.Namespace, **options: Any) -> Engine:
    """Open the engine that the options of `add_engine_options` name.

    Args:
        args: Parsed by such a parser.
        options: More for `load_engine`, such as `streams="auto"`.

    Raises:
        YolactError: as `load_engine`.
    """
    from yolact_runtime.engines.load import load_engine  # imports OpenCV, which `--help` does not need

    named = {name: getattr(args, name) for name in ("backend", "precision", "threads", "providers", "config")}
    given = {name: value for name, value in named.items() if value is not None}
    return load_engine(args.engine, **given, **options)
