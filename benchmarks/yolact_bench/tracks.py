"""`yolact-bench tracks`: tracks on synthetic videos of moving shapes, whose identities are known.

The tracker gets the true boxes, and what each engine finds. IDF1 is the share of boxes with the right
identity (F1 of the best one-to-one matching of identities), and a switch is an object whose track changes,
both at an IoU of 0.5, as in TrackEval.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_bench.options import check_number
from yolact_runtime.commandline import Table, printing_beside
from yolact_runtime.errors import UsageError, counted, without_secrets
from yolact_runtime.files import write_json
from yolact_runtime.packages import require

if TYPE_CHECKING:
    import numpy as np

    from yolact.dataset_tools.moving import MovingFrame
    from yolact_runtime.engines.base import Engine
    from yolact_runtime.results import Result

# A box of a track is of an object if they overlap by this much.
_IOU = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench tracks`."""
    parser.add_argument("--engine", action="append", default=[], metavar="E[:KEY=VALUE,...]", dest="engines",
        help="an engine that finds circles, squares and triangles; repeat for several")  # fmt: skip
    parser.add_argument("--videos", type=int, default=5, help="how many videos, each with its own shapes")
    parser.add_argument("--frames", type=int, default=300, help="frames of each video, 30 per second")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")


def command(args: argparse.Namespace) -> None:
    """Print IDF1, switches and the tracker's time for true boxes and for each engine."""
    require("yolact-bench tracks", "bench,track", "trackers", "supervision")
    for name in ("videos", "frames"):
        check_number(f"--{name}", getattr(args, name), 1, "runs")
    from yolact.dataset_tools.moving import moving_shapes
    from yolact_bench.measure.engines import parse_engine
    from yolact_runtime import load_engine
    from yolact_runtime.engines.remote.address import engine_name

    figures: dict[str, TrackFigures] = {}
    with ExitStack() as stack:
        engines: dict[str, Engine | None] = {"true boxes": None}
        for text in args.engines:
            spec = parse_engine(text)
            engine = stack.enter_context(load_engine(spec.path, **spec.options))
            engines[spec.name or engine_name(spec.path)] = _checked(engine, without_secrets(spec.path))
        for name, one in engines.items():
            videos = (moving_shapes(args.frames, seed=seed) for seed in range(args.videos))
            figures[name] = measure(videos, one)
    rows = [
        [name, f"{one.idf1:.3f}", str(one.switches), f"{one.switches_per_100_frames:.2f}", f"{one.ms:.2f}"]
        for name, one in figures.items()
    ]
    title = f"{counted(args.videos, 'video')} of {counted(args.frames, 'frame')}"
    with printing_beside(args.json):
        columns = ("tracks of", "IDF1", "switches", "per 100 frames", "tracker ms/frame")
        Table(title, columns, rows).show()
    if args.json:
        write_json(args.json, {name: asdict(one) for name, one in figures.items()})


def _checked(engine: Engine, path: str) -> Engine:
    from yolact.dataset_tools.synthetic import SHAPES

    if not set(SHAPES) <= set(engine.metadata.class_names):
        raise UsageError(
            f"{path} does not find {', '.join(SHAPES)}, which the videos are of; train on"
            " `yolact-data shapes`, or run yolact-demo"
        )
    return engine


@dataclass(frozen=True)
class TrackFigures:
    """How well tracks follow the true identities.

    Attributes:
        idf1: Of all frames, 0..1.
        switches: Objects whose track changed, counted each time.
        switches_per_100_frames: The same, for 100 frames.
        ms: Milliseconds of the tracker per frame, the median.
    """

    idf1: float
    switches: int
    switches_per_100_frames: float
    ms: float


def measure(videos: Iterable[Iterable[MovingFrame]], engine: Engine | None = None) -> TrackFigures:
    """Track videos.

    Args:
        videos: Each with a tracker of its own.
        engine: Finds the shapes; None: the true boxes are taken, with a score of 1.
    """
    from yolact_runtime import Tracker

    times, scores = [], IdentityScores()
    for video in videos:
        tracker = Tracker()
        scores.begin()
        for frame in video:
            result = _true_result(frame) if engine is None else engine.predict([frame.image])[0]
            start = time.perf_counter()
            result = tracker.update(result, frame.time)
            times.append(1000 * (time.perf_counter() - start))
            assert result.track_ids is not None
            tracked = result.track_ids >= 0
            found = result.track_ids[tracked], result.boxes_float[tracked]
            scores.add(frame.identities, frame.boxes, *found)
    share = 100 * scores.switches / len(times)
    return TrackFigures(scores.idf1, scores.switches, share, statistics.median(times))


def _true_result(frame: MovingFrame) -> Result:
    """The true boxes as the result of an engine; without masks, which trackers do not look at."""
    import numpy as np

    from yolact.dataset_tools.synthetic import SHAPES
    from yolact_runtime import Result

    height, width = frame.image.shape[:2]
    count = len(frame.identities)
    ones = np.ones(count, np.float32)
    boxes = (frame.boxes / [width, height, width, height]).astype(np.float32)
    nothing = np.zeros((count, 1), np.float32), np.zeros((1, 1, 1), np.float32)
    ids = tuple(range(1, len(SHAPES) + 1))
    return Result(height, width, boxes, ones, ones, frame.labels, *nothing, SHAPES, ids)


class IdentityScores:
    """IDF1 and identity switches over videos, from the boxes of one frame after the other.

    Attributes:
        switches: Objects whose track changed, counted each time.
    """

    def __init__(self) -> None:
        self.switches = 0
        self._video = 0
        self._boxes = 0  # true and found ones
        self._together: dict[tuple[tuple[int, int], tuple[int, int]], int] = {}
        self._last: dict[int, int] = {}

    def begin(self) -> None:
        """A new video begins, whose identities and tracks are others."""
        self._video += 1
        self._last = {}

    def add(self, identities: np.ndarray, boxes: np.ndarray, tracks: np.ndarray, found: np.ndarray) -> None:
        """Add a frame.

        Args:
            identities: (n,) of the true boxes.
            boxes: (n, 4) the true boxes, x1 y1 x2 y2.
            tracks: (m,) of the boxes that were found.
            found: (m, 4) those boxes.
        """
        import numpy as np
        from scipy.optimize import linear_sum_assignment

        self._boxes += len(identities) + len(tracks)
        shared = _overlaps(boxes, found)
        for row, column in np.argwhere(shared >= _IOU).tolist():
            pair = (self._video, int(identities[row])), (self._video, int(tracks[column]))
            self._together[pair] = self._together.get(pair, 0) + 1
        # A match of the frame before that is still right comes before a better one.
        before = np.array([self._last.get(identity, -1) for identity in identities.tolist()], np.int64)
        worth = np.where(shared >= _IOU, shared + 1000.0 * (before[:, None] == tracks[None]), 0)
        for row, column in zip(*linear_sum_assignment(worth, maximize=True), strict=True):
            if shared[row, column] >= _IOU:
                identity, track = int(identities[row]), int(tracks[column])
                self.switches += self._last.get(identity, track) != track
                self._last[identity] = track

    @property
    def idf1(self) -> float:
        """2 * identity matches / (true boxes + found boxes), for the best one-to-one matching."""
        import numpy as np
        from scipy.optimize import linear_sum_assignment

        if not self._boxes:
            return 1.0
        rows = {one: index for index, one in enumerate(sorted({pair[0] for pair in self._together}))}
        columns = {one: index for index, one in enumerate(sorted({pair[1] for pair in self._together}))}
        counts = np.zeros((len(rows), len(columns)))
        for (one, other), count in self._together.items():
            counts[rows[one], columns[other]] = count
        matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
        return float(2 * matched / self._boxes)


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes (n, 4) with others (m, 4)."""
    import numpy as np

    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = (high - low).clip(0).prod(axis=2)
    areas, other_areas = ((one[:, 2:] - one[:, :2]).prod(axis=1) for one in (boxes, others))
    return common / np.maximum(areas[:, None] + other_areas[None] - common, 1e-9)
