"""Parser and entry point of all commands."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from yolact_runtime.commandline import Parser, error_console, run, terminated_as_interrupted, track
from yolact_runtime.errors import YolactError


@pytest.mark.parametrize(
    ("line", "debug", "quiet"),
    [
        ("look x", False, False),
        ("--quiet look x", False, True),
        ("look --quiet x", False, True),
        ("--debug look x --quiet", True, True),
    ],
)
def test_general_options_go_before_or_after_a_subcommand(line, debug, quiet):
    parser = Parser(prog="test")
    parser.add_subparsers(required=True).add_parser("look").add_argument("file")
    args = parser.parse_args(line.split())
    assert (args.debug, args.quiet) == (debug, quiet)


def test_underscores_in_options_of_a_subcommand():
    parser = Parser(prog="test")
    parser.add_subparsers(required=True).add_parser("look").add_argument("--top-k")
    assert parser.parse_args(["look", "--top_k=a_b"]).top_k == "a_b"


def test_the_version(capsys):
    assert run(lambda args: None, Parser(prog="test"), ["--version"]) == 0
    assert capsys.readouterr().out.startswith("test ")


def test_only_the_command_itself_prints_completions(capsys):
    parser = Parser(prog="test")
    parser.add_subparsers(required=True).add_parser("look")
    assert run(lambda args: None, parser, ["look", "--print-completion", "bash"]) == 2
    assert "unknown option --print-completion" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes as elsewhere")
def test_help_for_a_reader_that_goes_away():
    code = "import sys; from yolact_runtime.cli import main; sys.exit(main(['--print-completion', 'zsh']))"
    command = f'{sys.executable} -c "{code}" | head -c 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr


TERMINAL = """
import logging, time
from yolact_runtime.commandline import setup_logging, track
setup_logging()
for step in track(range(4), "working"):
    logging.getLogger("yolact").warning("line %d", step)
    time.sleep(0.15)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_log_lines_go_above_the_progress_bar(tmp_path):
    import pty

    ours, theirs = pty.openpty()
    done = subprocess.Popen([sys.executable, "-c", TERMINAL], stderr=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    written = b""
    try:
        while block := os.read(ours, 4096):
            written += block
    except OSError:  # closed by the other side
        pass
    assert done.wait() == 0 and done.stdout is not None and done.stdout.read() == b""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-JL-Z]", "", written.decode())
    # What a terminal keeps of each line: a bar is erased before a log line is written in its place.
    kept = [re.split(r"\r(?:\x1b\[2K)?|\x1b\[2K", line.rstrip("\r"))[-1].strip() for line in text.split("\n")]
    assert [line for line in kept if "line" in line] == [f"WARNING  line {step}" for step in range(4)]
    assert re.search(r"working .*\d/4 +0:00:0\d elapsed [-\d:]+ left", text)


def test_no_bar_without_a_terminal(capsys):
    error_console.cache_clear()  # another test may have made it for a terminal
    assert list(track(iter("ab"), "working")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 9 TiB"), "not enough memory (Unable to allocate 9 TiB); free some"),
        (RuntimeError("std::bad_alloc"), "not enough memory (std::bad_alloc); free some"),
        (RecursionError("maximum recursion depth exceeded"), "a file is nested too deeply to be read"),
        (PermissionError(13, "Permission denied", "secret\n"), r"secret\n: Permission denied"),
    ],
)
def test_errors_of_the_machine_are_one_line(capsys, error, message):
    def command(args):
        raise error

    assert run(command, Parser(prog="test"), []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ERROR: {message}")
    with pytest.raises(type(error)):
        run(command, Parser(prog="test"), ["--debug"])


def test_errors_of_the_program_are_not_hidden():
    def command(args):
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        run(command, Parser(prog="test"), [])


SCRIPT = """if True:
    import sys
    from yolact_runtime.commandline import Parser, Table, print_line, run
    def command(args):
        if args.what == "table":
            Table("", ("a",), [["b"]]).show()
        elif args.what == "line":
            print_line("text", sys.stdout)
        else:
            print("text")
    parser = Parser(prog="test")
    parser.add_argument("what")
    sys.exit(run(command, parser, None))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no /dev/full")
@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("what", ["table", "line", "print", "--help", "--version", "--print-completion=bash"])
def test_a_standard_output_that_takes_nothing(what, buffered):
    process = [sys.executable, "-c", SCRIPT, what]
    options = {"stderr": subprocess.PIPE, "text": True, "env": os.environ | {"PYTHONUNBUFFERED": buffered}}
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(process, stdout=full, check=False, **options)
    assert done.returncode == 1
    assert re.fullmatch(r"ERROR: (cannot write standard output: )?No space left on device\n", done.stderr)
    reader, output = os.pipe()
    os.close(reader)
    done = subprocess.run(process, stdout=output, check=False, **options)
    os.close(output)
    assert done.returncode == 1
    assert done.stderr == "ERROR: standard output was closed by its reader; stopped\n"
    if what != "print":  # Python prints nowhere then
        closed = ["sh", "-c", 'exec "$@" >&-', "sh", *process]
        done = subprocess.run(closed, check=False, **options)
        assert done.returncode == 1
        assert done.stderr == "ERROR: cannot write standard output: it is closed\n"


@pytest.mark.parametrize("text", ["[/]", "\x1b[31m", "\u202e", "a\nb", "%s", "\udcff"])
def test_wrong_values_are_echoed_as_text(capsys, text):
    parser = Parser(prog="test")
    parser.add_argument("--number", type=int)
    for words in (["--number", text], [text], ["--number", "1", f"--{text}"]):
        assert run(lambda args: 0, parser, words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("test: error: ") and not re.search("[\x00-\x1f\u202e\udcff]", line)


def test_a_signal_during_an_import_waits_for_its_end(tmp_path, monkeypatch):
    done = tmp_path / "done"
    (tmp_path / "slow_to_import.py").write_text(
        "import pathlib, signal, time\n"
        "signal.raise_signal(signal.SIGTERM)\n"
        "time.sleep(0.2)\n"
        f"pathlib.Path({str(done)!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():
        importlib.import_module("slow_to_import")
        assert done.exists()
        time.sleep(5)


def test_what_a_library_makes_of_an_interruption_is_one(tmp_path):
    with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise TypeError("no such argument") from None


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal of Unix")
def test_nohup_keeps_a_command_running():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminated_as_interrupted():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_long_message_keeps_its_ends(capsys):
    def work(args):
        raise YolactError("key " + 9000 * "x" + " is none; use another")

    assert run(work, Parser(prog="yolact-data"), []) == 1
    line = capsys.readouterr().err
    assert len(line) < 2100
    assert line.startswith("ERROR: key xxx")
    assert line.endswith("xxx is none; use another\n")


ENDING = """
import atexit, sys, tempfile, threading, time
from yolact_runtime.commandline import end_process

class Slow:
    def __del__(self):
        print("taken apart")

kept = Slow()
atexit.register(print, "registered", flush=True)
if sys.argv[1] == "thread":
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread done"))).start()
sys.stdout.write("written\\n")
end_process(3)
"""


@pytest.mark.parametrize(
    ("kind", "printed"),
    [("alone", "written\nregistered\n"), ("thread", "written\nthread done\nregistered\ntaken apart\n")],
)
def test_a_process_ends_without_taking_apart_what_it_has(kind: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING, kind], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, printed, "")
