"""Repairs that need the images, and what cannot be repaired; for the others see test_annotations.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from yolact.cli.data import main
from yolact.data.annotations import parse_annotations
from yolact.data.segmentation import to_mask
from yolact.dataset_tools.check import check_annotations
from yolact.dataset_tools.fix import fix_annotations
from yolact_runtime.errors import UsageError


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("compressed", [False, True])
def test_annotations_of_a_turned_image_are_turned(
    write_coco, make_square, tmp_path: Path, orientation: int, compressed: bool
) -> None:
    images, path = write_coco([(40, 60)], [])
    square = make_square(5, 8, 20, id=3)
    square["segmentation"] = [[5, 8, 25, 8, 25, 28, 9, 28]]
    mask = to_mask(square["segmentation"], 40, 60)
    pixels = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    if compressed:
        rle = coco_mask.encode(np.asfortranarray(mask))
        square["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(pixels).save(images / "1.jpg", exif=exif, quality=100, subsampling=0)
    edit(path, lambda c: (c["annotations"].append(square), c["images"][0].update(file_name="1.jpg")))
    found = fix_annotations(path, tmp_path / "fixed.json", images)
    assert (found.count("error"), found.counts["note", "turned images"]) == (0, 1)
    assert check_annotations(tmp_path / "fixed.json", images).count("error") == 0
    file = parse_annotations(tmp_path / "fixed.json")
    assert (file.images[0]["height"], file.images[0]["width"]) == (60, 40)
    # Pillow turns the picture of the mask: the oracle.
    shown = np.asarray(ImageOps.exif_transpose(Image.open(images / "1.jpg")))[..., 0] > 127
    (entry,) = file.annotations
    turned = to_mask(entry["segmentation"], 60, 40).astype(bool)
    # A pixel at the border of a polygon may fall to either side.
    assert (shown != turned).sum() <= (0 if compressed else 30)
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    np.testing.assert_allclose(entry["bbox"], box, atol=1.01)


def test_names_become_those_of_the_files_and_sizes_are_filled_in(
    write_coco, make_square, tmp_path: Path
) -> None:
    images, path = write_coco([(40, 60), (40, 60)], [make_square(3, 4, 12), make_square(9, 9, 9, image_id=2)])
    (images / "1.png").rename(images / "one two.PNG")
    edit(path, lambda c: c["images"][0].update(file_name="train\\one%20two.png", height=None))
    found = fix_annotations(path, tmp_path / "fixed.json", images)
    assert found.count("error") == 0
    content = json.loads((tmp_path / "fixed.json").read_text())
    assert content["images"][0] | {"id": 1} == {
        "id": 1,
        "file_name": "one two.PNG",
        "height": 40,
        "width": 60,
    }
    assert check_annotations(tmp_path / "fixed.json", images).count("error") == 0


def test_what_cannot_be_repaired_is_left_out_and_listed(write_coco, make_square, tmp_path: Path) -> None:
    squares = [
        make_square(3, 4, 12),
        make_square(3, 4, 12, category_id=5),
        make_square(3, 4, 12, iscrowd="some"),
        make_square(9, 4, 12, segmentation=[[1, 2, 3]] * 2),
        make_square(9, 4, 12, image_id=2),
        make_square(9, 4, 12, image_id=3),
        make_square(9, 4, 12, bbox=None, segmentation=[]),
    ]
    images, path = write_coco([(40, 60), (40, 60), (40, 60), (40, 60)], squares)
    (images / "2.png").unlink()
    edit(path, lambda c: c["images"][2].update(width=70))
    edit(path, lambda c: c["images"][3].update(file_name="a/1.png"))
    edit(path, lambda c: c["images"].append({**c["images"][0], "id": 9, "file_name": "5.png"}))
    (images / "4.png").rename(images / "5.png")
    # Image 1 and 4 are one file: which of them is meant is not known.
    found = fix_annotations(path, tmp_path / "fixed.json", images)
    kinds = {kind for level, kind in found.counts if level == "error"}
    assert kinds == {
        "unknown category", "bad iscrowd", "damaged segmentation", "unreadable image", "wrong image size",
        "two entries, one file", "bad box", "annotations of images that are left out",
    }  # fmt: skip
    content = json.loads((tmp_path / "fixed.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["5.png"]


def test_a_region_whose_mask_is_lost_is_ignored_and_not_background(write_coco, make_square, tmp_path) -> None:
    bad = make_square(9, 4, 12, segmentation=[[1, 2, 3, 4, 5, 6, 7]])
    images, path = write_coco([(40, 60)], [make_square(3, 4, 12), bad])
    found = fix_annotations(path, tmp_path / "fixed.json", images)
    assert found.counts["error", "damaged segmentation"] == 1
    entries = json.loads((tmp_path / "fixed.json").read_text())["annotations"]
    assert [len(entry["segmentation"]) for entry in entries] == [1, 0]
    assert check_annotations(tmp_path / "fixed.json", images).count("error") == 0


def test_categories_with_one_name_are_merged_and_other_keys_stay(write_coco, make_square, tmp_path) -> None:
    squares = [make_square(3, 4, 12, attributes={"colour": "red"}), make_square(3, 4, 12, category_id=0)]
    categories = [{"id": 7, "name": "nut"}, {"id": 0, "name": "nut"}]
    _, path = write_coco([(40, 60)], squares, categories, info={"year": 2020})
    assert fix_annotations(path, tmp_path / "fixed.json").count("error") == 0
    content = json.loads((tmp_path / "fixed.json").read_text())
    assert content["info"] == {"year": 2020}
    assert content["categories"] == [{"id": 7, "name": "nut"}]
    assert [entry["category_id"] for entry in content["annotations"]] == [7, 7]
    assert content["annotations"][0]["attributes"] == {"colour": "red"}


def test_the_command_says_what_it_changed_and_what_not(write_coco, make_square, tmp_path, capsys) -> None:
    crowd = make_square(3, 4, 12, iscrowd="1", segmentation=[[3, 4], [15, 4], [15, 16], [3, 16]])
    images, path = write_coco([(40, 60)], [crowd])
    arguments = ["fix", str(path), "--images", str(images), "--output", str(tmp_path / "fixed.json")]
    assert main([*arguments, "--crowd-as-instances"]) == 0
    out = capsys.readouterr().out
    for kind in ("polygons of pairs", "iscrowd as text", "crowds"):
        assert f"changed: {kind}: 1, the first: annotation 100: " in out
    assert main(["check", str(tmp_path / "fixed.json"), "--images", str(images)]) == 0
    edit(
        path,
        lambda content: content["annotations"].append({**crowd, "id": 5, "bbox": None, "segmentation": 3}),
    )
    assert main(arguments) == 1
    assert "not repaired: damaged segmentation: 1" in capsys.readouterr().out


def test_the_input_is_not_overwritten(write_coco, make_square) -> None:
    images, path = write_coco([(40, 60)], [make_square(3, 4, 12)])
    with pytest.raises(UsageError, match="give another name"):
        fix_annotations(path, path, images)


def test_annotations_elsewhere_in_the_file_are_copied(write_coco, make_square, tmp_path: Path) -> None:
    images, path = write_coco([(40, 60)], [make_square(1, 2, 9)])
    edit(path, lambda c: c.update(old=c["annotations"]))
    fix_annotations(path, tmp_path / "fixed.json", images)
    fixed = json.loads((tmp_path / "fixed.json").read_text())
    assert fixed["old"] == json.loads(path.read_text())["old"]


@pytest.mark.filterwarnings("error")
def test_coordinates_near_the_largest_number_are_an_error(write_coco, make_square) -> None:
    far = make_square(1, 2, 9) | {"segmentation": [[1e308, 1, 5, 1, 5, -1e308]]}
    images, path = write_coco([(40, 60)], [far])
    assert check_annotations(path, images).count("error") > 0
