"""Converts the outputs of an exported graph to detections, for every library that runs the graph."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from yolact_runtime.detect import detect
from yolact_runtime.detections import Detections
from yolact_runtime.errors import YolactError
from yolact_runtime.masks import assemble
from yolact_runtime.metadata import Metadata
from yolact_runtime.priors import make_priors
from yolact_runtime.rescore import MaskIouNet
from yolact_runtime.typed import first_few

INPUT = "images"
# Masks in memory at a time.
_MASKS = 128
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
    """

    def __init__(self, metadata: Metadata, path: str | Path) -> None:
        """Read the re-scoring network, for raw heads."""
        self._metadata, self._path = metadata, path
        self.names = list(_NAMES[metadata.detect])
        if metadata.detect == "native" and metadata.mask_iou:
            self.names.append("mask_scores")
        self._rescore: MaskIouNet | None = None
        if metadata.detect == "runtime" and metadata.mask_iou:
            self._rescore = MaskIouNet.from_text(metadata.mask_iou_net, path, len(metadata.class_names))

    @functools.cached_property
    def priors(self) -> np.ndarray:
        """(P, 4) float32 cx cy w h, for raw heads."""
        spec = self._metadata.priors
        assert spec is not None  # Metadata checks it
        shape = self._metadata.input_shape
        return make_priors(spec.levels, spec.scales, spec.aspect_ratios, shape, spec.square)

    def check(self, inputs: Mapping[str, Sequence[object]], outputs: Mapping[str, Sequence[object]]) -> None:
        """Raise a YolactError unless a graph has the expected inputs and outputs.

        Args:
            inputs: Dimensions by name; those that are not int are dynamic.
            outputs: The same.
        """
        missing = [name for name in self.names if name not in outputs]
        if list(inputs) != [INPUT] or missing:
            raise YolactError(
                f"{self._path}: its inputs are {first_few(inputs)} and it lacks the outputs"
                f" {', '.join(missing) or 'none'}; {INPUT} and none are expected; export it again"
            )
        meta = self._metadata
        batch = inputs[INPUT][0] if inputs[INPUT] else None
        if isinstance(batch, int) and not meta.min_batch == batch == meta.max_batch:
            raise self._differs("images in each call", batch, f"{meta.min_batch} to {meta.max_batch}")
        if meta.detect == "runtime":
            assert meta.priors is not None
            loc, logits = outputs["loc"], outputs["logits"]
            priors = loc[1] if len(loc) == 3 else None
            classes = logits[2] if len(logits) == 3 else None
            if isinstance(priors, int) and priors != meta.priors.count:
                raise self._differs("priors", priors, meta.priors.count)
            if isinstance(classes, int) and classes != len(meta.class_names) + 1:
                raise self._differs("classes", classes - 1, len(meta.class_names))

    def _differs(self, what: str, graph: object, metadata: object) -> YolactError:
        return YolactError(
            f"{self._path}: the graph has {graph} {what}, its metadata {metadata}; export it again"
        )

    def check_input(self, sides: Sequence[object], kind: str) -> None:
        """Raise a YolactError unless the input of a graph matches its metadata.

        Args:
            sides: Dimensions of the input; those that are not int are dynamic.
            kind: Its NumPy type.
        """
        height, width = self._metadata.input_shape
        expected = self._metadata.input_dtype
        fits = len(sides) == 4 and all(
            side == wanted or not isinstance(side, int)
            for side, wanted in zip(sides[1:], (height, width, 3), strict=True)
        )
        if not fits or kind != expected:
            raise YolactError(
                f"{self._path}: its input is ({', '.join(['N', *map(str, sides[1:])])}) {kind}, and its"
                f" metadata says (N, {height}, {width}, 3) {expected}; export it again"
            )

    def detections(self, values: Sequence[np.ndarray], classes: frozenset[int] | None = None) -> Detections:
        """Detections from the outputs, in the order of `names`; float16 becomes float32.

        Raw heads give detections of `classes` only (0-based indices; None for all).

        Raises:
            YolactError: they do not match the metadata.
        """
        found: dict[str, np.ndarray] = {}
        for name, value in zip(self.names, values, strict=True):
            if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or not value.ndim:
                raise YolactError(f"{self._path}: its output {name} is no array of numbers; export it again")
            found[name] = value.astype(np.float32) if value.dtype == np.float16 else value
        if self._metadata.detect == "native":
            found.setdefault("mask_scores", found["scores"])
            return Detections(**found)
        return self._detect(**found, classes=classes)

    def _detect(
        self,
        loc: np.ndarray,
        logits: np.ndarray,
        coefficients: np.ndarray,
        prototypes: np.ndarray,
        classes: frozenset[int] | None,
    ) -> Detections:
        """Detections from raw heads; raises a YolactError if they do not match the metadata."""
        n, priors, columns = len(loc), len(self.priors), len(self._metadata.class_names) + 1
        for name, head, sides in (
            ("loc", loc, (n, priors, 4)),
            ("logits", logits, (n, priors, columns)),
            ("coefficients", coefficients, (n, priors, prototypes.shape[-1])),
            ("prototypes", prototypes, (n, *prototypes.shape[1:3], coefficients.shape[-1])),
        ):
            if head.shape != sides or head.dtype != np.float32:
                raise YolactError(
                    f"{self._path}: its output {name} is {head.shape} {head.dtype}, and its metadata needs"
                    f" {sides} float32; export it again"
                )
        found = detect(loc, logits, coefficients, prototypes, self.priors, self._metadata, classes)
        self.rescore(found)
        return found

    def rescore(self, found: Detections) -> None:
        """Multiply the mask scores by the predicted mask IoU, in place, for raw heads with that network."""
        if self._rescore is None:
            return
        for i, count in enumerate(found.count):
            for start in range(0, count, _MASKS):
                rows = slice(start, min(start + _MASKS, count))
                masks = assemble(found.coefficients[i, rows], found.prototypes[i], found.boxes[i, rows])
                found.mask_scores[i, rows] *= self._rescore(masks, found.classes[i, rows])
