"""What builds, and for which GPU, is decided before any work."""

from __future__ import annotations

import argparse
import logging

import pytest

from yolact_export.trt import target as module
from yolact_export.trt.options import BuildOptions, add_arguments, from_arguments
from yolact_export.trt.target import choose_target
from yolact_runtime.cuda.gpu import Gpu
from yolact_runtime.errors import UsageError, YolactError

AMPERE = Gpu("NVIDIA RTX A4000", "8.6", "12.8")
PASCAL = Gpu("NVIDIA GeForce GTX 1080 Ti", "6.1", "12.8")
TURING = Gpu("NVIDIA GeForce RTX 2070", "7.5", "12.8")
BOTH = ("tensorrt", "tensorrt_rtx")


def here(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None, installed: tuple[str, ...]) -> None:
    """Pretend that the machine has this GPU and these libraries."""
    monkeypatch.setattr(module, "current_gpu", lambda: gpu)
    monkeypatch.setattr(module, "_rtx_capabilities", lambda: ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name if name in installed else None)


@pytest.mark.parametrize(
    ("gpu", "installed", "options", "library", "capabilities"),
    [
        (None, BOTH, BuildOptions(), "tensorrt_rtx", ()),
        (AMPERE, BOTH, BuildOptions(), "tensorrt", ("8.6",)),
        (AMPERE, BOTH, BuildOptions(capabilities=("8.6",)), "tensorrt", ("8.6",)),
        (AMPERE, BOTH, BuildOptions(capabilities=("8.9",)), "tensorrt_rtx", ("8.9",)),
        (AMPERE, ("tensorrt_rtx",), BuildOptions(), "tensorrt_rtx", ()),
        (AMPERE, BOTH, BuildOptions("rtx", ("7.5", "12.0")), "tensorrt_rtx", ("7.5", "12.0")),
        (TURING, BOTH, BuildOptions("rtx"), "tensorrt_rtx", ("7.5",)),
        (TURING, BOTH, BuildOptions("rtx", ("8.6",)), "tensorrt_rtx", ("8.6",)),
        (PASCAL, BOTH, BuildOptions(capabilities=("6.1",)), "tensorrt", ("6.1",)),
    ],
)
def test_choices(
    monkeypatch: pytest.MonkeyPatch,
    gpu: Gpu | None,
    installed: tuple[str, ...],
    options: BuildOptions,
    library: str,
    capabilities: tuple[str, ...],
) -> None:
    here(monkeypatch, gpu, installed)
    target = choose_target(options, "fp32")
    assert (target.library, target.capabilities) == (library, capabilities)


@pytest.mark.parametrize(
    ("gpu", "installed", "options", "words"),
    [
        (None, (), BuildOptions(), r'TensorRT-RTX or TensorRT.*"yolact\[rtx\]" or .*"yolact\[trt\]"'),
        (AMPERE, ("tensorrt_rtx",), BuildOptions("trt"), r'needs TensorRT,.*"yolact\[trt\]"'),
        (None, ("tensorrt",), BuildOptions(), "TensorRT builds on the GPU"),
        (AMPERE, BOTH, BuildOptions("trt", ("8.9",)), r"8\.9: TensorRT builds for the GPU it runs on"),
        (None, BOTH, BuildOptions("rtx", ("6.1",)), r"does not build for capability 6\.1"),
        (
            None,
            BOTH,
            BuildOptions("rtx", ("8.6", "9.0", "10.0")),
            r"-capability 9\.0, 10\.0: .* for 7\.5, .*, 12\.1$",
        ),
        (None, BOTH, BuildOptions("rtx", plugin=True), "TensorRT-RTX has no plugins"),
        (None, BOTH, BuildOptions(version_compatible=True), "--version-compatible is an option of"),
        (
            None,
            BOTH,
            BuildOptions(hardware_compatible=True),
            "--hardware-compatible is an option of",
        ),
    ],
)
def test_refusals(
    monkeypatch: pytest.MonkeyPatch,
    gpu: Gpu | None,
    installed: tuple[str, ...],
    options: BuildOptions,
    words: str,
) -> None:
    here(monkeypatch, gpu, installed)
    with pytest.raises(YolactError, match=words):
        choose_target(options, "fp32")


def test_half_precision_brings_nothing_on_a_1080_ti(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here(monkeypatch, PASCAL, BOTH)
    with pytest.raises(UsageError, match=r"1/64.*--precision int8.*--allow-fallback"):
        choose_target(BuildOptions(), "fp16")
    with caplog.at_level(logging.WARNING):
        assert choose_target(BuildOptions(allow_fallback=True), "fp16").capabilities == ("6.1",)
    assert "1/64" in caplog.text
    assert choose_target(BuildOptions(), "int8").library == "tensorrt"


def test_options_of_the_command_line() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--allow-fallback", action="store_true")
    parser.add_argument("--detect", default="native")
    add_arguments(parser)
    assert from_arguments(parser.parse_args([])) == BuildOptions()
    words = (
        "--backend rtx --device-capability 7.5 --device-capability 8.6 --workspace 512 --opt-batch 2 --tf32"
    )
    options = from_arguments(parser.parse_args(words.split()))
    assert options == BuildOptions("rtx", ("7.5", "8.6"), workspace_mib=512, opt_batch=2, tf32=True)


@pytest.mark.parametrize(
    "values", [{"workspace_mib": 0}, {"opt_batch": -1}, {"capabilities": ("8.5",)}], ids=str
)
def test_values_out_of_range(values: dict) -> None:
    with pytest.raises(UsageError, match="--"):
        BuildOptions(**values)
