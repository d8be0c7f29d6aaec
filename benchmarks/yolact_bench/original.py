"""End to end against the original's way of working, in one interleaved run.

    python -m yolact_bench.original --weights W.pth --engine F.onnx [--engine G.xml:precision=bf16 ...] \
        --images DIR [--threads 2]

`OriginalOrder` restates, from scratch, what the original implementation of YOLACT computes for one image
and in which order: one image at a time, softmax over all priors, scores transposed to class-first and
filtered, fast NMS that sorts every class over all priors that are left, masks of all detections enlarged to
the whole image as floats and compared with 0.5, each whole mask encoded by pycocotools. The network is ours
with the same weights, so the figure speaks of the work around the network and of the runtime, not of the
layers. It is kept for this comparison only; `yolact.detect` is the implementation to use.

Beside the time by the clock stands the processor time of all threads, which a busy machine disturbs less.

The agreement that is printed is 1 to 1 where the file was exported with `--input-type float32`. With uint8
input the resized picture is rounded first, and instances near a threshold may differ.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor

import yolact
from yolact_bench.agreement import agreement
from yolact_bench.engines import different_names, open_engine, parse_engine
from yolact_bench.machine import describe_machine
from yolact_bench.protocol import Timing, ratios, take_turns
from yolact_runtime import Engine, YolactError
from yolact_runtime.commandline import Parser, run, table_console
from yolact_runtime.errors import UsageError
from yolact_runtime.files import write_json
from yolact_runtime.sources.images import list_images, read_image

log = logging.getLogger(__name__)


class OriginalOrder:
    """The original's work for one image; boxes, scores and run lengths as it would write them.

    Args:
        model: The network, in evaluation mode, on the CPU.
    """

    def __init__(self, model: yolact.Yolact) -> None:
        self.model = model
        self.settings = model.config.detect
        self.size = model.config.model.input_size
        self.mean = torch.tensor(model.config.model.mean).view(1, 3, 1, 1)
        self.std = torch.tensor(model.config.model.std).view(1, 3, 1, 1)

    @torch.inference_mode()
    def __call__(self, path: Path) -> dict[str, Any]:
        """Work on an image file.

        Returns:
            `boxes` (n, 4) int64 x1 y1 x2 y2 in pixels, `classes` (n,) int64, `scores` (n,) and
            `mask_scores` (n,) float32, `rles`: run lengths; best score first.
        """
        image = cv2.imread(str(path))
        if image is None:
            raise YolactError(f"cannot read image {path}")
        height, width = image.shape[:2]
        frame = torch.from_numpy(image).float().unsqueeze(0)
        loc, logits, coefficients, prototypes = self.model(self._prepare(frame))
        conf = logits.softmax(-1)
        class_first = conf.transpose(2, 1).contiguous()  # (1, C+1, P)
        boxes = self._decode(loc[0])
        scores = class_first[0, 1:]  # (C, P)
        keep = scores.max(dim=0).values > self.settings.score_threshold
        if not keep.any():
            empty = torch.zeros(0)
            found = {"boxes": torch.zeros(0, 4), "classes": empty, "scores": empty, "mask_scores": empty}
            return {**found, "rles": []}
        boxes, coefficients, classes, scores = self._fast_nms(
            boxes[keep], coefficients[0, keep], scores[:, keep]
        )
        masks = torch.sigmoid(prototypes[0] @ coefficients.T)  # (Hp, Wp, n)
        masks = self._crop(masks, boxes).permute(2, 0, 1).contiguous()  # (n, Hp, Wp)
        mask_scores = scores
        if self.model.config.model.mask_iou:
            ious = self.model.maskiou_net(masks.unsqueeze(1))  # (n, C)
            mask_scores = scores * ious.gather(1, classes.unsqueeze(1)).squeeze(1)
        masks = F.interpolate(masks.unsqueeze(0), (height, width), mode="bilinear", align_corners=False)[0]
        masks.gt_(0.5)  # stays float, (n, H, W)
        x, y = _sides(boxes[:, 0::2], width), _sides(boxes[:, 1::2], height)
        boxes = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1).long()
        rles = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks.numpy()]
        return {
            "boxes": boxes,
            "classes": classes,
            "scores": scores,
            "mask_scores": mask_scores,
            "rles": [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in rles],
        }

    def _prepare(self, frame: Tensor) -> Tensor:
        """(1, H, W, 3) BGR 0..255 to (1, 3, S, S) normalised RGB."""
        x = frame.permute(0, 3, 1, 2).contiguous()
        x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        x = (x - self.mean) / self.std
        return x[:, (2, 1, 0)].contiguous()

    def _decode(self, loc: Tensor) -> Tensor:
        """(P, 4) offsets to (P, 4) x1 y1 x2 y2, relative; of every prior, kept or not."""
        priors = self.model.priors
        centres = priors[:, :2] + loc[:, :2] * 0.1 * priors[:, 2:]
        sizes = priors[:, 2:] * torch.exp(loc[:, 2:] * 0.2)
        corners = centres - sizes / 2
        return torch.cat([corners, corners + sizes], 1)

    def _fast_nms(
        self, boxes: Tensor, coefficients: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best boxes, coefficients, classes and scores of (p, 4), (p, M) and scores (C, p)."""
        scores, index = scores.sort(1, descending=True)
        index, scores = index[:, : self.settings.nms_top_k].contiguous(), scores[:, : self.settings.nms_top_k]
        count, rows = index.shape
        boxes = boxes[index.view(-1)].view(count, rows, 4)
        coefficients = coefficients[index.view(-1)].view(count, rows, -1)
        iou = _iou(boxes)
        iou.triu_(diagonal=1)
        keep = iou.max(dim=1).values <= self.settings.iou_threshold  # (C, k)
        classes = torch.arange(count)[:, None].expand_as(keep)[keep]
        boxes, coefficients, scores = boxes[keep], coefficients[keep], scores[keep]
        scores, order = scores.sort(0, descending=True)
        order, scores = order[: self.settings.max_detections], scores[: self.settings.max_detections]
        return boxes[order], coefficients[order], classes[order], scores

    def _crop(self, masks: Tensor, boxes: Tensor) -> Tensor:
        """Masks (Hp, Wp, n) with zeros outside their boxes, widened by one cell."""
        height, width, n = masks.shape
        x = _sides(boxes[:, 0::2], width, 1)
        y = _sides(boxes[:, 1::2], height, 1)
        columns = torch.arange(width, dtype=x.dtype).view(1, -1, 1).expand(height, width, n)
        rows = torch.arange(height, dtype=x.dtype).view(-1, 1, 1).expand(height, width, n)
        inside = (columns >= x[:, 0]) & (columns < x[:, 1]) & (rows >= y[:, 0]) & (rows < y[:, 1])
        return masks * inside.float()


def _sides(relative: Tensor, size: int, padding: int = 0) -> Tensor:
    """Two relative coordinates (n, 2) in pixels, low and high, widened, each clamped on its own side."""
    ordered = (relative * size).sort(1).values
    return torch.stack([(ordered[:, 0] - padding).clamp(min=0), (ordered[:, 1] + padding).clamp(max=size)], 1)


def _iou(boxes: Tensor) -> Tensor:
    """(C, k, 4) to (C, k, k)."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    sides = (high - low).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])  # (C, k)
    return intersection / (area[:, :, None] + area[:, None, :] - intersection)


def deployed(engine: Engine) -> Callable[[Path], dict[str, Any]]:
    """The same work by an engine: image file to run lengths of everything it keeps."""

    def work(path: Path) -> dict[str, Any]:
        (result,) = engine.predict([read_image(path)], 0.0, engine.metadata.max_detections)
        return {"boxes": result.boxes, "classes": result.classes, "rles": result.rles}

    return work


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(
        prog="python -m yolact_bench.original",
        description="File to run lengths: the original's order of work in PyTorch against exported files.",
    )
    parser.add_argument("--weights", required=True, metavar="W", help="checkpoint, run the original's way")
    parser.add_argument(
        "--engine",
        "--onnx",
        action="append",
        required=True,
        metavar="E[:KEY=VALUE,...]",
        dest="engines",
        help="the same model, exported, with options such as g.xml:precision=bf16; repeat for several",
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of images, used in turn")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each")
    parser.add_argument("--runs", type=int, default=200, help="at most so many images each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of all")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    return run(_compare, parser, argv)


def _compare(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    images = list_images([args.images])
    with contextlib.ExitStack() as stack:
        ways: dict[str, Callable[[Path], dict[str, Any]]] = {
            "original": OriginalOrder(yolact.load_model(args.weights))
        }
        backends = {"original": ("PyTorch (cpu)", "fp32")}
        specs = [parse_engine(text) for text in args.engines]
        for name, spec in zip(different_names(specs), specs, strict=True):
            if name in ways:
                raise UsageError(
                    f"--engine {spec.path}: {name} is the name of the checkpoint's row; choose another"
                )
            engine = stack.enter_context(open_engine(spec.path, {"threads": args.threads, **spec.options}))
            ways[name] = deployed(engine)
            backends[name] = engine.name, engine.precision
        samples = {name: work(images[0]) for name, work in ways.items()}
        times, processor = take_turns(
            {name: _over(work, images) for name, work in ways.items()}, args.seconds, args.runs
        )
    timings = {name: Timing.of(taken) for name, taken in times.items()}
    processor_ms = {name: float(np.median(taken)) * 1000 for name, taken in processor.items()}
    first, *others = ways
    agreements = {name: agreement(samples[first], samples[name]) for name in others}
    found = len(samples[first]["rles"])
    table = Table(title="Image file to run lengths, ms per image", box=SIMPLE, title_justify="left")
    for column in ("", "backend", "precision"):
        table.add_column(column)
    for column in ("median", "p90", "p95", "processor", "images", "times as fast", "found", "IoU"):
        table.add_column(column, justify="right")
    for name, timing in timings.items():
        figures = (timing.median, timing.p90, timing.p95, processor_ms[name])
        same, iou = agreements.get(name, (found, 1.0))
        table.add_row(
            name,
            *backends[name],
            *(f"{value:.1f}" for value in figures),
            str(timing.runs),
            f"{ratios(timings)[name]:.2f}",
            f"{same}/{found}",
            f"{iou:.4f}",
        )
    console = table_console()
    console.print(table)
    console.print(
        f"{args.threads} threads, {len(images)} images; found: instances of the original again, on"
        f" {images[0].name}, and their mean mask IoU",
        highlight=False,
    )
    if args.json:
        write_json(
            args.json,
            {
                "machine": describe_machine(),
                "threads": args.threads,
                "timings": {name: asdict(timing) for name, timing in timings.items()},
                "engines": {
                    name: {"backend": backend, "precision": precision}
                    for name, (backend, precision) in backends.items()
                },
                "processor_ms": processor_ms,
                "times_as_fast": ratios(timings),
                "instances": found,
                "agreement": {
                    name: {"matched": same, "mask_iou": iou} for name, (same, iou) in agreements.items()
                },
            },
            indent=2,
        )
    return 0


def _over(work: Callable[[Path], object], images: Sequence[Path]) -> Callable[[], float]:
    """One run on the next image, returning the processor time of all threads in seconds."""
    turn = cycle(images)

    def once() -> float:
        start = time.process_time()
        work(next(turn))
        return time.process_time() - start

    return once


if __name__ == "__main__":
    raise SystemExit(main())
