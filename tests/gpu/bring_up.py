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
    make = (
        "from pathlib import Path; from yolact_bench.gpu_checks.networks import *;"
        f" print(make_engine(flavour('onnxruntime-cuda-{{}}'), Path({str(work)!r}), {CONFIG!r}))"
    )
    checkpoint = work / f"{CONFIG}_0_1.pth"
    found = [
        Step("gpu", ("nvidia-smi",), 30),
        Step("packages", ("python", "-m", "pip", "freeze"), 60),
        Step("test-kernels", (*pytest, "tests/gpu/test_kernels.py"), 240),
        Step("doctor", ("yolact-doctor", "--report", str(output / "doctor"), "--limit", "560"), 660),
        Step("kernels", (*kernels, "--json", str(output / "kernels.json")), 180),
        Step("kernels-half", (*kernels, "--half", "--json", str(output / "kernels-half.json")), 120),
        Step("test-networks", (*pytest, "tests/gpu/test_networks.py"), 180),
        Step("test-engines", (*pytest, "tests/gpu/test_engines.py"), 480),
        Step("ceilings", ("yolact-bench", "roofline", "--gpu", "--json", str(output / "ceilings.json")), 90),
        Step("export-native", ("python", "-c", make.format("native")), 180),
        Step("export-heads", ("python", "-c", make.format("runtime")), 180),
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
            240,
        ),
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


def run(step: Step, output: Path, seconds: float) -> dict[str, object]:
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
            finally:  # also what the step started
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        except OSError as error:
            code = str(error)
    return {
        "step": step.name, "command": list(step.command), "code": code,
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


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
    end, entries = time.monotonic() + 60 * args.minutes, []
    for step in chosen:
        left = min(step.seconds, end - time.monotonic())
        if left < 2:
            entries.append({"step": step.name, "command": list(step.command), "code": "no time left"})
        else:
            entries.append(run(step, output, left))
        print(f"{step.name:18} {entries[-1]['code']!s:>8}  {entries[-1].get('seconds', 0):7} s", flush=True)
        # After each step: whoever ends this early has what was found until then.
        (output / "summary.json").write_text(json.dumps(entries, indent=1))
        with tarfile.open(f"{output}.tar.gz", "w:gz") as archive:
            archive.add(output, output.name)
    return int(any(entry["code"] != 0 for entry in entries))


if __name__ == "__main__":
    raise SystemExit(main())
