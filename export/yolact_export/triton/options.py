"""How a Triton server runs the models."""

from __future__ import annotations

from dataclasses import dataclass

from yolact_runtime.errors import UsageError
from yolact_runtime.untrusted import beyond, limit

# Image to instances in one process; the network alone; the network with a step before and one after it.
MODELS = ("instances", "raw", "ensemble")

_LONGEST_DELAY = 60_000_000  # a minute, in microseconds


@dataclass(frozen=True)
class TritonOptions:
    """What is written, and how the server runs it.

    Attributes:
        instances: Copies of each model on each device.
        queue_delay_us: Longest wait for more requests to join a batch, in microseconds.
        models: Of `MODELS`.
        backend: Of the engine of the model "instances", as for `load_engine`; None for its choice.
        threads: CPU threads of each copy of that engine; None for all.
    """

    instances: int = 1
    queue_delay_us: int = 2000
    models: tuple[str, ...] = ("instances",)
    backend: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.instances <= limit("streams"):
            raise UsageError(f"--triton-instances {self.instances}; allowed: 1 to {beyond('streams')}")
        if not 0 <= self.queue_delay_us <= _LONGEST_DELAY:
            raise UsageError(
                f"--triton-queue-delay {self.queue_delay_us}; allowed: 0 to {_LONGEST_DELAY} microseconds"
            )
        if self.threads is not None and not 1 <= self.threads <= limit("threads"):
            raise UsageError(f"--triton-threads {self.threads}; allowed: 1 to {beyond('threads')}")
        if not self.models or not set(self.models) <= set(MODELS):
            raise UsageError(f"--triton-models {' '.join(self.models)}; allowed: {', '.join(MODELS)}")
