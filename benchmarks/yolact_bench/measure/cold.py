"""Start-up and memory of one engine, measured in its own process.

    cold.py ENGINE IMAGE OPTIONS_AS_JSON BATCH [CLASSES_AS_JSON]

prints `{"import_ms", "load_ms", "first_ms", "peak_mib", "device_mib"}`: importing the runtime, opening the
engine, its first prediction of one image (masks included), then after a few predictions of a whole batch the
peak of resident host memory, and how much more of the GPU's memory is in use than before (which other
processes on that GPU distort; null without a GPU). `tiles` among the options are the arguments of `tiled`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolact_runtime.child import module_command
from yolact_runtime.errors import without_secrets

log = logging.getLogger(__name__)

TIMEOUT = 600.0  # seconds; opening may build kernels
MORE_RUNS = 3  # memory has reached its size by then


def main(argv: Sequence[str] | None = None) -> int:
    """Measure in this process and print the result."""
    engine, image, options, batch, *chosen = sys.argv[1:] if argv is None else argv
    classes: list[str] | None = json.loads(chosen[0]) if chosen else None
    start = time.perf_counter()
    from yolact_runtime import load_engine

    imported = time.perf_counter()
    from yolact_bench.measure.nvml import open_nvml

    nvml = open_nvml()
    before = nvml.memory_used() if nvml else None
    opening = time.perf_counter()
    chosen_options = json.loads(options)
    tiles = chosen_options.pop("tiles", None)
    model = load_engine(engine, **chosen_options)
    if tiles:
        from yolact_runtime.engines.tiles import tiled

        model = tiled(model, **tiles)
    loaded = time.perf_counter()
    from yolact_runtime.sources.images import read_image

    picture = read_image(image)
    ready = time.perf_counter()
    _predict(model, [picture], classes)
    done = time.perf_counter()
    count = min(max(model.metadata.min_batch, int(batch)), model.metadata.max_batch)
    for _ in range(MORE_RUNS):
        _predict(model, [picture] * count, classes)
    after = nvml.memory_used() if nvml else None
    figures = {
        "import_ms": 1000 * (imported - start),
        "load_ms": 1000 * (loaded - opening),
        "first_ms": 1000 * (done - ready),
        "peak_mib": peak_memory(),
        "device_mib": None if before is None or after is None else after - before,
    }
    print(json.dumps(figures))
    return 0


def _predict(model: Any, pictures: list[Any], classes: list[str] | None) -> None:
    for result in model.predict(pictures, 0.0, model.metadata.max_detections, classes):
        result.rles  # noqa: B018 - computed when first asked for


def peak_memory() -> float | None:
    """The peak of this process's resident memory in MiB; None if the system does not report it."""
    with contextlib.suppress(OSError):
        # getrusage includes the peak of the parent process; this field does not, and psutil has neither.
        status = Path("/proc/self/status").read_text()
        if match := re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE):
            return int(match[1]) / 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def cold_start(
    engine: str,
    image: Path,
    options: Mapping[str, Any],
    batch: int = 1,
    classes: Sequence[str] | None = None,
) -> dict[str, float | None] | None:
    """Run `main` in a new process; None (and a warning) if that fails."""
    words = [engine, str(image), json.dumps(dict(options)), str(batch), json.dumps(classes)]
    command = module_command("yolact_bench.measure.cold", *words)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or f"exit code {error.returncode}").splitlines()[-1]
    except subprocess.TimeoutExpired:
        reason = f"it took longer than {TIMEOUT:g} s"
    except (OSError, ValueError, IndexError) as error:
        reason = str(error)
    log.warning("no cold start of %s: %s", without_secrets(engine), reason)
    return None


if __name__ == "__main__":
    raise SystemExit(main())
