"""What both ways to a server have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from yolact_runtime.engines.remote.outage import Unavailable
from yolact_runtime.engines.remote.tensors import Tensor
from yolact_runtime.errors import YolactError, escape_controls, first_line


class Unknown(Unavailable):
    """The server has no such model, or has not loaded it yet."""


class ModelConfig(NamedTuple):
    """What the server's configuration of a model says: its parameters, and the names of its outputs."""

    parameters: dict[str, str]
    outputs: frozenset[str]


class Client(ABC):
    """A way to a model on a server, for any number of threads.

    All methods raise:
        Unavailable: the server does not answer now.
        Unknown: it has no such model.
        YolactError: it refused the request, or its answer cannot be read.
    """

    @abstractmethod
    def config(self, seconds: float) -> ModelConfig:
        """The model's configuration, within a number of seconds."""

    @abstractmethod
    def infer(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        parameters: Mapping[str, str],
        seconds: float,
    ) -> dict[str, Tensor]:
        """Run the model.

        Args:
            inputs: By name.
            outputs: Names of those to return.
            parameters: Of the request.
            seconds: Longest time for the answer.
        """

    @abstractmethod
    def close(self) -> None:
        """End the connections, and what still waits on them."""


def refused_or_unavailable(reason: str) -> YolactError:
    """The error for a reason that the server gives: it may be about this request, or about the server."""
    text = escape_controls(first_line(RuntimeError(reason)))
    if "unknown model" in text:
        return Unknown(text)
    # The process of the model has ended; it answers again when the server is started again or loads it anew.
    if "tub process" in text and "healthy" in text:
        return Unavailable(text)
    return YolactError(f"the server answers: {text}")
