"""What an ONNX file says of itself, read without the weights and without any library for ONNX."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Numbers of protobuf fields: ModelProto.metadata_props, and key and value of its entries.
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_properties(path: str | Path) -> dict[str, str] | None:
    """The `metadata_props` of an ONNX file; None where it is no ONNX file, is cut short or cannot be read."""
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            entries = [
                file.read(length) for number, length in _fields(file, size) if number == _METADATA_PROPS
            ]
    except (OSError, ValueError):
        return None
    try:
        return dict(_entry(entry) for entry in entries) if size else None
    except (KeyError, ValueError):
        return None


def _fields(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Number and length of each field made of bytes, `file` at its first one; what is not read is skipped.

    Raises:
        ValueError: what is there is no protobuf message of `size` bytes.
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


def _entry(data: bytes) -> tuple[str, str]:
    file = io.BytesIO(data)
    texts = {number: file.read(length).decode() for number, length in _fields(file, len(data))}
    return texts[_KEY], texts.get(_VALUE, "")


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
