"""How long launches take on a GPU, and how fast its memory is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from yolact_runtime.cuda.device import Device
from yolact_runtime.cuda.launch import LoadedPlan
from yolact_runtime.errors import UsageError

# Larger than the caches of any GPU; writing it keeps the GPU busy while the host queues launches.
FLUSH_BYTES = 256 * 2**20
FLUSHES = 4
BUS_BYTES = 64 * 2**20
COPIES = 10


def time_launches(loaded: LoadedPlan, repeats: int) -> dict[str, list[float]]:
    """Run a plan several times and time each launch, by events on the device's own stream.

    Before each run 1 GiB is written: caches are cold, and the GPU never waits for the host.

    Args:
        loaded: With its inputs uploaded.
        repeats: 1 or more.

    Returns:
        Kernel (the launches of one kernel add up) to milliseconds, (repeats,).

    Raises:
        UsageError: fewer than 1 repeat.
        DeviceError: the driver failed, or there is not enough memory.
    """
    if repeats < 1:
        raise UsageError(f"{repeats} repeats: 1 or more are needed")
    device, launches = loaded.device, loaded.plan.launches
    times = {launch.kernel: [0.0] * repeats for launch in launches}
    with ExitStack() as held:
        memory = device.allocate(held, "to flush caches with", FLUSH_BYTES)

        def flush() -> None:
            for _ in range(FLUSHES):
                device.cuda.memset_d8_async(memory, 0, FLUSH_BYTES, device.stream.queue)

        tasks: list[Callable[[], None]] = [flush]
        tasks += [partial(loaded.launch, index, device.stream) for index in range(len(launches))]
        for repeat in range(repeats):
            for launch, milliseconds in zip(launches, _time(device, tasks)[1:], strict=True):
                times[launch.kernel][repeat] += milliseconds
    return times


def copy_bandwidth(device: Device) -> float:
    """Bytes per second, read plus written, of the fastest of several large copies in the GPU's memory.

    Raises:
        DeviceError: the driver failed, or there is not enough memory.
    """
    with ExitStack() as held:
        source, target = (device.allocate(held, name, FLUSH_BYTES) for name in ("to copy from", "to copy to"))

        def fill() -> None:
            device.cuda.memset_d8_async(source, 0, FLUSH_BYTES, device.stream.queue)

        def copy() -> None:
            device.cuda.memcpy_dtod_async(target, source, FLUSH_BYTES, device.stream.queue)

        milliseconds = min(_time(device, [fill, *[copy] * COPIES])[1:])
    return 2 * FLUSH_BYTES / (milliseconds / 1000)


def bus_bandwidth(device: Device) -> tuple[float, float]:
    """Bytes per second of the fastest of several large copies from page-locked memory to the GPU, and back.

    Raises:
        DeviceError: the driver failed, or there is not enough memory.
    """
    with ExitStack() as held:
        memory = device.allocate(held, "to copy over the bus", BUS_BYTES)
        array = device.pinned(held, "to copy over the bus", (BUS_BYTES,), "uint8")
        stream = device.stream
        up, down = partial(stream.upload, memory, array), partial(stream.download, array, memory)
        upload, download = (min(_time(device, [copy] * COPIES)) / 1000 for copy in (up, down))
    return BUS_BYTES / upload, BUS_BYTES / download


def _time(device: Device, tasks: Sequence[Callable[[], None]]) -> list[float]:
    """Milliseconds that each task takes, all queued one after the other on the device's stream."""
    stream = device.stream
    with device.failing("timing"), ExitStack() as held:
        held.callback(device.settle, stream)  # after an error; events and buffers close afterwards
        events = [device.open_event(held) for _ in range(len(tasks) + 1)]
        events[0].record(stream)
        for task, event in zip(tasks, events[1:], strict=True):
            task()
            event.record(stream)
        stream.synchronize()
        return [later.milliseconds_since(earlier) for earlier, later in itertools.pairwise(events)]
