"""The options of `yolact-infer merge`; `yolact_runtime.merge.join` does the work."""

from __future__ import annotations

import argparse
from pathlib import Path

from yolact_runtime.errors import UsageError


def add_merge_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT",
        help="the outputs of all shards: JSON Lines, mask_detections.json, .parquet or .csv; or one folder of"
        " Parquet files with a row for each image")  # fmt: skip
    add("--json", type=Path, metavar="FILE",
        help="COCO results with masks; box results and the image list go into the same folder")  # fmt: skip
    add("--coco-dataset", type=Path, metavar="FILE", help="COCO annotation file of what was found")
    add("--jsonl", type=Path, metavar="FILE|-", help="JSON Lines: one line per image")
    add("--table", type=Path, metavar="FILE", help="table with a row per detection: .csv or .parquet")
    add("--annotations", type=Path, metavar="FILE",
        help="for a folder: COCO file with the image ids and categories; else images are numbered from 1,"
        " sorted by path")  # fmt: skip
    add("--engine", metavar="FILE", help="for a folder that names no categories: the engine, which has them")


def merge_command(args: argparse.Namespace) -> int:
    """Run `yolact-infer merge`; returns the exit code."""
    outputs = args.json, args.coco_dataset, args.jsonl, args.table
    if not any(outputs):
        raise UsageError("nothing would be written: name --json, --coco-dataset, --jsonl or --table")
    from yolact_runtime.merge.join import merge

    return merge(args)
