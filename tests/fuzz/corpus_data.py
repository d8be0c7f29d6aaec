"""Small valid images, videos, annotation files and data sets."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

import cv2
import mutate
import mutate_images
import numpy as np

Mutator = Callable[[bytes, Random, bytes], bytes]
INFER = ("yolact-infer", "--engine", "{shared}/m.onnx", "--workers", "1", "--streams", "1", "--threads", "1")
_TRAIN = (
    "yolact-train --save-folder {run}/out --device cpu --workers 0 --validate-every 0 --batch-size 1"
    " --no-autoscale"
)
TRAIN = tuple(_TRAIN.split())
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
        copies: More files that hold the victim's content, each changed in another way.
        words: Whether the command line is changed, not the file.
        good: Exit code of the valid input.
    """

    victim: str
    data: bytes
    argv: tuple[str, ...]
    mutator: Mutator = mutate.mutate_bytes
    others: dict[str, bytes] = field(default_factory=dict)
    stdin: str | None = None
    copies: tuple[str, ...] = ()
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


# Images


def images() -> dict[str, tuple[bytes, Mutator]]:
    """Bytes and mutator of an image in each format that can be written here."""
    found: dict[str, tuple[bytes, Mutator]] = {}
    plain = {
        "a.png": (".png", mutate_images.mutate_png),
        "a.jpg": (".jpg", mutate_images.mutate_jpeg),
        "a.tif": (".tif", mutate_images.mutate_tiff),
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
    found["deep.png"] = encoded(".png", deep), mutate_images.mutate_png
    found["deep.tif"] = encoded(".tif", deep), mutate_images.mutate_tiff
    found["float.tif"] = encoded(".tif", picture().astype(np.float32) / 255), mutate_images.mutate_tiff
    found["alpha.png"] = encoded(".png", picture(channels=4)), mutate_images.mutate_png
    found["progressive.jpg"] = (
        encoded(".jpg", None, cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
        mutate_images.mutate_jpeg,
    )
    for name, data in _pillow_images():
        found[name] = (
            data,
            {"tif": mutate_images.mutate_tiff, "jpg": mutate_images.mutate_jpeg}.get(
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
        argv = (*INFER, "{run}/in", *JSONL)
        copies = tuple(f"{number}-{name}" for number in range(7))
        yield Seed(name, data, argv, mutator, good, copies=copies, good=int(name == "float.tif"))


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
        (tool, "fix", file, "--output", "{run}/out/fixed.json"),
        (tool, "show", file, "--images", "{run}/in", "--output", "{run}/out", "--config", "yolact_tiny"),
        ("yolact-eval", "--engine", "{shared}/m.onnx", "--images", "{run}/in", "--annotations", file),
        (*INFER, "{run}/in/b.png", "--annotations", file, *JSONL),
    ]
    for argv in commands:
        yield Seed("a.json", data, argv, mutate.mutate_json, others)


def video_seeds() -> Iterator[Seed]:
    try:
        import av  # noqa: F401
        import videos
    except ImportError:
        return
    forms = {
        "a.mp4": {}, "a.mkv": {}, "a.avi": {"codec": "mpeg4"}, "a.ts": {}, "a.mov": {"sound": "aac"},
        "a.webm": {"codec": "libvpx", "options": {}}, "b.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    }  # fmt: skip
    containers = {"a.ts": "mpegts", "a.mkv": "matroska"}
    for name, options in forms.items():
        buffer = io.BytesIO()
        form = containers.get(name, name.rpartition(".")[2])
        try:
            videos.write(buffer, videos.shades(6), container=form, **options)
        except (ValueError, OSError):  # no such encoder in this build
            continue
        yield Seed(name, buffer.getvalue(), (*INFER, "{run}/in/" + name, *JSONL))
    buffer = io.BytesIO()
    videos.write(buffer, videos.shades(6), container="mp4", sound="aac")
    argv = (*INFER, "{run}/in/a.mp4", "--no-json", "--output", "{run}/out")
    yield Seed("a.mp4", buffer.getvalue(), argv)


# Other annotations


def labelme_seeds() -> Iterator[Seed]:
    png = encoded(".png")
    mask = encoded(".png", (picture(8, 15)[..., 0] > 0).astype(np.uint8) * 255)
    shapes = [
        {"label": "cat", "points": [[5, 5], [25, 5], [25, 15]], "shape_type": "polygon", "group_id": 1},
        {"label": "dog", "points": [[28, 18], [2, 1]], "shape_type": "rectangle", "flags": {}},
        {"label": "dog", "points": [[10, 10], [14, 10]], "shape_type": "circle"},
        {
            "label": "ant", "points": [[5, 4], [19, 11]], "shape_type": "mask",
            "mask": base64.b64encode(mask).decode(),
        },
        {"label": "cat", "points": [[1, 1]], "shape_type": "point"},
    ]  # fmt: skip
    content = {"version": "5", "shapes": shapes, "imagePath": "a.png", "imageHeight": 20, "imageWidth": 30}
    argv = ("yolact-data", "convert", "labelme", "{run}/in", "{run}/out/o.json", "--images", "{run}/out")
    plain = (*argv[:5],)
    yield Seed(
        "a.json",
        mutate.dump_json({**content, "imageData": None}),
        plain,
        mutate.mutate_json,
        {"in/a.png": png},
        copies=tuple(f"{number}.json" for number in range(7)),
    )
    inside = {**content, "imagePath": "b.png", "imageData": base64.b64encode(png).decode()}
    copies = tuple(f"{number}.json" for number in range(3))
    yield Seed("a.json", mutate.dump_json(inside), argv, mutate.mutate_json, copies=copies)


def yolo_seeds() -> Iterator[Seed]:
    labels = b"0 0.1 0.1 0.9 0.1 0.9 0.8 0.1 0.8\n2 0.5 0.5 0.9 0.5 0.9 0.9\n1 0.5 0.5 0.3 0.3\n"
    names = b"path: .\ntrain: images/train\nval: images/train\nnc: 3\nnames: [cat, cow, dog]\n"
    files = {
        "in/labels/train/a.txt": labels,
        "in/data.yaml": names,
        "in/images/train/a.png": encoded(".png"),
        "in/names.txt": b"cat\ncow\ndog\n",
        "in/only.txt": b"images/train/a.png\n",
    }
    tool = ("yolact-data", "convert", "yolo")
    labels_argv = (*tool, "{run}/in/labels", "{run}/out/o.json", "--images", "{run}/in/images", "--names")
    whole = (*tool, "{run}/in/data.yaml", "{run}/out/o")
    yaml_names = (*labels_argv, "{run}/in/data.yaml")
    text_names = (*labels_argv, "{run}/in/names.txt")
    only = (*text_names, "--only", "{run}/in/only.txt")
    for victim, argv, mutator in (
        ("labels/train/a.txt", yaml_names, mutate.mutate_lines),
        ("data.yaml", whole, mutate.mutate_yaml),
        ("data.yaml", yaml_names, mutate.mutate_yaml),
        ("names.txt", text_names, mutate.mutate_lines),
        ("only.txt", only, mutate.mutate_lines),
        ("images/train/a.png", yaml_names, mutate_images.mutate_png),
    ):
        others = {name: data for name, data in files.items() if name != f"in/{victim}"}
        copies: tuple[str, ...] = ()
        if victim.endswith("a.txt"):
            copies = tuple(f"labels/train/{number}.txt" for number in range(7))
            others |= {f"in/images/train/{number}.png": encoded(".png") for number in range(7)}
        yield Seed(victim, files[f"in/{victim}"], argv, mutator, others, copies=copies)


def mask_image_seeds() -> Iterator[Seed]:
    mask = np.zeros((20, 30), np.uint8)
    mask[4:12, 5:20] = 1
    forms = {
        "in/m/a/cat_1.png": (encoded(".png", mask * 255), mutate_images.mutate_png),
        "in/m/a/dog_1.tif": (encoded(".tif", mask * 255), mutate_images.mutate_tiff),
        "in/m/a/ant_1.jpg": (encoded(".jpg", mask * 255), mutate_images.mutate_jpeg),
        "in/m/a/bee_1.png": (encoded(".png", mask.astype(np.uint16) * 65535), mutate_images.mutate_png),
    }
    argv = ("yolact-data", "convert", "masks", "{run}/in/m", "{run}/out/o.json", "--images", "{run}/in/i")
    for victim, (data, mutator) in forms.items():
        others = {name: pair[0] for name, pair in forms.items() if name != victim}
        others["in/i/a.png"] = encoded(".png")
        copies = tuple(victim[3:].replace("_1", f"_{number}") for number in range(2, 9))
        yield Seed(victim[3:], data, argv, mutator, others, copies=copies)


def voc_seeds() -> Iterator[Seed]:
    try:
        from PIL import Image
    except ImportError:
        return
    values = np.zeros((20, 30), np.uint8)
    values[4:12, 5:20] = 1
    image = Image.fromarray(values)
    image.putpalette([value for index in range(256) for value in (index, 255 - index, index // 2)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    mask = buffer.getvalue()
    files = {
        "in/JPEGImages/a.png": encoded(".png"),
        "in/SegmentationObject/a.png": mask,
        "in/SegmentationClass/a.png": mask,
    }
    argv = ("yolact-data", "convert", "voc", "{run}/in", "{run}/out/o.json")
    for victim, data in files.items():
        others = {name: content for name, content in files.items() if name != victim}
        yield Seed(victim[3:], data, argv, mutate_images.mutate_png, others)


def dataset_seeds() -> Iterator[Seed]:
    content = mutate.dump_json(annotations())
    files = {"in/d/a.png": encoded(".png"), "in/d/b.png": encoded(".png"), "in/a.json": content}
    text = b"name: mine\ntrain: {images: d, annotations: a.json}\nval:\n  images: d\n  annotations: a.json\n"
    argv = ("yolact-eval", "--engine", "{shared}/m.onnx", "--dataset", "{run}/in/set.yaml")
    yield Seed("set.yaml", text, argv, mutate.mutate_yaml, files)
    train = (*TRAIN, "--config", "yolact_tiny", "--iterations", "1", "--dataset", "{run}/in/set.yaml")
    yield Seed("set.yaml", text, train, mutate.mutate_yaml, files)
    yield Seed(
        "a.json", content, train, mutate.mutate_json, {**files, "in/set.yaml": text, "in/a.json": content}
    )


def list_seeds() -> Iterator[Seed]:
    """Lists of images on standard input, and files of class names."""
    argv = (*INFER, "-", *JSONL)
    others = {"in/a.png": encoded(".png")}
    yield Seed("l.txt", b"../in/a.png\n", argv, mutate.mutate_lines, others, stdin="in/l.txt")
    lines = b"a.png\n./b.png\n# no comment\n"
    yield Seed("l.txt", lines, argv, mutate.mutate_lines, stdin="in/l.txt", good=1)
    nulls = lines.replace(b"\n", b"\0")
    yield Seed("l.txt", nulls, (*argv, "--null"), mutate.mutate_lines, stdin="in/l.txt", good=1)
    weights = (
        "yolact-export",
        "inspect",
        "{shared}/yolact_tiny_0_1.pth",
        "--class-names",
        "{run}/in/names.txt",
    )
    yield Seed("names.txt", b"circle\nsquare\ntriangle\n", weights, mutate.mutate_lines, good=2)
