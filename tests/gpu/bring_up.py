"""Everything to run on a GPU for the first time, in order of what it tells, into one folder.

    python tests/gpu/bring_up.py OUTPUT [--minutes 25] [--dataset FOLDER]

A step that fails or takes too long does not end the others. OUTPUT gets a log of each step, the JSON of each
measurement and summary.json; OUTPUT.tar.gz has all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import site
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "yolact_resnet50"
GRACE = 10  # seconds between SIGTERM and SIGKILL
NO_TIME = "no time left"
Entry = dict[str, object]


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Of its log.
        command: Words; the first is a program next to this Python, or one of the system.
        seconds: After so many it is ended.
    """

    name: str
    command: tuple[str, ...]
    seconds: int


def steps(output: Path, work: Path, dataset: Path | None) -> list[Step]:
    """The steps, best first.

    Args:
        output: Folder for results.
        work: Folder for checkpoints and engines.
        dataset: Folder in COCO layout for the training steps; left out without one.
    """
    pytest = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "300")
    kernels = ("yolact-bench", "kernels", "--config", CONFIG, "--batch", "1", "8", "32")
    # Its group gpu-engines is what test-engines does.
    parts = ("--only", "parts", "engines", "gpu", "kernels", "gpu-speed")
    make = (
        "from pathlib import Path; from yolact_bench.gpu_checks.networks import *;"
        f" print(make_engine(flavour('onnxruntime-cuda-{{}}'), Path({str(work)!r}), {CONFIG!r}))"
    )
    checkpoint = work / f"{CONFIG}_0_1.pth"
    found = [
        Step("gpu", ("nvidia-smi",), 20),
        Step("packages", ("python", "-m", "pip", "freeze"), 30),
        Step("test-kernels", (*pytest, "tests/gpu/test_kernels.py"), 200),
        Step("kernels", (*kernels, "--json", str(output / "kernels.json")), 140),
        Step("test-networks", (*pytest, "tests/gpu/test_networks.py"), 140),
        Step("export-native", ("python", "-c", make.format("native")), 80),
        Step("export-heads", ("python", "-c", make.format("runtime")), 80),
        Step(
            "engines",
            (
                *("yolact-bench", "--json", str(output / "engines.json"), "--batch", "1", "8", "--no-cold"),
                *("--engine", f"{checkpoint}:device=cuda,name=PyTorch"),
                *("--engine", f"{checkpoint}:device=cuda,precision=fp16,name=PyTorch half"),
                *(
                    word
                    for kind in ("native", "runtime")
                    for word in (
                        "--engine",
                        f"{work / f'{CONFIG}-onnxruntime-cuda-{kind}.onnx'}:backend=cuda,name=ORT {kind}",
                    )
                ),
            ),
            200,
        ),
        Step("ceilings", ("yolact-bench", "roofline", "--gpu", "--json", str(output / "ceilings.json")), 80),
        Step("kernels-half", (*kernels, "--half", "--json", str(output / "kernels-half.json")), 90),
        Step("test-engines", (*pytest, "-k", "onnxruntime or pytorch", "tests/gpu/test_engines.py"), 260),
        Step("doctor", ("yolact-doctor", *parts, "--report", str(output / "doctor"), "--limit", "100"), 180),
        Step("test-tensorrt", (*pytest, "-k", "tensorrt", "tests/gpu/test_engines.py"), 480),
    ]
    if dataset:
        training = ("yolact-bench", "training", "--dataset", str(dataset), "--config", CONFIG)
        training += ("--batch-size", "8", "--device", "cuda", "--seconds", "30")
        found += [
            Step("training-float32", (*training, "--json", str(output / "training-float32.json")), 150),
            Step(
                "training-bf16",
                (*training, "--set", "train.amp=bf16", "--json", str(output / "training-bf16.json")),
                150,
            ),
        ]
    return found


def environment() -> dict[str, str]:
    """With NVIDIA's libraries of all folders of packages: ONNX Runtime looks for them only next to itself."""
    folders = dict.fromkeys(path for path in [*sys.path, *site.getsitepackages()] if path)
    libraries = [str(found) for path in folders for found in sorted(Path(path).glob("nvidia/*/lib"))]
    before = os.environ.get("LD_LIBRARY_PATH")
    paths = [*([before] if before else []), *libraries]
    programs = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    more = {"PATH": os.pathsep.join(programs), "PYTHONUNBUFFERED": "1"}
    return os.environ | more | ({"LD_LIBRARY_PATH": os.pathsep.join(paths)} if paths else {})


def run(step: Step, output: Path, seconds: float) -> Entry:
    """Run one step for at most so many seconds; returns its entry in the summary."""
    log = output / f"{step.name}.log"
    start = time.monotonic()
    code: int | str
    with log.open("w") as file:
        file.write(f"$ {' '.join(step.command)}\n")
        file.flush()
        try:
            words = [sys.executable if word == "python" else word for word in step.command]
            child = subprocess.Popen(
                words, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
                env=environment(), start_new_session=True,
            )  # fmt: skip
            try:
                code = child.wait(seconds)
            except subprocess.TimeoutExpired:
                code = f"ended after {seconds:.0f} s"
            finally:
                _end(child)
        except OSError as error:
            code = str(error)
    return {
        "step": step.name, "command": list(step.command), "code": code,
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a step and all that it started; the doctor ends its stages, which are in groups of their own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def merge(file: Path, entries: Sequence[Entry]) -> None:
    """Write the entries of a call into the summary, where they replace those of earlier calls by name."""
    try:
        before = {entry["step"]: entry for entry in json.loads(file.read_text())}
    except (OSError, ValueError):
        before = {}
    for entry in entries:
        # A step that has run is not forgotten because there was no time for it once more.
        if entry["code"] != NO_TIME or entry["step"] not in before:
            before[entry["step"]] = entry
    file.write_text(json.dumps([*before.values()], indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 if every step passed, else 1."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("output", type=Path, help="folder for results")
    parser.add_argument("--minutes", type=float, default=25, help="for all steps together (default: 25)")
    parser.add_argument("--dataset", type=Path, help="folder in COCO layout, for training steps")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="these steps only")
    parser.add_argument("--list", action="store_true", help="print the steps, and run none")
    args = parser.parse_args(argv)
    output = args.output.resolve()
    work = output.with_name(output.name + "-work")
    dataset = args.dataset.resolve() if args.dataset else None
    chosen = steps(output, work, dataset)
    if unknown := sorted(set(args.only).difference(step.name for step in chosen)):
        parser.error(f"no step {unknown[0]!r}; there are {', '.join(step.name for step in chosen)}")
    chosen = [step for step in chosen if not args.only or step.name in args.only]
    if args.list:
        for step in chosen:
            print(f"{step.name:18} {step.seconds:4} s  {' '.join(step.command)}")
        return 0
    for folder in (output, work):
        folder.mkdir(parents=True, exist_ok=True)
    end, entries = time.monotonic() + 60 * args.minutes, list[Entry]()
    for step in chosen:
        left = min(step.seconds, end - time.monotonic())
        if left < 2:
            entries.append({"step": step.name, "command": list(step.command), "code": NO_TIME})
        else:
            entries.append(run(step, output, left))
        print(f"{step.name:18} {entries[-1]['code']!s:>8}  {entries[-1].get('seconds', 0):7} s", flush=True)
        # After each step: whoever ends this early has what was found until then.
        merge(output / "summary.json", entries)
        with tarfile.open(f"{output}.tar.gz", "w:gz") as archive:
            archive.add(output, output.name)
    return int(any(entry["code"] != 0 for entry in entries))


if __name__ == "__main__":
    raise SystemExit(main())
