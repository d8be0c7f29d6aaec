"""The learning rate as a function of the iteration."""

from __future__ import annotations

import math

from yolact.config import TrainConfig


def learning_rate(iteration: int, config: TrainConfig) -> float:
    """Linear warm-up from `warmup_lr`, then what `schedule` says.

    `steps`: `lr` times `gamma` for every step that is reached. `cosine`: from `lr` down to `cosine_final`
    times it, along half a cosine (Loshchilov and Hutter 2017, without restarts).

    Args:
        iteration: 0-based.
        config: Already scaled to its batch size (`TrainConfig.scaled`).
    """
    if iteration < config.warmup_iterations:
        done = iteration / config.warmup_iterations
        return config.warmup_lr + (config.lr - config.warmup_lr) * done
    if config.schedule == "cosine":
        length = max(1, config.max_iterations - config.warmup_iterations)
        done = min(1.0, (iteration - config.warmup_iterations) / length)
        falling = (1 + math.cos(math.pi * done)) / 2
        return config.lr * (config.cosine_final + (1 - config.cosine_final) * falling)
    return config.lr * config.gamma ** sum(iteration >= step for step in config.steps)
