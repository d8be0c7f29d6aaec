"""Shared memory that workers use again."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from yolact.config import AugmentConfig, Classes, ModelConfig, TrainConfig
from yolact.data import image_pool
from yolact.data.batch import Batch, Sample, Target
from yolact.data.coco import CocoDataset
from yolact.data.image_pool import ImagePool
from yolact.dataset_tools.synthetic import make_shapes_dataset
from yolact.train import loader
from yolact.train.sampler import EpochBatches, SharedBatches


def sample(value: float, instances: int = 2) -> Sample:
    masks = [torch.rand(instances, size, 3) > 0.5 for size in (5, 1)]
    labels, crowds = torch.arange(instances), torch.rand(3 - instances, 4)
    target = Target(torch.rand(instances, 4), labels, *masks, crowds)
    return Sample(torch.arange(3 * 4 * 5).reshape(3, 4, 5) + value, target, int(value))


def assert_equal(batch: Batch, samples: list[Sample]) -> None:
    assert batch.image_ids == [one.image_id for one in samples]
    for image, target, one in zip(batch.images, batch.targets, samples, strict=True):
        assert torch.equal(image, one.image)
        for name, tensor in vars(one.target).items():
            assert torch.equal(getattr(target, name), tensor)
            assert getattr(target, name).dtype == tensor.dtype


def test_a_place_is_used_again_when_all_on_its_memory_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_pool, "get_worker_info", lambda: SimpleNamespace(id=1))
    pool = ImagePool(2, 1, 3, 4, 5)
    samples = [sample(1.0), sample(2.0, instances=0), sample(3.0, instances=3)]
    received = pickle.loads(pickle.dumps(pool.collate(samples)))
    assert_equal(received, samples)
    assert received.images.is_contiguous(memory_format=torch.channels_last)
    part = received.images[1, 2]
    other = pool.collate([sample(7.0)])
    assert type(other) is Batch  # no place is free
    address = received.images.data_ptr()
    del received
    assert type(pool.collate([sample(8.0)])) is Batch
    assert torch.equal(part, samples[1].image[2])
    del part
    again = [sample(9.0), sample(10.0)]
    received = pickle.loads(pickle.dumps(pool.collate(again)))
    assert received.images.data_ptr() == address
    assert_equal(received, again)


def test_a_batch_larger_than_a_place_has_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_pool, "get_worker_info", lambda: SimpleNamespace(id=0))
    samples = [sample(1.0), sample(2.0)]
    assert_equal(pickle.loads(pickle.dumps(ImagePool(1, 2, 1, 4, 5).collate(samples))), samples)


@pytest.mark.parametrize(
    "method", ["fork", pytest.param("spawn", marks=pytest.mark.slow), "without shared memory"]
)
def test_the_loader_keeps_batches_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    if method == "without shared memory":

        def refuse(*arguments: int) -> None:
            raise RuntimeError("unable to allocate shared memory")

        monkeypatch.setattr(loader, "ImagePool", refuse)
    else:
        monkeypatch.setattr(loader, "start_method", lambda: method)
    data = make_shapes_dataset(tmp_path, 9, 1, (64, 80), crowd_share=0.5)
    classes = Classes(("circle", "square", "triangle"), (1, 4, 9))
    model = ModelConfig(input_size=64)
    dataset = CocoDataset(data.train_images, data.train_annotations, model, classes, AugmentConfig(), 3)
    batches = SharedBatches(EpochBatches(len(dataset), 3, 3, 0, 12), 2)
    single, several = (
        # All are kept: more than there are places.
        list(loader.iterations(dataset, batches, settings, torch.device("cpu")))
        for settings in (TrainConfig(batch_size=3, accumulate=2, workers=n) for n in (0, 2))
    )
    assert len(single) == len(several) == 12
    for expected, found in zip(single, several, strict=True):
        for (batch, failures), (other, others) in zip(expected, found, strict=True):
            samples = zip(batch.images, batch.targets, batch.image_ids, strict=True)
            assert_equal(other, [Sample(*one) for one in samples])
            assert failures == others
