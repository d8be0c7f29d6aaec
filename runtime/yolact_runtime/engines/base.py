"""`Engine`: the interface of all backends."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import NoReturn

import numpy as np

from yolact_runtime.classes import resolve_classes
from yolact_runtime.detections import Detections, check_detections
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.preprocess import resize_batch
from yolact_runtime.results import Result, result_of

_UNTIMED = contextlib.nullcontext()


class Engine(ABC):
    """A model that is ready to run. Backends set `metadata` and implement `detect`.

    Attributes:
        metadata: Describes the model.
        path: The file that it was opened from; None if there is none.
        unknown_because: Why `precision` is `UNKNOWN`; empty if it is known.
        streams: Number of concurrent calls, each from its own thread, that increase throughput.
        threads: CPU threads that it computes on; None if unknown or not on the CPU.
        remote: It computes on a server: the time of a call includes the network, and `detect` is refused.
        reuses_outputs: Later calls overwrite the arrays of `Detections`, so they must be copied to be kept.
            False saves copying the prototypes.
        stage_timer: Called with the name of a stage that begins; the context it returns ends with the stage.
            "network" covers all of `detect`; "detect" within it covers detection outside the graph. None
            (the default) costs next to nothing.
    """

    metadata: Metadata
    path: Path | None = None
    unknown_because: str = ""
    streams: int = 1
    threads: int | None = None
    remote: bool = False
    reuses_outputs: bool = True
    stage_timer: Callable[[str], contextlib.AbstractContextManager[object]] | None = None

    @property
    def name(self) -> str:
        """Name of the backend, for reports."""
        return type(self).__name__

    @property
    def precision(self) -> str:
        """The precision of the arithmetic: one of `PRECISIONS` in `yolact_runtime.engines.backends`, or
        `UNKNOWN` if the library does not say it.
        """
        return self.metadata.precision

    @abstractmethod
    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
        """Run the model.

        Args:
            batch: (n, H, W, 3) BGR 0..255 of dtype `metadata.input_dtype`, min_batch <= n <= max_batch.
            classes: 0-based indices of the wanted classes, None for all. An engine that keeps the best
                `metadata.max_detections` itself keeps those of these classes; a graph that has done so
                returns others, too.

        Raises:
            YolactError: the backend failed.
        """

    def predict(
        self,
        images: Sequence[np.ndarray],
        score_threshold: float = 0.15,
        top_k: int = 15,
        classes: Iterable[str | int] | None = None,
    ) -> list[Result]:
        """Find the instances in each image.

        Args:
            images: Each (H, W, 3) uint8 BGR, of any size; they are not modified.
            score_threshold: Keep detections whose box score is greater (0..1).
            top_k: Keep at most this many per image, the best box scores.
            classes: Names or category ids of the classes to find; None for all. Others are dropped before
                `top_k` and before masks are computed.

        Returns:
            One result per image, best score first.

        Raises:
            YolactError: an image has another shape or dtype, or the engine failed.
            UsageError: a threshold outside its range, or a class that the model does not have.
        """
        check_limits(score_threshold, top_k)
        indices = self.class_indices(classes)
        for index, image in enumerate(images):
            check_image(index, image)
        results: list[Result] = []
        for start in range(0, len(images), self.metadata.max_batch):
            chunk = images[start : start + self.metadata.max_batch]
            prepared = [self.prepare(image) for image in chunk]
            sizes = [(image.shape[0], image.shape[1]) for image in chunk]
            results += self.predict_prepared(prepared, sizes, score_threshold, top_k, indices)
        return results

    def class_indices(
        self, classes: Iterable[str | int] | None, what: str = "classes"
    ) -> frozenset[int] | None:
        """0-based indices of classes given by names or category ids, as `predict_prepared` takes them.

        A text is a name first, and an id only if no class has this name. None, for all, stays None. Errors
        call the value `what`.

        Raises:
            UsageError: the model has no such class.
        """
        return resolve_classes(classes, self.metadata.class_names, self.metadata.category_ids, what)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The part of `predict` that needs one image only; the pipeline runs it in its decode workers.

        Args:
            image: (H, W, 3) uint8 BGR; it is not modified.

        Returns:
            The input of `predict_prepared`: here the network's, (H, W, 3) of the input's dtype; `image`
            itself if it has this shape and dtype.
        """
        size = self.metadata.input_shape
        if image.shape[:2] == size and image.dtype == self.metadata.input_dtype:
            return image
        return resize_batch([image], size, self.metadata.input_dtype)[0]

    def predict_prepared(
        self,
        prepared: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        score_threshold: float,
        top_k: int,
        classes: frozenset[int] | None = None,
    ) -> list[Result]:
        """The rest of `predict`.

        Args:
            prepared: Outputs of `prepare`, 1 to `metadata.max_batch`.
            sizes: Height and width of each image.
            score_threshold, top_k: As for `predict`.
            classes: 0-based indices of the classes to find, from `class_indices`; None for all.
        """
        meta = self.metadata
        missing = max(0, meta.min_batch - len(prepared))
        if len(prepared) + missing == 1:
            batch = prepared[0][None]
        else:
            batch = np.stack([*prepared, *[prepared[-1]] * missing])
        with self.timed("network"):
            # Engines of other packages may not take classes.
            detections = self.detect(batch) if classes is None else self.detect(batch, classes)
        check_detections(detections, len(batch), meta)
        # A view of one image's prototypes would keep those of the whole batch alive.
        copy = self.reuses_outputs or len(batch) > 1
        return [
            result_of(detections, index, size, meta, score_threshold, top_k, copy=copy, classes=classes)
            for index, size in enumerate(sizes)
        ]

    def timed(self, stage: str) -> contextlib.AbstractContextManager[object]:
        """The context that a stage runs in, so that `stage_timer` can time it."""
        return _UNTIMED if self.stage_timer is None else self.stage_timer(stage)

    def close(self) -> None:  # noqa: B027 - most backends have nothing to free
        """Free the resources of the backend; the engine cannot be used afterwards."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse `pickle` and `copy`: the library's state belongs to this process."""
        file = repr(str(self.path)) if self.path else "path"
        raise UsageError(
            f"{type(self).__name__} cannot be pickled or copied; open it in each process: load_engine({file})"
        )


def check_limits(score_threshold: float, top_k: int) -> None:
    """Raise a UsageError if a limit of `Engine.predict` is outside its range."""
    if not (isinstance(score_threshold, Real) and 0 <= score_threshold <= 1):
        raise UsageError(f"score_threshold is {score_threshold!r}; it must be a number in 0..1")
    check_whole("top_k", top_k)


def check_whole(name: str, value: object) -> None:
    """Raise a UsageError unless `value` is a whole number of 1 or more."""
    if not (isinstance(value, Integral) and int(value) >= 1):
        raise UsageError(f"{name} is {value!r}; it must be 1 or more, a whole number")


def check_image(index: int, image: np.ndarray) -> None:
    """Raise a YolactError if the `index`-th image is not a (H, W, 3) uint8 array."""
    if not isinstance(image, np.ndarray):
        raise YolactError(
            f"image {index} is a {type(image).__name__}; a NumPy array (H, W, 3) uint8 is needed"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise YolactError(
            f"image {index} is {image.shape} {image.dtype}; (H, W, 3) uint8 BGR with H, W >= 1 is needed"
        )
