"""Small valid inputs of every reader, made by code, each with the command that reads it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import cv2
import mutate
import numpy as np
from fake_onnx import NATIVE, RUNTIME, native_arrays, runtime_arrays, write_onnx

Mutator = Callable[[bytes, Random, bytes], bytes]
INFER = ("yolact-infer", "--engine", "{shared}/m.onnx", "--workers", "1", "--streams", "1", "--threads", "1")
JSONL = ("--no-overlay", "--no-json", "--jsonl", "{run}/out/a.jsonl")


@dataclass
class Seed:
    """A valid input: its files, the one to change, how, and the command.

    Attributes:
        victim: Path of the file to change, in the folder `in`.
        data: Its content.
        argv: The command; {run} is the run's folder and {shared} that of files that stay.
        mutator: Gives another content.
        others: More files of the folder `in`.
        stdin: File for standard input.
        words: Whether the command line is changed, not the file.
        good: Exit code of the valid input.
    """

    victim: str
    data: bytes
    argv: tuple[str, ...]
    mutator: Mutator = mutate.mutate_bytes
    others: dict[str, bytes] = field(default_factory=dict)
    stdin: str | None = None
    words: bool = False
    good: int = 0


def picture(height: int = 20, width: int = 30, channels: int = 3) -> np.ndarray:
    """An image with a bright square, which the engines find."""
    image = np.random.default_rng(0).integers(0, 60, (height, width, channels)).astype(np.uint8)
    image[4:12, 5:20] = 255
    return image


def encoded(suffix: str, image: np.ndarray | None = None, *options: int) -> bytes:
    """An image as a file's bytes."""
    return cv2.imencode(suffix, picture() if image is None else image, options)[1].tobytes()


def shared_files(folder: Path) -> None:
    """Write what commands need besides what is changed: engines and an image."""
    folder.mkdir(parents=True, exist_ok=True)
    write_onnx(folder / "m.onnx", native_arrays(), NATIVE)
    write_onnx(folder / "runtime.onnx", runtime_arrays(), RUNTIME)
    (folder / "a.png").write_bytes(encoded(".png"))


# Images


def images() -> dict[str, tuple[bytes, Mutator]]:
    """Bytes and mutator of an image in each format that can be written here."""
    found: dict[str, tuple[bytes, Mutator]] = {}
    plain = {
        "a.png": (".png", mutate.mutate_png),
        "a.jpg": (".jpg", mutate.mutate_jpeg),
        "a.tif": (".tif", mutate.mutate_tiff),
        "a.bmp": (".bmp", mutate.mutate_bytes),
        "a.webp": (".webp", mutate.mutate_bytes),
        "a.ppm": (".ppm", mutate.mutate_lines),
        "a.jp2": (".jp2", mutate.mutate_bytes),
        "a.gif": (".gif", mutate.mutate_bytes),
        "a.avif": (".avif", mutate.mutate_bytes),
    }
    for name, (suffix, mutator) in plain.items():
        image = picture(96, 128) if suffix == ".jp2" else picture()
        try:
            found[name] = encoded(suffix, image), mutator
        except cv2.error:  # not in this build of OpenCV
            continue
    deep = picture().astype(np.uint16) * 257
    found["deep.png"] = encoded(".png", deep), mutate.mutate_png
    found["deep.tif"] = encoded(".tif", deep), mutate.mutate_tiff
    found["float.tif"] = encoded(".tif", picture().astype(np.float32) / 255), mutate.mutate_tiff
    found["alpha.png"] = encoded(".png", picture(channels=4)), mutate.mutate_png
    found["progressive.jpg"] = (
        encoded(".jpg", None, cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
        mutate.mutate_jpeg,
    )
    for name, data in _pillow_images():
        found[name] = (
            data,
            {"tif": mutate.mutate_tiff, "jpg": mutate.mutate_jpeg}.get(
                name.rpartition(".")[2], mutate.mutate_bytes
            ),
        )
    return found


def _pillow_images() -> Iterator[tuple[str, bytes]]:
    try:
        from PIL import Image
    except ImportError:
        return
    image = Image.fromarray(picture()[..., ::-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    forms: list[tuple[str, str, dict[str, object]]] = [
        ("turned.jpg", "JPEG", {"exif": exif}),
        ("lzw.tif", "TIFF", {"compression": "tiff_lzw"}),
        ("deflate.tif", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("jpeg.tif", "TIFF", {"compression": "jpeg"}),
    ]
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
        forms.append(("a.heic", "HEIF", {}))
    except ImportError:
        pass
    for name, form, options in forms:
        buffer = io.BytesIO()
        try:
            image.save(buffer, form, **options)
        except (OSError, KeyError, ValueError):
            continue
        yield name, buffer.getvalue()


def image_seeds() -> Iterator[Seed]:
    good = {"in/zz.png": encoded(".png")}
    for name, (data, mutator) in images().items():
        yield Seed(name, data, (*INFER, "{run}/in", *JSONL), mutator, others=good)


# Annotation files


def annotations() -> dict[str, object]:
    """A COCO file with each form of segmentation."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(picture()[..., 0] > 200))
    packed = {"size": rle["size"], "counts": rle["counts"].decode()}
    plain = {"size": [20, 30], "counts": [100, 50, 450]}
    polygon = [[5.0, 4.0, 20.0, 4.0, 20.0, 12.0, 5.0, 12.0]]
    box = {"bbox": [5, 4, 15, 8], "area": 120.0, "image_id": 1}
    return {
        "info": {"description": "x"},
        "licenses": [],
        "images": [
            {"id": 1, "file_name": "a.png", "height": 20, "width": 30},
            {"id": 2, "file_name": "b.png", "height": 20, "width": 30},
        ],
        "categories": [
            {"id": 0, "name": "cat", "supercategory": "x"},
            {"id": 7, "name": "dog"},
            {"id": 90, "name": "bird"},
        ],
        "annotations": [
            {"id": 1, "category_id": 0, "iscrowd": 0, "segmentation": polygon, **box},
            {"id": 2, "category_id": 7, "iscrowd": 0, "segmentation": packed, **box},
            {"id": 3, "category_id": 7, "iscrowd": 1, "segmentation": plain, **box},
            {"id": 4, "category_id": 90, "iscrowd": 0, "segmentation": polygon * 2, **box, "image_id": 2},
        ],
    }


def annotation_seeds() -> Iterator[Seed]:
    data = mutate.dump_json(annotations())
    others = {"in/a.png": encoded(".png"), "in/b.png": encoded(".png")}
    file = "{run}/in/a.json"
    tool = "yolact-data"
    commands: list[tuple[str, ...]] = [
        (tool, "check", file, "--images", "{run}/in"),
        (tool, "check", file, "--json", "{run}/out/findings.json"),
        (tool, "fix", file, "{run}/out/fixed.json"),
        (tool, "show", file, "--images", "{run}/in", "--output", "{run}/out", "--config", "yolact_tiny"),
        ("yolact-eval", "--engine", "{shared}/m.onnx", "--images", "{run}/in", "--annotations", file),
        (*INFER, "{run}/in/b.png", "--annotations", file, *JSONL),
    ]
    for argv in commands:
        yield Seed("a.json", data, argv, mutate.mutate_json, others)


READERS: dict[str, Callable[[], Iterator[Seed]]] = {
    "images": image_seeds,
    "annotations": annotation_seeds,
}
