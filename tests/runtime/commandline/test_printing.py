"""Lines and tables of data that looks like markup or would control a terminal."""

import io
import re
import sys

import pytest

from yolact_runtime.commandline import Table, print_line, setup_logging, track
from yolact_runtime.commandline.printing import plain, progress_bar

NASTY = {
    "[/] x": "[/] x",
    "[other]": "[other]",
    "[link=http://x]y[/link]": "[link=http://x]y[/link]",
    ":smile:": ":smile:",
    "\x1b]0;pwned\x1b[31mred": r"\x1b]0;pwned\x1b[31mred",
    "\x9b31m": r"\x9b31m",
    "a\r\nb": r"a\r\nb",
    "\u202ebidi": r"\u202ebidi",
    "\udcff": r"\udcff",
    "{x} %s": "{x} %s",
    "": "",
}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def stdout(monkeypatch, terminal: bool):
    """Replace standard output; returns a function for what was printed, without colours."""
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda: re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(("name", "shown"), NASTY.items())
def test_names_are_shown_as_they_are(monkeypatch, terminal, name, shown):
    output = stdout(monkeypatch, terminal)
    print_line(name, sys.stdout)
    print_line(name, sys.stdout, "red")
    assert output() == f"{shown}\n" * 2
    Table(name, ("class", name), [[name, name], [], [name, "1"]], note=name).show(["green", None, None])
    assert output().count(shown) >= 8
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", output())


@pytest.mark.parametrize("terminal", [False, True])
def test_a_name_of_ten_thousand_letters(monkeypatch, terminal):
    output = stdout(monkeypatch, terminal)
    Table("", ("class", "AP"), [["x" * 10_000, "1.00"]]).show()
    assert output().count("x") == 10_000 and "1.00" in output()


def test_what_the_encoding_lacks_is_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    Table("", ("class",), [["\u65e5"]]).show()
    print_line("\u65e5", stream)
    assert stream.buffer.getvalue().count(rb"\u65e5") == 2


def test_bars_and_log_lines_take_no_markup(monkeypatch, capsys):
    from yolact_runtime.commandline import error_console

    monkeypatch.setenv("FORCE_COLOR", "1")
    error_console.cache_clear()
    try:
        setup_logging()
        assert list(track([1], "[/] \x1b[31m")) == [1]
        with progress_bar("{task.fields[rate]}") as bar:
            bar.add_task("[/] x", rate="[/]")
    finally:
        error_console.cache_clear()
    assert r"[/] \x1b[31m" in capsys.readouterr().err
    assert plain("[/] \x07").plain == r"[/] \x07"
