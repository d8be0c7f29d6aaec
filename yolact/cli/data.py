"""`yolact-data`: look at annotation files, draw samples, convert to COCO, make a dataset of shapes."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from yolact.data.annotations import read_classes
from yolact.data.coco import CocoDataset
from yolact.dataset_tools.check import Finding, Report, check_annotations
from yolact.dataset_tools.convert import FORMATS, convert
from yolact.dataset_tools.show import draw_sample
from yolact.dataset_tools.synthetic import make_shapes_dataset
from yolact.registry import get_config
from yolact_runtime.commandline import Parser, run
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import atomic_path, write_json

log = logging.getLogger(__name__)

# Findings of one kind that are shown; --json holds all.
_SHOWN = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(lambda args: args.command(args), _parser(), argv)


def _parser() -> Parser:
    parser = Parser(prog="yolact-data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def add(name: str, command: Any, words: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=words, description=words, conflict_handler="resolve")
        added.set_defaults(command=command)
        # Given before the command's name, these are not to be reset by the command's own defaults.
        unset: dict[str, Any] = {"action": "store_true", "default": argparse.SUPPRESS}
        added.add_argument("--debug", help="show the traceback of an error", **unset)
        added.add_argument("--quiet", help="print warnings and results only", **unset)
        return added

    check = add(
        "check", _check, "find what would hurt training or evaluation; exit code 1 if there are errors"
    )
    check.add_argument("annotations", type=Path, help="COCO annotation file")
    check.add_argument("--images", type=Path, help="folder of the images; each is opened")
    check.add_argument("--json", type=Path, metavar="FILE", help="write all findings here")

    show = add("show", _show, "draw samples as the network will see them")
    show.add_argument("annotations", type=Path, help="COCO annotation file")
    show.add_argument("--images", type=Path, required=True, help="folder of the images")
    show.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    show.add_argument("--count", type=int, default=16, help="how many")
    show.add_argument("--seed", type=int, default=0, help="which ones, and how they are augmented")
    show.add_argument(
        "--config", default="yolact_base", help="configuration whose input size and augmentation are used"
    )
    show.add_argument("--augment", action="store_true", help="augment them as training does")
    show.add_argument("--epoch", type=int, default=0, help="of the augmentation: another one draws anew")

    shapes = add("shapes", _shapes, "write a made dataset of shapes")
    shapes.add_argument("folder", type=Path, help="folder to write to")
    shapes.add_argument("--train", type=int, default=300, help="training images")
    shapes.add_argument("--val", type=int, default=60, help="validation images")
    shapes.add_argument("--seed", type=int, default=0, help="of everything random")

    other = add("convert", _convert, "convert annotations of another format to COCO")
    other.add_argument("format", choices=sorted(FORMATS), help="what SOURCE holds")
    other.add_argument("source", type=Path, help="folder of the annotations")
    other.add_argument("output", type=Path, help="COCO annotation file to write")
    other.add_argument("--images", type=Path, help="folder of the images, where it is not SOURCE")
    other.add_argument("--names", type=Path, help="class names: a text file, one a line, or YOLO's data.yaml")
    other.add_argument("--only", type=Path, help="text file with the names (no suffix) of the images to take")
    return parser


def _check(args: argparse.Namespace) -> int:
    def progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        console = Console(stderr=True)
        return track(items, what, total, console=console, disable=args.quiet or not console.is_terminal)

    report = check_annotations(args.annotations, args.images, progress)
    if args.json:
        write_json(args.json, report.to_dict(), indent=1)
    _print_report(report, Console())
    return 1 if report.count("error") else 0


def _print_report(report: Report, console: Console) -> None:
    classes = Table("id", "class", "instances", "crowds", "images", "area 25%", "50%", "75%")
    for column in classes.columns[2:]:
        column.justify = "right"
    for c in report.classes:
        areas = [f"{area:.0f}" for area in c.areas] if c.areas else ["", "", ""]
        numbers = [str(number) for number in (c.instances, c.crowds, c.images)]
        classes.add_row(str(c.category_id), Text(c.name), *numbers, *areas)
    console.print(classes)
    console.print(
        f"{report.images} images, {report.images_without_annotations} of them without annotations; "
        f"{report.annotations} annotations",
        highlight=False,
    )
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in report.findings:
        groups[finding.level, finding.kind].append(finding)
    for (level, kind), findings in sorted(groups.items()):
        console.print(f"{level}: {kind}: {len(findings)}", style="red" if level == "error" else "yellow")
        for finding in findings[:_SHOWN]:
            places = [("image", finding.image_id), ("annotation", finding.annotation_id)]
            where = ", ".join(f"{name} {value}" for name, value in places if value is not None)
            console.print(
                f"  {where + ': ' if where else ''}{finding.message}", markup=False, highlight=False
            )
        if len(findings) > _SHOWN:
            console.print(f"  and {len(findings) - _SHOWN} more; --json FILE writes all")
    console.print(f"{report.count('error')} errors, {report.count('warning')} warnings")


def _show(args: argparse.Namespace) -> int:
    classes = read_classes(args.annotations)
    if min(args.seed, args.epoch) < 0:
        raise UsageError(f"--seed {args.seed}, --epoch {args.epoch}; allowed: 0 or more")
    config = get_config(args.config)
    model = config.model
    augment = replace(config.augment, enabled=True) if args.augment else None
    dataset = CocoDataset(args.images, args.annotations, model, classes, augment, args.seed)
    count = min(args.count, len(dataset))
    failed = 0
    for index in np.random.default_rng(args.seed).permutation(len(dataset))[:count].tolist():
        record = dataset.records[index]
        try:
            picture = draw_sample(dataset[args.epoch, index], classes, model)
        except YolactError as error:
            log.error("%s", error)
            failed += 1
            continue
        with atomic_path(args.output / f"{record.path.stem}_{record.image_id}.jpg") as temporary:
            temporary.write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
    log.info("%d of %d samples drawn in %s", count - failed, len(dataset), args.output)
    return 1 if failed else 0


def _shapes(args: argparse.Namespace) -> None:
    made = make_shapes_dataset(args.folder, args.train, args.val, seed=args.seed)
    log.info("%d + %d images: %s, %s", args.train, args.val, made.train_annotations, made.val_annotations)


def _convert(args: argparse.Namespace) -> None:
    content = convert(args.format, args.source, args.images, args.names, args.only)
    write_json(args.output, content)
    log.info(
        "%d images, %d annotations, %d classes: %s",
        *(len(content[key]) for key in ("images", "annotations", "categories")),
        args.output,
    )


if __name__ == "__main__":
    sys.exit(main())
