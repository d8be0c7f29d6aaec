"""The lowest and highest value of each numeric setting: wide enough for anything that can be trained."""

from __future__ import annotations

from yolact.settings import Ranges

ITERATIONS = 10**9  # the most iterations of a training, and the highest epoch

# Sizes in input pixels, mean and std in counts.
MODEL: Ranges = {
    "input_size": (32, "input_size"),
    "mean": (-1e6, 1e6),
    "std": (1e-6, 1e6),
    "fpn_features": (1, "channels"),
    "num_prototypes": (1, "channels"),
    "prior_scales": (0.1, 1e6),
    "prior_aspect_ratios": (1e-3, 1e3),
}
TRAIN: Ranges = {
    "batch_size": (1, "batch"),
    "accumulate": (1, "batch"),
    "reference_batch": (1, "batch"),
    # The product with the weight decay fits into a float32, in which optimizers compute.
    "lr": (0, 1e6),
    "warmup_lr": (0, 1e6),
    "gamma": (0, 1),
    "momentum": (0, 1),
    "weight_decay": (0, 1e4),
    "cosine_final": (0, 1),
    "steps": (0, ITERATIONS),
    "warmup_iterations": (0, ITERATIONS),
    "max_iterations": (1, ITERATIONS),
    "iterations": (0, ITERATIONS),
    "max_grad_norm": (0, 1e20),
    "ema_decay": (0, 1),
    "save_every": (1, ITERATIONS),
    "save_epochs": (0, ITERATIONS),
    "keep_last": (0, ITERATIONS),
    "validate_every": (0, ITERATIONS),
    "val_fraction": (0, 0.9),
    "pictures": (0, 1000),
    "overfit": (0, ITERATIONS),
    "max_bad_steps": (1, ITERATIONS),
    "max_unreadable": (0, ITERATIONS),
    "workers": (0, "workers"),
    # Seeds of images and iterations are made from it, and must fit into 64 bits.
    "seed": (1 - 2**32, 2**32 - 1),
}
AUGMENT: Ranges = {
    "brightness": (0, 255),
    "contrast": (0, 1000),
    "saturation": (0, 1000),
    "hue": (0, 180),
    "expand_ratio": (1, 16),
    "expand_fill": (-1e6, 1e6),
    "crop_min_side": (1e-3, 1),
    "crop_aspect": (0, 1000),
    "crop_min_ious": (0, 1),
    "min_box_side": (0, 1),
}
BACKBONE: Ranges = {"deformable": (0, 100), "deformable_interval": (1, 100)}
# TensorRT's TopK takes no larger k.
DETECT: Ranges = {
    "score_threshold": (0, 1),
    "iou_threshold": (0, 1),
    "nms_top_k": (1, 3840),
    "max_detections": (1, 3840),
}
LOSS: Ranges = {
    "box_weight": (0, 1e6),
    "class_weight": (0, 1e6),
    "mask_weight": (0, 1e6),
    "semantic_weight": (0, 1e6),
    "mask_iou_weight": (0, 1e6),
    "positive_iou": (0, 1),
    "negative_iou": (0, 1),
    "crowd_iou": (0, 1),
    "negatives_per_positive": (0, 10_000),
    "max_masks": (1, 100_000),
    "min_mask_area": (0, 10**9),
}
CLASSES: Ranges = {"category_ids": (-(2**63), 2**63 - 1)}
