"""Where optional reference data is, which is not part of the project: golden tensors, real COCO images."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

# Laid out as the names below say; tests that need what is not there skip.
SHARED = Path(os.environ.get("YOLACT_TEST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
REFERENCE = SHARED / "reference"
COCO_MINI = SHARED / "data" / "coco-mini"


def load_fill() -> ModuleType:
    """The module that makes the weights and the image behind the golden tensors."""
    spec = importlib.util.spec_from_file_location("reference_fill", REFERENCE / "fill.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
