"""`yolact-train`: train a configuration on a COCO dataset."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from yolact.config import Config, TrainConfig
from yolact.registry import configs, get_config
from yolact.settings import check_other_classes, differences, override
from yolact_runtime.commandline import Parser, run
from yolact_runtime.errors import UsageError
from yolact_runtime.outputs import check_outputs

if TYPE_CHECKING:
    from yolact.train.distributed import Processes
    from yolact.weights.load import Checkpoint

log = logging.getLogger(__name__)

DAY = 24 * 60 * 60


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
    add(
        "--init-from",
        metavar="W",
        help="fine-tune these weights; the classes may differ; with --resume auto,"
        " only if there is no checkpoint",
    )
    add("--start-iter", type=int, default=-1, help="first iteration; -1: the checkpoint's")
    add("--save-folder", type=Path, default=Path("weights"), help="folder for checkpoints and the log")
    add("--save-every", "--save-interval", type=int, help="iterations between checkpoints")
    add("--keep-last", type=int, help="number of checkpoints to keep; 0 keeps all")
    add("--validate-every", type=int, help="epochs between validations; 0 for none")
    add("--workers", "--num-workers", type=int, help="number of processes that load images")
    add("--seed", type=int, help="random seed")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    add("--threads", type=int, help="CPU threads")
    add("--timeout", type=int, help="seconds to wait for another process of the training (default: 600)")
    add("--overfit", type=int, metavar="N", help="train and validate on the first N images")
    add("--debug-batch", type=Path, metavar="FILE", help="analyse a batch saved when the loss was not finite")
    add("--no-autoscale", action="store_true", help="do not scale learning rate and schedule")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, such as train.lr=5e-4")
    return parser


def command(args: argparse.Namespace) -> int:
    """Train, or analyse a saved batch; returns the exit code."""
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads is {args.threads}; it must be 1 or more")
    if args.timeout is not None and not 1 <= args.timeout <= DAY:
        raise UsageError(f"--timeout is {args.timeout}; allowed: 1 to {DAY} seconds")
    if args.debug_batch:
        from yolact.engine import pick_device
        from yolact.train.bad_batch import debug_batch

        return 0 if debug_batch(args.debug_batch, pick_device(args.device)) else 1
    if args.init_from and args.resume not in (None, "auto"):
        raise UsageError(
            "--resume continues a run, --init-from starts one: give one of them, or --resume auto, which"
            " starts one only if there is none to continue"
        )
    check_outputs([], [], [("--save-folder", args.save_folder)], shared=["--save-folder"])
    given = override(get_config(args.config), args.set) if args.config else None

    import torch

    from yolact.data.workers import keep_freed_memory
    from yolact.train.distributed import TIMEOUT, join_processes
    from yolact.train.loop import train
    from yolact.train.outputs import check_training_outputs

    if args.threads:
        torch.set_num_threads(args.threads)
    with join_processes(args.device, args.timeout or TIMEOUT) as (processes, device):
        waited = True
        while waited:  # for the run before, which may have saved meanwhile
            base, resume, init_from = _starting_point(args, given, processes)
            config = _configuration(args, base)
            start = max(args.start_iter, 0)
            if resume is not None:
                start = resume.iteration if args.start_iter < 0 else args.start_iter
                if _is_complete(args, config, resume, start):
                    return 0
            folder, init = args.save_folder, args.init_from
            waited = processes.any(check_training_outputs(config, folder, init, args.dataset, processes))
        if device.type == "cpu":
            keep_freed_memory()
        train(config, args.save_folder, device, resume, start, init_from, processes)
    return 0


def _starting_point(
    args: argparse.Namespace, given: Config | None, processes: Processes
) -> tuple[Config, Checkpoint | None, Checkpoint | None]:
    """Open the checkpoint to continue, or the weights to fine-tune.

    Args:
        args: Of the command line.
        given: The configuration that --config and --set name.
        processes: The first one reads the files, and sends their content to the others.

    Returns:
        The configuration that the options apply to, the checkpoint of --resume, and that of --init-from.

    Raises:
        UsageError: no configuration is known, or --config is not the checkpoint's, or this is the file of
            --init-from.
    """
    from yolact.train.agreement import open_checkpoint
    from yolact.weights.load import load_checkpoint

    init_from = None
    if args.init_from:
        init_from = processes.from_first(lambda: load_checkpoint(args.init_from, default=given))
    known = init_from.config if given is None and init_from is not None else given
    resume = open_checkpoint(args.resume, args.save_folder, known, processes) if args.resume else None
    if resume is not None:
        if init_from is not None and resume.path.absolute() == init_from.path.absolute():
            raise UsageError(
                f"--resume auto found {resume.path}, the weights of --init-from; name a --save-folder without"
                " them, or continue them without --init-from"
            )
        if given and given.name != resume.config.name:
            raise UsageError(
                f"--resume {resume.path} continues a training of {resume.config.name}; --config is"
                f" {args.config}"
            )
        return resume.config, resume, None
    if args.config:
        return get_config(args.config), None, init_from
    if init_from is None:
        raise UsageError(f"--config is missing; one of {', '.join(configs())}")
    # The network of the file, and the training of its configuration.
    usual = configs().get(init_from.config.name, init_from.config)
    return replace(usual, model=init_from.config.model), None, init_from


def _configuration(args: argparse.Namespace, base: Config) -> Config:
    """`base` with the options of the command line, its dataset, and the classes of this."""
    from yolact.data.annotations import read_classes
    from yolact.data.layout import default_dataset, resolve_dataset

    config = _with_options(args, base)
    check_other_classes(config.dataset.classes, args.set)
    dataset = resolve_dataset(args.dataset) if args.dataset else default_dataset(config.dataset)
    classes = read_classes(Path(dataset.train_annotations), config.dataset.classes)
    return replace(config, dataset=replace(dataset, **config.dataset.choices), classes=classes)


def _with_options(args: argparse.Namespace, base: Config) -> Config:
    """`base` with the settings of the command line."""
    config = override(base, args.set)
    return replace(config, train=_settings(args, config.train))


def _is_complete(args: argparse.Namespace, config: Config, resume: Checkpoint, start: int) -> bool:
    """Log the settings of a resumed training; whether it is complete, so that there is nothing left to do.

    Raises:
        UsageError: a setting cannot change.
    """
    from yolact.train.resume import check_changes, training_state

    state = training_state(resume)
    if state is None:
        log.warning("%s holds weights only: the optimizer starts anew at iteration %d", resume.path, start)
        return False
    if changes := check_changes(resume.config, config, resume.path):
        log.info("changed since %s: %s", resume.path, changes)
    usual = _with_options(args, configs().get(config.name, config))
    usual = replace(usual, dataset=config.dataset, classes=config.classes)
    if kept := [f"{name} {value}" for name, (_, value) in differences(usual, config).items()]:
        log.info("as in %s, and not as in %s: %s", resume.path, config.name, ", ".join(kept))
    end = config.train.scaled().max_iterations
    due = state.awaits_validation and config.train.validate_every
    # A scheduler repeats --resume auto until it succeeds.
    if (start == end and not due) or (start > end and args.resume == "auto"):
        log.info("the training is complete: %s is at iteration %d of %d", resume.path, start, end)
        return True
    return False


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
