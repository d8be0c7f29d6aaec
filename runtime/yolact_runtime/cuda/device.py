"""The first GPU through pycuda: its primary context, memory on both sides, streams, events and copies.

    with Device() as device, device.current, ExitStack() as held:
        address = device.allocate(held, "pixels", 4096)
        pixels = device.pinned(held, "pixels", (4096,), np.uint8)
        device.stream.upload(address, pixels)
        device.stream.synchronize()

PyTorch, ONNX Runtime and TensorRT use the same primary context. `launch.py` runs kernels on a device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np

from yolact_runtime.cuda.gpu import Gpu, current_gpu, driver_call
from yolact_runtime.cuda.resource import Resource, warn_on_failure
from yolact_runtime.errors import DeviceError, YolactError, device_failure, first_line
from yolact_runtime.packages import imports_failed

log = logging.getLogger(__name__)

# CU_STREAM_NON_BLOCKING, which pycuda has no name for: such a stream does not wait for the default stream.
_NON_BLOCKING = 1


class Stream:
    """A queue of work on the GPU.

    Its methods raise pycuda's own exceptions: they are called too often to be wrapped one by one.

    Attributes:
        handle: For TensorRT and cuda-bindings.
        queue: pycuda's stream. Nobody else may keep it, not even in a local variable: the traceback of an
            error would make it outlive the context.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self.queue = cuda.Stream(_NON_BLOCKING)
        self.handle = int(self.queue.handle)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Queue the copy of a contiguous array to an address; asynchronous if the array is pinned."""
        self._cuda.memcpy_htod_async(address, array, self.queue)

    def download(self, array: np.ndarray, address: int) -> None:
        """Queue the copy from an address to a contiguous array; asynchronous if the array is pinned."""
        self._cuda.memcpy_dtoh_async(array, address, self.queue)

    def synchronize(self) -> None:
        """Wait for all queued work."""
        self.queue.synchronize()

    def close(self) -> None:
        """Release it: pycuda destroys a stream when nobody refers to it any more."""
        self.queue = None


class Event:
    """A mark in a stream, to measure time between two of them."""

    def __init__(self, cuda: Any) -> None:
        self._event = cuda.Event()

    def record(self, stream: Stream) -> None:
        """Put it on a stream."""
        self._event.record(stream.queue)

    def milliseconds_since(self, earlier: Event) -> float:
        """The time between the two, once the stream has reached both."""
        return float(self._event.time_since(earlier._event))

    def close(self) -> None:
        """Release it, like `Stream.close`."""
        self._event = None


class _Current:
    """The context on top of this thread's stack during a `with`; any number of threads may enter it."""

    def __init__(self, context: Any, errors: tuple[type[Exception], ...]) -> None:
        self._context, self._errors = context, errors

    def __enter__(self) -> None:
        try:
            self._context.push()
        except self._errors as error:
            raise pycuda_failure(error, "making the context current") from error

    def __exit__(self, *exception: object) -> None:
        try:  # pycuda ends the process if a thread ends with a context on its stack
            self._context.pop()
        except self._errors as error:
            log.warning("%s", pycuda_failure(error, "leaving the context"))


class Device(Resource):
    """The first visible GPU.

    Its context is current only within `with device.current:`, which every use has to enter, on any thread.

    Attributes:
        gpu: Name, compute capability and CUDA version.
        current: Makes the primary context current on this thread.
        stream: A stream for synchronous copies, and for plans that run outside an engine.
        cuda: The module `pycuda.driver`.
        errors: pycuda's exceptions: its own are not RuntimeErrors, but C++'s become those.

    Raises:
        YolactError: there is no GPU, or pycuda or cuda-bindings is not installed.
        DeviceError: pycuda does not load, or the driver failed.
    """

    gpu: Gpu
    current: _Current
    stream: Stream
    cuda: Any
    errors: tuple[type[Exception], ...]

    def _open(self) -> None:
        """Retain the primary context and open the stream."""
        self.gpu, self.cuda = _find_gpu(), _import_pycuda()
        self.errors = (self.cuda.Error, RuntimeError)
        with self.failing("opening the GPU"):
            self.cuda.init()
            context = self.cuda.Device(0).retain_primary_context()
        self._held.callback(self._release, context)
        self.current = _Current(context, self.errors)
        with self.current, ExitStack() as held:
            self.stream = self.open_stream(held)
            self._held.callback(self.close_within, held.pop_all())

    def _release(self, context: Any) -> None:
        """Release the primary context, which pycuda only does while it is current."""
        with warn_on_failure():
            with self.failing("releasing the context"):
                below = self.cuda.Context.get_current()
                context.push()
                context.detach()
            if below is None:  # pycuda leaves it on the driver's stack, and cannot pop it from there any more
                driver_call("cuCtxPopCurrent")

    @contextmanager
    def failing(self, at: str) -> Iterator[None]:
        """Turn pycuda's exceptions into a DeviceError.

        Args:
            at: What is being done, and with what, for the message.
        """
        try:
            yield
        except self.errors as error:
            raise pycuda_failure(error, at) from error

    def allocate(self, held: ExitStack, name: str, nbytes: int) -> int:
        """The address of new device memory, which `held` frees when it closes.

        Raises:
            DeviceError: there is not enough; names the buffer and its size.
        """
        with self.failing(f"buffer {name} ({nbytes:,} bytes)"):
            memory = self.cuda.mem_alloc(nbytes)
        held.callback(self._free, memory.free, f"buffer {name}")
        return int(memory)

    def pinned(
        self, held: ExitStack, name: str, shape: tuple[int, ...], dtype: np.typing.DTypeLike
    ) -> np.ndarray:
        """A new array in page-locked host memory, for asynchronous copies; `held` frees it when it closes.

        No view of it may be read after that.

        Raises:
            DeviceError: there is not enough; names the buffer and its size.
        """
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with self.failing(f"pinned buffer {name} ({nbytes:,} bytes)"):
            array: np.ndarray = self.cuda.pagelocked_empty(shape, dtype)
        allocation: Any = array.base
        held.callback(self._free, allocation.free, f"pinned buffer {name}")
        return array

    def _free(self, free: Callable[[], None], name: str) -> None:
        with warn_on_failure(), self.failing(name):
            free()

    def open_stream(self, held: ExitStack) -> Stream:
        """A new stream that waits for no other; `held` closes it.

        Raises:
            DeviceError: the driver failed.
        """
        with self.failing("a stream"):
            stream = Stream(self.cuda)
        held.callback(stream.close)
        return stream

    def open_event(self, held: ExitStack) -> Event:
        """A new event that records the time; `held` closes it.

        Raises:
            DeviceError: the driver failed.
        """
        with self.failing("an event"):
            event = Event(self.cuda)
        held.callback(event.close)
        return event

    def upload(self, address: int, array: np.ndarray, name: str) -> None:
        """Copy a contiguous array to an address and wait for the copy.

        Raises:
            DeviceError: the driver failed.
        """
        self._copy(partial(self.stream.upload, address, array), f"uploading {name} ({array.nbytes:,} bytes)")

    def download(self, array: np.ndarray, address: int, name: str) -> None:
        """Copy from an address to a contiguous array and wait for the copy.

        Raises:
            DeviceError: the driver failed.
        """
        self._copy(
            partial(self.stream.download, array, address), f"downloading {name} ({array.nbytes:,} bytes)"
        )

    def _copy(self, copy: Callable[[], None], at: str) -> None:
        try:
            copy()
            self.stream.synchronize()
        except self.errors as error:
            self.settle(self.stream)
            raise pycuda_failure(error, at) from error

    def settle(self, stream: Stream) -> None:
        """Wait for a stream whose buffers are about to be freed, perhaps after an error."""
        try:
            stream.synchronize()
        except self.errors as error:
            log.debug("%s", error)

    def close_within(self, held: ExitStack) -> None:
        """Close `held` with the context current, or without it if that fails."""
        try:
            with self.current:
                held.close()
        except DeviceError as error:
            log.warning("%s", error)
            held.close()


def check_packages() -> None:
    """Check that this machine has what kernels need, apart from their compiler.

    Raises:
        YolactError: as for `Device`, which is not opened.
    """
    _find_gpu()
    _import_pycuda()


def _find_gpu() -> Gpu:
    """The GPU, or an error that names what is missing."""
    try:
        from cuda.bindings import driver  # noqa: F401
    except ImportError as error:
        raise imports_failed(error, "running kernels on a GPU") from error
    gpu = current_gpu()
    if gpu is None:
        raise YolactError("running kernels needs an NVIDIA GPU and its driver; nvidia-smi shows none here")
    return gpu


def _import_pycuda() -> Any:
    """`pycuda.driver`, or an error that says how to install it."""
    try:
        import pycuda.driver as cuda
    except ModuleNotFoundError as error:
        raise YolactError(
            f"running on a GPU needs pycuda (no module {error.name!r}), which pip builds from source with the"
            ' CUDA toolkit: pip install "yolact[cuda]"'
        ) from error
    except ImportError as error:
        raise DeviceError(
            f"pycuda does not load: {first_line(error)}; build it again with this machine's CUDA toolkit:"
            " pip install --no-cache-dir --force-reinstall --no-deps pycuda"
        ) from error
    return cuda


def pycuda_failure(error: BaseException, at: str) -> DeviceError:
    """The DeviceError for one of pycuda's exceptions, whose text is "cuMemAlloc failed: out of memory"."""
    call, _, reason = first_line(error).partition(" failed: ")
    if not reason:
        call, reason = "pycuda", call
    return device_failure("the GPU's driver", call, reason, at)
