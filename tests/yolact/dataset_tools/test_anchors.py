"""Priors that fit a dataset."""

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact.cli.data import main
from yolact.data.annotations import read_classes
from yolact.data.coco import CocoDataset
from yolact.dataset_tools.anchors import best_overlaps, fit_priors, network_boxes, settings_of
from yolact.model.boxes import corners, iou
from yolact.model.priors import model_priors
from yolact.registry import get_config
from yolact.settings import override
from yolact_runtime.errors import UsageError, YolactError

TINY = get_config("yolact_tiny").model


def random_boxes(count, seed=0, low=0.05, high=0.9):
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(math.log(low), math.log(high), (count, 2)))
    near = rng.uniform(0, 1, (count, 2)) * (1 - sides)
    return np.concatenate([near, near + sides], axis=1)


def write(path, boxes, size=(300, 500), **changes):
    """A COCO file with one image and these boxes, relative."""
    height, width = size
    annotations = []
    for number, (x1, y1, x2, y2) in enumerate(boxes.tolist(), 1):
        x, y, w, h = x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height
        outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        annotations.append({"id": number, "image_id": 1, "category_id": 1, "bbox": [x, y, w, h], "iscrowd": 0,
                            "area": w * h, "segmentation": outline})  # fmt: skip
    image = {"id": 1, "file_name": "a.jpg", "height": height, "width": width, **changes}
    image = {key: value for key, value in image.items() if value is not None}
    path.write_text(
        json.dumps({"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "a"}]})
    )
    return path


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    square=st.booleans(),
    ratios=st.lists(st.floats(0.2, 5), min_size=1, max_size=3),
    size=st.sampled_from([128, (96, 176), 250]),
)
def test_best_overlaps_are_those_with_all_priors_of_the_network(seed, square, ratios, size):
    model = replace(TINY, prior_square=square, prior_aspect_ratios=tuple(ratios), input_size=size)
    boxes = random_boxes(40, seed)
    every = iou(torch.from_numpy(boxes), corners(model_priors(model)).double())
    fit = best_overlaps(boxes, model)
    np.testing.assert_allclose(fit.overlaps, every.amax(dim=1).numpy(), rtol=1e-6, atol=1e-7)
    height, width = model.input_shape
    np.testing.assert_allclose(fit.areas, (boxes[:, 2:] - boxes[:, :2]).prod(1) * height * width)


@pytest.mark.parametrize("config", ["yolact_base", "yolact_resnet50_pascal"])
def test_fitted_priors_match_more_boxes_than_the_published_ones(config):
    model = get_config(config).model
    rng = np.random.default_rng(1)
    sides = np.exp(rng.normal(np.log([0.08, 0.25]), 0.2, (400, 2)))  # small and wide
    near = rng.uniform(0, 0.7, (400, 2))
    boxes = np.concatenate([near, near + sides], axis=1)
    fitted = fit_priors(boxes, model)
    before, after = (best_overlaps(boxes, one).matched(0.5) for one in (model, fitted))
    assert after > before
    assert after > 0.9
    # The heads of a checkpoint fit: as many priors in each cell.
    assert [len(level) for level in fitted.prior_scales] == [len(level) for level in model.prior_scales]
    assert len(fitted.prior_aspect_ratios) == len(model.prior_aspect_ratios)
    assert sorted(sum(fitted.prior_scales, ())) == list(sum(fitted.prior_scales, ()))


def test_one_box_again_and_again_is_matched():
    boxes = np.tile([[0.2, 0.3, 0.5, 0.4]], (5, 1))
    assert best_overlaps(boxes, fit_priors(boxes, TINY, scales=1, ratios=2)).matched(0.5) == 1


def test_the_number_of_scales_and_ratios_is_what_is_asked_for():
    fitted = fit_priors(random_boxes(50), TINY, scales=2, ratios=3)
    assert [len(level) for level in fitted.prior_scales] == [2] * 5
    assert len(fitted.prior_aspect_ratios) == 3
    with pytest.raises(UsageError, match=r"--scales is -1; it must be in 1\.\.9"):
        fit_priors(random_boxes(5), TINY, scales=-1)
    with pytest.raises(UsageError, match=r"--ratios is 100000; it must be in 1\.\.9"):
        fit_priors(random_boxes(5), TINY, ratios=100_000)  # would need terabytes


def test_boxes_are_as_the_network_sees_them(tmp_path):
    boxes = random_boxes(20)
    path = write(tmp_path / "a.json", boxes)
    np.testing.assert_allclose(network_boxes(path, TINY), boxes, atol=1e-6)
    content = json.loads(path.read_text())
    content["annotations"][3]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    assert len(network_boxes(path, TINY)) == 19
    augment = replace(get_config("yolact_base").augment, enabled=True)
    several = network_boxes(path, TINY, augment=augment, epochs=5, seed=3)
    assert 19 < len(several) <= 95
    assert several.min() >= 0
    assert several.max() <= 1


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("augmented", [False, True])
def test_boxes_are_those_that_training_matches(tmp_path, crowds, augmented):
    """Polygons, crowds with a mask, and crowds that are a box only, as the dataset gives them to the loss."""
    path = write(tmp_path / "a.json", random_boxes(30, low=0.004))
    content = json.loads(path.read_text())
    for annotation in content["annotations"][:12]:
        annotation["iscrowd"] = 1
        annotation["segmentation"] = {"size": [300, 500], "counts": [1000, 500, 300 * 500 - 1500]}
    for annotation in content["annotations"][:4]:
        annotation["segmentation"] = []
    path.write_text(json.dumps(content))
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((300, 500, 3), np.uint8))
    augment = replace(get_config("yolact_base").augment, enabled=True) if augmented else None
    dataset = CocoDataset(tmp_path, path, TINY, read_classes(path), augment, 5, crowd_as_instances=crowds)
    epochs = 6 if augmented else 1
    trained = np.concatenate([dataset[epoch, 0].target.boxes.numpy() for epoch in range(epochs)])
    found = network_boxes(path, TINY, None, augment, epochs, 5, crowd_as_instances=crowds)
    np.testing.assert_array_equal(found, trained.astype(np.float64))
    assert augmented or len(found) == (26 if crowds else 18)


def test_sizes_that_the_file_lacks_are_those_of_the_images(tmp_path):
    boxes = random_boxes(4)
    path = write(tmp_path / "a.json", boxes, height=None)
    with pytest.raises(YolactError, match=r"image 1 .a.jpg. has no height and width; name the folder"):
        network_boxes(path, TINY)
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((300, 500, 3), np.uint8))
    np.testing.assert_allclose(network_boxes(path, TINY, images=tmp_path), boxes, atol=1e-6)


def test_a_file_without_instances_is_refused(tmp_path):
    with pytest.raises(YolactError, match="no instance with a box and a mask"):
        network_boxes(write(tmp_path / "a.json", np.zeros((0, 4))), TINY)


def test_the_command_prints_settings_that_train_takes(tmp_path, capsys):
    path = write(tmp_path / "a.json", random_boxes(60))
    assert main(["anchors", str(path), "--config", "yolact_tiny", "--set", "model.input_size=[96,176]"]) == 0
    out = capsys.readouterr().out
    assert "its input of 96 x 176" in out
    lines = [line[len("--set ") :].strip("'") for line in out.splitlines() if line.startswith("--set ")]
    config = override(get_config("yolact_tiny"), [*lines, "model.input_size=[96,176]"])
    assert settings_of(config.model) == lines
    boxes = network_boxes(path, config.model)
    share = best_overlaps(boxes, config.model).matched(0.5)
    assert f"{100 * share:.1f}%" in next(line for line in out.splitlines() if " all " in line)
    assert main(["anchors", str(path), "--seed", "-1"]) == 2


def test_the_command_counts_crowds_as_training_does(tmp_path, capsys):
    path = write(tmp_path / "a.json", random_boxes(20))
    content = json.loads(path.read_text())
    for annotation in content["annotations"][:8]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(content))
    for value, count in (("false", 12), ("true", 20)):
        options = ["--config", "yolact_tiny", "--scales", "1", "--ratios", "1"]
        assert main(["anchors", str(path), *options, "--set", f"dataset.crowd_as_instances={value}"]) == 0
        assert f"all {count} " in " ".join(capsys.readouterr().out.split()).replace("| ", "")
    assert main(["anchors", str(path), "--set", "dataset.other_classes=ignore"]) == 2
    assert "dataset.other_classes = 'ignore', but all classes are learned" in capsys.readouterr().err
