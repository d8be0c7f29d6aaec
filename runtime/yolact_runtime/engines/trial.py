"""Opens and runs a file for the first time in a child process, because libraries do not survive every file.

Damaged or hostile files make OpenVINO crash or hang, and make OpenVINO and ONNX Runtime fill the memory. In a
child process with limits, that is an error of one line. Files that passed are remembered by their hash in the
user's cache folder. Files written by yolact-export on this machine count as passed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolact_runtime.cache import Cache
from yolact_runtime.child import limit_process, module_command
from yolact_runtime.engines.backends import BACKENDS
from yolact_runtime.engines.content import content_files, content_hashes
from yolact_runtime.engines.threads import usable_cores
from yolact_runtime.errors import UsageError, YolactError, first_line, lacks_memory
from yolact_runtime.packages import skip_openvino_tools
from yolact_runtime.untrusted import LIMITS, MIB, beyond, limit

log = logging.getLogger(__name__)

# If "1", engines are opened without a trial.
TRUST = "YOLACT_TRUST_ENGINES"
# Backends that are tried, and the one that is tried for them: a graph is the same on any device.
TRIED = {"onnxruntime": "onnxruntime", "cuda": "onnxruntime", "openvino": "openvino"}
# The onnx package, which runs nothing but infers shapes: a graph can be made to fill the memory there.
SHAPES = "onnx"
_TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", SHAPES: "onnx"}
_PASSED = Cache("engines", "the trial of an engine", "it is tried again", log.debug)
_MOST_THREADS = 4
# How many times the seconds of computing it may take in all.
_WAIT = 4
# The exit code of a process that has computed for too long.
_TOO_LONG = -getattr(signal, "SIGXCPU", 1 << 20)


def try_engine(path: Path, backend: str) -> None:
    """Open a file and run it once in a child process, unless it has passed that before.

    The limits in `untrusted.LIMITS` are `engine_bytes` of memory, and twice the size of the file, and
    `engine_seconds` of computing, or four times that in all, as other programs compute as well. Nothing is
    tried if `YOLACT_TRUST_ENGINES` is 1, or in a program that is frozen to one file, without interpreter.

    Args:
        path: An ONNX or OpenVINO file.
        backend: One of `TRIED`, or `SHAPES`.

    Raises:
        YolactError: `check_onnx` refuses it, it cannot be opened, or the library crashes, hangs or needs too
            much memory.
    """
    files = content_files(path)
    size = sum(file.stat().st_size for file in files)
    if size > limit("engine_file_bytes"):  # which would be hashed for minutes
        raise YolactError(f"{path}: its files have {size:,} bytes, more than {beyond('engine_file_bytes')}")
    if os.environ.get(TRUST) == "1" or getattr(sys, "frozen", False) or not sys.executable:
        return
    backend = TRIED.get(backend, backend)
    inputs = content_hashes(files)
    if _PASSED.read(backend, inputs, bool):
        return
    most = limit("engine_bytes") + 2 * size
    result = _run(path, backend, most)
    if "error" in result:
        kind = UsageError if result.get("usage") else YolactError
        raise kind(str(result["error"]))
    # It may have been replaced before it was tried. Who can put it back as well can also replace it later.
    if result.get("passed") and content_hashes(content_files(path), again=True) == inputs:
        _PASSED.write(backend, inputs, True)


def remember(path: Path) -> None:
    """Count a file that an export has just written as tried with all backends."""
    suffix = path.suffix.lower().removeprefix(".")
    inputs = content_hashes(content_files(path))
    for backend in _TITLES:
        if suffix in (BACKENDS[backend].suffixes if backend in BACKENDS else (SHAPES,)):
            _PASSED.write(backend, inputs, True)


def _run(path: Path, backend: str, most: int) -> dict[str, Any]:
    """Try a file in a child process with `most` bytes of memory; its result.

    Raises:
        YolactError: it crashes, or takes too long.
    """
    import subprocess  # which files that have passed do without

    words = str(path), backend, str(most)
    # Each thread of OpenBLAS would allocate memory when NumPy is imported.
    # What the library compiles there is not kept: this process compiles what it has hashed.
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", LIMITS["cache_bytes"].variable: "1"}
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # what a crash leaves there goes with the folder
            folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            env["TMPDIR"] = stack.enter_context(folder)
        child = subprocess.Popen(
            module_command("yolact_runtime.engines.trial", *words),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env,
        )  # fmt: skip
        try:
            output, _ = child.communicate(timeout=_WAIT * limit("engine_seconds"))
            code = child.returncode
        except subprocess.TimeoutExpired:
            output, code = b"", _TOO_LONG
        finally:
            child.kill()
            child.wait()
    if code == _TOO_LONG:
        raise YolactError(
            f"{path}: {_TITLES[backend]} needs more seconds to open and run it once than"
            f" {beyond('engine_seconds')}; if the file is damaged, copy or export it again"
        )
    if code or not output:
        raise YolactError(
            f"{path}: {_TITLES[backend]} crashes on it{_signal(code)}, with {most // MIB:,} MiB of memory"
            " (YOLACT_MAX_ENGINE_BYTES sets another limit); copy or export it again"
        )
    result: dict[str, Any] = json.loads(output)
    return result


def _signal(code: int) -> str:
    """The signal of a child's exit code, in parentheses."""
    with contextlib.suppress(ValueError):
        return f" (signal {-code}, {signal.Signals(-code).name})"
    return f" (exit code {code})"


def main(path: str, backend: str, most: str) -> None:
    """The child process: open a file, run it once on noise, and write the result to standard output."""
    output = os.dup(1)
    with open(os.devnull, "w") as nothing:  # noqa: PTH123 - for what libraries print
        os.dup2(nothing.fileno(), 1)
    skip_openvino_tools()
    result = _try(Path(path), backend, int(most))
    os.write(output, json.dumps(result).encode())
    # Libraries may crash or wait when they are unloaded.
    os._exit(0)


def _try(path: Path, backend: str, most: int) -> dict[str, Any]:
    """Open and run a file within limits; what `try_engine` needs to know."""
    threads = min(usable_cores(), _MOST_THREADS)
    limit_process(most, limit("engine_seconds"))  # also if the parent is killed
    try:
        _open_and_run(path, backend, threads)
    except ImportError:
        return {}  # this process reports what is missing
    except UsageError as error:
        return {"error": str(error), "usage": True}
    except Exception as error:
        known = isinstance(error, YolactError)
        text = str(error) if known else f"{path}: {type(error).__name__}: {first_line(error)}"
        if lacks_memory(error):
            text = (
                f"{path}: {_TITLES[backend]} needs more than {most // MIB:,} MiB of memory to open and run it"
                " once (YOLACT_MAX_ENGINE_BYTES sets another limit); if the file is damaged, export it again"
            )
        return {"error": text}
    return {"passed": True}


def _open_and_run(path: Path, backend: str, threads: int) -> None:
    """Open a file with an engine's class and run it on noise, or infer its shapes."""
    if backend == SHAPES:
        import onnx

        onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
        return
    import numpy as np

    from yolact_runtime.detections import check_detections

    module, _, attribute = BACKENDS[backend].opener.partition(":")
    engine = getattr(importlib.import_module(module), attribute)(path, threads=threads)
    meta = engine.metadata
    shape: Sequence[int] = (meta.min_batch, *meta.input_shape, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    check_detections(engine.detect(noise.astype(meta.input_dtype, copy=False)), len(noise), meta)


if __name__ == "__main__":
    main(*sys.argv[1:])
