"""Load kernels and run plans on a GPU.

    with Device() as device, device.current, LoadedPlan(device, plan) as loaded:
        for name, array in inputs.items():
            loaded.upload(name, array)
        loaded.run()
        count = loaded.download("count")

Plans of an engine share kernels and buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from yolact_runtime.cuda import nvrtc
from yolact_runtime.cuda.compile import compile_kernels, parse_capability
from yolact_runtime.cuda.device import Device, Stream, pycuda_failure
from yolact_runtime.cuda.plans.plan import MAX_SHARED_BYTES, Launch, Plan, kernels_by_source
from yolact_runtime.cuda.resource import Resource
from yolact_runtime.errors import UsageError


class Kernels(Resource):
    """The kernels of some plans, compiled and loaded once; opened and closed with the context current.

    Attributes:
        functions: pycuda's function of each kernel, by source file and kernel. Nobody else may keep one in a
            local variable: it keeps its module alive, and the traceback of an error would keep both.

    Raises:
        YolactError: no compiler for this GPU is installed.
        DeviceError: the driver failed.
    """

    def __init__(self, device: Device, plans: Iterable[Plan]) -> None:
        super().__init__()
        self._device, self._plans = device, tuple(plans)
        self._modules: dict[str, Any] = {}
        self.functions: dict[tuple[str, str], Any] = {}

    def _open(self) -> None:
        """Compile and load each source, and look up its kernels."""
        if not self._plans:  # then no compiler is needed either
            return
        device, gpu = self._device, self._device.gpu
        capability = parse_capability(gpu.capability)
        compiler = nvrtc.choose(capability, newest_major=int(gpu.cuda.split(".")[0]))
        # pycuda unloads a module when nobody refers to it or to its functions any more.
        self._held.callback(self._modules.clear)
        self._held.callback(self.functions.clear)
        for source, kernels in kernels_by_source(self._plans).items():
            compiled = compile_kernels(source, kernels, capability, library=compiler)
            with device.failing(source):
                self._modules[source] = device.cuda.module_from_buffer(compiled.image)
            for kernel in kernels:
                name = compiled.names[kernel]
                with device.failing(kernel):
                    self.functions[source, kernel] = self._modules[source].get_function(name)
        for plan in self._plans:
            for launch in plan.launches:
                self._allow_shared_memory(launch)

    def _allow_shared_memory(self, launch: Launch) -> None:
        """Ask for more shared memory than a block gets by default, where static and dynamic need more."""
        attributes, key = self._device.cuda.function_attribute, (launch.source, launch.kernel)
        with self._device.failing(launch.kernel):
            static = self.functions[key].get_attribute(attributes.SHARED_SIZE_BYTES)
            if static + launch.shared_bytes > MAX_SHARED_BYTES:
                self.functions[key].set_attribute(
                    attributes.MAX_DYNAMIC_SHARED_SIZE_BYTES, launch.shared_bytes
                )


class LoadedPlan(Resource):
    """A plan on a device, with its kernels, buffers and launch arguments prepared once.

    Args:
        device: With its context current from opening to closing.
        plan: The plan.
        memory: Addresses of buffers that belong to others, who keep them at least as long as this. So one
            plan's outputs are another's inputs. Buffers left out are allocated.
        kernels: Where its kernels are loaded already; by default it loads its own.

    Attributes:
        memory: Address of each buffer, by name.

    Raises:
        ValueError: `memory` names a buffer that the plan does not have.
        YolactError: as for `Kernels`.
    """

    def __init__(
        self,
        device: Device,
        plan: Plan,
        memory: Mapping[str, int] | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.device = plan, device
        self._buffers = {buffer.name: buffer for buffer in plan.buffers}
        self.memory = dict(memory or {})
        if unknown := sorted(set(self.memory).difference(self._buffers)):
            raise ValueError(f"the plan has no buffers {unknown}; it has {', '.join(self._buffers)}")
        self._kernels = kernels
        self._calls: list[Callable[[Any], None]] = []

    def _open(self) -> None:
        """Allocate buffers and prepare the launches."""
        kernels = self._kernels or self._held.enter_context(Kernels(self.device, (self.plan,)))
        self._last_stream = self.device.stream
        own = [buffer for buffer in self.plan.buffers if buffer.name not in self.memory]
        for buffer in own:
            self.memory[buffer.name] = self.device.allocate(self._held, buffer.name, buffer.nbytes)
        if own:
            self._held.callback(lambda: self.device.settle(self._last_stream))
        self._held.callback(self._calls.clear)
        for launch in self.plan.launches:
            self._calls.append(
                partial(
                    # pycuda's public launches pack the arguments anew and set a block shape at each call.
                    kernels.functions[launch.source, launch.kernel]._launch_kernel,
                    launch.grid, launch.block, self._pack_arguments(launch), launch.shared_bytes,
                )
            )  # fmt: skip

    def _pack_arguments(self, launch: Launch) -> bytes:
        """The arguments laid out as the kernel's parameters, which are aligned like `struct` aligns them."""
        layout = ""
        values: list[int | float] = []
        for argument in launch.arguments:
            if isinstance(argument, str):
                layout += "P"
                values.append(self.memory[argument])
            else:
                layout += "i" if isinstance(argument, np.int32) else "f"
                values.append(argument.item())
        return struct.pack(layout, *values)

    def upload(self, name: str, array: np.ndarray) -> None:
        """Copy an array into an input and wait for the copy.

        Args:
            name: An input of the plan.
            array: Same shape and dtype as the input.

        Raises:
            UsageError: there is no such input, or the array does not fit it.
            DeviceError: the driver or an earlier kernel failed.
        """
        inputs = {buffer.name: f"{buffer.name} {buffer.shape} {buffer.dtype}" for buffer in self.plan.inputs}
        if inputs.get(name) != (given := f"{name} {array.shape} {array.dtype}"):
            raise UsageError(f"{given} is not an input of the plan; it takes {', '.join(inputs.values())}")
        self.synchronize()
        self.device.upload(self.memory[name], np.ascontiguousarray(array), name)

    def download(self, name: str) -> np.ndarray:
        """A copy of a buffer on the host, after the last `run`.

        Raises:
            UsageError: there is no such buffer.
            DeviceError: the driver or a kernel failed.
        """
        if name not in self._buffers:
            raise UsageError(f"the plan has no buffer {name!r}; it has {', '.join(self._buffers)}")
        array = np.empty(self._buffers[name].shape, self._buffers[name].dtype)
        self.synchronize()
        self.device.download(array, self.memory[name], name)
        return array

    def run(self, stream: Stream | None = None) -> None:
        """Queue all launches on a stream, the device's own by default; does not wait for them.

        Raises:
            DeviceError: the driver failed. A failure inside a kernel shows in a later call.
        """
        self._last_stream = stream or self.device.stream
        for index in range(len(self._calls)):
            self.launch(index, self._last_stream)

    def launch(self, index: int, stream: Stream) -> None:
        """Queue one of the plan's launches on a stream.

        Raises:
            DeviceError: the driver failed; names the kernel.
        """
        try:
            self._calls[index](stream.queue)
        except self.device.errors as error:
            raise pycuda_failure(error, self.plan.launches[index].kernel) from error

    def synchronize(self) -> None:
        """Wait for the last `run`.

        Raises:
            DeviceError: the driver or a kernel failed.
        """
        with self.device.failing("waiting for kernels"):
            self._last_stream.synchronize()
