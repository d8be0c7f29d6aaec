"""The loss against the reference implementation's, and where that is not finite."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import oracle
import pytest
import torch
from golden import strided
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import downsample_masks
from shared_data import COCO_MINI, REFERENCE, load_fill, reference_file, reference_files

from yolact.config import LossConfig
from yolact.data.batch import Target
from yolact.data.geometry import Geometry
from yolact.losses import Losses, MultiBoxLoss, match
from yolact.model import Yolact, YolactOutput
from yolact.model.boxes import encode
from yolact.model.priors import prototype_size, pyramid_levels
from yolact.registry import get_config
from yolact_runtime.metadata import InputSize

CASES = sorted(REFERENCE.glob("loss_*.npz"))


def make_target(
    rows: np.ndarray, masks: np.ndarray, crowds: int, size: tuple[int, int], semantic: tuple[int, int]
) -> Target:
    """A target from reference rows (x1 y1 x2 y2 label, crowds last) and masks (G, H, W)."""
    split = len(rows) - crowds
    values, pixels = torch.from_numpy(rows), torch.from_numpy(masks)[:split]
    return Target(
        boxes=values[:split, :4],
        labels=values[:split, 4].long(),
        masks=downsample_masks(pixels, size),
        semantic_masks=downsample_masks(pixels, semantic),
        crowd_boxes=values[split:, :4],
    )


class UnitCase:
    """The small self-contained case."""

    def __init__(self) -> None:
        self.golden = np.load(reference_file("unit_loss_detect.npz"))
        g = self.golden
        self.priors = torch.from_numpy(g["in_priors"])
        self.inputs = {
            name: torch.from_numpy(g[f"in_{name}"]).requires_grad_()
            for name in ("loc", "conf", "mask", "proto", "segm")
        }
        self.targets = []
        for i in range(2):
            shape = g[f"in_masks{i}_shape"]
            masks = np.unpackbits(g[f"in_masks{i}"])[: shape.prod()].reshape(shape)
            crowds = int(g["in_num_crowds"][i])
            self.targets.append(make_target(g[f"in_target{i}"], masks, crowds, (18, 18), (18, 18)))

    def losses(self) -> Losses:
        model = Yolact(get_config("yolact_tiny"))
        model.priors = self.priors
        x = self.inputs
        output = YolactOutput(x["loc"], x["conf"], x["mask"], x["proto"])
        return MultiBoxLoss(LossConfig(), "first")(model, output, x["segm"], self.targets)


@pytest.fixture()
def unit() -> UnitCase:
    return UnitCase()


def test_unit_matches(unit: UnitCase) -> None:
    found = match(unit.priors, unit.targets, LossConfig())
    for i in range(2):
        np.testing.assert_array_equal(found.classes[i], unit.golden[f"match{i}_conf_t"])
        np.testing.assert_array_equal(found.instances[i], unit.golden[f"match{i}_idx_t"])


def test_unit_losses_and_gradients(unit: UnitCase) -> None:
    losses = unit.losses()
    for name, key in (("box", "B"), ("cls", "C"), ("mask", "M"), ("semantic", "S")):
        assert getattr(losses, name).item() == pytest.approx(float(unit.golden[f"loss_{key}"]), rel=1e-3), (
            name
        )
    losses.total.backward()
    for name, tensor in unit.inputs.items():
        expected, step = strided(unit.golden, f"grad_{name}")
        assert tensor.grad is not None
        gradient = tensor.grad.reshape(-1)[::step]
        np.testing.assert_allclose(gradient, expected.reshape(-1), atol=1e-3 * np.abs(expected).max())


def assert_matches(model: Yolact, targets: list[Target], golden: np.lib.npyio.NpzFile) -> None:
    """Every prior learns the class, and every positive one the instance and box, of the reference."""
    matches = match(model.priors, targets, model.config.loss)
    for i, target in enumerate(targets):
        np.testing.assert_array_equal(matches.classes[i], golden[f"match{i}_conf_t"])
        positive = golden[f"match{i}_pos_idx"]
        instances = matches.instances[i][positive]
        np.testing.assert_array_equal(instances, golden[f"match{i}_idx_t"][positive])
        loc = encode(target.boxes[instances], model.priors[positive])
        np.testing.assert_allclose(loc, golden[f"match{i}_loc_t_pos"], atol=1e-4)


@pytest.mark.parametrize(
    "path", reference_files("matches_*.npz"), ids=lambda path: path.stem.removeprefix("matches_")
)
def test_matches_of_coco_boxes(path: Path) -> None:
    golden = np.load(path)
    name = re.fullmatch(r"matches_(\w+)_config_\w+", path.stem)[1]  # type: ignore[index]
    no_masks = np.zeros((100, 1, 1), np.uint8)  # matching needs the boxes only
    targets = [
        make_target(golden[f"target{i}"], no_masks, crowds, (1, 1), (1, 1))
        for i, crowds in enumerate(golden["num_crowds"].tolist())
    ]
    assert_matches(Yolact(get_config(name)), targets, golden)


@pytest.mark.slow
@pytest.mark.skipif(not CASES, reason="no whole reference set")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem.removeprefix("loss_"))
def test_network_losses_and_gradients(path: Path) -> None:
    # Rounding depends on the number of threads, and may turn a maximum of the mask IoU net to another pixel.
    torch.set_num_threads(2)
    golden = np.load(path)
    name = re.fullmatch(r"loss_(\w+)_config_\w+", path.stem)[1]  # type: ignore[index]
    model = Yolact(get_config(name))
    model.load_state_dict({k: torch.from_numpy(v) for k, v in load_fill().state_dict(name).items()})
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    config = model.config.model
    mean, std = np.float32(config.mean), np.float32(config.std)
    images, targets = [], []
    for i, image_id in enumerate(golden["image_ids"]):
        image = cv2.imread(str(COCO_MINI / "train2017" / f"{image_id:012d}.jpg")).astype(np.float32)
        image = (cv2.resize(image, (config.input_size, config.input_size)) - mean) / std
        images.append(torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy()))
        shape = golden[f"masks{i}_shape"]
        masks = np.unpackbits(golden[f"masks{i}_bits"])[: shape.prod()].reshape(shape)
        height = -(-config.input_size // 8)
        sizes = (2 * height, 2 * height), (height, height)
        targets.append(make_target(golden[f"target{i}"], masks, int(golden["num_crowds"][i]), *sizes))

    assert_matches(model, targets, golden)
    output, semantic = model.forward_train(torch.stack(images))
    losses = MultiBoxLoss(model.config.loss, "first")(model, output, semantic, targets)
    terms = {"box": "B", "cls": "C", "mask": "M", "semantic": "S"} | (
        {"mask_iou": "I"} if config.mask_iou else {}
    )
    for term, key in terms.items():
        assert getattr(losses, term).item() == pytest.approx(float(golden[f"loss_{key}"]), rel=1e-3), term
    losses.total.backward()
    parameters = dict(model.named_parameters())
    for key, (_, mean_abs, norm) in zip(golden["grad_keys"], golden["grad_stat"], strict=True):
        gradient = parameters[str(key)].grad
        assert gradient is not None, key
        assert gradient.abs().mean().item() == pytest.approx(mean_abs, rel=1e-3), key
        assert gradient.double().norm().item() == pytest.approx(norm, rel=1e-3), key


def random_output(model: Yolact, batch: int, scale: float = 1.0) -> tuple[YolactOutput, torch.Tensor]:
    torch.manual_seed(0)
    p, c, m = len(model.priors), model.config.num_classes, model.config.model.num_prototypes
    output = YolactOutput(
        *(
            (scale * torch.randn(*shape)).requires_grad_()
            for shape in ((batch, p, 4), (batch, p, c + 1), (batch, p, m), (batch, 32, 32, m))
        )
    )
    return output, (scale * torch.randn(batch, c, 16, 16)).requires_grad_()


def square_target(boxes: list[list[float]], crowds: list[list[float]] | None = None) -> Target:
    masks = torch.zeros(len(boxes), 128, 128, dtype=torch.uint8)
    for mask, box in zip(masks, boxes, strict=True):
        x1, y1, x2, y2 = (round(128 * value) for value in box)
        mask[y1:y2, x1:x2] = 1
    return Target(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.arange(len(boxes)) % 3,
        masks=downsample_masks(masks, (32, 32)),
        semantic_masks=downsample_masks(masks, (16, 16)),
        crowd_boxes=torch.tensor(crowds or []).reshape(-1, 4),
    )


@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [[0.2, 0.2, 0.2, 0.2]],
        [[0.3, 0.1, 0.3, 0.9], [0.1, 0.1, 0.5, 0.5]],
        [[0.1, 0.1, 0.9, 0.9]] * 5,
    ],
    ids=["none", "point", "line", "copies"],
)
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_finite_where_the_original_is_not(boxes: list[list[float]], scale: float) -> None:
    model = Yolact(get_config("yolact_tiny"))
    output, semantic = random_output(model, 2, scale)
    targets = [square_target(boxes), square_target([], crowds=[[0.0, 0.0, 1.0, 1.0]])]
    losses = MultiBoxLoss(LossConfig())(model, output, semantic, targets)
    losses.total.backward()
    assert torch.isfinite(torch.stack(list(losses))).all()
    assert all(torch.isfinite(tensor.grad).all() for tensor in (*output, semantic) if tensor.grad is not None)


def np_arrays(rows: list[Any]) -> list[list[np.ndarray]]:
    return [[part.numpy() for part in row] for row in rows]


@pytest.mark.parametrize(("size", "scale"), [(128, 0.25), ((72, 200), 0.25), ((160, 64), 0.5), (96, 0.125)])
def test_losses_are_the_oracles(size: InputSize, scale: float) -> None:
    """Crowds, overlapping instances of one class, an image without any; in double precision."""
    config = get_config("yolact_tiny")
    model = Yolact(replace(config, model=replace(config.model, input_size=size, proto_scale=scale)))
    height, width = model.config.model.input_shape
    rng = np.random.default_rng(height)
    (h3, w3), (hp, wp) = pyramid_levels(size)[0], prototype_size(size, scale)
    outputs, targets = [], []
    for count, crowds in ((5, 1), (0, 0), (3, 0)):
        shapes = (len(model.priors), 4), (len(model.priors), 4), (len(model.priors), 16), (hp, wp, 16)
        *heads, prototypes, semantic = (rng.normal(size=shape) for shape in (*shapes, (3, h3, w3)))
        outputs.append([*heads, np.maximum(prototypes, 0), semantic])
        corner = rng.uniform(0, 0.5, (count + crowds, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0.2, 0.5, corner.shape)], axis=1)
        full = np.zeros((count, height, width), np.uint8)
        for mask, box in zip(full, boxes, strict=False):
            x1, y1, x2, y2 = np.round(box * [width, height, width, height]).astype(int)
            cv2.ellipse(
                mask, ((x1 + x2) // 2, (y1 + y2) // 2), ((x2 - x1) // 2, (y2 - y1) // 2), 0, 0, 360, 1, -1
            )
        rows = np.column_stack([boxes, np.arange(len(boxes)) % 2]).astype(np.float32)
        targets.append(make_target(rows, full, crowds, (hp, wp), (h3, w3)))
    tensors = [torch.from_numpy(np.stack(part).astype(np.float32)) for part in zip(*outputs, strict=True)]
    matches = match(model.priors, targets, LossConfig())
    found = MultiBoxLoss(LossConfig())(model, YolactOutput(*tensors[:4]), tensors[4], targets, matches)
    parts = [list(vars(target).values())[:4] for target in targets]
    given = list(zip(*tensors, strict=True)), parts, list(zip(*matches, strict=True))
    expected = oracle.losses(model.priors, *(np_arrays(rows) for rows in given))
    np.testing.assert_allclose([term.item() for term in found[:4]], expected, rtol=1e-4)


NUMBERS = st.floats(-1e3, 1e3) | st.floats(0, 40) | st.sampled_from([0.0, -1.0, 1e-9, 0.02, 0.5, 1e30, -1e30])


@settings(max_examples=40)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=3))
def test_the_loss_of_any_annotation_has_the_usual_size(boxes: list[tuple[float, ...]]) -> None:
    """x, y, w, h in pixels of an image of 32 x 32, with a mask that does not care."""
    x, y, w, h = np.array(boxes).T
    relative = Geometry.whole(32, 32).boxes(np.stack([x, y, x + w, y + h], axis=1))
    model = Yolact(get_config("yolact_tiny"))
    output, semantic = random_output(model, 1, 0.0)
    target = square_target([[0.1, 0.1, 0.9, 0.9]] * len(boxes))
    target.boxes = torch.from_numpy(relative)
    losses = MultiBoxLoss(model.config.loss)(model, output, semantic, [target])
    assert torch.isfinite(losses.total) and losses.total < 150  # 15 for a large box
    losses.total.backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in output if tensor.grad is not None)


def test_sides_below_four_pixels_of_550_count_as_four() -> None:
    model = Yolact(get_config("yolact_tiny"))
    output, semantic = random_output(model, 1, 0.0)
    pixel = 1 / 550
    totals = []
    for side in (4 * pixel, 1 * pixel, 0.02 * pixel, 0.0):
        target = square_target([[0.2, 0.2, 0.4, 0.4]])
        target.boxes = torch.tensor([[0.3 - side / 2, 0.3 - side / 2, 0.3 + side / 2, 0.3 + side / 2]])
        totals.append(MultiBoxLoss(model.config.loss)(model, output, semantic, [target]).total.item())
    assert totals == pytest.approx(totals[:1] * 4, rel=1e-4)


def test_every_instance_gets_a_prior() -> None:
    model = Yolact(get_config("yolact_tiny"))
    generator = np.random.default_rng(0)
    corner = generator.uniform(0, 0.9, (300, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(0.01, 0.1, (300, 2))], axis=1).astype(
        np.float32
    )
    target = replace(
        square_target([]), boxes=torch.from_numpy(boxes), labels=torch.zeros(300, dtype=torch.int64)
    )
    found = match(model.priors, [square_target([]), target], LossConfig())
    positive = found.classes[1] > 0
    assert set(found.instances[1][positive].tolist()) == set(range(300))
    assert not (found.classes[0] > 0).any()


def test_crowds_make_unmatched_priors_neutral() -> None:
    model = Yolact(get_config("yolact_tiny"))
    crowd = [[0.0, 0.0, 0.5, 1.0]]
    found = match(model.priors, [square_target([[0.1, 0.1, 0.4, 0.4]], crowd)], LossConfig()).classes[0]
    left = model.priors[:, 0] + model.priors[:, 2] / 2 < 0.5
    inside = (
        left
        & (model.priors[:, 1] - model.priors[:, 3] / 2 > 0)
        & (model.priors[:, 1] + model.priors[:, 3] / 2 < 1)
    )
    inside &= model.priors[:, 0] - model.priors[:, 2] / 2 > 0
    assert inside.any()
    assert (found[inside] != 0).all()
    assert (found > 0).any()


def test_masks_beyond_the_limit_are_scaled_up() -> None:
    model = Yolact(get_config("yolact_tiny"))
    output, semantic = random_output(model, 1)
    targets = [square_target([[0.1, 0.1, 0.6, 0.6], [0.3, 0.3, 0.9, 0.9], [0.0, 0.0, 1.0, 1.0]])]
    positives = int((match(model.priors, targets, LossConfig()).classes > 0).sum())
    assert positives > 2
    full = MultiBoxLoss(LossConfig(), "first")(model, output, semantic, targets).mask.item()
    parts = [
        MultiBoxLoss(LossConfig(max_masks=limit), "first")(model, output, semantic, targets).mask.item()
        for limit in (1, positives)
    ]
    assert parts[1] == pytest.approx(full)
    assert parts[0] != pytest.approx(full)
    assert parts[0] == pytest.approx(full, rel=3)
