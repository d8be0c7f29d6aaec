"""How long a training step takes, and where its time goes.

    python -m yolact_bench.training --dataset DIR|data.yaml [--config yolact_resnet50] [--batch-size 4]
        [--set train.amp=bf16 ...] [--original CHECKOUT]

The first images of the data set, without augmentation, and random weights with batch norm calibrated on
them. In turns with the step as configured ("configured") runs the same network in plain float32, eager, in
PyTorch's default layout ("plain", the same thing on a CPU where nothing else is configured). With
`--original`, a checkout of github.com/dbolya/yolact takes its turns as well, in a process of its own, on the
same images and weights. Batch norm is frozen in all of them where the batch is as small as the original
freezes it for.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table

from yolact_bench.machine import describe_machine
from yolact_bench.protocol import Timing, ratios, take_turns
from yolact_runtime.commandline import Parser, run, table_console
from yolact_runtime.errors import YolactError
from yolact_runtime.files import write_json

if TYPE_CHECKING:
    import torch

    from yolact.config import Config
    from yolact.data.batch import Batch
    from yolact.model import Yolact

STAGES = ("match", "forward", "loss", "backward", "update")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(prog="python -m yolact_bench.training", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True, help="a folder in COCO layout or a .yaml")
    parser.add_argument("--config", default="yolact_resnet50", help="configuration to train")
    parser.add_argument("--batch-size", type=int, default=4, help="images in a step")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each way")
    parser.add_argument("--runs", type=int, default=50, help="at most so many steps of each way")
    parser.add_argument("--original", type=Path, metavar="CHECKOUT", help="time the original in turns")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, such as train.amp=bf16"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run(_bench, parser, argv)


def _bench(args: argparse.Namespace) -> None:
    import torch

    from yolact.data.annotations import read_classes
    from yolact.data.batch import collate
    from yolact.data.coco import CocoDataset
    from yolact.data.layout import resolve_dataset
    from yolact.engine import pick_device
    from yolact.registry import get_config
    from yolact.settings import override
    from yolact.train.loop import freezes_batch_norm, memory_format
    from yolact_bench.original.training import OriginalTraining

    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    folders = resolve_dataset(args.dataset)
    config = override(get_config(args.config), args.set)
    config = replace(
        config,
        classes=read_classes(folders.train_annotations),
        train=replace(config.train, batch_size=args.batch_size),
    )
    dataset = CocoDataset(
        folders.train_images, folders.train_annotations, config.model, config.classes, augment=None
    )
    if not 1 <= args.batch_size <= len(dataset):
        raise YolactError(f"--batch-size {args.batch_size}; the data set has {len(dataset)} images")
    frozen = freezes_batch_norm(config.train)
    batch = collate([dataset[index] for index in range(args.batch_size)])
    model = calibrated_model(config, batch)
    with ExitStack() as stack:
        ways: dict[str, Callable[[], float]] = {}
        if args.original:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            original = OriginalTraining(
                args.original, model, dataset, args.batch_size, frozen, folder, device
            )
            ways["original"] = stack.enter_context(original).step
        plain = replace(config, train=replace(config.train, amp="none", compile=False))
        ways["plain"] = Trainer(plain, model, batch, device, torch.contiguous_format).step
        layout = memory_format(device, config.train)
        configured = Trainer(config, model, batch, device, layout)
        ways["configured"] = configured.step
        times, losses = take_turns(ways, args.seconds, args.runs)
        stages = configured.stages(rounds=min(args.runs, 5))
    timings = {name: Timing.of(taken, args.batch_size) for name, taken in times.items()}
    _show(args, config, timings, {name: values[0] for name, values in losses.items()}, stages, device)
    if args.json:
        figures = {
            "machine": describe_machine(),
            "steps": {name: asdict(timing) for name, timing in timings.items()},
            "stages_s": stages,
        }
        write_json(args.json, figures, indent=2)


def calibrated_model(config: Config, batch: Batch) -> Yolact:
    """Random weights whose running batch norm statistics are those of `batch`, so that nothing explodes."""
    import torch
    from torch import nn

    from yolact.model import Yolact

    torch.manual_seed(0)
    model = Yolact(config)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [module.momentum for module in norms]
    for module in norms:
        module.momentum = 1.0
    with torch.no_grad():
        model.train().forward_train(batch.images)
    for module, momentum in zip(norms, usual, strict=True):
        module.momentum = momentum
    return model


class Trainer:
    """Training steps on one batch, with weights of its own.

    Args:
        config: Arithmetic, optimizer and loss.
        model: Copied.
        batch: Every step's.
        device: Where.
        layout: Of images and weights.
    """

    def __init__(
        self, config: Config, model: Yolact, batch: Batch, device: torch.device, layout: torch.memory_format
    ) -> None:
        import torch

        from yolact.losses import MultiBoxLoss
        from yolact.train.loop import set_training_mode
        from yolact.train.step import NetworkWithLoss, build_optimizer

        self.settings, self.device = config.train, device
        self.model = copy.deepcopy(model).to(device).to(memory_format=layout)
        set_training_mode(self.model, self.settings)
        self.module = NetworkWithLoss(self.model, MultiBoxLoss(config.loss), self.settings)
        self.optimizer = build_optimizer(self.model, self.settings)
        # A network that learnt the batch by heart would do other work than one in training.
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.settings.amp == "fp16")
        self.batch = batch.to(device, memory_format=layout)

    def step(self) -> float:
        """One step; returns its loss."""
        from yolact.train.step import training_step

        done = training_step(
            self.module, self.optimizer, self.scaler, [self.batch], self.settings.max_grad_norm
        )
        self._wait()
        return sum(done.losses.values())

    def stages(self, rounds: int) -> dict[str, float]:
        """Seconds of each of `STAGES`, the median of `rounds` steps; "loss" is forward and backward."""
        import torch

        from yolact.losses import Totals, count_totals, match
        from yolact.model import YolactOutput

        images, targets = self.batch.images, self.batch.targets
        taken: dict[str, list[float]] = defaultdict(list)

        start = 0.0

        def lap(name: str) -> None:
            nonlocal start
            self._wait()
            now = time.perf_counter()
            taken[name].append(now - start)
            start = now

        for _ in range(rounds + 1):
            self.optimizer.zero_grad(set_to_none=True)
            start = time.perf_counter()
            matches = match(self.model.priors, targets, self.module.criterion.config)
            totals = count_totals([matches])
            lap("match")
            with torch.autocast(
                self.device.type, self.module.amp_type, enabled=self.module.amp_type is not None
            ):
                output, semantic = self.module.network(images)
            lap("forward")
            ends = [tensor.detach().requires_grad_() for tensor in (*output, semantic)]
            loss = self.module.criterion(
                self.model, YolactOutput(*ends[:-1]), ends[-1], targets, matches, Totals(*totals)
            ).total
            loss.backward()
            lap("loss")
            torch.autograd.backward([*output, semantic], [end.grad for end in ends])
            lap("backward")
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm or math.inf)
            self.optimizer.step()
            lap("update")
        # The first round fills caches.
        return {name: statistics.median(times[1:]) for name, times in taken.items()}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


def _show(
    args: argparse.Namespace,
    config: Config,
    timings: dict[str, Timing],
    losses: dict[str, float],
    stages: dict[str, float],
    device: torch.device,
) -> None:
    import torch

    console = table_console()
    console.print(
        f"{config.name}, input {config.model.input_size}, batch {args.batch_size}, {device},"
        f" {torch.get_num_threads()} threads, in turns"
    )
    faster = ratios(timings)
    table = Table(box=SIMPLE)
    for column in ("step", "median ms", "p90", "min", "steps", "images/s", "times as fast", "loss"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, timing in timings.items():
        table.add_row(
            name,
            *(f"{value:.1f}" for value in (timing.median, timing.p90, timing.min)),
            str(timing.runs),
            f"{timing.throughput:.2f}",
            f"{faster[name]:.2f}",
            f"{losses[name]:.4f}",
        )
    console.print(table)
    whole = sum(stages.values())
    table = Table(box=SIMPLE)
    for column in ("stage as configured", "ms", "share"):
        table.add_column(column, justify="left" if "stage" in column else "right")
    for name in STAGES:
        table.add_row(name, f"{stages[name] * 1000:.1f}", f"{stages[name] / whole:.1%}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
