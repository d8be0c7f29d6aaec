"""`yolact-bench overhead`: everything but the network, stage by stage.

The network runs once on each image, and its outputs are stored. Then a process runs the other stages on them,
again and again: no library of the network is in it, and its caches are warm, or emptied before each image by
`--cold`. `--against` adds a process with another version of the runtime. Both take turns, and must give the
same JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yolact_bench.options import check_number
from yolact_bench.overhead_worker import STAGES
from yolact_runtime.commandline import Table, print_line, printing_beside
from yolact_runtime.errors import UsageError, YolactError, counted
from yolact_runtime.files import write_json

_SCRIPT = Path(__file__).with_name("overhead_worker.py")
_RUNTIME = Path("yolact_runtime") / "results.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench overhead`."""
    text = "the network; options follow a colon as in --engine m.onnx:backend=openvino"
    parser.add_argument("--engine", required=True, metavar="E[:KEY=VALUE,...]", help=text)
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--max-images", type=int, default=12, metavar="N", help="use the first N images")
    parser.add_argument("--rounds", type=int, default=20, help="runs of all images")
    parser.add_argument("--threads", type=int, default=1, help="for NumPy's matrix products and OpenCV")
    parser.add_argument("--cold", action="store_true", help="empty the caches before each image")
    text = "folder with the yolact_runtime of another version, such as old/runtime of a git worktree"
    parser.add_argument("--against", metavar="FOLDER", help=text)
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")


def command(args: argparse.Namespace) -> int:
    """Print the medians of the stages; 1 if two versions give different JSON."""
    for name, high in (("max_images", 10**6), ("rounds", "runs"), ("threads", "threads")):
        check_number(f"--{name.replace('_', '-')}", getattr(args, name), 1, high)
    versions = {"now": Path(sys.modules["yolact_runtime"].__path__[0]).parent}
    if args.against is not None:
        versions["other"] = Path(args.against).absolute()
        if not (versions["other"] / _RUNTIME).is_file():
            raise UsageError(f"--against {args.against}: there is no {_RUNTIME} in it")
    with tempfile.TemporaryDirectory() as folder:
        detections = _store(args, Path(folder))
        with contextlib.ExitStack() as stack:
            workers = {
                name: stack.enter_context(_worker(path, Path(folder), args.threads))
                for name, path in versions.items()
            }
            rounds = _take_turns(workers, args.rounds, args.cold)
    figures = {name: _figures(some) for name, some in rounds.items()}
    same = len({one["rows"] for some in rounds.values() for one in some}) == 1
    with printing_beside(args.json):
        title = f"{detections:.0f} detections an image, {counted(args.threads, 'thread')}"
        _table(figures, f"{title}, {'cold' if args.cold else 'warm'} caches").show()
        if args.against is not None:
            print_line(f"the same JSON from both: {'yes' if same else 'NO'}", sys.stdout)
    if args.json:
        write_json(args.json, {"detections": detections, "same": same, **figures}, indent=2)
    return 0 if same else 1


def _store(args: argparse.Namespace, folder: Path) -> float:
    """Run the network on the images, and write its outputs; returns the mean number of detections."""
    import numpy as np

    from yolact_bench.measure.engines import parse_engine
    from yolact_runtime import load_engine
    from yolact_runtime.engines.outputs import GraphOutputs
    from yolact_runtime.sources.images import list_images, read_image

    images = list_images([args.images])[: args.max_images]
    spec = parse_engine(args.engine)
    returned: list[Any] = []

    class Recorded(GraphOutputs):
        def detections(self, values: Any, classes: Any = None) -> Any:
            returned.append([np.array(value) for value in values])
            return super().detections(values, classes)

    counts = []
    with load_engine(spec.path, **spec.options) as engine:
        outputs = getattr(engine, "_outputs", None)
        if not isinstance(outputs, GraphOutputs):
            raise UsageError(
                f"--engine {args.engine}: only ONNX and OpenVINO files on the CPU have stored outputs"
            )
        outputs.__class__ = Recorded
        for index, path in enumerate(images):
            image = read_image(path)
            counts.append(len(engine.predict([image], 0.0, engine.metadata.max_detections)[0]))
            np.savez(folder / f"{index}.npz", **dict(zip(outputs.names, returned.pop(), strict=True)))
        case = {"images": [str(path.absolute()) for path in images], "names": outputs.names}
        (folder / "case.json").write_text(json.dumps({**case, "props": engine.metadata.to_props()}))
    return sum(counts) / len(counts)


@contextlib.contextmanager
def _worker(runtime: Path, folder: Path, threads: int) -> Iterator[Any]:
    """A process with the runtime in a folder, as a function of its requests.

    Raises:
        YolactError: it ends, with the last line of its output.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, "PYTHONPATH": str(runtime), **dict.fromkeys(names, str(threads))}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, str(_SCRIPT), str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        )

        def ask(**request: Any) -> Any:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # the reason is reported below
                print(json.dumps(request), file=process.stdin, flush=True)
            if not (line := process.stdout.readline()):
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
                raise YolactError(f"the process with {runtime} ended: {last[0] if last else 'no message'}")
            return json.loads(line)

        try:
            yield ask
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError), process:  # which closes the pipes and waits
                pass


def _take_turns(workers: dict[str, Any], rounds: int, cold: bool) -> dict[str, list[Any]]:
    """The answers of each worker, one a round, after a round to warm up."""
    answers: dict[str, list[Any]] = {name: [] for name in workers}
    for turn in range(rounds + 1):
        order = list(workers) if turn % 2 else list(workers)[::-1]
        for name in order:
            answer = workers[name](cold=cold)
            if turn:
                answers[name].append(answer)
    return answers


def _figures(rounds: list[Any]) -> dict[str, Any]:
    """Milliseconds of each stage for an image: the median, and the quartiles, of the rounds' means."""
    import numpy as np

    found: dict[str, Any] = {"rows": rounds[0]["rows"]}
    for clock, key in (("cpu", "stages"), ("wall", "wall")):
        means = np.array([[np.mean(one[key][stage]) for stage in STAGES] for one in rounds]) * 1000
        means = np.concatenate([means, means.sum(axis=1, keepdims=True)], axis=1)  # (rounds, stages + 1)
        low, middle, high = np.percentile(means, (25, 50, 75), axis=0)
        found[clock] = {
            stage: {"median": middle[at], "low": low[at], "high": high[at]}
            for at, stage in enumerate((*STAGES, "all"))
        }
    return found


def _table(figures: dict[str, Any], title: str) -> Table:
    """Stages, with columns for each version."""
    rows = []
    for stage in (*STAGES, "all"):
        cells = [stage]
        for one in figures.values():
            cpu, wall = one["cpu"][stage], one["wall"][stage]
            quartiles = f"{cpu['low']:.2f} to {cpu['high']:.2f}"
            cells += [f"{cpu['median']:.2f}", quartiles, f"{wall['median']:.2f}"]
        rows.append(cells)
    columns = [""]
    for name in figures:
        columns += [f"{name}: CPU ms", "quartiles", "wall ms"]
    note = "Means of the images; medians and quartiles of the rounds."
    return Table(title, columns, rows, note, text_columns=1)
