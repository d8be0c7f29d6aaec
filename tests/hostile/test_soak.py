"""Long runs: nothing is lost, and memory does not grow."""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_engine import FakeEngine, Found

from yolact_runtime import cli
from yolact_runtime.frames import Frame, Sink, Source
from yolact_runtime.pipeline import PipelineSettings, run_pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc"),
]
MEGABYTE = 1 << 20


def resident():
    """Memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watched(FakeEngine):
    """Finds one instance in everything, and notes the memory after the n-th image and at the end."""

    def __init__(self, after, **options):
        super().__init__({shade: [Found((1, 1, 20, 20))] for shade in range(256)}, **options)
        self.after, self.seen, self.early, self.late = after, 0, 0, 0

    def detect(self, batch):
        self.seen += len(batch)
        if self.seen >= self.after and not self.early:
            self.early = resident()
        if self.seen % 1000 < len(batch):
            self.late = resident()
        return super().detect(batch)


def test_twenty_thousand_images_with_one_in_a_hundred_bad(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for shade in range(10):
        assert cv2.imwrite(f"good{shade}.png", np.full((48, 48, 3), shade, np.uint8))
    Path("bad0.png").write_bytes(b"damaged")
    Path("bad1.png").write_bytes(Path("good0.png").read_bytes()[:60])
    bad = set(range(50, 20_000, 100))
    for number in range(20_000):
        model = f"bad{number % 3 % 2}.png" if number in bad else f"good{number % 10}.png"
        os.link(model, f"photos/{number:05}.png")
    engine = Watched(2_000, max_batch=8)
    monkeypatch.setattr("yolact_runtime.infer.open_engine", lambda args, streams: engine)
    arguments = ["--engine", "none", "--no-overlay", "--batch-size", "8", "--jsonl", "out.jsonl", "photos"]
    arguments += ["--table", "table.csv"]
    assert cli.main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("19800 images, 19800 detections, 200 failures")
    assert printed.err.count("ERROR") == 200
    good = [number + 1 for number in range(20_000) if number not in bad]
    for name in ("mask", "bbox"):
        entries = json.loads(Path(f"results/{name}_detections.json").read_text())
        assert [entry["image_id"] for entry in entries] == good
    images = json.loads(Path("results/images.json").read_text())["images"]
    assert [image["id"] for image in images] == good
    with Path("out.jsonl").open() as lines:
        assert sum("error" in json.loads(line) for line in lines) == 200
    with Path("table.csv").open() as rows:
        assert sum(1 for _ in rows) == 1 + 19_800
    # The captured error lines and the tests' own lists are in it as well.
    assert engine.late - engine.early < 16 * MEGABYTE


def test_a_hundred_thousand_frames_in_constant_memory():
    image = np.zeros((64, 64, 3), np.uint8)  # small: how many are under way changes from moment to moment

    class Endless(Source):
        total = 100_000

        def __iter__(self):
            for index in range(100_000):
                yield Frame(index, f"frame {index}", Path("none"), image.copy)

    class Count(Sink):
        next = 0

        def write(self, frame, prepared):
            assert frame.index == self.next
            self.next += 1

    engine, sink = Watched(5_000, max_batch=64), Count()
    stats = run_pipeline(Endless(), engine, [sink], PipelineSettings(64))
    assert stats.done == sink.next == 100_000
    assert engine.late - engine.early < 16 * MEGABYTE
