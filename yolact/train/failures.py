"""What goes wrong in a long training: unreadable images, losses that are not finite, too little memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from yolact.config import Config, TrainConfig
from yolact.data.batch import Batch, Sample, Target, collate
from yolact.data.coco import CocoDataset
from yolact.losses import MultiBoxLoss
from yolact.model import Yolact
from yolact.train.checkpoint import write_torch
from yolact.weights.load import load_state
from yolact_runtime.errors import YolactError

log = logging.getLogger(__name__)

DUMP_FORMAT = "yolact-bad-batch/1"


class ReplacingDataset(Dataset[tuple[Sample, dict[int, str]]]):
    """A dataset that gives the next readable image for one that cannot be read, and says why.

    An item is the sample, and the reason for each index that failed. What replaces an image depends on
    nothing but the files, so that runs can be repeated.
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
        raise YolactError(f"not one image can be read: {failures[index]}")


def collate_replaced(items: Sequence[tuple[Sample, dict[int, str]]]) -> tuple[Batch, dict[int, str]]:
    """The batch of a `ReplacingDataset`'s items, and all their failures."""
    failures: dict[int, str] = {}
    for _, failed in items:
        failures.update(failed)
    return collate([sample for sample, _ in items]), failures


class Unreadable:
    """Images that could not be read: told once each, counted, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reasons: dict[int, str] = {}

    def add(self, failures: dict[int, str]) -> None:
        """Note the failures of a batch.

        Raises:
            YolactError: there are too many by now.
        """
        for index, reason in failures.items():
            if index not in self.reasons:
                log.error("%s; the next image takes its place", reason)
                self.reasons[index] = reason
        if len(self.reasons) > self.limit:
            raise YolactError(
                f"{len(self.reasons)} images could not be read (train.max_unreadable is {self.limit});"
                f" find them all with yolact-data check"
            )


def explain(error: RuntimeError, settings: TrainConfig) -> YolactError | None:
    """What to do about an error of PyTorch's; None where this is not known."""
    text = str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in text:
        return YolactError(
            f"out of memory ({_first(text)}). Lower --batch-size (now {settings.batch_size}) and raise"
            f" --accumulate (now {settings.accumulate}) by as much; or give --amp bf16 (now {settings.amp});"
            " or take a configuration with a smaller input size or backbone"
        )
    if "DataLoader worker" in text:
        return YolactError(
            f"a process that loads images ended ({_first(text)}): lower --workers (now {settings.workers})"
            " where memory is short, or use --workers 0 to see its error; continue with --resume last"
        )
    if isinstance(error, torch.distributed.DistError) or any(
        word in text for word in ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL")
    ):
        return YolactError(f"another process of the training failed; its own words say why ({_first(text)})")
    return None


def _first(text: str) -> str:
    return (text.strip() or "no reason given").splitlines()[0]


def dump_batch(
    path: Path, model: Yolact, batch: Batch, iteration: int, losses: dict[str, float], rate: float
) -> None:
    """Save a batch, the weights that it met and its loss terms, for `debug_batch`."""
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
    """Compute the loss of a saved batch anew, in float32, and log every tensor that is not finite.

    Returns:
        Whether loss and gradients are finite now.

    Raises:
        YolactError: the file is no such dump.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise YolactError(f"cannot read {path}: {_first(str(error))}") from error
    if not isinstance(content, dict) or content.get("format") != DUMP_FORMAT:
        raise YolactError(f"{path} is not a batch that yolact-train saved (<config>_bad_batch.pt)")
    config = Config.from_dict(content["config"], str(path))
    model = Yolact(config)
    load_state(model, content["model"], str(path))
    model.to(device).train().freeze_batch_norm()
    log.info(
        "%s: iteration %d, lr %g, images %s, losses then: %s",
        path, content["iteration"], content["lr"], content["image_ids"], _words(content["losses"]),
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
    log.info("losses now, in float32: %s", _words({k: v.item() for k, v in losses._asdict().items()}))
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
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs = output if isinstance(output, (list, tuple)) else [output]
        for index, tensor in enumerate(outputs):
            bad.extend(_not_finite("activation", {f"{name}[{index}]": tensor}))

    return hook


def _not_finite(kind: str, tensors: dict[str, Tensor]) -> list[str]:
    lines = []
    for name, tensor in tensors.items():
        count = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
        if count:
            lines.append(f"{kind} {name} {tuple(tensor.shape)}: {count} of {tensor.numel()} are not finite")
    return lines


def _words(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
