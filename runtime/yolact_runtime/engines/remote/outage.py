"""How long a server may be away, and when to try it again."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from yolact_runtime.errors import EngineUnavailableError, YolactError, counted

log = logging.getLogger(__name__)

# Seconds before the second attempt, doubled for each further one, and the longest.
FIRST, LONGEST = 0.25, 5.0


class Unavailable(YolactError):  # noqa: N818 - a reason to wait
    """A request was not answered, because of the server or the connection: it may be sent again."""


class Outage:
    """The time in which a server does not answer, which all threads of an engine share.

    Args:
        name: Of the server, for messages.
        seconds: How long it may be away.
        retries: How often one request may be sent again; None for as often as there is time.
        clock: In seconds.

    Attributes:
        retried: How often a request was sent again.
    """

    def __init__(
        self, name: str, seconds: float, retries: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._seconds, self._retries, self._clock = name, seconds, retries, clock
        self._lock = threading.Lock()
        self._since: float | None = None
        self.retried = 0

    @property
    def lasts(self) -> bool:
        """Whether the last request was not answered."""
        return self._since is not None

    def wait_after(self, error: Unavailable, attempt: int, first: float | None = None) -> float:
        """Seconds to wait before a request is sent again, whose `attempt`-th attempt (from 1) failed.

        Half of it is random, so that clients do not come back all at once. `first` is when its first attempt
        failed; None if this is it.

        Raises:
            EngineUnavailableError: the server has been away for too long.
            YolactError: this request was not answered for as long, while others were.
        """
        with self._lock:
            begins = self._since is None
            since = self._since = self._clock() if self._since is None else self._since
            now = self._clock()
        away = now - since
        # Others were answered for long, and not just those on their way as the server ended.
        if first is not None and now - first >= self._seconds and since - first > self._seconds / 2:
            raise YolactError(f"not answered in {counted(attempt, 'attempt')}, while others were: {error}")
        left = self._seconds - away
        if left <= 0 or (self._retries is not None and attempt > self._retries):
            raise EngineUnavailableError(
                f"{self._name} did not answer {counted(attempt, 'attempt')} in {away:.0f} s: {error};"
                " start the server or check the address, and run again (--retry-seconds waits longer)"
            )
        with self._lock:
            self.retried += 1
        if begins:
            log.warning("%s: %s; trying again for up to %.0f s", self._name, error, left)
        else:
            log.debug("%s: attempt %d: %s", self._name, attempt, error)
        longest = min(LONGEST, FIRST * 2 ** min(attempt - 1, 30))
        return min(left, longest * random.uniform(0.5, 1))

    def end(self) -> None:
        """A request was answered."""
        if self._since is None:
            return
        with self._lock:
            since, self._since = self._since, None
        if since is not None:
            log.info("%s is back after %.1f s", self._name, self._clock() - since)
