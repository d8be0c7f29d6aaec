"""What the tables say where there is nothing to compare."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from yolact_bench.report.tables import agreement_text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (None, ""),
        ((4, 3, 0.98), "matches 3 of 4 instances of peer in 2 images, mask IoU 0.9800"),
        ((0, 0, 0.0), "cannot be matched: peer finds no instance in 2 images"),
    ],
)
def test_agreement(found: tuple[int, int, float] | None, text: str) -> None:
    keys = ("instances", "matched", "mask_iou")
    agreement = found and {"with": "peer", "images": 2, **dict(zip(keys, found, strict=True))}
    assert agreement_text(SimpleNamespace(agreement=agreement)) == text  # type: ignore[arg-type]
