"""The options of yolact-infer for a run on a Ray cluster."""

from __future__ import annotations

import argparse
import re

from yolact_runtime.errors import UsageError
from yolact_runtime.untrusted import beyond, limit

# What has a meaning on a cluster; other options are refused there.
_APPLY = {
    "sources", "null", "score_threshold", "top_k", "classes", "engine", "backend", "precision", "threads",
    "providers", "config", "input_size", "class_names", "batch_size", "workers", "resume", "ray",
    "tile", "tile_overlap", "tile_full", "gpus_per_worker", "output_parquet", "no_json", "no_overlay",
    "debug", "quiet", "prog", "timeout", "connect_timeout", "retries", "retry_seconds",
}  # fmt: skip


def add_ray_options(parser: argparse.ArgumentParser) -> None:
    """Add the option group with `--ray`."""
    add = parser.add_argument_group("cluster").add_argument
    add("--ray", nargs="?", const="", type=_address, metavar="ADDRESS",
        help="run on a Ray cluster: HOST:PORT, auto for the one of this machine; without ADDRESS that of"
        " $RAY_ADDRESS, else a new one on this machine; --threads are the CPUs of each worker")  # fmt: skip
    add("--output-parquet", metavar="DIR",
        help="with --ray: folder for Parquet files with a row per image; a path that all nodes share, or an"
        " address such as s3://bucket/dir")  # fmt: skip
    add("--gpus-per-worker", default=0.0, type=float, metavar="N",
        help="with --ray: GPUs of each worker; 0.5 for two workers on one")  # fmt: skip


def _address(text: str) -> str:
    if text in ("", "auto", "local") or re.fullmatch(r"(ray://)?[^/\s]+:\d+", text):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither HOST:PORT, auto nor local; put --ray after the images, or --ray=ADDRESS"
    )


def check_ray_options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raise a UsageError for options that do not go with `--ray`, or need it."""
    if args.ray is None:
        for option in ("output_parquet", "gpus_per_worker"):
            if getattr(args, option):
                raise UsageError(f"{_spelt(option)} needs --ray")
        return
    for option, value in vars(args).items():
        if option not in _APPLY and str(value) != str(parser.get_default(option)):
            raise UsageError(
                f"{_spelt(option)} does not apply with --ray, which writes --output-parquet DIR; make the"
                " JSON from it: yolact-infer merge DIR --json FILE"
            )
    if args.output_parquet is None:
        raise UsageError("--ray needs the folder for its results: --output-parquet DIR")
    gpus, threads = args.gpus_per_worker, args.threads
    if not 0 <= gpus <= 64 or (gpus > 1 and gpus % 1):
        raise UsageError(f"--gpus-per-worker is {gpus:g}; it must be in 0..1, or 2, 3, ... 64")
    if threads is not None and not 1 <= threads <= limit("threads"):
        raise UsageError(f"--threads is {threads}; it must be 1 or more, and at most {beyond('threads')}")


def _spelt(option: str) -> str:
    return f"--{option.replace('_', '-')}"
