"""Each converter's result is opened with pycocotools and its masks compared with those that went in."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from yolact.config import ModelConfig
from yolact.data.annotations import read_classes
from yolact.data.coco import CocoDataset
from yolact.dataset_tools.check import check_annotations
from yolact.dataset_tools.convert import convert
from yolact_runtime.errors import YolactError

HEIGHT, WIDTH = 40, 60


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def write_image(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))


def write_grey(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), values.astype(np.uint8))


def opened(content: dict[str, Any], images: Path, tmp_path: Path) -> dict[str, list[tuple[str, np.ndarray]]]:
    """(class name, mask) by image name, as pycocotools reads them; the file must be without errors."""
    path = tmp_path / "converted.json"
    path.write_text(json.dumps(content))
    report = check_annotations(path, images)
    assert report.count("error") == 0, report.findings
    dataset = CocoDataset(images, path, ModelConfig(input_size=64), read_classes(path))
    assert len(dataset[0].target.boxes) == len(dataset.records[0].annotations)
    coco = COCO(path)
    return {
        image["file_name"]: [
            (coco.cats[a["category_id"]]["name"], coco.annToMask(a).astype(bool))
            for a in coco.imgToAnns[number]
        ]
        for number, image in coco.imgs.items()
    }


class TestLabelme:
    def write(self, folder: Path, name: str, shapes: list[dict], **more: Any) -> None:
        write_image(folder, f"{name}.png")
        content = {"imagePath": f"{name}.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
        (folder / f"{name}.json").write_text(json.dumps(content | more))

    def test_all_shapes_with_an_area(self, tmp_path: Path) -> None:
        whole = disc(20, 20, 9)
        _, png = cv2.imencode(".png", whole[11:30, 11:30].astype(np.uint8))
        folder = tmp_path / "in"
        self.write(
            folder,
            "a",
            [
                {"label": "cat", "points": [[5, 5], [25, 5], [25, 15], [5, 15]], "shape_type": "polygon"},
                {"label": "dog", "points": [[50, 30], [30, 10]], "shape_type": "rectangle"},
                {"label": "dog", "points": [[20, 20], [29, 20]], "shape_type": "circle"},
                {
                    "label": "ant",
                    "points": [[11, 11], [30, 30]],
                    "shape_type": "mask",
                    "mask": base64.b64encode(png).decode(),
                },
                {"label": "cat", "points": [[1, 1]], "shape_type": "point"},
            ],
        )
        found = opened(convert("labelme", folder), folder, tmp_path)["a.png"]
        assert [name for name, _ in found] == ["cat", "dog", "dog", "ant"]
        masks = [mask for _, mask in found]
        assert masks[0].sum() == 200
        assert masks[0][5:15, 5:25].all()
        assert masks[1].sum() == 400
        assert masks[1][10:30, 30:50].all()
        assert iou(masks[2], disc(19.5, 19.5, 9)) > 0.95
        assert (masks[3] == whole).all()

    def test_a_group_is_one_instance(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        parts = [[[x, 5], [x + 5, 5], [x + 5, 10], [x, 10]] for x in (5, 20, 40)]
        groups = (3, 3, 4)
        shapes = [
            {"label": "cat", "points": points, "group_id": group, "shape_type": "polygon"}
            for points, group in zip(parts, groups, strict=True)
        ]
        self.write(folder, "a", shapes)
        found = opened(convert("labelme", folder), folder, tmp_path)["a.png"]
        assert [mask.sum() for _, mask in found] == [50, 25]

    def test_windows_paths_missing_sizes_and_an_image_folder(self, tmp_path: Path) -> None:
        triangle = {"label": "cat", "points": [[5, 5], [25, 5], [25, 15]]}
        self.write(tmp_path / "in", "a", [triangle], imagePath="..\\photos\\a.png", imageHeight=None)
        write_image(tmp_path / "photos", "a.png")
        content = convert("labelme", tmp_path / "in", images=tmp_path / "photos")
        assert content["images"] == [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}]

    @pytest.mark.parametrize(
        "shape",
        [
            {"label": "cat", "points": [[5, 5], [25, 5]], "shape_type": "polygon"},
            {"label": "cat", "points": [[5, 5], [25, 5]], "shape_type": "spiral"},
            {"label": "cat", "points": "many"},
            {"points": [[5, 5], [25, 5], [9, 9]]},
            {"label": "cat", "points": [[5, 5], [9, 9]], "shape_type": "mask", "mask": "AAAA"},
        ],
    )
    def test_damaged_files_are_named(self, tmp_path: Path, shape: dict) -> None:
        self.write(tmp_path, "a", [shape])
        with pytest.raises(YolactError, match=r"a\.json: damaged shape"):
            convert("labelme", tmp_path)

    def test_no_labelme_files(self, tmp_path: Path) -> None:
        (tmp_path / "coco.json").write_text("{}")
        with pytest.raises(YolactError, match="holds no labelme files"):
            convert("labelme", tmp_path)


class TestVoc:
    def write(self, root: Path, palette: bool) -> tuple[np.ndarray, np.ndarray]:
        write_image(root / "JPEGImages", "a.png", "b.png")
        instances, kinds = np.zeros((2, HEIGHT, WIDTH), np.uint8)
        for number, kind, x in ((1, 8, 12), (2, 15, 30), (3, 8, 48)):
            instances[disc(x, 20, 8)] = number
            kinds[disc(x, 20, 8)] = kind
        rim = disc(30, 20, 8) & ~disc(30, 20, 6)
        instances[rim] = kinds[rim] = 255
        for folder, values in (("SegmentationObject", instances), ("SegmentationClass", kinds)):
            (root / folder).mkdir()
            image = Image.fromarray(values)
            if palette:
                image.putpalette(list(range(255, -1, -1)) * 3)
            for name in ("a", "b"):
                image.save(root / folder / f"{name}.png")
        return instances, kinds

    @pytest.mark.parametrize("palette", [True, False])
    def test_instances_and_classes(self, tmp_path: Path, palette: bool) -> None:
        instances, _ = self.write(tmp_path, palette)
        found = opened(convert("voc", tmp_path), tmp_path / "JPEGImages", tmp_path)
        assert list(found) == ["a.png", "b.png"]
        assert [name for name, _ in found["a.png"]] == ["cat", "person", "cat"]
        for number, (_, mask) in enumerate(found["a.png"], start=1):
            assert (mask == (instances == number)).all()

    def test_a_list_of_images_and_other_names(self, tmp_path: Path) -> None:
        self.write(tmp_path, True)
        (tmp_path / "val.txt").write_text("b\n")
        (tmp_path / "names.txt").write_text("\n".join(f"class{number}" for number in range(1, 16)))
        content = convert("voc", tmp_path, names=tmp_path / "names.txt", only=tmp_path / "val.txt")
        assert [image["file_name"] for image in content["images"]] == ["b.png"]
        found = opened(content, tmp_path / "JPEGImages", tmp_path)
        assert [name for name, _ in found["b.png"]] == ["class8", "class15", "class8"]

    def test_faults_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(YolactError, match="SegmentationObject"):
            convert("voc", tmp_path)
        self.write(tmp_path, True)
        write_grey(tmp_path / "SegmentationClass" / "a.png", np.zeros((HEIGHT, WIDTH)))
        with pytest.raises(YolactError, match="no known class"):
            convert("voc", tmp_path)
        write_grey(tmp_path / "SegmentationClass" / "a.png", np.zeros((HEIGHT, WIDTH, 3)))
        with pytest.raises(YolactError, match="holds colours"):
            convert("voc", tmp_path)
        (tmp_path / "JPEGImages" / "a.png").unlink()
        with pytest.raises(YolactError, match="has no image"):
            convert("voc", tmp_path)


class TestMasks:
    def test_a_folder_of_masks_for_each_image(self, tmp_path: Path) -> None:
        images, masks = tmp_path / "images", tmp_path / "masks"
        write_image(images, "a.png", "b.png")
        write_grey(masks / "a" / "red_cell_1.png", disc(15, 20, 8) * 255)
        write_grey(masks / "a" / "red_cell_2.png", disc(35, 20, 8) * 1)
        write_grey(masks / "a" / "nucleus.png", disc(50, 20, 4) * 200)
        write_grey(masks / "a" / "nucleus-2.png", np.zeros((HEIGHT, WIDTH)))
        content = convert("masks", masks, images)
        assert content["categories"] == [{"id": 1, "name": "nucleus"}, {"id": 2, "name": "red_cell"}]
        found = opened(content, images, tmp_path)
        assert found["b.png"] == []
        assert [name for name, _ in found["a.png"]] == ["nucleus", "red_cell", "red_cell"]
        for (_, mask), (x, radius) in zip(found["a.png"], ((50, 4), (15, 8), (35, 8)), strict=True):
            assert (mask == disc(x, 20, radius)).all()

    def test_faults_are_named(self, tmp_path: Path) -> None:
        images, masks = tmp_path / "images", tmp_path / "masks"
        write_image(images, "a.png")
        write_grey(masks / "a" / "cell_1.png", np.ones((9, 9)))
        with pytest.raises(YolactError, match=r"cell_1\.png is 9x9; .*60x40"):
            convert("masks", masks, images)
        with pytest.raises(YolactError, match="--images"):
            convert("masks", masks)
        write_grey(masks / "a" / "cell_1.png", np.ones((HEIGHT, WIDTH)))
        (tmp_path / "names.txt").write_text("cel\n")
        with pytest.raises(YolactError, match=r"a\.png: no class 'cell'; near ones: cel"):
            convert("masks", masks, images, tmp_path / "names.txt")
        (masks / "z").mkdir()
        with pytest.raises(YolactError, match="has no image of its name"):
            convert("masks", masks, images)


class TestYolo:
    def write(self, root: Path, text: str) -> Path:
        write_image(root / "images" / "train", "a.png", "b.png")
        labels = root / "labels" / "train"
        labels.mkdir(parents=True, exist_ok=True)
        (labels / "a.txt").write_text(text)
        return labels

    def test_polygons_with_class_zero(self, tmp_path: Path) -> None:
        labels = self.write(tmp_path, "0 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75\n\n2 0 0 0.1 0 0.1 0.1\n")
        (tmp_path / "data.yaml").write_text("names: [cat, cow, dog]\n")
        content = convert("yolo", labels)
        assert [category["id"] for category in content["categories"]] == [0, 1, 2]
        found = opened(content, tmp_path / "images" / "train", tmp_path)
        assert found["b.png"] == []
        (first, mask), (second, _) = found["a.png"]
        assert (first, second) == ("cat", "dog")
        expected = np.zeros((HEIGHT, WIDTH), bool)
        expected[10:30, 15:30] = True
        assert (mask == expected).all()

    @pytest.mark.parametrize("text", ["names: {0: cat, 5: dog}", "cat\nx1\nx2\nx3\nx4\ndog\n"])
    def test_names_from_a_file(self, tmp_path: Path, text: str) -> None:
        labels = self.write(tmp_path, "5 0 0 0.5 0 0.5 0.5")
        names = tmp_path / ("names.yaml" if ":" in text else "names.txt")
        names.write_text(text)
        content = convert("yolo", labels, tmp_path / "images" / "train", names)
        assert opened(content, tmp_path / "images" / "train", tmp_path)["a.png"][0][0] == "dog"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("0 0.5 0.5 0.1 0.1", "line 1: a box"),
            ("0 0 0 1 1 1 0\n0 0.5 0.5 0.1", "line 2: 3 coordinates"),
            ("3 0 0 1 1 1 0", "class 3"),
            ("cat 0 0 1 1 1 0", "line 1"),
            ("0 0 0 1 1 1 nan", "line 1.*finite"),
        ],
    )
    def test_damaged_lines_are_named(self, tmp_path: Path, text: str, message: str) -> None:
        labels = self.write(tmp_path, text)
        (tmp_path / "classes.txt").write_text("cat\n")
        with pytest.raises(YolactError, match=message) as caught:
            convert("yolo", labels, tmp_path / "images" / "train", tmp_path / "classes.txt")
        assert "a.txt" in str(caught.value)

    def test_missing_names_and_images(self, tmp_path: Path) -> None:
        labels = self.write(tmp_path, "0 0 0 1 1 1 0")
        with pytest.raises(YolactError, match="--names"):
            convert("yolo", labels)
        (tmp_path / "classes.txt").write_text("cat\ncat\n")
        with pytest.raises(YolactError, match="twice"):
            convert("yolo", labels, names=tmp_path / "classes.txt")
        with pytest.raises(YolactError, match="does not exist"):
            convert("yolo", labels, tmp_path / "gone")


def test_unknown_formats_list_the_known() -> None:
    with pytest.raises(YolactError, match="labelme, masks, voc, yolo"):
        convert("xml", ".")
