"""What a check of `yolact-doctor` is, what it is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

OK, FAILED, SKIPPED = "OK", "FAILED", "SKIPPED"
# In `Stage.needs`: an NVIDIA GPU and its driver.
GPU = "gpu"
# What every stage imports, whatever else it needs.
BASE = ("numpy", "cv2", "pycocotools")
# The stage whose outcome is what the driver has said.
DRIVER = "driver"

# What to do where measuring takes too long.
SMALLER = "measure a smaller network: --config yolact_tiny"

Figure = float | int | str


@dataclass(frozen=True)
class Outcome:
    """What a stage found.

    Args:
        state: `OK`, `FAILED` or `SKIPPED`.
        figures: Name with its unit, such as `batch 1 ms`, to what was measured.
        reason: Of FAILED and SKIPPED: what is wrong or missing, one line.
        remedy: What to do, one line; a command where there is one.
    """

    state: str
    figures: Mapping[str, Figure] = field(default_factory=dict)
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Context:
    """What the stages of one run have in common. Each stage runs in a child process of its own.

    Args:
        folder: Temporary, of this run; what one stage writes there, later ones may read.
        config: Configuration whose times are measured.
        quick: Whether to check results only, and measure as little as possible.
        seconds: Time to measure one thing for.
    """

    folder: Path
    config: str = "yolact_resnet50"
    quick: bool = False
    seconds: float = 0.5


@dataclass(frozen=True)
class Stage:
    """One check.

    Args:
        name: Unique, lower case with hyphens; what `--only` takes.
        group: Several stages of one kind, such as `engines` or `gpu`; `--only` takes it, too.
        run: Called in a child process. An exception is FAILED with its first line; a YolactError has its
            remedy in it. Packages are imported in it, never at the top of the stage's module.
        needs: Import names of the packages without which it is SKIPPED, and `GPU`.
        text: What it checks, one line for `--list`.
        seconds: After so many it is killed and FAILED.
        quick: Whether it is part of `--quick`.
    """

    name: str
    group: str
    run: Callable[[Context], Outcome]
    needs: tuple[str, ...] = ()
    text: str = ""
    seconds: float = 60.0
    quick: bool = True
