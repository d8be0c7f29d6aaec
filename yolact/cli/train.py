"""`yolact-train`: train a configuration on a COCO dataset."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from yolact.config import TrainConfig
from yolact.registry import config_name_of, configs, get_config
from yolact.settings import override
from yolact_runtime.commandline import Parser, run
from yolact_runtime.errors import UsageError

log = logging.getLogger(__name__)


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="yolact-train", description="Train YOLACT on a COCO dataset.")
    add = parser.add_argument
    add("--config", help=f"one of {', '.join(configs())}; with --resume, the checkpoint's")
    add("--dataset", help="a folder in COCO layout or a .yaml (default: the configuration's)")
    add("--batch-size", type=int, help="images over all processes; learning rate and schedule scale with it")
    add("--accumulate", type=int, help="batches accumulated before a step; multiplies the batch size")
    add("--amp", choices=("none", "bf16", "fp16"), help="arithmetic precision of the network")
    add("--iterations", type=int, help="number of iterations (not scaled with the batch size)")
    add("--lr", "--learning-rate", type=float, help="learning rate at the reference batch size")
    add("--resume", help="a checkpoint, `last`, `interrupt`, or `auto`: the last one if there is one")
    add("--init-from", metavar="W", help="fine-tune these weights; the classes may differ")
    add("--start-iter", type=int, default=-1, help="first iteration; -1: the checkpoint's")
    add("--save-folder", type=Path, default=Path("weights"), help="folder for checkpoints and the log")
    add("--save-every", "--save-interval", type=int, help="iterations between checkpoints")
    add("--keep-last", type=int, help="number of checkpoints to keep; 0 keeps all")
    add("--validate-every", type=int, help="epochs between validations; 0 for none")
    add("--workers", "--num-workers", type=int, help="number of processes that load images")
    add("--seed", type=int, help="random seed")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    add("--threads", type=int, help="CPU threads")
    add("--overfit", type=int, metavar="N", help="train and validate on the first N images")
    add("--debug-batch", type=Path, metavar="FILE", help="analyse a batch saved when the loss was not finite")
    add("--no-autoscale", action="store_true", help="do not scale learning rate and schedule")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, such as train.lr=5e-4")
    return parser


def command(args: argparse.Namespace) -> int:
    """Train, or analyse a saved batch; returns the exit code."""
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads is {args.threads}; it must be 1 or more")
    if args.debug_batch:
        from yolact.engine import pick_device
        from yolact.train.failures import debug_batch

        return 0 if debug_batch(args.debug_batch, pick_device(args.device)) else 1
    if args.resume and args.init_from:
        raise UsageError("--resume continues a run, --init-from starts one: give one of them")
    named = next((str(path) for path in (args.resume, args.init_from) if path), None)
    name = args.config or (config_name_of(named) if named else None)
    if name is None:
        raise UsageError(f"--config is missing; one of {', '.join(configs())}")
    config = override(get_config(name), args.set)
    config = replace(config, train=_settings(args, config.train))

    import torch

    from yolact.data.annotations import read_classes
    from yolact.data.layout import resolve_dataset
    from yolact.train.checkpoint import find_checkpoint
    from yolact.train.distributed import join_processes
    from yolact.train.loop import train
    from yolact.weights.load import load_checkpoint

    if args.threads:
        torch.set_num_threads(args.threads)
    dataset = resolve_dataset(args.dataset) if args.dataset else config.dataset
    config = replace(config, dataset=dataset, classes=read_classes(Path(dataset.train_annotations)))
    resume, start = None, max(args.start_iter, 0)
    path = find_checkpoint(args.resume, args.save_folder, config.name) if args.resume else None
    if path is not None:
        resume = load_checkpoint(path, config)
        start = resume.iteration if args.start_iter < 0 else args.start_iter
        if resume.training is None:
            log.warning("%s holds weights only: the optimizer starts anew at iteration %d", path, start)
    init_from = load_checkpoint(args.init_from) if args.init_from else None
    with join_processes(args.device) as (processes, device):
        train(config, args.save_folder, device, resume, start, init_from, processes)
    return 0


def _settings(args: argparse.Namespace, configured: TrainConfig) -> TrainConfig:
    """The configured settings with the command line's, scaled to their batch size."""
    given = {
        "batch_size": args.batch_size,
        "accumulate": args.accumulate,
        "amp": args.amp,
        "lr": args.lr,
        "save_every": args.save_every,
        "keep_last": args.keep_last,
        "validate_every": args.validate_every,
        "workers": args.workers,
        "overfit": args.overfit,
        "seed": args.seed,
        "autoscale": False if args.no_autoscale else None,
    }
    settings = replace(configured, **{key: value for key, value in given.items() if value is not None})
    settings = settings.scaled()
    if args.iterations is not None:
        if args.iterations < 1:
            raise UsageError(f"--iterations {args.iterations}; allowed: 1 or more")
        settings = replace(settings, max_iterations=args.iterations, autoscale=False)
    if settings.overfit:
        # An epoch is one step or a few: do not save and validate after each.
        length = max(1, settings.overfit // settings.effective_batch)
        settings = replace(
            settings, save_epochs=0, validate_every=max(settings.validate_every, 100 // length)
        )
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `yolact-train`."""
    return run(command, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
