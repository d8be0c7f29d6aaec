"""`yolact-data convert`: annotations in another format to COCO."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from typing import Any

from yolact_runtime.commandline import track
from yolact_runtime.errors import UsageError, counted
from yolact_runtime.files import atomic_path, read_json, stream_of, write_json
from yolact_runtime.outputs import check_outputs

log = logging.getLogger(__name__)

# How many faults of a conversion are printed.
_FAULTS = 20


def show_progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """Show a progress bar while the items are taken."""
    return track(items, what, total)


def convert_command(args: argparse.Namespace) -> int:
    """`convert`: write the COCO file, or those of all parts and the dataset file; print what is left out."""
    from yolact.dataset_tools.convert import convert, convert_yolo_dataset

    several = args.format == "yolo" and args.source.suffix.lower() in (".yaml", ".yml")
    if several:
        if args.images or args.names or args.only or args.output.suffix:
            raise UsageError(
                f"convert yolo {args.source} takes images and names from this file, and a folder as OUTPUT"
            )
        import yaml

        check_outputs(
            [("source", args.source)], [("output", args.output / "dataset.yaml")], [("output", args.output)]
        )
        parts, dataset = convert_yolo_dataset(args.source, args.output, show_progress)
        files = {args.output / "annotations" / f"instances_{part}.json": parts[part] for part in parts}
    else:
        _check_output(args)
        result = convert(args.format, args.source, args.images, args.names, args.only, show_progress)
        files = {args.output: result}
    for path, conversion in files.items():
        write_json(path, conversion.content)
        images, annotations, classes = (
            counted(len(conversion.content[key]), noun, plural)
            for key, noun, plural in (
                ("images", "image", ""), ("annotations", "annotation", ""), ("categories", "class", "classes")
            )
        )  # fmt: skip
        log.info("%s of %s, %s, %s: %s", images, conversion.images, annotations, classes, path)
    if several:
        with atomic_path(args.output / "dataset.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(dataset, sort_keys=False, allow_unicode=True), "utf-8")
        log.info("train with: yolact-train --dataset %s", args.output / "dataset.yaml")
    faults = [fault for conversion in files.values() for fault in conversion.faults]
    for fault in faults[:_FAULTS]:
        log.error("%s", fault)
    if faults:
        more = f", of which {_FAULTS} are listed" if len(faults) > _FAULTS else ""
        log.error("left out what has %s%s; the rest is converted", counted(len(faults), "fault"), more)
    return 1 if faults else 0


def _check_output(args: argparse.Namespace) -> None:
    """Raise a UsageError for an output that is a folder, is read, or is another file than a COCO file."""
    if args.output.is_dir():
        raise UsageError(f"output {args.output} is a folder; expected a file to write, such as train.json")
    reads = [
        ("source", args.source),
        *((f"--{name}", getattr(args, name)) for name in ("images", "names", "only")),
    ]
    check_outputs(reads, [("output", args.output)])
    if not args.output.exists() or stream_of(args.output) is not None:
        return
    if args.output.suffix.lower() != ".json":
        raise UsageError(f"output {args.output} exists and is no JSON file; it is kept")
    content = read_json(args.output)
    if not isinstance(content, dict) or "categories" not in content:
        raise UsageError(f"output {args.output} exists and is no COCO annotation file; it is kept")
