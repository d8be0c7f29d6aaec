"""What runs before and after the network on the GPU, as launch plans: pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.masks import MaskShapes, mask_plan
from yolact_runtime.cuda.plans.plan import Buffer, Plan
from yolact_runtime.cuda.plans.preprocess import preprocess_plan
from yolact_runtime.cuda.plans.visible import visible_plan
from yolact_runtime.engines.device.network import Tensor
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata

_FLOAT, _INT = np.dtype(np.float32), np.dtype(np.int32)
# Buffers of the plans that hold an output of another name. An engine that detects returns the coefficients of
# its detections, other engines those of all priors.
_NATIVE_NAMES = {"coefficients": "kept_coefficients"}


@dataclass(frozen=True)
class ProcessingPlan:
    """The launch plans around one engine's network, for any number and size of images.

    Attributes:
        metadata: The engine's.
        tensors: The engine's input and outputs, by name.
        path: The file, for error messages.
    """

    metadata: Metadata
    tensors: Mapping[str, Tensor]
    path: Path

    def check(self) -> None:
        """Raise a YolactError if the shapes of the engine do not match its metadata."""
        meta = self.metadata
        (height, width), k = meta.input_shape, meta.max_detections
        expected: dict[str, tuple[int | None, ...]] = {
            "images": (height, width, 3),
            "prototypes": (None, None, self.depth),
        }
        if meta.detect == "native":
            expected |= {"count": (), "boxes": (k, 4), "scores": (k,), "classes": (k,)}
            expected |= {"coefficients": (k, None)} | ({"mask_scores": (k,)} if meta.mask_iou else {})
        else:
            priors = self.tensors["loc"].shape[0]
            expected |= {"loc": (priors, 4), "logits": (priors, len(meta.class_names) + 1)}
            expected |= {"coefficients": (priors, None)}
        for name, shape in expected.items():
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
        """M, the number of coefficients of a detection."""
        return self.tensors["coefficients"].shape[-1]

    @property
    def resizes(self) -> bool:
        """Whether the GPU resizes images, to uint8; for float32 inputs the host does, in float."""
        return self.metadata.input_dtype == "uint8"

    @property
    def host_reason(self) -> str:
        """Why masks are computed on the host; empty if the GPU computes them."""
        meta = self.metadata
        if meta.detect == "runtime" and meta.mask_iou:
            return "the host re-scores masks after detection"
        if meta.detect == "native":
            kinds = {
                "count": _INT,
                "boxes": _FLOAT,
                "scores": _FLOAT,
                "classes": _INT,
                "coefficients": _FLOAT,
            }
            for name, kind in kinds.items():
                if self.tensors[name].dtype != kind:
                    return f"its {name} is {self.tensors[name].dtype}, and the mask kernels take {kind}"
        try:
            self.shapes(1, 1, 1)
        except UsageError as error:
            return str(error)
        return ""

    def buffer_name(self, tensor: str) -> str:
        """The name in the plans of an input or output of the engine."""
        return _NATIVE_NAMES.get(tensor, tensor) if self.metadata.detect == "native" else tensor

    def plans(self) -> list[Plan]:
        """All plans for one tiny image: they launch the same kernels as for any others."""
        plans = [] if (detection := self.detection(1)) is None else [detection]
        if not self.host_reason:
            plans += [self.visible(1), self.masks(1, 1, 1)]
            plans += [self.resize(1, 1)] if self.resizes else []
        return plans

    def shapes(self, n: int, height: int, width: int) -> MaskShapes:
        """The sizes that the mask kernels are planned for.

        Raises:
            UsageError: they are outside the kernels' limits.
        """
        prototypes = self.tensors["prototypes"]
        rows, columns = prototypes.shape[:2]
        k = self.metadata.max_detections
        return MaskShapes(n, k, self.depth, rows, columns, height, width, prototypes.dtype)

    def resize(self, n: int, capacity: int) -> Plan:
        """Images to the network's input; `capacity` is the bytes of all images of a batch."""
        return preprocess_plan(n, self.metadata.input_size, capacity)

    def detection(self, n: int) -> Plan | None:
        """Raw heads to detections; None if the engine detects."""
        meta = self.metadata
        if meta.detect == "native":
            return None
        loc, logits, coefficients = (self.tensors[name] for name in ("loc", "logits", "coefficients"))
        return detection_plan(
            n, loc.shape[0], logits.shape[1] - 1, self.depth,
            score_threshold=meta.score_threshold, iou_threshold=meta.iou_threshold, top_k=meta.nms_top_k,
            limit=meta.max_detections, loc_dtype=loc.dtype, logits_dtype=logits.dtype,
            coefficients_dtype=coefficients.dtype, choose=True,
        )  # fmt: skip

    def visible(self, n: int) -> Plan:
        """Detections to the number of them that need a mask."""
        return visible_plan(n, self.metadata.max_detections, self.depth, len(self.metadata.class_names))

    def masks(self, n: int, height: int, width: int) -> Plan:
        """Detections to the edges of their masks."""
        return mask_plan(self.shapes(n, height, width))

    def header(self, n: int) -> tuple[Buffer, ...]:
        """What a call uploads besides pixels: position and size of each image, the limits of the call."""
        return (
            Buffer("table", (n, 3), np.dtype(np.int64)),
            Buffer("sizes", (n, 2), _INT),
            Buffer("limits", (2,), _FLOAT),
            Buffer("wanted", (-(-len(self.metadata.class_names) // 32),), np.dtype(np.uint32)),
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
                Buffer(self.buffer_name(name), (n, *self.tensors[name].shape), self.tensors[name].dtype)
                for name in names
            )
        return (
            *found,
            Buffer("visible", (n,), _INT),
            Buffer("regions", (n, k, 4), _INT),
            Buffer("offsets", (n, k + 1), _INT),
        )
