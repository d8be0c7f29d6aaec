"""The kernels' benchmark: what it counts and generates, and that it runs on a fake GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import oracle
import pytest
from fake_gpu import FakeGpu

from yolact import get_config
from yolact_bench.kernel_measurements import WHOLE, detection_bytes, make_inputs, mask_bytes
from yolact_bench.kernels import add_arguments, command
from yolact_runtime.commandline import Parser, run
from yolact_runtime.cuda.gpu import current_gpu
from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.masks import MaskShapes, mask_plan
from yolact_runtime.errors import UsageError


def main(arguments: list[str]) -> int:
    """The subcommand by itself."""
    parser = Parser(prog="yolact-bench kernels")
    add_arguments(parser)
    return run(command, parser, arguments)


@pytest.mark.skipif(current_gpu() is not None, reason="this machine has a GPU")
def test_no_gpu_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    out, error = capsys.readouterr()
    assert not out
    assert error.count("\n") == 1
    assert "NVIDIA GPU" in error or "cuda.bindings" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image-size", "480"], "--image-size is '480'; height x width is needed"),
        (["--config", "yolact_resnet5"], "yolact_resnet50"),
    ],
)
def test_wrong_use_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_bytes_of_detection() -> None:
    plan = detection_plan(2, 40, 3, 8, limit=5, logits_dtype="float16")
    # 2 images of 40 priors, 4 logits of 2 bytes; 6 candidates; 4 detections; 2 words of priors an image.
    logits, words, keys = 2 * 40 * 4 * 2, 2 * 2 * 4, 2 * 3 * 5 * 4
    outputs = 2 * (4 + 5 * (16 + 4 + 4 + 8 * 4))
    assert detection_bytes(plan, candidates=6, detections=4) == {
        "filter_scores<float, __half>": logits + 6 * (16 + 16) + words + 6 * (8 + 16),
        "list_candidates": words + 6 * 4 + 2 * 4,
        "class_nms<__half>": 6 * (4 + 8 + 16 + 3 * 2) + 2 * 4 + keys + 4 * 4,
        "keep_best<float>": keys + 4 * (4 + 16 + 32) + outputs,
        WHOLE: logits + 6 * (16 + 16) + 4 * 32 + outputs,
    }
    # The images share the priors: 40 x 16 bytes are all there are.
    more = detection_bytes(plan, candidates=60, detections=4)[WHOLE]
    assert more == logits + 60 * 16 + 40 * 16 + 4 * 32 + outputs


def test_bytes_of_detection_as_documented() -> None:
    full = detection_bytes(detection_plan(1, 19248, 80), candidates=1000, detections=100)
    assert full[WHOLE] == 6_236_352 + 32 * 1000 + 12_800 + 15_204


def test_bytes_of_masks() -> None:
    plan = mask_plan(MaskShapes(1, 3, 4, 8, 8, 64, 64, "float16"))
    # Widened by a cell each, in cells of 1/8: 1..4 x 1..3 and 3..7 x 2..4 (past the last), which share 1 x 1.
    boxes = np.array([[[2, 2, 3, 2], [4, 3, 6, 3], [0, 0, 8, 8]]], np.float32) / 8
    count = np.array([2], np.int32)
    regions = np.array([[[5, 30, 10, 4], [20, 0, 7, 32], [9, 9, 9, 9]]], np.int32)
    cells = 3 * 2 + 4 * 2
    read = (cells - 1) * 4 * 2
    # Rows 30 to 33 lie in two words, rows 0 to 31 in one.
    bits = (10 * 2 + 7 * 1) * 4
    where = 2 * 16 + 4
    assert mask_bytes(plan, boxes, count, regions, edges=11) == {
        "assemble_masks<__half, 4>": read + 2 * 4 * 4 + where + cells * 4,
        "mask_bits": cells * 4 + where + 8 + bits,
        "count_edges": bits + where + 8 + 3 * 16 + 3 * 4,
        "write_edges": bits + where + 8 + 3 * 4 + 4 * 4 + 11 * 4,
        WHOLE: read + 2 * 4 * 4 + where + 8 + 3 * 16 + 4 * 4 + 11 * 4,
    }


@pytest.mark.parametrize("half", [False, True])
def test_the_heads_have_as_many_candidates_as_asked(half: bool) -> None:
    config = get_config("yolact_tiny")
    inputs = make_inputs(config, 2, 300, half, seed=5)
    best = np.stack([oracle.softmax(image)[:, 1:].max(axis=1) for image in inputs["logits"]])  # (N, P)
    assert ((best > config.detect.score_threshold).sum(axis=1) == 300).all()
    assert not ((best > 0.045) & (best < 0.055)).any()
    assert inputs["loc"].dtype == inputs["prototypes"].dtype == (np.float16 if half else np.float32)
    again = make_inputs(config, 2, 300, half, seed=5)
    assert all((again[name] == array).all() for name, array in inputs.items())
    with pytest.raises(UsageError, match="batch 1 with 0 candidates"):
        make_inputs(config, 1, 0)


def test_the_command_on_a_fake_gpu(gpu: FakeGpu, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    gpu.computes = False
    file = tmp_path / "kernels.json"
    arguments = ["--config", "yolact_tiny", "--batch", "1", "2", "--candidates", "50", "--repeats", "3"]
    assert main([*arguments, "--half", "--json", str(file)]) == 0
    assert not gpu.held and not gpu.problems
    out = capsys.readouterr().out
    assert "NVIDIA RTX A4000, compute capability 8.6, CUDA 12.8" in out
    report = json.loads(file.read_text())
    assert [one["batch"] for one in report["runs"]] == [1, 2]
    rows = report["runs"][1]["rows"]
    assert [(row["plan"], row["kernel"].partition("<")[0]) for row in rows] == [
        *(("detection", k) for k in ("filter_scores", "list_candidates", "class_nms", "keep_best", WHOLE)),
        *(("masks", k) for k in ("assemble_masks", "mask_bits", "count_edges", "write_edges", WHOLE)),
    ]
    # The fake's clock ticks with each launch or copy, and with the event after it.
    assert [row["microseconds"] for row in rows] == [2000.0] * 4 + [8000.0] + [2000.0] * 4 + [8000.0]
    assert report["bandwidth"] == 2 * 256 * 2**20 / 0.002
    for row in rows:
        floor = 1e6 * row["bytes"] / report["bandwidth"]
        assert row["floor_microseconds"] == pytest.approx(floor)
        assert f"{row['bytes']:,}" in out
