"""yolact-infer from a user's view."""

import _thread
import json
import signal
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx
from pycocotools.coco import COCO

from yolact_runtime import cli
from yolact_runtime import infer as infer_command
from yolact_runtime.pipeline.stages import Run
from yolact_runtime.sources import images


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with an engine and three images, the last of which has no detections."""
    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    for name, shade in (("a.png", 255), ("b.jpg", 255), ("c.png", 0)):
        save(f"photos/{name}", shade)
    return tmp_path


def save(path, shade=255, size=(20, 30)):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), shade, np.uint8))


def infer(*arguments):
    return cli.main(["--engine", "m.onnx", "--threads", "1", *map(str, arguments)])


def load(path):
    return json.loads(Path(path).read_text())


def test_a_folder(place, capsys):
    assert infer("photos") == 0
    out = capsys.readouterr().out
    assert out.startswith("3 images, 4 detections, 0 failures") and "ms per image" in out
    entries = load("results/mask_detections.json")
    assert [(e["image_id"], e["category_id"], e["score"]) for e in entries] == [
        (1, 7, 0.9), (1, 0, 0.3), (2, 7, 0.9), (2, 0, 0.3),
    ]  # fmt: skip
    truth = COCO("results/images.json")
    assert truth.loadCats([0, 7]) == [{"id": 0, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert [i["file_name"] for i in truth.loadImgs([1, 2, 3])] == ["a.png", "b.jpg", "c.png"]
    for name in ("mask_detections.json", "bbox_detections.json"):
        assert len(truth.loadRes(f"results/{name}").anns) == 4
    assert "segmentation" not in load("results/bbox_detections.json")[0]
    assert sorted(p.name for p in Path("results/overlays").iterdir()) == ["a.png", "b.jpg", "c.png"]
    assert (cv2.imread("results/overlays/a.png") != 255).any()


def test_options(place):
    arguments = [
        "photos/*.png",
        "--json",
        "out/run.json",
        "--no_overlay",
        "--score_threshold=0.5",
        "--top_k",
        1,
    ]
    assert infer(*arguments, "--polygons", "--batch-size", 2, "--providers", "cpu") == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["run.json", "run_bbox.json", "run_images.json"]
    (entry,) = load("out/run.json")
    assert isinstance(entry["segmentation"], list) and len(entry["segmentation"][0]) >= 6
    assert not Path("results").exists()


def test_no_detection_still_makes_files(place):
    assert infer("photos/c.png") == 0
    assert load("results/mask_detections.json") == load("results/bbox_detections.json") == []
    assert len(COCO("results/images.json").imgs) == 1


def test_ids_come_from_the_annotation_file(place, capsys):
    save("other/d.png")
    images = [{"id": 90, "file_name": "val/a.png"}, {"id": 0, "file_name": "b.jpg"}]
    categories = [{"id": 7, "name": "dog"}, {"id": 0, "name": "zebra"}]
    Path("test.json").write_text(json.dumps({"images": images, "categories": categories}))
    assert infer("photos/a.png", "photos/b.jpg", "other/d.png", "--annotations", "test.json") == 1
    assert [e["image_id"] for e in load("results/mask_detections.json")] == [90, 90, 0, 0]
    printed = capsys.readouterr()
    assert "other/d.png is not in test.json" in printed.err and "1 not in test.json" in printed.out
    assert "category 0 is 'zebra' in test.json but 'cat' in the engine" in printed.err
    assert "'dog'" not in printed.err
    assert Path("results/overlays/d.png").exists()


def test_folders_distinguish_images_of_the_same_name(place, capsys):
    images = [{"id": 1, "file_name": "x/a.png"}, {"id": 2, "file_name": "photos/a.png"}]
    Path("test.json").write_text(json.dumps({"images": images}))
    assert infer("photos/a.png", "--annotations", "test.json") == 0
    assert {e["image_id"] for e in load("results/mask_detections.json")} == {2}
    save("y/a.png")
    assert infer("y/a.png", "--annotations", "test.json") == 1
    assert "has 2 images of that name" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", "{}", '{"images": [{"id": 1}]}', "{"])
def test_invalid_annotation_files(place, text, capsys):
    Path("bad.json").write_text(text)
    assert infer("photos", "--annotations", "bad.json") == 1
    assert "bad.json" in capsys.readouterr().err


def test_an_unreadable_image_is_skipped(place, capsys):
    Path("photos/b.jpg").write_bytes(b"no image")
    assert infer("photos", "--batch-size", 3) == 1
    assert {e["image_id"] for e in load("results/mask_detections.json")} == {1}
    printed = capsys.readouterr()
    assert printed.err.count("b.jpg") == 1
    assert printed.out.startswith("2 images, 2 detections, 1 failure")


def test_images_of_one_name_do_not_overwrite_each_other(place):
    save("more/a.png", 0)
    before = Path("photos/a.png").read_bytes()
    assert infer("photos/a.png", "more", "--output", "photos") == 0
    assert Path("photos/a.png").read_bytes() == before
    assert {"a_2.png", "a_3.png"} <= {p.name for p in Path("photos").iterdir()}


def test_the_original_spellings(place):
    engine = ["--trained_model=m.onnx"]
    assert cli.main([*engine, "--image=photos/a.png:out/seen.png", "--top_k=15"]) == 0
    assert Path("out/seen.png").exists()
    assert cli.main([*engine, "--images=photos:seen"]) == 0
    assert len(list(Path("seen").iterdir())) == 3
    assert cli.main([*engine, "--images", "photos"]) == 0
    assert len(list(Path("results/overlays").iterdir())) == 3


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("a.png", ("a.png", "")),
        ("a.png:b.png", ("a.png", "b.png")),
        (r"C:\x\a.png", (r"C:\x\a.png", "")),
        (r"C:\x\a.png:D:\b.png", (r"C:\x\a.png", r"D:\b.png")),
        (r"a.png:D:/b.png", ("a.png", "D:/b.png")),
    ],
)
def test_pairs_and_drive_letters(text, pair):
    assert cli.split_pair(text) == pair


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["none/*.jpg"],
        ["none.jpg"],
        ["photos", "--image", "photos/a.png"],
        ["--image", "photos/a.png:out.xyz"],
        ["photos", "--score-threshold", "1.5"],
        ["photos", "--top-k", "0"],
        ["photos", "--workers", "100000"],
        ["photos", "--batch-size", "100000000"],
        ["photos", "--batch-size", "0"],
        ["photos", "--config", "yolact_base_config"],
        ["photos", "--providers", "abacus"],
        ["photos", "--unknown"],
    ],
)
def test_wrong_use(place, arguments, capsys):
    assert infer(*arguments) == 2
    assert capsys.readouterr().err.strip()
    assert not Path("results/mask_detections.json").exists()


def test_an_interrupt_while_options_are_read(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Parser, "parse_args", interrupted)
    assert cli.main(["photos"]) == 130


def test_a_missing_engine(place, capsys):
    assert cli.main(["photos", "--engine", "none.onnx"]) == 1
    assert "none.onnx does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--output", "--json"])
def test_a_place_that_cannot_be_written_is_found_first(place, option, capsys, monkeypatch):
    Path("file").touch()
    monkeypatch.setattr(infer_command, "open_engine", lambda args, streams: pytest.fail("the work began"))
    target = "file" if option == "--output" else "file/x.json"
    assert infer("photos", option, target) == 1
    assert "cannot write to folder file" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_keeps_what_is_done(place, number, monkeypatch, capsys):
    before = signal.getsignal(number)
    for index in range(20):
        save(f"photos/d{index:02}.png")
    read, stop, stopped = images.read_image, Run.stop_reading, threading.Event()

    def interrupted(path):
        if Path(path).name == "b.jpg":
            _thread.interrupt_main(number)
            assert stopped.wait(60)
        return read(path)

    monkeypatch.setattr(images, "read_image", interrupted)
    monkeypatch.setattr(Run, "stop_reading", lambda run: (stop(run), stopped.set()))
    assert infer("photos", "--workers", 1) == 130
    assert {e["image_id"] for e in load("results/mask_detections.json")} == {1, 2}
    assert capsys.readouterr().out.startswith("2 images, 4 detections, 0 failures")
    assert not list(Path("results").glob(".*"))
    assert signal.getsignal(number) == before


def test_some_classes(place, capsys):
    assert infer("photos", "--top-k", "1", "--classes", "bird", "cat") == 0
    entries = load("results/mask_detections.json")
    assert [(e["image_id"], e["category_id"], e["score"]) for e in entries] == [(1, 0, 0.3), (2, 0, 0.3)]
    assert infer("--classes", "7", "--", "photos") == 0  # an id
    assert {e["category_id"] for e in load("results/mask_detections.json")} == {7}
    assert "2 detections" in capsys.readouterr().out
    Path("results/mask_detections.json").unlink()
    assert infer("photos", "--classes", "dog", "cats") == 2
    assert "--classes: there is no class 'cats'; near ones: cat" in capsys.readouterr().err
    assert not Path("results/mask_detections.json").exists()
    assert infer("--classes", "dog", "photos") == 2
    assert "--classes takes photos for a class; put -- before the images" in capsys.readouterr().err
