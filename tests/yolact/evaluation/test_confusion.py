"""The confusion matrix against all possible pairings, and by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from yolact.evaluation.confusion import confusion_matrix
from yolact_runtime.errors import UsageError

GRID = 6
NAMES = {7: "cat", 3: "dog"}
Box = tuple[int, int, int, int]  # x, y, width, height


def entry(box: Box, category: int = 7, image: int = 1, **more) -> dict:
    x, y, width, height = box
    mask = np.zeros((GRID, GRID), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(map(float, box)),
        "segmentation": coco_mask.encode(mask),
        **more,
    }


def truth(box: Box, category: int = 7, image: int = 1, iscrowd: int = 0) -> dict:
    return entry(box, category, image, iscrowd=iscrowd)


def found(box: Box, category: int = 7, score: float = 0.9, image: int = 1) -> dict:
    return entry(box, category, image, score=score)


def pixels(item: dict) -> set[tuple[int, int]]:
    x, y, width, height = map(int, item["bbox"])
    return set(itertools.product(range(y, y + height), range(x, x + width)))


def pairings(detections: int, objects: int) -> Iterator[tuple[int | None, ...]]:
    """Every way to give each detection an object of its own, or none."""
    for choice in itertools.product([None, *range(objects)], repeat=detections):
        taken = [number for number in choice if number is not None]
        if len(taken) == len(set(taken)):
            yield choice


def oracle(annotations: list[dict], predictions: list[dict], score_threshold: float) -> np.ndarray:
    """Counts of the only pairing in which no detection and object would both rather have each other.

    Detections want the object they overlap most, objects the detection with the highest score.
    """
    strong = [item for item in predictions if item["score"] >= score_threshold]
    objects = [item for item in annotations if not item["iscrowd"]]
    iou = [[len(pixels(d) & pixels(o)) / len(pixels(d) | pixels(o)) for o in objects] for d in strong]
    liked = [[(iou[d][o], -o) for o in range(len(objects))] for d in range(len(strong))]
    rank = [(item["score"], -d) for d, item in enumerate(strong)]

    def stable(choice: tuple[int | None, ...]) -> bool:
        holder = {o: d for d, o in enumerate(choice) if o is not None}
        for d, o in itertools.product(range(len(strong)), range(len(objects))):
            if choice[d] == o:
                if iou[d][o] < 0.5:
                    return False
                continue
            wants = iou[d][o] >= 0.5 and (choice[d] is None or liked[d][o] > liked[d][choice[d]])
            if wants and (o not in holder or rank[d] > rank[holder[o]]):
                return False
        return True

    (choice,) = filter(stable, pairings(len(strong), len(objects)))
    index = {number: i for i, number in enumerate(NAMES)}
    counts = np.zeros((3, 3), int)
    for d, o in enumerate(choice):
        label = strong[d]["category_id"]
        if o is not None:
            counts[index[objects[o]["category_id"]], index[label]] += 1
            continue
        crowds = [item for item in annotations if item["iscrowd"] and item["category_id"] == label]
        own = pixels(strong[d])
        if not any(2 * len(own & pixels(crowd)) >= len(own) for crowd in crowds):
            counts[2, index[label]] += 1
    for o, item in enumerate(objects):
        counts[index[item["category_id"]], 2] += o not in choice
    return counts


boxes = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(2, 4), st.integers(2, 4))
categories = st.sampled_from(list(NAMES))
annotations_of = st.lists(
    st.builds(truth, boxes, categories, iscrowd=st.sampled_from([0, 0, 0, 1])), max_size=4
)
predictions_of = st.lists(
    st.builds(found, boxes, categories, st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9])), max_size=4
)


@settings(max_examples=300, deadline=None)
@given(annotations_of, predictions_of, st.sampled_from(["mask", "box"]))
def test_equals_brute_force(annotations: list[dict], predictions: list[dict], kind: str) -> None:
    result = confusion_matrix(annotations, predictions, [1], NAMES, kind=kind, score_threshold=0.3)
    np.testing.assert_array_equal(result.counts, oracle(annotations, predictions, 0.3))


BOX, FAR = (0, 0, 3, 3), (3, 3, 3, 3)


@pytest.mark.parametrize(
    ("annotations", "predictions", "counts"),
    [
        ([], [], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ([truth(BOX)], [found(BOX)], [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ([truth(BOX)], [found(BOX, 3)], [[0, 1, 0], [0, 0, 0], [0, 0, 0]]),
        ([truth(BOX, 3)], [found(FAR)], [[0, 0, 0], [0, 0, 1], [1, 0, 0]]),
        # The stronger detection has the object, though the other one has its class.
        ([truth(BOX)], [found(BOX, 7, 0.5), found(BOX, 3, 0.6)], [[0, 1, 0], [0, 0, 0], [1, 0, 0]]),
        ([truth(BOX)], [found(BOX, 7, 0.29)], [[0, 0, 1], [0, 0, 0], [0, 0, 0]]),
        ([truth(BOX, iscrowd=1)], [found(BOX), found(BOX, 3)], [[0, 0, 0], [0, 0, 0], [0, 1, 0]]),
        # Another image is not searched, and one that is not asked for does not count.
        ([truth(BOX)], [found(BOX, image=2)], [[0, 0, 1], [0, 0, 0], [1, 0, 0]]),
        ([truth(BOX, image=3)], [found(BOX, image=3)], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)  # fmt: skip
def test_by_hand(annotations: list[dict], predictions: list[dict], counts: list[list[int]]) -> None:
    result = confusion_matrix(annotations, predictions, [1, 2], NAMES)
    assert (result.counts, result.classes, result.score_threshold) == (counts, ["cat", "dog"], 0.3)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_score_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(UsageError, match="must be 0 to 1"):
        confusion_matrix([], [], [1], NAMES, score_threshold=threshold)
