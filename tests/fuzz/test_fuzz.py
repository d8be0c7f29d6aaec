"""Every reader on hostile files, for a time: `YOLACT_FUZZ_SECONDS` for all readers together.

`YOLACT_FUZZ_SEED` sets the seed, and `YOLACT_FUZZ_KEEP` the folder in which inputs judged wrong are saved.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import corpus
import fuzzing
import pytest
from judge import Judge

SECONDS = float(os.environ.get("YOLACT_FUZZ_SECONDS") or 60)
SEED = int(os.environ.get("YOLACT_FUZZ_SEED") or 1)
AT_LEAST = 4


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "shared"
    corpus.shared_files(folder)
    return folder


def keep(tmp_path: Path) -> Path:
    return Path(os.environ.get("YOLACT_FUZZ_KEEP") or tmp_path / "findings")


@pytest.mark.slow
@pytest.mark.parametrize("reader", corpus.READERS)
def test_valid_files_are_read(reader: str, judge: Judge, shared: Path, tmp_path: Path) -> None:
    wrong = []
    end = time.monotonic() + SECONDS / len(corpus.READERS)
    for number, item in enumerate(corpus.READERS[reader]()):
        if number >= AT_LEAST and time.monotonic() > end:
            break
        verdict = fuzzing.run(judge, item, tmp_path / "work" / "run", shared)
        if verdict.faults or verdict.code != item.good:
            wrong.append((number, item.victim, " ".join(item.argv), verdict))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.slow
@pytest.mark.timeout(int(max(600, 2 * SECONDS)))
@pytest.mark.parametrize("reader", corpus.READERS)
def test_hostile_files_end_in_one_line(reader: str, judge: Judge, shared: Path, tmp_path: Path) -> None:
    end = time.monotonic() + SECONDS / len(corpus.READERS)
    ran, found = fuzzing.fuzz(
        judge,
        reader,
        tmp_path / "work" / "run",
        shared,
        seed=SEED,
        more=lambda number: number < AT_LEAST or time.monotonic() < end,
        keep=keep(tmp_path),
    )
    print(f"{reader}: {ran} inputs, seed {SEED}")
    assert not found, f"{len(found)} of {ran} inputs (seed {SEED}):\n" + "\n".join(found[:20])
