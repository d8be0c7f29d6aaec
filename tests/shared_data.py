"""Where reference data is: a small set in tests/data; optionally the whole set, and real COCO images."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

# Laid out as the names below say; tests that need what is not there skip.
SHARED = Path(os.environ.get("YOLACT_TEST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
REFERENCE = SHARED / "reference"
COCO_MINI = SHARED / "data" / "coco-mini"
DATA = Path(__file__).resolve().parent / "data"


def reference_files(pattern: str) -> list[Path]:
    """The reference files that fit a pattern, by name; the whole set's where a file is in both."""
    found = {path.name: path for folder in (DATA, REFERENCE) for path in folder.glob(pattern)}
    return [found[name] for name in sorted(found)]


def reference_file(name: str) -> Path:
    """One reference file, from the whole set if it is there; skips the test if it is in neither."""
    for path in (REFERENCE / name, DATA / name):
        if path.exists():
            return path
    pytest.skip(f"no reference/{name}: set YOLACT_TEST_SHARED to the folder that holds it")


def load_script(name: str) -> ModuleType:
    """A module of tests/data."""
    spec = importlib.util.spec_from_file_location(f"reference_{name}", DATA / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_fill() -> ModuleType:
    """The module that makes the weights and the image behind the golden tensors."""
    return load_script("fill")
