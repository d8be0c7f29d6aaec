"""The report: its schema, hostile texts in it, and what must not be in it."""

from __future__ import annotations

import argparse
import html.parser
import json
import time
from pathlib import Path

import jsonschema
import pytest

import yolact_bench.doctor
from yolact_bench.doctor.facts import Gpu, Library
from yolact_bench.doctor.report import NAMES, check_folder, make_report, page, write_report
from yolact_bench.doctor.run import Checked
from yolact_bench.doctor.stage import FAILED, OK, SKIPPED, Outcome, Stage
from yolact_bench.measure.machine import machine
from yolact_runtime.errors import UsageError

SCHEMA = json.loads((Path(yolact_bench.doctor.__file__).parent / "schema.json").read_text(encoding="utf-8"))
HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202e\ud800 \n</td>"


class Page(html.parser.HTMLParser):
    """The tags and texts of a page; fails on what it must not have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "img", "iframe", "link", "a", "object")
        assert not any(name in ("src", "href", "style") or name.startswith("on") for name, _ in attrs)
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def report(only: tuple[str, ...] = (), text: str = HOSTILE, library: str = FAILED) -> dict:
    """A report in which every text that comes from elsewhere is hostile."""

    def stage(name: str) -> Stage:
        return Stage(name, "test", lambda context: Outcome(OK), text="what it checks")

    checked = [
        Checked(stage("one"), Outcome(OK, {text: text, "ms": 1.25, "odd": float("nan")}), 1.0),
        Checked(stage("two"), Outcome(SKIPPED, {}, text, text)),
    ]
    described = {**machine(), "cpu": text, "system": text}
    device = {"name": text, "capability": "8.6", "multiprocessors": 48, "memory_gib": 16.0}
    gpu = Gpu(OK, "570.1", "12.8", (device,))
    libraries = {"numpy": Library("numpy", "numpy", library, text, text, text)}
    args = argparse.Namespace(config="yolact_tiny", quick=True, only=list(only))
    return make_report(args, time.monotonic(), described, gpu, libraries, checked)


def test_the_report_fits_its_schema_and_json(tmp_path: Path) -> None:
    paths = write_report(report(), tmp_path)
    content = json.loads(paths[0].read_text(encoding="utf-8"), parse_constant=pytest.fail)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(content, SCHEMA)
    assert content["summary"] == {"ok": 1, "failed": 0, "skipped": 1, "broken_libraries": ["numpy"]}
    # Control characters are escapes, so that the report can be shown in a terminal.
    assert "\x1b" not in paths[0].read_text(encoding="utf-8") and "\\u001b" not in paths[0].read_text()


def test_hostile_texts_are_texts_in_the_page() -> None:
    text = page(report())
    parsed = Page(text)
    assert any("<script>alert(1)</script>" in one for one in parsed.texts)
    assert "\x1b" not in text and "\u202e" not in text
    assert parsed.tags.count("table") == 3
    text.encode("utf-8")


@pytest.mark.parametrize(
    ("only", "library", "code"), [((), FAILED, 1), (("one",), FAILED, 0), ((), SKIPPED, 0), ((), OK, 0)]
)
def test_the_exit_code(only: tuple[str, ...], library: str, code: int) -> None:
    assert report(only, library=library)["exit_code"] == code


def test_no_secrets_and_no_folders_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/ann.other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-key")
    monkeypatch.setenv("OMP_NUM_THREADS", "s3cr3t-key")
    found = json.dumps(report(text="/home/ann.other/work/x.so and /home/bob/y and C:\\Users\\carl\\z"))
    assert "ann.other" not in found and "bob" not in found and "carl" not in found and "s3cr3t" not in found
    assert "~/work/x.so" in found


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "Looking in indexes: https://ann:pypi-AgEI@pypi.example.org/simple",
            "Looking in indexes: https://...@pypi.example.org/simple",
        ),
        ("https://pypi-AgEI@pypi.example.org/simple failed", "https://...@pypi.example.org/simple failed"),
        ("https://h.org/x?token=pypi-AgEI&page=2", "https://h.org/x?token=...&page=2"),
        ("Authorization: Bearer pypi-AgEI.x_y", "Authorization: Bearer ..."),
        ("HF_TOKEN='pypi-AgEI' is wrong", "HF_TOKEN='...' is wrong"),
        ("key my-pypi-AgEI-value was refused", "key ... was refused"),
        ("mail ann@example.org", "mail ..."),
        ("a token was not found; keys 1, 2", "a token was not found; keys 1, 2"),
    ],
)
def test_passwords_and_tokens_are_left_out(text: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "my-pypi-AgEI-value")
    found = report(text=text)
    assert found["machine"]["system"] == kept
    assert "AgEI" not in json.dumps(found) + page(found)
    assert "read the page before you publish it" in page(found)


def test_no_file_of_another_is_written_over(tmp_path: Path) -> None:
    write_report(report(), tmp_path)
    check_folder(tmp_path)  # its own reports
    for name in NAMES:
        (tmp_path / name).write_text('{"schema": "mine"}')
        with pytest.raises(UsageError, match=rf"{name} is not a report of yolact-doctor; name"):
            check_folder(tmp_path)
        (tmp_path / name).unlink()


def test_names_of_the_user_and_the_host_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "gpu.example.org")
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    monkeypatch.setattr("sys.prefix", "/opt/py")
    monkeypatch.setattr("sys.base_prefix", "/opt/py")
    checkout = Path(yolact_bench.doctor.__file__).parents[3]
    text = f"/data/ann/x /data/anna gpu.example.org: gpu gpu-speed /opt/py/a /opt/py3/a {checkout}/b"
    found = report(("gpu",), text=text)
    jsonschema.validate(found, SCHEMA)
    expected = "/data/.../x /data/anna HOST: HOST gpu-speed PYTHON/a /opt/py3/a"
    assert found["machine"]["system"].startswith(expected)
    assert str(checkout) not in json.dumps(found)
    # A host that is called like a group takes nothing else from the report.
    assert found["options"]["only"] == ["gpu"] and found["gpu"]["state"] == OK
