"""Resources outside Python's memory: opened and closed with `with`, released in the right order."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from yolact_runtime.errors import DeviceError

log = logging.getLogger(__name__)


class Resource:
    """Releases what it holds when it closes, the newest first; `with` opens and closes it.

    If opening fails half way, whatever was held until then is released.
    """

    def __init__(self) -> None:
        self._held = ExitStack()

    def _open(self) -> None:
        """Acquire what is needed, each with a callback in `_held` that releases it."""
        raise NotImplementedError

    def __enter__(self) -> Any:
        with self._held:
            self._open()
            self._held = self._held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()


@contextmanager
def warn_on_failure() -> Iterator[None]:
    """Log a DeviceError as a warning: after a failed release, the others must still be tried."""
    try:
        yield
    except DeviceError as error:
        log.warning("%s", error)
