"""A synthetic dataset of shapes: small enough for a laptop, real enough to show whether training works.

Circles, squares and triangles of any size, turn and texture overlap on noisy backgrounds; colours only lean
towards one for each class. Some shapes have holes; some images hold a crowd of small shapes that is annotated
as one region, some hold nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from yolact.config import DatasetConfig
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import atomic_path, read_json, write_json
from yolact_runtime.untrusted import beyond, limit

SHAPES = ("circle", "square", "triangle")

_DESCRIPTION = "made shapes"

# Shape diameters, and those of the members of a crowd, where the image is 128 pixels wide.
_DIAMETER = (42.0, 92.0)
_CROWD_DIAMETER = (7.0, 12.0)
# Standard deviation of a class's hue, where the classes are 60 apart.
_HUE_SPREAD = 15
# The most shapes in an image: each is drawn, also those that cover others.
_MOST_SHAPES = 1000
# What must stay visible of a shape for it to count as an instance: a share of it, and pixels.
_VISIBLE_SHARE, _VISIBLE_PIXELS = 0.65, 60
# The sides of images, where 1 is the typical one.
_SMALLER, _LARGER = 0.8, 1.2


class _Patch(NamedTuple):
    """A mask within a rectangle of its image: left column, top row, and (h, w) bool; nothing is outside."""

    x: int
    y: int
    mask: np.ndarray

    @property
    def inside(self) -> tuple[slice, slice]:
        """The rows and columns of the rectangle."""
        height, width = self.mask.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)

    def without(self, other: _Patch) -> _Patch:
        """What another mask does not cover."""
        y, x = max(self.y, other.y), max(self.x, other.x)
        bottom = min(self.y + self.mask.shape[0], other.y + other.mask.shape[0])
        right = min(self.x + self.mask.shape[1], other.x + other.mask.shape[1])
        if bottom <= y or right <= x:
            return self
        left = self.mask.copy()
        cover = other.mask[y - other.y : bottom - other.y, x - other.x : right - other.x]
        left[y - self.y : bottom - self.y, x - self.x : right - self.x] &= ~cover
        return _Patch(self.x, self.y, left)

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the mask's pixels in the image."""
        y, x = np.nonzero(self.mask)
        return y + self.y, x + self.x


@dataclass
class _Item:
    """A future annotation: category index, area of the full mask, what is visible, and the outline."""

    label: int
    full: int
    visible: _Patch
    outline: np.ndarray | None
    crowd: bool = False

    def survives(self, cover: _Patch) -> bool:
        """Whether enough stays visible under `cover`."""
        left = self.visible.without(cover)
        if left is self.visible:
            return True
        return int(left.mask.sum()) >= max(_VISIBLE_PIXELS, _VISIBLE_SHARE * self.full)


@dataclass
class _Scene:
    image: np.ndarray
    items: list[_Item] = field(default_factory=list)


def make_shapes_dataset(
    root: str | Path,
    train_images: int = 300,
    val_images: int = 60,
    image_size: tuple[int, int] = (144, 180),
    seed: int = 0,
    category_ids: Sequence[int] = (1, 4, 9),
    max_instances: int = 4,
    crowd_share: float = 0.12,
    empty_share: float = 0.04,
    diameter: tuple[float, float] | None = None,
) -> DatasetConfig:
    """Write a shapes dataset in COCO's layout: `train/`, `val/`, `annotations/instances_{train,val}.json`.

    The same arguments give the same pixels and annotations. Outlines that nothing covers are polygons, all
    others RLE. The annotation files are written last: where they are, the images are.

    Args:
        root: folder to write to; an older shapes dataset in it is replaced.
        train_images, val_images: how many images, 1 or more.
        image_size: typical height and width in pixels, each at least 48; images vary by a fifth around it.
        seed: of everything random.
        category_ids: one for each of circle, square, triangle (or of the first one or two of them).
        max_instances: the most shapes in an image, besides crowds; 1..1000.
        crowd_share: share of the images with a crowd region.
        empty_share: share of the images without any shape.
        diameter: smallest and largest diameter of the shapes, in pixels; None for shapes that grow with the
            image and fill a third to two thirds of its width.

    Returns:
        The dataset's paths.

    Raises:
        UsageError: an argument out of its range.
        YolactError: `root` cannot be written to, or holds files that are not of a shapes dataset.
    """
    root = Path(root)
    if seed < 0:
        raise UsageError(f"shapes: seed {seed}; it must be 0 or more")
    _check(train_images, val_images, image_size, category_ids, max_instances, diameter)
    paths = {
        f"{split}_{kind}": path
        for split in ("train", "val")
        for kind, path in (
            ("images", root / split),
            ("annotations", root / "annotations" / f"instances_{split}.json"),
        )
    }
    for number, (split, count) in enumerate((("train", train_images), ("val", val_images))):
        scenes = (
            _make_scene(
                np.random.default_rng((seed, number, index)),
                *(image_size, len(category_ids), max_instances, crowd_share, empty_share, diameter),
            )
            for index in range(count)
        )
        images, annotations = paths[f"{split}_images"], paths[f"{split}_annotations"]
        try:
            _clear(images, annotations)
            content = _write_images(images, scenes, category_ids)
        except OSError as error:
            raise YolactError(f"cannot write {images}: {error.strerror or error}") from error
        content["info"] = {"description": _DESCRIPTION, "seed": seed}
        write_json(annotations, content)
    files: dict[str, Any] = {key: str(path) for key, path in paths.items()}
    return DatasetConfig(name="shapes", **files)


def _clear(images: Path, annotations: Path) -> None:
    """Remove an older shapes dataset, and nothing that is not one."""
    if annotations.exists():
        content = read_json(annotations)
        info = content.get("info") if isinstance(content, dict) else None
        if not (isinstance(info, dict) and info.get("description") == _DESCRIPTION):
            raise YolactError(f"{annotations} is not of a shapes dataset and is kept; choose another folder")
    images.mkdir(parents=True, exist_ok=True)
    old = list(images.iterdir())
    # An interrupted run may have left a temporary file, whose name begins with a dot.
    own = re.compile(r"\d{6}\.png|\.\d{6}\.\w+\.png")
    foreign = next((path for path in old if not own.fullmatch(path.name)), None)
    if foreign:
        raise YolactError(f"{foreign} is not of a shapes dataset and is kept; choose another folder")
    annotations.unlink(missing_ok=True)
    for path in old:
        path.unlink()


def _write_images(folder: Path, scenes: Iterable[_Scene], category_ids: Sequence[int]) -> dict[str, Any]:
    """Write the scenes' images; returns what the annotation file says of them."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, start=1):
        height, width = scene.image.shape[:2]
        name = f"{image_id:06d}.png"
        content = cv2.imencode(".png", scene.image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content.tobytes())
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for item in scene.items:
            numbers = {"id": len(annotations) + 1, "image_id": image_id}
            category = int(category_ids[item.label])
            annotations.append({**numbers, "category_id": category, **_describe(item, height, width)})
    categories = [
        {"id": int(category), "name": name, "supercategory": "shape"}
        for category, name in zip(category_ids, SHAPES, strict=False)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _check(
    train_images: int,
    val_images: int,
    image_size: tuple[int, int],
    category_ids: Sequence[int],
    max_instances: int,
    diameter: tuple[float, float] | None,
) -> None:
    """Raise a UsageError for an argument of `make_shapes_dataset` that is out of range."""
    if min(train_images, val_images, max_instances) < 1:
        raise UsageError(f"shapes: {train_images} and {val_images} images of {max_instances}; 1 or more each")
    if max_instances > _MOST_SHAPES:
        raise UsageError(f"shapes: {max_instances} shapes in an image; at most {_MOST_SHAPES}")
    if min(image_size) < 48:
        raise UsageError(f"shapes: image size {image_size}; height and width must be at least 48")
    if image_size[0] * image_size[1] * _LARGER**2 > limit("pixels"):
        raise UsageError(f"shapes: image size {image_size}; more pixels than {beyond('pixels')}")
    if diameter is not None and not 10 <= diameter[0] <= diameter[1] <= min(image_size) / 2:
        raise UsageError(
            f"shapes: diameters {diameter}; the smallest first, from 10 pixels to half of the image's side"
        )
    if not 1 <= len(category_ids) <= len(SHAPES) or len(set(category_ids)) != len(category_ids):
        raise UsageError(f"shapes: category ids {tuple(category_ids)}; one to three different numbers")


def _make_scene(
    rng: np.random.Generator,
    image_size: tuple[int, int],
    num_classes: int,
    max_instances: int,
    crowd_share: float,
    empty_share: float,
    diameter: tuple[float, float] | None,
) -> _Scene:
    """One image: a background, perhaps a crowd, up to `max_instances` shapes, blur and noise."""
    height, width = (round(side * rng.uniform(_SMALLER, _LARGER)) for side in image_size)
    scene = _Scene(background(rng, height, width))
    sizes = diameter or (_DIAMETER[0] * _scale(scene.image), _DIAMETER[1] * _scale(scene.image))
    kind = rng.random()
    if kind >= empty_share:
        if kind < empty_share + crowd_share:
            _add_crowd(rng, scene, num_classes)
        for _ in range(int(rng.integers(1, max_instances + 1))):
            _add_instance(rng, scene, num_classes, sizes)
    # Soft edges and sensor noise, over shapes and background.
    image = cv2.GaussianBlur(scene.image, (3, 3), 0.6).astype(np.int16)
    image += rng.integers(-9, 10, image.shape, np.int16)
    scene.image = image.clip(0, 255).astype(np.uint8)
    return scene


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Dull clouds of two sizes and a few faint lines: structure everywhere, but no strong colours."""
    tone = rng.uniform(70, 170, 3) * 0.3 + rng.uniform(70, 170) * 0.7
    image = np.tile(tone.astype(np.float32), (height, width, 1))
    for cells, strength in ((4, 14), (24, 12)):
        noise = rng.normal(0, strength, (cells, cells, 1)) + rng.normal(0, strength / 4, (cells, cells, 3))
        image += cv2.resize(noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(int(rng.integers(0, 7))):
        ends = (rng.random((2, 2)) * (width, height)).astype(int).tolist()
        shade = (tone + rng.uniform(-40, 40)).tolist()
        cv2.line(image, ends[0], ends[1], shade, int(rng.integers(1, 4)), cv2.LINE_AA)
    return image.clip(0, 255).astype(np.uint8)


def outline_of(rng: np.random.Generator, label: int, diameter: float) -> np.ndarray:
    """Corner points (n, 2) of a shape around the origin."""
    corners = (40, 4, 3)[label]
    # The circle around a square or triangle says less of how large it looks.
    diameter *= (1.0, 1.2, 1.35)[label]
    turn = rng.uniform(0, 2 * math.pi)
    angles = turn + 2 * math.pi * np.arange(corners) / corners
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * diameter / 2
    # Not quite regular, so that no template fits all: squashed across one of the sides.
    squash = rng.uniform(0.75, 1.0)
    axis = np.array([math.cos(turn + math.pi / corners), math.sin(turn + math.pi / corners)])
    return points - (1 - squash) * np.outer(points @ axis, axis)


def rasterise(outline: np.ndarray, height: int, width: int) -> _Patch:
    """The outline's mask, by the rule by which COCO polygons are read."""
    rles = coco_mask.frPyObjects([outline.reshape(-1).tolist()], height, width)
    x, y, columns, rows = coco_mask.toBbox(rles)[0].astype(int).tolist()
    mask = coco_mask.decode(rles)[y : y + rows, x : x + columns, 0]
    return _Patch(x, y, mask.astype(bool))


def paint(rng: np.random.Generator, image: np.ndarray, patch: _Patch, label: int) -> None:
    """Fill the mask with a strong colour and a texture: plain, stripes, checks or grain."""
    height, width = image.shape[:2]
    # Each class has a usual hue, as real things do. It is only a hint: the hues of the classes overlap.
    hue = int(rng.normal(label * 60, _HUE_SPREAD)) % 180
    saturation, value = rng.integers(170, 256), rng.integers(130, 256)
    colour = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    y, x = patch.pixels()
    period, angle = rng.uniform(5, 12), rng.uniform(0, math.pi)
    along = (x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period
    across = (y * math.cos(angle) - x * math.sin(angle)) * 2 * math.pi / period
    texture = int(rng.integers(4))
    if texture == 0:
        pattern = np.zeros(x.shape)
    elif texture == 3:
        pattern = rng.normal(0, 0.5, x.shape)
    else:
        pattern = np.sin(along) * (np.sin(across) if texture == 2 else 1)
    light = 1 + rng.uniform(0.1, 0.3) * pattern + rng.uniform(-0.25, 0.25) * (x / width + y / height - 1)
    image[y, x] = (colour * light[:, None]).clip(0, 255).astype(np.uint8)


def _scale(image: np.ndarray) -> float:
    """Image pixels for one pixel of an image of 128 x 128."""
    return math.sqrt(image.shape[0] * image.shape[1]) / 128


def _add_instance(
    rng: np.random.Generator, scene: _Scene, num_classes: int, diameters: tuple[float, float]
) -> None:
    """Put a shape on top, where one can be found that hides no earlier one too much."""
    height, width = scene.image.shape[:2]
    for _ in range(10):
        label = int(rng.integers(num_classes))
        low, high = diameters
        diameter = rng.uniform(low, high)
        # Up to a fifth of a shape may reach out of the image, more where this is narrower than the shape.
        margin = min(0.3 * diameter, height / 2, width / 2)
        lowest, highest = np.array([margin, margin]), np.array([width - margin, height - margin])
        centre = rng.uniform(lowest, highest)
        if scene.items and rng.random() < 0.25:
            y, x = scene.items[-1].visible.pixels()
            centre = rng.normal((x.mean(), y.mean()), 0.6 * diameter).clip(lowest, highest)
        outline = (outline_of(rng, label, diameter) + centre).round(2)
        patch = rasterise(outline, height, width)
        whole = bool((outline.min(0) >= 0).all() and (outline.max(0) <= (width, height)).all())
        if diameter > low * 1.8 and rng.random() < 0.1:
            hole = (outline - centre) * rng.uniform(0.3, 0.45) + centre
            patch = patch.without(rasterise(hole, height, width))
            whole = False
        area = int(patch.mask.sum())
        if area < _VISIBLE_PIXELS or not all(item.survives(patch) for item in scene.items):
            continue
        for item in scene.items:
            left = item.visible.without(patch)
            if left.mask.sum() < item.visible.mask.sum():
                item.visible, item.outline = left, None
        paint(rng, scene.image, patch, label)
        scene.items.append(_Item(label, area, patch, outline if whole else None))
        return


def _add_crowd(rng: np.random.Generator, scene: _Scene, num_classes: int) -> None:
    """A cluster of many small shapes of one class, annotated together."""
    height, width = scene.image.shape[:2]
    label = int(rng.integers(num_classes))
    union = np.zeros((height, width), bool)
    spread = rng.uniform(10, 16) * _scale(scene.image)
    middle = rng.uniform((0.25 * width, 0.25 * height), (0.75 * width, 0.75 * height))
    for _ in range(int(rng.integers(9, 20))):
        diameter = rng.uniform(*_CROWD_DIAMETER) * _scale(scene.image)
        outline = outline_of(rng, label, diameter) + rng.normal(middle, spread)
        patch = rasterise(outline, height, width)
        if patch.mask.any():
            paint(rng, scene.image, patch, label)
            union[patch.inside] |= patch.mask
    scene.items.append(_Item(label, int(union.sum()), _Patch(0, 0, union), None, crowd=True))


def _describe(item: _Item, height: int, width: int) -> dict[str, Any]:
    """The annotation's segmentation, area, bbox and iscrowd, in an image of that size."""
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[item.visible.inside] = item.visible.mask
    rle = coco_mask.encode(mask)
    if item.outline is not None:
        segmentation: Any = [item.outline.reshape(-1).tolist()]
    elif item.crowd:
        segmentation = {"size": [height, width], "counts": _counts(mask.view(bool))}
    else:
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    return {
        "segmentation": segmentation,
        "area": int(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "iscrowd": int(item.crowd),
    }


def _counts(mask: np.ndarray) -> list[int]:
    """Uncompressed RLE of a mask (as COCO's crowds have): column by column, background first."""
    flat = mask.reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs
