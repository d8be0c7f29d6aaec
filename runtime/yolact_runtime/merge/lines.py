"""JSON Lines of a shard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from yolact_runtime.errors import YolactError
from yolact_runtime.merge.order import Record
from yolact_runtime.merge.shards import ShardFile, ascents, check_categories, pairs
from yolact_runtime.sinks.jsonl import parse_line, read_first
from yolact_runtime.sources.shard import Shard
from yolact_runtime.untrusted import beyond, limit, open_regular, parse_json

# It takes much memory for each escape, so it gets the beginning of a line: that has any path.
_HEAD = re.compile(rb'\{"image": "[^"\\]*(?:\\.[^"\\]*)*", "index": (\d{1,18})[,}]')
_LONGEST_HEAD = 1 << 17  # bytes


def open_lines(path: Path) -> ShardFile:
    """Look through the JSON Lines of a shard.

    Raises:
        YolactError: they cannot be read, are of no shard, or damaged.
    """
    open_regular(path).close()
    shard, first = read_first(path)
    if shard is None:
        raise YolactError(f"{path} is of no shard: it was written without --shard, or by another program")
    content = parse_json(first)
    categories = check_categories(path, content.get("categories"))
    starts, images = ascents(path, _positions(path, len(first)))
    streams = [partial(_records, path, shard, *ends) for ends in pairs(starts, None)]
    return ShardFile(path, shard, images, list(streams), categories=categories, resumable=True)


def _raw_lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The complete lines of a file from where it is; the last one may have been cut off by a killed run."""
    most = limit("text_bytes")
    while raw := file.readline(most + 1):
        if len(raw) > most:
            raise YolactError(f"{path}: a line is longer than {beyond('text_bytes')}")
        if not raw.endswith(b"\n"):
            return
        yield raw


def _positions(path: Path, start: int) -> Iterator[tuple[int, int]]:
    """Where each line begins, and the index of its image, without parsing the rest of it."""
    with open_regular(path) as file:
        file.seek(start)
        for number, raw in enumerate(_raw_lines(file, path), start=2):
            if (match := _HEAD.match(raw[:_LONGEST_HEAD])) is None:
                raise YolactError(f"{path}: line {number} was not written by yolact-infer")
            yield start, int(match[1])
            start += len(raw)


def _records(path: Path, shard: Shard, start: int, end: int | None) -> Iterator[Record]:
    """The lines from one place in a file to another."""
    with open_regular(path) as file:
        file.seek(start)
        for raw in _raw_lines(file, path):
            if end is not None and start >= end:
                return
            line = parse_line(raw)
            if line is None or type(line.get("index")) is not int or not shard.has(line["index"]):
                raise YolactError(f"{path}: the line at byte {start:,} was not written by yolact-infer")
            if type(line.get("file_name", "")) is not str:
                raise YolactError(f"{path}: the line at byte {start:,} has a damaged file_name")
            yield line["index"], line
            start += len(raw)
