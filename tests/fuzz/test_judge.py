"""The judge sees what it is there for: commands that are wrong on purpose."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from judge import Judge

from yolact_runtime.errors import YolactError


@pytest.fixture(scope="module")
def strict() -> Judge:
    with Judge(seconds=2, memory=300_000_000) as server:
        yield server


def crash(argv: list[str]) -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def raises(argv: list[str]) -> int:
    raise ValueError("planted")


def hang(argv: list[str]) -> int:
    time.sleep(60)
    return 0


def thread_raises(argv: list[str]) -> int:
    import threading

    thread = threading.Thread(target=raises, args=([],))
    thread.start()
    thread.join()
    return 0


def blow_up(argv: list[str]) -> int:
    return len(bytes([1]) * 600_000_000) * 0


def brief_blow_up(argv: list[str]) -> int:
    import numpy as np

    np.ones(450_000_000, np.uint8)
    return 0


def leave_temporary(argv: list[str]) -> int:
    import tempfile

    tempfile.mkstemp()
    return 0


def leave_hidden(argv: list[str]) -> int:
    Path(".a.json.tmp").write_text("{")
    return 0


def torn(argv: list[str]) -> int:
    Path("a.json").write_text("{")
    return 0


def change_input(argv: list[str]) -> int:
    Path("../in/a.txt").write_text("changed")
    return 0


def delete_beside(argv: list[str]) -> int:
    Path("../../canary.txt").unlink()
    return 0


def write_beside(argv: list[str]) -> int:
    Path("../other").write_text("x")
    return 0


def leave_process(argv: list[str]) -> int:
    import subprocess

    subprocess.Popen(["sleep", "60"])
    return 0


def escape(argv: list[str]) -> int:
    print("ERROR: \x1b[31mred", file=sys.stderr)
    return 1


def half_escape(argv: list[str]) -> int:
    print("name \x9b31m")
    return 0


def stray(argv: list[str]) -> int:
    os.write(2, b"[ERROR:0@1] global loadsave.cpp\n")
    return 0


def strange_code(argv: list[str]) -> int:
    return 130


def silent(argv: list[str]) -> int:
    return 1


def error_and_success(argv: list[str]) -> int:
    print("ERROR: all is lost", file=sys.stderr)
    return 0


def right(argv: list[str]) -> int:
    print("1 image")
    return 0


def refuses(argv: list[str]) -> int:
    from yolact_runtime.commandline import Parser, run

    def work(args: object) -> int:
        raise YolactError("a.json: \x1b[31m is not a number\nsecond line")

    return run(work, Parser(prog="yolact-data"), argv)


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (crash, "signal SIGSEGV"),
        (raises, "traceback: ValueError: planted"),
        (thread_raises, "traceback: ValueError: planted"),
        (hang, "still running after"),
        (blow_up, "more than 286 MiB of memory"),
        (brief_blow_up, "more than 286 MiB of memory"),
        (leave_temporary, "left in the temporary folder"),
        (leave_hidden, "hidden file left: .a.json.tmp"),
        (torn, "output is no JSON: a.json"),
        (change_input, "inputs changed"),
        (delete_beside, "written elsewhere"),
        (write_beside, "written elsewhere: ['other']"),
        (leave_process, "left a process behind"),
        (escape, "control character '\\x1b' printed"),
        (half_escape, "control character '\\x9b' printed"),
        (stray, "stray line: [ERROR:0@1] global loadsave.cpp"),
        (strange_code, "exit code 130"),
        (silent, "failed without a word"),
        (error_and_success, "an error, and exit code 0"),
        (right, ""),
        (refuses, ""),
    ],
)
def test_the_judge_sees(strict: Judge, tmp_path: Path, command: object, fault: str) -> None:
    folder = tmp_path / "run"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a.txt").write_text("input")
    verdict = strict.run(folder, [f"test_judge:{command.__name__}"])
    assert any(text.startswith(fault) for text in verdict.faults) if fault else verdict.faults == []
