"""An engine whose findings the test chooses: `import fake_engine` works from every test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from yolact_runtime import Detections, Engine, Metadata, YolactError
from yolact_runtime.frames import Frame, Source

SIZE = 64  # of images and prototypes, so that masks are exact


class Found(NamedTuple):
    """One detection: corners in pixels, 0-based class, scores.

    The mask is the box widened by one pixel, the way the crop at prototype resolution widens it.
    """

    box: tuple[int, int, int, int]
    label: int = 0
    score: float = 0.9
    mask_score: float | None = None


class FakeEngine(Engine):
    """Finds `findings[shade]` in an image filled with that shade; fails on the shades in `broken`."""

    def __init__(
        self,
        findings: Mapping[int, Sequence[Found]],
        names: Sequence[str] = ("cat", "dog"),
        ids: Sequence[int] = (1, 2),
        max_batch: int = 1,
        broken: Sequence[int] = (),
    ) -> None:
        self.findings = findings
        self.broken = broken
        self.metadata = Metadata(
            config="fake",
            class_names=tuple(names),
            category_ids=tuple(ids),
            input_size=32,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            max_batch=max_batch,
            max_detections=20,
        )

    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
        n, k = len(batch), self.metadata.max_detections
        found = Detections(
            np.zeros(n, np.int32),
            np.zeros((n, k, 4), np.float32),
            np.zeros((n, k), np.float32),
            np.zeros((n, k), np.int32),
            np.ones((n, k, 1), np.float32),
            np.full((n, SIZE, SIZE, 1), 9, np.float32),
            np.zeros((n, k), np.float32),
        )
        for i, image in enumerate(batch):
            shade = int(image[0, 0, 0])
            if shade in self.broken:
                raise YolactError(f"cannot look at shade {shade}")
            rows = sorted(self.findings.get(shade, []), key=lambda row: -row.score)
            found[0][i] = len(rows)  # `found.count` is a method of tuples to type checkers
            for j, row in enumerate(rows):
                found.boxes[i, j] = np.array(row.box) / SIZE
                found.scores[i, j] = row.score
                found.classes[i, j] = row.label
                found.mask_scores[i, j] = row.score if row.mask_score is None else row.mask_score
        return found


class BlobEngine(Engine):
    """Detects overlapping blobs whose shapes depend on the image, so that no two masks are alike."""

    def __init__(self, names: Sequence[str] = ("cat", "traffic light"), most: int = 20) -> None:
        self.metadata = Metadata(
            config="blobs",
            class_names=tuple(names),
            category_ids=tuple(range(7, 7 + len(names))),
            input_size=64,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            max_detections=most,
        )

    def detect(self, batch: np.ndarray) -> Detections:
        n, k = len(batch), self.metadata.max_detections
        rng = np.random.default_rng(int(batch.sum()))
        centre, half = rng.uniform(0.1, 0.9, (n, k, 2)), rng.uniform(0.02, 0.4, (n, k, 2))
        return Detections(
            np.full(n, k, np.int32),
            np.concatenate([centre - half, centre + half], axis=2).astype(np.float32),
            -np.sort(-rng.uniform(0.05, 1, (n, k)).astype(np.float32)),
            rng.integers(0, len(self.metadata.class_names), (n, k)).astype(np.int32),
            rng.normal(size=(n, k, 3)).astype(np.float32),
            (batch.astype(np.float32) - 110) / 20,
            rng.uniform(0.05, 1, (n, k)).astype(np.float32),
        )


class Pictures(Source):
    """An image with random blobs for each name, a frame of a video with `clock`."""

    def __init__(self, names: Sequence[str], clock: bool = False, height: int = 50, width: int = 70) -> None:
        self.names, self.clock, self.size = names, clock, (height, width, 3)

    def __iter__(self) -> Iterator[Frame]:
        for index, name in enumerate(self.names):
            path = Path(name.partition("#")[0])
            yield Frame(index, name, path, partial(self.read, index), index / 3 if self.clock else None)

    def read(self, index: int) -> np.ndarray:
        blobs = np.random.default_rng(index).integers(0, 256, (5, 7, 3), np.uint8)
        return cv2.resize(blobs, self.size[1::-1], interpolation=cv2.INTER_CUBIC)


def write_image(path: Path, shade: int, height: int = SIZE, width: int = SIZE) -> None:
    """An image filled with one shade, stored without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), shade, np.uint8))


def annotation(number: int, image: int, box: tuple[int, int, int, int], category: int = 1, **more) -> dict:
    """A COCO annotation that a `Found` with the same box meets exactly, as box and as mask."""
    x1, y1, x2, y2 = box
    left, top, right, bottom = max(0, x1 - 1), max(0, y1 - 1), min(SIZE, x2 + 1), min(SIZE, y2 + 1)
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        **more,
    }


def coco_file(
    images: Sequence[int], annotations: Sequence[dict], names: Sequence[str] = ("cat", "dog")
) -> dict:
    """A COCO annotation file over images `<id>.png`."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in images],
        "annotations": list(annotations),
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
    }
