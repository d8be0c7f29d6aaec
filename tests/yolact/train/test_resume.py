"""A run that is killed and resumed equals one that was never stopped, and files are whole at any moment."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from yolact.train.checkpoint import Checkpoints, find_checkpoint
from yolact.weights.load import load_checkpoint

# Everything that has a state: average, cosine, accumulation, validation with a best value, mask sampling.
EVERYTHING = (
    "--iterations", "7", "--save-every", "1", "--keep-last", "0", "--validate-every", "1",
    "--accumulate", "2",
    "--set", "train.ema_decay=0.99", "--set", "train.schedule=cosine", "--set", "loss.max_masks=2",
)  # fmt: skip
TIMES = ("images_per_second", "data_wait", "memory_mib")


def lasting(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what a clock says."""
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal bit for bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{index}")
    else:
        assert a == b, where


def without_run(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without what differs between two runs that compute the same."""
    training = checkpoint["training"] and {**checkpoint["training"], "run": None}
    return {**checkpoint, "path": None, "config": None, "training": training}


@pytest.mark.slow
def test_resumed_after_any_step_equals_never_stopped(run: Any, records: Any, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert run(whole, *EVERYTHING) == 0
    end = load_checkpoint(find_checkpoint("last", whole, "yolact_tiny"))
    assert end.iteration == 7
    for stopped in (1, 4, 6):
        (checkpoint,) = whole.glob(f"yolact_tiny_*_{stopped}.pth")
        part = tmp_path / f"from_{stopped}"
        assert run(part, *EVERYTHING, f"--resume={checkpoint}") == 0
        assert lasting(records(part)) == lasting(records(whole)[stopped:])
        again = load_checkpoint(find_checkpoint("last", part, "yolact_tiny"))
        assert_same(vars(again)["model"], end.model)
        assert_same(again.ema, end.ema)
        # The files in the other folder are not this run's to delete.
        written = end.training.pop("written")
        assert again.training.pop("written") == written[stopped:]
        assert again.training.pop("run") != end.training["run"]  # in another folder, it is another run
        again.training["run"] = end.training["run"]
        assert_same(again.training, end.training)
        end.training["written"] = written


@pytest.mark.slow
def test_killed_at_random_moments(
    run: Any, command: Callable[..., list[str]], records: Any, tmp_path: Path
) -> None:
    kills = int(os.environ.get("YOLACT_TEST_KILLS", "2"))
    iterations = str(10 + 3 * kills)  # a few between two kills
    options = ("--iterations", iterations, "--save-every=1", "--keep-last=2", "--set", "loss.max_masks=2")
    options += ("--validate-every", "1")  # an epoch has 6 iterations, and a validation takes as long as four
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    chance = random.Random(5)
    for _ in range(kills):
        arguments = [sys.executable, "-m", "yolact.cli.train", *command(killed, *options, "--resume", "auto")]
        files = set(killed.glob("*.pth"))
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        while process.poll() is None and set(killed.glob("*.pth")) == files:
            time.sleep(0.01)
        try:
            process.wait(chance.uniform(0, 0.3))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for path in killed.glob("yolact_tiny_*.pth"):
            load_checkpoint(path)
    assert run(killed, *options, "--resume", "auto") == 0
    assert run(whole, *options) == 0
    for kind in ("total", "validation"):
        assert lasting(records(killed, kind)) == lasting(records(whole, kind))
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())


# The process ends without notice when the validation opens its `at`-th image.
DEADLY_VALIDATION = """
import os, signal, sys
from yolact.cli.train import main
from yolact.evaluation import evaluate

at, opened, open_image = int(sys.argv[1]), [], evaluate._open

def deadly(*arguments):
    opened.append(1)
    if len(opened) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return open_image(*arguments)

evaluate._open = deadly
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("at", "iteration"), [(3, 6), (6, 8)])
def test_a_validation_that_is_killed_is_repeated(
    at: int, iteration: int, run: Any, command: Callable[..., list[str]], records: Any, tmp_path: Path
) -> None:
    """Each validation opens 4 images: the one of the epoch's end is killed, or the last one."""
    options = ("--iterations", "8", "--validate-every", "1", "--set", "train.ema_decay=0.9")
    options += ("--set", "train.save_epochs=1")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = [sys.executable, "-c", DEADLY_VALIDATION, str(at), *command(killed, *options)]
    assert subprocess.run(arguments, stderr=subprocess.DEVNULL, check=False).returncode == -9
    saved = find_checkpoint("last", killed, "yolact_tiny")
    assert load_checkpoint(saved).iteration == iteration
    assert run(killed, *options, "--resume", "auto") == 0
    assert run(whole, *options) == 0
    for kind in ("total", "validation"):
        assert lasting(records(killed, kind)) == lasting(records(whole, kind))
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())
    for name in ("yolact_tiny_1_8.pth", "yolact_tiny_best.pth"):
        assert_same(*(without_run(vars(load_checkpoint(folder / name))) for folder in (killed, whole)))


@pytest.mark.slow
def test_keeps_the_last_ones_the_best_and_other_files(run: Any, records: Any, tmp_path: Path) -> None:
    foreign = tmp_path / "yolact_tiny_0_1.pth"
    foreign.write_bytes(b"somebody else's")
    options = (
        "--save-every",
        "4",
        "--keep-last",
        "2",
        "--set",
        "train.save_epochs=1",
        "--validate-every",
        "1",
    )
    assert run(tmp_path, "--iterations", "8", *options) == 0
    assert run(tmp_path, "--iterations", "12", *options, "--resume", "last") == 0
    # An epoch has 6 iterations: saved at 4, 6, 8, 12.
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {f"yolact_tiny_{which}.pth" for which in ("0_1", "1_8", "2_12", "best")}
    validations = records(tmp_path, "validation")
    assert [record["iteration"] for record in validations] == [5, 7, 11]
    best = max(validations, key=lambda record: record["validation"]["mask_ap"])
    assert load_checkpoint(tmp_path / "yolact_tiny_best.pth").iteration == best["iteration"] + 1


def test_hidden_files_of_others_stay(tmp_path: Path) -> None:
    others = [tmp_path / f".yolact_{name}.pth" for name in ("base_0_5.abcd_123", "tiny_notes", "tiny_0_5")]
    for path in others:
        path.touch()
    Checkpoints(tmp_path, "yolact_tiny", 2).prepare(0)
    assert all(path.exists() for path in others)


def test_auto_starts_anew_without_a_checkpoint(tmp_path: Path) -> None:
    assert find_checkpoint("auto", tmp_path, "yolact_tiny") is None
    (tmp_path / "yolact_tiny_9_99.pth").symlink_to(tmp_path / "nothing")
    (tmp_path / "yolact_tiny_0_9.pth").touch()
    assert find_checkpoint("auto", tmp_path, "yolact_tiny") == tmp_path / "yolact_tiny_0_9.pth"
