"""Every kernel compiles for every GPU that is supported; the compiler's cache and its errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import kernel_registers
import pytest
from kernel_registers import CAPABILITIES, example_plans, main

from yolact_runtime.cuda import compile as module
from yolact_runtime.cuda import nvrtc
from yolact_runtime.cuda.compile import Module, compile_kernels, parse_capability
from yolact_runtime.cuda.plans.plan import MAX_SHARED_BYTES, SOURCE_FOLDER, kernels_by_source
from yolact_runtime.errors import UsageError, YolactError

SOURCE = """
#include "scale.cuh"
template <typename T> __global__ void work(T *p) { p[threadIdx.x] *= scale(); }
"""
# 64 values that are all needed at the end, in the 64 registers that 1024 threads leave each.
SPILLING = """
__global__ void __launch_bounds__(1024) work(float *p, int n) {
    float v[64];
    for (int i = 0; i < 64; ++i) v[i] = p[threadIdx.x * 64 + i];
    for (int k = 0; k < n; ++k)
        for (int i = 0; i < 64; ++i) v[i] = v[i] * v[(i + 1) % 64] + v[(i * 7) % 64];
    for (int i = 0; i < 64; ++i) p[threadIdx.x * 64 + i] = v[i];
}
"""


class Loaded(NamedTuple):
    """A compiler, as far as the choice asks it."""

    version: tuple[int, int]
    architectures: list[tuple[int, int]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate cache for each test; returns the folder of its entries."""
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(nvrtc.VARIABLE, raising=False)
    return tmp_path / "cache" / "kernels"


def compiler_for(capability: tuple[int, int]) -> nvrtc.Nvrtc:
    try:
        return nvrtc.choose(capability)
    except YolactError as error:
        pytest.skip(str(error))


@pytest.fixture
def compile_small(tmp_path: Path) -> Callable[..., Module]:
    """Compiles `SOURCE` for compute capability 7.5; keyword arguments go to the compiler."""
    compiler_for((7, 5))
    (tmp_path / "small.cu").write_text(SOURCE)
    (tmp_path / "scale.cuh").write_text("__device__ float scale() { return 2; }")
    return lambda **options: compile_kernels(
        "small.cu", ["work<float>", "work<int>"], (7, 5), folder=tmp_path, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_kernel_compiles_without_spills(capability: str) -> None:
    number = parse_capability(capability)
    compiler_for(number)
    uses = kernel_registers.measure(number)
    assert {use.expression for use in uses} == {
        name for names in kernels_by_source(example_plans()).values() for name in names
    }
    assert [use for use in uses if use.spilled] == []
    shared = {use.expression: use.shared_bytes for use in uses}
    for plan in example_plans():
        for launch in plan.launches:
            assert shared[launch.kernel] + launch.shared_bytes <= MAX_SHARED_BYTES
    registers = {use.expression: use.registers for use in uses}
    assert all(10 < count <= 255 for count in registers.values())


def test_the_example_plans_have_every_source() -> None:
    assert set(kernels_by_source(example_plans())) == {path.name for path in SOURCE_FOLDER.glob("*.cu")}


def test_machine_code_and_ptx(compile_small: Callable[..., Module]) -> None:
    code, text = compile_small(), compile_small(ptx=True)
    assert code.image.startswith(b"\x7fELF") and code.names["work<int>"].encode() in code.image
    assert b".target sm_75" in text.image and f".entry {text.names['work<float>']}(".encode() in text.image
    assert b"\0" not in text.image
    assert [use.expression for use in kernel_registers.parse(code)] == ["work<float>", "work<int>"]


def test_two_compilers_in_one_process(compile_small: Callable[..., Module]) -> None:
    majors = {library.version[0]: library for library in map(nvrtc.load, nvrtc.installed())}
    if len(majors) < 2:
        pytest.skip(f"only NVRTC {', '.join(map(str, majors))} is installed")
    for major, library in sorted(majors.items()) * 2:
        assert compile_small(library=library).compiler[0] == major
    assert nvrtc.choose((7, 5)).version[0] == max(majors)
    assert nvrtc.choose((7, 5), newest_major=min(majors)).version[0] == min(majors)


def test_ptx_is_of_no_newer_compiler_than_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers load the machine code of later compilers of the same major, and reject their PTX."""
    versions = [(12, 9), (13, 0), (13, 2)]
    monkeypatch.setattr(nvrtc, "installed", lambda: versions)
    monkeypatch.setattr(nvrtc, "load", lambda version: Loaded(version, [(9, 0)]))
    assert nvrtc.choose((9, 0), 13).version == (13, 2)
    assert nvrtc.choose((9, 0), 13, 0).version == (13, 0)
    assert nvrtc.choose((9, 0), 13, 1).version == (13, 0)
    versions.pop(0), versions.pop(0)
    with pytest.raises(YolactError, match=r'CUDA 13\.0, and .* is 13\.2; .*"nvidia-cuda-nvrtc==13\.0\.\*"'):
        nvrtc.choose((9, 0), 13, 0)


def test_the_second_time_nothing_is_compiled(
    compile_small: Callable[..., Module], cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = compile_small()
    assert len(list(cache.iterdir())) == 1
    runs = []
    compiler = nvrtc.Nvrtc.compile
    monkeypatch.setattr(nvrtc.Nvrtc, "compile", lambda *a: runs.append(1) or compiler(*a))
    assert compile_small() == first and not runs
    (tmp_path / "scale.cuh").write_text("__device__ float scale() { return 3; }")
    assert compile_small().image != first.image and runs
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b.replace(b"A", b"B"), lambda b: b"{}"]
)
def test_damaged_entries_are_made_again(
    damage: Callable[[bytes], bytes],
    compile_small: Callable[..., Module],
    cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = compile_small()
    (entry,) = cache.iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    assert compile_small().image == first.image
    assert "damaged" in caplog.text
    again = entry.read_bytes()
    assert compile_small().image == first.image and entry.read_bytes() == again  # used unchanged


def test_a_cache_that_cannot_be_written(
    compile_small: Callable[..., Module], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.write_text("a file where the folder would be")
    with caplog.at_level(logging.WARNING):
        assert compile_small().image
    assert "the cache is not used" in caplog.text


def test_an_error_in_the_source_is_one_line(tmp_path: Path) -> None:
    compiler_for((7, 5))
    (tmp_path / "wrong.cu").write_text("__global__ void work() {\n  nothing();\n}")
    with pytest.raises(YolactError, match=r'^wrong\.cu\(2\): error: identifier "nothing" is undefined$'):
        compile_kernels("wrong.cu", ["work"], (7, 5), folder=tmp_path)


def test_spills_are_seen(tmp_path: Path) -> None:
    compiler_for((7, 5))
    (tmp_path / "spill.cu").write_text(SPILLING)
    (use,) = kernel_registers.parse(compile_kernels("spill.cu", ["work"], (7, 5), folder=tmp_path))
    assert use.spilled > 0 and use.registers <= 64


@pytest.mark.parametrize(("spilled", "code"), [(0, 0), (8, 1)])
def test_the_command(
    spilled: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(capability: tuple[int, int]) -> list[kernel_registers.Use]:
        return [kernel_registers.Use("work<float>", capability, 40, 1024, spilled, spilled)]

    monkeypatch.setattr(kernel_registers, "measure", measure)
    assert main(["--capability", "6.1", "8.6"]) == code
    shown = capsys.readouterr()
    assert "sm_61" in shown.out and f"40 / 1024 / {spilled}" in shown.out
    assert ("spill to memory in work<float>" in shown.err) == bool(spilled)
    assert main(["--capability", "8.6.1"]) == 2


def test_no_compiler_for_a_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler_for((7, 5))
    with pytest.raises(YolactError, match=r"no installed NVRTC .* 3\.0 .*pip install -U \S+-cu12$"):
        nvrtc.choose((3, 0))
    with pytest.raises(YolactError, match=r"capability 99\.0 .*pip install -U nvidia-cuda-nvrtc$"):
        nvrtc.choose((99, 0))
    monkeypatch.setattr(nvrtc, "installed", list)
    with pytest.raises(YolactError, match="needs NVRTC, which is not installed; run: pip install"):
        nvrtc.choose((6, 1))


def test_the_library_may_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path in nvrtc.installed():
        monkeypatch.setenv(nvrtc.VARIABLE, str(path))
        assert nvrtc.choose((9, 0)).path == path
    monkeypatch.setenv(nvrtc.VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(UsageError, match="not a file"):
        nvrtc.choose((9, 0))
    (tmp_path / "none.so").write_text("no library")
    with pytest.raises(YolactError, match="not an NVRTC library that can be loaded"):
        nvrtc.choose((9, 0))


def test_libraries_that_do_not_load_are_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler_for((7, 5))
    broken = tmp_path / "libnvrtc.so.99"
    broken.write_text("no library")
    good = nvrtc.installed()
    monkeypatch.setattr(nvrtc, "installed", lambda: [broken, *good])
    assert nvrtc.choose((7, 5)).path in good
    monkeypatch.setattr(nvrtc, "installed", lambda: [broken])
    with pytest.raises(YolactError, match="needs NVRTC, which is not installed"):
        nvrtc.choose((7, 5))


def test_static_libraries_next_to_the_compiler_are_not_loaded(tmp_path: Path) -> None:
    compiler_for((7, 5))
    path = nvrtc.installed()[0]
    for name in ("libnvrtc-builtins_static.a", "libnvrtc-builtins.alt.so.99"):
        (tmp_path / name).write_text("not to be loaded")
    (tmp_path / path.name).symlink_to(path)
    assert nvrtc.Nvrtc(tmp_path / path.name).version == nvrtc.load(path).version
    (tmp_path / "libnvrtc-builtins.so.99").write_text("loaded, and no library")
    with pytest.raises(YolactError, match="not an NVRTC library that can be loaded"):
        nvrtc.Nvrtc(tmp_path / path.name)


@pytest.mark.parametrize("text", ["", "8", "86", "sm_86", "8.6a", "8.-1"])
def test_capabilities_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="not of the form"):
        parse_capability(text)
    assert module.parse_capability("12.0") == (12, 0)
