"""Which groups stay in float32, with fake errors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import pytest

from yolact_export.precision.layers import compute_groups
from yolact_export.precision.measure import Error
from yolact_export.precision.sensitivity import Bounds, measure_sensitivity

LARGE = {"fpn": 0.3, "head.boxes": 0.04, "protonet": 0.03}


class Reference:
    """Errors add up over the reduced groups."""

    def __init__(self, groups: list[str], broken: str = "") -> None:
        self.groups = groups
        self.broken = broken

    def errors(self, kept: Collection[str]) -> dict[str, Error]:
        reduced = [group for group in self.groups if group not in kept]
        total = sum(LARGE.get(group, 0.001) for group in reduced)
        return {
            "loc": Error(1, 1, np.nan if self.broken in reduced else total**2, 1),
            "logits": Error(1, 0, 0, 1),
        }


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        (Bounds(0.5, 1.0), set()),
        (Bounds(0.05, 0.1), {"fpn"}),
        (Bounds(0.035, 0.1), {"fpn", "head.boxes"}),
        (Bounds(0.05, 0.06), {"fpn", "head.boxes"}),
        (Bounds(0.05, 0.02), {"fpn", "head.boxes", "protonet"}),
    ],
)
def test_worst_groups_are_kept(bounds: Bounds, kept: set[str], graph: onnx.ModelProto) -> None:
    reference: Any = Reference(compute_groups(graph))
    found = measure_sensitivity(graph, lambda names: names, reference, bounds, frozenset())  # type: ignore[arg-type, return-value]
    assert found.kept == kept
    assert found.total <= bounds.total
    assert found.errors["fpn"] == pytest.approx(0.3)


def test_named_groups_and_broken_ones_are_kept(graph: onnx.ModelProto) -> None:
    reference: Any = Reference(compute_groups(graph), broken="head.classes")
    found = measure_sensitivity(
        graph, lambda names: names, reference, Bounds(0.5, 1.0), frozenset({"protonet"})
    )  # type: ignore[arg-type, return-value]
    assert found.kept == {"protonet", "head.classes"}
    assert found.errors["head.classes"] == np.inf


def test_a_group_with_little_compute_is_kept_for_less(graph: onnx.ModelProto) -> None:
    """3% and 4% are within the bound of a group; of the two, only the boxes cost nearly nothing."""
    reference: Any = Reference(compute_groups(graph))
    bounds = Bounds(0.05, 1.0, cheap=0.02)
    found = measure_sensitivity(graph, lambda names: names, reference, bounds, frozenset())  # type: ignore[arg-type, return-value]
    assert found.kept == {"fpn", "head.boxes"}
