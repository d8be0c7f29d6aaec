"""Cameras and network streams, with reconnection."""

from __future__ import annotations

import errno
import logging
import math
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from yolact_runtime.errors import UsageError, YolactError, first_line, without_secrets
from yolact_runtime.frames import Frame, Source
from yolact_runtime.sources.decoder import Clock, Decoder, Orientation, Picture, orientation
from yolact_runtime.sources.libav import demux, load_av, moving_pictures, period_of, reason

if TYPE_CHECKING:
    from av.container import InputContainer

log = logging.getLogger(__name__)

SCHEMES = ("http", "https", "rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")
_DEVICE = re.compile(r"(?:camera:)?(\d{1,3})|(/dev/video\d+)", re.IGNORECASE)
# Protocols that a stream may refer to; local files are not among them.
_PROTOCOLS = "crypto,data,hls,http,httpproxy,https,rtmp,rtmps,rtp,rtsp,srt,srtp,tcp,tls,udp"
# Seconds beyond a driver's own time limits after which it is considered hung.
_PATIENCE = 10.0


def is_camera(text: str) -> bool:
    """Whether `text` names a camera (`0`, `camera:0`, `/dev/video0`) or a stream (`rtsp://host/1`).

    A number names a file if a file of that name exists.
    """
    if _DEVICE.fullmatch(text):
        return not (text.isdigit() and Path(text).exists())
    scheme, separator, rest = text.partition("://")
    return bool(separator and rest) and scheme.lower() in SCHEMES


@dataclass(frozen=True)
class CameraSettings:
    """How long to wait for a camera.

    Attributes:
        open_timeout: Seconds to wait for a connection.
        read_timeout: Seconds without data after which a connection counts as lost.
        attempts: Number of attempts to reconnect before giving up.
        delay: Seconds before the first attempt; doubled before each further one, up to 30 s.
        steady: Seconds that a connection must last to reset the number of attempts.
    """

    open_timeout: float = 10.0
    read_timeout: float = 10.0
    attempts: int = 5
    delay: float = 0.5
    steady: float = 5.0

    def __post_init__(self) -> None:
        for name in ("open_timeout", "read_timeout"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise UsageError(f"{name} of a camera is {value}; it must be more than 0 seconds")
        if self.attempts < 0 or self.delay < 0:
            raise UsageError("attempts and delay of a camera must be 0 or more")


class CameraSource(Source):
    """Frames of a camera as they come, until the source is closed or the camera is lost for good.

    A separate thread talks to the camera, so that `close` and a hung driver end the iteration at once.
    Stream time continues after an interruption without counting its duration.

    Attributes:
        name: The address without secrets.
        reconnects: How often the camera was lost and came back.
    """

    live = True

    def __init__(self, address: str, settings: CameraSettings | None = None) -> None:
        """Check an address as of `is_camera`; the iteration connects to it.

        Raises:
            UsageError: not an address of a camera.
            YolactError: PyAV, which streams need, is missing.
        """
        device = _DEVICE.fullmatch(address)
        if not device and not is_camera(address):
            raise UsageError(
                f"{without_secrets(address)} is not a camera; "
                "give 0, camera:0, /dev/video0 or an address such as rtsp://host/1"
            )
        self.settings = settings or CameraSettings()
        self.reconnects = 0
        self._closed = threading.Event()
        self._queue: queue.Queue[Frame | YolactError | None] = queue.Queue(maxsize=2)
        self._overdue = math.inf  # when a call with a time limit of its own should have ended
        self._clock = Clock(None, 1 / 25, live=True)
        self._count = 0
        self._interrupted = 0.0
        if device:
            self.name = f"camera:{device[1]}" if device[1] else device[2]
            self._connect: Callable[[], Iterator[Frame]] = lambda: self._device(
                int(device[1]) if device[1] else device[2]
            )
        else:
            load_av()
            self.name = without_secrets(address)
            self._connect = lambda: self._stream(address)

    def __iter__(self) -> Iterator[Frame]:
        """The frames.

        Raises:
            YolactError: the camera cannot be opened, is lost after all attempts, or hangs.
        """
        threading.Thread(target=self._pump, name=f"camera {self.name}", daemon=True).start()
        try:
            while not self._closed.is_set():
                try:
                    item = self._queue.get(timeout=0.1)
                except queue.Empty:
                    if time.monotonic() > self._overdue:
                        raise YolactError(
                            f"camera {self.name} hangs in its driver after {self._count} frames; "
                            "plug it in again"
                        ) from None
                    continue
                if item is None:
                    return
                if isinstance(item, YolactError):
                    raise item
                yield item
        finally:
            self.close()

    def close(self) -> None:
        """End the iteration; the camera is released as soon as it responds."""
        self._closed.set()

    def _pump(self) -> None:
        """Read the camera in its own thread, where everything may block."""
        try:
            for frame in self._frames():
                if not self._put(frame):
                    return
            self._put(None)
        except YolactError as error:
            self._put(error)
        except Exception as error:  # a driver may raise anything, and the consumer is waiting
            log.debug("camera %s", self.name, exc_info=True)
            self._put(YolactError(f"camera {self.name} failed: {first_line(error)}"))

    def _put(self, item: Frame | YolactError | None) -> bool:
        self._overdue = math.inf
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _within(self, seconds: float) -> None:
        self._overdue = time.monotonic() + seconds + _PATIENCE

    def _frames(self) -> Iterator[Frame]:
        """The frames of consecutive connections."""
        failures = 0
        latest = math.inf  # when the latest frame came
        while True:
            began: float | None = None
            try:
                for frame in self._connect():
                    now = time.monotonic()
                    if began is None:
                        began = now
                        self.reconnects += failures > 0
                        self._interrupted += max(0.0, now - latest)
                    latest = now
                    yield replace(frame, interrupted=self._interrupted)
                return
            except _LostError as error:
                if not self._count:
                    raise YolactError(
                        f"cannot open camera {self.name}: {error}; "
                        "check the address, and that no other program uses it"
                    ) from error
                if began is not None and time.monotonic() - began >= self.settings.steady:
                    failures = 0
                if failures >= self.settings.attempts:
                    raise YolactError(
                        f"camera {self.name} is lost after {self._count} frames ({error}); "
                        f"{failures} attempts to reconnect failed"
                    ) from error
                pause = min(self.settings.delay * 2.0 ** min(failures, 10), 30.0)
                failures += 1
                log.warning(
                    "camera %s is lost (%s); attempt %d of %d to reconnect in %.1f s",
                    self.name, error, failures, self.settings.attempts, pause,
                )  # fmt: skip
            self._overdue = math.inf
            if self._closed.wait(pause):
                return

    def _frame(self, seconds: float | None, read: Callable[[], np.ndarray]) -> Frame:
        name = f"{self.name}#{self._count}"
        frame = Frame(self._count, name, Path(self.name), read, self._clock.time(seconds))
        self._count += 1
        return frame

    def _stream(self, address: str) -> Iterator[Frame]:
        """The frames of one connection to a network stream."""
        av = load_av()
        limits = self.settings
        # Not `options`: PyAV before 18 crashes if a stream appears late.
        options = {
            "protocol_whitelist": _PROTOCOLS,
            # Analyse one second before the first frame, not five.
            "probesize": "500000",
            "analyzeduration": "1000000",
        }
        if address.lower().startswith("rtsp"):
            # UDP loses packets on most networks and is blocked by firewalls.
            options["rtsp_flags"] = "prefer_tcp"
        self._within(limits.open_timeout)
        began = time.monotonic()
        try:
            container = av.open(
                address,
                container_options=options,
                timeout=(limits.open_timeout, limits.read_timeout),
                metadata_errors="replace",
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            # Some protocols report a timeout as another error.
            late = time.monotonic() - began > 0.95 * limits.open_timeout
            cause = f"no answer within {limits.open_timeout:g} s" if late else _cause(error)
            # Without the error, which has the address with its password.
            raise _LostError(cause) from None
        with container:
            try:
                yield from self._decoded(container)
            except av.error.ExitError as error:
                raise _LostError(f"no data for {limits.read_timeout:g} s") from error
            except (av.FFmpegError, OSError) as error:
                raise _LostError(_cause(error)) from error
            if container.duration is None:
                raise _LostError("the stream ended")

    def _decoded(self, container: InputContainer) -> Iterator[Frame]:
        """The frames of an open stream."""
        stream = moving_pictures(container)
        if stream is None or not stream.codec_context:
            raise YolactError(f"camera {self.name} sends no video that this PyAV decodes")
        self._clock.restart(period_of(stream))
        decoder = Decoder(stream, self.name, live=True)
        turned: Orientation | None = None

        def packets() -> Iterator:
            for packet in demux(container, stream):
                yield packet
                self._within(self.settings.read_timeout)

        self._within(self.settings.read_timeout)
        for frame in decoder.frames(packets()):
            if turned is None:
                turned = orientation(frame, stream.metadata, self.name)
            yield self._frame(
                decoder.seconds(frame), Picture(frame, f"{self.name}#{self._count}", turned).read
            )
            self._within(self.settings.read_timeout)

    def _device(self, device: int | str) -> Iterator[Frame]:
        """The frames of one connection to a local camera."""
        # OpenCV opens cameras by number on every system; FFmpeg's libraries differ from system to system.
        self._within(self.settings.open_timeout)
        capture = cv2.VideoCapture(device)
        try:
            if not capture.isOpened():
                raise _LostError("there is no such camera, or it is in use")
            self._clock.restart(1 / 25)
            while True:
                self._within(self.settings.read_timeout)
                done, image = capture.read()
                if not done:
                    raise _LostError("it delivers no pictures")
                yield self._frame(time.monotonic(), partial(_read_once, [image]))
        finally:
            capture.release()


def _cause(error: Exception) -> str:
    # FFmpeg's only information about an unknown host or a broken connection.
    if getattr(error, "errno", None) == errno.EIO:
        return "no connection, or it broke"
    return reason(error)


def _read_once(held: list[np.ndarray]) -> np.ndarray:
    """Take the image out of `held`, so that it is released, as (H, W, 3) BGR."""
    if not held:
        raise YolactError("a camera frame was read before")
    image = held.pop()
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image


class _LostError(Exception):
    """A connection failed or was lost; it may come back."""
