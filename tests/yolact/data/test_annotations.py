"""Annotation files as other tools write them: what has one meaning is read, what is ambiguous is refused."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from yolact.data.annotations import AnnotationFile, parse_annotations, read_annotations
from yolact.data.reader.consistency import STATUS
from yolact.dataset_tools.check import check_annotations
from yolact.dataset_tools.fix import fix_annotations
from yolact.evaluation.ground_truth import read_ground_truth
from yolact_runtime.errors import YolactError

HEIGHT, WIDTH = 60, 80


def clean(count: int = 6) -> dict[str, Any]:
    """A clean file: two images, two classes, polygons and an RLE."""
    annotations = []
    for number in range(1, count + 1):
        x, y, w, h = 4.0 + 9 * number, 3.0 + 5 * number, 12.5, 9.0
        annotations.append(
            {
                "id": number,
                "image_id": 10 + number % 2,
                "category_id": 1 + number % 2,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
        )
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[20:31, 40:57] = 1
    rle = coco_mask.encode(mask)
    annotations[0] |= {
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
        "bbox": [40.0, 20.0, 17.0, 11.0],
        "area": 187.0,
    }
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH}
            for number in (10, 11)
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "nut"}, {"id": 2, "name": "bolt"}],
    }


def parse(folder: Path, content: Any, encoding: str = "utf-8") -> AnnotationFile:
    """The content as a file, read."""
    path = folder / "annotations.json"
    path.write_text(json.dumps(content), encoding=encoding)
    return parse_annotations(path)


def plain(file: AnnotationFile) -> dict[str, Any]:
    """What the file says, without the annotations' own ids."""
    entries = []
    for entry in file.annotations:
        mask = entry["segmentation"]
        mask = [list(polygon) for polygon in mask] if isinstance(mask, list) else mask
        entries.append({**entry, "segmentation": mask, "bbox": [float(v) for v in entry["bbox"]], "id": 0})
    return {"images": file.images, "annotations": entries, "categories": file.categories}


def text_ids(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image["id"] = f"{image['id']:06d}"
    for entry in content["annotations"]:
        entry["image_id"] = str(entry["image_id"])


def text_categories(content: dict[str, Any]) -> None:
    for category in content["categories"]:
        category["id"] = str(category["id"])
    for entry in content["annotations"]:
        entry["category_id"] = str(entry["category_id"])


def decimal(*keys: str) -> Callable[[dict[str, Any]], None]:
    """A variant that writes whole numbers of every annotation as 3.0."""

    def change(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry.update({key: float(entry[key]) for key in keys})

    return change


def each(**changes: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    """A variant that sets keys of every annotation."""

    def change(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            for key, value in changes.items():
                entry[key] = value(entry)

    return change


def listed(entry: dict[str, Any]) -> bool:
    return isinstance(entry["segmentation"], list)


def texts(values: list[float]) -> list[str]:
    return [str(value) for value in values]


def flat(entry: dict[str, Any]) -> Any:
    mask = entry["segmentation"]
    return mask[0] if isinstance(mask, list) else mask


def text_sizes(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image["height"], image["width"] = str(image["height"]), float(image["width"])


def no_ids(content: dict[str, Any]) -> None:
    for entry in content["annotations"][2:4]:
        del entry["id"]
    content["annotations"][0]["id"] = content["annotations"][1]["id"]


def marks(content: dict[str, Any]) -> None:
    content["categories"][0]["name"] = "\ufeff" + content["categories"][0]["name"]
    content["images"][0]["file_name"] = "\ufeff" + content["images"][0]["file_name"]


def stray(content: dict[str, Any]) -> None:
    content["annotations"].append({**content["annotations"][1], "id": 99, "image_id": 5})


def more_keys(content: dict[str, Any]) -> None:
    content["info"] = {"bbox": 3, "segmentation": "none"}
    each(attributes=lambda entry: {"occluded": False}, keypoints=lambda entry: [1, 2, 2])(content)


# By what they change: one of each line can be combined with any of the others.
VARIANTS: dict[str, list[Callable[[dict[str, Any]], Any]]] = {
    "image ids": [text_ids, decimal("image_id")],
    "category ids": [text_categories, decimal("category_id")],
    "annotation ids": [no_ids, decimal("id"), each(id=lambda entry: f"uuid-{entry['id']}")],
    "boxes": [
        each(bbox=lambda entry: [str(value) for value in entry["bbox"]]),
        each(bbox=lambda entry: None),
        each(bbox=lambda entry: []),
    ],
    "areas": [each(area=lambda entry: str(entry["area"]))],
    "crowds": [
        each(iscrowd=lambda entry: "0"),
        each(iscrowd=lambda entry: "False"),
        each(iscrowd=lambda entry: None),
        each(iscrowd=lambda entry: 0.0),
        lambda content: [entry.pop("iscrowd") for entry in content["annotations"]],
    ],
    "polygons": [
        each(segmentation=flat),
        each(segmentation=lambda e: [*map(texts, e["segmentation"])] if listed(e) else e["segmentation"]),
        each(
            segmentation=lambda e: [*e["segmentation"], [1, 2, 3, 4], []] if listed(e) else e["segmentation"]
        ),
    ],
    "sizes": [text_sizes],
    "names": [marks],
    "strays": [stray],
    "more": [more_keys],
}
variants = st.fixed_dictionaries(
    {}, optional={group: st.integers(0, len(changes) - 1) for group, changes in VARIANTS.items()}
)


@pytest.mark.parametrize(
    ("segmentation", "empty"),
    [
        (None, True),
        ([], True),
        ([[]], True),
        ([[1, 2, 3, 4]], True),
        ([[1, 2, 9, 2, 9, 9]], False),
        ({"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}, False),
    ],
)
def test_a_segmentation_without_three_points_is_none(tmp_path: Path, segmentation: Any, empty: bool) -> None:
    content = clean()
    box = {"bbox": content["annotations"][0]["bbox"]} if empty else {}  # else it follows from the mask
    ids = {"id": 1, "image_id": 10, "category_id": 1}
    content["annotations"] = [{**ids, **box, "segmentation": segmentation}]
    (entry,) = parse(tmp_path, content).annotations
    assert (entry["segmentation"] is None) == empty


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(variants, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_every_spelling_of_a_file_is_the_same_dataset(
    tmp_path: Path, chosen: dict[str, int], encoding: str
) -> None:
    content = clean()
    expected = plain(parse(tmp_path, content))
    for group, index in chosen.items():
        VARIANTS[group][index](content)
    file = parse(tmp_path, content, encoding)
    assert file.findings.count("error") == 0
    assert plain(file) == expected
    assert len({entry["id"] for entry in file.annotations}) == len(file.annotations)


def pairs(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        if isinstance(entry["segmentation"], list):
            polygon = entry["segmentation"][0]
            entry["segmentation"] = [[polygon[i : i + 2] for i in range(0, len(polygon), 2)]]


def one_list_of_pairs(content: dict[str, Any]) -> None:
    pairs(content)
    for entry in content["annotations"]:
        if isinstance(entry["segmentation"], list):
            (entry["segmentation"],) = entry["segmentation"]


def relative(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        if isinstance(entry["segmentation"], list):
            scaled = [v / (WIDTH, HEIGHT)[i % 2] for i, v in enumerate(entry["segmentation"][0])]
            entry["segmentation"] = [scaled]
            entry["bbox"] = [v / (WIDTH, HEIGHT)[i % 2] for i, v in enumerate(entry["bbox"])]


def names_as_ids(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image["id"] = f"image-{image['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"image-{entry['image_id']}"


def corners(entry: dict[str, Any]) -> list[float]:
    x, y, w, h = entry["bbox"]
    return [x, y, x + w, y + h]


def large_categories(content: dict[str, Any]) -> None:
    for category in content["categories"]:
        category["id"] += 2**64
    for entry in content["annotations"]:
        entry["category_id"] += 2**64


# With the lines of VARIANTS that change the same.
REPAIRED: dict[str, tuple[Callable[[dict[str, Any]], None], set[str]]] = {
    "pairs": (pairs, {"polygons"}),
    "one list of pairs": (one_list_of_pairs, {"polygons"}),
    "corners": (each(bbox=corners), {"boxes"}),
    "no area": (each(bbox=lambda entry: [0, 0, 0, 0]), {"boxes"}),
    "not a number": (each(bbox=lambda entry: [float("nan")] * 4), {"boxes"}),
    "mixed ids": (each(image_id=lambda entry: str(entry["image_id"])), {"image ids"}),
    "mixed categories": (each(category_id=lambda entry: str(entry["category_id"])), {"category ids"}),
    "large categories": (large_categories, {"category ids"}),
    "relative": (relative, {"polygons", "boxes"}),
    "names as ids": (names_as_ids, {"image ids"}),
}


def write_images(folder: Path) -> Path:
    """The two image files of `clean`."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for number in (10, 11):
        cv2.imwrite(str(images / f"{number}.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return images


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(variants, st.sampled_from(sorted(REPAIRED)))
def test_a_repaired_file_is_clean_and_says_the_same(
    tmp_path: Path, chosen: dict[str, int], wrong: str
) -> None:
    images = write_images(tmp_path)
    content = clean()
    expected = plain(parse(tmp_path, copy.deepcopy(content)))
    damage, same = REPAIRED[wrong]
    damage(content)
    for group, index in chosen.items():
        if group not in same:
            VARIANTS[group][index](content)
    parse(tmp_path, content)
    fixed = tmp_path / "fixed.json"
    found = fix_annotations(tmp_path / "annotations.json", fixed, images)
    assert found.count("error") == 0
    report = check_annotations(fixed, images)
    assert [finding for finding in report.findings if finding.level != "note"] == []
    file = parse_annotations(fixed)
    actual = plain(file)
    for side in (expected, actual):  # ids of images may be new, and relative coordinates are rounded
        order = {image["id"]: image["file_name"] for image in side["images"]}
        for entry in side["annotations"]:
            entry["image_id"] = order[entry["image_id"]]
    assert [e["image_id"] for e in actual["annotations"]] == [e["image_id"] for e in expected["annotations"]]
    classes = [
        [{c["id"]: c["name"] for c in side["categories"]}[e["category_id"]] for e in side["annotations"]]
        for side in (actual, expected)
    ]
    assert classes[0] == classes[1]
    for mine, theirs in zip(actual["annotations"], expected["annotations"], strict=True):
        np.testing.assert_allclose(mine["bbox"], theirs["bbox"], atol=1e-6)
        if isinstance(theirs["segmentation"], list):
            np.testing.assert_allclose(mine["segmentation"], theirs["segmentation"], atol=1e-6)
        else:
            assert mine["segmentation"] == theirs["segmentation"]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], r"\[x1, y1, x2, y2\]"),
        (
            lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT],
            r"relative to the image \(0 to 1\)",
        ),
        (
            lambda x, y, w, h: [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT],
            "YOLO",
        ),
        (lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], "centre x, centre y"),
        (lambda x, y, w, h: [y, x, h, w], r"\[y, x, height, width\]"),
        (lambda x, y, w, h: [2.5 * x, 2.5 * y, 2.5 * w, 2.5 * h], "2.5 times as wide"),
        (lambda x, y, w, h: [50 - x, 45 - y, w, h], "different images"),
    ],
)
def test_boxes_that_contradict_their_masks_are_refused_and_named(tmp_path: Path, form, message: str) -> None:
    content = clean()
    each(bbox=lambda entry: form(*entry["bbox"]))(content)
    path = parse(tmp_path, content).path
    with pytest.raises(YolactError, match=message):
        read_annotations(path)
    content = clean()
    content["annotations"][1]["bbox"] = form(*content["annotations"][1]["bbox"])
    file = parse(tmp_path, content)
    assert file.findings.count("error") == 0


def test_coordinates_of_a_larger_image_are_refused(tmp_path: Path) -> None:
    content = clean()
    content["annotations"] = content["annotations"][1:]
    each(
        segmentation=lambda entry: [[3 * v for v in entry["segmentation"][0]]],
        bbox=lambda entry: [3 * v for v in entry["bbox"]],
    )(content)
    with pytest.raises(YolactError, match="coordinates of a larger image"):
        read_annotations(parse(tmp_path, content).path)


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = parse(tmp_path, clean()).path
    first = read_annotations(path)
    assert read_annotations(path) is first
    path.write_text(path.read_text() + " ")
    assert read_annotations(path) is not first


def test_warnings_and_notes_are_one_line_for_each_kind(tmp_path: Path, caplog) -> None:
    content = clean()
    each(iscrowd=lambda entry: "0", bbox=lambda entry: [str(value) for value in entry["bbox"]])(content)
    caplog.set_level("INFO")
    read_annotations(parse(tmp_path, content).path)
    assert [record.message.split(": ")[1:3] for record in caplog.records] == [
        ["iscrowd as text", "6, the first"],
        ["numbers as text", "6, the first"],
    ]


def test_what_each_annotation_is_to_training(tmp_path: Path) -> None:
    content = clean()
    entries = content["annotations"]
    entries[0]["iscrowd"] = True
    entries[1]["segmentation"] = []
    entries[2]["bbox"] = [3, 3, 0, 9]
    entries[3] |= {"bbox": [90, 3, 5, 9], "segmentation": [[90, 3, 95, 3, 95, 12]]}
    status = [STATUS[index] for index in parse(tmp_path, content).status]
    assert status == ["crowd", "no segmentation", "no area", "outside the image", "example", "example"]


odd_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.sampled_from(["", "0", "1e400", "nan", "1" * 50, "a\0b", "\ud800", "../x.png", 10**400, 2**63])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=7) | st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(st.data())
def test_odd_values_anywhere_are_read_or_refused_and_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    images = write_images(tmp_path)
    content = clean(3)
    for _ in range(data.draw(st.integers(1, 3))):
        entries = content[data.draw(st.sampled_from(["images", "annotations", "categories"]))]
        entry = data.draw(st.sampled_from(entries))
        if isinstance(entry, dict) and entry and data.draw(st.integers(0, 9)):
            entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(odd_values)
        else:
            entries[entries.index(entry)] = data.draw(odd_values)
    path = parse_or_refuse(tmp_path, content)
    for use in (
        lambda: read_ground_truth(path, images),
        lambda: check_annotations(path, images),
        lambda: fix_annotations(path, tmp_path / "fixed.json", images),
    ):
        with contextlib.suppress(YolactError):
            use()
    if (tmp_path / "fixed.json").exists():
        report = check_annotations(tmp_path / "fixed.json", images)
        kinds = {finding.kind for finding in report.findings if finding.level == "error"}
        assert kinds <= {"nothing to learn", "no categories"}
        (tmp_path / "fixed.json").unlink()


def parse_or_refuse(folder: Path, content: Any) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    with contextlib.suppress(YolactError):
        file = parse_annotations(path)
        assert all(type(entry[key]) is int for entry in file.annotations for key in ("id", "image_id"))
        assert np.isfinite([entry["bbox"] for entry in file.annotations]).all()
    return path
