"""Opening checkpoints, and saying why one cannot be opened."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import mobilenet_v2, resnet50

import yolact
from yolact.config import Classes
from yolact.model import Yolact
from yolact.registry import get_config
from yolact.train.checkpoint import save_checkpoint
from yolact.weights.load import (
    load_checkpoint,
    load_model,
    load_pretrained_backbone,
)
from yolact.weights.state import parse_classes
from yolact_runtime.errors import UsageError, YolactError


@pytest.fixture(scope="module")
def model() -> Yolact:
    torch.manual_seed(0)
    config = replace(get_config("yolact_tiny"), classes=Classes(("cat", "dog"), (0, 17)))
    return Yolact(config).eval()


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_own_checkpoint(model: Yolact, tmp_path: Path) -> None:
    path = tmp_path / "any name.pth"
    save_checkpoint(path, model, 3, 70, None)
    opened = yolact.load_model(path)
    assert same_weights(opened, model)
    assert opened.config == model.config
    assert not opened.training
    assert load_checkpoint(path).iteration == 70


def test_weights_that_are_not_finite_are_refused(model: Yolact, tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["prediction_layers.0.bbox_layer.bias"][3] = float("nan")
    torch.save(state, tmp_path / "yolact_tiny_1_2.pth")
    with pytest.raises(
        YolactError, match=r"1 weight tensor of \d+ hold values that are not finite, such as pred"
    ):
        load_model(tmp_path / "yolact_tiny_1_2.pth", model.config)


def test_safetensors(model: Yolact, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, path, metadata={"config": json.dumps(model.config.to_dict())})
    opened = load_model(path)
    assert same_weights(opened, model)
    assert opened.config.classes.category_ids == (0, 17)


def test_published_form_by_file_name(tmp_path: Path) -> None:
    source = Yolact(get_config("yolact_tiny"))
    state = dict(source.state_dict())
    # What early checkpoints of the original hold twice or too much.
    state["backbone.layer1.0.conv1.weight"] = torch.zeros(1)
    state["fpn.downsample_layers.2.weight"] = torch.zeros(1)
    path = tmp_path / "yolact_tiny_54_800000.pth"
    torch.save(state, path)
    assert same_weights(load_model(path), source)
    assert load_checkpoint(path).iteration == 800000


def test_config_given_where_the_name_does_not_say(tmp_path: Path) -> None:
    source = Yolact(get_config("yolact_tiny"))
    path = tmp_path / "mine.pth"
    torch.save(source.state_dict(), path)
    with pytest.raises(UsageError, match=r"mine\.pth.*--config"):
        load_model(path)
    assert same_weights(load_model(path, "yolact_tiny_config"), source)


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = dict(Yolact(get_config("yolact_tiny")).state_dict())
    del state["proto_net.0.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["semantic_seg_conv.bias"] = torch.zeros(7)
    path = tmp_path / "yolact_tiny_1_2.pth"
    torch.save(state, path)
    with pytest.raises(YolactError) as error:
        load_model(path)
    message = str(error.value)
    assert "1 missing: proto_net.0.weight" in message
    assert "1 unexpected: extra.weight" in message
    assert "semantic_seg_conv.bias (7,) instead of (3,)" in message
    assert "\n" not in message


def wrapped(state: dict, form: str) -> dict:
    """A state dict as training scripts save it: `form` names wrappers, then prefixes."""
    wrappers, _, prefixes = form.partition(" ")
    content: dict = {f"{prefixes}{key}": value for key, value in state.items()}
    for key in reversed(wrappers.split(",") if wrappers != "-" else []):
        content = {"epoch": 3, key: content, "optimizer": {"state": {}, "param_groups": []}}
    return content


@pytest.mark.parametrize(
    "form",
    [
        "- module.",
        "- _orig_mod.",
        "- model.",
        "- module._orig_mod.module.",
        "state_dict model.",
        "model ",
        "model module.model._orig_mod.",
        "model_state_dict ",
        "model,state_dict module.",
    ],
)
def test_wrappers_and_prefixes_of_training_scripts(form: str, model: Yolact, tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(wrapped(model.state_dict(), form), path)
    assert same_weights(load_model(path, model.config), model)


def test_a_compiled_part_inside_the_network(model: Yolact, tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    state = {
        key.replace("backbone.", "backbone._orig_mod."): value for key, value in model.state_dict().items()
    }
    torch.save({"state_dict": state}, path)
    assert same_weights(load_model(path, model.config), model)
    torch.save(state | model.state_dict(), path)
    with pytest.raises(YolactError, match=r"mine\.pth holds backbone\.\S+ twice"):
        load_model(path, model.config)


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"a": 1}},
        {"state_dict": {}},
        {"weights": {"a": torch.zeros(1)}},
        {"model": [1]},
        {1: torch.zeros(1)},
    ],
)
def test_what_holds_no_state_dict_is_named(content: dict, tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(content, path)
    with pytest.raises(YolactError, match=r"mine\.pth is not a YOLACT checkpoint.*'state_dict'.*found"):
        load_model(path, "yolact_tiny")


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": {}},
        {"epoch": "3"},
        {"iteration": -1},
        {"training": [1]},
        {"ema": {"a": 1}},
        {"config": 3},
    ],
)
def test_a_damaged_own_checkpoint_is_one_line(change: dict, model: Yolact, tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    save_checkpoint(path, model, 3, 70, None)
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    with pytest.raises(YolactError, match=r"mine\.pth is a damaged checkpoint"):
        load_model(path)


def nested() -> list:
    value: list = []
    for _ in range(200):
        value = [value]
    return value


def endless() -> list:
    value: list = []
    value.append(value)
    return value


def doubled() -> list:
    """A list of 2**40 numbers in a few bytes."""
    value: list = [1]
    for _ in range(40):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        *(("model", "input_size", value) for value in (20_000, 10**30, float("nan"), torch.zeros(2), None)),
        *(("model", "num_prototypes", value) for value in (-1, 10**9, 4096, True, b"16", {1}, 2j)),
        *(("model", "fpn_features", value) for value in (0, -5, 4096, {16: 16}, {(1,): 1})),
        ("model", "prior_scales", [[0.5] * 1000] * 5),
        ("model", "prior_aspect_ratios", [1.0, 1.0]),
        ("classes", "names", ["a", "\ud800"]),
        ("classes", "names", [str(number) for number in range(40_000)]),
        ("classes", "category_ids", [0, 10**30]),
        ("train", "seed", nested),
        ("train", "seed", endless),
        ("train", "seed", doubled),
        ("dataset", "name", "x" * 1_000_000),
    ],
)
def test_a_configuration_that_is_not_of_the_weights(
    section: str, name: str, value: object, model: Yolact, tmp_path: Path
) -> None:
    path = tmp_path / "mine.pth"
    save_checkpoint(path, model, 3, 70, None)
    content = torch.load(path, weights_only=True)
    content["config"][section][name] = value() if callable(value) else value
    torch.save(content, path)
    with pytest.raises(YolactError, match=r"mine\.pth") as caught:
        load_checkpoint(path)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.to(torch.complex64), "of another type: fpn.lat_layers.0.weight complex64"),
        (lambda weight: weight.int(), "of another type"),
        (lambda weight: weight > 0, "of another type"),
        (lambda weight: weight.to("meta"), "of another type"),
        (lambda weight: weight.flatten(1).to_sparse(), "of another shape"),
        (lambda weight: weight[:1, :1].expand(weight.shape), None),
        (lambda weight: torch.zeros(1).expand(10**9), "several times the bytes"),
        (lambda weight: torch.zeros(1).expand(10**6, 10**6), "several times the bytes"),
        (lambda weight: weight.half(), None),
        (lambda weight: nn.Parameter(weight.double()), None),
        (lambda weight: weight.contiguous(memory_format=torch.channels_last), None),
    ],
)
def test_kinds_of_tensors(
    change: Callable, message: str | None, legacy: bool, model: Yolact, tmp_path: Path
) -> None:
    path, key = tmp_path / "yolact_tiny_1_2.pth", "fpn.lat_layers.0.weight"
    state = {**model.state_dict(), key: change(model.state_dict()[key])}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    if message:
        with pytest.raises(YolactError, match=message):
            load_model(path, model.config)
    else:
        opened = load_model(path, model.config).state_dict()[key]
        assert torch.equal(opened, state[key].float())
        assert opened.is_contiguous()


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], **options: int) -> None:
    """Write a checkpoint again with its members changed; None leaves one out."""
    with zipfile.ZipFile(path) as old:
        members = [(name, change(name, old.read(name))) for name in old.namelist()]
    with zipfile.ZipFile(path, "w", **options) as new:
        for name, data in members:
            if data is not None:
                new.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda name, data: data, {"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
        (
            lambda name, data: bytes(5_000_000) if "version" in name else data,
            {},
            "YOLACT_MAX_STRUCTURE_BYTES",
        ),
        (lambda name, data: b"\x80\x02" + b"}" * 5_000_000 if "pkl" in name else data, {}, "besides tensors"),
        (lambda name, data: None if name.endswith("data/3") else data, {}, "is not a readable"),
        # A tensor of 48 x 112 x 1 x 1 declares 2**29 rows.
        (lambda name, data: data.replace(b"K0KpK\x01K", b"J\x00\x00\x00\x20KpK\x01K"), {}, "resize storage"),
    ],
)
def test_archives_that_declare_more_than_they_have(
    change: Callable, options: dict, message: str, model: Yolact, tmp_path: Path
) -> None:
    path = tmp_path / "mine.pth"
    save_checkpoint(path, model, 3, 70, None)
    rewritten(path, change, **options)
    with pytest.raises(YolactError, match=message):
        load_checkpoint(path)


def test_older_files_whose_description_is_long(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(b"\x80\x02" + b"}" * 5_000_000)
    with pytest.raises(YolactError, match="YOLACT_MAX_STRUCTURE_BYTES"):
        load_checkpoint(path)


def test_a_header_of_safetensors_that_is_long(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes((80_000_000).to_bytes(8, "little") + b"{" * 100)
    with pytest.raises(YolactError, match="YOLACT_MAX_STRUCTURE_BYTES"):
        load_checkpoint(path)


def test_pipes_and_names_that_no_file_has(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for name in ("pipe.pth", "a" * 5000, "a\0b.pth"):
        with pytest.raises(YolactError):
            load_model(tmp_path / name)


def test_metadata_that_is_no_configuration(model: Yolact, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for text in ("{", "[]", '{"name": 3}'):
        save_file(dict(model.state_dict()), path, metadata={"config": text})
        with pytest.raises(YolactError, match=r"model\.safetensors"):
            load_model(path)


def test_classes_of_weights_that_do_not_name_them(model: Yolact, tmp_path: Path) -> None:
    path = tmp_path / "yolact_tiny_1_2.pth"
    torch.save(model.state_dict(), path)
    with pytest.raises(
        YolactError, match=r"has 2 classes, but yolact_tiny has 3; give the names with --class-names"
    ):
        load_model(path)
    names = tmp_path / "names.txt"
    names.write_bytes("\ufeffcat\r\n\r\nhot dog, large\r\n".encode())
    for text, expected in (("cat, dog", ("cat", "dog")), (str(names), ("cat", "hot dog, large"))):
        opened = load_model(path, class_names=text)
        assert same_weights(opened, model)
        assert opened.config.classes == Classes(expected, (1, 2))
    with pytest.raises(YolactError, match="has 2 classes, but --class-names cat has 1"):
        load_model(path, class_names="cat")
    own = tmp_path / "own.pth"
    save_checkpoint(own, model, 3, 70, None)
    with pytest.raises(UsageError, match=r"--class-names cat,dog: .*own\.pth holds its class names"):
        load_model(own, class_names="cat,dog")


@pytest.mark.parametrize(
    ("text", "message"), [("cat,", "empty"), ("a,b,a", "'a' occurs twice"), ("no.txt", "does not exist")]
)
def test_wrong_classes(text: str, message: str) -> None:
    with pytest.raises(
        YolactError, match=f"--class-names {text}.*{message}" if "exist" not in message else message
    ):
        parse_classes(text)


def test_many_and_long_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"class {number}" for number in range(2000)]
    assert parse_classes(",".join(names)).names == tuple(names)  # longer than the name of a file may be
    file = tmp_path / "names.txt"
    file.write_text("\n".join(names))
    assert parse_classes(str(file)).names == tuple(names)
    monkeypatch.setenv("YOLACT_MAX_CLASSES", "1999")
    with pytest.raises(YolactError, match="has 2,000 names, more than the 1,999 allowed"):
        parse_classes(str(file))


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code was run')",)


@pytest.mark.parametrize("content", ["truncated", "text", "pickle", "empty", "tensor", "numbers"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_unreadable_files_are_one_line(content: str, suffix: str, model: Yolact, tmp_path: Path) -> None:
    path = tmp_path / f"yolact_tiny_1_2{suffix}"
    buffer = io.BytesIO()
    if content == "truncated":
        torch.save(model.state_dict(), buffer)
        path.write_bytes(buffer.getvalue()[:1000])
    elif content == "text":
        path.write_text("<html>not found</html>")
    elif content == "pickle":
        path.write_bytes(pickle.dumps(Harmful()))
    elif content == "empty":
        path.touch()
    else:
        torch.save(torch.zeros(3) if content == "tensor" else {"epoch": 3}, path)
    with pytest.raises(YolactError) as error:
        load_model(path)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(YolactError, match="do not exist"):
        load_model(tmp_path / "nothing.pth")
    with pytest.raises(YolactError, match="is a folder"):
        load_model(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "build"),
    [("yolact_resnet50", resnet50), ("yolact_plus_resnet50", resnet50), ("yolact_mobilenetv2", mobilenet_v2)],
)
def test_imagenet_weights_reach_the_backbone(
    name: str, build: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = build(weights=None).eval()  # type: ignore[operator]
    torch.manual_seed(1)
    for parameter in classifier.parameters():
        nn.init.normal_(parameter, std=0.01)
    file = tmp_path / "classifier.pth"
    torch.save(classifier.state_dict(), file)
    monkeypatch.setattr("yolact.weights.load.download", lambda url, path, sha256=None: file)
    model = Yolact(get_config(name)).eval()
    load_pretrained_backbone(model)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        if name == "yolact_plus_resnet50":
            assert torch.equal(model.backbone.layers[3][2].conv2.weight, classifier.layer4[2].conv2.weight)
            assert (model.backbone.layers[3][2].conv2.conv_offset_mask.weight == 0).all()
        elif name == "yolact_mobilenetv2":
            np.testing.assert_allclose(model.backbone(x)[2], classifier.features[:18](x), atol=1e-6)
        else:
            c = classifier
            stem = c.maxpool(c.relu(c.bn1(c.conv1(x))))
            expected = c.layer4(c.layer3(c.layer2(c.layer1(stem))))
            np.testing.assert_allclose(model.backbone(x)[2], expected, atol=1e-6)


def test_backbone_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(url: str, path: Path, sha256: str | None = None) -> Path:
        raise YolactError(f"cannot download {url}")

    monkeypatch.setattr("yolact.weights.load.download", offline)
    with pytest.raises(YolactError, match=r"--set train\.init=random"):
        load_pretrained_backbone(Yolact(get_config("yolact_mobilenetv2")))
