"""Annotation files of what was found, opened by pycocotools."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine, Found
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from yolact_runtime import YolactError
from yolact_runtime.frames import Frame, Source
from yolact_runtime.pipeline import run_pipeline
from yolact_runtime.sinks.coco_dataset import CocoDatasetSink
from yolact_runtime.sinks.growing import GrowingFile
from yolact_runtime.sinks.image_ids import ImageNumbers
from yolact_runtime.sinks.jsonl import JsonLinesSink, read_lines

# By shade: two instances, one outside the image (an empty mask), and one.
FINDINGS = {
    1: [Found((1, 1, 20, 20), score=0.9), Found((30, 30, 50, 60), label=1, score=0.6)],
    2: [Found((-30, -30, -10, -10), score=0.8), Found((8, 2, 40, 30), score=0.75, mask_score=0.5)],
}


class Shades(Source):
    """Images of one shade each; None is damaged."""

    def __init__(self, shades):
        self.shades = shades

    def __iter__(self):
        for index, shade in enumerate(self.shades):
            yield Frame(index, f"in/{index}.png", Path(f"in/{index}.png"), partial(self.read, shade))

    def read(self, shade):
        if shade is None:
            raise YolactError("damaged")
        return np.full((48, 64, 3), shade, np.uint8)


@pytest.fixture
def engine():
    return FakeEngine(FINDINGS, ids=(7, 3))


def dataset(engine, path, **options):
    meta = engine.metadata
    return CocoDatasetSink(path, meta.category_ids, meta.class_names, ImageNumbers(), **options)


@pytest.mark.parametrize("polygons", [False, True])
def test_pycocotools_opens_it(tmp_path, engine, polygons):
    path = tmp_path / "new/found.json"
    run_pipeline(Shades([1, 0, None, 2]), engine, [dataset(engine, path, polygons=polygons)])
    found = COCO(str(path))
    assert found.loadImgs([1, 2, 4]) == [
        {"id": i, "file_name": f"{i - 1}.png", "height": 48, "width": 64} for i in (1, 2, 4)
    ]
    assert found.loadCats([3, 7]) == [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}]
    annotations = found.loadAnns(found.getAnnIds())
    assert [(a["id"], a["image_id"], a["category_id"], a["score"]) for a in annotations] == [
        (1, 1, 7, 0.9), (2, 1, 3, 0.6), (3, 4, 7, 0.5),
    ]  # fmt: skip
    (first,) = engine.predict([Shades([]).read(1)])
    np.testing.assert_array_equal(found.annToMask(annotations[0]), first.masks[0])
    for one in annotations:
        rle = found.annToRLE(one)
        assert one["area"] == coco_mask.area(rle) > 0 and one["iscrowd"] == 0
        assert one["bbox"] == coco_mask.toBbox(rle).tolist()
        assert isinstance(one["segmentation"], list) == polygons
    assert [p.name for p in path.parent.iterdir()] == ["found.json"]


def test_the_projects_own_check_finds_no_errors(tmp_path, engine):
    check = pytest.importorskip("yolact.dataset_tools.check")
    for polygons in (False, True):
        run_pipeline(Shades([1, 0, 2]), engine, [dataset(engine, tmp_path / "found.json", polygons=polygons)])
        report = check.check_annotations(tmp_path / "found.json")
        assert not report.findings and report.images == 3 and report.annotations == 3


def test_carried_lines_give_the_same_file(tmp_path, engine):
    for polygons in (False, True):
        lines = JsonLinesSink(tmp_path / "out.jsonl", ImageNumbers(), polygons)
        whole = dataset(engine, tmp_path / "whole.json", polygons=polygons)
        run_pipeline(Shades([1, 0, 2, 1]), engine, [whole, lines])
        carried = dataset(engine, tmp_path / "carried.json", polygons=polygons)
        for line, _ in read_lines(tmp_path / "out.jsonl"):
            carried.carry(line)
        carried.close()
        assert (tmp_path / "carried.json").read_text() == (tmp_path / "whole.json").read_text()


def test_a_line_without_masks_cannot_be_carried(tmp_path, engine):
    sink = dataset(engine, tmp_path / "found.json")
    line = {"image": "a.png", "image_id": 1, "height": 48, "width": 64}
    for mask in (None, [], [[1]], "x", {"size": [1, 1]}, {"size": [48, 64], "counts": 3}):
        entry = {"image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1], "score": 1, "segmentation": mask}
        with pytest.raises(YolactError, match=r"the line of a\.png has a damaged mask"):
            sink.carry({**line, "detections": [entry]})
    sink.close()


def test_an_empty_run_keeps_the_file(tmp_path, engine):
    path = tmp_path / "found.json"
    path.write_text("before")
    sink = dataset(engine, path)
    run_pipeline(Shades([None]), engine, [sink])
    assert sink.kept and path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    path.unlink()
    run_pipeline(Shades([]), engine, [dataset(engine, path)])
    assert COCO(str(path)).imgs == {}


@pytest.mark.parametrize("at", range(8))
def test_a_full_disk_leaves_the_file_before_or_whole_images(tmp_path, engine, monkeypatch, at):
    path = tmp_path / "found.json"
    path.write_text("before")
    append, left = GrowingFile.append, [at]

    def full(self, data):
        left[0] -= 1
        if left[0] == -1:
            raise YolactError("cannot write: No space left on device")
        append(self, data)

    monkeypatch.setattr(GrowingFile, "append", full)
    try:
        sink = dataset(engine, path)
        with pytest.raises(YolactError, match="No space left"):
            run_pipeline(Shades([1, 2]), engine, [sink])
    except YolactError as error:
        assert "No space left" in str(error)
    text = path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["found.json"]
    if text != "before":
        content = json.loads(text)
        assert {a["image_id"] for a in content["annotations"]} == {i["id"] for i in content["images"]}


def test_memory_does_not_grow_with_the_images(tmp_path, engine):
    import tracemalloc

    sink = dataset(engine, tmp_path / "found.json")
    frame = next(iter(Shades([1])))
    result = engine.predict([frame.read()])[0]
    prepared = sink.prepare(frame, frame.read(), result)
    tracemalloc.start()
    for index in range(2000):
        sink.write(Frame(index, f"in/{index}.png", frame.path, frame.read), prepared)
    assert tracemalloc.get_traced_memory()[0] < 100_000
    tracemalloc.stop()
    sink.close()
    assert len(COCO(str(tmp_path / "found.json")).anns) == 4000
