"""Plans on a device, on fakes of pycuda and the driver: no kernel runs here."""

from __future__ import annotations

import logging
import struct
import sys
from contextlib import ExitStack

import numpy as np
import pytest
from fake_driver import CUresult
from fake_gpu import FakeGpu

from yolact_runtime.cuda import device as module
from yolact_runtime.cuda.device import Device
from yolact_runtime.cuda.gpu import only_the_first
from yolact_runtime.cuda.launch import Kernels, LoadedPlan
from yolact_runtime.cuda.plans.plan import Buffer, Launch, Plan
from yolact_runtime.cuda.timing import FLUSHES, copy_bandwidth, time_launches
from yolact_runtime.errors import DeviceError, UsageError, YolactError

PLAN = Plan(
    inputs=(Buffer("image", (2, 3), np.dtype(np.float32)),),
    outputs=(Buffer("count", (2,), np.dtype(np.int32)),),
    workspace=(Buffer("words", (5,), np.dtype(np.uint32)),),
    launches=(
        Launch("a.cu", "first<float>", (7, 2, 1), (32, 8, 1), 0, ("image", np.int32(-3), "words")),
        Launch("b.cu", "second", (1, 1, 4), (1024, 1, 1), 640, ("words", np.float32(0.1), "count")),
    ),
)


@pytest.fixture(autouse=True)
def no_kernel_runs(gpu: FakeGpu) -> None:
    gpu.computes = False


def use() -> None:
    """Everything that a device can do."""
    with Device() as device, device.current, LoadedPlan(device, PLAN) as loaded:
        loaded.upload("image", np.ones((2, 3), np.float32))
        loaded.run()
        loaded.download("count")
        time_launches(loaded, 1)
        copy_bandwidth(device)


def test_driver_calls_and_their_order(gpu: FakeGpu) -> None:
    with Device() as device:
        assert device.gpu.name == "NVIDIA RTX A4000"
        with device.current:
            gpu.names.clear()
            with LoadedPlan(device, PLAN) as loaded:
                # The compiler may not be newer than the driver.
                assert gpu.compilers == [((8, 6), 12)]
                sizes = [gpu.blocks[loaded.memory[buffer.name]][0] for buffer in PLAN.buffers]
                assert sizes == [24, 8, 20]
                loaded.upload("image", np.zeros((2, 3), np.float32))
                loaded.run()
                loaded.download("count")
                held = gpu.held
            assert gpu.names == [
                "cuModuleLoadDataEx", "cuModuleGetFunction", "cuModuleLoadDataEx", "cuModuleGetFunction",
                "cuFuncGetAttribute", "cuFuncGetAttribute", "cuMemAlloc", "cuMemAlloc", "cuMemAlloc",
                "cuStreamSynchronize", "cuMemcpyHtoDAsync", "cuStreamSynchronize",
                "cuLaunchKernel", "cuLaunchKernel",
                "cuStreamSynchronize", "cuMemcpyDtoHAsync", "cuStreamSynchronize",
                "cuStreamSynchronize",  # nothing may run on buffers that are freed
            ]  # fmt: skip
            ends = [end for end, _ in held if (end, _) not in gpu.held]
            assert ends == ["unload module", "unload module", "free", "free", "free"]
    assert not gpu.held and not gpu.problems


def test_launches_get_grid_block_stream_and_typed_arguments(gpu: FakeGpu) -> None:
    with Device() as device, device.current, ExitStack() as held, LoadedPlan(device, PLAN) as loaded:
        image, count, words = loaded.memory.values()
        other = device.open_stream(held)
        loaded.run()
        loaded.run(other)
        loaded.synchronize()
        assert {stream for stream, _ in gpu.ran} == {other.handle}  # the last run is waited for
        own = device.stream.handle
        device.stream.synchronize()
    # As the parameters lie in memory: a pointer after 32 bits starts at the next 8 bytes.
    first = struct.pack("QixxxxQ", image, -3, words)
    second = struct.pack("QfxxxxQ", words, 0.1, count)
    for stream, pair in ((own, gpu.launched[:2]), (other.handle, gpu.launched[2:])):
        assert pair[0] == ("first<float>", (7, 2, 1), (32, 8, 1), first, 0, stream)
        assert pair[1] == ("second", (1, 1, 4), (1024, 1, 1), second, 640, stream)


def test_plans_share_buffers_and_kernels(gpu: FakeGpu) -> None:
    with Device() as device, device.current, Kernels(device, (PLAN, PLAN)) as kernels:
        assert gpu.names.count("cuModuleLoadDataEx") == 2  # one for each source
        with LoadedPlan(device, PLAN, kernels=kernels) as first:
            gpu.names.clear()
            given = {"image": first.memory["image"], "count": first.memory["count"]}
            with LoadedPlan(device, PLAN, given, kernels) as second:
                second.run()
                words = second.memory["words"]
                assert second.memory == {**given, "words": words}
                assert gpu.launched[-1][3] == struct.pack("QfxxxxQ", words, 0.1, given["count"])
            assert words not in gpu.blocks and given["count"] in gpu.blocks
            assert gpu.names == ["cuMemAlloc", "cuLaunchKernel", "cuLaunchKernel", "cuStreamSynchronize"]
            with pytest.raises(ValueError, match=r"no buffers \['masks'\]; it has image, count, words"):
                LoadedPlan(device, PLAN, {"masks": 1})
    assert not gpu.held and not gpu.problems


def test_arrays_are_uploaded_and_downloaded(gpu: FakeGpu) -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2).T  # not contiguous
    with Device() as device, device.current, LoadedPlan(device, PLAN) as loaded:
        loaded.upload("image", array)
        np.testing.assert_array_equal(loaded.download("image"), array)
        for name, value, words in (
            (
                "count",
                np.zeros(2, np.int32),
                r"count .* not an input .*; it takes image \(2, 3\) float32$",
            ),
            ("image", np.zeros((2, 3)), "float64"),
            ("image", np.zeros((3, 2), np.float32), r"\(3, 2\)"),
        ):
            with pytest.raises(UsageError, match=words):
                loaded.upload(name, value)
        with pytest.raises(UsageError, match="no buffer 'masks'; it has image, count, words"):
            loaded.download("masks")


@pytest.mark.parametrize(("static", "asked"), [(48 * 1024 - 640, False), (48 * 1024 - 639, True)])
def test_more_shared_memory_is_requested_if_needed(gpu: FakeGpu, static: int, asked: bool) -> None:
    gpu.static_shared = static
    with Device() as device, device.current, LoadedPlan(device, PLAN):
        pass
    assert gpu.allowed_shared == ({"second": 640} if asked else {})


def test_every_failing_call_is_reported_and_everything_released(
    monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    settle, settles = Device.settle, []
    with monkeypatch.context() as patch:
        patch.setattr(Device, "settle", lambda *of: (settles.append(len(gpu.names)), settle(*of)))
        use()
    assert not gpu.held and not gpu.problems
    complete = gpu.names
    query = complete.index("cuDriverGetVersion")  # the last call of current_gpu
    leaves = [i for i, name in enumerate(complete) if name == "cuCtxPopCurrent"]
    assert len(leaves) == 4  # of opening, use, closing, and what pycuda leaves
    for index, name in enumerate(complete):
        fake = FakeGpu().install(monkeypatch)
        fake.computes, fake.fail_at = False, index
        caplog.clear()
        closing = index in leaves or index > leaves[1]
        if closing:
            # What cannot be released is reported, and the rest is released.
            with caplog.at_level(logging.WARNING):
                use()
            assert f"in {name}: " in caplog.text
            left = {"cuCtxPushCurrent": "release context", "cuCtxPopCurrent": "cuCtxPopCurrent"}
            assert {end for end, _ in fake.held} <= {left.get(name)}
            continue
        if index in settles:  # whose errors are only logged for debugging
            use()
            continue
        with pytest.raises(YolactError) as raised:
            use()
        words = "needs an NVIDIA GPU" if index <= query else f"in {name}: out of memory"
        assert words in str(raised.value)
        assert not fake.held and not fake.problems, name


def test_the_first_error_is_reported_when_all_later_calls_fail(gpu: FakeGpu) -> None:
    with pytest.raises(DeviceError, match="cuStreamSynchronize: an illegal memory access"):  # noqa: SIM117
        with Device() as device, device.current, LoadedPlan(device, PLAN) as loaded:
            loaded.run()
            gpu.error, gpu.broken = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, True
            loaded.download("count")
    # The context cannot be released any more; pycuda releases everything else.
    assert {end for end, _ in gpu.held} <= {"release context", "cuCtxPopCurrent"}


def test_each_launch_is_timed_behind_cold_caches(gpu: FakeGpu) -> None:
    with Device() as device, device.current, LoadedPlan(device, PLAN) as loaded:
        gpu.names.clear()
        times = time_launches(loaded, 3)
        names = [name for name in gpu.names if name not in ("cuEventCreate", "cuMemAlloc")]
        assert names[: FLUSHES + 6] == [
            "cuEventRecord", *["cuMemsetD8Async"] * FLUSHES, "cuEventRecord",
            "cuLaunchKernel", "cuEventRecord", "cuLaunchKernel", "cuEventRecord",
        ]  # fmt: skip
        with pytest.raises(UsageError, match="0 repeats"):
            time_launches(loaded, 0)
        # The fake's clock ticks with each piece of work, and with the event itself.
        assert copy_bandwidth(device) == 2 * 256 * 2**20 / 0.002
    assert times == {"first<float>": [2.0] * 3, "second": [2.0] * 3}
    assert not gpu.held and not gpu.problems


def test_no_bindings_or_no_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "current_gpu", lambda: None)
    with pytest.raises(YolactError, match="needs an NVIDIA GPU and its driver"), Device():
        pass
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(YolactError, match=r"pip install \"yolact\[cuda\]\""), Device():
        pass


@pytest.mark.parametrize(
    ("visible", "number", "advice"),
    [
        (None, 2, "set CUDA_VISIBLE_DEVICES=2 and use --device cuda"),
        ("5,3", 1, "set CUDA_VISIBLE_DEVICES=3 and use --device cuda"),
        ("0, GPU-8f3c-12, MIG-a1", 1, "set CUDA_VISIBLE_DEVICES=GPU-8f3c-12 and use --device cuda"),
        ("0, GPU-8f3c-12, MIG-a1", 2, "set CUDA_VISIBLE_DEVICES=MIG-a1 and use --device cuda"),
        ("5", 1, "is '5', in which there is no GPU 1: set it to the number"),
        ("5,-1,3", 2, "is '5,-1,3', in which there is no GPU 2"),
        ("5,,3", 2, "in which there is no GPU 2"),
        ("", 1, "is '', in which there is no GPU 1"),
        ("-1", 1, "is '-1', in which there is no GPU 1"),
    ],
)
def test_advice_for_another_gpu_than_the_first(
    visible: str | None, number: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert advice in only_the_first(number, "--device cuda")
