"""`yolact-train`: train a configuration on a COCO dataset."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from yolact.registry import config_name_of, configs, get_config
from yolact.settings import override
from yolact_runtime.commandline import Parser, run
from yolact_runtime.errors import UsageError

log = logging.getLogger(__name__)


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="yolact-train", description="Train YOLACT on a COCO dataset.")
    parser.add_argument("--config", help=f"one of {', '.join(configs())}; with --resume, the checkpoint's")
    parser.add_argument(
        "--dataset", help="a folder in COCO layout or a .yaml; the configuration's own if not given"
    )
    parser.add_argument("--batch-size", type=int, help="images an iteration; rate and schedule scale with it")
    parser.add_argument(
        "--iterations", type=int, help="stop after this many (not scaled with the batch size)"
    )
    parser.add_argument("--lr", "--learning-rate", type=float, help="rate for the reference batch size")
    parser.add_argument("--resume", help="a checkpoint, `last` or `interrupt`")
    parser.add_argument(
        "--start-iter", type=int, default=-1, help="first iteration; -1 takes the checkpoint's"
    )
    parser.add_argument(
        "--save-folder", type=Path, default=Path("weights"), help="for checkpoints and the log"
    )
    parser.add_argument("--save-every", "--save-interval", type=int, help="iterations between checkpoints")
    parser.add_argument("--workers", "--num-workers", type=int, help="processes that load images")
    parser.add_argument("--seed", type=int, help="of the order of images and of all draws")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--no-autoscale", action="store_true", help="leave rate and schedule as configured")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, such as train.lr=5e-4"
    )
    return parser


def command(args: argparse.Namespace) -> None:
    """Run the command."""
    name = args.config or (config_name_of(args.resume) if args.resume else None)
    if name is None:
        raise UsageError(f"--config is missing; one of {', '.join(configs())}")
    config = override(get_config(name), args.set)
    given = {
        "batch_size": args.batch_size,
        "lr": args.lr,
        "save_every": args.save_every,
        "workers": args.workers,
        "seed": args.seed,
        "autoscale": False if args.no_autoscale else None,
    }
    settings = replace(config.train, **{key: value for key, value in given.items() if value is not None})
    # From here on the schedule is in iterations of this batch size.
    settings = settings.scaled()
    if args.iterations is not None:
        if args.iterations < 1:
            raise UsageError(f"--iterations {args.iterations}; allowed: 1 or more")
        settings = replace(settings, max_iterations=args.iterations, autoscale=False)

    import torch

    from yolact.data.coco import read_classes
    from yolact.data.layout import resolve_dataset
    from yolact.engine import pick_device
    from yolact.train.checkpoint import find_checkpoint
    from yolact.train.loop import train
    from yolact.weights import load_checkpoint

    if args.threads:
        torch.set_num_threads(args.threads)
    dataset = resolve_dataset(args.dataset) if args.dataset else config.dataset
    config = replace(
        config, train=settings, dataset=dataset, classes=read_classes(Path(dataset.train_annotations))
    )
    resume, start = None, max(args.start_iter, 0)
    if args.resume:
        path = find_checkpoint(args.resume, args.save_folder, config.name)
        resume = load_checkpoint(path, config)
        start = resume.iteration if args.start_iter < 0 else args.start_iter
        if resume.training is None:
            log.warning("%s holds weights only: the optimizer starts afresh at iteration %d", path, start)
    train(config, args.save_folder, pick_device(args.device), resume, start)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `yolact-train`."""
    return run(command, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
