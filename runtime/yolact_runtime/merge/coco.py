"""COCO results of a shard: the files of masks, of boxes, and of images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from yolact_runtime.errors import YolactError
from yolact_runtime.merge.json_stream import JsonStream
from yolact_runtime.merge.order import Record
from yolact_runtime.merge.shards import ShardFile, ascents, check_categories, pairs
from yolact_runtime.sinks.coco import coco_paths
from yolact_runtime.sinks.jsonl import is_line
from yolact_runtime.sources.shard import Shard
from yolact_runtime.untrusted import beyond, limit

_SAID = "info", "failed", "unlisted", "categories"  # besides the images


def open_coco(path: Path) -> ShardFile:
    """Look through the list of images of a shard's COCO results.

    Args:
        path: The file of masks; the others are those that belong to it.

    Raises:
        YolactError: they cannot be read, are of no shard, or damaged.
    """
    listed = coco_paths(path)[2]
    others: dict[str, Any] = {}
    starts, images = ascents(listed, enumerate(image["index"] for image in _images(listed, others)))
    shard = Shard.from_json(_inside(others.get("info"), "shard"))
    if shard is None:
        raise YolactError(f"{path} is of no shard: {listed} does not say which")
    counts = others.get("failed"), others.get("unlisted")
    failed, unlisted = (count if type(count) is int and count >= 0 else -1 for count in counts)
    if failed < 0 or unlisted < 0:
        raise YolactError(f"{listed} is damaged: it lacks the numbers of images that are left out")
    categories = check_categories(listed, others.get("categories"))
    streams = [partial(_records, path, shard, *ends) for ends in pairs(starts, images)]
    done = images + failed + unlisted
    return ShardFile(path, shard, done, list(streams), failed, unlisted, categories)


def _inside(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _images(path: Path, others: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The entries of a list of images; at the end, `others` has what else is said."""
    with JsonStream(path) as stream:
        for name in stream.members():
            if name != "images":
                value = stream.value()
                if name in _SAID:
                    others[name] = value
                continue
            if _inside(others.get("info"), "shard") is None:
                raise YolactError(
                    f"{path} is of no shard: it was written without --shard, or by another program"
                )
            for image in stream.items("file_name"):
                if not _is_image(image):
                    raise stream.fault("an entry of an image lacks something")
                yield image
        stream.end()


def _is_image(value: Any) -> bool:
    """Whether a value is an entry of the list of images of a shard."""
    if not isinstance(value, dict) or not isinstance(value.get("file_name"), str):
        return False
    numbers = [value.get(key) for key in ("id", "index", "height", "width")]
    return all(type(number) is int and abs(number) < 1 << 63 for number in numbers)


def _records(path: Path, shard: Shard, start: int, end: int | None) -> Iterator[Record]:
    """The images from one position of the list to another, as lines of JSON Lines."""
    masks, boxes, listed = coco_paths(path)
    with JsonStream(masks) as mask_stream, JsonStream(boxes) as box_stream:
        found = _entries(masks, mask_stream, boxes, box_stream)
        entry = next(found, None)
        position = -1
        for position, image in enumerate(_images(listed, {})):
            detections = []
            while entry is not None and entry["image_id"] == image["id"]:
                detections.append(entry)
                if len(detections) > limit("candidates"):
                    raise YolactError(f"{masks}: an image has more detections than {beyond('candidates')}")
                entry = next(found, None)
            if position < start:
                continue
            if end is not None and position >= end:
                return
            yield image["index"], _line(listed, shard, image, detections)
        if entry is not None:
            raise YolactError(f"{masks}: image {entry['image_id']} is not in {listed}, or not in its order")


def _entries(
    masks: Path, mask_stream: JsonStream, boxes: Path, box_stream: JsonStream
) -> Iterator[dict[str, Any]]:
    """The detections, each with its mask and, if that differs, the score of its box."""
    box_items = box_stream.items()
    for mask in mask_stream.items():
        box: Any = next(box_items, None)
        right = isinstance(mask, dict) and isinstance(box, dict) and "image_id" in mask and "score" in mask
        if not right or any(mask.get(key) != box.get(key) for key in ("image_id", "category_id", "bbox")):
            raise YolactError(f"{masks} and {boxes} do not have the same detections")
        yield mask if mask["score"] == box.get("score") else {**mask, "box_score": box.get("score")}
    if next(box_items, None) is not None:
        raise YolactError(f"{masks} and {boxes} do not have the same detections")
    mask_stream.end()
    box_stream.end()


def _line(
    path: Path, shard: Shard, image: dict[str, Any], detections: list[dict[str, Any]]
) -> dict[str, Any]:
    """An image and its detections as a line of JSON Lines, checked."""
    line = {
        "image": image["file_name"],
        "index": image["index"],
        "image_id": image["id"],
        "file_name": image["file_name"],
        "height": image["height"],
        "width": image["width"],
        "detections": detections,
    }
    if not shard.has(image["index"]) or not is_line(line):
        raise YolactError(f"{path} and the files next to it are damaged at image {image['id']}")
    return line
