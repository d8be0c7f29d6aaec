"""What of a model is written to a repository, and how the server runs it."""

from __future__ import annotations

from dataclasses import dataclass

from yolact_runtime.errors import UsageError
from yolact_runtime.untrusted import beyond, limit

# What is written for each value of --triton-models.
MODELS = {
    "python": ("python",),
    "raw": ("raw",),
    "ensemble": ("raw", "ensemble"),
    "all": ("python", "raw", "ensemble"),
}

_LONGEST_DELAY = 60_000_000  # a minute, in microseconds


@dataclass(frozen=True)
class TritonOptions:
    """What is written, and how the server runs it.

    Attributes:
        instances: Copies of the model on each device.
        queue_delay_us: Longest wait for more requests to join a batch, in microseconds.
        models: "python": image in, instances out; "raw": the plain network; "ensemble": the network and steps
            before and after it, which together are as "python"; or "all".
    """

    instances: int = 1
    queue_delay_us: int = 2000
    models: str = "python"

    def __post_init__(self) -> None:
        if not 1 <= self.instances <= limit("streams"):
            raise UsageError(f"--triton-instances {self.instances}; allowed: 1 to {beyond('streams')}")
        if not 0 <= self.queue_delay_us <= _LONGEST_DELAY:
            raise UsageError(
                f"--triton-queue-delay {self.queue_delay_us}; allowed: 0 to {_LONGEST_DELAY} microseconds"
            )
        if self.models not in MODELS:
            raise UsageError(f"--triton-models {self.models}; allowed: {', '.join(MODELS)}")
