"""Reads an ONNX file without its weights and the onnx package; refuses what no library should see."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from yolact_runtime.errors import YolactError
from yolact_runtime.untrusted import check_regular

# What `_SCHEMA` has for fields that are no messages: text, and a number that has to be 0.
_TEXT, _ZERO = "text", "zero"
# The fields of ONNX's protobuf messages that lead to text or to tensors, by number (onnx.proto).
_SCHEMA: dict[str, dict[int, str]] = {
    "Model": {2: _TEXT, 3: _TEXT, 4: _TEXT, 6: _TEXT, 7: "Graph", 8: "Opset", 14: "Entry", 20: "Training",
              25: "Function"},
    "Opset": {1: _TEXT},
    "Entry": {1: _TEXT, 2: _TEXT},
    "Training": {1: "Graph", 2: "Graph", 3: "Entry", 4: "Entry"},
    "Function": {1: _TEXT, 4: _TEXT, 5: _TEXT, 6: _TEXT, 7: "Node", 8: _TEXT, 9: "Opset", 10: _TEXT,
                 11: "Attribute", 12: "Value", 13: _TEXT, 14: "Entry"},
    "Graph": {1: "Node", 2: _TEXT, 5: "Tensor", 10: _TEXT, 11: "Value", 12: "Value", 13: "Value",
              14: "Annotation", 15: "Sparse", 16: "Entry"},
    "Node": {1: _TEXT, 2: _TEXT, 3: _TEXT, 4: _TEXT, 5: "Attribute", 6: _TEXT, 7: _TEXT, 8: _TEXT,
             9: "Entry"},
    "Attribute": {1: _TEXT, 5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 13: _TEXT, 14: "Type",
                  15: "Type", 21: _TEXT, 22: "Sparse", 23: "Sparse"},
    "Tensor": {8: _TEXT, 12: _TEXT, 13: "Entry", 14: _ZERO, 16: "Entry"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Annotation": {1: _TEXT, 2: "Entry"},
    "Value": {1: _TEXT, 2: "Type", 3: _TEXT, 4: "Entry"},
    "Type": {1: "TensorType", 4: "Type", 5: "Map", 6: _TEXT, 8: "TensorType", 9: "Type"},
    "Map": {2: "Type"},
    "TensorType": {2: "Shape"},
    "Shape": {1: "Dimension"},
    "Dimension": {2: _TEXT, 3: _TEXT},
}  # fmt: skip
_GRAPH, _NODE, _NAME, _OP_TYPE, _PROPERTIES, _OPSETS = 7, 1, 3, 4, 14, 8
_EXTERNAL_DATA = 13
# The only tensors whose data may be in another file: the initializers of the main graph.
_INITIALIZER = ("Model", "Graph", "Tensor")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Messages within messages; protobuf's own limit is 100, and deeper than 20 is no network.
_DEEPEST = 40
# Graphs before opset 13 have other operators than those of yolact-export; OpenVINO crashes on mixtures, and
# counts down from a very large number for minutes.
_OLDEST_OPSET, _NEWEST_OPSET = 13, 100


class _DamagedError(ValueError):
    """The content is no ONNX file; the reason."""


class External(NamedTuple):
    """Where the data of a tensor is: a file, relative to the ONNX file's folder, and its bytes there."""

    location: str
    offset: int
    length: int


class OnnxContent(NamedTuple):
    """What was found in an ONNX file: its `metadata_props`, and data in other files."""

    properties: Mapping[str, str]
    external: tuple[External, ...]


def check_onnx(path: str | Path) -> OnnxContent:
    """Read an ONNX file and check it, which has to be done before any library opens it.

    Weights of the main graph may be in other files (above 2 GB they have to be), in the same folder or below,
    reached without links. OpenVINO and ONNX Runtime also take data from an address in memory that the file
    names; that is refused, like all other data outside the file.

    Raises:
        YolactError: it is not an ONNX file, is cut off, has text that is not UTF-8, an opset of before
            yolact-export, or data that is elsewhere.
    """
    path = Path(path)
    check_regular(path, "ONNX file")
    try:
        content = _content(path)
    except ValueError as error:
        raise YolactError(
            f"{path} is damaged or not an ONNX file ({error}); copy or export it again"
        ) from error
    except OSError as error:
        raise YolactError(f"cannot read {path}: {error.strerror or error}") from error
    for external in content.external:
        if problem := _problem(path.parent, external):
            raise YolactError(
                f"{path}: it has weights in another file, {external.location[:200]!r}: {problem}; do not open"
                " it, or export it again"
            )
    return content


def read_properties(path: str | Path) -> dict[str, str] | None:
    """The `metadata_props` of an ONNX file; None if `check_onnx` refuses it."""
    try:
        return dict(check_onnx(path).properties)
    except YolactError:
        return None


def read_external_files(path: str | Path) -> set[str]:
    """Names, relative to its folder, of the files with weights of an ONNX file; empty if it is not one."""
    try:
        check_regular(Path(path), "ONNX file")
        return {external.location for external in _content(Path(path)).external}
    except (OSError, ValueError, YolactError):
        return set()


def read_nodes(path: str | Path) -> list[tuple[str, str]]:
    """Name and operator of every node of an ONNX file, without subgraphs.

    Raises:
        ValueError: it is not an ONNX file.
        OSError: it cannot be read.
    """
    with _opened(Path(path)) as data:
        return [
            (texts.get(_NAME, ""), texts.get(_OP_TYPE, ""))
            for number, _, start, end in _fields(data, 0, len(data))
            if number == _GRAPH
            for inner, kind, inner_start, inner_end in _fields(data, start, end)
            if (inner, kind) == (_NODE, _BYTES)
            for texts in [_texts(data, inner_start, inner_end)]
        ]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[mmap.mmap]:
    """The content of a file, of which only the pages are read that are looked at."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise _DamagedError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _content(path: Path) -> OnnxContent:
    """The content of a file, which is walked again only if it has changed."""
    status = path.stat()
    return _read(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@functools.lru_cache(maxsize=4)
def _read(path: Path, _: tuple[int, ...]) -> OnnxContent:
    """Walk a file; a ValueError has the reason why it is refused."""
    properties: dict[str, str] = {}
    external: list[External] = []
    opsets: list[int] = []
    graph = False
    with _opened(path) as data:
        for number, kind, start, end in _fields(data, 0, len(data)):
            if kind != _BYTES:
                continue
            graph |= number == _GRAPH
            if number == _PROPERTIES:
                texts = _texts(data, start, end)
                properties[texts.get(1, "")] = texts.get(2, "")
            elif number == _OPSETS:
                opsets += _standard_opset(data, start, end)
            elif number in _SCHEMA["Model"]:
                _walk(data, start, end, ("Model", _SCHEMA["Model"][number]), external)
    if not graph:
        raise _DamagedError("it has no graph")
    if not opsets or min(opsets) < _OLDEST_OPSET:
        raise _DamagedError(f"its opset is {min(opsets, default=0)}; {_OLDEST_OPSET} or later is needed")
    _check_newest(opsets)
    return OnnxContent(properties, tuple(external))


def _walk(data: mmap.mmap, start: int, end: int, messages: tuple[str, ...], found: list[External]) -> None:
    """Check a text or a message, the last of `messages`, which are within each other."""
    name = messages[-1]
    if name == _TEXT:
        _decode(data[start:end])
        return
    if len(messages) > _DEEPEST:
        raise _DamagedError(f"more than {_DEEPEST} messages are within each other")
    schema = _SCHEMA[name]
    entries: list[dict[int, str]] = []
    elsewhere = False
    for number, kind, inner, inner_end in _fields(data, start, end):
        field = schema.get(number)
        if field == _TEXT and kind == _BYTES:
            if not (text := data[inner:inner_end]).isascii():
                _decode(text)
        elif field == _ZERO:
            # As an enumeration, it has 32 bits.
            elsewhere |= kind != _VARINT or inner & 0xFFFFFFFF != 0
        elif field == "Entry" and (name, number) == ("Tensor", _EXTERNAL_DATA) and kind == _BYTES:
            entries.append(_texts(data, inner, inner_end))
        elif field is not None and kind == _BYTES:
            _walk(data, inner, inner_end, (*messages, field), found)
    if entries or elsewhere:
        if messages != _INITIALIZER:
            raise _DamagedError("it has data in another file that is not the weights of its graph")
        found.append(_external(entries))


def _external(entries: list[dict[int, str]]) -> External:
    """Where a tensor's data is, from the entries that say it."""
    values: dict[str, str] = {}
    for entry in entries:
        key = entry.get(1, "")
        if key in values or key not in ("location", "offset", "length", "checksum"):
            raise _DamagedError(f"its weights in another file have the entry {key[:40]!r}, or have it twice")
        values[key] = entry.get(2, "")
    numbers = [values.get(key, "0") for key in ("offset", "length")]
    if not values.get("location") or not all(
        text.isascii() and text.isdecimal() and len(text) < 19 for text in numbers
    ):
        raise _DamagedError("its weights in another file have no location, or no number as offset or length")
    return External(values["location"], int(numbers[0]), int(numbers[1]))


def _problem(folder: Path, external: External) -> str:
    """Why the data of a tensor must not be read; empty if it may."""
    location = external.location
    parts = location.split("/")
    if "_ORT_MEM_ADDR_" in location:
        return "that is an address in the memory of this process"
    if any(part in ("", ".", "..") for part in parts) or set(location) & set('\\:*?"<>|\0'):
        return "only a plain name, relative to the folder of the ONNX file, is allowed"
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            return "it is a symbolic link, or in one"
    try:
        status = path.stat()
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if external.offset + external.length > status.st_size:
        return (
            f"it has {status.st_size} bytes, and {external.length} from byte {external.offset} on are needed"
        )
    return ""


def _standard_opset(data: mmap.mmap, start: int, end: int) -> list[int]:
    """The version of an opset entry, if it is that of ONNX's own operators."""
    domain, version = b"", 0
    for number, kind, inner, inner_end in _fields(data, start, end):
        if (number, kind) == (1, _BYTES):
            domain = data[inner:inner_end]
        elif (number, kind) == (2, _VARINT):
            version = inner if inner < 1 << 63 else inner - (1 << 64)
    if _decode(domain) in ("", "ai.onnx"):
        return [version]
    _check_newest([version])
    return []


def _check_newest(versions: Iterable[int]) -> None:
    if (newest := max(versions)) > _NEWEST_OPSET:
        raise _DamagedError(f"it has an opset of {newest}; {_NEWEST_OPSET} is the latest allowed")


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, kind, start and end of each field of a message; of a number, the number as its start.

    Raises:
        ValueError: the bytes are not a protobuf message.
    """
    position = start
    while position < end:
        tag = data[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise _DamagedError(f"the field at byte {position} has no number")
        value = 4
        if kind in (_BYTES, _VARINT):
            if position < end and (value := data[position]) < 0x80:
                position += 1
            else:
                value, position = _varint(data, position)
        elif kind == _FIXED64:
            value = 8
        elif kind != _FIXED32:
            raise _DamagedError(f"the field at byte {position} is of no known kind")
        after = position if kind == _VARINT else position + value
        if after > end:
            raise _DamagedError(f"the field at byte {position} goes beyond its end")
        yield number, kind, value if kind == _VARINT else position, after
        position = after


def _texts(data: mmap.mmap, start: int, end: int) -> dict[int, str]:
    """The text fields 1 to 4 of a message, by number; of several the last, as protobuf has it."""
    return {
        number: _decode(data[inner:inner_end])
        for number, kind, inner, inner_end in _fields(data, start, end)
        if kind == _BYTES and number <= _OP_TYPE
    }


def _decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise _DamagedError(f"the text {text[:40]!r} is not UTF-8") from error


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
    raise _DamagedError("a number is cut off")
