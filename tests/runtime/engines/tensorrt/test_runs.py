"""What the engine calls on the GPU, in which order, and that nothing is left afterwards."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_files import write_engine
from fake_driver import CUresult
from fake_gpu import FakeGpu
from fake_onnx import NATIVE, RUNTIME, native_arrays, runtime_arrays

from yolact_runtime.cuda.plans.masks import MaskShapes
from yolact_runtime.engines.tensorrt.open import open_engine
from yolact_runtime.errors import DeviceError, UsageError, YolactError
from yolact_runtime.metadata import Metadata

IMAGE = np.full((20, 30, 3), 255, np.uint8)
# One call after a `runtime` engine, as the GPU sees it.
CALL = [
    "upload", "resize", "network", "filter_scores", "list_candidates", "wanted_class_nms", "keep_best",
    "count_visible", "assemble_masks", "mask_bits", "count_edges", "write_edges", "download",
]  # fmt: skip
EDGES = "download"


def test_a_call_is_one_stream_from_upload_to_download(gpu: FakeGpu, tmp_path: Path) -> None:
    with open_engine(write_engine(tmp_path, runtime_arrays(), RUNTIME), streams=1) as engine:
        gpu.ran.clear()  # of the upload of the priors
        engine.predict([IMAGE])
        first, gpu.ran = gpu.ran, []
        for _ in range(2):
            engine.predict([IMAGE])
            (stream,) = {stream for stream, _ in gpu.ran + first}
            assert stream in gpu.streams
            # Pixels vary in size, so they go before the graph, and edges after it.
            assert [name for _, name in gpu.ran] == ["upload", *(f"graph: {name}" for name in CALL), EDGES]
            gpu.ran = []
    assert [name for _, name in first] == ["upload", *CALL, EDGES]


def test_nothing_but_the_summary_comes_back_where_nothing_is_found(gpu: FakeGpu, tmp_path: Path) -> None:
    with open_engine(write_engine(tmp_path, native_arrays(), NATIVE), streams=1) as engine:
        (result,) = engine.predict([np.zeros_like(IMAGE)])
    assert len(result) == 0
    assert [name for _, name in gpu.ran].count("download") == 1


def test_each_batch_size_is_captured_once_at_its_second_call(gpu: FakeGpu, tmp_path: Path) -> None:
    with open_engine(write_engine(tmp_path, native_arrays(), NATIVE), streams=1) as engine:
        captured = []
        for n in (1, 2, 1, 2, 1, 2, 3, 3, 3):
            assert [len(result) for result in engine.predict([IMAGE] * n)] == [2] * n
            captured.append(gpu.names.count("cuGraphInstantiate"))
        assert captured == [0, 0, 1, 2, 2, 2, 2, 3, 3]
        assert gpu.names.count("cuGraphLaunch") == 6
        # The graph itself is not needed once it is instantiated.
        assert [end for end, _ in gpu.held].count("cuGraphDestroy") == 0
        assert [end for end, _ in gpu.held].count("cuGraphExecDestroy") == 3
    assert not gpu.held


def test_graphs_can_be_left_out(gpu: FakeGpu, tmp_path: Path) -> None:
    with open_engine(write_engine(tmp_path, native_arrays(), NATIVE), graphs=False) as engine:
        for _ in range(3):
            assert len(engine.predict([IMAGE])[0]) == 2
    assert "cuStreamBeginCapture" not in gpu.names


@pytest.mark.parametrize(
    "call", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "execute_async_v3"]
)
def test_without_graphs_calls_are_launched_one_by_one(
    call: str, gpu: FakeGpu, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(name: str) -> bool:
        captures = any(stream.captured is not None for stream in gpu.streams.values())
        return name == call and (captures or call != "execute_async_v3")

    gpu.fail_when = fails
    with open_engine(write_engine(tmp_path, native_arrays(), NATIVE), streams=1) as engine:
        with caplog.at_level(logging.WARNING):
            for n in (1, 1, 1, 2, 2, 2):
                assert [len(result) for result in engine.predict([IMAGE] * n)] == [2] * n
        assert gpu.names.count("cuStreamBeginCapture") == 1
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "no CUDA graphs, launching one by one"
    ]
    assert call in caplog.text
    assert not gpu.held and not gpu.problems


def test_a_library_that_still_compiles_is_not_captured(gpu: FakeGpu, tmp_path: Path) -> None:
    gpu.capturable = False
    with open_engine(write_engine(tmp_path, native_arrays(), NATIVE), streams=1) as engine:
        for _ in range(3):
            engine.predict([IMAGE])
        assert "cuStreamBeginCapture" not in gpu.names
        gpu.capturable = True
        engine.predict([IMAGE])
        assert gpu.names.count("cuGraphLaunch") == 1


def test_calls_of_several_threads_run_at_the_same_time(gpu: FakeGpu, tmp_path: Path) -> None:
    with open_engine(write_engine(tmp_path, native_arrays(), NATIVE), streams=3) as engine:
        assert engine.streams == 3
        meet = threading.Barrier(3, timeout=60)
        wait = gpu.wait

        once = threading.local()

        def wait_for_the_others(stream: int) -> None:
            if not hasattr(once, "met"):
                once.met = meet.wait()  # continue only when all have put their work on their streams
            wait(stream)

        gpu.wait = wait_for_the_others  # type: ignore[method-assign]
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda n=n: found.extend(map(len, engine.predict([IMAGE] * n))))
            for n in (1, 2, 3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [2] * 6
        assert gpu.peak == 3
        gpu.wait = wait  # type: ignore[method-assign]
    assert not gpu.held and not gpu.problems


def test_nothing_is_held_or_made_anew_over_10000_calls(gpu: FakeGpu, tmp_path: Path) -> None:
    gpu.computes = False
    with open_engine(write_engine(tmp_path, native_arrays(), NATIVE)) as engine:
        for n in (1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3):
            engine.predict([IMAGE] * n)
        held, made = gpu.held, {"cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuGraphInstantiate"}
        gpu.names.clear()
        for call in range(10_000):
            engine.predict_prepared([IMAGE] * (1 + call % 3), [(20, 30)] * (1 + call % 3), 0.15, 15)
            if call % 1000 == 0:
                assert not made.intersection(gpu.names)
                gpu.names.clear()
                gpu.ran.clear()
                gpu.launched.clear()
        assert gpu.held == held
    assert not gpu.held and not gpu.problems


def test_resources_are_released_in_reverse_order(gpu: FakeGpu, tmp_path: Path) -> None:
    given_back: list[tuple[str, object]] = []
    give_back = gpu.give_back
    gpu.give_back = lambda end, value: (given_back.append((end, value)), give_back(end, value))[1]  # type: ignore
    with open_engine(write_engine(tmp_path, runtime_arrays(), RUNTIME), streams=1, graphs=False) as engine:
        engine.predict([IMAGE])
        held = [pair for pair in gpu.held if not pair[0].startswith("cu")]
        given_back.clear()
    assert given_back.pop() == ("cuCtxPopCurrent", "context")  # which pycuda leaves on the driver's stack
    assert sorted(map(str, given_back)) == sorted(map(str, held))
    kinds = [end for end, _ in given_back]
    # Execution contexts before the memory that they use; the primary context last.
    assert kinds[0] == "forget"
    assert kinds[-1] == "release context"
    assert [value[0] for end, value in given_back if end == "forget"] == [  # type: ignore[index]
        "ExecutionContext", "Engine", "Runtime",
    ]  # fmt: skip
    addresses = [value for end, value in held if end in ("free", "free host")]
    freed = [value for end, value in given_back if end in ("free", "free host")]
    assert freed == addresses[::-1]


def test_larger_images_get_larger_buffers(gpu: FakeGpu, tmp_path: Path) -> None:
    with open_engine(write_engine(tmp_path, native_arrays(), NATIVE), streams=1) as engine:
        sizes = [(20, 30), (640, 640), (641, 30), (20, 700), (705, 704), (20, 30)]
        allocated = []
        for size in sizes:
            (result,) = engine.predict([np.full((*size, 3), 255, np.uint8)])
            assert (result.height, result.width) == size
            # The left half, and one prototype cell of eight more.
            assert abs(result.masks[0].mean() - 0.5) < 0.15
            allocated.append(gpu.names.count("cuMemAlloc"))
        grows = np.diff(allocated) > 0
        assert grows.tolist() == [False, True, True, True, False]
    assert not gpu.held and not gpu.problems


def test_without_gpu_memory_masks_are_computed_on_the_host(
    gpu: FakeGpu, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = np.full((700, 900, 3), 255, np.uint8)
    with open_engine(write_engine(tmp_path, native_arrays(), NATIVE), streams=1) as engine:
        expected = engine.predict([large])[0].rles
        engine.predict([IMAGE])
    with open_engine(write_engine(tmp_path, native_arrays(), NATIVE), streams=1) as engine:
        engine.detect(np.zeros((1, 16, 16, 3), np.uint8))  # whose memory the way over the host takes
        gpu.fail_when = lambda name: name == "cuMemAlloc"
        with caplog.at_level(logging.WARNING):
            assert engine.predict([large])[0].rles == expected
            assert engine.predict([large])[0].rles == expected
        assert caplog.text.count("900 pixels") == 1
        assert "out of memory" in caplog.text and "computed on the host" in caplog.text
        gpu.fail_when = lambda name: False
        assert len(engine.predict([IMAGE])[0]) == 2
    assert not gpu.held and not gpu.problems


def test_masks_with_too_many_edges_are_computed_on_the_host(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_engine(tmp_path, native_arrays(), NATIVE)
    with open_engine(path) as engine:
        expected = engine.predict([IMAGE])[0].rles
    monkeypatch.setattr(MaskShapes, "capacity", 5)
    with open_engine(path) as engine, caplog.at_level(logging.WARNING):
        assert engine.predict([IMAGE])[0].rles == expected
    assert "do not fit the buffer, which holds 5; computed on the host" in caplog.text
    assert not gpu.held and not gpu.problems


def test_closing_waits_for_the_calls_that_run(gpu: FakeGpu, tmp_path: Path) -> None:
    engine = open_engine(write_engine(tmp_path, native_arrays(), NATIVE))
    reached, go_on, wait = threading.Event(), threading.Event(), gpu.wait

    def slow(stream: int) -> None:
        reached.set()
        assert go_on.wait(60)
        wait(stream)

    gpu.wait = slow  # type: ignore[method-assign]
    found: list[int] = []
    calling = threading.Thread(target=lambda: found.append(len(engine.predict([IMAGE])[0])))
    closing = threading.Thread(target=engine.close)
    calling.start()
    assert reached.wait(60)
    closing.start()
    assert gpu.held
    go_on.set()
    calling.join()
    closing.join()
    assert found == [2]
    assert not gpu.held and not gpu.problems


def test_detections_of_prepared_batches(gpu: FakeGpu, tmp_path: Path) -> None:
    with open_engine(write_engine(tmp_path, native_arrays(), NATIVE)) as engine:
        found = engine.detect(np.full((2, 16, 16, 3), 255, np.uint8))
        assert found.count.tolist() == [2, 2]
        np.testing.assert_array_equal(found.prototypes, np.repeat(native_arrays()["prototypes"], 2, axis=0))
        again = engine.detect(np.zeros((2, 16, 16, 3), np.uint8))
        assert not again.scores.any() and found.scores.any()  # arrays of their own
        for wrong in (np.zeros((4, 16, 16, 3), np.uint8), np.zeros((1, 16, 16, 3), np.float32)):
            with pytest.raises(YolactError, match=r"1 to 3 images \(16, 16, 3\) uint8 are needed"):
                engine.detect(wrong)
        with pytest.raises(YolactError, match="1 to 3 images at once, not 4"):
            engine.predict_prepared([IMAGE] * 4, [(20, 30)] * 4, 0.15, 15)


def test_prepared_batches_do_not_disturb_a_captured_graph(gpu: FakeGpu, tmp_path: Path) -> None:
    with open_engine(write_engine(tmp_path, native_arrays(), NATIVE), streams=1) as engine:
        expected, *_ = (engine.predict([IMAGE])[0].rles for _ in range(3))
        engine.detect(np.zeros((1, 16, 16, 3), np.uint8))
        assert engine.predict([IMAGE])[0].rles == expected
        assert gpu.names.count("cuGraphLaunch") == 3
        assert gpu.names.count("create_execution_context") == 1  # which both use
    assert not gpu.held and not gpu.problems


def test_stages_are_timed_by_events(gpu: FakeGpu, tmp_path: Path) -> None:
    with open_engine(write_engine(tmp_path, runtime_arrays(), RUNTIME)) as engine:
        # The fake's clock ticks with each task, and with the event itself.
        assert engine.stage_times([IMAGE, IMAGE]) == {  # type: ignore[attr-defined]
            "upload": 2 + 1, "preprocess": 1 + 1, "network": 1 + 1, "detect": 4 + 1, "masks": 5 + 1,
            "download": 1 + 1 + 2 + 1,
        }  # fmt: skip
        assert len(engine.predict([IMAGE])[0]) == 2
    assert not gpu.held and not gpu.problems


def test_a_closed_engine_says_so(gpu: FakeGpu, tmp_path: Path) -> None:
    engine = open_engine(write_engine(tmp_path, native_arrays(), NATIVE))
    engine.close()
    engine.close()
    with pytest.raises(YolactError, match="is closed"):
        engine.predict([IMAGE])
    assert not gpu.held and not gpu.problems


def test_an_engine_that_nobody_closes_is_freed(gpu: FakeGpu, tmp_path: Path) -> None:
    engine = open_engine(write_engine(tmp_path, native_arrays(), NATIVE))
    engine.predict([IMAGE])
    assert gpu.held
    del engine
    assert not gpu.held and not gpu.problems


def test_streams_have_limits(gpu: FakeGpu, tmp_path: Path) -> None:
    path = write_engine(tmp_path, native_arrays(), NATIVE)
    for streams in (0, 9, "many"):
        with pytest.raises(UsageError, match=rf"streams is {streams!r}; it must be in 1\.\.8, or 'auto'"):
            open_engine(path, streams=streams)
    with open_engine(path, streams="auto") as engine:
        assert engine.streams == 2


def test_it_closes_on_another_thread(gpu: FakeGpu, tmp_path: Path) -> None:
    engine = open_engine(write_engine(tmp_path, native_arrays(), NATIVE))
    engine.predict([IMAGE])
    thread = threading.Thread(target=engine.close)
    thread.start()
    thread.join()
    assert not gpu.held and not gpu.problems


def use(path: Path) -> int:
    """All kinds of calls: plain, captured, replayed, with larger buffers, and only detections."""
    with open_engine(path, streams=1) as engine:
        found = [len(engine.predict([IMAGE])[0]) for _ in range(3)]
        found += [len(engine.predict([np.full((30, 700, 3), 255, np.uint8)])[0])]
        found += [int(engine.detect(np.full((1, 16, 16, 3), 255, np.uint8)).count[0])]
        try:
            assert len(engine.stage_times([IMAGE])) == 6  # type: ignore[attr-defined]
        except DeviceError:
            raise
        except YolactError as error:  # there was no memory for them
            assert "masks are computed on the host" in str(error)
        return sum(found)


RAW = (runtime_arrays(), replace(RUNTIME, max_batch=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made_of", "error", "calls"),
    [
        ((native_arrays(), NATIVE), CUresult.CUDA_ERROR_OUT_OF_MEMORY, None),
        ((native_arrays(), NATIVE), CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, None),
        # What raw heads add: buffers of the detection kernels, and their launches.
        (
            RAW,
            CUresult.CUDA_ERROR_OUT_OF_MEMORY,
            {"cuMemAlloc", "cuMemcpyHtoDAsync", "cuModuleLoadDataEx", "cuModuleGetFunction"},
        ),
        (RAW, CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, {"cuMemcpyHtoDAsync", "cuLaunchKernel"}),
    ],
)
def test_every_call_may_fail_and_nothing_is_left(
    made_of: tuple[dict, Metadata],
    error: CUresult,
    calls: set[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_engine(tmp_path, *made_of)
    whole = FakeGpu().install(monkeypatch)
    expected = use(path)
    assert not whole.held and not whole.problems
    places = [(i, name) for i, name in enumerate(whole.names) if calls is None or name in calls]
    reported = 0
    for index, name in places:
        gpu = FakeGpu().install(monkeypatch)
        gpu.fail_at, gpu.error = index, error
        try:
            assert use(path) == expected, name
        except DeviceError as raised:
            reported += 1
            assert "failed" in str(raised) and "\n" not in str(raised)
        except YolactError as raised:
            assert "an NVIDIA GPU" in str(raised) and "use --engine" in str(raised)
        # What cannot be popped or destroyed stays; all else is given back.
        spared = {name} | ({"release context"} if name == "cuCtxPushCurrent" else set())
        left = [end for end, _ in gpu.held if end not in spared]
        assert not left, (name, left)
        # Where the context cannot be made current to close, everything is tried without.
        assert not gpu.problems or name == "cuCtxPushCurrent", (name, gpu.problems)
    assert reported > len(places) / 4


def test_an_engine_goes_on_after_an_error(gpu: FakeGpu, tmp_path: Path) -> None:
    with open_engine(write_engine(tmp_path, native_arrays(), NATIVE), streams=1) as engine:
        assert len(engine.predict([IMAGE])[0]) == 2
        for name in ("cuMemcpyHtoDAsync", "cuGraphLaunch", "cuStreamSynchronize", "cuMemcpyDtoHAsync"):
            for _ in range(2):
                engine.predict([IMAGE])
            gpu.fail_when = lambda called, name=name: called == name
            with pytest.raises(DeviceError, match=name):
                engine.predict([IMAGE])
            gpu.fail_when = lambda called: False
            assert len(engine.predict([IMAGE])[0]) == 2
    assert not gpu.held and not gpu.problems
