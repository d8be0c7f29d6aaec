"""Several calls of one engine at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fake_onnx import NATIVE, SCORES, native_arrays, write_onnx

from yolact_runtime import load_engine
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine
from yolact_runtime.engines.threads import usable_cores
from yolact_runtime.errors import UsageError

BACKENDS = ["onnxruntime", "openvino"]


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest) -> None:
    if "openvino" in request.node.name:
        pytest.importorskip("openvino")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_calls_at_once_do_not_mix(model: Path, backend: str, streams: int) -> None:
    """More callers than streams, batches of changing size, and every image with scores of its own."""
    callers = streams + 1
    together = threading.Barrier(callers)

    def work(caller: int) -> None:
        together.wait()
        for step in range(60):
            shades = [(40 * caller + 7 * step + 3 * i) % 256 for i in range(1 + step % 3)]
            batch = np.stack([np.full((16, 16, 3), shade, np.uint8) for shade in shades])
            found = engine.detect(batch)
            expected = SCORES * (np.array(shades, np.float32) / 255)[:, None]
            np.testing.assert_allclose(found.scores[:, :2], expected, rtol=1e-5)
            assert found.prototypes.shape[0] == len(shades)

    with load_engine(model, backend=backend, streams=streams) as engine, ThreadPoolExecutor(callers) as pool:
        assert engine.streams == streams
        list(pool.map(work, range(callers)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_outlive_later_calls(model: Path, backend: str) -> None:
    with load_engine(model, backend=backend, streams=2) as engine:
        first = engine.predict([np.full((16, 16, 3), 255, np.uint8)])[0]
        kept = first.scores.copy(), first.prototypes.copy()
        for _ in range(4):
            engine.predict([np.zeros((16, 16, 3), np.uint8)])
    np.testing.assert_array_equal(first.scores, kept[0])
    np.testing.assert_array_equal(first.prototypes, kept[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_auto_asks_for_no_more_than_the_threads(model: Path, backend: str) -> None:
    with load_engine(model, backend=backend, streams="auto", threads=1) as engine:
        assert (engine.streams, engine.threads) == (1, 1)
    with load_engine(model, backend=backend, streams="auto") as engine:
        assert 1 <= engine.streams <= usable_cores() == engine.threads


@pytest.mark.parametrize(("threads", "streams", "pool"), [(4, 1, 4), (4, 2, 3), (2, 2, 1), (1, 3, 1)])
def test_streams_share_the_threads(
    model: Path, monkeypatch: pytest.MonkeyPatch, threads: int, streams: int, pool: int
) -> None:
    """The pool's count includes one caller: together with the other callers there are `threads`."""
    import onnxruntime

    real, seen = onnxruntime.InferenceSession, []

    def session(path: str, options: onnxruntime.SessionOptions, **more: object) -> object:
        seen.append(options.intra_op_num_threads)
        return real(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    OnnxRuntimeEngine(model, threads=threads, streams=streams).close()
    assert seen == [pool]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("streams", [0, -1, "many", 1.5])
def test_wrong_numbers(model: Path, backend: str, streams: object) -> None:
    with pytest.raises(UsageError, match=r"^streams is .*; it must be 1 or more, or 'auto', and at most"):
        load_engine(model, backend=backend, streams=streams)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("siblings", "quota", "cores"),
    [
        (["0", "1", "2", "3"], None, 4),
        (["0,2", "1,3", "0,2", "1,3"], None, 2),
        (["0-1", "0-1", "2-3", "2-3"], "max 100000", 2),
        (["0", "1", "2", "3"], "150000 100000", 2),
        (["0", "1", "2", "3"], "5000 100000", 1),
        (["0", "1"], None, 4),  # incomplete information
        ([], "x y", 4),
    ],
)
def test_cores_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, siblings: list[str], quota: str | None, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for cpu, text in enumerate(siblings):
        file = tmp_path / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(text + "\n")
    if quota is not None:
        (tmp_path / "fs/cgroup").mkdir(parents=True)
        (tmp_path / "fs/cgroup/cpu.max").write_text(quota + "\n")
    assert usable_cores(tmp_path) == cores
