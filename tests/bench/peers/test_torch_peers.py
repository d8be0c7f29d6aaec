"""torchvision and Ultralytics with random weights: they must have as much to do as trained ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from yolact_bench.measure.candidate import Candidate, different_batches
from yolact_bench.peers import torch_peer
from yolact_bench.peers.torchvision import TorchvisionCandidate
from yolact_bench.peers.ultralytics import UltralyticsCandidate
from yolact_runtime.errors import UsageError, YolactError


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    for index, size in enumerate([(48, 64, 3), (64, 40, 3)]):
        cv2.imwrite(str(tmp_path / f"{index}.png"), random.integers(0, 256, size, np.uint8))
    return sorted(tmp_path.glob("*.png"))


def works(peer: Candidate, images: list[Path], batch: int) -> float:
    """Run it on all images; returns the masks of one image."""
    peer.prepare(images, batch)
    peer.network_only()
    run = peer.end_to_end(images[:batch])
    assert list(run.seconds) == ["decode", "preprocess", "network", "masks", "rle"]
    assert all(seconds >= 0 for seconds in run.seconds.values())
    return run.detections / batch


@pytest.mark.parametrize("batch", [1, 2])
def test_torchvision(images: list[Path], batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchvisionCandidate, "short_side", 64)
    monkeypatch.setattr(TorchvisionCandidate, "long_side", 96)
    peer = TorchvisionCandidate(1, detections=7)
    assert works(peer, images, batch) == 7
    assert "random weights" in peer.note and "short side 64" in peer.note
    assert (peer.precision, peer.input_size, torch.get_num_threads()) == ("fp32", None, 1)


def test_torchvision_with_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"backbone.body.conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(
        YolactError, match=r"--torchvision-weights .*w\.pth: not those of maskrcnn_resnet50_fpn"
    ):
        TorchvisionCandidate(1, path)
    peer = TorchvisionCandidate(1)
    torch.save(peer._model.state_dict(), path)
    assert "random" not in TorchvisionCandidate(1, path).note


@pytest.mark.parametrize("model", ["yolov8n-seg.yaml", "yolo11n-seg.yaml"])
def test_ultralytics(images: list[Path], model: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("ultralytics")
    monkeypatch.setattr(UltralyticsCandidate, "input_size", 160)
    peer = UltralyticsCandidate(model, 1, detections=7)
    # It drops detections whose mask is empty.
    assert 4 <= works(peer, images, 1) <= 7
    assert (peer.name, peer.licence, peer.input_size) == (model.removesuffix(".yaml"), "AGPL-3.0", 160)
    assert cv2.getNumThreads() == torch.get_num_threads() == 1


def test_ultralytics_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(YolactError, match=r"no module 'ultralytics'\); run: pip install ultralytics \(AGPL"):
        UltralyticsCandidate("yolo11n-seg.yaml", 1)


def test_ultralytics_checkpoints_are_not_opened() -> None:
    with pytest.raises(UsageError, match=r"yolo11n-seg\.pt: give a YAML such as yolo11n-seg\.yaml"):
        UltralyticsCandidate("yolo11n-seg.pt", 1)


def test_settled_batch_norm_normalises() -> None:
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 4, 1),
        torch.nn.BatchNorm2d(4),
        torch.nn.Conv2d(4, 4, 1),
        torch.nn.BatchNorm2d(4),
    ]
    model = torch.nn.Sequential(*layers).eval()
    x = 50 * torch.randn(1, 3, 16, 16)
    torch_peer.settle_batch_norm(model, lambda: model(x))
    with torch.no_grad():
        found = model(x)
    assert not any(module.training for module in model.modules())
    np.testing.assert_allclose(found.std(dim=(0, 2, 3)), np.ones(4), atol=0.02)
    np.testing.assert_allclose(found.mean(dim=(0, 2, 3)), np.zeros(4), atol=0.02)


@pytest.mark.parametrize("count, passing", [(5000, torch_peer.CANDIDATES), (10, 9)])
def test_the_threshold_lets_so_many_pass(count: int, passing: int) -> None:
    scores = torch.randperm(count).view(2, -1) / count
    assert (scores > torch_peer.threshold(scores)).sum() == passing


@pytest.mark.parametrize(
    "size, expected", [(1, ["a", "b", "c"]), (2, ["ab", "ca"]), (3, ["abc"]), (4, ["abca"])]
)
def test_batches_cover_the_images(size: int, expected: list[str]) -> None:
    found = different_batches([Path(name) for name in "abc"], size)
    assert ["".join(map(str, paths)) for paths in found] == expected
    assert len(different_batches([Path("a")] * 50, 1)) == 8


def test_encoding_is_that_of_pycocotools() -> None:
    masks = np.random.default_rng(0).random((3, 9, 7)) > 0.5
    decoded = coco_mask.decode(torch_peer.encode(masks))
    np.testing.assert_array_equal(decoded, masks.transpose(1, 2, 0))
