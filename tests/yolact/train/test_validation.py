"""Validation during training: without a validation part, and failures and interruptions of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from yolact.data.layout import resolve_dataset
from yolact.evaluation import evaluate
from yolact.registry import get_config
from yolact.train import validation
from yolact.train.checkpoint import find_checkpoint
from yolact.train.loop import train
from yolact.train.resume import training_state
from yolact.weights.load import load_checkpoint

Capture = pytest.CaptureFixture[str]
# An epoch has 6 iterations.
OPTIONS = ("--iterations", "8", "--validate-every", "1")


def on_opening(monkeypatch: pytest.MonkeyPatch, at: int, action: Callable[[], None]) -> None:
    """Call `action` whenever the validation opens an image, from the `at`-th on. Each opens 4 images."""
    opened: list[int] = []
    open_image = evaluate._open

    def watched(*arguments: Any) -> Any:
        opened.append(1)
        if len(opened) >= at:
            action()
        return open_image(*arguments)

    monkeypatch.setattr(evaluate, "_open", watched)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_a_dataset_without_validation_part_is_trained_on(
    shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, records: Any
) -> None:
    config = get_config("yolact_tiny")
    dataset = replace(resolve_dataset(shapes), val_images="", val_annotations="")
    settings = replace(config.train, batch_size=4, autoscale=False, max_iterations=2, validate_every=1)
    with caplog.at_level("INFO", "yolact"):
        path = train(replace(config, dataset=dataset, train=settings), tmp_path, torch.device("cpu"))
    assert path.exists()
    assert caplog.text.count("no validation part") == 1
    assert not records(tmp_path, "validation")


@pytest.mark.slow
@pytest.mark.parametrize(("at", "iteration"), [(2, 6), (6, 8)])
def test_ctrl_c_stops_a_validation_and_resuming_repeats_it(
    at: int,
    iteration: int,
    run: Any,
    records: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(validation, "DEFAULT_BATCH", 1)
    with monkeypatch.context() as patch:
        sent: list[int] = []
        on_opening(patch, at, lambda: None if sent else (sent.append(1), interrupt()))
        assert run(tmp_path, *OPTIONS) == 130
    output = capsys.readouterr().err
    assert f"stopping after a batch of the validation after iteration {iteration}" in output
    path = find_checkpoint("interrupt", tmp_path, "yolact_tiny")
    assert f"--resume {path}" in output.splitlines()[-1]
    assert ("the training is complete and saved" in output) == (iteration == 8)
    saved = load_checkpoint(path)
    assert saved.iteration == iteration
    assert training_state(saved).awaits_validation
    assert run(tmp_path, *OPTIONS, "--resume", "last") == 0
    assert run(tmp_path / "whole", *OPTIONS) == 0
    lines = [[r["validation"] for r in records(f, "validation")] for f in (tmp_path, tmp_path / "whole")]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 2
    capsys.readouterr()
    assert run(tmp_path, *OPTIONS, "--resume", "auto") == 0
    assert "the training is complete" in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_ctrl_c_in_the_last_validation_leaves_the_finished_training(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    on_opening(monkeypatch, 5, interrupt)
    assert run(tmp_path, *OPTIONS) == 130
    saved = tmp_path / "yolact_tiny_1_8.pth"
    assert load_checkpoint(saved).iteration == 8
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"continue with --resume {saved}")


@pytest.mark.slow
def test_a_signal_while_saving_waits_until_the_file_is_whole(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def interrupted(*arguments: Any) -> None:
        interrupt()
        interrupt()
        save(*arguments)

    monkeypatch.setattr(torch, "save", interrupted)
    assert run(tmp_path, "--iterations", "9", "--save-every", "2") == 130
    assert [path.name for path in tmp_path.glob("*.pth")] == ["yolact_tiny_0_2.pth"]
    load_checkpoint(tmp_path / "yolact_tiny_0_2.pth")


@pytest.mark.slow
@pytest.mark.parametrize("iteration", [6, 8])
def test_a_failing_validation_keeps_the_training(
    iteration: int, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    with monkeypatch.context() as patch:
        on_opening(patch, 1 if iteration == 6 else 5, fail)
        assert run(tmp_path, *OPTIONS) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "CUDA out of memory" in last
    path = find_checkpoint("last", tmp_path, "yolact_tiny")
    assert f"--resume {path}" in last
    assert load_checkpoint(path).iteration == iteration
    assert run(tmp_path, *OPTIONS, "--resume", "last", "--validate-every", "0") == 0
    assert load_checkpoint(find_checkpoint("last", tmp_path, "yolact_tiny")).iteration == 8


@pytest.mark.slow
def test_unreadable_validation_images_are_counted(
    shapes: Path, run: Any, tmp_path: Path, capsys: Capture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    files = sorted((copy / "val").iterdir())
    files[1].write_bytes(b"not an image")
    options = ("--dataset", str(copy), "--iterations", "1", "--validate-every", "1")
    assert run(tmp_path / "one", *options) == 1
    assert "1 validation image could not be read" in capsys.readouterr().err
    assert (tmp_path / "one" / "yolact_tiny_0_1.pth").exists()
    for file in files:
        file.write_bytes(b"not an image")
    assert run(tmp_path / "all", *options) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "no image can be evaluated" in last
    assert "the training is saved" in last


@pytest.mark.parametrize("fault", ["no images", "no file", "other classes"])
def test_an_unusable_validation_part_is_found_before_the_first_step(
    fault: str, shapes: Path, run: Any, tmp_path: Path, capsys: Capture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    file = copy / "annotations/instances_val.json"
    if fault == "no images":
        sorted((copy / "val").iterdir())[2].unlink()
    else:
        content = json.loads(file.read_text())
        content["categories"] = [{"id": 50 + c["id"], "name": "a" + c["name"]} for c in content["categories"]]
        content["annotations"] = []
        file.write_text(json.dumps(content) if fault == "other classes" else "{}")
    assert run(tmp_path / "w", "--dataset", str(copy), "--iterations", "1", "--validate-every", "1") == 1
    output = capsys.readouterr().err
    assert "loss" not in output
    assert str(copy) in output


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_the_validation_of_both(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text("""
import os, signal, sys
from yolact.cli.train import main
from yolact.evaluation import evaluate
from yolact.train import validation

validation.DEFAULT_BATCH = 1
open_image = evaluate._open

def interrupted(*arguments):
    if os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return open_image(*arguments)

evaluate._open = interrupted
sys.exit(main(sys.argv[1:]))
""")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    arguments = [*launcher, str(script), *command(tmp_path / "w", "--iterations", "2", "--validate-every=1")]
    done = subprocess.run(
        arguments, stderr=subprocess.PIPE, text=True, check=False, timeout=200, env=os.environ.copy()
    )
    assert done.stderr.count("stopped before the last validation was finished") == 2, done.stderr
    saved = load_checkpoint(tmp_path / "w/yolact_tiny_0_2_interrupt.pth")
    assert training_state(saved).awaits_validation


@pytest.mark.slow
def test_pictures_of_the_batch_and_of_each_validation(run: Any, tmp_path: Path) -> None:
    assert run(tmp_path / "a", *OPTIONS, "--set", "train.pictures=3") == 0
    pictures = sorted((tmp_path / "a" / "pictures").iterdir())
    names = [f"yolact_tiny_{name}.jpg" for name in ("batch_0", "validation_6", "validation_8")]
    assert [path.name for path in pictures] == names
    for path in pictures:
        assert cv2.imread(str(path)).shape == (960, 960, 3)
    assert run(tmp_path / "b", *OPTIONS, "--set", "train.pictures=0") == 0
    assert not (tmp_path / "b" / "pictures").exists()
