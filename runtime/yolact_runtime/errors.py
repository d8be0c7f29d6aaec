"""Errors for users: one line each, and other libraries' errors turned into one line."""

from __future__ import annotations

import re
from typing import Any


class YolactError(Exception):
    """Something the user can fix: one line (what, the value, what is allowed, what to run next).

    The command line prints it without its traceback (`--debug` shows that) and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(YolactError):
    """The command or the call was wrong (unknown option value, impossible combination): exit code 2."""

    exit_code = 2


class ItemError(YolactError):
    """The output of one image cannot be written, for a reason that does not concern the next image."""


class EngineUnavailableError(YolactError):
    """The engine cannot be reached any more: this ends a run, whose other images would fail as well."""


def missing_extra(what: str, extra: str) -> YolactError:
    """The error for a missing library that an optional extra installs, or the base install (no extra)."""
    project = f'"yolact[{extra}]"' if extra else "yolact"
    return YolactError(f"{what} needs packages that are not installed; run: pip install {project}")


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: `1 image`, `2 images`; `plural` if that is not the noun and an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


# Control characters (C0 without the tab, C1), separators of lines and paragraphs, what turns the direction of
# writing and so the order of what follows, and halves of characters, which no terminal takes.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape_controls(text: str) -> str:
    """Text on one line that changes nothing in a terminal: control characters as escapes, such as \\n."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def plain_value(value: Any) -> Any:
    """A value for a page or picture: texts, but no markup, as by `escape_controls`."""
    return escape_controls(value) if type(value) is str else value


def without_secrets(address: str) -> str:
    """An address for messages and logs: without user, password and query; a path as it is."""
    # With one slash, as paths shorten them, servers are understood as well.
    match = re.match(r"(grpcs?|https?):/(?=[^/])|[^/]*://", address)
    if not match:
        return address
    scheme, rest = match[0].rstrip(":/"), address[match.end() :]
    plain, *query = re.split("[?#]", rest, maxsplit=1)
    if "@" in plain:  # a password may have an @ or a slash as well
        plain = plain.rpartition("@")[2]
    elif query and "@" in query[0]:  # of a password with a question mark, or of the query
        plain = "..."
    return f"{scheme}://{plain}"


def first_line(error: BaseException) -> str:
    """The first line of another library's error, at most 200 characters."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if len(text) <= 200 else text[:197] + "..."


# How libraries report a lack of memory: C++, ONNX Runtime's arena, CUDA, OpenVINO.
_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory", "not enough memory",
    "can't allocate memory", "insufficient memory")  # fmt: skip


def lacks_memory(error: Exception) -> bool:
    """Whether a library reports a lack of memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY)


def run_failed(path: object, library: str, error: Exception, images: int) -> YolactError:
    """The error for a call of `library` with a number of images that raised `error`; `path` is the engine."""
    if lacks_memory(error):
        return YolactError(
            f"{path}: {library} ran out of memory with {counted(images, 'image')} in one call;"
            f" use a smaller batch, fewer streams, or free memory ({cause_line(error)})"
        )
    return YolactError(f"{path}: {library} failed: {cause_line(error)}")


def cause_line(error: Exception) -> str:
    """The line of a message that names the cause: OpenVINO's first lines refer to its source code."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if not line.startswith(("Exception from ", "Check "))] or lines
    return first_line(RuntimeError(causes[0])) if causes else type(error).__name__


class DeviceError(YolactError):
    """The GPU, its driver, pycuda or the library of the network failed; names the call and its subject."""


# What to do about failures that are recognised by their reason.
_ADVICE = {
    r"OUT_OF_MEMORY|out ?of ?memory": "free memory on the GPU, or use fewer streams or a smaller batch",
    r"ILLEGAL_ADDRESS|illegal memory access|LAUNCH_FAILED|launch fail|misaligned": (
        "the GPU's context is lost: start the process again"
    ),
    r"INSUFFICIENT_DRIVER|insufficient for CUDA|initialization failure with error: 35": (
        "the driver is older than the library: update the driver"
    ),
}


def device_failure(who: str, call: str, reason: str, at: str = "") -> DeviceError:
    """The error for a failed `call` of `who`, such as "the GPU's driver", with its `reason`.

    `at` names the subject, such as "buffer pixels (921,600 bytes)".
    """
    advice = [f"; {text}" for known, text in _ADVICE.items() if re.search(known, reason, re.IGNORECASE)]
    return DeviceError(f"{who} failed{f' at {at}' if at else ''} in {call}: {reason}{''.join(advice[:1])}")
