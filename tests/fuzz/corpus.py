"""All readers, each with small valid inputs made by code, and what commands need besides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import corpus_data
import corpus_models
import corpus_parquet
from corpus_data import Seed
from fake_onnx import NATIVE, native_arrays, write_onnx

READERS: dict[str, Callable[[], Iterator[Seed]]] = {
    "images": corpus_data.image_seeds,
    "videos": corpus_data.video_seeds,
    "annotations": corpus_data.annotation_seeds,
    "labelme": corpus_data.labelme_seeds,
    "yolo": corpus_data.yolo_seeds,
    "masks": corpus_data.mask_image_seeds,
    "voc": corpus_data.voc_seeds,
    "datasets": corpus_data.dataset_seeds,
    "lists": corpus_data.list_seeds,
    "onnx": corpus_models.onnx_seeds,
    "openvino": corpus_models.openvino_seeds,
    "records": corpus_models.engine_record_seeds,
    "checkpoints": corpus_models.checkpoint_seeds,
    "settings": corpus_models.setting_seeds,
    "lines": corpus_models.lines_seeds,
    "merges": corpus_models.merge_seeds,
    "parquet": corpus_parquet.parquet_seeds,
    "reports": corpus_models.report_seeds,
    "caches": corpus_models.cache_seeds,
    "rooflines": corpus_models.roofline_seeds,
    "batches": corpus_models.batch_seeds,
}


def shared_files(folder: Path) -> None:
    """Write what commands need besides what is changed: an engine, a checkpoint, an image and a dataset."""
    (folder / "d").mkdir(parents=True, exist_ok=True)
    write_onnx(folder / "m.onnx", native_arrays(), NATIVE)
    (folder / "yolact_tiny_0_1.pth").write_bytes(corpus_models.checkpoint_files()["full.pth"])
    for name in ("a.png", "d/a.png", "d/b.png"):
        (folder / name).write_bytes(corpus_data.encoded(".png"))
    content = corpus_data.annotations()
    names = zip(content["categories"], ("circle", "square", "triangle"), (1, 4, 9), strict=True)
    ids = {}
    for category, name, number in names:
        ids[category["id"]] = number
        category.update(name=name, id=number)
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    (folder / "a.json").write_text(json.dumps(content))
    (folder / "shapes.yaml").write_text(
        "name: shapes\ntrain: {images: d, annotations: a.json}\nval: {images: d, annotations: a.json}\n"
    )
