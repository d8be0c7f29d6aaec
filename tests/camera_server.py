"""A local HTTP server that plays scripts as cameras: `from camera_server import serving, stream`."""

from __future__ import annotations

import contextlib
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import videos


def stream(count=40, container="mpjpeg", codec="mjpeg", pixels="yuvj420p"):
    memory = io.BytesIO()
    videos.write(memory, videos.shades(count), codec=codec, pixels=pixels, container=container, rate=25)
    return memory.getvalue()


class Server(ThreadingHTTPServer):
    """Plays a script for each connection: bytes are sent, "stall" waits, a number alone is a status."""

    daemon_threads = True

    def __init__(self, scripts, kind="multipart/x-mixed-replace;boundary=ffmpeg", whole=False):
        super().__init__(("127.0.0.1", 0), Handler)
        self.scripts, self.kind, self.whole, self.paths = iter(scripts), kind, whole, []
        self.released = threading.Event()

    @property
    def address(self):
        return f"http://admin:s3cret@127.0.0.1:{self.server_port}/live?token=s3cret"

    @property
    def shown(self):
        return f"http://127.0.0.1:{self.server_port}/live"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.paths.append(self.path)
        script = next(self.server.scripts, [404])
        if isinstance(script[0], int):
            self.send_error(script[0])
            return
        self.send_response(200)
        self.send_header("Content-Type", self.server.kind)
        if self.server.whole:
            self.send_header("Content-Length", str(sum(map(len, script))))
        self.end_headers()
        with contextlib.suppress(OSError):
            for step in script:
                if step == "stall":
                    self.wfile.flush()
                    self.server.released.wait(200)
                else:
                    self.wfile.write(step)


@contextlib.contextmanager
def serving(*scripts, **options):
    server = Server(scripts, **options)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
