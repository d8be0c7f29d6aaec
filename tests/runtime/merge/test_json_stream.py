"""Values of JSON files read one by one, compared with the json module."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact_runtime import YolactError
from yolact_runtime.merge import json_stream
from yolact_runtime.merge.json_stream import JsonStream

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text('aé"\\ \n'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(VALUES, max_size=6),
    block=st.sampled_from([1, 7, 1000]),
    indent=st.sampled_from([None, 2]),
)
def test_items(tmp_path_factory, values, block, indent):
    path = tmp_path_factory.getbasetemp() / "v.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=block == 7), encoding="utf-8")
    before, json_stream._BLOCK = json_stream._BLOCK, block
    try:
        with JsonStream(path) as stream:
            assert list(stream.items()) == values
            stream.end()
    finally:
        json_stream._BLOCK = before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' where [ should be"),
        ("[1 2]", "'2' where , or ] should be"),
        ("[1, ]", "Expecting value"),
        ("[1", "'' where , or ] should be"),
        ("[1] 2", "more data after its end"),
        ("[" * 100_000, "levels"),
        ('["\\ud800"]', "half a character"),
        ("[1" + "0" * 400 + "]", "digits, more than floats hold"),
        ("[\xff]", "not UTF-8"),
    ],
)
def test_what_is_not_such_json(tmp_path, text, reason):
    path = tmp_path / "v.json"
    path.write_bytes(text.encode("latin-1"))
    with (
        pytest.raises(YolactError, match="is damaged, or was not written by") as error,
        JsonStream(path) as stream,
    ):
        list(stream.items())
        stream.end()
    assert reason in str(error.value)


def test_a_value_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLACT_MAX_TEXT_BYTES", "200000")
    path = tmp_path / "v.json"
    path.write_text(json.dumps(["a" * 1_000_000]))
    with (
        pytest.raises(YolactError, match="more characters than the 200,000 allowed"),
        JsonStream(path) as stream,
    ):
        list(stream.items())
