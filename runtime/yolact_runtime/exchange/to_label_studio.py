"""Label Studio's predictions and labeling interface.

Its brush masks have an encoding of their own. The encoder in `label_studio_sdk.converter.brush` takes whole
images, four bytes for each pixel, and a step of Python for each run; this one the rectangle around a mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from yolact_runtime.errors import YolactError
from yolact_runtime.exchange.instances import TOLERANCE, Instance
from yolact_runtime.masks import Region

# How Label Studio serves files of a local storage; the path follows.
LOCAL_FILES = "/data/local-files/?d="
_COLOURS = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4",
    "#42d4f4", "#f032e6", "#bfef45", "#469990", "#9a6324",
)  # fmt: skip
# Bits of a run's length, of which a run uses the first that holds it.
_SIZES = np.array([3, 4, 8, 16])
_LONGEST = 1 << 16
_MOST_VALUES = (1 << 32) - 1
# Characters that XML cannot have, such as control characters; compiled where it is used, as that takes 4 ms.
_NO_XML = "[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"


def label_studio_prediction(
    instances: Iterable[Instance],
    height: int,
    width: int,
    polygons: bool = False,
    tolerance: float = TOLERANCE,
    model_version: str = "yolact",
    from_name: str = "label",
    to_name: str = "image",
) -> dict[str, Any]:
    """A prediction of Label Studio.

    Args:
        instances: The instances.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        polygons: Polygons instead of brush masks, one for each connected component; the first is the parent
            of the others.
        tolerance: Of the polygons, in pixels, as for `Instance.outlines`.
        model_version: What Label Studio shows as the origin.
        from_name, to_name: The names of the control and image tags in the labeling interface.

    Returns:
        {model_version, score, result}; the score is the mean of those of the instances, 0 without any.
    """
    kind = "polygonlabels" if polygons else "brushlabels"
    common = {
        "type": kind, "from_name": from_name, "to_name": to_name,
        "original_width": width, "original_height": height, "image_rotation": 0,
    }  # fmt: skip
    result, scores = [], []
    for row, instance in enumerate(instances):
        scores.append(instance.score)
        name = str(row)
        for part, value in enumerate(_values(instance, height, width, polygons, tolerance)):
            item = {**common, "value": {**value, kind: [_label(instance.label)]}, "score": instance.score}
            item |= {"id": name} if not part else {"id": f"{name}-{part}", "parentID": name}
            if instance.track_id is not None:
                item["meta"] = {"text": [f"track {instance.track_id}"]}
            result.append(item)
    mean = round(sum(scores) / len(scores), 6) if scores else 0.0
    return {"model_version": model_version, "score": mean, "result": result}


def label_studio_config(
    class_names: Sequence[str], polygons: bool = False, from_name: str = "label", to_name: str = "image"
) -> str:
    """The labeling interface (XML) that fits the predictions; the image is `$image` of a task."""
    from xml.sax.saxutils import quoteattr  # imports what talks to servers

    tag = "PolygonLabels" if polygons else "BrushLabels"
    labels = [
        f'    <Label value={quoteattr(_label(name))} background="{_COLOURS[index % len(_COLOURS)]}"/>'
        for index, name in enumerate(class_names)
    ]
    return "\n".join(
        [
            "<View>",
            f'  <Image name={quoteattr(to_name)} value="$image" zoom="true"/>',
            f"  <{tag} name={quoteattr(from_name)} toName={quoteattr(to_name)}>",
            *labels,
            f"  </{tag}>",
            "</View>",
            "",
        ]
    )


def _label(name: str) -> str:
    """A class name as a label, equal in tasks and interface."""
    return re.sub(_NO_XML, "\ufffd", name)


def image_address(prefix: str, name: str) -> str:
    """The address of an image: `prefix` and its file name, quoted unless the prefix is of a bucket (s3://).

    A slash comes between them if the prefix ends in neither `/` nor `=`.
    """
    if prefix and not prefix.endswith(("/", "=")):
        prefix += "/"
    web = "://" not in prefix or prefix.startswith(("http://", "https://"))
    return prefix + (quote(name, errors="surrogateescape") if web else name)


def brush_rle(region: Region, height: int, width: int) -> list[int]:
    """A mask in Label Studio's encoding of brush masks, as bytes.

    It is that of https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack, for the bytes of an RGBA
    image row by row, all four 255 in the mask: the number of bytes (32 bits), the bits of a value and of the
    four sizes of runs, then the runs: a set bit, the index of the size, the length less one, the value.

    Raises:
        YolactError: the image has more pixels than it can express, 2**30.
    """
    if 4 * height * width > _MOST_VALUES:
        raise YolactError(
            f"Label Studio's brush masks hold at most {_MOST_VALUES // 4:,} pixels, and the image has"
            f" {width} x {height}; write polygons instead"
        )
    lengths, values = _split(*_runs(region, height, width))
    size = np.searchsorted(1 << _SIZES, lengths)  # the index of the smallest one that holds it
    bits = _SIZES[size]
    # From the left: 1, index (2 bits), length - 1, value (8 bits).
    codes = (((4 | size) << bits | (lengths - 1)) << 8) | values
    total = 3 + bits + 8
    columns = np.arange(total.max())
    shift = total[:, None] - 1 - columns
    used = shift >= 0
    body = ((codes[:, None] >> np.maximum(shift, 0)) & 1)[used].astype(np.uint8)
    head = f"{4 * height * width:032b}{7:05b}" + "".join(f"{one - 1:04b}" for one in _SIZES)
    packed: list[int] = np.packbits(np.concatenate([np.array(list(head), np.uint8), body])).tolist()
    return packed


def _values(
    instance: Instance, height: int, width: int, polygons: bool, tolerance: float
) -> list[dict[str, Any]]:
    """The values of an instance's regions, without labels."""
    if not polygons:
        rle = brush_rle(instance.region(height, width), height, width)
        return [{"format": "rle", "rle": rle}]
    scale = 100 / np.array([width, height])
    return [
        {"points": np.minimum(points * scale, 100).round(6).tolist(), "closed": True}
        for points in instance.outlines(tolerance)
    ]


def _runs(region: Region, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the runs of an RGBA image's bytes, row by row, and their values, alternating from 0 on."""
    if not len(region.edges):
        return np.array([4 * height * width]), np.array([0])
    padded = np.zeros((region.height, region.width + 2), np.int8)
    padded[:, 1:-1] = region.mask
    rows, columns = np.diff(padded, axis=1).nonzero()  # starts and ends of runs, row by row
    edges, times = np.unique((rows + region.y) * width + columns + region.x, return_counts=True)
    edges = edges[times == 1]  # a run that goes on at the start of the next row is one
    return np.diff(4 * edges, prepend=0, append=4 * height * width), np.arange(len(edges) + 1) % 2 * 255


def _split(lengths: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of at most `_LONGEST` values, none of them empty."""
    pieces = -(-lengths // _LONGEST)
    split = np.full(pieces.sum(), _LONGEST)
    last = np.cumsum(pieces)[pieces > 0] - 1
    split[last] = (lengths - (pieces - 1) * _LONGEST)[pieces > 0]
    return split, np.repeat(values, pieces)
