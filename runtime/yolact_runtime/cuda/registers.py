"""What kernels take of a multiprocessor, as the compiler reports it.

As a command, `python -m yolact_runtime.cuda.registers --capability 6.1 8.6` compiles every kernel and shows
its registers, shared memory and spills; it needs no GPU.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from yolact_runtime import commandline
from yolact_runtime.cuda.compile import Module, compile_kernels, parse_capability
from yolact_runtime.cuda.plans.catalogue import catalogue
from yolact_runtime.errors import YolactError

# What is compiled for in continuous integration: GTX 10, RTX 20, 30 and 40 series, H100, RTX 50 series.
CAPABILITIES = ("6.1", "7.5", "8.6", "8.9", "9.0", "12.0")

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


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exits with 1 where a kernel spills."""
    parser = commandline.Parser(
        prog="python -m yolact_runtime.cuda.registers",
        description="Compile every kernel and show its registers, shared memory and spills; needs no GPU.",
    )
    parser.add_argument(
        "--capability",
        nargs="+",
        default=list(CAPABILITIES),
        metavar="X.Y",
        help="compute capabilities to compile for",
    )
    return commandline.run(_command, parser, argv)


def _command(args: argparse.Namespace) -> int:
    capabilities = [parse_capability(text) for text in args.capability]
    uses = [use for capability in capabilities for use in measure(capability)]
    commandline.table_console().print(table(uses))
    spilling = sorted({use.expression for use in uses if use.spilled})
    if spilling:
        raise YolactError(f"registers spill to memory in {', '.join(spilling)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
