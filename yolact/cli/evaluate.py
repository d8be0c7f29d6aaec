"""`yolact-eval`: COCO box and mask AP of any engine."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolact.config import DatasetConfig
from yolact.registry import configs
from yolact_runtime.commandline import Parser, Table, print_line, printing_beside, run
from yolact_runtime.engines.options import (
    add_class_filter,
    add_engine_options,
    add_tile_options,
    open_engine,
)
from yolact_runtime.errors import UsageError, counted, without_secrets
from yolact_runtime.files import write_json
from yolact_runtime.outputs import Named, check_outputs, engine_files

if TYPE_CHECKING:
    from yolact.evaluation.evaluate import Evaluation
    from yolact.evaluation.metrics import Metrics

log = logging.getLogger(__name__)

# Options of the original's eval.py that yolact-infer has.
_DRAWS = "use yolact-infer, which draws the instances of images and videos"
_ELSEWHERE = {
    **dict.fromkeys(("--image", "--video", "--webcam", "--display"), _DRAWS),
    **dict.fromkeys(("--score-threshold", "--top-k"), f"AP counts all detections; {_DRAWS}"),
    "--video-multiframe": "use yolact-infer with --batch-size and --streams",
    "--benchmark": "use yolact-bench, which measures speed",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (1 if an image could not be evaluated)."""
    return run(_evaluate, _parser(), argv)


def _parser() -> Parser:
    """The command's options."""
    parser = Parser(
        prog="yolact-eval",
        description="COCO box and mask AP of an engine. Every image of the annotation file counts.",
        elsewhere=_ELSEWHERE,
    )
    add_engine_options(parser)
    add_tile_options(parser)
    add_class_filter(parser)
    add = parser.add_argument
    data = parser.add_argument_group("data (by default the validation images of the engine's configuration)")
    data.add_argument("--images", metavar="DIR", help="folder of the images")
    data.add_argument("--annotations", metavar="FILE", help="COCO annotation file")
    data.add_argument("--dataset", metavar="DIR|YAML", help="dataset; its validation images are used")
    data.add_argument("--val-fraction", type=float, metavar="F",
        help="evaluate on the training images that yolact-train --val-fraction F held out")  # fmt: skip
    data.add_argument("--seed", type=int, default=0, help="the seed of that training")
    data.add_argument("--max-images", type=int, default=-1, help="evaluate the first N only; -1 for all")
    add("--batch-size", type=int, help="images in one call (default: 8, or the engine's maximum)")
    add("--faster", action="store_true", help="compute AP with faster-coco-eval; the numbers are the same")
    results = parser.add_argument_group("results")
    results.add_argument("--json", metavar="FILE", help="write the metrics as JSON; - is standard output")
    results.add_argument(
        "--report",
        metavar="DIR",
        help="write report.html with precision-recall curves and a confusion matrix, and these as PNG files;"
        " their numbers go into the JSON as `details`",
    )
    results.add_argument(
        "--confusion-score",
        type=float,
        default=0.3,
        metavar="S",
        help="lowest score of the detections in the confusion matrix",
    )
    results.add_argument("--per-class", action="store_true", help="print the AP of every class, too")
    results.add_argument(
        "--output-coco-json", action="store_true", help="write the detections as COCO result files"
    )
    results.add_argument("--bbox-det-file", metavar="FILE", default="results/bbox_detections.json")
    results.add_argument("--mask-det-file", metavar="FILE", default="results/mask_detections.json")
    return parser


def _evaluate(args: argparse.Namespace) -> int:
    """Run the engine, compute AP and write what was asked for."""
    from yolact.data.split import held_out
    from yolact.evaluation.confusion import check_score_threshold
    from yolact.evaluation.evaluate import predict, score
    from yolact.evaluation.ground_truth import read_ground_truth
    from yolact.evaluation.metrics import coco_library
    from yolact.evaluation.report import check_report_packages, write_report

    # Missing packages and wrong values are reported before the work.
    coco_library(args.faster)
    check_score_threshold(args.confusion_score)
    if args.report:
        check_report_packages()
    _check_files(args)
    with open_engine(args) as engine:
        wanted = engine.class_indices(args.classes, "--classes")
        images, annotations = _data(args, engine.metadata.config)
        _check_files(args, [("the dataset", images), ("the dataset", annotations)])
        truth = read_ground_truth(annotations, images)
        if args.val_fraction is not None:
            truth = truth.subset(held_out(truth.images, args.val_fraction, args.seed))
        limit = None if args.max_images == -1 else args.max_images
        found = predict(engine, images, truth, batch_size=args.batch_size, max_images=limit, classes=wanted)
    if args.output_coco_json:
        for entries, path in zip((found.boxes, found.masks), _result_files(args), strict=True):
            write_json(path, entries)
            log.info("wrote %s to %s", counted(len(entries), "detection"), path)
    options = {"details": bool(args.report), "confusion_score": args.confusion_score, "faster": args.faster}
    evaluation = score(truth, found, **options)
    about = {
        "engine": without_secrets(str(args.engine)),
        "config": engine.metadata.config,
        "backend": engine.name,
        "precision": engine.precision,
        "images_from": str(images),
        "annotations": str(annotations),
    }
    if wanted is not None:
        about["classes"] = ", ".join(engine.metadata.class_names[index] for index in sorted(wanted))
    if args.json:
        write_json(args.json, {**about, **evaluation.to_json()}, indent=2)
        log.info("wrote the metrics to %s", args.json)
    if args.report:
        page = write_report(evaluation, args.report, about)
        log.info("wrote the report to %s", page)
    if not truth.annotations:
        log.warning("%s has no annotations: every metric is undefined", truth.path)
    with printing_beside(args.json, *_result_files(args)):
        show(evaluation, args.per_class)
    if evaluation.failures:
        log.error(
            "%d of %s failed; they count as images without detections",
            len(evaluation.failures),
            counted(evaluation.images, "image"),
        )
    return 1 if evaluation.failures else 0


def _result_files(args: argparse.Namespace) -> list[str]:
    """The files for box and mask results, if they were asked for."""
    return [args.bbox_det_file, args.mask_det_file] if args.output_coco_json else []


def _check_files(args: argparse.Namespace, data: Sequence[Named] = ()) -> None:
    """Check before the work that all outputs can be written, and that none is an input."""
    from yolact.data.files import dataset_files
    from yolact.evaluation.report import report_files

    reads: list[Named] = [("--engine", path) for path in engine_files(args.engine)]
    reads += [
        ("--images", args.images),
        ("--annotations", args.annotations),
        *dataset_files(args.dataset),
        *data,
    ]
    writes: list[Named] = [("--json", args.json)]
    writes += [("--report", path) for path in report_files(args.report)] if args.report else []
    writes += zip(("--bbox-det-file", "--mask-det-file"), _result_files(args), strict=False)
    check_outputs(reads, writes, [("--report", args.report)])


def _data(args: argparse.Namespace, config: str) -> tuple[Path, Path]:
    """Images and annotations: the ones given, else those of `--dataset`, else the configuration's."""
    from yolact.data.layout import default_dataset, resolve_dataset

    if args.images and ":" in args.images and not (args.annotations or Path(args.images).exists()):
        raise UsageError(f"--images {args.images}: {_DRAWS}; here, --images DIR goes with --annotations FILE")
    if args.images and args.annotations:
        return Path(args.images), Path(args.annotations)
    dataset: DatasetConfig | None = None
    if args.dataset:
        dataset = resolve_dataset(args.dataset)
    elif not (args.images or args.annotations) and config in configs():
        part = "val" if args.val_fraction is None else "train"
        dataset = default_dataset(configs()[config].dataset, part)
        log.info("evaluating on %s of the configuration %s", dataset.name, config)
    if dataset is None:
        raise UsageError(f"give both --images and --annotations, or --dataset; without annotations, {_DRAWS}")
    if args.val_fraction is not None:
        if dataset.has_validation:
            raise UsageError(f"--val-fraction: {dataset.name} has a validation part; leave the option out")
        return Path(args.images or dataset.train_images), Path(args.annotations or dataset.train_annotations)
    if not dataset.has_validation:
        raise UsageError(
            f"{dataset.name} has no validation part; give --images and --annotations, or the --val-fraction"
            " that its training held out"
        )
    return Path(args.images or dataset.val_images), Path(args.annotations or dataset.val_annotations)


def show(evaluation: Evaluation, per_class: bool = False) -> None:
    """Print an evaluation in percent: its tables, and the main figures last."""
    kinds: list[tuple[str, Metrics]] = [("box", evaluation.box)]
    if evaluation.mask:
        kinds.append(("mask", evaluation.mask))
    by_iou, sizes = [], []
    for kind, metrics in kinds:
        by_iou.append([kind, *map(_percent, (metrics.ap, *metrics.by_iou.values()))])
        by_size = (metrics.ap_small, metrics.ap_medium, metrics.ap_large)
        recall = (metrics.ar1, metrics.ar10, metrics.ar100)
        recall_by_size = (metrics.ar_small, metrics.ar_medium, metrics.ar_large)
        sizes.append([kind, *map(_percent, (*by_size, *recall, *recall_by_size))])
    ious = (iou.removeprefix("0") for iou in evaluation.box.by_iou)
    Table("", ("AP", "all", *ious), by_iou).show()
    areas = ("medium", "large")
    Table("", ("", "AP small", *areas, "AR 1", "AR 10", "AR 100", "AR small", *areas), sizes).show()
    if per_class:
        rows = [
            [name, *(_percent(metrics.by_class[name]) for _, metrics in kinds)]
            for name in evaluation.box.by_class
        ]
        Table("", ("class", *(f"{kind} AP" for kind, _ in kinds)), rows).show()
    print_line(
        f"{counted(evaluation.images, 'image')}, {counted(evaluation.detections, 'detection')},"
        f" {evaluation.ms_per_image:.1f} ms per image from array to boxes and RLE masks",
        sys.stdout,
    )
    print_line(_headline(evaluation), sys.stdout)


def _headline(evaluation: Evaluation) -> str:
    """The main figures on one line."""
    box, mask = evaluation.box, evaluation.mask
    parts = [f"mask AP {_percent(mask.ap)}, AP50 {_percent(mask.ap50)}"] if mask else []
    return "; ".join([*parts, f"box AP {_percent(box.ap)}, AP50 {_percent(box.ap50)}"])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
