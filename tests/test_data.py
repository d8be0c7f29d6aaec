"""The reference data in tests/data: small, and the whole set's."""

from __future__ import annotations

import numpy as np
import pytest
from shared_data import DATA, REFERENCE, load_fill, load_script


def test_the_data_is_small() -> None:
    size = sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert size <= 1_500_000


@pytest.mark.skipif(not REFERENCE.exists(), reason="no whole reference set")
def test_the_data_is_derived_from_the_whole_set() -> None:
    script = load_script("make_reference")
    derived = script.derive(REFERENCE)
    tables = script.tables(REFERENCE)
    for path in DATA.glob("*.npz"):
        held = np.load(path)
        assert sorted(held.files) == sorted(derived[path.name])
        for key, value in derived[path.name].items():
            np.testing.assert_array_equal(held[key], value)
            assert held[key].dtype == value.dtype
    assert load_fill().read_tables() == tables
