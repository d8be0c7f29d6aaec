"""Draws and dropped instances; a sample depends only on (seed, epoch, index)."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import downsample_masks
from torch.utils.data import DataLoader

from yolact.config import AugmentConfig, Classes, Config, ModelConfig
from yolact.data.annotations import read_classes
from yolact.data.augment import Augmenter, Photometric, draw_geometry, draw_photometric
from yolact.data.batch import Batch, Sample, collate
from yolact.data.coco import CocoDataset
from yolact.data.geometry import Geometry
from yolact.data.segmentation import to_mask
from yolact.model.priors import prototype_size, pyramid_levels
from yolact.registry import get_config
from yolact.train.sampler import EpochBatches
from yolact_runtime.errors import UsageError
from yolact_runtime.metadata import InputSize

CLASSES = Classes(("nut", "bolt"), (0, 7))
SMALL = ModelConfig(input_size=64)
WIDE = ModelConfig(input_size=(32, 112))
RECIPE = AugmentConfig()
EVERYTHING = AugmentConfig(flip=True, rotate=True)


def same(a: Sample, b: Sample) -> bool:
    return torch.equal(a.image, b.image) and all(
        torch.equal(one, other)
        for one, other in zip(vars(a.target).values(), vars(b.target).values(), strict=True)
    )


@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 1.4]), st.sampled_from([-18.0, 0.0, 11.0]))
def test_colours_change_as_in_hsv(seed: int, saturation: float, hue: float) -> None:
    pixels = np.random.default_rng(seed).uniform(60, 200, (4, 4, 3)).astype(np.float32)
    changed = pixels.copy()
    Photometric(-20, 1.1, saturation, hue, 0.9)(changed)
    for pixel, got in zip(pixels.reshape(-1, 3), changed.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*((pixel[::-1] - 20) * 1.1 / 255))
        # colorsys takes saturations up to 1; beyond, the darker channels go below 0, unclipped.
        rgb = np.array(colorsys.hsv_to_rgb((h + hue / 360) % 1, 1, 1))
        expected = v * (1 - s * saturation * (1 - rgb)) * 255 * 0.9
        np.testing.assert_allclose(got[::-1], expected, atol=0.02)


def test_photometric_draws_have_the_configured_ranges_and_chances() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_photometric(rng, RECIPE) for _ in range(4000)]
    contrasts = [(p.contrast, p.late_contrast) for p in draws]
    assert all(1 in pair for pair in contrasts)
    early, late = (np.mean([pair[i] != 1 for pair in contrasts]) for i in (0, 1))
    assert early == pytest.approx(0.25, abs=0.03)
    assert late == pytest.approx(0.25, abs=0.03)
    for values, neutral, low, high in (
        ([p.brightness for p in draws], 0, -32, 32),
        ([a * b for a, b in contrasts], 1, 0.5, 1.5),
        ([p.saturation for p in draws], 1, 0.5, 1.5),
        ([p.hue for p in draws], 0, -18, 18),
    ):
        changed = np.array([value for value in values if value != neutral])
        assert len(changed) / len(draws) == pytest.approx(0.5, abs=0.03)
        assert low <= changed.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < changed.max() <= high
        assert changed.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
    assert draw_photometric(rng, replace(RECIPE, photometric=False)) == Photometric()


def test_geometric_draws_have_the_configured_chances() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([[100.0, 100, 300, 200]])
    plain = replace(EVERYTHING, crop=False)
    draws = [draw_geometry(rng, plain, boxes, 480, 640) for _ in range(3000)]
    ratios = np.array([(g.crop[2] - g.crop[0]) / 640 for g in draws])
    assert np.mean(ratios == 1) == pytest.approx(0.5, abs=0.03)
    expanded = ratios[ratios != 1]
    assert 1 < expanded.min() < 1.05
    assert 3.95 < expanded.max() <= 4
    assert expanded.mean() == pytest.approx(2.5, abs=0.1)
    assert all(g.crop[0] <= 0 and g.crop[1] <= 0 and g.crop[2] >= 640 and g.crop[3] >= 480 for g in draws)
    for name in ("mirror", "flip"):
        assert np.mean([getattr(g, name) for g in draws]) == pytest.approx(0.5, abs=0.03)
    assert np.bincount([g.turns for g in draws]) / 3000 == pytest.approx(np.full(4, 0.25), abs=0.03)
    still = replace(RECIPE, expand=False, mirror=False)
    whole = [draw_geometry(rng, still, boxes, 480, 640).crop == (0, 0, 640, 480) for _ in range(3000)]
    # One kind of crop of six is none.
    assert np.mean(whole) == pytest.approx(1 / 6, abs=0.03)


boxes_of = st.lists(
    st.tuples(st.floats(0, 180), st.floats(0, 130), st.floats(1, 200), st.floats(1, 150)), max_size=6
).map(lambda rows: np.array([[x, y, min(x + w, 200), min(y + h, 150)] for x, y, w, h in rows]).reshape(-1, 4))


@given(boxes_of, st.sampled_from([1.0, 0.5, 1.6]), st.integers(0, 2**32))
def test_crops_keep_an_instance_and_their_shape(boxes: np.ndarray, aspect: float, seed: int) -> None:
    config = replace(EVERYTHING, expand=False)
    geometry = draw_geometry(np.random.default_rng(seed), config, boxes, 150, 200, aspect)
    if geometry.turns % 2:  # the crop is resized to the input before it is turned
        aspect = 1 / aspect
    x1, y1, x2, y2 = geometry.crop
    assert 0 <= x1 < x2 <= 200
    assert 0 <= y1 < y2 <= 150
    if geometry.crop != (0, 0, 200, 150):
        # Whole pixels: a side may be one more or less than drawn.
        assert x2 - x1 >= 0.3 * 200 - 1
        assert y2 - y1 >= 0.3 * 150 - 1
        assert (y2 - y1 - 1) / (x2 - x1 + 1) <= 2 * aspect
        assert (y2 - y1 + 1) / (x2 - x1 - 1) >= 0.5 * aspect
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = [(x1 < x < x2) and (y1 < y < y2) for x, y in centres]
        assert any(inside) or len(boxes) == 0
        assert geometry.keeps(boxes).tolist() == inside


def test_an_enforced_iou_is_reached() -> None:
    boxes = np.array([[20.0, 20, 80, 90], [100, 50, 190, 140]])

    def reached(enforce: bool) -> float:
        """Share of crops that overlap a box by 0.3; one kind of 51 with a crop asks for no overlap."""
        config = replace(RECIPE, expand=False, crop_min_ious=(0.3,) * 50, crop_enforce_iou=enforce)
        rng = np.random.default_rng(0)
        crops = np.array([draw_geometry(rng, config, boxes, 150, 200).crop for _ in range(800)])
        crops = crops[(crops != [0, 0, 200, 150]).any(1)][:, None]  # (c, 1, 4)
        sides = np.minimum(boxes[:, 2:], crops[..., 2:]) - np.maximum(boxes[:, :2], crops[..., :2])
        shared = sides.clip(0).prod(-1)
        areas = [(b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) for b in (boxes, crops)]
        return float((shared / (areas[0] + areas[1] - shared) >= 0.3).any(1).mean())

    assert reached(True) > 0.97
    assert reached(False) < 0.9


@pytest.mark.parametrize("model", [SMALL, WIDE], ids=["square", "wide"])
@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (30, 3000)])
def test_extreme_image_sizes_are_augmented(size: tuple[int, int], model: ModelConfig) -> None:
    rng = np.random.default_rng(1)
    augmenter = Augmenter(EVERYTHING, model, 0)
    image = np.full((*size, 3), 90, np.uint8)
    for _ in range(50):
        photometric, geometry = augmenter.draw(
            0, int(rng.integers(99)), np.array([[0.0, 0, size[1], size[0]]]), np.zeros(1, bool), *size
        )
        result = augmenter.normalise(augmenter.image(image, photometric, geometry))
        assert result.shape == (3, *model.input_shape)
        assert np.isfinite(result).all()


def test_pixels_outside_the_image_keep_the_fill_colour() -> None:
    augmenter = Augmenter(RECIPE, SMALL, 0)
    image = np.full((20, 20, 3), 200, np.uint8)
    geometry = Geometry((-20, -20, 40, 40), mirror=True)
    result = augmenter.image(image, Photometric(brightness=20, contrast=1.2, hue=10), geometry)
    np.testing.assert_allclose(result[0, 0], RECIPE.expand_fill, rtol=1e-6)
    np.testing.assert_allclose(result[32, 32], 264, rtol=1e-5)
    assert np.abs(augmenter.normalise(result)[:, 0, 0]).max() < 1e-6


@pytest.fixture
def dataset(write_coco, make_square) -> CocoDataset:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (60, 80, 3), np.uint8) for _ in range(6)]
    squares = [make_square(5 + 3 * i, 4, 12 + i, image_id=i % 4 + 1) for i in range(12)]
    images, path = write_coco(images, [*squares, make_square(30, 30, 20, image_id=5, iscrowd=1)])
    return CocoDataset(images, path, SMALL, CLASSES, EVERYTHING, seed=3)


def test_a_sample_depends_on_seed_epoch_and_index_alone(dataset: CocoDataset) -> None:
    first = dataset[4, 1]
    dataset[2, 3]
    assert same(dataset[4, 1], first)
    assert same(dataset[0], dataset[0, 0])
    assert not same(dataset[5, 1], first)
    other = CocoDataset(dataset.images, dataset.annotations, SMALL, CLASSES, EVERYTHING, seed=4)
    assert not same(other[4, 1], first)


def test_workers_make_the_same_samples(dataset: CocoDataset) -> None:
    def batches(workers: int, start: int) -> list[Batch]:
        sampler = EpochBatches(len(dataset), 2, 0, start, 6)
        return list(DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate))

    alone = batches(0, 0)
    for one, other in zip(alone, batches(2, 0), strict=True):
        assert torch.equal(one.images, other.images)
        for a, b in zip(one.targets, other.targets, strict=True):
            assert torch.equal(a.masks, b.masks)
    # Resumed within the second epoch.
    assert torch.equal(batches(0, 4)[0].images, alone[4].images)
    assert not torch.equal(dataset[0, 2].image, dataset[1, 2].image)


def test_augmentation_can_be_switched_off(dataset: CocoDataset) -> None:
    plain = CocoDataset(dataset.images, dataset.annotations, SMALL, CLASSES)
    off = CocoDataset(dataset.images, dataset.annotations, SMALL, CLASSES, AugmentConfig(enabled=False))
    assert all(same(off[epoch, 1], plain[1]) for epoch in range(3))


def test_targets_are_complete_for_any_augmentation(write_coco, make_square) -> None:
    rng = np.random.default_rng(0)
    squares = [make_square(*rng.uniform(0, 90, 2), rng.uniform(0.01, 60)) for _ in range(300)]
    odd = [
        make_square(5, 5, 0),
        make_square(200, 5, 10),
        make_square(5, 5, 10) | {"bbox": [5, 5, -3, 8]},
        make_square(5, 5, 9, segmentation=[]),
    ]
    crowds = [make_square(2, 2, 40, image_id=i, iscrowd=1) for i in (1, 2)]
    images, path = write_coco([(100, 120), (50, 60), (50, 60)], [*squares, *odd, *crowds])
    dataset = CocoDataset(images, path, SMALL, CLASSES, EVERYTHING)
    crowded = 0
    for epoch in range(20):
        for index in range(3):
            target = dataset[epoch, index].target
            count = len(target.boxes)
            assert len(target.labels) == len(target.masks) == len(target.semantic_masks) == count
            assert (index == 0) == (count > 0)
            every = torch.cat([target.boxes, target.crowd_boxes])
            assert ((every >= 0) & (every <= 1)).all()
            assert (every[:, 2:] > every[:, :2]).all()
            crowded += len(target.crowd_boxes)
    assert crowded > 20


def test_small_boxes_are_dropped_and_an_image_may_be_left_without(write_coco, make_square) -> None:
    images, path = write_coco([(100, 100)], [make_square(40, 40, 10), make_square(20, 20, 30)])
    still = AugmentConfig(photometric=False, expand=False, crop=False, mirror=False, min_box_side=0.11)
    assert len(CocoDataset(images, path, SMALL, CLASSES, still)[0].target.boxes) == 1
    none = replace(still, min_box_side=0.4)
    target = CocoDataset(images, path, SMALL, CLASSES, none)[0].target
    assert target.masks.shape == (0, *prototype_size(64))


@pytest.mark.parametrize("size", [550, (320, 608)])
def test_real_masks_agree_with_the_rule_of_the_original(coco_mini, size: InputSize) -> None:
    """Polygons and RLE through the original's steps at full size, one after the other."""
    classes = read_classes(coco_mini.train_annotations)
    model = ModelConfig(input_size=size)
    augment = replace(EVERYTHING, min_box_side=0)
    dataset = CocoDataset(coco_mini.train_images, coco_mini.train_annotations, model, classes, augment)
    differ, borders, masks = 0, 0, 0
    for index in range(0, len(dataset), 5):
        record = dataset.records[index]
        height, width = record.height, record.width
        boxes, crowd = dataset.boxes(record, height, width)
        _, geometry = dataset.augmenter.draw(0, index, boxes, crowd, height, width)
        target = dataset.target(record, boxes, crowd, geometry, height, width)
        x1, y1, x2, y2 = geometry.crop
        kept = np.flatnonzero(geometry.keeps(boxes) & ~crowd)
        assert len(kept) == len(target.masks)
        for number, row in enumerate(kept):
            full = to_mask(record.annotations[row]["segmentation"], height, width)
            canvas = np.zeros((y2 - y1, x2 - x1), np.uint8)
            seen = full[max(y1, 0) : y2, max(x1, 0) : x2]
            top, left = max(-y1, 0), max(-x1, 0)
            canvas[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
            canvas = canvas[:, ::-1] if geometry.mirror else canvas
            canvas = canvas[::-1] if geometry.flip else canvas
            resized = cv2.resize(np.rot90(canvas, geometry.turns).copy(), model.input_shape[::-1])[None]
            for result, shape in (
                (target.masks[number], prototype_size(size)),
                (target.semantic_masks[number], pyramid_levels(size)[0]),
            ):
                expected = downsample_masks(resized, shape)[0].numpy()
                pixels = expected.astype(np.uint8)
                borders += int((cv2.erode(pixels, np.ones((3, 3))) != pixels).sum())
                differ += int((result.numpy() != expected).sum())
            masks += 1
    assert masks > 50
    assert borders > 2000
    assert differ <= 0.001 * borders


def test_configurations_say_whether_they_augment() -> None:
    assert get_config("yolact_base").augment == AugmentConfig()
    assert get_config("yolact_tiny").augment == AugmentConfig(
        photometric=False, expand=False, crop=False, flip=True
    )
    values = get_config("yolact_base").to_dict()
    del values["augment"]
    assert Config.from_dict(values).augment == AugmentConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"brightness": -1}, "augment.brightness"),
        ({"contrast": (1.5, 0.5)}, "augment.contrast"),
        ({"expand_ratio": 0.5}, "augment.expand_ratio"),
        ({"crop_min_side": 0}, "augment.crop_min_side"),
        ({"crop_min_ious": (0.5, 1)}, "augment.crop_min_ious"),
        ({"hue": 200}, "augment.hue"),
        ({"min_box_side": -1}, "augment.min_box_side"),
        ({"min_box_side": 4}, "augment.min_box_side"),
    ],
)
def test_wrong_settings_are_named(change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(RECIPE, **change)
