"""Outputs of several sources that are read at the same time: each source has its own."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.errors import UsageError
from yolact_runtime.files import STDOUT, stream_of
from yolact_runtime.frames import Frame, Sink
from yolact_runtime.results import Result
from yolact_runtime.sources.several import SimultaneousSource

# Options of yolact-infer that name a file or a folder of which every source has its own. Overlays and videos
# share a folder, because their names begin with that of the source.
FILES = ("json", "coco_dataset", "jsonl", "table")
FOLDERS = ("arrays", "masks", "cutouts")


class RoutingSink(Sink):
    """Passes each frame to the sink of its source, numbered as if that source were read alone.

    Args:
        source: What the frames are from.
        sinks: One for each of `source.feeds`; None if nothing is written for it.
    """

    def __init__(self, source: SimultaneousSource, sinks: Sequence[Sink | None]) -> None:
        self._sinks = [sink for sink in sinks if sink is not None]
        self._by_source = {
            number: sink for feed, sink in zip(source.feeds, sinks, strict=True) for number in feed.numbers
        }

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> Any:
        sink = self._by_source[frame.source]
        return None if sink is None else sink.prepare(_own(frame), image, result)

    def write(self, frame: Frame, prepared: Any) -> None:
        if (sink := self._by_source[frame.source]) is not None:
            sink.write(_own(frame), prepared)

    def fail(self, frame: Frame, error: str) -> None:
        if (sink := self._by_source[frame.source]) is not None:
            sink.fail(_own(frame), error)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # closes all, even if one fails
            for sink in self._sinks:
                stack.callback(sink.close)


def _own(frame: Frame) -> Frame:
    """The frame with its number in its own source."""
    return frame if frame.source_index is None else replace(frame, index=frame.source_index)


def options_of_source(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """The options of yolact-infer for one of several sources: `x/y.json` becomes `x/NAME/y.json`.

    Standard output, pipes and devices stay as they are, for JSON Lines of all sources.

    Raises:
        UsageError: a file of other JSON is one of these.
    """
    own = argparse.Namespace(**vars(args), source_name=name)
    for option in FILES:
        if (path := getattr(args, option, None)) is None or (option == "json" and args.no_json):
            continue
        if stream_of(path) is None:
            setattr(own, option, type(path)(Path(path).parent / name / Path(path).name))
        elif option != "jsonl":
            raise UsageError(
                f"--{option.replace('_', '-')} {path}: several sources cannot share it; name a file,"
                " which becomes one in a folder for each source"
            )
    for option in FOLDERS:
        # "-" is refused as for one source.
        if (path := getattr(args, option, None)) and str(path) != STDOUT:
            setattr(own, option, Path(path) / name)
    return own
