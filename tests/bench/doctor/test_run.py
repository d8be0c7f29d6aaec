"""Stages that work, fail, crash, hang, or cannot be run here; and the command as a whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

import yolact_bench.doctor
from yolact_bench.doctor.child import Ended
from yolact_bench.doctor.cli import main
from yolact_bench.doctor.facts import Gpu, Library
from yolact_bench.doctor.run import install_command, missing, outcome_of, run_stages
from yolact_bench.doctor.stage import FAILED, GPU, OK, SKIPPED, Context, Outcome, Stage
from yolact_bench.doctor.stages import all_stages
from yolact_runtime.errors import YolactError

NONE = Gpu(SKIPPED, reason="no NVIDIA GPU")
SCHEMA = Path(yolact_bench.doctor.__file__).parent / "schema.json"
CODE = """
import os, signal, time
from yolact_bench.doctor.stage import OK, Outcome, Stage
from yolact_runtime.errors import YolactError
def good(context):
    (context.folder / "file").write_text("x")
    return Outcome(OK, {"config": context.config, "ms": 1.5, "n": 3})
def known(context): raise YolactError("the disk is full; free some")
def crashes(context): os.kill(os.getpid(), signal.SIGSEGV)
def hangs(context): time.sleep(60)
def reads(context): return Outcome(OK, {"read": (context.folder / "file").read_text()})
def lies(context): return Outcome("FINE", {})
NAMES = "good known crashes hangs reads lies".split()
def stages(context):
    return [Stage(name, "test", globals()[name], seconds=1.0 if name == "hangs" else 120.0) for name in NAMES]
"""


def test_whatever_a_stage_does_is_an_outcome(modules, tmp_path: Path) -> None:
    modules("doctor_stages", CODE)
    import doctor_stages

    context = Context(tmp_path, "yolact_tiny")
    done = list(run_stages(doctor_stages.stages(context), context, {}, NONE, source="doctor_stages:stages"))
    found = {one.stage.name: one.outcome for one in done}
    assert found["good"] == Outcome(OK, {"config": "yolact_tiny", "ms": 1.5, "n": 3})
    assert found["known"] == Outcome(FAILED, {}, "the disk is full; free some")
    assert "SIGSEGV" in found["crashes"].reason and "--only crashes" in found["crashes"].remedy
    assert "did not end within 1 s" in found["hangs"].reason
    assert found["reads"].figures == {"read": "x"}
    assert found["lies"] == Outcome(FAILED, {}, "it returned no outcome", found["lies"].remedy)
    states = [found[name].state for name in ("known", "crashes", "hangs", "lies")]
    assert set(states) == {FAILED}
    assert all(one.output for one in done if one.stage.name == "crashes")


def test_an_exception_is_a_failure_of_one_line(tmp_path: Path) -> None:
    def fails(error: Exception) -> str:
        def raises(context: Context) -> Outcome:
            raise error

        done = outcome_of(Stage("stage", "test", raises), Context(tmp_path))
        assert done.state == FAILED
        return done.reason

    assert fails(ZeroDivisionError("by zero\nmore")) == "ZeroDivisionError: by zero"
    assert fails(YolactError("no disk; free some")) == "no disk; free some"


def test_what_a_stage_needs_decides_whether_it_is_run() -> None:
    def never(context: Context) -> Outcome:
        raise AssertionError

    broken = {"cv2": Library("cv2", "opencv-python-headless", FAILED, reason="libGL", remedy="pip install x")}
    assert missing(Stage("a", "g", never, ("numpy", "rich")), {}, NONE) is None
    gpu = missing(Stage("a", "g", never, (GPU, "numpy")), {}, NONE)
    assert gpu == Outcome(SKIPPED, {}, "no NVIDIA GPU", "")
    absent = missing(Stage("a", "g", never, ("numpy", "no_such_package")), {}, NONE)
    assert absent is not None and absent.state == SKIPPED and "no_such_package" in absent.reason
    assert missing(Stage("a", "g", never, ("cv2", GPU)), broken, NONE) == gpu
    driver = Gpu(FAILED, reason="cuInit: error 999", remedy="see what nvidia-smi says")
    assert missing(Stage("a", "g", never, (GPU,)), {}, driver) == Outcome(
        FAILED, {}, driver.reason, driver.remedy
    )
    failed = missing(Stage("a", "g", never, ("cv2",)), broken, NONE)
    assert failed == Outcome(FAILED, {}, "opencv-python-headless: libGL", "pip install x")


def test_the_driver_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolact_bench.doctor.run.call", pytest.fail)
    (stage,) = [one for one in all_stages(Context(tmp_path)) if one.name == "driver"]
    for gpu in (NONE, Gpu(FAILED, reason="error 999"), Gpu(OK, cuda="12.8", devices=({"name": "A"},))):
        (done,) = run_stages([stage], Context(tmp_path), {}, gpu)
        assert (done.outcome.state, done.outcome.reason) == (gpu.state, gpu.reason)
    assert done.outcome.figures == {"GPU 0": "A", "CUDA": "12.8"}


def test_one_command_installs_all_that_is_missing() -> None:
    assert install_command(["torch"]) == 'pip install "yolact[train]"'
    assert install_command(["numpy"]) == "pip install yolact"
    assert install_command(["onnx", "openvino"]) == 'pip install "yolact[train,openvino]"'
    assert install_command(["onnx", "tensorrt"]) == 'pip install "yolact[trt]"'


def test_no_stage_is_begun_when_the_time_is_up(tmp_path: Path) -> None:
    stage = Stage("late", "test", lambda context: Outcome(OK))
    (done,) = run_stages([stage], Context(tmp_path), {}, NONE, limit=-1.0)
    assert done.outcome.state == SKIPPED and done.outcome.remedy == "yolact-doctor --only late"


@pytest.mark.parametrize(
    ("group", "allowed", "most", "state", "reason"),
    [
        ("speed", 120.0, 120.0, SKIPPED, "too slow to measure here: "),
        ("gpu-speed", 20.0, 20.0, SKIPPED, "too slow to measure here: "),
        ("engines", 50.0, 50.0, FAILED, "it did not end"),
        ("engines", 900.0, 70.0, SKIPPED, "it did not end"),
    ],
)
def test_a_stage_has_no_more_time_than_the_run(
    group: str, allowed: float, most: float, state: str, reason: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given = []

    def call(*words: str, seconds: float, folder: Path) -> Ended:
        given.append(seconds)
        return Ended(problem="it did not end", late=True)

    monkeypatch.setattr("yolact_bench.doctor.run.call", call)
    stage = Stage("late", group, lambda context: Outcome(OK), seconds=allowed)
    limit = 150.0 if most == allowed else 10.0
    (done,) = run_stages([stage], Context(tmp_path), {}, NONE, limit)
    assert given == [pytest.approx(most, abs=1)]
    assert done.outcome.state == state and done.outcome.reason.startswith(reason)


def doctor(*words: str, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with packages that hide the installed ones."""
    paths = [str(packages)] if packages else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    code = "import sys; from yolact_bench.doctor.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, env=environment,
        timeout=200,
    )  # fmt: skip


def states(report: Path) -> dict[str, str]:
    """The state of each stage in a report, which fits the schema."""
    content = json.loads((report / "doctor.json").read_text(encoding="utf-8"))
    jsonschema.validate(content, json.loads(SCHEMA.read_text(encoding="utf-8")))
    return {one["name"]: one["state"] for one in content["stages"]}


@pytest.mark.slow
def test_a_broken_onnx_runtime_is_one_failure_without_a_traceback(tmp_path: Path) -> None:
    """One that loads, and crashes when a session is created; and the report says so."""
    (tmp_path / "p" / "onnxruntime").mkdir(parents=True)
    # The installed one, with sessions that crash.
    (tmp_path / "p" / "onnxruntime" / "__init__.py").write_text(
        "import os, signal, sys\n"
        "sys.path.remove(os.path.dirname(os.path.dirname(__file__)))\n"
        "del sys.modules['onnxruntime']\n"
        "import onnxruntime\n"
        "onnxruntime.InferenceSession = lambda *words, **options: os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    report = tmp_path / "report"
    done = doctor("--only", "onnxruntime-fp32", "numpy", "--report", str(report), packages=tmp_path / "p")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    assert states(report) == {"onnxruntime-fp32": FAILED, "numpy": OK}
    content = json.loads((report / "doctor.json").read_text(encoding="utf-8"))
    (failed,) = [one for one in content["stages"] if one["state"] == FAILED]
    assert "SIGSEGV" in failed["reason"] and "Segmentation fault" in failed["output"]
    assert (content["exit_code"], content["summary"]["failed"]) == (1, 1)
    assert str(tmp_path) not in (report / "doctor.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("package", ["onnxruntime", "numpy"])
def test_a_base_package_that_does_not_load(package: str, tmp_path: Path) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise OSError('libX.so.1: cannot open')")
    words = ["--only", "onnxruntime-fp32", "numpy", "masks", "--report", str(tmp_path / "report")]
    done = doctor(*words, packages=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    # ONNX Runtime's engine needs NumPy, too.
    found = states(tmp_path / "report")
    assert found["onnxruntime-fp32"] == FAILED
    assert found["masks"] == (OK if package == "onnxruntime" else FAILED)
    assert "libX.so.1: cannot open" in done.stdout and "pip install --force-reinstall" in done.stdout


WAITS = """
import os, subprocess, time
from yolact_bench.doctor.stage import OK, Outcome, Stage
def waits(context):
    one = subprocess.Popen(["sleep", "60"])
    with open(os.environ["STARTED"] + "+", "w") as file: file.write(f"{os.getpid()} {one.pid}")
    os.rename(os.environ["STARTED"] + "+", os.environ["STARTED"])
    time.sleep(60)
def stages(context):
    return [Stage("good", "test", lambda context: Outcome(OK)), Stage("waits", "test", waits)]
"""
STOPPED = """
import sys
import doctor_waits, yolact_bench.doctor.stages as known, yolact_bench.doctor.run as run
known.all_stages = doctor_waits.stages
run.run_stages.__defaults__ = (*run.run_stages.__defaults__[:-1], "doctor_waits:stages")
from yolact_bench.doctor.cli import main
sys.exit(main())
"""


def test_a_stopped_run_leaves_a_report_and_no_process(
    modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules("doctor_waits", WAITS)
    started, report = tmp_path / "started", tmp_path / "report"
    monkeypatch.setenv("STARTED", str(started))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = [sys.executable, "-c", STOPPED, "--only", "test", "--report", str(report)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        for _ in range(2400):
            if started.exists() or run.poll() is not None:
                break
            time.sleep(0.05)
        assert started.exists(), run.communicate()
        run.terminate()
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 130 and b"Traceback" not in errors
    assert states(report) == {"good": OK}
    content = json.loads((report / "doctor.json").read_text(encoding="utf-8"))
    assert content["complete"] is False
    assert "ended before all stages" in (report / "doctor.html").read_text(encoding="utf-8")
    for process in map(int, started.read_text().split()):
        assert not alive(process)


def alive(process: int) -> bool:
    """Whether a process runs; one that waits to be collected does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


HIDE = """
import os, sys
class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in os.environ["HIDDEN"].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden)
"""


@pytest.mark.slow
def test_without_openvino_pytorch_and_onnx_the_rest_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    monkeypatch.setenv(
        "HIDDEN", "openvino,torch,torchvision,onnx,onnxscript,psutil,jinja2,matplotlib,av,scipy"
    )
    words = ["--only", "parts", "engines", "export", "build", "--report", str(tmp_path / "report")]
    done = doctor(*words, packages=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stderr
    found = states(tmp_path / "report")
    assert {name for name, state in found.items() if state == OK} >= {
        "numpy", "masks", "outputs", "onnxruntime-fp32"
    }  # fmt: skip
    skipped = (
        "video",
        "openvino-fp32",
        "openvino-bf16",
        "pytorch-fp32",
        "export-fp32",
        "build",
        "onnxruntime-int8",
    )
    assert {found[name] for name in skipped} == {SKIPPED}
    assert 'do: pip install "yolact[openvino]"' in done.stdout
    assert 'do: pip install "yolact[train,openvino]"' in done.stdout


def test_wrong_use_is_found_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*words: str) -> str:
        assert main(list(words)) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err

    assert "--only onnxruntim: no such stage; near ones: " in fails("--only", "onnxruntim")
    assert "no configuration 'yolact_resnet5'; near ones: " in fails("--config", "yolact_resnet5")
    assert "--limit is -1" in fails("--limit", "-1")
    (tmp_path / "file").touch()
    assert main(["--report", str(tmp_path / "file")]) in (1, 2)
    assert capsys.readouterr().out == ""


def test_the_list_has_every_stage_and_imports_nothing_large() -> None:
    code = (
        "import sys; from yolact_bench.doctor import cli; code = cli.main(['--list']);"
        "print(code, sorted({'numpy', 'cv2', 'torch', 'onnxruntime', 'openvino', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "onnxruntime-fp32" in done.stdout and "driver" in done.stdout
