"""Makes `doc_pages` importable from the tests of this folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("doc_pages", Path(__file__).with_name("doc_pages.py"))
assert _spec is not None and _spec.loader is not None
sys.modules["doc_pages"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["doc_pages"])
