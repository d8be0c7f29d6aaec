"""The bytes of one file from a server: what the server says about it, and its content up to a limit.

No answer is trusted: redirects are followed one by one, a status other than those asked for is an error, and
the content ends at its announced size and at a limit. `huggingface_hub` opens the connections, with the
proxies and certificates that it is set up for.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit

from yolact_runtime.commandline import progress_bar
from yolact_runtime.errors import UsageError, YolactError, counted, first_line, without_secrets
from yolact_runtime.untrusted import beyond, limit

log = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte
REDIRECTS = 10
SLOWEST, WINDOW = 1000, 60.0  # bytes in a second, over so many seconds


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    Attributes:
        location: Its address, which may hold credentials.
        etag: Tag of its version, without quotes; empty if there is none.
        size: Bytes; None if unknown.
    """

    location: str
    etag: str
    size: int | None


class AnswerError(Exception):
    """The server answered, but not with the file; `status` may be temporary."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text or f"the server answered {status}")
        self.status = status


def hide_secrets(text: str) -> str:
    """A text, such as another library's error, with each address in it `without_secrets`."""
    return re.sub(r"\w+://[^\s'\"<>]+", lambda match: without_secrets(match[0]), text)


def check_scheme(url: str) -> None:
    """Raise a UsageError unless `url` is a complete http(s) address."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        whole = False
    if not whole or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise UsageError(
            f"cannot download {hide_secrets(url)!r}: allowed are http:// and https://, without spaces"
        )


def ask(url: str) -> Remote:
    """What the server says about the file behind `url`, at the last address on the same host.

    Raises:
        YolactError: it redirects to something unprotected, or too often.
        AnswerError: it does not have the file.
    """
    for _ in range(REDIRECTS):
        with _request("HEAD", url, {}) as response:
            headers, status = response.headers, response.status_code
        target = _redirect(url, response)
        if target is None and not 200 <= status < 300:
            raise AnswerError(status, f"the server answered {status} {response.reason_phrase}")
        # Hugging Face names hash and size of a file in the redirect to where it is stored.
        etag = headers.get("X-Linked-Etag") or headers.get("ETag") or ""
        size = headers.get("X-Linked-Size") or ("" if target else headers.get("Content-Length"))
        known = Remote(target or url, etag.removeprefix("W/").strip('"'), _size(size))
        if target is None or urlsplit(target).netloc != urlsplit(url).netloc:
            return known
        url = target
    raise YolactError(f"cannot download {without_secrets(url)}: more than {counted(REDIRECTS, 'redirect')}")


def fetch(remote: Remote, part: Path, name: str, same_version: bool) -> None:
    """Append to `part` what is missing of the file.

    Args:
        remote: The file.
        part: What has arrived so far.
        name: Name of the file, for the progress bar.
        same_version: Whether to ask only for the version that `remote` describes.

    Raises:
        YolactError: it is larger than the limit.
        AnswerError: the server sends something else.
        OSError: the connection broke off or is too slow, or the disk is full.
    """
    have = part.stat().st_size if part.exists() else 0
    if have and have == remote.size:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and same_version:
        headers["If-Range"] = f'"{remote.etag}"'
    url = remote.location
    for _ in range(REDIRECTS):
        with _request("GET", url, headers) as response, part.open("ab") as file:
            target = _redirect(url, response)
            if target is not None:
                url = target
                continue
            start = _starts_at(response)
            if start == 0 and have:
                file.truncate(0)
            elif start != have:
                raise AnswerError(response.status_code, "the server sent another part of the file")
            _receive(response, file, remote.size, name)
            return
    raise YolactError(f"cannot download {without_secrets(url)}: more than {counted(REDIRECTS, 'redirect')}")


def _receive(response: Any, file: BinaryIO, size: int | None, name: str) -> None:
    """Write the content of an answer to the end of `file`, up to its size and the limit."""
    most = limit("download_bytes")
    arrived = file.seek(0, 2)
    announced = _size(response.headers.get("Content-Length"))
    size = size if size is not None or announced is None else arrived + announced
    started, before = time.monotonic(), arrived
    with progress_bar("MB", quiet=not log.isEnabledFor(logging.INFO)) as bar:
        task = bar.add_task(name, total=size and size / 1e6)
        for block in _blocks(response):
            arrived += len(block)
            if arrived > most or (size is not None and arrived > size):
                what = f"announced {size:,}" if size is not None else beyond("download_bytes")
                raise YolactError(f"cannot download {name}: it has more bytes than {what}")
            file.write(block)
            bar.update(task, completed=arrived / 1e6)
            if time.monotonic() - started > WINDOW:
                if arrived - before < SLOWEST * WINDOW:
                    raise OSError(f"fewer than {SLOWEST} bytes arrived in a second, for {WINDOW:.0f} s")
                started, before = time.monotonic(), arrived
    if size is not None and arrived != size:
        raise OSError(f"the connection broke off after {arrived} of {size} bytes")


def _blocks(response: Any) -> Iterator[bytes]:
    """The content of an answer, until the connection breaks off."""
    from huggingface_hub.errors import HTTPError

    try:
        yield from response.iter_raw()
    except HTTPError as error:
        if response.headers.get("Content-Length") is None:
            raise
        log.debug("%s", hide_secrets(first_line(error)))


def _request(method: str, url: str, headers: dict[str, str]) -> Any:
    """A context with the answer to a request, redirects not followed."""
    from huggingface_hub.utils import get_session

    # Public files need no token, and a mirror must not get the user's token for Hugging Face.
    headers = {"Accept-Encoding": "identity", "User-Agent": "yolact", **headers}
    return get_session().stream(method, url, headers=headers, timeout=TIMEOUT, follow_redirects=False)


def _redirect(url: str, response: Any) -> str | None:
    """Where an answer leads to; None if it is no redirect.

    Raises:
        YolactError: to something else than http(s), or from https to http.
    """
    location = response.headers.get("Location")
    if not (300 <= response.status_code < 400 and location):
        return None
    target = urljoin(url, location)
    unprotected = urlsplit(url).scheme == "https" != urlsplit(target).scheme
    try:
        check_scheme(target)
    except UsageError:
        unprotected = True
    if unprotected:
        text = hide_secrets(target)
        raise YolactError(
            f"cannot download {without_secrets(url)}: it redirects to {text}, which is not https"
        )
    return target


def _starts_at(response: Any) -> int:
    """The position in the file of an answer's first byte.

    Raises:
        AnswerError: it is no answer with a file.
    """
    status = response.status_code
    coding = response.headers.get("Content-Encoding", "identity")
    if status not in (200, 206) or coding != "identity":
        packed = f", packed as {coding}" if coding != "identity" else ""
        raise AnswerError(status, f"the server answered {status} {response.reason_phrase}{packed}")
    if status == 200:
        return 0
    found = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _size(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None


def explain(error: Exception, url: str) -> tuple[str, bool]:
    """Why a request failed, in words without secrets, and whether to try it again."""
    if isinstance(error, AnswerError):
        return str(error), error.status in (408, 429) or error.status >= 500
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return f"no address found for {urlsplit(url).hostname} (offline?)", False
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message, False
        cause = cause.__cause__ or cause.__context__
    return hide_secrets(first_line(error)), True
