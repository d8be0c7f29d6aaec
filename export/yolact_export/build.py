"""The ONNX file in the precision that is asked for, proven step by step: what every format starts from."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from yolact.weights.load import load_model
from yolact_export import verify
from yolact_export.onnx import OnnxOptions, check_graph, write_onnx
from yolact_export.precision import agreement, sensitivity
from yolact_export.precision.reduce import PrecisionOptions, Reduced, error_table, reduce_graph
from yolact_runtime.commandline import table_console
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import sha256
from yolact_runtime.metadata import PREFIX, Metadata

log = logging.getLogger(__name__)

_CPU = ["CPUExecutionProvider"]


@dataclass(frozen=True)
class Proof:
    """How an export is verified.

    Attributes:
        enabled: False to write without comparing.
        images: Folder to verify on; made images where None.
        annotations: COCO annotations of `images`: AP of float32 and of the reduced precision side by side.
    """

    enabled: bool = True
    images: Path | None = None
    annotations: Path | None = None

    def __post_init__(self) -> None:
        if self.annotations is not None and self.images is None:
            raise UsageError("--annotations needs --verify DIR: the folder of its images")


def build_onnx(
    weights: Path,
    config: str | None,
    path: Path,
    options: OnnxOptions,
    proof: Proof,
    precision: PrecisionOptions | None = None,
) -> None:
    """Write a checkpoint as ONNX, print what the proofs found, and refuse what they do not support.

    Args:
        weights: The checkpoint.
        config: Its configuration, where neither the file nor its name says it.
        path: To be written; the caller sees to it that a failure leaves nothing under the final name.
        options: What is to be in the graph.
        proof: How it is verified.
        precision: Of the arithmetic; None for float32.

    Raises:
        YolactError: the file differs from the checkpoint, or has less of the precision than asked for.
    """
    needed = proof.enabled or (precision is not None and precision.precision == "fp16")
    images = verify.verification_images(proof.images) if needed else []
    model = load_model(weights, config)
    with tempfile.TemporaryDirectory() as folder:
        single = path if precision is None else Path(folder) / "float32.onnx"
        graph = write_onnx(model, single, replace(options, weights_sha256=sha256(weights)))
        if proof.enabled:
            reference = verify.reference_engine(weights, config, options.input_type)
            with OnnxRuntimeEngine(single, providers=_CPU) as engine:
                seen = verify.compare(reference, engine, images)
            table_console().print(verify.report(seen))
            if seen.problems:
                more = f" (and {len(seen.problems) - 1} more)" if len(seen.problems) > 1 else ""
                raise YolactError(f"nothing was written: verification failed: {seen.problems[0]}{more}")
        if precision is not None:
            reduced = _reduce(graph, precision, images, path)
            if proof.enabled:
                stand_in = Path(folder) / "reduced.onnx"
                stand_in.write_bytes(reduced.stand_in.SerializeToString())
                _prove(single, stand_in, images, proof, precision.precision)


def _reduce(
    graph: onnx.ModelProto, precision: PrecisionOptions, images: Sequence[np.ndarray], path: Path
) -> Reduced:
    asked, console = precision.precision, table_console()
    reduced = reduce_graph(graph, precision, images)
    if reduced.sensitivity is not None:
        console.print(sensitivity.table(reduced.sensitivity, asked))
    console.print(error_table(reduced, asked))
    if reduced.shortfall:
        log.warning("%s; accepted, and called %s", reduced.shortfall, reduced.precision)
    if reduced.kept:
        log.info("left in float32: %s", ", ".join(sorted(reduced.kept)))
    for written in (reduced.model, reduced.stand_in):
        _declare(written, reduced.precision)
    check_graph(reduced.model)
    path.write_bytes(reduced.model.SerializeToString())
    # What is written must open too, not only its stand-in.
    OnnxRuntimeEngine(path, providers=_CPU).close()
    return reduced


def _declare(graph: onnx.ModelProto, precision: str) -> None:
    metadata = Metadata.from_props({prop.key: prop.value for prop in graph.metadata_props}, "the graph")
    props = replace(metadata, precision=precision).to_props()
    others = {prop.key: prop.value for prop in graph.metadata_props if not prop.key.startswith(PREFIX)}
    onnx.helper.set_model_props(graph, others | props)


def _prove(single: Path, stand_in: Path, images: Sequence[np.ndarray], proof: Proof, precision: str) -> None:
    console = table_console()
    with OnnxRuntimeEngine(single, providers=_CPU) as a, OnnxRuntimeEngine(stand_in, providers=_CPU) as b:
        seen = agreement.compare_detections(a, b, images)
        console.print(agreement.agreement_table(seen, precision))
        problem = seen.problem
        if proof.annotations is not None:
            assert proof.images is not None  # Proof checks it
            loss = agreement.compare_precision(a, b, proof.images, proof.annotations)
            console.print(agreement.precision_table(loss, precision))
            problem = problem or loss.problem
    if problem:
        raise YolactError(f"nothing was written: {precision} does not do what float32 does: {problem}")
