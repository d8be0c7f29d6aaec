"""labelme files, read by labelme where it is installed, and by this project's converter."""

import base64
import json

import cv2
import numpy as np
import pytest
from mask_scenes import nothing, scene
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

SHAPE = {"label", "points", "group_id", "description", "shape_type", "flags", "mask", "score"}


def test_the_content():
    result = scene(0, tracks=np.array([4, 9, 1, -1, 2, 3]))
    content = json.loads(json.dumps(result.to_labelme("../photos/a.jpg")))
    assert content["imagePath"] == "../photos/a.jpg" and content["imageData"] is None
    assert (content["imageHeight"], content["imageWidth"]) == (result.height, result.width)
    groups = {}
    for shape in content["shapes"]:
        assert set(shape) == SHAPE and shape["shape_type"] == "polygon" and len(shape["points"]) >= 3
        groups.setdefault(shape["group_id"], []).append(shape)
    assert len(groups.keys() - {None}) >= 1  # instances of several components
    assert all(len(shapes) > 1 for group, shapes in groups.items() if group is not None)
    texts = {shape["description"] for shape in content["shapes"]}
    assert {"track 4", ""} <= texts and "track 3" not in texts  # of the instance with an empty mask
    assert nothing().to_labelme("a.jpg")["shapes"] == []


def test_masks_are_exact():
    result = scene(1)
    shapes = result.to_labelme("a.jpg", masks=True)["shapes"]
    assert len(shapes) == len(result) - 1
    for shape, expected in zip(shapes, result.masks, strict=False):
        (left, top), (right, bottom) = np.array(shape["points"], int)
        png = cv2.imdecode(np.frombuffer(base64.b64decode(shape["mask"]), np.uint8), cv2.IMREAD_UNCHANGED)
        mask = np.zeros_like(expected)
        mask[top : bottom + 1, left : right + 1] = png
        np.testing.assert_array_equal(mask, expected)


@pytest.fixture
def written(tmp_path):
    """Writes the labelme file of a result next to its image, and returns its path."""

    def write(result, **options):
        image = np.zeros((result.height, result.width, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / "a.png"), image)
        path = tmp_path / "a.json"
        path.write_text(json.dumps(result.to_labelme("a.png", **options)))
        return path

    return write


@pytest.mark.parametrize("seed", range(2))
def test_labelme_reads_them(written, seed):
    """labelme.LabelFile, and the masks by labelme's own utils."""
    labelme = pytest.importorskip("labelme")
    result = scene(seed)
    size = result.height, result.width
    for options in ({"masks": True}, {"tolerance": 0}, {}):
        file = labelme.LabelFile(str(written(result, **options)))
        assert file.image_path == "a.png" and file.image_data
        masks = {}
        for shape in file.shapes:
            if options.get("masks"):
                mask = np.zeros(size, bool)
                (left, top), (right, bottom) = np.array(shape["points"], int)
                mask[top : bottom + 1, left : right + 1] = shape["mask"]
            else:
                mask = labelme.utils.shape_to_mask(size, shape["points"], shape["shape_type"])
            key = shape["other_data"]["score"]
            masks[key] = masks.get(key, False) | mask
        assert list(masks) == [float(str(score)) for score in result.mask_scores[:-1]]
        for mask, expected, region in zip(masks.values(), result.masks, result.regions, strict=False):
            if options.get("masks"):
                np.testing.assert_array_equal(mask, expected)
            else:
                # labelme also fills the pixels below and right of an outline, and holes.
                from yolact_runtime.exchange.instances import Instance

                exact = Instance("x", 1.0, region).region(*size).mask
                assert exact.sum() <= mask.sum() * 1.05


@pytest.mark.parametrize("seed", range(2))
def test_converting_them_gives_the_masks_back(written, tmp_path, seed):
    data = pytest.importorskip("yolact.cli.data")
    result = scene(seed, n=5)
    for options in ({"masks": True}, {"tolerance": 0}, {}):
        written(result, **options)
        out = tmp_path / "out" / "coco.json"
        assert data.main(["convert", "labelme", str(tmp_path), str(out)]) == 0
        coco = COCO(str(out))
        annotations = coco.loadAnns(coco.getAnnIds())
        out.unlink()
        names = [coco.cats[one["category_id"]]["name"] for one in annotations]
        assert sorted(names) == sorted(result.names[:-1])
        for one, mask in zip(annotations, result.masks, strict=False):
            back = coco.annToMask(one).astype(bool)
            if options.get("masks"):
                np.testing.assert_array_equal(back, mask)
            else:
                contours, _ = cv2.findContours(
                    mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
                )
                whole = cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED)
                if "tolerance" in options:
                    np.testing.assert_array_equal(back, whole)
                assert (
                    coco_mask.iou([coco.annToRLE(one)], [coco_mask.encode(np.asfortranarray(whole))], [0])
                    > 0.9
                )
