"""Engines run on the GPU: results, graphs, streams, leaks, and PyTorch in the same process."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from yolact import Yolact, get_config
from yolact.train.checkpoint import save_checkpoint
from yolact_export.cli import main
from yolact_runtime import Result
from yolact_runtime.cuda.gpu import current_gpu
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine
from yolact_runtime.engines.tensorrt.open import open_engine
from yolact_runtime.engines.tensorrt.record import LIBRARIES

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

THRESHOLD, TOP_K = 0.0, 20
BATCH = 4


def images(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    sizes = [(120, 160), (97, 203), (240, 320), (64, 64), (333, 111)]
    return [rng.integers(0, 256, (*sizes[i % len(sizes)], 3), np.uint8) for i in range(n)]


@pytest.fixture(
    scope="module", params=[f"{short}-{detect}" for short in LIBRARIES for detect in ("native", "runtime")]
)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`yolact_tiny` with random weights, built here by each library that is installed."""
    short, detect = request.param.split("-")
    pytest.importorskip("pycuda.driver", reason="pycuda is not installed", exc_type=ImportError)
    pytest.importorskip(LIBRARIES[short])
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    checkpoint, path = folder / "yolact_tiny_0_1.pth", folder / "tiny.engine"
    model = Yolact(get_config("yolact_tiny")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bbox_layer.weight", "conf_layer.weight", "mask_layer.weight")):
                parameter.mul_(30)  # scores apart from each other, and masks with something in them
            elif name.startswith("proto_net") and name.endswith("weight"):
                parameter.mul_(2)
    save_checkpoint(checkpoint, model, 0, 1, None)
    arguments = ["--weights", str(checkpoint), "--to", "trt", "--backend", short, "--detect", detect]
    arguments += ["--max-batch", str(BATCH), "--output", str(path)]
    if short == "rtx":
        gpu = current_gpu()
        assert gpu is not None
        arguments += ["--device-capability", gpu.capability]
    assert main(arguments) == 0
    return path


def assert_close(got: list[Result], expected: list[Result]) -> None:
    """Equal but for rounding: most rows are found again, with nearly the same mask."""
    for one, other in zip(got, expected, strict=True):
        assert len(one) == len(other)
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-2)
        twins = 0
        for row, (label, box) in enumerate(zip(one.classes, one.relative_boxes, strict=True)):
            near = np.abs(other.relative_boxes - box).max(axis=1) < 1e-2
            for twin in np.flatnonzero(near & (other.classes == label))[:1]:
                twins += 1
                differing = np.count_nonzero(one.masks[row] != other.masks[twin])
                assert differing <= 0.01 * one.masks[row].size
        assert twins >= 0.8 * len(one)


def assert_equal(got: list[Result], expected: list[Result]) -> None:
    for one, other in zip(got, expected, strict=True):
        for name in ("scores", "classes", "relative_boxes", "coefficients"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.rles == other.rles


def test_results_are_those_of_onnx_runtime(engine: Path) -> None:
    with OnnxRuntimeEngine(engine.with_suffix(".onnx"), providers=["cpu"]) as reference:
        expected = reference.predict(images(7), THRESHOLD, TOP_K)
    assert all(len(result) for result in expected)
    with open_engine(engine) as opened:
        for _ in range(3):  # plain, captured, replayed; a full batch and a ragged one each
            assert_close(opened.predict(images(7), THRESHOLD, TOP_K), expected)


def test_graphs_change_nothing(engine: Path) -> None:
    with open_engine(engine, graphs=False) as plain:
        expected = plain.predict(images(6), THRESHOLD, TOP_K)
    with open_engine(engine, streams=1) as opened:
        for _ in range(4):
            assert_equal(opened.predict(images(6), THRESHOLD, TOP_K), expected)


def test_streams_change_nothing(engine: Path) -> None:
    with open_engine(engine, streams=3) as opened:
        expected = [opened.predict(images(n), THRESHOLD, TOP_K) for n in range(1, BATCH + 1)]
        problems: list[BaseException] = []

        def work(first: int) -> None:
            try:
                for call in range(50):
                    n = 1 + (first + call) % BATCH
                    assert_equal(opened.predict(images(n), THRESHOLD, TOP_K), expected[n - 1])
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems


def test_10000_calls_leave_nothing(engine: Path) -> None:
    torch.cuda.init()  # holds the primary context, so that its own memory does not count

    def free() -> int:
        torch.cuda.synchronize()
        return int(torch.cuda.mem_get_info()[0])

    with open_engine(engine) as opened:
        opened.predict(images(1))
    before = free()
    with open_engine(engine) as opened:
        some = images(BATCH)
        for n in (*range(1, BATCH + 1),) * 4:
            opened.predict(some[:n])
        within = free()
        for call in range(10_000):
            opened.predict(some[: 1 + call % BATCH])
        assert within - free() <= 4 * 2**20
    assert before - free() <= 4 * 2**20


def test_it_shares_the_gpu_with_torch(engine: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    weights = torch.rand(512, 512, device="cuda")
    expected = (weights @ weights).cpu()
    with open_engine(engine) as opened:
        first = opened.predict(images(2), THRESHOLD, TOP_K)
        torch.testing.assert_close((weights @ weights).cpu(), expected)
        assert_equal(opened.predict(images(2), THRESHOLD, TOP_K), first)
    torch.testing.assert_close((weights @ weights).cpu(), expected)


def test_host_time_of_a_call(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = images(1)[0]

    def median(task: Callable[[], object]) -> float:
        for _ in range(50):
            task()
        taken = []
        for _ in range(500):
            start = time.perf_counter()
            task()
            taken.append(time.perf_counter() - start)
        return 1e6 * statistics.median(taken)

    lines = []
    for graphs in (True, False):
        with open_engine(engine, streams=1, graphs=graphs) as opened:
            whole = median(
                lambda opened=opened: opened.predict_prepared([image], [image.shape[:2]], 0.15, 15)
            )
            slot = opened._idle.get()  # type: ignore[attr-defined]
            batch = slot._batches[1]

            def bare(batch=batch, slot=slot) -> None:
                batch.run()
                slot._stream.synchronize()

            with slot._model.device.current:
                least = median(bare)
            opened._idle.put(slot)  # type: ignore[attr-defined]
            stages = opened.stage_times([image])  # type: ignore[attr-defined]
        assert all(stages[name] > 0 for name in ("upload", "network", "masks", "download"))
        lines.append(f"graphs {graphs}: a call {whole:.1f} us, of which launch and wait {least:.1f} us")
    with capsys.disabled():
        print(f"\n{engine.parent.name}: {'; '.join(lines)}; {stages} ms")
