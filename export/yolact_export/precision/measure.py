"""Measures the errors of a reduced graph against the float32 graph, tensor by tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from yolact_export.precision.layers import group_outputs, network_outputs
from yolact_runtime.engines.outputs import INPUT
from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.metadata import Metadata

# Compare at least this many of the best priors, also in images without a detection.
MIN_PRIORS = 100


@dataclass
class Error:
    """Error of one tensor, or of several together.

    Attributes:
        largest: Largest absolute value in float32.
        difference: Largest absolute difference; NaN if the reduced graph returned values that are not finite.
        noise, signal: Sums of the squared differences and of the squared float32 values.
    """

    largest: float = 0.0
    difference: float = 0.0
    noise: float = 0.0
    signal: float = 0.0

    @property
    def relative(self) -> float:
        """Root mean square of the differences over that of the values."""
        return float(np.sqrt(self.noise / self.signal)) if self.signal else float(np.sqrt(self.noise))

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Include two arrays of one shape."""
        expected = expected.astype(np.float64)
        difference = np.abs(found.astype(np.float64) - expected)
        self.largest = max(self.largest, float(np.abs(expected).max(initial=0)))
        # np.maximum keeps NaN; max() would lose it.
        self.difference = float(np.maximum(self.difference, difference.max(initial=0)))
        self.noise += float((difference**2).sum())
        self.signal += float((expected**2).sum())


class HeadReference:
    """The heads of the float32 graph on a few images, computed once to compare many graphs with.

    Only the priors matter at which float32 detects something.

    Args:
        model: The float32 graph.
        batches: Inputs of the graphs, (n, H, W, 3) each.
        metadata: Of the graph, for the score threshold.
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
            a, b = ({name: side[self._heads[name]] for name in errors} for side in (expected, other))
            add_heads(errors, a, b, self._threshold)
        return errors


def add_heads(
    errors: Mapping[str, Error],
    expected: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    threshold: float,
) -> None:
    """Include the heads of a batch in `errors`: all prototypes, and the priors that `expected` detects at."""
    rows = _relevant_priors(expected["logits"], threshold)
    for name, error in errors.items():
        a, b = expected[name], found[name]
        error.add(*((a, b) if name == "prototypes" else (a[rows], b[rows])))


def worst(errors: Mapping[str, Error]) -> float:
    """The largest relative error; infinite if a value was not finite."""
    return float(np.nan_to_num(np.max([error.relative for error in errors.values()]), nan=np.inf))


def _relevant_priors(logits: np.ndarray, threshold: float) -> np.ndarray:
    """(N, P) bool from logits (N, P, C+1): the priors that enter NMS, and at least the best `MIN_PRIORS`."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    best = weights[..., 1:].max(axis=-1) / weights.sum(axis=-1)  # (N, P)
    count = min(MIN_PRIORS, best.shape[1])
    last = np.partition(best, -count, axis=1)[:, -count, None]  # (N, 1)
    return best >= np.minimum(last, threshold)


def tensor_errors(
    model: onnx.ModelProto, reduced: onnx.ModelProto, batches: Sequence[np.ndarray]
) -> tuple[dict[str, Error], dict[str, Error]]:
    """Errors of the heads and of the outputs of each layer group.

    Detections are not compared, as they have no fixed order.

    Args:
        model: The float32 graph.
        reduced: The graph to compare.
        batches: Inputs of the graphs, (n, H, W, 3) each.

    Returns:
        Errors by head, over all priors, and errors by layer group.
    """
    groups, heads = group_outputs(model), network_outputs(model)
    by_group, by_head = ({name: Error() for name in side} for side in (groups.values(), heads))
    names = sorted({*groups, *heads.values()})
    pairs = zip(run_graph(model, names, batches), run_graph(reduced, names, batches), strict=True)
    for expected, found in pairs:
        for name, group in groups.items():
            by_group[group].add(expected[name], found[name])
        for head, name in heads.items():
            by_head[head].add(expected[name], found[name])
    return by_head, by_group


def run_graph(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[np.ndarray]
) -> Iterator[Mapping[str, np.ndarray]]:
    """Values of any tensors of a graph, by name, for each batch; raises as `open_graph`."""
    run = open_graph(model, tensors)
    for batch in batches:
        yield run({INPUT: batch})


def open_graph(
    model: onnx.ModelProto, tensors: Sequence[str]
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """A graph in ONNX Runtime on the CPU: from its inputs, by name, to the values of any of its tensors.

    Raises:
        YolactError: ONNX Runtime cannot open the graph, and by the function that is returned, cannot run it.
    """
    import onnxruntime

    watched = copy.deepcopy(model)
    del watched.graph.output[:]
    infos = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    watched.graph.output.extend(infos[name] for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own exceptions share no other base class
        raise YolactError(f"ONNX Runtime cannot run the graph: {first_line(error)}") from error

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return dict(zip(tensors, session.run(list(tensors), dict(inputs)), strict=True))
        except Exception as error:  # as above
            raise YolactError(f"ONNX Runtime cannot run the graph: {first_line(error)}") from error

    return run
