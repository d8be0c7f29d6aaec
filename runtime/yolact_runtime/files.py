"""Writing files whole or not at all, reading JSON, hashes, and the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yolact_runtime.errors import YolactError


def cache_folder() -> Path:
    """Cache folder: `$YOLACT_CACHE`, else `yolact` in the user's cache folder."""
    if chosen := os.environ.get("YOLACT_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "yolact"


@contextlib.contextmanager
def writing(target: object) -> Iterator[None]:
    """Turn an OSError of the block into a YolactError: `target` cannot be written. A broken pipe passes."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise YolactError(f"cannot write {target}: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success fsync it and rename it to `path`.

    If the block raises, the temporary file is removed and `path` keeps its previous content.

    Raises:
        YolactError: the folder cannot be written to.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
            temporary.chmod(mode & 0o777)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new temporary folder next to `path`; on success rename it to `path`, which must not exist.

    If the block raises, the temporary folder is removed. Its name begins with a dot.

    Raises:
        YolactError: the folder cannot be written to.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as outer:
            folder = Path(outer) / path.name
            folder.mkdir()
            yield folder
            for file in folder.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as opened:
                        os.fsync(opened.fileno())
            folder.rename(path)


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write `value` as JSON to `path`, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=indent)


def read_text(path: str | Path, what: str = "file") -> str:
    """Read UTF-8 text from `path`, without a byte order mark; raises a YolactError that names the file."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise YolactError(f"{what} {path} does not exist") from None
    except OSError as error:
        raise YolactError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise YolactError(f"{what} {path} is not UTF-8 text: {error}") from error


def read_json(path: str | Path, what: str = "file") -> Any:
    """Read JSON from `path`; raises a YolactError that names the file, as `what`."""
    try:
        return json.loads(read_text(path, what))
    except ValueError as error:
        raise YolactError(f"{what} {path} is not valid JSON: {error}") from error


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
