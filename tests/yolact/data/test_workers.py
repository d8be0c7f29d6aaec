"""Batches from other processes, however these are started."""

from __future__ import annotations

import ctypes
import multiprocessing
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from yolact.config import AugmentConfig, Classes, DatasetConfig, ModelConfig
from yolact.data.batch import Batch
from yolact.data.cached import CachedDataset
from yolact.data.coco import CocoDataset
from yolact.data.workers import keep_freed_memory, start_method
from yolact.dataset_tools.synthetic import make_shapes_dataset
from yolact.train.failures import ReplacingDataset, collate_replaced
from yolact.train.sampler import EpochBatches, SharedBatches

MODEL, CLASSES = ModelConfig(input_size=64), Classes(("circle", "square", "triangle"), (1, 4, 9))
FLIPS = AugmentConfig(photometric=False, expand=False, crop=False, flip=True)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    data = make_shapes_dataset(tmp_path_factory.mktemp("shapes"), 9, 1, (64, 80), crowd_share=0.5)
    (Path(data.train_images) / "000004.png").write_bytes(b"damaged")
    return data


def load(shapes: DatasetConfig, kind: type[CocoDataset], augment: AugmentConfig, method: str | None) -> list:
    dataset = kind(shapes.train_images, shapes.train_annotations, MODEL, CLASSES, augment, 3)
    batches = SharedBatches(EpochBatches(len(dataset), 3, 3, 0, 5), 1)
    workers = 2 if method else 0
    loader: DataLoader = DataLoader(
        ReplacingDataset(dataset), batch_sampler=batches, collate_fn=collate_replaced, num_workers=workers,
        multiprocessing_context=method,
    )  # fmt: skip
    return list(loader)


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.images, *(tensor for target in batch.targets for tensor in vars(target).values())]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "augment"), [(CocoDataset, AugmentConfig()), (CachedDataset, FLIPS)])
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_the_batches_are_the_same(shapes: DatasetConfig, kind, augment: AugmentConfig, method: str) -> None:
    expected, found = (load(shapes, kind, augment, one) for one in (None, method))
    assert len(expected) == len(found) == 5
    assert any(failures for _, failures in expected)
    for (batch, failures), (other, others) in zip(expected, found, strict=True):
        assert (batch.image_ids, failures) == (other.image_ids, others)
        assert all(torch.equal(a, b) for a, b in zip(tensors(batch), tensors(other), strict=True))


@pytest.mark.slow
def test_a_training_whose_program_has_chosen_spawn(shapes: DatasetConfig, tmp_path: Path) -> None:
    code = """
import multiprocessing, sys
multiprocessing.set_start_method("spawn")
from yolact.cli.train import main
sys.exit(main())
"""
    folder = Path(shapes.train_images).parent
    words = ["--config", "yolact_tiny", "--dataset", str(folder), "--iterations", "2", "--workers", "2"]
    words += [
        "--batch-size",
        "2",
        "--validate-every",
        "0",
        "--save-folder",
        str(tmp_path),
        "--set",
        "augment.flip=true",
    ]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("yolact_tiny_*.pth")), done.stderr


def test_the_start_method(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen, platform, expected in (
        ("forkserver", "linux", "forkserver"),
        (None, "linux", "fork"),
        (None, "darwin", "spawn"),
        (None, "win32", "spawn"),
    ):
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none, one=chosen: one)
        monkeypatch.setattr(sys, "platform", platform)
        assert start_method() == expected


def test_freed_memory_is_never_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {}
    library = SimpleNamespace(mallopt=calls.__setitem__)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    keep_freed_memory()
    # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX
    assert calls == {-1: -1, -3: 2**31 - 1, -4: 0}


class Annotations(torch.utils.data.Dataset):
    """Reads the annotations of an image, and says how much memory the process has for itself."""

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> int:
        assert list(self.dataset.records[index].annotations)
        return psutil.Process().memory_full_info().uss >> 20


@pytest.mark.skipif(sys.platform != "linux", reason="no fork, or no count of private memory")
def test_a_process_does_not_copy_the_annotations_that_it_reads(write_coco, make_square) -> None:
    one = make_square(0, 0, 300)
    one["segmentation"] = [[float(value) for value in range(300)]]
    images, path = write_coco([(300, 300)], [{**one, "image_id": 1, "id": number} for number in range(6000)])
    dataset = CocoDataset(images, path, MODEL, Classes(("nut", "bolt"), (0, 7)))
    (record,) = dataset.records
    # 20 bytes for a float, 56 MB in all.
    dataset.records = [
        type(record)(index, record.path, 300, 300, [dict(a) for a in record.annotations[index : index + 60]])
        for index in range(0, 6000, 60)
    ]
    loader = DataLoader(Annotations(dataset), num_workers=1, multiprocessing_context="fork", collate_fn=max)
    used = list(loader)
    assert len(used) == 100 and used[-1] - used[0] < 10
