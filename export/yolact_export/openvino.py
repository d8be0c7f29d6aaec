"""Converts ONNX files to OpenVINO's own format, for CPUs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from yolact_export.onnx_graph import graph_metadata, read_graph
from yolact_runtime.commandline import table_console
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine
from yolact_runtime.engines.openvino import SECTION, OpenVinoEngine, shared_core
from yolact_runtime.errors import UsageError, YolactError, first_line
from yolact_runtime.metadata import PREFIX
from yolact_runtime.packages import imports_failed


def write_openvino(source: Path, output: Path, check: Callable[[Path], None] | None = None) -> None:
    """Convert an ONNX file of yolact-export to `output` (`.xml`) and a `.bin` with the weights next to it.

    Weights keep their type. On an error, nothing is written.

    Args:
        source: The ONNX file.
        output: The `.xml` to write; the `.bin` gets the same name.
        check: Called with the finished `.xml` before it is moved to `output`, to verify it.

    Raises:
        UsageError: `source` is in half precision.
        YolactError: `source` is damaged or has no metadata, OpenVINO rejects the graph, or the folder cannot
            be written to.
    """
    try:
        import openvino
    except ImportError as error:
        raise imports_failed(error, "--to openvino") from error
    metadata = graph_metadata(read_graph(source), source)
    if metadata.precision == "fp16":
        raise UsageError(f"{source} is in fp16, which CPUs compute in float32; export it in fp32 or int8")
    try:
        # Not `convert_model`, which forks a process that reports its use to OpenVINO's developers.
        model = shared_core().read_model(source)
    except Exception as error:  # OpenVINO raises plain RuntimeErrors with many lines
        raise YolactError(f"OpenVINO cannot read {source}: {first_line(error)}") from error
    for name, value in metadata.to_props().items():
        model.set_rt_info(value, [SECTION, name.removeprefix(PREFIX)])
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.stem}.") as folder:
            temporary = Path(folder) / output.name
            # By default OpenVINO converts the weights to half.
            openvino.save_model(model, temporary, compress_to_fp16=False)
            if check is not None:
                check(temporary)
            # Never leave an .xml next to the .bin of another model.
            output.unlink(missing_ok=True)
            for path in (temporary.with_suffix(".bin"), temporary):
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
                path.replace(output.with_name(path.name))
    except OSError as error:
        raise YolactError(f"cannot write {output}: {error.strerror or error}") from error
    except RuntimeError as error:  # from saving
        raise YolactError(f"cannot write {output}: {first_line(error)}") from error


def verify_openvino(source: Path, images: Sequence[np.ndarray], written: Path) -> None:
    """Check that OpenVINO detects what ONNX Runtime detects; needs PyTorch installed.

    In float32 every detection is compared within the tolerances of float32. In int8, where the two libraries
    round in different places, detections are matched.

    Args:
        source: The ONNX file.
        images: (H, W, 3) uint8 BGR to compare on.
        written: The `.xml` to verify.

    Raises:
        YolactError: the two differ.
    """
    from yolact_export import verify
    from yolact_export.precision import agreement

    with (
        OnnxRuntimeEngine(source, providers=["CPUExecutionProvider"]) as reference,
        OpenVinoEngine(written) as engine,
    ):
        if engine.metadata.precision == "fp32":
            comparison = verify.compare(reference, engine, images)
            table = verify.comparison_table(comparison, "OpenVINO against ONNX Runtime")
            problem = comparison.problems[0] if comparison.problems else ""
        else:
            found = agreement.compare_detections(reference, engine, images)
            table, problem = agreement.agreement_table(found, "OpenVINO"), found.problem
    table_console().print(table)
    if problem:
        raise YolactError(f"nothing was written: OpenVINO differs from ONNX Runtime: {problem}")
