"""The learning rate as a function of the iteration."""

from __future__ import annotations

from yolact.config import TrainConfig


def learning_rate(iteration: int, config: TrainConfig) -> float:
    """Linear warm-up from `warmup_lr`, then `lr` times `gamma` for every step that is reached.

    Args:
        iteration: 0-based.
        config: Already scaled to its batch size (`TrainConfig.scaled`).
    """
    if iteration < config.warmup_iterations:
        done = iteration / config.warmup_iterations
        return config.warmup_lr + (config.lr - config.warmup_lr) * done
    return config.lr * config.gamma ** sum(iteration >= step for step in config.steps)
