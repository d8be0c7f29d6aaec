"""One protocol for every backend, and the way from a path to an engine."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yolact_runtime import backends
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
        threads: CPU threads that it computes on; None where it does not say, or computes elsewhere.
        reuses_outputs: The arrays of `Detections` are filled anew by a later call, so what is kept must be
            copied. False saves copying the prototypes.
    """

    metadata: Metadata
    streams: int = 1
    threads: int | None = None
    reuses_outputs: bool = True

    @property
    def name(self) -> str:
        """What runs the model, for reports."""
        return type(self).__name__

    @property
    def precision(self) -> str:
        """What the arithmetic really is: one of `yolact_runtime.backends.PRECISIONS`."""
        return self.metadata.precision

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
            What `predict_prepared` takes: here (S, S, 3) of the input's dtype; `image` itself where it is
            that already.
        """
        size = self.metadata.input_size
        if image.shape[:2] == (size, size) and image.dtype == self.metadata.input_dtype:
            return image
        return resize_batch([image], size, self.metadata.input_dtype)[0]

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
        # Of a batch, a view of one image's prototypes would keep all of them alive.
        copy = self.reuses_outputs or len(batch) > 1
        return [
            result_of(detections, index, size, meta, score_threshold, top_k, copy=copy)
            for index, size in enumerate(sizes)
        ]

    def close(self) -> None:  # noqa: B027 - most backends have nothing to free
        """Free what the backend holds; the engine cannot be used afterwards."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def load_engine(
    path: str | Path,
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    streams: int | str = 1,
    **options: Any,
) -> Engine:
    """Open a model.

    What was opened, and why where nobody chose, is logged as one line.

    Args:
        path: A file, or the name of a published model such as `yolact_resnet50` (downloaded once).
        backend: "onnxruntime", "openvino", "cuda" or "tensorrt" for exported files. Left out: CUDA where it
            really loads, otherwise the quickest for this CPU and file (docs/runtime.md).
        precision: "fp32", "fp16", "bf16", "int8" or "int8+bf16", to be sure of it. Those with bf16 are ways
            to run an fp32 or int8 file in OpenVINO; the others are properties of the file.
        threads: CPU threads, for all streams together; left out, as many as there are cores.
        streams: Calls that are to run at the same time; "auto" for the highest throughput, which is 1 for
            engines that know no streams.
        options: For the backend, for example `providers` of ONNX Runtime.

    Raises:
        YolactError: no such file, unknown suffix, broken file, missing packages.
        UsageError: the backend does not open such files or has no such option, or the precision is not the
            one that is delivered.
    """
    if precision is not None and precision not in backends.PRECISIONS:
        raise UsageError(f"precision {precision!r}; allowed: {', '.join(backends.PRECISIONS)}")
    if threads is not None:
        options["threads"] = threads
    if streams != 1:
        options["streams"] = streams
    points = {point.name: point for point in entry_points(group="yolact_runtime.engines")}
    known = sorted({*points, *backends.SUFFIXES})
    file = _existing_file(path, ", ".join(f".{name}" for name in known))
    suffix = file.suffix.lower().removeprefix(".")
    if suffix in backends.SUFFIXES:
        engine, why = backends.open_exported(file, backend, precision, options)
    else:
        engine, why = _open_by_entry_point(points[suffix], file, backend, options), ""
    try:
        backends.check_precision(engine, precision, file)
    except UsageError:
        engine.close()
        raise
    backends.warn_of_precision(engine, file)
    parts = [engine.name, engine.precision]
    parts += [f"{engine.threads} threads"] if engine.threads else []
    parts += [f"{engine.streams} streams"] if engine.streams > 1 else []
    log.info("%s: %s%s", file.name, ", ".join(parts), f" (chosen: {why})" if why else "")
    return engine


def _existing_file(path: str | Path, known: str) -> Path:
    file = Path(path)
    if not file.exists() and not file.suffix and file.name == str(path):
        file = _file_of_name(str(path))
    if not file.exists():
        raise YolactError(f"engine {path} does not exist")
    if file.is_dir():
        raise YolactError(f"engine {path} is a folder; give a file ending in {known}")
    if file.suffix.lower() not in known.split(", "):
        raise YolactError(f"engine {path}: unknown suffix {file.suffix!r}; known are {known}")
    return file


def _open_by_entry_point(
    point: EntryPoint, file: Path, backend: str | None, options: dict[str, Any]
) -> Engine:
    if backend is not None:
        backends.check_backend(backend, file)
    purpose = f"opening .{point.name} files"
    opener = _load(point, purpose)
    try:
        return backends.call(opener, file, options, f"a .{point.name} engine")
    except ModuleNotFoundError as error:
        raise _missing(error, purpose) from error


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
    expected = {
        "count": ((n,), "iu"), "boxes": ((n, k, 4), "f"), "scores": ((n, k), "f"),
        "classes": ((n, k), "iu"), "coefficients": ((n, k, m), "f"),
        "prototypes": ((n, *found.prototypes.shape[1:3], m), "f"), "mask_scores": ((n, k), "f"),
    }  # fmt: skip
    for name, (shape, kinds) in expected.items():
        actual = getattr(found, name)
        if actual.shape != shape:
            raise YolactError(
                f"the engine returned {name} of shape {actual.shape}, not {shape}; export it again"
            )
        if actual.dtype.kind not in kinds:
            needed = "whole numbers" if kinds == "iu" else "floating point"
            raise YolactError(f"the engine returned {name} as {actual.dtype}, not {needed}; export it again")
    counts = found[0].tolist()  # `found.count` is a method of tuples to type checkers
    if min(counts) < 0 or max(counts) > k:
        raise YolactError(f"the engine returned count {counts}, outside 0..{k}; export it again")
    known = len(meta.class_names)
    low, high = found.classes.min(), found.classes.max()
    if low < 0 or high >= known:
        raise YolactError(
            f"the engine returned class {low if low < 0 else high}, and its metadata names {known};"
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
    copy: bool = True,
) -> Result:
    """The result of the `index`-th image; detections that are not finite numbers are dropped, with a warning.

    Args:
        found: Of the batch.
        index: In the batch.
        size: Height and width of the image.
        meta: Of the engine.
        score_threshold: As for `Engine.predict`.
        top_k: As for `Engine.predict`.
        traced: The masks of the image's rows, where the engine has made them.
        copy: Take a copy of the prototypes; otherwise the result may share the batch's.
    """
    count = int(found.count[index])
    prototypes = found.prototypes[index]
    boxes, coefficients = found.boxes[index, :count], found.coefficients[index, :count]
    scores, mask_scores = found.scores[index, :count], found.mask_scores[index, :count]
    sound = np.isfinite(scores) & np.isfinite(mask_scores)
    sound &= np.isfinite(boxes).all(1) & np.isfinite(coefficients).all(1)
    if count and not _all_finite(prototypes):
        sound[:] = False  # every mask is made of all prototypes
    dropped = count - np.count_nonzero(sound)
    if dropped:
        log.warning(
            "dropped %d detections that are not finite numbers; if that happens often, export it in fp32",
            dropped,
        )
    rows = np.flatnonzero(sound & (scores > score_threshold))[:top_k]
    if not len(rows):
        prototypes, copy = prototypes[:0], True
    return Result(
        height=size[0],
        width=size[1],
        relative_boxes=boxes[rows].astype(np.float32, copy=False),
        scores=scores[rows].astype(np.float32, copy=False),
        mask_scores=mask_scores[rows].astype(np.float32, copy=False),
        classes=found.classes[index, rows].astype(np.int64),
        coefficients=coefficients[rows].astype(np.float32, copy=False),
        prototypes=np.array(prototypes, np.float32) if copy else prototypes.astype(np.float32, copy=False),
        class_names=meta.class_names,
        class_ids=meta.category_ids,
        traced=None if traced is None else [traced[row] for row in rows.tolist()],
    )


def _all_finite(values: np.ndarray) -> bool:
    # The extremes tell, and need no array of their own: half the time where the values are not in the cache.
    return not values.size or bool(np.isfinite(values.max()) and np.isfinite(values.min()))
