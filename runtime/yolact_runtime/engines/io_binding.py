"""ONNX Runtime on GPUs, with input and outputs bound to memory that is allocated once."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# NumPy types of ONNX Runtime's.
KINDS = {"tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
          "tensor(float)": np.float32, "tensor(float16)": np.float16}  # fmt: skip


@dataclass(frozen=True)
class _Buffers:
    """The binding for one batch size, its values and their arrays by name."""

    binding: Any
    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


class BoundSession:
    """Runs a session on reused buffers, page-locked if this ONNX Runtime supports that.

    Args:
        session: An `InferenceSession`.
        input_name: Name of its only input.
        output_names: Outputs to return, in order; only their first dimension may be dynamic.
        streams: Number of concurrent calls, each with its own buffers; others wait.
    """

    def __init__(self, session: Any, input_name: str, output_names: Sequence[str], streams: int) -> None:
        """Buffers are allocated by the first call of each batch size."""
        self._session, self._input_name, self._output_names = session, input_name, list(output_names)
        declared = {value.name: value for value in [*session.get_inputs(), *session.get_outputs()]}
        self._shapes = {
            name: ([int(side) for side in declared[name].shape[1:]], KINDS[declared[name].type])
            for name in [input_name, *output_names]
        }
        self._page_locked = page_locked_memory(session)
        self._free: queue.SimpleQueue[dict[int, _Buffers]] = queue.SimpleQueue()
        for _ in range(streams):
            self._free.put({})

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        """Outputs for a batch, as new arrays."""
        by_size = self._free.get()
        try:
            if len(batch) not in by_size:
                by_size[len(batch)] = self._allocate(len(batch))
            buffers = by_size[len(batch)]
            np.copyto(buffers.arrays[self._input_name], batch, casting="no")
            self._session.run_with_iobinding(buffers.binding)
            return [buffers.arrays[name].copy() for name in self._output_names]
        finally:
            self._free.put(by_size)

    def _allocate(self, images: int) -> _Buffers:
        """Allocate and bind the buffers for batches of `images` images."""
        from onnxruntime import OrtValue

        binding, values, arrays = self._session.io_binding(), {}, {}
        for name, (sides, kind) in self._shapes.items():
            shape, memory = [images, *sides], self._page_locked
            if memory is None:
                arrays[name] = np.zeros(shape, kind)
                values[name] = OrtValue.ortvalue_from_numpy(arrays[name])  # on the same memory
            else:
                values[name] = OrtValue.ortvalue_from_shape_and_type(shape, kind, memory_info=memory)
                arrays[name] = values[name].numpy()
            if name == self._input_name:
                binding.bind_ortvalue_input(name, values[name])
            else:
                binding.bind_ortvalue_output(name, values[name])
        return _Buffers(binding, values, arrays)


def page_locked_memory(session: Any) -> Any:
    """Host memory that the device of the session's first provider accesses directly; None if unknown."""
    import onnxruntime

    try:
        from onnxruntime.capi._pybind_state import OrtDeviceMemoryType

        for device in onnxruntime.get_ep_devices():
            if device.ep_name == session.get_providers()[0]:
                return device.memory_info(OrtDeviceMemoryType.HOST_ACCESSIBLE)
    except (ImportError, AttributeError, RuntimeError):  # older versions
        pass
    return None
