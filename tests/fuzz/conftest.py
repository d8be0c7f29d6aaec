"""Makes the fuzzer's modules importable from the tests of this folder, and starts one judge for them all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from judge import Judge


@pytest.fixture(scope="session")
def judge() -> Iterator[Judge]:
    with Judge() as server:
        yield server
