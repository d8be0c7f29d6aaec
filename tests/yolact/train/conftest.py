"""A synthetic dataset, and short trainings on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolact.cli.train import main
from yolact.dataset_tools.synthetic import make_shapes_dataset

COMMON = (
    "--config", "yolact_tiny_config", "--batch_size=4", "--workers", "0", "--no-autoscale", "--device", "cpu",
    # Sums depend on how many threads share them, and other tests may have changed that for this process.
    "--set", "train.warmup_iterations=0", "--threads", "1",
    # Every sample from its file, and a rate that does not depend on where a training ends.
    "--set", "train.cache_samples=false", "--set", "train.schedule=steps", "--set", "augment.enabled=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    make_shapes_dataset(root, train_images=24, val_images=4, seed=3)
    return root


@pytest.fixture()
def run(shapes: Path) -> Callable[..., int]:
    """`run(folder, *options)`: train the tiny configuration; returns the exit code."""

    def run(folder: Path, *options: str) -> int:
        return main([*COMMON, "--dataset", str(shapes), "--save_folder", str(folder), *options])

    return run


@pytest.fixture()
def command(shapes: Path) -> Callable[..., list[str]]:
    """The same as arguments of `python -m yolact.cli.train`."""

    def command(folder: Path, *options: str) -> list[str]:
        return [*COMMON, "--dataset", str(shapes), "--save_folder", str(folder), *options]

    return command


@pytest.fixture()
def records() -> Callable[..., list[dict[str, Any]]]:
    """`records(folder)`: the logged iterations; with `kind="validation"`, the validations."""

    def records(folder: Path, kind: str = "total") -> list[dict[str, Any]]:
        lines = (folder / "yolact_tiny.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if kind in record]

    return records
