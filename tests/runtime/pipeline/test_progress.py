"""The bar on a terminal, silence elsewhere, and the file that shows that a run goes on."""

import os

import pytest

from yolact_runtime.commandline import error_console
from yolact_runtime.pipeline import RunStats
from yolact_runtime.pipeline.progress import show_progress


@pytest.mark.parametrize("total", [40, None])
def test_a_terminal_sees_the_rate_and_what_was_dropped(monkeypatch, capsys, total):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    error_console.cache_clear()  # it has read the variables
    with show_progress("at work", total) as show:
        show(RunStats(read=30, done=20, failed=1, dropped=9, seconds=4.0))
    seen = capsys.readouterr().err
    assert "at work" in seen and "5.0 images/s, 9 dropped" in seen
    assert ("30/40" if total else "30/?") in seen


@pytest.mark.parametrize("quiet", [False, True])
def test_nothing_is_shown_elsewhere(monkeypatch, capsys, quiet):
    if quiet:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with show_progress("at work", 40, quiet) as show:
        show(RunStats(done=20, seconds=4.0))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_the_heartbeat_is_set_when_frames_are_finished(monkeypatch, tmp_path, terminal):
    file = tmp_path / "beat"
    monkeypatch.setenv("YOLACT_HEARTBEAT", str(file))
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")

    def beats(**counts: int) -> bool:
        """Whether the file has a new time after a report of these counts."""
        if file.exists():
            os.utime(file, (1, 1))
        show(RunStats(**counts))
        return file.stat().st_mtime > 1

    with show_progress("at work", 40) as show:
        assert not file.exists()
        assert beats()
        assert not beats(read=5)
        assert beats(read=5, done=1)
        assert beats(read=5, done=1, failed=1)
        assert not beats(read=9, done=1, failed=1, dropped=4)


def test_a_heartbeat_that_cannot_be_written_is_one_warning(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("YOLACT_HEARTBEAT", str(tmp_path / "missing" / "beat"))
    with show_progress("at work", 40) as show:
        show(RunStats(done=1))
        show(RunStats(done=2))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "missing/beat: No such file or directory" in caplog.text
