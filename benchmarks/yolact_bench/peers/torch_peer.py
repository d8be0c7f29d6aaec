"""What the peers in PyTorch share: device, threads, stage times, RLE."""

from __future__ import annotations

import itertools
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from yolact_bench.measure.candidate import Candidate, different_batches
from yolact_runtime.sources.images import read_image


class TorchPeer(Candidate):
    """Another implementation that runs in PyTorch, in this process.

    Args:
        threads: CPU threads of PyTorch and OpenCV, for the whole process.
        device: "cpu" or "cuda".
        library: Its name and version.
    """

    precision = "fp32"

    def __init__(self, threads: int, device: str, library: str) -> None:
        import torch

        self._torch, self._device = torch, device
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)  # which ultralytics sets to 0 on import
        self.backend = f"PyTorch {torch.__version__}, {library} ({device})"
        self._prepared: Iterator[Any] = iter(())

    def prepare(self, images: Sequence[Path], batch: int) -> None:
        self._adapt(read_image(images[0]))
        with self._torch.inference_mode():
            prepared = [
                self._preprocess([read_image(path) for path in paths])
                for paths in different_batches(images, batch)
            ]
        self._prepared = itertools.cycle(prepared)

    def network_only(self) -> None:
        with self._torch.inference_mode():
            self._detect(next(self._prepared))
            self._synchronize()

    @abstractmethod
    def _adapt(self, image: np.ndarray) -> None:
        """Give random weights as much work on this image as trained ones have."""

    @abstractmethod
    def _preprocess(self, images: Sequence[np.ndarray]) -> Any:
        """Images, each (H, W, 3) uint8 BGR, to a batch for `_detect`."""

    @abstractmethod
    def _detect(self, batch: Any) -> Any:
        """Run the network and its detection."""

    def _synchronize(self) -> float:
        """Wait for the device and return the time in seconds."""
        if self._device == "cuda":
            self._torch.cuda.synchronize()
        return time.perf_counter()


def encode(masks: np.ndarray) -> list[dict[str, Any]]:
    """RLE of (n, H, W) masks, in one call of pycocotools."""
    by_column = np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)  # (H, W, n)
    encoded: list[dict[str, Any]] = coco_mask.encode(by_column)
    return encoded
