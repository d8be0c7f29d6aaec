"""`yolact-bench overhead` with a small network, against itself and against a runtime that is not there."""

import json
import shutil
from pathlib import Path

import pytest
from fake_engine import write_image
from fake_onnx import RUNTIME, runtime_arrays, write_onnx

import yolact_runtime
from yolact_bench import cli
from yolact_bench.overhead_worker import STAGES

PACKAGE = Path(yolact_runtime.__file__).parent


def test_stages_of_two_versions(tmp_path, capsys):
    write_image(tmp_path / "images" / "white.png", 255)
    write_onnx(tmp_path / "m.onnx", runtime_arrays(), RUNTIME)
    words = ["overhead", "--engine", str(tmp_path / "m.onnx"), "--images", str(tmp_path / "images")]
    file = tmp_path / "figures.json"
    other = tmp_path / "other"
    shutil.copytree(PACKAGE, other / PACKAGE.name)
    words += ["--rounds", "1", "--json", str(file), "--against", str(other)]
    assert cli.main(words) == 0
    figures = json.loads(file.read_text())
    assert figures["same"] is True and figures["detections"] == RUNTIME.max_detections
    for version in ("now", "other"):
        for clock in ("cpu", "wall"):
            medians = {stage: one["median"] for stage, one in figures[version][clock].items()}
            assert list(medians) == [*STAGES, "all"]
            assert medians["all"] == pytest.approx(sum(medians[stage] for stage in STAGES))
    assert "the same JSON from both: yes" in capsys.readouterr().out
    with (other / PACKAGE.name / "results.py").open("a") as results:
        results.write("entries = Result.to_coco\nResult.to_coco = lambda *given: entries(*given)[::-1]\n")
    assert cli.main(words) == 1
    assert "the same JSON from both: NO" in capsys.readouterr().out


def test_a_version_that_is_not_there(tmp_path, capsys):
    words = ["overhead", "--engine", "m.onnx", "--images", "images", "--against", str(tmp_path)]
    assert cli.main(words) == 2
    assert "there is no yolact_runtime/results.py in it" in capsys.readouterr().err
