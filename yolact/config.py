"""Configurations: frozen dataclasses with all that is needed to build and train a model.

Checkpoints hold theirs; there is no global one. Named configurations are in `yolact.registry`, the overrides
of `--set` in `yolact.settings`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from yolact import ranges
from yolact.settings import check, check_plain_text, check_ranges
from yolact_runtime.errors import UsageError
from yolact_runtime.metadata import height_width, plain_size
from yolact_runtime.typed import convert
from yolact_runtime.untrusted import beyond, limit

PROTO_SCALES = (0.125, 0.25, 0.5)

BackboneName = Literal["resnet50", "resnet101", "darknet53", "mobilenetv2", "tiny"]


@dataclass(frozen=True)
class BackboneConfig:
    """The feature extractor. `deformable` has, for each stage, how many of its last blocks may use deformable
    3x3 convolutions; every `deformable_interval`-th of these does (YOLACT++, Sec. 6.2)."""

    name: BackboneName = "resnet101"
    deformable: tuple[int, ...] = (0, 0, 0, 0)
    deformable_interval: int = 1

    def __post_init__(self) -> None:
        check(len(self.deformable) == 4, "model.backbone.deformable", self.deformable, "four numbers")
        check_ranges(self, "model.backbone", ranges.BACKBONE)


@dataclass(frozen=True)
class ModelConfig:
    """The network. Sizes are in input pixels; mean and std are for BGR values of 0..255.

    Attributes:
        input_size: Side of the square to which images are resized, or [height, width].
        proto_scale: Sides of the prototypes, over those of the input: 0.125, 0.25 or 0.5. Larger ones give
            finer masks in more time; the weights have the same shapes, and `loss.min_mask_area` counts pixels
            of this size.
        prior_scales: Sizes of the priors of each level, P3 to P7.
        prior_aspect_ratios: Width over height of the priors, of all levels.
        prior_square: Give priors their width as height, too, as those of the published weights have it.
        mask_iou: Predict the IoU of each mask, and multiply its score by this (YOLACT++).
    """

    backbone: BackboneConfig = BackboneConfig()
    input_size: int | tuple[int, int] = 550
    mean: tuple[float, float, float] = (103.94, 116.78, 123.68)
    std: tuple[float, float, float] = (57.38, 57.12, 58.40)
    fpn_features: int = 256
    num_prototypes: int = 32
    proto_scale: float = 0.25
    prior_scales: tuple[tuple[float, ...], ...] = ((24.0,), (48.0,), (96.0,), (192.0,), (384.0,))
    prior_aspect_ratios: tuple[float, ...] = (1.0, 0.5, 2.0)
    prior_square: bool = True
    mask_iou: bool = False

    def __post_init__(self) -> None:
        """Check the values, and that there are not too many priors."""
        object.__setattr__(self, "input_size", plain_size(self.input_size))
        check_ranges(self, "model", ranges.MODEL)
        check(self.proto_scale in PROTO_SCALES, "model.proto_scale", self.proto_scale, "0.125, 0.25, 0.5")
        if self.mask_iou:
            # Five convolutions without padding halve the prototypes: their sides are at least 63. They are a
            # multiple of those of P3, which has a cell for 8 pixels.
            least = 8 * (math.ceil(63 / (8 * self.proto_scale)) - 1) + 1
            smallest = min(self.input_shape)
            allowed = f"at least {least} with mask_iou and proto_scale {self.proto_scale:g}"
            check(smallest >= least, "model.input_size", self.input_size, allowed)
        scales, ratios = self.prior_scales, self.prior_aspect_ratios
        check(len(scales) == 5, "model.prior_scales", scales, "five levels, P3..P7")
        check(len(ratios) > 0, "model.prior_aspect_ratios", ratios, "one or more")
        equal = len(scales[0]) > 0 and all(len(sizes) == len(scales[0]) for sizes in scales)
        check(equal, "model.prior_scales", scales, "one or more sizes, as many in each level")
        # P3 has a cell for 8x8 pixels, and all levels together a third more.
        cells = math.prod(-(-side // 8) + 4 for side in self.input_shape) * 4 // 3
        priors = cells * len(ratios) * len(scales[0])
        check(priors <= limit("priors"), "model.prior_scales: priors", priors, f"at most {beyond('priors')}")

    @property
    def input_shape(self) -> tuple[int, int]:
        """H and W of the input in pixels."""
        return height_width(self.input_size)


@dataclass(frozen=True)
class DetectConfig:
    """From raw outputs to detections (YOLACT, Sec. 5)."""

    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    nms_top_k: int = 200
    max_detections: int = 100
    nms: Literal["fast", "traditional", "cross_class"] = "fast"

    def __post_init__(self) -> None:
        check_ranges(self, "detect", ranges.DETECT)
        check(self.score_threshold < 1, "detect.score_threshold", self.score_threshold, "below 1")
        check(self.iou_threshold > 0, "detect.iou_threshold", self.iou_threshold, "above 0")


@dataclass(frozen=True)
class LossConfig:
    """Weights and thresholds of the multi-task loss (YOLACT, Sec. 3.3 and 5; YOLACT++, Sec. 6.1)."""

    box_weight: float = 1.5
    class_weight: float = 1.0
    mask_weight: float = 6.125
    semantic_weight: float = 1.0
    mask_iou_weight: float = 25.0
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    crowd_iou: float = 0.7
    negatives_per_positive: int = 3
    max_masks: int = 100
    min_mask_area: int = 25

    def __post_init__(self) -> None:
        check_ranges(self, "loss", ranges.LOSS)
        low, high = self.negative_iou, self.positive_iou
        check(low <= high, "loss.negative_iou", low, f"at most loss.positive_iou, {high}")


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation. `lr`, `steps` and `max_iterations` are for `reference_batch` images in an iteration;
    with `autoscale` they are scaled to `effective_batch`, as in the original, when the training starts.

    Attributes:
        batch_size: Images in a batch, over all processes.
        accumulate: Batches whose gradients are accumulated before a step.
        schedule: After the warm-up, multiply by `gamma` at each of `steps`, or follow half a cosine down to
            `cosine_final` times `lr` at `max_iterations`.
        iterations: Number of iterations, not scaled; 0: `max_iterations`, scaled.
        max_grad_norm: Clip the gradient to this L2 norm; 0: do not clip.
        freeze_bn: Freeze batch norm; `auto`: if a process has few images in a batch.
        sync_bn: Share batch norm's statistics between processes (GPUs only).
        amp: Type of the network's arithmetic; weights and loss stay in float32.
        compile: Compile the network with `torch.compile`.
        fast: Compute the network in a faster order, equal up to rounding: frozen batch norm in the weights,
            Winograd's algorithm in float32 on CPUs. False: layer by layer.
        ema_decay: Decay of an exponential moving average of the weights, such as 0.9998; 0: no average.
        save_every: Iterations between checkpoints.
        save_epochs: Save at the end of every so many epochs, too; 0: do not.
        keep_last: Number of the run's checkpoints to keep; 0: all.
        validate_every: Epochs between validations, which also keep the best weights; 0: never validate.
        val_fraction: Part of the training images to hold out and validate on, chosen by `seed` and file name,
            if the dataset has no validation part; 0: none.
        pictures: Number of images to draw, once as trained on, and at each validation as predicted; 0: none.
        overfit: Train and validate on the first so many images; 0: on all.
        cache_samples: Keep decoded images and their targets in memory, in every worker. Augmentation can
            then only mirror and flip them.
        max_bad_steps: Stop after this many losses in a row that are not finite.
        max_unreadable: Stop when more images than this cannot be read.
    """

    batch_size: int = 8
    accumulate: int = 1
    reference_batch: int = 8
    autoscale: bool = True
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["steps", "cosine"] = "steps"
    gamma: float = 0.1
    cosine_final: float = 0.0
    steps: tuple[int, ...] = (280_000, 600_000, 700_000, 750_000)
    warmup_iterations: int = 500
    warmup_lr: float = 1e-4
    max_iterations: int = 800_000
    iterations: int = 0
    max_grad_norm: float = 0.0
    freeze_bn: Literal["auto", "always", "never"] = "auto"
    sync_bn: bool = False
    init: Literal["imagenet", "random"] = "imagenet"
    amp: Literal["none", "bf16", "fp16"] = "none"
    compile: bool = False
    fast: bool = True
    ema_decay: float = 0.0
    save_every: int = 10_000
    save_epochs: int = 1
    keep_last: int = 5
    validate_every: int = 2
    val_fraction: float = 0.0
    pictures: int = 4
    overfit: int = 0
    cache_samples: bool = False
    max_bad_steps: int = 10
    max_unreadable: int = 100
    tensorboard: bool = False
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, "train", ranges.TRAIN)
        check(self.ema_decay < 1, "train.ema_decay", self.ema_decay, "0 to below 1")
        check(len(self.steps) <= 100, "train.steps", self.steps, "at most 100 of them")

    @property
    def effective_batch(self) -> int:
        """Images whose gradients make up one step."""
        return self.batch_size * self.accumulate

    def scaled(self) -> TrainConfig:
        """The settings for `effective_batch`: `lr` grows with it, `steps` and `max_iterations` shrink.

        `max_iterations` is that of `iterations`, if this is set.
        """
        factor = self.effective_batch / self.reference_batch if self.autoscale else 1
        if factor == 1 and not self.iterations:
            return self
        return replace(
            self,
            autoscale=False,
            lr=self.lr * factor,
            steps=tuple(int(step // factor) for step in self.steps),
            max_iterations=self.iterations or max(1, int(self.max_iterations // factor)),
        )


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images; the defaults are the original's. Evaluation never augments.

    In this order, each with its own switch: `photometric` (brightness in counts of 0..255, contrast and
    saturation as factors, hue in degrees; each on half of the images), `expand` (half of the images, onto a
    canvas of the colour `expand_fill`, BGR, with up to `expand_ratio` times their sides), `crop` (sides of at
    least `crop_min_side` of the canvas; height / width, over that of the network's input, within
    `crop_aspect`), `mirror`, `flip` and `rotate` (with equal chances; `rotate` by multiples of 90 degrees),
    and the resize to the network's input.

    A crop contains the centre of at least one instance, and keeps the instances whose centres it contains. It
    draws one of `crop_min_ious` as the IoU to reach with an instance, or none. The original never enforces
    that number (its author reports that enforcing it halved the AP); `crop_enforce_iou` does. Instances with
    a side of at most `min_box_side` of the input's are dropped. (The original has the same 4 / 550, but
    compares it with pixels, so that it drops none.)
    """

    enabled: bool = True
    photometric: bool = True
    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    expand: bool = True
    expand_ratio: float = 4.0
    expand_fill: tuple[float, float, float] = (103.94, 116.78, 123.68)
    crop: bool = True
    crop_min_side: float = 0.3
    crop_aspect: tuple[float, float] = (0.5, 2.0)
    crop_min_ious: tuple[float, ...] = (0.1, 0.3, 0.7, 0.9)
    crop_enforce_iou: bool = False
    mirror: bool = True
    flip: bool = False
    rotate: bool = False
    min_box_side: float = 4 / 550

    def __post_init__(self) -> None:
        check_ranges(self, "augment", ranges.AUGMENT)
        for name in ("contrast", "saturation", "crop_aspect"):
            low, high = getattr(self, name)
            check(low <= high, f"augment.{name}", (low, high), "low <= high")
        for name in ("crop_min_ious", "min_box_side"):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            check(all(each < 1 for each in values), f"augment.{name}", value, "below 1")
        check(len(self.crop_min_ious) <= 100, "augment.crop_min_ious", self.crop_min_ious, "at most 100")


@dataclass(frozen=True)
class DatasetConfig:
    """Where the images and the COCO annotation files are. Without a validation part, `val_images` and
    `val_annotations` are empty.

    With `crowd_as_instances`, crowd regions that have a mask are instances like others: CVAT exports what was
    drawn with its brush as crowds.

    `classes` are the names or category ids of those to learn; empty for all. Objects of other classes are
    background, or with `other_classes` "ignore" regions that are neither an example nor background, as crowds
    are. Training images with objects of other classes only are left out, validation images are not.
    """

    name: str = ""
    train_images: str = ""
    train_annotations: str = ""
    val_images: str = ""
    val_annotations: str = ""
    crowd_as_instances: bool = False
    classes: tuple[str | int, ...] = ()
    other_classes: Literal["background", "ignore"] = "background"

    @property
    def choices(self) -> dict[str, Any]:
        """The settings that are not where its files are."""
        return {name: getattr(self, name) for name in ("crowd_as_instances", "classes", "other_classes")}

    def __post_init__(self) -> None:
        for name in ("name", "train_images", "train_annotations", "val_images", "val_annotations"):
            check_plain_text(getattr(self, name), f"dataset.{name}")
        most = limit("classes")
        check(len(self.classes) <= most, "dataset.classes", self.classes, f"at most {beyond('classes')}")
        for entry in self.classes:
            check_plain_text(str(entry), "dataset.classes")

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation part."""
        return bool(self.val_annotations)


COCO_2017 = DatasetConfig(
    name="COCO 2017",
    train_images="data/coco/images",
    train_annotations="data/coco/annotations/instances_train2017.json",
    val_images="data/coco/images",
    val_annotations="data/coco/annotations/instances_val2017.json",
)


@dataclass(frozen=True)
class Classes:
    """Class names and their category ids in the annotation file, index by index.

    Ids may be sparse and may be 0. They come from the annotations trained on, or from the checkpoint; for the
    published weights, whose files have none, from a table (`yolact.registry.published_classes`).
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the names, and that each has an id of its own."""
        most = limit("classes")
        check(0 < len(self.names) <= most, "classes.names", self.names, f"1 to {beyond('classes')}")
        for name in self.names:
            check_plain_text(name, "classes.names")
        check(
            len(self.names) == len(self.category_ids) == len(set(self.category_ids)),
            "classes.category_ids",
            self.category_ids,
            f"{len(self.names)} different ids",
        )
        check_ranges(self, "classes", ranges.CLASSES)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Config:
    """Everything about one model and its training."""

    name: str
    classes: Classes
    model: ModelConfig = ModelConfig()
    detect: DetectConfig = DetectConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    augment: AugmentConfig = AugmentConfig()
    dataset: DatasetConfig = COCO_2017

    def __post_init__(self) -> None:
        """Check the name: files are named after it, and found by it."""
        fits = re.fullmatch(r"\w[\w .+-]*", self.name) and len(os.fsencode(self.name)) <= 120
        check(bool(fits), "name", self.name, "letters, digits, `_`, `-`, `+`, `.` and spaces, at most 120")

    @property
    def num_classes(self) -> int:
        """C, without background."""
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(self))))

    @staticmethod
    def from_dict(values: Mapping[str, Any], source: str = "configuration") -> Config:
        """The inverse of `to_dict`.

        Raises:
            UsageError: an unknown key, or a value of the wrong type; names `source` and the key.
        """
        try:
            return cast("Config", convert(values, Config))
        except (UsageError, ValueError) as error:
            raise UsageError(f"{source}: {error}") from None
