"""Batches whose loss is not finite: saved, and analysed."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolact.config import Config
from yolact.data.batch import Batch, Target
from yolact.losses import MultiBoxLoss
from yolact.model import Yolact
from yolact.model.priors import prototype_size, pyramid_levels
from yolact.train.checkpoint import write_torch
from yolact.weights.files import is_plain, read_torch
from yolact.weights.load import check_fits, load_state, stored_config
from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.untrusted import limit

log = logging.getLogger(__name__)

DUMP_FORMAT = "yolact-bad-batch/1"
_KINDS = {"images": Tensor, "targets": list, "image_ids": list, "losses": dict}


def dump_batch(
    path: Path, model: Yolact, batch: Batch, iteration: int, losses: dict[str, float], rate: float
) -> None:
    """Save a batch with the weights and its loss terms, for `debug_batch`."""
    content = {
        "format": DUMP_FORMAT,
        "config": model.config.to_dict(),
        "model": model.state_dict(),
        "images": batch.images,
        "targets": [vars(target) for target in batch.targets],
        "image_ids": batch.image_ids,
        "iteration": iteration,
        "losses": losses,
        "lr": rate,
    }
    write_torch(content, path)


def debug_batch(path: Path, device: torch.device) -> bool:
    """Compute the loss of a saved batch again, in float32, and log every tensor that is not finite.

    Returns:
        Whether loss and gradients are finite now.

    Raises:
        YolactError: the file is not a saved batch.
    """
    content, config = _read(path)
    model = Yolact(config)
    load_state(model, content["model"], str(path), finite=False)
    model.to(device).train().freeze_batch_norm()
    log.info(
        "%s: iteration %d, lr %g, images %s, losses then: %s",
        path, content["iteration"], content["lr"], content["image_ids"], _terms_text(content["losses"]),
    )  # fmt: skip

    bad = [
        *_not_finite("weight", model.state_dict()),
        *_not_finite("input", {"images": content["images"]}),
        *(
            line
            for number, target in zip(content["image_ids"], content["targets"], strict=True)
            for line in _not_finite(f"target of image {number}", target)
        ),
    ]
    hooks = [
        module.register_forward_hook(_watch(name, bad)) for name, module in model.named_modules() if name
    ]
    images = content["images"].to(device)
    targets = [Target(**target).to(device) for target in content["targets"]]
    output, semantic = model.forward_train(images)
    bad += _not_finite("output", {**output._asdict(), "semantic": semantic})
    losses = MultiBoxLoss(config.loss)(model, output, semantic, targets)
    for hook in hooks:
        hook.remove()
    log.info("losses now, in float32: %s", _terms_text({k: v.item() for k, v in losses._asdict().items()}))
    losses.total.backward()
    bad += _not_finite(
        "gradient", {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    )
    for line in bad:
        log.warning("%s", line)
    if not bad:
        log.info("every tensor is finite: the loss was too large for the precision of train.amp")
    return not bad and math.isfinite(losses.total.item())


def _read(path: Path) -> tuple[dict[str, Any], Config]:
    """The content of a file that `dump_batch` wrote, and its configuration.

    Raises:
        YolactError: it is something else, or its parts do not fit together.
    """
    content = read_torch(path, "saved batch")
    if not isinstance(content, dict) or content.get("format") != DUMP_FORMAT:
        raise YolactError(f"{path} is not a batch that yolact-train saved (<config>_bad_batch.pt)")
    try:
        config = stored_config(path, content["config"])
        check_fits(config, content["model"], str(path))
        _check(content, config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise YolactError(f"{path} is a damaged batch: {first_line(error)}") from error
    return content, config


def _check(content: dict[str, Any], config: Config) -> None:
    """Raise a ValueError, TypeError or KeyError unless images and targets have the shapes of `config`."""
    model, classes = config.model, config.num_classes
    for name, kind in _KINDS.items():
        if not isinstance(content[name], kind):
            raise ValueError(f"{name} is no {kind.__name__}")
    images, targets, ids = content["images"], content["targets"], content["image_ids"]
    if not 1 <= len(images) <= limit("batch") or not len(images) == len(targets) == len(ids):
        raise ValueError(f"{len(images)} images, {len(targets)} targets, {len(ids)} ids")
    _check_tensor("images", images, (len(images), 3, *model.input_shape), torch.float32)
    for target in targets:
        if not isinstance(target, dict) or target.keys() != Target.__annotations__.keys():
            raise ValueError(f"a target does not have {', '.join(Target.__annotations__)}")
        count, labels = len(target["labels"]), target["labels"]
        _check_tensor("labels", labels, (count,), torch.int64)
        if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"labels are not 0 to {classes - 1}")
        _check_tensor("boxes", target["boxes"], (count, 4), torch.float32)
        _check_tensor("crowd_boxes", target["crowd_boxes"], (len(target["crowd_boxes"]), 4), torch.float32)
        sizes = {
            "masks": prototype_size(model.input_size, model.proto_scale),
            "semantic_masks": pyramid_levels(model.input_size)[0],
        }
        for name, (height, width) in sizes.items():
            _check_tensor(name, target[name], (count, height, width), torch.bool)
    numbers = [content["lr"], *ids, *content["losses"].values()]
    if type(content["iteration"]) is not int or not all(type(number) in (int, float) for number in numbers):
        raise ValueError("iteration, rate, ids and losses are not all numbers")


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not is_plain(tensor) or tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(f"{name} are not {shape} {str(dtype).removeprefix('torch.')}")


def _watch(name: str, bad: list[str]) -> Any:
    """A forward hook that appends outputs which are not finite to `bad`."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs = output if isinstance(output, (list, tuple)) else [output]
        for index, tensor in enumerate(outputs):
            bad.extend(_not_finite("activation", {f"{name}[{index}]": tensor}))

    return hook


def _not_finite(kind: str, tensors: dict[str, Tensor]) -> list[str]:
    """A line for each tensor that is not finite."""
    lines = []
    for name, tensor in tensors.items():
        count = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
        if count:
            lines.append(f"{kind} {name} {tuple(tensor.shape)}: {count} of {tensor.numel()} are not finite")
    return lines


def _terms_text(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
