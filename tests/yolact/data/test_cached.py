from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from yolact.config import AugmentConfig, Classes, DatasetConfig, ModelConfig
from yolact.data.batch import Sample
from yolact.data.cached import CachedDataset, mirrored
from yolact.data.coco import CocoDataset
from yolact.dataset_tools.synthetic import make_shapes_dataset
from yolact_runtime.errors import UsageError

MODEL, CLASSES = ModelConfig(input_size=64), Classes(("circle", "square", "triangle"), (1, 4, 9))
FLIPS = AugmentConfig(photometric=False, expand=False, crop=False, mirror=True, flip=True)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), 12, 1, (64, 80), crowd_share=0.5)


def cached(shapes: DatasetConfig, augment: AugmentConfig | None = None, seed: int = 0) -> CachedDataset:
    return CachedDataset(shapes.train_images, shapes.train_annotations, MODEL, CLASSES, augment, seed)


def same(one: Sample, other: Sample) -> bool:
    pairs = zip(vars(one.target).values(), vars(other.target).values(), strict=True)
    return torch.equal(one.image, other.image) and all(torch.equal(a, b) for a, b in pairs)


def test_samples_are_those_of_the_dataset_and_files_are_read_once(shapes: DatasetConfig) -> None:
    plain = CocoDataset(shapes.train_images, shapes.train_annotations, MODEL, CLASSES)
    dataset = cached(shapes)
    for index in range(len(plain)):
        assert same(dataset[0, index], plain[index])
    dataset.records = [replace(record, path=Path("gone")) for record in dataset.records]
    assert same(dataset[7, 3], plain[3])


def test_mirror_and_flip_depend_on_seed_epoch_and_index(shapes: DatasetConfig) -> None:
    plain, dataset, again, other = (
        cached(shapes, augment, seed) for augment, seed in ((None, 0), (FLIPS, 1), (FLIPS, 1), (FLIPS, 2))
    )
    seen, differ = set(), False
    for epoch, index in [(epoch, index) for epoch in range(3) for index in range(12)]:
        sample, whole = dataset[epoch, index], plain[index]
        kinds = [whole, mirrored(whole, 0), mirrored(whole, 1), mirrored(mirrored(whole, 0), 1)]
        matches = [number for number, kind in enumerate(kinds) if same(kind, sample)]
        assert matches
        seen.add(matches[0])
        assert same(sample, again[epoch, index])
        differ |= not same(sample, other[epoch, index])
    assert seen == {0, 1, 2, 3}
    assert differ


def test_boxes_and_masks_are_mirrored_with_the_image(shapes: DatasetConfig) -> None:
    dataset, crowds = cached(shapes), 0
    for index in range(12):
        sample = dataset[index]
        for axis, side in ((0, -1), (1, -2)):
            result = mirrored(sample, axis)
            assert torch.equal(result.image, sample.image.flip(side))
            assert torch.equal(result.target.masks, sample.target.masks.flip(side))
            assert torch.equal(result.target.semantic_masks, sample.target.semantic_masks.flip(side))
            for one, other in (
                (sample.target.boxes, result.target.boxes),
                (sample.target.crowd_boxes, result.target.crowd_boxes),
            ):
                across, along = 1 - axis, axis
                torch.testing.assert_close(other[:, along], 1 - one[:, along + 2])
                torch.testing.assert_close(other[:, along + 2], 1 - one[:, along])
                assert torch.equal(other[:, [across, across + 2]], one[:, [across, across + 2]])
            assert same(mirrored(result, axis), replace_rounded(sample, mirrored(result, axis)))
        crowds += len(sample.target.crowd_boxes)
    assert crowds


def replace_rounded(sample: Sample, other: Sample) -> Sample:
    """`sample` with the boxes of `other`, once they are known to be equal but for rounding."""
    boxes, crowd_boxes = other.target.boxes, other.target.crowd_boxes
    torch.testing.assert_close(boxes, sample.target.boxes)
    torch.testing.assert_close(crowd_boxes, sample.target.crowd_boxes)
    return replace(sample, target=replace(sample.target, boxes=boxes, crowd_boxes=crowd_boxes))


@pytest.mark.parametrize("name", ["photometric", "expand", "crop", "rotate"])
def test_other_augmentation_is_refused(shapes: DatasetConfig, name: str) -> None:
    with pytest.raises(UsageError, match=rf"train\.cache_samples with augment\.{name}"):
        cached(shapes, replace(FLIPS, **{name: True}))
    cached(shapes, replace(FLIPS, **{name: True}, enabled=False))
