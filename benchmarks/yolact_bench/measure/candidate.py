"""Anything that can be measured against others: one of our engines, or another implementation."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_runtime.metadata import InputSize

# Both kinds of run, with their names in JSON.
KINDS = {"network_only": "alone", "end_to_end": "end_to_end"}
STAGES = ("decode", "preprocess", "upload", "network", "detect", "download", "masks", "rle")
PREPARED = 8  # different batches that the network alone runs on in turn


@dataclass(frozen=True)
class Run:
    """One end-to-end run of a batch.

    Attributes:
        seconds: Time of each of `STAGES`, in order; they add up to the whole run. A candidate that cannot
            separate two neighbours reports their sum under the name of the one that dominates.
        detections: Instances found.
        cpu_seconds: CPU time of all threads; None for that of this process.
    """

    seconds: dict[str, float]
    detections: int
    cpu_seconds: float | None = None


class Candidate(ABC):
    """Turns image files into COCO RLE masks, as its users would.

    Attributes:
        name: Shown in tables; unique in a run.
        backend: The library that runs it, with its version.
        config: The model.
        precision: What its arithmetic really is: "fp32", "fp16", "bf16", "int8" or "int8+bf16".
        input_size: Of the network's input in pixels, the side of a square or (H, W); None if it varies.
        note: What a reader must know for a fair comparison, one line; may be empty.
        licence: Of its code; empty for our own.
        weights_sha256: Of the checkpoint it came from; empty if unknown.
    """

    name: str
    backend: str
    config: str
    precision: str
    input_size: InputSize | None
    note: str = ""
    licence: str = ""
    weights_sha256: str = ""

    @abstractmethod
    def prepare(self, images: Sequence[Path], batch: int) -> None:
        """Get ready for `network_only`: keep decoded and resized batches in memory.

        Args:
            images: Files, used in turn.
            batch: Images per run of both `network_only` and `end_to_end`.

        Raises:
            UsageError: it does not support this batch size.
        """

    @abstractmethod
    def network_only(self) -> None:
        """Run the network and the detection that belongs to it on the next prepared batch."""

    @abstractmethod
    def end_to_end(self, paths: Sequence[Path]) -> Run:
        """Process the files of one batch, up to COCO RLE masks in memory."""

    def to_coco(self, path: Path, image_id: int) -> list[dict[str, Any]] | None:
        """COCO results of one image file, masks included; None if it has other classes."""
        return None

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Free what it holds."""


def batches(images: Sequence[Path], size: int) -> Iterator[list[Path]]:
    """Endless batches over the images, in order, starting again at the end."""
    endless = itertools.cycle(images)
    while True:
        yield list(itertools.islice(endless, size))


def in_order(stages: Iterable[str]) -> list[str]:
    """Unique stages in the order of a run, unknown ones last."""
    known = {stage: index for index, stage in enumerate(STAGES)}
    return sorted(dict.fromkeys(stages), key=lambda stage: known.get(stage, len(known)))


def different_batches(images: Sequence[Path], size: int) -> list[list[Path]]:
    """The first batches of `batches`, at most `PREPARED` and no more than cover the images once."""
    return list(itertools.islice(batches(images, size), min(PREPARED, -(-len(images) // size))))
