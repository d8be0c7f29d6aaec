"""`Engine.stage_timer`: which stages each engine reports, and that it costs nothing otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine
from fake_onnx import NATIVE, RUNTIME, native_arrays, runtime_arrays, write_onnx

from yolact_runtime import Engine, load_engine


def stages(engine: Engine) -> list[str]:
    """What an engine reports of one prediction, in order."""
    seen: list[str] = []

    @contextlib.contextmanager
    def timer(stage: str) -> Iterator[None]:
        seen.append(f"{stage} begins")
        yield
        seen.append(f"{stage} ends")

    engine.stage_timer = timer
    engine.predict([np.zeros((8, 8, 3), np.uint8)])
    del engine.stage_timer
    engine.predict([np.zeros((8, 8, 3), np.uint8)])
    return seen


def test_detect_is_the_network_of_any_engine() -> None:
    assert stages(FakeEngine({})) == ["network begins", "network ends"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_detection_outside_the_graph_is_a_stage(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    write_onnx(tmp_path / "heads.onnx", runtime_arrays(), RUNTIME)
    write_onnx(tmp_path / "detections.onnx", native_arrays(), NATIVE)
    with load_engine(tmp_path / "heads.onnx", backend=backend) as engine:
        assert stages(engine) == ["network begins", "detect begins", "detect ends", "network ends"]
    with load_engine(tmp_path / "detections.onnx", backend=backend) as engine:
        assert stages(engine) == ["network begins", "network ends"]


def test_a_checkpoint_reports_its_detection() -> None:
    torch = pytest.importorskip("torch")
    from yolact import Yolact, get_config
    from yolact.engine import TorchEngine

    torch.manual_seed(0)
    engine = TorchEngine.from_model(Yolact(get_config("yolact_tiny")), device="cpu")
    assert stages(engine) == ["network begins", "detect begins", "detect ends", "network ends"]


def test_without_a_timer_nothing_is_created() -> None:
    engine = FakeEngine({})
    assert engine.timed("network") is engine.timed("detect")


def test_the_stage_ends_with_an_error() -> None:
    ended: list[str] = []

    @contextlib.contextmanager
    def timer(stage: str) -> Iterator[None]:
        try:
            yield
        finally:
            ended.append(stage)

    engine = FakeEngine({}, broken=[0])
    engine.stage_timer = timer
    with pytest.raises(Exception, match="cannot look at shade 0"):
        engine.predict([np.zeros((8, 8, 3), np.uint8)])
    assert ended == ["network"]
