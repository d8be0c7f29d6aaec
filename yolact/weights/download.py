"""Files from the web: fetched once, resumed, verified, placed whole; and the published weights by name."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from yolact.weights.locks import locked
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import cache_folder, read_json, write_json

log = logging.getLogger(__name__)

DEFAULT_URL = "https://huggingface.co/dbolya"
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20
# How often a connection may fail in a row (without a mebibyte of progress in between), and the waits.
ATTEMPTS = 5
FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0

# The authors' repositories, by configuration.
_REPOSITORIES = {
    "yolact_resnet50": "yolact-resnet50",
    "yolact_darknet53": "yolact-darknet53",
    "yolact_base": "yolact-base",
    "yolact_im700": "yolact-im700",
    "yolact_plus_resnet50": "yolact-plus-resnet50",
    "yolact_plus_base": "yolact-plus-base",
}


def published_weights(name: str) -> Path:
    """The file of the authors' weights called `name`, downloaded to the cache at the first use.

    The environment variable `YOLACT_WEIGHTS_URL` replaces the server (a mirror with the same layout:
    `<url>/<repository>/resolve/main/<file>`), `YOLACT_CACHE` the cache folder.

    Args:
        name: A configuration with published weights, such as `yolact_resnet50`; the original's `_config`
            ending is accepted.

    Raises:
        UsageError: no weights are published under this name; lists the known ones.
        YolactError: they cannot be downloaded; says from where, and where they may be put by hand.
    """
    config = name.removesuffix("_config")
    if config not in _REPOSITORIES:
        raise UsageError(f"no published weights are called {name!r}; known: {', '.join(_REPOSITORIES)}")
    base = (os.environ.get("YOLACT_WEIGHTS_URL") or DEFAULT_URL).rstrip("/")
    file = f"{config}_54_800000.pth"
    path = cache_folder() / file
    try:
        return download(f"{base}/{_REPOSITORIES[config]}/resolve/main/{file}", path)
    except UsageError:
        raise
    except YolactError as error:
        raise YolactError(
            f"{error}; you may put {file} into {path.parent} by hand, or set YOLACT_WEIGHTS_URL to a mirror"
            f" of {DEFAULT_URL}"
        ) from error


def download(url: str, path: str | Path, sha256: str | None = None) -> Path:
    """Fetch `url` to `path`, unless `path` is already there and unchanged since.

    What has arrived stays in `<path>.part` when the connection, the process or the machine goes away, and
    the next call goes on from there if the server's file is still the same. Size and SHA-256 (the one
    given, or the one the server names, as Hugging Face does) are checked before the file gets its name;
    they are kept in `<path>.json`. Of several processes that ask for the same file one fetches it. A file
    without `<path>.json` (put there by hand) is taken as it is, unless `sha256` is given.

    Args:
        url: http or https.
        path: Where the file is to be; its folder is made.
        sha256: Expected hash, 64 hexadecimal digits.

    Returns:
        `path`.

    Raises:
        UsageError: not an http(s) address.
        YolactError: offline, refused, not found, disk full, wrong size or hash. One line with the address.
    """
    path = Path(path)
    _check_scheme(url)
    wanted = sha256.lower() if sha256 else None
    if _is_there(path, wanted):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock")):
            if not _is_there(path, wanted):  # another process may have brought it while this one waited
                _Download(url, path, wanted).run()
    except OSError as error:
        raise YolactError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _is_there(path: Path, sha256: str | None) -> bool:
    if not path.is_file():
        return False
    note_path = _beside(path, ".json")
    note = _read_note(note_path)
    size = path.stat().st_size
    if note.get("size", size) != size:
        log.warning("%s has changed: %d bytes, %s when downloaded; fetching again", path, size, note["size"])
        return False
    if sha256 and note.get("sha256") != sha256 and _sha256(path) != sha256:
        log.warning("%s is not the file with SHA-256 %s; fetching again", path, sha256)
        return False
    return True


@dataclass(frozen=True)
class _Answer:
    """What the server says of the file."""

    resumed: bool
    total: int | None
    validator: str | None
    sha256: str | None


class _DroppedError(Exception):
    """The connection failed in a way that another attempt may mend."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Download:
    """One file on its way from `url` to `path`."""

    def __init__(self, url: str, path: Path, sha256: str | None) -> None:
        self.url = url
        self.path = path
        self.sha256 = sha256
        self.part = _beside(path, ".part")
        self.part_note = _beside(path, ".part.json")

    def run(self) -> None:
        failures, last_size, wait = 0, self._have(), FIRST_WAIT
        with _progress() as progress:
            task = progress.add_task(self.path.name, total=None)
            while True:
                try:
                    answer = self._fetch(progress, task)
                    break
                except _DroppedError as drop:
                    if self._have() >= last_size + CHUNK:
                        failures, wait = 0, FIRST_WAIT
                    last_size = max(last_size, self._have())
                    failures += 1
                    if failures >= ATTEMPTS:
                        raise YolactError(
                            f"cannot download {self.url}: {drop} ({failures} attempts)"
                        ) from drop
                    pause = min(drop.wait if drop.wait is not None else wait, LONGEST_WAIT)
                    log.warning("%s: %s; trying again in %.0f s", self.url, drop, pause)
                    time.sleep(pause)
                    wait *= 2
        self._place(answer)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _fetch(self, progress: Progress, task: Any) -> _Answer:
        """Bring what is missing of the part file; raises _DroppedError where another attempt may help."""
        note = _read_note(self.part_note)
        validator = str(note.get("validator") or "") if note.get("url") == self.url else ""
        have = self._have() if validator else 0
        # Compression would make the sizes and the hash those of something else.
        headers = {"User-Agent": "yolact", "Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": validator}
        redirects = _Redirects()
        try:
            response = urllib.request.build_opener(redirects).open(
                urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT
            )
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                self._forget_part()
                raise _DroppedError("the part fetched earlier does not fit the file", wait=0) from error
            raise self._refused(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error) from error
        with response:
            answer = self._read_headers(response, redirects.seen, have)
            if answer.resumed and answer.validator != validator:
                self._forget_part()
                raise _DroppedError("the file has changed on the server", wait=0)
            self._check_space(answer, have)
            write_json(self.part_note, {"url": self.url, "validator": answer.validator})
            with self.part.open("r+b" if answer.resumed else "wb") as file:
                file.seek(have if answer.resumed else 0)
                progress.update(task, total=answer.total, completed=file.tell())
                self._copy(response, file, progress, task)
        if answer.total is not None and self._have() < answer.total:
            raise _DroppedError(f"the connection broke off after {self._have()} of {answer.total} bytes")
        return answer

    def _copy(self, response: Any, file: IO[bytes], progress: Progress, task: Any) -> None:
        while True:
            try:
                # read1 hands over what has arrived, so that a slow line still shows progress.
                block = response.read1(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise self._failed(error) from error
            if not block:
                return
            file.write(block)
            progress.update(task, advance=len(block))

    def _read_headers(self, response: Any, redirects: list[Message], have: int) -> _Answer:
        headers = response.headers
        if headers.get_content_type() == "text/html":
            raise YolactError(
                f"cannot download {self.url}: the server sent a web page instead of a file (a login page?)"
            )
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        length = headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        if resumed:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", "").strip())
            if not match or int(match[1]) != have:
                self._forget_part()
                raise _DroppedError("the server sent a different range than asked for", wait=0)
            total = int(match[2])
        etag = headers.get("ETag")
        # A weak tag does not promise equal bytes.
        validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
        return _Answer(resumed, total, validator, _named_hash([*redirects, headers]))

    def _check_space(self, answer: _Answer, have: int) -> None:
        if answer.total is None:
            return
        # What is there already is either kept or overwritten.
        needed, free = answer.total - self._have(), shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise YolactError(
                f"cannot download {self.url}: {self.path.parent} has {free / 1e6:.0f} MB free and"
                f" {needed / 1e6:.0f} MB are needed"
            )

    def _place(self, answer: _Answer) -> None:
        """Check the part file and give it its name."""
        size = self._have()
        if answer.total is not None and size != answer.total:
            self._forget_part()
            raise YolactError(f"cannot download {self.url}: got {size} bytes instead of {answer.total}")
        actual = _sha256(self.part)
        for expected in (self.sha256, answer.sha256):
            if expected and expected != actual:
                self._forget_part()
                raise YolactError(
                    f"cannot download {self.url}: SHA-256 is {actual} instead of {expected}; what arrived"
                    " was deleted"
                )
        if answer.total is None and not (self.sha256 or answer.sha256):
            log.warning("%s: the server gave neither size nor hash; the file could not be verified", self.url)
        with self.part.open("rb+") as file:
            os.fsync(file.fileno())
        note = _beside(self.path, ".json")
        # In this order a crash leaves a file without its note, never a note that speaks of another file.
        note.unlink(missing_ok=True)
        self.part.replace(self.path)
        write_json(note, {"url": self.url, "size": size, "sha256": actual})
        self.part_note.unlink(missing_ok=True)
        log.info("downloaded %s (%.1f MB, SHA-256 %s)", self.path, size / 1e6, actual)

    def _forget_part(self) -> None:
        self.part.unlink(missing_ok=True)
        self.part_note.unlink(missing_ok=True)

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        reason = f"the server answered {error.code} {error.reason}"
        if error.code in (408, 429) or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            return _DroppedError(reason, wait=float(after) if after.isdigit() else None)
        return YolactError(f"cannot download {self.url}: {reason}")

    def _failed(self, error: Exception) -> Exception:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, socket.gaierror):
            return YolactError(
                f"cannot download {self.url}: no address found for {urlsplit(self.url).hostname} (offline?)"
            )
        if isinstance(cause, ssl.SSLCertVerificationError):
            return YolactError(f"cannot download {self.url}: {cause.verify_message}")
        if isinstance(cause, TimeoutError):
            return _DroppedError(f"no answer within {TIMEOUT:.0f} s")
        return _DroppedError(str(getattr(cause, "strerror", None) or cause or type(cause).__name__))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, keeping their headers: Hugging Face names the file's hash on the redirect."""

    def __init__(self) -> None:
        self.seen: list[Message] = []

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        self.seen.append(headers)
        _check_scheme(newurl)
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise YolactError(f"cannot download {req.full_url}: it leads to the unprotected {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _named_hash(responses: list[Message]) -> str | None:
    """The SHA-256 that a chain of responses names for the file.

    `X-Linked-Etag` counts anywhere. A plain `ETag` counts only on the first response: that of a
    storage server behind it may be the hash of something else.
    """
    tags = [response.get("X-Linked-Etag") for response in responses] + [responses[0].get("ETag")]
    for tag in tags:
        if match := re.fullmatch(r'"?([0-9a-fA-F]{64})"?', tag or ""):
            return match[1].lower()
    return None


def _check_scheme(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"cannot download {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", url):
        raise UsageError(f"cannot download {url!r}: allowed are http:// and https://, without spaces")


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _read_note(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where it is missing or damaged (it only saves work)."""
    try:
        note = read_json(path)
    except YolactError:
        return {}
    return note if isinstance(note, dict) else {}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _progress() -> Progress:
    """A progress bar on standard error; nothing where that is not a terminal or logs are quiet."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal and log.isEnabledFor(logging.INFO)),
    )
