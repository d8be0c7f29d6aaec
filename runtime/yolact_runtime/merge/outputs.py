"""What merged lines are written to."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from yolact_runtime.errors import YolactError
from yolact_runtime.files import atomic_path, is_stdout, writing
from yolact_runtime.sinks.coco import CocoSink
from yolact_runtime.sinks.coco_dataset import CocoDatasetSink
from yolact_runtime.sinks.image_ids import ImageNumbers
from yolact_runtime.sinks.names import FileNames
from yolact_runtime.sinks.table import TableSink


class GivenNames(FileNames):
    """File names that are known already."""

    def of(self, name: str) -> str:
        return name


class LineOutputs:
    """What the lines of images are written to: everything or nothing.

    Args:
        args: The options.
        categories: "id" and "name" of the classes.
        numbers: The file names of images by what lines call "file_name".
    """

    def __init__(
        self, args: argparse.Namespace, categories: Sequence[dict[str, Any]], numbers: ImageNumbers
    ) -> None:
        classes = tuple(one["id"] for one in categories), tuple(one["name"] for one in categories)
        self._lists: list[CocoSink | CocoDatasetSink] = []
        self._table: TableSink | None = None
        self._lines: Any = None
        self._stack = contextlib.ExitStack()
        try:
            if args.json:
                self._lists.append(CocoSink(args.json, *classes, numbers))
            if args.coco_dataset:
                self._lists.append(CocoDatasetSink(args.coco_dataset, *classes, numbers))
            if args.table:
                self._table = TableSink(args.table, *classes)
            if args.jsonl:
                temporary = self._stack.enter_context(atomic_path(args.jsonl))
                self._lines = self._stack.enter_context(temporary.open("wb"))
                self._name = args.jsonl
        except BaseException:
            self.discard()
            raise

    @property
    def _sinks(self) -> list[CocoSink | CocoDatasetSink | TableSink]:
        return [*self._lists, *([self._table] if self._table else ())]

    def write(self, line: dict[str, Any], number: int | None) -> None:
        """Write a line, with the id that the image has in COCO files; None if it has none."""
        if self._lines is not None:
            own = {key: value for key, value in line.items() if key != "file_name"}
            with writing(self._name):
                self._lines.write(json.dumps(own).encode() + b"\n")
        if "error" in line:
            return
        if self._table is not None:
            self._table.carry(line)
        for sink in self._lists:
            sink.carry({**line, "image": line.get("file_name", line["image"]), "image_id": number})

    def close(self) -> list[str]:
        """Put all files in their places; returns their names."""
        written = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.discard)
            if self._lines is not None:
                with writing(self._name):
                    self._stack.close()
                written = [] if is_stdout(self._name) else [str(self._name)]
            for sink in self._sinks:
                sink.close()
        return [name for sink in self._sinks for name in sink.written()] + written

    def discard(self) -> None:
        """Remove what is not in its place."""
        for sink in self._sinks:
            sink.discard()
        self._stack.__exit__(YolactError, YolactError("discarded"), None)


@contextlib.contextmanager
def whole(outputs: LineOutputs) -> Iterator[None]:
    """Discard the outputs if the block raises."""
    try:
        yield
    except BaseException:
        outputs.discard()
        raise
