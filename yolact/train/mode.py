"""How a network is put in training mode: batch norm and memory layout."""

from __future__ import annotations

import torch

from yolact.config import TrainConfig
from yolact.model import Yolact
from yolact_runtime.errors import counted

# With fewer images, batch statistics are too noisy to train batch norm (the original's limit).
MIN_BATCH_FOR_BATCH_NORM = 6


def memory_format(device: torch.device, settings: TrainConfig) -> torch.memory_format:
    """The memory layout in which convolutions are fastest.

    Channels last suits tensor cores, the bf16 units of CPUs, and `winograd`; in float32 on CPUs with AVX2 it
    takes a fifth longer layer by layer.
    """
    channels_last = device.type == "cuda" or settings.amp == "bf16" or settings.fast
    return torch.channels_last if channels_last else torch.contiguous_format


def set_training_mode(model: Yolact, settings: TrainConfig, processes: int = 1) -> str:
    """Set training mode; batch norm is frozen if settings or a small batch demand it. Returns a log line."""
    model.train()
    images = counted(_batch_norm_batch(settings, processes), "image")
    if freezes_batch_norm(settings, processes):
        model.freeze_batch_norm()
        return f"batch norm is frozen (a batch has {images}; train.freeze_bn is {settings.freeze_bn})"
    return f"batch norm is trained on batches of {images}"


def freezes_batch_norm(settings: TrainConfig, processes: int = 1) -> bool:
    """Whether batch norm is frozen. `auto` does not freeze it with random weights: they have no useful
    statistics, and explode without normalisation."""
    if settings.freeze_bn == "auto":
        return _batch_norm_batch(settings, processes) < MIN_BATCH_FOR_BATCH_NORM and settings.init != "random"
    return settings.freeze_bn == "always"


def _batch_norm_batch(settings: TrainConfig, processes: int) -> int:
    """Over how many images batch norm computes its statistics."""
    return settings.batch_size if settings.sync_bn else settings.batch_size // processes
