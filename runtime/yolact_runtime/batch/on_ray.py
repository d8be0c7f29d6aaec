"""Batch inference on a Ray cluster: Ray Data schedules, repeats and limits memory; the workers predict."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_runtime.batch.listing import Listing, are_done, list_sources, read_groups
from yolact_runtime.batch.parts import PartsFolder
from yolact_runtime.batch.predictor import BatchPredictor
from yolact_runtime.batch.ray_cluster import RESTARTS, address_of, cluster
from yolact_runtime.batch.remote_files import fetch, is_remote, local_path
from yolact_runtime.batch.rows import CATEGORIES
from yolact_runtime.batch.shipping import ShippedEngine, ship
from yolact_runtime.commandline import is_terminal, print_line
from yolact_runtime.engines.options import SERVER_OPTIONS
from yolact_runtime.errors import UsageError, YolactError, counted
from yolact_runtime.metadata import Metadata
from yolact_runtime.outputs import check_outputs, engine_files
from yolact_runtime.packages import require
from yolact_runtime.pipeline import SourceStats
from yolact_runtime.sinks.open import mark_of

if TYPE_CHECKING:
    import pyarrow
    import ray.data

log = logging.getLogger(__name__)

BLOCK_ROWS = 128  # images of a task at most: what a lost node costs
PART_ROWS = 512  # images of a Parquet part, at least


@dataclass(frozen=True)
class Workers:
    """The workers of a run.

    Attributes:
        cpus: CPUs and threads of each.
        gpus: GPUs of each.
        limit: How many there are at most.
        room: For how many the cluster has room now.
    """

    cpus: int
    gpus: float
    limit: int
    room: int


class RayPredictor:
    """A `BatchPredictor` as Ray Data builds it in each worker: `dataset.map_batches(RayPredictor, ...)`.

    Args:
        engine: As by `ship`.
        options: For `BatchPredictor`.
    """

    def __init__(self, engine: ShippedEngine, options: Mapping[str, Any]) -> None:
        """Open the engine."""
        with engine.opened() as path:
            self.predictor = BatchPredictor(path, **options)
        meta = self.predictor.engine.metadata
        classes = zip(meta.category_ids, meta.class_names, strict=True)
        self._categories = json.dumps([{"id": number, "name": name} for number, name in classes])

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """The rows of a batch; `CATEGORIES` of the table's metadata has the classes."""
        return self.predictor(batch).replace_schema_metadata({CATEGORIES: self._categories})


def predict_dataset(
    dataset: ray.data.Dataset, engine: ShippedEngine, options: Mapping[str, Any], workers: Workers
) -> ray.data.Dataset:
    """A Ray dataset of rows with instances, from one with "path" or "bytes".

    Args:
        dataset: The images.
        engine: As by `ship`.
        options: For `BatchPredictor`.
        workers: How many, and what each has.
    """
    import ray.data

    first = max(1, min(workers.room, workers.limit))
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=workers.limit, initial_size=first)
    takes_more = "ray_remote_args" in inspect.signature(dataset.map_batches).parameters
    more: dict[str, Any] = {"max_restarts": RESTARTS} if takes_more else {}
    with warnings.catch_warnings():  # Ray 2.64 will have another way to say how often a worker starts again
        warnings.simplefilter("ignore")
        return dataset.map_batches(
            RayPredictor,
            fn_constructor_args=(engine, {**options, "threads": workers.cpus}),
            batch_format="pyarrow",
            batch_size=None,  # a block: with a number, Ray puts blocks together until they have as many rows
            compute=pool,
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            **more,
        )


def infer_on_ray(args: argparse.Namespace, block_rows: int = BLOCK_ROWS, part_rows: int = PART_ROWS) -> int:
    """Run yolact-infer --ray with checked options.

    Returns:
        The exit code: 0 done, 1 when an image failed, 130 when interrupted.

    Raises:
        YolactError: what ended the run.
    """
    require("--ray", "ray", "ray", "pyarrow", "fsspec")
    _check_output(args)
    listing = list_sources(args.sources, args.null)
    folder = PartsFolder(args.output_parquet)
    folder.check(args.resume)
    if listing.doubled:
        log.warning("%s named twice; each is done once", counted(listing.doubled, "image is", "images are"))
    progress = is_terminal(sys.stderr) and not args.quiet
    with cluster(args.ray, progress, args.debug):
        workers = _workers(args)
        engine, options = ship(args.engine), _predictor_options(args)
        run = mark_of(args, _probe(engine, options, workers))
        done = folder.begin(run)
        before = set(folder.parts())
        paths = _remaining(listing, done)
        dataset = _images(listing, paths, done, block_rows, workers)
        try:
            if dataset is not None:
                _write(predict_dataset(dataset, engine, options, workers), folder, part_rows)
        except KeyboardInterrupt:
            log.error("interrupted: the parts in %s are whole; continue with --resume", folder.name)
            return 130
        stats = folder.count(before)
        _check_complete(folder, stats.done + stats.failed, len(paths), listing, resumed=bool(len(done)))
        folder.end(run)
    _summarise(args, stats, len(done), folder)
    return 1 if stats.failed else 0


def _check_complete(folder: PartsFolder, found: int, paths: int, listing: Listing, resumed: bool) -> None:
    """Check that no row is missing; of row groups only if nothing was done before.

    Raises:
        YolactError: the parts have other numbers of rows than there are images.
    """
    lacks = found < paths if listing.groups and resumed else found != paths + listing.rows
    if lacks:
        total = paths + listing.rows
        raise YolactError(f"{folder.name} has rows of {found} of {total} images; run again with --resume")


def _check_output(args: argparse.Namespace) -> None:
    """Check that the folder can be written to, and lock it, unless it is an address."""
    folder = local_path(args.output_parquet)
    if not is_remote(folder):
        reads = [("--engine", path) for path in engine_files(args.engine)]
        check_outputs(reads, [], [("--output-parquet", folder)])


def _workers(args: argparse.Namespace) -> Workers:
    """How many workers there are, and what each has.

    Raises:
        UsageError: no node of a cluster on this machine has what one needs.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = args.gpus_per_worker
    cpus = args.threads or _share_of_cpus(nodes, gpus)
    room = sum(_fitting(node, cpus, gpus) for node in nodes)
    if not room:
        needs = counted(cpus, "CPU") + (f" and {gpus:g} GPU" if gpus else "")
        if address_of(args.ray) == "local":
            raise UsageError(f"a worker needs {needs}, which this machine has not; lower --threads")
        log.warning("no node has %s, which a worker needs; waiting for one", needs)
    if not gpus and (idle := sum(node.get("GPU", 0) for node in nodes)):
        log.warning(
            "%s of the cluster not used: add --gpus-per-worker", counted(int(idle), "GPU is", "GPUs are")
        )
    return Workers(cpus, gpus, args.workers or max(1, room), room)


def _share_of_cpus(nodes: list[dict[str, float]], gpus: float) -> int:
    """CPUs of a worker: 1, or those that a node has for its share of the GPUs, at most 8."""
    shares = [node.get("CPU", 1) * gpus / node["GPU"] for node in nodes if node.get("GPU")]
    return max(1, min(8, math.floor(min(shares)))) if gpus and shares else 1


def _fitting(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    """How many workers a node has room for."""
    number = math.floor(node.get("CPU", 0) / cpus)
    return min(number, math.floor(node.get("GPU", 0) / gpus)) if gpus else number


def _predictor_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `BatchPredictor` that the command line gives."""
    names = (
        *("backend", "precision", "providers", "config", "input_size", "class_names"),
        *("tile", "tile_overlap", "tile_full"),
        *SERVER_OPTIONS,
    )
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    settings = ("score_threshold", "top_k", "classes", "batch_size")
    return {**given, **{name: getattr(args, name) for name in settings}}


def _probe(engine: ShippedEngine, options: Mapping[str, Any], workers: Workers) -> Metadata:
    """Open the engine on a worker, so that what is wrong with it is known before any work."""
    import ray

    def open_once() -> Metadata:
        predictor = RayPredictor(engine, {**options, "threads": workers.cpus}).predictor
        try:
            return predictor.engine.metadata
        finally:
            predictor.close()

    task = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus, max_retries=1)(open_once)
    found: Metadata = ray.get(task.remote())
    return found


def _remaining(listing: Listing, done: np.ndarray) -> pyarrow.ChunkedArray:
    """The paths that are not done."""
    import pyarrow as pa

    if not len(done):
        return listing.paths
    chunks = [
        names.filter(pa.array(~are_done(names.to_pylist(), done)))
        for chunk in listing.paths.chunks
        for names in (chunk[at : at + (1 << 16)] for at in range(0, len(chunk), 1 << 16))
    ]
    return pa.chunked_array(chunks, listing.paths.type)


def _images(
    listing: Listing, paths: pyarrow.ChunkedArray, done: np.ndarray, block_rows: int, workers: Workers
) -> ray.data.Dataset | None:
    """The dataset of the images to do, with "path", and "bytes" where a worker cannot read them itself.

    What reads takes no CPU of the cluster: the workers hold all of them, and would wait for it.
    """
    import pyarrow as pa
    import ray.data
    from pyarrow import compute

    light: dict[str, Any] = {"num_cpus": 0, "batch_format": "pyarrow"}
    pool = ray.data.TaskPoolStrategy(size=2 * workers.limit)
    datasets: list[Any] = []
    if len(paths):
        rows = max(1, min(block_rows, len(paths) // (4 * workers.limit)))
        tables = [
            pa.table({"path": paths[at : at + rows].combine_chunks()}) for at in range(0, len(paths), rows)
        ]
        datasets.append(ray.data.from_arrow(tables))
        if listing.groups or compute.any(compute.match_substring(paths, "://")).as_py():
            datasets[-1] = datasets[-1].map_batches(fetch, batch_size=rows, compute=pool, **light)
    if listing.groups:
        work = [pa.table({"file": [file], "group": [group]}) for file, group in listing.groups]
        datasets.append(ray.data.from_arrow(work))
        given = {"batch_size": 1, "fn_args": (ray.put(done),), "compute": pool}
        datasets[-1] = datasets[-1].map_batches(_read_groups, **given, **light)
    whole: ray.data.Dataset | None = next(iter(datasets), None)
    return whole.union(*datasets[1:]) if whole is not None and len(datasets) > 1 else whole


def _read_groups(batch: pyarrow.Table, done: Any) -> Iterator[pyarrow.Table]:
    """`read_groups` with a reference to `done`, which all tasks of a node share."""
    import ray

    yield from read_groups(batch, ray.get(done))


def _write(dataset: ray.data.Dataset, folder: PartsFolder, part_rows: int) -> None:
    """Write the parts; Ray repeats the write of a lost node under the same name."""
    with warnings.catch_warnings():  # of operators with fewer blocks than tasks
        warnings.simplefilter("ignore")
        dataset.write_parquet(
            folder.path,
            filesystem=folder.system,
            min_rows_per_file=part_rows,
            compression="zstd",
            ray_remote_args={"num_cpus": 0},
        )


def _summarise(args: argparse.Namespace, stats: SourceStats, before: int, folder: PartsFolder) -> None:
    """Print one line: counts, and where they are."""
    parts = [
        f"{counted(stats.done, 'image')}, {counted(stats.detections, 'detection')},"
        f" {counted(stats.failed, 'failure')}"
    ]
    if args.resume:
        parts.append(f"{before} done before")
    print_line("; ".join([*parts, folder.name]), sys.stdout)
