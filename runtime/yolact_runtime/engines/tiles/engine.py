"""`TiledEngine`: any engine, on large images tile by tile."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from yolact_runtime.detections import Detections
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.tiles.merge import View, merge, views_of
from yolact_runtime.engines.tiles.windows import OVERLAP, Window, check_tiles, windows
from yolact_runtime.errors import YolactError
from yolact_runtime.results import Result

# Seconds that closing waits for batches that are under way.
_PATIENCE = 10.0


class TiledEngine(Engine):
    """Cuts images larger than a tile, runs an engine on the tiles and merges what it finds.

    Images that are not larger go through the engine as they are. Besides the image, memory holds one batch of
    resized tiles and the masks found so far as runs, about a kilobyte each.

    Args:
        engine: Runs the tiles; closed with this one.
        tile: Longer side of a tile in pixels; its shape is that of the network's input.
        overlap: Neighbours share at least this share of a tile, 0..0.9. An object is found best if it is
            smaller than what they share, so that one of them sees it whole.
        full: Run the whole image, too: finds objects larger than a tile, for one more call of the network.

    Raises:
        UsageError: a value out of its range.
    """

    def __init__(self, engine: Engine, tile: int, overlap: float = OVERLAP, full: bool = True) -> None:
        check_tiles(tile, overlap)
        self._engine, self._overlap, self._full = engine, float(overlap), full
        self._running, self._closed, self._idle = 0, False, threading.Condition()
        # As wide for its height as the network's input, so that a tile is not distorted.
        sides = engine.metadata.input_shape
        self._height, self._width = (max(1, round(tile * side / max(sides))) for side in sides)
        self.metadata, self.path, self.unknown_because = engine.metadata, engine.path, engine.unknown_because
        self.streams, self.threads, self.remote = engine.streams, engine.threads, engine.remote
        self.reuses_outputs = engine.reuses_outputs

    @property
    def name(self) -> str:
        return f"{self._engine.name}, tiles of {self._width} x {self._height}"

    @property
    def precision(self) -> str:
        return self._engine.precision

    @property
    def stage_timer(self) -> Callable[[str], contextlib.AbstractContextManager[object]] | None:
        """The engine's own."""
        return self._engine.stage_timer

    @stage_timer.setter
    def stage_timer(self, timer: Callable[[str], contextlib.AbstractContextManager[object]] | None) -> None:
        self._engine.stage_timer = timer

    @stage_timer.deleter
    def stage_timer(self) -> None:
        del self._engine.stage_timer

    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
        return self._engine.detect(batch) if classes is None else self._engine.detect(batch, classes)

    @property
    def untiled(self) -> Engine:
        """What runs the tiles."""
        return self._engine

    def cuts(self, size: Sequence[int]) -> bool:
        """Whether an image of this height and width is larger than a tile."""
        return size[0] > self._height or size[1] > self._width

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The image itself if it is cut: its tiles are resized when their batch runs."""
        return image if self.cuts(image.shape[:2]) else self._engine.prepare(image)

    def predict_prepared(
        self,
        prepared: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        score_threshold: float,
        top_k: int,
        classes: frozenset[int] | None = None,
    ) -> list[Result]:
        large = [index for index, size in enumerate(sizes) if self.cuts(size)]
        small = [index for index, size in enumerate(sizes) if not self.cuts(size)]
        results: dict[int, Result] = {}
        if small:
            inputs, of_inputs = [prepared[index] for index in small], [sizes[index] for index in small]
            with self._open():
                found = self._engine.predict_prepared(inputs, of_inputs, score_threshold, top_k, classes)
            results.update(zip(small, found, strict=True))
        cuts = {index: self._windows(sizes[index]) for index in large}
        views: dict[int, list[View]] = {index: [] for index in large}
        jobs = ((index, number) for index in large for number in range(len(cuts[index])))
        while batch := list(itertools.islice(jobs, self.metadata.max_batch)):
            tiles = [_part(prepared[index], cuts[index][number]) for index, number in batch]
            found = self._look(tiles, score_threshold, classes)
            with self.timed("masks"):
                for (index, number), result in zip(batch, found, strict=True):
                    views[index] += views_of(result, number, cuts[index][number], *sizes[index])
        for index in large:
            with self.timed("merge"):
                merged = merge(views.pop(index), cuts[index])
            results[index] = self._result(merged[:top_k], sizes[index])
        return [results[index] for index in range(len(sizes))]

    def _look(
        self, tiles: Sequence[np.ndarray], score_threshold: float, classes: frozenset[int] | None
    ) -> list[Result]:
        """All that the engine finds in a batch of tiles."""
        with self.timed("preprocess"):
            prepared = [self._engine.prepare(tile) for tile in tiles]
        sizes = [(tile.shape[0], tile.shape[1]) for tile in tiles]
        most = self.metadata.max_detections
        with self._open():
            return self._engine.predict_prepared(prepared, sizes, score_threshold, most, classes)

    def close(self) -> None:
        """Close the engine after the batch under way; a call that has more tiles to run fails."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: not self._running, _PATIENCE)
        self._engine.close()

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Keep the engine open for a batch."""
        with self._idle:
            if self._closed:
                raise YolactError("the engine was closed before all tiles were run")
            self._running += 1
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def _windows(self, size: tuple[int, int]) -> list[Window]:
        height, width = size
        cut = windows(height, width, (self._height, self._width), self._overlap)
        return [*cut, Window(0, 0, width, height)] if self._full else cut

    def _result(self, views: Sequence[View], size: tuple[int, int]) -> Result:
        """The result of an image from what was merged."""
        height, width = size
        boxes = np.array([view.box for view in views], np.float64).reshape(-1, 4)
        return Result(
            height=height,
            width=width,
            relative_boxes=(boxes / [width, height, width, height]).astype(np.float32),
            scores=np.array([view.score for view in views], np.float32),
            mask_scores=np.array([view.mask_score for view in views], np.float32),
            classes=np.array([view.label for view in views], np.int64),
            coefficients=np.zeros((len(views), 0), np.float32),
            prototypes=np.zeros((0, 0, 0), np.float32),
            class_names=self.metadata.class_names,
            class_ids=self.metadata.category_ids,
            contours=[view.region for view in views],
        )


def _part(image: np.ndarray, window: Window) -> np.ndarray:
    return image[window.top : window.bottom, window.left : window.right]


def tiled(engine: Engine, tile: int = 640, overlap: float = OVERLAP, full: bool = True) -> TiledEngine:
    """An engine for large images: it cuts them into overlapping tiles and merges what is found.

    Args:
        engine: Runs the tiles; closed with the one returned.
        tile: Longer side of a tile in pixels. Images that are not larger are run as they are.
        overlap: Neighbours share at least this share of a tile, 0..0.9.
        full: Run the whole image, too, for objects larger than a tile.

    Raises:
        UsageError: a value out of its range.
    """
    return TiledEngine(engine, tile, overlap, full)
