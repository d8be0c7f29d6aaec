"""Tensors of requests and answers as bytes, checked against what is expected before they are read."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import numpy as np

from yolact_runtime.errors import YolactError

# Triton's names of types.
_TYPES = {"FP32": "<f4", "INT64": "<i8", "INT32": "<i4", "UINT8": "u1"}


class Tensor(NamedTuple):
    """A tensor as it is sent.

    Attributes:
        datatype: Triton's name of the type, such as "FP32"; "BYTES" for texts.
        shape: Its size in each dimension.
        data: The values in order, little-endian; of a text, its length in four bytes comes first.
    """

    datatype: str
    shape: tuple[int, ...]
    data: bytes


def tensor_of(array: np.ndarray) -> Tensor:
    """An array as a tensor, with a dimension for the batch in front."""
    datatype = next(name for name, kind in _TYPES.items() if np.dtype(kind) == array.dtype)
    return Tensor(datatype, (1, *array.shape), np.ascontiguousarray(array).astype(_TYPES[datatype]).tobytes())


def tensor_of_bytes(value: bytes) -> Tensor:
    """One text as a tensor, with a dimension for the batch in front."""
    return Tensor("BYTES", (1, 1), struct.pack("<I", len(value)) + value)


def numbers(tensor: Tensor, name: str, datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of an output, without the dimension of the batch.

    Args:
        tensor: The output.
        name: Its name, for errors.
        datatype: The type that it must have.
        shape: The shape that it must have, without the batch.

    Raises:
        YolactError: it is of another type, shape or length.
    """
    _check(tensor, name, datatype, shape)
    kind = np.dtype(_TYPES[datatype])
    if len(tensor.data) != math.prod(shape) * kind.itemsize:
        raise YolactError(f"the server's {name} has {len(tensor.data):,} bytes, which are not {shape} values")
    return np.frombuffer(tensor.data, kind).reshape(shape).astype(kind.newbyteorder("="), copy=False)


def texts(tensor: Tensor, name: str, count: int) -> list[bytes]:
    """The texts of an output of type BYTES; arguments and errors as of `numbers`."""
    _check(tensor, name, "BYTES", (count,))
    found, position, data = [], 0, tensor.data
    for _ in range(count):
        start = position + 4
        size = int.from_bytes(data[position:start], "little")
        position = start + size
        if position > len(data):
            break
        found.append(data[start:position])
    if len(found) != count or position != len(data):
        raise YolactError(f"the server's {name} has {len(data):,} bytes, which are not {count} texts")
    return found


def _check(tensor: Tensor, name: str, datatype: str, shape: tuple[int, ...]) -> None:
    if (tensor.datatype, tensor.shape) != (datatype, (1, *shape)):
        found = f"{tensor.datatype[:20]} {list(tensor.shape[:8])}"
        raise YolactError(f"the server's {name} is {found}, not {datatype} {[1, *shape]}")
