"""OpenVINO files (`.xml` with a `.bin` beside it) on CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.engine import Detections, Engine
from yolact_runtime.engines.outputs import INPUT, GraphOutputs
from yolact_runtime.errors import UsageError, YolactError, first_line, missing_extra
from yolact_runtime.metadata import PREFIX, Metadata

# Where a model's own properties are in the file, each a string.
SECTION = PREFIX.rstrip(".")


class OpenVinoEngine(Engine):
    """A model written by `yolact-export --to openvino`.

    Args:
        path: The `.xml` file.
        threads: CPU threads; left out, OpenVINO decides.
        precision: "fp32", or "bf16" for the units that some CPUs have for it. OpenVINO would choose bf16
            on its own where it is faster; here it is used only when asked for.

    Raises:
        YolactError: not an OpenVINO file, not one of ours, or the CPU has no bf16.
        UsageError: an unknown precision, or less than one thread.
    """

    def __init__(self, path: str | Path, threads: int | None = None, precision: str = "fp32") -> None:
        self._path = Path(path)
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}; it must be 1 or more")
        if precision not in ("fp32", "bf16"):
            raise UsageError(f"precision is {precision!r}; an OpenVINO engine takes fp32 or bf16")
        self._core = core = _core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise YolactError(f"{path}: this CPU has no bf16 arithmetic; use precision fp32")
        model, self.metadata = read_model(self._path, core)
        self._outputs = GraphOutputs(self.metadata, self._path)
        self._outputs.check(
            [port.any_name for port in model.inputs], [port.any_name for port in model.outputs]
        )
        settings: dict[str, object] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        except Exception as error:  # as above
            raise YolactError(f"{path}: OpenVINO cannot compile it: {first_line(error)}") from error

    @property
    def name(self) -> str:
        return "OpenVINO CPU"

    def detect(self, batch: np.ndarray) -> Detections:
        try:
            found = self._request.infer({INPUT: batch})
        except Exception as error:  # as above
            raise YolactError(f"{self._path}: OpenVINO failed: {first_line(error)}") from error
        # Its arrays are views of buffers that the next call fills anew.
        return self._outputs.detections([np.array(found[name]) for name in self._outputs.names])

    def close(self) -> None:
        del self._request


def read_model(path: Path, core: Any = None) -> tuple[Any, Metadata]:
    """OpenVINO's model of an `.xml` file, and what the file says of itself.

    Args:
        path: The file.
        core: OpenVINO's, where there is one.

    Raises:
        YolactError: not an OpenVINO file, or not one of ours.
    """
    try:
        model = (core or _core()).read_model(path)
    except RuntimeError as error:
        raise YolactError(
            f"{path}: OpenVINO cannot read it; if the file or the .bin beside it is damaged, copy or"
            f" export it again ({first_line(error)})"
        ) from error
    # Its map of sections knows `in`, but not `get`.
    names = model.get_rt_info()[SECTION] if SECTION in model.get_rt_info() else ()  # noqa: SIM401
    props = {f"{PREFIX}{name}": model.get_rt_info([SECTION, name]).astype(str) for name in names}
    return model, Metadata.from_props(props, path)


def _core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise missing_extra("opening .xml files", "openvino") from error
    return openvino.Core()
