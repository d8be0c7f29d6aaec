"""A configuration in the words of the runtime."""

from __future__ import annotations

from typing import Any

from yolact.config import Config
from yolact.model.priors import pyramid_levels
from yolact_runtime.metadata import Metadata, PriorSpec


def describe(config: Config, **fields: Any) -> Metadata:
    """The runtime's metadata for a model of `config`; `fields` say what the configuration does not."""
    model, detect = config.model, config.detect
    return Metadata(
        config=config.name,
        class_names=config.classes.names,
        category_ids=config.classes.category_ids,
        input_size=model.input_size,
        mean=model.mean,
        std=model.std,
        max_detections=detect.max_detections,
        score_threshold=detect.score_threshold,
        iou_threshold=detect.iou_threshold,
        nms_top_k=detect.nms_top_k,
        mask_iou=model.mask_iou,
        priors=PriorSpec(
            levels=tuple(pyramid_levels(model.input_size)),
            scales=model.prior_scales,
            aspect_ratios=model.prior_aspect_ratios,
            square=model.prior_square,
        ),
        **fields,
    )
