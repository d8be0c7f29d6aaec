"""Download files, resumed and verified, to a cache; and the published weights by name.

`huggingface_hub.hf_hub_download` refuses plain mirrors and does not check the hash of what arrives.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
from pathlib import Path

from yolact.weights.transfer import AnswerError, Remote, ask, check_scheme, explain, fetch
from yolact_runtime.cache import cache_folder, create_folder
from yolact_runtime.errors import UsageError, YolactError, without_secrets
from yolact_runtime.files import follow_links, is_file, read_json, write_json
from yolact_runtime.files import sha256 as sha256_of
from yolact_runtime.packages import imports_failed
from yolact_runtime.untrusted import beyond, limit

log = logging.getLogger(__name__)

DEFAULT_URL = "https://huggingface.co/dbolya"
ATTEMPTS = 4
FIRST_WAIT = 1.0  # seconds before the second attempt; doubles every time

# The authors' repositories, by configuration.
_REPOSITORIES = {
    "yolact_resnet50": "yolact-resnet50",
    "yolact_darknet53": "yolact-darknet53",
    "yolact_base": "yolact-base",
    "yolact_im700": "yolact-im700",
    "yolact_plus_resnet50": "yolact-plus-resnet50",
    "yolact_plus_base": "yolact-plus-base",
}
# Their files are named `<configuration>_54_800000.pth`.
_PUBLISHED = "_54_800000.pth"


def published_weights(name: str) -> Path:
    """Download the authors' weights called `name` to the cache, unless they are there, and return the file.

    The environment variable `YOLACT_WEIGHTS_URL` replaces the server (a mirror with the same layout:
    `<url>/<repository>/resolve/main/<file>`), `YOLACT_CACHE` the cache folder.

    Args:
        name: A configuration with published weights, such as `yolact_resnet50`; the original's `_config`
            ending is accepted.

    Raises:
        UsageError: no weights are published under this name; lists the known ones.
        YolactError: they cannot be downloaded; says from where, and where to put them by hand.
    """
    config = name.removesuffix("_config")
    if config not in _REPOSITORIES:
        raise UsageError(f"no published weights are called {name!r}; known: {', '.join(_REPOSITORIES)}")
    base = (os.environ.get("YOLACT_WEIGHTS_URL") or DEFAULT_URL).rstrip("/")
    file = f"{config}{_PUBLISHED}"
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


def is_published(path: Path) -> bool:
    """Whether a file has the name of one of the authors' weights, which hold no class names."""
    return path.name.removesuffix(_PUBLISHED) in _REPOSITORIES


def download(url: str, path: str | Path, sha256: str | None = None) -> Path:
    """Fetch `url` to `path`, unless `path` is already there and unchanged since.

    What has arrived stays in `<path>.<version>.part` when the connection or the process breaks off; the next
    call continues it if the server's file is still the same version. Size and SHA-256 (the one given, or the
    one the server names, as Hugging Face does) are checked before the file gets its name, and kept in
    `<path>.json`. Of several processes that ask for the same file one fetches it.

    The hash is compared at every call (0.2 s for 120 MB). That of a file without `<path>.json`, put there by
    hand, is noted at its first use, unless `sha256` is given.

    Args:
        url: http or https.
        path: Where to put the file; its folder is created.
        sha256: Expected hash in hexadecimal, or its first digits.

    Returns:
        `path`.

    Raises:
        UsageError: not an http(s) address.
        YolactError: put there by hand and changed since its first use; offline, refused, not found, disk
            full, wrong size or hash. One line with the address.
    """
    path = Path(path)
    check_scheme(url)
    expected = sha256.lower() if sha256 else ""
    # Without a note it may be a file that another process is just putting there: that one holds the lock.
    if _note(path) and _is_there(path, expected):
        return path
    try:
        from huggingface_hub.utils import WeakFileLock
    except ImportError as error:
        raise imports_failed(error, f"downloading {without_secrets(url)}") from error
    try:
        create_folder(path.parent)
        with WeakFileLock(path.with_name(f".{path.name}.lock")):
            if not _is_there(path, expected):  # another process may have fetched it in the meantime
                _fetch(url, path, expected)
    except OSError as error:
        raise YolactError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _is_there(path: Path, sha256: str) -> bool:
    """Whether `path` is the file that was downloaded, or first used, and has this hash (or first digits).

    Raises:
        YolactError: it was put there by hand, and has changed since its first use.
    """
    if not is_file(path):
        return False
    note = _note(path)
    noted, size = str(note.get("sha256", "")), path.stat().st_size
    actual = sha256_of(path) if note.get("size", size) == size else f"of other {size} bytes"
    if sha256 and not actual.startswith(sha256):
        log.warning("%s is not the file with SHA-256 %s; fetching again", path, sha256)
        return False
    if not noted:
        log.info("%s: its SHA-256 is noted as %s", path, actual)
        write_json(_note_path(path), {"url": "", "size": size, "sha256": actual})
    elif actual != noted and note.get("url"):
        log.warning("%s has changed since it was downloaded; fetching again", path)
        return False
    elif actual != noted:
        raise YolactError(
            f"{path} has changed since its first use: its SHA-256 was {noted}; if you replaced it, delete"
            f" {_note_path(path)}"
        )
    return True


def _note(path: Path) -> dict[str, object]:
    """What is noted about a file; empty if nothing is."""
    try:
        note = read_json(_note_path(path))
    except YolactError:
        return {}
    sound = isinstance(note, dict) and re.fullmatch(r"[0-9a-f]{64}", str(note.get("sha256")))
    return note if sound else {}


def _note_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _fetch(url: str, path: Path, sha256: str) -> None:
    """Download `url`, verify it and move it to `path`; retries errors that may be temporary."""
    from huggingface_hub.errors import HTTPError

    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _fetch_once(url, path, sha256)
        except (HTTPError, OSError, AnswerError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # of the disk
            reason, again = explain(error, url)
            if not again or attempt == ATTEMPTS:
                raise YolactError(f"cannot download {without_secrets(url)}: {reason}") from error
            log.warning("%s: %s; trying again in %.0f s", without_secrets(url), reason, wait)
            time.sleep(wait)
            wait *= 2
    return None


def _fetch_once(url: str, path: Path, sha256: str) -> None:
    """One attempt of `_fetch`; what arrives stays in the part file if it fails."""
    remote = ask(url)
    # A part file belongs to one version of the file; without a tag it cannot be recognised later.
    version = hashlib.sha256(f"{url} {remote.etag}".encode()).hexdigest()[:16]
    target = follow_links(path)  # a link stays, and the part must be on the disk of its file
    part = target.with_name(f"{target.name}.{version}.part")
    for other in target.parent.glob("*.part"):
        if other.name.startswith(f"{target.name}.") and (other != part or not remote.etag):
            other.unlink()
    named = re.fullmatch(r"[0-9a-f]{64}", remote.etag.lower())
    hashes = [value for value in (sha256, named[0] if named else "") if value]
    _check_space(url, remote, part)
    # A server that has another version than the one named here sends the whole file. Not if the hash will be
    # checked: the storage behind a redirect tags its files in another way.
    fetch(remote, part, path.name, same_version=not hashes)
    _place(url, part, path, hashes, remote.size)


def _check_space(url: str, remote: Remote, part: Path) -> None:
    """Raise a YolactError if the file is beyond the limit or the free space; drop a part that is longer."""
    if remote.size is None:
        return
    have = part.stat().st_size if part.exists() else 0
    if have > remote.size:
        part.unlink()
        have = 0
    if remote.size > limit("download_bytes"):
        raise YolactError(
            f"cannot download {without_secrets(url)}: it has {remote.size:,} bytes, more than"
            f" {beyond('download_bytes')}"
        )
    needed, free = remote.size - have, shutil.disk_usage(part.parent).free
    if needed > free:
        raise YolactError(
            f"cannot download {without_secrets(url)}: {part.parent} has {free / 1e6:.0f} MB free and"
            f" {needed / 1e6:.0f} MB are needed"
        )


def _place(url: str, part: Path, path: Path, hashes: list[str], size: int | None) -> None:
    """Check the downloaded `part` and give it its name; a wrong one is deleted."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
        page = re.match(rb"\s*<(!doctype|html|head|\?xml)", file.read(100), re.IGNORECASE)
    actual = sha256_of(part)
    wrong = "the server sent a web page instead of a file (a login page?)" if page else ""
    if not part.stat().st_size:
        wrong = "the server sent nothing"
    for expected in hashes:
        if not wrong and not actual.startswith(expected):
            wrong = f"SHA-256 is {actual} instead of {expected}; what arrived was deleted"
    if wrong:
        part.unlink()
        raise YolactError(f"cannot download {without_secrets(url)}: {wrong}")
    if size is None and not hashes:
        log.warning(
            "%s: the server gave neither size nor hash; the file could not be verified", without_secrets(url)
        )
    # In this order a crash leaves a file without its note, never a note about another file.
    _note_path(path).unlink(missing_ok=True)
    part.replace(follow_links(path))
    size = path.stat().st_size
    write_json(_note_path(path), {"url": without_secrets(url), "size": size, "sha256": actual})
    log.info("downloaded %s (%.1f MB, SHA-256 %s)", path, size / 1e6, actual)
