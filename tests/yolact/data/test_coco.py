from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from oracle import downsample_masks
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from shared_data import reference_file
from torch.utils.data import DataLoader

from yolact.config import Classes, LossConfig, ModelConfig
from yolact.data.annotations import read_classes
from yolact.data.batch import collate
from yolact.data.cached import CachedDataset
from yolact.data.coco import CocoDataset, check_trainable, find_missing_images
from yolact.matching import NEUTRAL, match
from yolact.model.priors import prototype_size, pyramid_levels
from yolact_runtime.errors import UsageError, YolactError

CLASSES = Classes(("nut", "bolt"), (0, 7))
SMALL = ModelConfig(input_size=64)


def test_samples_equal_those_of_the_reference(coco_mini) -> None:
    """Images, boxes, labels and masks as the original trained on (golden tensors)."""
    golden = np.load(reference_file("loss_yolact_resnet50_config_a.npz"))
    classes = read_classes(coco_mini.train_annotations)
    dataset = CocoDataset(coco_mini.train_images, coco_mini.train_annotations, ModelConfig(), classes)
    ids = [record.image_id for record in dataset.records]
    for number, image_id in enumerate(golden["image_ids"]):
        sample = dataset[ids.index(image_id)]
        rows, crowds = golden[f"target{number}"], golden["num_crowds"][number]
        single = len(rows) - crowds
        shape = golden[f"masks{number}_shape"]
        bits = np.unpackbits(golden[f"masks{number}_bits"])[: np.prod(shape)].reshape(shape)
        full = torch.from_numpy(bits)[:single]
        target = sample.target
        assert sample.image_id == image_id
        # A JPEG decoder other than the reference's may differ by one count, 1/57 after normalisation.
        np.testing.assert_allclose(sample.image[:, ::10, ::10], golden[f"x{number}_s10"], atol=0.02)
        np.testing.assert_allclose(target.boxes, rows[:single, :4], atol=1e-7)
        np.testing.assert_allclose(target.crowd_boxes, rows[single:, :4], atol=1e-7)
        assert target.labels.tolist() == rows[:single, 4].tolist()
        assert torch.equal(target.masks, downsample_masks(full, prototype_size(550)))
        assert torch.equal(target.semantic_masks, downsample_masks(full, pyramid_levels(550)[0]))


def test_every_real_image_and_mask_agrees_with_pycocotools(coco_mini) -> None:
    classes = read_classes(coco_mini.val_annotations)
    assert len(classes) == 80
    assert classes.category_ids[-1] == 90
    dataset = CocoDataset(coco_mini.val_images, coco_mini.val_annotations, SMALL, classes)
    oracle = COCO(coco_mini.val_annotations)
    assert len(dataset) == len(oracle.imgs) == 79
    for index in range(0, 79, 4):
        sample = dataset[index]
        annotations = oracle.imgToAnns[sample.image_id]
        single = [a for a in annotations if not a["iscrowd"]]
        assert len(sample.target.crowd_boxes) == len(annotations) - len(single)
        assert [classes.category_ids[i] for i in sample.target.labels] == [a["category_id"] for a in single]
        for mask, annotation in zip(sample.target.masks, single, strict=True):
            full = cv2.resize(oracle.annToMask(annotation), (64, 64))
            assert torch.equal(mask, downsample_masks(torch.from_numpy(full)[None], mask.shape)[0])


def test_a_sample_of_an_input_that_is_not_square_is_the_whole_image(coco_mini) -> None:
    """Pixels in double precision from the rule of half-pixel centres; masks by pycocotools and OpenCV."""
    model = ModelConfig(input_size=(96, 208), proto_scale=0.5)
    classes = read_classes(coco_mini.val_annotations)
    dataset = CocoDataset(coco_mini.val_images, coco_mini.val_annotations, model, classes)
    truth = COCO(coco_mini.val_annotations)
    for index in range(0, 79, 13):
        sample, image = dataset[index], dataset.read_image(dataset.records[index])
        height, width = image.shape[:2]
        assert sample.image.shape == (3, 96, 208)
        rows, columns = (bilinear(*sides) for sides in ((height, 96), (width, 208)))
        resized = np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns, optimize=True)
        expected = ((resized - model.mean) / model.std)[..., ::-1].transpose(2, 0, 1)
        np.testing.assert_allclose(sample.image, expected, atol=5e-4)
        single = [a for a in truth.imgToAnns[sample.image_id] if not a["iscrowd"]]
        x, y, w, h = np.array([a["bbox"] for a in single]).reshape(-1, 4).T
        relative = np.stack([x / width, y / height, (x + w) / width, (y + h) / height], axis=1)
        np.testing.assert_allclose(sample.target.boxes, relative.clip(0, 1), atol=1e-6)
        full = torch.from_numpy(np.stack([cv2.resize(truth.annToMask(a), (208, 96)) for a in single]))
        assert torch.equal(sample.target.masks, downsample_masks(full, (48, 104)))
        assert torch.equal(sample.target.semantic_masks, downsample_masks(full, (12, 26)))


def bilinear(length: int, size: int) -> np.ndarray:
    """Weights (size, length) of `length` pixels in each of `size`: half-pixel centres, no antialiasing."""
    at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(length)))


def test_polygons_and_both_kinds_of_rle_give_the_same_masks(write_coco, make_square) -> None:
    annotation = make_square(4, 6, 20)
    mask = coco_mask.decode(coco_mask.frPyObjects(annotation["segmentation"], 40, 50))[:, :, 0]
    compressed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    edges = np.flatnonzero(np.diff(mask.reshape(-1, order="F"))) + 1
    counts = np.diff(np.r_[0, edges, mask.size]).tolist()
    segmentations = [annotation["segmentation"]] + [
        {"size": [40, 50], "counts": counts} for counts in (compressed, counts)
    ]
    images, path = write_coco([(40, 50)], [annotation | {"segmentation": s} for s in segmentations])
    masks = CocoDataset(images, path, SMALL, CLASSES)[0].target.masks
    assert masks[0].sum() > 0
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_images_without_annotations_and_with_crowds_alone_are_items(write_coco, make_square) -> None:
    images, path = write_coco([(30, 30), (30, 40)], [make_square(3, 3, 20, image_id=2, iscrowd=1)])
    dataset = CocoDataset(images, path, SMALL, CLASSES)
    empty, crowd = dataset[0].target, dataset[1].target
    assert empty.boxes.shape == crowd.boxes.shape == (0, 4)
    assert empty.labels.dtype == torch.int64
    assert empty.masks.shape == crowd.masks.shape == (0, *prototype_size(64))
    assert empty.semantic_masks.shape == (0, *pyramid_levels(64)[0])
    assert empty.crowd_boxes.shape == (0, 4)
    np.testing.assert_allclose(crowd.crowd_boxes, [[3 / 40, 3 / 30, 23 / 40, 23 / 30]], atol=1e-6)


def test_category_zero_and_gaps_become_indices(write_coco, make_square) -> None:
    images, path = write_coco([(30, 30)], [make_square(0, 0, 9, category_id=c) for c in (7, 0, 7)])
    classes = read_classes(path)
    assert classes == CLASSES
    assert CocoDataset(images, path, SMALL, classes)[0].target.labels.tolist() == [1, 0, 1]


def test_one_class(write_coco, make_square) -> None:
    images, path = write_coco([(30, 30)], [make_square(0, 0, 9)], categories=[{"id": 7, "name": "bolt"}])
    assert CocoDataset(images, path, SMALL, read_classes(path))[0].target.labels.tolist() == [0]


@pytest.mark.parametrize("size", [(1, 1), (8000, 50), (50, 8000)])
def test_extreme_image_sizes(write_coco, make_square, size: tuple[int, int]) -> None:
    images, path = write_coco([size], [make_square(0, 0, 40), make_square(0, 0, 1)])
    sample = CocoDataset(images, path, SMALL, CLASSES)[0]
    assert sample.image.shape == (3, 64, 64)
    assert len(sample.target.boxes) == 2
    assert sample.target.boxes.max() <= 1


def test_300_instances_in_one_image(write_coco, make_square) -> None:
    rng = np.random.default_rng(0)
    squares = [make_square(*rng.uniform(0, 100, 2), rng.uniform(5, 100)) for _ in range(300)]
    images, path = write_coco([(200, 200)], squares)
    target = CocoDataset(images, path, SMALL, CLASSES)[0].target
    assert target.masks.shape == (300, *prototype_size(64))
    for index in (0, 150, 299):
        full = coco_mask.decode(coco_mask.frPyObjects(squares[index]["segmentation"], 200, 200))[:, :, 0]
        small = downsample_masks(torch.from_numpy(cv2.resize(full, (64, 64)))[None], prototype_size(64))
        assert torch.equal(target.masks[index], small[0])


def test_boxes_are_clipped_and_degenerate_ones_dropped(write_coco, make_square) -> None:
    images, path = write_coco(
        [(20, 40)],
        [
            make_square(-5, 10, 20),
            make_square(50, 5, 10),
            make_square(5, 5, 0),
            make_square(5, 5, 1e-12),
            make_square(5, 5, 10) | {"bbox": [5, 5, -3, 8]},
            make_square(25, 5, 60, iscrowd=1),
            make_square(60, 5, 60, iscrowd=1),
        ],
    )
    target = CocoDataset(images, path, SMALL, CLASSES)[0].target
    np.testing.assert_allclose(target.boxes, [[0, 0.5, 15 / 40, 1]])
    np.testing.assert_allclose(target.crowd_boxes, [[25 / 40, 0.25, 1, 1]])
    assert len(target.masks) == len(target.labels) == 1


def test_an_instance_without_a_mask_is_neither_example_nor_background(write_coco, make_square) -> None:
    images, path = write_coco([(20, 20)], [make_square(2, 2, 9), make_square(5, 5, 9, segmentation=[])])
    target = CocoDataset(images, path, SMALL, CLASSES)[0].target
    assert len(target.boxes) == 1
    np.testing.assert_allclose(target.crowd_boxes, [[0.25, 0.25, 0.7, 0.7]])


@pytest.mark.parametrize(("size", "text"), [((200, 400), "says 400x200"), ((40, 20), "EXIF")])
def test_an_image_of_another_size_is_refused_before_training_and_when_read(
    write_coco, make_square, size: tuple[int, int], text: str
) -> None:
    images, path = write_coco([(20, 40)], [make_square(0, 0, 20)])
    content = json.loads(path.read_text())
    content["images"][0] |= {"height": size[0], "width": size[1]}
    path.write_text(json.dumps(content))
    dataset = CocoDataset(images, path, SMALL, CLASSES)
    with pytest.raises(YolactError, match=rf"1\.png is 40x20 pixels.*{text}"):
        dataset[0]
    with pytest.raises(YolactError, match=rf"1\.png is 40x20 pixels.*{text}"):
        check_trainable(dataset)


def test_colours_are_normalised_in_bgr_and_given_as_rgb(write_coco) -> None:
    image = np.zeros((10, 10, 3), np.uint8)
    image[:] = (10, 20, 30)
    images, path = write_coco([image], [])
    pixel = CocoDataset(images, path, SMALL, CLASSES)[0].image[:, 5, 5]
    expected = [(30 - 123.68) / 58.40, (20 - 116.78) / 57.12, (10 - 103.94) / 57.38]
    np.testing.assert_allclose(pixel, expected, rtol=1e-6)


def test_names_of_coco_2014_find_the_files_of_2017(write_coco) -> None:
    images, path = write_coco([(9, 9)], [])
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "COCO_val2014_1.png"
    path.write_text(json.dumps(content))
    assert CocoDataset(images, path, SMALL, CLASSES)[0].image_id == 1
    (images / "1.png").rename(images / "COCO_val2014_1.png")
    assert not find_missing_images(CocoDataset(images, path, SMALL, CLASSES))


def test_missing_and_damaged_images_are_named(write_coco) -> None:
    images, path = write_coco([(9, 9), (9, 9), (9, 9)], [])
    (images / "1.png").unlink()
    (images / "2.png").write_bytes(b"no image")
    (images / "3.png").write_bytes(b"")
    dataset = CocoDataset(images, path, SMALL, CLASSES)
    assert find_missing_images(dataset) == [images / "1.png"]
    for index in range(3):
        with pytest.raises(YolactError, match=f"{index + 1}.png"):
            dataset[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 3}, "annotation 5: category_id 3 .*0, 7"),
        ({"category_id": [7]}, "annotation 5: category_id"),
        ({"category_id": "7"}, "annotation 5: category_id is the text '7'"),
        ({"image_id": "1"}, "annotation 5: image_id is the text '1'"),
        ({"bbox": None, "segmentation": []}, "annotation 5: bbox is None"),
        ({"bbox": [1, 2, 3]}, "annotation 5: bbox is"),
        ({"bbox": [1, 2, 3, float("nan")]}, "annotation 5: bbox is"),
        ({"iscrowd": "perhaps"}, "annotation 5: iscrowd is 'perhaps'"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "annotation 5: a polygon has an odd number"),
        ({"segmentation": [[1, 2], [3, 4], [5, 6]]}, "annotation 5: the segmentation is a list of pairs"),
        ({"segmentation": [[[1, 2], [3, 4], [5, 6]]]}, "annotation 5: a polygon is a list of pairs"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, "annotation 5: the RLE has size"),
    ],
)
def test_bad_annotations_are_named_before_the_first_step(write_coco, make_square, change, message) -> None:
    images, path = write_coco([(30, 30)], [make_square(1, 1, 5), make_square(1, 1, 5, id=5) | change])
    with pytest.raises(YolactError, match=message):
        CocoDataset(images, path, SMALL, CLASSES)


def test_a_damaged_segmentation_is_named(write_coco, make_square) -> None:
    bad = make_square(1, 1, 5, id=5, segmentation={"size": [30, 30], "counts": [1, 2]})
    images, path = write_coco([(30, 30)], [bad])
    with pytest.raises(YolactError, match="annotation 5: RLE covers 3 pixels"):
        CocoDataset(images, path, SMALL, CLASSES)


def test_a_file_without_images_is_refused(write_coco) -> None:
    images, path = write_coco([], [])
    with pytest.raises(YolactError, match="'images' is empty"):
        CocoDataset(images, path, SMALL, CLASSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": []}, "boxes alone are not enough"),
        ({"iscrowd": 1}, "2 annotations: 2 crowd.*crowd_as_instances=true"),
        ({"bbox": [0, 0, 0, 0]}, "2 annotations: 2 no area.*yolact-data fix"),
        ({"segmentation": [[40, 3, 49, 3, 49, 9]]}, "2 outside the image"),
        ({"image_id": 77}, "2 annotations of images that it does not list"),
    ],
)
def test_a_file_with_nothing_to_learn_is_refused(write_coco, make_square, change: dict, message: str) -> None:
    images, path = write_coco([(30, 30)], [make_square(1, 1, 5) | change, make_square(9, 9, 8) | change])
    with pytest.raises(YolactError, match=message):
        check_trainable(CocoDataset(images, path, SMALL, CLASSES))


def test_a_file_without_annotations_has_nothing_to_learn(write_coco) -> None:
    images, path = write_coco([(30, 30)], [])
    with pytest.raises(YolactError, match="nothing to learn: no annotations"):
        check_trainable(CocoDataset(images, path, SMALL, CLASSES))


def test_a_class_without_examples_is_warned_about(write_coco, make_square, caplog) -> None:
    squares = [make_square(1, 1, 5), make_square(9, 9, 8, category_id=0, iscrowd=1)]
    images, path = write_coco([(30, 30)], squares)
    check_trainable(CocoDataset(images, path, SMALL, CLASSES))
    assert "1 of 2 classes have nothing to learn from: nut (1 annotation: 1 crowd)" in caplog.text


def test_crowds_with_masks_can_be_instances(write_coco, make_square) -> None:
    squares = [make_square(1, 1, 5, iscrowd=1), make_square(9, 9, 8, iscrowd=1, segmentation=[])]
    images, path = write_coco([(30, 30)], squares)
    dataset = CocoDataset(images, path, SMALL, CLASSES, crowd_as_instances=True)
    check_trainable(dataset)
    target = dataset[0].target
    assert (len(target.boxes), len(target.crowd_boxes)) == (1, 1)


def test_two_names_of_one_file_are_refused(write_coco) -> None:
    images, path = write_coco([(9, 9), (9, 9)], [])
    content = json.loads(path.read_text())
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "a/1.png", "b/1.png"
    path.write_text(json.dumps(content))
    with pytest.raises(YolactError, match=r"image 2: b/1\.png and a/1\.png \(image 1\) are both read from"):
        CocoDataset(images, path, SMALL, CLASSES)


def test_annotations_of_unknown_images_are_reported_and_skipped(write_coco, make_square, caplog) -> None:
    images, path = write_coco([(30, 30)], [make_square(1, 1, 5), make_square(1, 1, 5, image_id=9, id=5)])
    dataset = CocoDataset(images, path, SMALL, CLASSES)
    assert "annotation 5" in caplog.text
    assert len(dataset[0].target.boxes) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "result file"),
        ('{"images": []}', "'categories'"),
        ('{"categories": [{"id": 1, "name": "a"}]}', "'images'"),
        ('{"categories": [], "images": []}', "empty"),
        ('{"categories": [{"id": "one", "name": "a"}], "images": []}', "whole number.*the text 'one'"),
        ('{"categories": [{"id": 1}], "images": []}', "text 'name'"),
        (
            '{"categories": [{"id": 9223372036854775808, "name": "a"}], "images": []}',
            "category id 9223372036854775808 is too large",
        ),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "images": []}', "given twice"),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "images": []}', "two categories"),
        ('{"categories": [3], "images": []}', "entry 0 of 'categories' is 3"),
    ],
)
def test_a_bad_annotation_file_is_reported(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(YolactError, match=message) as caught:
        read_classes(path)
    assert str(path) in str(caught.value)


def test_batches_from_worker_processes(write_coco, make_square) -> None:
    images, path = write_coco([(30, 30), (30, 40), (9, 9)], [make_square(3, 3, 20, image_id=2)])
    dataset = CocoDataset(images, path, SMALL, CLASSES)
    batch = next(iter(DataLoader(dataset, batch_size=3, num_workers=1, collate_fn=collate)))
    assert batch.images.shape == (3, 3, 64, 64)
    assert batch.image_ids == [1, 2, 3]
    assert [len(target.boxes) for target in batch.targets] == [0, 1, 0]
    assert torch.equal(batch.images[1], dataset[1].image)
    moved = batch.to("cpu")
    assert len(moved) == 3
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1].image, dataset[1].image)


def test_loading_prints_nothing(write_coco, make_square, capfd: pytest.CaptureFixture[str]) -> None:
    images, path = write_coco([(30, 30)], [make_square(1, 1, 5)])
    CocoDataset(images, path, SMALL, read_classes(path))[0]
    assert capfd.readouterr() == ("", "")


def three_classes(write_coco, make_square, chosen, other):
    """Image 1 has classes 0 and 7, image 2 class 9 only, image 3 nothing, image 4 classes 0 and 9."""
    entries = [(1, 0, 2), (1, 7, 15), (2, 9, 2), (4, 9, 15), (4, 0, 2)]
    annotations = [make_square(x, 2, 9, image_id=image, category_id=number) for image, number, x in entries]
    names = [{"id": number, "name": name} for number, name in ((0, "cat"), (7, "dog"), (9, "emu"))]
    images, path = write_coco([(30, 30)] * 4, annotations, names)
    classes = read_classes(path, chosen)
    return CocoDataset(images, path, SMALL, classes, None, 0, False, other)


def test_other_classes_are_background(write_coco, make_square) -> None:
    dataset = three_classes(write_coco, make_square, ["emu", 0], "background")
    assert dataset.classes == Classes(("cat", "emu"), (0, 9))
    assert [record.image_id for record in dataset.records] == [1, 2, 3, 4]
    assert [dataset[i].target.labels.tolist() for i in range(4)] == [[0], [1], [], [1, 0]]
    assert all(len(dataset[i].target.crowd_boxes) == 0 for i in range(4))
    check_trainable(dataset)


@pytest.mark.parametrize("other", ["background", "ignore"])
def test_images_of_other_classes_only_are_left_out(write_coco, make_square, other: str, caplog) -> None:
    dataset = three_classes(write_coco, make_square, ["0"], other)
    assert [record.image_id for record in dataset.records] == [1, 3, 4]
    first, empty, last = (dataset[i].target for i in range(3))
    assert first.labels.tolist() == last.labels.tolist() == [0] and not len(empty.labels)
    assert len(first.masks) == len(first.semantic_masks) == 1
    ignored = [[15 / 30, 2 / 30, 24 / 30, 11 / 30]] if other == "ignore" else np.empty((0, 4))
    for target in (first, last):
        np.testing.assert_allclose(target.crowd_boxes, ignored, atol=1e-6)
    check_trainable(dataset)
    assert "nothing to learn" not in caplog.text  # the classes that are left out are not missed


def test_ignored_classes_are_neutral_priors(write_coco, make_square) -> None:
    cells = np.stack(np.meshgrid(np.arange(32), np.arange(32)), axis=-1).reshape(-1, 2)
    centres = torch.from_numpy((cells + 0.5) / 32).float()
    priors = torch.cat([centres, torch.full((len(cells), 2), 0.1)], dim=1)

    def neutral(other: str) -> int:
        target = three_classes(write_coco, make_square, ["cat"], other)[0].target
        return int((match(priors, [target], LossConfig()).classes == NEUTRAL).sum())

    assert neutral("ignore") > neutral("background")


def test_classes_to_learn_that_are_not_there(write_coco, make_square) -> None:
    with pytest.raises(UsageError, match=r"dataset.classes: there is no class 'cats'; near ones: cat"):
        three_classes(write_coco, make_square, ["cats"], "background")
    images, path = write_coco([(30, 30)], [make_square(2, 2, 9, category_id=0)])
    dataset = CocoDataset(images, path, SMALL, read_classes(path, [7]), None, 0, False, "background")
    with pytest.raises(YolactError, match="nothing to learn"):
        check_trainable(dataset)


def test_cached_samples_have_the_chosen_classes(write_coco, make_square) -> None:
    plain = three_classes(write_coco, make_square, ["cat"], "ignore")
    cached = CachedDataset(plain.images, plain.annotations, SMALL, plain.classes, None, 0, False, "ignore")
    for _ in range(2):
        for i in range(3):
            assert torch.equal(cached[i].target.boxes, plain[i].target.boxes)
            assert torch.equal(cached[i].target.crowd_boxes, plain[i].target.crowd_boxes)
