"""Registers, shared memory and spills of every kernel, as the compiler reports them.

    python tests/kernel_registers.py --capability 6.1 8.6

shows a table; it needs no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from yolact_runtime import commandline
from yolact_runtime.commandline import Table
from yolact_runtime.cuda.compile import Module, compile_kernels, parse_capability
from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.masks import MaskShapes, mask_plan
from yolact_runtime.cuda.plans.plan import Plan, kernels_by_source
from yolact_runtime.cuda.plans.preprocess import preprocess_plan
from yolact_runtime.cuda.plans.visible import visible_plan
from yolact_runtime.errors import YolactError

# Continuous integration compiles for GTX 10, RTX 20, 30 and 40 series, H100, RTX 50 series.
CAPABILITIES = ("6.1", "7.5", "8.6", "8.9", "9.0", "12.0")

_KERNEL = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+)(?:\+\d+)? bytes smem")


@dataclass(frozen=True)
class Use:
    """What one kernel uses on one kind of GPU.

    Attributes:
        expression: The kernel with its template arguments.
        capability: Compute capability.
        registers: Registers per thread.
        shared_bytes: Static shared memory per block.
        stack_bytes: Local memory per thread, including spills.
        spilled: Bytes stored to and loaded from local memory because registers ran out.
    """

    expression: str
    capability: tuple[int, int]
    registers: int
    shared_bytes: int
    stack_bytes: int
    spilled: int


def parse(module: Module) -> list[Use]:
    """What each kernel of a machine code module uses, in the order of its expressions.

    Raises:
        ValueError: the compiler's log does not report it.
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


def example_plans() -> Iterator[Plan]:
    """Plans for a COCO network of 550 pixels that use every source, and every element type of its kernels."""
    floats = ("float32", "float16")
    for loc, logits in itertools.product(floats, floats):
        yield detection_plan(1, 19248, 80, loc_dtype=loc, logits_dtype=logits, coefficients_dtype=loc)
    for logits in floats:
        yield detection_plan(1, 19248, 80, logits_dtype=logits, choose=True)
    for dtype in floats:
        yield mask_plan(MaskShapes(1, 100, 32, 138, 138, 480, 640, dtype))
    yield visible_plan(1, 100, 32, 80)
    for dtype in ("uint8", *floats):
        yield preprocess_plan(1, 550, 640 * 480 * 3, dtype)


def measure(capability: tuple[int, int]) -> list[Use]:
    """Compile every kernel of the example plans for `capability`.

    Raises:
        YolactError: no installed compiler supports the capability.
    """
    return [
        use
        for source, expressions in kernels_by_source(example_plans()).items()
        for use in parse(compile_kernels(source, expressions, capability))
    ]


def table(uses: list[Use]) -> Table:
    """A row for each kernel; a column of registers, shared memory and spills for each capability."""
    capabilities = sorted({use.capability for use in uses})
    columns = ("kernel", *(f"sm_{major}{minor}" for major, minor in capabilities))
    by_cell = {(use.expression, use.capability): use for use in uses}
    rows = []
    for expression in dict.fromkeys(use.expression for use in uses):
        cells = [by_cell[expression, capability] for capability in capabilities]
        rows.append([expression, *(f"{u.registers} / {u.shared_bytes} / {u.spilled}" for u in cells)])
    return Table("registers / shared bytes / spilled bytes", columns, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exits with 1 if a kernel spills."""
    parser = commandline.Parser(
        prog="python tests/kernel_registers.py",
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
    table(uses).show()
    spilling = sorted({use.expression for use in uses if use.spilled})
    if spilling:
        raise YolactError(f"registers spill to memory in {', '.join(spilling)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
