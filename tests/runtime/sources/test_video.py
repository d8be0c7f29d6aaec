import concurrent.futures
import itertools
import logging
import random
from fractions import Fraction

import numpy as np
import pytest
import videos
from hypothesis import given
from hypothesis import strategies as st

from yolact_runtime import YolactError
from yolact_runtime.sources.decoder import Clock
from yolact_runtime.sources.video import VideoSource, is_video

av = pytest.importorskip("av")


def images_of(path):
    return [frame.read() for frame in VideoSource(path)]


def test_frames_come_in_order_with_their_times(tmp_path):
    path = videos.write(tmp_path / "clip.mp4", videos.shades(12))
    source = VideoSource(path)
    frames = list(source)
    assert source.total == 12 and not source.live
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.name for frame in frames] == [f"{path}#{i}" for i in range(12)]
    assert {frame.path for frame in frames} == {path}
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(12) / 10)
    means = [frame.read().mean() for frame in frames]
    np.testing.assert_allclose(means, [image.mean() for image in videos.shades(12)], atol=2)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_a_varying_rate_is_kept(tmp_path, suffix):
    times = [0, 0.04, 0.2, 0.21, 0.5, 1.3, 1.34, 1.5]
    path = videos.write(tmp_path / f"clip.{suffix}", videos.shades(8), times)
    np.testing.assert_allclose([frame.time for frame in VideoSource(path)], times, atol=1e-3)


@pytest.mark.parametrize("suffix", ["ts", "mp4"])
def test_time_starts_with_the_video(tmp_path, suffix):
    # Transport streams never start at 0, and sound may come first.
    times = [0.6, 0.7, 0.8, 1.0]
    path = videos.write(tmp_path / f"clip.{suffix}", videos.shades(4), times, sound="aac")
    np.testing.assert_allclose([frame.time for frame in VideoSource(path)], [0, 0.1, 0.2, 0.4], atol=2e-3)


# Kr and Kb of the matrices, by their numbers in video headers.
MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


def colour_file(path, pixels, matrix, wide, width=64, height=48):
    """A lossless video of single colours; their Y, Cb and Cr (n, 3) in 8 bits."""
    rng = np.random.default_rng(3)
    low, high = ((0, 255), (0, 255)) if wide else ((16, 235), (16, 240))
    values = np.stack([rng.integers(*low, 6), *rng.integers(*high, (2, 6))], axis=1)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, 2 if wide else 1
        for row in values:
            frame = av.VideoFrame(width, height, pixels)
            for plane, value in zip(frame.planes, row, strict=True):
                if "10" in pixels:
                    plane.update(np.full(plane.buffer_size // 2, value * 4, np.uint16).tobytes())
                else:
                    plane.update(bytes([value]) * plane.buffer_size)
            frame.colorspace, frame.color_range = context.colorspace, context.color_range
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return values


def to_bgr(values, matrix, wide):
    """The standards' arithmetic in float64."""
    kr, kb = MATRICES[matrix]
    y, cb, cr = values.T.astype(np.float64)
    y, cb, cr = (
        (y / 255, (cb - 128) / 255, (cr - 128) / 255)
        if wide
        else ((y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224)
    )
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.stack([blue, green, red], axis=1) * 255, 0, 255)


@pytest.mark.parametrize(
    ("pixels", "matrix", "wide"),
    [
        *itertools.product(["yuv420p"], [1, 5, 6, 9], [False, True]),
        ("yuv444p", 1, False),
        ("yuv422p", 6, True),
        ("yuv420p10le", 9, False),
    ],
)
def test_colours_follow_matrix_and_range(tmp_path, pixels, matrix, wide):
    values = colour_file(tmp_path / "clip.mkv", pixels, matrix, wide)
    for image, expected in zip(images_of(tmp_path / "clip.mkv"), to_bgr(values, matrix, wide), strict=True):
        assert image.shape == (48, 64, 3) and image.dtype == np.uint8
        assert np.abs(image - expected).max() <= 3


@pytest.mark.parametrize(("width", "height", "matrix"), [(640, 480, 5), (720, 576, 5), (1280, 720, 1)])
def test_untagged_video_is_sd_or_hd_by_its_size(tmp_path, width, height, matrix):
    values = colour_file(tmp_path / "clip.mkv", "yuv420p", 2, False, width, height)
    image = next(iter(VideoSource(tmp_path / "clip.mkv"))).read()
    np.testing.assert_allclose(image[5, 5], to_bgr(values, matrix, False)[0], atol=2)


@pytest.mark.parametrize("pixels", ["gray", "bgr0", "bgra", "gbrp10le", "rgb48le", "yuv420p"])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (63, 47), (17, 19)])
def test_kinds_of_pixels_and_odd_sizes(tmp_path, pixels, width, height):
    image = videos.scene(height, width)
    if pixels == "gray":
        image = np.repeat(image[..., 1:2], 3, axis=2)
    path = videos.write(tmp_path / "clip.mkv", [image] * 2, codec="ffv1", pixels=pixels)
    for read in images_of(path):
        assert read.shape == image.shape
        difference = np.abs(read.astype(int) - image)
        if pixels == "yuv420p":
            # Chroma of half the resolution blurs the colours where they meet.
            difference[height // 2 - 4 : height // 2 + 4] = 0
            difference[:, width // 2 - 4 : width // 2 + 4] = 0
        assert difference.max() <= 3


TURNS = {
    (1, 0, 0, 1): lambda image: image,
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),  # what phones write for a portrait
    (-1, 0, 0, -1): lambda image: np.rot90(image, 2),
    (0, -1, 1, 0): np.rot90,
    (-1, 0, 0, 1): lambda image: image[:, ::-1],
    (1, 0, 0, -1): lambda image: image[::-1],
    (0, 1, 1, 0): lambda image: image.transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", TURNS)
def test_the_display_matrix_turns(tmp_path, matrix):
    path = videos.write(tmp_path / "clip.mp4", [videos.scene()] * 2)
    upright = images_of(path)[0]
    videos.turn(path, matrix)
    turned = images_of(path)[0]
    np.testing.assert_array_equal(turned, TURNS[matrix](upright))
    assert turned.flags.c_contiguous


@pytest.mark.parametrize(("tag", "turns"), [("0", 0), ("90", -1), ("180", 2), ("270", 1), ("-90", 1)])
def test_the_old_tag_turns(tmp_path, tag, turns):
    path = videos.write(tmp_path / "clip.mkv", [videos.scene()] * 2, tags={"rotate": tag})
    plain = videos.write(tmp_path / "plain.mkv", [videos.scene()] * 2)
    np.testing.assert_array_equal(images_of(path)[0], np.rot90(images_of(plain)[0], turns))


def test_fields_are_left_as_they_are(tmp_path):
    combed = np.full((48, 64, 3), 40, np.uint8)
    combed[::2] = 200
    options = {"flags": "+ilme+ildct", "qmin": "1", "qmax": "1"}
    path = videos.write(tmp_path / "clip.mpg", [combed] * 3, codec="mpeg2video", options=options, rate=25)
    for image in images_of(path):
        assert image[::2].min() > 180 and image[1::2].max() < 60


CODECS = {
    "H.264": {"options": {"crf": "4", "bf": "2", "sc_threshold": "0"}},
    "H.264 without B-frames": {"options": {"crf": "4", "bf": "0", "sc_threshold": "0"}},
    "H.264 with open groups": {
        "options": {"x264-params": "open-gop=1:keyint=10:min-keyint=10:bframes=3:b-adapt=0:scenecut=0"}
    },
    "MPEG-4": {"codec": "mpeg4", "options": {"bf": "0", "sc_threshold": "1000000000"}},
    "MJPEG": {"codec": "mjpeg", "pixels": "yuvj420p"},
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("packet", [0, 3, 10, 13, 25, 39])
def test_damage_costs_the_frames_up_to_the_next_key_frame(tmp_path, caplog, codec, packet):
    rng = np.random.default_rng(0)
    still = np.clip(rng.normal(128, 40, (48, 64, 3)), 0, 255).astype(np.uint8)
    path = videos.write(
        tmp_path / "clip.mov", [np.roll(still, 3 * i, axis=1) for i in range(40)], **CODECS[codec]
    )
    whole = {frame.time: frame.read() for frame in VideoSource(path)}
    assert len(whole) == 40 and not caplog.records
    videos.damage(path, packet)
    source = VideoSource(path)
    with caplog.at_level(logging.WARNING):
        frames = list(source)
    assert 1 <= source.lost <= 20 and len(frames) == 40 - source.lost
    assert [frame.index for frame in frames] == list(range(len(frames)))
    start = min(whole) - frames[0].time if packet else 0
    for frame in frames:
        np.testing.assert_array_equal(
            frame.read(), whole[min(whole, key=lambda t: abs(t - frame.time - start))]
        )
    if packet < 25:
        assert frames[-1].time == max(whole)
    (record,) = caplog.records
    assert f"video {path} is damaged at " in record.message
    lost = "1 frame lost" if source.lost == 1 else f"{source.lost} frames lost"
    assert lost in record.message


def test_many_damaged_places_are_summed_up(tmp_path, caplog):
    path = videos.write(
        tmp_path / "clip.mp4", videos.shades(40), key=4, options={"sc_threshold": "0", "bf": "0"}
    )
    for packet in range(1, 40, 4):
        videos.damage(path, packet)
    source = VideoSource(path)
    with caplog.at_level(logging.WARNING):
        assert len(list(source)) == 10
    assert source.lost == 30 and len(caplog.records) == 6
    assert caplog.records[-1].message == f"video {path} is damaged in 10 places: 30 frames lost"


def test_threads_read_in_any_order_what_one_reads(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (47, 63, 3), np.uint8) for _ in range(20)]
    path = videos.write(tmp_path / "clip.mkv", noise, codec="ffv1", pixels="bgr0")
    frames = list(VideoSource(path))
    random.Random(1).shuffle(frames)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for frame, image in zip(frames, pool.map(lambda frame: frame.read(), frames), strict=True):
            np.testing.assert_array_equal(image, noise[frame.index])


def test_a_frame_lets_go_of_its_pixels(tmp_path):
    frame = next(iter(VideoSource(videos.write(tmp_path / "clip.mp4", videos.shades(3)))))
    frame.read()
    with pytest.raises(YolactError, match="was read before"):
        frame.read()


def test_closing_ends_the_iteration(tmp_path):
    source = VideoSource(videos.write(tmp_path / "clip.mp4", videos.shades(10)))
    frames = iter(source)
    first = next(frames)
    source.close()
    source.close()
    assert list(frames) == []
    assert first.read().shape == (48, 64, 3)  # what was given stays good


def test_pictures_may_change_their_size(tmp_path):
    small = videos.write(tmp_path / "small.ts", videos.shades(5))
    large = videos.write(tmp_path / "large.ts", videos.shades(5, 96, 128))
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    frames = list(VideoSource(tmp_path / "both.ts"))
    sizes = [frame.read().shape[:2] for frame in frames]
    assert sizes == [(48, 64)] * 5 + [(96, 128)] * 5
    # The second half brings a clock of its own.
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(10) / 10, atol=0.02)


@given(
    stamps=st.lists(st.none() | st.floats(-1e5, 1e5), min_size=1, max_size=30),
    start=st.none() | st.floats(-100, 100),
    live=st.booleans(),
)
def test_time_always_grows(stamps, start, live):
    clock = Clock(start, 0.04, live)
    times = [clock.time(stamp) for stamp in stamps]
    assert times[0] >= 0
    assert all(later > earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        ([5, 5.1, 5.3], [0, 0.1, 0.3]),
        ([5, None, 5.3], [0, 0.1, 0.3]),
        ([None, None], [0, 0.1]),
        ([5, 5.1, 5.1, 5.2], [0, 0.1, 0.101, 0.2]),  # written twice
        ([5, 5.1, 0, 0.2], [0, 0.1, 0.2, 0.4]),  # began anew
        ([5, 5.1, 100], [0, 0.1, 95]),  # a still picture
        ([5, 5.1, 1e6, 1e6 + 1], [0, 0.1, 0.2, 1.2]),  # a damaged time stamp
    ],
)
def test_times_of_odd_streams(stamps, times):
    clock = Clock(None, 0.1)
    np.testing.assert_allclose([clock.time(stamp) for stamp in stamps], times)


def test_what_is_a_video(tmp_path):
    clip = videos.write(tmp_path / "clip.mp4", videos.shades(3))
    assert is_video("anything.MP4") and is_video(clip)
    (tmp_path / "recording").write_bytes(clip.read_bytes())
    assert is_video(tmp_path / "recording")
    videos.write(tmp_path / "still.png", [videos.scene()], codec="png", pixels="rgb24", container="image2")
    (tmp_path / "still").write_bytes((tmp_path / "still.png").read_bytes())
    (tmp_path / "notes").write_text("hello\n" * 100)
    for name in ("still.png", "still", "notes", "none", "a.txt", "list.json"):
        assert not is_video(tmp_path / name), name
    assert not is_video(tmp_path)


def test_the_cover_of_an_album_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as output:
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        clip = output.add_stream("libx264", rate=Fraction(10))
        clip.width, clip.height, clip.pix_fmt = 32, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(videos.scene(), "bgr24")
        output.mux(cover.encode(frame.reformat(format="yuvj420p")))
        for image in videos.shades(3, 32, 32):
            output.mux(clip.encode(av.VideoFrame.from_ndarray(image, "bgr24")))
        for stream in (cover, clip):
            output.mux(stream.encode(None))
    assert [image.shape for image in images_of(path)] == [(32, 32, 3)] * 3
