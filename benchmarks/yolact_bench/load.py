"""`yolact-bench load`: an engine on a server under load, interleaved with the pipeline of this process.

A request is an image file: read, sent, and answered with RLE masks. So many threads as the concurrency send
one after the other. `--send encoded` has the server decode and resize; `--send prepared` does it here, as
yolact-infer does. The time of each request includes the network.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_bench.options import check_number
from yolact_runtime.commandline import Table, printing_beside
from yolact_runtime.errors import EngineUnavailableError, UsageError, YolactError, counted, without_secrets
from yolact_runtime.files import write_json

if TYPE_CHECKING:
    from yolact_runtime import Engine, Result
    from yolact_runtime.engines.remote.engine import RemoteEngine

log = logging.getLogger(__name__)

MOST_COMPARED = 50  # images whose results are compared with those of --local
MOST_ERRORS = 20  # different messages in the report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench load`."""
    add = parser.add_argument
    add("--engine", required=True, metavar="ADDRESS[:KEY=VALUE,...]",
        help="model on a server, such as grpc://localhost:8001/yolact; options follow a colon")  # fmt: skip
    add("--local", metavar="E[:KEY=VALUE,...]",
        help="engine of this machine, whose pipeline is measured in turns with it")  # fmt: skip
    add("--images", required=True, metavar="DIR", help="folder of images, which are used in turn")
    add("--concurrency", type=int, nargs="+", default=[1, 8, 32], metavar="N",
        help="requests in flight; several numbers are measured in turns")  # fmt: skip
    add("--requests", type=int, default=1000, metavar="N", help="requests of each concurrency")
    add("--rounds", type=int, default=5, metavar="N", help="parts that the requests are sent in, in turns")
    add("--damaged", type=float, default=0.0, metavar="SHARE",
        help="share of the requests that hold a damaged image, 0..1")  # fmt: skip
    add("--send", choices=("encoded", "prepared"), default="encoded",
        help="image files, which the server decodes, or decoded and resized images")  # fmt: skip
    add("--score-threshold", type=float, default=0.15, help="minimum score of a detection, 0..1")
    add("--top-k", type=int, default=15, help="maximum number of detections per image")
    add("--json", metavar="FILE", help="write the figures as JSON; - is standard output")


def command(args: argparse.Namespace) -> int:
    """Print the figures of each concurrency; 1 if a request was lost, or answered wrongly."""
    _check(args)
    from yolact_bench.measure.engines import parse_engine
    from yolact_bench.measure.machine import describe_machine
    from yolact_runtime import load_engine
    from yolact_runtime.sources.images import list_images

    images = list_images([args.images])
    if not images:
        raise UsageError(f"--images {args.images}: there is no image")
    spec = parse_engine(args.engine)
    with contextlib.ExitStack() as stack:
        remote: Any = stack.enter_context(load_engine(spec.path, **spec.options))
        local = None
        if args.local:
            own = parse_engine(args.local)
            local = stack.enter_context(load_engine(own.path, **{"streams": "auto", **own.options}))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        requests = requests_of(images, args.requests, args.damaged, folder)
        run = LoadRun(remote, local, args.send, (args.score_threshold, args.top_k))
        equal = run.compare(images[:MOST_COMPARED]) if local else None
        figures = run.measure(requests, args.concurrency, args.rounds)
        about = {
            "engine": without_secrets(spec.path),
            "backend": remote.name,
            "precision": remote.precision,
            "local": None if local is None else f"{local.name}, {local.precision}",
        }
    with printing_beside(args.json):
        _show(figures, args, equal, len(images))
    if args.json:
        settings = {name: getattr(args, name) for name in ("send", "damaged", "score_threshold", "top_k")}
        content = {**about, **settings, "images": len(images), "equal": equal, "machine": describe_machine()}
        write_json(args.json, {**content, "figures": [asdict(one) for one in figures]}, indent=2)
    return int(any(one.lost or one.wrong for one in figures))


def _check(args: argparse.Namespace) -> None:
    """Raise a UsageError for options that are out of range or contradict each other."""
    from yolact_bench.measure.engines import parse_engine
    from yolact_runtime.engines.remote.address import is_address

    if not is_address(parse_engine(args.engine).path):
        raise UsageError(
            f"--engine {args.engine} is a file; load is for engines on a server, such as"
            " grpc://localhost:8001/yolact, and files are measured by yolact-bench --engine"
        )
    for size in args.concurrency:
        check_number("--concurrency", size, 1, "threads")
    if len(set(args.concurrency)) < len(args.concurrency):
        raise UsageError("--concurrency has a number twice")
    check_number("--rounds", args.rounds, 1, 1000)
    check_number("--requests", args.requests, args.rounds, 10_000_000)
    check_number("--damaged", args.damaged, 0, 1)
    check_number("--score-threshold", args.score_threshold, 0, 1)
    check_number("--top-k", args.top_k, 1, "candidates")
    if args.damaged and args.send == "prepared":
        raise UsageError("--damaged needs --send encoded: a damaged image cannot be decoded here")


@dataclass(frozen=True)
class ImageRequest:
    """A file to send; of a damaged one, `original` is the image that it was made from."""

    path: Path
    original: Path

    @property
    def damaged(self) -> bool:
        """Whether the server has to refuse it."""
        return self.path != self.original


@dataclass
class LoadFigures:
    """What was measured of the requests of one kind.

    Attributes:
        name: "pipeline", or the concurrency.
        requests: Number of requests, or of images of the pipeline.
        answered: Intact images with an answer.
        refused: Damaged images that were refused, as they should be.
        wrong: Intact images that were refused, and damaged ones that were answered.
        lost: Requests without an answer in all their attempts.
        retried: How often a request was sent again.
        throughput: Requests per second, and its interval: value, low, high.
        ratio: How many times faster than the pipeline; None without it.
        p50, p90, p99, max: Of the time of a request in milliseconds; None of the pipeline.
        errors: How often each message of an error came.
    """

    name: str
    requests: int = 0
    answered: int = 0
    refused: int = 0
    wrong: int = 0
    lost: int = 0
    retried: int = 0
    throughput: dict[str, float] | None = None
    ratio: dict[str, float] | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None
    errors: dict[str, int] = field(default_factory=dict)


def requests_of(images: Sequence[Path], count: int, damaged: float, folder: Path) -> list[ImageRequest]:
    """Requests for images in turn, of which a share is damaged: always the same ones.

    Args:
        images: Files.
        count: Number of requests.
        damaged: Share of the damaged ones.
        folder: For damaged files.
    """
    import numpy as np

    random = np.random.default_rng(0)
    chosen = set(random.permutation(count)[: round(count * damaged)].tolist())
    requests = []
    for index, path in zip(range(count), itertools.cycle(images)):
        if index not in chosen:
            requests.append(ImageRequest(path, path))
            continue
        target = folder / f"{index}{path.suffix}"
        target.write_bytes(damage(path.read_bytes(), len(requests)))
        requests.append(ImageRequest(target, path))
    return requests


def damage(data: bytes, kind: int) -> bytes:
    """An image file that cannot be read: cut off, without its beginning, empty, or random."""
    import numpy as np

    kinds: list[Callable[[], bytes]] = [
        lambda: data[: len(data) // 2],
        lambda: data[len(data) // 3 :],
        lambda: b"",
        lambda: np.random.default_rng(kind).bytes(1000),
    ]
    return kinds[kind % len(kinds)]()


class LoadRun:
    """Sends requests to an engine on a server, and runs the pipeline of an engine in this process.

    Args:
        remote: The one on the server.
        local: The other one; None for none.
        send: "encoded" or "prepared".
        limits: Score threshold and top k.
    """

    def __init__(
        self, remote: RemoteEngine, local: Engine | None, send: str, limits: tuple[float, int]
    ) -> None:
        self._remote, self._local, self._send, self._limits = remote, local, send, limits

    def compare(self, images: Sequence[Path]) -> dict[str, int]:
        """How many images have the same boxes, scores and RLEs on both sides, to the bit: {"equal", "of"}."""
        from yolact_runtime.sources.images import read_image

        assert self._local is not None
        equal = 0
        for path in images:
            ours = self._local.predict([read_image(path)], *self._limits)[0]
            equal += _same(ours, self._ask(path))
        return {"equal": equal, "of": len(images)}

    def measure(
        self, requests: Sequence[ImageRequest], concurrencies: Sequence[int], rounds: int
    ) -> list[LoadFigures]:
        """Send all requests with each concurrency, in rounds that take turns.

        Returns:
            The figures of the pipeline, if there is one, and of each concurrency.
        """
        from yolact_bench.measure.statistics import mean_interval, paired_ratio

        names = [*(["pipeline"] if self._local else []), *map(str, concurrencies)]
        figures = {name: LoadFigures(name) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        taken: dict[str, list[float]] = {name: [] for name in names}
        errors: dict[str, Counter[str]] = {name: Counter() for name in names}
        self._round(requests[: 2 * max(concurrencies)], max(concurrencies), LoadFigures(""), [], Counter())
        parts = [requests[index::rounds] for index in range(rounds)]
        for index, part in enumerate(parts):
            first = index % len(names)
            for name in names[first:] + names[:first]:
                log.info("round %d of %d: %s", index + 1, rounds, name)
                start = time.perf_counter()
                if name == "pipeline":
                    self._pipeline(part, figures[name])
                else:
                    self._round(part, int(name), figures[name], taken[name], errors[name])
                seconds[name].append((time.perf_counter() - start) / len(part))
        for name, one in figures.items():
            each = _array(seconds[name])
            one.throughput = mean_interval(1 / each)._asdict()
            if self._local and name != "pipeline":
                one.ratio = paired_ratio(_array(seconds["pipeline"]), each)._asdict()
            one.errors = dict(errors[name].most_common(MOST_ERRORS))
            if taken[name]:
                one.p50, one.p90, one.p99, one.max = _milliseconds(taken[name])
        return list(figures.values())

    def _ask(self, path: Path) -> Result:
        """The result of an image file, with its RLEs."""
        if self._send == "encoded":
            result = self._remote.predict_encoded([path.read_bytes()], *self._limits)[0]
        else:
            from yolact_runtime.sources.images import read_image

            result = self._remote.predict([read_image(path)], *self._limits)[0]
        result.rles  # noqa: B018 - computed when first asked for
        return result

    def _round(
        self,
        requests: Sequence[ImageRequest],
        concurrency: int,
        figures: LoadFigures,
        taken: list[float],
        errors: Counter[str],
    ) -> None:
        """Send requests from so many threads, and add what became of them."""

        def send(request: ImageRequest) -> tuple[float, YolactError | None]:
            start = time.perf_counter()
            try:
                self._ask(request.path)
            except YolactError as error:
                return time.perf_counter() - start, error
            return time.perf_counter() - start, None

        before = self._remote.retried
        with ThreadPoolExecutor(concurrency) as pool:
            for request, (duration, error) in zip(requests, pool.map(send, requests), strict=True):
                taken.append(duration)
                figures.requests += 1
                if isinstance(error, EngineUnavailableError):
                    figures.lost += 1
                elif (error is not None) != request.damaged:
                    figures.wrong += 1
                elif error is None:
                    figures.answered += 1
                else:
                    figures.refused += 1
                if error is not None:
                    errors[str(error)[:200]] += 1
        figures.retried += self._remote.retried - before

    def _pipeline(self, requests: Sequence[ImageRequest], figures: LoadFigures) -> None:
        """Run the pipeline on the images of requests, none of them damaged."""
        from yolact_bench.measure.pipeline import RleSink
        from yolact_runtime import pipeline
        from yolact_runtime.engines.threads import default_workers
        from yolact_runtime.sources.images import ImageSource

        assert self._local is not None
        workers = default_workers()
        settings = pipeline.PipelineSettings(
            decode_workers=workers,
            post_workers=workers,
            score_threshold=self._limits[0],
            top_k=self._limits[1],
        )
        source = ImageSource([request.original for request in requests])
        stats = pipeline.run_pipeline(source, self._local, [RleSink()], settings)
        figures.requests += len(requests)
        figures.answered += stats.done
        figures.wrong += stats.failed


def _same(one: Result, other: Result) -> bool:
    """Whether two results are equal to the bit."""
    return (
        one.rles == other.rles
        and one.boxes_float.tobytes() == other.boxes_float.tobytes()
        and one.scores.tobytes() == other.scores.tobytes()
        and one.mask_scores.tobytes() == other.mask_scores.tobytes()
        and one.category_ids.tolist() == other.category_ids.tolist()
    )


def _array(values: Sequence[float]) -> Any:
    import numpy as np

    return np.array(values, np.float64)


def _milliseconds(seconds: Sequence[float]) -> Iterator[float]:
    """The 50th, 90th and 99th percentile and the maximum, in milliseconds."""
    import numpy as np

    return iter((1000 * np.percentile(seconds, [50, 90, 99, 100])).tolist())


def _show(figures: Sequence[LoadFigures], args: argparse.Namespace, equal: Any, images: int) -> None:
    """Print the table."""
    rows = []
    for one in figures:
        rate, ratio = one.throughput or {}, one.ratio
        counts = (one.requests, one.answered, one.refused, one.wrong, one.lost, one.retried)
        rows.append(
            [
                one.name,
                f"{rate['value']:.1f} ({rate['low']:.1f} to {rate['high']:.1f})",
                f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "",
                *("" if value is None else f"{value:.1f}" for value in (one.p50, one.p99)),
                *map(str, counts),
            ]
        )
    columns = ["in flight", "images/s", "× pipeline", "p50 ms", "p99 ms"]
    columns += ["requests", "answered", "refused", "wrong", "lost", "sent again"]
    note = (
        f"results equal to those of {without_secrets(args.local)}: {equal['equal']} of {equal['of']}"
        if equal
        else ""
    )
    title = f"{without_secrets(args.engine)}, {counted(images, 'image')}, sent {args.send}"
    Table(title, columns, rows, note).show()
    for one in figures:
        for text, count in one.errors.items():
            log.info("%s in flight: %d times: %s", one.name, count, text)
