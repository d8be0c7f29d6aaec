"""Detection against the oracle, torchvision and the reference's small case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
import torchvision
from golden import match_rows
from shared_data import reference_file

from yolact.config import Classes, DetectConfig
from yolact.model import Yolact, YolactOutput
from yolact.model.boxes import corners
from yolact.model.detect import assemble_masks, detect
from yolact.model.priors import prototype_size
from yolact.registry import get_config
from yolact_runtime.metadata import InputSize


def make_model(classes: int = 3, mask_iou: bool = False, size: InputSize = 128) -> Yolact:
    config = get_config("yolact_tiny")
    names = tuple(f"class {i}" for i in range(classes))
    config = replace(config, classes=Classes(names, tuple(range(classes))))
    size = 256 if mask_iou else size
    return Yolact(replace(config, model=replace(config.model, mask_iou=mask_iou, input_size=size))).eval()


def make_output(model: Yolact, images: int = 2, background: float = 2.0, seed: int = 0) -> YolactOutput:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    p, c = len(model.priors), model.config.num_classes
    logits = 2 * normal(images, p, c + 1)
    logits[..., 0] += background
    return YolactOutput(
        normal(images, p, 4),
        logits,
        normal(images, p, 16).tanh(),
        normal(images, *prototype_size(model.config.model.input_size), 16).relu(),
    )


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize(
    ("classes", "background", "size"),
    [(3, 3.0, 128), (1, 4.0, 128), (20, 5.0, 128), (3, 30.0, 128), (3, 3.0, (72, 200)), (3, 3.0, (250, 40))],
)
def test_fast_nms_is_the_oracles(classes: int, background: float, size: InputSize, compact: bool) -> None:
    model = make_model(classes, size=size)
    output = make_output(model, background=background)
    with torch.inference_mode():
        found = detect(model, output, compact=compact)
    for i in range(2):
        expected = oracle.detect(
            output.loc[i].numpy(),
            output.logits[i].numpy(),
            output.coefficients[i].numpy(),
            model.priors.numpy(),
        )
        n = int(found.count[i])
        assert n == len(expected["scores"])
        np.testing.assert_array_equal(found.classes[i, :n], expected["classes"])
        for name in ("scores", "boxes", "coefficients"):
            np.testing.assert_allclose(getattr(found, name)[i, :n], expected[name], atol=1e-5)
            assert (getattr(found, name)[i, n:] == 0).all()
        assert (found.classes[i, n:] == 0).all()
    if background == 30.0:
        assert found.count.sum() == 0


@pytest.mark.parametrize("size", [128, (64, 224), (200, 56)])
def test_traditional_nms_is_torchvisions(size: InputSize) -> None:
    model = make_model(size=size)
    output = make_output(model, images=1)
    found = detect(model, output, DetectConfig(nms="traditional", max_detections=3000))
    scores = output.logits.softmax(-1)[0, :, 1:]
    boxes = oracle.decode(output.loc[0].numpy(), model.priors.numpy()) * np.array(
        model.config.model.input_shape[::-1] * 2
    )
    expected = 0
    for cls in range(3):
        rows = (scores[:, cls] > 0.05).nonzero()[:, 0]
        inclusive = torch.from_numpy(boxes[rows]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
        keep = rows[torchvision.ops.nms(inclusive, scores[rows, cls].double(), 0.5)]
        ours = found.scores[0, : found.count[0]][found.classes[0, : found.count[0]] == cls]
        torch.testing.assert_close(ours, scores[keep, cls])
        expected += len(keep)
    assert expected == found.count[0]


def test_cross_class_nms_keeps_one_class_a_prior_and_the_limit() -> None:
    model = make_model()
    output = make_output(model, images=1)
    wide = detect(model, output, DetectConfig(nms="cross_class", max_detections=200))
    n = int(wide.count[0])
    overlap = torchvision.ops.box_iou(wide.boxes[0, :n], wide.boxes[0, :n]).triu(1)
    assert overlap.max() <= 0.5
    few = detect(model, output, DetectConfig(nms="cross_class", max_detections=5))
    assert few.count[0] == 5
    torch.testing.assert_close(few.scores[0], wide.scores[0, :5])


@pytest.mark.parametrize(("nms", "key"), [("fast", "fast"), ("traditional", "trad"), ("cross_class", "cc")])
def test_reference_unit(nms: str, key: str) -> None:
    golden = np.load(reference_file("unit_loss_detect.npz"))
    model = make_model(80)
    model.priors = torch.from_numpy(golden["in_priors"])
    # The case gives probabilities; their logarithm has them as its softmax.
    logits = torch.from_numpy(golden["det_conf"]).double().log().float()
    output = YolactOutput(
        torch.from_numpy(golden["in_loc"][:1]), logits,
        torch.from_numpy(golden["in_mask"][:1]), torch.from_numpy(golden["in_proto"][:1]),
    )  # fmt: skip
    limit = 200 if nms == "cross_class" else 100
    config = DetectConfig(nms=nms, max_detections=limit)  # type: ignore[arg-type]
    if nms == "traditional":
        model.config = replace(model.config, model=replace(model.config.model, input_size=550))
    found = detect(model, output, config)
    n = int(found.count[0])
    classes, scores, boxes = (part[0, :n].numpy() for part in (found.classes, found.scores, found.boxes))
    rows = match_rows(golden, f"det_{key}", classes, scores, boxes, score_tolerance=1e-6, box_tolerance=1e-6)
    np.testing.assert_allclose(found.coefficients[0, :n], golden[f"det_{key}_mask"][rows], atol=1e-6)


@pytest.mark.parametrize("size", [128, (72, 200)])
def test_masks_are_the_oracles(size: InputSize) -> None:
    model = make_model(size=size)
    output = make_output(model, images=2)
    found = detect(model, output)
    masks = assemble_masks(found.coefficients, found.prototypes, found.boxes)
    for i in range(2):
        arrays = [t[i].numpy() for t in (found.coefficients, found.prototypes, found.boxes)]
        np.testing.assert_allclose(masks[i], oracle.assemble(*arrays), atol=1e-5)


def test_rescoring_multiplies_by_the_predicted_iou() -> None:
    model = make_model(mask_iou=True)
    # 128 pixels give masks too small for the net's five strides; so look at larger prototypes.
    output = make_output(model, images=1)
    generator = torch.Generator().manual_seed(1)
    output = output._replace(prototypes=torch.rand(1, 138, 138, 16, generator=generator))
    with torch.inference_mode():
        found = detect(model, output)
        n = int(found.count[0])
        masks = assemble_masks(found.coefficients, found.prototypes, found.boxes)[0, :n]
        predicted = model.maskiou_net(masks[:, None])[torch.arange(n), found.classes[0, :n].long()]
    torch.testing.assert_close(
        found.mask_scores[0, :n], found.scores[0, :n] * predicted, rtol=1e-4, atol=1e-6
    )
    assert (found.mask_scores[0, n:] == 0).all()


def test_ties_come_in_the_order_of_their_indices() -> None:
    model = make_model(1)
    p = len(model.priors)
    logits = torch.zeros(1, p, 2)
    output = YolactOutput(torch.zeros(1, p, 4), logits, torch.zeros(1, p, 16), torch.zeros(1, 32, 32, 16))
    config = DetectConfig(iou_threshold=1.0, max_detections=10)
    found = detect(model, output, config)
    torch.testing.assert_close(found.boxes, corners(model.priors[None, :10]))


@pytest.mark.parametrize("compact", [True, False])
def test_not_a_number_is_not_a_detection(compact: bool) -> None:
    model = make_model()
    output = make_output(model, images=2)
    output.logits[0] = float("nan")
    found = detect(model, output, compact=compact)
    assert found.count[0] == 0
    assert found.count[1] > 0
    assert torch.isfinite(found.scores).all()


def expected_rows(model: Yolact, output: YolactOutput, image: int, nms: str, wanted: set[int]):
    """Scores and classes that each kind of NMS keeps of some classes, best first, by the oracle's float64."""
    scores = oracle.softmax(output.logits[image].numpy())[:, 1:]
    boxes = oracle.decode(output.loc[image].numpy(), model.priors.numpy())
    best, labels = scores.max(axis=1), scores.argmax(axis=1)
    if nms == "fast":
        keep = np.flatnonzero(best > 0.05)
        rows = [row for row in oracle.fast_nms(boxes[keep], scores[keep], limit=10**6) if row[1] in wanted]
        return [(score, cls) for _, cls, score in rows]
    if nms == "cross_class":
        # A prior has the best of all its classes; priors of other classes do not suppress.
        keep = np.flatnonzero((best > 0.05) & np.isin(labels, list(wanted)))
        rows = oracle.fast_nms(boxes[keep], best[keep, None], limit=10**6)
        return [(score, labels[keep[row]]) for row, _, score in rows]
    kept = []
    pixels = boxes * model.config.model.input_size + np.array([0, 0, 1, 1])
    for cls in wanted:
        mine: list[int] = []
        for row in sorted(np.flatnonzero(scores[:, cls] > 0.05), key=lambda row: -scores[row, cls]):
            if all(oracle.iou(pixels[other], pixels[row]) <= 0.5 for other in mine):
                mine.append(row)
        kept += [(scores[row, cls], cls) for row in mine]
    return sorted(kept, reverse=True)


@pytest.mark.parametrize("limit", [5, 100])
@pytest.mark.parametrize("wanted", [{1}, {0, 3}, {0, 1, 2, 3}])
@pytest.mark.parametrize("nms", ["fast", "traditional", "cross_class"])
def test_some_classes_are_those_of_the_oracle(nms: str, wanted: set[int], limit: int) -> None:
    model = make_model(4)
    output = make_output(model, background=4.0)
    config = DetectConfig(nms=nms, max_detections=limit)  # type: ignore[arg-type]
    found = detect(model, output, config, classes=wanted)
    for i in range(2):
        rows = expected_rows(model, output, i, nms, wanted)
        assert len(rows) > 5
        n = int(found.count[i])
        assert n == min(len(rows), limit)
        np.testing.assert_allclose(found.scores[i, :n], [score for score, _ in rows[:n]], atol=1e-6)
        assert found.classes[i, :n].tolist() == [cls for _, cls in rows[:n]]
        assert (found.classes[i, n:] == 0).all()
    mask = torch.tensor([index in wanted for index in range(4)])
    for compact in (True, False):
        same = detect(model, output, config, compact, mask)
        for name in ("count", "scores", "classes", "boxes", "coefficients"):
            assert torch.equal(getattr(same, name), getattr(found, name)), name


def test_a_class_that_is_left_out_suppresses_nothing() -> None:
    model = make_model(2)
    p = len(model.priors)
    logits = torch.full((1, p, 3), -20.0)
    logits[..., 0] = 0
    logits[0, 0, 1], logits[0, 1, 2] = 4.0, 3.0  # neighbours: the first is better
    output = YolactOutput(torch.zeros(1, p, 4), logits, torch.zeros(1, p, 16), torch.zeros(1, 32, 32, 16))
    model.priors[:2] = torch.tensor([0.5, 0.5, 0.4, 0.4])
    config = DetectConfig(nms="cross_class")
    assert detect(model, output, config).classes[0, :1].tolist() == [0]
    assert detect(model, output, config).count.tolist() == [1]
    only = detect(model, output, config, classes=[1])
    assert only.count.tolist() == [1] and only.classes[0, 0] == 1
