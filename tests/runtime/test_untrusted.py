"""Limits on what others wrote: JSON, YAML, files."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact_runtime import untrusted
from yolact_runtime.errors import UsageError, YolactError

try:
    import yaml
except ImportError:  # the base install
    yaml = None
with_yaml = pytest.mark.skipif(yaml is None, reason="no PyYAML")

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
TEXTS = st.recursive(
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc", min_size=1), inner),
    max_leaves=20,
)


@given(VALUES)
def test_json_gives_what_was_written(value):
    assert untrusted.parse_json(json.dumps(value)) == value
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert untrusted.parse_json(json.dumps(value, ensure_ascii=False).encode(encoding)) == value


@with_yaml
@given(TEXTS)
def test_yaml_gives_what_was_written(value):
    assert untrusted.parse_yaml(yaml.safe_dump(value)) == yaml.load(yaml.safe_dump(value), yaml.BaseLoader)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 65 + "1" + "]" * 65, "more levels than the 64 allowed"),
        ('{"a":' * 65 + "1" + "}" * 65, "more levels than the 64 allowed"),
        ("[" * 50_000, "more levels than the 64 allowed"),
        ("9" * 400, "a whole number has 400 digits"),
        ("[-" + "9" * 400 + "]", "a whole number has 400 digits"),
        ("9" * 5000, "4300"),
        (r'{"a": "b\ud800"}', r"'b\\ud800' has half a character"),
        (r'{"\udc00": 1}', "half a character"),
        ("{", "Expecting property name"),
        (b"\xff\xff", "decode"),
    ],
)
def test_json_beyond_a_limit_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        untrusted.parse_json(text)


def test_json_at_a_limit_is_read():
    assert untrusted.parse_json("[" * 64 + "1" + "]" * 64)
    assert untrusted.parse_json(r'"\ud83d\ude00"') == "\U0001f600"


def aliases(levels: int, width: int) -> str:
    lines = ["l0: &l0 x"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


@with_yaml
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (aliases(30, 2), "more values than the 100,000 allowed"),
        (aliases(9, 9), "more values than the 100,000 allowed"),
        ("a: &a [*a]", "more levels than the 64 allowed"),
        ("[" * 5000, "more levels than the 64 allowed"),
        ("a: [", "while parsing"),
        ("{[a]: b}", "unhashable"),
        ("*a", "undefined alias"),
        ("a\0", "special characters"),
        ("!!python/object/apply:os.system [id]\n--- 2", "single document"),
    ],
)
def test_yaml_beyond_a_limit_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        untrusted.parse_yaml(text)


@with_yaml
def test_yaml_with_a_few_aliases_is_read():
    assert untrusted.parse_yaml("a: &a [x, y]\nb: *a\nc: no") == {"a": ["x", "y"], "b": ["x", "y"], "c": "no"}
    assert untrusted.parse_yaml("") is None


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name, said in [("pipe", "is a pipe"), ("link", "is a device"), (".", "is a folder|Is a directory")]:
        with pytest.raises(YolactError, match=said):
            untrusted.read_bytes(tmp_path / name)
    with pytest.raises(YolactError, match=r"list .*missing does not exist"):
        untrusted.read_bytes(tmp_path / "missing", "list")
    with pytest.raises(YolactError, match="cannot read"):
        untrusted.read_bytes("a\0b")


def test_a_file_is_read_up_to_its_limit(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"12345")
    monkeypatch.setenv("YOLACT_MAX_TEXT_BYTES", "5")
    assert untrusted.read_bytes(tmp_path / "a") == b"12345"
    monkeypatch.setenv("YOLACT_MAX_TEXT_BYTES", "4")
    with pytest.raises(
        YolactError, match=r"more bytes than the 4 allowed .YOLACT_MAX_TEXT_BYTES sets another"
    ):
        untrusted.read_bytes(tmp_path / "a")


@pytest.mark.parametrize("value", ["0", "-5", "many", "1e9", "9" * 30, "٣"])
def test_an_invalid_limit(monkeypatch, value):
    monkeypatch.setenv("YOLACT_MAX_PIXELS", value)
    with pytest.raises(UsageError, match="YOLACT_MAX_PIXELS is"):
        untrusted.check_limits()
