"""Validation during training: without a validation part, and failures and interruptions of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from yolact.data.layout import resolve_dataset
from yolact.registry import get_config
from yolact.train.loop import train


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
