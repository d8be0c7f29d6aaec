"""What this machine's CPU can do."""

from __future__ import annotations

import re
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
# Those of the flags of an x86 CPU that name instructions a network is computed with. Others name what the
# kernel or a hypervisor does, and change with them.
_INSTRUCTIONS = re.compile(
    r"mmx|sse|ssse|pni|avx|amx|fma|f16c|bmi|popcnt|abm|movbe|adx|v?aes|v?pclmul|sha|sm[34]|gfni"
)


def cpu_flags() -> set[str]:
    """Instruction sets of an x86 or ARM CPU as Linux names them; empty elsewhere."""
    fields = _fields()
    if "flags" in fields:
        return {flag for flag in fields["flags"].split() if _INSTRUCTIONS.match(flag)}
    return set(fields.get("Features", "").split())


def cpu_part() -> list[str]:
    """Maker and kind of an ARM CPU, by the numbers that Linux has for them; empty elsewhere."""
    fields = _fields()
    return [fields[name] for name in ("CPU implementer", "CPU part") if name in fields]


def _fields() -> dict[str, str]:
    """What Linux says of the first core."""
    try:
        with _CPU_INFO.open(encoding="ascii", errors="replace") as file:
            text = file.read(8192)  # the whole file takes long on large machines
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found
