"""The scripts of docs/how-to/other-engines.md run as they are, and find what `BatchPredictor` finds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from doc_pages import ROOT, blocks
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime.batch import BatchPredictor

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an engine and photos, the last of which is damaged."""
    monkeypatch.chdir(tmp_path)
    write_onnx("yolact_tiny.onnx", native_arrays(), NATIVE)
    Path("shapes/val").mkdir(parents=True)
    for index in range(4):
        image = np.full((20 + index, 30, 3), 255 - 60 * index, np.uint8)
        cv2.imwrite(f"shapes/val/{index}.png", image)
    Path("shapes/val/3.png").write_bytes(Path("shapes/val/0.png").read_bytes()[:60])
    return tmp_path


def run(name: str) -> str:
    """Write a script of the page and run it; what it printed."""
    page = (ROOT / "docs/how-to/other-engines.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"Write this to `{name}`.*?```python\n(.*?)```", page, re.DOTALL)
    assert text in [block.text for block in blocks(page)]
    Path(name).write_text(text)
    done = subprocess.run(
        [sys.executable, name], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check(folder: str) -> None:
    """The Parquet files have the rows of a predictor in this process."""
    from pyarrow import parquet

    table = parquet.read_table(folder)
    found = {Path(row["path"]).name: row for row in table.to_pylist()}
    paths = [f"shapes/val/{index}.png" for index in range(4)]
    with BatchPredictor("yolact_tiny.onnx", threads=1) as predictor:
        expected = predictor([{"path": path} for path in paths])
    assert table.num_rows == len(found) == len(paths)
    for path, row in zip(paths, expected, strict=True):
        same = found[Path(path).name]
        assert {key: plain(same[key]) for key in row if key not in ("path", "error")} == {
            key: plain(row[key]) for key in row if key not in ("path", "error")
        }
        assert (same["error"] is None) == (row["error"] is None) == (path != paths[3])
    assert "is cut off" in found["3.png"]["error"] and len(found["0.png"]["rles"]) == 2


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def test_spark(place: Path) -> None:
    for name in ("pyspark", "pandas", "pyarrow"):
        pytest.importorskip(name)
    if not shutil.which("java"):
        pytest.skip("no Java")
    run("with_spark.py")
    check("found_spark")


def test_daft(place: Path) -> None:
    for name in ("daft", "pyarrow"):
        pytest.importorskip(name)
    run("with_daft.py")
    check("found_daft")


def test_processes(place: Path) -> None:
    assert run("with_processes.py") == "6 instances in 4 images\n"
