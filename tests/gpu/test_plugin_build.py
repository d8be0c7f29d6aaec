"""An engine with the kernels as plugins, built by TensorRT on the GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from yolact import Yolact, get_config
from yolact.train.checkpoint import save_checkpoint
from yolact_export.cli import main
from yolact_runtime.engines.tensorrt.record import read_engine

pytestmark = pytest.mark.gpu


@pytest.mark.slow
def test_an_engine_with_plugins(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt")
    torch.manual_seed(0)
    checkpoint, engine = tmp_path / "yolact_tiny_0_1.pth", tmp_path / "tiny.engine"
    save_checkpoint(checkpoint, Yolact(get_config("yolact_tiny")).eval(), 0, 1, None)
    arguments = ["--weights", str(checkpoint), "--to", "trt", "--backend", "trt", "--detect", "plugin"]
    assert main([*arguments, "--output", str(engine)]) == 0
    metadata, record = read_engine(engine)
    assert record.plugin
    assert record.library == "tensorrt"
    assert metadata.detect == "native"
