"""A fake of `cuda.bindings.driver`, on a `FakeGpu`: queries and CUDA graphs, which pycuda does not have."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


class Graph(int):
    """A handle with the work that it stands for."""

    works: list[tuple[str, Callable[[], None]]]


def make_driver(gpu: Any) -> Any:
    """`cuda.bindings.driver`, as far as the runtime uses it."""

    def graph(end: str, works: list[tuple[str, Callable[[], None]]]) -> Graph:
        made = Graph(gpu.number())
        made.works = works
        gpu.take(end, made)
        return made

    def begin_capture(stream: int, mode: int) -> None:
        assert mode == 1
        gpu.streams[stream].captured = []

    def end_capture(stream: int) -> Graph:
        captured, gpu.streams[stream].captured = gpu.streams[stream].captured, None
        return graph("cuGraphDestroy", captured or [])

    def launch(executable: Graph, stream: int) -> None:
        for name, work in executable.works:
            gpu.streams[stream].put(f"graph: {name}", work)

    functions: dict[str, Callable[..., Any]] = {
        "cuInit": lambda flags: None,
        "cuDeviceGet": lambda ordinal: f"device {ordinal}",
        "cuDeviceGetAttribute": lambda attribute, device: attribute,
        "cuDeviceGetName": lambda length, device: b"NVIDIA RTX A4000".ljust(length, b"\0"),
        "cuDriverGetVersion": lambda: 12080,
        "cuCtxSynchronize": lambda: None,
        "cuMemGetInfo": lambda: 2**34 - sum(nbytes for nbytes, _ in gpu.blocks.values()),
        "cuCtxPopCurrent": lambda: gpu.give_back("cuCtxPopCurrent", "context"),
        "cuStreamBeginCapture": begin_capture,
        "cuStreamEndCapture": end_capture,
        "cuGraphInstantiate": lambda graph_, flags: graph("cuGraphExecDestroy", graph_.works),
        "cuGraphLaunch": launch,
        "cuGraphDestroy": lambda value: gpu.give_back("cuGraphDestroy", value),
        "cuGraphExecDestroy": lambda value: gpu.give_back("cuGraphExecDestroy", value),
    }

    def guarded(name: str, function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            if gpu.fails(name):
                if name == "cuStreamEndCapture":  # the capture ends all the same
                    gpu.streams[arguments[0]].captured = None
                return (gpu.error,)
            value = function(*arguments)
            return (CUresult.CUDA_SUCCESS,) if value is None else (CUresult.CUDA_SUCCESS, value)

        return call

    return SimpleNamespace(
        CUdevice_attribute=SimpleNamespace(
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=8, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=6
        ),
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1),
        **{name: guarded(name, function) for name, function in functions.items()},
    )
