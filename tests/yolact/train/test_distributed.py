"""Processes of one machine share a validation and end together; test_machines.py has those of several."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from yolact.data.layout import resolve_dataset
from yolact.evaluation.evaluate import Predictions
from yolact.evaluation.ground_truth import GroundTruth
from yolact.model import Yolact
from yolact.registry import get_config
from yolact.train.checkpoint import find_checkpoint
from yolact.train.distributed import Processes
from yolact.train.validation import Validation
from yolact.weights.load import load_checkpoint

pytestmark = pytest.mark.slow

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TORCHRUN, *arguments], capture_output=True, text=True, check=False, timeout=200)


class SimulatedProcess(Processes):
    """One of several processes that run one after the other; the last to run is the first."""

    gathered: ClassVar[list[Any]] = []

    def gather(self, value: Any) -> list[Any]:
        self.gathered.append(value)
        return list(reversed(self.gathered))

    def any(self, flag: bool) -> bool:
        return flag


def test_shares_of_a_validation_give_its_ap(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = get_config("yolact_tiny")
    config = replace(config, dataset=resolve_dataset(shapes), train=replace(config.train, overfit=9))
    truth = Validation(config, (), Processes()).truth
    assert len(truth.images) == 9

    def half_right(engine: Any, images: Path, part: GroundTruth, *_: Any, **__: Any) -> Predictions:
        """Each annotation of every other image, found exactly."""
        ids = [image["id"] for image in part.images]
        entries = [
            {**entry, "score": 0.5 + entry["id"] / 1000}
            for entry in truth.annotations
            if entry["image_id"] in ids and entry["image_id"] % 2
        ]
        return Predictions(ids, entries, entries)

    monkeypatch.setattr("yolact.train.validation.predict", half_right)
    model = Yolact(config)
    device = torch.device("cpu")
    whole = Validation(config, (), Processes()).run(model, device)
    assert 0.3 < whole["mask_ap"] < 0.7
    for rank in (2, 1, 0):
        shared = Validation(config, (), SimulatedProcess(rank, 3)).run(model, device)
    assert shared == whole


# One process fails on its own, in the middle: the other waits for it in an exchange.
FAILING = """
import os, sys
from yolact.cli.train import main
from yolact.data.coco import CocoDataset
from yolact_runtime.errors import YolactError

get, seen = CocoDataset.__getitem__, []

def failing(dataset, index):
    seen.append(index)
    if os.environ["RANK"] == "1" and len(seen) > 5:
        raise YolactError("rank 1 reads nothing any more")
    return get(dataset, index)

CocoDataset.__getitem__ = failing
sys.exit(main(sys.argv[1:]))
"""


def test_one_failing_process_ends_all(command: Callable[..., list[str]], tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    done = torchrun(str(script), *command(tmp_path, "--iterations", "30", "--save-every", "1"))
    assert done.returncode == 1
    assert "no image can be read: rank 1 reads nothing any more" in done.stderr
    assert "ERROR: another process of the training failed" in done.stderr or "SIGTERM" in done.stderr
    load_checkpoint(find_checkpoint("last", tmp_path, "yolact_tiny"))


def test_too_few_images_for_the_processes(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--iterations", "1", "--overfit", "1", "--accumulate", "2") == 2
    assert "need 2 images in an iteration; there are 1 images" in capsys.readouterr().err
