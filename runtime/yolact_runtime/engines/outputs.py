"""From what an exported graph returns to detections: the same for every library that runs the graph."""

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
    """What the outputs of a graph are called and mean.

    Args:
        metadata: Says where detection happens.
        path: The file, for error messages.

    Attributes:
        names: Of the outputs, in the order that `detections` takes them.
        priors: (P, 4) float32 cx cy w h, where heads are raw.
    """

    def __init__(self, metadata: Metadata, path: str | Path) -> None:
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
        """Compare with the names that a file has.

        Raises:
            YolactError: they are others.
        """
        missing = [name for name in self.names if name not in outputs]
        if list(inputs) != [INPUT] or missing:
            raise YolactError(
                f"{self._path}: its inputs are {list(inputs)} and it lacks the outputs {missing};"
                f' "{INPUT}" and none are expected; export it again'
            )

    def check_input(self, sides: Sequence[object], kind: str) -> None:
        """Compare the graph's input with what the metadata says of it.

        Args:
            sides: Of the declared input after the first; what is no int is open.
            kind: Its NumPy type.

        Raises:
            YolactError: another size or type.
        """
        meta = self._metadata
        expected = (meta.input_size, meta.input_size, 3)
        fits = len(sides) == 3 and all(
            side == wanted or not isinstance(side, int) for side, wanted in zip(sides, expected, strict=True)
        )
        if not fits or kind != meta.input_dtype:
            shape = ", ".join(["N", *map(str, sides)])
            raise YolactError(
                f"{self._path}: its input is ({shape}) {kind}, and its metadata says"
                f" (N, {meta.input_size}, {meta.input_size}, 3) {meta.input_dtype}; export it again"
            )

    def detections(self, values: Sequence[np.ndarray]) -> Detections:
        """Detections from the outputs, in the order of `names`; half precision is widened."""
        found: dict[str, np.ndarray] = {
            name: value.astype(np.float32) if value.dtype == np.float16 else value
            for name, value in zip(self.names, values, strict=True)
        }
        if self._metadata.detect == "native":
            found.setdefault("mask_scores", found["scores"])
            return Detections(**found)
        return self._detect_here(**found)

    def _detect_here(
        self, loc: np.ndarray, logits: np.ndarray, coefficients: np.ndarray, prototypes: np.ndarray
    ) -> Detections:
        if loc.shape[1] != len(self.priors):
            raise YolactError(
                f"{self._path}: the graph has {loc.shape[1]} priors, its metadata {len(self.priors)};"
                " export it again"
            )
        names = len(self._metadata.class_names)
        if logits.shape[2] != names + 1:
            raise YolactError(
                f"{self._path}: the graph has {logits.shape[2] - 1} classes, its metadata {names};"
                " export it again"
            )
        found = detect(loc, logits, coefficients, prototypes, self.priors, self._metadata)
        self.rescore(found)
        return found

    def rescore(self, found: Detections) -> None:
        """Multiply the mask scores by what the network for it expects, where heads are raw and it has one."""
        if self._rescore is None:
            return
        for i, count in enumerate(found.count):
            masks = assemble(found.coefficients[i, :count], found.prototypes[i], found.boxes[i, :count])
            found.mask_scores[i, :count] *= self._rescore(masks, found.classes[i, :count])
