"""Convert mask images: Pascal VOC's layout, and a folder of masks for each image."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from yolact.dataset_tools.builder import (
    CocoBuilder,
    Source,
    binary_mask,
    clean_label,
    files_below,
    first_picture,
    key_of,
    read_plane,
)
from yolact.registry import published_classes
from yolact_runtime.errors import UsageError, YolactError, counted, first_line
from yolact_runtime.files import is_file, is_folder, read_text
from yolact_runtime.sources.folders import IMAGES
from yolact_runtime.typed import first_few
from yolact_runtime.untrusted import beyond, limit, read_bytes

log = logging.getLogger(__name__)

# Colour of the pixels that Pascal's annotators left undecided, at the borders of objects.
_VOC_VOID_COLOUR = 224 << 16 | 224 << 8 | 192


def from_voc(source: Source) -> CocoBuilder:
    """Convert Pascal VOC's layout, which is also that of SBD ("semantic boundaries") as PNG files.

    `SegmentationObject/*.png` hold the numbers of instances, `SegmentationClass/*.png` those of classes; the
    images are in `JPEGImages/`. Void pixels belong to no instance. An instance has the class of most of its
    pixels. CVAT's "Segmentation mask" has colours instead of numbers, and their classes in `labelmap.txt`.
    """
    objects, classes = (source.folder / name for name in ("SegmentationObject", "SegmentationClass"))
    for folder in (objects, classes):
        if not is_folder(folder):
            hint = "; convert SBD's .mat files to PNG first" if any(source.folder.rglob("*.mat")) else ""
            raise YolactError(f"{source.folder} has no folder {folder.name}/{hint}")
    labelmap = _read_labelmap(source.folder / "labelmap.txt")
    pascal = published_classes("pascal_sbd")
    names = source.names or {number: name for number, (name, _) in labelmap.items()}
    names = names or dict(zip(pascal.category_ids, pascal.names, strict=True))
    codes = {_pascal_colour(number): number for number in names if number < 1 << 24}
    codes |= {colour: number for number, (_, colour) in labelmap.items() if colour is not None}
    builder = CocoBuilder(names)
    images = source.image_files(source.folder / "JPEGImages")
    kinds = {key_of(path, classes): path for path in files_below(classes, [".png"])}
    wanted = {}
    for path in files_below(objects, [".png"]):
        key = key_of(path, objects)
        if not source.wants(key):
            continue
        if key not in images:
            source.faults.append(f"{path} has no image in {source.images}")
        elif key not in kinds:
            source.faults.append(f"{path} has no class image in {classes}")
        else:
            wanted[images[key]] = (path, kinds[key])
    lacking = [key for key, image in images.items() if image not in wanted]
    if source.only is not None and lacking:
        log.warning("%s of the list without masks: %s", counted(len(lacking), "image"), first_few(lacking))
    for image, size in source.measured(wanted):
        try:
            _add_voc(builder, image, size, wanted[image], names, codes, source)
        except YolactError as error:
            source.faults.append(str(error))
    return builder


def _add_voc(
    builder: CocoBuilder,
    image: Path,
    size: tuple[int, int],
    files: tuple[Path, Path],
    names: Mapping[int, str],
    colours: Mapping[int, int],
    source: Source,
) -> None:
    """Add an image of Pascal VOC's layout.

    Args:
        builder, source: What is built from what.
        image, size: The image with its height and width.
        files: Its masks of instances and of classes.
        names: Class names by number.
        colours: Class numbers by colour 0xRRGGBB.

    Raises:
        YolactError: a mask cannot be read or has another size.
    """
    values = []
    for path in files:
        codes = _read_codes(path, colours if path == files[1] else None)
        if codes.shape != size:
            raise YolactError(
                f"{path} is {codes.shape[1]}x{codes.shape[0]}; {image} is {size[1]}x{size[0]} pixels"
            )
        values.append(codes)
    instances, kinds = values
    objects = _objects(instances, kinds)
    builder.add_image(image.relative_to(source.images or image.parent).as_posix(), *size)
    for starts, lengths, classes in objects:
        known = classes > 0
        found, of = np.unique(classes[known], return_inverse=True)
        counts = np.bincount(of, lengths[known])
        best = int(found[counts.argmax()]) if len(found) else 0
        if best in names:
            builder.add_pixels(names[best], starts, lengths)
        else:
            x, y = divmod(int(starts[0]), size[0])
            source.faults.append(f"{files[1]}: no known class at the instance of {files[0]} at {x}, {y}")


def _objects(instances: np.ndarray, kinds: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The pixels of each instance, by its number, as runs of one class.

    Args:
        instances, kinds: (H, W) numbers of instances and classes.

    Returns:
        For each instance the first pixel of each run (n,), counted down the columns, their lengths (n,) and
        classes (n,).

    Raises:
        YolactError: there are more runs or instances than allowed.
    """
    flat, classes = instances.ravel("F"), kinds.ravel("F")
    changes = flat[1:] != flat[:-1]
    changes |= classes[1:] != classes[:-1]
    if (runs := np.count_nonzero(changes)) > limit("rle"):
        raise YolactError(f"the masks have {runs:,} runs, more than {beyond('rle')}")
    starts = np.append(0, 1 + np.flatnonzero(changes))
    lengths = np.diff(starts, append=flat.size)
    chosen = flat[starts] > 0
    starts, lengths = starts[chosen], lengths[chosen]
    numbers = flat[starts]
    order = np.argsort(numbers, kind="stable")
    cuts = 1 + np.flatnonzero(np.diff(numbers[order]))
    if len(cuts) >= limit("instances"):
        raise YolactError(f"the masks have {len(cuts) + 1:,} instances, more than {beyond('instances')}")
    return [
        (starts[rows], lengths[rows], classes[starts[rows]]) for rows in np.split(order, cuts) if len(rows)
    ]


def _read_codes(path: Path, colours: Mapping[int, int] | None) -> np.ndarray:
    """The numbers (H, W) of a palette or grey PNG; 0 is the background, and so are void pixels.

    OpenCV would return the palette's colours. An image in colours gives `colours` of them, -1 for others; or
    the colours 0xRRGGBB themselves if that is None.

    Raises:
        YolactError: it cannot be read.
    """
    from PIL import Image

    data = read_bytes(path, "mask")
    try:
        first = first_picture(data)
    except ValueError as error:
        raise YolactError(f"{path} {error}") from None
    try:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        with Image.open(io.BytesIO(first), formats=["PNG"]) as image:
            values = np.array(image)  # (H, W), or (H, W, channels)
    except Exception as error:  # Pillow raises whatever a damaged file causes
        raise YolactError(f"cannot read {path}: {first_line(error)}") from error
    if values.ndim == 3 and values.shape[2] == 2:  # grey or palette with alpha
        values = values[:, :, 0]
    if values.ndim == 2:
        if values.dtype.kind == "u":
            values[values == np.iinfo(values.dtype).max] = 0
        return values.view(np.uint8) if values.dtype == bool else values
    codes = np.zeros(values.shape[:2], np.int32)
    for channel in range(3):
        codes <<= 8
        codes |= values[:, :, channel]
    codes[codes == _VOC_VOID_COLOUR] = 0
    if colours is not None:
        table = np.full(1 << 24, -1, np.int32)
        table[0] = 0
        for colour, number in colours.items():
            table[colour] = number if colour else 0
        codes = table[codes]
    return codes


def _pascal_colour(number: int) -> int:
    """The colour 0xRRGGBB that Pascal VOC gives to a number: its bits, dealt to the channels."""
    channels = [
        sum((number >> 3 * step + channel & 1) << 7 - step for step in range(8)) for channel in range(3)
    ]
    return channels[0] << 16 | channels[1] << 8 | channels[2]


def _read_labelmap(path: Path) -> dict[int, tuple[str, int | None]]:
    """Names and colours 0xRRGGBB of the classes in CVAT's `labelmap.txt`, by number; empty without a file.

    Raises:
        YolactError: a line is not `name:r,g,b:parts:actions`.
    """
    classes: dict[int, tuple[str, int | None]] = {}
    if not is_file(path):
        return classes
    lines = read_text(path, "label map", "list_bytes").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    for number, line in enumerate(lines):
        try:
            name, colour, _, _ = line.rsplit(":", 3)
            red, green, blue = bytes(map(int, colour.split(","))) if colour else (0, 0, 0)
            label = clean_label(name)
        except ValueError:
            raise YolactError(f"{path}: {line[:60]!r} is not name:r,g,b:parts:actions") from None
        if number or label != "background":
            classes[number] = label, (red << 16 | green << 8 | blue) if colour else None
    return classes


def from_masks(source: Source) -> CocoBuilder:
    """Convert mask images, one for each instance, in a folder for each image.

    `SOURCE/<image name>/<class>_<number>.png`, or `<class>.png`; other image formats work, too. Pixels above
    half of the brightest belong to the instance, or those that are opaque if there are transparent ones.
    Images without a folder have no instances.

    Raises:
        YolactError: no folder of the images is given, or no folder has the name of one.
    """
    if source.images is None:
        raise UsageError("mask images: give the folder of the images with --images")
    builder = CocoBuilder(source.names)
    images = source.image_files(source.images)
    masks: dict[str, list[Path]] = {}
    for path in files_below(source.folder, IMAGES):
        if path.parent == source.folder:
            raise YolactError(f"{path} is in no folder; the masks of an image are in a folder of its name")
        masks.setdefault(path.parent.relative_to(source.folder).as_posix(), []).append(path)
    by_image: dict[Path, list[Path]] = {}
    for folder, files in masks.items():
        # The folder may have the image's suffix, too.
        key = next((key for key in (folder, _without_suffix(folder)) if key in images), None)
        if key is not None:
            by_image.setdefault(images[key], []).extend(files)
        elif source.wants(folder):
            source.faults.append(f"{source.folder / folder} has no image of its name in {source.images}")
    if not by_image:
        raise YolactError(f"{source.folder} has no folder with masks that has the name of an image")
    for image, size in source.measured(images.values()):
        builder.add_image(image.relative_to(source.images).as_posix(), *size)
        for path in by_image.get(image, []):
            try:
                _add_mask(builder, path, image, size)
            except YolactError as error:
                source.faults.append(str(error))
    return builder


def _without_suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if f"{dot}{suffix}".lower() in IMAGES else name


def _add_mask(builder: CocoBuilder, path: Path, image: Path, size: tuple[int, int]) -> None:
    """Add the instance of a mask image to the last image, of this height and width.

    Raises:
        YolactError: the mask cannot be read or has another size, or its class is unknown.
    """
    mask = binary_mask(read_plane(path))
    if mask.shape != size:
        raise YolactError(f"{path} is {mask.shape[1]}x{mask.shape[0]}; {image} is {size[1]}x{size[0]}")
    if not mask.any():
        log.warning("%s is empty and is left out", path)
        return
    if mask.all():
        log.warning("%s covers the whole image", path)
    try:
        builder.add_mask(clean_label(re.sub(r"[_-]\d+$", "", path.stem)), mask)
    except ValueError as error:
        raise YolactError(f"{path}: {error}") from None
