"""What runs before and after the network on the GPU, as plans: pure data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.masks import MaskShapes, mask_plan
from yolact_runtime.cuda.plans.plan import Buffer, Plan
from yolact_runtime.cuda.plans.preprocess import preprocess_plan
from yolact_runtime.cuda.plans.visible import wanted_plan
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata

_FLOAT, _INT = np.dtype(np.float32), np.dtype(np.int32)
# What the network's outputs are called in the plans. An engine that detects returns the coefficients of its
# detections, otherwise they are those of all priors.
NATIVE_NAMES = {"coefficients": "kept_coefficients"}


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine.

    Attributes:
        name: Of the graph's input or output.
        shape: Of one image's, without the batch.
        dtype: Of its elements.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def nbytes(self, n: int) -> int:
        """Size for n images."""
        return n * math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Chain:
    """The plans for one engine, for any number of images and any room for them.

    Attributes:
        metadata: Of the engine.
        tensors: Its input and outputs, by name.
        path: The file, for error messages.
    """

    metadata: Metadata
    tensors: Mapping[str, Tensor]
    path: Path

    def check(self) -> None:
        """Raise a YolactError where the engine's shapes are not those that its metadata speak of."""
        meta = self.metadata
        size, k = meta.input_size, meta.max_detections
        wanted: dict[str, tuple[int | None, ...]] = {
            "images": (size, size, 3),
            "prototypes": (None, None, self.depth),
        }
        if meta.detect == "native":
            wanted |= {"count": (), "boxes": (k, 4), "scores": (k,), "classes": (k,)}
            wanted |= {"coefficients": (k, None)} | ({"mask_scores": (k,)} if meta.mask_iou else {})
        else:
            priors = self.tensors["loc"].shape[0]
            wanted |= {"loc": (priors, 4), "logits": (priors, len(meta.class_names) + 1)}
            wanted |= {"coefficients": (priors, None)}
        for name, shape in wanted.items():
            found = self.tensors[name].shape
            fits = len(found) == len(shape)
            if not fits or any(side not in (None, real) for side, real in zip(shape, found, strict=True)):
                text = " x ".join("any" if side is None else str(side) for side in shape)
                raise YolactError(
                    f"{self.path}: its {name} is {found} for each image, its metadata says"
                    f" {text or 'one number'}; export it again"
                )

    @property
    def depth(self) -> int:
        """M, coefficients of a detection."""
        return self.tensors["coefficients"].shape[-1]

    @property
    def resizes(self) -> bool:
        """Whether images are resized on the GPU, to bytes; float32 inputs keep the host's precision."""
        return self.metadata.input_dtype == "uint8"

    @property
    def host_reason(self) -> str:
        """Why masks are made on the host; empty where the GPU makes them."""
        meta = self.metadata
        if meta.detect == "runtime" and meta.mask_iou:
            return "masks are re-scored after it, by the host"
        if meta.detect == "native":
            for name, kind in (
                ("count", _INT),
                ("boxes", _FLOAT),
                ("scores", _FLOAT),
                ("coefficients", _FLOAT),
            ):
                if self.tensors[name].dtype != kind:
                    return f"its {name} is {self.tensors[name].dtype}, and the mask kernels take {kind}"
        try:
            self.shapes(1, 1, 1)
        except UsageError as error:
            return str(error)
        return ""

    def shapes(self, n: int, height: int, width: int) -> MaskShapes:
        """What the mask kernels are to be ready for.

        Raises:
            UsageError: it is outside their limits.
        """
        prototypes = self.tensors["prototypes"]
        rows, columns = prototypes.shape[:2]
        k = self.metadata.max_detections
        return MaskShapes(n, k, self.depth, rows, columns, height, width, prototypes.dtype)

    def resize(self, n: int, capacity: int) -> Plan:
        """Images to the network's input."""
        return preprocess_plan(n, self.metadata.input_size, capacity)

    def detection(self, n: int) -> Plan | None:
        """Raw heads to detections; None where the engine detects."""
        meta = self.metadata
        if meta.detect == "native":
            return None
        loc, logits, coefficients = (self.tensors[name] for name in ("loc", "logits", "coefficients"))
        return detection_plan(
            n, loc.shape[0], logits.shape[1] - 1, self.depth,
            score_threshold=meta.score_threshold, iou_threshold=meta.iou_threshold, top_k=meta.nms_top_k,
            limit=meta.max_detections, loc_dtype=loc.dtype, logits_dtype=logits.dtype,
            coefficients_dtype=coefficients.dtype,
        )  # fmt: skip

    def wanted(self, n: int) -> Plan:
        """How many detections need a mask."""
        return wanted_plan(n, self.metadata.max_detections, self.depth)

    def masks(self, n: int, height: int, width: int) -> Plan:
        """Detections to edges."""
        return mask_plan(self.shapes(n, height, width))

    def header(self, n: int) -> tuple[Buffer, ...]:
        """What a call uploads besides pixels: where each image is, how large, and what is asked for."""
        return (
            Buffer("table", (n, 3), np.dtype(np.int64)),
            Buffer("sizes", (n, 2), _INT),
            Buffer("limits", (2,), _FLOAT),
        )

    def summary(self, n: int) -> tuple[Buffer, ...]:
        """What a call downloads besides edges or prototypes."""
        k = self.metadata.max_detections
        if plan := self.detection(n):
            found = plan.outputs
        else:
            names = ["count", "boxes", "scores", "classes", "coefficients"]
            names += ["mask_scores"] if self.metadata.mask_iou else []
            found = tuple(
                Buffer(NATIVE_NAMES.get(name, name), (n, *self.tensors[name].shape), self.tensors[name].dtype)
                for name in names
            )
        return (
            *found,
            Buffer("wanted", (n,), _INT),
            Buffer("regions", (n, k, 4), _INT),
            Buffer("offsets", (n, k + 1), _INT),
        )
