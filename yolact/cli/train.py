"""`yolact-train`: train a configuration on a COCO dataset."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from yolact.config import Config, TrainConfig
from yolact.registry import configs, get_config
from yolact.settings import override
from yolact_runtime.commandline import Parser, run
from yolact_runtime.errors import UsageError, YolactError

log = logging.getLogger(__name__)

DEFAULT_DATASET = Path("data")


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="yolact-train", description="Train YOLACT on a COCO dataset.")
    add = parser.add_argument
    add("--config", help=f"one of {', '.join(configs())}; with --resume or --init-from, the checkpoint's")
    add("--dataset", help="a folder in COCO layout or a .yaml (default: the configuration's, else data/)")
    add("--val-fraction", type=float, metavar="F", help="hold out this part of the images for validation")
    add("--batch-size", type=int, help="images over all processes; learning rate and schedule scale with it")
    add("--accumulate", type=int, help="batches accumulated before a step; multiplies the batch size")
    add("--amp", choices=("none", "bf16", "fp16"), help="arithmetic precision of the network")
    add("--iterations", type=int, help="number of iterations (not scaled with the batch size)")
    add("--lr", "--learning-rate", type=float, help="learning rate at the reference batch size")
    add("--resume", help="continue from a checkpoint, `last`, `interrupt`, or `auto`: the last one, if any;"
        " settings that are not given are the checkpoint's")  # fmt: skip
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
    if args.debug_batch:
        from yolact.engine import pick_device
        from yolact.train.failures import debug_batch

        return 0 if debug_batch(args.debug_batch, pick_device(args.device)) else 1
    if args.resume and args.init_from:
        raise UsageError("--resume continues a run, --init-from starts one: give one of them")
    given = override(get_config(args.config), args.set) if args.config else None

    import torch

    from yolact.train.checkpoint import find_checkpoint
    from yolact.train.distributed import join_processes
    from yolact.train.loop import train
    from yolact.train.resume import awaits_validation, check_changes
    from yolact.weights.load import load_checkpoint

    if args.threads:
        torch.set_num_threads(args.threads)
    with join_processes(args.device) as (processes, device):
        resume = init_from = None
        name = given.name if given else None
        path = find_checkpoint(args.resume, args.save_folder, name) if args.resume else None
        if path is not None:
            resume = load_checkpoint(path, default=given)
            base = resume.config
            if given and given.name != base.name:
                raise UsageError(
                    f"--resume {path} continues a training of {base.name}; --config is {args.config}"
                )
        elif args.init_from:
            init_from = load_checkpoint(args.init_from, default=given)
            base = replace(
                configs().get(init_from.config.name, init_from.config), model=init_from.config.model
            )
            base = get_config(args.config) if args.config else base
        elif given is None:
            raise UsageError(f"--config is missing; one of {', '.join(configs())}")
        else:
            base = get_config(args.config)
        config = override(base, args.set)
        config = replace(config, train=_settings(args, config.train))
        config = _with_dataset(config, args.dataset)
        start = max(args.start_iter, 0)
        if resume is not None and resume.training is None:
            start = resume.iteration if args.start_iter < 0 else args.start_iter
            log.warning("%s holds weights only: the optimizer starts anew at iteration %d", path, start)
        elif resume is not None and path is not None:
            if changes := check_changes(resume.config, config, path):
                log.info("changed since %s: %s", path, changes)
            start = resume.iteration if args.start_iter < 0 else args.start_iter
            stop = config.train.scaled().max_iterations
            due = awaits_validation(resume) and config.train.validate_every
            if (start == stop and not due) or (start > stop and args.resume == "auto"):
                log.info("the training is complete: %s is at iteration %d of %d", path, start, stop)
                return 0
        train(config, args.save_folder, device, resume, start, init_from, processes)
    return 0


def _with_dataset(config: Config, dataset: str | None) -> Config:
    """The configuration with its dataset, and the classes of this.

    Args:
        config: Has a dataset, which is used if `dataset` is None and its annotation file exists.
        dataset: The value of `--dataset`. Without it and the configuration's, `data/` is looked into.

    Raises:
        YolactError: there is no dataset; says where it was looked for.
    """
    from yolact.data.annotations import read_classes
    from yolact.data.layout import resolve_dataset

    found = config.dataset
    annotations = Path(found.train_annotations)
    if dataset is not None:
        found = resolve_dataset(dataset)
    elif not annotations.is_file():
        missing = f"{found.name} is not here (no {annotations.absolute()})"
        if not DEFAULT_DATASET.is_dir():
            raise YolactError(f"{missing}; give --dataset, a folder or a .yaml file")
        try:
            found = resolve_dataset(DEFAULT_DATASET)
        except YolactError as error:
            raise YolactError(f"{missing}, and {error}; give --dataset") from error
        log.info("%s; training on %s", missing, found.train_annotations)
    return replace(config, dataset=found, classes=read_classes(Path(found.train_annotations)))


def _settings(args: argparse.Namespace, configured: TrainConfig) -> TrainConfig:
    """The configured settings with those of the command line."""
    if args.iterations is not None and args.iterations < 1:
        raise UsageError(f"--iterations {args.iterations}; allowed: 1 or more")
    given = {
        "batch_size": args.batch_size,
        "accumulate": args.accumulate,
        "amp": args.amp,
        "lr": args.lr,
        "save_every": args.save_every,
        "keep_last": args.keep_last,
        "validate_every": args.validate_every,
        "val_fraction": args.val_fraction,
        "iterations": args.iterations,
        "workers": args.workers,
        "overfit": args.overfit,
        "seed": args.seed,
        "autoscale": False if args.no_autoscale else None,
    }
    settings = replace(configured, **{key: value for key, value in given.items() if value is not None})
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
