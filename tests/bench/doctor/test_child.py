"""Child processes that crash, hang, or return nothing."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest

from yolact_bench.doctor.child import call

CODE = """
import os, signal, subprocess, sys, time
def good(*words, report): print("noise"); return list(words)
def twice(report): report(1); return 2
def raises(report): raise ValueError("bad news\\nmore")
def dies(report): os.kill(os.getpid(), signal.SIGSEGV)
def killed(report): report({"begun": True}); os.kill(os.getpid(), signal.SIGKILL)
def quits(report): os._exit(3)
def nothing(report): os._exit(0)
def hangs(report):
    report("begun")
    one = subprocess.Popen(["sleep", "60"])
    file = os.path.join(os.environ["HANGING"], str(os.getpid()))
    with open(file + "+", "w") as opened: opened.write(str(one.pid))
    os.rename(file + "+", file)
    time.sleep(60)
def sleeps(report): time.sleep(60)
def talks(report): os.write(2, b"x" * 5_000_000); return "done"
"""


@pytest.fixture(autouse=True)
def functions(modules) -> None:
    modules("doctor_functions", CODE)


def run(function: str, *words: str, seconds: float = 120.0):
    return call(f"doctor_functions:{function}", *words, seconds=seconds)


def test_a_result_comes_back_and_what_is_printed_does_not_disturb_it() -> None:
    ended = run("good", "a", "ü\n")
    assert (ended.value, ended.problem, ended.output) == (["a", "ü\n"], "", "")
    assert run("twice").value == 2
    assert run("talks").value == "done"


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("raises", "it ended with exit code 1: ValueError: bad news"),
        ("dies", f"it crashed with signal {signal.SIGSEGV.value}, SIGSEGV"),
        ("killed", "the system killed it (SIGKILL), most likely as memory ran out"),
        ("quits", "it ended with exit code 3"),
        ("nothing", "it ended without a result"),
    ],
)
def test_an_end_without_a_result_is_named(function: str, problem: str) -> None:
    ended = run(function)
    assert ended.problem.startswith(problem.partition(": ")[0])
    assert ended.value == ({"begun": True} if function == "killed" else None)
    if function == "dies":
        assert "Fatal Python error: Segmentation fault" in ended.output


def test_one_that_hangs_is_stopped_with_its_children(hanging: Path) -> None:
    ended = run("hangs", seconds=0.9)
    assert ended.problem == "it did not end within 1 s and was stopped" and ended.value == "begun"
    (file,) = hanging.iterdir()
    number = int(file.read_text())
    for _ in range(1000):  # a killed process takes a moment to end
        if ended_already(number):
            return
        time.sleep(0.01)
    pytest.fail("its child runs on")


def ended_already(number: int) -> bool:
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_child_has_its_seconds_and_no_more() -> None:
    ended = run("sleeps", seconds=0.1)
    assert ended.late and ended.problem == "it did not end within 0 s and was stopped"


def test_temporary_files_go_to_the_folder_of_the_run(modules, tmp_path: Path) -> None:
    modules("doctor_where", "import tempfile\ndef where(report): return tempfile.gettempdir()\n")
    (tmp_path / "run").mkdir()
    ended = call("doctor_where:where", seconds=120, folder=tmp_path / "run")
    assert ended.value == str(tmp_path / "run")
