"""`yolact-bench start`: what a start takes, from the command to the first image, phase by phase.

Each run is a process of its own. "new file" is the first start on a machine, with the trial in a child
process; "tried" one without compiled networks; "again" one with them. The runs are interleaved. CPU times
include child processes; wall times on a busy machine include the others' work.
"""

from __future__ import annotations

import argparse
import importlib.util
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
from yolact_runtime.commandline import Table
from yolact_runtime.errors import UsageError, YolactError, counted
from yolact_runtime.files import atomic_path, is_file
from yolact_runtime.untrusted import LIMITS

PEER = "import cv2, onnxruntime"
STATES = ("new file", "tried", "again")
# Variables that would change what is measured.
_REMOVED = ("YOLACT_TRUST_ENGINES", LIMITS["cache_bytes"].variable, "PYTHONDONTWRITEBYTECODE")
_MOST_SECONDS = 600
_NO_NETWORKS = {LIMITS["cache_bytes"].variable: "1"}
# What the installed script does; `python -m` would compile the module anew in each process.
_INFER = "from yolact_runtime.cli import program; program()"
# The phases between the imports and an engine that is ready, and the row of their sum.
_TO_OPEN = ("import library", "check file", "open")
_OPENED = "library to open"
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
    if importlib.util.find_spec("resource") is None:
        raise UsageError("yolact-bench start needs Linux or macOS: it measures the CPU time of processes")
    if "torch" in args.backends and not args.checkpoint:
        raise UsageError("--backends torch needs a checkpoint: --checkpoint FILE")
    for file in (args.engine, args.checkpoint, args.image):
        if file and not is_file(file):
            raise UsageError(f"{file} is not a file")
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
    commands: dict[str, list[tuple[float, float]]] = {}
    phases: dict[str, dict[str, list[list[float]]]] = {}
    for run in range(-1, args.runs):  # the first fills the caches of Python and of the disk
        commands.setdefault(f'python -c "{PEER}"', []).append(
            _in_state("peer", ["-c", PEER], folder / "peer")[1:]
        )
        for backend in args.backends:
            engine = args.checkpoint if backend == "torch" else args.engine
            path, threads = str(engine.resolve()), str(args.threads)
            named = [] if backend == "torch" else ["--backend", backend]
            infer = ["-c", _INFER, "--engine", path, str(image.resolve()), "--threads", threads]
            opened = ["-c", _PHASES, path, backend, threads]
            for state in ("again",) if backend == "torch" else STATES:
                times = _in_state(state, [*infer, *named], folder / f"infer {backend} {run}")
                commands.setdefault(f"yolact-infer, {backend}, {state}", []).append(times[1:])
                printed = _in_state(state, opened, folder / f"open {backend} {run}")[0]
                for name, lap in json.loads(printed).items():
                    phases.setdefault(f"{backend}, {state}", {}).setdefault(name, []).append(lap)
    for taken in commands.values():
        del taken[0]
    for laps in phases.values():
        for each in laps.values():
            del each[0]
    return {"commands": commands, "phases": phases}


def _in_state(state: str, words: Sequence[str], folder: Path) -> tuple[str, float, float]:
    """The result of `_run` with a cache folder that is new, or what one or two runs before left."""
    env = {"YOLACT_CACHE": str(folder / "cache")} | (_NO_NETWORKS if state == "tried" else {})
    folder.mkdir(exist_ok=True)
    if state == "again":
        _run(words, env, folder)
    return _run(words, env, folder)


def _run(words: Sequence[str], env: dict[str, str], folder: Path) -> tuple[str, float, float]:
    """Run Python in `folder`: what it prints, and its milliseconds of CPU (with its children) and wall."""
    import resource

    def cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    given = {name: value for name, value in os.environ.items() if name not in _REMOVED}
    env = given | {"PYTHONPYCACHEPREFIX": str(folder.parent / "pyc"), "OMP_NUM_THREADS": "1"} | env
    before, begin = cpu(), time.perf_counter()
    command = [sys.executable, *words]
    try:
        done = subprocess.run(
            command, env=env, cwd=folder, capture_output=True, text=True, check=False, timeout=_MOST_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise YolactError(f"{' '.join(words[:2])[:60]} takes more than {_MOST_SECONDS} seconds") from error
    wall = time.perf_counter() - begin
    if done.returncode:
        raise YolactError(f"{' '.join(words[:2])[:60]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout, 1000 * (cpu() - before), 1000 * wall


def _show(taken: dict[str, Any], args: argparse.Namespace) -> None:
    """Print both tables."""
    title = f"{args.engine.name}: medians of {counted(args.runs, 'run')}, {counted(args.threads, 'thread')}"
    commands = taken["commands"]
    peer = statistics.median(cpu for cpu, _ in next(iter(commands.values())))
    rows = []
    for name, times in commands.items():
        cpu, wall = zip(*times, strict=True)
        median = statistics.median(cpu)
        spread = f"{min(cpu):.0f} to {max(cpu):.0f}"
        rows.append([name, f"{median:.0f}", spread, f"{statistics.median(wall):.0f}", f"{median / peer:.2f}"])
    Table(title, ["command", "CPU ms", "low to high", "wall ms", "CPU / first"], rows).show()
    names = list(dict.fromkeys(name for laps in taken["phases"].values() for name in laps))
    rows = []
    for name in names:
        found = [laps.get(name) for laps in taken["phases"].values()]
        rows.append(
            [name, *(f"{statistics.median(cpu for cpu, _ in lap):.0f}" if lap else "-" for lap in found)]
        )
    rows.append([_OPENED, *(f"{_to_open(laps):.0f}" for laps in taken["phases"].values())])
    Table("CPU ms of this process, by phase", ["phase", *taken["phases"]], rows).show()


def _to_open(laps: dict[str, list[list[float]]]) -> float:
    """Median over the runs of the CPU milliseconds from the library's import to the opened engine."""
    each = [[cpu for cpu, _ in laps[name]] for name in _TO_OPEN if name in laps]
    return statistics.median(map(sum, zip(*each, strict=True)))
