"""Converts ONNX files to OpenVINO's own format, for CPUs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from yolact_export.onnx_graph import graph_metadata, read_graph
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine
from yolact_runtime.engines.openvino import SECTION, WEIGHTS_HASH, OpenVinoEngine, shared_core
from yolact_runtime.engines.trial import remember, try_engine
from yolact_runtime.errors import UsageError, YolactError, first_line
from yolact_runtime.files import atomic_path, follow_links, sha256, stream_of
from yolact_runtime.metadata import PREFIX
from yolact_runtime.packages import imports_failed
from yolact_runtime.temporary import new_folder

# Replaced by the hash once the weights are written.
_NO_HASH = "0" * 64


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
    try_engine(source, "openvino")
    try:
        # Not `convert_model`, which forks a process that reports its use to OpenVINO's developers.
        model = shared_core().read_model(source)
    except Exception as error:  # OpenVINO raises plain RuntimeErrors with many lines
        raise YolactError(f"OpenVINO cannot read {source}: {first_line(error)}") from error
    for name, value in {**metadata.to_props(), WEIGHTS_HASH: _NO_HASH}.items():
        model.set_rt_info(value, [SECTION, name.removeprefix(PREFIX)])
    try:
        target = follow_links(output)
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(target.parent, output.stem) as folder:
            temporary = folder / output.name
            # By default OpenVINO converts the weights to half.
            openvino.save_model(model, temporary, compress_to_fp16=False)
            digest = sha256(temporary.with_suffix(".bin"))
            temporary.write_bytes(temporary.read_bytes().replace(_NO_HASH.encode(), digest.encode()))
            if check is not None:
                check(temporary)
            # Never leave an .xml next to the .bin of another model.
            if stream_of(output) is None:
                target.unlink(missing_ok=True)
            for path in (temporary.with_suffix(".bin"), temporary):
                with atomic_path(output.with_name(path.name)) as written:
                    shutil.move(path, written)
        if stream_of(output) is None:
            remember(output)
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

    try_engine(source, "onnxruntime")
    with (
        OnnxRuntimeEngine(source, providers=["CPUExecutionProvider"]) as reference,
        OpenVinoEngine(written) as engine,
    ):
        if engine.metadata.precision == "fp32":
            verify.check(reference, engine, images, "OpenVINO against ONNX Runtime")
        else:
            found = agreement.compare_detections(reference, engine, images)
            agreement.agreement_table(found, "OpenVINO").show()
            if found.problem:
                raise YolactError(f"nothing was written: OpenVINO differs from ONNX Runtime: {found.problem}")
