"""Start-up cost of one engine, taken in a process of its own.

    python -m yolact_bench.cold ENGINE IMAGE [THREADS]

prints `{"import_ms", "load_ms", "first_ms", "peak_mib"}`: importing the runtime, opening the engine, its
first prediction, and the most memory that was resident up to then.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

TIMEOUT = 600.0  # seconds; opening may build kernels


def main(argv: Sequence[str] | None = None) -> int:
    """Measure in this process and print the result."""
    engine, image, *threads = sys.argv[1:] if argv is None else argv
    start = time.perf_counter()
    from yolact_runtime import load_engine
    from yolact_runtime.sources.images import read_image

    imported = time.perf_counter()
    model = load_engine(engine, **({"threads": int(threads[0])} if threads else {}))
    loaded = time.perf_counter()
    picture = read_image(image)
    ready = time.perf_counter()
    model.predict([picture])
    done = time.perf_counter()
    # Imported last: what it brings along is no part of starting up.
    from yolact_bench.machine import peak_memory

    result = {
        "import_ms": 1000 * (imported - start),
        "load_ms": 1000 * (loaded - imported),
        "first_ms": 1000 * (done - ready),
        "peak_mib": peak_memory(),
    }
    print(json.dumps(result))
    return 0


def cold_start(engine: str, image: Path, threads: int | None = None) -> dict[str, float | None] | None:
    """What `main` prints, from a fresh process; None (and a warning) where that fails."""
    command = [sys.executable, "-m", "yolact_bench.cold", engine, str(image)]
    if threads:
        command.append(str(threads))
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
