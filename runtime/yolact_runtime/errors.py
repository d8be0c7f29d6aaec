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


def first_line(error: Exception) -> str:
    """The first line of another library's error, shortened: the rest is for its developers."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if len(text) <= 200 else text[:197] + "..."
