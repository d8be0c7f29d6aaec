"""How far a reduced graph is from the float32 one, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from yolact_export.precision.layers import group_outputs, network_outputs
from yolact_runtime.errors import YolactError
from yolact_runtime.metadata import Metadata

# At least so many of the best priors count, also in images where nothing scores.
LEAST_PRIORS = 100


@dataclass
class Error:
    """What was seen of one tensor, or of several together.

    Attributes:
        largest: Largest absolute value in float32.
        difference: Largest absolute difference; NaN where the reduced graph gave values that are not finite.
        noise, signal: Sums of squares of differences and of float32 values.
    """

    largest: float = 0.0
    difference: float = 0.0
    noise: float = 0.0
    signal: float = 0.0

    @property
    def relative(self) -> float:
        """Root mean square of the difference over that of the values."""
        return float(np.sqrt(self.noise / self.signal)) if self.signal else float(np.sqrt(self.noise))

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Take in two arrays of one shape."""
        expected = expected.astype(np.float64)
        apart = np.abs(found.astype(np.float64) - expected)
        self.largest = max(self.largest, float(np.abs(expected).max(initial=0)))
        # np.maximum hands on NaN; max() would lose it.
        self.difference = float(np.maximum(self.difference, apart.max(initial=0)))
        self.noise += float((apart**2).sum())
        self.signal += float((expected**2).sum())


class HeadReference:
    """The heads of the float32 graph on a few images, computed once and compared with many graphs.

    They are compared where it matters: at the priors at which float32 finds something.

    Args:
        model: The float32 graph.
        batches: Inputs of the graphs.
        metadata: Gives the score threshold.
    """

    def __init__(self, model: onnx.ModelProto, batches: Sequence[np.ndarray], metadata: Metadata) -> None:
        self._heads = network_outputs(model)
        self._batches = batches
        self._threshold = metadata.score_threshold
        self._expected = list(run_graph(model, list(self._heads.values()), batches))

    def errors(self, reduced: onnx.ModelProto) -> dict[str, Error]:
        """Error of each head of a reduced graph."""
        errors = {name: Error() for name in self._heads}
        found = run_graph(reduced, list(self._heads.values()), self._batches)
        for expected, other in zip(self._expected, found, strict=True):
            rows = _priors_that_matter(expected[self._heads["logits"]], self._threshold)
            for name, tensor in self._heads.items():
                a, b = expected[tensor], other[tensor]
                errors[name].add(*((a, b) if name == "prototypes" else (a[rows], b[rows])))
        return errors


def worst(errors: Mapping[str, Error]) -> float:
    """The largest relative error; infinite where a value was not finite."""
    values = [error.relative for error in errors.values()]
    return float(
        np.nan_to_num(max(values, key=lambda value: np.inf if np.isnan(value) else value), nan=np.inf)
    )


def _priors_that_matter(logits: np.ndarray, threshold: float) -> np.ndarray:
    """(N, P) bool from logits (N, P, C+1): those that enter NMS, and at least the best hundred."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    best = weights[..., 1:].max(axis=-1) / weights.sum(axis=-1)  # (N, P)
    count = min(LEAST_PRIORS, best.shape[1])
    last = np.partition(best, -count, axis=1)[:, -count, None]  # (N, 1)
    return best >= np.minimum(last, threshold)


def tensor_errors(
    model: onnx.ModelProto, reduced: onnx.ModelProto, batches: Sequence[np.ndarray]
) -> tuple[dict[str, Error], dict[str, Error]]:
    """Errors of the graph's outputs by name, and of what each layer group hands on, by group.

    Detections have no fixed order: only outputs of the network (raw heads, prototypes) are compared here.
    """
    groups = group_outputs(model)
    by_group: dict[str, Error] = {}
    heads = network_outputs(model)
    by_head = {name: Error() for name in heads}
    names = sorted({*groups, *heads.values()})
    pairs = zip(run_graph(model, names, batches), run_graph(reduced, names, batches), strict=True)
    for expected, found in pairs:
        for name, group in groups.items():
            by_group.setdefault(group, Error()).add(expected[name], found[name])
        for head, name in heads.items():
            by_head[head].add(expected[name], found[name])
    return by_head, by_group


def run_graph(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Sequence[np.ndarray]
) -> Iterator[Mapping[str, np.ndarray]]:
    """Values of `tensors`, whether they are outputs or not, for every batch.

    Raises:
        YolactError: ONNX Runtime cannot run the graph.
    """
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    infos = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    watched.graph.output.extend(infos[name] for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for batch in batches:
            yield dict(zip(tensors, session.run(list(tensors), {"images": batch}), strict=True))
    except Exception as error:  # ONNX Runtime raises its own kinds, which share no other base
        raise YolactError(f"ONNX Runtime cannot run the graph: {str(error).splitlines()[0]}") from error
