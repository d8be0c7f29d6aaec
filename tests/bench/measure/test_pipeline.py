"""The pipeline beside a plain loop, with a pipeline and a clock that the test makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_engine import FakeEngine

from yolact_bench.measure.pipeline import FEWEST, RleSink, pipeline_throughput
from yolact_runtime import cli, infer
from yolact_runtime.engines.threads import default_workers
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.pipeline import RunStats
from yolact_runtime.sources.images import ImageSource


class Timed(FakeEngine):
    """Takes 100 ms a batch on a clock of its own."""

    now = 0
    calls = 0

    def detect(self, batch):
        self.now += 100_000_000
        self.calls += 1
        return super().detect(batch)


def test_both_ways_are_measured(images: list[Path], findings, monkeypatch) -> None:
    engine, overlapped = Timed(findings, max_batch=2), FakeEngine(findings, max_batch=2)
    engine.threads, overlapped.streams = 3, 2
    made: list[int] = []

    def pipeline(source, given, sinks, settings) -> RunStats:
        assert given is overlapped and settings.batch_size == 2
        names = [frame.path.name for frame in source]
        assert names[:5] == ["1.png", "2.png", "3.png", "1.png", "2.png"]
        for sink in sinks:
            for index, frame in enumerate(source):
                image = frame.read()
                assert frame.index == index and image[0, 0, 0] == index % 3 + 1
                sink.write(frame, sink.prepare(frame, image, given.predict([image], 0.0, 20)[0]))
        # Twice as fast as the loop, which needs a call for two images.
        engine.now += source.total * 25_000_000
        made.append(source.total)
        return RunStats(done=len(names))

    monkeypatch.setattr("yolact_runtime.pipeline.run_pipeline", pipeline)
    found = pipeline_throughput(engine, overlapped, images, 2, 1.0, clock=lambda: engine.now)
    assert (found["images"], found["batch"], found["streams"]) == (20, 2, 2)
    assert (found["serial_threads"], found["threads"], found["workers"]) == (3, None, default_workers())
    assert found["serial"]["value"] == pytest.approx(20)
    assert found["pipeline"]["value"] == pytest.approx(40)
    assert found["ratio"] == pytest.approx({"value": 2, "low": 2, "high": 2})
    assert set(made) == {20}


def test_frames_that_go_missing(images: list[Path], findings, monkeypatch) -> None:
    engine = Timed(findings)
    monkeypatch.setattr("yolact_runtime.pipeline.run_pipeline", lambda *_, settings: RunStats())
    with pytest.raises(YolactError, match=rf"the pipeline gave 0 of {FEWEST} images"):
        pipeline_throughput(engine, engine, images, 1, 1.0, clock=lambda: 10 * engine.now)


def test_wrong_limits(images: list[Path], findings) -> None:
    with pytest.raises(UsageError, match="top_k is 0"):
        pipeline_throughput(FakeEngine(findings), FakeEngine(findings), images, top_k=0)


def test_a_loop_is_not_given_streams_to_lose_with(images: list[Path], findings) -> None:
    crippled = FakeEngine(findings)
    crippled.streams, crippled.threads = 2, 2
    with pytest.raises(UsageError, match="the loop's engine has 2 streams; open it with streams=1"):
        pipeline_throughput(crippled, FakeEngine(findings), images)


def test_workers_are_those_of_the_command() -> None:
    settings = infer.pipeline_settings(cli.build_parser().parse_args(["--engine", "e.onnx", "image.png"]))
    assert settings.decode_workers == settings.post_workers == default_workers()


@pytest.mark.usefixtures("short_passes")
def test_the_runtime_works_through_all_images(images: list[Path], findings) -> None:
    engine = FakeEngine(findings)
    found = pipeline_throughput(engine, engine, images, seconds=0.01)
    assert found["images"] >= FEWEST and found["pipeline"]["value"] > 0


def test_run_lengths_are_made(images: list[Path], findings) -> None:
    (frame,) = ImageSource(images[:1])
    result = FakeEngine(findings).predict([frame.read()], 0.0, 20)[0]
    sink = RleSink()
    sink.write(frame, sink.prepare(frame, frame.read(), result))
    assert "rles" in vars(result)
