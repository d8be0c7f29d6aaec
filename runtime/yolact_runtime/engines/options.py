"""The options of all commands that open an engine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from yolact_runtime.engines.backends import BACKENDS, PRECISIONS
from yolact_runtime.errors import UsageError
from yolact_runtime.metadata import parse_input_size

if TYPE_CHECKING:
    from yolact_runtime.engines.base import Engine

# Options that only engines on a server have.
SERVER_OPTIONS = ("timeout", "connect_timeout", "retries", "retry_seconds")


def add_engine_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the option group with `--engine`, required or not, and how to open it."""
    add = parser.add_argument_group("engine").add_argument
    add("--engine", "--trained-model", required=required, metavar="E",
        help="an .onnx, .xml or .engine file, a checkpoint, the name of published weights, or a model on a"
        " server: grpc://HOST:8001/MODEL, http://HOST:8000/MODEL")  # fmt: skip
    add("--backend", choices=tuple(BACKENDS),
        help="library for exported files (default: CUDA if it loads, else the fastest)")  # fmt: skip
    add("--precision", choices=PRECISIONS,
        help="refuse an engine that delivers another precision; those with bf16 run an fp32 or int8 file in"
        " OpenVINO, fp16 a checkpoint on a GPU")  # fmt: skip
    add("--threads", type=int, metavar="N", help="CPU threads (default: the number of cores)")
    add("--providers", nargs="+", metavar="NAME",
        help="ONNX Runtime providers, best first: cuda, cuda:1, cpu; end them with --")  # fmt: skip
    add("--device", help="where a checkpoint runs: auto (a GPU if there is one), cpu, cuda, cuda:N")
    add("--config", help="configuration of a checkpoint that does not name its own")
    add("--input-size", type=parse_input_size, metavar="HxW",
        help="open a checkpoint with an input of this height and width; N for a square")  # fmt: skip
    add("--class-names", metavar="FILE|NAMES",
        help="class names of a checkpoint without its own: NAME,... or a file of one per line")  # fmt: skip
    _add_server_options(parser)


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the option group for engines on a server."""
    add = parser.add_argument_group("engine on a server").add_argument
    add("--timeout", type=float, metavar="SECONDS",
        help="longest time for the answer to a request (default: 60)")  # fmt: skip
    add("--connect-timeout", type=float, metavar="SECONDS",
        help="longest time to connect to the server (default: 10)")  # fmt: skip
    add("--retries", type=int, metavar="N",
        help="how often a request that is not answered is sent again (default: as often as there is"
        " time)")  # fmt: skip
    add("--retry-seconds", type=float, metavar="SECONDS",
        help="how long the server may be away (default: 120, and 10 when the command starts)")  # fmt: skip


def add_class_filter(parser: argparse._ActionsContainer) -> None:
    """Add the option `--classes`, for `Engine.class_indices`."""
    parser.add_argument("--classes", nargs="+", metavar="NAME|ID",
        help="find only these classes, by name or category id; end them with --")  # fmt: skip


def add_tile_options(parser: argparse.ArgumentParser) -> None:
    """Add the option group with `--tile`, for commands that predict; `open_engine` reads it."""
    add = parser.add_argument_group("tiles for large images").add_argument
    add("--tile", type=int, metavar="PIXELS",
        help="cut larger images into tiles of this side, and merge what is found in them")  # fmt: skip
    add("--tile-overlap", type=float, metavar="SHARE",
        help="share of a tile that its neighbour sees, too, 0..0.9 (default: 0.2)")  # fmt: skip
    add("--tile-full", action=argparse.BooleanOptionalAction,
        help="run the whole image, too, for objects larger than a tile (default: yes)")  # fmt: skip


def open_engine(args: argparse.Namespace, **options: Any) -> Engine:
    """Open the engine given by the options of `add_engine_options`, with more `options` of `load_engine`.

    With the options of `add_tile_options`, it cuts large images into tiles.

    Raises:
        YolactError: as `load_engine`.
        UsageError: options of tiles that are out of range, or without `--tile`; `--classes` that an exported
            file does not have, which is found before it is opened.
    """
    from yolact_runtime.engines.load import load_engine  # imports OpenCV, which `--help` does not need
    from yolact_runtime.engines.stored import check_stored_classes

    tiles = tile_options(args)
    check_stored_classes(args.engine, getattr(args, "classes", None), "--classes")
    named = {
        name: getattr(args, name)
        for name in (
            "backend",
            "precision",
            "threads",
            "providers",
            "device",
            "config",
            "input_size",
            "class_names",
        )
    }
    named |= {name: getattr(args, name) for name in SERVER_OPTIONS}
    given = {name: value for name, value in named.items() if value is not None}
    engine = load_engine(args.engine, **given, **options)
    if not tiles:
        return engine
    from yolact_runtime.engines.tiles import tiled

    return tiled(engine, **tiles)


def tile_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `tiled` that the options of `add_tile_options` give; empty without `--tile`.

    Raises:
        UsageError: a value out of its range, or options of tiles without `--tile`.
    """
    named = {"tile": "tile", "overlap": "tile_overlap", "full": "tile_full"}
    values = {key: getattr(args, name, None) for key, name in named.items()}
    given = {key: value for key, value in values.items() if value is not None}
    if not given:
        return {}
    if "tile" not in given:
        raise UsageError("--tile-overlap and --tile-full need the side of the tiles: --tile PIXELS")
    from yolact_runtime.engines.tiles.windows import OVERLAP, check_tiles

    check_tiles(given["tile"], given.get("overlap", OVERLAP))
    return given
