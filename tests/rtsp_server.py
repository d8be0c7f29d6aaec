"""A local RTSP server that sends H.264 over TCP: `from rtsp_server import RtspCamera`."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator, Sequence

import numpy as np

SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
t=0 0
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1
a=control:track
"""


class RtspCamera:
    """Sends pictures again and again to everyone who connects, between `start` and `kill`.

    Args:
        pictures: (H, W, 3) uint8 BGR each, small enough for one packet of RTP each.
        rate: Pictures a second.
        port: 0 takes a free one, which `port` has then.
    """

    def __init__(self, pictures: Sequence[np.ndarray], rate: int = 25, port: int = 0) -> None:
        self.units = list(_encoded(pictures, rate))
        self.rate, self.port = rate, port
        self._server: socketserver.ThreadingTCPServer | None = None
        self.ended = threading.Event()
        self._open: set[socket.socket] = set()

    @property
    def address(self) -> str:
        return f"rtsp://admin:s3cret@127.0.0.1:{self.port}/live"

    @property
    def shown(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/live"

    def start(self) -> None:
        camera = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                camera._open.add(self.connection)
                with contextlib.suppress(OSError):
                    camera._serve(self.rfile, self.wfile)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address, daemon_threads = True, True

        self.ended.clear()
        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        """Close the port and all connections, as the end of a process does."""
        server, self._server = self._server, None
        self.ended.set()
        if server is not None:
            server.shutdown()
            server.server_close()
        while self._open:
            with contextlib.suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def _serve(self, reader, writer) -> None:
        while request := reader.readline().split():
            headers = {}
            while line := reader.readline().strip():
                name, _, value = line.partition(b":")
                headers[name.lower()] = value.strip()
            method, answer, body = request[0], [b"CSeq: " + headers.get(b"cseq", b"0")], b""
            if method == b"OPTIONS":
                answer.append(b"Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
            elif method == b"DESCRIBE":
                body = SDP.replace("\n", "\r\n").encode()
                answer += [b"Content-Type: application/sdp", b"Content-Length: %d" % len(body)]
            elif method == b"SETUP":
                answer += [b"Transport: RTP/AVP/TCP;unicast;interleaved=0-1", b"Session: 1"]
            writer.write(b"\r\n".join([b"RTSP/1.0 200 OK", *answer, b"", b""]) + body)
            if method == b"PLAY":
                self._play(writer)
                return
            if method == b"TEARDOWN":
                return

    def _play(self, writer) -> None:
        """Send the pictures in their time: each NAL unit in a packet of RTP, the last one with the marker."""
        number = sequence = 0
        while not self.ended.wait(1 / self.rate):
            units = self.units[number % len(self.units)]
            for index, unit in enumerate(units):
                last = index == len(units) - 1
                stamp = number * 90_000 // self.rate
                head = struct.pack(">BBHII", 0x80, 96 | (0x80 if last else 0), sequence & 0xFFFF, stamp, 7)
                writer.write(struct.pack(">cBH", b"$", 0, len(head) + len(unit)) + head + unit)
                sequence += 1
            number += 1


def _encoded(pictures: Sequence[np.ndarray], rate: int) -> Iterator[list[bytes]]:
    """The NAL units of each picture; all are key frames, so that they repeat without a seam."""
    import av

    encoder = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = pictures[0].shape[:2]
    encoder.pix_fmt, encoder.gop_size, encoder.framerate = "yuv420p", 1, rate
    encoder.options = {"tune": "zerolatency", "preset": "ultrafast", "x264-params": "repeat-headers=1"}
    for picture in [*pictures, None]:
        frame = None if picture is None else av.VideoFrame.from_ndarray(picture, "bgr24")
        for packet in encoder.encode(frame.reformat(format="yuv420p") if frame else None):
            data = bytes(packet).replace(b"\0\0\0\1", b"\0\0\1")
            yield [unit for unit in data.split(b"\0\0\1") if unit]
