"""Training on inputs that are not square, and with prototypes of another size, end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from yolact.cli.evaluate import main as evaluate
from yolact.weights.load import load_checkpoint, load_model
from yolact_export.cli import main as export
from yolact_runtime import load_engine

pytestmark = pytest.mark.slow
AUGMENTED = tuple(
    word
    for name in ("enabled", "photometric", "expand", "crop", "flip", "rotate")
    for word in ("--set", f"augment.{name}=true")
)


def test_a_wide_network_learns_resumes_evaluates_and_is_exported(
    shapes: Path, run: Callable[..., int], records: Any, tmp_path: Path
) -> None:
    options = ("--set", "model.input_size=[64,112]", "--set", "model.proto_scale=0.5", *AUGMENTED)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, "--iterations", "24", *options) == 0
    totals = [record["total"] for record in records(whole)]
    assert sum(totals[-4:]) < 0.8 * sum(totals[:4])

    assert run(parts, "--iterations", "7", *options) == 0
    assert run(parts, "--iterations", "9", "--resume", "last", *AUGMENTED) == 0
    assert [record["total"] for record in records(parts)] == totals[:9]

    (weights,) = whole.glob("*.pth")
    model = load_model(weights)
    assert model.config.model.input_size == (64, 112)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 112)).prototypes.shape == (1, 32, 56, 16)
    report = tmp_path / "report.json"
    data = ("--images", str(shapes / "val"), "--annotations", str(shapes / "annotations/instances_val.json"))
    assert evaluate(["--engine", str(weights), *data, "--json", str(report)]) == 0
    assert json.loads(report.read_text())["images"] == 4

    graph = tmp_path / "wide.onnx"
    options = ("--weights", str(weights), "--output", str(graph), "--verify", str(shapes / "val"))
    assert export(options) == 0
    with load_engine(graph) as engine:
        assert engine.metadata.input_shape == (64, 112)


def test_a_square_checkpoint_is_fine_tuned_wide_and_with_finer_prototypes(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "square", "--iterations", "1", "--set", "model.input_size=64") == 0
    (weights,) = (tmp_path / "square").glob("*.pth")
    wide = ("--set", "model.input_size=[48,80]", "--set", "model.proto_scale=0.5", "--lr", "0")
    wide += ("--set", "train.warmup_lr=0", "--set", "train.weight_decay=0")
    assert run(tmp_path / "wide", "--init-from", str(weights), "--iterations", "1", *wide) == 0
    output = capsys.readouterr().err
    assert "model.input_size 64 -> (48, 80)" in output
    assert "model.proto_scale 0.25 -> 0.5" in output
    (tuned,) = (tmp_path / "wide").glob("*.pth")
    before, after = load_checkpoint(weights).model, load_checkpoint(tuned).model
    assert all(
        torch.equal(before[key], after[key]) for key in before if "running" not in key and "num" not in key
    )
