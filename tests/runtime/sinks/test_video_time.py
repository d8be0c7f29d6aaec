"""Pictures and sound of annotated videos, at the times of the source, as PyAV reads both."""

import logging

import numpy as np
import pytest
import videos
from fake_engine import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact_runtime.sinks.video import VideoSink
from yolact_runtime.sources.video import VideoSource

av = pytest.importorskip("av")

EMPTY = FakeEngine({})
SOUND = {"mp4": "aac", "mov": "pcm_s16le", "mkv": "flac", "ts": "mp2"}


def copy(source, folder):
    """Pass a video through the sink without drawing; the file written, and the frames' times."""
    sink, times = VideoSink(folder, 1, "ultrafast"), []
    for frame in VideoSource(source):
        image = frame.read()
        sink.write(frame, sink.prepare(frame, image, EMPTY.predict([image])[0]))
        times.append(frame.time)
    sink.close()
    (written,) = sink.outputs
    return written, times


def warnings_in(caplog):
    """Messages of warnings; other tests may have set the level of the loggers to INFO."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def played(path):
    """Times of pictures and of sound, from the first picture on, and seconds of sound."""
    result = []
    for kind in ("video", "audio"):
        with av.open(str(path)) as container:
            stream = getattr(container.streams, kind)[0]
            frames = list(container.decode(stream))
            times = np.array([float(frame.pts * stream.time_base) for frame in frames])
            result.append(times)
    with av.open(str(path)) as container:
        seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    pictures, sound = result
    return pictures - pictures[0], sound - pictures[0], seconds


def shown_seconds(path):
    """Length of a file in seconds: until the last picture and the last sound end."""
    with av.open(str(path)) as container:
        return container.duration / 1e6


@settings(max_examples=40)
@given(
    suffix=st.sampled_from(sorted(SOUND)),
    offset=st.floats(-0.7, 0.7),
    rate=st.sampled_from([10, 24, 25, 30]),
    count=st.integers(3, 30),
)
def test_sound_keeps_its_distance_to_the_picture(tmp_path_factory, suffix, offset, rate, count):
    folder = tmp_path_factory.mktemp("clips")
    times = [max(0.0, -offset) + i / rate for i in range(count)]
    source = videos.write(
        folder / f"clip.{suffix}", videos.shades(count), times, rate=rate, sound=SOUND[suffix],
        sound_from=max(0.0, offset),
    )  # fmt: skip
    written, _ = copy(source, folder / "out")
    (old_pictures, old_sound, old_seconds), (pictures, sound, seconds) = played(source), played(written)
    np.testing.assert_allclose(pictures, old_pictures, atol=2e-3)
    assert seconds == pytest.approx(old_seconds, abs=0.03)
    assert sound[0] == pytest.approx(old_sound[0], abs=0.03)
    assert sound[-1] == pytest.approx(old_sound[-1], abs=0.03)


def recording(path, start, offset, codec):
    """A transport stream of 15 pictures, 10 a second, whose clock shows `start` with the first one.

    Returns:
        Its packets of sound: seconds from the first picture, and content.
    """
    times = [start + i / 10 for i in range(15)]
    videos.write(path, videos.shades(15), times, sound=codec, sound_from=start + offset)
    with av.open(str(path)) as container:
        first = next(packet.pts * packet.time_base for packet in container.demux(video=0))
    return [(time - float(first), content) for time, content in zip(*videos.sound(path), strict=True)]


@settings(max_examples=15)
@given(
    # The clock goes back, or forward by more than a pause.
    starts=st.lists(st.sampled_from([1.0, 25.0, 100.0, 5000.0]), min_size=2, max_size=4),
    offsets=st.lists(st.sampled_from([-0.2, 0.0, 0.2]), min_size=4, max_size=4),
    codec=st.sampled_from(["mp2", "aac"]),
)
def test_joined_recordings_keep_all_pictures_and_sound(tmp_path_factory, starts, offsets, codec):
    folder = tmp_path_factory.mktemp("joined")
    joined, expected = folder / "joined.ts", []
    for number, (start, offset) in enumerate(zip(starts, offsets, strict=False)):
        packets = recording(folder / "part.ts", start, offset, codec)
        with joined.open("ab") as file:
            file.write((folder / "part.ts").read_bytes())
        before = expected[-1][0] if expected else -10.0
        later = [(time + 1.5 * number, content) for time, content in packets]
        # Where the sound of two recordings overlaps, that of the first is kept.
        expected += [(time, content) for time, content in later if time > before]
    source = VideoSource(joined)
    assert len(list(source)) == 15 * len(starts) and source.lost == 0
    written, times = copy(joined, folder / "out")
    np.testing.assert_allclose(times, np.arange(15 * len(starts)) / 10, atol=2e-3)
    heard_times, heard = videos.sound(written)
    with av.open(str(written)) as container:
        first = next(packet.pts * packet.time_base for packet in container.demux(video=0))
    np.testing.assert_allclose(
        np.array(heard_times) - float(first), [time for time, _ in expected], atol=3e-3
    )
    assert codec == "aac" or heard == [content for _, content in expected]


def test_overlapping_sound_is_reported(tmp_path, caplog):
    for name, offset in (("a.ts", 0.5), ("b.ts", -0.5)):
        recording(tmp_path / name, 1.0, offset, "mp2")
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    written, _ = copy(joined, tmp_path / "out")
    (message,) = warnings_in(caplog)
    assert message.startswith(f"{written} lacks 1.0") and "overlaps other sound" in message


def test_sound_that_changes_its_codec_is_reported(tmp_path, caplog):
    parts = [recording(tmp_path / f"{codec}.ts", 1.0, 0.0, codec) for codec in ("aac", "mp2")]
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "aac.ts").read_bytes() + (tmp_path / "mp2.ts").read_bytes())
    written, _ = copy(joined, tmp_path / "out")
    # FFmpeg has either found out when it opens the file, or not.
    assert len(videos.sound(written)[0]) in map(len, parts)
    (message,) = warnings_in(caplog)
    assert message.startswith(f"{written} lacks 1.") and "changes its codec" in message


def test_a_recorder_that_paused_leaves_no_hour_of_nothing(tmp_path, caplog):
    for name, start in (("a.ts", 1.0), ("b.ts", 3601.0)):
        recording(tmp_path / name, start, 0.0, "mp2")
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    written, _ = copy(joined, tmp_path / "out")
    assert shown_seconds(written) == pytest.approx(3.0, abs=0.1)
    assert (
        f"video {joined}: its clock leaps by 3598.6 s, 1.50 s after the start; the gap is closed"
        in caplog.text
    )


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_picture_that_is_shown_for_long_is_no_leap(tmp_path, suffix, caplog):
    times = [1, 16, 31, 46]
    source = videos.write(tmp_path / f"slides.{suffix}", videos.shades(4), times, sound="mp2", sound_from=1)
    written, _ = copy(source, tmp_path / "out")
    np.testing.assert_allclose(played(written)[0], [0, 15, 30, 45], atol=2e-3)
    assert played(written)[2] == pytest.approx(played(source)[2], abs=0.03) and not warnings_in(caplog)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_the_last_picture_is_shown_as_long_as_in_the_source(tmp_path, suffix):
    source = videos.write(tmp_path / f"a.{suffix}", videos.shades(5), [0, 0.1, 0.2, 8, 8.1])
    assert shown_seconds(copy(source, tmp_path / "out")[0]) == pytest.approx(shown_seconds(source), abs=2e-3)


# Seconds to show, and from which second of the track (None: nothing is shown).
EDITS = {
    "cut at the end": [(1.5, 0)],
    "cut at both ends": [(1.5, 1.25)],
    "two parts": [(1, 0), (1, 2.5)],
    "parts in another order": [(1, 2), (1, 0)],
    "a part twice": [(1, 1), (1, 1)],
    "a delay": [(0.5, None), (3, 0)],
    "a pause": [(1, 0), (1, None), (1, 1)],
}


@pytest.mark.parametrize("edits", EDITS)
@pytest.mark.parametrize("tracks", ["vide", "soun", "both"])
def test_edit_lists_are_followed(tmp_path, caplog, edits, tracks):
    source = videos.write(
        tmp_path / "clip.mp4", videos.shades(40), sound="aac", options={"bf": "0", "preset": "ultrafast"}
    )
    for kind in ("vide", "soun") if tracks == "both" else (tracks,):
        videos.edit(source, EDITS[edits], kind)
    expected_pictures, expected_sound, seconds = played(source)
    opened = VideoSource(source)
    assert len(list(opened)) == opened.total == len(expected_pictures)
    pictures, sound, written_seconds = played(copy(source, tmp_path / "out")[0])
    np.testing.assert_allclose(pictures, expected_pictures, atol=2e-3)
    # The sound that the decoder needs before the first that is heard may be heard: a packet of 21 ms.
    assert written_seconds == pytest.approx(seconds, abs=0.05)
    assert sound[0] == pytest.approx(expected_sound[0], abs=0.05)
    assert sound[-1] == pytest.approx(expected_sound[-1], abs=0.05)
    assert not warnings_in(caplog)


def test_two_tracks_of_sound_are_kept(tmp_path):
    source = tmp_path / "clip.mkv"
    first = videos.write(tmp_path / "a.mkv", videos.shades(10), sound="flac")
    with av.open(str(first)) as old, av.open(str(source), "w") as new:
        pictures, sound = old.streams.video[0], old.streams.audio[0]
        tracks = {0: [new.add_stream_from_template(pictures)], 1: []}
        for language in ("deu", "eng"):
            track = new.add_stream_from_template(sound)
            track.metadata["language"] = language
            tracks[1].append(track)
        for packet in old.demux(pictures, sound):
            if packet.size:
                start, data = packet.pts, bytes(packet)
                for number, track in enumerate(tracks[packet.stream.index]):
                    one = av.Packet(data)
                    one.time_base, one.is_keyframe = packet.time_base, packet.is_keyframe
                    one.pts = one.dts = start + 300 * number  # the second begins later
                    one.stream = track
                    new.mux(one)
    written, _ = copy(source, tmp_path / "out")
    with av.open(str(written)) as container:
        assert [stream.metadata.get("language") for stream in container.streams.audio] == ["deu", "eng"]
        starts = [float(stream.start_time * stream.time_base) for stream in container.streams.audio]
        assert starts[1] - starts[0] == pytest.approx(0.3, abs=5e-3)
