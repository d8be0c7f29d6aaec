"""The cache folder: what is kept comes back, and what somebody else may have written is never used."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolact_runtime import cache as module
from yolact_runtime.cache import Cache, cache_folder
from yolact_runtime.errors import YolactError

INPUTS = ["graph", 8, {"a": 1.5}]
VALUE = {"x": [0.1, 2], "y": "text"}
CACHE = Cache("kernels", "compiled kernels", "compiling again")

posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners and modes")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for each test, which is missing at first."""
    monkeypatch.setattr(module, "_given", set())
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path / "outer" / "cache"))
    return tmp_path / "outer" / "cache"


def read(inputs: Any = INPUTS, convert: Callable[[Any], Any] = lambda value: value) -> Any:
    return CACHE.read("name", inputs, convert)


def test_what_is_written_is_read(folder: Path) -> None:
    assert read() is None
    CACHE.write("name", INPUTS, VALUE)
    assert read() == VALUE
    assert read([*INPUTS, 1]) is None
    (entry,) = (folder / "kernels").iterdir()
    assert entry == CACHE.path("name", INPUTS)


@posix
def test_nobody_else_may_enter(folder: Path) -> None:
    previous = os.umask(0)
    try:
        CACHE.write("name", INPUTS, VALUE)
    finally:
        os.umask(previous)
    entry = CACHE.path("name", INPUTS)
    modes = [path.stat().st_mode & 0o777 for path in (folder, folder / "kernels", entry)]
    assert modes == [0o700, 0o700, 0o600]
    assert read() == VALUE


def other_inputs(entry: dict) -> dict:
    """The entry of other inputs under this name."""
    return {"sha256": module.digest("kernels", ["other"], entry["value"]), "value": entry["value"]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: "",
        lambda entry: json.dumps(entry)[:-9],
        lambda entry: "[" * 100_000,
        lambda entry: json.dumps(entry["value"]),
        lambda entry: json.dumps(entry | {"value": {"x": [0.1, 3], "y": "text"}}),
        lambda entry: json.dumps(entry | {"sha256": None}),
        lambda entry: json.dumps(other_inputs(entry)),
    ],
)
def test_damaged_entries(damage: Callable[[dict], str], caplog: pytest.LogCaptureFixture) -> None:
    CACHE.write("name", INPUTS, VALUE)
    path = CACHE.path("name", INPUTS)
    path.write_text(damage(json.loads(path.read_text())))
    assert read() is None
    (line,) = caplog.messages
    assert str(path) in line and "damaged" in line and line.endswith("; compiling again")
    CACHE.write("name", INPUTS, VALUE)
    assert read() == VALUE


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, AttributeError, OverflowError])
def test_values_that_cannot_be_right(error: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    def refuse(value: Any) -> None:
        raise error("5 to -3")

    CACHE.write("name", INPUTS, VALUE)
    assert read(convert=refuse) is None
    assert "damaged" in caplog.text and "5 to -3" in caplog.text


@posix
@pytest.mark.parametrize(
    ("which", "mode", "remedy"),
    [
        ("cache", 0o777, "chmod 700"),
        ("cache", 0o720, "chmod 700"),
        ("cache", 0o1777, "set YOLACT_CACHE"),
        ("kernels", 0o702, "chmod 700"),
        ("entry", 0o620, "chmod 600"),
        ("entry", 0o602, "chmod 600"),
    ],
)
def test_what_others_may_write_is_not_used(
    which: str, mode: int, remedy: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    CACHE.write("name", INPUTS, VALUE)
    path = {"cache": folder, "kernels": folder / "kernels", "entry": CACHE.path("name", INPUTS)}[which]
    path.chmod(mode)
    assert read() is None
    (line,) = caplog.messages
    assert f"others may write to {path}" in line and remedy in line
    CACHE.write("name", INPUTS, {"z": 1})
    assert read() == ({"z": 1} if which == "entry" else None)  # a new file took the place of the entry
    assert len(caplog.messages) == 1
    if which == "cache":
        assert not (folder / "timing").exists()
        Cache("timing", "the timing cache", "").write("name", INPUTS, VALUE)
        assert not (folder / "timing").exists()


@posix
def test_what_belongs_to_somebody_else_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    CACHE.write("name", INPUTS, VALUE)
    if os.geteuid() == 0:
        os.chown(folder, 4321, -1)
    owner = folder.stat().st_uid
    for reader in (0, owner + 1):  # root as well: it would run what the user wrote
        monkeypatch.setattr(os, "geteuid", lambda reader=reader: reader)
        assert read() is None
        assert f"{folder} belongs to another user (number {owner}); set YOLACT_CACHE" in caplog.text


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="needs files of root")
def test_what_belongs_to_root_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    CACHE.write("name", INPUTS, VALUE)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)  # such as in an image that was built by root
    assert read() == VALUE


@posix
@pytest.mark.parametrize("which", ["kernels", "entry"])
def test_links_in_the_folder_are_not_followed(
    which: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    CACHE.write("name", INPUTS, VALUE)
    path = folder / "kernels" if which == "kernels" else CACHE.path("name", INPUTS)
    elsewhere = path.rename(tmp_path / "elsewhere")
    path.symlink_to(elsewhere)
    assert read() is None
    CACHE.write("name", INPUTS, {"z": 1})
    assert f"{path} is a link; delete it" in caplog.text
    file = elsewhere if which == "entry" else elsewhere / CACHE.path("name", INPUTS).name
    assert json.loads(file.read_text())["value"] == VALUE


@posix
def test_the_folder_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "disk")
    CACHE.write("name", INPUTS, VALUE)
    assert read() == VALUE and (tmp_path / "disk" / "kernels").is_dir()


@posix
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_entries_that_are_no_files(make: Callable[[Path], None], caplog: pytest.LogCaptureFixture) -> None:
    CACHE.write("name", INPUTS, VALUE)
    path = CACHE.path("name", INPUTS)
    path.unlink()
    make(path)
    assert read() is None
    CACHE.write("name", INPUTS, VALUE)
    assert path.exists() and not path.is_file()
    assert f"{path} is not a file; delete it" in caplog.text


def test_a_file_in_place_of_the_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.parent.mkdir()
    folder.write_text("mine")
    assert read() is None
    CACHE.write("name", INPUTS, VALUE)
    assert folder.read_text() == "mine"
    (line,) = caplog.messages
    assert "the cache is not used" in line and str(folder) in line


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    CACHE.write("name", INPUTS, VALUE)
    (folder / "kernels").chmod(0o500)
    CACHE.write("other", INPUTS, VALUE)
    CACHE.write("other", INPUTS, VALUE)
    assert read() == VALUE
    (line,) = caplog.messages  # once
    assert "the cache is not used" in line
    (folder / "kernels").chmod(0o000)
    assert read() is None
    (folder / "kernels").chmod(0o700)


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    CACHE.write("name", INPUTS, VALUE)
    assert "the cache is not used" in caplog.text and "No space left" in caplog.text


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for value in ("~nobody-has-this-name/x", ""):
        monkeypatch.setenv("YOLACT_CACHE", value)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
        with pytest.raises(YolactError, match="set YOLACT_CACHE"):
            cache_folder()
        assert read() is None
        CACHE.write("name", INPUTS, VALUE)
    assert caplog.text.count("the cache folder is not known") == 2


def test_many_writers_leave_one_whole_entry(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    found: list[Any] = []

    def work() -> None:
        for _ in range(10):
            CACHE.write("name", INPUTS, VALUE)
            found.append(read())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [VALUE] * 40 and caplog.messages == []
    assert [path.name for path in (folder / "kernels").iterdir()] == [CACHE.path("name", INPUTS).name]


def test_warnings_may_go_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []
    mine = Cache("timing", "the timing cache", "starting a new one", notes.append)
    mine.write("name", INPUTS, VALUE)
    mine.path("name", INPUTS).write_text("{")
    with caplog.at_level(logging.DEBUG):
        assert mine.read("name", INPUTS, str) is None
    assert len(notes) == 1 and caplog.messages == []
