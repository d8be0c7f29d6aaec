"""A model as its two stages, the network and the detection behind it, so that each can be compared alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.utils

from yolact.engine import TorchEngine
from yolact_export.onnx_graph import HEADS, graph_metadata, read_graph
from yolact_export.precision.layers import network_outputs
from yolact_export.precision.measure import open_graph
from yolact_runtime.detections import Detections
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine
from yolact_runtime.engines.openvino import OpenVinoEngine, shared_core
from yolact_runtime.engines.outputs import INPUT, GraphOutputs
from yolact_runtime.errors import YolactError, cause_line

Heads = Mapping[str, np.ndarray]
# From inputs of a graph, by name, to the tensors that it was opened for, by name.
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

# Priors of each image that `raise_scores` turns into candidates.
_RAISED = 50


@dataclass(frozen=True)
class Stages:
    """The two stages of a model.

    Attributes:
        network: From a batch (N, H, W, 3) to the raw heads `HEADS`, float32, by name.
        detection: From raw heads to detections.
    """

    network: Callable[[np.ndarray], Heads]
    detection: Callable[[Heads], Detections]


def stages_of(reference: Engine, engine: Engine) -> tuple[Stages, Stages] | None:
    """The stages of two engines of one network: checkpoints, ONNX files and OpenVINO models made from them.

    Returns:
        None if one of the engines is of another kind, or there is no ONNX file that names the tensors.

    Raises:
        YolactError: the ONNX file is damaged, or was not written by yolact-export.
    """
    engines = reference, engine
    files = [one.path for one in engines if one.path is not None and one.path.suffix.lower() == ".onnx"]
    graphs = {path: read_graph(path) for path in files}
    found = []
    for one in engines:
        if isinstance(one, TorchEngine):
            found.append(Stages(one.heads, one.detect_heads))
        elif isinstance(one, OnnxRuntimeEngine | OpenVinoEngine) and files:
            own = one.path in graphs
            found.append(_graph_stages(one, graphs[one.path if own else files[0]]))
    return (found[0], found[1]) if len(found) == len(engines) else None


def _graph_stages(engine: OnnxRuntimeEngine | OpenVinoEngine, graph: onnx.ModelProto) -> Stages:
    """The stages of an exported file; `graph` is the file, or what an OpenVINO model was converted from."""
    names = network_outputs(graph)  # head to tensor
    tensors = [names[head] for head in HEADS]
    outputs = GraphOutputs(graph_metadata(graph, engine.path), engine.path)
    in_openvino = isinstance(engine, OpenVinoEngine)
    run = _open_in_openvino(engine.path, tensors) if in_openvino else open_graph(graph, tensors)

    def network(batch: np.ndarray) -> Heads:
        found = run({INPUT: batch})
        return {head: found[names[head]].astype(np.float32, copy=False) for head in HEADS}

    if engine.metadata.detect == "runtime":
        return Stages(network, lambda heads: outputs.detections([heads[head] for head in HEADS]))
    # Without its network, the graph takes the heads as inputs.
    part = onnx.utils.Extractor(graph).extract_model(tensors, outputs.names)
    source = part.SerializeToString()
    detect = _open_in_openvino(source, outputs.names) if in_openvino else open_graph(part, outputs.names)

    def detection(heads: Heads) -> Detections:
        found = detect({names[head]: heads[head] for head in HEADS})
        return outputs.detections([found[name] for name in outputs.names])

    return Stages(network, detection)


def _open_in_openvino(source: Path | bytes, tensors: Sequence[str]) -> Run:
    """A model that OpenVINO runs in the types of its file, with any of its tensors as its outputs."""
    core = shared_core()
    try:
        model = core.read_model(source)
        present = {name for output in model.outputs for name in output.names}
        model.add_outputs([name for name in tensors if name not in present])
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise YolactError(f"OpenVINO cannot return the heads of the network: {cause_line(error)}") from error

    def run(inputs: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        found = compiled(dict(inputs))
        return {name: np.array(found[name]) for name in tensors}

    return run


def raise_scores(heads: Heads, threshold: float) -> dict[str, np.ndarray]:
    """The heads with other logits, with which some priors of every image score above `threshold`.

    Their scores are evenly spaced up to 1, so that rounding does not change their order. They are pairs of
    neighbours of one class, which mostly overlap.

    Args:
        heads: Raw heads of real images; boxes, coefficients and prototypes stay.
        threshold: Score, 0..1.
    """
    images, priors, classes = heads["logits"].shape
    logits = np.full((images, priors, classes), -20, np.float32)
    logits[..., 0] = 0
    # Different for each class, as equal scores may come in any order.
    logits[..., 1:] -= 0.05 * np.arange(classes - 1, dtype=np.float32)
    starts = 2 * np.random.default_rng(0).permutation(-(-priors // 2))[: _RAISED // 2]
    chosen = np.stack([starts, starts + 1], axis=1).ravel()
    pair = np.arange(len(chosen)) // 2
    scores = threshold + (1 - threshold) * np.arange(1, len(chosen) + 1) / (len(chosen) + 1)
    with np.errstate(divide="ignore"):
        values = np.log(scores / (1 - scores))
    inside = chosen < priors
    logits[:, chosen[inside], (1 + pair % (classes - 1))[inside]] = values[inside]
    return {**heads, "logits": logits}
