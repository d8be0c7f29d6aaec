"""Configurations: the registry, overrides, conversion from plain values."""

from __future__ import annotations

import dataclasses
import json
import operator
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared_data import load_fill

from yolact.config import Classes, Config, TrainConfig
from yolact.model import Yolact
from yolact.model.priors import prototype_size
from yolact.registry import config_name_of, configs, get_config, position_of
from yolact.settings import override
from yolact_runtime.errors import UsageError

TABLES = load_fill().read_tables()
ORIGINAL = [
    "yolact_base",
    "yolact_im400",
    "yolact_im700",
    "yolact_darknet53",
    "yolact_resnet50",
    "yolact_resnet50_pascal",
    "yolact_plus_base",
    "yolact_plus_resnet50",
]


@pytest.mark.parametrize("name", ORIGINAL)
def test_matches_the_original_table(name: str) -> None:
    table = TABLES[name]["cfg"]
    config = get_config(f"{name}_config")
    assert list(config.classes.names) == table["dataset"]["class_names"]
    if table["dataset"]["label_map"]:
        assert [table["dataset"]["label_map"][str(i)] for i in config.classes.category_ids] == list(
            range(1, 81)
        )
    train, loss, detect, model = config.train, config.loss, config.detect, config.model
    assert (train.lr, train.momentum, train.weight_decay, train.gamma) == (
        table["lr"], table["momentum"], table["decay"], table["gamma"]
    )  # fmt: skip
    assert (list(train.steps), train.max_iterations) == (table["lr_steps"], table["max_iter"])
    assert (train.warmup_iterations, train.warmup_lr) == (table["lr_warmup_until"], table["lr_warmup_init"])
    assert (loss.box_weight, loss.class_weight, loss.mask_weight, loss.semantic_weight, loss.max_masks) == (
        table["bbox_alpha"], table["conf_alpha"], table["mask_alpha"],
        table["semantic_segmentation_alpha"], table["masks_to_train"],
    )  # fmt: skip
    assert (loss.positive_iou, loss.negative_iou, loss.crowd_iou, loss.negatives_per_positive) == (
        table["positive_iou_threshold"], table["negative_iou_threshold"],
        table["crowd_iou_threshold"], table["ohem_negpos_ratio"],
    )  # fmt: skip
    assert (detect.score_threshold, detect.iou_threshold, detect.nms_top_k, detect.max_detections) == (
        table["nms_conf_thresh"], table["nms_thresh"], table["nms_top_k"], table["max_num_detections"]
    )  # fmt: skip
    backbone = table["backbone"]
    assert model.input_size == table["max_size"]
    assert model.prior_square == backbone["use_square_anchors"]
    for ours, theirs in zip(model.prior_scales, backbone["pred_scales"], strict=True):
        assert ours == pytest.approx(theirs)
    if model.mask_iou:
        assert loss.mask_iou_weight == table["maskiou_alpha"]
        assert loss.min_mask_area == table["discard_mask_area"]


@pytest.mark.parametrize("config", configs().values(), ids=lambda config: config.name)
def test_survives_json(config: Config) -> None:
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_config("yolact_base").train.lr = 1.0  # type: ignore[misc]


def test_override() -> None:
    config = override(
        get_config("yolact_base"),
        [
            "train.lr=5e-4",
            "train.steps=[1, 2]",
            "train.freeze_bn=never",
            "train.autoscale=False",
            "name=mine",
        ],
    )
    assert config.train.lr == 5e-4
    assert config.train.steps == (1, 2)
    assert config.train.freeze_bn == "never"
    assert config.train.autoscale is False
    assert config.name == "mine"
    assert config.model == get_config("yolact_base").model


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.lrr=3", "train.lr"),
        ("lr=3", "near ones: train.lr"),
        ("train.lr=abc", "'abc'; expected float"),
        ("train.batch_size=2.5", "2.5; expected int"),
        ("train.batch_size=true", "True; expected int"),
        ("train.batch_size=0", "allowed: 1 to 1024"),
        ("train.freeze_bn=maybe", "allowed: auto, always, never"),
        ("train.autoscale=1", "expected bool"),
        ("train", "expected section.field=value"),
        ("train=3", "its settings are train.accumulate"),
        ("train.lr.x=3", "lr is a single value"),
        ("detect.nms_top_k=5000", "1 to 3840"),
        ("model.mean=[1, 2]", "model.mean"),
        ("dataset.classes=cat", 'expected a list, such as ["a", "b"]'),
        ("dataset.classes=[2.5]", "2.5; expected str"),
        ("dataset.other_classes=drop", "allowed: background, ignore"),
        ("model.input_size=31", "allowed: 32 to 2048"),
        ("model.input_size=[31,640]", "model.input_size = (31, 640); allowed: 32 to 2048"),
        ("model.input_size=[640,2049]", "allowed: 32 to 2048"),
        (
            "model.input_size=[384,640,3]",
            "[384, 640, 3]; expected a whole number, or list of two such as",
        ),
        ("model.input_size=[384,true]", "expected a whole number, or list of two"),
        ("model.proto_scale=0.3", "model.proto_scale = 0.3; allowed: 0.125, 0.25, 0.5"),
        ("model.proto_scale=1/2", "model.proto_scale = '1/2'; expected float"),
        ("model.input_size=384x640", "'384x640'; expected a whole number, or list of two such as [384, 640]"),
    ],
)
def test_override_says_what_is_wrong(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        override(get_config("yolact_base"), [assignment])


def numeric_settings(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and defaults of all settings that are numbers, or tuples of them."""
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from numeric_settings(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif re.search(r"\b(int|float)\b", str(hint)) and not re.search(r"\bstr\b", str(hint)):
            yield f"{prefix}{name}", operator.attrgetter(f"{prefix}{name}")(get_config("yolact_base"))


def everywhere(value: Any, template: Any) -> Any:
    """`template` with each number replaced by `value`."""
    return [everywhere(value, item) for item in template] if isinstance(template, tuple) else value


@pytest.mark.parametrize(("name", "default"), list(numeric_settings()), ids=lambda value: str(value)[:40])
def test_every_number_has_a_range(name: str, default: Any) -> None:
    for value in ("NaN", "Infinity", "-Infinity", "-1e308", "1e308", "1" + "0" * 25):
        text = str(everywhere(value, default)).replace("'", "")
        with pytest.raises(UsageError, match=rf"{re.escape(name)} = .{{1,130}}; (allowed|expected)"):
            override(get_config("yolact_base"), [f"{name}={text}"])


@pytest.mark.parametrize(
    "assignment",
    [
        "model.prior_scales=[[],[],[],[],[]]",
        "model.prior_scales=[[1],[1],[1],[1],[1,2]]",
        "model.prior_scales=[[-5],[-5],[-5],[-5],[-5]]",
        "model.prior_scales=" + str([list(range(1, 1000))] * 5),
        "model.prior_aspect_ratios=[]",
        "model.num_prototypes=0",
        "model.fpn_features=-5",
        "model.std=[0,0,0]",
        "model.backbone.deformable=[0,0,0]",
        "loss.max_masks=0",
        "loss.positive_iou=0.3",
        "train.steps=" + str([1] * 101),
        "train.seed=9223372036854775807",
        "train.batch_size=1" + "0" * 5000,
        "train.lr=" + "[" * 100_000,
        "augment.contrast=[2,1]",
        "dataset.name=a\0b",
        "name=../x",
        "name=a*",
        "name=" + "x" * 200,
        "name=",
    ],
    ids=lambda text: text[:40],
)
def test_what_cannot_be_trained_is_refused_on_one_short_line(assignment: str) -> None:
    with pytest.raises(UsageError) as caught:
        override(get_config("yolact_base"), [assignment])
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_mask_re_scoring_needs_an_input_that_its_network_can_halve() -> None:
    override(get_config("yolact_plus_base"), ["model.input_size=249"])
    with pytest.raises(UsageError, match=r"model\.input_size = 248; allowed: at least 249 with mask_iou"):
        override(get_config("yolact_plus_base"), ["model.input_size=248"])
    for scale, least in ((0.125, 497), (0.5, 121)):
        config = override(get_config("yolact_tiny"), [f"model.proto_scale={scale}", "model.input_size=512"])
        config = override(config, ["model.mask_iou=true", f"model.input_size=[512,{least}]"])
        model, small = Yolact(config), (1, 1, *prototype_size(least, scale))
        assert model.maskiou_net(torch.zeros(small)).shape == (1, 3)
        with pytest.raises(UsageError, match=f"at least {least} with mask_iou and proto_scale {scale}"):
            override(config, [f"model.input_size=[512,{least - 1}]"])


def test_prototypes_are_a_quarter_where_nothing_else_is_said() -> None:
    values = get_config("yolact_base").to_dict()
    assert values["model"].pop("proto_scale") == 0.25
    assert Config.from_dict(values) == get_config("yolact_base")


def test_an_input_has_a_height_and_a_width() -> None:
    config = override(get_config("yolact_base"), ["model.input_size=[384,640]"])
    assert config.model.input_size == config.model.input_shape == (384, 640)
    assert config.to_dict()["model"]["input_size"] == [384, 640]
    assert Config.from_dict(config.to_dict()) == config
    square = override(config, ["model.input_size=[550,550]"])
    assert square == get_config("yolact_base")
    assert square.to_dict()["model"]["input_size"] == 550


@given(st.floats(0, 10), st.integers(1, 64))
def test_override_keeps_any_number(lr: float, batch: int) -> None:
    config = override(get_config("yolact_tiny"), [f"train.lr={lr!r}", f"train.batch_size={batch}"])
    assert (config.train.lr, config.train.batch_size) == (lr, batch)


def test_unknown_keys_in_a_file_are_named() -> None:
    values = get_config("yolact_tiny").to_dict()
    values["train"]["learning_rate"] = 1
    with pytest.raises(UsageError, match=r"file\.pth: no setting 'train\.learning_rate'"):
        Config.from_dict(values, source="file.pth")


@pytest.mark.parametrize(
    ("name", "config", "position"),
    [
        ("yolact_base_54_800000.pth", "yolact_base", (54, 800000)),
        ("yolact_plus_resnet50_1_2_interrupt.pth", "yolact_plus_resnet50", (1, 2)),
        ("weights.pth", None, (0, 0)),
        ("yolact_base.pth", None, (0, 0)),
    ],
)
def test_file_names(name: str, config: str | None, position: tuple[int, int]) -> None:
    assert config_name_of(f"some/folder/{name}") == config
    assert position_of(f"some/folder/{name}") == position


def test_unknown_name_lists_the_near_ones() -> None:
    with pytest.raises(UsageError, match="near ones: yolact_base"):
        get_config("yolact_bsae")


def test_scaling_with_the_batch_size() -> None:
    # The original: rate times, iterations and steps over, batch / 8.
    train = dataclasses.replace(TrainConfig(), batch_size=5).scaled()
    assert train.lr == pytest.approx(1e-3 * 5 / 8)
    assert train.max_iterations == 1_280_000
    assert train.steps == (448_000, 960_000, 1_120_000, 1_200_000)
    assert train.scaled() == train
    assert dataclasses.replace(TrainConfig(), batch_size=5, autoscale=False).scaled().lr == 1e-3


def test_classes_need_distinct_ids() -> None:
    assert Classes(("a", "b"), (0, 7)).category_ids == (0, 7)
    with pytest.raises(UsageError, match="2 different ids"):
        Classes(("a", "b"), (3, 3))
