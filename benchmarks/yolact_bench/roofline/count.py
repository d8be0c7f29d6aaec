"""Counts the work of an ONNX file in a child process: inferring shapes may take any time and memory.

    count.py FILE BATCH

prints `GraphWork` as JSON, or {"error", "usage"}.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yolact_bench.roofline.work import GraphWork, NodeWork, Work, count_work
from yolact_export.onnx_graph import read_graph
from yolact_runtime.child import limit_process, module_command
from yolact_runtime.engines.onnx_file import check_onnx
from yolact_runtime.errors import UsageError, YolactError, lacks_memory
from yolact_runtime.untrusted import beyond, limit

_MODULE = "yolact_bench.roofline.count"
_BUSY = 8  # times as long by the clock
_CPU_TIME = getattr(signal, "SIGXCPU", 24)
_COPIES = 8  # of the graph in memory, while its shapes are inferred


def count_file(path: Path, batch: int) -> GraphWork:
    """The work of a file, counted in a child process within the limits on opening engines.

    Raises:
        UsageError: the graph is for another batch size.
        YolactError: it cannot be counted, or takes too long or too much memory.
    """
    check_onnx(path)  # in milliseconds, before a process that imports onnx
    command, seconds = module_command(_MODULE, str(path), str(batch)), limit("engine_seconds")
    try:
        # It stops itself by the time of the CPU, which a busy machine does not use up.
        done = subprocess.run(command, capture_output=True, timeout=_BUSY * seconds)
        if done.returncode == -_CPU_TIME:
            raise subprocess.TimeoutExpired(command, seconds)
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise YolactError(
            f"{path}: inferring its shapes takes longer than {beyond('engine_seconds')}; if the file is"
            " damaged, copy or export it again"
        ) from None
    except (IndexError, ValueError):
        raise YolactError(
            f"{path}: inferring its shapes crashes (exit code {done.returncode}); copy or export it again"
        ) from None
    if "error" in answer:
        raise (UsageError if answer["usage"] else YolactError)(answer["error"])
    return graph_work(answer)


def graph_work(answer: dict[str, Any]) -> GraphWork:
    """The inverse of `dataclasses.asdict`."""
    nodes = {
        name: tuple(NodeWork(**{**node, "work": Work(**node["work"])}) for node in answer[name])
        for name in ("unfused", "fused")
    }
    return GraphWork(
        **{**answer, **nodes, "floor": Work(**answer["floor"]), "unknown": tuple(answer["unknown"])}
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The child process."""
    path, batch = sys.argv[1:] if argv is None else argv
    try:
        size = Path(path).stat().st_size if Path(path).is_file() else 0
        limit_process(limit("engine_bytes") + _COPIES * size, limit("engine_seconds"))
        answer = asdict(count_work(read_graph(path), int(batch)))
    except YolactError as error:
        answer = {"error": str(error), "usage": isinstance(error, UsageError)}
    except Exception as error:
        if not lacks_memory(error):
            raise
        text = f"{path}: inferring its shapes needs more memory than {beyond('engine_bytes')}"
        answer = {"error": f"{text}; if the file is damaged, copy or export it again", "usage": False}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
