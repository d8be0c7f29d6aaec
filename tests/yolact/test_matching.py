"""Matching against a plain, slow version of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yolact.config import LossConfig
from yolact.data.batch import Target
from yolact.matching import match
from yolact.model.boxes import corners, iou
from yolact.model.priors import model_priors
from yolact.registry import get_config

PRIORS = model_priors(get_config("yolact_tiny").model)[::7].contiguous()


def target(boxes: np.ndarray, crowds: np.ndarray | None = None) -> Target:
    count = len(boxes)
    none = torch.zeros(count, 1, 1, dtype=torch.bool)
    crowd_boxes = torch.zeros(0, 4) if crowds is None else torch.from_numpy(crowds.astype(np.float32))
    values = torch.from_numpy(boxes.astype(np.float32)).reshape(-1, 4)
    return Target(values, torch.arange(count) % 3, none, none, crowd_boxes)


def greedy(priors: torch.Tensor, boxes: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Best IoU and instance of each prior, where the best pairs are set apart one after the other."""
    overlap = iou(boxes, corners(priors)).numpy()
    best, instances = overlap.max(axis=0), overlap.argmax(axis=0)
    free = overlap.copy()
    for _ in range(min(free.shape)):
        instance, prior = np.unravel_index(free.argmax(), free.shape)  # the first of equal ones
        best[prior], instances[prior] = 2, instance
        free[instance], free[:, prior] = -1, -1
    return best, instances


def check(boxes: np.ndarray) -> None:
    one = target(boxes)
    found = match(PRIORS, [target(boxes[:0]), one], LossConfig())
    best, instances = greedy(PRIORS, one.boxes)
    expected = one.labels.numpy()[instances] + 1
    expected[best < 0.5] = -1
    expected[best < 0.4] = 0
    np.testing.assert_array_equal(found.classes[1], expected)
    np.testing.assert_array_equal(found.instances[1], instances)
    assert not found.classes[0].any()


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 0.9, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(0.02, 0.1, (count, 2))], axis=1)


@pytest.mark.parametrize("count", [1, 9, 130])
@pytest.mark.parametrize("kind", ["random", "copies", "grid", "near"])
def test_the_best_pairs_come_first(kind: str, count: int) -> None:
    rng = np.random.default_rng(count)
    boxes = random_boxes(rng, count)
    if kind == "copies":
        boxes = boxes[rng.integers(0, 1 + count // 40, count)]
    elif kind == "grid":  # many equal overlaps
        corner = rng.integers(0, 7, (count, 2)) / 8
        boxes = np.concatenate([corner, corner + 0.25], axis=1)
    elif kind == "near":  # all want the same priors
        boxes = boxes[:1] + rng.normal(0, 1e-3, (count, 4))
    check(boxes)


@given(st.lists(st.tuples(*[st.integers(0, 7)] * 2, *[st.integers(1, 4)] * 2), min_size=1, max_size=12))
def test_any_few_boxes(cells: list[tuple[int, ...]]) -> None:
    boxes = np.array(cells, np.float64).reshape(-1, 4) / 8
    boxes[:, 2:] += boxes[:, :2]
    check(boxes.clip(0, 1))


def test_more_instances_than_priors() -> None:
    priors = PRIORS[:5]
    found = match(priors, [target(random_boxes(np.random.default_rng(0), 9))], LossConfig())
    assert (found.classes > 0).all()
    assert len(set(found.instances[0].tolist())) == 5


def test_a_thousand_instances_and_crowds() -> None:
    rng = np.random.default_rng(0)
    priors = model_priors(get_config("yolact_base").model)
    one = target(random_boxes(rng, 1000), random_boxes(rng, 1000))
    found = match(priors, [one], LossConfig())
    positive = found.classes[0] > 0
    assert len(set(found.instances[0][positive].tolist())) == 1000


def test_crowds_are_compared_one_by_one() -> None:
    rng = np.random.default_rng(1)
    crowds = np.concatenate([random_boxes(rng, 30), [[0.1, 0.1, 0.5, 0.9]], random_boxes(rng, 3)])
    found = match(PRIORS, [target(crowds[:0], crowds)], LossConfig()).classes[0]
    boxes, others = corners(PRIORS)[:, None], torch.from_numpy(crowds).float()
    ends = torch.minimum(boxes[..., 2:], others[:, 2:]) - torch.maximum(boxes[..., :2], others[:, :2])
    inside = ends.clamp(min=0).prod(-1)
    share = inside / (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    expected = -(share > 0.7).any(dim=1).long()
    assert torch.equal(found, expected) and found.any() and not found.all()
