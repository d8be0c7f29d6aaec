"""A fake of ONNX Runtime's CUDA provider, on a `FakeGpu`: sessions compute on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

CUDA = "CUDAExecutionProvider"
REAL = onnxruntime.InferenceSession


class FakeBinding:
    """Addresses of a session's values."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.inputs: dict[str, tuple[Any, list[int], int]] = {}
        self.outputs: dict[str, tuple[Any, list[int], int]] = {}

    def _bind(self, where: dict, name: str, device: str, number: int, kind: Any, shape: Any, at: int) -> None:
        assert (device, number) == ("cuda", 0)
        self.session.gpu.check(at, int(np.prod(shape)) * np.dtype(kind).itemsize)
        where[name] = kind, list(shape), at

    def bind_input(self, *arguments: Any) -> None:
        self._bind(self.inputs, *arguments)

    def bind_output(self, *arguments: Any) -> None:
        self._bind(self.outputs, *arguments)


def install_cuda_provider(gpu: Any, monkeypatch: Any) -> list[Any]:
    """Let ONNX Runtime have the CUDA provider; returns the options of each session with a stream."""
    opened: list[Any] = []

    class Session:
        """With `user_compute_stream` its calls wait on that stream; without, it computes like a session."""

        def __init__(self, path: str, options: Any = None, providers: Any = (), **more: Any) -> None:
            names = [one if isinstance(one, str) else one[0] for one in providers]
            self.cuda, self.gpu, self.stream = names[0] == CUDA, gpu, 0
            chosen = dict(providers[0][1]) if self.cuda else {}
            if self.cuda and gpu.fails("InferenceSession"):
                raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
            self.real = REAL(path, options, providers=["CPUExecutionProvider"])
            if self.cuda and "user_compute_stream" in chosen:
                opened.append(chosen)
                self.stream = int(chosen["user_compute_stream"])
                assert gpu.stack and self.stream in gpu.streams
                gpu.take("forget session", id(self))

        def __del__(self) -> None:
            if getattr(self, "stream", 0):
                if self.stream not in gpu.streams:
                    gpu.problems.append("a session outlived its stream")
                gpu.give_back("forget session", id(self))

        def __getattr__(self, name: str) -> Any:
            if name == "real":
                raise AttributeError(name)
            return getattr(self.real, name)

        def get_providers(self) -> list[str]:
            return [CUDA, "CPUExecutionProvider"] if self.cuda else ["CPUExecutionProvider"]

        def disable_fallback(self) -> None:
            pass

        def io_binding(self) -> Any:
            if not self.stream:
                return self.real.io_binding()
            if gpu.fails("io_binding"):
                raise ValueError("Failed to bind")
            return FakeBinding(self)

        def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
            if not self.stream:
                self.real.run_with_iobinding(binding)
                return
            real, queue = self.real, gpu.streams[self.stream]
            inputs, outputs = dict(binding.inputs), dict(binding.outputs)
            key = "disable_synchronize_execution_providers"
            assert options.get_run_config_entry(key) == "1", "it would wait for the stream"
            assert queue.captured is None, "its staging buffers would be read again by a captured graph"
            assert gpu.stack
            if gpu.fails("run_with_iobinding"):
                raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0")
            queue.put("network", lambda: compute(real, inputs, outputs))

    def compute(session: Any, inputs: dict, outputs: dict) -> None:
        if not gpu.computes:
            return
        binding = session.io_binding()
        for values, bind in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
            for name, (kind, shape, address) in values.items():
                gpu.check(address, int(np.prod(shape)) * np.dtype(kind).itemsize)
                bind(name, "cpu", 0, kind, shape, address)
        session.run_with_iobinding(binding)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    return opened
