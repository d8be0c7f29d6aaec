"""Failures are reported with advice, and nothing that was saved is lost."""

from __future__ import annotations

import math
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from yolact.cli.train import main
from yolact.config import TrainConfig
from yolact.data.batch import collate
from yolact.data.coco import CocoDataset
from yolact.model import Yolact
from yolact.registry import get_config
from yolact.train.bad_batch import dump_batch
from yolact.train.failures import explain
from yolact.weights.load import load_checkpoint

pytestmark = pytest.mark.slow
Capture = pytest.CaptureFixture[str]


def test_a_bad_batch_is_saved_and_can_be_analysed(
    run: Any, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Yolact.forward_train

    def poisoned(model: Yolact, x: torch.Tensor) -> Any:
        model.fpn.lat_layers[0].bias.data[3] = float("nan")
        return forward(model, x)

    with monkeypatch.context() as patch:
        patch.setattr(Yolact, "forward_train", poisoned)
        assert (
            run(tmp_path, "--iterations", "9", "--set", "train.max_bad_steps=2", "--set", "train.fast=false")
            == 1
        )
    output = capsys.readouterr().err
    assert "2 times in a row, last at iteration 1 on images [" in output
    assert "box nan" in output
    dump = tmp_path / "yolact_tiny_bad_batch.pt"
    assert f"--debug-batch {dump}" in output
    assert not list(tmp_path.glob("*.pth"))

    assert main(["--debug-batch", str(dump), "--device", "cpu"]) == 1
    output = capsys.readouterr().err
    assert "weight fpn.lat_layers.0.bias (48,): 1 of 48 are not finite" in output
    assert "activation fpn.lat_layers.0[0]" in output
    assert "backbone" not in output.partition("losses now")[0].partition("activation")[2].partition("\n")[0]


def test_debug_batch_needs_a_saved_batch(tmp_path: Path, capsys: Capture) -> None:
    wrong = tmp_path / "other.pt"
    torch.save({"x": 1}, wrong)
    assert main(["--debug-batch", str(wrong)]) == 1
    assert "is not a batch that yolact-train saved" in capsys.readouterr().err


def test_a_damaged_batch_is_one_line(shapes: Path, tmp_path: Path, capsys: Capture) -> None:
    config = get_config("yolact_tiny")
    data = replace(config.model, input_size=(48, 80), proto_scale=0.5)
    model = Yolact(replace(config, model=data))
    samples = CocoDataset(shapes / "train", shapes / "annotations/instances_train.json", data, config.classes)
    path = tmp_path / "batch.pt"
    dump_batch(path, model, collate([samples[0], samples[1]]), 3, {"box": 1.0}, 0.1)
    assert main(["--debug-batch", str(path), "--device", "cpu"]) == 0
    content = torch.load(path, weights_only=True)
    target = content["targets"][0]
    changes: list[dict[str, Any]] = [
        {"config": 3}, {"model": {}}, {"images": 3}, {"images": torch.zeros(0, 3, 48, 80)}, {"lr": None},
        {"images": content["images"].mT},
        {"images": content["images"].double()}, {"image_ids": [1]}, {"losses": {"box": [1]}},
        {"losses": torch.zeros(2)},
        {"targets": None}, {"iteration": "x"}, {"iteration": math.nan},
        {"targets": [{**target, "labels": target["labels"] + 99}] * 2}, {"targets": [{}, {}]},
        {"targets": [{**target, "masks": target["masks"][:, :3]}] * 2}, {"targets": [[1], [2]]},
    ]  # fmt: skip
    for change in changes:
        torch.save({**content, **change}, path)
        capsys.readouterr()
        assert main(["--debug-batch", str(path), "--device", "cpu"]) in (1, 2)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and str(path) in lines[0], lines


def test_an_unreadable_image_is_replaced_and_the_run_exits_1(
    shapes: Path, run: Any, records: Any, tmp_path: Path, capsys: Capture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    bad = sorted((copy / "train").iterdir())[7]
    bad.write_bytes(b"not an image")
    totals = []
    for workers in ("0", "2"):
        folder = tmp_path / workers
        options = "--dataset", str(copy), "--iterations", "7", "--workers", workers
        assert run(folder, *options) == 1
        output = capsys.readouterr().err
        assert output.count("the next image replaces it") == 1
        assert bad.name in output
        assert "1 of 24 images could not be read" in output
        assert (folder / "yolact_tiny_1_7.pth").exists()
        totals.append([record["total"] for record in records(folder)])
    assert totals[0] == totals[1]
    assert run(tmp_path / "limit", *options, "--set", "train.max_unreadable=0") == 1
    assert "train.max_unreadable is 0" in capsys.readouterr().err


def test_out_of_memory_says_what_to_lower(
    run: Any, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Yolact, "forward_train", lambda model, x: torch.empty(1 << 55))
    assert run(tmp_path, "--iterations", "1", "--set", "train.fast=false") == 1
    output = capsys.readouterr().err
    assert "out of memory" in output
    for option in ("--batch-size (now 4)", "--accumulate", "--amp bf16", "input size"):
        assert option in output


def test_a_gpu_out_of_memory_is_known() -> None:
    error = explain(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), TrainConfig())
    assert "--batch-size" in str(error)


# A worker is killed at its fourth batch, as the kernel does where memory is short.
DEADLY = """
import os, signal, sys
import torch
from yolact.cli.train import main
from yolact.data.coco import CocoDataset

get, seen = CocoDataset.__getitem__, []

def deadly(dataset, index):
    seen.append(index)
    if len(seen) > 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return get(dataset, index)

CocoDataset.__getitem__ = deadly
sys.exit(main(sys.argv[1:]))
"""


def test_a_dead_worker_is_reported(command: Callable[..., list[str]], tmp_path: Path) -> None:
    options = command(tmp_path, "--iterations", "12", "--save-every", "1", "--workers", "1")
    arguments = [sys.executable, "-c", DEADLY, *options]
    done = subprocess.run(arguments, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "a process that loads images ended" in done.stderr
    assert "lower --workers (now 1)" in done.stderr
    assert "Traceback" not in done.stderr
    for path in tmp_path.glob("*.pth"):
        load_checkpoint(path)


def test_a_full_disk_keeps_what_was_saved(
    run: Any, command: Callable[..., list[str]], tmp_path: Path, capsys: Capture
) -> None:
    assert run(tmp_path, "--iterations", "2") == 0
    saved = tmp_path / "yolact_tiny_0_2.pth"
    before = saved.read_bytes()
    half = len(before) // 2

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))

    arguments = [
        sys.executable,
        "-m",
        "yolact.cli.train",
        *command(tmp_path, "--iterations", "4", "--resume=last"),
    ]
    done = subprocess.run(arguments, stderr=subprocess.PIPE, text=True, preexec_fn=small_files, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith(f"ERROR: cannot write {tmp_path}/yolact_tiny_0_4.pth: File")
    )
    assert saved.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "pth" in path.name] == [saved.name]
    load_checkpoint(saved)


def test_a_folder_that_cannot_be_written_to_is_found_before_the_first_step(
    run: Any, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").touch()
    assert run(tmp_path / "file" / "weights", "--iterations", "1") == 1
    output = capsys.readouterr().err.strip().splitlines()
    assert output[-1].startswith(f"ERROR: cannot write to folder {tmp_path}/file/weights")
    assert "Traceback" not in "".join(output)
