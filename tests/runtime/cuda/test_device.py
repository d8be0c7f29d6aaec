"""Running plans on a device, with a stand-in for the driver: no kernel runs here."""

from __future__ import annotations

import ctypes
import logging
import sys
from types import ModuleType

import numpy as np
import pytest
from fake_driver import CUresult, FakeDriver

from yolact_runtime.cuda import device as module
from yolact_runtime.cuda.compile import Module
from yolact_runtime.cuda.device import Device, Kernels
from yolact_runtime.cuda.plans.plan import Buffer, Launch, Plan
from yolact_runtime.cuda.timing import FLUSHES, copy_bandwidth, time_launches
from yolact_runtime.errors import UsageError, YolactError

PLAN = Plan(
    inputs=(Buffer("image", (2, 3), np.dtype(np.float32)),),
    outputs=(Buffer("count", (2,), np.dtype(np.int32)),),
    workspace=(Buffer("words", (5,), np.dtype(np.uint32)),),
    launches=(
        Launch("a.cu", "first<float>", (7, 2, 1), (32, 8, 1), 0, ("image", np.int32(-3), "words")),
        Launch("b.cu", "second", (1, 1, 4), (1024, 1, 1), 640, ("words", np.float32(0.1), "count")),
    ),
)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    bindings = ModuleType("cuda.bindings")
    bindings.driver = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    wanted = []

    def choose(capability, newest_major):
        wanted.append((capability, newest_major))
        return "nvrtc"

    def compile_kernels(source, expressions, capability, library):
        assert library == "nvrtc" and capability == (8, 6)
        return Module(source.encode(), {name: f"_Z{name}" for name in expressions}, "", capability, (12, 9))

    monkeypatch.setattr(module.nvrtc, "choose", choose)
    monkeypatch.setattr(module, "compile_kernels", compile_kernels)
    fake.wanted = wanted  # type: ignore[attr-defined]
    return fake


def use() -> None:
    """All that can be done with a device."""
    with Device() as device, device.load(PLAN) as kernels:
        kernels.upload("image", np.ones((2, 3), np.float32))
        kernels.run()
        kernels.download("count")
        time_launches(kernels, 1)
        copy_bandwidth(device)


def test_what_is_asked_of_the_driver_in_which_order(driver: FakeDriver) -> None:
    with Device() as device:
        assert device.gpu.name == "NVIDIA RTX A4000"
        start = len(driver.calls)
        with device.load(PLAN) as kernels:
            # The compiler may not be newer than the driver.
            assert driver.wanted == [((8, 6), 12)]  # type: ignore[attr-defined]
            kernels.upload("image", np.zeros((2, 3), np.float32))
            kernels.run()
            kernels.download("count")
        assert driver.names[start:] == [
            "cuModuleLoadData", "cuModuleGetFunction", "cuModuleLoadData", "cuModuleGetFunction",
            "cuFuncGetAttribute", "cuFuncGetAttribute", "cuMemAlloc", "cuMemAlloc", "cuMemAlloc",
            "cuStreamSynchronize", "cuMemcpyHtoDAsync", "cuStreamSynchronize",
            "cuLaunchKernel", "cuLaunchKernel",
            "cuStreamSynchronize", "cuMemcpyDtoHAsync", "cuStreamSynchronize",
            "cuMemFree", "cuMemFree", "cuMemFree", "cuModuleUnload", "cuModuleUnload",
        ]  # fmt: skip
        sizes = [arguments[0] for name, arguments in driver.calls if name == "cuMemAlloc"]
        assert sizes == [24, 8, 20]
    assert driver.names[-3:] == ["cuStreamDestroy", "cuCtxPopCurrent", "cuDevicePrimaryCtxRelease"]
    assert not driver.held


def test_launches_get_grid_block_stream_and_typed_arguments(driver: FakeDriver) -> None:
    with Device() as device, device.load(PLAN) as kernels:
        image, count, words = [value for free, value in driver.held if free == "cuMemFree"]
        kernels.run()
        kernels.run(stream=77)
        kernels.synchronize()
        launched = [arguments for name, arguments in driver.calls if name == "cuLaunchKernel"]
        own = device.stream
        assert driver.calls[-1] == ("cuStreamSynchronize", (77,))
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float
    first = ("_Zfirst<float>", 7, 2, 1, 32, 8, 1, 0)
    second = ("_Zsecond", 1, 1, 4, 1024, 1, 1, 640)
    tenth = float(np.float32(0.1))
    for stream, pair in ((own, launched[:2]), (77, launched[2:])):
        assert pair[0] == (*first, stream, ((image, -3, words), (pointer, integer, pointer)), 0)
        assert pair[1] == (*second, stream, ((words, tenth, count), (pointer, real, pointer)), 0)
    # NumPy's scalars are not what the bindings take.
    assert {type(value) for call in launched for value in call[-2][0]} == {int, float}


def test_plans_share_what_they_are_given(driver: FakeDriver) -> None:
    with Device() as device, Kernels(device, (PLAN, PLAN)) as kernels:
        assert driver.names.count("cuModuleLoadData") == 2  # one for each source
        with device.load(PLAN, kernels=kernels) as first:
            start = len(driver.calls)
            given = {"image": first.memory["image"], "count": 4096}
            with device.load(PLAN, given, kernels) as second:
                second.run()
                words = second.memory["words"]
                assert second.memory == {**given, "words": words}
                (values, _), _ = driver.calls[-1][1][-2:]
                assert values == (words, float(np.float32(0.1)), 4096)
            assert driver.names[start:] == ["cuMemAlloc", "cuLaunchKernel", "cuLaunchKernel", "cuMemFree"]
            assert driver.calls[-1][1] == (words,)
            with pytest.raises(ValueError, match=r"no buffers \['masks'\]; it has image, count, words"):
                device.load(PLAN, {"masks": 1})
    assert not driver.held


def test_arrays_go_there_and_back(driver: FakeDriver) -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2).T  # not contiguous
    with Device() as device, device.load(PLAN) as kernels:
        kernels.upload("image", array)
        np.testing.assert_array_equal(kernels.download("image"), array)
        for name, value, words in (
            ("count", np.zeros(2, np.int32), "no input 'count'; it takes image"),
            ("image", np.zeros((2, 3)), "float64"),
            ("image", np.zeros((3, 2), np.float32), r"\(3, 2\)"),
        ):
            with pytest.raises(UsageError, match=words):
                kernels.upload(name, value)
        with pytest.raises(UsageError, match="no buffer 'masks'; it has image, count, words"):
            kernels.download("masks")


@pytest.mark.parametrize(("static", "asked"), [(48 * 1024 - 640, False), (48 * 1024 - 639, True)])
def test_more_shared_memory_is_asked_for_where_it_is_needed(
    driver: FakeDriver, static: int, asked: bool
) -> None:
    driver.static_shared = static
    with Device() as device, device.load(PLAN):
        pass
    found = [arguments for name, arguments in driver.calls if name == "cuFuncSetAttribute"]
    assert found == ([("_Zsecond", 8, 640)] if asked else [])


def test_all_is_given_back_whichever_call_fails(driver: FakeDriver, caplog: pytest.LogCaptureFixture) -> None:
    use()
    assert not driver.held
    complete = driver.names
    ends = {"cuStreamDestroy", "cuCtxPopCurrent", "cuDevicePrimaryCtxRelease", "cuMemFree", "cuModuleUnload"}
    ends.add("cuEventDestroy")
    query = len(complete) - 1 - complete[::-1].index("cuDriverGetVersion")  # the last call of current_gpu
    for index, name in enumerate(complete):
        fake = FakeDriver()
        fake.fail_at = index
        sys.modules["cuda.bindings"].driver = fake  # type: ignore[attr-defined]
        caplog.clear()
        if name in ends:
            # What cannot be given back is told, and the rest is.
            with caplog.at_level(logging.WARNING):
                use()
            assert f"{name}: CUDA_ERROR_OUT_OF_MEMORY" in caplog.text
            assert [end for end, _ in fake.held] == [name]
            continue
        with pytest.raises(YolactError) as raised:
            use()
        words = "needs an NVIDIA GPU" if index <= query else f"{name}: CUDA_ERROR_OUT_OF_MEMORY"
        assert words in str(raised.value)
        assert not fake.held, name


def test_the_first_error_is_told_when_every_call_after_it_fails(driver: FakeDriver) -> None:
    with pytest.raises(YolactError, match="cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS"):  # noqa: SIM117
        with Device() as device, device.load(PLAN) as kernels:
            kernels.run()
            driver.error, driver.broken = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, True
            start = len(driver.calls)
            kernels.download("count")
    # Buffers, modules, stream and context.
    assert len(driver.names[start + 1 :]) == 3 + 2 + 3


def test_each_launch_is_timed_behind_cold_caches(driver: FakeDriver) -> None:
    with Device() as device, device.load(PLAN) as kernels:
        start = len(driver.calls)
        times = time_launches(kernels, 3)
        names = [name for name in driver.names[start:] if not name.startswith("cuEventCreate")]
        assert names[2 : 2 + FLUSHES + 6] == [
            "cuEventRecord", *["cuMemsetD8Async"] * FLUSHES, "cuEventRecord",
            "cuLaunchKernel", "cuEventRecord", "cuLaunchKernel", "cuEventRecord",
        ]  # fmt: skip
        with pytest.raises(UsageError, match="0 repeats"):
            time_launches(kernels, 0)
        assert copy_bandwidth(device) == 2 * 256 * 2**20 / 0.001
    assert times == {"first<float>": [1.0] * 3, "second": [1.0] * 3}


def test_no_bindings_or_no_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> None:
    monkeypatch.setattr(module, "current_gpu", lambda: None)
    with pytest.raises(YolactError, match="needs an NVIDIA GPU and its driver"), Device():
        pass
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(YolactError, match=r"pip install \"yolact\[trt\]\""), Device():
        pass
