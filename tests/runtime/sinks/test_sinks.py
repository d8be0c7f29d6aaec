"""The files of the sinks, compared with `Result` and pycocotools."""

import contextlib
import json
import os
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_engine import FakeEngine, Found
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from yolact_runtime import YolactError
from yolact_runtime.frames import Frame, Source
from yolact_runtime.outputs import among
from yolact_runtime.pipeline import run_pipeline
from yolact_runtime.sinks.coco import CocoSink
from yolact_runtime.sinks.image_ids import ImageIds, ImageNumbers
from yolact_runtime.sinks.jsonl import JsonLinesSink, read_lines
from yolact_runtime.sinks.names import FileNames, FreeNames
from yolact_runtime.sinks.per_image.arrays import ArraySink
from yolact_runtime.sinks.per_image.overlays import OverlaySink

# Shade 0 has nothing; shade 2's mask scores are its own.
FINDINGS = {
    1: [Found((1, 1, 20, 20), score=0.9), Found((30, 30, 50, 60), label=1, score=0.6)],
    2: [Found((8, 2, 40, 30), score=0.75, mask_score=0.5)],
}


class Shades(Source):
    def __init__(self, shades, names=None, clock=False):
        self.names = names or [f"photos/{index}.jpg" for index in range(len(shades))]
        self.shades, self.clock = shades, clock

    def __iter__(self):
        for index, (name, shade) in enumerate(zip(self.names, self.shades, strict=True)):
            path = Path(name.partition("#")[0])
            yield Frame(index, name, path, partial(self.read, name, shade), index / 3 if self.clock else None)

    def read(self, name, shade):
        if shade is None:
            raise YolactError(f"image {name} is damaged")
        return np.full((48, 64, 3), shade, np.uint8)


@pytest.fixture
def engine():
    return FakeEngine(FINDINGS, ids=(7, 3))


def results(engine, shades):
    return [engine.predict([Shades([]).read("", s)])[0] for s in shades if s is not None]


def coco(engine, path, numbers=None, **options):
    meta = engine.metadata
    return CocoSink(path, meta.category_ids, meta.class_names, numbers or ImageNumbers(), **options)


def load(path):
    return json.loads(Path(path).read_text())


@pytest.mark.parametrize("polygons", [False, True])
def test_coco_files_match_the_results(tmp_path, engine, polygons):
    shades = [1, 0, None, 2, 1]
    run_pipeline(Shades(shades), engine, [coco(engine, tmp_path / "run.json", polygons=polygons)])
    found = dict(zip([1, 2, 4, 5], results(engine, shades), strict=True))
    assert load(tmp_path / "run.json") == [e for i, r in found.items() for e in r.to_coco(i, polygons)]
    assert load(tmp_path / "run_bbox.json") == [
        e for i, r in found.items() for e in r.to_coco(i, masks=False)
    ]
    assert load(tmp_path / "run_images.json") == {
        "info": {},
        "images": [{"id": i, "file_name": f"{i - 1}.jpg", "height": 48, "width": 64} for i in found],
        "annotations": [],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    assert len(COCO(tmp_path / "run_images.json").loadRes(str(tmp_path / "run.json")).anns) == 5


def test_coco_files_stay_as_they_were_until_the_end(tmp_path, engine):
    (tmp_path / "run.json").write_text("before")
    sink = coco(engine, tmp_path / "run.json")
    assert (tmp_path / "run.json").read_text() == "before"
    run_pipeline(Shades([0]), engine, [sink])
    sink.close()
    assert load(tmp_path / "run.json") == [] and not list(tmp_path.glob(".*"))


def test_coco_files_stay_as_they_were_where_nothing_was_done(tmp_path, engine):
    (tmp_path / "run_bbox.json").write_text("before")
    sink = coco(engine, tmp_path / "run.json")
    run_pipeline(Shades([None]), engine, [sink])
    sink.close()
    assert sink.kept and [path.name for path in tmp_path.iterdir()] == ["run_bbox.json"]
    assert (tmp_path / "run_bbox.json").read_text() == "before"


def test_a_second_image_of_one_id_is_left_out(tmp_path, engine, caplog):
    Path(tmp_path / "ids.json").write_text(json.dumps({"images": [{"id": 5, "file_name": "a.jpg"}]}))
    numbers = ImageNumbers(ImageIds(tmp_path / "ids.json"))
    lines = JsonLinesSink(tmp_path / "out.jsonl", numbers)
    source = Shades([1, 1, 1], ["x/a.jpg", "y/a.jpg", "b.jpg"])
    run_pipeline(source, engine, [lines, coco(engine, tmp_path / "run.json", numbers)])
    assert [image["id"] for image in load(tmp_path / "run_images.json")["images"]] == [5]
    assert numbers.unlisted == 2
    assert [r.getMessage().partition(";")[0] for r in caplog.records] == [
        "image y/a.jpg has the same id 5 as x/a.jpg",
        f"image b.jpg is not in {tmp_path / 'ids.json'}",
    ]
    assert [line["image_id"] for line, _ in read_lines(tmp_path / "out.jsonl")] == [5, 5, None]


def test_json_lines(tmp_path, engine):
    run_pipeline(Shades([1, None, 2, 0]), engine, [JsonLinesSink(tmp_path / "new/out.jsonl", ImageNumbers())])
    first, failed, rescored, empty = (line for line, _ in read_lines(tmp_path / "new/out.jsonl"))
    one, two, _ = results(engine, [1, 2, 0])
    centroids = [line["detections"][0].pop("centroid") for line in (first, rescored)]
    assert centroids == [one.centroids[0].round(2).tolist(), two.centroids[0].round(2).tolist()]
    assert first["detections"][1].pop("centroid") == one.centroids[1].round(2).tolist()
    assert first == {
        "image": "photos/0.jpg", "index": 0, "image_id": 1, "height": 48, "width": 64,
        "detections": one.to_coco(1),
    }  # fmt: skip
    assert failed == {"image": "photos/1.jpg", "index": 1, "error": "image photos/1.jpg is damaged"}
    assert rescored["detections"] == [{**two.to_coco(3)[0], "box_score": 0.75}]
    assert rescored["detections"][0]["score"] == 0.5
    assert empty["detections"] == []


def test_json_lines_of_a_video_have_times(tmp_path, engine):
    source = Shades([1, 2], ["clip.mp4#0", "clip.mp4#1"], clock=True)
    run_pipeline(source, engine, [JsonLinesSink(tmp_path / "out.jsonl", ImageNumbers())])
    assert [line["time"] for line, _ in read_lines(tmp_path / "out.jsonl")] == [0.0, 0.333333]


def test_json_lines_are_overwritten_unless_resumed(tmp_path, engine):
    path = tmp_path / "out.jsonl"
    for _ in range(2):
        run_pipeline(Shades([1, 2]), engine, [JsonLinesSink(path, ImageNumbers())])
    assert len(list(read_lines(path))) == 2
    sink = JsonLinesSink(path, ImageNumbers(), resume=True)
    assert sink.done == {"photos/0.jpg": 1, "photos/1.jpg": 1}
    run_pipeline(Shades([1]), engine, [sink])
    assert len(list(read_lines(path))) == 3


def test_resuming_drops_an_incomplete_line_and_failures(tmp_path, engine):
    path = tmp_path / "out.jsonl"
    run_pipeline(Shades([1, None, 2]), engine, [JsonLinesSink(path, ImageNumbers())])
    first, _, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(path.read_bytes() + b'{"image": "photos/3.jpg", "ind')
    path.chmod(0o640)
    sink = JsonLinesSink(path, ImageNumbers(), resume=True)
    assert list(sink.done) == ["photos/0.jpg", "photos/2.jpg"]
    assert path.read_bytes() == first + last
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(YolactError, match="another run writes"):
        JsonLinesSink(path, ImageNumbers(), resume=True)
    sink.close()


def test_carried_lines_give_the_same_coco_files(tmp_path, engine):
    shades = [1, 0, 2, 1]
    lines = JsonLinesSink(tmp_path / "out.jsonl", ImageNumbers())
    run_pipeline(Shades(shades), engine, [lines, coco(engine, tmp_path / "run.json")])
    carried = coco(engine, tmp_path / "carried.json")
    for line, _ in read_lines(tmp_path / "out.jsonl"):
        carried.carry(line)
    carried.close()
    for suffix in ("", "_bbox", "_images"):
        assert load(tmp_path / f"carried{suffix}.json") == load(tmp_path / f"run{suffix}.json")


def test_ids_that_an_earlier_run_gave_are_not_given_again():
    frames = list(Shades([1] * 6))
    numbers = ImageNumbers(total=6)
    for number in (2, 3, 9):
        numbers.carry(number, "earlier")
    given = [numbers.find(frame) for frame in frames]
    assert len({*given, 2, 3, 9}) == len(given) + 3
    assert given[0] == 1 and given[3:] == [4, 5, 6]


def test_overlays_show_the_instances(tmp_path, engine):
    names = ["in/a.png", "in/b.gif", "in/C.JPG"]
    sink = OverlaySink(tmp_path)
    run_pipeline(Shades([1, 0, 2], names), engine, [sink])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["C.JPG", "a.png", "b.png"] and sink.drawn == 3
    (result,) = results(engine, [1])
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png")), result.draw(Shades([]).read("", 1)))


def test_overlays_leave_videos_to_others(tmp_path, engine):
    sink = OverlaySink(tmp_path / "out")
    run_pipeline(Shades([1], ["clip.mp4#0"], clock=True), engine, [sink])
    assert sink.drawn == 0 and not (tmp_path / "out").exists()


def test_arrays_open_without_pickle(tmp_path, engine):
    run_pipeline(Shades([1, 0]), engine, [ArraySink(tmp_path)])
    (result,) = results(engine, [1])
    with np.load(tmp_path / "0.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["boxes"], result.boxes_float)
        np.testing.assert_array_equal(arrays["scores"], result.scores)
        np.testing.assert_array_equal(arrays["mask_scores"], result.mask_scores)
        assert arrays["classes"].tolist() == [0, 1] and arrays["category_ids"].tolist() == [7, 3]
        assert str(arrays["image"]) == "photos/0.jpg"
        size = arrays["size"].tolist()
        masks = [coco_mask.decode({"size": size, "counts": bytes(counts)}) for counts in arrays["counts"]]
    np.testing.assert_array_equal(np.array(masks, bool), result.masks)
    with np.load(tmp_path / "1.npz", allow_pickle=False) as arrays:
        assert {key: arrays[key].shape for key in ("boxes", "scores", "counts", "size")} == {
            "boxes": (0, 4), "scores": (0,), "counts": (0,), "size": (2,),
        }  # fmt: skip


def taken(folder, names, sources=(), clock=False):
    free = FreeNames(folder, sources)
    given = []
    for frame in Shades([1] * len(names), names, clock):
        given.append(free.take(frame, ".png"))
        given[-1].touch()
    return [path.name for path in given]


def test_no_name_is_given_twice(tmp_path):
    names = ["x/a.png", "y/a.png", "z/A.jpg", "a_2.png", "a_2.gif", "a.png"]
    given = taken(tmp_path, names)
    assert given == ["a.png", "a_2.png", "A_3.png", "a_2_2.png", "a_2_3.png", "a_4.png"]
    assert len({name.casefold() for name in given}) == len(given)
    # A second run overwrites the files of the first.
    assert taken(tmp_path, names) == given


def test_no_source_is_written_over(tmp_path):
    (tmp_path / "a.png").touch()
    with contextlib.suppress(FileExistsError):
        (tmp_path / "link").symlink_to(tmp_path)
    assert taken(tmp_path / "link", ["a.png"], {str(tmp_path.resolve())}) == ["a_2.png"]
    assert taken(tmp_path, ["a.png"], None) == ["a_3.png"]
    assert taken(tmp_path, ["a.png"], {"elsewhere"}) == ["a.png"]


def test_frames_of_a_video_have_names_of_their_own(tmp_path):
    names = ["clips/c.mp4#0", "clips/c.mp4#1", "rtsp://host:1/cam?x=1#7"]
    assert taken(tmp_path, names, clock=True) == ["c.mp4_0.png", "c.mp4_1.png", "cam_x_1_7.png"]


@pytest.mark.parametrize(
    ("folders", "names", "expected"),
    [
        (["in"], ["in/a.png", "in/../in/b.png", "in/c.mp4#3"], ["a.png", "b.png", "c.mp4#3"]),
        (["in/x", "in/y"], ["in/x/a.png", "in/y/a.png"], ["x/a.png", "y/a.png"]),
        (["in", "in/y"], ["in/a.png", "in/y/a.mp4#0"], ["a.png", "y/a.mp4#0"]),
        (None, ["in/a.png", "in/b.png"], ["a.png", "b.png"]),
        (None, ["in/x/a.png", "in/y/a.png", "a.png"], ["a.png", "../y/a.png", "../../a.png"]),
        (None, ["a.png", "x/a.png"], ["a.png", "x/a.png"]),
    ],
)
def test_file_names_tell_images_apart(tmp_path, monkeypatch, folders, names, expected):
    monkeypatch.chdir(tmp_path)
    given = FileNames(None if folders is None else {str(tmp_path / folder) for folder in folders})
    assert [given.of(name) for name in names] == expected
    assert [given.of(str(tmp_path / name)) for name in names] == expected


def test_streams_have_their_address_if_there_are_several():
    assert FileNames().of("rtsp://host/live#7") == "live#7"
    assert FileNames({"/in"}, several=True).of("rtsp://host/live#7") == "rtsp://host/live#7"


def test_file_names_of_an_annotation_file_are_its_own(tmp_path, engine):
    images = [{"id": 5, "file_name": "x\\a.jpg"}, {"id": 6, "file_name": "y/a.jpg"}]
    (tmp_path / "ids.json").write_text(json.dumps({"images": images}))
    numbers = ImageNumbers(ImageIds(tmp_path / "ids.json"))
    run_pipeline(
        Shades([1, 1], ["/in/y/a.jpg", "/in/x/a.jpg"]), engine, [coco(engine, tmp_path / "r.json", numbers)]
    )
    found = load(tmp_path / "r_images.json")["images"]
    assert [(image["id"], image["file_name"]) for image in found] == [(6, "y/a.jpg"), (5, "x\\a.jpg")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 50_000, "more levels than the 64 allowed"),
        ('{"images": [{"id": ' + "9" * 400 + ', "file_name": "a.jpg"}]}', "400 digits"),
        ('{"images": [{"id": 1, "file_name": "\\ud800.jpg"}]}', "half a character"),
        ('{"images": [{"id": 1, "file_name": "' + "a" * 5000 + '"}]}', "more characters than the 4,096"),
        ('{"images": [{"id": [' + "1, " * 5000 + '1], "file_name": "a.jpg"}]}', "whole numbers are allowed"),
        ('{"images": null}', 'needs "images"'),
    ],
)
def test_annotation_files_of_strangers_are_refused_in_one_short_line(tmp_path, text, message):
    (tmp_path / "ids.json").write_text(text)
    with pytest.raises(YolactError, match=message) as error:
        ImageIds(tmp_path / "ids.json")
    assert len(str(error.value)) < 400


def test_the_annotations_of_an_annotation_file_are_not_kept(tmp_path):
    annotations = [{"id": 1, "image_id": 5, "category_id": 1, "bbox": [[[[]]]]}]
    content = {"images": [{"id": 5, "file_name": "a.jpg"}], "annotations": annotations}
    (tmp_path / "ids.json").write_text(json.dumps(content), "utf-16")
    assert ImageIds(tmp_path / "ids.json").find(Path("/in/a.jpg")) == 5
    with pytest.raises(YolactError, match="is a device, not a file"):
        ImageIds("/dev/zero")


def test_ids_are_whole_numbers(tmp_path):
    for value in ("x1", 1.5, True, [1], None):
        (tmp_path / "ids.json").write_text(json.dumps({"images": [{"id": value, "file_name": "a.jpg"}]}))
        with pytest.raises(YolactError, match=r"image id .*; whole numbers are allowed"):
            ImageIds(tmp_path / "ids.json")


def test_a_source_behind_a_link_is_not_written_over(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "photos" / name).touch()
    (tmp_path / "out/a.png").symlink_to("../photos/b.png")
    (tmp_path / "out/c.png").touch()
    os.link(tmp_path / "photos/b.png", tmp_path / "out/b.png")
    is_source = among(lambda: [tmp_path / "photos" / name for name in ("a.png", "b.png", "c.png")])
    free = FreeNames(tmp_path / "out", {str(tmp_path / "photos")}, is_source)
    given = [free.take(frame, ".png").name for frame in Shades([1] * 3, ["a.png", "b.png", "c.png"])]
    assert given == ["a_2.png", "b_2.png", "c.png"]
