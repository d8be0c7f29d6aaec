"""OpenVINO's own format, from the ONNX file: for CPUs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from yolact_export.inspection import read_described
from yolact_runtime.commandline import table_console
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine
from yolact_runtime.engines.openvino import SECTION, OpenVinoEngine, shared_core
from yolact_runtime.errors import UsageError, YolactError, first_line, missing_extra
from yolact_runtime.metadata import PREFIX


def write_openvino(source: Path, output: Path, check: Callable[[Path], None] | None = None) -> None:
    """Convert an ONNX file of ours to `output` (`.xml`) and the `.bin` with the weights beside it.

    Weights keep the type that they have in the ONNX file.

    Args:
        source: The ONNX file.
        output: To be written; the `.bin` gets the same name.
        check: Is given the finished `.xml` before it is placed; what it raises keeps it from being placed.

    Raises:
        UsageError: `source` is in half precision.
        YolactError: `source` is damaged or not ours, OpenVINO does not take the graph, or the folder
            cannot be written to.
    """
    try:
        import openvino
    except ImportError as error:
        raise missing_extra("--to openvino", "openvino") from error
    _, metadata = read_described(source)
    if metadata.precision == "fp16":
        raise UsageError(f"{source} is in fp16, which CPUs compute in float32; export it in fp32 or int8")
    try:
        # Not `convert_model`, which reports its use to OpenVINO's makers from a process that it forks.
        model = shared_core().read_model(source)
    except Exception as error:  # OpenVINO raises plain RuntimeErrors of many lines
        raise YolactError(f"{source}: OpenVINO does not take it: {first_line(error)}") from error
    for name, value in metadata.to_props().items():
        model.set_rt_info(value, [SECTION, name.removeprefix(PREFIX)])
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.stem}.") as folder:
            made = Path(folder) / output.name
            # OpenVINO halves the weights unless told otherwise.
            openvino.save_model(model, made, compress_to_fp16=False)
            if check is not None:
                check(made)
            # Never a new description with old weights, nor the other way round.
            output.unlink(missing_ok=True)
            for path in (made.with_suffix(".bin"), made):
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
                path.replace(output.with_name(path.name))
    except OSError as error:
        raise YolactError(f"cannot write {output}: {error.strerror or error}") from error
    except RuntimeError as error:  # from saving
        raise YolactError(f"cannot write {output}: {first_line(error)}") from error


def proven_equal(source: Path, images: Sequence[np.ndarray]) -> Callable[[Path], None]:
    """A check for `write_openvino`: OpenVINO finds what ONNX Runtime finds with `source`.

    In float32 every detection is compared within float32's tolerances; with 8-bit integers, which the two
    libraries round in different places, detections are counted. Comparing needs PyTorch installed.
    """
    from yolact_export import verify
    from yolact_export.precision import agreement

    def check(written: Path) -> None:
        with (
            OnnxRuntimeEngine(source, providers=["CPUExecutionProvider"]) as reference,
            OpenVinoEngine(written) as engine,
        ):
            if engine.metadata.precision == "fp32":
                seen = verify.compare(reference, engine, images)
                table = verify.report(seen, "OpenVINO against ONNX Runtime")
                problem = seen.problems[0] if seen.problems else ""
            else:
                agreed = agreement.compare_detections(reference, engine, images)
                table, problem = agreement.agreement_table(agreed, "OpenVINO"), agreed.problem
        table_console().print(table)
        if problem:
            raise YolactError(f"nothing was written: OpenVINO differs from ONNX Runtime: {problem}")

    return check
