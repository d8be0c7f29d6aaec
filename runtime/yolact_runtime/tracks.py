"""Tracks: which instances of consecutive frames are the same object.

ByteTrack of the `trackers` package (extra `track`) matches boxes. Its release 2.1 is the last that does not
install a second OpenCV, with windows, over the headless one; it knows no time, so frames that are missing are
given to it as frames without detections.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yolact_runtime.errors import UsageError
from yolact_runtime.frames import Frame
from yolact_runtime.packages import imports_failed
from yolact_runtime.results import Result
from yolact_runtime.typed import shown

if TYPE_CHECKING:
    import supervision as sv
    from trackers import ByteTrackTracker

log = logging.getLogger(__name__)

# Seconds from one frame to the next where nothing says how many.
_STEP = 1 / 30
# The shortest step: frames of a burst have nearly equal times, and a pause after it would be a million steps.
_SHORTEST = 1e-3
# The latest distances of frames; what is usual among them is one step of the tracker.
_DISTANCES = 31
# Frames in a row that an object must be found in to become a track.
_CONFIRM = 2
# A box continues a track if it overlaps the expected one by this much (IoU).
_OVERLAP = 0.1
# Videos whose tracks are kept at a time; many more than there are cameras.
_SOURCES = 256


@dataclass(frozen=True)
class TrackSettings:
    """How long tracks last, and what begins one.

    Attributes:
        memory: Seconds that a track waits for an object that is hidden, before the object counts as new.
        score: Lowest score of a detection that begins a track; lower ones only continue tracks.

    Raises:
        UsageError: a value outside its range.
    """

    memory: float = 1.0
    score: float = 0.4

    def __post_init__(self) -> None:
        if not (isinstance(self.memory, Real) and 0 <= self.memory <= 3600):
            raise UsageError(f"the memory of tracks is {self.memory!r}; it must be in 0..3600 seconds")
        if not (isinstance(self.score, Real) and 0 <= self.score <= 1):
            raise UsageError(f"the score that begins a track is {self.score!r}; it must be in 0..1")


class Tracker:
    """Gives the instances of one video their tracks.

    A track keeps its class: an instance of another class is another object. An object has a track from the
    second frame in a row that it is found in.

    Args:
        settings: How long tracks last, and what begins one.
        ids: Where the ids of new tracks are from; trackers that share it never give the same id twice.

    Raises:
        YolactError: the package `trackers` is missing.
        UsageError: `settings` are something else.

    Example:
        tracker = yolact_runtime.Tracker()
        for image in frames:
            result = tracker.update(engine.predict([image])[0])
            print(result.names, result.track_ids)
    """

    def __init__(self, settings: TrackSettings | None = None, ids: Iterator[int] | None = None) -> None:
        if not isinstance(settings, TrackSettings | None):
            raise UsageError(
                f"the settings of a tracker are {shown(settings)}; they must be TrackSettings, such as"
                " TrackSettings(memory=2.0)"
            )
        self._settings = settings or TrackSettings()
        self._new_ids = itertools.count(1) if ids is None else ids
        self._byte_track = _byte_track(self._settings.score)
        self._ids: dict[int, int] = {}  # of the tracks that last, by the package's id
        self._time: float | None = None
        self._distances: deque[float] = deque(maxlen=_DISTANCES)
        self._stride = 0.0
        self._went_back = False

    def update(self, result: Result, time: float | None = None) -> Result:
        """The result of the next frame with `track_ids`.

        Args:
            result: Of the frame; it is not modified.
            time: Seconds, from any beginning. What is much longer ago than usual counts as several frames;
                a time before that of the frame before ends all tracks, with a warning. None: one step, of
                1/30 second, after the frame before.

        Returns:
            The result with `track_ids` (n,) int64: from 1, and -1 for instances without a track.

        Raises:
            UsageError: the time is not a finite number.
        """
        if time is not None and not (isinstance(time, Real) and math.isfinite(time)):
            raise UsageError(
                f"the time of a frame is {shown(time)}; it must be a finite number of seconds, or None"
            )
        for _ in range(self._steps(time) - 1):
            self._advance(_detections(np.empty((0, 4)), np.empty(0)))
        self._stride = self._stride or 3.0 * max(result.height, result.width)
        # Boxes of different classes are moved so far apart that they never overlap.
        boxes = result.boxes_float + self._stride * result.classes[:, None]
        rows, numbers = self._advance(_detections(boxes, result.scores))
        ids = np.full(len(result), -1, np.int64)
        ids[rows] = [self._ids.get(number, -1) for number in numbers]
        return replace(result, track_ids=ids)

    def skip(self) -> None:
        """Count a frame without a time that has no result, such as a damaged image."""
        if self._time is not None:
            self._time += _STEP
            self._advance(_detections(np.empty((0, 4)), np.empty(0)))

    def _steps(self, time: float | None) -> int:
        """How many frames later the next one is; forgets all tracks if that is too long."""
        before = self._time
        if before is None:
            self._time = 0.0 if time is None else time
            return 1
        self._time = before + _STEP if time is None else time
        distance = self._time - before
        if distance > 0:
            self._distances.append(distance)
        # Of an even number the shorter one, so that a gap among the first frames is one.
        from statistics import median_low  # which images do without

        usual = max(_SHORTEST, median_low(self._distances or [_STEP]))
        steps = max(1, round(distance / usual))
        if distance < 0 and not self._went_back:
            self._went_back = True
            log.warning(
                "the time of a frame is %g s, after %g s of the frame before: its clock went back, so all"
                " tracks end; frames must be in their order, and each video needs a tracker of its own",
                self._time, before,
            )  # fmt: skip
        if distance < 0 or (steps > 1 and distance > self._settings.memory + usual):
            self._byte_track, self._ids = _byte_track(self._settings.score), {}
            steps = 1
        self._byte_track.maximum_frames_without_update = 1 + round(self._settings.memory / usual)
        return steps

    def _advance(self, detections: sv.Detections) -> tuple[list[int], list[int]]:
        """Rows of `detections` and the package's number for each; -1 without a track."""
        found = self._byte_track.update(detections)
        numbers = found.tracker_id.astype(int).tolist() if len(found) else []
        lasting = {track.tracker_id for track in self._byte_track.tracks}
        self._ids = {number: one for number, one in self._ids.items() if number in lasting}
        for number in numbers:
            if number >= 0 and number not in self._ids:
                self._ids[number] = next(self._new_ids)
        return (found.data["row"].tolist() if len(found) else []), numbers


class SourceTrackers:
    """A tracker for each video, camera and folder of images of a run; ids are unique over the run.

    Args:
        settings: As for `Tracker`.

    Raises:
        YolactError: the package `trackers` is missing.
    """

    def __init__(self, settings: TrackSettings) -> None:
        _byte_track(settings.score)  # found missing before the run
        self._settings = settings
        self._ids = itertools.count(1)
        self._trackers: OrderedDict[Hashable, Tracker] = OrderedDict()

    def update(self, frame: Frame, result: Result) -> Result:
        """The result of a frame with `track_ids`; the frames of a source must come in order."""
        # What a camera shows after an interruption is as much later as it lasted.
        time = None if frame.time is None else frame.time + frame.interrupted
        return self._of(frame).update(result, time)

    def skip(self, frame: Frame) -> None:
        """Count a frame without a result. Those of videos are missed by their time."""
        if frame.time is None:
            self._of(frame).skip()

    def _of(self, frame: Frame) -> Tracker:
        # The images of one folder are the frames of one video.
        path = Path(frame.path)
        key = ("images", path.parent) if frame.time is None else (frame.source, path)
        tracker = self._trackers.pop(key, None) or Tracker(self._settings, self._ids)
        self._trackers[key] = tracker
        if len(self._trackers) > _SOURCES:
            self._trackers.popitem(last=False)
        return tracker


def _byte_track(score: float) -> ByteTrackTracker:
    """The tracker of the package."""
    try:
        from trackers import ByteTrackTracker
    except ImportError as error:
        raise imports_failed(error, "tracking", "track") from error
    return ByteTrackTracker(
        track_activation_threshold=score,
        high_conf_det_threshold=score,
        minimum_consecutive_frames=_CONFIRM,
        minimum_iou_threshold=_OVERLAP,
    )


def _detections(boxes: np.ndarray, scores: np.ndarray) -> sv.Detections:
    """Boxes (n, 4) and scores (n,) as the package takes them, with their rows."""
    import supervision as sv

    return sv.Detections(xyxy=boxes, confidence=scores, data={"row": np.arange(len(boxes))})
