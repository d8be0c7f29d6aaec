"""Open checkpoints: published `.pth`, our own, `.safetensors`; and initial backbone weights."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolact.config import Classes, Config, ModelConfig
from yolact.model import Yolact
from yolact.ranges import ITERATIONS
from yolact.registry import config_name_of, configs, get_config, position_of
from yolact.weights.download import download, is_published, published_weights
from yolact.weights.files import is_plain, read_safetensors, read_torch
from yolact.weights.state import count_classes, is_state, parse_classes, plain_state
from yolact_runtime.cache import cache_folder
from yolact_runtime.errors import UsageError, YolactError, counted
from yolact_runtime.files import is_file
from yolact_runtime.metadata import InputSize, height_width, size_text, to_input_size
from yolact_runtime.typed import first_few
from yolact_runtime.untrusted import parse_json

log = logging.getLogger(__name__)

FORMAT = "yolact-deploy/1"

# Classifiers trained on ImageNet: torchvision's, and the original authors' Darknet-53.
PRETRAINED = {
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    "resnet101": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    "mobilenetv2": "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
    "darknet53": "https://huggingface.co/dbolya/yolact-initial-weights/resolve/main/darknet53.pth",
}


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weights file.

    Attributes:
        path: The file.
        config: The configuration, from the file, its name, or the caller.
        model: State dict.
        training: State to resume from; None if the file has weights only.
        epoch, iteration: Position of the training.
        ema: State dict of the moving average of the weights; None if there is none.
        classes_known: Whether the classes of `config` are certainly those of the file: it holds them, it is
            one of the authors' files, or the caller named them.
    """

    path: Path
    config: Config
    model: dict[str, Tensor]
    training: dict[str, Any] | None = None
    epoch: int = 0
    iteration: int = 0
    ema: dict[str, Tensor] | None = None
    classes_known: bool = True


def load_model(
    weights: str | Path,
    config: str | Config | None = None,
    class_names: str | None = None,
    input_size: InputSize | None = None,
) -> Yolact:
    """Open a checkpoint as a network in evaluation mode, with averaged weights if it has some.

    Args:
        weights: A published or own `.pth`, a `.safetensors`, or the name of published weights such as
            `yolact_resnet50`, which are downloaded once.
        config: Needed only if neither the file nor its name (`<config>_<epoch>_<iteration>.pth`) says it.
        class_names: Those of weights that hold none and were trained on other classes than those of the
            configuration; see `parse_classes`.
        input_size: Of the network's input in pixels, instead of that it was trained with: S, the side of a
            square, or (H, W). Priors keep their sizes in pixels, as the network learned them at its strides.

    Raises:
        YolactError: the file cannot be opened, its keys or shapes do not fit the configuration, or a weight
            is not finite.
        UsageError: an input size that the network cannot have.
    """
    checkpoint = load_checkpoint(weights, config, class_names)
    with torch.device("meta"):  # without memory: the file's tensors are compared first, then used
        model = Yolact(_resized(checkpoint.config, input_size, weights))
    if checkpoint.ema is not None:
        log.info("%s: opening the moving average (EMA) of the weights", weights)
    state = checkpoint.ema or checkpoint.model
    found = count_classes(state)
    if found not in (None, len(checkpoint.config.classes)):
        names = checkpoint.config.name if class_names is None else f"--class-names {class_names}"
        raise YolactError(
            f"{weights} has {counted(found or 0, 'class', 'classes')}, but {names} has"
            f" {len(checkpoint.config.classes)}; give the names with --class-names NAME,NAME,... or a file"
            " with one in each line"
        )
    load_state(model, state, str(weights))
    return model.eval()


def _resized(config: Config, size: InputSize | None, weights: str | Path) -> Config:
    """The configuration with another input size, which is logged; None is its own."""
    if size is None or height_width(size := to_input_size(size)) == config.model.input_shape:
        return config
    resized = replace(config, model=replace(config.model, input_size=size))
    log.info(
        "%s: input %s instead of the %s it was trained with; its priors keep their sizes in pixels, and AP"
        " may change: measure it with yolact-eval",
        weights, size_text(resized.model.input_size), size_text(config.model.input_size),
    )  # fmt: skip
    return resized


def load_checkpoint(
    weights: str | Path,
    config: str | Config | None = None,
    class_names: str | None = None,
    default: Config | None = None,
) -> Checkpoint:
    """Read a weights file without building the network.

    Args:
        weights, config, class_names: As for `load_model`.
        default: The configuration if `config` is None and neither the file nor its name says it.

    Raises:
        YolactError: the file cannot be opened, or says nothing about its configuration.
        UsageError: `class_names` are given, and the file holds its own.
    """
    path = locate(weights)
    given = get_config(config) if isinstance(config, str) else config
    content, metadata = _read(path)
    own = content.get("format") == FORMAT or "config" in metadata
    if own and class_names is not None:
        raise UsageError(f"--class-names {class_names}: {path} holds its class names; leave the option out")
    if content.get("format") == FORMAT:
        return _own_checkpoint(path, content, given)
    state = plain_state(content, str(path))
    if "config" in metadata:
        given = given or stored_config(path, metadata["config"])
    found = given or _config_from_name(path, default)
    if own:
        check_fits(found, state, str(path))
    if class_names is not None:
        found = replace(found, classes=parse_classes(class_names))
    epoch, iteration = position_of(path)
    known = own or class_names is not None or is_published(path)
    return Checkpoint(path, found, state, None, epoch, iteration, classes_known=known)


def _own_checkpoint(path: Path, content: Mapping[str, Any], config: Config | None) -> Checkpoint:
    """The checkpoint of a file that `yolact-train` wrote."""
    training, ema = content.get("training"), content.get("ema")
    epoch, iteration = content.get("epoch"), content.get("iteration")
    sound = (
        isinstance(content.get("config"), Mapping)
        and is_state(content.get("model"))
        and all(type(number) is int and 0 <= number <= ITERATIONS for number in (epoch, iteration))
        and isinstance(training, dict | None)
        and (ema is None or is_state(ema))
    )
    if not sound:
        raise YolactError(f"{path} is a damaged checkpoint: its format is {FORMAT}, but its contents are not")
    own = config or stored_config(path, content["config"])
    for state in (content["model"], ema):
        if state is not None:
            check_fits(own, state, str(path))
    return Checkpoint(path, own, content["model"], training, content["epoch"], content["iteration"], ema)


def stored_config(path: Path, stored: Any) -> Config:
    """The configuration in a checkpoint, as plain values or, in a .safetensors file, as their JSON.

    Raises:
        YolactError: it is something else.
    """
    try:
        # A checkpoint may hold tensors, sets and more, which no configuration has.
        value = parse_json(stored if isinstance(stored, str) else json.dumps(stored))
    except (ValueError, TypeError) as error:
        raise YolactError(f"{path}: its 'config' is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise YolactError(f"{path}: its 'config' is not a JSON object")
    return Config.from_dict(value, source=str(path))


def locate(weights: str | Path) -> Path:
    """The file that `weights` is or names; published weights are downloaded if necessary."""
    path = Path(weights)
    if is_file(path):
        return path
    if path.name == str(weights) and not path.suffix:
        return published_weights(str(weights))
    with contextlib.suppress(OSError):
        if path.exists():
            what = "a folder" if path.is_dir() else "a pipe or a device"
            raise YolactError(f"{path} is {what}; expected a .pth or .safetensors file")
    raise YolactError(f"weights {path} do not exist")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of a weights file, and its text metadata if it has some."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = read_torch(path)
    if not isinstance(content, dict):
        raise YolactError(f"{path} is not a YOLACT checkpoint: holds a {type(content).__name__}")
    return content, {}


def _config_from_name(path: Path, default: Config | None) -> Config:
    """The configuration that the file name names, else `default`."""
    name = config_name_of(path)
    if name in configs():
        return get_config(str(name))
    if default is not None:
        return default
    raise UsageError(
        f"the file name {path.name} does not name a configuration; expected"
        f" <config>_<epoch>_<iteration>{path.suffix}, or give --config (one of {', '.join(configs())})"
    )


def load_state(model: torch.nn.Module, state: Mapping[str, Tensor], source: str, finite: bool = True) -> None:
    """Load `state` strictly; a network without memory (on PyTorch's meta device) takes its tensors.

    Raises:
        YolactError: it does not fit (names the missing, unexpected and mis-shaped keys), or a weight is not
            finite, unless `finite` is False.
    """
    own = model.state_dict()
    name = getattr(getattr(model, "config", None), "name", type(model).__name__)
    _compare(own, state, source, name)
    bare = any(value.is_meta for value in own.values())
    if bare:
        state = {key: state[key].to(value.dtype).contiguous() for key, value in own.items()}
    model.load_state_dict(dict(state), assign=bare)
    loaded = model.state_dict()
    broken = [key for key, tensor in loaded.items() if not tensor.isfinite().all()] if finite else []
    if broken:
        raise YolactError(
            f"{source}: {counted(len(broken), 'weight tensor')} of {len(loaded)} hold values that are not"
            f" finite, such as {broken[0]}; use an earlier checkpoint"
        )


def check_fits(config: Config, state: Mapping[str, Tensor], source: str) -> None:
    """Check that `state` is of a network of `config`, without building it: a small file may describe a huge
    one.

    Raises:
        YolactError: as `load_state`.
    """
    _compare(_expected(config.model, len(config.classes)), state, source, config.name)


@functools.lru_cache(maxsize=2)
def _expected(model: ModelConfig, classes: int) -> dict[str, Tensor]:
    """The state dict of a network, without memory."""
    numbers = tuple(range(classes))
    with torch.device("meta"):
        network = Yolact(Config("network", Classes(tuple(map(str, numbers)), numbers), model))
    return dict(network.state_dict())


def _compare(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, name: str) -> None:
    """Raise a YolactError unless `state` has the keys, shapes and kinds of numbers of `expected`."""
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
            for key, value in expected.items()
            if key in state and state[key].shape != value.shape
        ],
        "of another type": [
            f"{key} {str(state[key].dtype).removeprefix('torch.')}"
            for key, value in expected.items()
            if key in state and not _convertible(state[key], value)
        ],
    }
    if any(problems.values()):
        texts = [f"{len(keys)} {what}: {first_few(keys)}" for what, keys in problems.items() if keys]
        raise YolactError(f"{source} does not fit {name}: {'; '.join(texts)}")


def _convertible(tensor: Tensor, to: Tensor) -> bool:
    """Whether a tensor has values in memory, and is of floating point if `to` is."""
    return (
        is_plain(tensor) and tensor.is_floating_point() >= to.is_floating_point() and not tensor.is_complex()
    )


def load_pretrained_backbone(model: Yolact) -> None:
    """Give the backbone its ImageNet weights, downloaded once; deformable layers keep their initial values.

    Raises:
        YolactError: they cannot be downloaded (says how to continue without).
    """
    name = model.config.model.backbone.name
    if name not in PRETRAINED:
        log.info("%s has no pre-trained weights; it starts from random ones", name)
        return
    url = PRETRAINED[name]
    try:
        # torchvision's names end in the first digits of the hash: resnet50-0676ba61.pth.
        digits = re.search(r"-([0-9a-f]{8})\.pth$", url)
        path = download(url, cache_folder() / url.rpartition("/")[2], digits[1] if digits else None)
    except YolactError as error:
        raise YolactError(f"{error}; or start from random weights with --set train.init=random") from error
    state = plain_state(_read(path)[0], str(path))
    target = model.backbone.state_dict()
    renamed = {_backbone_key(name, key): value for key, value in state.items()}
    fitting = {key: value for key, value in renamed.items() if key in target}
    new = [key for key in target if key not in fitting and not key.endswith("num_batches_tracked")]
    # Only the deformable layers of YOLACT++ have parameters that classifiers lack.
    unknown = [key for key in new if ".conv2.bias" not in key and "conv_offset_mask" not in key]
    if unknown:
        raise YolactError(
            f"{path} does not fit the backbone {name}: {len(unknown)} missing: {first_few(unknown)}"
        )
    load_state(model.backbone, target | fitting, str(path))
    log.info("backbone %s starts from %s", name, path.name)


def _backbone_key(backbone: str, key: str) -> str:
    """The key in our backbone of a key in a classifier's state dict."""
    if backbone.startswith("resnet") and key.startswith("layer") and not key.startswith("layers"):
        return f"layers.{int(key[5]) - 1}{key[6:]}"
    if backbone == "mobilenetv2" and key.startswith("features."):
        index = int(key.split(".")[1])
        stage = 0 if index < 7 else 1 if index < 14 else 2
        return f"layers.{stage}.{key.removeprefix('features.')}"
    return key
