"""Masks and cut-outs as PNGs, compared with `Result.masks` bit for bit; names of their files."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_engine import BlobEngine, Pictures
from pycocotools import mask as coco_mask
from shared_data import COCO_MINI

from yolact_runtime import YolactError
from yolact_runtime.errors import ItemError
from yolact_runtime.pipeline import run_pipeline
from yolact_runtime.sinks.items import write_items
from yolact_runtime.sinks.names import FreeNames
from yolact_runtime.sinks.per_image.cutouts import CutoutSink, safe_name
from yolact_runtime.sinks.per_image.masks import MaskSink
from yolact_runtime.sources.images import ImageSource


class Everything(MaskSink):
    """Keeps the results that other sinks wrote files of."""

    def __init__(self):
        self.found = {}

    def prepare(self, frame, image, result):
        self.found[frame.name] = image, result

    def write(self, frame, prepared):
        pass


def run(source, folder, engine=None):
    """The results of a run that writes masks, binary masks and cut-outs into folders."""
    engine = engine or BlobEngine()
    meta = engine.metadata
    kept = Everything()
    sinks = [
        MaskSink(folder / "maps"),
        MaskSink(folder / "each", per_instance=True),
        CutoutSink(folder / "cut", meta.category_ids, meta.class_names),
        kept,
    ]
    stats = run_pipeline(source, engine, sinks)
    assert stats.failed == 0 and stats.done == len(kept.found)
    return kept.found


def read(path):
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None, path
    return pixels


def check_files(folder, stem, image, result):
    """Compare all files of one image with its result; return the number of overlapping pixels."""
    masks = result.masks
    labels = read(folder / "maps" / f"{stem}.png")
    assert labels.dtype == (np.uint8 if len(result) < 256 else np.uint16)
    assert np.array_equal(labels, np.where(masks.any(axis=0), masks.argmax(axis=0) + 1, 0))
    names = []
    for row, (mask, rle) in enumerate(zip(masks, result.rles, strict=True)):
        binary = read(folder / "each" / f"{stem}_{row}.png")
        assert binary.dtype == np.uint8
        assert np.array_equal(binary, mask * 255)
        x, y, width, height = coco_mask.toBbox(rle).astype(int).tolist()
        if not mask.any():
            continue
        names.append(f"{stem}_{row}_{result.names[row].replace(' ', '-')}.png")
        cut = read(folder / "cut" / names[-1])
        assert np.array_equal(cut[..., 3], mask[y : y + height, x : x + width] * 255)
        assert np.array_equal(cut[..., :3], image[y : y + height, x : x + width])
    assert {path.name for path in (folder / "cut").glob(f"{stem}_*")} == set(names)
    assert len(list((folder / "each").glob(f"{stem}_*"))) == len(result)
    return int((masks.sum(axis=0) > 1).sum())


def test_files_equal_the_masks(tmp_path):
    found = run(Pictures(["a.jpg", "b.png"]), tmp_path)
    assert all(check_files(tmp_path, Path(name).stem, *pair) for name, pair in found.items())
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["a.png", "b.png"]


def test_more_than_255_instances_have_16_bits(tmp_path):
    # Above the default of the pipeline, so the sinks are called as it calls them.
    engine, frame = BlobEngine(most=300), next(iter(Pictures(["a.png"])))
    (result,) = engine.predict([image := frame.read()], 0, 300)
    for name, sink in (("maps", MaskSink(tmp_path / "maps")), ("each", MaskSink(tmp_path / "each", True))):
        sink.write(frame, sink.prepare(frame, image, result))
        assert (tmp_path / name).is_dir()
    sink = CutoutSink(tmp_path / "cut", engine.metadata.category_ids, engine.metadata.class_names)
    sink.write(frame, sink.prepare(frame, image, result))
    assert check_files(tmp_path, "a", image, result)
    assert read(tmp_path / "maps/a.png").dtype == np.uint16


@pytest.mark.slow
@pytest.mark.skipif(not COCO_MINI.exists(), reason="no coco-mini: set YOLACT_TEST_SHARED to its folder")
def test_real_images(tmp_path):
    images = sorted((COCO_MINI / "val2017").iterdir())
    found = run(ImageSource([str(path) for path in images]), tmp_path, BlobEngine(most=8))
    overlaps = [check_files(tmp_path, Path(name).stem, *pair) for name, pair in found.items()]
    assert len(overlaps) == len(images) == 79 and min(overlaps) > 0


def test_frames_of_videos_have_files(tmp_path):
    found = run(Pictures(["c.mp4#0", "c.mp4#1"], clock=True), tmp_path)
    for name, pair in found.items():
        assert check_files(tmp_path, name.replace("#", "_"), *pair)


def test_images_of_one_name_keep_apart(tmp_path):
    # The second `a` becomes `a_2`, which no row of the first and no image called so may meet.
    names = ["x/a.png", "y/a.png", "a_2.png", "a_1.png", "z/A.png"]
    found = run(Pictures(names), tmp_path, BlobEngine(["2 door", "1_cat", "3"]))
    stems = ["a", "a_2", "a_2_2", "a_1", "A_3"]
    assert sorted(path.stem for path in (tmp_path / "maps").iterdir()) == sorted(stems)
    for folder, count in (("each", 0), ("cut", 1)):
        files = list((tmp_path / folder).iterdir())
        given = [path.stem.rsplit("_", 1 + count)[:2] for path in files]
        rows = {stem: np.arange(len(found[name][1])) for stem, name in zip(stems, names, strict=True)}
        if folder == "cut":
            rows = {s: np.flatnonzero(found[n][1].areas) for s, n in zip(stems, names, strict=True)}
        assert sorted(given) == sorted([stem, str(row)] for stem in stems for row in rows[stem])


def test_names_of_an_earlier_run_are_not_given_again(tmp_path):
    meta = BlobEngine().metadata
    entries = [{"category_id": 7, "area": 3}, {"category_id": 8, "area": 0}]
    frame = next(iter(Pictures(["y/a.png"])))
    for sink in (MaskSink(tmp_path), CutoutSink(tmp_path, meta.category_ids, meta.class_names)):
        sink.carry({"image": "x/a.png", "detections": entries})
        sink.write(frame, {"_0_cat.png": b"cut"} if isinstance(sink, CutoutSink) else [b"map"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_2.png", "a_2_0_cat.png"]


@pytest.mark.parametrize("theirs", [[], ["a.png"]])
def test_names_of_a_resumed_run_are_those_of_one_that_was_never_killed(tmp_path, theirs):
    # No file that is there is written over, as for a list of images; those of the killed run are there.
    frames = list(Pictures(["x/a.png", "y/a.png", "z/a.png", "a_2.png"]))
    given = []
    for done in range(len(frames)):
        folder = tmp_path / str(done)
        folder.mkdir()
        for name in theirs:
            (folder / name).touch()
        names = FreeNames(folder, None)
        given.append([])
        for index, frame in enumerate(frames):
            if index == done:
                names = FreeNames(folder, None)
                for before in frames[:done]:
                    names.carry({"image": before.name}, ".png")
            path = names.take(frame, ".png")
            path.touch()
            given[-1].append(path.name)
    assert all(one == given[0] for one in given)


def test_no_source_is_written_over(tmp_path):
    (tmp_path / "a_1_cat.png").write_text("a source")
    names = FreeNames(tmp_path, {str(tmp_path)})
    frame = next(iter(Pictures(["a.jpg"])))
    given = names.take_several(frame, ["_0_cat.png", "_1_cat.png"])
    assert [path.name for path in given] == ["a_2_0_cat.png", "a_2_1_cat.png"]


def test_files_of_an_image_are_written_all_or_none(tmp_path):
    names = FreeNames(tmp_path)
    frame = next(iter(Pictures(["a.jpg"])))
    endings = ["_0.png", "_1.png", f"_{'x' * 300}.png"]
    with pytest.raises(ItemError, match="File name too long"):
        write_items([(path, b"x") for path in names.take_several(frame, endings)], names)
    assert list(tmp_path.iterdir()) == []
    assert names.take_several(frame, ["_0.png"]) == [tmp_path / "a_0.png"]


def test_files_written_at_the_same_time_have_the_usual_mode(tmp_path):
    before = os.umask(0o027)
    try:
        write_items([(tmp_path / f"{index}.png", b"x") for index in range(60)], FreeNames(tmp_path))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    if os.name == "posix":
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_a_folder_that_takes_no_files_ends_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(YolactError, match="cannot write"):
        run_pipeline(Pictures(["a.jpg"]), BlobEngine(), [MaskSink(tmp_path / "file/masks")])


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("dog", "dog"),
        ("traffic light", "traffic-light"),
        ("a_b", "a-b"),
        ("../../etc/passwd", "------etc-passwd"),
        ("C:\\x\0\n", "C--x--"),
        ("Fußgänger 行人", "Fußgänger-行人"),
        ("\udcff", "-"),
        ("", "class"),
        ("行" * 100, "行" * 26),
    ],
)
def test_class_names_become_safe(name, safe):
    assert safe_name(name) == safe
    assert "_" not in safe and os.sep not in safe and len(safe.encode()) <= 80
