"""What this machine's CPU can do."""

from __future__ import annotations

from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def cpu_flags() -> set[str]:
    """Instruction sets of an x86 CPU as Linux names them; empty elsewhere."""
    try:
        with _CPU_INFO.open(encoding="ascii", errors="replace") as file:
            text = file.read(8192)  # the first core; the whole file takes long on large machines
    except OSError:
        return set()
    return set(text.partition("\nflags")[2].partition("\n")[0].split())
