"""Launch plans: which kernels run on which buffers, as pure data.

A plan depends on shapes and settings only. To run it, compile `kernels(source)` of each of its `sources`,
allocate its buffers, and launch in order on one stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yolact_runtime.errors import UsageError

SOURCE_FOLDER = Path(__file__).resolve().parents[1] / "kernels"
MAX_BLOCK_THREADS = 1024
# Shared memory that a block gets on every device by default.
MAX_SHARED_BYTES = 48 * 1024
MAX_GRID = (2**31 - 1, 65535, 65535)
DTYPES = tuple(map(np.dtype, ("float32", "float16", "int64", "int32", "uint32", "int8", "uint8", "uint64")))


@dataclass(frozen=True)
class Buffer:
    """A dense row-major array in device memory, aligned to 256 bytes.

    Attributes:
        name: Unique in its plan.
        shape: Each 1 or more.
        dtype: One of `DTYPES`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(side) for side in self.shape))
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        if any(side < 1 for side in self.shape):
            raise ValueError(f"buffer {self.name} has shape {self.shape}; each side must be 1 or more")
        if self.dtype not in DTYPES:
            raise ValueError(f"buffer {self.name} is {self.dtype}; allowed are {', '.join(map(str, DTYPES))}")

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        source: File name in the folder `kernels`, such as `detect.cu`.
        kernel: C++ name with its template arguments, such as `filter_scores<__half, float>`.
        grid: Number of blocks in x, y, z.
        block: Number of threads in x, y, z; whole warps, so that every lane of a full-warp operation exists.
        shared_bytes: Dynamic shared memory of a block.
        arguments: Buffer names and int32 or float32 scalars, in the order of the kernel's parameters: buffers
            that it reads, scalars, buffers that it writes. A kernel does not write what it reads. TensorRT's
            ahead-of-time plugins need this order.
    """

    source: str
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    arguments: tuple[str | np.int32 | np.float32, ...]

    def __post_init__(self) -> None:
        """Raise a ValueError for a launch that CUDA or the conventions do not allow."""
        where = f"launch of {self.kernel}"
        if Path(self.source).name != self.source or not self.source.endswith(".cu"):
            raise ValueError(f"{where}: source is {self.source!r}; a file name ending in .cu is needed")
        if len(self.grid) != 3 or not all(1 <= g <= m for g, m in zip(self.grid, MAX_GRID, strict=True)):
            raise ValueError(f"{where}: grid is {self.grid}; each must be 1 or more, at most {MAX_GRID}")
        threads = math.prod(self.block)
        if len(self.block) != 3 or min(self.block) < 1 or threads > MAX_BLOCK_THREADS or threads % 32:
            raise ValueError(
                f"{where}: block is {self.block}; a multiple of 32 threads is needed, "
                f"at most {MAX_BLOCK_THREADS}"
            )
        if not 0 <= self.shared_bytes <= MAX_SHARED_BYTES:
            raise ValueError(
                f"{where}: shared_bytes is {self.shared_bytes}; 0..{MAX_SHARED_BYTES} is allowed"
            )
        for argument in self.arguments:
            if not isinstance(argument, str | np.int32 | np.float32):
                raise ValueError(
                    f"{where}: argument {argument!r} is a {type(argument).__name__}; "
                    "a buffer name, np.int32 or np.float32 is needed"
                )


@dataclass(frozen=True)
class Plan:
    """Launches in order, with the buffers that they use. No buffer has to be cleared before a run.

    Attributes:
        inputs: Buffers that are only read.
        outputs: Buffers that every run writes completely, or as far as another output says.
        workspace: Scratch buffers, whose content does not survive a run.
        launches: One or more.
    """

    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    workspace: tuple[Buffer, ...]
    launches: tuple[Launch, ...]

    def __post_init__(self) -> None:
        """Raise a ValueError if launches and buffers do not match."""
        if not self.launches:
            raise ValueError("a plan needs a launch")
        names = [buffer.name for buffer in self.buffers]
        used = {
            argument for launch in self.launches for argument in launch.arguments if isinstance(argument, str)
        }
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two buffers are named {name}; names must be unique in a plan")
            if name not in used:
                raise ValueError(f"no launch uses buffer {name}; leave it out of the plan")
        for name in sorted(used.difference(names)):
            raise ValueError(f"a launch uses buffer {name}; the plan has {', '.join(names)}")

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """All of them: inputs, outputs, workspace."""
        return self.inputs + self.outputs + self.workspace

    @property
    def sources(self) -> tuple[str, ...]:
        """The source files, each once."""
        return _unique(launch.source for launch in self.launches)

    def kernels(self, source: str) -> tuple[str, ...]:
        """The kernel expressions of a source that the plan launches, each once."""
        return _unique(launch.kernel for launch in self.launches if launch.source == source)


def kernels_by_source(plans: Iterable[Plan]) -> dict[str, tuple[str, ...]]:
    """Source file -> the kernels that any of the plans launches, each once."""
    found: dict[str, dict[str, None]] = {}
    for plan in plans:
        for source in plan.sources:
            found.setdefault(source, {}).update(dict.fromkeys(plan.kernels(source)))
    return {source: tuple(kernels) for source, kernels in found.items()}


def check_limits(kernels: str, limits: Mapping[str, tuple[int, int]]) -> None:
    """Raise a UsageError unless each value is at least 1 and at most its limit.

    Args:
        kernels: Subject of the message, such as "the mask kernels take".
        limits: Name -> (value, limit).
    """
    for name, (value, most) in limits.items():
        if not 1 <= value <= most:
            raise UsageError(f"{kernels} {name} 1..{most}, not {value}")


def float_type(kernels: str, name: str, dtype: np.typing.DTypeLike) -> str:
    """The C++ name of float32 or float16; raises a UsageError that starts with `kernels` for other types."""
    names = {np.dtype(np.float32): "float", np.dtype(np.float16): "__half"}
    if np.dtype(dtype) not in names:
        raise UsageError(f"{kernels} {name} in float32 or float16, not {np.dtype(dtype)}")
    return names[np.dtype(dtype)]


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
