"""What another library's exception becomes: one line that a user can act on."""

from __future__ import annotations

from pathlib import Path

from yolact_runtime.errors import YolactError, first_line

# How libraries say that memory is short: C++, ONNX Runtime's arena, CUDA, OpenVINO.
_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory", "not enough memory")


def run_failed(path: Path, library: str, error: Exception, images: int) -> YolactError:
    """The error for a call that a library did not get through.

    Args:
        path: The engine.
        library: What runs it.
        error: What it raised.
        images: In the call.
    """
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY):
        return YolactError(
            f"{path}: {library} ran out of memory with {images} image{'s' if images > 1 else ''} in one call;"
            f" use a smaller batch, fewer streams, or free memory ({reason(error)})"
        )
    return YolactError(f"{path}: {library} failed: {reason(error)}")


def reason(error: Exception) -> str:
    """The line of a message that says what is wrong: OpenVINO begins with where in its source that was."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from ", "Check "))] or lines
    return first_line(RuntimeError(telling[0])) if telling else type(error).__name__
