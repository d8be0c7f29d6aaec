"""What the tests of `yolact-bench` share: images, and reports that are quick to make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_engine import Found, write_image

from yolact_bench.measure.candidate import Candidate, Run
from yolact_bench.measure.suite import Report, Settings, measure
from yolact_runtime.errors import UsageError

BOX = (4, 6, 24, 30)


class FakeCandidate(Candidate):
    """Takes batches up to `most`; remembers what it was asked to do."""

    backend, config, precision, input_size = "Fake 1.0", "fake", "fp32", None

    def __init__(self, name: str, most: int = 8, note: str = "") -> None:
        self.name, self.most, self.note = name, most, note
        self.log: list[object] = []

    def prepare(self, images, batch):
        if batch > self.most:
            raise UsageError(f"{self.name} takes batches of 1 to {self.most} images, not {batch}")
        self.log.append(("prepare", batch))

    def network_only(self):
        self.log.append("network_only")

    def end_to_end(self, paths):
        self.log.append([path.name for path in paths])
        return Run({"decode": 0.001, "network": 0.002, "cooking": 0.003}, 2 * len(paths))


@pytest.fixture
def short_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of the pipeline that take milliseconds."""
    monkeypatch.setattr("yolact_bench.measure.pipeline.PASS_SECONDS", 0.01)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three images; `findings` has 2, 1 and 0 instances in them."""
    for shade in (1, 2, 3):
        write_image(tmp_path / "images" / f"{shade}.png", shade)
    return sorted((tmp_path / "images").iterdir())


@pytest.fixture
def findings() -> dict[int, list[Found]]:
    return {1: [Found(BOX), Found(BOX, 1, 0.05)], 2: [Found(BOX)]}


@pytest.fixture
def make_candidate() -> type[FakeCandidate]:
    return FakeCandidate


@pytest.fixture
def report(images: list[Path]) -> Report:
    """Two candidates at two batch sizes, one with a hostile name."""
    candidates = [FakeCandidate("a.onnx"), FakeCandidate("b<&>\"'.onnx", note="other & weights")]
    return measure(candidates, images, Settings(batches=(1, 2), seconds=0.01, runs=20))


@pytest.fixture
def sampled():
    """A report as JSON with chosen run times: `sampled({"a": milliseconds})`."""

    def make(times: dict[str, np.ndarray], **changes) -> dict:
        def measured(values):
            return {"runs": len(values), "samples_us": [round(1000 * value) for value in values]}

        return {
            "schema": "yolact-bench/2",
            "machine": {"cpu": "A", "cores": 2, "versions": {"numpy": "2.0"}},
            "settings": {"seconds": 3.0, "threads": None},
            "conditions": {"warnings": []},
            "engines": [
                {
                    "name": name,
                    "backend": "Fake",
                    "config": "c",
                    "precision": "fp32",
                    "input_size": 550,
                    "weights_sha256": "",
                    "batches": [{"batch": 1, "alone": measured(values), "end_to_end": measured(values)}],
                }
                for name, values in times.items()
            ],
            **changes,
        }

    return make
