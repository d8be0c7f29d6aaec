"""The options of every command that measures contenders, and where its report goes."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_bench.engines import EngineSpec, different_names, open_engine, parse_engine
from yolact_bench.report.page import write_html
from yolact_bench.report.tables import show
from yolact_bench.stages import EngineContender
from yolact_bench.suite import Report, Settings
from yolact_runtime.errors import UsageError
from yolact_runtime.files import atomic_path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """An engine of the command line.

    Attributes:
        contender: It, open.
        path: Its file.
        options: What `load_engine` was given.
    """

    contender: EngineContender
    path: str
    options: dict[str, Any]


def add_engines(parser: argparse.ArgumentParser) -> None:
    """The option that names engines; `open_engines` reads it."""
    parser.add_argument(
        "--engine",
        action="append",
        required=True,
        metavar="E[:KEY=VALUE,...]",
        dest="engines",
        help="repeat for several, ratios refer to the first; options of one engine follow a colon, such as"
        " m.onnx:threads=2,name=ours",
    )


def open_engines(
    texts: Sequence[str],
    settings: Settings,
    stack: ExitStack,
    defaults: Callable[[EngineSpec], Mapping[str, Any]] = lambda spec: {},
) -> list[Opened]:
    """Open what `add_engines` asked for.

    Args:
        texts: One for each engine.
        settings: Its threads go to every engine that does not name its own and computes on the CPU.
        stack: Closes the engines.
        defaults: More options of an engine, for those that it does not name.

    Raises:
        UsageError: wrong options, or engines in PyTorch, which has one number of threads for the process,
            with different ones: the last engine opened would decide for all.
        YolactError: an engine cannot be opened.
    """
    specs = [parse_engine(text) for text in texts]
    opened = []
    for name, spec in zip(different_names(specs), specs, strict=True):
        no_threads = Path(spec.path).suffix.lower() in (".engine", ".plan")
        common = {"threads": settings.threads} if settings.threads and not no_threads else {}
        options = {**common, **defaults(spec), **spec.options}
        engine = stack.enter_context(open_engine(spec.path, options))
        contender = EngineContender(name, engine, settings.score_threshold, settings.top_k)
        opened.append(Opened(contender, spec.path, options))
    in_torch = [one for one in opened if one.contender.backend.startswith("PyTorch")]
    if len({one.options.get("threads") for one in in_torch}) > 1:
        raise UsageError("PyTorch engines in one run share their CPU threads; give all the same number")
    return opened


def on_gpu(backend: str) -> bool:
    """Whether an engine of this name computes on a GPU."""
    return any(word in backend.lower() for word in ("cuda", "tensorrt"))


def add_protocol(parser: argparse.ArgumentParser, seconds: float = 3.0, threads: int | None = None) -> None:
    """The options of every command that measures; `settings_of` reads them.

    Args:
        parser: It.
        seconds: Default of `--seconds`.
        threads: Default of `--threads`; None for what each engine chooses.
    """
    group = parser.add_argument_group("protocol")
    group.add_argument(
        "--batch", type=int, nargs="+", default=[1], metavar="N", help="images per run; several sizes in turn"
    )
    group.add_argument("--seconds", type=float, default=seconds, help="time for each engine, batch and kind")
    group.add_argument("--runs", type=int, default=200, help="at most so many runs of each")
    default = "what each engine chooses" if threads is None else "all cores"
    group.add_argument("--threads", type=int, default=threads, help=f"CPU threads (default: {default})")
    group.add_argument("--score-threshold", type=float, default=0.0, help="masks for detections above this")
    group.add_argument("--top-k", type=int, help="masks for at most so many (default: all)")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where a report goes; `deliver` reads them."""
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--report", metavar="FILE.html", help="write the report as a page")


def settings_of(args: argparse.Namespace) -> Settings:
    """What `add_protocol` asked for.

    Raises:
        UsageError: a batch size below 1 or given twice, or fewer than one thread.
    """
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads is {args.threads}; it must be 1 or more")
    return Settings(
        tuple(args.batch), args.seconds, args.runs, args.threads, args.score_threshold, args.top_k
    )


def deliver(report: Report, args: argparse.Namespace) -> None:
    """Print a report and write the files that `add_output` asked for."""
    show(report)
    if args.json:
        write_report_json(report, args.json)
        log.info("wrote %s", args.json)
    if args.report:
        write_html(report, args.report)
        log.info("wrote %s", args.report)


def write_report_json(report: Report, path: str | Path) -> None:
    """Write the report as JSON, lists of numbers on one line each."""
    text = json.dumps(report.to_json(), indent=2, allow_nan=False)
    # Strings hold no bare line breaks, so this meets lists only.
    text = re.sub(
        r"\[\n[\s\d.,eE+nul-]*\]",
        lambda match: re.sub(r"\s+", " ", match[0]).replace("[ ", "[").replace(" ]", "]"),
        text,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
