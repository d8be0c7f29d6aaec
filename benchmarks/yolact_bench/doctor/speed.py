"""Measures a configuration with random weights on the CPU and on a GPU, against the machine's ceilings."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_bench.doctor.stage import OK, SKIPPED, SMALLER, Context, Figure, Outcome, Stage
from yolact_runtime.errors import YolactError
from yolact_runtime.files import read_json, write_json
from yolact_runtime.typed import convert

if TYPE_CHECKING:
    import numpy as np

    from yolact_bench.measure.stages import EngineCandidate
    from yolact_bench.roofline.ceilings import Ceilings
    from yolact_bench.roofline.graph import Roofline
    from yolact_runtime import Engine

Figures = dict[str, Figure]
BATCHES = (1, 8)
_BUILD = ("torch", "torchvision", "onnx", "onnxscript")
_MEASURE = (*_BUILD, "sympy", "psutil")
# A batch size is left out if measuring it would take longer, in seconds.
_MOST = 20.0
_RUNS = 3
# On a GPU: size of the images, runs of the stages of which the first two warm up, and limits.
IMAGE = (480, 640)
STAGE_RUNS = 10
SCORE_THRESHOLD, TOP_K = 0.15, 100


def speed_stages() -> list[Stage]:
    """Stages of the group `speed`; none is part of a quick run."""
    backends = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino",), "pytorch": ()}
    text = "stage times, images per second and share of the roofline of --config in"
    return [
        Stage("build", "speed", _build, _BUILD, "--config with random weights as an ONNX file", 180, False),
        Stage("ceilings", "speed", _ceilings, _MEASURE, "fastest arithmetic and memory here", 60, False),
        *(
            Stage(
                f"speed-{one}", "speed", partial(_speed, one), (*_MEASURE, *more), f"{text} {one}", 120, False
            )
            for one, more in backends.items()
        ),
    ]


def _build(context: Context) -> Outcome:
    """Build the files of the configuration."""
    onnx_file, _ = configured_files(context)
    return Outcome(OK, {"config": context.config, "ONNX MB": round(onnx_file.stat().st_size / 1e6, 1)})


def configured_files(context: Context) -> tuple[Path, Path]:
    """The ONNX file and the checkpoint of `context.config` with random weights; needs PyTorch and onnx.

    The file returns detections and takes up to 8 images.
    """
    from yolact_bench.gpu_checks.networks import flavour, make_checkpoint, make_engine

    checkpoint = make_checkpoint(context.folder, context.config)
    native = flavour("onnxruntime-cuda-native")  # a plain ONNX file
    return make_engine(native, context.folder, context.config, ("--no-verify",)), checkpoint


def _counted(folder: Path, onnx_file: Path, batch: int) -> Roofline:
    """The work of the file, which takes seconds to count: once for all stages of a run."""
    from yolact_bench.roofline.count import graph_work
    from yolact_bench.roofline.graph import Roofline, roofline

    stored = folder / f"{onnx_file.stem}-work-{batch}.json"
    if not stored.exists():
        write_json(stored, asdict(roofline(onnx_file, batch).work))
    return Roofline(onnx_file, graph_work(json.loads(stored.read_text("utf-8"))))


def _ceilings(context: Context) -> Outcome:
    """The ceilings of the CPU with all usable cores, from the cache if they have been measured."""
    from yolact_bench.roofline.ceilings import ceilings

    found = ceilings()
    rates = {f"{kind} GFLOP/s": round(rate / 1e9, 1) for kind, rate in found.operations.items()}
    return Outcome(
        OK, {**rates, "memory GB/s": round(found.bandwidth / 1e9, 1), "threads": found.threads or 0}
    )


def _speed(name: str, context: Context) -> Outcome:
    """Measure the configuration in one library."""
    from yolact_bench.cli import write_synthetic_image
    from yolact_bench.measure.stages import EngineCandidate
    from yolact_runtime import load_engine

    onnx_file, checkpoint = configured_files(context)
    image = context.folder / "synthetic.png"
    write_synthetic_image(image)
    if name == "pytorch":
        engine = load_engine(checkpoint, device="cpu", input_dtype="uint8")
    else:
        engine = load_engine(onnx_file, backend=name)
    candidate = EngineCandidate(name, engine)
    figures: dict[str, Figure] = {"computes in": engine.precision}
    try:
        one = _one_call(candidate, image)
        if one * (_RUNS + 3) > _MOST:
            return Outcome(SKIPPED, figures, f"too slow to measure here: {one:.1f} s an image", SMALLER)
        for batch in BATCHES:
            expected = batch * one * (_RUNS + 3)
            if expected > _MOST:
                figures[f"batch {batch}"] = f"left out: it would take {expected:.0f} s"
                continue
            one = _measure_batch(
                candidate, image, batch, context, _counted(context.folder, onnx_file, batch), figures
            )
        _stage_times(candidate, image, context, _counted(context.folder, onnx_file, 1), figures)
    finally:
        candidate.close()
    return Outcome(OK, figures)


def _one_call(candidate: EngineCandidate, image: Path) -> float:
    """Seconds of the network for one image; a second call is timed if the first one took long."""
    candidate.prepare([image], 1)
    one = math.inf
    for _ in range(2):
        start = time.perf_counter()
        candidate.network_only()
        one = min(one, time.perf_counter() - start)
        if one * (_RUNS + 3) <= _MOST:
            break
    return one


def _measure_batch(
    candidate: EngineCandidate,
    image: Path,
    batch: int,
    context: Context,
    graph: Roofline,
    figures: dict[str, Figure],
) -> float:
    """Add the time of the network at a batch size; returns its seconds for an image."""
    import numpy as np

    from yolact_bench.measure.protocol import take_turns
    from yolact_bench.roofline.ceilings import ceilings

    candidate.prepare([image], batch)
    times, _ = take_turns({"network": candidate.network_only}, context.seconds, _RUNS)
    median = float(np.median(times["network"]))
    reached = graph.reached(ceilings(), 1000 * median, candidate.precision)
    if (reached.share or 0) > 1:  # they were measured while the machine was busy; the faster ones count
        reached = graph.reached(ceilings(fresh=True), 1000 * median, candidate.precision)
    figures[f"batch {batch} ms"] = _rounded(1000 * median)
    figures[f"batch {batch} images/s"] = _rounded(batch / median)
    figures[f"batch {batch} floor ms"] = _rounded(reached.floor_ms)
    figures[f"batch {batch} share of the roofline"] = round(reached.share or 0.0, 3)
    return median / batch


def _stage_times(
    candidate: EngineCandidate, image: Path, context: Context, graph: Roofline, figures: dict[str, Figure]
) -> None:
    """Add the median times of the stages from image file to RLE, and least times by the bytes of some."""
    import numpy as np

    from yolact_bench.measure.protocol import take_turns
    from yolact_bench.roofline.ceilings import ceilings

    _, runs = take_turns({"all": lambda: candidate.end_to_end([image])}, context.seconds, _RUNS)
    floors = {
        stage: 1000 * moved / ceilings().bandwidth for stage, moved in stage_bytes(candidate, image).items()
    }
    floors["network"] = graph.reached(ceilings(), precision=candidate.precision).floor_ms
    for stage in runs["all"][0].seconds:
        median = 1000 * float(np.median([run.seconds[stage] for run in runs["all"]]))
        figures[f"{stage} ms"] = _rounded(median)
        if stage in floors:
            figures[f"{stage} floor ms"] = _rounded(floors[stage])
    figures["detections"] = runs["all"][0].detections


def stage_bytes(candidate: EngineCandidate, image: Path) -> dict[str, int]:
    """Bytes that stages have to move for one image: what they read and write, once."""
    from yolact_runtime.sources.images import read_image

    picture = read_image(image)
    engine = candidate.engine
    height, width = engine.metadata.input_shape
    result = engine.predict([picture], 0.0, engine.metadata.max_detections)[0]
    masks = sum(region.width * region.height for region in result.regions) // 8
    prototypes = engine.detect(engine.prepare(picture)[None]).prototypes
    return {
        "preprocess": picture.nbytes + height * width * 3,
        "masks": prototypes[:1].nbytes + masks,
        "rle": masks + sum(len(one["counts"]) for one in result.rles),
    }


def _rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}") if math.isfinite(value) else 0.0


def measure_gpu(folder: Path) -> tuple[Ceilings, dict[str, float]]:
    """The ceilings of the first GPU and bytes per second of its bus, once for all stages that share a folder.

    Returns:
        Ceilings; without operations if PyTorch has no CUDA. And "upload" and "download".

    Raises:
        YolactError: no GPU or no driver.
    """
    from yolact_bench.roofline.ceilings import Ceilings, gpu_ceilings

    file = folder / "gpu-ceilings.json"
    if file.exists():
        stored = read_json(file)
        found: Ceilings = convert(stored["ceilings"], Ceilings, "ceilings")
        return found, stored["bus"]
    from yolact_runtime.cuda.device import Device
    from yolact_runtime.cuda.timing import bus_bandwidth, copy_bandwidth

    with Device() as device, device.current:
        upload, download = bus_bandwidth(device)
        copy, name = copy_bandwidth(device), device.gpu.name
    try:
        found = gpu_ceilings()
    except (YolactError, ImportError):
        found = Ceilings(name, None, {}, {}, copy, "")
    bus = {"upload": upload, "download": download}
    write_json(file, {"ceilings": asdict(found), "bus": bus})
    return found, bus


def ceiling_figures(found: Ceilings, bus: dict[str, float]) -> Figures:
    """The ceilings by name and unit."""
    figures: Figures = {"copy GB/s": found.bandwidth / 1e9}
    figures |= {f"{name} GB/s": rate / 1e9 for name, rate in bus.items()}
    return figures | {f"{kind} Top/s": rate / 1e12 for kind, rate in found.operations.items()}


def speed_figures(
    engine: Engine, onnx: Path | None, limits: Ceilings, bus: dict[str, float], seconds: float,
    folder: Path, batches: Sequence[int] = BATCHES,
) -> Figures:  # fmt: skip
    """Images per second of whole calls, GPU time of each stage with its floor, and the share of the roofline.

    Args:
        engine: Opened for one stream.
        onnx: The network as a file whose work can be counted; None if there is none.
        limits: Of the GPU.
        bus: Bytes per second of "upload" and "download".
        seconds: For each batch size.
        folder: Where the work is stored once it has been counted.
        batches: Those beyond the engine's are left out.
    """
    import numpy as np

    from yolact_bench.gpu_checks.inputs import make_images
    from yolact_bench.measure.protocol import take_turns

    figures: Figures = {"engine": engine.name, "precision": engine.precision}
    for batch in batches:
        if not engine.metadata.min_batch <= batch <= engine.metadata.max_batch:
            continue
        sets = [make_images(batch, seed, [IMAGE]) for seed in range(4)]
        endless = itertools.cycle(sets)
        tasks = {"call": lambda: engine.predict(next(endless), SCORE_THRESHOLD, TOP_K)}  # noqa: B023
        taken = take_turns(tasks, seconds)[0]["call"]
        ms = 1000 * float(np.median(taken))
        figures[f"batch {batch} ms"], figures[f"batch {batch} images/s"] = ms, 1000 * batch / ms
        stages = stage_milliseconds(engine, sets[0])
        floors = stage_floors(engine, batch, limits, bus)
        counted = _countable(folder, onnx, batch)
        if counted and limits.operations:
            reached = counted.reached(limits, stages.get("network", ms), _known(engine.precision))
            floors["network"] = reached.floor_ms
            figures[f"batch {batch} share of the roofline"] = reached.share or 0.0
        for stage, taken_ms in stages.items():
            figures[f"batch {batch} {stage} ms"] = taken_ms
            if stage in floors:
                figures[f"batch {batch} {stage} floor ms"] = floors[stage]
    return figures


def stage_milliseconds(engine: Engine, images: Sequence[np.ndarray]) -> dict[str, float]:
    """Median GPU time of each stage; empty if the engine does not report it."""
    import numpy as np

    stage_times = getattr(engine, "stage_times", None)
    if stage_times is None:
        return {}
    try:
        runs = [stage_times(images, SCORE_THRESHOLD, TOP_K) for _ in range(STAGE_RUNS)][2:]
    except YolactError:
        return {}
    return {stage: float(np.median([run[stage] for run in runs])) for stage in runs[0]}


def stage_floors(engine: Engine, batch: int, limits: Ceilings, bus: dict[str, float]) -> dict[str, float]:
    """Milliseconds that each stage needs at least for the bytes that no implementation can avoid."""
    meta = engine.metadata
    height, width = meta.input_shape
    pixels = batch * IMAGE[0] * IMAGE[1] * 3
    rows = batch * meta.max_detections * 4
    figures = {
        "upload": pixels / bus["upload"],
        "preprocess": (pixels + batch * height * width * 3) / limits.bandwidth,
        # Boxes, scores and classes; masks depend on what is found.
        "download": rows * (4 + 1 + 1) / bus["download"],
    }
    if meta.detect == "runtime" and meta.priors is not None:
        logits = batch * meta.priors.count * (len(meta.class_names) + 1)
        figures["detect"] = 2 * logits / limits.bandwidth  # in half precision
    return {stage: 1000 * taken for stage, taken in figures.items()}


def _countable(folder: Path, onnx: Path | None, batch: int) -> Roofline | None:
    """The work of a file; None if there is none, or it cannot be counted."""
    try:
        return _counted(folder, onnx, batch) if onnx else None
    except (YolactError, ImportError):
        return None


def _known(precision: str) -> Any:
    from yolact_bench.roofline.ceilings import PRECISIONS

    return precision if precision in PRECISIONS else None
