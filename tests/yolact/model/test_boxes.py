"""Boxes against torchvision, NumPy and themselves."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from golden import strided
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import DATA, reference_file

from yolact.model.boxes import corners, crop_window, decode, encode, iou
from yolact.model.priors import model_priors, prototype_size, pyramid_levels
from yolact.registry import configs, get_config


def random_boxes(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator)
    return torch.cat([low, low + 0.5 * torch.rand(count, 2, generator=generator)], dim=1)


def test_iou_is_torchvisions() -> None:
    a, b = random_boxes(40), random_boxes(30, seed=1)
    torch.testing.assert_close(iou(a, b), torchvision.ops.box_iou(a, b))


def test_iou_of_empty_boxes_is_zero() -> None:
    point = torch.tensor([[0.3, 0.3, 0.3, 0.3]])
    assert iou(point, point).item() == 0


def test_encode_inverts_decode() -> None:
    priors = torch.cat([torch.rand(50, 2), 0.05 + torch.rand(50, 2)], dim=1)
    loc = torch.randn(50, 4)
    torch.testing.assert_close(encode(decode(loc, priors), priors), loc, rtol=1e-4, atol=1e-4)


def test_encode_is_finite_for_degenerate_boxes() -> None:
    priors = torch.tensor([[0.5, 0.5, 0.1, 0.1]])
    assert torch.isfinite(encode(torch.tensor([[0.5, 0.5, 0.5, 0.2]]), priors)).all()


def test_reference_units() -> None:
    golden = np.load(reference_file("unit_loss_detect.npz"))
    priors = torch.from_numpy(golden["in_priors"])
    encoded = encode(torch.from_numpy(golden["enc_boxes"]), priors)
    np.testing.assert_allclose(encoded, golden["enc_out"], atol=1e-4)
    np.testing.assert_allclose(
        decode(torch.from_numpy(golden["in_loc"][0]), priors), golden["dec_out"], atol=1e-6
    )
    masks = torch.from_numpy(golden["crop_in"]).permute(2, 0, 1)
    window = crop_window(torch.from_numpy(golden["crop_boxes"]), masks.shape[1:])  # type: ignore[arg-type]
    np.testing.assert_array_equal((masks * window).permute(1, 2, 0), golden["crop_out"])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-0.5, 1.5, width=32), min_size=4, max_size=4), st.integers(1, 20), st.integers(1, 20)
)
def test_crop_window_pixel_by_pixel(box: list[float], height: int, width: int) -> None:
    window = crop_window(torch.tensor([box]), (height, width))[0]
    x1, x2 = sorted((np.float32(box[0]) * width, np.float32(box[2]) * width))
    y1, y2 = sorted((np.float32(box[1]) * height, np.float32(box[3]) * height))
    for y in range(height):
        for x in range(width):
            inside = x1 - 1 <= x < x2 + 1 and y1 - 1 <= y < y2 + 1
            assert bool(window[y, x]) == inside


@pytest.mark.parametrize("name", ["yolact_resnet50", "yolact_plus_resnet50"])
def test_priors_are_the_references(name: str) -> None:
    ours = model_priors(configs()[name].model).numpy()
    golden, step = strided(np.load(reference_file(f"priors_{name}_config.npz")), "priors")
    np.testing.assert_array_equal(ours[::step], golden)


@pytest.mark.parametrize("name", ["yolact_resnet50", "yolact_plus_resnet50"])
def test_all_priors_are_the_references(name: str) -> None:
    """The digest stands for the priors between those that the small reference set holds."""
    ours = model_priors(configs()[name].model).numpy().astype("<f4")
    digest = np.load(DATA / f"priors_{name}_config.npz")["sha256"]
    assert hashlib.sha256(ours.tobytes()).digest() == bytes(digest)


def test_levels_round_up() -> None:
    assert pyramid_levels(550) == [(69, 69), (35, 35), (18, 18), (9, 9), (5, 5)]
    assert prototype_size(700) == (176, 176)
    assert pyramid_levels((384, 643)) == [(48, 81), (24, 41), (12, 21), (6, 11), (3, 6)]
    assert prototype_size((384, 643)) == (96, 162)


@pytest.mark.parametrize("square", [False, True])
def test_priors_of_an_input_that_is_not_square_are_as_large_in_pixels(square: bool) -> None:
    height, width = 200, 392
    base = get_config("yolact_plus_resnet50").model
    model = replace(base, mask_iou=False, input_size=(height, width), prior_square=square)
    expected = []
    for level, scales in enumerate(model.prior_scales):
        rows, columns = (math.ceil(side / 2 ** (level + 3)) for side in (height, width))
        for y, x in itertools.product(range(rows), range(columns)):
            for scale, ratio in itertools.product(scales, model.prior_aspect_ratios):
                wide, high = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
                high = wide if square else high
                expected.append([(x + 0.5) / columns, (y + 0.5) / rows, wide / width, high / height])
    np.testing.assert_allclose(model_priors(model), expected, rtol=1e-6)


def test_corners() -> None:
    assert corners(torch.tensor([0.5, 0.5, 0.2, 0.4])).tolist() == pytest.approx([0.4, 0.3, 0.6, 0.7])
