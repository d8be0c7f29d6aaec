"""The process that builds: `python -m yolact_export.trt.worker`, started by `process.run_build`.

It reads a `Request` from its standard input and writes one JSON object a line to what was its standard
output. The library itself may print; that goes to standard error.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import sys

from yolact_export.trt.builder import build
from yolact_export.trt.request import Request
from yolact_runtime.errors import YolactError


def main() -> int:
    """Build one engine."""
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")

    def tell(**event: object) -> None:
        lines.write(json.dumps(event) + "\n")

    def progress(kind: str, phase: str, steps: int) -> None:
        tell(progress=[kind, phase, steps])

    request = Request.from_text(sys.stdin.read())
    try:
        try:
            library = importlib.import_module(request.library)
        except (ImportError, OSError) as error:
            raise YolactError(f"{request.library} does not load: {error}") from error
        tell(answer=dataclasses.asdict(build(library, request, progress)))
    except YolactError as error:
        tell(error=str(error))
    except OSError as error:
        tell(error=f"the engine cannot be written: {error.strerror or error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
