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
        instances: Copies of each model; None: 2 of "python", so that one decodes while the other computes,
            and 1 of the others.
        queue_delay_us: Longest wait for more requests to join a batch, in microseconds; None: 2000 for the
            plain network, and none for "python", which takes what arrived while it was busy.
        models: "python": image in, instances out; "raw": the plain network; "ensemble": the network and steps
            before and after it, which together are as "python"; or "all".
    """

    instances: int | None = None
    queue_delay_us: int | None = None
    models: str = "python"

    def __post_init__(self) -> None:
        if self.instances is not None and not 1 <= self.instances <= limit("streams"):
            raise UsageError(f"--triton-instances {self.instances}; allowed: 1 to {beyond('streams')}")
        if self.queue_delay_us is not None and not 0 <= self.queue_delay_us <= _LONGEST_DELAY:
            raise UsageError(
                f"--triton-queue-delay {self.queue_delay_us}; allowed: 0 to {_LONGEST_DELAY} microseconds"
            )
        if self.models not in MODELS:
            raise UsageError(f"--triton-models {self.models}; allowed: {', '.join(MODELS)}")
