"""Average precision against hand-made cases and against pycocotools used directly."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_engine import SIZE, FakeEngine, Found, annotation, coco_file, write_image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolact.evaluation.evaluate import Evaluation, Metrics, evaluate, predict
from yolact.evaluation.ground_truth import read_ground_truth
from yolact_runtime import YolactError
from yolact_runtime.errors import UsageError

ONE = pytest.approx(1)  # means of ones, up to rounding
BOX, OTHER = (4, 6, 24, 30), (30, 34, 56, 60)


def run(tmp_path: Path, engine: FakeEngine, content: dict, **options) -> Evaluation:
    """Evaluate on `content`, whose image i is filled with shade i."""
    for record in content["images"]:
        path = tmp_path / "images" / record["file_name"]
        if not path.exists():
            write_image(path, record["id"])
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return evaluate(engine, tmp_path / "images", tmp_path / "annotations.json", **options)


def test_perfect_predictions(tmp_path: Path) -> None:
    engine = FakeEngine({1: [Found(BOX), Found(OTHER, 1)], 2: [Found(OTHER)]})
    truth = coco_file([1, 2], [annotation(1, 1, BOX), annotation(2, 1, OTHER, 2), annotation(3, 2, OTHER)])
    result = run(tmp_path, engine, truth)
    for metrics in (result.box, result.mask):
        for value in (metrics.ap, metrics.ap50, metrics.ap75, metrics.ar100, metrics.ap_small):
            assert value == ONE
        assert metrics.by_class == {"cat": ONE, "dog": ONE}
        assert metrics.by_iou["0.95"] == ONE
        assert len(metrics.by_iou) == 10
        assert metrics.ap_large is None
    assert (result.images, result.detections, result.failures) == (2, 3, {})
    assert json.loads(json.dumps(result.to_json()))["mask"]["ap"] == ONE


def test_an_image_without_detections_lowers_ap(tmp_path: Path) -> None:
    truth = coco_file([1, 2], [annotation(1, 1, BOX), annotation(2, 2, BOX)])
    result = run(tmp_path, FakeEngine({1: [Found(BOX)]}), truth)
    # Precision 1 up to recall 0.5, 0 beyond; COCO samples recall at 0, 0.01 ... 1.
    assert result.box.ap == pytest.approx(51 / 101)
    assert result.mask.ap == pytest.approx(51 / 101)


def test_an_image_without_annotations_counts(tmp_path: Path) -> None:
    engine = FakeEngine({1: [Found(BOX, score=0.8)], 2: [Found(BOX, score=0.9)]})
    assert run(tmp_path, engine, coco_file([1, 2], [annotation(1, 1, BOX)])).mask.ap == pytest.approx(0.5)


def test_no_detections_at_all(tmp_path: Path) -> None:
    result = run(tmp_path, FakeEngine({}), coco_file([1, 2], [annotation(1, 1, BOX)]))
    assert (result.box.ap, result.mask.ap, result.mask.ar100, result.detections) == (0, 0, 0, 0)


def test_masks_are_ranked_by_mask_scores(tmp_path: Path) -> None:
    right, wrong = Found(BOX, score=0.9, mask_score=0.1), Found(OTHER, score=0.5, mask_score=0.4)
    result = run(tmp_path, FakeEngine({1: [right, wrong]}), coco_file([1], [annotation(1, 1, BOX)]))
    assert result.box.ap == ONE
    assert result.mask.ap == pytest.approx(0.5)


def random_case(classes: int = 2) -> tuple[dict[int, list[Found]], dict]:
    """Findings and an annotation file of eight images, with crowd regions."""
    random = np.random.default_rng(0)

    def box() -> tuple[int, int, int, int]:
        x, y, w, h = random.integers([1, 1, 4, 4], [34, 34, 26, 26]).tolist()
        return x, y, x + w, y + h

    findings, annotations = {}, []
    for image in range(1, 9):
        boxes = [box() for _ in range(int(random.integers(0, 5)))]
        for corners in boxes:
            number = len(annotations) + 1
            more = {"iscrowd": int(random.random() < 0.1), "area": float(random.integers(10, 12_000))}
            annotations.append(
                annotation(number, image, corners, int(random.integers(1, classes + 1)), **more)
            )
        shifted = [tuple(int(v) + int(random.integers(-2, 3)) for v in corners) for corners in boxes * 2]
        findings[image] = [
            Found(corners, int(random.integers(0, classes)), random.random(), random.random())
            for corners in [*shifted, box()]
        ]
    content = coco_file(range(1, 9), annotations, ["cat", "dog", "emu"][:classes])
    for entry in content["annotations"]:  # crowds have RLE
        if entry["iscrowd"]:
            mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
            mask[10:40, 5:60] = 1
            flat = mask.reshape(-1, order="F").astype(np.int8)
            edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
            runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
            entry["segmentation"] = {"size": [SIZE, SIZE], "counts": [run for run in runs if run]}
    return findings, content


def test_equals_pycocotools_used_directly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings, content = random_case()
    engine = FakeEngine(findings, max_batch=3)
    result = run(tmp_path, engine, copy.deepcopy(content))
    assert capsys.readouterr().out == ""

    truth = read_ground_truth(tmp_path / "annotations.json", tmp_path / "images")
    found = predict(engine, tmp_path / "images", truth)
    for kind, metrics, entries in (("bbox", result.box, found.boxes), ("segm", result.mask, found.masks)):
        expected = COCO(str(tmp_path / "annotations.json"))
        bare = [{k: v for k, v in entry.items() if kind == "bbox" or k != "bbox"} for entry in entries]
        oracle = COCOeval(expected, expected.loadRes(bare), kind)
        oracle.evaluate(), oracle.accumulate(), oracle.summarize()
        assert 0.02 < oracle.stats[0] < 0.98
        np.testing.assert_allclose(twelve(metrics), oracle.stats, atol=1e-12)


@pytest.mark.parametrize("wanted", [["emu"], [1, "dog"], ["cat", "dog", "emu"]])
def test_some_classes_equal_the_cat_ids_of_pycocotools(tmp_path: Path, wanted: list[str | int]) -> None:
    findings, content = random_case(classes=3)
    engine = FakeEngine(findings, ["cat", "dog", "emu"], [1, 2, 3], max_batch=3)
    result = run(tmp_path, engine, copy.deepcopy(content), classes=wanted)
    truth = read_ground_truth(tmp_path / "annotations.json", tmp_path / "images")
    every = predict(engine, tmp_path / "images", truth)
    ids = sorted({1: 1, "cat": 1, "dog": 2, "emu": 3}[one] for one in wanted)
    for kind, metrics, entries in (("bbox", result.box, every.boxes), ("segm", result.mask, every.masks)):
        expected = COCO(str(tmp_path / "annotations.json"))
        bare = [{k: v for k, v in entry.items() if kind == "bbox" or k != "bbox"} for entry in entries]
        oracle = COCOeval(expected, expected.loadRes(bare), kind)
        oracle.params.catIds = ids
        oracle.evaluate(), oracle.accumulate(), oracle.summarize()
        assert 0.02 < oracle.stats[0] < 0.98
        np.testing.assert_allclose(twelve(metrics), oracle.stats, atol=1e-12)
        assert list(metrics.by_class) == [["cat", "dog", "emu"][number - 1] for number in ids]
    assert result.images == 8
    assert result.detections == sum(entry["category_id"] in ids for entry in every.boxes)


def test_classes_that_engine_or_file_do_not_have(tmp_path: Path) -> None:
    engine = FakeEngine({1: [Found(BOX)]}, ["cat", "dog", "emu"], [1, 2, 3])
    truth = coco_file([1], [annotation(1, 1, BOX)])
    assert run(tmp_path, engine, truth, classes=["cat"]).mask.ap == ONE
    with pytest.raises(UsageError, match="no class 'cats'; near ones: cat"):
        run(tmp_path, engine, truth, classes=["cats"])
    with pytest.raises(UsageError, match=r"annotations.json does not have the class 'emu'; known: cat, dog"):
        run(tmp_path, engine, truth, classes=["cat", "emu"])


def test_some_classes_where_only_the_ids_are_the_same(tmp_path: Path) -> None:
    truth = coco_file([1], [annotation(1, 1, BOX), annotation(2, 1, OTHER, 2)], names=["Katze", "Hund"])
    result = run(tmp_path, FakeEngine({1: [Found(BOX), Found(OTHER, 1)]}), truth, classes=["dog"])
    assert result.box.by_class == {"Hund": ONE}


def twelve(metrics: Metrics) -> list[float]:
    """The numbers in the order of `COCOeval.stats`; -1 where there is none."""
    names = "ap ap50 ap75 ap_small ap_medium ap_large ar1 ar10 ar100 ar_small ar_medium ar_large"
    values = [getattr(metrics, name) for name in names.split()]
    return [-1 if value is None else value for value in values]


def test_the_smallest_objects_count(tmp_path: Path) -> None:
    tiny = (10, 10, 12, 12)
    truth = coco_file([1], [annotation(1, 1, BOX), annotation(2, 1, tiny)])
    assert run(tmp_path, FakeEngine({1: [Found(BOX)]}), truth).mask.ap == pytest.approx(51 / 101)


def test_annotation_id_zero_is_found(tmp_path: Path) -> None:
    result = run(tmp_path, FakeEngine({1: [Found(BOX)]}), coco_file([1], [annotation(0, 1, BOX)]))
    assert (result.box.ap, result.mask.ap) == (ONE, ONE)


def test_category_id_zero_and_gaps(tmp_path: Path) -> None:
    truth = coco_file([1], [annotation(1, 1, BOX, 0), annotation(2, 1, OTHER, 90)])
    truth["categories"] = [{"id": 0, "name": "cat"}, {"id": 90, "name": "dog"}]
    engine = FakeEngine({1: [Found(BOX), Found(OTHER, 1)]}, ids=(0, 90))
    assert run(tmp_path, engine, truth).mask.by_class == {"cat": ONE, "dog": ONE}


def test_classes_are_matched_by_name_where_ids_differ(tmp_path: Path) -> None:
    truth = coco_file([1], [annotation(1, 1, BOX, 1), annotation(2, 1, OTHER, 2)], names=["dog", "cat"])
    engine = FakeEngine({1: [Found(BOX, 1), Found(OTHER, 0)]}, names=["Cat", "dog"])
    assert run(tmp_path, engine, truth).mask.ap == ONE


def test_classes_missing_in_the_file_are_skipped(tmp_path: Path) -> None:
    engine = FakeEngine(
        {1: [Found(BOX, 1), Found(OTHER, 2), Found(OTHER, 0)]}, names=["bird", "cat", "traffic light"],
        ids=[2, 17, 5],
    )  # fmt: skip
    assert run(tmp_path, engine, coco_file([1], [annotation(1, 1, BOX)], names=["cat"])).mask.ap == ONE


def test_classes_the_engine_does_not_know_count_as_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth = coco_file([1], [annotation(1, 1, BOX, 1), annotation(2, 1, OTHER, 3)], ["cat", "dog", "emu"])
    result = run(tmp_path, FakeEngine({1: [Found(BOX), Found(OTHER)]}), truth)
    assert result.box.by_class == {"cat": ONE, "dog": None, "emu": 0}
    assert "does not have emu" in caplog.text


def test_other_names_with_the_same_ids_are_trusted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth = coco_file([1], [annotation(1, 1, BOX)], names=["Katze", "Hund"])
    assert run(tmp_path, FakeEngine({1: [Found(BOX)]}), truth).box.ap == ONE
    assert "matching them by category id" in caplog.text


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(YolactError, match="none of the engine's classes: it has car, the engine cat, dog"):
        run(tmp_path, FakeEngine({}), coco_file([1], [annotation(1, 1, BOX)], names=["car"]))


def test_a_bad_image_is_counted_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    truth = coco_file(range(1, 6), [annotation(i, i, BOX) for i in range(1, 6)])
    write_image(folder / "1.png", 1)
    (folder / "2.png").write_bytes(b"no image")
    write_image(folder / "3.png", 3, height=10)
    engine = FakeEngine({i: [Found(BOX)] for i in range(1, 6)}, max_batch=5, broken=[4])
    result = run(tmp_path, engine, truth)
    assert set(result.failures) == {"2.png", "3.png", "4.png"}
    assert "64 x 10 pixels, but the annotation file says 64 x 64" in result.failures["3.png"]
    assert "shade 4" in result.failures["4.png"]
    assert (result.images, result.detections) == (5, 2)
    assert result.box.ap == pytest.approx(41 / 101)  # two of five found
    assert all(reason in caplog.text for reason in result.failures.values())


def test_a_wrong_folder_is_reported_before_the_work(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(coco_file([1], [annotation(1, 1, BOX)])))
    with pytest.raises(YolactError, match=rf"none of 1 image of {path} is in {tmp_path}, for example 1\.png"):
        evaluate(FakeEngine({}), tmp_path, path)


def test_images_are_found_without_the_folder_in_their_name(tmp_path: Path) -> None:
    truth = coco_file([1], [annotation(1, 1, BOX)])
    write_image(tmp_path / "images" / "1.png", 1)
    write_image(tmp_path / "images" / "val" / "2.png", 1)
    truth["images"][0]["file_name"] = "train2017/1.png"
    truth["images"].append({**truth["images"][0], "id": 2, "file_name": "val/2.png"})
    assert run(tmp_path, FakeEngine({1: [Found(BOX)]}), truth).failures == {}


def test_boxes_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = annotation(1, 1, BOX, segmentation=[])
    result = run(tmp_path, FakeEngine({1: [Found(BOX)]}), coco_file([1], [bare]))
    assert result.box.ap == ONE
    assert result.mask is None
    assert "only boxes are evaluated" in caplog.text


def test_some_without_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth = coco_file([1], [annotation(1, 1, BOX), annotation(2, 1, OTHER, segmentation=[])])
    result = run(tmp_path, FakeEngine({1: [Found(BOX)]}), truth)
    assert result.box.ap == pytest.approx(51 / 101)
    assert result.mask.ap == ONE
    assert "1 annotation of" in caplog.text


def test_masks_found_in_the_box_of_an_object_without_mask_are_ignored(tmp_path: Path) -> None:
    truth = coco_file([1], [annotation(1, 1, BOX), annotation(2, 1, OTHER, segmentation=[])])
    engine = FakeEngine({1: [Found(BOX, score=0.5), Found(OTHER, score=0.9)]})
    result = run(tmp_path, engine, truth)
    assert result.mask.ap == ONE
    assert result.box.ap == ONE


def test_image_ids_do_not_change_the_result(tmp_path: Path) -> None:
    """pycocotools takes ids on both sides of 2**63 for floats, and merges them."""
    findings = {i: [Found(BOX if i % 3 else OTHER, score=1 - i / 10)] for i in range(1, 7)}
    results = []
    for name, top in (("small", 1000), ("large", 2**63)):
        content = coco_file(range(1, 7), [annotation(i, i, BOX) for i in range(1, 7)])
        for image in content["images"]:
            image["id"] += top * (image["id"] % 2)
        for entry in content["annotations"]:
            entry["image_id"] += top * (entry["image_id"] % 2)
        for number, image in enumerate(content["images"], start=1):
            write_image(tmp_path / name / "images" / image["file_name"], number)
        results.append(run(tmp_path / name, FakeEngine(findings), content))
    assert 0.1 < results[0].mask.ap < 0.9
    assert results[0].mask == results[1].mask
    assert results[0].box == results[1].box


def test_annotations_that_belong_to_no_image_are_no_test_set(tmp_path: Path) -> None:
    with pytest.raises(YolactError, match="2 annotations of images that it does not list"):
        run(tmp_path, FakeEngine({}), coco_file([1], [annotation(1, 8, BOX), annotation(2, 9, BOX)]))


def test_crowds_alone_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, FakeEngine({}), coco_file([1], [annotation(1, 1, BOX, iscrowd=1)]))
    assert "all of 1 annotation are crowd regions" in caplog.text


@pytest.mark.parametrize("ids", [(1, 2), (5, 9)])
def test_names_that_differ_by_case_are_matched_exactly(tmp_path: Path, ids: tuple[int, int]) -> None:
    truth = coco_file([1], [annotation(1, 1, BOX, ids[0]), annotation(2, 1, OTHER, ids[1])])
    truth["categories"] = [{"id": ids[0], "name": "Nut"}, {"id": ids[1], "name": "nut"}]
    engine = FakeEngine({1: [Found(BOX, 1), Found(OTHER, 0)]}, names=["nut", "Nut"])
    assert run(tmp_path, engine, truth).mask.by_class == {"Nut": ONE, "nut": ONE}


def test_a_name_that_could_be_any_of_two_is_not_matched(tmp_path: Path, caplog) -> None:
    truth = coco_file([1], [annotation(1, 1, BOX, 1)], names=["NUT", "nut", "dog"])
    engine = FakeEngine({1: [Found(BOX, 0)]}, names=["Nut", "dog"], ids=[7, 8])
    assert run(tmp_path, engine, truth).mask.by_class["NUT"] == 0
    assert "class 'Nut' of the engine could be any of 'NUT', 'nut'" in caplog.text


def test_missing_fields_are_completed(tmp_path: Path) -> None:
    truth = coco_file([1], [annotation(1, 1, BOX)])
    for key in ("area", "iscrowd", "bbox", "id"):
        del truth["annotations"][0][key]
    del truth["images"][0]["height"]
    result = run(tmp_path, FakeEngine({1: [Found(BOX)]}), truth)
    assert (result.box.ap50, result.mask.ap) == (ONE, ONE)


def test_a_test_set_without_annotations(tmp_path: Path) -> None:
    truth = coco_file([1], [])
    del truth["annotations"]
    result = run(tmp_path, FakeEngine({1: [Found(BOX)]}), truth)
    assert (result.box.ap, result.mask.ap, result.detections) == (None, None, 1)


def test_first_images_only(tmp_path: Path) -> None:
    truth = coco_file([1, 2], [annotation(1, 1, BOX), annotation(2, 2, BOX)])
    result = run(tmp_path, FakeEngine({1: [Found(BOX)]}), truth, max_images=1)
    assert (result.images, result.box.ap) == (1, ONE)


@pytest.mark.parametrize("option", ["max_images", "batch_size"])
def test_numbers_out_of_range(tmp_path: Path, option: str) -> None:
    with pytest.raises(UsageError, match=f"{option} is 0"):
        run(tmp_path, FakeEngine({}), coco_file([1], []), **{option: 0})


def test_score_threshold(tmp_path: Path) -> None:
    engine = FakeEngine({1: [Found(BOX, score=0.9), Found(OTHER, score=0.01)]})
    assert run(tmp_path, engine, coco_file([1], [])).detections == 2
    assert run(tmp_path, engine, coco_file([1], []), score_threshold=0.1).detections == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: [], "needs an object with a list 'images'"),
        (lambda file: {**file, "annotations": 3}, "a list 'annotations'"),
        (lambda file: {**file, "categories": []}, "'categories' is empty"),
        (
            lambda file: {**file, "images": [file["images"][0], file["images"][0] | {"file_name": "2.png"}]},
            "image id 1 is given twice",
        ),
        (lambda file: {**file, "images": [{"id": 1}]}, "a text 'file_name'"),
        (lambda file: {**file, "annotations": [annotation(7, [1], BOX)]}, r"annotation 7: image_id is \[1\]"),
        (lambda file: {**file, "annotations": [annotation(7, 1, BOX, 9)]}, "annotation 7: category_id 9"),
        (lambda file: {**file, "annotations": [annotation(7, 1, BOX, bbox=[1])]}, "bbox is"),
        (lambda file: {**file, "annotations": [annotation(7, 1, BOX, segmentation=3)]}, "segmentation is"),
    ],
)  # fmt: skip
def test_a_damaged_annotation_file_is_one_line(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(change(coco_file([1], []))))
    with pytest.raises(YolactError, match=message) as caught:
        read_ground_truth(path, tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_needs_no_torch() -> None:
    code = "import sys, yolact.evaluation.evaluate, yolact.cli.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_progress_is_quiet_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, FakeEngine({}), coco_file([1], []))
    assert capsys.readouterr().err == ""


def test_classes_that_do_not_occur_change_nothing(tmp_path: Path, monkeypatch) -> None:
    engine = FakeEngine({1: [Found(BOX), Found(OTHER, 1)], 2: [Found(OTHER)]})
    truth = coco_file([1, 2], [annotation(1, 1, BOX), annotation(2, 1, OTHER, 2), annotation(3, 2, BOX)])
    expected = run(tmp_path, engine, truth)
    monkeypatch.setattr("yolact.evaluation.metrics._CLASSES", 1)
    assert run(tmp_path, engine, truth).mask == expected.mask
    truth["categories"] += [{"id": 50 + number, "name": f"class {number}"} for number in range(3)]
    more = run(tmp_path, engine, truth).box
    assert (more.ap, more.ar100, more.by_iou) == (expected.box.ap, expected.box.ar100, expected.box.by_iou)
    assert more.by_class == {**expected.box.by_class, "class 0": None, "class 1": None, "class 2": None}
