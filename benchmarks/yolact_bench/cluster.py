"""`yolact-bench ray`: what a Ray cluster costs, on the cores of this machine.

First, whole runs of `yolact-infer` with and without `--ray`, interleaved. What starting takes is measured by
runs with few images and taken off. Then a scale curve: workers that only sleep show what Ray's driver takes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_bench.options import check_number
from yolact_runtime.commandline import Table, printing_beside
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import write_json
from yolact_runtime.packages import require

if TYPE_CHECKING:
    import pyarrow

_FEW = 8  # images of a run that measures starting


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench ray`."""
    add = parser.add_argument
    add("--engine", metavar="E", help="engine of whole runs; left out, only the scale curve is measured")
    add("--images", metavar="DIR", help="folder of images for whole runs, 200 or more")
    add("--repeat", type=int, default=3, metavar="N", help="how often a whole run reads each image")
    add("--rounds", type=int, default=3, help="whole runs of each kind")
    add("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32], metavar="N",
        help="numbers of workers of the scale curve; none: no curve")  # fmt: skip
    add("--latency-ms", type=float, default=50.0, metavar="MS", help="time of an image in the scale curve")
    add("--block", type=int, default=16, metavar="N", help="images of a task in the scale curve")
    add("--json", type=Path, metavar="FILE", help="write the figures as JSON")


def command(args: argparse.Namespace) -> None:
    """Print both tables."""
    require("yolact-bench ray", "bench,ray", "ray", "pyarrow", "psutil")
    for name in ("rounds", "repeat", "block"):
        check_number(f"--{name}", getattr(args, name), 1, "runs")
    if bool(args.engine) != bool(args.images):
        raise UsageError("whole runs need both --engine E and --images DIR")
    for number in args.workers:
        check_number("--workers", number, 1, 10_000)
    check_number("--latency-ms", args.latency_ms, 0, 60_000)
    import psutil
    import ray

    from yolact_runtime.batch.ray_cluster import cluster
    from yolact_runtime.engines.threads import usable_cores

    cores = usable_cores()
    figures: dict[str, Any] = {"cores": cores, "load before": round(psutil.getloadavg()[0], 2)}
    with cluster("local", num_cpus=cores):
        if args.engine:
            runs = measure_runs(args, ray.get_runtime_context().gcs_address)
            figures["runs"] = {name: asdict(one) for name, one in runs.items()}
            figures["share"] = runs["ray"].rate / runs["plain"].rate
        if args.workers:
            curve = [measure_workers(number, args.latency_ms / 1000, args.block) for number in args.workers]
            figures["curve"] = [asdict(one) for one in curve]
            figures["per image"] = _slopes(curve) if len(set(args.workers)) > 1 else {}
    with printing_beside(args.json):
        _show(figures, args)
    if args.json:
        write_json(args.json, figures)


def _show(figures: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the tables."""
    load = f"{figures['cores']} cores, load {figures['load before']} before"
    if "runs" in figures:
        rows = [
            [name, f"{one['images']}", f"{one['seconds']:.1f}", f"{one['start']:.1f}", f"{one['rate']:.1f}"]
            for name, one in figures["runs"].items()
        ]
        columns = ("yolact-infer", "images", "seconds", "of these to start", "images/s after that")
        Table(f"Whole runs ({load})", columns, rows, f"Ray: {figures['share']:.2f} of plain").show()
    if "curve" in figures:
        curve = []
        for one in figures["curve"]:
            seconds = f"{one['driver']:.2f}", f"{one['daemons']:.2f}"
            rate = f"{one['rate']:.1f}", f"{one['share']:.2f}"
            curve.append([f"{one['workers']}", f"{one['images']}", *rate, *seconds])
        heads = ("workers", "images", "images/s", "of ideal", "driver CPU s", "Ray's daemons CPU s")
        title = f"Workers that sleep {args.latency_ms:g} ms, {args.block} images a task ({load})"
        more = [f"{1e6 * cost:.0f} us of the {name}" for name, cost in figures["per image"].items()]
        Table(title, heads, curve, f"Each image more takes {', '.join(more)}" if more else "").show()


@dataclass(frozen=True)
class RunFigures:
    """Whole runs of a kind, medians.

    Attributes:
        images: Of each run.
        seconds: From start to end of the command.
        start: Seconds of a run with few images.
        rate: Images per second, starting left out.
    """

    images: int
    seconds: float
    start: float
    rate: float


def measure_runs(args: argparse.Namespace, address: str) -> dict[str, RunFigures]:
    """Run both commands by turns, each with all images and with few."""
    from yolact_runtime.sources.images import list_images

    images = list_images([args.images])
    if len(images) < 200:
        raise UsageError(f"--images {args.images} has {len(images)} images; name a folder of 200 or more")
    seconds: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = list(_linked(images, args.repeat, Path(folder)))
        for _ in range(args.rounds):
            for kind in ("plain", "ray"):
                for number in (_FEW, len(images)):
                    taken = _run(kind, args.engine, images[:number], address)
                    seconds.setdefault((kind, number), []).append(taken)
    figures = {}
    for kind in ("plain", "ray"):
        whole, start = (statistics.median(seconds[kind, number]) for number in (len(images), _FEW))
        if whole <= start:
            raise YolactError(
                f"{kind}: {len(images)} images took no longer than {_FEW}; raise --repeat or --rounds"
            )
        rate = (len(images) - _FEW) / (whole - start)
        figures[kind] = RunFigures(len(images), whole, start, rate)
    return figures


def _linked(images: Sequence[Path], repeat: int, folder: Path) -> Iterator[Path]:
    """Links to images, each under several names: a run on a cluster reads a name once."""
    for turn in range(repeat):
        for image in images:
            link = folder / f"{turn}-{image.name}"
            link.symlink_to(image.absolute())
            yield link


def _run(kind: str, engine: str, images: Iterable[Path], address: str) -> float:
    """Seconds of a run of yolact-infer."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = {
            "plain": ["--no-overlay", "--no-json", "--jsonl", f"{folder}/lines.jsonl"],
            "ray": ["--ray", address, "--output-parquet", f"{folder}/parts"],
        }
        words = [sys.executable, "-m", "yolact_runtime.cli", "--quiet", "--engine", engine]
        words += [*outputs[kind], "-"]
        names = "\n".join(str(image.absolute()) for image in images).encode()
        start = time.perf_counter()
        done = subprocess.run(words, input=names, capture_output=True, check=False)
        taken = time.perf_counter() - start
    if done.returncode:
        raise YolactError(f"yolact-infer failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return taken


class Sleeper:
    """A worker that takes a fixed time for each image."""

    def __init__(self, latency: float) -> None:
        self._latency = latency

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """When the images of a batch were begun and done."""
        import pyarrow as pa

        begun = time.time()
        time.sleep(self._latency * len(batch))
        return pa.table({"begun": [begun] * len(batch), "done": [time.time()] * len(batch)})


@dataclass(frozen=True)
class CurveFigures:
    """Of a number of workers.

    Attributes:
        workers: How many.
        images: How many.
        rate: Images per second, from the first image begun to the last one done.
        share: Of workers / latency.
        driver: Seconds of CPU of the driver.
        daemons: Seconds of CPU of Ray's other processes, without the workers.
    """

    workers: int
    images: int
    rate: float
    share: float
    driver: float
    daemons: float


def measure_workers(workers: int, latency: float, block: int, blocks: int = 8) -> CurveFigures:
    """Run workers that sleep, each with `blocks` tasks of `block` images; all have started before."""
    import pyarrow as pa
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.wait_for_min_actors_s = 300
    images = workers * block * blocks
    tables = [pa.table({"path": [f"{at}.jpg"] * block}) for at in range(0, images, block)]
    dataset = ray.data.from_arrow(tables).map_batches(
        Sleeper,
        fn_constructor_args=(latency,),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=0.01,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    before = time.process_time(), _daemon_seconds()
    rows = list(dataset.iter_batches(batch_format="numpy", batch_size=None))
    driver, daemons = time.process_time() - before[0], _daemon_seconds() - before[1]
    assert sum(len(batch["done"]) for batch in rows) == images
    taken = max(batch["done"].max() for batch in rows) - min(batch["begun"].min() for batch in rows)
    rate = images / max(taken, 1e-9)
    return CurveFigures(workers, images, rate, rate * latency / workers, driver, daemons)


def _slopes(curve: Sequence[CurveFigures]) -> dict[str, float]:
    """Seconds of CPU for each image more, of the driver and of Ray's daemons."""
    images = [one.images for one in curve]
    return {
        name: statistics.linear_regression(images, [getattr(one, name) for one in curve]).slope
        for name in ("driver", "daemons")
    }


def _daemon_seconds(names: Sequence[str] = ("raylet", "gcs_server")) -> float:
    """Seconds of CPU of Ray's daemons that this process started."""
    import psutil

    children = psutil.Process().children(recursive=True)
    times = [child.cpu_times() for child in children if child.name() in names]
    return sum(one.user + one.system for one in times)
