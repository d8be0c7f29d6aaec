"""The network and its detections against golden tensors of the reference implementation.

Every `golden_<config>_config_<image>.npz` in tests/data, and in the whole set if it is there, is a case.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from cuda_on_cpu import REVERSED, run
from golden import assert_pixel_boxes, match_rows, strided
from kernel_heads import run_kernels
from oracle import full_masks
from pycocotools import mask as coco_mask
from shared_data import COCO_MINI, load_fill, reference_files

from yolact.engine import TorchEngine
from yolact.model import Yolact, YolactOutput
from yolact.model.detect import Detections, detect
from yolact.registry import get_config
from yolact.weights.load import load_model
from yolact_bench.gpu_checks.inputs import Heads
from yolact_runtime.cuda.plans.masks import MaskShapes, mask_plan, read_regions
from yolact_runtime.masks import full_masks as region_masks
from yolact_runtime.preprocess import resize_batch

PHOTO = COCO_MINI / "val2017/000000000139.jpg"
CASES = reference_files("golden_*.npz")
TABLES = load_fill().read_tables()


class Case:
    """One golden file, its network with the reference weights, and its image."""

    def __init__(self, path: Path, folder: Path) -> None:
        match = re.fullmatch(r"golden_(\w+)_config_([a-z]+)", path.stem)
        assert match
        self.golden = np.load(path)
        fill = load_fill()
        name = match[1]
        state = {key: torch.from_numpy(value) for key, value in fill.state_dict(name).items()}
        self.checkpoint = folder / f"{name}_54_800000.pth"
        torch.save(state, self.checkpoint)
        self.model = load_model(self.checkpoint)
        if match[2] == "synth":
            self.image = fill.synthetic_image()
        else:
            self.image = cv2.imread(str(PHOTO))
        assert hashlib.sha1(self.image.tobytes()).digest() == bytes(self.golden["img_sha1"])
        batch = resize_batch([self.image], self.model.config.model.input_size, np.float32)
        mean, std = (np.float32(getattr(self.model.config.model, key)) for key in ("mean", "std"))
        self.x = torch.from_numpy(((batch - mean) / std)[..., ::-1].copy()).permute(0, 3, 1, 2)
        with torch.inference_mode():
            self.output = self.model(self.x)


SLOW_CASES = [
    pytest.param(path, marks=pytest.mark.slow, id=path.stem.removeprefix("golden_")) for path in CASES
]


@pytest.fixture(scope="module", params=SLOW_CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if request.param.stem.endswith("_coco") and not PHOTO.exists():
        pytest.skip(f"no {PHOTO.name}: set YOLACT_TEST_SHARED to the folder that holds data/coco-mini")
    return Case(request.param, tmp_path_factory.mktemp("golden"))


def assert_near(ours: np.ndarray, golden: np.ndarray, maximum: float) -> None:
    assert ours.shape == golden.shape
    assert np.abs(ours - golden).max() <= 2e-4 * maximum


def test_input(case: Case) -> None:
    picked, step = strided(case.golden, "x")
    assert_near(case.x[0, :, ::step, ::step].numpy(), picked, 1)


@pytest.mark.parametrize(
    ("name", "stem"), [("loc", "loc"), ("logits", "conf_logits"), ("coefficients", "coef_tanh")]
)
def test_raw_outputs(case: Case, name: str, stem: str) -> None:
    ours = getattr(case.output, name)[0].numpy()
    stat = case.golden[f"{stem}_stat"]
    maximum = np.abs(stat[2:4]).max()
    picked, step = strided(case.golden, stem)
    assert_near(ours[::step], picked, maximum)
    assert np.abs(ours).mean(dtype=np.float64) == pytest.approx(stat[1], rel=2e-4)
    assert ours.std(dtype=np.float64, ddof=1) == pytest.approx(stat[4], rel=2e-4)


def test_prototypes(case: Case) -> None:
    ours = case.output.prototypes[0].numpy()
    assert ours.shape == tuple(case.golden["proto_shape"])
    picked, step = strided(case.golden, "proto")
    assert_near(ours[::step, ::step], picked, np.abs(case.golden["proto_stat"][2:4]).max())


def test_priors(case: Case) -> None:
    picked, step = strided(case.golden, "priors")
    np.testing.assert_array_equal(case.model.priors[::step].numpy(), picked)


def detections(model: Yolact, output: YolactOutput, nms: str) -> Detections:
    limit = 200 if nms == "cross_class" else 100
    config = type(model.config.detect)(nms=nms, max_detections=limit)  # type: ignore[arg-type]
    with torch.inference_mode():
        return detect(model, output, config)


@pytest.mark.parametrize(("nms", "key"), [("fast", "fast"), ("traditional", "trad"), ("cross_class", "cc")])
def test_detections(case: Case, nms: str, key: str) -> None:
    found = detections(case.model, case.output, nms)
    golden = case.golden
    n = int(found.count[0])
    classes, scores, boxes = (part[0, :n].numpy() for part in (found.classes, found.scores, found.boxes))
    rows = match_rows(golden, f"{key}_det", classes, scores, boxes)
    np.testing.assert_allclose(found.coefficients[0, :n], golden[f"{key}_det_mask"][rows], atol=1e-3)
    if f"{key}_pp_mask_score" in golden.files:
        expected = golden[f"{key}_pp_mask_score"][rows]
        np.testing.assert_allclose(found.mask_scores[0, :n], expected, atol=1e-3)


def test_detection_kernels(case: Case) -> None:
    output = case.output
    heads = Heads(output.loc.numpy(), output.logits.numpy(), case.model.priors.numpy())
    found = run_kernels(heads)[0]
    rows = match_rows(case.golden, "fast_det", found.classes, found.scores, found.boxes)
    coefficients = output.coefficients[0, torch.from_numpy(found.indices)]
    np.testing.assert_allclose(coefficients, case.golden["fast_det_mask"][rows], atol=1e-3)
    again = run_kernels(heads, REVERSED)[0]
    assert found.boxes.tobytes() == again.boxes.tobytes()
    np.testing.assert_array_equal(found.indices, again.indices)


def test_fixed_shape_detection_is_the_same(case: Case) -> None:
    config = case.model.config.detect
    with torch.inference_mode():
        dynamic = detect(case.model, case.output, config)
        fixed = detect(case.model, case.output, config, compact=False)
    assert int(dynamic.count[0]) == int(fixed.count[0])
    torch.testing.assert_close(dynamic.scores, fixed.scores, rtol=0, atol=0)


def test_engine_gives_the_reference_boxes_and_masks(case: Case) -> None:
    with TorchEngine(case.checkpoint) as engine:
        result = engine.predict([case.image], score_threshold=0, top_k=100)[0]
    golden = case.golden
    rows = match_rows(golden, "fast_det", result.classes, result.scores, result.relative_boxes)
    np.testing.assert_array_equal(golden["fast_pp_class"], golden["fast_det_class"])
    assert_pixel_boxes(result.boxes, golden, "fast", rows)
    size = [int(side) for side in golden["img_hw"]]
    expected = np.stack(
        [coco_mask.decode({"size": size, "counts": counts.encode()}) for counts in golden["fast_pp_rle"]]
    )
    assert (result.masks == expected[rows]).mean() >= 0.9999
    ours = np.stack([coco_mask.decode(rle) for rle in result.rles])
    np.testing.assert_array_equal(ours, result.masks)


def test_mask_kernels(case: Case) -> None:
    golden = case.golden
    prototypes = case.output.prototypes.numpy()
    size = (int(golden["img_hw"][0]), int(golden["img_hw"][1]))
    boxes, coefficients = golden["fast_det_box"], golden["fast_det_mask"]
    shapes = MaskShapes(1, *coefficients.shape, *prototypes.shape[1:3], *size)
    inputs = {
        "boxes": boxes[None],
        "kept_coefficients": coefficients[None],
        "count": np.array([len(boxes)], np.int32),
        "prototypes": prototypes,
        "sizes": np.array([size], np.int32),
    }
    out = run(mask_plan(shapes), inputs)
    (regions,) = read_regions(inputs["count"], inputs["sizes"], out["regions"], out["offsets"], out["edges"])
    expected = np.stack(
        [coco_mask.decode({"size": size, "counts": counts.encode()}) for counts in golden["fast_pp_rle"]]
    )
    assert (region_masks(regions, *size) == expected).mean() >= 0.9999
    again = run(mask_plan(shapes), inputs, REVERSED)
    assert all(out[name].tobytes() == again[name].tobytes() for name in out)


@pytest.mark.parametrize("name", TABLES)
def test_state_dict_has_the_published_keys(name: str) -> None:
    table = TABLES[name]
    with torch.device("meta"):
        model = Yolact(get_config(name))
    state = {key: (list(value.shape), str(value.dtype)) for key, value in model.state_dict().items()}
    assert state == {key: (shape, dtype) for key, shape, dtype in table["state_dict"]}
    assert len(model.priors) == table["n_priors"]
    assert sum(parameter.numel() for parameter in model.parameters()) == table["n_params"]


def test_oracle_agrees(case: Case) -> None:
    found = detections(case.model, case.output, "fast")
    count = int(found.count[0])
    found_rows = (part[0, :count].numpy() for part in (found.classes, found.scores, found.boxes))
    n = min(10, count)
    rows = match_rows(case.golden, "fast_det", *found_rows)[:n]
    height, width = (int(side) for side in case.golden["img_hw"])
    soft = full_masks(
        found.coefficients[0, :n].numpy(),
        found.prototypes[0].numpy(),
        found.boxes[0, :n].numpy(),
        height,
        width,
    )
    areas = case.golden["fast_pp_mask_area"][rows]
    np.testing.assert_allclose((soft > 0.5).sum(axis=(1, 2)), areas, atol=np.maximum(4, areas * 1e-4).max())
