"""Start-up and memory of one engine, taken in a process of its own.

    python -m yolact_bench.cold ENGINE IMAGE [OPTIONS_AS_JSON [BATCH]]

prints `{"import_ms", "load_ms", "first_ms", "peak_mib", "device_mib"}`: importing the runtime, opening the
engine, its first prediction of one image (masks included), then after a few predictions of a whole batch the
most host memory that was resident, and how much more of the GPU's memory is in use than before (which other
processes on that GPU spoil; null without a GPU).
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

TIMEOUT = 600.0  # seconds; opening may build kernels
MORE_RUNS = 3  # memory has reached its size by then


def main(argv: Sequence[str] | None = None) -> int:
    """Measure in this process and print the result."""
    engine, image, *rest = sys.argv[1:] if argv is None else argv
    options = json.loads(rest[0]) if rest else {}
    start = time.perf_counter()
    from yolact_bench.engines import open_engine

    imported = time.perf_counter()
    from yolact_bench.nvml import open_nvml

    nvml = open_nvml()
    before = nvml.memory_used() if nvml else None
    opening = time.perf_counter()
    model = open_engine(engine, options)
    loaded = time.perf_counter()
    from yolact_runtime.sources.images import read_image

    picture = read_image(image)
    ready = time.perf_counter()
    _predict(model, [picture])
    done = time.perf_counter()
    batch = max(model.metadata.min_batch, int(rest[1]) if len(rest) > 1 else 1)
    for _ in range(MORE_RUNS):
        _predict(model, [picture] * min(batch, model.metadata.max_batch))
    # Imported last: what it brings along is no part of starting up.
    from yolact_bench.machine import peak_memory

    after = nvml.memory_used() if nvml else None
    result = {
        "import_ms": 1000 * (imported - start),
        "load_ms": 1000 * (loaded - opening),
        "first_ms": 1000 * (done - ready),
        "peak_mib": peak_memory(),
        "device_mib": None if before is None or after is None else after - before,
    }
    print(json.dumps(result))
    return 0


def _predict(model: Any, pictures: list[Any]) -> None:
    for result in model.predict(pictures, 0.0, model.metadata.max_detections):
        result.rles  # noqa: B018 - computed when first asked for


def cold_start(
    engine: str, image: Path, options: Mapping[str, Any] | None = None, batch: int = 1
) -> dict[str, float | None] | None:
    """What `main` prints, from a fresh process; None (and a warning) where that fails."""
    words = [engine, str(image), json.dumps(dict(options or {})), str(batch)]
    command = [sys.executable, "-m", "yolact_bench.cold", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or f"exit code {error.returncode}").splitlines()[-1]
    except (subprocess.TimeoutExpired, OSError, ValueError, IndexError) as error:
        reason = str(error)
    log.warning("no cold start of %s: %s", engine, reason)
    return None


if __name__ == "__main__":
    raise SystemExit(main())
