"""Which layer groups stay in float32: measured one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

import onnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from yolact_export.precision.layers import compute_groups
from yolact_export.precision.measure import HeadReference, worst

log = logging.getLogger(__name__)

Convert = Callable[[Collection[str]], onnx.ModelProto]


@dataclass(frozen=True)
class Bounds:
    """Relative errors of the heads that are still accepted.

    Attributes:
        group: Of one layer group reduced alone.
        total: Of all groups together that are reduced.
    """

    group: float
    total: float


BOUNDS = {"fp16": Bounds(group=0.002, total=0.005), "int8": Bounds(group=0.05, total=0.1)}


@dataclass(frozen=True)
class Sensitivity:
    """What was measured and decided.

    Attributes:
        alone: Worst relative error of the heads with only this group reduced, by group.
        total: With all groups reduced but `kept`.
        kept: Groups that stay in float32, the ones the user named included.
        bounds: By which it was decided.
    """

    alone: dict[str, float]
    total: float
    kept: frozenset[str]
    bounds: Bounds


def choose(
    model: onnx.ModelProto, convert: Convert, reference: HeadReference, bounds: Bounds, named: frozenset[str]
) -> Sensitivity:
    """Reduce one group at a time and keep in float32 those that spoil the heads by more than `bounds`.

    If the rest together still does, the worst of it is kept too, until it does not.

    Args:
        model: The float32 graph.
        convert: Makes the reduced graph with the given groups left in float32.
        reference: The heads of the float32 graph.
        bounds: What is accepted.
        named: Groups that stay in float32 anyhow; they are measured all the same.
    """
    groups = compute_groups(model)
    steps = track(groups, "measuring layer groups", console=Console(stderr=True), transient=True)
    alone = {group: worst(reference.errors(convert(set(groups) - {group}))) for group in steps}
    kept = named | {group for group, error in alone.items() if error > bounds.group}
    ranking = sorted((group for group in groups if group not in kept), key=alone.__getitem__)
    total = worst(reference.errors(convert(kept)))
    while total > bounds.total and ranking:
        kept |= {ranking.pop()}
        total = worst(reference.errors(convert(kept)))
    return Sensitivity(alone, total, frozenset(kept), bounds)


def table(found: Sensitivity, precision: str) -> Table:
    """The list, worst first."""
    bounds = found.bounds
    result = Table(
        title=f"Sensitivity: error of the heads with one group in {precision}",
        caption=f"kept in float32 above {bounds.group:.1%}; all others together {found.total:.2%}"
        f" (at most {bounds.total:.1%})",
    )
    for column in ("layer group", "relative error", "kept in"):
        result.add_column(column, justify="right" if column == "relative error" else "left")
    for group, error in sorted(found.alone.items(), key=lambda item: -item[1]):
        result.add_row(group, f"{error:.2%}", "float32" if group in found.kept else precision)
    return result
