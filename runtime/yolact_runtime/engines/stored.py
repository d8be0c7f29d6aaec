"""The metadata of an exported file, read without the library that runs it."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from pathlib import Path

from yolact_runtime.classes import resolve_classes
from yolact_runtime.engines.onnx_file import read_properties
from yolact_runtime.errors import YolactError
from yolact_runtime.files import is_file, read_json
from yolact_runtime.metadata import PREFIX, Metadata
from yolact_runtime.untrusted import check_regular

# Section of an OpenVINO file's runtime information that holds the properties.
_SECTION = PREFIX.rstrip(".").encode()
# The most bytes of it; a class has a name and an id.
_LONGEST = 1 << 24


def stored_metadata(path: str | Path) -> Metadata | None:
    """What an `.onnx`, `.xml`, `.engine` or `.plan` file says about itself, in milliseconds.

    Nothing else of the file is checked: opening it does that.

    Returns:
        None if there is no such file, if it is of another kind, such as a checkpoint, or if opening it will
        report an error.
    """
    path = Path(path)
    read = {".onnx": read_properties, ".xml": _of_openvino, ".engine": _of_engine, ".plan": _of_engine}
    reader = read.get(path.suffix.lower())
    if reader is None or not is_file(path):
        return None
    try:
        properties = reader(path)
        return Metadata.from_props(properties, path) if properties else None
    except (YolactError, OSError, ValueError, SyntaxError):
        return None


def check_stored_classes(path: str | Path, classes: Iterable[str | int] | None, what: str) -> None:
    """Check classes as `Engine.class_indices` does, before a file is opened that names its own.

    Raises:
        UsageError: the file has no such class.
    """
    if classes is not None and (metadata := stored_metadata(path)):
        resolve_classes(classes, metadata.class_names, metadata.category_ids, what)


def _of_openvino(path: Path) -> dict[str, str]:
    """The properties in the runtime information, which is at the end of an OpenVINO file."""
    check_regular(path, "OpenVINO file")
    begin, end = b"<" + _SECTION + b">", b"</" + _SECTION + b">"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        last = content.rfind(end)
        first = content.rfind(begin, max(0, last - _LONGEST), last) if last >= 0 else -1
        text = content[first : last + len(end)] if first >= 0 else b""
    if not text:
        return {}
    from xml.etree import ElementTree  # which ONNX files do without

    # No entities are declared in a section, so it can have none that grow.
    return {f"{PREFIX}{item.tag}": item.get("value", "") for item in ElementTree.fromstring(text)}


def _of_engine(path: Path) -> dict[str, str]:
    """The properties in the JSON file of a TensorRT engine."""
    from yolact_runtime.engines.tensorrt.record import record_path

    value = read_json(record_path(path), "engine metadata")
    stored = value.get("metadata") if isinstance(value, dict) else None
    if not isinstance(stored, dict):
        return {}
    return {f"{PREFIX}{name}": json.dumps(item) for name, item in stored.items()}
