"""The kernels around networks of ONNX Runtime and PyTorch, on a GPU: results of the CPU, graphs, streams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from device_networks import ENGINES, assert_same, images
from fake_onnx import write_onnx

from yolact_runtime import Engine, Result, load_engine
from yolact_runtime.engines.device.engine import DeviceEngine
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine
from yolact_runtime.errors import YolactError

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(("streams", "graphs"), [(1, True), (2, True), (1, False)])
def test_onnx_runtime(kind: str, streams: int, graphs: bool, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", *ENGINES[kind])
    some = images()
    with load_engine(path, backend="cuda", streams=streams, graphs=graphs) as engine:
        assert isinstance(engine, DeviceEngine)
        with OnnxRuntimeEngine(path) as reference:
            expected = [reference.predict(some[:n], 0.2) for n in (1, 2, 3)]
        check(engine, some, expected)
        if kind in ("native, in half", "raw heads, masks scored"):
            with pytest.raises(YolactError, match="masks are computed on the host"):
                engine.stage_times(some[:1])
        else:
            assert engine.stage_times(some[:1])["network"] > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("streams", "graphs"), [(1, True), (2, True), (1, False)])
def test_pytorch(precision: str, streams: int, graphs: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    from yolact.model import Yolact
    from yolact.registry import get_config
    from yolact.train.checkpoint import save_checkpoint

    torch.manual_seed(0)
    model = Yolact(get_config("yolact_tiny"))
    torch.nn.init.normal_(model.prediction_layers[0].conf_layer.bias, std=2.0)  # type: ignore[union-attr]
    save_checkpoint(tmp_path / "yolact_tiny_0_1.pth", model, 0, 1, None)
    some = images()
    options = {"device": "cuda", "precision": precision, "streams": streams, "graphs": graphs}
    with load_engine(tmp_path / "yolact_tiny_0_1.pth", **options) as engine:  # type: ignore[arg-type]
        assert isinstance(engine, DeviceEngine) and engine.precision == precision
        if precision == "fp16":
            first = engine.predict(some[:3], 0.3)
            for _ in range(4):
                assert_same(engine.predict(some[:3], 0.3), first)
            return
        with load_engine(tmp_path / "yolact_tiny_0_1.pth", device="cpu") as reference:
            for _ in range(4):
                for one, other in zip(engine.predict(some, 0.3), reference.predict(some, 0.3), strict=True):
                    np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)


def check(engine: Engine, some: list[np.ndarray], expected: list[list[Result]]) -> None:
    """Calls of all batch sizes, several times and from four threads, return what the CPU returns."""
    for _ in range(4):  # plain, captured, replayed
        for n in (1, 2, 3):
            assert_same(engine.predict(some[:n], 0.2), expected[n - 1])
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: engine.predict(some[:2], 0.2), range(100)):
            assert_same(found, expected[1])
