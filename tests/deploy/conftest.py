"""Makes `deploy_files` importable from the tests of this folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("deploy_files", Path(__file__).with_name("deploy_files.py"))
assert _spec is not None and _spec.loader is not None
sys.modules["deploy_files"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["deploy_files"])
