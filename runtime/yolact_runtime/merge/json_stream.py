"""JSON files that are read value by value, and never whole."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yolact_runtime.errors import YolactError
from yolact_runtime.untrusted import beyond, check_values, limit, open_regular

_BLOCK = 1 << 16  # characters
_SPACE = " \t\r\n"


class JsonStream:
    """Reads a JSON file from its beginning; a context, which closes it.

    Every value is within the limits of `untrusted.py`, and none is longer than a text file may be.

    Args:
        path: The file.

    Raises:
        YolactError: it cannot be read, or is not JSON.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="")
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder()
        self._most = limit("text_bytes")

    def __enter__(self) -> JsonStream:
        return self

    def __exit__(self, *failure: object) -> None:
        self._file.close()

    def value(self, name: str = "") -> Any:
        """The next value, whatever it is.

        Args:
            name: Of a member, if it is an object, that may have halves of characters: a file name whose bytes
                are no text.

        Raises:
            YolactError: there is none, or it is too long, too deep, or has a number or text that breaks.
        """
        self.next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                raise self.fault("too many levels") from None
            except ValueError as error:
                if not self._more():
                    raise self.fault(str(error)) from None
                continue
            # A number may go on: `1` may become `1.5` or `1e+5`.
            if end + 2 < len(self._text) or not self._more():
                break
        self._at = end
        try:
            named = name and type(value) is dict
            check_values({key: one for key, one in value.items() if key != name} if named else value)
        except ValueError as error:
            raise self.fault(str(error)) from None
        return value

    def items(self, name: str = "") -> Iterator[Any]:
        """The values of the list that comes next; `name` is as for `value`."""
        self._expect("[")
        if self.next() == "]":
            self._at += 1
            return
        while True:
            yield self.value(name)
            if self._expect(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The names in the object that comes next; the caller reads the value of each."""
        self._expect("{")
        if self.next() == "}":
            self._at += 1
            return
        while True:
            name = self.value()
            self._expect(":")
            yield str(name)
            if self._expect(",}") == "}":
                return

    def end(self) -> None:
        """Check that nothing follows."""
        if self.next():
            raise self.fault("more data after its end")

    def next(self) -> str:
        """The character that the next value begins with; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def fault(self, reason: str) -> YolactError:
        """The error of this file."""
        return YolactError(f"{self._path} is damaged, or was not written by yolact-infer: {reason}")

    def _expect(self, characters: str) -> str:
        """Pass one of some characters."""
        found = self.next()
        if not found or found not in characters:
            raise self.fault(f"{found!r} where {' or '.join(characters)} should be")
        self._at += 1
        return found

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        rest = self._text[self._at :]
        if len(rest) > self._most:
            raise self.fault(f"a value has more characters than {beyond('text_bytes')}")
        try:
            # In blocks as large as what is there already, so that long values are not read again and again.
            block = self._file.read(max(_BLOCK, len(rest)))
        except UnicodeDecodeError:
            raise self.fault("it is not UTF-8") from None
        except OSError as error:
            raise YolactError(f"cannot read {self._path}: {error.strerror or error}") from error
        if block:
            self._text, self._at = rest + block, 0
        return bool(block)
