"""However the build process ends, one line reports it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from yolact_export.trt.engine import _engine_and_json
from yolact_export.trt.process import BuildRequest, BuildResult, run_build
from yolact_runtime.errors import YolactError

REQUEST = BuildRequest("tensorrt_rtx", "m.onnx", "m.engine", "fp32", (1, 2, 4), ("8.6",))


def run(code: str) -> BuildResult:
    """`run_build` with a process that runs `code`."""
    return run_build(REQUEST, "TensorRT-RTX", [sys.executable, "-c", code])


def test_a_result_comes_through_noise_and_progress() -> None:
    result = run(
        "import sys, json; request = json.loads(sys.stdin.read()); print('noise', file=sys.stderr)\n"
        "for event in [['start', 'a', 2], ['step', 'a', 1], ['end', 'a', 0]]:\n"
        "    print(json.dumps({'progress': event}))\n"
        "found = {'version': request['library'], 'compute': {'fp32': 1}, 'inspected': 'network'}\n"
        "print(json.dumps({'result': {**found, 'seconds': 0.5, 'notes': []}}))"
    )
    assert result == BuildResult("tensorrt_rtx", {"fp32": 1}, "network", 0.5)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import os, sys; print('terminate called', file=sys.stderr, flush=True); os.abort()",
            r"ended by SIGABRT while building m\.onnx \(terminate called\)$",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("raise SystemExit(3)", "ended with exit status 3"),
        ("print('{\"result\":')", "ended with exit status 0"),
        ("import json; print(json.dumps({'error': 'node a (Conv): no'}))", r"cannot build m\.onnx: node a"),
    ],
)
def test_ends_without_a_result(code: str, words: str) -> None:
    with pytest.raises(YolactError, match=words) as caught:
        run(code)
    assert "\n" not in str(caught.value)


def test_a_request_survives_json() -> None:
    assert BuildRequest.from_text(REQUEST.to_text()) == REQUEST


def test_a_library_that_is_not_there() -> None:
    request = BuildRequest("tensorrt_nowhere", "m.onnx", "m.engine", "fp32", (1, 1, 1))
    with pytest.raises(YolactError, match="tensorrt_nowhere does not load"):
        run_build(request, "TensorRT")


@pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")
def test_a_link_to_an_engine_stays(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/real").write_text("old")
    (tmp_path / "m.engine").symlink_to("store/real")

    def build(text: str, fail: bool) -> None:
        with _engine_and_json(tmp_path / "m.engine") as (engine, json_path):
            engine.write_text(text)
            json_path.write_text(text)
            if fail:
                json_path.unlink()  # so that only the engine can be put in place

    build("new", fail=False)
    with pytest.raises(YolactError, match=r"cannot write .*m\.engine\.json"):
        build("newer", fail=True)
    assert (tmp_path / "m.engine").is_symlink()
    assert (tmp_path / "store/real").read_text() == (tmp_path / "m.engine.json").read_text() == "new"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["real"]
