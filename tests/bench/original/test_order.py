"""The original's order of work must give what the original gives, or the comparison says nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from golden import assert_pixel_boxes, match_rows
from pycocotools import mask as coco_mask
from shared_data import load_fill, reference_file

import yolact
from yolact.engine import TorchEngine
from yolact_bench.agreement import agreement
from yolact_bench.original import __main__ as command
from yolact_bench.original.__main__ import deployed
from yolact_bench.original.order import OriginalOrder
from yolact_runtime import YolactError


@pytest.fixture(scope="module")
def model() -> Iterator[yolact.Yolact]:
    """A small network; one thread, for such small work waits on more of them when the machine is busy."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield yolact.Yolact(yolact.get_config("yolact_tiny")).eval()
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(pixels, (160, 120), interpolation=cv2.INTER_CUBIC))
    return path


def test_agrees_with_the_engine(model: yolact.Yolact, image: Path) -> None:
    ours = deployed(TorchEngine.from_model(model, device="cpu"))(image)
    theirs = OriginalOrder(model)(image)
    assert len(theirs["rles"]) == model.config.detect.max_detections
    np.testing.assert_array_equal(ours["classes"], theirs["classes"].numpy())
    assert agreement(theirs, ours) == (len(theirs["rles"]), pytest.approx(1, abs=1e-3))


def test_nothing_found(model: yolact.Yolact, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = OriginalOrder(model)
    work.settings = replace(work.settings, score_threshold=0.999999)
    found = work(image)
    assert (found["rles"], len(found["scores"])) == ([], 0)
    assert agreement(found, found) == (0, 0.0)


def test_unreadable_image(model: yolact.Yolact, tmp_path: Path) -> None:
    with pytest.raises(YolactError, match=r"cannot read image .*none\.jpg"):
        OriginalOrder(model)(tmp_path / "none.jpg")


def test_agreement_counts_by_class_and_overlap() -> None:
    def rle(columns: int) -> dict:
        mask = np.zeros((10, 10), np.uint8, order="F")
        mask[:, :columns] = 1
        return coco_mask.encode(mask)

    first = {"classes": [0, 1, 2, 4, 5], "rles": [rle(10), rle(10), rle(10), rle(0), rle(0)]}
    second = {"classes": [0, 1, 3, 4, 5], "rles": [rle(10), rle(5), rle(10), rle(0), rle(1)]}
    assert agreement(first, second) == (2, 1.0)  # the first, and the two empty ones


@pytest.mark.slow
def test_matches_the_reference(coco_mini, tmp_path: Path) -> None:
    path = coco_mini.val_images / "000000000139.jpg"
    golden = np.load(reference_file("golden_yolact_resnet50_config_coco.npz"))
    weights = tmp_path / "yolact_resnet50_54_800000.pth"
    torch.save(
        {k: torch.from_numpy(v) for k, v in load_fill().state_dict("yolact_resnet50").items()}, weights
    )
    found = OriginalOrder(yolact.load_model(weights))(path)
    height, width = golden["img_hw"].tolist()
    classes, scores, boxes = (found[key].numpy() for key in ("classes", "scores", "boxes"))
    rows = match_rows(golden, "fast_pp", classes, scores, boxes, score_tolerance=1e-4, box_tolerance=1)
    assert_pixel_boxes(boxes, golden, "fast", rows)
    expected = [{"size": [height, width], "counts": text} for text in golden["fast_pp_rle"][rows].tolist()]
    different = coco_mask.decode(expected) != coco_mask.decode(found["rles"])
    assert different.mean() < 1e-4


def test_command(
    model: yolact.Yolact,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command.yolact, "load_model", lambda weights: model, raising=False)
    engine = TorchEngine.from_model(model, device="cpu")
    opened = []

    def load(path: str, **options: object) -> TorchEngine:
        opened.append((path, options))
        return engine

    monkeypatch.setattr("yolact_bench.engines.load_engine", load)
    options = ["--weights", "w.pth", "--onnx", "f.onnx", "--engine", "g.xml:precision=bf16,name=mine"]
    limits = ["--images", str(image.parent), "--seconds", "0.1", "--runs", "5", "--threads", "1"]
    assert command.main([*options, *limits, "--json", str(tmp_path / "figures.json")]) == 0
    assert opened == [("f.onnx", {"threads": 1}), ("g.xml", {"threads": 1, "precision": "bf16"})]
    out = capsys.readouterr().out
    assert out.count("100/100") == 3
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert out.count("PyTorch (cpu)") == 3
    names = ["f.onnx", "mine"]
    assert list(figures["timings"]) == ["original", *names]
    assert figures["engines"]["mine"] == {"backend": "PyTorch (cpu)", "precision": "fp32"}
    for name in names:
        fast = figures["timings"]["original"]["median"] / figures["timings"][name]["median"]
        assert figures["times_as_fast"][name] == pytest.approx(fast)
        assert figures["agreement"][name]["matched"] == 100


@pytest.mark.parametrize(
    "engine, message",
    [("g.xml:precision=", "precision= has no value"), ("g.xml:name=original", "choose another")],
)
def test_wrong_use(
    model: yolact.Yolact, image: Path, monkeypatch: pytest.MonkeyPatch, capsys, engine: str, message: str
) -> None:
    monkeypatch.setattr(command.yolact, "load_model", lambda weights: model, raising=False)
    assert command.main(["--weights", "w.pth", "--engine", engine, "--images", str(image.parent)]) == 2
    assert message in capsys.readouterr().err
