"""ONNX files through ONNX Runtime."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.engine import Detections, Engine
from yolact_runtime.engines.outputs import INPUT, GraphOutputs
from yolact_runtime.errors import UsageError, YolactError, first_line
from yolact_runtime.metadata import Metadata

log = logging.getLogger(__name__)

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"


class OnnxRuntimeEngine(Engine):
    """An ONNX file written by yolact-export.

    Args:
        path: The file.
        providers: ONNX Runtime's execution providers, best first, as "CUDAExecutionProvider" or short
            "cuda"; the CPU provider takes what the others cannot run. Left out: CUDA where it really loads,
            otherwise the CPU.
        threads: CPU threads for one operator; left out, ONNX Runtime decides.

    Raises:
        YolactError: not an ONNX file, not one of ours, or a named provider does not load.
        UsageError: an unknown provider, or less than one thread.
    """

    def __init__(
        self, path: str | Path, providers: Sequence[str] | None = None, threads: int | None = None
    ) -> None:
        import onnxruntime

        self._path = Path(path)
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}; it must be 1 or more")
        available = onnxruntime.get_available_providers()
        if providers:
            self._session = self._open([_provider(name, available) for name in providers], threads)
            self._refuse_fallback(providers[0], available)
        else:
            self._session = self._open_best(available, threads)
        self.metadata = Metadata.from_props(self._session.get_modelmeta().custom_metadata_map, self._path)
        self._outputs = GraphOutputs(self.metadata, self._path)
        self._outputs.check(
            [value.name for value in self._session.get_inputs()],
            [value.name for value in self._session.get_outputs()],
        )

    @property
    def name(self) -> str:
        return f"ONNX Runtime {self._session.get_providers()[0].removesuffix('ExecutionProvider')}"

    def detect(self, batch: np.ndarray) -> Detections:
        try:
            values = self._session.run(self._outputs.names, {INPUT: batch})
        except Exception as error:  # ONNX Runtime raises its own kinds, which share no other base
            raise YolactError(f"{self._path}: ONNX Runtime failed: {first_line(error)}") from error
        return self._outputs.detections(values)

    def close(self) -> None:
        del self._session

    def _open_best(self, available: list[str], threads: int | None) -> Any:
        if _CUDA not in available or not _has_cuda_driver():
            return self._open([_CPU], threads)
        try:
            session = self._open([_CUDA], threads)
        except YolactError as error:
            log.warning("%s", error)
            session = self._open([_CPU], threads)
        if session.get_providers()[0] != _CUDA:
            log.warning("CUDA does not load in ONNX Runtime; %s runs on the CPU", self._path.name)
        return session

    def _open(self, providers: list[str], threads: int | None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Fatal messages only: what goes wrong is told by exceptions and by the provider check.
        options.log_severity_level = 4
        # Its threads would otherwise go on spinning while the masks are made.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        if _CPU not in providers:
            providers = [*providers, _CPU]
        if _CUDA in providers and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        onnxruntime.set_default_logger_severity(4)
        try:
            session = onnxruntime.InferenceSession(
                str(self._path), options, providers=providers, enable_fallback=0
            )
        except Exception as error:  # as above
            raise YolactError(
                f"{self._path}: ONNX Runtime cannot open it with {', '.join(providers)}; if the file is"
                f" damaged, copy or export it again ({first_line(error)})"
            ) from error
        finally:
            onnxruntime.set_default_logger_severity(2)
        # Otherwise a provider that fails later is silently replaced by the CPU.
        session.disable_fallback()
        return session

    def _refuse_fallback(self, asked: str, available: list[str]) -> None:
        delivered = self._session.get_providers()[0]
        if delivered != _provider(asked, available):
            raise YolactError(
                f"{self._path}: provider {asked} does not load on this machine (ONNX Runtime fell back to"
                f" {delivered}); install its libraries or use --providers cpu"
            )


def _provider(name: str, available: list[str]) -> str:
    wanted = name.lower().removesuffix("executionprovider")
    short = {provider.lower().removesuffix("executionprovider"): provider for provider in available}
    if wanted not in short:
        raise UsageError(f"provider {name!r} is not in this ONNX Runtime; it has {', '.join(short)}")
    return short[wanted]


def _has_cuda_driver() -> bool:
    """Whether trying CUDA makes sense: a try that must fail costs seconds and is noisy."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
