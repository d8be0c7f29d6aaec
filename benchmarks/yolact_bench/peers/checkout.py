"""A checkout of the original implementation, running in its own process.

Its modules are called `yolact`, `data` and `utils`, so they cannot be imported together with ours; and its
output, its globals and its crashes stay in that process.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from yolact_runtime.errors import YolactError

T = TypeVar("T", bound="CheckoutProcess")

_SCRIPT = Path(__file__).with_name("original_worker.py")


class CheckoutProcess:
    """Reads requests and writes answers, a line each; a context manager that ends the process.

    Args:
        checkout: Folder of github.com/dbolya/yolact.
        task: One of the tasks of `original_worker.py`.
        arguments: Those of the task.
        folder: For the standard error of the process.

    Raises:
        YolactError: no checkout.
    """

    def __init__(self, checkout: Path, task: str, arguments: Sequence[str | Path], folder: Path) -> None:
        if not (checkout / "layers" / "modules" / "multibox_loss.py").is_file():
            raise YolactError(f"--original {checkout}: not a checkout of github.com/dbolya/yolact")
        self._errors = folder / "stderr.txt"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, _SCRIPT, checkout.resolve(), task, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=checkout,
                text=True,
            )

    def ask(self, line: str) -> str:
        """Send a line and wait for the answer.

        Raises:
            YolactError: the process has ended; with the last line of its output.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the reason is reported below
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            last = self._errors.read_text(errors="replace").strip().splitlines()[-1:]
            raise YolactError(f"the original ended: {last[0] if last else 'no message'}")
        return answer

    def close(self) -> None:
        """End the process; may be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
