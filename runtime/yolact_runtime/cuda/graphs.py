"""CUDA graphs: what is queued on a stream for a call, captured once and replayed by one launch.

pycuda has none of it, so it goes through cuda-bindings, in pycuda's context.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from yolact_runtime.cuda.device import Device
from yolact_runtime.errors import DeviceError

log = logging.getLogger(__name__)


class Graphs:
    """Captures for one engine, until a capture fails: then all is launched one by one.

    Attributes:
        enabled: Whether to capture.
    """

    def __init__(self, device: Device, enabled: bool) -> None:
        self._device = device
        self.enabled = enabled

    def capture(self, held: ExitStack, stream: int, queue: Callable[[], None], what: str) -> Any:
        """Capture what `queue` puts on a stream; nothing of it runs.

        Args:
            held: Gives the graph back when it closes.
            stream: Handle; it stays usable whatever happens.
            queue: May be called in vain.
            what: For the warning.

        Returns:
            What `launch` takes; None where it failed, which is told once.
        """
        try:
            with ExitStack() as mine:
                graph = self._capture(mine, stream, queue)
                made = self._device.hold(held, "cuGraphExecDestroy", "cuGraphInstantiate", graph, 0, at=what)
        except DeviceError as error:
            if self.enabled:
                log.warning("no CUDA graphs, launching one by one: %s", error)
            self.enabled = False
            return None
        return made

    def _capture(self, held: ExitStack, stream: int, queue: Callable[[], None]) -> Any:
        device = self._device
        # What other threads do in the meantime, such as allocating, does not concern this capture.
        mode = device.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        device.call("cuStreamBeginCapture", stream, mode)
        try:
            queue()
        except BaseException:
            self._abandon(held, stream)
            raise
        return device.hold(held, "cuGraphDestroy", "cuStreamEndCapture", stream)

    def _abandon(self, held: ExitStack, stream: int) -> None:
        """End a capture that failed, so that the stream can be used again."""
        try:
            graph = self._device.call("cuStreamEndCapture", stream)
        except DeviceError as error:  # as it must: the capture is invalid
            log.debug("%s", error)
            return
        if graph is not None and int(graph):
            held.callback(self._device.free, "cuGraphDestroy", graph)

    def launch(self, graph: Any, stream: int, at: str) -> None:
        """Queue a captured graph.

        Raises:
            DeviceError: the driver failed.
        """
        self._device.call("cuGraphLaunch", graph, stream, at=at)
