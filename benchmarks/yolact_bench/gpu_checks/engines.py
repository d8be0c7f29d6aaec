"""An engine on a GPU against the CPU: results, CUDA graphs, several streams, and growth over many calls."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from yolact_bench.gpu_checks.kernels import MismatchError, worse
from yolact_runtime import Engine, Result
from yolact_runtime.engines.load import UnknownOptionError
from yolact_runtime.errors import YolactError

Figures = dict[str, float | int | str]
Open = Callable[..., Engine]

THRESHOLD, TOP_K = 0.0, 20
# Results of the CPU have more rows, so that those that rounding moves across the limit are known.
REFERENCE_TOP_K = 60
# Of the rows, how many must be the CPU's; and how far those may be from it. TensorFloat-32 and half precision
# have mantissas of 10 bits; PyTorch on a CPU, rounding like that, has 0.993, 0.0009 and 0.0002 of pixels.
MATCHED, SCORE_ERROR, BOX_ERROR, PIXELS = 0.9, 0.02, 0.02, 0.005
THREADS, CALLS_PER_THREAD = 5, 20
DEVICE_GROWTH, HOST_GROWTH = 4 * 2**20, 16 * 2**20
LIMITS = {
    "device growth bytes": DEVICE_GROWTH,
    "host growth bytes": HOST_GROWTH,
    "device bytes left": DEVICE_GROWTH,
}


def compare_results(got: Sequence[Result], expected: Sequence[Result]) -> Figures:
    """Figures of how close results are to those of the CPU.

    Args:
        got: With at most `TOP_K` rows.
        expected: Of the same images, with more rows.

    Raises:
        MismatchError: they are not equal but for rounding.
    """
    rows = twins = differing = pixels = 0
    worst = 0.0
    for image, (one, other) in enumerate(zip(got, expected, strict=True)):
        if len(one) != min(TOP_K, len(other)):
            raise MismatchError(
                f"image {image} has {len(one)} instances, and {min(TOP_K, len(other))} are right"
            )
        rows += len(one)
        for row, (label, box) in enumerate(zip(one.classes, one.relative_boxes, strict=True)):
            apart = np.abs(other.relative_boxes - box).max(axis=1, initial=0)
            apart[other.classes != label] = np.inf
            twin = int(apart.argmin())
            if not apart[twin] < BOX_ERROR:
                continue
            twins += 1
            worst = worse(worst, np.abs(one.scores[row] / other.scores[twin] - 1))
            differing += int(np.count_nonzero(one.masks[row] != other.masks[twin]))
            pixels += one.masks[row].size
    if not rows:
        raise MismatchError("nothing was found, so nothing was compared")
    matched, pixel_error = twins / rows, differing / max(pixels, 1)
    if not (matched >= MATCHED and worst <= SCORE_ERROR and pixel_error <= PIXELS):
        raise MismatchError(
            f"results are not those of the CPU: matched {matched:.3g}, score error {worst:.3g}, differing"
            f" pixels {pixel_error:.3g}; allowed are {MATCHED:g} or more, {SCORE_ERROR:g} and {PIXELS:g}"
        )
    return {"matched": matched, "score error": worst, "differing pixels": pixel_error}


def same_results(got: Sequence[Result], expected: Sequence[Result]) -> None:
    """Raise a MismatchError unless results are equal to the bit."""
    for image, (one, other) in enumerate(zip(got, expected, strict=True)):
        for name in ("scores", "classes", "relative_boxes", "coefficients"):
            if not np.array_equal(getattr(one, name), getattr(other, name)):
                raise MismatchError(f"{name} of image {image} differ between two calls")
        if one.rles != other.rles:
            raise MismatchError(f"masks of image {image} differ between two calls")


def check_results(open_engine: Open, images: Sequence[np.ndarray], expected: Sequence[Result]) -> Figures:
    """Compare three calls with the CPU: launched one by one, captured in a graph, replayed.

    Raises:
        MismatchError: a call differs.
    """
    figures: Figures = {}
    with open_engine() as engine:
        for _ in range(3):
            figures = compare_results(engine.predict(images, THRESHOLD, TOP_K), expected)
        figures |= _stages(engine, images[:1])
        figures["engine"] = engine.name
        figures["precision"] = engine.precision
    return figures


def _stages(engine: Engine, images: Sequence[np.ndarray]) -> Figures:
    """GPU time of each stage, which only engines with the kernels on the GPU report.

    Raises:
        MismatchError: detection and masks are computed on the CPU.
    """
    stage_times = getattr(engine, "stage_times", None)
    try:
        if stage_times is None:
            raise YolactError(f"{engine.name} has no kernels around the network")
        return {f"{stage} ms": taken for stage, taken in stage_times(images).items()}
    except YolactError as error:
        raise MismatchError(
            f"only the network runs on the GPU ({error}); yolact-infer with this engine warns why"
        ) from error


def check_graphs(
    open_engine: Open, images: Sequence[np.ndarray], expected: Sequence[Result], repeatable: bool
) -> Figures:
    """Compare calls with and without CUDA graphs; engines without the option `graphs` are left alone."""
    try:
        with open_engine(graphs=False) as plain:
            without = plain.predict(images, THRESHOLD, TOP_K)
    except UnknownOptionError:
        return {"graphs": "no such option"}
    compare_results(without, expected)
    with open_engine(graphs=True) as engine:
        for _ in range(4):
            results = engine.predict(images, THRESHOLD, TOP_K)
            if repeatable:
                same_results(results, without)
            else:
                compare_results(results, expected)
    return {"graphs": "equal" if repeatable else "close"}


def check_streams(
    open_engine: Open, images: Sequence[np.ndarray], repeatable: bool, most: int, streams: int = 3
) -> Figures:
    """Compare calls from more threads than there are streams with calls from one.

    Args:
        open_engine: Opens the engine.
        images: `most` of them.
        repeatable: Whether equal calls return equal bits.
        most: Images in a call.
        streams: Of the engine; engines without that option are called from several threads all the same.
    """
    try:
        engine = open_engine(streams=streams)
    except UnknownOptionError:
        return {"streams": 1}
    problems: list[BaseException] = []
    with engine:
        expected = [engine.predict(images[:n], THRESHOLD, REFERENCE_TOP_K) for n in range(1, most + 1)]
        limit = REFERENCE_TOP_K if repeatable else TOP_K

        def work(first: int) -> None:
            try:
                for call in range(CALLS_PER_THREAD):
                    n = 1 + (first + call) % most
                    results = engine.predict(images[:n], THRESHOLD, limit)
                    (same_results if repeatable else compare_results)(results, expected[n - 1])
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if problems:
        raise problems[0]
    return {"streams": streams}


def check_growth(
    open_engine: Open, images: Sequence[np.ndarray], calls: int, free: Callable[[], int],
    resident: Callable[[], int] | None = None,
) -> Figures:  # fmt: skip
    """Call an engine many times, with batches of all sizes in turn, and watch the memory.

    Args:
        open_engine: Opens the engine.
        images: The largest batch.
        calls: The first fifth warms up.
        free: Free bytes on the device.
        resident: Bytes of this process in memory; by default as the system says.

    Returns:
        Growth in bytes during the calls, and of the device after closing the engine, compared with an engine
        opened and closed before.

    Raises:
        MismatchError: memory grew, twice.
    """
    resident = resident or _resident
    found = _growth(open_engine, images, calls, free, resident)
    if _grown(found):  # once more: what is loaded once, and other programs on the GPU, do not grow again
        found = _growth(open_engine, images, calls, free, resident)
    if grown := _grown(found):
        raise MismatchError(
            f"{grown} over {calls:,} calls: {found[grown]:,}; {LIMITS[grown]:,} are allowed"
            " (other programs on the GPU count)"
        )
    return {"calls": calls, **found}


def _growth(
    open_engine: Open, images: Sequence[np.ndarray], calls: int, free: Callable[[], int],
    resident: Callable[[], int],
) -> dict[str, int]:  # fmt: skip
    """Measure once; names are those of `LIMITS`."""

    def call(engine: Engine, count: int) -> None:
        for number in range(count):
            engine.predict(images[: 1 + number % len(images)], THRESHOLD, TOP_K)

    def settled() -> int:
        gc.collect()
        _empty_cache()
        return free()

    warm = 4 * len(images)
    with open_engine() as engine:
        call(engine, warm)
    before = settled()
    with open_engine() as engine:
        first = max(calls // 5, warm)
        call(engine, first)
        within, host = settled(), resident()
        call(engine, calls - first)
        found = {"device growth bytes": within - settled(), "host growth bytes": resident() - host}
    del engine
    return found | {"device bytes left": before - settled()}


def _grown(found: dict[str, int]) -> str | None:
    """The first figure that is above its limit."""
    return next((name for name, limit in LIMITS.items() if found[name] > limit), None)


def _empty_cache() -> None:
    """Give back what PyTorch keeps for later, if it is loaded and has CUDA."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_memory(device: Any) -> Callable[[], int]:
    """Free bytes of an open `Device`, which keeps the primary context: that is no growth."""
    from yolact_runtime.cuda.gpu import driver_call

    def free() -> int:
        with device.current:
            driver_call("cuCtxSynchronize")
            return int(driver_call("cuMemGetInfo"))

    return free


def _resident() -> int:
    """Bytes of this process in memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)
