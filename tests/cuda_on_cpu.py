"""Runs launch plans on NumPy arrays: the kernels' own source, compiled with g++ behind `cuda_shim/`.

Slow and faithful: threads are fibers that only meet where CUDA says they do, memory that nothing was written
to is poisoned, and writes outside a buffer or into an input, barriers that not every thread reaches, and warp
operations with missing lanes are errors.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact_runtime.cuda.plans.plan import SOURCE_FOLDER, Buffer, Plan

SHIM = Path(__file__).resolve().parent / "cuda_shim"
FLAGS = (
    "-O2",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-ffp-contract=off",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-DCUDA_ON_CPU",
)
GUARD = 256  # bytes before and after each buffer; 0xff, like all memory that nothing was written to
_KINDS: dict[str, Any] = {"b": ctypes.c_void_p, "i": ctypes.c_int32, "f": ctypes.c_float}
FORWARD, REVERSED = 0, 1  # orders in which the threads of a block run; larger numbers are seeds


class KernelError(AssertionError):
    """A kernel does what CUDA leaves undefined, or does not fit its plan."""


class _Request(ctypes.Structure):
    """`cuda_on_cpu::Request`."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("skipped_file", ctypes.c_char_p),
        ("skipped_line", ctypes.c_int),
        ("order", ctypes.c_int),
        ("argument_count", ctypes.c_int),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("kinds", ctypes.c_char_p),
        ("error", ctypes.c_char_p),
        ("error_bytes", ctypes.c_int),
    )


def run(
    plan: Plan,
    inputs: Mapping[str, np.ndarray],
    order: int = FORWARD,
    sources: Mapping[str, str] | None = None,
    skip_barrier: tuple[str, int] = ("", 0),
) -> dict[str, np.ndarray]:
    """Run a plan.

    Args:
        plan: Any.
        inputs: By buffer name; shapes and dtypes must be the plan's.
        order: Of the threads in a block and the blocks in a grid: `FORWARD`, `REVERSED`, or a seed from 2 on.
        sources: Other texts for source files, by file name.
        skip_barrier: File name and line of a `__syncthreads` that shall do nothing.

    Returns:
        Outputs and workspace by name.

    Raises:
        KernelError: see the class.
    """
    if set(inputs) != {buffer.name for buffer in plan.inputs}:
        raise KernelError(f"inputs are {sorted(inputs)}; the plan takes {[b.name for b in plan.inputs]}")
    memory = {buffer.name: _allocate(buffer) for buffer in plan.buffers}
    arrays = {buffer.name: _view(memory[buffer.name], buffer) for buffer in plan.buffers}
    for buffer in plan.inputs:
        value = inputs[buffer.name]
        if value.shape != buffer.shape or value.dtype != buffer.dtype:
            raise KernelError(f"input {buffer.name} is {value.shape} {value.dtype}; the plan has {buffer}")
        arrays[buffer.name][...] = value
    for launch in plan.launches:
        values = [
            arrays[argument].ctypes.data if isinstance(argument, str) else argument.item()
            for argument in launch.arguments
        ]
        kinds = [
            ctypes.c_void_p
            if isinstance(argument, str)
            else (ctypes.c_int32 if isinstance(argument, np.int32) else ctypes.c_float)
            for argument in launch.arguments
        ]
        call(
            launch.source, plan.kernels(launch.source), launch.kernel, launch.grid, launch.block,
            launch.shared_bytes, values, kinds, order, skip_barrier, sources,
        )  # fmt: skip
        for buffer in plan.buffers:
            block = memory[buffer.name]
            if (block[:GUARD] != 0xFF).any() or (block[GUARD + buffer.nbytes :] != 0xFF).any():
                raise KernelError(f"{launch.kernel} wrote outside buffer {buffer.name}")
        for buffer in plan.inputs:
            if arrays[buffer.name].tobytes() != inputs[buffer.name].tobytes():
                raise KernelError(f"{launch.kernel} changed input {buffer.name}")
    return {buffer.name: arrays[buffer.name].copy() for buffer in plan.outputs + plan.workspace}


def call(
    source: str,
    kernels: tuple[str, ...],
    kernel: str,
    grid: Sequence[int],
    block: Sequence[int],
    shared_bytes: int,
    values: Sequence[int | float],
    kinds: Sequence[Any],
    order: int = FORWARD,
    skip_barrier: tuple[str, int] = ("", 0),
    sources: Mapping[str, str] | None = None,
) -> None:
    """Launch one kernel.

    Args:
        source: File name.
        kernels: All that are compiled from it together.
        kernel: One of them.
        grid: Blocks.
        block: Threads.
        shared_bytes: Dynamic shared memory.
        values: Arguments; addresses as integers.
        kinds: `c_void_p`, `c_int32` or `c_float` for each.
        order: As for `run`.
        skip_barrier: As for `run`.
        sources: As for `run`.

    Raises:
        KernelError: see the class.
    """
    library = _library(source, kernels, (sources or {}).get(source))
    letters = {kind: letter for letter, kind in _KINDS.items()}
    boxed = [kind(value) for kind, value in zip(kinds, values, strict=True)]
    error = ctypes.create_string_buffer(500)
    request = _Request(
        tuple(grid), tuple(block), shared_bytes, skip_barrier[0].encode(), skip_barrier[1], order, len(boxed),
        (ctypes.c_void_p * len(boxed))(*(ctypes.addressof(value) for value in boxed)),
        "".join(letters[kind] for kind in kinds).encode(), ctypes.cast(error, ctypes.c_char_p), len(error),
    )  # fmt: skip
    if library[f"launch_{kernels.index(kernel)}"](ctypes.byref(request)):
        raise KernelError(f"{kernel}: {error.value.decode()}")


def kinds(source: str, kernels: tuple[str, ...], kernel: str) -> list[Any]:
    """`c_void_p`, `c_int32` or `c_float` for each parameter of a kernel; arguments as for `call`."""
    function = _library(source, kernels, None)[f"kinds_{kernels.index(kernel)}"]
    function.restype = ctypes.c_char_p
    return [_KINDS[letter] for letter in function().decode()]


def unpack(kinds: Sequence[Any], arguments: bytes) -> tuple[int | float, ...]:
    """The values in a buffer of launch arguments, each aligned to its own size.

    Raises:
        KernelError: the buffer is not as long as these need.
    """
    layout = "".join({ctypes.c_void_p: "P", ctypes.c_int32: "i", ctypes.c_float: "f"}[kind] for kind in kinds)
    if struct.calcsize(layout) != len(arguments):
        raise KernelError(f"arguments have {len(arguments)} bytes, parameters {struct.calcsize(layout)}")
    return struct.unpack(layout, arguments)


def _allocate(buffer: Buffer) -> np.ndarray:
    raw = np.full(buffer.nbytes + 3 * GUARD, 0xFF, np.uint8)
    start = -raw.ctypes.data % GUARD
    return raw[start : start + buffer.nbytes + 2 * GUARD]


def _view(memory: np.ndarray, buffer: Buffer) -> np.ndarray:
    return memory[GUARD : GUARD + buffer.nbytes].view(buffer.dtype).reshape(buffer.shape)


@functools.cache
def _library(source: str, kernels: tuple[str, ...], text: str | None) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernels with")
    text = (SOURCE_FOLDER / source).read_text() if text is None else text
    launchers = "\n".join(
        f'extern "C" int launch_{i}(const cuda_on_cpu::Request *request) {{'
        f" return cuda_on_cpu::launch({kernel}, *request); }}\n"
        f'extern "C" const char *kinds_{i}() {{ return cuda_on_cpu::kinds({kernel}); }}'
        for i, kernel in enumerate(kernels)
    )
    program = f'#line 1 "{source}"\n{text}\n{launchers}\n'
    headers = [*sorted(SHIM.glob("*.h")), *sorted(SOURCE_FOLDER.glob("*.cuh"))]
    digest = hashlib.sha256("\0".join([program, *FLAGS, *(h.read_text() for h in headers)]).encode())
    folder = Path(tempfile.gettempdir()) / f"yolact-cuda-on-cpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{digest.hexdigest()[:32]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as build:
            file = Path(build) / "program.cpp"
            file.write_text(program)
            output = file.with_suffix(".so")
            command = [compiler, *FLAGS, f"-I{SHIM}", f"-I{SOURCE_FOLDER}", str(file), "-o", str(output)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise KernelError(f"{source} does not compile:\n{done.stderr}")
            output.replace(library)
    return ctypes.CDLL(str(library))
