"""Runs the code blocks of the documentation that are marked `<!-- runnable -->`.

The README's quick start runs once. The blocks of each page then run in order, in a copy of its folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import PAGES, README, Block, blocks, page_id

pytestmark = pytest.mark.slow

RUNNABLE = {page: [b for b in blocks(page.read_text(encoding="utf-8")) if b.runnable] for page in PAGES}
QUICK_START = RUNNABLE[README].pop(0)


def run_block(page: Path, block: Block, folder: Path) -> None:
    """Run one block in a folder; the test fails with its output where it fails."""
    shell = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
    here = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PATH": os.pathsep.join([here, os.environ.get("PATH", "")]),
        "YOLACT_CACHE": str(folder.parent / "cache"),
        "COLUMNS": "120",
        # Threads that wait for each other's cores take minutes instead of seconds.
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*shell, block.text], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{page_id(page)}:{block.line}\n{block.text}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="session")
def quick_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the README's quick start was run."""
    folder = tmp_path_factory.mktemp("quick_start") / "work"
    folder.mkdir()
    run_block(README, QUICK_START, folder)
    return folder


def test_the_quick_start_writes_detections(quick_start: Path) -> None:
    assert (quick_start / "results/mask_detections.json").stat().st_size > 1000


@pytest.mark.parametrize("page", [page for page in PAGES if RUNNABLE[page]], ids=page_id)
def test_blocks_run(page: Path, quick_start: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(quick_start, folder)
    for block in RUNNABLE[page]:
        run_block(page, block, folder)
