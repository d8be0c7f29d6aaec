"""Checkpoints on the GPU, on fakes of pycuda and of PyTorch's CUDA: the kernels around PyTorch's network."""

from __future__ import annotations

import inspect
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_gpu import FakeGpu
from fake_torch_cuda import install_torch_cuda

from yolact import gpu as module
from yolact.engine import TorchEngine, pick_device
from yolact.gpu import open_checkpoint
from yolact.model import Yolact
from yolact.registry import get_config
from yolact.train.checkpoint import save_checkpoint
from yolact_runtime import Result, load_engine
from yolact_runtime.cuda import launch
from yolact_runtime.engines.device.engine import DeviceEngine
from yolact_runtime.errors import DeviceError, UsageError, YolactError

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (*size, 3), np.uint8) for size in ((90, 120), (64, 64), (41, 170))]


def write(folder: Path, **changes: object) -> Path:
    """A checkpoint of a small untrained network that is sure of what it finds."""
    torch.manual_seed(0)
    name, config = "yolact_tiny", get_config("yolact_tiny")
    config = replace(config, model=replace(config.model, **{"input_size": 96, **changes}))  # type: ignore[arg-type]
    model = Yolact(config)
    torch.nn.init.normal_(model.prediction_layers[0].conf_layer.bias, std=2.0)  # type: ignore[union-attr]
    path = folder / f"{name}_0_1.pth"
    save_checkpoint(path, model, 0, 1, None)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gpu"))


@pytest.fixture
def torch_gpu(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    install_torch_cuda(gpu, monkeypatch)
    return gpu


def assert_same(got: list[Result], expected: list[Result], atol: float = 1e-5) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert len(one) == len(other) > 0
        np.testing.assert_array_equal(one.classes, other.classes)
        for name in ("scores", "mask_scores", "relative_boxes"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=atol)
        # Rounding moves a pixel at a border now and then.
        differ = np.mean([np.mean(a != b) for a, b in zip(one.masks, other.masks, strict=True)])
        assert differ < 1e-3


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({}, {"input_dtype": "uint8"}),
        pytest.param({"mask_iou": True, "input_size": 256}, {}, marks=pytest.mark.slow),
        ({}, {"nms": "cross_class"}),
    ],
)
def test_results_equal_those_of_the_cpu(
    changes: dict, options: dict, torch_gpu: FakeGpu, tmp_path: Path
) -> None:
    path = write(tmp_path, **changes)
    with (
        TorchEngine(path, device="cpu", **options) as reference,
        open_checkpoint(path, **options, max_batch=3) as engine,
    ):
        assert isinstance(engine, DeviceEngine)
        assert (engine.name, engine.precision) == ("PyTorch (cpu)", "fp32")  # the fake's GPU is the CPU
        expected, everything = reference.predict(IMAGES, 0.1), reference.predict(IMAGES, 0.1, 100)
        for _ in range(3):  # plain, captured, replayed
            assert_same(engine.predict(IMAGES, 0.1), expected)
        assert_same(engine.predict(IMAGES[:1], 0.1), expected[:1])
        # Other images through the same graph, and other classes.
        assert_same(engine.predict(IMAGES[::-1], 0.1), expected[::-1])
        # The others are left out before suppression and the limit.
        more = 0
        for few in ({1}, {0, 2}):
            some = reference.predict(IMAGES, 0.1, 100, [reference.metadata.class_names[c] for c in few])
            found = engine.predict(IMAGES, 0.1, 100, [reference.metadata.class_names[c] for c in few])
            assert_same(found, some)
            more += sum(map(len, some)) - sum(c in few for one in everything for c in one.classes)
        assert more > 0
        assert torch_gpu.names.count("replay") >= 3
    assert not torch_gpu.held and not torch_gpu.problems


def test_the_order_on_the_stream(torch_gpu: FakeGpu, checkpoint: Path) -> None:
    with open_checkpoint(checkpoint, input_dtype="uint8", max_batch=1) as engine:
        calls = []
        for _ in range(2):
            torch_gpu.ran.clear()
            engine.predict(IMAGES[:1], 0.1)
            assert len({stream for stream, _ in torch_gpu.ran}) == 1
            calls.append([name.removeprefix("graph: ") for _, name in torch_gpu.ran])
        # The first call comes after what PyTorch had queued, such as copies of the weights.
        assert calls[0] == ["wait", *calls[1]]
        calls[0].pop(0)
        assert calls[0][:4] == ["upload", "upload", "resize", "network"]
        assert calls[0][4] == "filter_scores" and calls[0][-2:] == ["download", "download"]
        assert engine.stage_times(IMAGES[:1])["network"] > 0  # type: ignore[attr-defined]
    assert not torch_gpu.held and not torch_gpu.problems


def test_four_threads_on_two_slots_share_nothing(torch_gpu: FakeGpu, checkpoint: Path) -> None:
    with TorchEngine(checkpoint, device="cpu") as reference:
        expected = [reference.predict([image], 0.1) for image in IMAGES]
    with open_checkpoint(checkpoint, streams="auto", max_batch=1) as engine:
        assert engine.streams == 2
        failures: list[BaseException] = []

        def work(index: int) -> None:
            try:
                for _ in range(3):
                    assert_same(engine.predict([IMAGES[index]], 0.1), expected[index])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(index % 3,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
    assert not torch_gpu.held and not torch_gpu.problems


def test_a_graph_is_captured_by_a_thread_that_has_run_the_network(
    torch_gpu: FakeGpu, checkpoint: Path
) -> None:
    """cuDNN would open handles and try algorithms within the capture otherwise."""
    with open_checkpoint(checkpoint, max_batch=1) as engine:

        def elsewhere() -> int:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(engine.predict, IMAGES[:1], 0.1).result()
            return torch_gpu.names.count("capture_begin")

        assert [elsewhere() for _ in range(3)] == [0, 0, 0]
        for expected in (0, 1, 1):
            engine.predict(IMAGES[:1], 0.1)
            assert torch_gpu.names.count("capture_begin") == expected
        assert elsewhere() == 1 and torch_gpu.names.count("replay") == 3
    assert not torch_gpu.held and not torch_gpu.problems


def test_the_graphs_of_a_stream_share_memory(torch_gpu: FakeGpu, checkpoint: Path) -> None:
    with open_checkpoint(checkpoint, streams=2, max_batch=2) as engine:
        for n in (1, 1, 2, 2) * 2:  # calls take the slots in turn
            engine.predict(IMAGES[:n], 0.1)
        pools: dict[int, set[object]] = {}
        for stream, pool in torch_gpu.graph_pools:
            pools.setdefault(stream, set()).add(pool)
        assert len(torch_gpu.graph_pools) == 4 and len(pools) == 2
        assert all(len(one) == 1 and None not in one for one in pools.values())
        assert len(set.union(*pools.values())) == 2
    assert not torch_gpu.held and not torch_gpu.problems


def test_a_stream_comes_after_the_weights_and_before_they_are_freed(
    torch_gpu: FakeGpu, checkpoint: Path
) -> None:
    with open_checkpoint(checkpoint, streams=2) as engine:
        assert torch_gpu.names.count("ours waits for default") == 2
        engine.predict(IMAGES[:1], 0.1)
        assert "torch synchronizes" not in torch_gpu.names
    assert torch_gpu.names.count("torch synchronizes") == 2
    assert not torch_gpu.held and not torch_gpu.problems


def test_deformable_convolutions_run_on_the_default_stream(
    torch_gpu: FakeGpu, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision launches them there. Here all convolutions stand for them."""
    monkeypatch.setattr(module, "DeformConv", torch.nn.Conv2d)
    with TorchEngine(checkpoint, device="cpu") as reference, open_checkpoint(checkpoint) as engine:
        expected = reference.predict(IMAGES, 0.1)
        for _ in range(3):
            torch_gpu.names.clear()
            torch_gpu.ran.clear()
            assert_same(engine.predict(IMAGES, 0.1), expected)
            turns = [name for name in torch_gpu.names if "waits" in name]
            assert turns == ["default waits for ours", "ours waits for default"]
            (network,) = {stream for stream, name in torch_gpu.ran if name == "network"}
            assert network not in {stream for stream, name in torch_gpu.ran if name.endswith("download")}
        torch_gpu.names.clear()
        torch_gpu.fail_when = lambda name: name == "network"
        with pytest.raises(DeviceError, match="in the network"):
            engine.predict(IMAGES, 0.1)
        assert [name for name in torch_gpu.names if "waits" in name] == turns
    assert "capture_begin" not in torch_gpu.names
    assert not torch_gpu.held and not torch_gpu.problems


def test_half_precision_is_delivered_and_reported(
    torch_gpu: FakeGpu, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TorchEngine(checkpoint, device="cpu") as reference:
        expected = reference.predict(IMAGES[:1], 0.3)
    with load_engine(checkpoint, precision="fp16", max_batch=1, graphs=False) as engine:
        assert isinstance(engine, DeviceEngine) and engine.precision == "fp16"
        found = engine.predict(IMAGES[:1], 0.3)
        assert engine._network.tensors["prototypes"].dtype == np.float16
        assert abs(len(found[0]) - len(expected[0])) <= 1
        np.testing.assert_allclose(found[0].scores[:3], expected[0].scores[:3], atol=5e-3)
    assert "capture_begin" not in torch_gpu.names


def only_warning_of_four_runs(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """Open a checkpoint and run it four times, with the same results."""
    with open_checkpoint(checkpoint, max_batch=1) as engine, caplog.at_level(logging.WARNING):
        expected = engine.predict(IMAGES[:1], 0.1)
        for _ in range(3):
            assert_same(engine.predict(IMAGES[:1], 0.1), expected)
    (record,) = caplog.records
    return record


@pytest.mark.parametrize("call", ["capture_begin", "capture_end"])
def test_without_graphs_networks_are_launched_one_by_one(
    call: str, torch_gpu: FakeGpu, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch_gpu.fail_when = lambda name: name == call
    record = only_warning_of_four_runs(checkpoint, caplog)
    assert record.message.startswith("no CUDA graphs of the network, launching one by one: CUDA error")
    assert module._FAILED[-1].began is None  # reset, but not freed
    assert not torch_gpu.held and not torch_gpu.problems


def test_what_cannot_be_captured_is_said_and_launched_one_by_one(
    torch_gpu: FakeGpu, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason comes from the operation, not from ending the capture, which then fails as well."""
    compute = module.TorchNetwork.compute

    def refuse(*arguments: object) -> dict[str, torch.Tensor]:
        if torch_gpu.names[-1] == "capture_begin":
            raise RuntimeError("CUDA error: operation not permitted")
        return compute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module.TorchNetwork, "compute", refuse)
    torch_gpu.fail_when = lambda name: name == "capture_end"
    record = only_warning_of_four_runs(checkpoint, caplog)
    assert record.message.endswith("operation not permitted")
    assert torch_gpu.names.count("capture_begin") == 1 == torch_gpu.names.count("capture_end")
    assert not torch_gpu.held and not torch_gpu.problems


def test_failures_are_one_line_and_the_engine_goes_on(torch_gpu: FakeGpu, checkpoint: Path) -> None:
    torch_gpu.fail_when = lambda name: name == "ExternalStream"
    with pytest.raises(DeviceError, match=r"\.pth: PyTorch failed at a stream in ExternalStream: CUDA error"):
        open_checkpoint(checkpoint)
    for call in ("cuMemAlloc", "cuMemHostAlloc", "cuModuleLoadDataEx"):
        torch_gpu.fail_when = lambda name, call=call: name == call  # type: ignore[misc]
        with pytest.raises(DeviceError, match=f"{call}: out of memory"):
            open_checkpoint(checkpoint)
        assert not torch_gpu.held and not torch_gpu.problems
    torch_gpu.fail_when = lambda name: False
    with open_checkpoint(checkpoint, max_batch=1) as engine:
        engine.predict(IMAGES[:1], 0.1)
        torch_gpu.fail_when = lambda name: name == "network"
        with pytest.raises(
            DeviceError, match=r"at batch 1 in the network: CUDA out of memory.*fewer"
        ) as raised:
            engine.predict(IMAGES[:1], 0.1)
        assert "\n" not in str(raised.value)
        torch_gpu.fail_when = lambda name: False
        assert len(engine.predict(IMAGES[:1], 0.1)[0])
    assert not torch_gpu.held and not torch_gpu.problems


def test_without_kernels_pytorch_detects_and_says_so(
    torch_gpu: FakeGpu, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def warned(**options: object) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING), open_checkpoint(checkpoint, **options) as engine:  # type: ignore[arg-type]
            assert isinstance(engine, TorchEngine)
            assert len(engine.predict(IMAGES[:1], 0.1)[0])
        (record,) = caplog.records
        assert "PyTorch detects, and masks are computed on the CPU" in record.message
        return record.message

    assert "no kernel for traditional NMS" in warned(nms="traditional")

    def choose(*_: object, **__: object) -> str:
        raise YolactError("there is no NVRTC")

    with monkeypatch.context() as patched:
        patched.setattr(launch.nvrtc, "choose", choose)
        assert "there is no NVRTC" in warned()
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert 'pip install "yolact[cuda]"' in warned()
    assert not torch_gpu.held and not torch_gpu.problems


def test_another_gpu_than_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the device has no number, and is PyTorch's current one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for name, number in (("auto", 1), ("cuda", 1), ("cuda:0", 0), ("cuda:1", 1)):
        assert pick_device(name) == torch.device("cuda", number)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-8f3c")
    reason = module._no_kernels(get_config("yolact_tiny"), pick_device("cuda"))
    assert reason.endswith("set CUDA_VISIBLE_DEVICES=GPU-8f3c and use --device cuda")


def test_on_the_cpu_options_of_a_gpu_are_refused(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=r"streams is 2; a checkpoint has several on a GPU only"):
        load_engine(checkpoint, device="cpu", streams=2)
    with pytest.raises(UsageError, match=r"precision fp16 was asked for, but PyTorch \(cpu\) delivers fp32"):
        load_engine(checkpoint, device="cpu", precision="fp16")
    with pytest.raises(UsageError, match=r"max_batch is 65; it must be in 1\.\.64"):
        open_checkpoint(checkpoint, device="cpu", max_batch=65)
    with load_engine(checkpoint, device="cpu", streams="auto") as engine:
        assert isinstance(engine, TorchEngine)


def test_pytorch_has_what_the_fake_stands_for() -> None:
    """Names and arguments, as far as they can be seen without a GPU."""
    parameters = inspect.signature(torch.cuda.CUDAGraph.capture_begin).parameters
    assert {"pool", "capture_error_mode"} <= parameters.keys()
    assert issubclass(torch.cuda.ExternalStream, torch.cuda.Stream)
    for function in (torch.cuda.default_stream, torch.cuda.current_stream):
        assert [*inspect.signature(function).parameters] == ["device"]
    assert not inspect.signature(torch.cuda.graph_pool_handle).parameters
    assert callable(torch.cuda.Stream.wait_stream) and callable(torch.cuda.CUDAGraph.reset)
