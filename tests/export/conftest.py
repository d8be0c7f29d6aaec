"""A small network, its float32 graph and a folder of images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from yolact.model import Yolact
from yolact.model.preprocess import Normalise
from yolact.registry import get_config
from yolact.train.checkpoint import save_checkpoint
from yolact_export import verify
from yolact_export.onnx import OnnxOptions, write_onnx
from yolact_runtime.metadata import Metadata


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is read from or left in the user's cache."""
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="package")
def network() -> Yolact:
    """Random weights with the statistics of their own activations, so that no value explodes."""
    torch.manual_seed(0)
    model = Yolact(get_config("yolact_tiny"))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    images = np.stack([cv2.resize(image, (128, 128)) for image in verify.verification_images(None)])
    with torch.no_grad():
        x = Normalise(model.config.model)(torch.from_numpy(images))
        model.train()(x)
        output = model.eval()(x)
        head = model.prediction_layers[0]
        head.conf_layer.weight.mul_(2.0 / output.logits.std())  # type: ignore[union-attr, operator]
        head.bbox_layer.weight.mul_(0.5 / output.loc.std())  # type: ignore[union-attr, operator]
    return model.eval()


@pytest.fixture(scope="package")
def checkpoint(network: Yolact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("precision") / "yolact_tiny_0_1.pth"
    save_checkpoint(path, network, 0, 1, None)
    return path


@pytest.fixture(scope="package")
def graph(network: Yolact, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return write_onnx(network, tmp_path_factory.mktemp("graph") / "m.onnx", OnnxOptions(max_batch=4))


@pytest.fixture(scope="package")
def metadata(graph: onnx.ModelProto) -> Metadata:
    return Metadata.from_props({prop.key: prop.value for prop in graph.metadata_props}, "graph")


@pytest.fixture(scope="package")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(verify.verification_images(None)):
        cv2.imwrite(str(folder / f"{index}.png"), image)
    return folder
