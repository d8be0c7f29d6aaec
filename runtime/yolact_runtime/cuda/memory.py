"""The GPU through pycuda: its primary context, memory on both sides, streams and copies.

    with PycudaDevice() as device, ExitStack() as held:
        with device.current:
            address = device.allocate(held, "pixels", 4096)
            pixels = device.pinned(held, "pixels", (4096,), np.uint8)

The primary context is the one that PyTorch, ONNX Runtime and TensorRT use. What pycuda has no functions for
(kernels compiled at run time, CUDA graphs) goes through cuda-bindings in the same context.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from yolact_runtime.cuda.device import Device
from yolact_runtime.errors import DeviceError, YolactError, device_failure, first_line

log = logging.getLogger(__name__)

# CU_STREAM_NON_BLOCKING, which pycuda has no name for: such a stream does not wait for the default stream.
_NON_BLOCKING = 1


class Stream:
    """A queue of work on the GPU.

    Its methods raise what pycuda raises: they are called too often to be wrapped one by one.

    Attributes:
        handle: As TensorRT and cuda-bindings take it.
        queue: pycuda's. Nobody else may keep it, not even in a local variable: an error's traceback would
            make it outlive the context.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self.queue = cuda.Stream(_NON_BLOCKING)
        self.handle = int(self.queue.handle)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Queue the copy of a contiguous pinned array to an address."""
        self._cuda.memcpy_htod_async(address, array, self.queue)

    def download(self, array: np.ndarray, address: int) -> None:
        """Queue the copy from an address to a contiguous pinned array."""
        self._cuda.memcpy_dtoh_async(array, address, self.queue)

    def synchronize(self) -> None:
        """Wait for all that is queued."""
        self.queue.synchronize()

    def close(self) -> None:
        """Give it back: pycuda does so when nobody refers to it any more."""
        self.queue = None


class Event:
    """A mark in a stream, to tell time by."""

    def __init__(self, cuda: Any) -> None:
        self._event = cuda.Event()

    def record(self, stream: Stream) -> None:
        """Put it on a stream."""
        self._event.record(stream.queue)

    def milliseconds_since(self, earlier: Event) -> float:
        """Between the two, once both are reached."""
        return float(self._event.time_since(earlier._event))

    def close(self) -> None:
        """Give it back, as `Stream.close` does."""
        self._event = None


class _Current:
    """The context on top of this thread's stack while a `with` lasts; may be entered by many threads."""

    def __init__(self, context: Any, errors: tuple[type[Exception], ...]) -> None:
        self._context, self._errors = context, errors

    def __enter__(self) -> None:
        try:
            self._context.push()
        except self._errors as error:
            raise pycuda_failure(error, "making the context current") from error

    def __exit__(self, *exception: object) -> None:
        # pycuda ends the process where a thread ends with a context on its stack.
        try:
            self._context.pop()
        except self._errors as error:
            log.warning("%s", pycuda_failure(error, "leaving the context"))


class PycudaDevice(Device):
    """The first visible GPU, with memory, copies and streams by pycuda.

    Unlike `Device`, it leaves no context current on the thread that opens it: `current` is entered around
    each use.

    Attributes:
        current: `with device.current:` makes the primary context current on this thread.
        cuda: `pycuda.driver`.
        errors: What pycuda raises; its own exceptions are no RuntimeErrors, and C++'s become those.
    """

    current: _Current
    cuda: Any
    errors: tuple[type[Exception], ...]

    def _open(self) -> None:
        try:
            import pycuda.driver as cuda
        except ModuleNotFoundError as error:
            raise YolactError(
                f"running TensorRT engines needs pycuda (no module {error.name!r}), which pip builds from"
                ' source with the CUDA toolkit: pip install "yolact[trt]"'
            ) from error
        except ImportError as error:
            raise DeviceError(
                f"pycuda does not load: {first_line(error)}; build it again with this machine's CUDA toolkit:"
                " pip install --no-cache-dir --force-reinstall --no-deps pycuda"
            ) from error
        self._find()
        self.cuda = cuda
        self.errors = (cuda.Error, RuntimeError)
        with self.failing("opening the GPU"):
            cuda.init()
            context = cuda.Device(0).retain_primary_context()
        self._held.callback(self._release, context)
        self.current = _Current(context, self.errors)
        with self.current, ExitStack() as held:
            # For uploads before the first call, and plans that are run by hand.
            self.stream = self.open_stream(held).handle
            self._held.callback(self.close_within, held.pop_all())

    def _release(self, context: Any) -> None:
        try:
            below = self.cuda.Context.get_current()
            # pycuda gives a primary context back only where it is current, and leaves it on the stack.
            context.push()
            context.detach()
        except self.errors as error:
            log.warning("%s", pycuda_failure(error, "releasing the context"))
            return
        if below is None:
            self.free("cuCtxPopCurrent")

    @contextmanager
    def failing(self, at: str) -> Iterator[None]:
        """Turn pycuda's exceptions into a DeviceError that says what for.

        Args:
            at: What is being done, and with what.
        """
        try:
            yield
        except self.errors as error:
            raise pycuda_failure(error, at) from error

    def allocate(self, held: ExitStack, name: str, nbytes: int) -> int:
        with self.failing(f"buffer {name} ({nbytes:,} bytes)"):
            memory = self.cuda.mem_alloc(nbytes)
        held.callback(self._give_back, memory.free, f"buffer {name}")
        return int(memory)

    def pinned(
        self, held: ExitStack, name: str, shape: tuple[int, ...], dtype: np.typing.DTypeLike
    ) -> np.ndarray:
        """An array in page-locked host memory, which copies run to and from by themselves.

        No view of it may be read after `held` has closed.

        Raises:
            DeviceError: there is not as much.
        """
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with self.failing(f"pinned buffer {name} ({nbytes:,} bytes)"):
            array: np.ndarray = self.cuda.pagelocked_empty(shape, dtype)
        allocation: Any = array.base
        held.callback(self._give_back, allocation.free, f"pinned buffer {name}")
        return array

    def open_stream(self, held: ExitStack) -> Stream:
        """A stream that waits for no other.

        Raises:
            DeviceError: pycuda failed.
        """
        with self.failing("a stream"):
            stream = Stream(self.cuda)
        held.callback(stream.close)
        return stream

    def open_event(self, held: ExitStack) -> Event:
        """An event that knows the time.

        Raises:
            DeviceError: pycuda failed.
        """
        with self.failing("an event"):
            event = Event(self.cuda)
        held.callback(event.close)
        return event

    def upload(self, address: int, array: np.ndarray, name: str) -> None:
        """Copy a contiguous array to an address; returns when it is there.

        Raises:
            DeviceError: pycuda failed.
        """
        with self.failing(f"uploading {name} ({array.nbytes:,} bytes)"):
            self.cuda.memcpy_htod(address, array)

    def close_within(self, held: ExitStack) -> None:
        """Close `held` with the context current, or without it where it cannot be."""
        try:
            with self.current:
                held.close()
        except DeviceError as error:
            log.warning("%s", error)
            held.close()

    def _give_back(self, free: Any, what: str) -> None:
        try:
            free()
        except self.errors as error:
            log.warning("%s", pycuda_failure(error, what))


def pycuda_failure(error: BaseException, at: str) -> DeviceError:
    """The error for what pycuda raised; its text is "cuMemAlloc failed: out of memory"."""
    call, _, reason = first_line(error).partition(" failed: ")
    if not reason:
        call, reason = "pycuda", call
    return device_failure("the GPU's driver", call, reason, at)
