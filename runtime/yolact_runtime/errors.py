"""The one exception a user is meant to read."""

from __future__ import annotations


class YolactError(Exception):
    """Something the user can mend: one readable line (what, the value, what is allowed, what to run next).

    The command line prints it without a traceback (`--debug` shows one) and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(YolactError):
    """The command or the call was wrong (unknown option value, impossible combination): exit code 2."""

    exit_code = 2


def missing_extra(what: str, extra: str) -> YolactError:
    """The error for a library that an optional extra brings."""
    return YolactError(f'{what} needs packages that are not installed; run: pip install "yolact[{extra}]"')


def first_line(error: BaseException) -> str:
    """The first line of another library's error, shortened: the rest is for its developers."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if len(text) <= 200 else text[:197] + "..."


def run_failed(path: object, library: str, error: BaseException, images: int) -> YolactError:
    """The error for a call that a backend did not get through.

    Args:
        path: The engine.
        library: What runs it.
        error: What the library raised.
        images: In the call.
    """
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY):
        smaller = "use a smaller batch or fewer streams" if images > 1 else "use fewer streams"
        return YolactError(
            f"{path}: {library} is out of memory with {images} image{'s' if images > 1 else ''} of input;"
            f" {smaller}, or free memory ({first_line(error)})"
        )
    return YolactError(f"{path}: {library} failed: {first_line(error)}")


# How libraries say that they are out of memory: C++, ONNX Runtime's arena, CUDA, OpenVINO.
_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory", "not enough memory")
