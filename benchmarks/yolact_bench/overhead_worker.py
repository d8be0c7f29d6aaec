"""Runs everything but the network on stored outputs of it; a script with its own process.

    overhead_worker.py FOLDER THREADS

FOLDER has `case.json` {"images": [paths], "names": of the outputs, "props": of the metadata} and the outputs
of each image as `N.npz`. Each line of the input is a request and is answered with a line of JSON:

    {"cold": bool}    all images once, after emptying the caches before each if cold
                      {"stages": {stage: [seconds of CPU time of each image]}, "wall": by the clock, "rows"}

"rows" is the SHA-256 of the JSON of all images.

`yolact_runtime` may be that of another version: only what all of them have is used.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

STAGES = ("decode", "resize", "detect", "result", "masks", "RLE", "entries", "JSON")
_LARGER_THAN_CACHES, _WEIGHTS = 96 << 20, 31 << 20  # bytes


class Case:
    """Images, and what the network returned for each."""

    def __init__(self, folder: Path) -> None:
        """Read them."""
        from yolact_runtime.engines.outputs import GraphOutputs
        from yolact_runtime.metadata import Metadata

        stored = json.loads((folder / "case.json").read_text())
        self.images: list[str] = stored["images"]
        self.metadata = Metadata.from_props(stored["props"], "the stored case")
        self.outputs = GraphOutputs(self.metadata, "the stored case")
        self.values = []
        for index in range(len(self.images)):
            with np.load(folder / f"{index}.npz") as file:
                self.values.append([file[name] for name in stored["names"]])
        self.filler = np.zeros(_LARGER_THAN_CACHES, np.uint8)
        # As the weights of an engine that was opened: from then on, glibc keeps freed memory for later.
        np.zeros(_WEIGHTS, np.uint8)

    def run(self, cold: bool) -> dict[str, Any]:
        """All images once."""
        digest = hashlib.sha256()
        marks = []
        for index in range(len(self.images)):
            if cold:
                self.filler += 1
            marks.append(self._image(index, digest))
        taken = np.diff(np.array(marks), axis=1)  # (images, stages, clocks)
        cpu, wall = (
            {stage: taken[:, at, clock].tolist() for at, stage in enumerate(STAGES)} for clock in (0, 1)
        )
        return {"stages": cpu, "wall": wall, "rows": digest.hexdigest()}

    def _image(self, index: int, digest: Any) -> list[tuple[float, float]]:
        """Times at the ends of all stages, by both clocks."""
        from yolact_runtime.preprocess import resize_batch
        from yolact_runtime.results import result_of
        from yolact_runtime.sources.images import read_image

        meta, marks = self.metadata, [_now()]
        image = read_image(self.images[index])
        marks.append(_now())
        resize_batch([image], meta.input_size, meta.input_dtype)
        marks.append(_now())
        found = self.outputs.detections(self.values[index])
        marks.append(_now())
        size = image.shape[0], image.shape[1]
        result = result_of(found, 0, size, meta, 0.0, meta.max_detections, copy=False)
        marks.append(_now())
        result.regions  # noqa: B018 - computed when first asked for
        marks.append(_now())
        result.rles  # noqa: B018 - as above
        marks.append(_now())
        entries = result.to_coco(index)
        marks.append(_now())
        row = json.dumps(entries)
        marks.append(_now())
        digest.update(row.encode())
        return marks


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def main() -> None:
    """Answer requests until the input ends."""
    import cv2

    cv2.setNumThreads(int(sys.argv[2]))
    case = Case(Path(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(case.run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
