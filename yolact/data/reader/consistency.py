"""Whether boxes and masks of annotations fit each other and their images, and what can be learned."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from yolact.data.reader.findings import Level

# What an annotation is to training: an example, or why not. Only crowds with a usable mask are "crowd".
STATUS = ("example", "crowd", "no segmentation", "no area", "outside the image")
EXAMPLE, CROWD, NO_MASK, NO_AREA, OUTSIDE = range(len(STATUS))

# How far boxes and polygons may extend beyond the image, in pixels: rounding, not a mistake.
_SLACK = 1.0
# A box is far from its mask if its IoU with the mask's bounding box is below this, and a side is more than so
# many pixels off.
_BOX_IOU, _BOX_PIXELS = 0.5, 2.0
# Another form of box is recognised if it explains this share of the boxes that have a mask.
_RECOGNISED = 0.9
# Coordinates are of another image size if most reach beyond the image by more than this share of its side.
_FAR_BEYOND = 0.1

Report = Callable[[Level, str, Sequence[int], Callable[[int], str]], None]


def check_boxes(
    entries: Sequence[dict[str, Any]],
    boxes: np.ndarray,
    extents: np.ndarray,
    sizes: np.ndarray,
    damaged: Collection[int],
    report: Report,
    repair: bool = False,
) -> tuple[np.ndarray, set[int]]:
    """Compare the boxes of annotations with their masks and images.

    Masks that cover nothing of their image are removed: those regions are ignored, like those without a mask.

    Args:
        entries: The annotations; their segmentations are changed in place.
        boxes: (n, 4) x, y, width, height; NaN where there is none.
        extents: (n, 4) x1 y1 x2 y2 of the masks; NaN where there is none.
        sizes: (n, 2) height and width of the images; 0 if unknown.
        damaged: Rows whose segmentation is wrong, which is reported already.
        report: Called with level, kind, rows and a function that describes a row.
        repair: Where most boxes contradict their masks, compute them from the masks.

    Returns:
        (n,) uint8 indices of `STATUS`; the rows that are wrong and have been reported as errors.
    """
    known = np.asarray((sizes > 0).all(1))
    odd = _relative_coordinates(entries, boxes, extents, sizes, report, repair)
    limits = np.where(known[:, None], sizes[:, ::-1], np.inf)  # (n, 2) width, height
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    with np.errstate(invalid="ignore"):
        covered = np.minimum(extents[:, 2:], limits) - np.maximum(extents[:, :2], 0)
        hidden = np.asarray(~(covered > 0).all(1) & np.isfinite(extents).all(1))
        flat = np.asarray((boxes[:, 2:] <= 0).any(1))
        inside = np.minimum(corners[:, 2:], limits) - np.maximum(corners[:, :2], 0)
        outside = ~flat & (inside <= 0).any(1)
    for row in np.flatnonzero(hidden).tolist():
        entries[row]["segmentation"] = None
    masked = np.isfinite(extents).all(1) & ~hidden
    crowd = np.array([bool(entry["iscrowd"]) for entry in entries], bool)

    def image(row: int) -> str:
        return f"the image ({sizes[row, 1]}x{sizes[row, 0]})"

    def box(row: int) -> str:
        return f"bbox {[round(value, 2) for value in boxes[row].tolist()]}"

    def mask(row: int) -> list[float]:
        x1, y1, x2, y2 = extents[row].round(2).tolist()
        return [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]

    def warn(kind: str, chosen: np.ndarray, message: Callable[[int], str]) -> None:
        report("warning", kind, np.flatnonzero(chosen).tolist(), message)

    ignored = "training and evaluation ignore the region"
    empty = np.asarray(~np.isfinite(extents).all(1))
    empty[list(damaged)] = False
    warn("no segmentation", empty, lambda row: f"there is no mask; {ignored}")
    warn("empty mask", hidden, lambda row: f"the segmentation covers no pixel of {image(row)}; {ignored}")
    warn("degenerate box", flat, lambda row: f"{box(row)} has no area; training skips the annotation")
    warn(
        "box outside the image", outside, lambda row: f"{box(row)} is outside {image(row)}; training skips it"
    )
    with np.errstate(invalid="ignore"):
        over = np.maximum(-corners[:, :2], corners[:, 2:] - limits).max(1)
        beyond = np.maximum(-extents[:, :2], extents[:, 2:] - limits).max(1)
    warn(
        "box over the edge",
        (over > _SLACK) & ~flat & ~outside,
        lambda row: f"{box(row)} extends beyond {image(row)}; it is clipped",
    )
    warn(
        "polygon out of the image",
        (beyond > _SLACK) & masked,
        lambda row: f"a polygon extends {beyond[row]:.0f} pixels beyond {image(row)}",
    )
    usable = masked & ~flat
    odd |= _larger_image(usable & known & ~crowd, extents, sizes, report)
    odd |= _contradictions(usable & ~crowd, corners, extents, sizes, report, repair, box, mask, entries)
    status = np.select(
        [hidden, ~masked, flat, outside, crowd], [OUTSIDE, NO_MASK, NO_AREA, OUTSIDE, CROWD], EXAMPLE
    )
    return status.astype(np.uint8), odd


def _relative_coordinates(
    entries: Sequence[dict[str, Any]],
    boxes: np.ndarray,
    extents: np.ndarray,
    sizes: np.ndarray,
    report: Report,
    repair: bool,
) -> set[int]:
    """Report polygons relative to the image, if most are, or repair them in place; returns the wrong rows."""
    with np.errstate(invalid="ignore"):
        within = (extents.max(1) <= 1 + 1e-6) & (extents.min(1) >= -1e-6)
    outlined = np.array([isinstance(entry["segmentation"], list) for entry in entries], bool)
    relative = within & outlined & (extents % 1 != 0).any(1) & (sizes.min(1, initial=1 << 30) > 4)
    rows = np.flatnonzero(relative).tolist()
    if 2 * len(rows) <= outlined.sum():
        return set()
    what = "coordinates relative to the image (0 to 1)"
    report(
        "note" if repair else "error",
        "relative coordinates",
        rows,
        lambda row: (
            f"the mask spans {extents[row].round(3).tolist()} (x1, y1, x2, y2): {what};"
            + (" they become pixels" if repair else " expected pixels")
        ),
    )
    if not repair:
        return set(rows)
    for row in rows:
        scale = np.tile(sizes[row, ::-1], 2).astype(np.float64)
        polygons = [
            np.asarray(polygon).reshape(-1, 2) * scale[:2] for polygon in entries[row]["segmentation"]
        ]
        entries[row]["segmentation"] = [array("d", polygon.ravel().tolist()) for polygon in polygons]
        entries[row]["area"] = None
        extents[row] *= scale
        boxes[row] = [*extents[row, :2], *(extents[row, 2:] - extents[row, :2])]
        entries[row]["bbox"] = boxes[row].tolist()
    return set()


def _larger_image(compared: np.ndarray, extents: np.ndarray, sizes: np.ndarray, report: Report) -> set[int]:
    """Report masks far beyond their images, if most are; returns the wrong rows."""
    rows = np.flatnonzero(compared)
    beyond = (extents[rows, 2:] / sizes[rows, ::-1]).max(1, initial=0) > 1 + _FAR_BEYOND
    if 2 * beyond.sum() <= len(rows):
        return set()
    found = rows[beyond].tolist()
    report(
        "error",
        "coordinates of another image size",
        found,
        lambda row: (
            f"the mask reaches {extents[row, 2:].round(1).tolist()} (x, y), but the image is"
            f" {sizes[row, 1]}x{sizes[row, 0]}, as for most annotations: coordinates of a larger image?"
        ),
    )
    return set(found)


def _contradictions(
    compared: np.ndarray,
    corners: np.ndarray,
    extents: np.ndarray,
    sizes: np.ndarray,
    report: Report,
    repair: bool,
    box: Callable[[int], str],
    mask: Callable[[int], list[float]],
    entries: Sequence[dict[str, Any]],
) -> set[int]:
    """Report boxes far from their masks: warnings, or errors if most are; returns the wrong rows."""
    rows = np.flatnonzero(compared)
    if not len(rows):
        return set()
    tight = extents[rows]
    given = corners[rows]
    limits = np.where(sizes[rows] > 0, sizes[rows], np.inf)[:, ::-1]
    limits = np.concatenate([limits, limits], axis=1)
    clipped = np.clip(given, 0, limits), np.clip(tight, 0, limits)
    off = np.abs(clipped[0] - clipped[1]).max(1)
    far = (off > _BOX_PIXELS) & (_iou(*clipped) < _BOX_IOU)
    form = _recognise(given, tight, sizes[rows]) if (off > _BOX_PIXELS).mean() > 0.5 else ""
    wrong = far.mean() > 0.5 or bool(form)
    chosen = rows[(off > _BOX_PIXELS) if form else far].tolist()
    if wrong and repair:
        for row in chosen:
            entries[row]["bbox"] = mask(row)
        report(
            "note", "boxes that contradict their masks", chosen, lambda row: f"{box(row)} is now the mask's"
        )
        return set()
    reason = form or "as most boxes of the file do: are these boxes and masks of different images?"
    report(
        "error" if wrong else "warning",
        "boxes contradict masks" if wrong else "box far from mask",
        chosen,
        lambda row: (
            f"{box(row)}, but its mask spans {mask(row)} (x, y, width, height)"
            + (f"; {reason}" if wrong else "")
        ),
    )
    return set(chosen) if wrong else set()


def _recognise(given: np.ndarray, tight: np.ndarray, sizes: np.ndarray) -> str:
    """Which other form of box fits most masks; empty if none does.

    Args:
        given: (n, 4) the boxes, taken as x, y, width, height, as x1 y1 x2 y2.
        tight: (n, 4) the boxes of the masks, x1 y1 x2 y2.
        sizes: (n, 2) height and width of the images; 0 if unknown.
    """
    x, y = given[:, 0], given[:, 1]
    w, h = given[:, 2] - x, given[:, 3] - y
    wide, high = sizes[:, 1], sizes[:, 0]
    forms = {
        "[x1, y1, x2, y2]": (x, y, w, h),
        "[y, x, height, width]": (y, x, y + h, x + w),
        "[y1, x1, y2, x2]": (y, x, h, w),
        "[centre x, centre y, width, height]": (x - w / 2, y - h / 2, x + w / 2, y + h / 2),
        "relative to the image (0 to 1)": (x * wide, y * high, (x + w) * wide, (y + h) * high),
        "[x1, y1, x2, y2] relative to the image": (x * wide, y * high, w * wide, h * high),
        "a relative centre, width and height (YOLO's)": (
            (x - w / 2) * wide,
            (y - h / 2) * high,
            (x + w / 2) * wide,
            (y + h / 2) * high,
        ),
    }
    for name, form in forms.items():
        off = np.abs(np.stack(form, axis=1) - tight).max(1)
        if (off <= _BOX_PIXELS).mean() >= _RECOGNISED:
            return f"most boxes of the file look like {name}"
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (given[:, 2:] - given[:, :2]) / (tight[:, 2:] - tight[:, :2])
    scale = np.median(ratios[np.isfinite(ratios).all(1)], axis=0) if len(ratios) else np.ones(2)
    if np.isfinite(scale).all() and (np.abs(scale - 1) > 0.05).any() and (scale > 0).all():
        # A pixel of the larger image is several of the smaller one.
        off = np.abs(given / np.tile(scale, 2) - tight).max(1) * min(1.0, *scale)
        if (off <= _BOX_PIXELS).mean() >= _RECOGNISED:
            return (
                f"most boxes of the file are {scale[0]:.3g} times as wide and {scale[1]:.3g} times as high:"
                " those of another image size?"
            )
    return ""


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of each row (x1 y1 x2 y2) of `a` with that of `b`."""
    sides = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0)
    common = sides.prod(1)
    union = (a[:, 2:] - a[:, :2]).clip(0).prod(1) + (b[:, 2:] - b[:, :2]).clip(0).prod(1) - common
    return np.divide(common, union, out=np.zeros(len(a)), where=union > 0)
