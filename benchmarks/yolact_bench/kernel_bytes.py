"""The bytes that each kernel has to move: what it needs of its buffers, once each, and no more."""

from __future__ import annotations

import numpy as np

from yolact_runtime.cuda.plans.plan import Buffer, Plan
from yolact_runtime.masks import crop_bounds

WHOLE = "all"


def detection_bytes(plan: Plan, candidates: int, detections: int) -> dict[str, int]:
    """Of the kernels of a detection plan.

    Args:
        plan: Made by `detection_plan`.
        candidates: Priors above the score threshold, of all images together.
        detections: Kept, of all images together.

    Returns:
        Kernel -> bytes read and written; `WHOLE` -> what the plan would move without workspace.
    """
    sizes = _by_name(plan)
    logits, coefficients = sizes["logits"], sizes["coefficients"]
    images, _, width = logits.shape
    counts = 4 * images
    # A candidate's offsets, and its prior, which images share.
    boxes = candidates * 4 * sizes["loc"].dtype.itemsize + min(16 * candidates, sizes["priors"].nbytes)
    kept = detections * coefficients.shape[2] * coefficients.dtype.itemsize
    written = sum(buffer.nbytes for buffer in plan.outputs)
    words, keys = sizes["words"].nbytes, sizes["kept_keys"].nbytes
    each = {
        # Written of a candidate: maximum and sum of its softmax, and its box.
        "filter_scores": logits.nbytes + boxes + words + candidates * (8 + 16),
        "list_candidates": words + candidates * 4 + counts,
        # Read of a candidate: its prior, maximum and sum, box, and logits but for the background's.
        "class_nms": candidates * (4 + 8 + 16 + (width - 1) * logits.dtype.itemsize)
        + counts + keys + detections * 4,
        "keep_best": keys + detections * (4 + 16) + kept + written,
    }  # fmt: skip
    return _by_kernel(plan, each) | {WHOLE: logits.nbytes + boxes + kept + written}


def mask_bytes(
    plan: Plan, boxes: np.ndarray, count: np.ndarray, regions: np.ndarray, edges: int
) -> dict[str, int]:
    """Of the kernels of a plan from detections to edges.

    Args:
        plan: Made by `mask_plan(shapes, "edges")`.
        boxes: (N, K, 4) relative x1 y1 x2 y2.
        count: (N,) rows that are detections.
        regions: (N, K, 4) left, top, width and height in pixels of what each box keeps, as the plan writes.
        edges: How many were written, of all images together.

    Returns:
        Kernel -> bytes read and written; `WHOLE` -> what the plan would move without workspace.
    """
    sizes = _by_name(plan)
    prototypes = sizes["prototypes"]
    images, rows, columns, depth = prototypes.shape
    seen = np.zeros((images, rows, columns), bool)
    cells = words = 0
    for n, number in enumerate(count.tolist()):
        for x1, y1, x2, y2 in crop_bounds(boxes[n, :number], rows, columns).tolist():
            seen[n, y1:y2, x1:x2] = True
            cells += max(x2 - x1, 0) * max(y2 - y1, 0)
        for _, y, across, down in regions[n, :number].tolist():
            words += across * (-(-(y + down) // 32) - y // 32) if across and down else 0
    detections = int(count.sum())
    read = int(seen.sum()) * depth * prototypes.dtype.itemsize
    # Boxes and count, then also the image's size.
    where = detections * 16 + 4 * images
    sized = where + 8 * images
    totals, masks, bits = sizes["totals"].nbytes, 4 * cells, 4 * words
    written = sizes["offsets"].nbytes + 4 * edges
    vectors = detections * depth * 4
    each = {
        "assemble_masks": read + vectors + where + masks,
        "mask_bits": masks + sized + bits,
        "count_edges": bits + sized + sizes["regions"].nbytes + totals,
        "write_edges": bits + sized + totals + written,
    }
    return _by_kernel(plan, each) | {WHOLE: read + vectors + sized + sizes["regions"].nbytes + written}


def _by_name(plan: Plan) -> dict[str, Buffer]:
    return {buffer.name: buffer for buffer in plan.buffers}


def _by_kernel(plan: Plan, each: dict[str, int]) -> dict[str, int]:
    return {launch.kernel: each[launch.kernel.partition("<")[0]] for launch in plan.launches}
