"""Every kernel that common networks need, in one place: what example plans launch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.masks import MaskShapes, mask_plan
from yolact_runtime.cuda.plans.plan import Plan
from yolact_runtime.cuda.plans.preprocess import preprocess_plan
from yolact_runtime.cuda.plans.visible import wanted_plan


def example_plans() -> Iterator[Plan]:
    """For a COCO network of 550 pixels: every source, every element type of its kernels."""
    floats = ("float32", "float16")
    for loc, logits in itertools.product(floats, floats):
        yield detection_plan(1, 19248, 80, loc_dtype=loc, logits_dtype=logits, coefficients_dtype=loc)
    for dtype in floats:
        yield mask_plan(MaskShapes(1, 100, 32, 138, 138, 480, 640, dtype))
    yield wanted_plan(1, 100, 32)
    for dtype in ("uint8", *floats):
        yield preprocess_plan(1, 550, 640 * 480 * 3, dtype)


def catalogue() -> dict[str, tuple[str, ...]]:
    """Source file -> the kernels with their template arguments, each once."""
    found: dict[str, dict[str, None]] = {}
    for plan in example_plans():
        for source in plan.sources:
            found.setdefault(source, {}).update(dict.fromkeys(plan.kernels(source)))
    return {source: tuple(kernels) for source, kernels in found.items()}
