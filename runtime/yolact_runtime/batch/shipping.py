"""The files of an engine on the workers of a cluster: those of a shared folder, or copies."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_runtime.errors import YolactError
from yolact_runtime.files import is_file, sha256
from yolact_runtime.outputs import engine_files

LARGEST = 512 << 20  # bytes of files that are copied to workers


@dataclass(frozen=True)
class ShippedEngine:
    """An engine for workers.

    Attributes:
        path: Its path where the run was started; a name or address if no file is there.
        hashes: SHA-256 of each file, by its path relative to the engine's folder.
        contents: Reference to the bytes of each file in Ray's object store; None if they are too large.
    """

    path: str
    hashes: dict[str, str]
    contents: Any = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[str]:
        """The path of the engine on this worker, for as long as it takes to load it.

        Raises:
            YolactError: no shared folder has the files, and they are too large to be copied.
        """
        if not self.hashes or self._is_shared():
            yield self.path
            return
        if self.contents is None:
            raise YolactError(
                f"engine {self.path} is not the same file on node {socket.gethostname()}, and only up to"
                f" {LARGEST >> 20} MiB in one folder are copied; put it in a folder that all nodes share"
            )
        import ray

        with tempfile.TemporaryDirectory(prefix="yolact-engine-") as folder:
            for name, data in ray.get(self.contents).items():
                target = Path(folder, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            yield str(Path(folder, Path(self.path).name))

    def _is_shared(self) -> bool:
        """Whether the files are at the same path on this node."""
        folder = Path(self.path).parent
        return all(
            is_file(folder / name) and sha256(folder / name) == found for name, found in self.hashes.items()
        )


def ship(engine: str) -> ShippedEngine:
    """Put the files of an engine into Ray's object store, unless they are too large for it.

    Args:
        engine: A file; the name or address of an engine passes as it is.
    """
    import ray

    if not is_file(engine):
        return ShippedEngine(engine, {})
    path = Path(engine).absolute()
    files = {os.path.relpath(file, path.parent): file for file in engine_files(path) if is_file(file)}
    hashes = {name: sha256(file) for name, file in files.items()}
    outside = any(name.startswith(os.pardir) for name in files)
    if outside or sum(file.stat().st_size for file in files.values()) > LARGEST:
        return ShippedEngine(str(path), hashes)
    contents = ray.put({name: file.read_bytes() for name, file in files.items()})
    return ShippedEngine(str(path), hashes, contents)
