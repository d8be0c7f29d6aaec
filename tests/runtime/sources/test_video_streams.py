"""Streams that look damaged, or are not what a converter of pixels expects, but are whole."""

import io
import logging
import struct
from fractions import Fraction

import cv2
import numpy as np
import pytest
import videos

from yolact_runtime.sources.video import VideoSource

av = pytest.importorskip("av")


def fields_of(top, bottom):
    """An interlaced yuv420p frame of two BGR fields of (H/2, W, 3): each has rows of chroma of its own."""
    frame = av.VideoFrame(top.shape[1], 2 * top.shape[0], "yuv420p")
    fields = [
        av.VideoFrame.from_ndarray(image, "bgr24").reformat(format="yuv420p") for image in (top, bottom)
    ]
    for number, plane in enumerate(frame.planes):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        for parity, field in enumerate(fields):
            part = field.planes[number]
            data = np.frombuffer(part, np.uint8).reshape(-1, part.line_size)[: part.height, : part.width]
            rows[parity::2, : plane.width] = data
        plane.update(rows.tobytes())
    return frame


@pytest.mark.parametrize("interlaced", [True, False])
def test_each_field_keeps_its_own_colour(tmp_path, interlaced):
    red, blue = (np.full((48, 128, 3), colour, np.uint8) for colour in ((40, 40, 200), (200, 40, 40)))
    path = tmp_path / "clip.ts"
    with av.open(str(path), "w") as output:
        options = {"qmin": "1", "qmax": "1", **({"flags": "+ilme+ildct"} if interlaced else {})}
        stream = output.add_stream("mpeg2video", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(3):
            frame = fields_of(red, blue)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    for frame in VideoSource(path):
        image = frame.read().astype(int)
        error = max(np.abs(image[::2] - red).max(), np.abs(image[1::2] - blue).max())
        # Without the flag, the two colours are one picture's, and are mixed.
        assert error < 15 if interlaced else error > 60


def warnings_in(caplog):
    """Messages of warnings; other tests may have set the level of the loggers to INFO."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def golomb(value):
    digits = f"{value + 1:b}"
    return "0" * (len(digits) - 1) + digits


def unit(head, bits):
    """A NAL unit of H.264 with start code and emulation prevention."""
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    data = bytes([head]) + int(bits, 2).to_bytes(len(bits) // 8, "big")
    out = bytearray()
    for byte in data:
        if byte <= 3 and out[-2:] == b"\0\0":
            out.append(3)
        out.append(byte)
    return b"\0\0\0\1" + bytes(out)


def coded_field(number, bottom, level):
    """One field of 32 x 16 pixels of one grey level, as uncompressed macroblocks of H.264."""
    first = number == 0 and not bottom
    head = ""
    if first:
        size = golomb(1) + golomb(0) + "0010100"  # two macroblocks wide, two high in frames; field pictures
        head = unit(0x67, f"{77:08b}{0:08b}{30:08b}" + golomb(0) * 2 + golomb(2) + golomb(1) + "0" + size)
        head += unit(0x68, golomb(0) * 2 + "00" + golomb(0) * 3 + "000" + golomb(0) * 3 + "100")
    bits = golomb(0) + golomb(7) + golomb(0) + f"{number % 16:04b}1{bottom:b}"
    bits += (golomb(0) + "00" if first else "0") + golomb(0) + golomb(1)
    for _ in range(2):
        bits += golomb(25)
        bits += "0" * (-len(bits) % 8) + f"{level:08b}" * 256 + f"{128:08b}" * 128
    return b"\0\0\0\1\x09\xf0" + (head or b"") + unit(0x65 if first else 0x61, bits)


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_fields_in_packets_of_their_own_are_no_lost_frames(tmp_path, suffix, caplog):
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(30):
            for bottom in (False, True):
                packet = av.Packet(coded_field(number, bottom, 200 if bottom else 40 + 4 * number))
                packet.pts = packet.dts = number * 3600 + bottom * 1800
                packet.time_base, packet.stream = Fraction(1, 90000), stream
                packet.is_keyframe = number == 0 and not bottom
                output.mux_one(packet)
    source = VideoSource(path)
    frames = list(source)
    assert source.lost == 0 and not warnings_in(caplog)
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(30) / 25, atol=2e-3)
    image = frames[20].read().astype(int)
    assert abs(image[::2].mean() - (120 - 16) * 255 / 219) < 3 and abs(image[1::2].mean() - 214) < 3


def test_times_of_decoding_are_no_lost_frames(tmp_path, caplog):
    # ASF has one time for each packet, which for frames out of order is not when they are shown.
    options = {"bf": "2", "preset": "ultrafast", "b_strategy": "0"}
    path = videos.write(tmp_path / "clip.asf", videos.shades(30), codec="mpeg4", options={"bf": "2"})
    videos.write(tmp_path / "x264.asf", videos.shades(30), options=options)
    for clip in (path, tmp_path / "x264.asf"):
        source = VideoSource(clip)
        times = [frame.time for frame in source]
        assert len(times) == 30
        # Irregular only until the order is known, and at the end.
        assert np.count_nonzero(np.abs(np.diff(times) - 0.1) > 0.01) <= 6
        assert source.lost == 0 and not warnings_in(caplog)


def exif(orientation):
    """An APP1 segment of JPEG with an orientation."""
    entry = struct.pack("<HHHII", 1, 0x112, 3, 1, orientation)
    content = b"Exif\0\0II*\0\x08\0\0\0" + entry + bytes(4)
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_frames_with_exif(tmp_path, orientation):
    done, data = cv2.imencode(".jpg", videos.scene())
    assert done
    data = data.tobytes()
    data = data[:2] + exif(orientation) + data[2:]
    path = tmp_path / "timelapse.avi"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(4):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 5), stream, True
            output.mux_one(packet)
    frames = [frame.read().astype(int) for frame in VideoSource(path)]
    assert len(frames) == 4
    # FFmpeg turns by EXIF since version 8.
    upright = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    plain = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    likely = [image for image in (upright, plain) if image.shape == frames[0].shape]
    assert min(np.abs(frames[0] - image).mean() for image in likely) < 6


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize("part", [0.15, 0.4])
def test_a_recording_that_begins_between_key_frames(tmp_path, caplog, codec, part):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(40)]
    whole = videos.write(
        tmp_path / "whole.ts", noise, codec=codec, rate=25, key=16, options={"bf": "2", "sc_threshold": "0"}
    )
    data = whole.read_bytes()
    path = tmp_path / "clip.ts"
    path.write_bytes(data[188 * int(len(data) / 188 * part) :])
    source = VideoSource(path)
    frames = list(source)
    assert 8 <= len(frames) <= 36 and source.lost == 0
    assert all(f"video {path} begins between key frames: " in message for message in warnings_in(caplog))


@pytest.mark.parametrize("before", [-1.0, 0.5, 3.0])
def test_a_counter_that_wraps(tmp_path, before):
    """The 33 bits of a transport stream are used up `before` seconds after the first picture."""
    start = (1 << 33) / 90000 - before
    path = tmp_path / "clip.ts"
    memory = videos.write(io.BytesIO(), videos.shades(20), rate=10, sound="mp2", container="mpegts")
    memory.seek(0)
    with av.open(memory) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new:
        tracks = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.size:
                shift = round(start / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = tracks[packet.stream.index]
                new.mux(packet)
    np.testing.assert_allclose([frame.time for frame in VideoSource(path)], np.arange(20) / 10, atol=2e-3)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (64, "has 2 video streams; the first is read"),
        # FFmpeg looks for streams in the first 5 MB only.
        (768, "of its pictures and sound; if other streams begin there, they are not read"),
    ],
)
def test_a_recording_that_goes_on_with_other_streams(tmp_path, caplog, side, message):
    """They are not read, as PyAV does not know those that begin late; that is no error, and is said."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    joined = tmp_path / "joined.ts"
    for number in range(2):
        part, memory = io.BytesIO(), io.BytesIO()
        options = {"qmin": "1", "qmax": "1"}
        videos.write(
            memory, [noise] * 20, codec="mpeg2video", options=options, key=1, rate=25, container="mpegts"
        )
        memory.seek(0)
        with av.open(memory) as old, av.open(part, "w", format="mpegts") as new:
            track = new.add_stream_from_template(old.streams.video[0])
            track.id = 0x100 + 0x80 * number
            for packet in old.demux(video=0):
                if packet.size:
                    packet.stream = track
                    new.mux(packet)
        with joined.open("ab") as file:
            file.write(part.getvalue())
    for _ in range(2):  # PyAV's failure depends on the content of memory
        assert len(list(VideoSource(joined))) == 20
    assert message in caplog.text


@pytest.mark.parametrize("codec", ["mpeg2video", "mpeg4", "libx264"])
@pytest.mark.parametrize("second", [(48, 64), (96, 80)])
def test_joined_recordings_lose_no_frame(tmp_path, caplog, codec, second):
    """Decoders hold the last picture back, and drop it where the size changes."""
    path = tmp_path / "joined.ts"
    parts = [((48, 64), 9), (second, 7), ((48, 64), 8)]
    for number, (size, count) in enumerate(parts):
        part = tmp_path / f"{number}.ts"
        videos.write(part, videos.shades(count, *size), codec=codec, rate=25, options={"bf": "2"})
        with path.open("ab") as file:
            file.write(part.read_bytes())
    source = VideoSource(path)
    frames = list(source)
    assert [frame.read().shape[:2] for frame in frames] == [
        size for size, count in parts for _ in range(count)
    ]
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(24) / 25, atol=1e-3)
    assert source.lost == 0 and not warnings_in(caplog)


def test_a_join_without_a_key_frame_is_a_loss(tmp_path, caplog):
    """Intra refresh: the second part begins with pictures that only those before them explain."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (96, 128, 3), np.uint8)
    part = videos.write(
        tmp_path / "part.ts", [np.roll(still, 4 * i, axis=1) for i in range(60)], rate=25,
        options={"x264-params": "intra-refresh=1:keyint=25:bframes=0"},
    ).read_bytes()  # fmt: skip
    packets = len(part) // 188
    path = tmp_path / "joined.ts"
    path.write_bytes(part + part[188 * (packets // 3) :])
    with av.open(str(path)) as container:
        sent = sum(1 for packet in container.demux(video=0) if packet.size)
    source = VideoSource(path)
    assert len(list(source)) + source.lost == sent
    assert all("between key frames" not in message for message in warnings_in(caplog))
