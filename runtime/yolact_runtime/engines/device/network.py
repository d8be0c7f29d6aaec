"""What the chain of kernels needs to know about a network, whichever library runs it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from yolact_runtime.cuda.device import Device, Stream
from yolact_runtime.cuda.resource import Resource


@dataclass(frozen=True)
class Tensor:
    """An input or output of a network.

    Attributes:
        name: Its name in the graph.
        shape: Its shape for one image, without the batch.
        dtype: Its element type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def nbytes(self, n: int) -> int:
        """Size for n images."""
        return n * math.prod(self.shape) * self.dtype.itemsize


class Execution(Protocol):
    """The network for a certain number of images, on one stream and at fixed addresses."""

    def queue(self) -> None:
        """Put the network on the stream, without waiting for it.

        Raises:
            DeviceError: the library fails.
        """

    def capturable(self) -> bool:
        """Whether `queue` can be captured in a CUDA graph now; asked only of networks `in_graphs`."""


# The name of an address that is no input or output: a bit for each class that a call wants (`class_words`).
WANTED = "wanted"
# A function that prepares an execution. Arguments: a stack that closes it, with the context current; the
# number of images, at most `metadata.max_batch`; device addresses of input, outputs and `WANTED`, by name.
Prepare = Callable[[ExitStack, int, Mapping[str, int]], Execution]


class Network(Resource, ABC):
    """A network on the GPU, whose input and outputs are in memory of the caller's.

    Opened, used and closed with the primary context current.

    Attributes:
        title: Name of the library, for reports and messages.
        precision: What it computes in, as `Engine.precision`.
        unknown_because: Why `precision` is `UNKNOWN`.
        in_graphs: Whether the caller may capture it in a CUDA graph. If not, only what runs before and after
            it is captured, each as a graph.
        tensors: The input and the outputs, by name, once it is open. They have been checked to be those that
            the metadata calls for; their shapes have not.
    """

    title: str
    precision: str
    unknown_because: str = ""
    in_graphs: bool
    tensors: Mapping[str, Tensor]

    @abstractmethod
    def on_stream(self, held: ExitStack, device: Device, stream: Stream) -> Prepare:
        """Get ready to run on a stream; nothing that runs on another stream is shared but the weights.

        Args:
            held: Releases what is needed for that, before it closes the stream.
            device: The GPU.
            stream: Open as long as `held`. One thread at a time uses it.

        Returns:
            A function that prepares executions on this stream.

        Raises:
            DeviceError: the library fails, or there is not enough memory.
        """
