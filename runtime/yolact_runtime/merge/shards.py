"""The outputs of the shards of a run: what one is, and whether several are all of the same run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_runtime.errors import YolactError
from yolact_runtime.merge.order import Record, Spool, Stream, merged
from yolact_runtime.sources.shard import Shard
from yolact_runtime.untrusted import limit

_NAMED = 20  # numbers in a message
MOST_STREAMS = 1000  # of one file: a run that was resumed without end has two


@dataclass
class ShardFile:
    """An output of one shard.

    Attributes:
        path: The file.
        shard: Which one.
        images: Number of its images that are done, failed ones included.
        streams: Its records in order: the position in the whole list, and what the output has of it. Several,
            as the images that a resumed run did again come later.
        failed: Number of failed images, if the records do not have them.
        unlisted: Number of images without an id, if the records do not have them.
        categories: "id" and "name" of its classes; empty if it does not have them.
        resumable: Whether a run can continue it.
    """

    path: Path
    shard: Shard
    images: int
    streams: list[Stream]
    failed: int = 0
    unlisted: int = 0
    categories: Sequence[dict[str, Any]] = ()
    resumable: bool = False


def check_shards(files: Sequence[ShardFile]) -> None:
    """Check that files are of all shards of one run, each once and finished.

    Raises:
        YolactError: they are not; says which and how many.
    """
    first = files[0]
    for other in files[1:]:
        if reason := _difference(first, other):
            raise YolactError(f"{first.path} and {other.path} do not belong together: {reason}")
    by_number: dict[int, ShardFile] = {}
    for file in files:
        if (before := by_number.setdefault(file.shard.number, file)) is not file:
            raise YolactError(f"{file.shard} twice: {before.path} and {file.path}; name one of them")
    count = first.shard.count
    if missing := [number for number in range(1, count + 1) if number not in by_number]:
        raise YolactError(f"{_numbers(missing)} of {count} {_are(missing)} missing; name the outputs of all")
    if short := sorted(n for n, file in by_number.items() if file.images != file.shard.images):
        file = by_number[short[0]]
        how = "with --resume" if file.resumable else "again"
        again = f"run {'it' if len(short) == 1 else 'them'} {how}"
        raise YolactError(
            f"{_numbers(short)} of {count} {_are(short)} not finished ({file.path} has {file.images:,} of"
            f" {file.shard.images:,} images); {again}"
        )


def _difference(a: ShardFile, b: ShardFile) -> str:
    """Why two files are not of one run; empty if they are."""
    one, other = a.shard, b.shard
    if one.count != other.count:
        return f"one is {one}, the other {other}"
    if one.listed != other.listed:
        return f"their lists have {one.listed:,} and {other.listed:,} images"
    if one.names != other.names:
        return f"the names in their lists of {one.listed:,} images differ"
    if one.run != other.run:
        return f"they were found with different engines or options (runs {one.run} and {other.run})"
    if one.ids != other.ids:
        return "their image ids are from different annotation files"
    return "their classes differ" if a.categories != b.categories else ""


def _numbers(numbers: Sequence[int]) -> str:
    """`shard 4`, `shards 4 and 9`, `shards 1, 2 and 30 more`."""
    if len(numbers) == 1:
        return f"shard {numbers[0]}"
    more = len(numbers) - _NAMED
    names = [*map(str, numbers[:_NAMED]), f"{more:,} more"] if more > 0 else list(map(str, numbers))
    return f"shards {', '.join(names[:-1])} and {names[-1]}"


def _are(numbers: Sequence[int]) -> str:
    return "is" if len(numbers) == 1 else "are"


def records_of(files: Sequence[ShardFile], spool: Spool) -> Iterator[Record]:
    """The records of checked shards, in the order of the whole list.

    Raises:
        YolactError: a file has an image twice, or out of order.
    """
    last = -1
    for index, value in merged([stream for file in files for stream in file.streams], spool):
        if index <= last:
            raise YolactError(f"image {index + 1} of the list is there twice, or out of order")
        last = index
        yield index, value


def ascents(path: Path, positions: Iterable[tuple[int, int]]) -> tuple[list[int], int]:
    """Where the ascending sequences of a file begin.

    Args:
        path: The file.
        positions: A place in it, and the position in the whole list of what is there.

    Returns:
        The places where they begin, and the number of images: of positions that differ from the one before.

    Raises:
        YolactError: there are too many: the file was not written by yolact-infer.
    """
    starts: list[int] = []
    images = 0
    last: int | None = None
    for place, index in positions:
        images += index != last
        if last is None or index < last:
            starts.append(place)
            if len(starts) > MOST_STREAMS:
                raise YolactError(f"{path}: its images are out of order; it was not written by yolact-infer")
        last = index
    return starts, images


def pairs(starts: Sequence[int], end: int | None) -> list[tuple[int, int | None]]:
    """Where each of the sequences that `ascents` found begins and ends; the last one ends at `end`."""
    return list(zip(starts, [*starts[1:], end], strict=False))


def check_categories(path: Path, value: Any) -> list[dict[str, Any]]:
    """The classes that a file lists, checked; raises a YolactError."""
    right = isinstance(value, list) and len(value) <= limit("classes")
    right = right and all(isinstance(one, dict) and set(one) == {"id", "name"} for one in value)
    right = right and all(type(one["id"]) is int and abs(one["id"]) < 1 << 63 for one in value)
    right = right and all(type(one["name"]) is str and len(one["name"]) <= limit("name") for one in value)
    if not right or len({one["id"] for one in value}) < len(value):
        raise YolactError(f"{path}: its categories are damaged")
    return list(value)
