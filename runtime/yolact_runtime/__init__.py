"""Run YOLACT models without a training framework: `load_engine(path).predict(images)`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from yolact_runtime.detections import Detections
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.load import load_engine
from yolact_runtime.errors import YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.results import Result

try:
    __version__ = version("yolact")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = ["Detections", "Engine", "Metadata", "Result", "YolactError", "__version__", "load_engine"]
