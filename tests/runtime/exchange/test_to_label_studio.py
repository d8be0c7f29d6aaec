"""Predictions for Label Studio, decoded by its SDK where it is installed, and as its format says."""

import itertools
import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from mask_scenes import NAMES, nothing, scene
from pycocotools import mask as coco_mask

from yolact_runtime import YolactError
from yolact_runtime.exchange.to_label_studio import brush_rle, image_address, label_studio_config
from yolact_runtime.masks import Region
from yolact_runtime.rle import region_of


def decode(rle):
    """What the JavaScript of Label Studio does (decode in rle-pack): the values of an encoded array."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def read(count):
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    number, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out = []
    while len(out) < number:
        series = read(1)
        length = 1 + read(sizes[read(2)])
        out += [read(word)] * length if series else [read(word) for _ in range(length)]
    assert len(out) == number and len(bits) - at < 8
    return np.array(out, np.uint8)


def alpha(values, height, width):
    """The mask (height, width) bool of the values of an RGBA image."""
    pixels = values.reshape(height, width, 4)
    assert (pixels == pixels[:, :, :1]).all() and set(np.unique(values)) <= {0, 255}
    return pixels[:, :, 3] > 0


def test_brush_masks_are_exact():
    result = scene(0)
    prediction = json.loads(json.dumps(result.to_label_studio()))
    assert len(prediction["result"]) == len(result) - 1  # without the empty mask
    for item, mask in zip(prediction["result"], result.masks, strict=False):
        assert item["type"] == "brushlabels" and item["value"]["format"] == "rle"
        np.testing.assert_array_equal(alpha(decode(item["value"]["rle"]), *mask.shape), mask)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 63, 64, 65, 16384, 16385, 40000])
@pytest.mark.parametrize("share", [0.0, 0.03, 1.0])
def test_runs_of_every_length(width, share):
    mask = np.random.default_rng(width).random((3, width)) < share
    region = region_of(coco_mask.encode(np.asfortranarray(mask, np.uint8)))
    np.testing.assert_array_equal(alpha(decode(brush_rle(region, *mask.shape)), *mask.shape), mask)


def test_an_image_that_is_too_large_is_refused():
    region = Region(0, 0, 1, 1, 40_000, np.array([0, 1]))
    with pytest.raises(YolactError, match="at most 1,073,741,823 pixels"):
        brush_rle(region, 40_000, 40_000)


def test_the_fields():
    result = scene(3, tracks=np.array([4, 9, 1, -1, 2, 3]))
    prediction = result.to_label_studio(model_version="m.onnx", from_name="tag", to_name="photo")
    assert prediction["model_version"] == "m.onnx"
    assert prediction["score"] == pytest.approx(result.mask_scores[:-1].mean(), abs=1e-6)
    for row, item in enumerate(prediction["result"]):
        assert (item["from_name"], item["to_name"], item["image_rotation"]) == ("tag", "photo", 0)
        assert (item["original_width"], item["original_height"]) == (result.width, result.height)
        assert item["value"]["brushlabels"] == [result.names[row]]
        assert item["score"] == float(str(result.mask_scores[row]))
        track = result.track_ids[row]
        assert item.get("meta") == ({"text": [f"track {track}"]} if track > 0 else None)
    assert nothing().to_label_studio() == {"model_version": "yolact", "score": 0.0, "result": []}


def test_polygons_are_in_percent_and_belong_together():
    result = scene(0)
    prediction = result.to_label_studio(polygons=True, tolerance=0)
    ids = [item["id"] for item in prediction["result"]]
    assert len(set(ids)) == len(ids)
    assert all(item["parentID"] in ids for item in prediction["result"] if "parentID" in item)
    instances = itertools.groupby(prediction["result"], lambda item: item.get("parentID", item["id"]))
    filled = [result.to_coco(1, polygons=True)[row]["segmentation"] for row in range(len(result) - 1)]
    for (_, items), expected in zip(instances, filled, strict=True):
        scale = np.array([result.width, result.height]) / 100
        points = [np.array(item["value"]["points"]) * scale for item in items]
        for one, exact in zip(points, expected, strict=True):
            np.testing.assert_allclose(one.ravel(), exact, atol=1e-3)


@pytest.mark.parametrize("polygons", [False, True])
def test_label_studios_own_package_reads_them(polygons):
    """The decoder and the labeling interface of label-studio-sdk."""
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    from label_studio_sdk.label_interface import LabelInterface

    config = label_studio_config(NAMES, polygons)
    interface = LabelInterface(config)
    for result in (scene(0), scene(1), nothing()):
        prediction = json.loads(json.dumps(result.to_label_studio(polygons)))
        assert interface.validate_prediction(prediction, return_errors=True) == []
        assert interface.validate_task({"data": {"image": "/data/local-files/?d=a.jpg"}})
        for item, mask in zip(prediction["result"], result.masks, strict=False):
            if not polygons:
                values = brush.decode_rle(item["value"]["rle"])
                np.testing.assert_array_equal(alpha(values, *mask.shape), mask)
                theirs = brush.mask2rle(mask.astype(np.uint8) * 255)
                assert item["value"]["rle"] == theirs[: len(item["value"]["rle"])]
    broken = {**prediction, "result": [{**scene(0).to_label_studio(polygons)["result"][0], "to_name": "x"}]}
    assert interface.validate_prediction(broken, return_errors=True)


def test_the_labeling_interface_is_xml():
    for polygons, tag in ((False, "BrushLabels"), (True, "PolygonLabels")):
        root = ElementTree.fromstring(label_studio_config(NAMES, polygons, "tag", "photo"))
        assert root.find("Image").attrib["name"] == "photo" and root.find("Image").attrib["value"] == "$image"
        assert root.find(tag).attrib == {"name": "tag", "toName": "photo"}
        assert [label.attrib["value"] for label in root.find(tag)] == list(NAMES)


def test_class_names_that_xml_cannot_have():
    result = replace(scene(0), class_names=tuple(f"{name}\x01\n" for name in NAMES))
    root = ElementTree.fromstring(label_studio_config(result.class_names))
    labels = [label.get("value") for label in root.iter("Label")]
    assert labels == [f"{name}\ufffd\n" for name in NAMES]
    found = result.to_label_studio()["result"]
    assert found and all(one["value"]["brushlabels"][0] in labels for one in found)


def test_addresses_are_quoted_except_in_buckets():
    assert image_address("/data/local-files/?d=a/", "b c/ü#&?.jpg") == (
        "/data/local-files/?d=a/b%20c/%C3%BC%23%26%3F.jpg"
    )
    assert image_address("https://host/", "b c.jpg") == "https://host/b%20c.jpg"
    assert image_address("s3://bucket/", "b c.jpg") == "s3://bucket/b c.jpg"
    assert image_address("https://host/in", "b.jpg") == "https://host/in/b.jpg"
    assert image_address("", "\udcff.jpg") == "%FF.jpg"
