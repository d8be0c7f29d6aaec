"""CUDA graphs: the work of one call, captured from a stream once and replayed by a single launch.

pycuda has no graphs, so this uses cuda-bindings, within pycuda's context.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from yolact_runtime.cuda.gpu import driver_call
from yolact_runtime.cuda.resource import warn_on_failure
from yolact_runtime.errors import DeviceError

log = logging.getLogger(__name__)


class Graphs:
    """Captures graphs for one engine; after the first failure, work is launched without graphs.

    Attributes:
        enabled: Whether to capture.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def capture(
        self, held: ExitStack, stream: int, queue: Callable[[], None], at: str
    ) -> Callable[[], None] | None:
        """Capture what `queue` puts on a stream, without running it.

        Args:
            held: Releases the graph when it closes.
            stream: Handle; the stream stays usable whatever happens.
            queue: Puts the work on the stream. Called once.
            at: What the graph is for, for messages.

        Returns:
            A function that launches the graph on the stream, and raises DeviceError if the driver fails. None
            if capturing failed, which is logged once.
        """
        try:
            with ExitStack() as mine:
                graph = self._capture(mine, stream, queue)
                executable = driver_call("cuGraphInstantiate", graph, 0, at=at)
        except DeviceError as error:
            if self.enabled:
                log.warning("no CUDA graphs, launching one by one: %s", error)
            self.enabled = False
            return None
        held.callback(_release, "cuGraphExecDestroy", executable)
        return partial(driver_call, "cuGraphLaunch", executable, stream, at=at)

    def _capture(self, held: ExitStack, stream: int, queue: Callable[[], None]) -> Any:
        """The graph of what `queue` puts on the stream; `held` destroys it."""
        from cuda.bindings import driver

        # What other threads do at the same time, such as allocating, does not disturb this capture.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        driver_call("cuStreamBeginCapture", stream, mode)
        try:
            queue()
        except BaseException:
            _abandon(stream)
            raise
        graph = driver_call("cuStreamEndCapture", stream)
        held.callback(_release, "cuGraphDestroy", graph)
        return graph


def _abandon(stream: int) -> None:
    """End a capture that failed, so that the stream can be used again."""
    try:
        graph = driver_call("cuStreamEndCapture", stream)
    except DeviceError as error:  # expected: the capture is invalid
        log.debug("%s", error)
        return
    if graph is not None and int(graph):
        _release("cuGraphDestroy", graph)


def _release(name: str, value: Any) -> None:
    with warn_on_failure():
        driver_call(name, value)
