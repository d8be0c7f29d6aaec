"""How the processes that load images are started."""

from __future__ import annotations

import multiprocessing
import sys


def start_method() -> str:
    """The start method that the program has chosen; else `fork` on Linux, where it is quick and safe here.

    Batches do not depend on it. macOS has `fork`, but its libraries do not survive one; Windows has `spawn`
    only.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    return chosen or ("fork" if sys.platform == "linux" else "spawn")
