"""Tracks of boxes whose identities are known."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trackers")

from yolact_runtime import Result, Tracker, TrackSettings
from yolact_runtime.errors import UsageError
from yolact_runtime.frames import Frame
from yolact_runtime.tracks import SourceTrackers

HEIGHT, WIDTH = 400, 600
RATE = 30


def result(boxes, classes=None, scores=None):
    """A result with these boxes (n, 4) in pixels, the best one first."""
    n = len(boxes)
    scores = np.linspace(0.9, 0.6, n) if scores is None else np.array(scores)
    return Result(
        height=HEIGHT,
        width=WIDTH,
        relative_boxes=np.array(boxes, np.float32).reshape(-1, 4) / [WIDTH, HEIGHT, WIDTH, HEIGHT],
        scores=scores.astype(np.float32),
        mask_scores=scores.astype(np.float32),
        classes=np.zeros(n, np.int64) if classes is None else np.array(classes, np.int64),
        coefficients=np.zeros((n, 1), np.float32),
        prototypes=np.zeros((1, 1, 1), np.float32),
        class_names=("cat", "dog"),
        class_ids=(1, 2),
    )


def box(time, start, speed, side=60):
    """A square whose corner is at `start` (x, y) at time 0 and moves at `speed` pixels per second."""
    x, y = start[0] + speed[0] * time, start[1] + speed[1] * time
    return [x, y, x + side, y + side]


def ids_of(tracker, boxes, time=None, **more):
    return tracker.update(result(boxes, **more), time).track_ids.tolist()


def test_a_track_begins_with_the_second_frame():
    tracker = Tracker()
    first = result([box(0, (10, 10), (0, 0))])
    after = tracker.update(first)
    assert after.track_ids.dtype == np.int64 and after.track_ids.tolist() == [-1]
    assert first.track_ids is None  # not modified
    assert after.boxes.tolist() == first.boxes.tolist()
    assert ids_of(tracker, [box(0, (10, 10), (0, 0))]) == [1]


def test_rows_are_those_of_the_result():
    tracker = Tracker()
    a, b, c = ([x, 10, x + 50, 60] for x in (10, 200, 400))
    for _ in range(2):
        tracker.update(result([a, b, c]))
    one, two, three = ids_of(tracker, [a, b, c])
    assert sorted([one, two, three]) == [1, 2, 3]
    assert ids_of(tracker, [c, a, b]) == [three, one, two]
    # Low scores continue tracks, in the place that they have.
    assert ids_of(tracker, [c, b, a], scores=[0.9, 0.2, 0.1]) == [three, two, one]


def test_two_that_cross_keep_their_tracks():
    tracker, seen = Tracker(), {0: set(), 1: set()}
    for step in range(60):
        time = step / RATE
        objects = {0: box(time, (20, 100), (200, 0)), 1: box(time, (460, 130), (-200, 0))}
        order = [0, 1] if step % 2 else [1, 0]
        for one, track in zip(order, ids_of(tracker, [objects[k] for k in order], time), strict=True):
            if step:
                seen[one].add(track)
    assert [len(tracks) for tracks in seen.values()] == [1, 1] and not seen[0] & seen[1]


@pytest.mark.parametrize("hidden", [5, 15, 25])
def test_a_hidden_object_keeps_its_track(hidden):
    tracker = Tracker()
    for step in range(10):
        before = ids_of(tracker, [box(step / RATE, (20, 100), (150, 30))], step / RATE)
    for step in range(10, 10 + hidden):
        assert ids_of(tracker, [], step / RATE) == []
    time = (10 + hidden) / RATE
    assert ids_of(tracker, [box(time, (20, 100), (150, 30))], time) == before == [1]


def test_an_object_that_is_gone_for_longer_than_the_memory_is_new():
    tracker = Tracker(TrackSettings(memory=0.5))
    still = [box(0, (100, 100), (0, 0))]
    for step in range(3):
        ids_of(tracker, still, step / RATE)
    for step in range(3, 20):
        ids_of(tracker, [], step / RATE)
    assert ids_of(tracker, still, 20 / RATE) == [-1]
    assert ids_of(tracker, still, 21 / RATE) == [2]


def test_classes_are_apart():
    tracker = Tracker()
    same = [box(0, (100, 100), (0, 0))] * 2
    for _ in range(3):
        tracks = ids_of(tracker, same, classes=[0, 1])
    assert sorted(tracks) == [1, 2]
    assert ids_of(tracker, same, classes=[1, 0]) == tracks[::-1]
    assert ids_of(tracker, same[:1], classes=[1]) == tracks[1:]


def test_the_score_that_begins_a_track():
    for score, expected in ((0.8, [-1]), (0.3, [1])):
        tracker = Tracker(TrackSettings(score=score))
        for _ in range(3):
            tracks = ids_of(tracker, [box(0, (100, 100), (0, 0))], scores=[0.5])
        assert tracks == expected


@pytest.mark.parametrize("rate", [2, 8, 30, 120])
def test_any_frame_rate(rate):
    # As far from frame to frame at every rate; the memory is in seconds.
    tracker, speed = Tracker(TrackSettings(memory=5)), (4 * rate, 0)
    for step in range(40):
        hidden = 20 <= step < 25
        tracks = ids_of(tracker, [] if hidden else [box(step / rate, (20, 100), speed)], step / rate)
        assert tracks == ([] if hidden else [1 if step else -1])


def test_dropped_frames_count_as_frames():
    """Every other frame is missing for a while, then ten at a time: the object moves on meanwhile."""
    tracker, seen = Tracker(), []
    steps = [*range(12), *range(12, 30, 2), 40, 41, 42, 52, 53]
    for step in steps:
        seen += ids_of(tracker, [box(step / RATE, (20, 100), (240, 0))], step / RATE)
    assert seen == [-1] + [1] * (len(steps) - 1)


def test_times_that_vary():
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.choice([1 / 60, 1 / 30, 1 / 24, 1 / 15], 100))
    tracker = Tracker()
    seen = [ids_of(tracker, [box(time, (20, 50), (60, 40))], time)[0] for time in times.tolist()]
    assert set(seen[5:]) == {seen[5]} != {-1}


def test_a_clock_that_goes_back_and_a_long_pause_begin_anew(caplog):
    tracker, still = Tracker(), [box(0, (100, 100), (0, 0))]
    for step in range(5):
        before = ids_of(tracker, still, step / RATE)
    for start, expected in ((0, [2]), (1000, [3])):
        assert ids_of(tracker, still, start) == [-1]
        for step in range(1, 5):
            after = ids_of(tracker, still, start + step / RATE)
        assert after == expected != before
    ids_of(tracker, still, 1)
    said = "the time of a frame is 0 s, after 0.133333 s of the frame before: its clock went back"
    assert said in caplog.text and caplog.text.count("went back") == 1


@pytest.mark.parametrize("time", [np.nan, np.inf, -np.inf, "1"])
def test_times_that_are_no_finite_numbers(time):
    tracker = Tracker()
    with pytest.raises(UsageError, match=rf"the time of a frame is '?{time}.*finite number of seconds"):
        tracker.update(result([]), time)
    assert tracker.update(result([]), np.float64(1)).track_ids.tolist() == []


@pytest.mark.parametrize("settings", [3, {"memory": 2}])
def test_settings_of_another_type(settings):
    with pytest.raises(UsageError, match=r"the settings of a tracker are .*must be TrackSettings"):
        Tracker(settings)


def test_equal_times_are_one_step_each():
    tracker, still = Tracker(), [box(0, (100, 100), (0, 0))]
    assert [ids_of(tracker, still, 0.0) for _ in range(3)] == [[-1], [1], [1]]


def test_a_pause_after_a_burst_is_few_steps(monkeypatch):
    tracker = Tracker()
    steps = []
    advance = Tracker._advance
    monkeypatch.setattr(Tracker, "_advance", lambda *args: steps.append(1) or advance(*args))
    for time in (0.0, 1e-7, 2e-7, 1.0):  # as of a video with damaged times: ten million steps
        ids_of(tracker, [box(0, (10, 10), (0, 0))], time)
    assert len(steps) <= 1010


def test_what_is_kept_does_not_grow():
    tracker = Tracker(TrackSettings(memory=0.2))
    for step in range(600):
        # Each object is seen in four frames, far from the one before.
        ids_of(tracker, [box(0, (100 * (step // 4 % 5), 100), (0, 0))], step / RATE)
    assert next(tracker._new_ids) > 100
    assert len(tracker._ids) < 10 and len(tracker._byte_track.tracks) < 10


def test_no_and_many_instances():
    tracker = Tracker()
    assert [ids_of(tracker, []) for _ in range(3)] == [[], [], []]
    many = [[x, y, x + 8, y + 8] for x in range(0, 500, 10) for y in range(0, 40, 10)]
    for _ in range(2):
        tracks = ids_of(tracker, many)
    assert sorted(tracks) == list(range(1, len(many) + 1))


def test_boxes_without_an_area_have_no_track():
    tracker = Tracker()
    for _ in range(3):
        tracks = ids_of(tracker, [[WIDTH, 10, WIDTH + 50, 60], [100, 100, 100, 100], [20, 20, 90, 90]])
    assert tracks == [-1, -1, 1]


@pytest.mark.parametrize(
    ("setting", "value"), [("memory", -1), ("memory", np.nan), ("memory", "1"), ("score", 1.5)]
)
def test_settings_out_of_range(setting, value):
    with pytest.raises(UsageError, match=str(value)):
        TrackSettings(**{setting: value})


def frame(path, index, time=None, source=0):
    return Frame(index, f"{path}#{index}", Path(path), lambda: None, time, source=source)


def test_each_video_has_its_own_tracks_and_ids_are_unique():
    trackers, still = SourceTrackers(TrackSettings()), result([box(0, (100, 100), (0, 0))])
    videos = [("a.mp4", 0), ("b.mp4", 0), ("rtsp://x", 1)]
    found = {video: [] for video in videos}
    for step in range(4):  # at the same time
        for path, source in videos:
            new = trackers.update(frame(path, step, step / RATE, source), still)
            found[path, source] += new.track_ids.tolist()
    assert list(found.values()) == [[-1, n, n, n] for n in (1, 2, 3)]


def test_what_a_camera_shows_after_a_long_interruption_is_new():
    """The stream's time goes on where it ended; the objects did not wait. Frames after it may be dropped."""
    still = result([box(0, (100, 100), (0, 0))])
    for lost, expected in ((0.5, [1, 1]), (20, [-1, 2])):
        trackers, found = SourceTrackers(TrackSettings(memory=1)), []
        for step in (*range(10), 12, 13):
            interrupted = lost if step >= 10 else 0.0
            seen = replace(frame("rtsp://x", step, step / RATE), interrupted=interrupted)
            found += trackers.update(seen, still).track_ids.tolist()
        assert found == [-1] + [1] * 9 + expected


def test_images_of_a_folder_are_frames_also_those_that_fail():
    trackers = SourceTrackers(TrackSettings(memory=0.2))
    seen = []
    for index in range(40):
        if index % 10 == 5:
            trackers.skip(frame(f"clip/{index}.png", index))
            continue
        moved = result([box(index / RATE, (20, 100), (200, 0))])
        seen += trackers.update(frame(f"clip/{index}.png", index), moved).track_ids.tolist()
    assert seen == [-1] + [1] * 35
    # More failures than the memory is long.
    for index in range(40, 50):
        trackers.skip(frame(f"clip/{index}.png", index))
    assert trackers.update(frame("clip/50.png", 50), moved).track_ids.tolist() == [-1]
    other = [trackers.update(frame(f"other/{index}.png", index), moved) for index in range(2)]
    assert other[-1].track_ids.tolist() == [2]


def test_trackers_of_many_sources_do_not_grow():
    trackers, still = SourceTrackers(TrackSettings()), result([box(0, (100, 100), (0, 0))])
    for number, step in itertools.product(range(400), range(2)):
        last = trackers.update(frame(f"{number}.mp4", step, step / RATE, number), still)
    assert last.track_ids.tolist() == [400] and len(trackers._trackers) <= 256


def test_entries_and_overlays_show_tracks():
    tracker = Tracker()
    boxes = [[20, 20, 120, 120], [300, 200, 400, 300]]
    for _ in range(2):
        tracked = tracker.update(result(boxes))
    tracked = tracker.update(result([*boxes, [500, 20, 560, 80]]))
    for entries in (tracked.to_coco(1), tracked.to_coco(1, masks=False)):
        assert [entry["track_id"] for entry in entries] == [1, 2, -1]
    assert "track_id" not in result(boxes).to_coco(1)[0]
    blank = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    one, other = tracked.draw(blank), tracker.update(result(boxes[::-1])).draw(blank)
    # The colour belongs to the track, whatever the order of the detections.
    for x1, y1, x2, _ in boxes:
        edge = one[y1, (x1 + x2) // 2]
        assert edge.any() and (edge == other[y1, (x1 + x2) // 2]).all()
    assert len(set(map(int, one[20, 530]))) == 1  # grey
