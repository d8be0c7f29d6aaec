"""What TensorRT-RTX compiled for this GPU when an engine first ran, kept for the next start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolact_runtime.cuda.gpu import current_gpu
from yolact_runtime.engines.compiled import CompiledNetwork


class RuntimeCache:
    """TensorRT-RTX's runtime cache of an engine, filled from the cache folder.

    Args:
        path: The engine.
        version: Of TensorRT-RTX.
        settings: The engine's `IRuntimeConfig`, which gets the cache: its execution contexts share it.
    """

    def __init__(self, path: Path, version: str, settings: Any) -> None:
        gpu = current_gpu()
        device = None if gpu is None else [gpu.name, gpu.capability]
        self._kept = CompiledNetwork(path, "tensorrt-rtx", version, [], device)
        self._cache = settings.create_runtime_cache()
        self._before = b""
        if entry := self._kept.read():
            data = bytes(entry.data)
            try:
                if not self._cache.deserialize(data):  # of another driver, for example
                    raise ValueError("TensorRT-RTX refuses it")
                self._before = data
            except Exception as error:  # the bindings raise whatever C++ throws
                self._kept.unusable(error)
                self._cache = settings.create_runtime_cache()
        settings.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Keep what has been compiled, if that is more than there was."""
        try:
            data = bytes(self._cache.serialize())
        except Exception as error:  # the bindings raise whatever C++ throws
            self._kept.unusable(error)
            return
        if data and data != self._before:
            self._kept.write({}, data)
            self._before = data
