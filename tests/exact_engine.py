"""An engine that finds exactly what an image shows: `from exact_engine import ExactEngine, region_of`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolact_runtime import Detections, Engine, Metadata, Result, YolactError
from yolact_runtime.masks import Region


def region_of(mask: np.ndarray) -> Region:
    """The region of a mask (H, W) bool with at least one pixel."""
    edges = np.flatnonzero(np.diff(mask.T.reshape(-1).astype(np.int8), prepend=0, append=0))
    y, x = np.nonzero(mask)
    left, top = int(x.min()), int(y.min())
    size = int(x.max()) + 1 - left, int(y.max()) + 1 - top
    return Region(left, top, *size, len(mask), edges.astype(np.int64))


class ExactEngine(Engine):
    """Objects are the pixels of one value in the first channel, but for 0, with exact masks.

    The second channel of an object's pixels is its class, the third its score in percent. Objects that touch
    the border of what the engine is shown are `changed` to another class and a factor of the score.

    Args:
        max_batch: As of other engines; `shown` are the numbers of images in its calls.
        changed: Class and factor of cut objects.
        broken: Fails on images with an object of this number.
    """

    def __init__(
        self, max_batch: int = 4, changed: tuple[int, float] | None = None, broken: int | None = None
    ) -> None:
        self.metadata = Metadata(
            config="exact", class_names=("a", "b"), category_ids=(1, 7), input_size=32,
            mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), max_batch=max_batch,
        )  # fmt: skip
        self.changed, self.broken = changed, broken
        self.shown: list[int] = []
        self.sizes: set[tuple[int, ...]] = set()
        self.closed = False

    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
        raise NotImplementedError

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return image

    def predict_prepared(
        self,
        prepared: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        score_threshold: float,
        top_k: int,
        classes: frozenset[int] | None = None,
    ) -> list[Result]:
        assert 1 <= len(prepared) <= self.metadata.max_batch
        assert [image.shape[:2] for image in prepared] == list(sizes)
        self.shown.append(len(prepared))
        self.sizes |= set(sizes)
        return [self._look(image, score_threshold, top_k, classes) for image in prepared]

    def close(self) -> None:
        self.closed = True

    def _look(
        self, image: np.ndarray, score_threshold: float, top_k: int, classes: frozenset[int] | None
    ) -> Result:
        height, width = image.shape[:2]
        rows = []
        for number in np.flatnonzero(np.bincount(image[..., 0].ravel())).tolist():
            if number == 0:
                continue
            if number == self.broken:
                raise YolactError(f"cannot look at object {number}")
            region = region_of(image[..., 0] == number)
            label, score = image[region.edges[0] % height, region.edges[0] // height, 1:].tolist()
            inner = region.x > 0 and region.x + region.width < width
            inner = inner and region.y > 0 and region.y + region.height < height
            if self.changed and not inner:
                label, score = self.changed[0], score * self.changed[1]
            if score / 100 > score_threshold and (classes is None or label in classes):
                rows.append((score / 100, label, region))
        rows = sorted(rows, key=lambda row: -row[0])[:top_k]
        corners = np.array([(r.x, r.y, r.x + r.width, r.y + r.height) for _, _, r in rows]).reshape(-1, 4)
        scores = np.array([score for score, _, _ in rows], np.float32)
        return Result(
            height=height,
            width=width,
            relative_boxes=(corners / [width, height, width, height]).astype(np.float32),
            scores=scores,
            mask_scores=scores,
            classes=np.array([label for _, label, _ in rows], np.int64),
            coefficients=np.zeros((len(rows), 0), np.float32),
            prototypes=np.zeros((0, 0, 0), np.float32),
            class_names=self.metadata.class_names,
            class_ids=self.metadata.category_ids,
            contours=[region for _, _, region in rows],
        )
