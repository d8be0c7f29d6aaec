"""Libraries that are missing, broken, or crash when they are imported; drivers that are none."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from pathlib import Path

import pytest

from yolact_bench.doctor import facts
from yolact_bench.doctor.child import Ended
from yolact_bench.doctor.facts import Gpu, Library, probe_gpu, probe_libraries
from yolact_bench.doctor.stage import FAILED, OK, SKIPPED
from yolact_bench.measure.machine import machine
from yolact_runtime.packages import PACKAGES

NONE = Gpu(SKIPPED, reason="no NVIDIA GPU")
LIBRARY = "libcuda.so.1"
# A driver with one GPU, or what the macro makes of it.
DRIVER = """
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { CRASH; return CODE; }
int cuDriverGetVersion(int *v) { *v = 12080; return 0; }
int cuDeviceGetCount(int *n) { *n = COUNT; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Fake <b>GPU</b>", n); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : a == 76 ? 6 : 48; return 0; }
int cuDeviceTotalMem_v2(size_t *v, int d) { *v = (size_t)16 << 30; return 0; }
"""


def test_a_library_that_raises_is_named_with_the_command_that_mends_it(broken) -> None:
    broken("onnxruntime", "raise OSError('libX.so.1: cannot open shared object file')")
    found = probe_libraries(NONE, ("onnxruntime",))["onnxruntime"]
    assert found.state == FAILED and "libX.so.1: cannot open" in found.reason
    assert found.remedy == f"pip install --force-reinstall {found.distribution}"
    assert found.distribution in ("onnxruntime", "onnxruntime-gpu")


@pytest.mark.parametrize(
    ("problem", "remedy"),
    [
        ("it crashed with signal 7, SIGBUS", "pip install --force-reinstall --no-deps {}=={}"),
        ("libX.so: file too short", "pip install --force-reinstall --no-deps {}=={}"),
        ("libgomp.so.1: cannot open shared object file", "apt install libgomp1 (Debian, Ubuntu) or dnf"),
        ("it crashed with signal 4, SIGILL", "this CPU lacks an instruction that it uses: install another"),
        ("numpy.dtype size changed", "pip install --upgrade --no-cache-dir {}"),
        ("cannot import name y", "pip install --force-reinstall {}"),
    ],
)
def test_what_mends_a_library_depends_on_the_reason(problem: str, remedy: str) -> None:
    version = importlib.metadata.version("pycocotools")
    assert facts._reinstall("pycocotools", problem).startswith(remedy.format("pycocotools", version))


def test_a_crash_in_numpy_is_not_the_fault_of_what_imports_it(broken) -> None:
    broken("numpy", "import os, signal; os.kill(os.getpid(), signal.SIGBUS)")
    found = probe_libraries(NONE, ("numpy", "cv2"))
    assert (found["numpy"].state, found["cv2"].state) == (FAILED, FAILED)
    assert found["cv2"].remedy == found["numpy"].remedy and "numpy, which it needs" in found["cv2"].reason


def test_the_reason_of_an_exception_without_words_is_what_was_printed(broken) -> None:
    broken("shtab", "import os; os.write(2, b'compiled using NumPy 1.x\\n\\nmore'); raise ImportError")
    found = probe_libraries(NONE, ("shtab",))["shtab"]
    assert found.reason == "installed, but does not load: ImportError: compiled using NumPy 1.x"
    assert found.remedy == "pip install --upgrade --no-cache-dir shtab"


@pytest.mark.slow
def test_each_library_that_ends_the_process_is_found_and_the_others_are_still_imported(
    broken, hanging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken("openvino", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    code = "import os, time; open(os.environ['HANGING'] + f'/{os.getpid()}', 'x'); time.sleep(60)"
    broken("av", code)
    broken("pyarrow", "import os; os._exit(0)")
    monkeypatch.setattr(facts, "_IMPORT_SECONDS", 2.0)
    found = probe_libraries(NONE, ("openvino", "numpy", "av", "rich", "pyarrow"))
    assert {name: found[name].state for name in ("openvino", "numpy", "av", "rich", "pyarrow")} == {
        "openvino": FAILED, "numpy": OK, "av": FAILED, "rich": OK, "pyarrow": FAILED
    }  # fmt: skip
    assert "SIGILL" in found["openvino"].reason and "2 s" in found["av"].reason
    assert found["cv2"] == Library(
        "cv2", found["cv2"].distribution, OK, found["cv2"].version, facts.NOT_TRIED
    )
    assert found["openvino"].remedy.endswith("install another version of openvino")


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "installed", lambda name: False)
    found = probe_libraries(NONE)
    assert found.keys() == PACKAGES.keys()
    assert {one.state for one in found.values()} == {SKIPPED}
    assert found["torch"].remedy == 'pip install "yolact[train]"'
    assert found["numpy"].remedy == "pip install yolact"


@pytest.mark.slow
def test_a_gpu_library_without_a_driver_is_no_failure(broken) -> None:
    broken("pycuda", "")
    broken("tensorrt", "raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    found = probe_libraries(NONE, ("pycuda", "tensorrt"))
    assert (found["pycuda"].state, found["tensorrt"].state) == (SKIPPED, SKIPPED)
    assert found["tensorrt"].reason == "no NVIDIA GPU"
    found = probe_libraries(Gpu(OK), ("pycuda", "tensorrt"))
    assert (found["pycuda"].state, found["tensorrt"].state) == (FAILED, FAILED)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`driver(macros)` compiles a driver library that child processes load."""
    folder = tmp_path / "driver"
    folder.mkdir()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))

    def build(crash: str = "", code: int = 0, count: int = 1) -> None:
        compiler = shutil.which("gcc") or pytest.skip("no gcc to compile a driver with")
        source = folder / "driver.c"
        source.write_text(DRIVER)
        macros = [f"-DCRASH={crash}", f"-DCODE={code}", f"-DCOUNT={count}"]
        command = [compiler, "-shared", "-fPIC", "-w", *macros, str(source), "-o", str(folder / LIBRARY)]
        subprocess.run(command, check=True)

    build.folder = folder  # type: ignore[attr-defined]
    return build


def test_a_driver_with_a_gpu(driver) -> None:
    driver()
    found = probe_gpu()
    assert (found.state, found.cuda) == (OK, "12.8")
    assert found.devices == (
        {"name": "Fake <b>GPU</b>", "capability": "8.6", "multiprocessors": 48, "memory_gib": 16.0},
    )


@pytest.mark.parametrize(
    ("options", "state", "reason"),
    [
        ({"code": 100}, SKIPPED, "the NVIDIA driver finds no GPU"),
        ({"count": 0}, SKIPPED, "the NVIDIA driver finds no GPU"),
        ({"code": 999}, FAILED, "failed in cuInit: error 999"),
        ({"crash": "*(volatile int *)0 = 1"}, FAILED, "SIGSEGV"),
    ],
    ids=str,
)
def test_a_driver_that_does_not_work(driver, options: dict, state: str, reason: str) -> None:
    driver(**options)
    found = probe_gpu()
    assert found.state == state and reason in found.reason
    assert found.remedy


def test_a_driver_that_hangs(driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(crash="for (;;)")
    monkeypatch.setattr(facts, "_GPU_SECONDS", 1.0)
    found = probe_gpu()
    assert found.state == FAILED and "did not end within 1 s" in found.reason


def test_a_file_that_is_no_driver(driver) -> None:
    (driver.folder / LIBRARY).write_text("no library")
    found = probe_gpu()
    assert found.state == FAILED and "does not load" in found.reason


def test_a_library_that_is_another_one(driver) -> None:
    compiler = shutil.which("gcc") or pytest.skip("no gcc to compile a driver with")
    (driver.folder / "other.c").write_text("int other(void) { return 0; }")
    words = ["-shared", "-fPIC", str(driver.folder / "other.c"), "-o", str(driver.folder / LIBRARY)]
    subprocess.run([compiler, *words], check=True)
    found = probe_gpu()
    assert found.state == FAILED and "is not NVIDIA's driver library" in found.reason


def test_the_machine_is_described_without_names() -> None:
    found = machine()
    assert found["cores"] >= 1 and found["cpu"] and found["memory_gib"] > 0
    assert not any(name in str(found) for name in ("PATH", str(Path.home())))


@pytest.mark.parametrize(
    "error", ["dlopen(libcuda.so.1): tried: 'libcuda.so.1' (no such file)", "cannot open: No such file"]
)
def test_no_driver_library_is_no_failure(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_driver", lambda: "")
    monkeypatch.setattr(facts, "_has_card", lambda: False)
    monkeypatch.setattr(facts.Path, "exists", lambda path: False)
    assert facts._no_library("libcuda.so.1", error) == {"reason": "no NVIDIA GPU", "remedy": ""}


def test_macos_has_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts.sys, "platform", "darwin")
    monkeypatch.setattr(facts.ctypes, "CDLL", pytest.fail)
    found = facts.gpu_here()
    assert (found["state"], found["reason"]) == (SKIPPED, "no NVIDIA GPU")


def test_a_slow_disk_is_not_a_broken_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not done when the time is up is tried again, alone with its time."""
    asked = []

    def call(function: str, *names: str, seconds: float) -> Ended:
        asked.append(names)
        done = {"numpy": ""} if names[0] == "numpy" else {"cv2": ""} if len(asked) == 2 else {}
        return Ended(done, "it did not end within 60 s and was stopped", late=True)

    monkeypatch.setattr(facts, "call", call)
    found = dict(facts._imported(["numpy", "cv2", "rich"], NONE))
    assert [one.state for one in found.values()] == [OK, OK, FAILED]
    assert asked == [("numpy", "cv2", "rich"), ("cv2", "rich"), ("rich",)]
