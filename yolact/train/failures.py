"""Failures of a long training: unreadable images, losses that are not finite, too little memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from yolact.config import TrainConfig
from yolact.data.batch import Batch, Sample, Target, collate
from yolact.data.coco import CocoDataset
from yolact.losses import MultiBoxLoss
from yolact.model import Yolact
from yolact.train.checkpoint import write_torch
from yolact.weights.files import read_torch
from yolact.weights.load import load_state, stored_config
from yolact.weights.state import is_state
from yolact_runtime.errors import YolactError, counted, first_line

log = logging.getLogger(__name__)

DUMP_FORMAT = "yolact-bad-batch/1"


class ReplacingDataset(Dataset[tuple[Sample, dict[int, str]]]):
    """A dataset that replaces an unreadable image by the next readable one.

    An item is the sample, and the reason for each index that failed. The replacement depends only on the
    files, so runs are reproducible.
    """

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample, dict[int, str]]:
        """The sample of (epoch, index), or of the next index that can be read.

        Raises:
            YolactError: there is none.
        """
        epoch, index = key
        failures: dict[int, str] = {}
        while len(failures) < len(self):
            try:
                return self.dataset[epoch, index], failures
            except YolactError as error:
                failures[index] = str(error)
                index = (index + 1) % len(self)
        raise YolactError(f"no image can be read: {failures[index]}")


def collate_replaced(items: Sequence[tuple[Sample, dict[int, str]]]) -> tuple[Batch, dict[int, str]]:
    """The batch of a `ReplacingDataset`'s items, and all their failures."""
    failures: dict[int, str] = {}
    for _, failed in items:
        failures.update(failed)
    return collate([sample for sample, _ in items]), failures


class Unreadable:
    """The images that could not be read: each is logged once; more than `limit` are an error."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reasons: dict[int, str] = {}

    def add(self, failures: dict[int, str]) -> None:
        """Add the failures of a batch.

        Raises:
            YolactError: there are too many.
        """
        for index, reason in failures.items():
            if index not in self.reasons:
                log.error("%s; the next image replaces it", reason)
                self.reasons[index] = reason
        if len(self.reasons) > self.limit:
            raise YolactError(
                f"{counted(len(self.reasons), 'image')} could not be read (train.max_unreadable is"
                f" {self.limit}); find them all with yolact-data check"
            )


def unreadable_text(replaced: Iterable[tuple[int, str]], images: int, missed: Mapping[str, str]) -> str:
    """The end of an error about images that could not be read; empty if there are none.

    Args:
        replaced: Indices and reasons of training images, of all processes.
        images: Number of training images.
        missed: Reasons by file name of validation images.
    """
    reasons = dict(replaced)
    texts = []
    if reasons:
        texts.append(
            f"{len(reasons)} of {counted(images, 'image')} could not be read and were replaced, for example:"
            f" {next(iter(reasons.values()))}"
        )
    if missed:
        texts.append(
            f"{counted(len(missed), 'validation image')} could not be read, for example:"
            f" {next(iter(missed.values()))}"
        )
    return "; ".join(texts)


def explain(error: RuntimeError, settings: TrainConfig) -> YolactError | None:
    """An error that says what to do about one of PyTorch's; None for an unknown one."""
    text, reason = str(error), first_line(error)
    if isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in text:
        return YolactError(
            f"out of memory ({reason}). Lower --batch-size (now {settings.batch_size}) and raise"
            f" --accumulate (now {settings.accumulate}) by the same factor; or give --amp bf16 (now"
            f" {settings.amp}); or use a configuration with a smaller input size or backbone"
        )
    if "DataLoader worker" in text:
        return YolactError(
            f"a process that loads images ended ({reason}): lower --workers (now {settings.workers})"
            " if memory is short, or use --workers 0 to see its error; continue with --resume last"
        )
    if isinstance(error, torch.distributed.DistError) or any(
        word in text for word in ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL")
    ):
        return YolactError(f"another process of the training failed; see its output above ({reason})")
    return None


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
    content = _read_batch(path)
    with torch.device("meta"):  # without memory: the file's tensors are compared first, then used
        model = Yolact(stored_config(path, content["config"]))
    load_state(model, content["model"], str(path), finite=False)
    model.to(device).train().freeze_batch_norm()
    log.info(
        "%s: iteration %d, lr %g, images %s, losses then: %s",
        path, content["iteration"], content["lr"], content["image_ids"], _terms_text(content["losses"]),
    )  # fmt: skip
    try:
        return _compute_again(model, content, device)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:  # shapes that do not belong together
        raise YolactError(f"{path} is damaged: {first_line(error)}") from error


_TARGET = ("boxes", "labels", "masks", "semantic_masks", "crowd_boxes")
# What a saved batch holds.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "model": dict,
    "images": Tensor,
    "targets": list,
    "image_ids": list,
    "iteration": int,
    "losses": dict,
    "lr": (int, float),
}


def _read_batch(path: Path) -> dict[str, Any]:
    """The content of a saved batch, whose values have the right types.

    Raises:
        YolactError: it is no saved batch, or is damaged.
    """
    content = read_torch(path, "batch")
    if not isinstance(content, dict) or content.get("format") != DUMP_FORMAT:
        raise YolactError(f"{path} is not a batch that yolact-train saved (<config>_bad_batch.pt)")
    wrong = [name for name, kind in _KINDS.items() if not isinstance(content.get(name), kind)]
    if not wrong:
        losses, targets, images = content["losses"], content["targets"], content["images"]
        complete = all(
            isinstance(target, dict)
            and sorted(target) == sorted(_TARGET)
            and all(isinstance(value, Tensor) for value in target.values())
            for target in targets
        )
        checks = {
            "model": is_state(content["model"]),
            "losses": all(type(key) is str and type(value) is float for key, value in losses.items()),
            "image_ids": len(content["image_ids"]) == len(targets),
            "targets": complete and len(targets) == len(images) > 0,
            "images": images.ndim == 4 and images.shape[1] == 3 and images.dtype == torch.float32,
        }
        wrong = [name for name, right in checks.items() if not right]
    if wrong:
        raise YolactError(f"{path} is damaged: its {' and '.join(wrong)} cannot be those of a batch")
    return content


def _compute_again(model: Yolact, content: dict[str, Any], device: torch.device) -> bool:
    """Compute the loss of a saved batch and its gradients; log what is not finite."""
    config = model.config
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
