"""NumPy detection against the float64 oracle and the reference implementation."""

import dataclasses

import numpy as np
import oracle
import pytest
from fake_onnx import RUNTIME
from golden import match_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import reference_file

from yolact_runtime import detect as detect_module
from yolact_runtime.detect import _best, _row_max, detect, fast_nms


def metadata(classes, **changes):
    names = tuple(map(str, range(classes)))
    return dataclasses.replace(RUNTIME, class_names=names, category_ids=tuple(range(classes)), **changes)


def heads(seed, priors, classes, background=2.0, spread=2.0):
    rng = np.random.default_rng(seed)
    centres, sizes = rng.uniform(0, 1, (priors, 2)), rng.uniform(0.05, 0.5, (priors, 2))
    logits = rng.normal(size=(1, priors, classes + 1)) * spread
    logits[..., 0] += background
    return (
        rng.normal(size=(1, priors, 4)).astype(np.float32),
        logits.astype(np.float32),
        rng.normal(size=(1, priors, 3)).astype(np.float32),
        np.zeros((1, 2, 2, 3), np.float32),
        np.concatenate([centres, sizes], axis=1).astype(np.float32),
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    priors=st.integers(1, 60),
    classes=st.integers(1, 6),
    background=st.floats(-2, 8),
    limit=st.sampled_from([1, 5, 100]),
    top_k=st.sampled_from([1, 4, 200]),
    iou=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_detections_agree_with_the_oracle(seed, priors, classes, background, limit, top_k, iou):
    case = heads(seed, priors, classes, background)
    meta = metadata(classes, max_detections=limit, nms_top_k=top_k, iou_threshold=iou)
    found = detect(*case, meta)
    loc, logits, coefficients, _, anchors = case
    expected = oracle.detect(
        loc[0], logits[0], coefficients[0], anchors, iou_threshold=iou, top_k=top_k, limit=limit
    )
    n = int(found.count[0])
    np.testing.assert_array_equal(found.classes[0, :n], expected["classes"])
    np.testing.assert_allclose(found.boxes[0, :n], expected["boxes"], atol=1e-5)
    np.testing.assert_allclose(found.scores[0, :n], expected["scores"], atol=1e-6)
    np.testing.assert_array_equal(found.coefficients[0, :n], expected["coefficients"])
    np.testing.assert_array_equal(found.mask_scores, found.scores)
    assert not found.boxes[0, n:].any() and not found.scores[0, n:].any()


def test_many_candidates_are_compared_in_parts(monkeypatch):
    """10,000 candidates of a class have 100 million pairs."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 1, (300, 4)).astype(np.float32)
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] / 3
    scores = rng.uniform(0, 1, (300, 3)).astype(np.float32)
    expected = fast_nms(boxes, scores, 0.3, 250, 300)
    monkeypatch.setattr("yolact_runtime.detect._PAIRS", 2000)
    for found, wanted in zip(fast_nms(boxes, scores, 0.3, 250, 300), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("limits", [{}, {"_PAIRS": 2000, "_TABLE": 5000, "_MANY": 4}])
def test_classes_of_few_and_of_many_boxes_agree_with_the_oracle(limits, monkeypatch):
    """Boxes of a class are compared in pairs or in a table, with other classes of about its size."""
    for name, value in limits.items():
        monkeypatch.setattr(f"yolact_runtime.detect.{name}", value)
    loc, logits, *rest = heads(2, 400, 12, background=0)
    logits[..., 1:] += np.array([4, 3, 3, 2, 2, 1, 1, 0, 0, -1, -2, -3], np.float32)
    found = detect(loc, logits, *rest, metadata(12, max_detections=300, nms_top_k=90))
    expected = oracle.detect(loc[0], logits[0], rest[0][0], rest[2], top_k=90, limit=300)
    counts = np.bincount(expected["classes"])
    assert counts.min() < 4 and counts.max() > 16
    np.testing.assert_array_equal(found.classes[0, : found.count[0]], expected["classes"])
    np.testing.assert_allclose(found.boxes[0, : found.count[0]], expected["boxes"], atol=1e-5)


def test_detections_agree_with_the_reference():
    case = np.load(reference_file("unit_loss_detect.npz"))
    # det_conf are scores; the softmax of their logarithms is themselves.
    found = detect(
        case["in_loc"][:1],
        np.log(case["det_conf"]),
        case["in_mask"][:1],
        case["in_proto"][:1],
        case["in_priors"],
        metadata(80, max_detections=100),
    )
    assert found.count.tolist() == [100]
    rows = match_rows(
        case, "det_fast", found.classes[0], found.scores[0], found.boxes[0],
        score_tolerance=1e-6, box_tolerance=1e-6,
    )  # fmt: skip
    np.testing.assert_array_equal(found.coefficients[0], case["det_fast_mask"][rows])


def test_equal_scores_keep_the_order_of_class_and_prior():
    boxes = np.array([[i, 0, i + 1, 1] for i in range(8)], np.float32)
    rows, classes = fast_nms(boxes, np.full((8, 3), 0.5, np.float32), 0.5, 200, 10)
    assert rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    assert classes.tolist() == [0] * 8 + [1, 1]


def test_boxes_without_area_do_not_suppress_each_other():
    rows, _ = fast_nms(np.full((3, 4), 0.5, np.float32), np.full((3, 1), 0.9, np.float32), 0.5, 200, 10)
    assert rows.tolist() == [0, 1, 2]


def test_no_prior_above_the_threshold():
    found = detect(*heads(0, 20, 3, background=50), metadata(3))
    assert found.count.tolist() == [0] and not found.scores.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_take_no_part(bad, caplog):
    loc, logits, *rest = heads(1, 30, 3, background=-5)
    clean = detect(loc[:, 10:], logits[:, 10:], rest[0][:, 10:], rest[1], rest[2][10:], metadata(3))
    loc[0, :5, 2] = bad
    logits[0, 5:10] = np.nan
    found = detect(loc, logits, *rest, metadata(3))
    for one, other in zip(found, clean, strict=True):
        np.testing.assert_array_equal(one, other)
    assert "5 boxes that are not finite" in caplog.text


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    priors=st.integers(1, 60),
    wanted=st.sets(st.integers(0, 5), min_size=1),
    background=st.floats(-2, 8),
    limit=st.sampled_from([1, 5, 100]),
    top_k=st.sampled_from([1, 4, 200]),
)
def test_the_best_of_some_classes_are_those_of_the_oracle(seed, priors, wanted, background, limit, top_k):
    """Other classes take no rows: the oracle finds everything, and its rows are filtered, then cut."""
    case = heads(seed, priors, 6, background)
    found = detect(*case, metadata(6, max_detections=limit, nms_top_k=top_k), frozenset(wanted))
    loc, logits, coefficients, _, anchors = case
    every = oracle.detect(loc[0], logits[0], coefficients[0], anchors, top_k=top_k, limit=10**6)
    rows = np.flatnonzero(np.isin(every["classes"], list(wanted)))[:limit]
    assert found.count.tolist() == [len(rows)]
    np.testing.assert_array_equal(found.classes[0, : len(rows)], every["classes"][rows])
    np.testing.assert_allclose(found.scores[0, : len(rows)], every["scores"][rows], atol=1e-6)
    np.testing.assert_allclose(found.boxes[0, : len(rows)], every["boxes"][rows], atol=1e-5)
    np.testing.assert_array_equal(found.coefficients[0, : len(rows)], every["coefficients"][rows])


def test_few_priors_give_the_best_of_all(monkeypatch):
    """To the bit, when the first priors are enough, when better ones are added, and when all are needed."""
    passes = []
    scores_of = detect_module._scores

    def counted(*args):
        passes[-1] += 1
        return scores_of(*args)

    monkeypatch.setattr(detect_module, "_scores", counted)
    for seed in range(40):
        # Many classes of similar logits: scores are far below their bounds.
        case = heads(seed, 300, (1, 6, 40)[seed % 3], background=-1.0, spread=(0.3, 1.0, 40.0)[seed // 3 % 3])
        case[0][:] *= 4  # boxes of all sizes
        meta = metadata(case[1].shape[2] - 1, max_detections=6, score_threshold=0.01, nms_top_k=20)
        classes = frozenset({0, 3}) if seed % 3 and seed % 2 else None
        passes.append(0)
        found = detect(*case, meta, classes)
        with monkeypatch.context() as patch:
            patch.setattr(detect_module, "_FIRST", 10**6)
            passes.append(-1)
            wanted = detect(*case, meta, classes)
            assert passes.pop() == 0
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    assert set(passes) == {1, 2}
    # The last one has a lower bound than the others and removes two of them: a third pass finds another.
    monkeypatch.setattr(detect_module, "_FIRST", 1)
    logits = np.array([[0, 5, -9], [-5, 3, 2.96], [-5, 3, 2.96], [0, 0.3, -9]], np.float32)
    priors = np.array([[0.5, 0.5, 0.05, 0.05], [0.25, 0.5, 0.5, 1], [0.75, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]])
    empty = np.zeros((1, 4, 4), np.float32), np.zeros((1, 2, 2, 4), np.float32)
    meta = metadata(2, max_detections=3, iou_threshold=0.3)
    passes.append(0)
    found = detect(empty[0], logits[None], empty[0], empty[1], priors.astype(np.float32), meta)
    assert passes[-1] == 3 and found.classes.tolist() == [[0, 0, 1]]
    np.testing.assert_allclose(found.boxes[0, 1:], [[0, 0, 1, 1], [0, 0, 0.5, 1]])


@pytest.mark.parametrize("columns", [1, 2, 10, 11, 20, 21, 33, 80, 81])
def test_maxima_of_rows(columns, monkeypatch):
    monkeypatch.setattr("yolact_runtime.detect._ROWS", 7)
    logits = np.random.default_rng(columns).normal(size=(30, columns + 1)).astype(np.float32)
    values = logits[:, 1:]  # not contiguous, as in `detect`
    values[3], values[4, -1] = -np.inf, np.inf
    before = logits.copy()
    np.testing.assert_array_equal(_row_max(values), values.max(axis=1))
    np.testing.assert_array_equal(logits, before)


def test_the_best_candidates_include_all_that_equal_the_last():
    for classes in (4, 1):
        scores = np.random.default_rng(0).integers(1, 6, (50, classes)).astype(np.float32) / 8
        flat = scores.T.ravel()
        for count in (1, 10, 49, 50, 51, 199, 200)[: 7 if classes == 4 else 4]:
            worst = np.sort(flat)[-count]
            assert _best(flat, scores, count).tolist() == np.flatnonzero(flat >= worst).tolist()
