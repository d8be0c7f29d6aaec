"""The detection kernels, run on the CPU, against the float64 oracle and the runtime's NumPy detection."""

from __future__ import annotations

import dataclasses
import faulthandler
import multiprocessing
import sys

import numpy as np
import pytest
from cuda_on_cpu import FORWARD, REVERSED
from golden import match_rows, strided
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_heads import assert_same, oracle_detections, run_kernels, separated
from shared_data import reference_file, reference_files

from yolact_bench.gpu_checks.inputs import Heads, make_heads
from yolact_bench.gpu_checks.kernels import Found, numpy_detections
from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.plan import SOURCE_FOLDER
from yolact_runtime.errors import UsageError


def assert_equal(found: Found, expected: Found) -> None:
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-5)


def identical(a: list[Found], b: list[Found]) -> bool:
    return all(
        getattr(x, field.name).tobytes() == getattr(y, field.name).tobytes()
        for x, y in zip(a, b, strict=True)
        for field in dataclasses.fields(Found)
    )


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    priors=st.integers(1, 70),
    classes=st.sampled_from([1, 2, 6, 40, 100]),
    batch=st.integers(1, 2),
    background=st.floats(-2, 8),
    score_threshold=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    iou_threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    top_k=st.sampled_from([1, 4, 33, 200]),
    limit=st.sampled_from([1, 5, 100, 200]),
    repeat=st.booleans(),
    half=st.booleans(),
    order=st.sampled_from([FORWARD, REVERSED, 5]),
)
def test_random_heads_agree_with_the_oracle(
    seed,
    priors,
    classes,
    batch,
    background,
    score_threshold,
    iou_threshold,
    top_k,
    limit,
    repeat,
    half,
    order,
):
    heads = make_heads(seed, priors, classes, batch, background)
    if half:
        heads = heads.half()
    if repeat:  # equal scores; of equal boxes the first stays
        heads.logits[:, priors // 2 :] = heads.logits[:, : priors - priors // 2]
    for image in range(batch):
        assume(separated(heads, image, score_threshold, iou_threshold))
    keep = {
        "score_threshold": score_threshold,
        "iou_threshold": iou_threshold,
        "top_k": top_k,
        "limit": limit,
    }
    for image, found in enumerate(run_kernels(heads, order, **keep)):
        assert_equal(found, oracle_detections(heads, image, **keep))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    priors=st.integers(1, 70),
    classes=st.sampled_from([1, 6, 32, 33, 40]),
    wanted=st.sets(st.integers(0, 39)),
    limit=st.sampled_from([1, 5, 100]),
    order=st.sampled_from([FORWARD, REVERSED, 5]),
)
def test_the_best_of_some_classes_are_those_of_the_oracle(seed, priors, classes, wanted, limit, order):
    heads = make_heads(seed, priors, classes, 2)
    for image in range(2):
        assume(separated(heads, image, 0.05, 0.5))
    wanted = {cls for cls in wanted if cls < classes}
    for image, found in enumerate(run_kernels(heads, order, wanted=wanted, limit=limit)):
        every = oracle_detections(heads, image, limit=10**6)
        rows = np.flatnonzero(np.isin(every.classes, list(wanted)))[:limit]
        expected = Found(*(getattr(every, field.name)[rows] for field in dataclasses.fields(Found)))
        assert_equal(found, expected)


@pytest.mark.parametrize("half", [False, True])
def test_a_network_of_550_pixels(half):
    heads = make_heads(3, 19248, 80, background=7, spread=1.5)
    heads = heads.half() if half else heads
    expected = numpy_detections(heads, 150)[0]
    assert len(expected.scores) > 100
    assert_same(run_kernels(heads)[0], expected, 100)


@pytest.mark.slow
def test_more_priors_and_detections():
    heads = make_heads(4, 57744, 80, background=8, spread=1.5)
    assert_same(run_kernels(heads, limit=200)[0], numpy_detections(heads, 250)[0], 200)


def test_everything_above_the_threshold():
    heads = make_heads(5, 20000, 6, background=-6)
    assert_same(run_kernels(heads)[0], numpy_detections(heads, 150)[0], 100)


def test_nothing_above_the_threshold():
    assert not len(run_kernels(make_heads(6, 3000, 5, background=40))[0].scores)


def test_a_score_at_the_threshold_takes_no_part():
    heads = make_heads(12, 40, 1)
    heads.logits[:] = 0  # scores of exactly a half
    assert not len(run_kernels(heads, score_threshold=0.5)[0].scores)
    assert len(run_kernels(heads, score_threshold=0.499, iou_threshold=1.0)[0].scores) == 40


def test_one_prior_and_one_class():
    heads = make_heads(7, 1, 1, background=-1)
    found = run_kernels(heads)[0]
    assert found.indices.tolist() == [0]
    assert_equal(found, oracle_detections(heads))


@pytest.mark.parametrize(
    "limits", [{"top_k": 1024, "limit": 1024}, {"top_k": 1024, "limit": 1}, {"top_k": 1}]
)
def test_the_limits(limits):
    heads = make_heads(8, 1500, 2, background=-2)
    limit = limits.get("limit", 100)
    expected = numpy_detections(heads, limit + 50, nms_top_k=limits["top_k"])[0]
    assert_same(run_kernels(heads, **limits)[0], expected, limit)


def test_equal_scores_go_by_class_and_prior():
    heads = make_heads(9, 700, 3)
    heads.logits[:] = [0.0, 1.0, 1.0, 1.0]
    # Apart from each other, so that all stay.
    heads.priors[:] = np.stack([np.arange(700) * 2, np.zeros(700), np.ones(700), np.ones(700)], axis=1)
    heads.loc[:] = 0
    found = run_kernels(heads, top_k=40, limit=100)[0]
    assert found.classes.tolist() == [0] * 40 + [1] * 40 + [2] * 20
    assert found.indices.tolist() == [*range(40), *range(40), *range(20)]
    assert_equal(found, oracle_detections(heads, top_k=40, limit=100))


def test_boxes_without_area_and_overlap_at_the_threshold():
    heads = make_heads(10, 6, 1)
    heads.loc[:] = 0
    heads.logits[0] = np.stack([np.zeros(6), np.arange(6)[::-1]], axis=1)
    heads.priors[:] = [
        [0.5, 0.5, 0, 0],  # two points at one place: no union
        [0.5, 0.5, 0, 0],
        [0.5, 0.5, 0.5, 0],  # a line
        [2.0, 2.0, 1, 1],
        [2.0, 2.0, 1, 0.5],  # half of the one before: 0.5 is not above 0.5
        [2.0, 2.0, 1, 0.75],
    ]
    found = run_kernels(heads, score_threshold=0.0)[0]
    assert found.indices.tolist() == [0, 1, 2, 3, 4]
    assert_equal(found, oracle_detections(heads, score_threshold=0.0))


@pytest.mark.parametrize("order", [FORWARD, REVERSED])
def test_numbers_that_are_not_finite_take_no_part(order):
    heads = make_heads(11, 300, 4, background=0)
    bad = {"nan": np.nan, "inf": np.inf, "minus": -np.inf}
    for row, (place, value) in enumerate((c, v) for c in range(5) for v in bad.values()):
        heads.logits[0, 10 + row, place] = value
    heads.logits[0, 30] = -np.inf
    heads.logits[0, 31] = np.nan
    for row, (place, value) in enumerate((c, v) for c in range(4) for v in bad.values()):
        heads.loc[0, 40 + row, place] = value
    heads.loc[0, 60, 2] = 1e9
    heads.priors[61, 0] = np.nan
    found = run_kernels(heads, order)[0]
    assert_equal(found, oracle_detections(heads))
    assert not np.isin(found.indices, [30, 31, 40, 60, 61]).any()


@pytest.mark.parametrize("path", reference_files("golden_*.npz"), ids=lambda path: path.stem)
def test_outputs_of_the_reference_network(path):
    """A part of the priors of the reference network on an image."""
    golden = np.load(path)
    loc, logits, priors = (strided(golden, stem)[0] for stem in ("loc", "conf_logits", "priors"))
    heads = Heads(loc[None], logits[None], priors)
    for case in (heads, heads.half()):
        expected = oracle_detections(case, limit=150)
        assert len(expected.scores)
        assert_same(run_kernels(case)[0], expected, 100)


def test_detections_of_the_reference():
    case = np.load(reference_file("unit_loss_detect.npz"))
    # The file has scores; the softmax of their logarithms is themselves.
    heads = Heads(case["in_loc"][:1], np.log(case["det_conf"]), case["in_priors"])
    found = run_kernels(heads)[0]
    rows = match_rows(
        case, "det_fast", found.classes, found.scores, found.boxes, score_tolerance=1e-6, box_tolerance=1e-6
    )
    np.testing.assert_array_equal(case["in_mask"][0, found.indices], case["det_fast_mask"][rows])


# Many candidates and rows; few of both; no more candidates than rows.
SIZES = (
    ({"seed": 1, "priors": 2000, "classes": 3, "background": 0}, {"top_k": 400, "limit": 300}),
    ({"seed": 1, "priors": 700, "classes": 3, "background": 0}, {"top_k": 200, "limit": 50}),
    ({"seed": 2, "priors": 70, "classes": 2, "background": 0}, {"top_k": 200, "limit": 200}),
)


@pytest.mark.parametrize(("heads", "keep"), SIZES)
def test_the_order_of_threads_does_not_matter(heads, keep):
    made = make_heads(**heads, batch=2)
    expected = run_kernels(made, FORWARD, **keep)
    for order in (REVERSED, 2, 3):
        assert identical(run_kernels(made, order, **keep), expected)


BARRIERS = [
    (name, number)
    for name in ("detect.cu", "select.cuh", "common.cuh")
    for number, line in enumerate((SOURCE_FOLDER / name).read_text().splitlines(), 1)
    if "__syncthreads();" in line
]


@pytest.mark.parametrize(("name", "line"), BARRIERS)
def test_every_barrier_is_needed(name, line):
    """Without it, some order of threads changes the result."""

    def is_harmless(case: int, order: int) -> None:
        faulthandler.disable()
        heads, keep = SIZES[case]
        made = make_heads(**heads)
        expected = run_kernels(made, **keep)
        try:
            harmless = identical(run_kernels(made, order, (name, line), **keep), expected)
        except Exception:
            harmless = False
        sys.exit(0 if harmless else 1)

    # In a process of its own: a race may well write where it must not.
    context = multiprocessing.get_context("fork")
    for case in range(len(SIZES)):
        for order in (FORWARD, REVERSED, 2):
            process = context.Process(target=is_harmless, args=(case, order))
            process.start()
            process.join()
            if process.exitcode:
                return
    pytest.fail("nothing changed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch 1..65535, not 0"),
        ({"priors": 0}, "priors 1"),
        ({"classes": 0}, "classes 1"),
        ({"coefficients": 0}, "coefficients 1"),
        ({"limit": 1025}, "limit 1..1024, not 1025"),
        ({"top_k": 0}, "top_k 1..1024, not 0"),
        ({"score_threshold": 1.5}, "score_threshold 0..1, not 1.5"),
        ({"iou_threshold": float("nan")}, "iou_threshold 0..1, not nan"),
        ({"priors": 2**24, "classes": 99}, "priors x"),
        ({"logits_dtype": np.float64}, "logits in float32 or float16, not float64"),
    ],
)
def test_what_the_kernels_do_not_take(change, message):
    with pytest.raises(UsageError, match=message):
        detection_plan(**{"batch": 1, "priors": 10, "classes": 3, **change})
