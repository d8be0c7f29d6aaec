"""Stages that run the small network in each library, in all precisions, against the stored results."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_bench.doctor import network
from yolact_bench.doctor.stage import OK, SKIPPED, Context, Figure, Outcome, Stage

if TYPE_CHECKING:
    from yolact_bench.doctor.results import Allowed
    from yolact_runtime import Engine

_EXPORT = ("torch", "torchvision", "onnx", "onnxscript")
# Figure of the first calls, which include what a library sets up in them.
TIME = "3 images ms"
_TEXT = "the small network against stored results: batch 1 and 3"


def engine_stages() -> list[Stage]:
    """A stage for each library and precision."""
    stages = [
        Stage("onnxruntime-fp32", "engines", partial(_bundled, "onnxruntime", ""), ("onnxruntime",), _TEXT),
        Stage("openvino-fp32", "engines", partial(_bundled, "openvino", ""), ("openvino",), _TEXT),
        Stage("openvino-bf16", "engines", partial(_bundled, "openvino", "bf16"), ("openvino",), _TEXT),
        Stage("pytorch-fp32", "engines", _checkpoint, ("torch", "torchvision"), _TEXT),
        Stage(
            "export-fp32", "export", partial(_exported_outcome, "fp32"), (*_EXPORT, "onnxruntime"),
            "yolact-export of a checkpoint to ONNX, verified, and run", quick=False,
        ),
    ]  # fmt: skip
    exported = *_EXPORT, "onnxruntime"
    for precision in ("fp16", "int8"):
        text = f"yolact-export --precision {precision} of a checkpoint, verified, and run in ONNX Runtime"
        run = partial(_exported_outcome, precision)
        stages.append(Stage(f"onnxruntime-{precision}", "engines", run, exported, text, quick=False))
    for precision in ("int8", "int8+bf16"):
        run = partial(_openvino_int8, precision)
        text = f"the int8 export in OpenVINO, computed in {precision}"
        stages.append(
            Stage(f"openvino-{precision}", "engines", run, (*exported, "openvino"), text, quick=False)
        )
    return stages


def _bundled(backend: str, precision: str, context: Context) -> Outcome:
    """Run the bundled files, with detection in the graph and in the runtime."""
    if precision and (skipped := _no_bf16()):
        return skipped
    return _outcomes({kind: _onnx_file(context, kind) for kind in network.KINDS}, backend, precision)


def _checkpoint(context: Context) -> Outcome:
    """Run the checkpoint in PyTorch on the CPU."""
    from yolact_runtime import load_engine

    with load_engine(checkpoint_file(context), device="cpu", input_dtype="uint8") as engine:
        return check_engine(engine, _exact())


def _exported_outcome(precision: str, context: Context) -> Outcome:
    """Export the checkpoint in a precision, and run it in ONNX Runtime."""
    start = time.perf_counter()
    path = exported_file(context, precision)
    seconds = time.perf_counter() - start
    done = _outcomes({precision: path}, "onnxruntime", "" if precision == "fp32" else precision)
    return Outcome(done.state, {"export s": round(seconds, 1), **done.figures}, done.reason, done.remedy)


def _openvino_int8(precision: str, context: Context) -> Outcome:
    """Run the int8 export in OpenVINO."""
    if "bf16" in precision and (skipped := _no_bf16()):
        return skipped
    return _outcomes({precision: exported_file(context, "int8")}, "openvino", precision)


def _outcomes(files: dict[str, Path], backend: str, precision: str) -> Outcome:
    """Check each file; the outcome is that of the first that is wrong, or else of the last."""
    from yolact_bench.doctor.results import REDUCED
    from yolact_runtime import load_engine

    asked: dict[str, Any] = {"precision": precision} if "bf16" in precision else {}
    done = Outcome(OK)
    times: dict[str, Figure] = {}
    for name, path in files.items():
        with load_engine(path, backend=backend, **asked) as engine:
            done = check_engine(engine, REDUCED if precision else _exact())
        if done.state != OK:
            return Outcome(done.state, done.figures, f"{name}: {done.reason}", done.remedy)
        times[f"{name} ms"] = done.figures[TIME]
    if len(files) == 1:
        return done
    return Outcome(OK, {key: value for key, value in done.figures.items() if key != TIME} | times)


def _exact() -> Allowed:
    from yolact_bench.doctor.results import EXACT

    return EXACT


def check_engine(engine: Engine, allowed: Allowed) -> Outcome:
    """Compare what an engine finds in the sample images with the stored results: one by one, and together."""
    from yolact_bench.doctor.results import compare

    images, limits = network.sample_images(), (0.0, 100)
    start = time.perf_counter()
    single = [engine.predict([image], *limits)[0] for image in images]
    first = time.perf_counter() - start
    batch = engine.predict(images, *limits)
    done = Outcome(OK)
    for results in (single, batch):
        found = [one for number, result in enumerate(results) for one in result.to_coco(number)]
        done = compare(network.expected_results(), found, allowed)
        if done.state != OK:
            break
    figures: dict[str, Figure] = {"computes in": engine.precision, TIME: round(1000 * first, 1)}
    return Outcome(done.state, {**figures, **done.figures}, done.reason, done.remedy)


def _no_bf16() -> Outcome | None:
    """SKIPPED if OpenVINO does not compute in bf16 on this CPU."""
    from yolact_runtime.engines.openvino import shared_core

    if "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    return Outcome(SKIPPED, {}, "this CPU has no bf16 arithmetic", "")


def _onnx_file(context: Context, kind: str) -> Path:
    """The bundled ONNX file of a kind."""
    path = context.folder / f"tiny_{kind}.onnx"
    return path if path.exists() else network.write_onnx_file(path, kind)


def checkpoint_file(context: Context) -> Path:
    """The small network as a checkpoint; needs PyTorch."""
    path = context.folder / "yolact_tiny_0_0.pth"
    return path if path.exists() else network.write_checkpoint(path)


def exported_file(context: Context, precision: str) -> Path:
    """The checkpoint exported to ONNX in a precision by yolact-export, verified on the sample images."""
    from yolact_bench.gpu_checks.networks import export

    path = context.folder / f"exported_{precision}.onnx"
    if not path.exists():
        images = str(image_folder(context))
        words = ["--weights", str(checkpoint_file(context)), "--output", str(path), "--verify", images]
        words += ["--max-batch", str(network.MAX_BATCH), "--precision", precision, "--keep-float", "none"]
        export(*words, *(["--calibrate", images] if precision == "int8" else []))
    return path


def image_folder(context: Context) -> Path:
    """The sample images as files, 0.png and so on."""
    import cv2

    folder = context.folder / "images"
    if not folder.exists():
        folder.mkdir()
        for number, image in enumerate(network.sample_images()):
            cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder
