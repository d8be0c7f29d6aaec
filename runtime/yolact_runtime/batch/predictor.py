"""`BatchPredictor`: a batch of rows in, a batch of rows out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np

from yolact_runtime.batch.forms import answer, check_kept, inputs_of
from yolact_runtime.batch.images import RowSource
from yolact_runtime.batch.rows import Row, failed_row, row_of
from yolact_runtime.engines.base import Engine, check_whole
from yolact_runtime.engines.load import UnknownOptionError, load_engine
from yolact_runtime.engines.threads import AUTO, default_workers
from yolact_runtime.engines.tiles import tiled
from yolact_runtime.engines.tiles.windows import OVERLAP, check_tiles
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.frames import Frame, Sink
from yolact_runtime.pipeline import PipelineSettings, run_pipeline
from yolact_runtime.results import Result
from yolact_runtime.sources.images import silence_opencv


class BatchPredictor:
    """Finds the instances in batches of images: one for each worker of a distributed engine.

    It opens the engine where it is made, and cannot be pickled. Threads may share one; their calls wait for
    each other. `with BatchPredictor(...) as predictor:` closes it.

    Example:
        ```python
        predictor = BatchPredictor("model.onnx", threads=2)
        rows = predictor([{"path": "a.jpg"}, {"bytes": content, "path": "b.jpg"}, {"image": array}])
        ```

    Args:
        engine: As for `load_engine`.
        score_threshold, top_k, classes: As for `Engine.predict`.
        batch_size: Images per engine call.
        threads: The CPUs that it may use. An engine on the CPU computes on as many threads; half as many
            (1 to 4) decode images, and as many encode masks. OpenCV gets no more, in the whole process. Left
            out, all cores of this process.
        workers: Threads that decode, and that encode, instead.
        streams: As for `load_engine`.
        tile: Cut larger images into tiles of this side in pixels; see `tiled`.
        tile_overlap, tile_full: `overlap` and `full` of `tiled`.
        keep: Columns of the input that the output has, too.
        options: For `load_engine`.

    Raises:
        YolactError, UsageError: as `load_engine`, and for values outside their range.
    """

    def __init__(
        self,
        engine: str | Path,
        score_threshold: float = 0.15,
        top_k: int = 15,
        classes: Sequence[str | int] | None = None,
        batch_size: int = 1,
        threads: int | None = None,
        workers: int | None = None,
        streams: int | str = AUTO,
        tile: int | None = None,
        tile_overlap: float | None = None,
        tile_full: bool | None = None,
        keep: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """Check the values, and open the engine."""
        self._keep = check_kept(keep)
        if threads is not None:
            check_whole("threads", threads)
        overlap = OVERLAP if tile_overlap is None else tile_overlap
        if tile is not None:
            check_tiles(tile, overlap)
        elif tile_overlap is not None or tile_full is not None:
            raise UsageError("tile_overlap and tile_full need tile, the side of the tiles in pixels")
        workers = default_workers(threads) if workers is None else workers
        settings: dict[str, Any] = {
            "batch_size": batch_size,
            "decode_workers": workers,
            "post_workers": workers,
            "score_threshold": score_threshold,
            "top_k": top_k,
            "classes": classes,
            "log_failures": False,  # they are in the rows
        }
        PipelineSettings(**settings)  # wrong ones are reported before the engine is opened
        self._file, self._lock, self._closed = str(engine), threading.Lock(), False
        silence_opencv()
        if threads is not None and threads < cv2.getNumThreads():
            cv2.setNumThreads(threads)
        opened = _open(engine, threads, {"streams": streams, **options})
        if tile is not None:  # large images: no more of them at once than keep all stages busy
            opened = tiled(opened, tile, overlap, tile_full is not False)
            settings["in_flight"] = batch_size * opened.streams + 2
        self.engine, self._settings = opened, PipelineSettings(**settings)
        try:
            opened.class_indices(classes)
        except UsageError:
            self.close()
            raise

    def __call__(self, batch: Any) -> Any:
        """The rows of a batch, in the form that it has.

        A row of the input has an image: "path" (a file), "bytes" (the content of one) or "image" ((H, W, 3)
        uint8 BGR). "path" may be there besides the others, as the name. A missing value (None, NaN, null) is
        as if it were not there. A row with a text in "error" failed before, and keeps it.

        Args:
            batch: A list of rows (dicts), columns by name (a dict of arrays), an Arrow table or record batch,
                or a pandas data frame.

        Returns:
            A list of rows, a dict of arrays, a table, a record batch or a data frame: the columns of
            `row_of` and those to keep, for each row of the input, in order. A row whose image cannot be read
            or predicted has its reason in "error", and no instances.

        Raises:
            YolactError: the batch has no column with images, or the engine failed on an image and fails on a
                black one, too; or on ten images in a row. The batch can be tried again, elsewhere.
        """
        inputs = inputs_of(batch, self._keep)
        return answer(batch, inputs, self.predict_rows(inputs), self._keep)

    def predict_rows(self, rows: Iterable[Mapping[str, Any]]) -> list[Row]:
        """The same for rows in a list, without columns to keep."""
        source = RowSource(list(rows))
        found = _Rows(source.paths)
        with self._lock:
            if self._closed:
                raise YolactError(f"the predictor of {self._file} is closed")
            if source.total:
                run_pipeline(source, self.engine, [found], self._settings)
            if failed := source.read & found.failed.keys():
                self._check_engine(found.failed[min(failed)])
        return found.rows

    def _check_engine(self, error: str) -> None:
        """Raise a YolactError with the error of an image if the engine fails on a black image, too."""
        black = np.zeros((*self.engine.metadata.input_shape, 3), np.uint8)
        try:
            self.engine.predict([black], self._settings.score_threshold, self._settings.top_k)
        except Exception as failure:
            raise YolactError(f"engine {self._file} failed, on a black image as well: {error}") from failure

    def close(self) -> None:
        """Close the engine, after the call under way."""
        with self._lock:
            closed, self._closed = self._closed, True
            if not closed:
                self.engine.close()

    def __enter__(self) -> BatchPredictor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse `pickle` and `copy`: an engine belongs to its process."""
        raise UsageError(
            "BatchPredictor cannot be pickled or copied; make it in each worker, from the path:"
            f" BatchPredictor({self._file!r})"
        )


def _open(path: str | Path, threads: int | None, options: dict[str, Any]) -> Engine:
    """Open an engine, with `threads` if it computes on the CPU."""
    if threads is None:
        return load_engine(path, **options)
    try:
        return load_engine(path, threads=threads, **options)
    except UnknownOptionError as error:
        if error.option != "threads":
            raise
        return load_engine(path, **options)


class _Rows(Sink):
    """Keeps the rows of a batch, and the errors of those that failed."""

    def __init__(self, paths: Sequence[str | None]) -> None:
        self.rows: list[Row] = []
        self.failed: dict[int, str] = {}
        self._paths = paths

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> Row:
        return row_of(self._paths[frame.index], result)

    def write(self, frame: Frame, prepared: Row) -> None:
        self.rows.append(prepared)

    def fail(self, frame: Frame, error: str) -> None:
        self.failed[frame.index] = error
        self.rows.append(failed_row(self._paths[frame.index], error))
