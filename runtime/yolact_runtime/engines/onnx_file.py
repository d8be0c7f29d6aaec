"""Reads properties and nodes of an ONNX file, without its weights and without the onnx package."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

# Protobuf field numbers of ModelProto, of an entry of metadata_props, and of GraphProto and NodeProto.
_GRAPH, _METADATA_PROPS = 7, 14
_KEY, _VALUE = 1, 2
_NODE, _NAME, _OP_TYPE = 1, 3, 4
# Of GraphProto and TensorProto: weights, and the entries that say which other file holds them.
_INITIALIZER, _EXTERNAL_DATA = 5, 13
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_properties(path: str | Path) -> dict[str, str] | None:
    """The `metadata_props` of an ONNX file; None if it is not one, is cut off or cannot be read."""
    try:
        with Path(path).open("rb") as file:
            size = _size(file)
            entries = [
                _texts(file.read(length), (_KEY, _VALUE))
                for number, length in _fields(file, size)
                if number == _METADATA_PROPS
            ]
            return {entry[_KEY]: entry.get(_VALUE, "") for entry in entries} if size else None
    except (OSError, KeyError, ValueError):
        return None


def read_nodes(path: str | Path) -> list[tuple[str, str]]:
    """Name and operator of every node of an ONNX file, without subgraphs.

    Raises:
        ValueError: it is not an ONNX file.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        size = _size(file)
        return [
            (texts.get(_NAME, ""), texts.get(_OP_TYPE, ""))
            for number, length in _fields(file, size)
            if number == _GRAPH
            for inner, inner_length in _fields(file, file.tell() + length)
            if inner == _NODE
            for texts in [_texts(file.read(inner_length), (_NAME, _OP_TYPE))]
        ]


def read_external_files(path: str | Path) -> set[str]:
    """Names, relative to its folder, of the files with weights of an ONNX file; empty if it is not one."""
    try:
        with Path(path).open("rb") as file:
            size = _size(file)
            entries = [
                _texts(file.read(length), (_KEY, _VALUE))
                for length in _nested(file, size, (_GRAPH, _INITIALIZER, _EXTERNAL_DATA))
            ]
    except (OSError, ValueError):
        return set()
    return {entry.get(_VALUE, "") for entry in entries if entry.get(_KEY) == "location"}


def _size(file: BinaryIO) -> int:
    """The size of an open file, in bytes; it is at its start afterwards."""
    size = file.seek(0, 2)
    file.seek(0)
    return size


def _nested(file: BinaryIO, size: int, numbers: Sequence[int]) -> Iterator[int]:
    """Length of each field that the field numbers lead to from a message which ends at `size`."""
    for number, length in _fields(file, size):
        if number == numbers[0] and len(numbers) == 1:
            yield length
        elif number == numbers[0]:
            yield from _nested(file, file.tell() + length, numbers[1:])


def _fields(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Number and length of each bytes field, with `file` at its content; unread content is skipped.

    Raises:
        ValueError: the data is not a protobuf message that ends at `size`.
    """
    while file.tell() < size:
        number, kind = divmod(_varint(file), 8)
        if not number:
            raise ValueError
        if kind == _VARINT:
            _varint(file)
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(kind) or (_varint(file) if kind == _BYTES else -1)
        end = file.tell() + length
        if length < 0 or end > size:
            raise ValueError
        if kind == _BYTES:
            yield number, length
        file.seek(end)


def _texts(data: bytes, wanted: tuple[int, ...]) -> dict[int, str]:
    file = io.BytesIO(data)
    return {
        number: file.read(length).decode() for number, length in _fields(file, len(data)) if number in wanted
    }


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError
