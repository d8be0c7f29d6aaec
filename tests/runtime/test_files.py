"""Text and JSON files of others."""

import pytest

from yolact_runtime.errors import YolactError, counted
from yolact_runtime.files import read_json, read_text


def test_text_is_read_without_its_byte_order_mark(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfperson\n")
    assert read_text(path) == "person\n"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path) == [1]


def test_errors_name_the_file_and_its_kind(tmp_path):
    path = tmp_path / "names.txt"
    with pytest.raises(YolactError, match=f"class list {path} does not exist"):
        read_text(path, "class list")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(YolactError, match=f"class list {path} is not UTF-8 text"):
        read_text(path, "class list")
    with pytest.raises(YolactError, match=f"cannot read class list {tmp_path}"):
        read_text(tmp_path, "class list")


@pytest.mark.parametrize(("number", "text"), [(0, "0 entries"), (1, "1 entry"), (2, "2 entries")])
def test_a_number_comes_with_its_noun(number, text):
    assert counted(number, "entry", "entries") == text
