"""Sources that are read at the same time: every one in its order, its turn and its own time."""

import itertools
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import videos
from camera_server import serving, stream
from rtsp_server import RtspCamera

from yolact_runtime import YolactError
from yolact_runtime.frames import Frame, Source
from yolact_runtime.sources.camera import CameraSettings, CameraSource
from yolact_runtime.sources.open import has_video, image_folders, open_source, source_files
from yolact_runtime.sources.several import ChainSource, SimultaneousSource, leaves


class Scripted(Source):
    """Yields `count` frames, sets `given`, waits for `hold`, and raises `error`."""

    def __init__(self, name, count=3, live=False, hold=None, error=None, before=None):
        self.name, self.count, self.live, self.error = name, count, live, error
        self.hold, self.before = hold, before
        self.total = None if live else count
        self.given, self.closed, self.yielded = threading.Event(), threading.Event(), 0

    def __iter__(self):
        if self.before:
            self.before()
        for index in range(self.count):
            self.yielded = index + 1
            yield Frame(
                index, f"{self.name}#{index}", Path(self.name), partial(np.zeros, (4, 4, 3), np.uint8)
            )
        self.given.set()
        while self.hold and not self.hold.wait(0.01) and not self.closed.is_set():
            pass
        if self.error:
            raise self.error

    def close(self):
        self.closed.set()


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def of(frames, number):
    return [frame for frame in frames if frame.source == number]


def test_all_are_read_at_the_same_time_and_each_in_order():
    meeting = threading.Barrier(3, timeout=60)
    source = SimultaneousSource([Scripted(name, 5, before=meeting.wait) for name in "abc"])
    assert source.total == 15 and not source.live
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(15))
    for number, name in enumerate("abc"):
        assert [frame.name for frame in of(frames, number)] == [f"{name}#{i}" for i in range(5)]
        assert [frame.source_index for frame in of(frames, number)] == list(range(5))
    assert [feed.name for feed in source.feeds] == list("abc") and source.dropped == 0
    assert not [t for t in threading.enumerate() if t.name.startswith("source ")]


def test_they_take_turns():
    source = SimultaneousSource([Scripted(name, 50) for name in "abc"])
    frames, taken = iter(source), []
    for _ in range(12):
        taken.append(next(frames).source)
        wait_for(lambda: all(feed.waiting for feed in source.feeds))
    assert taken[3:] == [number % 3 for number in range(taken[3], taken[3] + 9)]
    frames.close()


def test_of_live_ones_the_newest_is_kept_and_others_wait():
    live, file = Scripted("live", 100, live=True), Scripted("file", 20)
    source = SimultaneousSource([live, file])
    assert source.live and source.total is None and source.drops_late(None)
    frames = iter(source)
    first = next(frames)
    assert live.given.wait(60)
    time.sleep(0.02)
    assert file.yielded <= 5  # it does not run ahead
    rest = [first, *frames]
    assert of(rest, 0)[-1].source_index == 99 and len(of(rest, 0)) <= 2
    assert source.feeds[0].dropped == source.dropped == 100 - len(of(rest, 0))
    assert [frame.source_index for frame in of(rest, 1)] == list(range(20)) and not source.feeds[1].dropped
    assert [frame.index for frame in rest] == list(range(len(rest)))


@pytest.mark.parametrize("drop", [True, False])
def test_what_is_dropped_can_be_chosen(drop):
    sources = Scripted("live", 40, live=True), Scripted("file", 40)
    source = SimultaneousSource(sources)
    assert source.drops_late(drop)
    frames = iter(source)
    taken = [next(frames)]
    if drop:
        assert all(one.given.wait(60) for one in sources)
    taken += frames
    assert len(taken) + source.dropped == 80
    assert (len(taken) < 10) if drop else (len(taken) == 80)


def test_one_that_hangs_delays_nobody_and_is_closed_at_once():
    hanging, steady = Scripted("hangs", 0, live=True, hold=threading.Event()), Scripted("goes on", 30)
    source = SimultaneousSource([hanging, steady])
    frames = iter(source)
    assert [next(frames).name for _ in range(30)] == [f"goes on#{i}" for i in range(30)]
    threading.Timer(0.05, source.close).start()
    assert list(frames) == [] and hanging.closed.is_set() and steady.closed.is_set()


@pytest.mark.parametrize("error", [YolactError("camera a is gone"), OSError(5, "Input/output error")])
def test_one_that_dies_is_a_failed_frame_and_the_others_go_on(error):
    dead, hold = Scripted("a", 2, error=error), threading.Event()
    other = Scripted("b", 3, before=hold.wait)
    source = SimultaneousSource([dead, other])
    frames = iter(source)
    first = [next(frames) for _ in range(3)]
    assert [(frame.name, frame.source_index) for frame in first] == [("a#0", 0), ("a#1", 1), ("a", 2)]
    with pytest.raises(YolactError, match=r"^camera a is gone|^a failed: OSError: .*Input/output error"):
        first[2].read()
    hold.set()
    assert [frame.name for frame in frames] == ["b#0", "b#1", "b#2"]


def test_numbers_of_sources_in_a_chain():
    chain = ChainSource([Scripted("x", 2), Scripted("y", 1)])
    source = SimultaneousSource([Scripted("a", 1), chain, Scripted("b", 1)])
    assert [list(feed.numbers) for feed in source.feeds] == [[0], [1, 2], [3]]
    assert [feed.name for feed in source.feeds] == ["a", "files", "b"]
    found = {(frame.name, frame.source, frame.source_index) for frame in source}
    assert found == {("a#0", 0, 0), ("x#0", 1, 0), ("x#1", 1, 1), ("y#0", 2, 2), ("b#0", 3, 0)}
    assert [one.name for one in leaves(source)] == ["a", "x", "y", "b"]


def test_cameras_among_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Path(name).write_bytes(b"x")
    patient = CameraSettings(attempts=99)
    source = open_source(["a.png", "0", "b.png", "camera:3"], camera=patient)
    assert isinstance(source, SimultaneousSource)
    assert [feed.name for feed in source.feeds] == ["camera:0", "camera:3", "files"]
    assert [feed.source.live for feed in source.feeds] == [True, True, False]
    assert source.feeds[0].source.settings is patient
    assert list(source_files(source)) == ["a.png", "b.png"] and image_folders(source) == {str(tmp_path)}
    assert has_video(source) and not has_video(source.feeds[2].source)
    assert not isinstance(open_source(["a.png", "b.png"]), SimultaneousSource)


def test_two_streams_of_which_one_is_cut_and_comes_back():
    pytest.importorskip("av")
    quick = CameraSettings(open_timeout=60, read_timeout=60, attempts=3, delay=0.01)
    data = stream()
    with serving([data], [503], [data]) as cut, serving([data, "stall"]) as steady:
        source = SimultaneousSource([CameraSource(one.address, quick) for one in (cut, steady)])
        assert source.drops_late(False)
        frames, lost = [], False
        for frame in source:
            frames.append(frame)
            lost = lost or frame.name == cut.shown
            # One is lost for good; the other one may be late, and is silent after its last frame.
            if lost and len(of(frames, 1)) > 35:
                source.close()
    first, second = of(frames, 0), of(frames, 1)
    assert 70 < len(first) <= 81 and 35 < len(second) <= 40
    for some, server in ((first[:-1], cut), (second, steady)):
        assert [frame.name for frame in some] == [f"{server.shown}#{i}" for i in range(len(some))]
        assert all(a.time < b.time for a, b in itertools.pairwise(some)) and some[0].time < 0.1
    assert [feed.reconnects for feed in source.feeds] == [1, 0]
    with pytest.raises(YolactError, match="3 attempts to reconnect failed"):
        first[-1].read()


def test_two_rtsp_cameras_of_which_one_is_killed_and_comes_back():
    pytest.importorskip("av")
    settings = CameraSettings(open_timeout=60, read_timeout=60, attempts=50, delay=0.02)
    killed, steady = (RtspCamera(videos.shades(10)) for _ in range(2))
    killed.start()
    steady.start()
    source = SimultaneousSource([CameraSource(one.address, settings) for one in (killed, steady)])
    frames, before, between, again = [], 0, 0, 0
    try:
        for frame in source:
            frames.append(frame)
            counts = [len(of(frames, number)) for number in (0, 1)]
            if not before and min(counts) >= 5:
                killed.kill()
                before, between = counts
            elif before and killed.ended.is_set() and counts[1] >= between + 10:
                killed.start()  # the other one went on in between
                again = counts[0]
            elif again and source.feeds[0].reconnects and counts[0] >= again + 10:
                break
    finally:
        source.close()
        killed.kill()
        steady.kill()
    assert [feed.reconnects for feed in source.feeds] == [1, 0]
    for number, camera in enumerate((killed, steady)):
        own = of(frames, number)
        assert all(frame.name.startswith(f"{camera.shown}#") for frame in own)
        assert all(a.time < b.time for a, b in itertools.pairwise(own))
        # Late frames are left out: the first one delivered need not be the camera's first.
        assert abs(own[0].time - own[0].source_index / 25) < 0.2
        shades = [frame.read().mean() for frame in own]
        assert all(min(abs(shade - 16 - 10 * i) for i in range(10)) < 4 for shade in shades)
