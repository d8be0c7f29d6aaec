"""The peer's process on a made checkout, and on a real one where `YOLACT_TEST_ORIGINAL` names its folder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_engine import FakeEngine, write_image
from pycocotools import mask as coco_mask

import yolact
from yolact.engine import TorchEngine
from yolact_bench.measure.accuracy import agree
from yolact_bench.measure.stages import EngineCandidate
from yolact_bench.peers.original import OriginalCandidate
from yolact_runtime.errors import UsageError, YolactError

# What the worker asks a checkout for. This network finds the left half of every image, as class 1, and a box
# without area, which eval.py leaves out.
CHECKOUT = {
    "data/__init__.py": "",
    "data/config.py": """
class cfg:
    max_size = num_classes = None
def set_cfg(name):
    print("configured", name)
    assert name == "yolact_base_config"
""",
    "layers/modules/multibox_loss.py": "",
    "eval.py": """
import matplotlib.pyplot as plt
import pycocotools.mask
import numpy as np
import torch
from data.config import cfg
coco_cats = {}
torch.cuda.current_device()
class FastBaseTransform:
    def __init__(self):
        self.mean = torch.zeros(3).cuda()
    def __call__(self, frame):
        assert frame.dtype == torch.float32 and frame.shape[0] == 1 and frame.shape[3] == 3
        return frame.mean(dim=(1, 2))
class Yolact(torch.nn.Module):
    def __init__(self):
        super().__init__()
        assert (cfg.max_size, cfg.num_classes) == (32, 3)
        self.detect = lambda predictions, net: predictions
    def load_weights(self, path):
        self.scores = torch.load(path)["scores"]
    def forward(self, batch):
        assert not torch.is_grad_enabled() and not self.training
        return self.detect(self.scores, self)
def postprocess(scores, width, height):
    if not len(scores):
        return [torch.Tensor()] * 4
    masks = torch.zeros(2, height, width)
    masks[0, :, : width // 2] = 1
    boxes = torch.tensor([[0, 0, width // 2, height], [3, 3, 3, 9]])
    return torch.tensor([1, 0]), scores, boxes, masks
class Detections:
    def __init__(self):
        self.bbox_data, self.mask_data = [], []
    def add_bbox(self, image_id, category_id, bbox, score):
        entry = {"image_id": image_id, "category_id": coco_cats[category_id], "score": score}
        self.bbox_data.append({**entry, "bbox": [float(x) for x in bbox]})
    def add_mask(self, image_id, category_id, segmentation, score):
        rle = pycocotools.mask.encode(np.asfortranarray(segmentation.astype(np.uint8)))
        rle["counts"] = rle["counts"].decode("ascii")
        entry = {"image_id": image_id, "category_id": coco_cats[category_id], "score": score}
        self.mask_data.append({**entry, "segmentation": rle})
""",
}
LIKE = dataclasses.replace(FakeEngine({}).metadata, config="yolact_base", category_ids=(7, 90))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in CHECKOUT.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "checkout"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "w.pth"
    torch.save({"scores": torch.tensor([0.75, 0.5])}, path)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_image(tmp_path / "image.png", 5)
    return tmp_path / "image.png"


def test_stages_and_results(checkout: Path, weights: Path, image: Path) -> None:
    peer = OriginalCandidate(checkout, weights, LIKE, threads=1)
    try:
        peer.prepare([image], 1)
        peer.network_only()
        run = peer.end_to_end([image])
        assert run.detections == 1
        assert list(run.seconds) == ["decode", "preprocess", "network", "detect", "masks", "rle"]
        assert all(seconds > 0 for seconds in run.seconds.values())
        # Of its own process: this one only waits.
        assert run.cpu_seconds is not None and run.cpu_seconds > 0
        (entry,) = peer.to_coco(image, 12)
    finally:
        peer.close()
    assert (entry["image_id"], entry["category_id"], entry["score"]) == (12, 90, 0.75)
    height, width = entry["segmentation"]["size"]
    expected = np.zeros((height, width))
    expected[:, : width // 2] = 1
    np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), expected)


def test_nothing_found(checkout: Path, weights: Path, image: Path) -> None:
    torch.save({"scores": torch.zeros(0)}, weights)
    peer = OriginalCandidate(checkout, weights, LIKE, threads=1)
    assert peer.end_to_end([image]).detections == 0
    peer.close()
    peer.close()


def test_says_what_it_died_of(checkout: Path, weights: Path, tmp_path: Path) -> None:
    peer = OriginalCandidate(checkout, weights, LIKE, threads=1)
    with pytest.raises(YolactError, match=r"the original ended: cannot read image .*none\.jpg"):
        peer.end_to_end([tmp_path / "none.jpg"])
    with pytest.raises(YolactError, match="the original ended"):
        peer.network_only()
    peer.close()


def test_weights_are_not_unpickled(checkout: Path, weights: Path, image: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"scores": Evil()}, weights)
    peer = OriginalCandidate(checkout, weights, LIKE, threads=1)
    with pytest.raises(YolactError, match="the original ended"):
        peer.prepare([image], 1)
    peer.close()
    assert not (tmp_path / "owned").exists()


def test_wrong_use_is_one_line(checkout: Path, weights: Path, tmp_path: Path, image: Path) -> None:
    # The original evaluates the name of its configuration as Python.
    evil = dataclasses.replace(LIKE, config="__import__('os').abort() or yolact_base")
    with pytest.raises(UsageError, match="the original has no configuration __import__"):
        OriginalCandidate(checkout, weights, evil, 1)
    wide = dataclasses.replace(LIKE, input_size=(384, 640))
    with pytest.raises(UsageError, match="has an input of 384x640; the original takes squares only"):
        OriginalCandidate(checkout, weights, wide, 1)
    with pytest.raises(YolactError, match=r"--weights .*none\.pth does not exist"):
        OriginalCandidate(checkout, tmp_path / "none.pth", LIKE, 1)
    with pytest.raises(YolactError, match=r"--original .*: not a checkout of github\.com/dbolya/yolact"):
        OriginalCandidate(tmp_path, weights, LIKE, 1)
    peer = OriginalCandidate(checkout, weights, LIKE, 1)
    with pytest.raises(UsageError, match="one image at a time, not 4"):
        peer.prepare([image], 4)
    peer.close()


@pytest.mark.slow
def test_a_real_checkout_finds_what_we_find(coco_mini, tmp_path: Path) -> None:
    if "YOLACT_TEST_ORIGINAL" not in os.environ:
        pytest.skip("no checkout: set YOLACT_TEST_ORIGINAL to its folder")
    from shared_data import load_fill

    state = {k: torch.from_numpy(v) for k, v in load_fill().state_dict("yolact_resnet50").items()}
    weights = tmp_path / "yolact_resnet50_54_800000.pth"
    torch.save(state, weights)
    engine = TorchEngine.from_model(yolact.load_model(weights), device="cpu")
    ours = EngineCandidate("ours", engine)
    peer = OriginalCandidate(Path(os.environ["YOLACT_TEST_ORIGINAL"]), weights, engine.metadata, threads=1)
    found = agree(peer, ours, sorted(coco_mini.val_images.iterdir())[:2])
    peer.close()
    assert found is not None
    assert found["instances"] == found["matched"] == 200
    assert found["mask_iou"] > 0.9999
