"""The GPU's stages of `yolact-doctor`; each runs in a process of its own and needs none of the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from yolact_bench.doctor.stage import FAILED, GPU, OK, SKIPPED, Context, Outcome, Stage
from yolact_bench.gpu_checks.networks import FLAVOURS, MAX_BATCH, Flavour, flavour, make_engine
from yolact_runtime.errors import YolactError

CALLS, QUICK_CALLS = 1000, 200
# What is timed of each library: the way its users would run it, in half precision where it has one.
TIMED = {
    "tensorrt": ("tensorrt-runtime", ("--precision", "fp16")),
    "tensorrt-rtx": ("tensorrt-rtx-runtime", ("--precision", "fp16")),
    "onnxruntime-cuda": ("onnxruntime-cuda-runtime", ()),
    "pytorch-cuda": ("pytorch-cuda-half", ()),
}
REPORT = "attach the report of yolact-doctor to an issue; until then use the CPU: --backend onnxruntime"
# The kinds of `kernels.KINDS`; nothing large is imported to list the stages.
_TEXTS = {
    "resize": "resizing and normalisation of images",
    "detection": "decoding of boxes and fast NMS",
    "masks": "masks at the size of the prototypes",
    "rle": "edges of masks at image size, and their RLE",
    "visible": "which rows of the detections a result shows",
}


def gpu_stages(context: Context) -> list[Stage]:
    """All stages that need a GPU: kernels, engines of each library, ceilings and speed."""
    stages = [
        Stage(
            f"kernels-{kind}", "kernels", partial(run_kernels, kind), ("pycuda", "cuda", GPU),
            f"CUDA kernels against NumPy: {_TEXTS[kind]}", 120,
        )
        for kind in _TEXTS
    ]  # fmt: skip
    stages += [
        Stage(
            f"gpu-{one.name}", "gpu-engines", partial(run_engine, one), (*_needs(one), GPU),
            "engine built here: results, graphs, streams, growth of memory", 420,
            quick=one.name in ("tensorrt-runtime", "tensorrt-rtx-runtime", "onnxruntime-cuda-native"),
        )
        for one in FLAVOURS
    ]  # fmt: skip
    stages.append(
        Stage(
            "gpu-ceilings", "gpu-speed", run_ceilings, ("pycuda", "cuda", GPU),
            "copies in the GPU's memory and over the bus, matrix products by type", 120, quick=False,
        )
    )  # fmt: skip
    stages += [
        Stage(
            f"gpu-speed-{name}", "gpu-speed", partial(run_speed, *how),
            (*_needs(flavour(how[0])), "sympy", GPU),
            f"{context.config}: images/s at batch 1 and 8, stages and floors, share of the roofline", 420,
            quick=False,
        )
        for name, how in TIMED.items()
    ]  # fmt: skip
    return stages


def _needs(one: Flavour) -> tuple[str, ...]:
    """Packages of a flavour, of exports, and its checks: ONNX Runtime is the CPU's, pycuda watches memory."""
    exports = "torch", "torchvision", "onnx", "onnxscript"
    return tuple(dict.fromkeys((*one.needs, *exports, "onnxruntime", "pycuda", "cuda", "psutil")))


def run_kernels(kind: str, context: Context) -> Outcome:
    """Compile the kernels of one kind for this GPU and compare them with NumPy."""
    from yolact_bench.gpu_checks.kernels import BATCHES, SMALL, MismatchError, Sizes, kernel_cases, on_device
    from yolact_runtime.cuda import nvrtc
    from yolact_runtime.cuda.compile import parse_capability
    from yolact_runtime.cuda.device import Device

    with Device() as device, device.current:
        gpu = device.gpu
        try:
            newest = int(gpu.cuda.split(".")[0])
            compiler = nvrtc.choose(parse_capability(gpu.capability), newest_major=newest)
            compiler.include  # noqa: B018 - raises if its headers are missing
        except YolactError as error:
            return _skipped(error)
        figures: dict[str, float | int | str] = {
            "compute capability": gpu.capability, "NVRTC": ".".join(map(str, compiler.version)), "cases": 0,
        }  # fmt: skip
        worst: dict[str, float] = {}
        for sizes in (SMALL, Sizes()):
            for case in kernel_cases(kind, sizes, BATCHES):
                try:
                    found = case.check(partial(on_device, device))
                except MismatchError as error:
                    return Outcome(FAILED, figures | worst, f"kernel {error}", REPORT)
                figures["cases"] = int(figures["cases"]) + 1
                worst = {name: max(value, worst.get(name, 0.0)) for name, value in found.items()}
    return Outcome(OK, figures | worst)


def run_engine(one: Flavour, context: Context) -> Outcome:
    """Build an engine, and check results, graphs, streams and memory."""
    from yolact_bench.gpu_checks import engines
    from yolact_bench.gpu_checks.inputs import make_images
    from yolact_bench.gpu_checks.kernels import MismatchError
    from yolact_runtime import load_engine
    from yolact_runtime.cuda.device import Device

    if skipped := unusable(one):
        return skipped
    path = make_engine(one, context.folder, capability=_capability())
    images = make_images(MAX_BATCH - 1)
    reference = make_engine(flavour("onnxruntime-cuda-native"), context.folder)
    with load_engine(reference, backend="onnxruntime", threads=1) as cpu:
        expected = cpu.predict(images, engines.THRESHOLD, engines.REFERENCE_TOP_K)
    opened = partial(load_engine, path, **one.options)
    figures: dict[str, float | int | str] = {}
    checks: list[Callable[[], dict[str, float | int | str]]] = [
        lambda: engines.check_results(opened, images, expected),
        lambda: engines.check_graphs(opened, images, expected, one.repeatable),
        lambda: engines.check_streams(opened, images, one.repeatable, 4),
        lambda: engines.check_growth(
            opened, images[:4], QUICK_CALLS if context.quick else CALLS, engines.device_memory(device)
        ),
    ]
    with Device() as device:
        for check in checks:
            try:
                figures |= check()
            except MismatchError as error:
                return Outcome(FAILED, figures, f"{one.name}: {error}", REPORT)
    return Outcome(OK, figures)


def run_ceilings(context: Context) -> Outcome:
    """Measure what this GPU reaches in copies and matrix products."""
    from yolact_bench.doctor.speed import ceiling_figures, measure_gpu

    found, bus = measure_gpu(context.folder)
    figures = ceiling_figures(found, bus)
    if not found.operations:
        figures["matrix products"] = "not measured: PyTorch has no CUDA here"
    return Outcome(OK, figures)


def run_speed(name: str, more: tuple[str, ...], context: Context) -> Outcome:
    """Time the chosen configuration in one library."""
    from yolact_bench.doctor.speed import measure_gpu, speed_figures
    from yolact_runtime import load_engine

    one = flavour(name)
    if skipped := unusable(one):
        return skipped
    path = make_engine(one, context.folder, context.config, more, _capability())
    limits, bus = measure_gpu(context.folder)
    if one.export:  # an engine has the ONNX file that it was built from next to it
        onnx = path.with_suffix(".onnx")
    else:
        onnx = make_engine(flavour("onnxruntime-cuda-runtime"), context.folder, context.config)
    with load_engine(path, **one.options) as engine:
        return Outcome(OK, speed_figures(engine, onnx, limits, bus, context.seconds, context.folder))


def _capability() -> str:
    """Compute capability of the first GPU; empty without one."""
    from yolact_runtime.cuda.gpu import current_gpu

    gpu = current_gpu()
    return gpu.capability if gpu else ""


def unusable(one: Flavour) -> Outcome | None:
    """SKIPPED if the packages are installed, but without what the flavour needs; None if it can run."""
    if one.name.startswith("onnxruntime"):
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return Outcome(
                SKIPPED,
                reason=f"onnxruntime {onnxruntime.__version__} is built without CUDA",
                remedy="pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
            )
    if one.name.startswith("pytorch"):
        import torch

        if not torch.cuda.is_available():
            built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
            return Outcome(
                SKIPPED,
                reason=f"torch {torch.__version__}, built {built}, finds no GPU",
                remedy="pip install --force-reinstall torch (for a CUDA that the driver supports)",
            )
    if "plugin" in one.export:
        import importlib

        from yolact_export.trt.plugin import load_plugin_api

        try:
            load_plugin_api(importlib.import_module(one.needs[0]))
        except YolactError as error:
            return _skipped(error)
    return None


def _skipped(error: YolactError) -> Outcome:
    """SKIPPED for a missing package, whose error says what to do after its last semicolon."""
    reason, _, remedy = str(error).rpartition("; ")
    return Outcome(SKIPPED, reason=reason or remedy, remedy=remedy)
