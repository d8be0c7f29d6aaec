"""`yolact-data`: check, repair and convert annotation files, draw samples, fit priors, generate a dataset."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact.cli.data_convert import convert_command, show_progress
from yolact.registry import get_config
from yolact.settings import check_other_classes, override
from yolact_runtime.commandline import Parser, Table, print_line, printing_beside, run
from yolact_runtime.errors import UsageError, YolactError, counted
from yolact_runtime.files import atomic_path, is_stdout, write_json
from yolact_runtime.outputs import check_outputs
from yolact_runtime.packages import require

if TYPE_CHECKING:
    from yolact.config import Config
    from yolact.data.reader.findings import Finding, Level
    from yolact.dataset_tools.check import Report

log = logging.getLogger(__name__)

# How many findings of one kind are printed; --json writes all.
_SHOWN = 3
# How many classes are printed: a table of 50,000 takes a minute.
_CLASSES = 2000
# How often each image is augmented to fit priors.
_EPOCHS = 4


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
    check.add_argument(
        "--json", type=Path, metavar="FILE", help="write all findings here; - is standard output"
    )

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
    shapes.add_argument(
        "--image-size",
        default="144x180",
        metavar="HEIGHTxWIDTH",
        help="typical size of the images in pixels; they vary by a fifth around it",
    )
    shapes.add_argument("--diameter", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="smallest and largest shape in pixels (default: they grow with the image)")  # fmt: skip
    shapes.add_argument("--max-instances", type=int, default=4, metavar="N", help="most shapes in an image")

    anchors = add(
        "anchors", _anchors, "find scales and aspect ratios of priors that fit the boxes of a dataset"
    )
    anchors.add_argument("annotations", type=Path, help="COCO annotation file")
    anchors.add_argument("--images", type=Path, help="folder of the images, if the file lacks their sizes")
    anchors.add_argument(
        "--config", default="yolact_base", help="configuration to compare with and to change"
    )
    for command in (show, anchors):
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="any setting, such as model.input_size=400",
        )
    anchors.add_argument(
        "--scales",
        type=int,
        default=0,
        metavar="N",
        help="scales per level (default: the configuration's number)",
    )
    anchors.add_argument(
        "--ratios",
        type=int,
        default=0,
        metavar="N",
        help="aspect ratios (default: the configuration's number)",
    )
    anchors.add_argument("--augment", action="store_true", help="fit the boxes as training augments them")
    anchors.add_argument("--seed", type=int, default=0, help="of k-means and the augmentation")

    other = add(
        "convert", convert_command, "convert annotations in another format to COCO; exit code 1 for faults"
    )
    formats = ("labelme", "masks", "voc", "yolo")
    other.add_argument("format", choices=formats, help="format of the annotations in SOURCE")
    other.add_argument(
        "source", type=Path, help="folder of the annotations; or Ultralytics' data.yaml, for all its parts"
    )
    other.add_argument(
        "output",
        type=Path,
        help="COCO file to write, or - for standard output; for a data.yaml, a folder",
    )
    other.add_argument("--images", type=Path, help="folder of the images, if it is not SOURCE")
    other.add_argument("--names", type=Path, help="class names: a text file, one a line, or YOLO's data.yaml")
    other.add_argument("--only", type=Path, help="text file with the names or paths of the images to take")
    return parser


def _check(args: argparse.Namespace) -> int:
    """`check`: print and write what is wrong."""
    from yolact.dataset_tools.check import check_annotations

    check_outputs([("annotations", args.annotations), ("--images", args.images)], [("--json", args.json)])
    report = check_annotations(args.annotations, args.images, show_progress)
    if args.json:
        write_json(args.json, report.to_dict(), indent=1)
    with printing_beside(args.json):
        _print_report(report)
    return 1 if report.count("error") else 0


def _print_report(report: Report) -> None:
    """Print the classes, and for every kind of finding how often it occurs and the first few."""
    rows = []
    for c in report.classes[:_CLASSES]:
        areas = [f"{area:.0f}" for area in c.areas] if c.areas else ["", "", ""]
        numbers = [str(number) for number in (c.instances, c.crowds, c.images)]
        rows.append([str(c.category_id), c.name, *numbers, *areas])
    columns = ("id", "class", "instances", "crowds", "images", "area 25%", "50%", "75%")
    Table("", columns, rows, text_columns=2).show()
    if len(report.classes) > _CLASSES:
        print_line(f"and {len(report.classes) - _CLASSES} more; --json FILE writes all", sys.stdout)
    print_line(
        f"{counted(report.images, 'image')}, {report.images_without_annotations} without annotations; "
        f"{counted(report.annotations, 'annotation')}",
        sys.stdout,
    )
    groups: dict[tuple[Level, str], list[Finding]] = defaultdict(list)
    for finding in report.findings:
        groups[finding.level, finding.kind].append(finding)
    order: tuple[Level, ...] = ("error", "warning", "note")
    for (level, kind), findings in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        style = {"error": "red", "warning": "yellow", "note": "dim"}[level]
        print_line(f"{level}: {kind}: {len(findings)}", sys.stdout, style)
        for finding in findings[:_SHOWN]:
            ids = [("image", finding.image_id), ("annotation", finding.annotation_id)]
            where = ", ".join(f"{name} {value}" for name, value in ids if value is not None)
            print_line(f"  {where + ': ' if where else ''}{finding.message}", sys.stdout)
        if len(findings) > _SHOWN:
            print_line(f"  and {len(findings) - _SHOWN} more; --json FILE writes all", sys.stdout)
    print_line(", ".join(f"{report.count(level)} {level}s" for level in order), sys.stdout)


def _fix(args: argparse.Namespace) -> int:
    """`fix`: write the repaired file, and print what was changed and what could not be repaired."""
    from yolact.dataset_tools.fix import fix_annotations

    inputs = [("annotations", args.annotations), ("--images", args.images)]
    check_outputs(inputs, [("--output", args.output)])
    found = fix_annotations(args.annotations, args.output, args.images, args.crowd_as_instances)
    # With `--output -`, standard output has nothing else.
    out = sys.stderr if is_stdout(args.output) else sys.stdout
    titles: dict[Level, str] = {"note": "changed", "error": "not repaired", "warning": "left as it is"}
    for wanted, title in titles.items():
        for (level, kind), number in found.counts.items():
            if level == wanted:
                first = found.first(level, kind)
                print_line(f"{title}: {kind}: {number}, the first: {first.where}{first.message}", out)
    if not found.counts:
        print_line("nothing had to be changed", out)
    log.info("wrote %s; check it with: yolact-data check %s", args.output, args.output)
    return 1 if found.count("error") else 0


def _config(args: argparse.Namespace) -> Config:
    """The configuration that --config and --set name."""
    config = override(get_config(args.config), args.set)
    check_other_classes(config.dataset.classes, args.set)
    return config


def _show(args: argparse.Namespace) -> int:
    """`show`: write a picture for each sample; an unreadable image is reported and skipped."""
    import cv2
    import numpy as np

    from yolact.data.annotations import read_classes
    from yolact.data.coco import CocoDataset
    from yolact.dataset_tools.show import draw_sample

    check_outputs([], [], [("--output", args.output)])
    config = _config(args)
    data = config.dataset
    classes = read_classes(args.annotations, data.classes)
    if min(args.seed, args.epoch) < 0:
        raise UsageError(f"--seed {args.seed}, --epoch {args.epoch}; allowed: 0 or more")
    if args.count < 1:
        raise UsageError(f"--count {args.count}; allowed: 1 or more")
    model = config.model
    augment = replace(config.augment, enabled=True) if args.augment else None
    dataset = CocoDataset(
        args.images, args.annotations, model, classes, augment, args.seed,
        data.crowd_as_instances, data.other_classes if data.classes else None,
    )  # fmt: skip
    count = min(args.count, len(dataset))
    failed = 0
    chosen = np.random.default_rng(args.seed).permutation(len(dataset))[:count].tolist()
    # A name may have 255 bytes, and what is added to this one could be too much.
    stems = (os.fsdecode(os.fsencode(record.path.stem)[:200]) for record in dataset.records)
    names = [
        args.output / f"{stem}_{record.image_id}.jpg"
        for stem, record in zip(stems, dataset.records, strict=True)
    ]
    check_outputs(
        [("annotations", args.annotations), *(("--images", record.path) for record in dataset.records)],
        [("--output", names[index]) for index in chosen],
        shared=["--output"],
    )
    for index in chosen:
        try:
            picture = draw_sample(dataset[args.epoch, index], classes, model)
        except YolactError as error:
            log.error("%s", error)
            failed += 1
            continue
        with atomic_path(names[index]) as temporary:
            temporary.write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
    log.info("drew %d of %d samples in %s", count - failed, len(dataset), args.output)
    return 1 if failed else 0


def _shapes(args: argparse.Namespace) -> None:
    """`shapes`: write the dataset."""
    from yolact.dataset_tools.synthetic import make_shapes_dataset

    if not re.fullmatch(r"[0-9]{1,5}x[0-9]{1,5}", args.image_size):
        raise UsageError(f"--image-size {args.image_size!r}; height x width is needed, such as 144x256")
    height, width = map(int, args.image_size.split("x"))
    check_outputs([], [], [("folder", args.folder)])
    data = make_shapes_dataset(
        args.folder,
        args.train,
        args.val,
        image_size=(height, width),
        seed=args.seed,
        max_instances=args.max_instances,
        diameter=tuple(args.diameter) if args.diameter else None,
    )
    log.info("%d + %d images: %s, %s", args.train, args.val, data.train_annotations, data.val_annotations)


def _anchors(args: argparse.Namespace) -> None:
    """`anchors`: print priors that fit, and the share of boxes that they and the configuration's match."""
    require("yolact-data anchors", "train", "scipy")
    from yolact.dataset_tools.anchors import best_overlaps, fit_priors, network_boxes, settings_of

    config = _config(args)
    model, data = config.model, config.dataset
    if args.seed < 0:
        raise UsageError(f"--seed is {args.seed}; it must be 0 or more")
    iou = config.loss.positive_iou
    augment = replace(config.augment, enabled=True) if args.augment else None
    boxes = network_boxes(
        args.annotations, model, args.images, augment, _EPOCHS if augment else 1, args.seed,
        data.classes, data.crowd_as_instances,
    )  # fmt: skip
    fitted = fit_priors(boxes, model, args.scales, args.ratios, iou, args.seed)
    before, after = best_overlaps(boxes, model), best_overlaps(boxes, fitted)
    groups = (
        ("all", 0, math.inf),
        ("small, below 32 x 32", 0, 32**2),
        ("medium", 32**2, 96**2),
        ("large, from 96 x 96", 96**2, math.inf),
    )
    rows = []
    for name, low, high in groups:
        if number := int(((before.areas >= low) & (before.areas < high)).sum()):
            shares = [f"{100 * fit.matched(iou, low, high):.1f}%" for fit in (before, after)]
            rows.append([name, str(number), *shares])
    height, width = model.input_shape
    print_line(f"boxes as the network sees them, in pixels of its input of {height} x {width}:", sys.stdout)
    columns = ("boxes", "number", f"matched at {iou:g} before", "after")
    Table("", columns, rows, text_columns=1).show()
    print_line(
        f"mean of the best IoU: {before.overlaps.mean():.3f} before, {after.overlaps.mean():.3f} after",
        sys.stdout,
    )
    if after.matched(iou) <= before.matched(iou):
        print_line("the priors of the configuration match as many boxes: keep them", sys.stdout)
    for setting in settings_of(fitted):
        print_line(f"--set {shlex.quote(setting)}", sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
