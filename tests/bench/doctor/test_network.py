"""The small network and the stored results: the same by every way, and by an oracle that shares no code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
from pycocotools import mask as coco_mask

from yolact.config import Config
from yolact_bench.doctor import network, parts
from yolact_bench.doctor.results import EXACT, REDUCED, compare
from yolact_bench.doctor.stage import FAILED, OK, Context
from yolact_runtime import load_engine

DATA = Path(network.__file__).parent / "data"


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 100_000


def test_the_stored_results_of_heads_are_those_of_the_oracle() -> None:
    heads = network.sample_heads()
    config: Config = network.tiny_config()
    model, limits = config.model, config.detect
    priors = oracle.priors(
        *model.input_shape, model.prior_scales, model.prior_aspect_ratios, model.prior_square
    )
    names = "loc", "logits", "coefficients"
    found = oracle.detect(
        *(heads[name][0] for name in names), priors, limits.score_threshold, top_k=limits.nms_top_k,
        iou_threshold=limits.iou_threshold, limit=limits.max_detections,
    )  # fmt: skip
    stored = parts._stored()
    scores, boxes = found["scores"], found["boxes"]
    assert len(stored) == len(scores) > 20
    np.testing.assert_allclose([one["score"] for one in stored], scores, atol=1e-5)
    ids = config.classes.category_ids
    assert [one["category_id"] for one in stored] == [ids[label] for label in found["classes"]]
    size = network.sample_images()[1].shape[:2]
    masks = oracle.full_masks(found["coefficients"], heads["prototypes"][0], boxes, *size)
    decoded = coco_mask.decode([one["segmentation"] for one in stored]).transpose(2, 0, 1)
    assert (decoded != (masks > 0.5)).mean() < 1e-4


def test_the_onnx_files_find_what_is_stored(tmp_path: Path) -> None:
    expected = network.expected_results()
    for kind in network.KINDS:
        path = network.write_onnx_file(tmp_path / f"{kind}.onnx", kind)
        with load_engine(path, backend="onnxruntime") as engine:
            results = engine.predict(network.sample_images(), 0.0, 100)
        found = [one for number, result in enumerate(results) for one in result.to_coco(number)]
        assert compare(expected, found, EXACT).state == OK


def test_the_checkpoint_is_the_same_network() -> None:
    pytest.importorskip("torch")
    from yolact.engine import TorchEngine

    engine = TorchEngine.from_model(network.build_model(), "cpu", "uint8")
    results = engine.predict(network.sample_images(), 0.0, 100)
    found = [one for number, result in enumerate(results) for one in result.to_coco(number)]
    assert compare(network.expected_results(), found, EXACT).state == OK


def changed(index: int, **values) -> list[dict]:
    expected = network.expected_results()
    expected[index] = {**expected[index], **values}
    return expected


def test_what_differs_is_named() -> None:
    expected = network.expected_results()
    done = compare(expected, expected, EXACT)
    assert done.state == OK and done.figures["matched"] == done.figures["detections"] > 30
    score = expected[0]["score"]
    assert "scores differ by 0.01" in compare(expected, changed(0, score=score - 0.01), EXACT).reason
    assert compare(expected, changed(0, score=score - 0.01), REDUCED).state == OK
    other = next(one["category_id"] for one in expected if one["category_id"] != expected[0]["category_id"])
    assert "are found" in compare(expected, changed(0, category_id=other), EXACT).reason
    assert "are found" in compare(expected, expected[1:], EXACT).reason
    assert compare(expected, [], REDUCED).state == FAILED
    more = [*expected, {**expected[0], "category_id": other}]
    assert "more than the" in compare(expected, more, EXACT).reason
    assert compare(expected, changed(0, score=float("nan")), EXACT).state == FAILED


@pytest.mark.parametrize(
    "stage", [one for one in parts.part_stages() if one.name != "numpy"], ids=lambda one: one.name
)
def test_the_parts_work_here(stage, tmp_path: Path) -> None:
    if "av" in stage.needs:
        pytest.importorskip("av")
    done = stage.run(Context(tmp_path))
    assert done.state == OK, done


def test_a_wrong_detection_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage is no tautology: with another NMS it fails."""
    monkeypatch.setattr("yolact_runtime.detect.SIZE_VARIANCE", 0.3)
    (stage,) = [one for one in parts.part_stages() if one.name == "numpy"]
    assert stage.run(Context(tmp_path)).state == FAILED


def test_wrong_boxes_and_masks_are_named() -> None:
    expected = network.expected_results()
    left, top, width, height = expected[0]["bbox"]
    moved = changed(0, bbox=[left + 0.1 * width, top, width, height])
    assert compare(expected, moved, EXACT).reason.startswith("a box overlaps its stored one by only 0.8")
    assert compare(expected, moved, REDUCED).state == OK
    far = changed(0, bbox=[left + 0.5 * width, top, width, height])
    assert compare(expected, far, REDUCED).reason.startswith("a box overlaps its stored one by only 0.3")
    # A mask without its right part.
    mask = coco_mask.decode(expected[0]["segmentation"])
    columns = np.cumsum(mask.sum(axis=0))
    mask[:, np.searchsorted(columns, 0.4 * columns[-1]) :] = 0
    part = coco_mask.encode(np.asfortranarray(mask))
    less = changed(0, segmentation={**part, "counts": part["counts"].decode()})
    assert compare(expected, less, REDUCED).reason.startswith("a mask overlaps its stored one by only 0.3")
