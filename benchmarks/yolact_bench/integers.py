"""`yolact-bench int8`: what ONNX Runtime and OpenVINO compute in integers of ONNX files, and in which time.

Layers are counted in ONNX Runtime's own profile of a run, and in OpenVINO's compiled model. Then all files in
both libraries take turns on the same image. The first file is the one that the others are compared with.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_bench.options import check_number
from yolact_runtime.commandline import Table, print_line
from yolact_runtime.errors import counted
from yolact_runtime.packages import installed

if TYPE_CHECKING:
    import numpy as np

    from yolact_bench.measure.statistics import Interval
    from yolact_runtime import Engine

_BACKENDS = ("onnxruntime", "openvino")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench int8`."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".onnx files, float32 first")
    parser.add_argument("--image", type=Path, help="image to compute (default: a synthetic one)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=15, help="runs of each file in each library")


def command(args: argparse.Namespace) -> None:
    """Print the layers in integers and the times of each file in each library."""
    check_number("--threads", args.threads, 1, "threads")
    check_number("--rounds", args.rounds, 1, "runs")
    from yolact_bench.measure.machine import cpu_model
    from yolact_bench.measure.protocol import cpu_threads, sample_in_turns
    from yolact_bench.measure.statistics import paired_ratio
    from yolact_runtime import load_engine
    from yolact_runtime.engines.cpu import cpu_flags

    backends = [name for name in _BACKENDS if name == "onnxruntime" or installed(name)]
    tasks: dict[str, Callable[[], object]] = {}
    layers: dict[str, tuple[int, int]] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(cpu_threads(args.threads))
        for path in args.files:
            for backend in backends:
                engine = stack.enter_context(load_engine(path, backend=backend, threads=args.threads))
                batch = _batch(engine, args.image)
                name = f"{path} {backend}"
                layers[name] = _COUNTS[backend](path, batch)
                tasks[name] = partial(_detect, engine, batch)
        cpu = sample_in_turns(tasks, float("inf"), args.rounds, time.process_time_ns)
    rows = []
    for path in args.files:
        for backend in backends:
            name, base = f"{path} {backend}", f"{args.files[0]} {backend}"
            integers, products = layers[name]
            milliseconds = 1e3 * cpu[name].seconds
            ratio = paired_ratio(cpu[base].seconds, cpu[name].seconds)
            figures = f"{_median(milliseconds):.1f}", f"{milliseconds.min():.1f} to {milliseconds.max():.1f}"
            rows.append([path.name, backend, f"{integers} of {products}", *figures, _ratio_text(ratio)])
    features = sorted(cpu_flags() & {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"})
    title = f"{cpu_model()} ({', '.join(features)}), {counted(args.threads, 'thread')}, {args.rounds} rounds"
    columns = "file", "library", "layers in integers", "CPU ms, median", "from, to", "times as fast"
    Table(title, columns, rows, text_columns=2).show()
    print_line("layers: convolutions and matrix products; times as fast: as the first file", sys.stdout)


def _detect(engine: Engine, batch: np.ndarray) -> None:
    """Detect, and drop the result: results of all rounds would take gigabytes."""
    engine.detect(batch)


def _median(values: np.ndarray) -> float:
    import numpy as np

    return float(np.median(values))


def _ratio_text(ratio: Interval) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f}..{ratio.high:.2f})"


def _batch(engine: Engine, image: Path | None) -> np.ndarray:
    """The image as the smallest batch of the engine."""
    import numpy as np

    from yolact_runtime.preprocess import resize_batch
    from yolact_runtime.sources.images import read_image

    meta = engine.metadata
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    batch = resize_batch([noise if image is None else read_image(image)], meta.input_size, meta.input_dtype)
    return np.repeat(batch, meta.min_batch, axis=0)


def _count_onnxruntime(path: Path, batch: np.ndarray) -> tuple[int, int]:
    """Layers in integers, and all, in the profile of a run."""
    import onnxruntime

    from yolact_runtime.engines.onnxruntime import count_products

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run(None, {"images": batch})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    return count_products(event["args"]["op_name"] for event in kernels)


def _count_openvino(path: Path, _: np.ndarray) -> tuple[int, int]:
    """Layers in integers, and all, in the compiled model."""
    from yolact_runtime.engines.openvino import count_precisions, read_model, shared_core

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    counts = count_precisions(shared_core().compile_model(read_model(path)[0], "CPU", settings))
    return counts["i8"] + counts["u8"], sum(counts.values())


_COUNTS = {"onnxruntime": _count_onnxruntime, "openvino": _count_openvino}
