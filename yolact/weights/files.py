"""Reading `.pth` and `.safetensors` files, which somebody else may have written.

What a file declares is compared with what it has before memory is allocated, so that reading takes a few
times the size of the file at most.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.untrusted import beyond, limit, open_regular

MAX_VALUES = 250_000  # numbers, texts and tensors in a file


def read_torch(path: Path, what: str = "checkpoint", tensors: bool = True) -> Any:
    """What `torch.save` wrote to a file: tensors, numbers, strings, lists and dicts; nothing is unpickled.

    Args:
        path: The file, in the zip format or the older one.
        what: What it is, for errors.
        tensors: False leaves the values of tensors in the file.

    Raises:
        YolactError: it is not a regular file, not readable, or declares more than it has; names the file.
    """
    with open_regular(path, what) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        zipped = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        try:
            if zipped:
                _check_zip(file)
            else:
                _check_pickles(file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # Mapped, a tensor cannot reach beyond the file, whatever size it declares.
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
                return _Copier(4 * size + (1 << 20), tensors).copy(content)
        except Exception as error:  # PyTorch raises nearly anything for a damaged file
            raise YolactError(
                f"{path} is not a readable {what} (truncated, or not weights only): {_reason(error)}"
            ) from error


def _reason(error: Exception) -> str:
    """What is wrong: PyTorch's first line is about its own versions where a file is not weights only."""
    lines = [line for line in str(error).splitlines() if "WeightsUnpickler error" in line]
    return first_line(ValueError(lines[0])) if lines else first_line(error)


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of a `.safetensors` file by name, and its metadata.

    Raises:
        YolactError: as `read_torch`.
    """
    from safetensors import safe_open

    with open_regular(path, "weights") as file:
        length = int.from_bytes(file.read(8), "little")
    problem = f"{path} is not a readable .safetensors file"
    if length > limit("structure_bytes"):
        raise YolactError(
            f"{problem}: its header has {length:,} bytes, more than {beyond('structure_bytes')}"
        )
    try:
        with safe_open(path, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except Exception as error:  # besides its own error, what PyTorch raises for types that it lacks
        raise YolactError(f"{problem}: {first_line(error)}") from error


def _check_zip(file: BinaryIO) -> None:
    """Check that nothing in a zip archive is compressed, and that what describes the tensors is not too long.

    Raises:
        ValueError: it is.
    """
    with zipfile.ZipFile(file) as archive:
        items = archive.infolist()
    for item in items:
        if item.compress_type != zipfile.ZIP_STORED or item.file_size != item.compress_size:
            raise ValueError(f"{item.filename[:80]} is compressed, which PyTorch never does")
    described = sum(item.file_size for item in items if not re.match(r"[^/]*/data/", item.filename))
    if described > limit("structure_bytes"):
        raise ValueError(f"besides tensors it has {described:,} bytes, more than {beyond('structure_bytes')}")


def _check_pickles(file: BinaryIO) -> None:
    """Check the same of a file in the older format, which begins with five pickles.

    Raises:
        ValueError: they are too long, or are no pickles.
    """
    start = io.BytesIO(file.read(limit("structure_bytes") + 1))
    try:
        for _ in range(5):
            for _ in pickletools.genops(start):
                pass
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        if start.getbuffer().nbytes > limit("structure_bytes"):
            raise ValueError(f"besides tensors it has more bytes than {beyond('structure_bytes')}") from error
        raise


class _Copier:
    """Copies what was read into memory of its own.

    Args:
        most: Bytes that all tensors may have together: with strides of zero, a small file declares huge ones.
        tensors: Whether to copy them.
    """

    def __init__(self, most: int, tensors: bool) -> None:
        self.left, self.values, self.tensors = most, MAX_VALUES, tensors

    def copy(self, value: Any, depth: int = 0) -> Any:
        """`value` with lists, dicts and tensors copied, any other as it is.

        Raises:
            ValueError: it has too many values, levels, or bytes in tensors.
        """
        self.values -= 1
        if self.values < 0:
            raise ValueError(f"it has more than {MAX_VALUES:,} values")
        if depth > limit("depth"):
            raise ValueError(f"it has more levels than {beyond('depth')}")
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, Mapping):
            return {key: self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self.copy(item, depth + 1) for item in value])
        return value

    def _tensor(self, value: Tensor) -> Tensor:
        if not (self.tensors and is_plain(value)):
            return value
        self.left -= value.numel() * value.element_size()
        if self.left < 0:
            raise ValueError("its tensors declare several times the bytes that the file has")
        return value.detach().clone()


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has its values in memory: not sparse, quantised, nested or meta."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_nested
        and type(tensor) in (Tensor, torch.nn.Parameter)
    )
