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
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from yolact_runtime.cuda import nvrtc
from yolact_runtime.cuda.compile import compile_kernels, parse_capability
from yolact_runtime.cuda.gpu import Gpu, current_gpu
from yolact_runtime.cuda.plans.plan import MAX_SHARED_BYTES, Buffer, Launch, Plan
from yolact_runtime.cuda.resource import Owner
from yolact_runtime.errors import (
    DeviceError,
    UsageError,
    YolactError,
    device_failure,
    first_line,
    missing_extra,
)

log = logging.getLogger(__name__)


class Device(Owner):
    """The first visible GPU, its primary context made current on this thread, and a stream.

    Attributes:
        gpu: What it is.
        stream: Handle of a stream of its own, which waits for no other.
    """

    gpu: Gpu
    stream: Any

    def _open(self) -> None:
        self._find()
        handle = self.call("cuDeviceGet", 0)
        context = self.call("cuDevicePrimaryCtxRetain", handle)
        self._held.callback(self.free, "cuDevicePrimaryCtxRelease", handle)
        self.call("cuCtxPushCurrent", context)
        self._held.callback(self.free, "cuCtxPopCurrent")
        flags = self.driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self.stream = self.hold(self._held, "cuStreamDestroy", "cuStreamCreate", flags)

    def _find(self) -> None:
        """Set `driver` and `gpu`, or say which is missing."""
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

    def call(self, name: str, *arguments: Any, at: str = "") -> Any:
        """Call a function of the driver; gives its value, or None where it has none.

        Args:
            name: Of the function.
            arguments: Its arguments.
            at: What the call is for, for the error.

        Raises:
            DeviceError: with the name of the call and of its error.
        """
        try:
            status, *values = getattr(self.driver, name)(*arguments)
        except RuntimeError as error:  # the driver lacks the function
            raise device_failure("the GPU's driver", name, first_line(error), at) from error
        if int(status) != 0:
            raise device_failure("the GPU's driver", name, str(getattr(status, "name", status)), at)
        return values[0] if values else None

    def hold(self, held: ExitStack, release: str, create: str, *arguments: Any, at: str = "") -> Any:
        """What the driver's `create` gives; `held` calls `release` on it when it closes."""
        value = self.call(create, *arguments, at=at)
        held.callback(self.free, release, value)
        return value

    def allocate(self, held: ExitStack, name: str, nbytes: int) -> int:
        """Address of new device memory, which `held` gives back when it closes.

        Raises:
            DeviceError: there is not as much; names the buffer and its size.
        """
        at = f"buffer {name} ({nbytes:,} bytes)"
        return int(self.hold(held, "cuMemFree", "cuMemAlloc", nbytes, at=at))

    def load(
        self, plan: Plan, memory: Mapping[str, int] | None = None, kernels: Kernels | None = None
    ) -> DevicePlan:
        """A plan ready to run once it is entered with `with`.

        Args:
            plan: Any.
            memory: Addresses of those of its buffers that belong to others, who keep them for as long as the
                plan; so one plan's outputs are another's inputs. The rest is allocated.
            kernels: Where its kernels are loaded already; otherwise it loads its own.
        """
        return DevicePlan(self, plan, memory or {}, kernels)

    def free(self, name: str, *arguments: Any) -> None:
        """Call a function that gives something back; where it fails, that is a warning."""
        # After an error inside a kernel every call fails: the first one is worth telling, and the rest
        # must still be tried.
        try:
            self.call(name, *arguments)
        except DeviceError as error:
            log.warning("%s", error)


class Kernels(Owner):
    """The kernels of some plans, compiled and loaded once.

    Attributes:
        functions: Handle of each, by source file and kernel.
    """

    def __init__(self, device: Device, plans: Iterable[Plan]) -> None:
        super().__init__()
        self._device, self._plans = device, tuple(plans)
        self.functions: dict[tuple[str, str], Any] = {}

    def _open(self) -> None:
        device, gpu = self._device, self._device.gpu
        if not self._plans:  # then no compiler is needed either
            return
        capability = parse_capability(gpu.capability)
        compiler = nvrtc.choose(capability, newest_major=int(gpu.cuda.split(".")[0]))
        wanted: dict[str, dict[str, None]] = {}
        for plan in self._plans:
            for source in plan.sources:
                wanted.setdefault(source, {}).update(dict.fromkeys(plan.kernels(source)))
        for source, kernels in wanted.items():
            module = compile_kernels(source, tuple(kernels), capability, library=compiler)
            loaded = device.hold(self._held, "cuModuleUnload", "cuModuleLoadData", module.image, at=source)
            for kernel in kernels:
                name = module.names[kernel].encode()
                function = device.call("cuModuleGetFunction", loaded, name, at=kernel)
                self.functions[source, kernel] = function
        for plan in self._plans:
            for launch in plan.launches:
                self._allow_shared(launch)

    def _allow_shared(self, launch: Launch) -> None:
        """Ask for what a block does not get unasked: static and dynamic shared memory count together."""
        attribute = self._device.driver.CUfunction_attribute
        function = self.functions[launch.source, launch.kernel]
        static = self._device.call(
            "cuFuncGetAttribute", attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function
        )
        if static + launch.shared_bytes > MAX_SHARED_BYTES:
            most = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._device.call("cuFuncSetAttribute", function, most, launch.shared_bytes)


class DevicePlan(Owner):
    """A plan's kernels and buffers on a device, allocated once; made by `Device.load`.

    Attributes:
        memory: Address of each buffer, by name.
    """

    def __init__(
        self, device: Device, plan: Plan, memory: Mapping[str, int], kernels: Kernels | None
    ) -> None:
        super().__init__()
        self.plan = plan
        self.device = device
        self._buffers = {buffer.name: buffer for buffer in plan.buffers}
        if unknown := sorted(set(memory).difference(self._buffers)):
            raise ValueError(f"the plan has no buffers {unknown}; it has {', '.join(self._buffers)}")
        self.memory = dict(memory)
        self._kernels = kernels
        self._calls: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = []
        self._last_stream: Any = None

    def _open(self) -> None:
        kernels = self._kernels or self._held.enter_context(Kernels(self.device, (self.plan,)))
        for buffer in self.plan.buffers:
            if buffer.name not in self.memory:
                self.memory[buffer.name] = self.device.allocate(self._held, buffer.name, buffer.nbytes)
        self._calls = [
            self._prepare(launch, kernels.functions[launch.source, launch.kernel])
            for launch in self.plan.launches
        ]
        self._last_stream = self.device.stream

    def _prepare(self, launch: Launch, function: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What `cuLaunchKernel` takes, before and after the stream: made once, launched often."""
        values: list[int | float] = []
        kinds: list[type[ctypes.c_void_p | ctypes.c_int32 | ctypes.c_float]] = []
        for argument in launch.arguments:
            if isinstance(argument, str):
                values.append(self.memory[argument])
                kinds.append(ctypes.c_void_p)
            elif isinstance(argument, np.int32):
                values.append(int(argument))
                kinds.append(ctypes.c_int32)
            else:
                values.append(float(argument))
                kinds.append(ctypes.c_float)
        before = (function, *launch.grid, *launch.block, launch.shared_bytes)
        return before, ((tuple(values), tuple(kinds)), 0)

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
        ends = [self.memory[buffer.name], array.ctypes.data]
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
        for launch, (before, after) in zip(self.plan.launches, self._calls, strict=True):
            self.device.call("cuLaunchKernel", *before, self._last_stream, *after, at=launch.kernel)

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
        before, after = self._calls[self.plan.launches.index(launch)]
        self.device.call("cuLaunchKernel", *before, stream, *after, at=launch.kernel)
