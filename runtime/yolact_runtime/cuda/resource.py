"""Who holds something outside Python's memory gives it back, once and in the right order."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any


class Owner:
    """Gives back what it holds when it closes, the last first; `with` opens and closes it.

    Where opening fails half way, what was held until then is given back.
    """

    def __init__(self) -> None:
        self._held = ExitStack()

    def _open(self) -> None:
        """Take what is needed, each with a callback in `_held` that gives it back."""
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
