"""The one exception a user is meant to read."""

from __future__ import annotations

import re


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


class DeviceError(YolactError):
    """The GPU, its driver, pycuda or TensorRT failed: says in which call, and at which buffer or batch."""


# Where a reason says what to do about it.
_ADVICE = (
    (
        r"OUT_OF_MEMORY|out ?of ?memory",
        "free memory on the GPU, or use fewer streams or a smaller batch",
    ),
    (
        r"ILLEGAL_ADDRESS|illegal memory access|LAUNCH_FAILED|launch fail|misaligned",
        "the GPU's context is lost: start the process again",
    ),
    (
        r"INSUFFICIENT_DRIVER|insufficient for CUDA|initialization failure with error: 35",
        "the driver is older than the library: update the driver",
    ),
)


def device_failure(who: str, call: str, reason: str, at: str = "") -> DeviceError:
    """The error of a call that failed.

    Args:
        who: What failed, such as "the GPU's driver".
        call: The function.
        reason: What it says.
        at: What it was for, such as "buffer pixels (921,600 bytes)".
    """
    advice = next((f"; {text}" for known, text in _ADVICE if re.search(known, reason, re.IGNORECASE)), "")
    return DeviceError(f"{who} failed{f' at {at}' if at else ''} in {call}: {reason}{advice}")
