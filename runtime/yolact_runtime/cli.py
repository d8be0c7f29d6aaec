"""yolact-infer: images to overlays and COCO JSON."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from yolact_runtime.commandline import Parser, run
from yolact_runtime.engine import Engine, load_engine
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import atomic_path
from yolact_runtime.report import CocoReport, ImageIds
from yolact_runtime.results import Result
from yolact_runtime.sources.images import list_images, read_image

log = logging.getLogger(__name__)

# What OpenCV writes everywhere; an overlay of anything else becomes a PNG.
_WRITABLE = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_DRIVE = r"[A-Za-z]:(?=[\\/])"


def build_parser() -> Parser:
    """The options of yolact-infer."""
    parser = Parser(prog="yolact-infer", description="Find instances in images: overlays and COCO JSON.")
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE", help="images, folders, or patterns such as 'photos/*.jpg'")
    add(
        "--engine",
        "--trained-model",
        required=True,
        help="an .onnx or .xml file, a checkpoint or a name",
    )
    add("--output", default="results/overlays", type=Path, metavar="DIR", help="folder of the overlays")
    add("--json", default="results/mask_detections.json", type=Path, metavar="FILE",
        help="COCO results with masks; boxes and the list of images are written beside it")  # fmt: skip
    add("--score-threshold", default=0.15, type=float, help="least score of a detection, 0..1")
    add("--top-k", default=15, type=int, help="most detections per image")
    add("--annotations", type=Path, metavar="FILE",
        help="COCO file with the images' ids, found by file name; otherwise numbered from 1")  # fmt: skip
    add("--polygons", action="store_true", help="outlines instead of run lengths in the JSON; no holes")
    add("--batch-size", default=1, type=int, metavar="N", help="images in one call of the engine")
    add("--no-overlay", action="store_true", help="write the JSON only")
    add(
        "--providers",
        nargs="+",
        metavar="NAME",
        help="ONNX Runtime providers, best first (after SOURCE): cuda cpu",
    )
    add("--threads", type=int, metavar="N", help="CPU threads")
    add("--config", help="configuration of a checkpoint that does not name its own")
    add("--image", metavar="IN[:OUT]", help="one image, and optionally the file for its overlay")
    add("--images", metavar="DIR[:OUTDIR]", help="a folder, and optionally the folder for its overlays")
    return parser


@dataclass
class _Job:
    """One image and what becomes of it."""

    path: Path
    overlay: Path | None
    image_id: int | None


@dataclass
class _Tally:
    images: int = 0
    detections: int = 0
    unreadable: int = 0
    unlisted: int = 0
    seconds: float = 0.0
    drawn: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `yolact-infer`; returns the exit code."""
    return run(infer, build_parser(), argv)


def infer(args: argparse.Namespace) -> int:
    """Do what the options say; 1 when an image failed, 130 when interrupted."""
    _check_options(args)
    # What a decoder has to say about a damaged image is in the exception.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    sources, output, single = _sources(args)
    paths = list_images(sources)
    ids = ImageIds(args.annotations) if args.annotations else None
    _check_writable(args.json.parent)
    if not args.no_overlay:
        _check_writable(single.parent if single else output)
    options = {"providers": args.providers, "threads": args.threads, "config": args.config}
    with load_engine(args.engine, **{k: v for k, v in options.items() if v is not None}) as engine:
        meta = engine.metadata
        if ids:
            for sentence in ids.contradictions(meta.category_ids, meta.class_names):
                log.warning("%s: the JSON has the engine's ids", sentence)
        tally = _Tally()
        jobs = _plan(paths, ids, None if args.no_overlay else output, single, tally)
        report = CocoReport(args.json, meta.category_ids, meta.class_names, args.polygons)
        interrupted = False
        try:
            _work(engine, jobs, report, tally, args)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            report.write()
    print(_summary(tally, report, single or output, args))
    if interrupted:
        log.error("interrupted: the results of the images done so far are written")
        return 130
    return 1 if tally.unreadable or tally.unlisted else 0


def _check_options(args: argparse.Namespace) -> None:
    if not 0 <= args.score_threshold <= 1:
        raise UsageError(f"--score-threshold is {args.score_threshold}; it must be in 0..1")
    for option in ("top_k", "batch_size"):
        if getattr(args, option) < 1:
            raise UsageError(f"--{option.replace('_', '-')} is {getattr(args, option)}; it must be 1 or more")
    given = [bool(args.sources), bool(args.image), bool(args.images)]
    if sum(given) != 1:
        raise UsageError("name the images once: SOURCE..., --image IN[:OUT] or --images DIR[:OUTDIR]")


def _sources(args: argparse.Namespace) -> tuple[list[str], Path, Path | None]:
    """What to read, the folder of the overlays, and the overlay's file where --image names one."""
    if args.image:
        source, target = split_pair(args.image)
        if target and Path(target).suffix.lower() not in _WRITABLE:
            raise UsageError(f"cannot write an image as {target}; known are {', '.join(sorted(_WRITABLE))}")
        return [source], args.output, Path(target) if target else None
    if args.images:
        source, target = split_pair(args.images)
        return [source], Path(target) if target else args.output, None
    return args.sources, args.output, None


def split_pair(text: str) -> tuple[str, str]:
    r"""`IN:OUT` in two; OUT may be missing, and both may begin with a drive such as `C:\`."""
    if Path(text).exists():
        return text, ""
    match = re.fullmatch(rf"((?:{_DRIVE})?[^:]*)(?::(.*))?", text)
    if not match or not match[1]:
        raise UsageError(f"{text!r} is not of the form IN or IN:OUT")
    return match[1], match[2] or ""


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise YolactError(f"cannot write to folder {folder}: {error.strerror or error}") from error


def _plan(
    paths: list[Path], ids: ImageIds | None, output: Path | None, single: Path | None, tally: _Tally
) -> list[_Job]:
    """Give every image its id and its overlay's file, so that no file is written twice or over a source."""
    taken = {path.resolve() for path in paths}
    used: dict[int, Path] = {}
    jobs = []
    for number, path in enumerate(paths, start=1):
        image_id: int | None = number
        if ids:
            try:
                image_id = ids.find(path)
                if image_id is None:
                    raise YolactError(f"image {path} is not in {ids.path}")
                if image_id in used:
                    raise YolactError(f"image {path} has the id {image_id}, as {used[image_id]} before it")
                used[image_id] = path
            except YolactError as error:
                log.error("%s; it is left out of the JSON", error)
                tally.unlisted += 1
                image_id = None
        overlay = None
        if output is not None:
            overlay = single or _free_name(output, path, taken)
            taken.add(overlay.resolve())
        jobs.append(_Job(path, overlay, image_id))
    return jobs


def _free_name(folder: Path, source: Path, taken: set[Path]) -> Path:
    suffix = source.suffix if source.suffix.lower() in _WRITABLE else ".png"
    target = folder / (source.stem + suffix)
    number = 2
    while target.resolve() in taken:
        target = folder / f"{source.stem}_{number}{suffix}"
        number += 1
    return target


def _work(
    engine: Engine, jobs: list[_Job], report: CocoReport, tally: _Tally, args: argparse.Namespace
) -> None:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[fps]:.1f} images/s"),
        TimeRemainingColumn(),
    )
    start = time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("yolact-infer", total=len(jobs), fps=0.0)
        for first in range(0, len(jobs), args.batch_size):
            batch = _read(jobs[first : first + args.batch_size], tally)
            results = engine.predict([image for _, image in batch], args.score_threshold, args.top_k)
            for (job, image), result in zip(batch, results, strict=True):
                _finish(job, image, result, report, tally)
            done = min(first + args.batch_size, len(jobs))
            tally.seconds = time.perf_counter() - start
            progress.update(task, completed=done, fps=done / tally.seconds)


def _read(jobs: list[_Job], tally: _Tally) -> list[tuple[_Job, np.ndarray]]:
    batch = []
    for job in jobs:
        try:
            batch.append((job, read_image(job.path)))
        except YolactError as error:
            log.error("%s; skipped", error)
            tally.unreadable += 1
    return batch


def _finish(job: _Job, image: np.ndarray, result: Result, report: CocoReport, tally: _Tally) -> None:
    if job.image_id is not None:
        report.add(result, job.image_id, job.path.name)
    if job.overlay is not None:
        _write_image(job.overlay, result.draw(image))
        tally.drawn = True
    tally.images += 1
    tally.detections += len(result)


def _write_image(path: Path, image: np.ndarray) -> None:
    suffix = path.suffix.lower() if path.suffix.lower() in _WRITABLE else ""
    if not suffix:
        raise UsageError(
            f"cannot write an image as {path}; known suffixes are {', '.join(sorted(_WRITABLE))}"
        )
    done, data = cv2.imencode(suffix, image)
    if not done:
        raise YolactError(f"cannot write {path}: OpenCV has no encoder for {suffix}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _summary(tally: _Tally, report: CocoReport, overlays: Path, args: argparse.Namespace) -> str:
    parts = [f"{tally.images} images, {tally.detections} detections, {tally.unreadable} failures"]
    if args.annotations:
        parts.append(f"{tally.unlisted} not in {args.annotations}")
    if tally.images:
        parts.append(f"{1000 * tally.seconds / tally.images:.1f} ms per image")
    parts.append(f"{report.masks_path}, {report.boxes_path}, {report.images_path}")
    if tally.drawn:
        parts.append(f"overlays in {overlays}")
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
