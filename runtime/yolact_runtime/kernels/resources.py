"""What kernels take of a multiprocessor, as the compiler reports it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.table import Table

from yolact_runtime.kernels.catalogue import catalogue
from yolact_runtime.kernels.compile import Module, compile_kernels

_KERNEL = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+)(?:\+\d+)? bytes smem")


@dataclass(frozen=True)
class Use:
    """One kernel on one kind of GPU.

    Attributes:
        expression: The kernel with its template arguments.
        capability: Compute capability.
        registers: Per thread.
        shared_bytes: Of shared memory per block, without what a launch adds.
        stack_bytes: Of local memory per thread, spills or not.
        spilled: Bytes stored to and loaded from local memory because registers ran out.
    """

    expression: str
    capability: tuple[int, int]
    registers: int
    shared_bytes: int
    stack_bytes: int
    spilled: int


def parse(module: Module) -> list[Use]:
    """The use of each kernel of a module of machine code, in the order of their expressions.

    Raises:
        ValueError: the compiler's messages do not tell it.
    """
    found: dict[str, dict[str, int]] = {}
    current: dict[str, int] = {}
    for line in module.log.splitlines():
        if match := _KERNEL.search(line):
            current = found.setdefault(match[1], {"shared": 0})
        elif match := _SPILLS.search(line):
            current |= {"stack": int(match[1]), "spilled": int(match[2]) + int(match[3])}
        elif match := _USED.search(line):
            current["registers"] = int(match[1])
            if shared := _SHARED.search(line):
                current["shared"] = int(shared[1])
    uses = []
    for expression, name in module.names.items():
        use = found.get(name, {})
        if not {"registers", "spilled"} <= use.keys():
            raise ValueError(f"the compiler reports no registers of {expression}")
        uses.append(
            Use(expression, module.capability, use["registers"], use["shared"], use["stack"], use["spilled"])
        )
    return uses


def measure(capability: tuple[int, int]) -> list[Use]:
    """Compile every kernel of the catalogue for `capability`.

    Raises:
        YolactError: no installed compiler knows the capability.
    """
    return [
        use
        for source, expressions in catalogue().items()
        for use in parse(compile_kernels(source, expressions, capability))
    ]


def table(uses: list[Use]) -> Table:
    """A row for each kernel, and columns of registers, shared memory and spills for each capability."""
    out = Table(title="registers / shared bytes / spilled bytes")
    capabilities = sorted({use.capability for use in uses})
    out.add_column("kernel", no_wrap=True)
    for major, minor in capabilities:
        out.add_column(f"sm_{major}{minor}", justify="right")
    by_place = {(use.expression, use.capability): use for use in uses}
    for expression in dict.fromkeys(use.expression for use in uses):
        cells = [by_place[expression, capability] for capability in capabilities]
        out.add_row(
            expression,
            *(
                f"{use.registers} / {use.shared_bytes} / "
                + (f"[red]{use.spilled}[/red]" if use.spilled else "0")
                for use in cells
            ),
        )
    return out
