"""`yolact-bench training`: how long a training step takes, stage by stage.

The first images of the dataset, without augmentation, and random weights with batch norm settled on them.
Interleaved in one run: "plain", the network layer by layer in PyTorch's default layout, with the fused
optimizer of all variants; "float32" and "bf16", the steps of `yolact-train` with these types; "configured",
if `--set` asks for another one. With `--original`, a checkout of github.com/dbolya/yolact takes part as well,
in its own process, on the same images and weights. Batch norm is frozen in all of them if the batch is as
small as the original freezes it for. Masks are sampled by the same random numbers, so the losses can be
compared. CPU time is for machines shared with others.
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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_bench.options import check_protocol
from yolact_runtime.commandline import Table, print_line, printing_beside
from yolact_runtime.errors import YolactError, counted
from yolact_runtime.files import write_json
from yolact_runtime.metadata import size_text
from yolact_runtime.packages import require

if TYPE_CHECKING:
    import torch

    from yolact.config import Config, TrainConfig
    from yolact.data.batch import Batch
    from yolact.model import Yolact
    from yolact_bench.measure.protocol import Timing

STAGES = ("match", "forward", "loss", "backward", "update")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench training`."""
    parser.add_argument("--dataset", required=True, help="a folder in COCO layout or a .yaml")
    parser.add_argument("--config", default="yolact_resnet50", help="configuration to train")
    parser.add_argument("--batch-size", type=int, default=4, help="images in a step")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each variant")
    parser.add_argument("--runs", type=int, default=50, help="at most this many steps of each variant")
    parser.add_argument("--original", type=Path, metavar="CHECKOUT", help="time the original, interleaved")
    text = "any setting, such as train.amp=bf16"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")


def command(args: argparse.Namespace) -> None:
    """Time the training step."""
    require("yolact-bench training", "train", "torch")
    check_protocol(args)
    import torch

    from yolact.data.annotations import read_classes
    from yolact.data.batch import collate
    from yolact.data.coco import CocoDataset
    from yolact.data.layout import resolve_dataset
    from yolact.data.workers import keep_freed_memory
    from yolact.engine import pick_device
    from yolact.model import Yolact
    from yolact.registry import get_config
    from yolact.settings import override
    from yolact.train.mode import freezes_batch_norm, memory_format
    from yolact_bench.measure.machine import describe_machine
    from yolact_bench.measure.protocol import Timing, take_turns
    from yolact_bench.peers.original import open_training
    from yolact_bench.peers.torch_peer import settle_batch_norm

    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()  # as yolact-train
    folders = resolve_dataset(args.dataset)
    config = override(get_config(args.config), args.set)
    training = replace(config.train, batch_size=args.batch_size)
    config = replace(config, classes=read_classes(folders.train_annotations), train=training)
    files = folders.train_images, folders.train_annotations
    dataset = CocoDataset(*files, config.model, config.classes, augment=None)
    if not 1 <= args.batch_size <= len(dataset):
        raise YolactError(f"--batch-size {args.batch_size}; the dataset has {counted(len(dataset), 'image')}")
    frozen = freezes_batch_norm(config.train)
    batch = collate([dataset[index] for index in range(args.batch_size)])
    torch.manual_seed(0)
    model = Yolact(config).train()
    settle_batch_norm(model, lambda: model.forward_train(batch.images))  # so that no activation explodes
    with ExitStack() as stack:
        steps: dict[str, Callable[[], tuple[float, float]]] = {}
        if args.original:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            original = open_training(args.original, model, dataset, batch, frozen, folder, device)
            stack.callback(original.close)

            def ask() -> tuple[float, float]:
                answer = original.ask()
                return float(answer["loss"]), float(answer.get("cpu_seconds", math.nan))

            steps["original"] = ask
        trainers = {}
        variants = _variants(config.train)
        for name, settings in variants.items():
            # The network of "plain" is what PyTorch does by default; its optimizer is fused like the others'.
            layout = torch.contiguous_format if name == "plain" else memory_format(device, settings)
            trainers[name] = Trainer(replace(config, train=settings), model, batch, device, layout)
            steps[name] = trainers[name].step
        times, results = take_turns(steps, args.seconds, args.runs)
        configured = next(name for name, settings in variants.items() if settings == config.train)
        stages = trainers[configured].stages(rounds=min(args.runs, 5))
    losses = {name: values[0][0] for name, values in results.items()}
    cpu_s = {name: statistics.median(cpu for _, cpu in values) for name, values in results.items()}
    timings = {name: Timing.of(taken, args.batch_size) for name, taken in times.items()}
    with printing_beside(args.json):
        print_line(
            f"{config.name}, input {size_text(config.model.input_size)}, batch {args.batch_size}, {device},"
            f" {counted(torch.get_num_threads(), 'thread')}, interleaved",
            sys.stdout,
        )
        _show(timings, cpu_s, losses, stages)
    if args.json:
        steps_ms = {name: asdict(timing) for name, timing in timings.items()}
        figures = {
            "machine": describe_machine(),
            "steps": steps_ms,
            "cpu_s": cpu_s,
            "losses": losses,
            "stages_s": stages,
        }
        write_json(args.json, figures, indent=2)


def _variants(configured: TrainConfig) -> dict[str, TrainConfig]:
    """The settings to compare, by name."""
    float32 = replace(configured, amp="none", compile=False, fast=True)
    variants = {
        "plain": replace(float32, fast=False),
        "float32": float32,
        "bf16": replace(float32, amp="bf16"),
    }
    return variants if configured in variants.values() else {**variants, "configured": configured}


class Trainer:
    """Training steps on one batch, with a copy of the weights; `layout` is that of images and weights."""

    def __init__(
        self, config: Config, model: Yolact, batch: Batch, device: torch.device, layout: torch.memory_format
    ) -> None:
        import torch

        from yolact.losses import MultiBoxLoss
        from yolact.train.mode import set_training_mode
        from yolact.train.step import NetworkWithLoss, build_optimizer

        self.settings, self.device = config.train, device
        self.model = copy.deepcopy(model).to(device).to(memory_format=layout)
        set_training_mode(self.model, self.settings)
        self.module = NetworkWithLoss(self.model, MultiBoxLoss(config.loss), self.settings)
        self.optimizer = build_optimizer(self.model, self.settings)
        # A network that overfits the batch does other work than one in training.
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.settings.amp == "fp16")
        self.batch = batch.to(device, memory_format=layout)

    def step(self) -> tuple[float, float]:
        """Run one step; returns its loss, and the seconds of CPU time."""
        import torch

        from yolact.train.step import training_step

        torch.manual_seed(0)
        start = time.process_time()
        clip = self.settings.max_grad_norm
        done = training_step(self.module, self.optimizer, self.scaler, [self.batch], clip)
        self._wait()
        return sum(done.losses.values()), time.process_time() - start

    def stages(self, rounds: int) -> dict[str, float]:
        """Seconds of each of `STAGES`, the median of `rounds` steps; "loss" is forward and backward."""
        import torch

        from yolact.losses import Totals, count_totals, match
        from yolact.model import YolactOutput

        images, targets, amp_type = self.batch.images, self.batch.targets, self.module.amp_type
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
            with torch.autocast(self.device.type, amp_type, enabled=amp_type is not None):
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
        # The first round warms up.
        return {name: statistics.median(times[1:]) for name, times in taken.items()}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


def _show(
    timings: dict[str, Timing], cpu_s: dict[str, float], losses: dict[str, float], stages: dict[str, float]
) -> None:
    """Print the times of each variant with its loss, and those of the stages of the configured one."""
    first, loss = next(iter(timings)), next(iter(losses.values()))
    rows = []
    for name, timing in timings.items():
        times = [timing.median, timing.p90, timing.min, 1000 * cpu_s[name]]
        shares = [timing.throughput, timing.median / timings[first].median, cpu_s[name] / cpu_s[first]]
        rows.append([name, *(f"{value:.1f}" for value in times), str(timing.runs)])
        rows[-1] += [*(f"{value:.2f}" for value in shares), f"{losses[name]:.4f}"]
        rows[-1] += [f"{abs(losses[name] / loss - 1):.1e}"]
    columns = (
        "step",
        "median ms",
        "p90",
        "min",
        "CPU ms",
        "steps",
        "images/s",
        f"time / {first}",
        f"CPU / {first}",
    )
    Table("", (*columns, "loss", "differs by"), rows).show()
    whole = sum(stages.values())
    shown = [[name, f"{stages[name] * 1000:.1f}", f"{stages[name] / whole:.1%}"] for name in STAGES]
    Table("", ("stage as configured", "ms", "share"), shown).show()
