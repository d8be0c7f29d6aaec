"""The child process of a stage or of a probe: calls a function, and writes its result to standard output."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any


def main(function: str, *words: str) -> None:
    """Call `module:function` with texts, and write what it returns as JSON.

    It may return something several times, with its argument `report`: the last one counts.
    """
    output = os.dup(1)
    os.dup2(2, 1)  # what libraries print
    faulthandler.enable()

    def report(value: Any) -> None:
        os.write(output, json.dumps(value).encode() + b"\n")

    module, _, attribute = function.partition(":")
    called: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    report(called(*words, report=report))
    # Libraries may crash or wait when they are unloaded.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
