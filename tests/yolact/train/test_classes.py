"""Training on some classes of a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yolact.config import Classes
from yolact.weights.load import load_checkpoint, load_model

pytestmark = pytest.mark.slow

SHORT = ("--iterations", "1", "--set", "train.pictures=0")


def choose(*classes: str | int, other: str = "background") -> list[str]:
    return ["--set", f"dataset.classes={json.dumps(classes)}", "--set", f"dataset.other_classes={other}"]


def test_a_checkpoint_has_the_chosen_classes_only(run: Any, records: Any, tmp_path: Path) -> None:
    options = [*choose("triangle", 1), "--overfit", "4"]
    assert run(tmp_path, *SHORT, *options) == 0
    path = tmp_path / "yolact_tiny_1_1.pth"
    model = load_model(path)
    assert model.config.classes == Classes(("circle", "triangle"), (1, 9))
    assert model.config.dataset.classes == ("triangle", 1)
    (validation,) = records(tmp_path, "validation")
    assert validation["validation"]["box_ap"] is not None
    # A resumed training keeps its choice, and cannot change it.
    assert run(tmp_path, "--iterations", "2", *options[2:], "--resume", "last") == 0
    assert load_checkpoint(tmp_path / "yolact_tiny_2_2.pth").config.classes == model.config.classes


def test_the_choice_cannot_change(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, *SHORT, *choose("circle"), "--validate-every", "0") == 0
    assert run(tmp_path, "--iterations", "2", *choose("square"), "--resume", "last") == 2
    error = capsys.readouterr().err
    assert "its classes are circle (1); those of" in error and "are square (4). The classes" in error
    assert run(tmp_path, *SHORT, *choose("circel")) == 2
    assert "dataset.classes: there is no class 'circel'; near ones: circle" in capsys.readouterr().err
    assert run(tmp_path, *SHORT, *choose("circle", other="drop")) == 2
    assert "allowed: background, ignore" in capsys.readouterr().err
    assert run(tmp_path, *SHORT, "--set", "dataset.other_classes=ignore") == 2
    assert "dataset.other_classes = 'ignore', but all classes are learned" in capsys.readouterr().err


def test_ignored_regions_change_the_loss(run: Any, records: Any, tmp_path: Path) -> None:
    totals = []
    for other in ("background", "ignore"):
        folder = tmp_path / other
        assert run(folder, *SHORT, *choose("circle", other=other), "--validate-every", "0") == 0
        totals.append(records(folder)[0])
    first, second = totals
    assert first["box"] == second["box"] and first["cls"] > second["cls"]


def test_validation_has_the_chosen_classes_only(run: Any, records: Any, tmp_path: Path) -> None:
    options = ("--set", "train.validate_every=1", "--iterations", "2", "--batch-size", "12")
    assert run(tmp_path, *options, *choose("square"), "--set", "train.pictures=1") == 0
    assert records(tmp_path, "validation")[0]["validation"]["mask_ap"] is not None
