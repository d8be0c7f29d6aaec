"""Training end to end on a few synthetic images: it learns, saves, resumes exactly, and stops on a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from yolact.cli.train import main
from yolact.config import Classes
from yolact.model import Yolact
from yolact.registry import get_config
from yolact.train.checkpoint import find_checkpoint, save_checkpoint
from yolact.train.mode import set_training_mode
from yolact.weights.load import load_checkpoint, load_model
from yolact_runtime.errors import YolactError

pytestmark = pytest.mark.slow


def run(shapes: Path, folder: Path, *extra: str) -> int:
    return main([
        "--config", "yolact_tiny_config", "--dataset", str(shapes), "--save_folder", str(folder),
        "--batch_size=4",
        "--set", "train.warmup_iterations=0", "--set", "train.workers=0", "--set", "train.autoscale=false",
        "--set", "train.cache_samples=false", "--set", "train.schedule=steps",
        "--set", "augment.enabled=false",
        *extra,
    ])  # fmt: skip


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "yolact_tiny.jsonl").read_text().splitlines()]


def test_learns_saves_and_resumes_exactly(shapes: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(shapes, whole, "--iterations", "12") == 0
    records = losses(whole)
    assert [record["iteration"] for record in records] == list(range(12))
    terms = ("box", "cls", "mask", "semantic", "mask_iou")
    assert all(record["total"] == pytest.approx(sum(record[term] for term in terms)) for record in records)
    assert sum(r["total"] for r in records[-3:]) < sum(r["total"] for r in records[:3])
    assert [path.name for path in whole.glob("*.pth")] == ["yolact_tiny_2_12.pth"]

    assert run(shapes, parts, "--iterations", "5") == 0
    assert run(shapes, parts, "--iterations", "12", "--resume", "last", "--start_iter=-1") == 0
    for a, b in zip(losses(parts), records, strict=True):
        assert [a[term] for term in ("total", *terms)] == [b[term] for term in ("total", *terms)]
    a, b = (load_checkpoint(folder / "yolact_tiny_2_12.pth").model for folder in (whole, parts))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_checkpoint_knows_its_classes(shapes: Path, tmp_path: Path) -> None:
    assert run(shapes, tmp_path, "--iterations", "1") == 0
    config = load_model(tmp_path / "yolact_tiny_0_1.pth").config
    assert config.classes.category_ids == (1, 4, 9)
    assert config.classes.names == ("circle", "square", "triangle")
    assert config.train.batch_size == 4


def test_workers_and_resumed_runs_see_the_same_augmented_images(shapes: Path, tmp_path: Path) -> None:
    kinds = ("enabled", "photometric", "expand", "crop")
    augmented = [word for kind in kinds for word in ("--set", f"augment.{kind}=true")]
    for workers in ("0", "2"):
        assert run(shapes, tmp_path / workers, "--iterations", "3", "--workers", workers, *augmented) == 0
    assert run(shapes, tmp_path / "parts", "--iterations", "2", *augmented) == 0
    assert run(shapes, tmp_path / "parts", "--iterations", "3", "--resume", "last", *augmented) == 0
    assert run(shapes, tmp_path / "plain", "--iterations", "1") == 0
    a, b, c = ([r["total"] for r in losses(tmp_path / name)] for name in ("0", "2", "parts"))
    assert a == b == c
    assert losses(tmp_path / "plain")[0]["total"] != a[0]


def test_cached_samples_train_as_those_from_files(shapes: Path, tmp_path: Path) -> None:
    """With and without workers, and resumed: the same losses, and mirrored images once augmentation is on."""
    cached = ("--set", "train.cache_samples=true")
    mirrored = (*cached, "--set", "augment.enabled=true")
    assert run(shapes, tmp_path / "files", "--iterations", "8") == 0
    assert run(shapes, tmp_path / "cached", "--iterations", "8", *cached) == 0
    assert run(shapes, tmp_path / "mirrored", "--iterations", "8", *mirrored) == 0
    assert run(shapes, tmp_path / "workers", "--iterations", "8", "--workers", "2", *mirrored) == 0
    assert run(shapes, tmp_path / "parts", "--iterations", "7", *mirrored) == 0
    assert run(shapes, tmp_path / "parts", "--iterations", "8", "--resume", "last", *mirrored) == 0
    names = ("files", "cached", "mirrored", "workers", "parts")
    a, b, c, d, e = ([r["total"] for r in losses(tmp_path / name)] for name in names)
    assert a == b
    assert c == d == e != b
    assert run(shapes, tmp_path, "--iterations", "1", *mirrored, "--set", "augment.crop=true") == 2


def test_resume_from_weights_alone(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shapes, tmp_path, "--iterations", "1") == 0
    published = tmp_path / "published" / "yolact_tiny_297_50.pth"
    published.parent.mkdir()
    torch.save(load_checkpoint(tmp_path / "yolact_tiny_0_1.pth").model, published)
    folder = tmp_path / "more"
    assert run(shapes, folder, "--iterations", "52", f"--resume={published}", "--start_iter=-1") == 0
    assert "weights only" in capsys.readouterr().err
    assert [record["iteration"] for record in losses(folder)] == [50, 51]


@pytest.mark.parametrize(
    ("freeze", "batch", "init", "frozen"),
    [
        ("auto", 4, "imagenet", True),
        ("auto", 6, "imagenet", False),
        # Without statistics to keep, a frozen ResNet would explode.
        ("auto", 4, "random", False),
        ("always", 8, "random", True),
        ("never", 1, "imagenet", False),
    ],
)
def test_when_batch_norm_is_frozen(freeze: str, batch: int, init: str, frozen: bool) -> None:
    model = Yolact(get_config("yolact_tiny"))
    settings = replace(model.config.train, freeze_bn=freeze, batch_size=batch, init=init)  # type: ignore[arg-type]
    set_training_mode(model, settings)
    assert model.training
    assert model.backbone.get_submodule("stem.1").training is not frozen


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption_saves_and_exits_130(sent: signal.Signals, shapes: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "yolact.cli.train", "--config", "yolact_tiny", "--dataset", str(shapes),
         "--save-folder", str(tmp_path), "--batch-size", "4"],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    journal = tmp_path / "yolact_tiny.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(sent)
    _, output = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "continue with --resume" in output
    assert "Traceback" not in output
    path = find_checkpoint("interrupt", tmp_path, "yolact_tiny")
    assert load_checkpoint(path).iteration == len(losses(tmp_path))


def test_a_loss_that_stays_infinite_ends_the_run(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--iterations", "50", "--set", "train.lr=1e6", "--set", "train.max_grad_norm=0")
    code = run(shapes, tmp_path, *options)
    output = capsys.readouterr().err
    assert code == 1
    assert "10 times in a row" in output
    assert "lower train.lr" in output


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--set", "train.lrr=1"], 2, "near ones: train.lr"),
        (["--iterations", "0"], 2, "--iterations 0"),
        (["--resume", "last"], 1, "no yolact_tiny_<epoch>_<iteration>.pth"),
        (["--resume", "nothing.pth"], 1, "no such file"),
        (["--device", "cuda:99x"], 2, "--device|device"),
    ],
)
def test_wrong_use_is_one_line(
    extra: list[str],
    code: int,
    message: str,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(shapes, tmp_path, "--iterations", "1", *extra) == code if "--iterations" not in extra else True
    if "--iterations" in extra:
        assert run(shapes, tmp_path, *extra) == code
    err = capsys.readouterr().err.strip().splitlines()
    assert any(text in err[-1] for text in message.split("|"))


def test_missing_images_are_found_before_the_first_step(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "data.yaml"
    empty = tmp_path / "empty"
    empty.mkdir()
    annotations = shapes / "annotations/instances_train.json"
    part = f"{{images: {empty}, annotations: {annotations}}}"
    spec.write_text(f"train: {part}\nval: {part}\n")
    assert main(["--config", "yolact_tiny", "--dataset", str(spec), "--save-folder", str(tmp_path)]) == 1
    assert "are missing (24 of 24)" in capsys.readouterr().err


def test_find_checkpoint_takes_the_furthest(tmp_path: Path) -> None:
    for name in ("tiny_0_9", "tiny_0_10", "tiny_0_7_interrupt", "base_9_99", "tiny_best"):
        (tmp_path / f"yolact_{name}.pth").touch()
    assert find_checkpoint("last", tmp_path, "yolact_tiny").name == "yolact_tiny_0_10.pth"
    assert find_checkpoint("interrupt", tmp_path, "yolact_tiny").name == "yolact_tiny_0_7_interrupt.pth"
    with pytest.raises(YolactError, match="interrupt"):
        find_checkpoint("interrupt", tmp_path, "yolact_base")


def test_fine_tuning_for_other_classes(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(7)
    pretrained = Yolact(replace(get_config("yolact_tiny"), classes=Classes(("cat", "dog"), (1, 2))))
    path = tmp_path / "yolact_tiny_3_99.pth"
    save_checkpoint(path, pretrained, 3, 99, None)
    # At rate 0 the checkpoint holds what training began with.
    folder = tmp_path / "tuned"
    assert run(shapes, folder, "--iterations", "1", "--lr", "0", f"--init-from={path}") == 0
    output = capsys.readouterr().err
    assert "3 classes instead of 2, so these layers start anew" in output
    assert "prediction_layers.0.conf_layer, semantic_seg_conv" in output
    tuned = load_checkpoint(folder / "yolact_tiny_0_1.pth").model
    for key, value in pretrained.state_dict().items():
        if key.startswith(("prediction_layers.0.conf_layer", "semantic_seg_conv")):
            assert tuned[key].shape != value.shape
        elif "running" not in key and "num_batches" not in key:
            assert torch.equal(tuned[key], value), key

    other = tmp_path / "yolact_tiny_4_99.pth"
    state = pretrained.state_dict()
    torch.save({key: value for key, value in state.items() if "proto_net.0" not in key}, other)
    # A bare state dict has the classes of the configuration that its name names.
    assert run(shapes, folder, "--iterations", "1", f"--init-from={other}") == 1
    assert "missing: proto_net.0" in capsys.readouterr().err
    assert run(shapes, folder, f"--init-from={path}", "--resume=last") == 2


def test_fine_tuning_goes_on_after_a_restart(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever restarts the command repeats it: the weights are for the first time only."""
    weights, folder = tmp_path / "w/yolact_tiny_0_9.pth", tmp_path / "tuned"
    weights.parent.mkdir()
    torch.save(Yolact(get_config("yolact_tiny")).state_dict(), weights)
    options = (f"--init-from={weights}", "--resume=auto", "--save-every=1", "--keep-last=0")
    assert run(shapes, folder, "--iterations=1", *options) == 0
    assert "continuing from" not in capsys.readouterr().err
    assert run(shapes, folder, "--iterations=2", *options) == 0
    assert f"continuing from {folder / 'yolact_tiny_0_1.pth'}" in capsys.readouterr().err
    assert [line["iteration"] for line in losses(folder)] == [0, 1]
    assert run(shapes, weights.parent, "--iterations=20", *options) == 2
    assert f"--resume auto found {weights}, the weights of --init-from" in capsys.readouterr().err


def test_the_checkpoint_is_chosen_again_after_waiting_for_another_run(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shapes, tmp_path, "--iterations=2", "--save-every=1", "--keep-last=0") == 0
    later = tmp_path / "yolact_tiny_0_2.pth"
    later.rename(tmp_path / "not yet")

    def check(*args: object) -> bool:
        if later.exists():
            return False
        (tmp_path / "not yet").rename(later)  # what the run before saves while this one waits for it
        return True

    monkeypatch.setattr("yolact.train.outputs.check_training_outputs", check)
    capsys.readouterr()
    assert run(shapes, tmp_path, "--iterations=3", "--resume=auto") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "continuing from" in line]
    assert ["_0_1.pth" in said[0], "_0_2.pth" in said[1]] == [True, True]
    assert [line["iteration"] for line in losses(tmp_path)] == [0, 1, 2]


def test_overfit_trains_and_validates_on_the_same_images(shapes: Path, tmp_path: Path) -> None:
    options = ("--overfit", "2", "--batch-size", "2", "--lr", "0.01", "--set", "train.max_grad_norm=5")
    assert run(shapes, tmp_path, "--iterations", "120", *options) == 0
    lines = [json.loads(line) for line in (tmp_path / "yolact_tiny.jsonl").read_text().splitlines()]
    validations = [line["validation"] for line in lines if "validation" in line]
    assert len(validations) == 2
    assert validations[-1]["box_ap"] > 0.2
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"yolact_tiny_120_120.pth", "yolact_tiny_best.pth"}


def test_averaged_weights_are_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, average = Yolact(get_config("yolact_tiny")), Yolact(get_config("yolact_tiny"))
    path = tmp_path / "yolact_tiny_0_1.pth"
    save_checkpoint(path, model, 0, 1, None, average)
    with caplog.at_level("INFO", "yolact"):
        opened = load_model(path).state_dict()
    assert "moving average (EMA)" in caplog.text
    assert torch.equal(opened["semantic_seg_conv.weight"], average.state_dict()["semantic_seg_conv.weight"])


def test_tensorboard_holds_what_the_log_holds(shapes: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert run(shapes, tmp_path, "--iterations", "3", "--set", "train.tensorboard=true") == 0
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("box")]
    assert logged == [(r["iteration"], pytest.approx(r["box"], rel=1e-6)) for r in losses(tmp_path)]
    assert {"total", "lr", "images_per_second", "grad_norm"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["batch"]


def test_the_command_keeps_freed_memory(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("yolact.data.workers.keep_freed_memory", lambda: calls.append("keep"))
    monkeypatch.setattr("yolact.train.loop.train", lambda *arguments: calls.append("train"))
    assert run(tmp_path) == 0
    assert calls == ["keep", "train"]
