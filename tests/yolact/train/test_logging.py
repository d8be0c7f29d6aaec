"""The lines of a training's log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from yolact.config import TrainConfig
from yolact.train import logging
from yolact.train.logging import TrainingLog
from yolact.train.step import Step


def test_the_time_that_passes_until_batches_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(logging.time, "perf_counter", lambda: now)

    def load():
        nonlocal now
        for seconds in (3.0, 1.0):
            now += seconds
            yield None

    step = Step({"box": 1.0}, 1.0, applied=True, healthy=True, suspect=None)
    with TrainingLog(tmp_path / "log.jsonl", 0, TrainConfig(max_iterations=2)) as journal:
        for iteration, _ in enumerate(journal.waiting(load())):
            now += 1.0  # the step
            journal.add(iteration, 0, step, 0.1, 8, torch.device("cpu"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["data_wait"] for line in lines] == [0.75, 0.5]
    assert [line["images_per_second"] for line in lines] == [2.0, 4.0]
