"""`BatchPredictor`: a batch of rows in, a batch of rows out."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.batch.rows import Row, failed_row, row_of, rows_of, to_arrow, to_columns
from yolact_runtime.engines.load import load_engine
from yolact_runtime.errors import YolactError
from yolact_runtime.frames import Frame, Sink, Source
from yolact_runtime.pipeline import PipelineSettings, run_pipeline
from yolact_runtime.results import Result
from yolact_runtime.sources.images import decode_image, read_image, silence_opencv
from yolact_runtime.untrusted import beyond, limit


class BatchPredictor:
    """Finds the instances in batches of images; one for each worker of a distributed engine.

    It cannot be pickled: it opens the engine where it is made. The rows of an input have one of "path" (a
    file), "bytes" (the content of one, with "path" as its name if it is there) or "image" ((H, W, 3) uint8
    BGR).

    Args:
        engine: As for `load_engine`.
        score_threshold, top_k, classes: As for `Engine.predict`.
        batch_size: Images per engine call.
        threads: CPU threads for all that it does; left out, as many as this process may use.
        options: For `load_engine`.

    Raises:
        YolactError, UsageError: as `load_engine`, and for limits outside their range.
    """

    def __init__(
        self,
        engine: str | Path,
        score_threshold: float = 0.15,
        top_k: int = 15,
        classes: Sequence[str | int] | None = None,
        batch_size: int = 1,
        threads: int | None = None,
        **options: Any,
    ) -> None:
        """Open the engine."""
        silence_opencv()
        workers = max(1, (threads or 2) // 2)
        self._settings = PipelineSettings(
            batch_size=batch_size,
            decode_workers=workers,
            post_workers=workers,
            score_threshold=score_threshold,
            top_k=top_k,
            classes=classes,
        )
        self.engine = load_engine(engine, threads=threads, **options)
        self.engine.class_indices(classes)

    def __call__(self, batch: Any) -> Any:
        """The rows of a batch, in the form that it has.

        Args:
            batch: A list of rows (dicts), columns by name (a dict of arrays), or an Arrow table or record
                batch.

        Returns:
            A list of rows, a dict of arrays or an Arrow table: a row as `row_of` gives it for each row of
            the input, in order. A row that cannot be read or predicted has its reason in "error", and no
            instances.

        Raises:
            YolactError: the engine failed on many images in a row.
        """
        rows = self.predict_rows(rows_of(batch))
        if isinstance(batch, Mapping):
            return to_columns(rows)
        return to_arrow(rows) if hasattr(batch, "to_pylist") else rows

    def predict_rows(self, rows: Iterable[Mapping[str, Any]]) -> list[Row]:
        """The same for rows in a list."""
        found = _Rows()
        run_pipeline(_RowSource(list(rows)), self.engine, [found], self._settings)
        return found.rows

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()


class _RowSource(Source):
    """The images of rows."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.total = len(rows)
        self._rows = rows

    def __iter__(self) -> Iterator[Frame]:
        for index, row in enumerate(self._rows):
            path = row.get("path")
            name = f"row {index}" if path is None else str(path)
            yield Frame(index, name, Path(name), functools.partial(_read, row, name))


def _read(row: Mapping[str, Any], name: str) -> np.ndarray:
    """The image of a row, (H, W, 3) uint8 BGR."""
    if (image := row.get("image")) is not None:
        return np.asarray(image)
    if (data := row.get("bytes")) is not None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise YolactError(f"image {name}: bytes is a {type(data).__name__}")
        if len(data) > limit("image_bytes"):
            raise YolactError(f"image {name} has more bytes than {beyond('image_bytes')}")
        return decode_image(name, bytes(data))
    if row.get("path") is None:
        raise YolactError(f'{name} has none of "path", "bytes" and "image"')
    return read_image(name)


class _Rows(Sink):
    """Keeps the rows of a batch."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> Row:
        return row_of(frame.name, result)

    def write(self, frame: Frame, prepared: Row) -> None:
        self.rows.append(prepared)

    def fail(self, frame: Frame, error: str) -> None:
        self.rows.append(failed_row(frame.name, error))
