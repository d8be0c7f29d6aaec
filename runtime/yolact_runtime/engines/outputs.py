"""Converts the outputs of an exported graph to detections, for every library that runs the graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yolact_runtime.detect import detect
from yolact_runtime.detections import Detections
from yolact_runtime.errors import YolactError
from yolact_runtime.masks import assemble
from yolact_runtime.metadata import Metadata
from yolact_runtime.priors import make_priors
from yolact_runtime.rescore import MaskIouNet

INPUT = "images"
_NAMES = {
    "native": ("count", "boxes", "scores", "classes", "coefficients", "prototypes"),
    "runtime": ("loc", "logits", "coefficients", "prototypes"),
}


class GraphOutputs:
    """Names and meaning of the outputs of a graph.

    Args:
        metadata: Says where detection takes place.
        path: The file, for error messages.

    Attributes:
        names: Names of the outputs, in the order that `detections` takes them.
        priors: (P, 4) float32 cx cy w h, if the outputs are raw heads.
    """

    def __init__(self, metadata: Metadata, path: str | Path) -> None:
        """Compute the priors and read the re-scoring network, for raw heads."""
        self._metadata, self._path = metadata, path
        self.names = list(_NAMES[metadata.detect])
        if metadata.detect == "native" and metadata.mask_iou:
            self.names.append("mask_scores")
        self._rescore: MaskIouNet | None = None
        if metadata.detect == "runtime":
            assert metadata.priors is not None  # Metadata checks it
            spec = metadata.priors
            self.priors = make_priors(
                spec.levels, spec.scales, spec.aspect_ratios, metadata.input_size, spec.square
            )
            if metadata.mask_iou:
                self._rescore = MaskIouNet.from_text(metadata.mask_iou_net, path)

    def check(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Raise a YolactError unless a graph has inputs and outputs of the expected names."""
        missing = [name for name in self.names if name not in outputs]
        if list(inputs) != [INPUT] or missing:
            raise YolactError(
                f"{self._path}: its inputs are {list(inputs)} and it lacks the outputs {missing};"
                f' "{INPUT}" and none are expected; export it again'
            )

    def check_input(self, sides: Sequence[object], kind: str) -> None:
        """Raise a YolactError unless the input of a graph matches its metadata.

        Args:
            sides: Dimensions of the input after the batch; those that are not int are dynamic.
            kind: Its NumPy type.
        """
        size, expected = self._metadata.input_size, self._metadata.input_dtype
        fits = len(sides) == 3 and all(
            side == wanted or not isinstance(side, int)
            for side, wanted in zip(sides, (size, size, 3), strict=True)
        )
        if not fits or kind != expected:
            raise YolactError(
                f"{self._path}: its input is ({', '.join(['N', *map(str, sides)])}) {kind}, and its metadata"
                f" says (N, {size}, {size}, 3) {expected}; export it again"
            )

    def detections(self, values: Sequence[np.ndarray]) -> Detections:
        """Detections from the outputs, in the order of `names`; float16 becomes float32."""
        found: dict[str, np.ndarray] = {
            name: value.astype(np.float32) if value.dtype == np.float16 else value
            for name, value in zip(self.names, values, strict=True)
        }
        if self._metadata.detect == "native":
            found.setdefault("mask_scores", found["scores"])
            return Detections(**found)
        return self._detect(**found)

    def _detect(
        self, loc: np.ndarray, logits: np.ndarray, coefficients: np.ndarray, prototypes: np.ndarray
    ) -> Detections:
        """Detections from raw heads; raises a YolactError if they do not match the metadata."""
        for what, actual, expected in (
            ("priors", loc.shape[1], len(self.priors)),
            ("classes", logits.shape[2] - 1, len(self._metadata.class_names)),
        ):
            if actual != expected:
                raise YolactError(
                    f"{self._path}: the graph has {actual} {what}, its metadata {expected}; export it again"
                )
        found = detect(loc, logits, coefficients, prototypes, self.priors, self._metadata)
        self.rescore(found)
        return found

    def rescore(self, found: Detections) -> None:
        """Multiply the mask scores by the predicted mask IoU, in place, for raw heads with that network."""
        if self._rescore is None:
            return
        for i, count in enumerate(found.count):
            masks = assemble(found.coefficients[i, :count], found.prototypes[i], found.boxes[i, :count])
            found.mask_scores[i, :count] *= self._rescore(masks, found.classes[i, :count])
