"""`yolact-data`: check annotation files, draw samples, convert to COCO, generate a dataset of shapes."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact.registry import get_config
from yolact_runtime.commandline import Parser, run
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import atomic_path, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from yolact.data.findings import Finding, Level
    from yolact.dataset_tools.check import Report

log = logging.getLogger(__name__)

# How many findings of one kind are printed; --json writes all.
_SHOWN = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(lambda args: args.command(args), _parser(), argv)


def _parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="yolact-data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    check = add("check", _check, "find problems before training or evaluation; exit code 1 for errors")
    check.add_argument("annotations", type=Path, help="COCO annotation file")
    check.add_argument("--images", type=Path, help="folder of the images; each is opened")
    check.add_argument("--json", type=Path, metavar="FILE", help="write all findings here")

    fix = add("fix", _fix, "write a repaired annotation file; exit code 1 if something could not be repaired")
    fix.add_argument("annotations", type=Path, help="COCO annotation file")
    fix.add_argument("--images", type=Path, help="folder of the images, to correct names and sizes")
    fix.add_argument("--output", type=Path, required=True, metavar="FILE", help="annotation file to write")
    fix.add_argument(
        "--crowd-as-instances",
        action="store_true",
        help="make crowd regions with a mask instances: CVAT exports what its brush drew as crowds",
    )

    show = add("show", _show, "draw samples as the network will see them")
    show.add_argument("annotations", type=Path, help="COCO annotation file")
    show.add_argument("--images", type=Path, required=True, help="folder of the images")
    show.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    show.add_argument("--count", type=int, default=16, help="number of samples")
    show.add_argument("--seed", type=int, default=0, help="selects the samples and their augmentation")
    show.add_argument(
        "--config", default="yolact_base", help="configuration with input size and augmentation"
    )
    show.add_argument("--augment", action="store_true", help="augment as training does")
    show.add_argument("--epoch", type=int, default=0, help="epoch whose augmentation is drawn")

    shapes = add("shapes", _shapes, "generate a synthetic dataset of shapes")
    shapes.add_argument("folder", type=Path, help="folder to write to")
    shapes.add_argument("--train", type=int, default=300, help="number of training images")
    shapes.add_argument("--val", type=int, default=60, help="number of validation images")
    shapes.add_argument("--seed", type=int, default=0, help="random seed")

    other = add("convert", _convert, "convert annotations in another format to COCO")
    formats = ("labelme", "masks", "voc", "yolo")
    other.add_argument("format", choices=formats, help="format of the annotations in SOURCE")
    other.add_argument("source", type=Path, help="folder of the annotations")
    other.add_argument("output", type=Path, help="COCO annotation file to write")
    other.add_argument("--images", type=Path, help="folder of the images, if it is not SOURCE")
    other.add_argument("--names", type=Path, help="class names: a text file, one a line, or YOLO's data.yaml")
    other.add_argument("--only", type=Path, help="text file with the names (no suffix) of the images to take")
    return parser


def _check(args: argparse.Namespace) -> int:
    """`check`: print and write what is wrong."""
    from rich.console import Console
    from rich.progress import track

    from yolact.dataset_tools.check import check_annotations

    def progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        console = Console(stderr=True)
        return track(items, what, total, console=console, disable=args.quiet or not console.is_terminal)

    report = check_annotations(args.annotations, args.images, progress)
    if args.json:
        write_json(args.json, report.to_dict(), indent=1)
    _print_report(report, Console())
    return 1 if report.count("error") else 0


def _print_report(report: Report, console: Console) -> None:
    """Print the classes, and for every kind of finding how often it occurs and the first few."""
    from rich.table import Table
    from rich.text import Text

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
    groups: dict[tuple[Level, str], list[Finding]] = defaultdict(list)
    for finding in report.findings:
        groups[finding.level, finding.kind].append(finding)
    order: tuple[Level, ...] = ("error", "warning", "note")
    for (level, kind), findings in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        style = {"error": "red", "warning": "yellow", "note": "dim"}[level]
        console.print(f"{level}: {kind}: {len(findings)}", style=style)
        for finding in findings[:_SHOWN]:
            ids = [("image", finding.image_id), ("annotation", finding.annotation_id)]
            where = ", ".join(f"{name} {value}" for name, value in ids if value is not None)
            text = f"  {where + ': ' if where else ''}{finding.message}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        if len(findings) > _SHOWN:
            console.print(f"  and {len(findings) - _SHOWN} more; --json FILE writes all")
    numbers = [str(report.count(level)) + f" {level}s" for level in order]
    console.print(", ".join(numbers))


def _fix(args: argparse.Namespace) -> int:
    """`fix`: write the repaired file, and print what was changed and what could not be repaired."""
    from rich.console import Console

    from yolact.dataset_tools.fix import fix_annotations

    found = fix_annotations(args.annotations, args.output, args.images, args.crowd_as_instances)
    console = Console()
    titles: dict[Level, str] = {"note": "changed", "error": "not repaired", "warning": "left as it is"}
    for wanted, title in titles.items():
        for (level, kind), number in found.counts.items():
            if level == wanted:
                first = found.first(level, kind)
                text = f"{title}: {kind}: {number}, the first: {first.where}{first.message}"
                console.print(text, markup=False, highlight=False, soft_wrap=True)
    if not found.counts:
        console.print("nothing had to be changed")
    log.info("wrote %s; check it with: yolact-data check %s", args.output, args.output)
    return 1 if found.count("error") else 0


def _show(args: argparse.Namespace) -> int:
    """`show`: write a picture for each sample; an unreadable image is reported and skipped."""
    import cv2
    import numpy as np

    from yolact.data.annotations import read_classes
    from yolact.data.coco import CocoDataset
    from yolact.dataset_tools.show import draw_sample

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
    log.info("drew %d of %d samples in %s", count - failed, len(dataset), args.output)
    return 1 if failed else 0


def _shapes(args: argparse.Namespace) -> None:
    """`shapes`: write the dataset."""
    from yolact.dataset_tools.synthetic import make_shapes_dataset

    data = make_shapes_dataset(args.folder, args.train, args.val, seed=args.seed)
    log.info("%d + %d images: %s, %s", args.train, args.val, data.train_annotations, data.val_annotations)


def _convert(args: argparse.Namespace) -> None:
    """`convert`: write the COCO file."""
    from yolact.dataset_tools.convert import convert

    content = convert(args.format, args.source, args.images, args.names, args.only)
    write_json(args.output, content)
    log.info(
        "%d images, %d annotations, %d classes: %s",
        *(len(content[key]) for key in ("images", "annotations", "categories")),
        args.output,
    )


if __name__ == "__main__":
    sys.exit(main())
