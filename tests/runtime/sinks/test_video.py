import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import videos
from fake_engine import FakeEngine, Found

from yolact_runtime import Result, YolactError
from yolact_runtime.errors import UsageError
from yolact_runtime.frames import Frame
from yolact_runtime.sinks.audio import AudioCopy
from yolact_runtime.sinks.video import VideoSink
from yolact_runtime.sources.video import VideoSource

av = pytest.importorskip("av")

BEST = 1
EMPTY = FakeEngine({})


def nothing_in(image):
    """A result without instances, which leaves the image as it is."""
    return EMPTY.predict([image])[0]


def put(sink, frame, image):
    sink.write(frame, sink.prepare(frame, image, nothing_in(image)))


def copy(source, folder, skip=(), **options):
    """Pass a video through the sink without drawing; the one file written."""
    sink = VideoSink(folder, BEST, **options)
    for frame in VideoSource(source):
        if frame.index not in skip:
            put(sink, frame, frame.read())
    sink.close()
    sink.close()
    (written,) = sink.outputs
    return written


def camera_frame(index, time, image, path="camera:0"):
    return Frame(index, f"{path}#{index}", Path(path), lambda: image, time)


def boxes(path):
    """Names of the top-level boxes of an MP4 file, in order."""
    data, place, names = path.read_bytes(), 0, []
    while place < len(data):
        names.append(data[place + 4 : place + 8].decode())
        place += int.from_bytes(data[place : place + 4], "big")
    return names


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi", "ts"])
def test_pictures_and_times_survive(tmp_path, suffix):
    times = [0, 0.04, 0.2, 0.21, 0.5, 1.3, 1.34, 1.5]
    codec = "mpeg4" if suffix == "avi" else "libx264"
    source = videos.write(
        tmp_path / f"clip.{suffix}",
        [videos.scene()] * 8,
        None if suffix == "avi" else times,
        codec=codec,
        options={"qmin": "1", "qmax": "1"} if suffix == "avi" else None,
    )
    written = copy(source, tmp_path / "out")
    assert written == tmp_path / "out" / f"clip.{suffix if suffix in ('mkv', 'mov') else 'mp4'}"
    assert list(written.parent.iterdir()) == [written]
    old, new = list(VideoSource(source)), list(VideoSource(written))
    np.testing.assert_allclose([f.time for f in new], [f.time for f in old], atol=1e-3)
    for before, after in zip(old, new, strict=True):
        difference = np.abs(before.read().astype(int) - after.read())
        assert difference.mean() < 4  # most of it where colours meet
        assert np.abs(difference[4:18, 4:26]).max() <= 6
    with av.open(str(written)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_range) == (5, 1)  # BT.601, limited


def test_noise_stays_within_a_few_levels(tmp_path):
    rng = np.random.default_rng(0)
    grey = [np.repeat(rng.integers(30, 220, (48, 64, 1), np.uint8), 3, axis=2) for _ in range(5)]
    source = videos.write(tmp_path / "clip.mkv", grey, codec="ffv1", pixels="bgr0")
    for before, after in zip(grey, videos.read(copy(source, tmp_path / "out"))[1], strict=True):
        assert np.abs(before.astype(int) - after).max() <= 5


def test_an_mp4_begins_with_its_index(tmp_path):
    names = boxes(copy(videos.write(tmp_path / "clip.mp4", videos.shades(5)), tmp_path / "out"))
    assert names.index("moov") < names.index("mdat")


@pytest.mark.parametrize("size", [(47, 63), (47, 64), (48, 63), (1, 1)])
def test_odd_sizes_repeat_the_last_row_or_column(tmp_path, size):
    image = videos.scene(*size)
    source = videos.write(tmp_path / "clip.mkv", [image] * 2, codec="ffv1", pixels="bgr0")
    for after in videos.read(copy(source, tmp_path / "out"))[1]:
        assert after.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
        assert np.abs(after[-1].astype(int) - after[-2]).mean() < 3
        assert np.abs(after[: size[0], : size[1]].astype(int) - image).mean() < 12


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "aac"), ("mkv", "pcm_s16le"), ("mov", "pcm_s16le"), ("mkv", "flac"), ("ts", "mp2")],
)
def test_sound_is_copied(tmp_path, suffix, codec, caplog):
    source = videos.write(tmp_path / f"clip.{suffix}", videos.shades(12), sound=codec)
    with caplog.at_level(logging.INFO):
        written = copy(source, tmp_path / "out")
    (old_times, old), (new_times, new) = videos.sound(source), videos.sound(written)
    assert new == old
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        start = float(stream.start_time * stream.time_base)
    drift = (np.array(new_times) - new_times[0]) - (np.array(old_times) - old_times[0])
    assert np.abs(drift).max() < 2e-3
    with av.open(str(written)) as container:
        stream = container.streams.video[0]
        begins = float(stream.start_time * stream.time_base)
    # As far from the first picture as it was.
    assert new_times[0] - begins == pytest.approx(old_times[0] - start, abs=2e-3)
    assert f"{written}: 12 frames of 64 x 48, H.264 and {codec}" in caplog.text


@pytest.mark.parametrize(("pictures", "heard"), [(0.5, 0.0), (0.0, 0.5)])
def test_what_begins_later_still_does(tmp_path, pictures, heard):
    times = [pictures + i / 10 for i in range(12)]
    source = videos.write(tmp_path / "clip.mkv", videos.shades(12), times, sound="flac", sound_from=heard)
    written = copy(source, tmp_path / "out")
    first_sound, first_picture = videos.sound(written)[0][0], videos.read(written)[0][0]
    assert first_sound - first_picture == pytest.approx(heard - pictures, abs=5e-3)
    assert len(videos.sound(written)[1]) == len(videos.sound(source)[1])


def test_sound_the_container_cannot_hold(tmp_path, caplog):
    source = videos.write(
        tmp_path / "clip.avi", videos.shades(5), codec="mpeg4", options={"qmax": "3"}, sound="adpcm_ms"
    )
    written = copy(source, tmp_path / "out")
    assert f"{written} has no sound: .mp4 cannot hold adpcm_ms audio" in caplog.text
    with av.open(str(written)) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_turned_pictures_need_no_matrix(tmp_path):
    source = videos.write(tmp_path / "clip.mp4", [videos.scene()] * 3)
    videos.turn(source, (0, 1, -1, 0))
    upright = next(iter(VideoSource(source))).read()
    with av.open(str(copy(source, tmp_path / "out"))) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation == 0 and (frame.width, frame.height) == (48, 64)
        assert np.abs(frame.to_ndarray(format="bgr24").astype(int) - upright).mean() < 3


@pytest.mark.parametrize("turned", [False, True])
def test_the_shape_of_a_pixel_is_kept(tmp_path, turned):
    source = videos.write(tmp_path / "clip.mp4", [videos.scene()] * 3, aspect=Fraction(4, 3))
    if turned:
        videos.turn(source, (0, 1, -1, 0))
    with av.open(str(copy(source, tmp_path / "out"))) as container:
        expected = Fraction(3, 4) if turned else Fraction(4, 3)
        assert container.streams.video[0].sample_aspect_ratio == expected


def test_missing_frames_leave_the_rest_in_place(tmp_path):
    source = videos.write(tmp_path / "clip.mp4", videos.shades(12), sound="aac")
    times, images = videos.read(copy(source, tmp_path / "out", skip=(0, 5, 11)))
    kept = [i for i in range(12) if i not in (0, 5, 11)]
    np.testing.assert_allclose(times, np.array(kept) / 10, atol=1e-3)
    np.testing.assert_allclose(
        [image.mean() for image in images], [videos.shades(12)[i].mean() for i in kept], atol=4
    )
    # The end was nearly reached, so the sound is whole.
    assert videos.sound(tmp_path / "out" / "clip.mp4")[1] == videos.sound(source)[1]


def test_closed_early_it_plays_as_far_as_it_came(tmp_path):
    source = videos.write(tmp_path / "clip.mp4", videos.shades(40), sound="aac")
    sink = VideoSink(tmp_path / "out", BEST)
    for frame in VideoSource(source):
        if frame.index == 8:
            break
        put(sink, frame, frame.read())
    assert sink.outputs == [] and not (tmp_path / "out" / "clip.mp4").exists()
    sink.close()
    times, _ = videos.read(tmp_path / "out" / "clip.mp4")
    heard, _ = videos.sound(tmp_path / "out" / "clip.mp4")
    np.testing.assert_allclose(times, np.arange(8) / 10, atol=1e-3)
    assert 0.7 < heard[-1] <= 0.8


def test_an_interrupt_while_writing_loses_nothing(tmp_path, monkeypatch):
    source = videos.write(tmp_path / "clip.mp4", videos.shades(20), sound="aac")
    sink = VideoSink(tmp_path / "out", BEST)
    whole = AudioCopy.packets

    def interrupted(self, until):
        if 0.95 < until < 1.05:
            raise KeyboardInterrupt
        return whole(self, until)

    monkeypatch.setattr(AudioCopy, "packets", interrupted)
    with pytest.raises(KeyboardInterrupt):
        for frame in VideoSource(source):
            put(sink, frame, frame.read())
    sink.close()
    assert len(videos.read(tmp_path / "out" / "clip.mp4")[0]) == 10


def test_several_videos_get_names_of_their_own(tmp_path):
    out = tmp_path / "out"
    sources = []
    for number, folder in enumerate(["a", "b", "out"]):
        (tmp_path / folder).mkdir()
        sources.append(videos.write(tmp_path / folder / "clip.mp4", videos.shades(3 + number)))
    before = sources[2].read_bytes()
    sink = VideoSink(out, BEST, keep=sources)
    for source in sources:
        for frame in VideoSource(source):
            put(sink, frame, frame.read())
    sink.close()
    assert [path.name for path in sink.outputs] == ["clip_2.mp4", "clip_3.mp4", "clip_4.mp4"]
    assert [len(videos.read(path)[0]) for path in sink.outputs] == [3, 4, 5]
    assert sources[2].read_bytes() == before


def test_a_video_that_comes_twice_is_written_twice(tmp_path):
    source = videos.write(tmp_path / "clip.mp4", videos.shades(3))
    sink = VideoSink(tmp_path / "out", BEST)
    for frame in [*VideoSource(source), *VideoSource(source)]:
        put(sink, frame, frame.read())
    sink.close()
    assert [path.name for path in sink.outputs] == ["clip.mp4", "clip_2.mp4"]
    first, second = (videos.read(path)[0] for path in sink.outputs)
    assert len(first) == 3 and first == second


def test_a_source_is_never_written_over(tmp_path):
    source = videos.write(tmp_path / "clip.mp4", videos.shades(3))
    before = source.read_bytes()
    assert copy(source, tmp_path) == tmp_path / "clip_2.mp4"
    assert source.read_bytes() == before


def test_an_older_output_is_replaced_when_the_new_one_is_whole(tmp_path):
    source = videos.write(tmp_path / "clip.mp4", videos.shades(4))
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / "clip.mp4"
    old.write_text("old")
    sink = VideoSink(tmp_path / "out")
    for frame in VideoSource(source):
        put(sink, frame, frame.read())
        assert old.read_text() == "old"
    sink.close()
    assert len(videos.read(old)[0]) == 4


def test_a_camera_becomes_matroska(tmp_path):
    sink = VideoSink(tmp_path, BEST)
    times = [0, 0.03, 0.5, 0.5, 0.4, 0.6]  # also where a source does not keep its promise
    for index, time in enumerate(times):
        put(sink, camera_frame(index, time, videos.scene(), "rtsp://host:554/live/1"), videos.scene())
    sink.close()
    assert [path.name for path in sink.outputs] == ["rtsp_host_554_live_1.mkv"]
    read = videos.read(sink.outputs[0])[0]
    np.testing.assert_allclose(read, [0, 0.03, 0.5, 0.5, 0.5, 0.6], atol=2e-3)
    assert len(set(read)) == 6


def test_a_recording_can_be_played_before_it_ends(tmp_path):
    sink = VideoSink(tmp_path, BEST)
    for index in range(300):
        put(sink, camera_frame(index, index / 10, videos.scene()), videos.scene())
    (unfinished,) = tmp_path.iterdir()  # what a process that is killed leaves behind
    (tmp_path / "copy.mkv").write_bytes(unfinished.read_bytes())
    assert unfinished.name.startswith(".camera_0.")
    assert len(videos.read(tmp_path / "copy.mkv")[0]) > 100
    sink.close()


def test_images_are_left_to_others(tmp_path):
    sink = VideoSink(tmp_path / "out")
    image = videos.scene()
    frame = Frame(0, "a.jpg", Path("a.jpg"), lambda: image)
    put(sink, frame, image)
    sink.close()
    assert sink.outputs == [] and not (tmp_path / "out").exists()


def test_other_sizes_are_fitted_into_the_first(tmp_path, caplog):
    sink = VideoSink(tmp_path, BEST)
    sizes = [(48, 64), (48, 64), (96, 64), (24, 32), (48, 64)]
    for index, size in enumerate(sizes):
        image = np.full((*size, 3), 200, np.uint8)
        put(sink, camera_frame(index, index / 10, image), image)
    sink.close()
    _, images = videos.read(sink.outputs[0])
    assert {image.shape for image in images} == {(48, 64, 3)}
    narrow = images[2][:, :, 0]  # 96 x 64 becomes 48 x 32, in the middle
    assert narrow[:, 20:44].min() > 190 and narrow[:, :12].max() < 10 and narrow[:, -12:].max() < 10
    assert images[3].min() > 190 and images[4].min() > 190
    assert caplog.text.count("the picture size changes from 64 x 48 to 64 x 96") == 1


@pytest.mark.parametrize("crf", [-1, 52])
def test_settings_have_limits(crf):
    with pytest.raises(UsageError, match=rf"crf.*is {crf}.*0\.\.51"):
        VideoSink("out", crf)


def test_a_better_quality_is_a_larger_file(tmp_path):
    rng = np.random.default_rng(0)
    sizes = []
    for crf in (10, 40):
        sink = VideoSink(tmp_path, crf)
        for index in range(5):
            image = rng.integers(0, 256, (48, 64, 3), np.uint8)
            put(sink, camera_frame(index, index / 10, image, f"c{crf}"), image)
        sink.close()
        sizes.append(sink.outputs[0].stat().st_size)
    assert sizes[0] > 2 * sizes[1]


def test_from_video_to_annotated_video(tmp_path):
    """Source, engine and sink in the simplest loop; one frame fails in between."""
    images = [np.full((64, 64, 3), 40 + 40 * (i // 4), np.uint8) for i in range(12)]
    source = videos.write(tmp_path / "clip.mkv", images, codec="ffv1", pixels="bgr0", sound="flac")
    engine = FakeEngine({80: [Found((16, 16, 48, 48))]}, max_batch=4)
    sink = VideoSink(tmp_path / "out", BEST)
    for frame in VideoSource(source):
        try:
            image = frame.read()
            if frame.index == 2:
                raise YolactError("cannot look at it")
            result: Result = engine.predict([image])[0]
        except YolactError:
            continue
        sink.write(frame, sink.prepare(frame, image, result))
    sink.close()
    times, drawn = videos.read(tmp_path / "out" / "clip.mkv")
    kept = [i for i in range(12) if i != 2]
    np.testing.assert_allclose(times, np.array(kept) / 10, atol=1e-3)
    for index, image in zip(kept, drawn, strict=True):
        expected = images[index]
        if index // 4 == 1:
            expected = engine.predict([expected])[0].draw(expected)
        difference = np.abs(image.astype(int) - expected)
        assert difference.mean() < 6
        changed = np.abs(image.astype(int) - images[index])[24:40, 24:40].mean() > 20
        assert changed == (index // 4 == 1)
