"""Downloading against a local HTTP server."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from yolact.weights import download as module
from yolact.weights import transfer
from yolact.weights.download import download, published_weights
from yolact_runtime.cache import cache_folder
from yolact_runtime.errors import UsageError, YolactError

CONTENT = bytes(range(256)) * 12_000  # 3 MB
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves one file at `/file`, misbehaving as its attributes say."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.etag: str | None = '"one"'
        self.ranges = True  # honours Range
        self.if_range = True  # honours If-Range
        self.drops: list[int] = []  # bytes after which successive connections break off
        self.codes: list[int] = []  # answers to give first
        self.redirect: str | None = None  # /redirect leads here
        self.linked_etag: str | None = None
        self.length = True
        self.status: int | None = None  # of every GET
        self.more: dict[str, str] = {}  # headers
        self.endless = False
        self.requests: list[tuple[str, str | None]] = []  # (path, Range) of every GET
        self.heads = 0  # how many HEAD requests came
        self.tokens: list[str | None] = []  # Authorization of every request
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        state = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):  # the client has seen enough
                    super().handle_one_request()

            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, with_body: bool) -> None:
                requested = self.headers.get("Range")
                state.tokens.append(self.headers.get("Authorization"))
                if with_body:
                    state.requests.append((self.path, requested))
                else:
                    state.heads += 1
                if state.codes:
                    self.send_error(state.codes.pop(0))
                    return
                if state.redirect and self.path != "/file":
                    self.send_response(302)
                    self.send_header("Location", state.redirect)
                    if state.linked_etag:
                        self.send_header("X-Linked-Etag", state.linked_etag)
                    self.end_headers()
                    return
                start = 0
                fits = not state.if_range or self.headers.get("If-Range") == state.etag
                if requested and state.ranges and fits:
                    start = int(re.fullmatch(r"bytes=(\d+)-", requested)[1])
                    if start >= len(state.content):
                        self.send_error(416)
                        return
                body = state.content[start:]
                self.send_response(state.status if state.status and with_body else 206 if start else 200)
                for name, value in state.more.items():
                    self.send_header(name, value)
                if start:
                    total = len(state.content)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                if state.etag:
                    self.send_header("ETag", state.etag)
                if state.length or (start and with_body):
                    self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", "application/octet-stream")
                self.end_headers()
                if not with_body:
                    return
                stop = state.drops.pop(0) if state.drops else len(body)
                self.wfile.write(body[:stop])
                while state.endless:
                    self.wfile.write(bytes(100_000))

        return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    server = Server()
    yield server
    server.stop()


def left_over(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".file.lock"}


def drop_after(server: Server, size: int, folder: Path) -> None:
    """Let a download to `folder` fail once `size` bytes have arrived, however often it is tried."""
    server.drops = [size] + [0] * 100
    with pytest.raises(YolactError, match=f"broke off after {size} of {len(server.content)} bytes"):
        download(f"{server.url}/file", folder / "file")
    assert not (folder / "file").exists()
    server.drops, server.requests = [], []


def test_fetches_once_and_notes_size_and_hash(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    assert download(f"{server.url}/file", path) == path
    assert path.read_bytes() == CONTENT
    note = json.loads((tmp_path / "new" / "file.json").read_text())
    assert (note["size"], note["sha256"]) == (len(CONTENT), SHA)
    assert left_over(path.parent) == {"file", "file.json"}
    download(f"{server.url}/file", path)
    assert len(server.requests) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")
def test_a_link_in_the_cache_stays(server: Server, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/real").write_bytes(b"old")
    (tmp_path / "file").symlink_to("store/real")
    download(f"{server.url}/file", tmp_path / "file", SHA)
    assert (tmp_path / "file").is_symlink() and (tmp_path / "store/real").read_bytes() == CONTENT
    assert left_over(tmp_path / "store") == {"real"}


def test_resumes_where_the_connection_broke(server: Server, tmp_path: Path) -> None:
    server.drops = [1_000_000, 500_000]
    download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [requested for _, requested in server.requests] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_resumes_in_a_later_call(server: Server, tmp_path: Path) -> None:
    drop_after(server, 1000, tmp_path)
    download(f"{server.url}/file", tmp_path / "file", SHA)
    assert server.requests == [("/file", "bytes=1000-")]


@pytest.mark.parametrize("if_range", [True, False])
def test_starts_again_if_the_file_has_changed(server: Server, tmp_path: Path, if_range: bool) -> None:
    drop_after(server, 1000, tmp_path)
    server.etag, server.content = '"two"', CONTENT[::-1]
    server.if_range = if_range
    download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT[::-1]


def test_starts_again_if_the_server_cannot_resume(server: Server, tmp_path: Path) -> None:
    server.ranges, server.drops = False, [1000]
    download(f"{server.url}/file", tmp_path / "file", SHA)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_does_not_resume_what_cannot_be_recognised(server: Server, tmp_path: Path, etag: str | None) -> None:
    server.etag, server.drops = etag, [1000]
    download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    # With a weak tag, it asks for the rest of a version that this server does not have, and gets the whole.
    assert [requested for _, requested in server.requests] == [None, "bytes=1000-" if etag else None]


def test_a_part_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    drop_after(server, 1000, tmp_path)
    next(tmp_path.glob("file.*.part")).write_bytes(CONTENT + b"more")
    download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_gives_up_after_a_bounded_number_of_attempts(server: Server, tmp_path: Path) -> None:
    server.codes = [503] * 100
    with pytest.raises(YolactError, match="503"):
        download(f"{server.url}/file", tmp_path / "file")
    assert server.heads == module.ATTEMPTS


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.codes = [503, 429]
    download(f"{server.url}/file", tmp_path / "file", SHA)
    assert (server.heads, len(server.requests)) == (3, 1)


def test_not_found_is_reported_at_once(server: Server, tmp_path: Path) -> None:
    server.codes = [404]
    with pytest.raises(YolactError, match=f"{server.url}/file: the server answered 404"):
        download(f"{server.url}/file", tmp_path / "file")
    assert (server.heads, len(server.requests)) == (1, 0)
    assert left_over(tmp_path) == set()


def test_wrong_hash_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(YolactError, match=f"SHA-256 is {SHA} instead of {'0' * 64}"):
        download(f"{server.url}/file", tmp_path / "file", "0" * 64)
    assert left_over(tmp_path) == set()


def test_first_digits_of_the_hash_suffice(server: Server, tmp_path: Path) -> None:
    download(f"{server.url}/file", tmp_path / "file", SHA[:8])
    assert (tmp_path / "file").read_bytes() == CONTENT
    with pytest.raises(YolactError, match=f"SHA-256 is {SHA} instead of 00000000"):
        download(f"{server.url}/file", tmp_path / "file", "0" * 8)


def test_no_server_gets_the_token_for_hugging_face(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    download(f"{server.url}/file", tmp_path / "file")
    assert server.tokens == [None, None]


def test_hash_on_the_redirect_is_checked(server: Server, tmp_path: Path) -> None:
    storage = server.url.replace("127.0.0.1", "localhost")
    server.redirect, server.linked_etag = f"{storage}/file", f'"{"a" * 64}"'
    with pytest.raises(YolactError, match="a" * 64):
        download(f"{server.url}/redirect", tmp_path / "file")
    server.linked_etag = f'"{SHA}"'
    download(f"{server.url}/redirect", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_hash_as_etag_is_checked(server: Server, tmp_path: Path) -> None:
    server.etag = f'"{"b" * 64}"'
    with pytest.raises(YolactError, match="b" * 64):
        download(f"{server.url}/file", tmp_path / "file")


def test_etag_of_the_storage_behind_a_redirect_is_no_hash(server: Server, tmp_path: Path) -> None:
    storage = server.url.replace("127.0.0.1", "localhost")  # another host, as a store of large files is
    server.redirect, server.etag = f"{storage}/file", f'"{"b" * 64}"'
    download(f"{server.url}/redirect", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_redirect_to_another_scheme_is_refused(server: Server, tmp_path: Path) -> None:
    server.redirect = "file:///etc/hostname"
    with pytest.raises(YolactError, match="http"):
        download(f"{server.url}/redirect", tmp_path / "file")


def test_a_web_page_is_not_a_file(server: Server, tmp_path: Path) -> None:
    server.content = b"\n<!DOCTYPE html>\n<html><title>Log in</title></html>"
    with pytest.raises(YolactError, match="web page"):
        download(f"{server.url}/file", tmp_path / "file")


def test_without_length_the_hash_still_guards(server: Server, tmp_path: Path) -> None:
    server.length = False
    download(f"{server.url}/file", tmp_path / "file", SHA)
    server.content = CONTENT[:-1]
    with pytest.raises(YolactError, match="SHA-256"):
        download(f"{server.url}/file", tmp_path / "other", SHA)


def test_a_damaged_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    path = download(f"{server.url}/file", tmp_path / "file")
    path.write_bytes(CONTENT[:100])
    assert download(f"{server.url}/file", path).read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_kept_unless_a_hash_says_otherwise(
    server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    assert download(f"{server.url}/file", path).read_bytes() == b"mine"
    assert server.requests == []
    assert download(f"{server.url}/file", path, SHA.upper()).read_bytes() == CONTENT


def test_a_changed_file_of_the_same_size_is_fetched_again(server: Server, tmp_path: Path) -> None:
    path = download(f"{server.url}/file", tmp_path / "file")
    path.write_bytes(CONTENT[::-1])
    assert download(f"{server.url}/file", path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "note", ["{", "[]", '{"sha256": 3}', '{"sha256": "abc", "size": "x"}', "[" * 100_000]
)
def test_a_file_put_there_by_hand_must_stay_as_it_was(server: Server, tmp_path: Path, note: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    (tmp_path / "file.json").write_text(note)
    for _ in range(2):
        assert download(f"{server.url}/file", path).read_bytes() == b"mine"
    path.write_bytes(b"evil")
    with pytest.raises(YolactError, match=r"has changed since its first use.*delete .*file\.json"):
        download(f"{server.url}/file", path)
    assert path.read_bytes() == b"evil"
    assert server.requests == []


@pytest.mark.parametrize("failure", ["none", "404", "redirect", "page", "broken"])
def test_no_credentials_are_shown_or_kept(
    failure: str, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog, monkeypatch
) -> None:
    # Handlers of commands that ran before in this process would show what other libraries log, or write to
    # files that are closed, of which logging complains with this test's own lines.
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    caplog.set_level(0)
    address = server.url.replace("http://", "http://alice:s3cret@")
    if failure == "404":
        server.codes = [404]
    if failure == "redirect":
        server.redirect = "ftp://bob:s3cret@host/file?token=s3cret"
    if failure == "page":
        server.content = b"<html>s"
    if failure == "broken":
        server.drops = [0] * 10
    caught = None
    try:
        place = "redirect" if failure == "redirect" else "file"
        download(f"{address}/{place}?token=s3cret#s3cret", tmp_path / "f")
    except YolactError as error:
        caught = error
    assert (caught is None) == (failure == "none")
    output = capfd.readouterr()
    own = [record.getMessage() for record in caplog.records if record.name.startswith("yolact")]
    texts = [output.out, output.err, str(caught), *own]
    texts += [path.read_text() for path in tmp_path.glob("*.json")]
    assert [text for text in texts if "s3cret" in text or "alice" in text] == []
    assert server.tokens[0].startswith("Basic ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": 204}, "answered 204"),
        ({"status": 203}, "answered 203"),
        ({"status": 206, "more": {"Content-Range": "bytes 5-9/10"}}, "another part"),
        ({"status": 206}, "another part"),
        ({"status": 304}, "answered 304"),
        ({"more": {"Content-Encoding": "gzip"}}, "packed as gzip"),
        ({"content": b"", "length": False}, "sent nothing"),
        ({"redirect": "/redirect"}, "more than 10 redirects"),
        ({"length": False, "endless": True}, "more bytes than the 5,000,000 allowed"),
        (
            {"more": {"Content-Length": "9" * 12}, "length": False},
            "999,999,999,999 bytes, more than the 5,000,000",
        ),
        ({"more": {"X-Linked-Size": "1000"}}, "more bytes than announced 1,000"),
    ],
)
def test_strange_answers(
    change: dict, message: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLACT_MAX_DOWNLOAD_BYTES", "5000000")
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(YolactError, match=message):
        download(f"{server.url}/{'redirect' if server.redirect else 'file'}", tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_slow_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "WINDOW", 1e-6)
    monkeypatch.setattr(transfer, "SLOWEST", 1e13)
    with pytest.raises(YolactError, match="fewer than"):
        download(f"{server.url}/file", tmp_path / "file")


def test_full_disk_is_reported_before_fetching(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(YolactError, match=r"0 MB free and 3 MB are needed"):
        download(f"{server.url}/file", tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_while_writing(server: Server, tmp_path: Path) -> None:
    drop_after(server, 1000, tmp_path)
    part = next(tmp_path.glob("file.*.part"))
    part.unlink()
    part.symlink_to("/dev/full")
    with pytest.raises(YolactError, match=r"cannot write .*file: No space left"):
        download(f"{server.url}/file", tmp_path / "file")


def test_offline_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(YolactError, match=r"no address found for nowhere\.invalid \(offline\?\)$"):
        download("http://nowhere.invalid/file", tmp_path / "file")


@pytest.mark.parametrize(
    "url", ["ftp://host/file", "file:///etc/passwd", "host/file", "http://", "http://[/"]
)
def test_other_schemes_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot download"):
        download(url, tmp_path / "file")


def test_processes_that_ask_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    code = "import sys; from yolact.weights.download import download; download(sys.argv[1], sys.argv[2])"
    arguments = [sys.executable, "-c", code, f"{server.url}/file", str(tmp_path / "file")]
    processes = [subprocess.Popen(arguments, env={**os.environ, "no_proxy": "*"}) for _ in range(3)]
    assert [process.wait(300) for process in processes] == [0, 0, 0]
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_file_whose_note_is_still_to_come_is_no_file_put_there_by_hand(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another download finds the file in its place before the first one has noted where it is from."""
    url, noted, others = f"{server.url}/file", [], []
    write = module.write_json

    def note(path: Path, content: dict[str, object]) -> None:
        noted.append(content["url"])
        if not others:
            others.append(threading.Thread(target=download, args=(url, tmp_path / "file")))
            others[0].start()
            others[0].join(0.3)
        write(path, content)

    monkeypatch.setattr(module, "write_json", note)
    download(url, tmp_path / "file")
    others[0].join(60)
    assert noted == [url] and len(server.requests) == 1


def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("huggingface_hub", "huggingface_hub.utils"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(YolactError, match=r'needs packages that are not installed; .*"yolact\[train\]"'):
        download("http://127.0.0.1/file", tmp_path / "file")


def test_published_weights(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path))
    monkeypatch.setenv("YOLACT_WEIGHTS_URL", f"{server.url}/authors/")
    path = published_weights("yolact_plus_base_config")
    assert path == tmp_path / "yolact_plus_base_54_800000.pth"
    assert path.read_bytes() == CONTENT
    asked = "/authors/yolact-plus-base/resolve/main/yolact_plus_base_54_800000.pth"
    assert server.requests == [(asked, None)]


def test_unknown_name_lists_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"'yolact_big'; known: yolact_resnet50, .*yolact_plus_base"):
        published_weights("yolact_big")


def test_failure_says_what_to_do(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path))
    monkeypatch.setenv("YOLACT_WEIGHTS_URL", server.url)
    server.codes = [404]
    with pytest.raises(YolactError) as caught:
        published_weights("yolact_base")
    message = str(caught.value)
    assert "\n" not in message
    for part in (server.url, str(tmp_path), "by hand", "YOLACT_WEIGHTS_URL"):
        assert part in message


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YOLACT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "yolact"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "yolact"
    monkeypatch.setenv("YOLACT_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
