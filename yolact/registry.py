"""The named configurations: the original's eight, one for small devices, one for demo and tests."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

from yolact.config import (
    AugmentConfig,
    BackboneConfig,
    Classes,
    Config,
    DatasetConfig,
    LossConfig,
    ModelConfig,
    TrainConfig,
)
from yolact_runtime.errors import UsageError
from yolact_runtime.typed import nearest


def published_classes(table: str) -> Classes:
    """The classes of the published weights; `table` is `coco` or `pascal_sbd`."""
    file = resources.files("yolact").joinpath("assets/published_classes.json")
    ids: dict[str, int] = json.loads(file.read_text("utf-8"))[table]
    return Classes(tuple(ids), tuple(ids.values()))


def _plus(base: ModelConfig, backbone: BackboneConfig) -> ModelConfig:
    """YOLACT++ (Sec. 6): deformable backbone, three scales for each level, true aspect ratios, re-scoring."""
    scales = tuple(tuple(size * 2 ** (i / 3) for i in range(3)) for (size,) in base.prior_scales)
    return replace(base, backbone=backbone, prior_scales=scales, prior_square=False, mask_iou=True)


def _levels(*sizes: float) -> tuple[tuple[float, ...], ...]:
    return tuple((float(size),) for size in sizes)


@functools.cache
def configs() -> dict[str, Config]:
    """All named configurations."""
    coco, pascal = published_classes("coco"), published_classes("pascal_sbd")
    r101, r50 = BackboneConfig("resnet101"), BackboneConfig("resnet50")
    base = ModelConfig(backbone=r101)
    darknet = replace(base, backbone=BackboneConfig("darknet53"), mean=(0.0,) * 3, std=(255.0,) * 3)
    sbd = DatasetConfig(
        name="Pascal SBD 2012",
        train_images="data/sbd/img",
        train_annotations="data/sbd/pascal_sbd_train.json",
        val_images="data/sbd/img",
        val_annotations="data/sbd/pascal_sbd_val.json",
    )
    shapes = DatasetConfig(
        name="shapes",
        train_images="data/shapes/train",
        train_annotations="data/shapes/annotations/instances_train.json",
        val_images="data/shapes/val",
        val_annotations="data/shapes/annotations/instances_val.json",
    )
    tiny = ModelConfig(
        backbone=BackboneConfig("tiny"),
        input_size=128,
        fpn_features=48,
        num_prototypes=16,
        prior_scales=(
            (24.0, 31.0, 40.0),
            (48.0, 60.0, 74.0),
            (88.0, 104.0, 118.0),
            (120.0, 122.0, 124.0),
            (126.0, 127.0, 128.0),
        ),
        prior_aspect_ratios=(1.0,),
        prior_square=False,
    )
    every = [
        Config("yolact_base", coco, base),
        Config(
            "yolact_im400",
            coco,
            replace(base, input_size=400, prior_scales=_levels(17, 34, 69, 139, 279)),
        ),
        Config(
            "yolact_im700",
            coco,
            replace(base, input_size=700, prior_scales=_levels(30, 61, 122, 244, 488)),
            loss=LossConfig(max_masks=300),
        ),
        Config("yolact_darknet53", coco, darknet),
        Config("yolact_resnet50", coco, replace(base, backbone=r50)),
        Config(
            "yolact_resnet50_pascal",
            pascal,
            replace(base, backbone=r50, prior_scales=_levels(32, 64, 128, 256, 512), prior_square=False),
            train=TrainConfig(max_iterations=120_000, steps=(60_000, 100_000)),
            dataset=sbd,
        ),
        Config("yolact_plus_base", coco, _plus(base, BackboneConfig("resnet101", (0, 4, 23, 3), 3))),
        Config("yolact_plus_resnet50", coco, _plus(base, BackboneConfig("resnet50", (0, 4, 6, 3)))),
        Config(
            "yolact_mobilenetv2",
            coco,
            replace(
                base,
                backbone=BackboneConfig("mobilenetv2"),
                input_size=320,
                fpn_features=128,
                prior_scales=_levels(14, 28, 56, 112, 224),
                prior_square=False,
            ),
        ),
        Config(
            "yolact_tiny",
            Classes(("circle", "square", "triangle"), (1, 4, 9)),
            tiny,
            loss=LossConfig(mask_weight=6.0),
            train=TrainConfig(
                batch_size=8,
                reference_batch=8,
                optimizer="adamw",
                lr=3e-3,
                weight_decay=1e-4,
                schedule="cosine",
                warmup_iterations=50,
                warmup_lr=3e-4,
                max_iterations=700,
                max_grad_norm=10.0,
                freeze_bn="never",
                init="random",
                save_every=1000,
                # It is trained in a minute, with epochs of seconds.
                save_epochs=0,
                validate_every=0,
                cache_samples=True,
                workers=0,
            ),
            augment=AugmentConfig(photometric=False, expand=False, crop=False, flip=True),
            dataset=shapes,
        ),
    ]
    return {config.name: config for config in every}


def get_config(name: str) -> Config:
    """The configuration called `name`; the original's `_config` ending is accepted.

    Raises:
        UsageError: unknown; lists similar names.
    """
    known = configs()
    key = name.removesuffix("_config")
    if key not in known:
        raise UsageError(f"no configuration {name!r}; {nearest(key, known)}")
    return known[key]


def config_name_of(path: str | Path) -> str | None:
    """The configuration in a checkpoint's file name: `yolact_base` of `yolact_base_54_800000.pth`.

    None if the name is not of the form `<config>_<epoch>_<iteration>[_interrupt]`.
    """
    parts = Path(path).stem.removesuffix("_interrupt").split("_")
    if len(parts) < 3 or not all(part.isascii() and part.isdecimal() for part in parts[-2:]):
        return None
    return "_".join(parts[:-2])


def position_of(path: str | Path) -> tuple[int, int]:
    """(epoch, iteration) in a checkpoint's file name; (0, 0) if it is not of that form."""
    if config_name_of(path) is None:
        return 0, 0
    epoch, iteration = Path(path).stem.removesuffix("_interrupt").split("_")[-2:]
    return int(epoch), int(iteration)
