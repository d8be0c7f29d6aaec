"""`yolact-bench start`: what a start takes, from the command to the first image, phase by phase.

Each run is a process of its own, with a cache folder of its own: "new file" is the first start on a machine, with the
trial in a child process, "tried" one without compiled networks, "again" one with them. The runs are interleaved.
CPU times include child processes; wall times on a busy machine include the others' work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolact_bench.options import check_number
from yolact_runtime.commandline import Table, print_line
from yolact_runtime.errors import YolactError, counted
from yolact_runtime.files import atomic_path
from yolact_runtime.untrusted import LIMITS

PEER = "import cv2, onnxruntime"
STATES = ("new file", "tried", "again")
_NO_NETWORKS = {LIMITS["cache_bytes"].variable: "1"}
# Opens an engine and runs it twice; prints the CPU and wall milliseconds of each phase.
_PHASES = """
import json, sys, time
path, backend, threads = sys.argv[1:4]
laps = {}
def lap(name, marks=[time.process_time(), time.perf_counter()]):
    now = time.process_time(), time.perf_counter()
    laps[name] = [1000 * (new - old) for new, old in zip(now, marks)]
    marks[:] = time.process_time(), time.perf_counter()
import numpy as np
from yolact_runtime.engines import load
lap("import")
library = {"openvino": "openvino", "onnxruntime": "onnxruntime", "torch": "torch"}[backend]
__import__(library)
lap("import library")
if backend != "torch":
    from pathlib import Path
    from yolact_runtime.engines.trial import try_engine
    try_engine(Path(path), backend)
    lap("check file")
engine = load.load_engine(path, threads=int(threads), **({} if backend == "torch" else {"backend": backend}))
lap("open")
image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
for name in ("first image", "second image"):
    engine.predict([image])
    lap(name)
print(json.dumps(laps))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench start`."""
    parser.add_argument("--engine", required=True, type=Path, metavar="E", help="an ONNX or OpenVINO file")
    parser.add_argument("--backends", nargs="+", default=["onnxruntime", "openvino"], metavar="NAME",
        choices=("onnxruntime", "openvino", "torch"), help="backends; torch opens --checkpoint")  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="a checkpoint, for backend torch")
    parser.add_argument("--image", type=Path, metavar="FILE", help="image (default: a synthetic one)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the engine")
    parser.add_argument("--runs", type=int, default=5, help="processes for each row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times to this file")


def command(args: argparse.Namespace) -> int:
    """Print the medians of each command and of each phase."""
    check_number("--runs", args.runs, 1, "runs")
    check_number("--threads", args.threads, 1, "threads")
    with tempfile.TemporaryDirectory(prefix="yolact-start-") as folder:
        image = args.image or _image(Path(folder) / "image.png")
        taken = _measure(args, Path(folder), image)
    _show(taken, args)
    if args.json:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(taken, indent=1) + "\n", encoding="utf-8")
    return 0


def _image(path: Path) -> Path:
    import cv2
    import numpy as np

    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8))
    return path


def _measure(args: argparse.Namespace, folder: Path, image: Path) -> dict[str, Any]:
    """Milliseconds of CPU and wall of each run, by row: of commands, and of the phases of an engine."""
    commands: dict[str, list[list[float]]] = {}
    phases: dict[str, dict[str, list[list[float]]]] = {}
    for run in range(-1, args.runs):  # the first fills the caches of Python and of the disk
        _, *peer = _run(["-c", PEER], {}, folder)
        commands.setdefault(f'python -c "{PEER}"', []).append(peer)
        for backend in args.backends:
            engine = args.checkpoint if backend == "torch" else args.engine
            if engine is None:
                raise YolactError("backend torch needs --checkpoint")
            cache = {"YOLACT_CACHE": str(folder / f"cache {backend} {run}")}
            options = [] if backend == "torch" else ["--backend", backend]
            infer = [
                *("-m", "yolact_runtime.cli", "--quiet", "--engine", str(engine.resolve()), str(image.resolve())),
                *("--threads", str(args.threads), *options),
            ]
            for state in STATES[: 1 if backend == "torch" else 3]:
                # The phases first: without an entry for this state, they fill the cache.
                more = cache | (_NO_NETWORKS if state != "again" else {})
                if state == "again":
                    _run(infer, more, folder)
                _, *figures = _run(infer, more, folder)
                commands.setdefault(f"yolact-infer, {backend}, {state}", []).append(figures)
            for state in STATES[: 1 if backend == "torch" else 3]:
                more = {"YOLACT_CACHE": f"{cache['YOLACT_CACHE']} {state != 'new file'}"}
                more |= _NO_NETWORKS if state == "tried" else {}
                words = ["-c", _PHASES, str(engine.resolve()), backend, str(args.threads)]
                if state == "tried":
                    _run(words, {"YOLACT_CACHE": more["YOLACT_CACHE"]}, folder)
                printed, *_ = _run(words, more, folder)
                for name, times in json.loads(printed).items():
                    phases.setdefault(f"{backend}, {state}", {}).setdefault(name, []).append(times)
    for rows in (commands, *phases.values()):
        for row in rows.values():
            del row[0]
    return {"commands": commands, "phases": phases}


def _run(words: Sequence[str], env: dict[str, str], folder: Path) -> tuple[str, float, float]:
    """Run Python in `folder`: what it prints, and its milliseconds of CPU (with its children) and wall."""
    import resource

    def cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "pyc"), "OMP_NUM_THREADS": "1"} | env
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once
    before, begin = cpu(), time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=env, cwd=folder, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - begin
    if done.returncode:
        raise YolactError(f"{' '.join(words[:2])[:60]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout, 1000 * (cpu() - before), 1000 * wall


def _show(taken: dict[str, Any], args: argparse.Namespace) -> None:
    commands = taken["commands"]
    peer = statistics.median(cpu for cpu, _ in next(iter(commands.values())))
    table = Table(
        ["command", "CPU ms", "low to high", "wall ms", "times the peer's CPU"],
        title=f"{args.engine.name}: medians of {counted(args.runs, 'run')}, {counted(args.threads, 'thread')}",
    )
    for name, row in commands.items():
        cpu, wall = ([times[index] for times in row] for index in (0, 1))
        median = statistics.median(cpu)
        spread = f"{min(cpu):.0f} to {max(cpu):.0f}"
        table.add_row([name, f"{median:.0f}", spread, f"{statistics.median(wall):.0f}", f"{median / peer:.2f}"])
    print_line(table)
