"""What Linux says of CPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolact_runtime.engines import cpu

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
flags\t\t: fpu sse sse4_1 avx2 fma avx512_bf16 amx_int8 hypervisor md_clear ibrs arch_capabilities
bugs\t\t: spectre_v1

processor\t: 1
flags\t\t: sse
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd asimddp bf16 i8mm sve
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd40
"""


@pytest.mark.parametrize(
    ("text", "flags", "part"),
    [
        (X86, {"sse", "sse4_1", "avx2", "fma", "avx512_bf16", "amx_int8"}, []),
        (ARM, {"fp", "asimd", "asimddp", "bf16", "i8mm", "sve"}, ["0x41", "0xd40"]),
        (None, set(), []),
    ],
)
def test_features(
    text: str | None, flags: set[str], part: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(cpu, "_CPU_INFO", file)
    assert (cpu.cpu_flags(), cpu.cpu_part()) == (flags, part)
