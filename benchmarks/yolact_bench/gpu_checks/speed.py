"""How fast a GPU is, and how near to that an engine comes: ceilings, stages with their floors, fps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_bench.gpu_checks.inputs import make_images
from yolact_bench.measure.protocol import take_turns
from yolact_bench.roofline.ceilings import Ceilings
from yolact_runtime import Engine
from yolact_runtime.errors import YolactError
from yolact_runtime.files import read_json, write_json
from yolact_runtime.typed import convert

if TYPE_CHECKING:
    from yolact_bench.roofline.graph import Roofline

Figures = dict[str, float | int | str]
IMAGE = (480, 640)
BATCHES = (1, 8)
STAGE_RUNS = 10  # the first two warm up
SCORE_THRESHOLD, TOP_K = 0.15, 100


def measure_gpu(folder: Path) -> tuple[Ceilings, dict[str, float]]:
    """The ceilings of the first GPU and bytes per second of its bus, once for all stages that share a folder.

    Returns:
        Ceilings; without operations if PyTorch has no CUDA. And "upload" and "download".

    Raises:
        YolactError: no GPU or no driver.
    """
    file = folder / "gpu-ceilings.json"
    if file.exists():
        stored = read_json(file)
        found: Ceilings = convert(stored["ceilings"], Ceilings, "ceilings")
        return found, stored["bus"]
    from yolact_bench.roofline.ceilings import gpu_ceilings
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
    batches: Sequence[int] = BATCHES,
) -> Figures:  # fmt: skip
    """Images per second of whole calls, GPU time of each stage with its floor, and the share of the roofline.

    Args:
        engine: Opened for one stream.
        onnx: The network as a file whose work can be counted; None if there is none.
        limits: Of the GPU.
        bus: Bytes per second of "upload" and "download".
        seconds: For each batch size.
        batches: Those beyond the engine's are left out.
    """
    figures: Figures = {"engine": engine.name, "precision": engine.precision}
    for batch in batches:
        if not engine.metadata.min_batch <= batch <= engine.metadata.max_batch:
            continue
        sets = [make_images(batch, seed, [IMAGE]) for seed in range(4)]
        endless = itertools.cycle(sets)
        tasks = {"call": lambda: engine.predict(next(endless), SCORE_THRESHOLD, TOP_K)}  # noqa: B023
        taken = take_turns(tasks, seconds)[0]["call"]
        ms = 1000 * float(np.median(taken))
        figures[f"batch {batch} ms"], figures[f"batch {batch} fps"] = ms, 1000 * batch / ms
        stages = stage_milliseconds(engine, sets[0])
        floors = stage_floors(engine, batch, limits, bus)
        counted = _roofline(onnx, batch)
        if counted and limits.operations:
            reached = counted.reached(limits, stages.get("network", ms), _known(engine.precision))
            floors["network"] = reached.floor_ms
            figures[f"batch {batch} share of the roofline"] = reached.share or 0.0
        for stage, time in stages.items():
            figures[f"batch {batch} {stage} ms"] = time
            if stage in floors:
                figures[f"batch {batch} {stage} floor ms"] = floors[stage]
    return figures


def stage_milliseconds(engine: Engine, images: Sequence[np.ndarray]) -> dict[str, float]:
    """Median GPU time of each stage; empty if the engine does not report it."""
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


def _roofline(onnx: Path | None, batch: int) -> Roofline | None:
    """The work of a file; None if there is none, or it cannot be counted."""
    if onnx is None:
        return None
    from yolact_bench.roofline.graph import roofline

    try:
        return roofline(onnx, batch)
    except (YolactError, ImportError):
        return None


def _known(precision: str) -> Any:
    from yolact_bench.roofline.ceilings import PRECISIONS

    return precision if precision in PRECISIONS else None
