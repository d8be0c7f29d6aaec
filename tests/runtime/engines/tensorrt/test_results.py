"""Results of TensorRT engines equal those of ONNX Runtime and NumPy, for the same file and images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from device_networks import ENGINES, assert_same, images
from engine_files import write_engine
from fake_gpu import FakeGpu
from fake_tensorrt import make_tensorrt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yolact_runtime import load_engine
from yolact_runtime.engines.compiled import CompiledNetwork, Entry
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine


@pytest.mark.parametrize("detects", ["raw heads", "native"])
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    calls=st.lists(
        st.tuples(
            st.lists(st.integers(0, 3), min_size=1, max_size=3),  # which images
            st.sampled_from([0.0, 0.2, 0.5, 0.95]),
            st.integers(1, 5),
            st.none() | st.sets(st.sampled_from(["cat", 7, "bird"]), min_size=1),
        ),
        min_size=3,
        max_size=8,
    )
)
def test_what_is_replayed_follows_images_and_limits(
    calls: list[tuple[list[int], float, int, set | None]], detects: str, tmp_path: Path
) -> None:
    """A graph is captured with some sizes, limits and classes, and replayed with others."""
    path = write_engine(tmp_path, *ENGINES[detects])
    some = images()
    with pytest.MonkeyPatch.context() as patch:
        gpu = FakeGpu().install(patch)
        with (
            OnnxRuntimeEngine(path.with_suffix(".onnx"), threads=1) as reference,
            load_engine(path) as engine,
        ):
            for chosen, *limits in calls:
                batch = [some[index] for index in chosen]
                assert_same(engine.predict(batch, *limits), reference.predict(batch, *limits))
        assert not gpu.problems
        assert not gpu.held


@pytest.mark.parametrize("kind", ["8.6", "10", "rtx"])
def test_every_library_runs_them(
    kind: str, gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = make_tensorrt(gpu, kind)
    monkeypatch.setitem(sys.modules, library.__name__, library)
    path = write_engine(
        tmp_path, *ENGINES["native"], library=library.__name__, library_version=library.__version__
    )
    with OnnxRuntimeEngine(path.with_suffix(".onnx"), threads=1) as reference:
        expected = reference.predict(images(), 0.2, 3)
    with load_engine(path) as engine:
        assert library.__version__ in engine.name
        for _ in range(3):
            assert_same(engine.predict(images(), 0.2, 3), expected)
    assert not gpu.problems
    assert not gpu.held


@pytest.mark.parametrize("kind", list(ENGINES))
def test_results_are_those_of_onnx_runtime(kind: str, gpu: FakeGpu, tmp_path: Path) -> None:
    arrays, metadata = ENGINES[kind]
    path = write_engine(tmp_path, arrays, metadata)
    with OnnxRuntimeEngine(path.with_suffix(".onnx"), threads=1) as reference:
        expected = reference.predict(images(), 0.2, 3)
        dogs = reference.predict(images(), 0.2, 3, classes=["dog"])
    assert sum(map(len, expected)) >= 4
    with load_engine(path) as engine:
        assert_same(engine.predict(images(), 0.2, 3, classes=["dog"]), dogs)
        for _ in range(3):  # plain, captured, replayed
            # Four images where three fit: a full batch and a ragged one.
            assert_same(engine.predict(images(), 0.2, 3), expected)
    assert not gpu.problems
    assert not gpu.held


def test_what_tensorrt_rtx_compiled_is_kept(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start compiles nothing; a cache that the library refuses is replaced."""
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path / "cache"))
    library = make_tensorrt(gpu, "rtx")
    monkeypatch.setitem(sys.modules, library.__name__, library)
    path = write_engine(
        tmp_path, *ENGINES["native"], library=library.__name__, library_version=library.__version__
    )

    def compilations() -> int:
        before = gpu.compilations
        with load_engine(path) as engine:
            engine.predict(images(), 0.2, 3)
        return gpu.compilations - before

    assert (compilations(), compilations()) == (1, 0)
    with monkeypatch.context() as patch:
        other = np.frombuffer(b"of another driver", np.uint8)
        patch.setattr(CompiledNetwork, "read", lambda _: Entry({}, other))
        assert compilations() == 1
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "fail_when", lambda name: name == "deserialize")
        assert compilations() == 1
    assert compilations() == 0
    assert not gpu.held
