"""Curves and the faster library against pycocotools; the report for every kind of result."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from browser import needs_chromium, on_a_phone
from fake_engine import SIZE, FakeEngine, Found, annotation, coco_file
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolact.evaluation import plots
from yolact.evaluation.confusion import Confusion
from yolact.evaluation.evaluate import Evaluation, Predictions, score
from yolact.evaluation.ground_truth import GroundTruth, read_ground_truth
from yolact.evaluation.report import write_report
from yolact_runtime import YolactError

BOX, OTHER = (4, 6, 24, 30), (30, 34, 56, 60)
ALL_PICTURES = {
    "pr_mask", "pr_mask_classes", "pr_box", "pr_box_classes", "confusion", "ap_classes", "ap_sizes",
}  # fmt: skip


def read_truth(folder: Path, content: dict) -> GroundTruth:
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return read_ground_truth(path, folder)


def predictions(truth: GroundTruth, findings: dict[int, list[Found]]) -> Predictions:
    """What `predict` would collect, without images."""
    result = Predictions(image_ids=[record["id"] for record in truth.images])
    engine = FakeEngine(findings)
    for number in result.image_ids:
        image = np.full((SIZE, SIZE, 3), number, np.uint8)
        (found,) = engine.predict([image], 0.0, top_k=engine.metadata.max_detections)
        result.boxes += found.to_coco(number, masks=False)
        result.masks += found.to_coco(number)
    return result


@pytest.fixture
def noisy(tmp_path: Path) -> tuple[GroundTruth, Predictions]:
    """Twelve images of cats and dogs, found where they nearly are."""
    random = np.random.default_rng(0)
    annotations, findings = [], {}
    for image in range(1, 13):
        findings[image] = []
        for _ in range(int(random.integers(0, 4))):
            x, y, w, h = random.integers([1, 1, 6, 6], [34, 34, 28, 28]).tolist()
            box = (x, y, x + w, y + h)
            annotations.append(annotation(len(annotations) + 1, image, box, int(random.integers(1, 3))))
            for _ in range(2):
                moved = tuple(int(value) + int(random.integers(-2, 3)) for value in box)
                findings[image].append(Found(moved, int(random.integers(0, 2)), random.random()))
    content = coco_file(range(1, 13), annotations, ["cat", "dog", "emu"])
    truth = read_truth(tmp_path, content)
    return truth, predictions(truth, findings)


def test_curves_are_those_of_pycocotools(noisy: tuple[GroundTruth, Predictions]) -> None:
    truth, found = noisy
    details = score(truth, found, details=True).details
    for kind, curves, entries in (("bbox", details.box, found.boxes), ("segm", details.mask, found.masks)):
        expected = COCO(str(truth.path))
        bare = [{k: v for k, v in entry.items() if kind == "bbox" or k != "bbox"} for entry in entries]
        oracle = COCOeval(expected, expected.loadRes(bare), kind)
        oracle.evaluate(), oracle.accumulate(), oracle.summarize()
        assert 0.02 < oracle.stats[0] < 0.98
        precision = oracle.eval["precision"][:, :, :, 0, 2]  # (IoU, recall, class)
        np.testing.assert_allclose(curves.recall, oracle.params.recThrs, atol=0)
        for label, column in (("cat", 0), ("dog", 1)):
            np.testing.assert_array_equal(curves.by_class[label], precision[0, :, column])
        assert curves.by_class["emu"] is None
        for label, rows in (("0.50", precision[:1]), ("0.75", precision[5:6]), ("0.50:0.95", precision)):
            np.testing.assert_allclose(curves.mean[label], rows[..., :2].mean(axis=(0, 2)), atol=1e-12)
        means = [np.mean(curves.mean[label]) for label in ("0.50:0.95", "0.50", "0.75")]
        np.testing.assert_allclose(means, oracle.stats[:3], atol=1e-12)


def test_details_change_no_number(noisy: tuple[GroundTruth, Predictions]) -> None:
    plain, detailed = (score(*noisy, details=details).to_json() for details in (False, True))
    assert "details" not in plain
    assert set(detailed.pop("details")) == {"box", "mask", "confusion"}
    assert plain == detailed


def numbers(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from (leaf for key in value for leaf in (key, *numbers(value[key])))
    elif isinstance(value, list):
        yield from (leaf for item in value for leaf in numbers(item))
    else:
        yield value


def test_faster_is_equal(noisy: tuple[GroundTruth, Predictions]) -> None:
    pytest.importorskip("faster_coco_eval")
    truth, found = noisy
    for entries in (found, Predictions(image_ids=found.image_ids)):
        slow, fast = (
            list(numbers(score(truth, entries, details=True, faster=faster).to_json()))
            for faster in (False, True)
        )
        assert len(slow) > 1000
        assert fast == pytest.approx(slow, abs=1e-9)


def test_faster_is_asked_for_but_missing(
    noisy: tuple[GroundTruth, Predictions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(YolactError, match=r"pip install faster-coco-eval$"):
        score(*noisy, faster=True)


def report(evaluation: Evaluation, folder: Path) -> ElementTree.Element:
    """Write a report; check that the page is whole and needs nothing; return its root."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write_report(evaluation, folder, {"engine": "a <b> & c"})
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link", re.sub(r"base64,[^\"]*", "", text))
    root = ElementTree.fromstring(text)
    pictures = [image.attrib["src"] for image in root.iter("img")]
    files = {path.read_bytes() for path in folder.glob("*.png")}
    assert {b64decode(src.removeprefix("data:image/png;base64,"), validate=True) for src in pictures} == files
    for content in files:
        height, width = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape[:2]
        assert 150 < height < 4000
        assert 300 < width < 4000
    return root


def rows(root: ElementTree.Element, heading: str) -> list[list[str]]:
    """Cells of the first table after the heading with this id."""
    body = list(root.find("body"))
    start = next(i for i, element in enumerate(body) if element.get("id") == heading)
    table = next(table for element in body[start:] for table in element.iter("table"))
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def test_report(noisy: tuple[GroundTruth, Predictions], tmp_path: Path) -> None:
    evaluation = score(*noisy, details=True)
    root = report(evaluation, tmp_path / "report")
    assert {path.stem for path in (tmp_path / "report").glob("*.png")} == ALL_PICTURES
    head, cat, dog, emu = rows(root, "classes")
    assert head[:5] == ["class", "objects", "detections", "precision", "recall"]
    assert head[5:] == ["box AP", "box AP50", "mask AP", "mask AP50"]
    assert [cat[0], dog[0]] == ["cat", "dog"]
    assert emu == ["emu", "0", "0", *"––––––"]
    assert int(cat[1]) + int(dog[1]) == len(noisy[0].annotations)
    by_class = evaluation.mask.by_class
    assert [cat[7], dog[7]] == [f"{100 * by_class[name]:.1f}" for name in ("cat", "dog")]
    sizes = rows(root, "sizes")
    assert [row[0] for row in sizes] == ["size", "small", "medium", "large"]
    assert sizes[1][3] == f"{100 * evaluation.mask.ap_small:.1f}"
    assert sizes[3][1:] == ["–"] * 4


@pytest.mark.slow
@needs_chromium
def test_the_report_fits_a_phone(noisy: tuple[GroundTruth, Predictions], tmp_path: Path) -> None:
    """Tables and plots scroll; no word is broken into letters."""
    report(score(*noisy, details=True), tmp_path)
    seen = on_a_phone(tmp_path / "report.html")
    assert seen["scroll"] == seen["client"]
    assert seen["heading"] < 60


CASES = {
    "no detections": (coco_file([1], [annotation(1, 1, BOX)]), {}),
    "no annotations": (coco_file([1], []), {1: [Found(BOX)]}),
    "one class": (coco_file([1], [annotation(1, 1, BOX)], ["cat"]), {1: [Found(BOX), Found(OTHER)]}),
    "crowds only": (
        coco_file([1], [annotation(1, 1, BOX, iscrowd=1)], ["cat"]), {1: [Found(BOX), Found(OTHER)]},
    ),
    "boxes only": (coco_file([1], [annotation(1, 1, BOX, segmentation=[])]), {1: [Found(BOX)]}),
    "odd names": (coco_file([1], [annotation(1, 1, BOX)], ["$x_1^", "<b>猫</b> & " * 9]), {1: [Found(BOX)]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_report_of_little(case: str, tmp_path: Path) -> None:
    content, findings = CASES[case]
    truth = read_truth(tmp_path, content)
    evaluation = score(truth, predictions(truth, findings), details=True)
    root = report(evaluation, tmp_path / "report")
    names = [category["name"] for category in content["categories"]]
    assert [row[0] for row in rows(root, "classes")[1:]] == names
    assert bool(evaluation.details.mask) == (case != "boxes only")
    assert evaluation.details.confusion.kind == ("box" if case == "boxes only" else "mask")
    shown = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert shown == {name for name in ALL_PICTURES if case != "boxes only" or "mask" not in name}


@pytest.mark.slow
def test_many_classes_are_added_up() -> None:
    random = np.random.default_rng(1)
    counts = random.integers(0, 9, (301, 301))
    counts[-1, -1] = 0
    counts[[40, 200]] += 100  # these two have the most objects
    confusion = Confusion("mask", 0.5, 0.3, [f"class {i}" for i in range(300)], counts.tolist())
    small, names = plots.folded(confusion, 2)
    assert names == ["class 40", "class 200", "(298 other classes)"]
    others = [i for i in range(300) if i not in (40, 200)]
    groups = ([40], [200], others, [300])
    expected = [[counts[np.ix_(row, column)].sum() for column in groups] for row in groups]
    np.testing.assert_array_equal(small, expected)
    picture = cv2.imdecode(np.frombuffer(plots.confusion_plot(confusion), np.uint8), cv2.IMREAD_COLOR)
    assert max(picture.shape) < 3000


def test_a_plain_evaluation_has_no_report(noisy: tuple[GroundTruth, Predictions], tmp_path: Path) -> None:
    evaluation = score(*noisy, details=True)
    with pytest.raises(ValueError, match="details=True"):
        write_report(replace(evaluation, details=None), tmp_path, {})


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = (
        "import sys, yolact.cli.evaluate, yolact.evaluation.plots;"
        "sys.exit(any(name in sys.modules for name in ('matplotlib', 'jinja2', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_are_no_markup(tmp_path: Path) -> None:
    names = ["<script>x</script>[/]", "$\\frac{$", "\x1b[31m\u202ered", "_" * 300, "{{ 7 * 7 }}"]
    annotations = [annotation(number, 1, BOX, number) for number in range(1, len(names) + 1)]
    truth = read_truth(tmp_path, coco_file([1], annotations, names))
    evaluation = score(truth, predictions(truth, {1: [Found(BOX)]}), details=True)
    text = write_report(evaluation, tmp_path, {"engine": "a\udcff\n<b>.onnx"}).read_text("utf-8")
    for shown in (
        "&lt;script&gt;x",
        "$\\frac{$",
        r"\x1b[31m\u202ered",
        "{{ 7 * 7 }}",
        r"a\udcff\n&lt;b&gt;.onnx",
    ):
        assert shown in text
    assert not re.search("<script|[\x00-\x08\x0e-\x1f\u202e]", text)
