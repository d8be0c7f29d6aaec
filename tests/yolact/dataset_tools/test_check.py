from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from yolact.dataset_tools.check import check_annotations
from yolact.dataset_tools.synthetic import make_shapes_dataset
from yolact_runtime.errors import YolactError


def kinds(annotations: Path, images: Path | None = None) -> set[tuple[str, str]]:
    return {(finding.level, finding.kind) for finding in check_annotations(annotations, images).findings}


def edit(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def good(write_coco, make_square) -> tuple[Path, Path]:
    return write_coco([(40, 60), (40, 60)], [make_square(3, 4, 12), make_square(20, 20, 9, category_id=0)])


def test_good_data_has_no_findings(good: tuple[Path, Path], tmp_path: Path) -> None:
    images, path = good
    assert kinds(path, images) == set()
    shapes = make_shapes_dataset(tmp_path / "shapes", 12, 1)
    assert kinds(Path(shapes.train_annotations), Path(shapes.train_images)) == set()


def test_real_data_is_free_of_errors_and_counted_right(coco_mini) -> None:
    report = check_annotations(coco_mini.val_annotations, coco_mini.val_images)
    assert report.count("error") == 0
    assert {finding.kind for finding in report.findings} == {"class without instances"}
    oracle = COCO(coco_mini.val_annotations)
    for count in report.classes:
        found = [a for a in oracle.anns.values() if a["category_id"] == count.category_id]
        single = [a for a in found if not a["iscrowd"]]
        assert (count.instances, count.crowds) == (len(single), len(found) - len(single))
        assert count.images == len({a["image_id"] for a in found})
        if single:
            areas = [oracle.annToMask(a).sum() for a in single]
            assert count.areas == pytest.approx(tuple(np.percentile(areas, (25, 50, 75))))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"bbox": [3, 4, 0, 12]}, ("warning", "degenerate box")),
        ({"bbox": [3, 4, -2, 12]}, ("warning", "degenerate box")),
        ({"bbox": [70, 4, 12, 12]}, ("warning", "box outside the image")),
        ({"bbox": [3, 4, 12]}, ("error", "bad box")),
        ({"bbox": [3, 4, 12, float("nan")]}, ("error", "bad box")),
        ({"bbox": None}, ("note", "no box")),
        ({"bbox": None, "segmentation": None}, ("error", "bad box")),
        ({"bbox": ["3", "4", 12, 12]}, ("note", "numbers as text")),
        ({"segmentation": [[3, 4], [9, 4], [9, 9]]}, ("error", "damaged segmentation")),
        ({"segmentation": [[[3, 4], [9, 4], [9, 9]]]}, ("error", "damaged segmentation")),
        ({"segmentation": [3, 4, 15, 4, 15, 16, 3, 16]}, ("note", "polygon without an outer list")),
        ({"iscrowd": "0"}, ("note", "iscrowd as text")),
        ({"iscrowd": 2}, ("error", "bad iscrowd")),
        ({"area": "144"}, ("note", "numbers as text")),
        ({"image_id": "1"}, ("error", "image_id as text")),
        ({"image_id": 1.0}, ("note", "image_id that is not written as a whole number")),
        ({"bbox": [30, 20, 12, 12]}, ("warning", "box far from mask")),
        ({"segmentation": []}, ("warning", "no segmentation")),
        ({"segmentation": [[1, 2, 3, 4]]}, ("warning", "no segmentation")),
        ({"segmentation": None}, ("warning", "no segmentation")),
        ({"segmentation": [[80, 4, 90, 4, 90, 9]]}, ("warning", "empty mask")),
        ({"segmentation": [[50, 4, 90, 4, 90, 30, 50, 30]]}, ("warning", "polygon out of the image")),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, ("error", "damaged segmentation")),
        ({"segmentation": {"size": [40, 60], "counts": [7]}}, ("error", "damaged segmentation")),
        ({"segmentation": {"size": [60, 40], "counts": [900, 600, 900]}}, ("error", "wrong mask size")),
        ({"image_id": 9}, ("warning", "unknown image")),
        ({"image_id": None}, ("error", "unknown image")),
        ({"category_id": 9}, ("error", "unknown category")),
        ({"category_id": [1]}, ("error", "unknown category")),
        ({"id": 101}, ("note", "duplicate annotation id")),
        ({"id": 0}, ("warning", "annotation id 0")),
        ({"id": None}, ("note", "no annotation id")),
    ],
)
def test_each_fault_of_an_annotation_is_found(good, change: dict, expected: tuple[str, str]) -> None:
    images, path = good
    edit(path, lambda content: content["annotations"][0].update(change))
    assert expected in kinds(path, images)


def test_a_damaged_segmentation_is_reported_once(good) -> None:
    images, path = good
    edit(path, lambda content: content["annotations"][0].update(segmentation=[[1, 2, 3]]))
    found = [finding.kind for finding in check_annotations(path, images).findings]
    assert found == ["damaged segmentation", "class without instances"]


def test_a_box_need_not_fit_its_mask_exactly(good) -> None:
    images, path = good
    edit(path, lambda content: content["annotations"][0].update(bbox=[4, 3, 15, 12]))
    assert kinds(path, images) == set()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"height": 41}, ("error", "wrong image size")),
        ({"height": 60, "width": 40}, ("error", "wrong image size")),
        ({"height": None}, ("warning", "no image size")),
        ({"file_name": "3.png"}, ("error", "missing image")),
        ({"file_name": "2.png"}, ("warning", "file listed twice")),
        ({"file_name": None}, ("error", "bad image")),
        ({"id": 2}, ("error", "duplicate image id")),
        ({"id": "one"}, ("error", "bad image")),
        ({"id": 1.5}, ("error", "bad image")),
        ({"width": "60"}, ("note", "image sizes that are not written as whole numbers")),
        ({"width": "wide"}, ("error", "bad image size")),
        ({"file_name": "a/2.png"}, ("error", "two entries, one file")),
    ],
)
def test_each_fault_of_an_image_is_found(good, change: dict, expected: tuple[str, str]) -> None:
    images, path = good
    edit(path, lambda content: content["images"][0].update(change))
    assert expected in kinds(path, images)


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ([], ("error", "no categories")),
        ([{"id": 7}], ("error", "bad category")),
        ([{"id": 7, "name": "a"}, {"id": 7, "name": "b"}], ("error", "duplicate category id")),
        ([{"id": 0, "name": "a"}, {"id": 7, "name": "a"}], ("error", "duplicate category name")),
        (
            [{"id": number, "name": str(number)} for number in (0, 7, 8)],
            ("warning", "class without instances"),
        ),
    ],
)
def test_each_fault_of_the_categories_is_found(good, categories: list, expected: tuple[str, str]) -> None:
    images, path = good
    edit(path, lambda content: content.update(categories=categories))
    assert expected in kinds(path, images)


def test_unreadable_images_are_named(good) -> None:
    images, path = good
    whole = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(whole[: len(whole) // 2])
    (finding,) = check_annotations(path, images).findings
    assert finding.kind == "unreadable image"
    assert "1.png" in finding.message
    assert finding.image_id == 1


def test_a_box_may_reach_over_the_edge_by_rounding(good) -> None:
    images, path = good
    edge = {"bbox": [50.4, 4, 10, 12], "segmentation": [[50.4, 4, 60.4, 4, 60.4, 16, 50.4, 16]]}
    edit(path, lambda content: content["annotations"][0].update(edge))
    assert kinds(path, images) == set()
    edge["bbox"] = [50.4, 4, 14, 12]
    edit(path, lambda content: content["annotations"][0].update(edge))
    assert kinds(path, images) == {("warning", "box over the edge")}


def test_an_image_rotated_by_exif_is_suspected(good) -> None:
    images, path = good
    cv2.imwrite(str(images / "1.png"), np.zeros((60, 40, 3), np.uint8))
    messages = [finding.message for finding in check_annotations(path, images).findings]
    assert any("EXIF" in message for message in messages)


def test_boxes_alone_and_nothing_at_all_are_errors(write_coco, make_square) -> None:
    _, path = write_coco([(40, 60)], [make_square(3, 4, 12, segmentation=[])])
    assert ("error", "nothing to learn") in kinds(path)
    _, path = write_coco([], [])
    assert ("error", "no images") in kinds(path)


def test_without_images_the_sizes_in_the_file_are_trusted(good) -> None:
    images, path = good
    (images / "1.png").unlink()
    edit(path, lambda content: content["images"][1].update(height=None))
    assert kinds(path) == {("warning", "no image size")}


def test_a_result_file_is_not_an_annotation_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(YolactError, match="result file"):
        check_annotations(tmp_path / "a.json")


def test_the_report_is_plain_json_with_ids(good) -> None:
    images, path = good
    edit(path, lambda content: content["annotations"][1].update(category_id=5))
    report = json.loads(json.dumps(check_annotations(path, images).to_dict()))
    found = next(f for f in report["findings"] if f["kind"] == "unknown category")
    assert (found["image_id"], found["annotation_id"]) == (1, 101)
    assert report["images_without_annotations"] == 1
