"""A training that would write over its initial weights or its data."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from yolact.config import Config, DatasetConfig
from yolact.registry import get_config
from yolact.train.distributed import Processes
from yolact.train.outputs import check_training_outputs
from yolact_runtime import temporary
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.temporary import claiming


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """400 iterations, saved every 100; initial weights are in the folder `w`."""
    for name in (
        "yolact_tiny_best.pth",
        "yolact_tiny_3_300.pth",
        "yolact_tiny_3_350.pth",
        "yolact_tiny_9_900.pth",
    ):
        path = tmp_path / "w" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    dataset = DatasetConfig("mine", *(str(tmp_path / name) for name in ("t", "t.json", "v", "v.json")))
    config = get_config("yolact_tiny")
    train = replace(config.train, autoscale=False, max_iterations=400, save_every=100, save_epochs=0)
    return replace(config, train=train, dataset=dataset)


@pytest.mark.parametrize("name", ["yolact_tiny_best.pth", "yolact_tiny_3_300.pth"])
def test_initial_weights_that_the_run_would_replace(config: Config, tmp_path: Path, name: str) -> None:
    (tmp_path / "link.pth").symlink_to(tmp_path / "w" / name)
    for path in (tmp_path / "w" / name, tmp_path / "link.pth"):
        with pytest.raises(UsageError, match=r"--save-folder would write over .*\(--init-from\)"):
            check_training_outputs(config, tmp_path / "w", str(path))
        check_training_outputs(config, tmp_path / "elsewhere", str(path))
        check_training_outputs(replace(config, name="other"), tmp_path / "w", str(path))


@pytest.mark.parametrize("name", ["yolact_tiny_3_350.pth", "yolact_tiny_9_900.pth", "yolact_base"])
def test_other_weights_may_be_in_the_folder(config: Config, tmp_path: Path, name: str) -> None:
    check_training_outputs(config, tmp_path / "w", str(tmp_path / "w" / name))
    check_training_outputs(config, tmp_path / "w", None)


def test_the_data_is_kept(config: Config, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    (tmp_path / "w/yolact_tiny.jsonl").symlink_to(tmp_path / "t.json")
    with pytest.raises(UsageError, match=r"tiny.jsonl, which is an input \(--dataset\)"):
        check_training_outputs(config, tmp_path / "w", None)


@pytest.mark.skipif(sys.platform == "win32", reason="locks end with the process there")
def test_a_second_training_of_the_same_configuration(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claiming():
        check_training_outputs(config, tmp_path / "w", None)
        monkeypatch.setattr(temporary, "_held", set())  # as in another process
        with pytest.raises(YolactError, match=r"^another run writes to .*yolact_tiny.jsonl; wait for it"):
            check_training_outputs(config, tmp_path / "w", None)
        # A process that does not write.
        check_training_outputs(config, tmp_path / "w", None, processes=Processes(1, 2))
        check_training_outputs(replace(config, name="other"), tmp_path / "w", None)
