"""Run a command on a hostile input in a child process, and judge how it ends.

`python tests/fuzz/judge.py FOLDER` repeats an input that was saved as a finding.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 20.0
MEMORY = 2_400_000_000
LINES = 3000  # of messages, and one for each entry of a list on standard input
LINE_LENGTH = 3000
# Importing onnxruntime and openvino starts threads, which a fork would lose: each child does that for itself.
LIGHT = (
    "yolact_runtime.infer",
    "yolact_runtime.engines.onnxruntime",
    "yolact_runtime.engines.openvino",
    "pycocotools.coco",
    "rich.table",
    "rich.progress",
    "yaml",
    "onnx",
)
TORCH = (
    *LIGHT,
    "torch",
    "torchvision",
    "torch._dynamo",
    "safetensors.torch",
    "yolact.cli.train",
    "yolact.cli.evaluate",
    "yolact.cli.data",
    "yolact.train.loop",
    "yolact.evaluation.evaluate",
    "yolact.dataset_tools.check",
    "yolact.dataset_tools.convert",
    "yolact.dataset_tools.show",
    "yolact_export.cli",
    "yolact_export.stages",
    "yolact_export.inspection",
    "yolact_bench.cli",
    "yolact_bench.report.compare",
    "scipy.stats",
)
COMMANDS = {
    "yolact-train": "yolact.cli.train",
    "yolact-eval": "yolact.cli.evaluate",
    "yolact-data": "yolact.cli.data",
    "yolact-export": "yolact_export.cli",
    "yolact-infer": "yolact_runtime.cli",
    "yolact-bench": "yolact_bench.cli",
}
_TRACEBACK = re.compile(
    r"Traceback \(most recent call last\)|^Exception (in|ignored)|Fatal Python error", re.M
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufffd]")
_OWN_LINE = re.compile(r"(INFO|WARNING|ERROR): |usage: | {2,}|yolact-\w+( \w+)?: error: |$")
# Decoders that print by themselves, without a way to have them silent.
_DECODER_LINE = re.compile(
    r"libpng (error|warning): |Corrupt JPEG data: |Premature end of JPEG|Invalid SOS param"
    r"|Inconsistent progression|Unknown Adobe color|Warning: unknown JFIF|Unsupported marker type"
)


@dataclass
class Verdict:
    """How a run ended.

    Attributes:
        faults: What is wrong, the worst first; empty if all is right.
        code: Exit code; negative for a signal.
        seconds: Duration.
        memory: Most bytes of its own in memory at a time, above the process that it was forked from.
        tail: Last lines of standard error.
    """

    faults: list[str] = field(default_factory=list)
    code: int = 0
    seconds: float = 0.0
    memory: int = 0
    tail: str = ""


def hashes(folder: Path) -> dict[str, str]:
    """A digest of each file, link and other entry below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            digest = str(path.readlink()) if stat.S_ISLNK(mode) else oct(stat.S_IFMT(mode))
        found[str(path.relative_to(folder))] = digest
    return found


class Judge:
    """Starts a server, which forks for each input; two servers, as PyTorch makes a fork slow.

    A run's folder holds `in`, which no command may change, `out` for results, `cache`, `home` and `tmp`.
    """

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY):
        self.seconds = seconds
        self.memory = memory
        self._servers: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            assert server.stdin and server.stdout
            server.stdin.close()
            server.wait()
            server.stdout.close()

    def run(
        self,
        folder: Path,
        argv: Sequence[str],
        stdin: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Verdict:
        """Run a command, and judge it.

        Args:
            folder: The run's folder, with `in`.
            argv: Command and arguments; `module:function` calls a function with them.
            stdin: File in the folder for standard input.
            environ: More environment variables.
        """
        for name in ("out", "tmp", "cache", "home"):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        before, around = hashes(folder / "in"), {path.name for path in folder.iterdir()}
        # Canary: what is next to the run's folder stays.
        canary = folder.parent / "canary.txt"
        canary.write_text("not yours")
        beside = {path.name for path in folder.parent.iterdir()}
        verdict = self._ask(
            {"folder": str(folder), "argv": list(argv), "stdin": stdin, "environ": dict(environ or {})}
        )
        faults = verdict.faults
        if hashes(folder / "in") != before:
            faults.append("inputs changed")
        new = {path.name for path in folder.iterdir()} - around - {"stdout", "stderr"}
        new |= {path.name for path in folder.parent.iterdir()} - beside
        if new or not canary.exists() or canary.read_text() != "not yours":
            faults.append(f"written elsewhere: {sorted(new)}")
        # ONNX Runtime writes one.
        if left := [path.name for path in (folder / "tmp").iterdir() if path.name != ".ses"]:
            faults.append(f"left in the temporary folder: {left[:3]}")
        for path in sorted((folder / "out").rglob("*")):
            if path.name.startswith("."):
                faults.append(f"hidden file left: {path.name[:60]}")
            elif path.suffix == ".json" and path.is_file() and not _is_json(path):
                faults.append(f"output is no JSON: {path.name}")
        return verdict

    def _ask(self, order: dict[str, Any]) -> Verdict:
        torch = not order["argv"][0].startswith("yolact-infer") or any(
            word.endswith((".pth", ".safetensors")) for word in order["argv"]
        )
        kind = "torch" if torch else "light"
        server = self._servers.get(kind)
        if server is None or server.poll() is not None:
            server = self._servers[kind] = self._start(kind)
        assert server.stdin and server.stdout
        order |= {"seconds": self.seconds, "memory": self.memory}
        server.stdin.write(json.dumps(order).encode() + b"\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        if not answer:
            return Verdict([f"the server ended ({server.wait()})"])
        return Verdict(**json.loads(answer))

    def _start(self, kind: str) -> subprocess.Popen[bytes]:
        environ = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MPLBACKEND": "agg",
            "OPENCV_LOG_LEVEL": "OFF",  # set by all commands, before they import OpenCV
            "PYTHONFAULTHANDLER": "",
            "CUDA_VISIBLE_DEVICES": "",
            "YOLACT_TRUST_ENGINES": "",  # which the other tests do
        }
        return subprocess.Popen(
            [sys.executable, __file__, "--serve", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
            start_new_session=True,
        )


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def judge_text(code: int, out: bytes, err: bytes, entries: int = 0) -> list[str]:
    """What is wrong with an exit code and what was printed about a list of so many entries."""
    faults = []
    if code < 0:
        faults.append(f"signal {signal.Signals(-code).name}")
    elif code not in (0, 1, 2):
        faults.append(f"exit code {code}")
    try:
        text, shown = err.decode(), out.decode()
    except UnicodeDecodeError:
        return [*faults, "output is not UTF-8"]
    if _TRACEBACK.search(text):
        lines = [line for line in text.strip().splitlines() if line and not line.startswith(" ")]
        return [*faults, f"traceback: {lines[-1][:160]}"]
    if match := _CONTROLS.search(text.replace("\n", "") + shown.replace("\n", "").replace("\r", "")):
        faults.append(f"control character {match[0]!r} printed")
    lines = text.splitlines()
    if len(lines) > LINES + entries:
        faults.append(f"{len(lines)} lines of messages")
    if longest := max((line for line in lines if len(line) > LINE_LENGTH), key=len, default=""):
        faults.append(f"a line of {len(longest)} characters: {longest[:60]}")
    if stray := [line for line in lines if not (_OWN_LINE.match(line) or _DECODER_LINE.match(line))]:
        faults.append(f"stray line: {stray[0][:120]}")
    errors = [line for line in lines if line.startswith("ERROR: ")]
    if code > 0 and not text.strip() and not shown.strip():
        faults.append("failed without a word")
    if code == 0 and errors:
        faults.append(f"an error, and exit code 0: {errors[0][:120]}")
    return faults


# The server


def serve(kind: str) -> None:
    """Import the readers, then fork for each order on standard input until it ends."""
    for name in TORCH if kind == "torch" else LIGHT:
        importlib.import_module(name)
    for name in ("av", "pillow_heif") if kind == "light" else ():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import cv2

    cv2.setNumThreads(1)
    if kind == "torch":
        import torch

        torch.set_num_threads(1)
    import gc

    gc.freeze()
    orders, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    while line := orders.readline():
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(order)
        verdict = _watch(pid, order)
        answers.write(json.dumps(asdict(verdict)).encode() + b"\n")
        answers.flush()


def _become(order: dict[str, Any]) -> None:
    """Be the command: its streams, folder and environment; never returns."""
    folder = Path(order["folder"])
    os.setsid()
    os.chdir(folder / "out")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    stdin = folder / order["stdin"] if order["stdin"] else os.devnull
    os.dup2(os.open(stdin, os.O_RDONLY), 0)
    os.dup2(os.open(folder / "stdout", flags, 0o600), 1)
    os.dup2(os.open(folder / "stderr", flags, 0o600), 2)
    sys.stdin = os.fdopen(0, "r", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    os.environ.update(
        HOME=str(folder / "home"),
        YOLACT_CACHE=str(folder / "cache"),
        TMPDIR=str(folder / "tmp"),
        **order["environ"],
    )
    tempfile.tempdir = None
    code: object = 1
    command, *argv = order["argv"]
    sys.argv = order["argv"]
    try:
        module, _, function = COMMANDS.get(command, command).partition(":")
        code = getattr(importlib.import_module(module), function or "main")(argv)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
    _leave(code if isinstance(code, int) else int(code is not None))


def _leave(code: int) -> None:
    """End as the interpreter does, without the second that freeing PyTorch's modules takes."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _watch(pid: int, order: dict[str, Any]) -> Verdict:
    """Wait for the child within its limits."""
    start = time.monotonic()
    base = _resident(pid)
    why, peak = "", 0
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):  # Python before 3.9, old kernels
        handle = -1
    while True:
        if handle >= 0:
            select.select([handle], [], [], 0.02)
        else:
            time.sleep(0.005)
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        peak = max(peak, _resident(pid) - base)
        if peak > order["memory"]:
            why = f"more than {order['memory'] >> 20} MiB of memory"
        elif time.monotonic() - start > order["seconds"] * _share():
            why = f"still running after {time.monotonic() - start:.0f} s"
        if why:
            _kill(pid)
            _, status, usage = os.wait4(pid, 0)
            break
    if handle >= 0:
        os.close(handle)
    seconds = time.monotonic() - start
    peak = max(peak, usage.ru_maxrss * 1024 - base)
    orphans = _kill(pid, wait=3)
    code = os.waitstatus_to_exitcode(status)
    folder = Path(order["folder"])
    out, err = (folder / "stdout").read_bytes(), (folder / "stderr").read_bytes()
    listed = (folder / order["stdin"]).read_bytes() if order["stdin"] else b""
    entries = max(listed.count(b"\n"), listed.count(b"\0"))
    faults = [why] if why else judge_text(code, out, err, entries)
    if not why and peak > order["memory"]:
        faults.append(f"more than {order['memory'] >> 20} MiB of memory")
    if orphans and not why:
        faults.append("left a process behind")
    return Verdict(faults, code, round(seconds, 2), peak, err[-600:].decode(errors="replace"))


def _share() -> float:
    """How much longer all takes on this machine, as others use it as well."""
    return min(6.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


def _kill(pid: int, wait: float = 0) -> bool:
    """End the session of a child, which may have children of its own; whether any still ran.

    Importing OpenVINO starts a process that ends by itself after a moment.
    """
    end, alive = time.monotonic() + wait, False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while True:
            os.killpg(pid, 0)
            alive = any(_runs_in(pid, entry) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
            if not alive or time.monotonic() > end:
                break
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)
        return alive
    return False


def _runs_in(session: int, entry: Path) -> bool:
    """Whether a process of /proc is of a session, and more than an entry that its parent did not collect."""
    try:
        state, _, _, number = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
    except (OSError, ValueError):
        return False
    return int(number) == session and state not in "ZX"


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def repeat(finding: Path) -> Verdict:
    """Run a saved finding again, in a copy of its folder."""
    order = json.loads((finding / "order.json").read_text())
    with tempfile.TemporaryDirectory() as name, Judge() as judge:
        folder = Path(shutil.copytree(finding, Path(name) / "work" / "run"))
        argv = [word.replace("{run}", str(folder)) for word in order["argv"]]
        print(shlex.join(argv))
        return judge.run(folder, argv, order["stdin"], order["environ"])


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        verdict = repeat(Path(sys.argv[1]).resolve())
        print(json.dumps(asdict(verdict), indent=1))
        sys.exit(bool(verdict.faults))
