"""Reading untrusted files: regular files, JSON and YAML, and the limits on everything that a file may hold.

Every limit is in `LIMITS`, and an environment variable raises or lowers it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from yolact_runtime.errors import UsageError, YolactError

MIB = 1 << 20


class Limit(NamedTuple):
    """A limit: the environment variable that sets it, its default, and what it counts."""

    variable: str
    default: int
    unit: str


LIMITS = {
    "pixels": Limit("YOLACT_MAX_PIXELS", 250_000_000, "pixels of an image or mask"),
    "side": Limit("YOLACT_MAX_SIDE", 65_535, "pixels of the height or width of an image or mask"),
    "image_bytes": Limit("YOLACT_MAX_IMAGE_BYTES", 1024 * MIB, "bytes of an image file"),
    "annotation_bytes": Limit("YOLACT_MAX_ANNOTATION_BYTES", 2048 * MIB, "bytes of an annotation file"),
    "text_bytes": Limit("YOLACT_MAX_TEXT_BYTES", 64 * MIB, "bytes of any other JSON or text file"),
    "row_group_bytes": Limit("YOLACT_MAX_ROW_GROUP_BYTES", 1024 * MIB, "bytes of a row group in Parquet"),
    "list_bytes": Limit("YOLACT_MAX_LIST_BYTES", 16 * MIB, "bytes of a list of names or of YOLO's text"),
    "yaml_bytes": Limit("YOLACT_MAX_YAML_BYTES", MIB // 2, "bytes of a YAML file"),
    "yaml_values": Limit("YOLACT_MAX_YAML_VALUES", 100_000, "values of a YAML file, aliases expanded"),
    "structure_bytes": Limit("YOLACT_MAX_STRUCTURE_BYTES", 4 * MIB, "bytes of weights besides tensors"),
    "download_bytes": Limit("YOLACT_MAX_DOWNLOAD_BYTES", 4096 * MIB, "bytes of a download"),
    "answer_bytes": Limit("YOLACT_MAX_ANSWER_BYTES", 16 * MIB, "bytes of the answer of a server"),
    "name": Limit("YOLACT_MAX_NAME", 4096, "characters of a class or file name"),
    "rle": Limit("YOLACT_MAX_RLE", 4_000_000, "numbers or characters of the RLE of a mask"),
    "outline": Limit("YOLACT_MAX_OUTLINE", 4_000_000, "pixels of the length of a mask's outlines"),
    "instances": Limit("YOLACT_MAX_INSTANCES", 50_000, "instances of a mask image"),
    "depth": Limit("YOLACT_MAX_DEPTH", 64, "levels of lists and objects in JSON and YAML"),
    "input_size": Limit("YOLACT_MAX_INPUT_SIZE", 2048, "pixels of a side of the network's input"),
    "classes": Limit("YOLACT_MAX_CLASSES", 50_000, "classes"),
    "levels": Limit("YOLACT_MAX_LEVELS", 16, "pyramid levels"),
    "priors": Limit("YOLACT_MAX_PRIORS", 5_000_000, "priors"),
    "channels": Limit("YOLACT_MAX_CHANNELS", 4096, "channels or prototypes of a network"),
    "batch": Limit("YOLACT_MAX_BATCH", 1024, "images in one call"),
    "candidates": Limit("YOLACT_MAX_CANDIDATES", 10_000, "detections of an image or candidates of a class"),
    "threads": Limit("YOLACT_MAX_THREADS", 1024, "threads"),
    "runs": Limit("YOLACT_MAX_RUNS", 100_000, "runs of an engine that yolact-bench measures, or in a report"),
    "shards": Limit("YOLACT_MAX_SHARDS", 100_000, "shards of a list of images"),
    "workers": Limit("YOLACT_MAX_WORKERS", 128, "processes that load images"),
    "streams": Limit("YOLACT_MAX_STREAMS", 256, "streams"),
    "unpacked_bytes": Limit("YOLACT_MAX_UNPACKED_BYTES", 64 * MIB, "bytes of unpacked weights in metadata"),
    "engine_file_bytes": Limit("YOLACT_MAX_ENGINE_FILE_BYTES", 4096 * MIB, "bytes of an engine's files"),
    "engine_bytes": Limit("YOLACT_MAX_ENGINE_BYTES", 2048 * MIB, "bytes of memory to try an engine"),
    "engine_seconds": Limit("YOLACT_MAX_ENGINE_SECONDS", 15, "seconds of computing to try an engine"),
    "cache_bytes": Limit(
        "YOLACT_MAX_CACHE_BYTES", 4096 * MIB, "bytes of compiled networks in the cache folder"
    ),
}
_KINDS = {
    stat.S_IFIFO: "pipe",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "disk",
    stat.S_IFSOCK: "socket",
    stat.S_IFDIR: "folder",
}


def limit(name: str) -> int:
    """The value of a limit in `LIMITS`: its environment variable's, else its default.

    Raises:
        UsageError: the variable is not a positive whole number.
    """
    variable, default, unit = LIMITS[name]
    text = os.environ.get(variable, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) > 0):
        raise UsageError(f"{variable} is {text[:40]!r}; it must be a whole number of {unit}, 1 or more")
    return int(text)


def check_limits() -> None:
    """Raise a UsageError if an environment variable of a limit has a wrong value."""
    for name in LIMITS:
        limit(name)


def open_regular(path: str | Path, what: str = "file") -> BinaryIO:
    """Open a regular file to read, which no pipe or device can be: reading those may never end.

    Args:
        path: The file.
        what: What it is, for the error.

    Raises:
        YolactError: it is missing, cannot be read, or is no regular file; names the file.
    """
    try:
        # Opening a pipe would wait for its writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise YolactError(f"{what} {path} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise YolactError(
            f"cannot read {what} {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise YolactError(f"{what} {path} is a {_KINDS.get(stat.S_IFMT(mode), 'device')}, not a file")
    return os.fdopen(handle, "rb")


def read_bytes(path: str | Path, what: str = "file", most: str = "text_bytes") -> bytes:
    """The content of a regular file.

    Args:
        path: The file.
        what: What it is, for the error.
        most: The limit in `LIMITS` on its size.

    Raises:
        YolactError: as `open_regular`, or it is larger; names the file.
    """
    with open_regular(path, what) as file:
        try:
            # Not the limit itself, which would be allocated; in /proc, files have no size.
            size = os.fstat(file.fileno()).st_size or limit(most)
            data = file.read(min(size, limit(most)) + 1)
        except OSError as error:
            raise YolactError(f"cannot read {what} {path}: {error.strerror or error}") from error
    if len(data) > limit(most):
        raise YolactError(f"{what} {path} has more bytes than {beyond(most)}")
    return data


def check_regular(path: str | Path, what: str = "file") -> None:
    """Raise a YolactError as `open_regular`, for a library that opens the file."""
    open_regular(path, what).close()


def beyond(name: str) -> str:
    """The end of an error about a value beyond a limit: the limit, and how to raise it."""
    return f"the {limit(name):,} allowed ({LIMITS[name].variable} sets another limit)"


def parse_json(text: str | bytes, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The value of a JSON text whose levels, numbers and strings are within limits.

    Args:
        text: The text, or its bytes in an encoding of JSON's.
        hook: What to make of each object.

    Raises:
        ValueError: it is not JSON, is nested too deeply, has a whole number that no float holds, or a string
            with half a character (a lone surrogate).
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text)).removeprefix("\ufeff")
        value = json.loads(text, object_hook=hook)
    except RecursionError:
        raise ValueError(f"it has more levels than {beyond('depth')}") from None
    check_values(value)
    return value


def check_values(value: Any, depth_only: bool = False) -> None:
    """Check parsed JSON for what Python reads, but later breaks on.

    Args:
        value: The JSON.
        depth_only: Look at the levels alone, in half of the time.

    Raises:
        ValueError: as `parse_json`.
    """
    deepest = limit("depth")
    level = [value]
    for _ in range(deepest + 1):
        inner: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                inner += item.values()
                if not depth_only:
                    for key in item:
                        check_text(key)
            elif kind is list:
                inner += item
            elif depth_only:
                continue
            elif kind is str:
                check_text(item)
            elif kind is int:
                _check_number(item)
        if not inner:
            return
        level = inner
    raise ValueError(f"it has more levels than {beyond('depth')}")


def check_text(text: str) -> None:
    """Raise a ValueError if a string has half a character, which no file and no terminal takes."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the text {text[:40]!a} has half a character (a lone surrogate)") from None


def _check_number(number: int) -> None:
    try:
        float(number)
    except OverflowError:
        raise ValueError(
            f"a whole number has {len(str(abs(number)))} digits, more than floats hold"
        ) from None


def parse_yaml(text: str) -> Any:
    """A YAML text as dicts, lists and strings: `no`, `007` and dates stay the text that they are.

    Raises:
        ValueError: it is not YAML, is nested too deeply, or has too many values once its aliases are
            expanded.
    """
    import yaml

    loader = None
    try:
        loader = yaml.BaseLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"it has more levels than {beyond('depth')}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    finally:
        if loader is not None:
            loader.dispose()


def _check_size(root: Any) -> None:
    """Check the levels and values of a YAML document, each alias counted as what it stands for."""
    most, deepest = limit("yaml_values"), limit("depth")
    seen = 0
    level = [root]
    for _ in range(deepest + 1):
        inner: list[Any] = []
        for node in level:
            if isinstance(node.value, list):
                for item in node.value:
                    inner += item if isinstance(item, tuple) else (item,)
            if seen + len(inner) > most:
                raise ValueError(
                    f"with its aliases expanded, it has more values than {beyond('yaml_values')}"
                )
        seen += len(inner)
        if not inner:
            return
        level = inner
    raise ValueError(f"it has more levels than {beyond('depth')}")
