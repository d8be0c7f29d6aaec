"""The original YOLACT, from a checkout of its repository and weights of its form.

It runs unchanged in its own process: `cv2.imread`, its `FastBaseTransform`, network, `Detect`, `postprocess`
with masks at image size, and its `Detections`, which encode each whole mask by pycocotools. Stages and CPU
time are measured there; the pipe between the processes is in neither, and takes well below a millisecond.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolact_bench.measure.candidate import PREPARED, Candidate, Run
from yolact_bench.peers.checkout import CheckoutProcess
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata

# The configurations in its data/config.py, which evaluates the name as Python.
CONFIGS = (
    *("yolact_base", "yolact_im400", "yolact_im700", "yolact_darknet53", "yolact_resnet50"),
    *("yolact_resnet50_pascal", "yolact_plus_base", "yolact_plus_resnet50"),
)


class OriginalCandidate(Candidate):
    """A checkout of github.com/dbolya/yolact.

    Args:
        checkout: Its folder.
        weights: A checkpoint as published, `.pth`; only tensors are read from it.
        like: Metadata of our engine with the same weights: configuration, input size, categories.
        threads: CPU threads.
        device: "cpu" or "cuda".

    Raises:
        UsageError: a configuration that the original does not have.
        YolactError: no checkout, no weights, or it does not start; with the last line of its output.
    """

    name = "original"
    precision = "fp32"
    licence = "MIT"

    def __init__(
        self, checkout: Path, weights: Path, like: Metadata, threads: int, device: str = "cpu"
    ) -> None:
        if like.config not in CONFIGS:
            raise UsageError(f"the original has no configuration {like.config}; it has {', '.join(CONFIGS)}")
        if not weights.is_file():
            raise YolactError(f"--weights {weights} does not exist")
        self.config, self.input_size = like.config, like.input_size
        settings = {
            "config": f"{like.config}_config",
            "weights": str(weights.resolve()),
            "device": device,
            "threads": threads,
            "input_size": like.input_size,
            "categories": like.category_ids,
        }
        self._folder = tempfile.TemporaryDirectory()
        try:
            self._process = CheckoutProcess(
                checkout, "infer", [json.dumps(settings)], Path(self._folder.name)
            )
        except YolactError:
            self._folder.cleanup()
            raise
        self.backend = f"PyTorch, its own code ({device})"
        self.note = "the same weights; float resize, masks of the whole image"

    def prepare(self, images: Sequence[Path], batch: int) -> None:
        if batch != 1:
            raise UsageError(f"the original evaluates one image at a time, not {batch}")
        self._ask(prepare=[_path(path) for path in images[:PREPARED]])

    def network_only(self) -> None:
        self._ask(network_only=True)

    def end_to_end(self, paths: Sequence[Path]) -> Run:
        (path,) = paths
        found = self._ask(run=_path(path))
        return Run(found["seconds"], found["detections"], found["cpu_seconds"])

    def to_coco(self, path: Path, image_id: int) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = self._ask(run=_path(path), image_id=image_id)["results"]
        return results

    def close(self) -> None:
        self._process.close()
        self._folder.cleanup()

    def _ask(self, **request: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._process.ask(json.dumps(request)))
        return answer


def _path(path: Path) -> str:
    """Absolute: the process works in the checkout's folder."""
    return str(path.resolve())
