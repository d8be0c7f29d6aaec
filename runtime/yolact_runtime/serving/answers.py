"""From the requests of a batch to their answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from yolact_runtime.engines.base import Engine
from yolact_runtime.errors import YolactError, escape_controls
from yolact_runtime.results import Result
from yolact_runtime.serving.requests import Limits, Request, read_input
from yolact_runtime.serving.tensors import Answer

log = logging.getLogger(__name__)

_In = TypeVar("_In")
_Out = TypeVar("_Out")
Input = tuple[np.ndarray, tuple[int, int]]


class Answers:
    """Answers requests with an engine; those of a batch go through the network together.

    Args:
        engine: What computes.
        threads: Images that are decoded, and masks that are encoded, at the same time.
    """

    def __init__(self, engine: Engine, threads: int = 4) -> None:
        self.engine = engine
        self._pool = ThreadPoolExecutor(threads)

    def of(self, requests: Sequence[Request]) -> list[Answer | YolactError]:
        """The answer of each request, in order; an error for one that cannot be answered."""
        inputs = self.each(lambda request: read_input(request.inputs, self.engine), requests)
        results: list[Result | YolactError] = [
            one if isinstance(one, YolactError) else _NONE for one in inputs
        ]
        groups: dict[Limits, list[tuple[int, Input]]] = {}
        for row, (request, one) in enumerate(zip(requests, inputs, strict=True)):
            if not isinstance(one, YolactError):
                groups.setdefault(request.limits, []).append((row, one))
        most = self.engine.metadata.max_batch
        for limits, group in groups.items():
            for start in range(0, len(group), most):
                rows, images = zip(*group[start : start + most], strict=True)
                for row, result in zip(rows, self._predict(images, limits), strict=True):
                    results[row] = result
        outputs = [request.outputs for request in requests]
        return self.each(_answer, [*zip(results, outputs, strict=True)])

    def _predict(self, inputs: Sequence[Input], limits: Limits) -> list[Result | YolactError]:
        """The results of images with the same limits; if the engine fails on them, of one by one."""
        prepared, sizes = [one[0] for one in inputs], [one[1] for one in inputs]
        values = limits.score_threshold, limits.top_k, limits.classes
        try:
            return [*self.engine.predict_prepared(prepared, sizes, *values)]
        except Exception as error:
            if len(inputs) > 1:
                return [result for one in inputs for result in self._predict([one], limits)]
            return [as_error(error)]

    def each(self, work: Callable[[_In], _Out], values: Iterable[_In]) -> list[_Out | YolactError]:
        """`work` of each value, in threads; its error, for users, where it failed."""

        def done(value: _In) -> _Out | YolactError:
            try:
                return work(value)
            except Exception as error:
                return as_error(error)

        return list(self._pool.map(done, values))

    def close(self) -> None:
        """End the threads, and close the engine."""
        self._pool.shutdown()
        self.engine.close()


_NONE = YolactError("no result")


def as_error(error: Exception) -> YolactError:
    """An error in one line; one of our own code is logged with its traceback, which no client sees."""
    if isinstance(error, YolactError):
        return YolactError(escape_controls(str(error)))
    log.error("a request failed", exc_info=error)
    return YolactError(f"the server failed on it ({type(error).__name__}); its log says where")


def _answer(pair: tuple[Result | YolactError, Collection[str]]) -> Answer:
    result, outputs = pair
    if isinstance(result, YolactError):
        raise result
    return answer_of(result, outputs)


def answer_of(result: Result, outputs: Collection[str]) -> Answer:
    """Those of `OUTPUTS` with these names, of one image; masks are computed only if they are wanted."""
    values: dict[str, Callable[[], np.ndarray]] = {
        "size": lambda: np.array([result.height, result.width], np.int32),
        "boxes": lambda: result.boxes_float,
        "relative_boxes": lambda: result.relative_boxes.reshape(-1, 4),
        "scores": lambda: result.scores,
        "mask_scores": lambda: result.mask_scores,
        "category_ids": lambda: result.category_ids,
        "rles": lambda: np.array([rle["counts"].encode() for rle in result.rles], object),
        "areas": lambda: result.areas,
    }
    return {name: value() for name, value in values.items() if name in outputs}
