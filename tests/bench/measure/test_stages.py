"""Our engines as candidates: what they are given, and where the time is said to go."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_engine import FakeEngine
from fake_onnx import RUNTIME, runtime_arrays, write_onnx

from yolact_bench.measure.candidate import STAGES
from yolact_bench.measure.stages import EngineCandidate
from yolact_runtime import load_engine, tiled
from yolact_runtime.errors import UsageError, YolactError


class Clock:
    """Stands still but for the engines that take time on it."""

    now = 0

    def nap(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)

    def perf_counter_ns(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("yolact_bench.measure.stages.time", made)
    return made


class Slow(FakeEngine):
    """Takes its time; remembers the shades it was shown, batch by batch."""

    clock = Clock()

    def prepare(self, image):
        self.clock.nap(0.25)
        return super().prepare(image)

    def detect(self, batch):
        self.clock.nap(0.5)
        self.__dict__.setdefault("seen", []).append(batch[:, 0, 0, 0].tolist())
        return super().detect(batch)


def test_time_is_put_where_it_was_spent(images, findings, clock: Clock) -> None:
    engine = Slow(findings, max_batch=2)
    engine.clock = clock
    run = EngineCandidate("a", engine).end_to_end(images[:2])
    assert run.seconds == {"decode": 0, "preprocess": 0.5, "network": 0.5, "masks": 0, "rle": 0}
    assert list(run.seconds) == ["decode", "preprocess", "network", "masks", "rle"]
    assert run.detections == 3


def test_stages_add_up_to_the_run(images, findings) -> None:
    candidate = EngineCandidate("a", FakeEngine(findings, max_batch=3))
    start = time.perf_counter()
    run = candidate.end_to_end(images)
    whole = time.perf_counter() - start
    assert all(taken >= 0 for taken in run.seconds.values())
    assert sum(run.seconds.values()) <= whole
    assert run.detections == 3


def test_watching_leaves_the_engine_as_it_was(images, findings) -> None:
    engine = FakeEngine(findings)
    before = dict(vars(engine))
    EngineCandidate("a", engine).end_to_end(images[:1])
    assert vars(engine) == before


def test_detection_after_the_graph_is_a_stage_of_its_own(images, tmp_path: Path) -> None:
    path = tmp_path / "raw.onnx"
    write_onnx(path, runtime_arrays(), RUNTIME)
    with load_engine(path) as engine:
        run = EngineCandidate("raw", engine).end_to_end(images[:1])
    assert list(run.seconds) == ["decode", "preprocess", "network", "detect", "masks", "rle"]
    assert run.seconds["detect"] > 0


def test_the_stages_of_tiles_are_sums(findings, tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "large.png"
    cv2.imwrite(str(path), np.zeros((80, 120, 3), np.uint8))
    engine = Slow(findings, max_batch=2)
    engine.clock = clock
    tiles = {"tile": 64, "overlap": 0.0, "full": True}
    candidate = EngineCandidate("a", tiled(engine, **tiles), tiles=tiles)
    candidate.prepare([path], 1)
    run = candidate.end_to_end([path])
    # 2 x 2 tiles and the whole image, in batches of two.
    expected = {"decode": 0, "preprocess": 5 * 0.25, "network": 3 * 0.5, "masks": 0, "rle": 0, "merge": 0}
    assert run.seconds == expected
    assert "stage_timer" not in vars(engine)


def test_the_network_of_a_server_is_measured_without_tiles(tmp_path: Path, findings) -> None:
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((90, 150, 3), np.uint8))
    engine = FakeEngine(findings)
    engine.remote = True
    shapes = []
    engine.predict_prepared = lambda prepared, *rest: shapes.append([image.shape for image in prepared])
    candidate = EngineCandidate("a", tiled(engine, 64), tiles={"tile": 64})
    candidate.prepare([tmp_path / "large.png"], 1)
    candidate.network_only()
    assert shapes == [[(32, 32, 3)]]


def test_tiles_without_a_large_image_are_refused(images, findings) -> None:
    tiles = {"tile": 5000}
    candidate = EngineCandidate("a", tiled(FakeEngine(findings), **tiles), tiles=tiles)
    with pytest.raises(UsageError, match=r"a: none of the first .* is larger than its tiles of 5000 x 5000"):
        candidate.prepare(images, 1)


class OnDevice(FakeEngine):
    """Reports what its device measured, in milliseconds."""

    reported: dict[str, float] = {}  # noqa: RUF012
    asked = 0
    clock = Clock()

    def detect(self, batch):
        self.clock.nap(0.02)
        return super().detect(batch)

    def stage_times(self, images, score_threshold, top_k, classes=None):
        assert (len(images), score_threshold, top_k) == (1, 0.0, 20)
        self.asked += 1
        if not self.reported:
            raise YolactError("masks are made on the host")
        # The first runs are slow.
        return {stage: taken * (1 if self.asked > 2 else 100) for stage, taken in self.reported.items()}


def on_device(images, findings, clock: Clock, reported: dict[str, float]) -> dict[str, float]:
    engine = OnDevice(findings)
    engine.clock = clock
    engine.reported = reported
    candidate = EngineCandidate("a", engine)
    candidate.prepare(images, 1)
    before = engine.asked
    seconds = candidate.end_to_end(images[:1]).seconds
    assert engine.asked == before  # not while measuring
    return seconds


def test_a_device_reports_more(images, findings, clock: Clock) -> None:
    seconds = on_device(images, findings, clock, {"upload": 1, "network": 5, "detect": 2, "download": 1})
    assert list(seconds) == [stage for stage in STAGES if stage in seconds]
    assert (seconds["upload"], seconds["detect"], seconds["download"]) == pytest.approx((0.001, 0.002, 0.001))
    # Waiting and launching are the network's.
    assert seconds["network"] == pytest.approx(0.016)


def test_device_times_that_are_longer_shrink_to_the_run(images, findings, clock: Clock) -> None:
    seconds = on_device(images, findings, clock, {"upload": 30e3, "network": 60e3, "download": 10e3})
    reported = {stage: seconds[stage] for stage in ("upload", "network", "download")}
    assert reported == pytest.approx({"upload": 0.006, "network": 0.012, "download": 0.002})
    assert sum(seconds.values()) == pytest.approx(0.02)


def test_a_device_that_cannot_report(images, findings, clock: Clock) -> None:
    assert list(on_device(images, findings, clock, {})) == ["decode", "preprocess", "network", "masks", "rle"]


class Whole(FakeEngine):
    """Does everything in one call, as an engine with the masks on its device."""

    clock = Clock()

    def predict_prepared(self, prepared, sizes, score_threshold, top_k, classes=None):
        self.clock.nap(0.03)
        batch = np.stack(prepared)
        found = FakeEngine.detect(self, batch)
        plain = FakeEngine(self.findings)
        plain.detect = lambda *_: found  # type: ignore[method-assign]
        return plain.predict_prepared(prepared, sizes, score_threshold, top_k, classes)


def test_an_engine_that_does_all_in_one_call(images, findings, clock: Clock) -> None:
    engine = Whole(findings)
    engine.clock = clock
    run = EngineCandidate("a", engine).end_to_end(images[:1])
    assert run.seconds["network"] == pytest.approx(0.03)
    assert run.detections == 2


def test_threshold_and_top_k_limit_the_masks(images, findings) -> None:
    def found(*limits) -> int:
        return EngineCandidate("a", FakeEngine(findings), *limits).end_to_end(images[:1]).detections

    assert (found(), found(0.1), found(0.0, 1)) == (2, 1, 1)
    with pytest.raises(UsageError, match="top_k is 0"):
        found(0.0, 0)
    with pytest.raises(UsageError, match="score_threshold is 2"):
        found(2.0)


def test_prepared_batches_cover_the_images_in_order(images, findings) -> None:
    engine = Slow(findings, max_batch=2)
    candidate = EngineCandidate("a", engine)
    candidate.prepare(images, 2)
    for _ in range(3):
        candidate.network_only()
    assert engine.seen == [[1, 2], [3, 1], [1, 2]]
    with pytest.raises(UsageError, match="a takes batches of 1 to 2 images, not 3"):
        candidate.prepare(images, 3)


def test_precision_is_what_the_engine_says(findings) -> None:
    class Rounding(FakeEngine):
        precision = "bf16"

    assert EngineCandidate("a", FakeEngine(findings)).precision == "fp32"
    assert EngineCandidate("a", Rounding(findings)).precision == "bf16"
