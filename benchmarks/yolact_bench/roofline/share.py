"""Which share of the device's roofline an engine reached, for a report."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yolact_bench.roofline.ceilings import ceilings, gpu_ceilings
from yolact_runtime.errors import YolactError, missing_extra

log = logging.getLogger(__name__)


def roofline_share(
    path: str | Path,
    batch: int,
    measured_ms: float,
    gpu: bool = False,
    threads: int | None = None,
    precision: str | None = None,
) -> dict[str, Any] | None:
    """Operations, bytes, ceilings and share of one engine.

    Args:
        path: The engine's file; only graphs in ONNX files can be counted.
        batch: Images in a call.
        measured_ms: Median of a call, the engine alone.
        gpu: Under the ceilings of the first GPU instead of the CPU's.
        threads: CPU threads that the engine used; None for all cores.
        precision: What the engine really computes in; None for what the graph says.

    Returns:
        {"batch", "precision", "flops", "bytes", "ceilings": {"device", "threads", "flops_per_second" by type,
        "bytes_per_second"}, "compute_ms", "memory_ms", "floor_ms", "kernels_ms", "measured_ms", "share",
        "kernels_share"}; None, and a warning, for other files and for graphs that cannot be counted.
    """
    if Path(path).suffix.lower() != ".onnx":
        log.warning("no roofline of %s: only ONNX files can be counted", path)
        return None
    try:
        from yolact_bench.roofline.graph import roofline
    except ModuleNotFoundError as error:
        raise missing_extra(f"--roofline (no module {error.name!r})", "train") from error
    try:
        graph = roofline(path, batch)
        limits = gpu_ceilings() if gpu else ceilings(threads)
        reached = graph.reached(limits, measured_ms, precision)
    except YolactError as error:
        log.warning("no roofline of %s: %s", path, error)
        return None
    return {
        "batch": batch,
        "precision": precision,
        "flops": sum(graph.operations.values()),
        "bytes": graph.work.floor.bytes,
        "ceilings": {
            "device": limits.device,
            "threads": limits.threads,
            "flops_per_second": dict(limits.operations),
            "bytes_per_second": limits.bandwidth,
        },
        **asdict(reached),
    }
