"""Our engines as contenders, no more than the comparison with peers needs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_bench.contender import Contender, Run
from yolact_bench.peers.common import different_batches
from yolact_runtime import Engine
from yolact_runtime.sources.images import read_image


class OurContender(Contender):
    """An engine that keeps all of its detections.

    Args:
        name: In tables.
        engine: It; closed with this.
    """

    def __init__(self, name: str, engine: Engine) -> None:
        meta = engine.metadata
        self.name = name
        self.engine = engine
        self.backend = engine.name
        self.config = meta.config
        self.precision = getattr(engine, "precision", None) or meta.precision
        self.input_size = meta.input_size
        self._prepared: Iterator[np.ndarray] = iter(())

    def prepare(self, images: Sequence[Path], batch: int) -> None:
        self._prepared = itertools.cycle(
            [
                np.stack([self.engine.prepare(read_image(path)) for path in paths])
                for paths in different_batches(images, batch)
            ]
        )

    def alone(self) -> None:
        self.engine.detect(next(self._prepared))

    def end_to_end(self, paths: Sequence[Path]) -> Run:
        marks = [time.perf_counter()]
        images = [read_image(path) for path in paths]
        marks.append(time.perf_counter())
        prepared = [self.engine.prepare(image) for image in images]
        marks.append(time.perf_counter())
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        results = self.engine.predict_prepared(prepared, sizes, 0.0, self.engine.metadata.max_detections)
        marks.append(time.perf_counter())
        for result in results:
            result.regions  # noqa: B018 - computed when first asked for
        marks.append(time.perf_counter())
        count = sum(len(result.rles) for result in results)
        marks.append(time.perf_counter())
        stages = ("decode", "preprocess", "network", "masks", "rle")
        return Run({s: b - a for s, (a, b) in zip(stages, itertools.pairwise(marks), strict=True)}, count)

    def to_coco(self, path: Path, image_id: int) -> list[dict[str, Any]]:
        (result,) = self.engine.predict([read_image(path)], 0.0, self.engine.metadata.max_detections)
        return result.to_coco(image_id)

    def close(self) -> None:
        self.engine.close()
