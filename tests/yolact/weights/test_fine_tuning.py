"""Weights for other classes: which are kept, and that they compute the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from yolact.config import Classes
from yolact.model import Yolact
from yolact.registry import get_config
from yolact.train.checkpoint import save_checkpoint
from yolact.weights.fine_tuning import load_for_fine_tuning
from yolact.weights.load import load_checkpoint
from yolact_runtime.errors import YolactError


def network(names: tuple[str, ...], **changes: object) -> Yolact:
    """A small network with a mask IoU net, for classes with the ids 5, 6, ..."""
    tiny = get_config("yolact_tiny")
    settings = replace(tiny.model, mask_iou=True, input_size=256, **changes)
    ids = tuple(range(5, 5 + len(names)))
    return Yolact(replace(tiny, classes=Classes(names, ids), model=settings)).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Yolact, Path]:
    """A network for cats, dogs and hens whose biases are not 0, and its checkpoint."""
    torch.manual_seed(3)
    model = network(("cat", "dog", "hen"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    save_checkpoint(path, model, 3, 70, None)
    return model, path


@pytest.mark.parametrize("names", [("hen", "cow", "cat", "owl"), ("dog", "hen", "cat"), ("dog",)])
def test_classes_with_the_same_name_compute_the_same(
    trained: tuple[Yolact, Path], names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    old, path = trained
    new = network(names)
    initial = {key: value.clone() for key, value in new.state_dict().items()}
    with caplog.at_level("INFO", "yolact"):
        load_for_fine_tuning(new, load_checkpoint(path), "--init-from mine.pth")
    here = [index for index, name in enumerate(names) if name in old.config.classes.names]
    there = [old.config.classes.names.index(names[index]) for index in here]
    others = [index for index in range(len(names)) if index not in here]
    said = f"{len(here)} of {len(names)} class{'es' if len(names) > 1 else ''} kept by name"
    assert f"{said}: {', '.join(names[index] for index in here)}" in caplog.text
    assert ("the others start anew" in caplog.text) == bool(others)

    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    masks = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        (before, semantic_before), (after, semantic_after) = (
            old.forward_train(image),
            new.forward_train(image),
        )
        ious_before, ious_after = old.maskiou_net(masks), new.maskiou_net(masks)
    # One convolution with fewer rows may add in another order.
    same = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(after.logits[..., 0], before.logits[..., 0], **same)  # background
    for index, source in zip(here, there, strict=True):
        torch.testing.assert_close(after.logits[..., index + 1], before.logits[..., source + 1], **same)
        torch.testing.assert_close(semantic_after[:, index], semantic_before[:, source], **same)
        torch.testing.assert_close(ious_after[:, index], ious_before[:, source], **same)
    torch.testing.assert_close(after.loc, before.loc, **same)

    loaded, stored = new.state_dict(), old.state_dict()
    priors = new.prediction_layers[0].priors
    for name in ("semantic_seg_conv", "maskiou_net.maskiou_net.10", "prediction_layers.0.conf_layer"):
        groups = priors if name.endswith("conf_layer") else 1
        first = int(groups > 1)  # after the background
        for kind in ("weight", "bias"):
            rows, from_rows, first_rows = (
                state[f"{name}.{kind}"].unflatten(0, (groups, -1))[:, first:]
                for state in (loaded, stored, initial)
            )
            assert torch.equal(rows[:, here], from_rows[:, there])
            assert torch.equal(rows[:, others], first_rows[:, others])


def test_without_a_common_name_or_names_as_before(
    trained: tuple[Yolact, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, path = trained
    layer = "prediction_layers.0.conf_layer.weight"
    renamed, other = network(("Katze", "Hund", "Huhn")), network(("Katze", "Hund"))
    same, fresh = network(("cat", "dog", "hen")), other.state_dict()[layer].clone()
    bare = tmp_path / "yolact_tiny_3_70.pth"
    torch.save(old.state_dict(), bare)
    unnamed, checkpoint = network(("hen", "dog", "cat")), load_checkpoint(bare)
    with caplog.at_level("INFO", "yolact"):
        for model in (renamed, other, same):
            load_for_fine_tuning(model, load_checkpoint(path), "W")
        load_for_fine_tuning(unnamed, checkpoint, "W")
    for model in (renamed, same, unnamed):
        assert torch.equal(model.state_dict()[layer], old.state_dict()[layer])
    assert torch.equal(other.state_dict()[layer], fresh)
    for said in (
        "as many classes with other names; all",
        "2 classes instead of 3, so these layers start anew: maskiou_net.maskiou_net.10, prediction",
        "the same classes; all",
        "as many classes, which it does not name; all",
    ):
        assert caplog.text.count(said) == 1


def test_the_authors_weights_have_the_names_of_their_table(tmp_path: Path) -> None:
    state = {"a.weight": torch.zeros(1)}
    for name, known in (("yolact_base_54_800000", True), ("yolact_base_10_5000", False)):
        torch.save(state, tmp_path / f"{name}.pth")
        checkpoint = load_checkpoint(tmp_path / f"{name}.pth")
        assert checkpoint.classes_known is known and checkpoint.config.classes.names[0] == "person"


def test_another_number_of_priors_is_an_error_in_words(trained: tuple[Yolact, Path]) -> None:
    model = network(("cat",), prior_aspect_ratios=(0.3, 0.5, 1.0, 2.0, 3.0))
    with pytest.raises(YolactError, match=r"of another shape: .*bbox_layer"):
        load_for_fine_tuning(model, load_checkpoint(trained[1]), "W")
