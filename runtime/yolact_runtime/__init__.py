"""Run YOLACT models without a training framework: `load_engine(path).predict(images)`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from yolact_runtime.version import __version__

if TYPE_CHECKING:
    from yolact_runtime.detections import Detections
    from yolact_runtime.engines.base import Engine
    from yolact_runtime.engines.load import load_engine
    from yolact_runtime.engines.tiles import tiled
    from yolact_runtime.errors import YolactError
    from yolact_runtime.metadata import Metadata
    from yolact_runtime.results import Result
    from yolact_runtime.tracks import Tracker, TrackSettings

__all__ = [
    "Detections",
    "Engine",
    "Metadata",
    "Result",
    "TrackSettings",
    "Tracker",
    "YolactError",
    "__version__",
    "load_engine",
    "tiled",
]

# ONNX Runtime and OpenVINO report their use to their makers. OpenVINO does so at its import, by a forked
# process, which can keep this one from ending.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# Imported when first used, so that a command's `--help` does not wait for OpenCV (PEP 562).
_MODULES = {
    "Detections": "detections",
    "Engine": "engines.base",
    "Metadata": "metadata",
    "Result": "results",
    "YolactError": "errors",
    "TrackSettings": "tracks",
    "Tracker": "tracks",
    "load_engine": "engines.load",
    "tiled": "engines.tiles",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
