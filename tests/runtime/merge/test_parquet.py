"""Parquet files of a few kilobytes whose rows would fill the memory."""

import numpy as np
import pytest

from yolact_runtime import YolactError
from yolact_runtime.merge.parquet import open_parquet, read_rows

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402


def repeated(text, count):
    """A text that is stored once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([text]))


def write(path, columns):
    parquet.write_table(pa.table(columns), path, store_schema=False, dictionary_pagesize_limit=1 << 28)
    return path


def rows_of(path, columns, batch=64):
    with open_parquet(path, columns) as file:
        yield from read_rows(path, file, columns, batch)


def test_a_text_stored_once_is_not_kept_for_each_row(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLACT_MAX_TEXT_BYTES", "1000000")
    path = write(tmp_path / "a.parquet", {"path": repeated("x" * 300_000, 600), "n": pa.array(range(600))})
    assert path.stat().st_size < 400_000
    before = pa.total_allocated_bytes()
    for number, row in enumerate(rows_of(path, ["path", "n"])):
        assert row == {"path": "x" * 300_000, "n": number}
        assert pa.total_allocated_bytes() - before < 5_000_000
    assert number == 599


def test_rows_in_parts_are_the_same_rows(tmp_path, monkeypatch):
    texts = [None if n % 7 == 0 else "ab" * (n % 50) for n in range(500)]
    lists = [None if n % 5 == 0 else [{"a": "c" * n, "b": [n]}] * (n % 3) for n in range(500)]
    path = write(tmp_path / "a.parquet", {"t": texts, "l": lists})
    whole = list(rows_of(path, ["t", "l"]))
    monkeypatch.setenv("YOLACT_MAX_TEXT_BYTES", "2000")
    assert list(rows_of(path, ["t", "l"])) == whole
    assert whole == [{"t": text, "l": values} for text, values in zip(texts, lists, strict=True)]


@pytest.mark.parametrize("of", ["text", "numbers", "inner text"])
def test_a_row_that_is_too_long_is_refused(tmp_path, monkeypatch, of):
    monkeypatch.setenv("YOLACT_MAX_TEXT_BYTES", "100000")
    column = {
        "text": repeated("x" * 100_001, 3),
        "numbers": pa.array([[], np.zeros(20_000)]),
        "inner text": pa.array([["x" * 1000] * 101]),
    }[of]
    path = write(tmp_path / "a.parquet", {"c": column})
    with pytest.raises(YolactError, match=r"a\.parquet has a row with more bytes than the 100,000 allowed"):
        list(rows_of(path, ["c"]))


def test_equal_numbers_count_as_they_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLACT_MAX_ROW_GROUP_BYTES", "1000000")
    path = write(tmp_path / "a.parquet", {"c": pa.array([np.zeros(200_000)])})
    assert path.stat().st_size < 10_000
    with pytest.raises(YolactError, match="a group of rows with more bytes"):
        list(rows_of(path, ["c"]))


def test_columns_of_the_same_name_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], ["c", "c"]), path)
    with pytest.raises(YolactError, match=r"a\.parquet has several columns of the same name"):
        list(rows_of(path, ["c"]))
