"""Tasks with predictions for Label Studio, to correct by hand."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.errors import YolactError
from yolact_runtime.exchange.instances import TOLERANCE, instances_of
from yolact_runtime.exchange.to_label_studio import (
    LOCAL_FILES,
    image_address,
    label_studio_config,
    label_studio_prediction,
)
from yolact_runtime.files import atomic_path, is_stdout, stream_of
from yolact_runtime.frames import Frame, ResumableSink
from yolact_runtime.results import Result
from yolact_runtime.sinks.growing import GrowingJson
from yolact_runtime.sinks.image_ids import ImageNumbers

log = logging.getLogger(__name__)


class LabelStudioSink(ResumableSink):
    """A JSON list of tasks, which grows under a temporary name until `close`, and the labeling interface.

    A task is `{"data": {"image": address}, "predictions": [prediction]}`. The interface is
    `tasks.label_config.xml` next to `tasks.json`, as Label Studio's converter names it. Standard output, a
    pipe or a device gets the tasks only.

    Args:
        path: The file of tasks.
        class_ids: The engine's category ids.
        class_names: The engine's class names.
        numbers: The image ids and file names; images without an id are left out.
        polygons: Polygons instead of brush masks.
        tolerance: Of the polygons, in pixels.
        prefix: What the address of an image begins with, before its file name.
        model_version: What Label Studio shows as the origin.
        empty: There is no image to find, as in a shard of few images: an empty list is written.

    Attributes:
        kept: Whether `close` kept the files of an earlier run, because no image was done.

    Raises:
        YolactError: the folder cannot be written to.
    """

    def __init__(
        self,
        path: str | Path,
        class_ids: tuple[int, ...],
        class_names: tuple[str, ...],
        numbers: ImageNumbers,
        polygons: bool = False,
        tolerance: float = TOLERANCE,
        prefix: str = LOCAL_FILES,
        model_version: str = "yolact",
        empty: bool = False,
    ) -> None:
        """Create the temporary file."""
        self.paths = label_studio_paths(Path(path))
        self.kept = self._written = False
        self._done = empty
        self._numbers = numbers
        self._names = dict(zip(class_ids, class_names, strict=True))
        self._polygons, self._tolerance = polygons, tolerance
        self._prefix, self._version = prefix, model_version
        self._file: GrowingJson | None = GrowingJson(self.paths[0])

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> str | None:
        """The prediction as JSON; None for an image without an id."""
        if frame.time is not None:
            raise YolactError(f"{frame.name} is a frame of a video; Label Studio needs image files")
        number = self._numbers.find(frame)
        if number is None:
            return None
        # From the entries that JSON Lines have, so that a resumed run gives the same.
        entries = result.to_coco(number, polygons=self._polygons)
        return self._prediction(entries, result.height, result.width)

    def write(self, frame: Frame, prepared: str | None) -> None:
        number = self._numbers.claim(frame)
        if number is not None and prepared is not None:
            self._append(number, frame.name, prepared)
        self._done = True

    def carry(self, line: dict[str, Any]) -> None:
        """Write what the line says."""
        self._done = True
        if line["image_id"] is None:
            return
        try:
            prediction = self._prediction(line["detections"], line["height"], line["width"])
        except YolactError:
            raise
        except Exception as error:  # of any kind, from pycocotools
            raise YolactError(f"cannot resume: the line of {line['image']} has a damaged mask") from error
        self._append(line["image_id"], line["image"], prediction)

    def close(self) -> None:
        """Write the interface and rename the tasks; if no image was done, keep those of an earlier run."""
        file, self._file = self._file, None
        if file is None:
            return
        if not self._done and any(path.is_file() for path in self.paths):
            self.kept = True
            log.warning("no image was done: %s is kept", self.paths[0])
            file.discard()
            return
        with contextlib.ExitStack() as stack:  # closes the tasks, even if the interface fails
            stack.callback(file.close)
            for path in self.paths[1:]:
                with atomic_path(path) as temporary:
                    text = label_studio_config(list(self._names.values()), self._polygons)
                    temporary.write_text(text, encoding="utf-8")
        self._written = True

    def written(self) -> list[str]:
        return [", ".join(map(str, self.paths))] if self._written and not is_stdout(self.paths[0]) else []

    def _prediction(self, entries: list[dict[str, Any]], height: int, width: int) -> str:
        found = instances_of(entries, self._names)
        options = self._polygons, self._tolerance, self._version
        return json.dumps(label_studio_prediction(found, height, width, *options))

    def _append(self, number: int, name: str, prediction: str) -> None:
        assert self._file is not None
        address = image_address(self._prefix, self._numbers.file_name(number, name))
        data = json.dumps({"image": address})
        self._file.append([f'{{"data": {data}, "predictions": [{prediction}]}}'])


def label_studio_paths(path: Path) -> list[Path]:
    """The files of tasks (`path` itself) and of the interface; the first only for a pipe or device."""
    return [path] if stream_of(path) is not None else [path, path.with_suffix(".label_config.xml")]
