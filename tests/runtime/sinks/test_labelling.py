"""The sinks for labelling tools, without a command."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from mask_scenes import scene

from yolact_runtime import YolactError
from yolact_runtime.frames import Frame
from yolact_runtime.sinks.growing import GrowingFile
from yolact_runtime.sinks.image_ids import ImageIds, ImageNumbers
from yolact_runtime.sinks.label_studio import LabelStudioSink
from yolact_runtime.sinks.per_image.labelme import LabelmeSink, image_path

RESULT = scene(4, 48, 64)
IMAGE = np.zeros((48, 64, 3), np.uint8)


def frame(index, name=None, time=None):
    name = name or f"in/{index}.png"
    return Frame(index, name, Path(name), lambda: IMAGE, time)


def tasks(path, numbers=None, **options):
    return LabelStudioSink(path, RESULT.class_ids, RESULT.class_names, numbers or ImageNumbers(), **options)


def test_images_without_an_id_are_left_out(tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps({"images": [{"id": 7, "file_name": "sub/1.png"}]}))
    sink = tasks(
        tmp_path / "tasks.json", ImageNumbers(ImageIds(tmp_path / "ids.json")), prefix="https://host"
    )
    for index in range(2):
        sink.write(frame(index), sink.prepare(frame(index), IMAGE, RESULT))
    sink.close()
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"] == {"image": "https://host/sub/1.png"}


def test_frames_of_videos_fail(tmp_path):
    for sink in (tasks(tmp_path / "tasks.json"), LabelmeSink(tmp_path)):
        with pytest.raises(YolactError, match=r"clip\.mp4#3 is a frame of a video"):
            sink.prepare(frame(3, "clip.mp4#3", time=0.1), IMAGE, RESULT)
        sink.close()


@pytest.mark.parametrize("mask", [None, [[1]], {"size": [48, 64], "counts": "zz"}, {"size": [1, 1]}])
def test_a_line_with_a_damaged_mask_cannot_be_carried(tmp_path, mask):
    sink = tasks(tmp_path / "tasks.json")
    entry = {"image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1], "score": 1, "segmentation": mask}
    line = {"image": "a.png", "image_id": 1, "height": 48, "width": 64, "detections": [entry]}
    with pytest.raises(YolactError, match=r"cannot resume: the line of a\.png has a damaged mask"):
        sink.carry(line)
    sink.close()


@pytest.mark.parametrize("at", range(4))
def test_a_full_disk_leaves_whole_tasks(tmp_path, monkeypatch, at):
    append, left = GrowingFile.append, [at]

    def full(self, data):
        left[0] -= 1
        if left[0] == -1:
            raise YolactError("cannot write: No space left on device")
        append(self, data)

    monkeypatch.setattr(GrowingFile, "append", full)
    path = tmp_path / "tasks.json"
    with pytest.raises(YolactError, match="No space left"):
        sink = tasks(path)
        try:
            for index in range(4):
                sink.write(frame(index), sink.prepare(frame(index), IMAGE, RESULT))
        finally:
            sink.close()
    assert not list(tmp_path.glob(".*"))
    if path.exists():
        assert all(len(task["predictions"]) == 1 for task in json.loads(path.read_text()))


def test_memory_does_not_grow_with_the_images(tmp_path):
    sink = tasks(tmp_path / "tasks.json")
    prepared = sink.prepare(frame(0), IMAGE, RESULT)
    tracemalloc.start()
    for index in range(1000):
        sink.write(frame(index), prepared)
    # Threads of other tests may allocate, too.
    own = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/sinks/*.py")])
    tracemalloc.stop()
    assert sum(trace.size for trace in own.traces) < 100_000
    sink.close()
    assert len(json.loads((tmp_path / "tasks.json").read_text())) == 1000


def test_a_name_that_is_too_long_fails_that_image_only(tmp_path):
    sink = LabelmeSink(tmp_path / "labels")
    for index, name in enumerate(["in/" + "a" * 253 + ".png", "in/b.png"]):
        one = frame(index, name)
        try:
            sink.write(one, sink.prepare(one, IMAGE, RESULT))
        except YolactError as error:
            assert index == 0 and "name too long" in str(error)
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["b.json"]


def test_paths_from_a_folder_to_an_image():
    assert image_path(Path("/data/photos/a.jpg"), Path("/data/labels/new")) == "../../photos/a.jpg"
    assert image_path(Path("/data/photos/a.jpg"), Path("/data/photos")) == "a.jpg"
