"""Small arrays side by side in one piece of memory, so that one copy moves them all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from yolact_runtime.cuda.memory import PycudaDevice, Stream
from yolact_runtime.cuda.plans.plan import Buffer

_ALIGNED = 256  # as plans and TensorRT want addresses


def packed(buffers: Sequence[Buffer]) -> tuple[dict[str, int], int]:
    """Where each buffer starts in the piece, in bytes, and the size of the whole."""
    starts, end = {}, 0
    for buffer in buffers:
        starts[buffer.name] = end
        end += -(-buffer.nbytes // _ALIGNED) * _ALIGNED
    return starts, end


class Block:
    """A piece of device memory and its like in pinned memory, as large as `buffers` need; held by `held`.

    Raises:
        DeviceError: there is not as much memory.
    """

    def __init__(self, device: PycudaDevice, held: ExitStack, name: str, buffers: Sequence[Buffer]) -> None:
        nbytes = packed(buffers)[1]
        self.address = device.allocate(held, name, nbytes)
        self.pinned = device.pinned(held, name, (nbytes,), np.uint8)

    def part(self, buffers: Sequence[Buffer]) -> BlockPart:
        """The first part of it, laid out for these buffers, which may be fewer or smaller."""
        return BlockPart(self, buffers)


class BlockPart:
    """Buffers laid out in a block.

    Attributes:
        addresses: On the device, by name.
        views: Of the pinned memory, by name.
    """

    def __init__(self, block: Block, buffers: Sequence[Buffer]) -> None:
        starts, nbytes = packed(buffers)
        self._whole, self._address = block.pinned[:nbytes], block.address
        self.addresses = {name: block.address + start for name, start in starts.items()}
        self.views = {
            buffer.name: self._whole[starts[buffer.name] :][: buffer.nbytes]
            .view(buffer.dtype)
            .reshape(buffer.shape)
            for buffer in buffers
        }

    def upload(self, stream: Stream) -> None:
        """Queue the copy to the device."""
        stream.upload(self._address, self._whole)

    def download(self, stream: Stream) -> None:
        """Queue the copy from the device."""
        stream.download(self._whole, self._address)
