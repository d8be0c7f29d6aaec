"""Videos, cameras and disks that misbehave: one readable line each, and nothing left behind."""

import contextlib
import resource
import shutil
import socket
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import videos
from fake_engine import FakeEngine
from ports import free_ports

from yolact_runtime import YolactError
from yolact_runtime.frames import Frame
from yolact_runtime.sinks.video import VideoSink
from yolact_runtime.sources import camera, decoder
from yolact_runtime.sources.camera import CameraSettings, CameraSource
from yolact_runtime.sources.video import VideoSource, is_video

av = pytest.importorskip("av")

QUICK = CameraSettings(open_timeout=0.4, read_timeout=0.3, attempts=1, delay=0.01)
PATIENT = CameraSettings(open_timeout=60, read_timeout=60, attempts=1, delay=0.01)
ENGINE = FakeEngine({})


def failure(call, *arguments):
    """The message of the error that a call raises, which is one line."""
    with pytest.raises(YolactError) as raised:
        call(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def copy(source, folder):
    sink = VideoSink(folder, 1)
    try:
        for frame in VideoSource(source):
            image = frame.read()
            sink.write(frame, sink.prepare(frame, image, ENGINE.predict([image])[0]))
    finally:
        sink.close()
    return sink.outputs


def test_no_such_file(tmp_path):
    assert failure(VideoSource, tmp_path / "x.mp4") == (
        f"cannot read video {tmp_path}/x.mp4: No such file or directory"
    )


def test_a_folder_named_like_a_video(tmp_path):
    (tmp_path / "x.mp4").mkdir()
    assert failure(VideoSource, tmp_path / "x.mp4") == f"video {tmp_path}/x.mp4 is a folder"


def test_zero_bytes(tmp_path):
    (tmp_path / "x.mp4").touch()
    assert failure(VideoSource, tmp_path / "x.mp4") == f"video {tmp_path}/x.mp4 is empty (0 bytes)"


@pytest.mark.parametrize("content", [b"hello, world\n" * 50, bytes(5000), b"\x00\x00\x00\x18ftypmp42"])
def test_something_else_named_like_a_video(tmp_path, content):
    (tmp_path / "x.mp4").write_bytes(content)
    assert failure(VideoSource, tmp_path / "x.mp4") == (
        f"video {tmp_path}/x.mp4 is damaged, cut off or not a video; copy it again"
    )


def test_the_end_with_the_index_is_missing(tmp_path):
    path = videos.write(tmp_path / "x.mp4", videos.shades(20))
    path.write_bytes(path.read_bytes()[:-300])
    assert failure(VideoSource, path) == f"video {path} is damaged, cut off or not a video; copy it again"


def test_cut_in_the_middle_with_the_index_in_front(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(20)]
    source = videos.write(tmp_path / "whole.mp4", noise)
    (path,) = copy(source, tmp_path / "out")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2])
    frames = []
    message = failure(frames.extend, VideoSource(path))
    assert message.startswith(f"video {path} is cut off: ") and message.endswith("of its 20 frames")
    assert 0 < len(frames) < 20
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(len(frames)) / 10, atol=1e-3)


def test_sound_only(tmp_path):
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w") as output:
        track = output.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        output.mux([*track.encode(frame), *track.encode(None)])
    assert failure(VideoSource, path) == f"video {path} contains sound only; there are no frames"


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("mp4", "contains no video; there are no frames"),
        ("mkv", "is damaged, cut off or not a video; copy it again"),
        ("avi", "contains no frame that can be decoded"),
    ],
)
def test_no_frames(tmp_path, suffix, message):
    path = tmp_path / f"x.{suffix}"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()
    assert failure(lambda: list(VideoSource(path))) == f"video {path} {message}"


def test_every_frame_damaged(tmp_path, caplog):
    path = videos.write(tmp_path / "x.mp4", videos.shades(12))
    for packet in range(12):
        videos.damage(path, packet)
    assert failure(list, VideoSource(path)) == f"video {path} contains no frame that can be decoded"
    assert f"video {path} is damaged at 0.00 s" in caplog.text and "12 frames lost, to its end" in caplog.text


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_header_that_claims_a_huge_size(tmp_path, side):
    path = videos.write(tmp_path / "x.avi", videos.shades(3), codec="rawvideo", pixels="bgr24")
    data = bytearray(path.read_bytes())
    place = data.index(b"strf") + 12
    assert data[place : place + 4] == (64).to_bytes(4, "little")
    data[place : place + 8] = side.to_bytes(4, "little") * 2
    path.write_bytes(data)
    assert failure(VideoSource, path) == (
        f"video {path} has no frame size, or one of more than 67,108,864 pixels"
    )


def test_pictures_larger_than_in_the_header(tmp_path, monkeypatch, caplog):
    path = videos.write(tmp_path / "x.ts", videos.shades(5, 480, 640))
    monkeypatch.setattr(decoder, "MAX_PIXELS", 100_000)  # the decoder's own limit
    assert failure(list, VideoSource(path)) == f"video {path} contains no frame that can be decoded"
    assert f"video {path} is damaged at 0.00 s" in caplog.text


def test_pictures_that_change_their_size(tmp_path, caplog):
    small = videos.write(tmp_path / "small.ts", videos.shades(5))
    large = videos.write(tmp_path / "large.ts", videos.shades(5, 96, 128))
    (tmp_path / "x.ts").write_bytes(small.read_bytes() + large.read_bytes())
    (written,) = copy(tmp_path / "x.ts", tmp_path / "out")
    times, images = videos.read(written)
    assert {image.shape for image in images} == {(48, 64, 3)}
    np.testing.assert_allclose(times, np.arange(10) / 10, atol=0.02)
    assert (
        f"{written}: the picture size changes from 64 x 48 to 128 x 96; pictures are scaled to the first size"
        in (caplog.text)
    )


@pytest.mark.parametrize("tag", ["banana", "45", "nan", "inf", "1e300", "9" * 400, ""])
def test_a_wrong_rotation_tag(tmp_path, caplog, tag):
    path = videos.write(tmp_path / "x.mkv", [videos.scene()] * 2, tags={"rotate": tag})
    assert next(iter(VideoSource(path))).read().shape == (48, 64, 3)
    expected = f"video {path}: its rotation is {tag[:20]!r}, not a multiple of 90 degrees; it is ignored"
    assert expected in caplog.text or not tag


@pytest.mark.parametrize("matrix", [(1, 1, -1, 1), (0, 0, 0, 0)])
def test_a_wrong_display_matrix(tmp_path, caplog, matrix):
    path = videos.write(tmp_path / "x.mp4", [videos.scene()] * 2)
    videos.turn(path, matrix)
    assert next(iter(VideoSource(path))).read().shape == (48, 64, 3)
    assert f"video {path}: its rotation is not a multiple of 90 degrees; it is ignored" in caplog.text


def test_frames_without_time_stamps(tmp_path):
    # Bare H.264, without a container: the only times are those of the frame rate.
    path = tmp_path / "x.h264"
    videos.write(path, videos.shades(12), container="h264", rate=25)
    frames = list(VideoSource(path))
    times = [frame.time for frame in frames]
    assert len(times) == 12 and times[0] < 0.2
    np.testing.assert_allclose(np.diff(times), 1 / 25, atol=0.021)
    (written,) = copy(path, tmp_path / "out")
    assert len(videos.read(written)[0]) == 12


def test_a_playlist_reads_no_other_file(tmp_path):
    clip = videos.write(tmp_path / "secret.ts", videos.shades(5))
    (tmp_path / "x.mp4").write_text(
        f"#EXTM3U\n#EXTINF:1,\n{clip}\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n"
    )
    assert str(tmp_path / "x.mp4") in failure(lambda: list(VideoSource(tmp_path / "x.mp4")))
    (tmp_path / "x.mp4").write_text("ffconcat version 1.0\nfile secret.ts\n")
    assert "has a format that is not read, such as a playlist" in failure(VideoSource, tmp_path / "x.mp4")


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mp4", {"sound": "aac"}),
        ("mkv", {"sound": "flac"}),
        ("ts", {"sound": "mp2"}),
        ("avi", {"codec": "mpeg4"}),
    ],
)
def test_any_damage_ends_in_frames_or_one_line(tmp_path, suffix, options):
    """Cut, overwritten and shortened at random: frames in order or an error; what came is written."""
    whole = videos.write(tmp_path / f"whole.{suffix}", videos.shades(12), **options).read_bytes()
    rng = np.random.default_rng(0)
    ends = {"written": 0, "refused": 0}
    for _ in range(40):
        data = bytearray(whole)
        place, length = int(rng.integers(len(data))), int(rng.integers(1, 400))
        kind = rng.integers(3)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            data[place : place + length] = rng.bytes(length)
        else:
            del data[place : place + length]
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(data)
        sink, last = VideoSink(tmp_path / "out"), -1.0
        try:
            for frame in VideoSource(path):
                assert frame.time is not None and last < frame.time < 1e6
                last = frame.time
                image = frame.read()
                sink.write(frame, sink.prepare(frame, image, ENGINE.predict([image])[0]))
        except YolactError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            ends["refused"] += 1
        sink.close()
        for written in sink.outputs:
            assert videos.read(written)[0]
            ends["written"] += 1
    assert ends["written"] > 5


def test_names_that_mean_something_to_ffmpeg(tmp_path):
    for name in ("concat:a|b.mp4", "-i.mp4", "clip%03d.mp4", "a:b.mp4", "ü ?#.mp4"):
        path = videos.write(tmp_path / "plain.mp4", videos.shades(3)).rename(tmp_path / name)
        assert len(list(VideoSource(path))) == 3
        (written,) = copy(path, tmp_path / "out")
        assert written.name == name


def test_without_pyav(tmp_path, monkeypatch):
    path = videos.write(tmp_path / "x.mp4", videos.shades(3))
    (tmp_path / "x").write_bytes(path.read_bytes())
    monkeypatch.setitem(sys.modules, "av", None)
    line = "video (no module 'av') needs packages that are not installed; run: pip install \"yolact[video]\""
    assert failure(VideoSource, path) == line
    assert failure(VideoSink, tmp_path) == line
    assert failure(CameraSource, "rtsp://host/1") == line
    assert is_video(path) and not is_video(tmp_path / "x")
    CameraSource("0")  # OpenCV's


@pytest.mark.parametrize("codecs", [{"mpeg4"}, set()])
def test_without_an_h264_encoder(tmp_path, monkeypatch, caplog, codecs):
    source = videos.write(tmp_path / "x.mp4", videos.shades(6), sound="aac")
    monkeypatch.setattr(av, "codecs_available", codecs)
    target = tmp_path / "out" / "x.mp4"
    if not codecs:
        assert failure(copy, source, tmp_path / "out") == (
            f"cannot write {target}: this PyAV has no encoder libx264 or mpeg4"
        )
        return
    copy(source, tmp_path / "out")
    assert f"{target} is written as MPEG-4 Part 2: this PyAV has no H.264 encoder (libx264)" in caplog.text
    times, images = videos.read(target)
    np.testing.assert_allclose(times, np.arange(6) / 10, atol=1e-3)
    np.testing.assert_allclose([i.mean() for i in images], [i.mean() for i in videos.shades(6)], atol=5)


@contextlib.contextmanager
def largest_file(size):
    """No file of this process may grow beyond `size` bytes: what a full disk does to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1000, 20_000, 60_000])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_disk_is_full(tmp_path, size, suffix):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(20)]
    source = videos.write(tmp_path / f"x.{suffix}", noise)
    target = tmp_path / "out" / f"x.{suffix}"
    target.parent.mkdir()
    target.write_text("older")
    with largest_file(size):
        assert failure(copy, source, target.parent) == f"cannot write {target}: File too large"
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert target.read_text() == "older"


def test_a_folder_that_cannot_be_written(tmp_path):
    source = videos.write(tmp_path / "x.mp4", videos.shades(3))
    (tmp_path / "file").touch()
    message = failure(copy, source, tmp_path / "file" / "out")
    assert message == f"cannot write {tmp_path}/file/out/x.mp4: Not a directory"


def test_drawing_the_wrong_image_stops_nothing(tmp_path):
    sink = VideoSink(tmp_path)
    frame = Frame(0, "clip#0", Path("clip"), lambda: None, 0.0)
    small, large = np.zeros((48, 64, 3), np.uint8), np.zeros((96, 64, 3), np.uint8)
    result = ENGINE.predict([small])[0]
    assert failure(sink.prepare, frame, large, result) == "the image is 64 x 96, the result 64 x 48"
    sink.write(frame, sink.prepare(frame, small, result))
    sink.close()
    assert len(videos.read(sink.outputs[0])[0]) == 1


def test_a_sound_that_breaks_off(tmp_path, caplog):
    source = videos.write(tmp_path / "x.mkv", videos.shades(20), sound="flac")
    sink = VideoSink(tmp_path / "out")
    for frame in VideoSource(source):
        image = frame.read()
        sink.write(frame, sink.prepare(frame, image, ENGINE.predict([image])[0]))
        if frame.index == 0:
            source.unlink()  # the file stays readable for those who have it open
    sink.close()
    assert len(videos.read(sink.outputs[0])[0]) == 20


@contextlib.contextmanager
def listener(answer):
    """Port of a TCP server that sends `answer` to every client, and then nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        peers = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    peers.append(peer)
                    peer.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            for peer in peers:
                peer.close()


@pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp"])
def test_an_address_that_refuses(scheme):
    (port,) = free_ports(1)
    message = failure(list, CameraSource(f"{scheme}://admin:s3cret@127.0.0.1:{port}/1", PATIENT))
    assert message == (
        f"cannot open camera {scheme}://127.0.0.1:{port}/1: Connection refused; "
        "check the address, and that no other program uses it"
    )


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_camera_that_never_answers(scheme):
    with listener(b"") as port:
        message = failure(list, CameraSource(f"{scheme}://127.0.0.1:{port}/1", QUICK))
    assert message.startswith(f"cannot open camera {scheme}://127.0.0.1:{port}/1: no answer within 0.4 s; ")


def test_a_server_that_never_sends():
    message = failure(list, CameraSource(f"udp://127.0.0.1:{free_ports(1)[0]}", QUICK))
    assert ": no answer within 0.4 s; " in message


def test_a_web_page_is_no_camera():
    page = (
        b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5000\r\n\r\n" + b"<p>hello</p>" * 500
    )
    with listener(page) as port:
        message = failure(list, CameraSource(f"http://127.0.0.1:{port}/", QUICK))
    assert message.startswith(f"cannot open camera http://127.0.0.1:{port}/: ")


def http_video(folder, count=40):
    clip = videos.write(
        folder / "x.mjpeg", videos.shades(count), codec="mjpeg", pixels="yuvj420p", container="mpjpeg"
    )
    head = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=ffmpeg\r\n\r\n"
    return head + clip.read_bytes()


def test_a_camera_that_stalls(tmp_path, caplog):
    frames = []
    with listener(http_video(tmp_path)) as port:
        address = f"http://127.0.0.1:{port}/"
        message = failure(frames.extend, CameraSource(address, CameraSettings(60, 3, 1, 0.01)))
    assert f"camera {address} is lost (no data for 3 s); attempt 1 of 1 to reconnect" in caplog.text
    assert message == (
        f"camera {address} is lost after {len(frames)} frames (no data for 3 s); "
        "1 attempts to reconnect failed"
    )
    assert 70 <= len(frames) <= 80


def test_a_camera_that_disappears_leaves_a_video_that_plays(tmp_path):
    with listener(http_video(tmp_path)) as port:
        source = CameraSource(f"http://127.0.0.1:{port}/", CameraSettings(60, 3, 0))
        sink = VideoSink(tmp_path / "out")

        def work():
            for frame in source:
                image = frame.read()
                sink.write(frame, sink.prepare(frame, image, ENGINE.predict([image])[0]))

        assert "is lost after" in failure(work)
        sink.close()
    assert [path.name for path in sink.outputs] == [f"http_127.0.0.1_{port}.mkv"]
    assert 35 <= len(videos.read(sink.outputs[0])[0]) <= 40


def test_no_such_device(monkeypatch):
    class Nothing:
        def __init__(self, device):
            pass

        def isOpened(self):  # noqa: N802
            return False

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Nothing)
    assert failure(list, CameraSource("camera:9", QUICK)) == (
        "cannot open camera camera:9: there is no such camera, or it is in use; "
        "check the address, and that no other program uses it"
    )


def test_a_driver_that_hangs(monkeypatch):
    released = threading.Event()

    class Hanging:
        def __init__(self, device):
            released.wait(120)

        def isOpened(self):  # noqa: N802
            return False

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Hanging)
    monkeypatch.setattr(camera, "_PATIENCE", 0.1)
    message = failure(list, CameraSource("0", QUICK))
    released.set()
    assert message == "camera camera:0 hangs in its driver after 0 frames; plug it in again"


def test_a_driver_that_raises(monkeypatch):
    def refuse(device):
        raise cv2.error("OpenCV: backend is broken\nat line 5")

    monkeypatch.setattr(cv2, "VideoCapture", refuse)
    assert failure(list, CameraSource("0", QUICK)) == "camera camera:0 failed: OpenCV: backend is broken"


def test_the_error_names_the_video_that_failed(tmp_path):
    """A video is finished when the next one begins; its folder has gone by then."""
    sources = [videos.write(tmp_path / name, videos.shades(3)) for name in ("a.mp4", "b.mp4")]
    sink = VideoSink(tmp_path / "out")
    frames = [frame for source in sources for frame in VideoSource(source)]
    images = [frame.read() for frame in frames]
    prepared = [
        sink.prepare(frame, i, ENGINE.predict([i])[0]) for frame, i in zip(frames, images, strict=True)
    ]
    for frame, picture in zip(frames[:3], prepared[:3], strict=True):
        sink.write(frame, picture)
    shutil.rmtree(tmp_path / "out")
    message = failure(sink.write, frames[3], prepared[3])
    assert message == f"cannot write {tmp_path}/out/a.mp4: No such file or directory"
    sink.write(frames[3], prepared[3])
    sink.close()
    assert [path.name for path in sink.outputs] == ["b.mp4"]
