import itertools
import logging
import threading
import time

import cv2
import numpy as np
import pytest
import videos
from camera_server import serving, stream

from yolact_runtime import YolactError
from yolact_runtime.errors import UsageError, without_secrets
from yolact_runtime.sources.camera import CameraSettings, CameraSource, is_camera

QUICK = CameraSettings(open_timeout=60, read_timeout=60, attempts=2, delay=0.01)


@pytest.mark.parametrize(
    "text",
    ["0", "12", "camera:0", "CAMERA:3", "/dev/video0", "rtsp://host/1", "RTSP://u:p@host:554/x?y=1",
     "http://host:8080/video.mjpg", "https://host/live.m3u8", "udp://@:1234", "srt://host:1"],
)  # fmt: skip
def test_what_is_a_camera(text):
    assert is_camera(text)


@pytest.mark.parametrize(
    "text",
    ["", "a.mp4", "camera", "camera:x", "1234", "/dev/null", "C:\\clips\\a.mp4", "rtsp:/host", "rtsp://",
     "file:///etc/passwd", "concat:a|b", "-", "photos/*.jpg", "data:image/png;base64,"],
)  # fmt: skip
def test_what_is_not_a_camera(text):
    assert not is_camera(text)
    with pytest.raises(UsageError, match="is not a camera; give 0, camera:0, /dev/video0 or an address"):
        CameraSource(text)


def test_a_number_may_be_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").mkdir()
    assert not is_camera("7") and is_camera("8") and is_camera("camera:7")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://admin:s3cret@host:554/live/1", "rtsp://host:554/live/1"),
        ("http://host/video?user=a&password=s3cret#s3cret", "http://host/video"),
        ("rtsp://admin:s3cr@et@host/1", "rtsp://host/1"),
        ("udp://@239.0.0.1:1234", "udp://239.0.0.1:1234"),
        ("rtsp://u:s3cret@[broken/1", "rtsp://[broken/1"),
        ("rtsp://u:s3c/ret@host/1", "rtsp://host/1"),
        ("rtsp://u:s3c?ret@host/1", "rtsp://..."),
        ("http://host/video?user=me@there&password=s3cret", "http://..."),
        ("0", "0"),
    ],
)
def test_no_secret_is_shown(address, shown):
    assert without_secrets(address) == shown


@pytest.mark.parametrize(
    ("container", "codec", "pixels", "kind", "count"),
    [
        ("mpjpeg", "mjpeg", "yuvj420p", "multipart/x-mixed-replace;boundary=ffmpeg", 40),
        ("mpegts", "libx264", "yuv420p", "video/mp2t", 150),
    ],
)
def test_a_stream_that_is_cut_and_comes_back(caplog, container, codec, pixels, kind, count):
    pytest.importorskip("av")
    data = stream(count, container, codec, pixels)
    with serving([data], [503], [data], kind=kind) as server, caplog.at_level(logging.DEBUG):
        source = CameraSource(server.address, QUICK)
        assert source.live and source.total is None and server.paths == []
        frames, images = [], []
        with pytest.raises(YolactError) as raised:
            for frame in source:
                frames.append(frame)
                images.append(frame.read())
    # Cut in the middle of the last frame, which a stream cannot know to be whole.
    assert 2 * count - 8 <= len(frames) <= 2 * count
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert frames[3].name == f"{server.shown}#3"
    paused = [frame.interrupted for frame in frames]
    assert sorted(paused) == paused and len(set(paused)) == 2 and paused[0] == 0
    gaps = np.diff([frame.time for frame in frames])
    assert frames[0].time < 0.1 and gaps.min() > 0.03 and gaps.max() < 60
    assert {image.shape for image in images} == {(48, 64, 3)}
    np.testing.assert_allclose([i.mean() for i in images[:20]], [i.mean() for i in videos.shades(20)], atol=8)
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert "attempt 1 of 2 to reconnect in 0.0 s" in lines[0] and f"camera {server.shown} is lost" in lines[0]
    assert any("5XX" in line and "attempt 2 of 2" in line for line in lines)
    assert str(raised.value).startswith(f"camera {server.shown} is lost after {len(frames)} frames (")
    assert str(raised.value).endswith("; 2 attempts to reconnect failed")
    everything = caplog.text + str(raised.value) + repr(frames) + repr([str(frame.path) for frame in frames])
    assert "s3cret" not in everything and "admin" not in everything
    assert set(server.paths) == {"/live?token=s3cret"}  # the camera itself must hear it


def test_a_connection_that_lasted_resets_the_attempts():
    pytest.importorskip("av")
    data = stream(20)
    steady = CameraSettings(open_timeout=60, read_timeout=60, attempts=1, delay=0.01, steady=0)
    with serving(*[[data]] * 6) as server:
        frames = []
        with pytest.raises(YolactError, match="1 attempts to reconnect failed"):
            frames.extend(CameraSource(server.address, steady))
        assert len(server.paths) >= 7
    hasty = CameraSettings(open_timeout=60, read_timeout=60, attempts=3, delay=0.01, steady=60)
    with serving(*[[data]] * 50) as server:
        with pytest.raises(YolactError, match="3 attempts to reconnect failed"):
            list(CameraSource(server.address, hasty))
        assert len(server.paths) == 4  # a file that plays in an instant is not played for ever


def test_a_file_on_a_server_ends(tmp_path):
    pytest.importorskip("av")
    clip = videos.write(tmp_path / "clip.mkv", videos.shades(12)).read_bytes()
    with serving([clip], kind="video/x-matroska", whole=True) as server:
        assert len(list(CameraSource(server.address, QUICK))) == 12
        assert len(server.paths) == 1


def test_closing_ends_a_stalled_stream_at_once():
    pytest.importorskip("av")
    patient = CameraSettings(open_timeout=200, read_timeout=200)
    with serving([stream(), "stall"]) as server:
        source = CameraSource(server.address, patient)
        frames = []
        done = threading.Event()

        def consume():
            frames.extend(source)
            done.set()

        threading.Thread(target=consume, daemon=True).start()
        while len(frames) < 30 and not done.is_set():
            time.sleep(0.01)
        source.close()
        source.close()
        assert done.wait(60)
    assert frames[0].read().shape == (48, 64, 3)


class FakeCapture:
    """A fake for OpenCV's class: returns `script`'s items, images or False, then blocks or fails."""

    opened = True
    script = ()
    asked: list = []  # noqa: RUF012 - one for all, on purpose
    released = 0
    hang: threading.Event | None = None

    def __init__(self, device):
        FakeCapture.asked.append(device)

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return FakeCapture.opened

    def read(self):
        item = next(FakeCapture.script, None)
        if item is None and FakeCapture.hang:
            FakeCapture.hang.wait(20)
        return (True, item) if isinstance(item, np.ndarray) else (False, None)

    def release(self):
        FakeCapture.released += 1


@pytest.fixture
def capture(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(FakeCapture, "asked", [])
    monkeypatch.setattr(FakeCapture, "released", 0)
    monkeypatch.setattr(FakeCapture, "hang", None)
    monkeypatch.setattr(FakeCapture, "opened", True)
    return FakeCapture


@pytest.mark.parametrize(
    ("address", "device", "name"),
    [("0", 0, "camera:0"), ("camera:2", 2, "camera:2"), ("/dev/video7", "/dev/video7", "/dev/video7")],
)
def test_devices_go_through_opencv(capture, address, device, name):
    images = [*videos.shades(5), np.zeros((48, 64), np.uint8)]
    capture.script = iter(images)
    frames = []
    with pytest.raises(YolactError, match=rf"{name} is lost after 6 frames \(it delivers no pictures\)"):
        frames.extend(CameraSource(address, QUICK))
    assert capture.asked == [device] * 3 and capture.released == 3
    assert [frame.name for frame in frames] == [f"{name}#{i}" for i in range(6)]
    times = [frame.time for frame in frames]
    assert times[0] == 0 and all(later > earlier for earlier, later in itertools.pairwise(times))
    read = [frame.read() for frame in frames]
    for image, original in zip(read[:5], images, strict=False):
        np.testing.assert_array_equal(image, original)
    assert read[5].shape == (48, 64, 3)
    with pytest.raises(YolactError, match="was read before"):
        frames[0].read()


def test_an_unplugged_device_may_come_back(capture, caplog):
    capture.script = iter([*videos.shades(3), False, *videos.shades(3)])
    frames = []
    with pytest.raises(YolactError, match="lost after 6 frames"):
        frames.extend(CameraSource("0", QUICK))
    assert "camera camera:0 is lost (it delivers no pictures); attempt 1 of 2" in caplog.text
    paused = [frame.interrupted for frame in frames]
    assert paused[:3] == [0, 0, 0] and paused[3:] == [paused[3]] * 3 and paused[3] >= QUICK.delay
    assert frames[3].time - frames[2].time < 1  # without the interruption


def test_stopping_the_iteration_lets_go_of_the_device(capture):
    capture.script = itertools.repeat(videos.scene())
    frames = iter(CameraSource("0", QUICK))
    assert next(frames).index == 0
    frames.close()
    deadline = time.monotonic() + 60
    while not capture.released and time.monotonic() < deadline:
        time.sleep(0.01)
    assert capture.released == 1


def test_a_slow_consumer_holds_the_camera_back(capture):
    given = itertools.count()
    capture.script = (videos.scene() for _ in given)
    frames = iter(CameraSource("0", QUICK))
    next(frames)
    time.sleep(0.3)
    assert next(given) < 10  # frames are not piled up
    frames.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("open_timeout", 0),
        ("read_timeout", -1),
        ("read_timeout", float("nan")),
        ("attempts", -1),
        ("delay", -1),
    ],
)
def test_settings_have_limits(name, value):
    with pytest.raises(UsageError, match="of a camera"):
        CameraSettings(**{name: value})
