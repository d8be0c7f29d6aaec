"""Child processes that run a module of ours, and limits on them."""

from __future__ import annotations

import json
import sys

# `-m` and `-c` would import modules from the current folder, which may be a stranger's.
_START = (
    "import sys; sys.path[:] = [item for item in sys.path if item];"
    "import json; sys.path[:] = json.loads(sys.argv.pop(1));"
    "import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module_command(module: str, *words: str) -> list[str]:
    """The command that runs a module as a program, with this process's folders of modules."""
    folders = [item for item in sys.path if item and isinstance(item, str)]
    return [sys.executable, "-c", _START, json.dumps(folders), module, *words]


def limit_process(memory: int, seconds: int) -> None:
    """Limit this process: its memory in bytes, and the seconds of CPU time of all threads; no core file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, value in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_FSIZE, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        # Above the lower limit a process gets a signal of its own, at the upper one it is killed.
        highest = value + 1 if hard == resource.RLIM_INFINITY else min(value + 1, hard)
        resource.setrlimit(kind, (min(value, highest), highest))
