"""Tracks in the pipeline: those of the frames in order, whatever the threads do."""

import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine, Found
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("trackers")

from yolact_runtime import Tracker, TrackSettings, YolactError
from yolact_runtime.frames import Frame, Sink, Source
from yolact_runtime.pipeline import PipelineSettings, run_pipeline

FRAMES = 30
BAD = 200  # added to the shade of a frame that the engine fails on
RATE = 30


def found(index):
    """Two objects that cross, and one that is there half of the time."""
    rows = [Found((index, 5, index + 20, 25)), Found((40 - index, 12, 60 - index, 32), label=1, score=0.8)]
    return [*rows, Found((5, 40, 25, 60), score=0.7)] if index // 5 % 2 else rows


class Video(Source):
    """Frames whose shade is their number; some cannot be read."""

    def __init__(self, damaged=(), bad=(), timed=True, delay=None, live=False):
        self.damaged, self.bad, self.timed, self.delay, self.live = damaged, bad, timed, delay, live

    def __iter__(self):
        for index in range(FRAMES):
            seconds = index / RATE if self.timed else None
            yield Frame(index, f"clip#{index}", Path("clip"), partial(self.read, index), seconds)

    def read(self, index):
        if self.delay:
            time.sleep(self.delay(index))
        if index in self.damaged:
            raise YolactError(f"clip#{index} is damaged")
        return np.full((64, 64, 3), index + BAD if index in self.bad else index, np.uint8)


class Tracks(Sink):
    """Keeps the tracks of each frame, from `prepare`, and the order of the frames."""

    def __init__(self, delay=None):
        self.delay, self.tracks, self.order = delay, {}, []

    def prepare(self, frame, image, result):
        if self.delay:
            time.sleep(self.delay(frame.index))
        return None if result.track_ids is None else result.track_ids.tolist()

    def write(self, frame, prepared):
        self.tracks[frame.index] = prepared
        self.order.append(frame.index)

    def fail(self, frame, error):
        self.order.append(frame.index)


def engine(streams=1, delay=None):
    class Delayed(FakeEngine):
        def detect(self, batch, classes=None):
            if delay:
                time.sleep(delay(int(batch[0, 0, 0, 0])))
            return super().detect(batch, classes)

    fake = Delayed({n: found(n) for n in range(FRAMES)}, max_batch=4, broken=range(BAD, BAD + FRAMES))
    fake.streams = streams
    return fake


def one_by_one(lost, timed):
    """The tracks of the frames, one after the other without a pipeline."""
    tracker, fake, tracks = Tracker(), engine(), {}
    for index in range(FRAMES):
        if index in lost:
            if not timed:
                tracker.skip()
            continue
        result = fake.predict([np.full((64, 64, 3), index, np.uint8)])[0]
        tracks[index] = tracker.update(result, index / RATE if timed else None).track_ids.tolist()
    return tracks


@settings(max_examples=25, deadline=None)
@given(
    damaged=st.sets(st.integers(0, FRAMES - 1), max_size=4),
    bad=st.sets(st.integers(0, FRAMES - 1), max_size=4),
    timed=st.booleans(),
    batch=st.integers(1, 4),
    streams=st.integers(1, 3),
    workers=st.integers(1, 4),
    in_flight=st.none() | st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_tracks_are_those_of_the_frames_in_order(
    damaged, bad, timed, batch, streams, workers, in_flight, seed
):
    def delay(index):
        return hash((seed, index)) % 5 / 2000

    sink = Tracks(delay)
    options = PipelineSettings(
        batch, 0.001, workers, workers, in_flight=in_flight, engine_failures=1000, track=TrackSettings()
    )
    video = Video(damaged, bad, timed, delay)
    stats = run_pipeline(video, engine(streams, delay), [sink], options)
    assert sink.order == list(range(FRAMES))
    assert sink.tracks == one_by_one(damaged | bad, timed)
    assert stats.done == FRAMES - len(damaged | bad) == FRAMES - stats.failed
    assert not [one.name for one in threading.enumerate() if one.name.startswith("track")]


def test_no_tracks_and_no_thread_unless_asked_for():
    names = set()

    class Look(Tracks):
        def prepare(self, frame, image, result):
            names.update(one.name for one in threading.enumerate())
            return super().prepare(frame, image, result)

    sink = Look()
    run_pipeline(Video(), engine(), [sink])
    assert set(map(str, sink.tracks.values())) == {"None"}
    assert any(name.startswith("post") for name in names)
    assert not any(name.startswith("track") for name in names)


def test_a_tracker_that_fails_costs_the_frame_only(monkeypatch):
    from yolact_runtime.tracks import SourceTrackers

    update = SourceTrackers.update

    def refuse(self, frame, result):
        if frame.index == 7:
            raise ValueError("no")
        return update(self, frame, result)

    monkeypatch.setattr(SourceTrackers, "update", refuse)
    sink = Tracks()
    stats = run_pipeline(Video(), engine(), [sink], PipelineSettings(track=TrackSettings()))
    assert (stats.done, stats.failed) == (FRAMES - 1, 1) and sink.order == list(range(FRAMES))


def test_frames_that_come_too_fast_are_dropped_and_tracks_go_on():
    given_all = threading.Event()

    class Live(Video):
        def __iter__(self):
            for frame in super().__iter__():
                yield frame
                time.sleep(0.002)
            given_all.set()

    sink = Tracks()
    options = PipelineSettings(track=TrackSettings())
    stats = run_pipeline(Live(live=True), engine(delay=lambda _: 0.01), [sink], options)
    assert given_all.is_set() and stats.dropped and stats.done + stats.dropped == FRAMES
    assert sink.order == sorted(sink.order)
    kept = [tracks[:2] for tracks in sink.tracks.values()]
    assert kept[-1] == kept[1] and -1 not in kept[1]


def test_an_engine_given_up_ends_the_run():
    options = PipelineSettings(engine_failures=3, track=TrackSettings())
    with pytest.raises(YolactError, match="failed on 3 images in a row"):
        run_pipeline(Video(bad=range(FRAMES)), engine(2), [Tracks()], options)
