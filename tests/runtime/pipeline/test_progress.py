"""The bar on a terminal, and silence elsewhere."""

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
