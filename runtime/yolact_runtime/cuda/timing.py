"""How long launches take on a GPU, and how fast its memory is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from yolact_runtime.cuda.device import Device, DevicePlan
from yolact_runtime.errors import UsageError

# Larger than the caches of any GPU; written so often, it keeps the GPU busy while the host queues launches.
FLUSH_BYTES = 256 * 2**20
FLUSHES = 4
COPIES = 10


def time_launches(kernels: DevicePlan, repeats: int) -> dict[str, list[float]]:
    """Run a plan again and again, and time each launch by events on the device's own stream.

    Before each run 1 GiB is written: caches are cold, and the GPU never waits for the host.

    Args:
        kernels: With its inputs uploaded.
        repeats: 1 or more.

    Returns:
        Kernel (the launches of one kernel add up) to milliseconds, (repeats,).

    Raises:
        UsageError: no repeats.
        YolactError: the driver failed, or the memory does not suffice.
    """
    if repeats < 1:
        raise UsageError(f"{repeats} repeats: 1 or more are needed")
    device, launches = kernels.device, kernels.plan.launches
    kernels.synchronize()
    times: dict[str, list[float]] = {launch.kernel: [] for launch in launches}
    with ExitStack() as held:
        memory = device.hold(held, "cuMemFree", "cuMemAlloc", FLUSH_BYTES)

        def flush() -> None:
            for _ in range(FLUSHES):
                device.call("cuMemsetD8Async", memory, 0, FLUSH_BYTES, device.stream)

        works: list[Callable[[], Any]] = [flush]
        works += [partial(kernels.launch, launch, device.stream) for launch in launches]
        for _ in range(repeats):
            taken = dict.fromkeys(times, 0.0)
            for launch, milliseconds in zip(launches, _time(device, works)[1:], strict=True):
                taken[launch.kernel] += milliseconds
            for kernel, milliseconds in taken.items():
                times[kernel].append(milliseconds)
    return times


def copy_bandwidth(device: Device) -> float:
    """Bytes per second, read and written counted, of the fastest of some large copies in the GPU's memory.

    Raises:
        YolactError: the driver failed, or the memory does not suffice.
    """
    with ExitStack() as held:
        source, target = (device.hold(held, "cuMemFree", "cuMemAlloc", FLUSH_BYTES) for _ in range(2))
        device.call("cuMemsetD8Async", source, 0, FLUSH_BYTES, device.stream)
        copy = partial(device.call, "cuMemcpyDtoDAsync", target, source, FLUSH_BYTES, device.stream)
        milliseconds = min(_time(device, [copy] * COPIES))
    return 2 * FLUSH_BYTES / (milliseconds / 1000)


def _time(device: Device, works: Sequence[Callable[[], Any]]) -> list[float]:
    """Milliseconds that each work takes, queued one after the other on the device's stream."""
    flags = device.driver.CUevent_flags.CU_EVENT_DEFAULT
    with ExitStack() as held:
        events = [device.hold(held, "cuEventDestroy", "cuEventCreate", flags) for _ in range(len(works) + 1)]
        device.call("cuEventRecord", events[0], device.stream)
        for work, event in zip(works, events[1:], strict=True):
            work()
            device.call("cuEventRecord", event, device.stream)
        device.call("cuEventSynchronize", events[-1])
        return [
            float(device.call("cuEventElapsedTime", start, end)) for start, end in itertools.pairwise(events)
        ]
