"""The work of `yolact-infer merge`: look at the inputs, join them, and write the outputs of one run."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from yolact_runtime.commandline import print_line, progress_bar
from yolact_runtime.errors import UsageError, YolactError, counted
from yolact_runtime.files import follow_links, is_folder, is_stdout, stream_of, writing
from yolact_runtime.frames import Frame
from yolact_runtime.merge.coco import open_coco
from yolact_runtime.merge.lines import open_lines
from yolact_runtime.merge.order import Spool
from yolact_runtime.merge.outputs import GivenNames, LineOutputs, whole
from yolact_runtime.merge.rows import Parts, parts_in, report_failures
from yolact_runtime.merge.shards import ShardFile, check_categories, check_shards, records_of
from yolact_runtime.merge.table import open_table_shard
from yolact_runtime.outputs import Named, check_outputs, engine_files
from yolact_runtime.sinks.coco import coco_paths
from yolact_runtime.sinks.image_ids import ImageIds, ImageNumbers
from yolact_runtime.sinks.table import SUFFIXES, check_table, open_table, shard_file
from yolact_runtime.temporary import new_folder
from yolact_runtime.untrusted import open_regular

log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """A kind of input: what it is called, how a file of it is opened, and the options that it gives."""

    name: str
    open: Callable[[Path], ShardFile] | None
    gives: tuple[str, ...]


LINES = Kind("JSON Lines", open_lines, ("json", "coco_dataset", "jsonl", "table"))
COCO = Kind("COCO results", open_coco, ("json", "coco_dataset"))
TABLE = Kind("tables", open_table_shard, ("table",))
ROWS = Kind("folders of rows", None, ("json", "coco_dataset"))


@dataclass
class Counts:
    """What was joined."""

    images: int = 0
    detections: int = 0
    failed: int = 0
    unlisted: int = 0


def merge(args: argparse.Namespace) -> int:
    """Run `yolact-infer merge` with checked options.

    Returns:
        The exit code: 0 done, 1 when an image had failed or has no id.

    Raises:
        YolactError: the inputs do not belong together, or something cannot be read or written.
    """
    kind = _kind_of(args)
    _check(args, kind)
    with contextlib.ExitStack() as stack:
        spool = Spool(stack.enter_context(_spool_folder(args)))
        if kind is ROWS:
            counts, written = _merge_rows(args, spool)
            source = f"the rows in {args.inputs[0]}"
        else:
            assert kind.open is not None
            with _progress("reading", len(args.inputs), args.quiet) as step:
                files = []
                for path in args.inputs:
                    files.append(kind.open(path))
                    step()
            check_shards(files)
            join = _merge_tables if kind is TABLE else _merge_lines
            counts, written = join(args, files, spool)
            source = counted(len(files), "shard")
    _summarise(args, counts, source, written)
    return 1 if counts.failed or counts.unlisted else 0


def _kind_of(args: argparse.Namespace) -> Kind:
    """The kind of all inputs.

    Raises:
        UsageError: they are of several kinds, or of none.
    """
    kinds = [(path, _kind(path)) for path in args.inputs]
    first, kind = kinds[0]
    for path, other in kinds[1:]:
        if other is not kind:
            raise UsageError(f"{first} and {path} are of different kinds; merge those of one kind at a time")
    if kind is ROWS and len(kinds) > 1:
        raise UsageError("one folder of rows is merged at a time; move the Parquet files into one folder")
    return kind


def _kind(path: Path) -> Kind:
    """The kind of one input, by its suffix or how it begins."""
    if is_folder(path):
        return ROWS
    if path.suffix.lower() in SUFFIXES:
        return TABLE
    with open_regular(path) as file:
        begin = file.read(64).lstrip()
    if begin.startswith(b"["):
        return COCO
    if begin.startswith(b'{"info"'):
        raise UsageError(
            f"{path} is no file of results; name the shards' mask_detections.json or JSON Lines instead"
        )
    return LINES


def _check(args: argparse.Namespace, kind: Kind) -> None:
    """Check the options before any work.

    Raises:
        UsageError: the inputs do not have what an option writes, or it would write over one.
        YolactError: something cannot be written.
    """
    for option in LINES.gives:
        if getattr(args, option) is not None and option not in kind.gives:
            named = " and ".join(f"--{one.replace('_', '-')}" for one in kind.gives)
            raise UsageError(f"--{option.replace('_', '-')} cannot be written from {kind.name}: give {named}")
    if kind is not ROWS and (args.annotations or args.engine):
        option = "--annotations" if args.annotations else "--engine"
        raise UsageError(f"{option} is for a folder of rows; shards have their ids and categories")
    if args.table:
        check_table(args.table)
        if args.table.suffix.lower() == ".parquet" and args.inputs[0].suffix.lower() == ".csv":
            raise UsageError(f"--table {args.table}: CSV is merged to CSV; name a file that ends in .csv")
    reads: list[Named] = [("INPUT", path) for path in _input_files(args.inputs, kind)]
    reads += [("--annotations", args.annotations)]
    reads += [("--engine", path) for path in (engine_files(args.engine) if args.engine else ())]
    writes: list[Named] = [("--json", path) for path in (coco_paths(args.json) if args.json else ())]
    writes += [("--coco-dataset", args.coco_dataset), ("--jsonl", args.jsonl), ("--table", args.table)]
    check_outputs(reads, writes)


def _input_files(inputs: Sequence[Path], kind: Kind) -> Iterator[Path]:
    """All files that are read."""
    for path in inputs:
        if kind is COCO:
            yield from coco_paths(path)
        elif kind is ROWS:
            yield from parts_in(path)
        else:
            yield path
            if path.suffix.lower() == ".csv":
                yield shard_file(path)


@contextlib.contextmanager
def _spool_folder(args: argparse.Namespace) -> Iterator[Path]:
    """A temporary folder where there is space for the outputs."""
    outputs = [args.json, args.coco_dataset, args.jsonl, args.table]
    files = [follow_links(path) for path in outputs if path is not None and stream_of(path) is None]
    folder = files[0].parent if files else Path(tempfile.gettempdir())
    with contextlib.ExitStack() as stack:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(new_folder(folder, "merge"))
        yield temporary


@contextlib.contextmanager
def _progress(what: str, total: int, quiet: bool) -> Iterator[Callable[[], None]]:
    """A progress bar; yields what to call after each of `total` steps."""
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _merge_lines(
    args: argparse.Namespace, files: Sequence[ShardFile], spool: Spool
) -> tuple[Counts, list[str]]:
    """Join JSON Lines or COCO results."""
    counts = Counts(failed=sum(file.failed for file in files), unlisted=sum(file.unlisted for file in files))
    outputs = LineOutputs(args, files[0].categories, ImageNumbers(names=GivenNames()))
    owners = None if files[0].shard.ids == "counted" else set[int]()
    with whole(outputs), _progress("merging", files[0].shard.listed, args.quiet) as step:
        for index, line in records_of(files, spool):
            number = _number(line, index, owners)
            if "error" in line:
                counts.failed += 1
            else:
                counts.images += 1
                counts.detections += len(line["detections"])
                counts.unlisted += number is None
            outputs.write(line, number)
            step()
        return counts, outputs.close()


def _number(line: dict[str, Any], index: int, owners: set[int] | None) -> int | None:
    """The id of an image in COCO files: that of its line, unless an image before has it.

    Args:
        line: Of the image.
        index: In the whole list.
        owners: The ids that are given; None if images are counted.

    Raises:
        YolactError: it is not the one that counting gives.
    """
    if "error" in line or line["image_id"] is None:
        return None
    number: int = line["image_id"]
    if owners is None:
        if number != index + 1:
            raise YolactError(f"image {line['image']} has the id {number}, not {index + 1}")
    elif number in owners:
        log.error(
            "image %s has the same id %d as another one; it is left out of the JSON", line["image"], number
        )
        return None
    else:
        owners.add(number)
    return number


def _merge_tables(
    args: argparse.Namespace, files: Sequence[ShardFile], spool: Spool
) -> tuple[Counts, list[str]]:
    """Join tables."""
    counts = Counts(failed=sum(file.failed for file in files))
    counts.images = sum(file.images for file in files) - counts.failed
    with _progress("merging", files[0].shard.listed, args.quiet) as step:
        table = open_table(args.table)
        try:
            for _, rows in records_of(files, spool):
                table.append(rows)
                counts.detections += len(rows)
                step()
            table.close()
        except BaseException:
            table.discard()
            raise
    return counts, [str(args.table)]


def _merge_rows(args: argparse.Namespace, spool: Spool) -> tuple[Counts, list[str]]:
    """Join rows."""
    parts = Parts(args.inputs[0])
    ids = ImageIds(args.annotations) if args.annotations else None
    counts, messages = Counts(), list[str]()
    numbers = ImageNumbers(ids, names=GivenNames())
    outputs = LineOutputs(args, _categories(args, parts, ids), numbers)
    with whole(outputs), _progress("merging", 2 * parts.rows, args.quiet) as step:
        for line in parts.lines(spool, step):
            step()
            if "error" in line:
                counts.failed += 1
                messages += [line["error"]] if len(messages) < 100 else []
                continue
            path = Path(line["image"])
            number = numbers.claim(Frame(line["index"], line["image"], path, _unread))
            for entry in line["detections"]:
                entry["image_id"] = number
            counts.images += 1
            counts.detections += len(line["detections"])
            outputs.write({**line, "image_id": number}, number)
        report_failures(messages, counts.failed)
        counts.unlisted = numbers.unlisted
        return counts, outputs.close()


def _unread() -> Any:
    raise AssertionError


def _categories(args: argparse.Namespace, parts: Parts, ids: ImageIds | None) -> Sequence[dict[str, Any]]:
    """The categories of rows: from the engine, the rows or the annotation file.

    Raises:
        YolactError: none of them has any, or the rows were found with other ones than the engine's.
    """
    if args.engine:
        from yolact_runtime.engines.load import load_engine

        with load_engine(args.engine) as engine:
            meta = engine.metadata
            pairs = zip(meta.category_ids, meta.class_names, strict=True)
            own = [{"id": key, "name": name} for key, name in pairs]
        if parts.categories and own != parts.categories:
            raise YolactError(
                f"{args.engine} has other categories than the rows in {parts.folder}; omit --engine"
            )
        return own
    if parts.categories:
        return parts.categories
    if ids is not None and ids.categories:
        return check_categories(
            Path(ids.path), [{"id": key, "name": name} for key, name in ids.categories.items()]
        )
    raise UsageError(
        f"the rows in {parts.folder} do not name the categories; give the engine that found them (--engine)"
        " or a COCO file that lists them (--annotations)"
    )


def _summarise(args: argparse.Namespace, counts: Counts, source: str, written: list[str]) -> None:
    """Print one line: counts, and the files written."""
    summary = [
        f"{counted(counts.images, 'image')}, {counted(counts.detections, 'detection')},"
        f" {counted(counts.failed, 'failure')} from {source}"
    ]
    if counts.unlisted:
        summary.append(f"{counts.unlisted} without an id of their own")
    files = args.json, args.coco_dataset, args.jsonl
    print_line("; ".join(summary + written), sys.stderr if any(map(is_stdout, files)) else sys.stdout)
