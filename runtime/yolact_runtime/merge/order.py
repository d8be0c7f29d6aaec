"""Many streams of records in one order, and records sorted, with little memory: through temporary files."""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from yolact_runtime.files import writing

# A key to sort by, and a value, both as JSON has them.
Record = tuple[Any, Any]
Stream = Callable[[], Iterator[Record]]

FAN_IN = 128  # streams that are open at the same time
CHUNK = 32 << 20  # bytes of records that are sorted in memory
_key = itemgetter(0)


class Spool:
    """Temporary files of records.

    Args:
        folder: An empty folder, which its owner removes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def keep(self, records: Iterable[Record]) -> Stream:
        """Write records to a file; the stream reads them, once, and removes it."""
        path = self._folder / str(next(self._numbers))
        with writing(path), path.open("w", encoding="ascii") as file:
            for record in records:
                json.dump(record, file)
                file.write("\n")

        def read() -> Iterator[Record]:
            with path.open(encoding="ascii") as file:
                for line in file:
                    key, value = json.loads(line)
                    yield key, value
            path.unlink()

        return read


def merged(streams: list[Stream], spool: Spool) -> Iterator[Record]:
    """The records of streams that are each sorted by key, sorted."""
    while len(streams) > FAN_IN:
        starts = range(0, len(streams), FAN_IN)
        streams = [spool.keep(_merge(streams[start : start + FAN_IN])) for start in starts]
    return _merge(streams)


def in_order(records: Iterable[Record], spool: Spool) -> Iterator[Record]:
    """All records, sorted by key; `CHUNK` bytes of them are in memory."""
    streams: list[Stream] = []
    chunk: list[Record] = []
    size = 0
    for key, value in records:
        text = json.dumps(value)  # a tenth of the memory
        chunk.append((key, text))
        size += len(text)
        if size > CHUNK:
            streams.append(spool.keep(sorted(chunk, key=_key)))
            chunk, size = [], 0
    chunk.sort(key=_key)
    for key, text in merged([*streams, lambda: iter(chunk)], spool):
        yield key, json.loads(text)


def _merge(streams: Iterable[Stream]) -> Iterator[Record]:
    return heapq.merge(*(stream() for stream in streams), key=_key)
