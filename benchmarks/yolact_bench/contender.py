"""What can be measured beside others: an engine of ours, or a peer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """One end-to-end run of a batch.

    Attributes:
        seconds: What each stage took, in order; they add up to the whole run. Stages are called `decode`,
            `preprocess`, `upload`, `network`, `detect`, `masks`, `rle`, `download`; who cannot tell two
            neighbours apart gives their sum under the name of the one that dominates.
        detections: Instances found.
    """

    seconds: dict[str, float]
    detections: int


class Contender(ABC):
    """Takes image files and makes COCO run lengths of what it finds, as its users would.

    Attributes:
        name: In tables; unique in a run.
        backend: What runs it, with its version.
        config: The model.
        precision: What its arithmetic really is: "fp32", "fp16", "bf16", "int8" or "int8+bf16".
        input_size: Side of the network's input in pixels; None where it varies.
        note: What a reader must know to compare fairly, one line; may be empty.
        licence: Of its code; empty for what is ours.
    """

    name: str
    backend: str
    config: str
    precision: str
    input_size: int | None
    note: str = ""
    licence: str = ""

    @abstractmethod
    def prepare(self, images: Sequence[Path], batch: int) -> None:
        """Get ready for `alone`: decoded and resized batches in memory.

        Args:
            images: Files, used in turn.
            batch: Images per run of both `alone` and `end_to_end`.

        Raises:
            UsageError: it does not take such batches.
        """

    @abstractmethod
    def alone(self) -> None:
        """One run of the network, and of the detection that goes with it, on the next prepared batch."""

    @abstractmethod
    def end_to_end(self, paths: Sequence[Path]) -> Run:
        """From the files of one batch to COCO run lengths in memory."""

    def to_coco(self, path: Path, image_id: int) -> list[dict[str, Any]] | None:
        """COCO results of one image file, masks included, for AP; None where its classes are others."""
        return None

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Free what it holds."""
