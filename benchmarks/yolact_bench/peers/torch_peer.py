"""What the peers in PyTorch share, and random weights that give as much work as trained ones."""

from __future__ import annotations

import itertools
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from yolact_bench.measure.candidate import Candidate, Run, different_batches
from yolact_runtime.sources.images import read_image

if TYPE_CHECKING:
    import torch

# Pairs of box and class, or boxes, that pass the score threshold and enter NMS.
CANDIDATES = 1000
NOTE = (
    "random weights: detections mean nothing; batch norm set by the first image, threshold set so that"
    f" {CANDIDATES} of its candidates pass"
)


class TorchPeer(Candidate):
    """Another implementation that runs in PyTorch, in this process, on "cpu" or "cuda"."""

    precision = "fp32"

    def __init__(self, threads: int, device: str, library: str) -> None:
        import torch

        self._torch, self._device = torch, device
        torch.set_num_threads(threads)  # of the whole process
        cv2.setNumThreads(threads)  # which ultralytics sets to 0 on import
        self.backend = f"PyTorch {torch.__version__}, {library} ({device})"
        self._prepared: Iterator[Any] = iter(())

    def prepare(self, images: Sequence[Path], batch: int) -> None:
        self._adapt(read_image(images[0]))
        opened = ([read_image(path) for path in paths] for paths in different_batches(images, batch))
        with self._torch.inference_mode():
            self._prepared = itertools.cycle([self._preprocess(arrays) for arrays in opened])

    def network_only(self) -> None:
        with self._torch.inference_mode():
            self._detect(next(self._prepared))
            self._synchronize()

    def end_to_end(self, paths: Sequence[Path]) -> Run:
        start = time.perf_counter()
        images = [read_image(path) for path in paths]
        decoded = time.perf_counter()
        with self._torch.inference_mode():
            masks, network, last = self._masks(images)
        ready = time.perf_counter()
        count = sum(len(encode(one)) for one in masks)
        seconds = {
            "decode": decoded - start,
            "preprocess": max(0.0, ready - decoded - network - last),
            "network": network,
            "masks": last,
            "rle": time.perf_counter() - ready,
        }
        return Run(seconds, count)

    @abstractmethod
    def _adapt(self, image: np.ndarray) -> None:
        """Give random weights as much work on this image as trained ones have."""

    @abstractmethod
    def _preprocess(self, images: Sequence[np.ndarray]) -> Any:
        """Images, each (H, W, 3) uint8 BGR, to a batch for `_detect`."""

    @abstractmethod
    def _detect(self, batch: Any) -> Any:
        """Run the network and its detection."""

    @abstractmethod
    def _masks(self, images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float, float]:
        """Masks (n, H, W) of each image; seconds of network with detection, and of the masks after them."""

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


def settle_batch_norm(model: torch.nn.Module, forward: Callable[[], object]) -> None:
    """Set the statistics of batch norm to those of the data that `forward` runs through the model.

    Without this, random features grow or shrink from layer to layer, until all boxes are the same and all
    masks empty, and nothing is left to do after the network. Batch norm is in evaluation mode afterwards.
    """
    import torch

    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        forward()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def threshold(scores: torch.Tensor) -> float:
    """The score that `CANDIDATES` of them exceed."""
    flat = scores.flatten()
    return float(flat.topk(min(CANDIDATES + 1, len(flat))).values[-1])
