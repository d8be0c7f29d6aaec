"""The files of an exported network, and the hashes that it is known by."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from yolact_runtime.engines.onnx_file import check_onnx
from yolact_runtime.errors import YolactError
from yolact_runtime.files import sha256
from yolact_runtime.untrusted import beyond, check_regular, limit

# A file that was changed less than this many seconds ago may change again without another time of change.
_SETTLED = 2.0
# The hash of each file, and what `stat` said of the file when it was read. It may have changed in
# spite of that: writes through mapped memory are dated later, and clocks of network disks differ.
_known: dict[str, tuple[tuple[int, ...], str]] = {}


def content_files(path: Path) -> list[Path]:
    """The files that are read for an ONNX or OpenVINO network or a TensorRT engine, checked.

    Raises:
        YolactError: `check_onnx` refuses it, one of them is not a regular file, or the `.xml` is too large.
    """
    if path.suffix.lower() == ".xml":
        files = [path, path.with_suffix(".bin")]
        for file in files:
            check_regular(file, "OpenVINO file")
        if path.stat().st_size > limit("text_bytes"):
            raise YolactError(f"{path} has more bytes than {beyond('text_bytes')}")
        return files
    if path.suffix.lower() in (".engine", ".plan"):
        check_regular(path, "engine")
        return [path]
    names = {external.location for external in check_onnx(path).external}
    return [path, *(path.parent / name for name in sorted(names))]


def content_hashes(files: Sequence[Path], again: bool = False) -> list[str]:
    """The SHA-256 of each file; a file that does not seem to have changed is read once in a process.

    Args:
        files: Their paths.
        again: Read them all, for what is kept longer than the process.

    Raises:
        YolactError: one cannot be read.
    """
    try:
        return [_hash(file, again) for file in files]
    except OSError as error:
        raise YolactError(f"cannot read {error.filename}: {error.strerror or error}") from error


def _hash(file: Path, again: bool) -> str:
    """The SHA-256 of a file, read again or from memory."""
    status = file.stat()
    state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    known = _known.get(str(file))
    if known and known[0] == state and not again:
        return known[1]
    found = sha256(file)
    # On Windows `st_ctime` is when the file was created, and anybody can set the other time.
    if os.name == "posix" and time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED:
        _known[str(file)] = state, found
    return found
