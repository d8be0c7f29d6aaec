"""Bound buffers, on the CPU: the same calls that a GPU gets, without page-locked memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from fake_onnx import NATIVE, SCORES, native_arrays, write_onnx

from yolact_runtime.engines.io_binding import BoundSession, page_locked_memory
from yolact_runtime.engines.onnxruntime_cuda import open_on_cuda
from yolact_runtime.errors import UsageError

NAMES = ["count", "boxes", "scores", "classes", "coefficients", "prototypes"]


@pytest.fixture
def session(tmp_path: Path) -> onnxruntime.InferenceSession:
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_it_returns_what_the_session_returns(session: onnxruntime.InferenceSession) -> None:
    bound = BoundSession(session, "images", NAMES, streams=1)
    for images in (1, 3, 1):
        batch = np.random.default_rng(images).integers(0, 255, (images, 16, 16, 3)).astype(np.uint8)
        for found, expected in zip(bound.run(batch), session.run(NAMES, {"images": batch}), strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


def test_calls_at_once_have_buffers_of_their_own(session: onnxruntime.InferenceSession) -> None:
    bound = BoundSession(session, "images", ["scores"], streams=2)

    def shine(shade: int) -> np.ndarray:
        return bound.run(np.full((1, 16, 16, 3), shade, np.uint8))[0]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(shine, range(256)))
    expected = SCORES * (np.arange(256, dtype=np.float32) / 255)[:, None]
    np.testing.assert_allclose(np.concatenate(found)[:, :2], expected, rtol=1e-5)


def test_a_failed_call_gives_its_buffers_back(session: onnxruntime.InferenceSession) -> None:
    bound = BoundSession(session, "images", ["scores"], streams=1)
    for _ in range(2):
        with pytest.raises((TypeError, ValueError)):
            bound.run(np.zeros((1, 16, 16, 3), np.float32))
    assert bound.run(np.zeros((1, 16, 16, 3), np.uint8))[0].shape == (1, 4)


def test_an_engine_on_cuda_is_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a session that says CUDA and computes on the CPU."""

    class Session(onnxruntime.InferenceSession):
        def __init__(self, path: str, options: object, providers: list, **more: object) -> None:
            self.asked = providers[0]
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def run(self, *_: object) -> None:
            pytest.fail("it was run unbound")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    with open_on_cuda(path, providers=["cuda:1"], streams="auto") as engine:
        assert (engine.name, engine.streams, engine.threads) == ("ONNX Runtime CUDA", 1, None)
        assert engine._session.asked == ("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"})
        (result,) = engine.predict([np.full((20, 30, 3), 255, np.uint8)])
        engine.predict([np.zeros((20, 30, 3), np.uint8)])
    np.testing.assert_array_equal(result.scores, SCORES)
    with pytest.raises(UsageError, match=r"providers cpu: backend cuda needs cuda or cuda:N first"):
        open_on_cuda(path, providers=["cpu"])


def test_older_versions_have_no_page_locked_memory(
    session: onnxruntime.InferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page_locked_memory(session) is None
    monkeypatch.delattr(onnxruntime, "get_ep_devices", raising=False)
    assert page_locked_memory(session) is None
