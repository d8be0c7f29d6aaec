"""Exports a checkpoint to a verified ONNX file in the requested precision; other formats start from it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from yolact.evaluation.evaluate import evaluate
from yolact.weights.load import load_model
from yolact_export import verify
from yolact_export.onnx import OnnxOptions, check_graph, write_onnx
from yolact_export.onnx_graph import graph_metadata
from yolact_export.precision import agreement, sensitivity
from yolact_export.precision.reduce import PrecisionOptions, Reduced, error_table, reduce_graph
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import sha256
from yolact_runtime.metadata import PREFIX, InputSize

log = logging.getLogger(__name__)

_CPU = ["CPUExecutionProvider"]


@dataclass(frozen=True)
class Verification:
    """How to verify an export.

    Attributes:
        enabled: False to write without comparing.
        images: Folder of images to verify on; synthetic images if None.
        annotations: COCO annotations of `images`, to compare the AP of float32 and of the reduced precision.
    """

    enabled: bool = True
    images: Path | None = None
    annotations: Path | None = None

    def __post_init__(self) -> None:
        if self.annotations is not None and self.images is None:
            raise UsageError("--annotations needs --verify DIR: the folder of its images")


def export_checkpoint(
    weights: Path,
    config: str | None,
    path: Path,
    options: OnnxOptions,
    verification: Verification,
    precision: PrecisionOptions | None = None,
    class_names: str | None = None,
    input_size: InputSize | None = None,
) -> None:
    """Write a checkpoint as ONNX, verify it and print the comparisons.

    Args:
        weights: The checkpoint.
        config: Its configuration, if neither the file nor its name says it.
        path: Where to write; after a failure the caller deletes what is there.
        options: What to put into the graph.
        verification: How to verify it.
        precision: Of convolutions and matrix products; None for float32.
        class_names: Its class names, if it holds none; see `yolact.weights.state.parse_classes`.
        input_size: Of the network's input in pixels, instead of that it was trained with; see `load_model`.

    Raises:
        YolactError: the file differs from the checkpoint, or has less of the precision than requested.
    """
    needed = verification.enabled or (precision is not None and precision.precision == "fp16")
    images = verify.verification_images(verification.images) if needed else []
    model = load_model(weights, config, class_names, input_size)
    with tempfile.TemporaryDirectory() as folder:
        single = path if precision is None else Path(folder) / "float32.onnx"
        graph = write_onnx(model, single, replace(options, weights_sha256=sha256(weights)))
        if verification.enabled:
            reference = verify.reference_engine(weights, model.config, options.input_type, class_names)
            with OnnxRuntimeEngine(single, providers=_CPU) as engine:
                verify.check(reference, engine, images, "ONNX Runtime against PyTorch")
        if precision is not None:
            reduced = _write_reduced(graph, precision, images, path)
            if verification.enabled:
                emulated = Path(folder) / "reduced.onnx"
                emulated.write_bytes(reduced.emulated.SerializeToString())
                _verify_reduced(single, emulated, images, verification, precision.precision)


def _write_reduced(
    graph: onnx.ModelProto, precision: PrecisionOptions, images: Sequence[np.ndarray], path: Path
) -> Reduced:
    """Reduce the precision of a float32 graph, print what was measured, and write the result."""
    requested = precision.precision
    reduced = reduce_graph(graph, precision, images)
    if reduced.sensitivity is not None:
        sensitivity.sensitivity_table(reduced.sensitivity, requested).show()
    error_table(reduced, requested).show()
    if reduced.shortfall:
        log.warning("%s; accepted, and called %s", reduced.shortfall, reduced.precision)
    if reduced.kept:
        log.info("kept in float32: %s", ", ".join(sorted(reduced.kept)))
    for model in (reduced.model, reduced.emulated):
        props = replace(graph_metadata(model, "the graph"), precision=reduced.precision).to_props()
        others = {prop.key: prop.value for prop in model.metadata_props if not prop.key.startswith(PREFIX)}
        onnx.helper.set_model_props(model, others | props)
    check_graph(reduced.model)
    path.write_bytes(reduced.model.SerializeToString())
    # The written file has to open as well, not only its emulation.
    OnnxRuntimeEngine(path, providers=_CPU).close()
    return reduced


def _verify_reduced(
    single: Path, emulated: Path, images: Sequence[np.ndarray], verification: Verification, precision: str
) -> None:
    """Compare the detections, and with annotations the AP, of the reduced graph with those of float32."""
    with OnnxRuntimeEngine(single, providers=_CPU) as a, OnnxRuntimeEngine(emulated, providers=_CPU) as b:
        found = agreement.compare_detections(a, b, images)
        agreement.agreement_table(found, precision).show()
        problem = found.problem
        if verification.annotations is not None:
            assert verification.images is not None  # checked by Verification
            loss = agreement.PrecisionLoss(
                *(evaluate(engine, verification.images, verification.annotations) for engine in (a, b))
            )
            agreement.precision_table(loss, precision).show()
            problem = problem or loss.problem
    if problem:
        raise YolactError(f"nothing was written: {precision} does not detect what float32 does: {problem}")
