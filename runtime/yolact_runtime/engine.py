"""One protocol for every backend, and the way from a path to an engine."""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yolact_runtime.errors import UsageError, YolactError, missing_extra
from yolact_runtime.masks import Region
from yolact_runtime.metadata import Metadata
from yolact_runtime.preprocess import resize_batch
from yolact_runtime.results import Result

log = logging.getLogger(__name__)


class Detections(NamedTuple):
    """What every engine returns for a batch of N images, zero-padded past `count`, best score first.

    Attributes:
        count: (N,) int32, rows in use.
        boxes: (N, K, 4) float32, x1 y1 x2 y2 relative to the image; may leave 0..1.
        scores: (N, K) float32, 0..1, descending.
        classes: (N, K) int32, 0-based, no background.
        coefficients: (N, K, M) float32.
        prototypes: (N, Hp, Wp, M) float32.
        mask_scores: (N, K) float32; equal to `scores` where masks are not re-scored.
    """

    count: np.ndarray  # type: ignore[assignment]
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    coefficients: np.ndarray
    prototypes: np.ndarray
    mask_scores: np.ndarray


class Engine(ABC):
    """A model that is ready to run. Backends set `metadata` and implement `detect`.

    Attributes:
        metadata: What the model is.
        streams: How many calls may run at the same time, each from a thread of its own, and are worth it.
    """

    metadata: Metadata
    streams: int = 1

    @property
    def name(self) -> str:
        """What runs the model, for reports."""
        return type(self).__name__

    @abstractmethod
    def detect(self, batch: np.ndarray) -> Detections:
        """Run the model.

        Args:
            batch: (n, S, S, 3) BGR 0..255 of dtype `metadata.input_dtype`, min_batch <= n <= max_batch.

        Raises:
            YolactError: the backend failed.
        """

    def predict(
        self, images: Sequence[np.ndarray], score_threshold: float = 0.15, top_k: int = 15
    ) -> list[Result]:
        """Find the instances in each image.

        Args:
            images: Each (H, W, 3) uint8 BGR, of any size; they are not modified.
            score_threshold: Keep detections whose box score is greater (0..1).
            top_k: Keep at most this many per image, the best box scores.

        Returns:
            One result per image, best score first.

        Raises:
            YolactError: an image has another shape or dtype, or the engine failed.
            UsageError: a threshold outside its range.
        """
        check_limits(score_threshold, top_k)
        for index, image in enumerate(images):
            check_image(index, image)
        results: list[Result] = []
        for start in range(0, len(images), self.metadata.max_batch):
            chunk = images[start : start + self.metadata.max_batch]
            prepared = [self.prepare(image) for image in chunk]
            sizes = [(image.shape[0], image.shape[1]) for image in chunk]
            results += self.predict_prepared(prepared, sizes, score_threshold, top_k)
        return results

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The part of `predict` that needs one image only, for threads that have nothing better to do.

        Args:
            image: (H, W, 3) uint8 BGR; it is not modified.

        Returns:
            What `predict_prepared` takes: here (S, S, 3) of the input's dtype.
        """
        return resize_batch([image], self.metadata.input_size, self.metadata.input_dtype)[0]

    def predict_prepared(
        self,
        prepared: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        score_threshold: float,
        top_k: int,
    ) -> list[Result]:
        """The rest of `predict`.

        Args:
            prepared: By `prepare`; 1 to `metadata.max_batch` of them.
            sizes: Height and width of each image.
            score_threshold: As for `predict`.
            top_k: As for `predict`.
        """
        meta = self.metadata
        missing = max(0, meta.min_batch - len(prepared))
        if len(prepared) + missing == 1:
            batch = prepared[0][None]
        else:
            batch = np.stack([*prepared, *[prepared[-1]] * missing])
        detections = self.detect(batch)
        check_detections(detections, len(batch), meta)
        return [
            result_of(detections, index, size, meta, score_threshold, top_k)
            for index, size in enumerate(sizes)
        ]

    def close(self) -> None:  # noqa: B027 - most backends have nothing to free
        """Free what the backend holds; the engine cannot be used afterwards."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def load_engine(path: str | Path, **options: Any) -> Engine:
    """Open a model with the backend that its suffix names.

    Args:
        path: A file, or the name of a published model such as `yolact_resnet50` (downloaded once).
        options: Passed to the backend, for example `providers` and `threads` for ONNX files.

    Raises:
        YolactError: no such file, unknown suffix, broken file, missing packages.
        UsageError: an option the backend does not have.
    """
    known = {point.name: point for point in entry_points(group="yolact_runtime.engines")}
    file = Path(path)
    if not file.exists() and not file.suffix and file.name == str(path):
        file = _file_of_name(str(path))
    if not file.exists():
        raise YolactError(f"engine {path} does not exist")
    if file.is_dir():
        raise YolactError(f"engine {path} is a folder; give a file ending in {_suffixes(known)}")
    suffix = file.suffix.lower().removeprefix(".")
    if suffix not in known:
        raise YolactError(f"engine {path}: unknown suffix {file.suffix!r}; known are {_suffixes(known)}")
    backend = _load(known[suffix], f"opening .{suffix} files")
    allowed = list(inspect.signature(backend).parameters)[1:]
    for option in options:
        if option not in allowed:
            raise UsageError(
                f"option {option!r} does not apply to a .{suffix} engine; it takes {', '.join(allowed)}"
            )
    try:
        return backend(file, **options)
    except ModuleNotFoundError as error:
        raise _missing(error, f"opening .{suffix} files") from error


def _file_of_name(name: str) -> Path:
    points = list(entry_points(group="yolact_runtime.names"))
    if not points:
        raise YolactError(f"engine {name} does not exist")
    for point in points:
        resolve = _load(point, f"downloading {name}")
        try:
            return Path(resolve(name))
        except ModuleNotFoundError as error:
            raise _missing(error, f"downloading {name}") from error
        except YolactError:
            if point is points[-1]:
                raise
    raise AssertionError("unreachable")


def _load(point: EntryPoint, purpose: str) -> Any:
    try:
        return point.load()
    except ModuleNotFoundError as error:
        raise _missing(error, purpose) from error


def _missing(error: ModuleNotFoundError, purpose: str) -> YolactError:
    return missing_extra(f"{purpose} (no module {error.name!r})", "train")


def _suffixes(known: dict[str, EntryPoint]) -> str:
    return ", ".join(f".{name}" for name in sorted(known))


def check_limits(score_threshold: float, top_k: int) -> None:
    """Raise a UsageError where a limit of `Engine.predict` is outside its range."""
    if not 0 <= score_threshold <= 1:
        raise UsageError(f"score_threshold is {score_threshold}; it must be in 0..1")
    if top_k < 1:
        raise UsageError(f"top_k is {top_k}; it must be 1 or more")


def check_image(index: int, image: np.ndarray) -> None:
    """Raise a YolactError where the `index`-th image is no (H, W, 3) uint8 array."""
    if not isinstance(image, np.ndarray):
        raise YolactError(
            f"image {index} is a {type(image).__name__}; a NumPy array (H, W, 3) uint8 is needed"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise YolactError(
            f"image {index} is {image.shape} {image.dtype}; (H, W, 3) uint8 BGR with H, W >= 1 is needed"
        )


def check_detections(found: Detections, n: int, meta: Metadata) -> None:
    """Raise a YolactError where an engine's detections of n images are no such thing."""
    k, m = meta.max_detections, found.prototypes.shape[-1]
    shapes = {
        "count": (n,), "boxes": (n, k, 4), "scores": (n, k), "classes": (n, k),
        "coefficients": (n, k, m), "prototypes": (n, *found.prototypes.shape[1:3], m), "mask_scores": (n, k),
    }  # fmt: skip
    for name, shape in shapes.items():
        actual = getattr(found, name).shape
        if actual != shape:
            raise YolactError(f"the engine returned {name} of shape {actual}, not {shape}; export it again")
    if (found.count < 0).any() or (found.count > k).any():
        raise YolactError(
            f"the engine returned count {found.count.tolist()}, outside 0..{k}; export it again"
        )
    known = len(meta.class_names)
    if (found.classes < 0).any() or (found.classes >= known).any():
        raise YolactError(
            f"the engine returned class {found.classes.max()}, and its metadata names {known};"
            " export it again"
        )


def result_of(
    found: Detections,
    index: int,
    size: tuple[int, int],
    meta: Metadata,
    score_threshold: float,
    top_k: int,
    traced: Sequence[Region] | None = None,
) -> Result:
    """The result of the `index`-th image, in arrays of its own.

    Args:
        found: Of the batch.
        index: In the batch.
        size: Height and width of the image.
        meta: Of the engine.
        score_threshold: As for `Engine.predict`.
        top_k: As for `Engine.predict`.
        traced: The masks of the image's rows, where the engine has made them.

    Raises:
        YolactError: a class that the engine does not have.
    """
    count = int(found.count[index])
    boxes, scores = found.boxes[index, :count], found.scores[index, :count]
    mask_scores, classes = found.mask_scores[index, :count], found.classes[index, :count]
    coefficients = found.coefficients[index, :count]
    sound = np.isfinite(boxes).all(1) & np.isfinite(scores) & np.isfinite(mask_scores)
    sound &= np.isfinite(coefficients).all(1)
    if not sound.all():
        log.warning("dropped %d detections that are not finite numbers", count - int(sound.sum()))
    rows = np.flatnonzero(sound & (scores > score_threshold))[:top_k]
    bad = classes[rows][(classes[rows] < 0) | (classes[rows] >= len(meta.class_names))]
    if len(bad):
        raise YolactError(
            f"the engine returned class {bad[0]}, but it has {len(meta.class_names)} classes; export it again"
        )
    prototypes = found.prototypes[index] if len(rows) else found.prototypes[index, :0]
    return Result(
        height=size[0],
        width=size[1],
        relative_boxes=boxes[rows].astype(np.float32),
        scores=scores[rows].astype(np.float32),
        mask_scores=mask_scores[rows].astype(np.float32),
        classes=classes[rows].astype(np.int64),
        coefficients=coefficients[rows].astype(np.float32),
        # An engine may reuse its output buffers, and a view would keep the whole batch alive.
        prototypes=np.array(prototypes, np.float32),
        class_names=meta.class_names,
        class_ids=meta.category_ids,
        traced=None if traced is None else [traced[row] for row in rows.tolist()],
    )
