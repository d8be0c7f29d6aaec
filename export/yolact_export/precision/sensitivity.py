"""Measures the layer groups one by one to find which have to stay in float32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import onnx

from yolact_export.precision.compute import by_group, layer_compute
from yolact_export.precision.layers import compute_groups
from yolact_export.precision.measure import HeadReference, worst
from yolact_runtime.commandline import Table, track

log = logging.getLogger(__name__)

Convert = Callable[[Collection[str]], onnx.ModelProto]


@dataclass(frozen=True)
class Bounds:
    """Largest accepted relative errors of the heads.

    Attributes:
        group: With one layer group reduced.
        total: With all groups reduced that are not kept.
        cheap: With one group reduced that has at most `CHEAP` of the compute: in float32 it costs little.
    """

    group: float
    total: float
    cheap: float = np.inf


BOUNDS = {"fp16": Bounds(group=0.002, total=0.005), "int8": Bounds(group=0.05, total=0.1, cheap=0.015)}
# Share of the multiply-accumulates of the network.
CHEAP = 0.02


@dataclass(frozen=True)
class Sensitivity:
    """The measured errors and the decision.

    Attributes:
        errors: Worst relative error of the heads with only this group reduced, by group.
        total: The same with all groups reduced except `kept`.
        kept: Groups that stay in float32, including those that the user named.
        bounds: The accepted errors.
    """

    errors: dict[str, float]
    total: float
    kept: frozenset[str]
    bounds: Bounds


def measure_sensitivity(
    model: onnx.ModelProto, convert: Convert, reference: HeadReference, bounds: Bounds, named: frozenset[str]
) -> Sensitivity:
    """Reduce one group at a time, and keep those in float32 whose errors exceed their bounds.

    While all others together exceed the total bound, the worst of them is kept as well.

    Args:
        model: The float32 graph.
        convert: Returns the reduced graph with the given groups kept in float32.
        reference: The heads of the float32 graph.
        bounds: The accepted errors.
        named: Groups to keep in float32 in any case; they are measured as well.
    """
    groups = compute_groups(model)
    steps = track(groups, "measuring layer groups")
    errors = {group: worst(reference.errors(convert(set(groups) - {group}))) for group in steps}
    cheap = _cheap_groups(model)
    kept = named | {
        group
        for group, error in errors.items()
        if error > (min(bounds.cheap, bounds.group) if group in cheap else bounds.group)
    }
    ranking = sorted((group for group in groups if group not in kept), key=errors.__getitem__)
    total = worst(reference.errors(convert(kept)))
    while total > bounds.total and ranking:
        kept |= {ranking.pop()}
        total = worst(reference.errors(convert(kept)))
    return Sensitivity(errors, total, frozenset(kept), bounds)


def _cheap_groups(model: onnx.ModelProto) -> set[str]:
    """The groups with so little of the compute that their speed hardly matters; none without shapes."""
    layers = by_group(layer_compute(model))
    macs = {group: sum(layer.macs for layer in of_group) for group, of_group in layers.items()}
    return {group for group, one in macs.items() if 0 < one <= CHEAP * sum(macs.values())}


def sensitivity_table(found: Sensitivity, precision: str) -> Table:
    """Errors and decision for each layer group, the worst first."""
    bounds = found.bounds
    cheap = f", or {bounds.cheap:.1%} with at most {CHEAP:.0%} of the compute" if bounds.cheap < 1 else ""
    return Table(
        f"Sensitivity: error of the heads with one group in {precision}",
        ("layer group", "kept in", "relative error"),
        [
            [group, "float32" if group in found.kept else precision, f"{error:.2%}"]
            for group, error in sorted(found.errors.items(), key=lambda item: -item[1])
        ],
        f"kept in float32 above {bounds.group:.1%}{cheap}; all others together {found.total:.2%}"
        f" (at most {bounds.total:.1%})",
        text_columns=2,
    )
