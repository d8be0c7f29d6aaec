"""Plans run on a GPU, through the driver alone.

    with Device() as device, device.load(plan) as kernels:
        for name, array in inputs.items():
            kernels.upload(name, array)
        kernels.run()
        count = kernels.download("count")

Everything lives in the GPU's primary context, which PyTorch and other users of the CUDA runtime share.
"""

from __future__ import annotations

import ctypes
import logging
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np

from yolact_runtime.errors import UsageError, YolactError, first_line, missing_extra
from yolact_runtime.gpu import Gpu, current_gpu
from yolact_runtime.kernels import nvrtc
from yolact_runtime.kernels.compile import compile_kernels, parse_capability
from yolact_runtime.kernels.plan import MAX_SHARED_BYTES, Buffer, Launch, Plan

log = logging.getLogger(__name__)


class _Owner:
    """Gives back what it holds when it closes, the last first; `with` opens and closes it."""

    def __init__(self) -> None:
        self._held = ExitStack()

    def _open(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Any:
        with self._held:
            self._open()
            self._held = self._held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()


class Device(_Owner):
    """The first visible GPU, its primary context made current on this thread, and a stream.

    Attributes:
        gpu: What it is.
        stream: Handle of a stream of its own, which waits for no other.
    """

    gpu: Gpu
    stream: Any

    def _open(self) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            # The other extra, rtx, brings it as well.
            raise missing_extra("running kernels on a GPU (no module 'cuda.bindings')", "trt") from error
        self.driver = driver
        gpu = current_gpu()
        if gpu is None:
            raise YolactError(
                "running kernels needs an NVIDIA GPU and its driver; nvidia-smi shows none here"
            )
        self.gpu = gpu
        handle = self.call("cuDeviceGet", 0)
        context = self.call("cuDevicePrimaryCtxRetain", handle)
        self._held.callback(self._free, "cuDevicePrimaryCtxRelease", handle)
        self.call("cuCtxPushCurrent", context)
        self._held.callback(self._free, "cuCtxPopCurrent")
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self.stream = self.hold(self._held, "cuStreamDestroy", "cuStreamCreate", flags)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the driver; gives its value, or None where it has none.

        Raises:
            YolactError: with the name of the call and of its error.
        """
        try:
            status, *values = getattr(self.driver, name)(*arguments)
        except RuntimeError as error:  # the driver lacks the function
            raise YolactError(f"the GPU's driver failed in {name}: {first_line(error)}") from error
        if int(status) != 0:
            raise YolactError(f"the GPU's driver failed in {name}: {getattr(status, 'name', status)}")
        return values[0] if values else None

    def hold(self, held: ExitStack, release: str, create: str, *arguments: Any) -> Any:
        """What the driver's `create` gives; `held` calls `release` on it when it closes."""
        value = self.call(create, *arguments)
        held.callback(self._free, release, value)
        return value

    def load(self, plan: Plan) -> DevicePlan:
        """A plan ready to run once it is entered with `with`."""
        return DevicePlan(self, plan)

    def _free(self, name: str, *arguments: Any) -> None:
        # After an error inside a kernel every call fails: the first one is worth telling, and the rest
        # must still be tried.
        try:
            self.call(name, *arguments)
        except YolactError as error:
            log.warning("%s", error)


class DevicePlan(_Owner):
    """A plan's kernels and buffers on a device, allocated once; made by `Device.load`."""

    def __init__(self, device: Device, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.device = device
        self._buffers = {buffer.name: buffer for buffer in plan.buffers}
        self._memory: dict[str, Any] = {}
        self._functions: dict[tuple[str, str], Any] = {}
        self._last_stream: Any = None

    def _open(self) -> None:
        device, gpu = self.device, self.device.gpu
        capability = parse_capability(gpu.capability)
        compiler = nvrtc.choose(capability, newest_major=int(gpu.cuda.split(".")[0]))
        for source in self.plan.sources:
            module = compile_kernels(source, self.plan.kernels(source), capability, library=compiler)
            loaded = device.hold(self._held, "cuModuleUnload", "cuModuleLoadData", module.image)
            for kernel in self.plan.kernels(source):
                name = module.names[kernel].encode()
                self._functions[source, kernel] = device.call("cuModuleGetFunction", loaded, name)
        for launch in self.plan.launches:
            self._allow_shared(launch)
        for buffer in self.plan.buffers:
            address = device.hold(self._held, "cuMemFree", "cuMemAlloc", buffer.nbytes)
            self._memory[buffer.name] = address
        self._last_stream = device.stream

    def _allow_shared(self, launch: Launch) -> None:
        """Ask for what a block does not get unasked: static and dynamic shared memory count together."""
        attribute = self.device.driver.CUfunction_attribute
        function = self._functions[launch.source, launch.kernel]
        static = self.device.call(
            "cuFuncGetAttribute", attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function
        )
        if static + launch.shared_bytes > MAX_SHARED_BYTES:
            most = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.device.call("cuFuncSetAttribute", function, most, launch.shared_bytes)

    def upload(self, name: str, array: np.ndarray) -> None:
        """Copy an array into an input; returns when it is there.

        Args:
            name: Of an input of the plan.
            array: Of its shape and dtype.

        Raises:
            UsageError: there is no such input, or the array does not fit it.
            YolactError: the driver failed.
        """
        names = [buffer.name for buffer in self.plan.inputs]
        if name not in names:
            raise UsageError(f"the plan has no input {name!r}; it takes {', '.join(names)}")
        buffer = self._buffers[name]
        if array.shape != buffer.shape or array.dtype != buffer.dtype:
            raise UsageError(
                f"input {name} is {array.shape} {array.dtype}; the plan takes {buffer.shape} {buffer.dtype}"
            )
        self._copy("cuMemcpyHtoDAsync", buffer, np.ascontiguousarray(array))

    def download(self, name: str) -> np.ndarray:
        """A copy of a buffer on the host, after all that was queued by `run`.

        Raises:
            UsageError: there is no such buffer.
            YolactError: the driver failed, or a kernel before.
        """
        if name not in self._buffers:
            raise UsageError(f"the plan has no buffer {name!r}; it has {', '.join(self._buffers)}")
        buffer = self._buffers[name]
        array = np.empty(buffer.shape, buffer.dtype)
        self._copy("cuMemcpyDtoHAsync", buffer, array)
        return array

    def _copy(self, function: str, buffer: Buffer, array: np.ndarray) -> None:
        self.synchronize()
        ends = [self._memory[buffer.name], array.ctypes.data]
        if function == "cuMemcpyDtoHAsync":
            ends.reverse()
        self.device.call(function, *ends, buffer.nbytes, self.device.stream)
        self.device.call("cuStreamSynchronize", self.device.stream)

    def run(self, stream: Any = None) -> None:
        """Queue all launches; does not wait for them.

        Args:
            stream: Handle of a stream in the same context, such as `torch.cuda.current_stream().cuda_stream`;
                the device's own by default.

        Raises:
            YolactError: the driver failed. What fails inside a kernel shows in the next call.
        """
        self._last_stream = self.device.stream if stream is None else stream
        for launch in self.plan.launches:
            self.launch(launch, self._last_stream)

    def synchronize(self) -> None:
        """Wait for what `run` queued last.

        Raises:
            YolactError: the driver or a kernel failed.
        """
        self.device.call("cuStreamSynchronize", self._last_stream)

    def launch(self, launch: Launch, stream: Any) -> None:
        """Queue one of the plan's launches on a stream.

        Raises:
            YolactError: the driver failed.
        """
        values: list[int | float] = []
        kinds: list[type[ctypes.c_void_p | ctypes.c_int32 | ctypes.c_float]] = []
        for argument in launch.arguments:
            if isinstance(argument, str):
                values.append(int(self._memory[argument]))
                kinds.append(ctypes.c_void_p)
            elif isinstance(argument, np.int32):
                values.append(int(argument))
                kinds.append(ctypes.c_int32)
            else:
                values.append(float(argument))
                kinds.append(ctypes.c_float)
        self.device.call(
            "cuLaunchKernel", self._functions[launch.source, launch.kernel], *launch.grid, *launch.block,
            launch.shared_bytes, stream, (tuple(values), tuple(kinds)), 0,
        )  # fmt: skip
