"""Stages of a call that become one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from yolact_runtime.cuda.device import Stream
from yolact_runtime.engines.device.model import Model


class Segment:
    """Stages that follow each other on a stream, launched one by one at first and then as a CUDA graph.

    Args:
        model: Says whether graphs are wanted.
        held: Releases the graph.
        stream: The stream.
        stages: Each puts something on the stream that depends on the images only through memory.
        at: What the segment is, for messages.
        ready: Whether it can be captured now.
    """

    def __init__(
        self,
        model: Model,
        held: ExitStack,
        stream: Stream,
        stages: Sequence[Callable[[], None]],
        at: str,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._model, self._held, self._stream = model, held, stream
        self._stages, self._at, self._ready = stages, at, ready
        self._graph: Callable[[], None] | None = None
        self._runs = 0

    def run(self) -> None:
        """Put the stages on the stream.

        The first run is plain: the libraries initialise things in it, which cannot be captured.

        Raises:
            DeviceError: a library or the driver failed.
        """
        graphs = self._model.graphs
        if self._graph is None and self._runs > 0 and graphs.enabled and self._ready():
            self._graph = graphs.capture(self._held, self._stream.handle, self._queue_for_graph, self._at)
        if self._graph is not None:
            self._graph()
        else:
            self._queue()
        self._runs += 1

    def _queue(self) -> None:
        for stage in self._stages:
            stage()

    def _queue_for_graph(self) -> None:
        with self._model.device.failing(self._at):
            self._queue()
